"""A whole ledger, read again and again for who shows it: its balances quickly, and what its calls come to as often as is cheap.

Two threads do that until `end`. One asks for balances, as `watching` does for a gauge. The other reads the events when there
are new ones, and then rests for several times as long as that took, so that a large ledger costs no more than a small one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from .balance import Balance, balance_of
from .commands import GetHead, ListBudgets
from .connection import Ledger
from .decide import is_full
from .desk import Bell
from .errors import TokenBudgetError
from .overview import Label, Overview, overview
from .watching import PATIENCE_S, Question, rest_s, trouble_of

LEAST_REST_S, RESTS = 0.25, 3  # after a reading, and how many times as long as it took
MOST_REST_S = 5.0  # after which balances are asked for, although no event has come


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look at a ledger gave.

    Attributes:
        at: when (UTC), by the ledger's own clock where it has a budget.
        balances: of every budget, in order of their names.
        calls: what the calls come to; `None` until that has been read.
        trouble: why there is nothing newer; empty where this is new.
        unread: why `calls` are older than the balances; empty where they are not.
        last: whether nothing more will be told, because the ledger is being closed here.
    """

    at: datetime
    balances: tuple[Balance, ...]
    calls: Overview | None = None
    trouble: str = ""
    unread: str = ""
    last: bool = False

    def moving(self) -> tuple[object, ...]:
        """What it has beside its moment and what was chosen."""
        essence = tuple(
            (each.limits, each.calls_in_flight, each.committed_usd, each.committed_tokens) for each in self.balances
        )
        return self.trouble, self.unread, essence, self.calls and self.calls.refused_in_all, self.calls and self.calls.seq


class Overseeing:
    """That somebody looks at a ledger, until `end`.

    Attributes:
        sight: what was seen last.

    Raises:
        LedgerUnavailable: there is nothing to look at.
    """

    def __init__(self, ledger: Ledger, told: Callable[[Sight], None], by: Label | None) -> None:
        self._ledger, self._told, self._by = ledger, told, by
        self._head, self._pages = Question(ledger), Question(ledger)
        self._seq, self._over = 0, False
        self._read_at, self._balanced_at = -1, 0.0  # the last event that the balances have in them, and when they were read
        self._asking, self._reading = threading.RLock(), threading.RLock()
        self._looks, self._reads = Bell(), Bell()
        balances = tuple(ledger.budgets())
        self.sight = Sight(_moment(balances), balances)
        ledger.before_close.append(self._say_goodbye)

    def start(self) -> None:
        """Look from now on."""
        for work in (self._look_on, self._read_on):
            threading.Thread(target=work, name="tokenbudget-oversee", daemon=True).start()

    def choose(self, by: Label) -> None:
        """Tell spend by another label, as soon as it is read."""
        self._by = by
        self._reads.ring()

    def end(self) -> Sight:
        """Look for a last time, tell nobody any more, and say what was seen."""
        self._stop()
        if not self.sight.last:
            self._look_last()
        return self.sight

    # --- its threads -----------------------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        changed_at = time.monotonic()
        while self._goes_on():
            self._looks.wait(rest_s(self._ledger, self._looks, changed_at))
            before = self.sight.moving()
            if self._goes_on():
                self._look(PATIENCE_S)
                self._tell()
            if self.sight.moving() != before:
                changed_at = time.monotonic()

    def _read_on(self) -> None:
        rest = 0.0
        while self._goes_on():
            self._reads.wait(rest)
            began, rest = time.monotonic(), LEAST_REST_S
            if self._goes_on() and self._read():
                rest = max(rest, RESTS * (time.monotonic() - began))
                self._tell()

    def _goes_on(self) -> bool:
        return not self._over

    def _tell(self) -> None:
        if self._goes_on():
            self._told(self.sight)

    # --- looking ---------------------------------------------------------------------------------------------------------

    def _look(self, within_s: float) -> None:
        """Ask for what is cheap: the balances, and whether there are new events."""
        with self._asking:
            until = time.monotonic() + within_s
            try:
                self._seq = self._head.ask(GetHead, within_s=within_s)[1]
                if self._seq == self._read_at and self._holds_still():
                    self.sight = replace(self.sight, trouble="")
                    return
                balances, self._read_at = self._balances(until), self._seq
                self._balanced_at = time.monotonic()
            except TokenBudgetError as error:
                self.sight = replace(self.sight, trouble=trouble_of(error), unread=self._unread())
            else:
                self.sight = replace(self.sight, at=_moment(balances), balances=balances, trouble="")

    def _holds_still(self) -> bool:
        """Whether balances are as they were read, when nothing was written since: no call runs, and no window has ended."""
        passed = time.monotonic() - self._balanced_at
        now = self.sight.at + timedelta(seconds=passed)
        ends = (limit.ends for each in self.sight.balances for limit in each.limits if limit.ends is not None)
        runs = any(each.calls_in_flight for each in self.sight.balances)
        return not runs and passed < MOST_REST_S and all(now < end for end in ends)

    def _unread(self) -> str:
        """Why the calls that are shown are older than the balances, when nothing more is read."""
        calls = self.sight.calls
        behind = calls is not None and calls.seq < self._seq
        return self.sight.unread or ("they were not read again in time" if behind else "")

    def _balances(self, until: float) -> tuple[Balance, ...]:
        found: list[Balance] = []
        after = None
        while True:
            page = self._pages.ask(ListBudgets, None, after, within_s=until - time.monotonic())
            found += map(balance_of, page)
            if not is_full(page):
                return tuple(found)
            after = page[-1][0]

    def _read(self) -> bool:
        """Read the events, if there are new ones or another label was chosen; whether that was done."""
        seen, by = self.sight.calls, self._by
        if seen is not None and seen.seq == self._seq and by in (None, seen.by):
            return False
        with self._reading:
            try:
                news: dict[str, Any] = {"calls": overview(self._ledger, by), "unread": ""}
            except Exception as error:  # noqa: BLE001 - whatever it is, it is shown, and tried again
                news = {"unread": str(error) or type(error).__name__}
            with self._asking:
                self.sight = replace(self.sight, **news)
        return True

    # --- the end ---------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._over = True
        with suppress(ValueError):
            self._ledger.before_close.remove(self._say_goodbye)
        self._looks.ring()
        self._reads.ring()

    def _look_last(self) -> None:
        self._read_at = -1
        self._look(PATIENCE_S / 2)
        # The other thread may be reading: then that is waited for, since nobody reads of a ledger that is closed.
        if not self.sight.trouble and self._reading.acquire(timeout=PATIENCE_S):
            try:
                self._read()
            finally:
                self._reading.release()
        self.sight = replace(self.sight, unread=self._unread(), last=True)

    def _say_goodbye(self) -> None:
        """The ledger is about to be closed here: look for a last time."""
        self._stop()
        self._look_last()
        self._told(self.sight)


def _moment(balances: tuple[Balance, ...]) -> datetime:
    return balances[0].at if balances else datetime.now(UTC)
