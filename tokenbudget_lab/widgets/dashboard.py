"""A dashboard: a whole ledger while calls run, and the one control that raises a limit.

In the end it is plain HTML, as a gauge is: of when it is, without a trace of its widgets.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakSet

from ..balance import LimitBalance
from ..connection import Ledger, default_ledger
from ..errors import InvalidType, told
from ..overseeing import Overseeing, Sight
from ..overview import ALWAYS, Label
from ..panels import dashboard_html, dashboard_text, own_limits, parts_of
from ..progress import in_notebook
from .views import Moving, View, close_those_of_an_earlier_run, this_cell

STILL_S = 600.0  # without a change, after which it is plain HTML for as long as nothing moves; its form is gone meanwhile
_open: WeakSet[Dashboard] = WeakSet()


@dataclass(frozen=True, slots=True)
class Choices:
    """What can be chosen in a dashboard.

    Attributes:
        limits: those that can be raised.
        labels: what spend can be told by.
        by: what it is told by.
    """

    limits: tuple[LimitBalance, ...]
    labels: tuple[Label, ...]
    by: Label | None


class Dashboard:
    """A dashboard that is shown, until `close`, the end of its `with` block, or of its ledger; `tbl.dashboard(...)` makes it.

    Attributes:
        ledger: what it shows.
        views: the cells that it is shown under.
    """

    def __init__(self, ledger: Ledger, by: str | None) -> None:
        if not isinstance(ledger, Ledger):
            raise InvalidType("ledger", f"{told(ledger)} is {type(ledger).__name__}; give what tbl.connect(...) returns")
        if by is not None and not isinstance(by, str):
            raise InvalidType("by", f"{told(by)} is {type(by).__name__}; give the name of a tag, or 'model' or 'budget'")
        self.ledger, self.closed, self._where = ledger, False, ledger.desk.where
        self._by = None if by is None else next((label for label in ALWAYS if label.name == by), Label(by))
        self._drawing = threading.RLock()
        self.views: list[View] = []
        self._moved_at = time.monotonic()
        self._overseeing = Overseeing(ledger, self._see, self._by)
        self._sight = self._overseeing.sight
        close_those_of_an_earlier_run(_open)
        _open.add(self)
        self._overseeing.start()

    def show(self) -> Self:
        """Show it under this cell; once in each."""
        with self._drawing:
            if in_notebook() and all(view.cell != this_cell() for view in self.views):
                self.views.append(View(self._board, *self._shown(), live=not self.closed))
        return self

    def close(self) -> None:
        """Read the ledger for a last time and stay as plain HTML that says of when it is."""
        if not self.closed:
            self._finish(self._overseeing.end())

    # --- what it is told -------------------------------------------------------------------------------------------------

    def _see(self, sight: Sight) -> None:
        """Take a look's news; called by the threads that look, or by whoever closes the ledger."""
        if sight.last:
            self._finish(sight)
            return
        with self._drawing, suppress(Exception):  # a front end that is gone is no reason to look no more
            if not self.closed:
                if sight.moving() != self._sight.moving():
                    self._moved_at = time.monotonic()
                self._sight = sight
                self._draw()

    def _draw(self) -> None:
        shown = self._shown()
        running = any(balance.calls_in_flight for balance in self._sight.balances)
        still = time.monotonic() - self._moved_at > STILL_S and not running
        for view in self.views:
            (view.freeze if still else view.move)(*shown)

    def _finish(self, sight: Sight) -> None:
        with self._drawing:
            if self.closed:
                return
            self.closed = True
            _open.discard(self)
            self._sight = sight
            shown = self._shown()
            for view in self.views:
                with suppress(Exception):  # as above
                    view.freeze(*shown)

    def _choose(self, by: Label) -> None:
        self._by, self._moved_at = by, time.monotonic()
        self._overseeing.choose(by)

    # --- how it is shown -------------------------------------------------------------------------------------------------

    def _board(self) -> Moving:
        from .forms import Board

        return Board(self.ledger, self._choose)

    def _shown(self) -> tuple[tuple[Any, ...], str, str]:
        """What widgets show, and what is shown without them, as HTML and as text."""
        sight, where = self._sight, self._where
        calls = sight.calls
        choices = Choices(own_limits(sight.balances), calls.labels if calls else (), self._by or (calls.by if calls else None))
        return (*parts_of(sight, where), choices), dashboard_html(sight, where), dashboard_text(sight, where)

    def __repr__(self) -> str:
        return dashboard_text(self._sight, self._where)

    def _ipython_display_(self) -> None:
        if in_notebook():
            self.show()
        else:
            print(repr(self))  # noqa: T201 - what IPython does with a repr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dashboard(ledger: Ledger | None = None, *, by: str | None = None) -> Dashboard:
    """Show a whole ledger while calls run: budgets, running calls, spend over time and by tag, refusals; raise a limit.

    It is shown under this cell and moves on in the cells that come, whoever spends, until it is closed: by `close`, by the
    end of its block in `with tbl.dashboard(ledger):`, when its ledger is closed or the kernel leaves, or when its cell is run
    again. Outside of notebooks it shows nothing by itself; its repr is a line of text for each budget.

    Args:
        ledger: which one; the default ledger where not given.
        by: what spend is told by at first: a tag, or `model` or `budget`; the tag that most calls have where not given.

    Raises:
        InvalidType: it is no ledger.
        LedgerUnavailable: there is nothing to show.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     study = ledger.budget("study", usd=5)
        ...     with tbl.dashboard(ledger) as dashboard, study.reserve(usd=1) as call:
        ...         receipt = call.commit(usd="0.50")
        ...     dashboard
        Ledger :memory:, as of ... UTC
        study  ██······················  $0.50 committed · $0.00 held · $4.50 of $5.00 left
    """
    return Dashboard(default_ledger() if ledger is None else ledger, by).show()
