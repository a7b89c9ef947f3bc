"""`%load_ext tokenbudget_lab`: cells under a budget, and what each of them spent.

`%%budget` is no ordinary cell magic, since those cannot run `await`: its line becomes a statement before the cell's own lines,
which run as they would without it. The statement puts the cell under the budget, or raises, and then none of them runs. Behind
the cell a hook ends that, and says what it came to. Hooks never raise. Unloading leaves nothing behind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .cells import Ran, line, now, spent_by
from .connection import default_ledger, default_path, open_ledgers
from .errors import InvalidValue, ParentMissing, TokenBudgetError, UnknownBudget, told
from .handles import Budget
from .limits import budget_name
from .magic_lines import OPTIONS, Asked, asked
from .meters import Outlook, gauge_html, text_html
from .render import balance_text
from .scopes import Cell
from .servers import is_url

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_COMPLETED = ("%budget", "%%budget")
_HIDDEN = "--this-cell"  # what the line of a cell begins with, once it is a statement
_loaded: list[Magics] = []  # one for each shell; there is hardly ever more than one


class Magics:
    """What is loaded into one shell."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell: Any = shell
        self.cells: list[Ran] = []
        self._info: Any = None  # of the cell that runs
        self._scope: Cell | None = None

    def load(self) -> None:
        """Hook in."""
        shell = self.shell
        shell.input_transformers_cleanup.append(self.as_statement)
        shell.events.register("pre_run_cell", self.begun)
        shell.events.register("post_run_cell", self.ended)
        shell.events.register("post_execute", self.executed)
        shell.register_magic_function(self.budget, "line", "budget")
        shell.register_magic_function(self.cell_budget, "cell", "budget")
        for command in _COMPLETED:
            shell.set_hook("complete_command", self.completed, str_key=command)

    def unload(self) -> None:
        """Leave nothing behind; a cell that is running keeps its budget until it ends."""
        shell = self.shell
        shell.input_transformers_cleanup.remove(self.as_statement)
        shell.events.unregister("pre_run_cell", self.begun)
        if self._scope is None:
            self._unhook()
        for kind in ("line", "cell"):
            shell.magics_manager.magics[kind].pop("budget", None)
        for command in _COMPLETED:
            shell.strdispatchers["complete_command"].strs.pop(command, None)

    def _unhook(self) -> None:
        self.shell.events.unregister("post_run_cell", self.ended)
        self.shell.events.unregister("post_execute", self.executed)

    # --- a cell under a budget -------------------------------------------------------------------------------------------

    def as_statement(self, lines: list[str]) -> list[str]:
        """A cell's source with its `%%budget` line as a statement, and the lines behind it as they would be without it."""
        found = re.match(r"%%budget(?![\w?])[ \t]*(.*)", lines[0]) if lines else None
        if found is None:
            return lines
        from IPython.core import inputtransformer2

        nested: Any = inputtransformer2.cell_magic  # has no types
        said = f"{_HIDDEN} {found[1].rstrip()}"
        first = next((n for n, text in enumerate(lines) if n and not text.isspace()), len(lines))
        return [f"get_ipython().run_line_magic('budget', {said!r})\n", *lines[1:first], *nested(lines[first:])]

    def begun(self, info: Any) -> None:
        """A cell begins; one that another cell runs inside itself is part of that."""
        if self._info is not None and self.cells and self.cells[-1].number == self.shell.execution_count:
            return
        self._leave()  # the one before has ended, if nobody said so
        self._info = info
        self.cells.append(Ran(self.shell.execution_count, now()))

    def ended(self, result: Any) -> None:
        """A cell has ended, with an error or without."""
        if self._info is not None and (result is None or result.info is self._info):
            self._info = None
            if result is not None and self.cells:
                self.cells[-1].number = result.execution_count or self.cells[-1].number
            self._leave()

    def executed(self) -> None:
        """Something was executed that was no cell for the hooks above, and ends here."""
        if self._info is None:
            self._leave()

    def _enter(self, asks: Asked) -> None:
        budget = self._budget(asks)
        if self._info is None:
            self.cells.append(Ran(self.shell.execution_count, now()))
        cell = self.cells[-1]
        if self._scope is not None:
            self._scope.end()
        cell.budget = budget
        self._scope = Cell(budget, asks.tags)

    def _leave(self) -> None:
        """Say what the cell came to, if it was put under a budget; whatever happens, it is under it no more."""
        if not self.cells or self.cells[-1].ended is not None:
            return
        cell, scope, self._scope = self.cells[-1], self._scope, None
        cell.ended = now()
        if scope is None or cell.budget is None:
            return
        scope.end()
        try:
            said = line(cell.budget, cell)
        except Exception as error:  # noqa: BLE001 - a hook never raises
            said = f"{cell.budget.name}: what this cell spent is not known: {error}"
        print(said)  # noqa: T201 - under the cell is where it belongs
        if self not in _loaded:
            self._unhook()

    def _budget(self, asks: Asked) -> Budget:
        """The budget that a line names: one of a variable, of a ledger's, or made with the limits that are given."""
        named = self.shell.user_ns.get(asks.name)
        if isinstance(named, Budget) and not asks.limits and asks.ledger is None:
            return named
        if isinstance(named, Budget) and asks.ledger is None:
            raise InvalidValue(
                asks.name, f"is a variable with the budget {told(named.name)}, which has its limits; leave them out"
            )
        if asks.ledger is None and not asks.limits:
            return self._there(asks.name)
        if asks.ledger is None and "/" in asks.name and not _default_exists():  # and no ledger is made to find that out
            raise ParentMissing(asks.name.rpartition("/")[0])
        ledger: Any = default_ledger() if asks.ledger is None else self._ledger(asks.ledger)
        found: Budget = ledger.budget(asks.name, **asks.limits)
        return found

    def _there(self, name: str) -> Budget:
        """The budget of that name in the default ledger, or else in the only one of the open ledgers that has it."""
        if _default_exists():
            with suppress(UnknownBudget):
                default: Budget = default_ledger().budget(name)
                return default
        there, unread = _all_budgets()
        found = [budget for budget in there if budget.name == budget_name(name)]
        if len(found) > 1:
            raise InvalidValue("--ledger", f"has to say which: {len(found)} of the open ledgers have a budget {told(name)}")
        if not found and unread:
            raise unread[0]
        if not found:
            raise UnknownBudget(name, tuple(get_close_matches(name, [budget.name for budget in there])))
        return found[0]

    def _existing(self, name: str) -> Budget:
        """The budget of a variable, or of that name in the ledgers that `%budget` shows; none is made for that."""
        named = self.shell.user_ns.get(name)
        if isinstance(named, Budget):
            return named
        there, unread = _all_budgets()
        budgets = {budget.name: budget for budget in reversed(there)}
        found = budgets.get(budget_name(name))
        if found is None and unread:
            raise unread[0]
        if found is None:
            raise UnknownBudget(name, tuple(get_close_matches(name, budgets)))
        return found

    def _ledger(self, name: str) -> Any:
        from .ledger import Ledger

        ledger = self.shell.user_ns.get(name)
        if isinstance(ledger, Ledger):
            return ledger
        for other in open_ledgers():
            if str(other.desk.where) == name:
                return other
        raise InvalidValue(
            "--ledger", f"{told(name)} is no variable with a ledger: connect first, as in `ledger = tbl.connect(…)`"
        )

    # --- magics ------------------------------------------------------------------------------------------------------------

    def budget(self, said: str = "") -> Any:
        """Show budgets, or what each cell of this notebook spent.

        %budget          every budget of the ledgers that are open here, else of the default ledger
        %budget NAME     one of them, or of a variable
        %budget cells    calls, tokens and cost of each cell since `%load_ext tokenbudget_lab`

        A cell is put under a budget by `%%budget NAME` in its first line; see `%%budget?`.
        """
        from IPython.core.error import UsageError

        said = said.strip()
        cell = said.startswith(_HIDDEN)
        try:
            if cell:
                return self._enter(asked(said.removeprefix(_HIDDEN)))
            if said == "cells":
                return self._cells()
            if said:
                return self._budgets([self._existing(said)])
            return self._budgets(*_all_budgets())
        except TokenBudgetError as error:
            magic, kept = ("%%budget", "Nothing of this cell has run. ") if cell else ("%budget", "")
            raise UsageError(f"{magic}: {str(error).rstrip('.')}. {kept}{magic}? tells more.") from error

    def cell_budget(self, said: str, body: str) -> None:
        """Run a cell under a budget, and say in one line what it came to.

        %%budget study                                    a budget that exists, or a variable with one
        %%budget study --usd 2                            with a limit: made if it does not exist; of lab/study, lab has to
        %%budget study --usd 2 --tag condition=few-shot   and a tag on every call; --tag may come again

        Clients that were instrumented (`tbl.instrument`) make their calls in it, whatever budget they have of their own; tasks
        and `asyncio.to_thread` inherit that. In threads that inherit nothing it is the budget of clients that have none.

        Options:
          --usd, --tokens, --requests   a limit
          --window day|week|month       what it is per; without one it is a limit in all
          --tag NAME=VALUE              a tag on every call
          --ledger NAME                 a variable with a ledger; else the default ledger, or the open one that has it
        """
        # Here is only who calls the magic by hand, or from within another one; cells come as statements.
        self._enter(asked(said))
        try:
            self.shell.run_cell(body).raise_error()
        finally:
            self._leave()

    def completed(self, _shell: Any, event: Any) -> list[str]:
        """What can come next behind `%budget` or `%%budget`: budgets and options."""
        names = [budget.name for budget in _all_budgets(only_open=True)[0]]
        names += [name for name, value in self.shell.user_ns.items() if isinstance(value, Budget) and not name.startswith("_")]
        return [*names, *OPTIONS] if event.line.startswith("%%") else [*names, "cells"]

    def _cells(self) -> Shown:
        over = [cell for cell in self.cells if cell.ended is not None]
        pairs = list(zip(over, spent_by(open_ledgers(), over), strict=True))
        rows = [
            (f"[{cell.number}]", cell.budget.name if cell.budget else "", str(spent)) for cell, spent in pairs if spent.anything
        ]
        if not rows:
            return Shown("No cell has made a call since %load_ext tokenbudget_lab.")
        widths = [max(len(row[n]) for row in rows) for n in range(2)]
        text = "\n".join(f"{number:>{widths[0]}}  {name:{widths[1]}}  {spent}" for number, name, spent in rows)
        cells = ("".join(f'<td style="text-align:left">{text_html(value)}</td>' for value in row) for row in rows)
        head = "".join(f'<th style="text-align:left" scope="col">{name}</th>' for name in ("Cell", "Budget", "Spent"))
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return Shown(text, f'<table class="mathjax_ignore"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')

    def _budgets(self, budgets: list[Budget], unread: Sequence[TokenBudgetError] = ()) -> Shown:
        if not budgets and unread:
            raise unread[0]
        if not budgets:
            return Shown("There is no budget yet: tbl.budget('study', usd=5) makes one.")
        balances, lacks = [budget.balance for budget in budgets], [f"✕ {error}" for error in unread]
        html = "".join(gauge_html(balance, Outlook(final=True)) for balance in balances)
        html += "".join(f"<div>{text_html(lack)}</div>" for lack in lacks)
        return Shown("\n".join([*map(balance_text, balances), *lacks]), html)


