"""A dashboard: a whole ledger while calls run, and the one control that raises a limit.

In the end it is plain HTML, as a gauge is: of when it is, without a trace of its widgets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from weakref import WeakSet

from ..balance import LimitBalance
from ..connection import Ledger, default_ledger
from ..errors import InvalidType, told
from ..overseeing import Overseeing, Sight
from ..overview import ALWAYS, Label
from ..panels import dashboard_html, dashboard_text, own_limits, parts_of
from .views import Live, Moving, Picture

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


class Dashboard(Live[Sight]):
    """A dashboard that is shown, until `close`, the end of its `with` block, or of its ledger; `tbl.dashboard(...)` makes it.

    Attributes:
        ledger: what it shows.
    """

    def __init__(self, ledger: Ledger, by: str | None) -> None:
        if not isinstance(ledger, Ledger):
            raise InvalidType("ledger", f"{told(ledger)} is {type(ledger).__name__}; give what tbl.connect(...) returns")
        if by is not None and not isinstance(by, str):
            raise InvalidType("by", f"{told(by)} is {type(by).__name__}; give the name of a tag, or 'model' or 'budget'")
        super().__init__(_open)
        self.ledger, self._where = ledger, ledger.desk.where
        self._by = None if by is None else next((label for label in ALWAYS if label.name == by), Label(by))
        self._overseeing = Overseeing(ledger, self._see, self._by)
        self._sight = self._overseeing.sight
        self._opened()
        self._overseeing.start()

    def _take(self, news: Sight) -> bool:
        before, self._sight = self._sight, news
        return before.moving() != news.moving()

    def _still_s(self) -> float:
        return STILL_S

    def _runs(self) -> bool:
        return any(balance.calls_in_flight for balance in self._sight.balances)

    def _end(self) -> Sight:
        return self._overseeing.end()

    def _made(self) -> Moving:
        from .forms import Board

        return Board(self.ledger, self._choose)

    def _choose(self, by: Label) -> None:
        self._by, self._moved_at = by, time.monotonic()
        self._overseeing.choose(by)

    def _picture(self, *, final: bool = False) -> Picture:  # noqa: ARG002 - what needs no widgets says of when it is
        sight, where = self._sight, self._where
        calls = sight.calls
        choices = Choices(own_limits(sight.balances), calls.labels if calls else (), self._by or (calls.by if calls else None))
        parts = (*parts_of(sight, where), choices)
        return Picture(parts, lambda: dashboard_html(sight, where), lambda: dashboard_text(sight, where))

    def __repr__(self) -> str:
        return dashboard_text(self._sight, self._where)


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
