"""Dashboards in notebooks: real Jupyter kernels, and what a front end is told by them.

`make oldest` runs this file with the oldest ipykernel and ipywidgets, the rest of `make test` with the newest.
"""

from __future__ import annotations

from tests.test_gauge_kernels import WIDGET, notebook, shown  # noqa: F401 - a fixture is asked for by its name
from tests.test_kernels import Notebook, kernels  # noqa: F401 - as above

SHOWS = """
    def until(true):
        end = time.monotonic() + 20
        while not true() and time.monotonic() < end:
            time.sleep(0.002)
        return true()
"""


def test_a_dashboard_moves_while_its_cell_blocks(notebook: Notebook) -> None:  # noqa: F811 - the fixture itself
    """The cell waits for each amount to be told; widgets have it then."""
    notebook.run(SHOWS)
    moved = notebook.run("""
        dashboard = tbl.dashboard(ledger)
        for amount in ("1.00", "2.00"):
            study.record(usd="1", tags={"arm": "b"}).result()
            print(until(lambda: f"${amount}" in repr(dashboard)))
    """)
    notebook.run("pass")
    values = [model.get("value", "") for model in notebook.models.values()]
    assert (moved, any("$</span>2.00 · " in value for value in values)) == ("True\nTrue\n", True)


def test_twenty_dashboards_opened_and_closed_leave_no_model_behind(notebook: Notebook) -> None:  # noqa: F811 - as above
    left = notebook.run("""
        for _ in range(20):
            with tbl.dashboard(ledger):
                pass
        print(len(models), len(comms))
    """)
    there = shown(notebook)
    assert (left, len(there), notebook.models) == ("0 0\n", 20, {})
    assert all("As of" in each["text/html"] for each in there)


def test_a_dashboard_at_which_nothing_moves_is_plain_html_until_something_does(notebook: Notebook) -> None:  # noqa: F811 - as above
    notebook.run(SHOWS)
    notebook.run("""
        from tokenbudget_lab.widgets import dashboard as module
        module.STILL_S = 0.2
        dashboard = tbl.dashboard(ledger)
        until(lambda: dashboard._sight.calls and not models)
    """)
    notebook.run("then = dashboard._sight.at\nuntil(lambda: (dashboard._sight.at - then).total_seconds() > 0.5)")
    (still,) = shown(notebook)
    notebook.run("then = dashboard._sight.at\nuntil(lambda: (dashboard._sight.at - then).total_seconds() > 1.5)")
    assert shown(notebook) == [still]  # it does not write to the notebook for nothing
    notebook.run("module.STILL_S = 60\nstudy.record(usd='1.25').result()\nuntil(lambda: models)\nwith dashboard._drawing: pass")
    (moving,) = shown(notebook)
    assert ("As of" in still["text/html"], WIDGET in moving) == (True, True)


def test_without_ipywidgets_a_dashboard_is_an_output_that_moves(notebook: Notebook) -> None:  # noqa: F811 - as above
    notebook.run(SHOWS)
    notebook.run("""
        import sys
        sys.modules["ipywidgets"] = None
        dashboard = tbl.dashboard(ledger)
        study.record(usd="1.25").result()
        until(lambda: "$1.25" in repr(dashboard))
    """)
    (there,) = shown(notebook)
    assert "$</span>1.25 · " in there["text/html"]


def test_a_cell_that_is_run_again_closes_what_it_showed(notebook: Notebook) -> None:  # noqa: F811 - as above
    """Front ends say which cell it is; one run of it is behind the other."""
    metadata = "get_ipython().kernel.shell.parent_header['metadata'] = {'cellId': 'a'}\n"
    notebook.run(metadata + "first = tbl.dashboard(ledger)")
    notebook.run(metadata + "second = tbl.dashboard(ledger)")
    assert notebook.run("print(first.closed, second.closed)") == "True False\n"
