"""Alerts in notebooks: a line under the cell whose call crossed, in real Jupyter kernels.

`make oldest` runs this file with the oldest ipykernel, the rest of `make test` with the newest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_kernels import GRACE_S, Cell, Notebook, kernels, until  # noqa: F401 - a fixture is asked for by its name

OPEN = """
    import asyncio, os, pathlib, threading, time
    import tokenbudget_lab as tbl

    os.chdir({folder!r})
    ledger = tbl.connect(":memory:")
    study = ledger.budget("study", usd=10, alerts=(0.5, 0.8))
"""
LINE = "study: 50% of $10.00 is spent ($6.00)"


@pytest.fixture
def notebook(kernels: list[Notebook], tmp_path: Path) -> Iterator[Notebook]:  # noqa: F811 - the fixture itself
    """A kernel with a budget that has alerts."""
    one = kernels[0]
    one.ready()
    one.run(OPEN.format(folder=str(tmp_path)))
    yield one
    one.manager.restart_kernel(now=True)


def ended(notebook: Notebook, code: str) -> Cell:
    """A cell at its end, with all that came for it before the next one's end."""
    cell = notebook.end_of(notebook.send(code))
    notebook.run("ledger.budgets()")
    return cell


CROSSES = {
    "record": "study.record(usd=6).result()",
    "unread": "receipt = study.record(usd=6)\nledger.budgets()",
    "with": "with study.reserve(usd=6) as call: call.commit(usd=6)",
    "await": "async with study.reserve(usd=6) as call: call.commit(usd=6)",
    "thread": "thread = threading.Thread(target=lambda: study.record(usd=6).result())\nthread.start()\nthread.join()",
    "task": "await asyncio.gather(asyncio.to_thread(lambda: study.record(usd=6).result()))",
}


@pytest.mark.parametrize("cell", CROSSES.values(), ids=CROSSES)
def test_the_cell_that_crossed_has_one_line(notebook: Notebook, cell: str) -> None:
    """As an output and not on stderr; the next cell, which reads what was left unread, has none."""
    crossed, following = ended(notebook, cell), ended(notebook, "study.record(usd='0.1').result()")
    assert (crossed.lines, crossed.output, following.lines, following.output) == ([LINE], "", [], "")


def test_of_thresholds_that_one_call_crosses_the_highest_is_shown(notebook: Notebook) -> None:
    assert ended(notebook, "study.record(usd=9).result()").lines == ["study: 80% of $10.00 is spent ($9.00)"]


def test_a_thread_that_outlasts_its_cell_says_it_there(notebook: Notebook, tmp_path: Path) -> None:
    """Or where the kernel, an older one, takes its outputs to be: in the cell that runs."""
    first = notebook.end_of(
        notebook.send("""
        def later():
            while not pathlib.Path("go").exists(): time.sleep(0.005)
            study.record(usd=6).result()
        thread = threading.Thread(target=later)
        thread.start()
    """)
    )
    (tmp_path / "go").touch()
    second = ended(notebook, "thread.join()")
    assert [*first.lines, *second.lines] == [LINE]


def test_whoever_logs_has_a_record_too(notebook: Notebook) -> None:
    cell = ended(notebook, "import logging\nlogging.basicConfig(filename='log.txt')\nstudy.record(usd=6).result()")
    assert (cell.lines, notebook.run("print(pathlib.Path('log.txt').read_text())").count("50% of")) == ([LINE], 1)


def test_a_hostile_name_in_an_alert_is_text(notebook: Notebook) -> None:
    cell = ended(notebook, "ledger.budget('<b>$x$', usd=1, alerts=[0.5]).record(usd=1).result()")
    assert ("<b>" in cell.html, "&lt;b&gt;<span>$</span>x<span>$</span>" in cell.html) == (False, True)
