"""Gauges in notebooks: real Jupyter kernels, and what a front end is told by them.

`make oldest` runs this file with the oldest ipykernel and ipywidgets, the rest of `make test` with the newest.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_kernels import Cell, Notebook, kernels, until  # noqa: F401 - a fixture is asked for by its name

WIDGET = "application/vnd.jupyter.widget-view+json"
OPEN = """
    import asyncio, os, threading, time
    import ipywidgets
    import tokenbudget_lab as tbl

    os.chdir({folder!r})
    ledger = tbl.connect(":memory:")
    study = ledger.budget("study", usd=1000)
    models = ipywidgets.widgets.widget._instances
    comms = get_ipython().kernel.comm_manager.comms

    def shows(gauge, text):
        end = time.monotonic() + 20
        while text not in gauge._picture(final=False).text() and time.monotonic() < end:
            time.sleep(0.002)
        return text in gauge._picture(final=False).text()
"""


@pytest.fixture
def notebook(kernels: list[Notebook], tmp_path: Path) -> Iterator[Notebook]:  # noqa: F811 - the fixture itself
    """A kernel with a budget."""
    one = kernels[0]
    one.ready()
    one.displays.clear()
    one.models.clear()
    one.run(OPEN.format(folder=str(tmp_path)))
    yield one
    one.manager.restart_kernel(now=True)


def shown(notebook: Notebook) -> list[dict[str, Any]]:
    """What is shown, by kind; of a widget its HTML."""
    notebook.run("pass")  # what was sent before its end has come
    found = []
    for data in notebook.displays.values():
        model = data.get(WIDGET, {}).get("model_id")
        found.append({**data, WIDGET: notebook.models.get(model, {}).get("value")} if model else data)
    return found


def test_a_gauge_is_one_widget_that_moves_while_its_cell_blocks(notebook: Notebook) -> None:
    """Two amounts are shown before the cell has ended; the second is waited for by the cell itself."""
    moved = notebook.run("""
        gauge = tbl.gauge(study)
        for amount in ("1.00", "2.00"):
            study.record(usd="1").result()
            print(shows(gauge, f"${amount} committed"))
    """)
    (there,) = shown(notebook)
    assert (moved, "$</span>2.00 committed" in there[WIDGET]) == ("True\nTrue\n", True)


def test_a_gauge_that_is_closed_is_plain_html_of_the_last_value(notebook: Notebook) -> None:
    notebook.run("""
        with tbl.gauge(study):
            study.record(usd="1.25").result()
    """)
    (there,) = shown(notebook)
    assert (sorted(there), "$</span>1.25 committed" in there["text/html"]) == (["text/html", "text/plain"], True)
    assert "As of" in there["text/html"]


def test_a_hundred_gauges_opened_and_closed_leave_no_model_behind(notebook: Notebook) -> None:
    left = notebook.run("""
        for _ in range(100):
            with tbl.gauge(study):
                pass
        print(len(models), len(comms), sum(thread.name == "tokenbudget-watch" for thread in threading.enumerate()) <= 1)
    """)
    assert (left, len(shown(notebook)), notebook.models) == ("0 0 True\n", 100, {})


def test_a_gauge_under_its_own_name_is_not_shown_twice(notebook: Notebook) -> None:
    """The last line of a cell shows what it is; here it is there already."""
    notebook.run("gauge = tbl.gauge(study)\ngauge")
    assert len(shown(notebook)) == 1


def test_a_gauge_can_be_shown_under_another_cell_too(notebook: Notebook) -> None:
    notebook.run("gauge = tbl.gauge(study)")
    notebook.run("gauge")
    notebook.run("gauge.close()")
    assert [("text/html" in there, WIDGET in there) for there in shown(notebook)] == [(True, False)] * 2


def test_a_gauge_at_which_nothing_moves_is_plain_html_until_something_does(notebook: Notebook) -> None:
    """So a notebook that is saved meanwhile says the truth, and of when it is."""
    notebook.run("""
        from tokenbudget_lab.widgets import gauge as module
        module.STILL_S = 0.2
        gauge = tbl.gauge(study)
        while models:
            time.sleep(0.01)
    """)
    (still,) = shown(notebook)
    notebook.run("module.STILL_S = 60\nstudy.record(usd='1.25').result()\nprint(shows(gauge, '$1.25 committed'), len(models))")
    (moving,) = shown(notebook)
    assert ("As of" in still["text/html"], "$</span>1.25 committed" in moving[WIDGET]) == (True, True)


def test_a_kernel_that_leaves_closes_its_gauges(notebook: Notebook) -> None:
    """Its ledgers are closed at its exit, and with them what shows their budgets."""
    notebook.run("gauge = tbl.gauge(study)\nreceipt = study.record(usd='1.25')")
    notebook.client.shutdown()
    (display,) = notebook.displays
    until(lambda: notebook._heard(Cell(), 0.1) or "text/html" in notebook.displays[display])
    assert "$</span>1.25 committed" in notebook.displays[display]["text/html"]


@pytest.mark.parametrize("shows", ["tbl.gauge(study)", "tbl.dashboard(ledger)"])
def test_a_kernel_that_is_restarted_leaves_the_truth_and_the_next_one_works(
    notebook: Notebook, tmp_path: Path, shows: str
) -> None:
    """What it showed is plain HTML of its last value; what the new kernel shows moves."""
    notebook.run(f"shown = {shows}\nreceipt = study.record(usd='1.25')")
    (display,) = notebook.displays
    notebook.manager.restart_kernel()
    until(lambda: notebook._heard(Cell(), 0.1) or "text/html" in notebook.displays[display])
    left = notebook.displays.pop(display)["text/html"]
    notebook.ready()
    notebook.models.clear()
    notebook.run(OPEN.format(folder=str(tmp_path)))
    notebook.run(f"shown = {shows}\nstudy.record(usd='2.50').result()")
    shown(notebook)
    until(lambda: notebook.run("pass") == "" and any("$</span>2.50" in str(m.get("value")) for m in notebook.models.values()))
    assert ("$</span>1.25" in left, "As of" in left) == (True, True)


def test_without_ipywidgets_a_gauge_is_an_output_that_moves(notebook: Notebook) -> None:
    notebook.run("""
        import sys
        sys.modules["ipywidgets"] = None
        gauge = tbl.gauge(study)
        study.record(usd="1.25").result()
        print(shows(gauge, "$1.25 committed"))
    """)
    (there,) = shown(notebook)
    assert "$</span>1.25 committed" in there["text/html"]


def test_a_gauge_moves_for_calls_of_threads_and_tasks(notebook: Notebook) -> None:
    moved = notebook.run("""
        gauge = tbl.gauge(study)
        async def call():
            async with study.reserve(usd="1") as held:
                held.commit(usd="1")
        await asyncio.gather(*(call() for _ in range(5)))
        threads = [threading.Thread(target=lambda: study.record(usd="1").result()) for _ in range(5)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(shows(gauge, "$10.00 committed"))
    """)
    assert moved == "True\n"


@pytest.mark.parametrize("seconds", [2, pytest.param(10, marks=pytest.mark.soak)])
def test_a_gauge_follows_a_thousand_calls_a_second(notebook: Notebook, seconds: int) -> None:
    """When they end it has the last value within 0.2 s, the median of three times."""
    lags = []
    for n in range(3):
        told = notebook.run(f"""
            gauge = tbl.gauge(study) if {n} == 0 else gauge
            start, made = time.monotonic(), 0
            while (now := time.monotonic()) < start + {seconds}:
                while made < (now - start) * 1000:
                    receipt = study.record(usd="0.001")
                    made += 1
                time.sleep(0.001)
            receipt.result()
            total, end = study.balance.committed_usd, time.monotonic()
            while gauge.balance.committed_usd != total:
                time.sleep(0.001)
            import json
            print(json.dumps([made, time.monotonic() - end]))
        """)
        made, lag = json.loads(told)
        assert made > 900 * seconds
        lags.append(lag)
    print(f"{lags} s behind the last of 1,000 calls a second")  # noqa: T201 - says what it measured
    assert statistics.median(lags) < 0.2
