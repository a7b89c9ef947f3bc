"""A gauge: what a budget has committed, holds and has left, moving while calls run.

In a notebook it is one widget of core ipywidgets, or an HTML output where that is not installed; elsewhere it is a text.
In the end it is plain HTML, which says what was seen last, and when, and which a saved notebook keeps. So it is while nothing
moves for half a minute: a notebook that is saved then, and opened where no kernel runs, still says the truth.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakSet

from ..balance import Balance
from ..commands import GetBudget
from ..errors import InvalidType, told
from ..handles import Budget
from ..meters import Outlook, gauge_html
from ..meters import told as said_of
from ..render import balance_text, tightest
from ..watching import Look, Watching, watch
from .views import Live, Moving, OneText, Picture

STILL_S = 30.0  # without a change, after which it is plain HTML for as long as nothing moves
RECENT = timedelta(seconds=60)  # what its rate is computed from
LEAST = timedelta(seconds=2)  # to have a rate
_open: WeakSet[Gauge] = WeakSet()


class Gauge(Live[Look]):
    """A gauge that is shown, until `close`, the end of its `with` block, or of its ledger; `tbl.gauge(...)` makes it.

    Attributes:
        budget: what it shows.
        balance: what it showed last.
    """

    def __init__(self, budget: Budget) -> None:
        if not isinstance(budget, Budget):
            raise InvalidType("budget", f"{told(budget)} is {type(budget).__name__}; give what ledger.budget(...) returns")
        super().__init__(_open)
        self.budget = budget
        defined = budget.ledger.ask(GetBudget(budget.ledger.new_id(), budget.name))
        self._outlook, self._rate = Outlook(tuple(defined[3])), _Rate()
        self._watching: Watching = watch(budget, self._see)
        self._shown = self._watching.look.balance
        self._opened()

    @property
    def balance(self) -> Balance:
        """What it showed last."""
        return self._shown

    def _take(self, news: Look) -> bool:
        before, self._shown = self._shown, news.balance
        runs_out = None if news.last else self._rate.runs_out(news.balance)
        self._outlook = replace(self._outlook, trouble=news.trouble, runs_out=runs_out)
        return _moving(before) != _moving(news.balance)

    def _still_s(self) -> float:
        return STILL_S

    def _runs(self) -> bool:
        return self._shown.calls_in_flight > 0

    def _end(self) -> Look:
        return self._watching.end()

    def _made(self) -> Moving:
        return OneText()

    def _picture(self, *, final: bool) -> Picture:
        outlook, balance = replace(self._outlook, final=final and (self.closed or not self._outlook.trouble)), self._shown
        html, trouble = gauge_html(balance, outlook), f" {outlook.trouble}" if outlook.trouble else ""
        return Picture((html,), lambda: html, lambda: said_of(balance, outlook) + trouble)

    def __repr__(self) -> str:
        if not self.closed:
            with self._drawing:
                self._take(self._watching.hear(1.0))
        trouble = f"  ({self._outlook.trouble})" if self._outlook.trouble else ""
        return balance_text(self._shown) + trouble


def gauge(budget: Budget) -> Gauge:
    """Show what a budget has committed, holds and has left, moving while calls run, here and in other processes.

    It is shown under this cell at once and goes on moving in the cells that come, until it is closed: by `close`, by the end
    of its block in `with tbl.gauge(study):`, when its ledger is closed or the kernel leaves, or when its cell is run again.
    Outside of notebooks it shows nothing by itself; its repr is the present balance as a line of text.

    Args:
        budget: which one.

    Raises:
        InvalidType: it is no budget.
        LedgerUnavailable, UnknownBudget: there is nothing to show.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     with tbl.gauge(ledger.budget("study", usd=5)) as gauge, gauge.budget.reserve(usd=1) as call:
        ...         receipt = call.commit(usd="0.50")
        ...     gauge
        study  ██······················  $0.50 committed · $0.00 held · $4.50 of $5.00 left
    """
    return Gauge(budget).show()


def _moving(balance: Balance) -> tuple[Any, ...]:
    """What moves a gauge."""
    return balance.limits, balance.calls_in_flight, balance.committed_usd, balance.committed_tokens, balance.closed


class _Rate:
    """How fast the tightest limit was used, as far as it was looked at."""

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = ()
        self._seen: deque[tuple[datetime, float]] = deque()

    def runs_out(self, balance: Balance) -> datetime | None:
        """When what is left will be used up at this rate; `None` where nothing is spent, or not before the window ends."""
        limit = tightest(balance)
        if limit is None:
            return None
        of, committed = (limit.budget, limit.resource, limit.window, limit.limit, limit.begins), float(limit.committed)
        if of != self._of or (self._seen and committed < self._seen[-1][1]):
            self._of = of
            self._seen.clear()
        self._seen.append((balance.at, committed))
        while balance.at - self._seen[0][0] > RECENT:
            self._seen.popleft()
        since, before = self._seen[0]
        if balance.at - since < LEAST or committed <= before or limit.left <= 0:
            return None
        with suppress(OverflowError):
            ends = balance.at + float(limit.left) / (committed - before) * (balance.at - since)
            return ends if limit.ends is None or ends < limit.ends else None
        return None