class Shown:
    """A text, and how a notebook shows it."""

    def __init__(self, text: str, html: str | None = None) -> None:
        self._text, self._html = text, html

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str | None:
        return self._html


def _all_budgets(*, only_open: bool = False) -> tuple[list[Budget], list[TokenBudgetError]]:
    """Every budget of the ledgers that are open here, else of the default ledger, which is not made for that.

    Returns:
        The budgets, and why those of some ledgers are not among them.
    """
    ledgers = open_ledgers()
    if not ledgers and not only_open and _default_exists():
        ledgers = [default_ledger()]
    found: list[Budget] = []
    unread: list[TokenBudgetError] = []
    for ledger in ledgers:
        try:
            found += [Budget(ledger, balance.budget) for balance in ledger.budgets()]
        except TokenBudgetError as error:
            unread.append(error)
    return found, unread


def _default_exists() -> bool:
    """Whether there is a default ledger; one in memory is there as soon as it is asked for."""
    from pathlib import Path

    where = default_path()
    return where == ":memory:" or is_url(where) or Path(where).expanduser().exists()


def load_ipython_extension(shell: InteractiveShell) -> None:
    """`%load_ext tokenbudget_lab`; done twice, it is done once."""
    if all(magics.shell is not shell for magics in _loaded):
        magics = Magics(shell)
        magics.load()
        _loaded.append(magics)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """`%unload_ext tokenbudget_lab`: the shell is as it was before."""
    for magics in [magics for magics in _loaded if magics.shell is shell]:
        _loaded.remove(magics)
        magics.unload()
