"""A bar with money: what a budget has spent since the bar was made, what it has left, and what all will cost at this pace.

The ledger is asked at most twice a second, and only where the bar is seen; nobody waits for its answer, but for the last one.
What others spend in the same budget meanwhile is part of what is shown: the bar tells of the budget, and not of a loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from decimal import localcontext
from typing import Any

from .balance import Balance, balance_of, spent_of
from .commands import GetBalance
from .desk import Ticket
from .errors import InvalidType, TokenBudgetError, told
from .handles import Budget
from .limits import RESOURCES
from .progress import bar_for
from .render import amount, escaped, left_of, of_limit
from .usage import EXACT

LOOK_S = 0.5  # how often the ledger is asked
SAY_S = 0.1  # how often the bar is drawn
LAYOUT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # in 80 columns the money has to fit
WAIT_S = 1.0  # for the last numbers, at most


class MoneyBar:
    """A bar with money.

    Args:
        unit: what is counted: `calls`, `rows`.
        total: how many there are, where that is known.
        budget: whose money; without one it is a plain bar.
        progress: whether to show it; by itself in a terminal or notebook, to who waits for more than a second.
        before: how many of them are known to have been done before.
    """

    def __init__(
        self,
        unit: str,
        total: int | None,
        budget: Budget | None,
        progress: bool | None,  # noqa: FBT001 - it is passed on
        before: int = 0,
    ) -> None:
        if budget is not None and not isinstance(budget, Budget):
            raise InvalidType("budget", f"{told(budget)} is {type(budget).__name__}; give what ledger.budget(...) returns")
        self._unit, self._total, self._before = unit, total, before
        what = unit if budget is None else escaped(budget.name.rpartition("/")[2])
        self._name = "" if budget is None else f"{escaped(budget.name)}: "
        self._bar = bar_for(what, total, progress, layout=LAYOUT, leave=True)
        self._budget = budget if self._bar.seen else None
        self._done = self._skipped = 0
        self._without: dict[str, int] = {}
        self._asked: tuple[int, Ticket] | None = None  # with how many were done then
        self._asked_at = self._said_at = float("-inf")
        self._silent = False  # in the end the ledger did not answer
        self._money = _Money()
        self._look()

    @property
    def seen(self) -> bool:
        """Whether there is a bar."""
        return self._bar.seen

    def skip(self) -> None:
        """One was done before."""
        self._skipped += 1
        self._bar.skip(1)

    def ended(self, how: str | None = None) -> None:
        """One is done; `how` where it was not paid: `refused`, `failed`."""
        if how is None:
            self._done += 1
        else:
            self._without[how] = self._without.get(how, 0) + 1
        self._look()
        self._bar.update(1)

    async def tick(self) -> None:
        """Look and draw twice a second, until it is cancelled: a call may take long."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._look()
            self._bar.update(0)

    def _look(self) -> None:
        """Read the ledger's last answer if it is there, and ask again when it is time; never wait."""
        if not self.seen:
            return
        now = time.monotonic()
        with suppress(TokenBudgetError):  # a ledger that does not answer is the calls' trouble, and not the bar's
            self._read()
            if self._asked is None and now - self._asked_at >= LOOK_S:
                self._asked_at = now
                self._ask()
        if now - self._said_at >= SAY_S:
            self._said_at = now
            self._say()

    def _ask(self) -> None:
        if self._budget is not None:
            ledger = self._budget.ledger
            self._asked = (self._done, ledger.ask_soon(GetBalance(ledger.new_id(), self._budget.name)))

    def _read(self) -> None:
        if self._asked is not None and self._asked[1].settled:
            (done, ticket), self._asked = self._asked, None
            self._money.read(ticket.outcome(), done)

    def _say(self) -> None:
        self._bar.say(", ".join(self._texts()))

    def _texts(self, *, over: bool = False) -> list[str]:
        planned = None if over or self._total is None else self._total - max(self._before, self._skipped)
        return [*self._money.texts(planned), *(f"{n:,} {how}" for how, n in self._without.items())]

    def _summary(self) -> str:
        """What it came to, in a line: how many are done, what was spent and is left, and what was not paid."""
        done = f"{self._done:,}" + ("" if self._total is None else f" of {self._total:,}")
        before = [f"{self._skipped:,} done before"] if self._skipped else []
        lacks = ["as the ledger said last: in the end it did not answer"] if self._silent else []
        return self._name + ", ".join([f"{done} {self._unit} done", *before, *self._texts(over=True), *lacks])

    # --- the end ---

    async def settle(self) -> None:
        """Read the last numbers, and close."""
        self._silent = self._budget is not None
        with suppress(TokenBudgetError, TimeoutError):
            for ticket in self._last():
                async with asyncio.timeout(WAIT_S):
                    await ticket.future_here()
                self._read()
            self._silent = self._asked is not None
        self.close()

    def settle_sync(self) -> None:
        """The same, in a plain loop."""
        self._silent = self._budget is not None
        with suppress(TokenBudgetError):
            for ticket in self._last():
                ticket.wait(WAIT_S)
                self._read()
            self._silent = self._asked is not None
        self.close()

    def _last(self) -> Iterator[Ticket]:
        """What was asked and is not read yet, which may be what was there at first; then what there is now."""
        if self._asked is not None:
            yield self._asked[1]
        self._ask()
        if self._asked is not None:
            yield self._asked[1]

    def close(self) -> None:
        """The bar moves no more; it stays, as a line that tells what it came to."""
        self._say()
        self._bar.close(self._summary())
        self._budget = self._asked = None


class _Money:
    """What the ledger said first, and last."""

    def __init__(self) -> None:
        self._resource: str | None = None
        self._before: Any = 0
        self._unpriced_before = 0
        self._spent: Any = 0
        self._balance: Balance | None = None
        self._done = 0

    def read(self, answer: Any, done: int) -> None:
        """Take an answer, and how many were done when it was asked for."""
        self._done = done
        balance = self._balance = balance_of(answer)
        if self._resource is None:
            limited = (resource for resource in RESOURCES if getattr(balance, f"left_{resource}") is not None)
            self._resource = next(limited, "usd")
            self._before, self._unpriced_before = spent_of(answer, self._resource), balance.unpriced_calls
        with localcontext(EXACT):
            self._spent = spent_of(answer, self._resource) - self._before

    def texts(self, planned: int | None) -> list[str]:
        """Spent, what has no price, left, and about how much in all; `planned` are all that are to be paid."""
        if self._balance is None or self._resource is None:
            return []
        resource, done, about = self._resource, self._done, None
        if done and planned is not None and planned > done:
            with localcontext(EXACT):
                about = self._spent * planned / done if resource == "usd" else round(self._spent * planned / done)
        said = [f"{amount(self._spent, resource, scale=about or self._spent)} spent"]
        unpriced = self._balance.unpriced_calls - self._unpriced_before
        if unpriced and resource == "usd":
            said.append(f"{unpriced:,} without a price")
        limits = [limit for limit in self._balance.limits if limit.resource == resource]
        if limits:
            least = min(limits, key=lambda limit: limit.left)
            where = "" if least.budget == self._balance.budget else f" in {escaped(least.budget)}"
            left = f"{left_of(least)} left" if least.left >= 0 else f"{of_limit(least, -least.left)} over"
            said.append(f"{left}{where}")
        if about is not None:
            said.append(f"~{amount(about, resource, scale=about)} in all")
        return said
