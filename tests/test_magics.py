"""`%load_ext tokenbudget_lab` in real kernels: cells of every kind under a budget, and the shell afterwards as it was before.

`make oldest` runs this file with the oldest ipykernel, the rest of `make test` with the newest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_kernels import Notebook, kernels, one, place, two, until  # noqa: F401 - fixtures are asked for by their names
from tokenbudget_lab.place import Place

OPEN = """
    import asyncio, os, pathlib, sys, threading, time
    os.environ["TOKENBUDGET_LEDGER"] = ":memory:"
    os.chdir({folder!r})
    import tokenbudget_lab as tbl
    from tokenbudget_lab.scopes import current_budget, current_tags

    lab = tbl.budget("lab", usd=5)
    study = tbl.budget("lab/study", usd=2)
    def spend(usd="0.50", tokens=100):
        current_budget().record(usd=usd, tokens=tokens, tags=current_tags()).result()
"""
LINE = "lab/study: 1 call, 100 tokens, $0.5000 in this cell · $1.50 of $2.00 left\n"


@pytest.fixture
def notebook(kernels: list[Notebook], tmp_path: Path) -> Iterator[Notebook]:  # noqa: F811 - the fixture itself
    """A kernel with budgets, and the extension loaded."""
    first = kernels[0]
    first.ready()
    first.run(OPEN.format(folder=str(tmp_path)))
    first.run("%load_ext tokenbudget_lab")
    yield first
    if first.manager.is_alive() and all(cell.ended for cell in first.cells.values()):
        first.run("%unload_ext tokenbudget_lab\nfor ledger in list(tbl.connection._open):\n    ledger.close()")
    else:
        first.manager.restart_kernel(now=True)
    first.cells.clear()


def said(notebook: Notebook, code: str) -> str:
    """What a cell printed, its errors included."""
    return notebook.end_of(notebook.send(code)).output


@pytest.mark.parametrize(
    ("body", "printed"),
    [
        ("spend()", ""),
        ("await asyncio.sleep(0)\nspend()", ""),
        ("await asyncio.gather(asyncio.to_thread(spend))", ""),
        ("async def call():\n    spend()\nawait asyncio.create_task(call())", ""),
        ("thread = threading.Thread(target=spend)\nthread.start()\nthread.join()", ""),
        ("!echo shell\nspend()", "shell\n"),
        ("\n\n%%capture\nspend()", ""),
        ("%timeit -n1 -r1 -q spend()", ""),
        ("get_ipython().run_cell('spend()')\nassert current_budget() == study", ""),
        ("get_ipython().run_cell('')\nspend()", ""),
        ("from __future__ import annotations\nspend()", ""),
        ("\n# so\nfrom __future__ import annotations, division  # as here\nspend()", ""),
    ],
)  # fmt: skip
def test_a_cell_of_any_kind_is_under_its_budget(notebook: Notebook, body: str, printed: str) -> None:
    """It spends in the budget that is in force, its line says so, and the next cell has none."""
    assert notebook.run(f"%%budget lab/study\n{body}").replace("\r\n", "\n") == printed + LINE
    assert notebook.run("print(current_budget())") == "None\n"


def test_a_cell_can_make_its_budget_and_tag_its_calls(notebook: Notebook) -> None:
    notebook.run("%%budget lab/new --usd 1 --tag condition=few-shot --tag arm=b\nspend()")
    told = notebook.run("calls = tbl.budget('lab/new').ledger.calls().collect()\nprint(calls['tags'].to_list()[0])")
    assert ("condition" in told, "few-shot" in told, "arm" in told) == (True, True, True)


def test_a_budget_of_a_variable_can_be_named(notebook: Notebook) -> None:
    notebook.run("mine = tbl.connect(':memory:').budget('own', usd=1)")
    assert notebook.run("%%budget mine\nspend()").startswith("own: 1 call")


def test_an_error_in_the_body_is_itself_and_the_line_is_said(notebook: Notebook) -> None:
    cell = notebook.end_of(notebook.send("%%budget lab/study\nspend()\n1 / 0"))
    assert (cell.error, cell.output.endswith(LINE)) == ("ZeroDivisionError", True)
    assert notebook.run("print(current_budget(), type(sys.last_value).__name__)") == "None ZeroDivisionError\n"


@pytest.mark.parametrize("wait", ["time.sleep(60)", "while not await asyncio.sleep(0.05): pass"])
def test_an_interrupted_cell_leaves_its_budget(notebook: Notebook, tmp_path: Path, wait: str) -> None:
    stopped = notebook.send(f"%%budget lab/study\nspend()\npathlib.Path('there').touch()\n{wait}")
    until((tmp_path / "there").exists)
    notebook.manager.interrupt_kernel()
    cell = notebook.end_of(stopped)
    assert cell.error in ("KeyboardInterrupt", "CancelledError")
    assert LINE.strip() in cell.output
    assert notebook.run("print(current_budget())") == "None\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "names no budget"),
        ("lab/study --usd 3", "exists with $2.00, not $3.00"),
        ("labb", "did you mean lab?"),
        ("nolab/study --usd 1", "nolab"),
        ("study --usd 2", "leave them out"),
        ("lab/study --udd 1", "--usd is"),
        ("lab/study --ledger nothing", "is no variable with a ledger"),
        ("lab/study --tag budget=x", "budget"),
    ],
)
def test_a_line_that_cannot_be_done_runs_nothing_of_its_cell(notebook: Notebook, line: str, says: str) -> None:
    """What is not under the budget that was meant must not be sent."""
    told = said(notebook, f"%%budget {line}\nprint('it has run')")
    assert (says in told, "it has run" in told, "Nothing of this cell has run" in told) == (True, False, True)
    assert notebook.run("print(current_budget(), dict(current_tags()))") == "None {}\n"


def test_a_line_whose_parent_budget_is_missing_makes_no_ledger(notebook: Notebook, tmp_path: Path) -> None:
    where = tmp_path / "new.duckdb"
    notebook.run(
        f"os.environ['TOKENBUDGET_LEDGER'] = {str(where)!r}\nfor each in list(tbl.connection._open):\n    each.close()"
    )
    told = said(notebook, "%%budget nolab/study --usd 1\nprint('it has run')")
    assert ("'nolab' does not exist" in told, "it has run" in told, where.exists()) == (True, False, False)


def test_a_ledger_that_cannot_be_read_is_named_and_the_others_are_shown(notebook: Notebook) -> None:
    notebook.run("broken = tbl.connect('broken.duckdb', embedded=True)\nbroken.budget('there', usd=3)\nbroken.desk.close()")
    told = said(notebook, "print(get_ipython().run_line_magic('budget', ''))")
    assert all(text in told for text in ("lab/study", "✕ the ledger", "broken.duckdb is closed"))


@pytest.mark.parametrize("first", ["", "from __future__ import annotations\n"])
def test_an_error_is_in_the_line_that_the_cell_shows(notebook: Notebook, first: str) -> None:
    told = said(notebook, f"%%budget lab/study\n{first}\n1 / 0")
    assert f"line {4 if first else 3}" in re.sub(r"\x1b\[[0-9;]*m", "", told)


@pytest.mark.parametrize("cell", ["%budget nothing", "%%budget nothing\nprint('it has run')"])
def test_a_name_of_no_budget_makes_no_ledger(notebook: Notebook, tmp_path: Path, cell: str) -> None:
    notebook.run("for ledger in list(tbl.connection._open): ledger.close()")
    notebook.run(f"os.environ['TOKENBUDGET_LEDGER'] = {str(tmp_path / 'default.duckdb')!r}")
    told = said(notebook, cell)
    assert ("no budget named 'nothing'" in told, "it has run" in told, list(tmp_path.glob("default*"))) == (True, False, [])


def test_a_budget_of_any_ledger_that_is_open_is_shown_by_its_name(notebook: Notebook) -> None:
    told = said(notebook, "mine = tbl.connect(':memory:')\nmine.budget('own', usd=1)\n%budget own\n%budget owm")
    assert "did you mean own?" in told
    assert said(notebook, "print(repr(get_ipython().run_line_magic('budget', 'own')))").startswith("own  ·")


def test_a_cell_is_put_under_a_budget_of_any_ledger_that_is_open(notebook: Notebook) -> None:
    """The default ledger has none of that name; of two others that have, none is guessed."""
    spend = "%%budget own\ncurrent_budget().record(usd='0.25').result()"
    notebook.run("mine = tbl.connect(':memory:')\nmine.budget('own', usd=1)")
    assert "own: 1 call" in said(notebook, spend)
    notebook.run("other = tbl.connect(':memory:')\nother.budget('own', usd=1)")
    told = said(notebook, spend)
    assert ("2 of the open ledgers have a budget 'own'" in told, "Nothing of this cell has run" in told) == (True, True)


def test_kernels_whose_notebooks_have_no_name_are_told_apart(one: Notebook, two: Notebook, place: Place) -> None:  # noqa: F811 - the fixtures themselves
    """The second one spends in the same budget while the first one's cell runs."""
    folder = place.file.parent
    one.run("%load_ext tokenbudget_lab")
    waits = "while not pathlib.Path('go').exists(): time.sleep(0.005)"
    cell = one.send(f"%%budget study\npathlib.Path('began').touch()\n{waits}\nstudy.record(tokens=5).result()")
    until((folder / "began").exists)
    two.run("study.record(tokens=70).result()")
    (folder / "go").touch()
    assert one.end_of(cell).output.startswith("study: 1 call, 5 tokens"), cell.output
    one.run("%unload_ext tokenbudget_lab")


