"""Many calls at once in a notebook: a real Jupyter kernel, its stop button, and the cell run again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_kernels import Notebook, kernels, until  # noqa: F401 - a fixture is asked for by its name

OPEN = """
    import asyncio, os, pathlib, sys
    import tokenbudget_lab as tbl

    os.chdir({folder!r})
    ledger = tbl.connect(":memory:")
    study, results, made, slow = ledger.budget("study", usd=1), {{}}, [], True

    async def ask(n):
        async with study.reserve(usd="0.10") as call:
            made.append(n)
            if slow and n > 2:
                pathlib.Path("asked").touch()
                await asyncio.sleep(60)
            call.commit(usd="0.05")
            return n
"""
GATHER = "await tbl.gather((lambda n=n: ask(n) for n in range(6)), keys=range(6), results=results, budget=study, concurrency=2)"


@pytest.fixture
def notebook(kernels: list[Notebook], tmp_path: Path) -> Iterator[Notebook]:  # noqa: F811 - the fixture itself
    """A kernel with a budget, and calls of which the later ones are slow."""
    one = kernels[0]
    one.ready()
    one.run(OPEN.format(folder=str(tmp_path)))
    yield one
    one.manager.restart_kernel(now=True)


def test_a_cell_that_was_stopped_and_is_run_again_makes_only_the_missing_calls(notebook: Notebook, tmp_path: Path) -> None:
    """Three are paid when it is stopped, two are in flight and hold nothing afterwards."""
    stopped = notebook.send(f"print({GATHER})")
    until((tmp_path / "asked").exists)
    notebook.manager.interrupt_kernel()
    assert notebook.end_of(stopped).error in ("KeyboardInterrupt", "CancelledError")
    assert notebook.run("print(results, study.balance.reserved_requests)") == "{0: 0, 1: 1, 2: 2} 0\n"
    assert notebook.run(f"slow = False\nmade.clear()\nprint({GATHER}, made)") == "[0, 1, 2, 3, 4, 5] [3, 4, 5]\n"


def test_without_a_dict_what_was_paid_is_in_the_last_exception(notebook: Notebook, tmp_path: Path) -> None:
    stopped = notebook.send("await tbl.gather(*(ask(n) for n in range(6)), budget=study)")
    until((tmp_path / "asked").exists)
    notebook.manager.interrupt_kernel()
    assert "3 results are kept, by place" in notebook.end_of(stopped).output
    assert notebook.run("print(sys.last_value.results)") == "{0: 0, 1: 1, 2: 2}\n"


BAR = """
    for n in tbl.track(range(3), study):
        study.record(usd="0.10")
        await asyncio.sleep(0.5)
"""


def test_a_bar_comes_up_in_a_cell_and_stays_with_its_money(notebook: Notebook) -> None:
    """As text, where there are no widgets."""
    notebook.run("sys.modules['ipywidgets'] = None")  # as if it were not installed
    assert notebook.run(BAR).rstrip().endswith("$0.3000 spent, $0.70 left]")


SEEN = """
    import ipywidgets
    seen, models = [], ipywidgets.widgets.widget._instances
    def look():
        seen.extend(str(getattr(model, "value", "")).replace("\\u2007", " ") for model in list(models.values()))
"""


def lines(notebook: Notebook, code: str) -> list[Any]:
    """What a cell has displayed, as it is at its end; and how many widgets are left."""
    notebook.displays.clear()
    notebook.run(code)
    return [list(notebook.displays.values()), int(notebook.run("print(len(models))"))]


def test_a_bar_is_a_widget_where_there_are_any_and_a_line_in_the_end(notebook: Notebook) -> None:
    notebook.run(SEEN)
    told = lines(notebook, BAR + "        look()\n")
    assert told == [[{"text/plain": "study: 3 of 3 rows done, $0.3000 spent, $0.70 left"}], 0]
    assert "2/3 [" in notebook.run("print(seen)")


def test_when_the_budget_is_gone_a_loop_leaves_one_line(notebook: Notebook) -> None:
    """Ten calls of ten cents fit; the eleventh is refused, and ends the cell."""
    notebook.run(SEEN)
    told = lines(
        notebook,
        """
        try:
            for n in tbl.track(range(50), study, progress=True):
                with study.reserve(usd="0.10") as call:
                    call.commit(usd="0.10")
        except tbl.BudgetExceeded:
            pass
    """,
    )
    assert told == [[{"text/plain": "study: 10 of 50 rows done, $1.00 spent, $0.00 left"}], 0]


def test_a_line_says_so_where_the_ledger_did_not_answer_in_the_end(notebook: Notebook) -> None:
    """Else what was spent behind the last answer would be told as nothing."""
    notebook.run(SEEN)
    told = lines(
        notebook,
        """
        for n in tbl.track(range(3), study, progress=True):
            if n == 0:
                study.record(usd="0.50").result()
                study.ledger.close()
    """,
    )
    ((bundle,), left) = told
    assert (bundle["text/plain"].endswith("as the ledger said last: in the end it did not answer"), left) == (True, 0)


def test_when_the_budget_is_gone_many_calls_leave_one_line(notebook: Notebook) -> None:
    """A hold of ten cents fits nineteen times, of which each costs five; the others are refused."""
    notebook.run(SEEN + "    slow = False\n")
    told = lines(
        notebook,
        "replies = await tbl.gather([lambda n=n: ask(n) for n in range(50)], budget=study, concurrency=1, progress=True)",
    )
    refused = "study: 19 of 50 calls done, $0.9500 spent, $0.05 left, 31 refused"
    assert told == [[{"text/plain": refused}], 0]