def test_queued_cells_each_have_their_own_budget(notebook: Notebook) -> None:
    """`Run All`: none waits for the one before to be seen."""
    bodies = ("spend()", "await asyncio.sleep(0.1)\nspend()", "spend()")
    cells = [notebook.send(f"%%budget lab/study\n{body}") for body in bodies]
    assert [notebook.end_of(cell).output.partition(" · ")[2].strip() for cell in cells] == [
        "$1.50 of $2.00 left", "$1.00 of $2.00 left", "$0.50 of $2.00 left",
    ]  # fmt: skip


def test_what_a_cell_leaves_running_stays_under_its_budget(notebook: Notebook) -> None:
    """A task of a cell that has ended is capped as before."""
    notebook.run("""
        %%budget lab/study
        go_on = asyncio.Event()
        async def later():
            await go_on.wait()
            return current_budget()
        left_running = asyncio.create_task(later())
        await asyncio.sleep(0)
    """)
    assert notebook.run("go_on.set()\nprint((await left_running).name, current_budget())") == "lab/study None\n"


def test_the_processs_budget_is_in_force_again_behind_the_cell(notebook: Notebook) -> None:
    notebook.run("use = lab.use()")
    notebook.run("%%budget lab/study\nspend()")
    assert notebook.run("print(current_budget().name)\nuse.end()") == "lab\n"


def test_budget_cells_tells_the_spend_of_each_cell(notebook: Notebook) -> None:
    """Also of cells that name no budget; those without calls are left out."""
    notebook.run("study.record(usd='0.25', tokens=5).result()")
    notebook.run("pass")
    notebook.run("%%budget lab/study\nspend()")
    told = notebook.run("print(get_ipython().run_line_magic('budget', 'cells'))").splitlines()
    assert [line.partition("]")[2].split() for line in told] == [
        ["1", "call,", "5", "tokens,", "$0.2500"], ["lab/study", "1", "call,", "100", "tokens,", "$0.5000"],
    ]  # fmt: skip


def test_budget_shows_what_every_budget_has_left(notebook: Notebook) -> None:
    told = notebook.run(
        "shown = get_ipython().run_line_magic('budget', '')\nprint(shown, 'role=\"meter\"' in shown._repr_html_())"
    )
    assert ("$5.00 of $5.00 left" in told, "$2.00 of $2.00 left" in told, told.endswith("True\n")) == (True, True, True)


def test_hostile_names_are_text_in_what_the_magics_show(notebook: Notebook) -> None:
    notebook.run("tbl.budget('<script>alert(1)<|script>', usd=1)")
    notebook.run("%%budget <script>alert(1)<|script>\nspend()")
    for command in ("", "cells"):
        assert (
            notebook.run(f"print('<script' in get_ipython().run_line_magic('budget', '{command}')._repr_html_())") == "False\n"
        )


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("%%budget lab/", "lab/study"), ("%%budget lab --u", "--usd"), ("%budget ce", "cells"), ("%%budg", "%%budget")],
)
def test_names_and_options_are_completed(notebook: Notebook, typed: str, offered: str) -> None:
    told = notebook.run(f"print(get_ipython().Completer.complete(line_buffer={typed!r}, cursor_pos={len(typed)})[1])")
    assert offered in told


def test_help_says_how_it_is_written(notebook: Notebook) -> None:
    told = notebook.run("print(get_ipython().object_inspect_text('%%budget'))")
    assert ("--tag condition=few-shot" in told, "%budget cells" in told) == (True, False)


def test_loaded_twice_it_is_loaded_once(notebook: Notebook) -> None:
    notebook.run("tbl.load_ipython_extension(get_ipython())")
    assert notebook.run("%%budget lab/study\nspend()") == LINE


def test_unloaded_it_leaves_nothing_behind(notebook: Notebook) -> None:
    """Before it is loaded the shell is the same; nothing is hooked by the import."""
    state = """
        shell, events = get_ipython(), ("pre_run_cell", "post_run_cell", "post_execute")
        hooks = [hook.__qualname__ for name in events for hook in shell.events.callbacks[name] if hasattr(hook, "__qualname__")]
        found = [kind for kind in ("line", "cell") if shell.find_magic("budget", kind)]
        completed = [key for key in shell.strdispatchers["complete_command"].strs if "budget" in key]
        print(hooks, found, completed, len(shell.input_transformers_cleanup))
    """
    loaded = notebook.run(state)
    notebook.run("%unload_ext tokenbudget_lab")
    unloaded = notebook.run(state)
    notebook.run("%load_ext tokenbudget_lab")
    again = notebook.run(state)
    notebook.manager.restart_kernel(now=True)
    notebook.ready()
    notebook.run("import tokenbudget_lab as tbl\ntbl.connect(':memory:').budget('lab', usd=1)")
    assert (again, notebook.run(state)) == (loaded, unloaded)
    notebook.run("%load_ext tokenbudget_lab")


def test_unloaded_inside_a_cell_under_a_budget_that_cell_ends_as_it_should(notebook: Notebook) -> None:
    assert notebook.run("%%budget lab/study\nspend()\n%unload_ext tokenbudget_lab") == LINE
    assert notebook.run("print(current_budget(), 'Magics' in str(get_ipython().events.callbacks))") == "None False\n"
