"""What budgets come to, read again and again for those who show it: one thread for each ledger that somebody looks at.

Whoever looks is told of every look, the last one included, from that thread. It asks five times a second while something
changes, and less often while nothing does; what other processes spend is seen as soon as what this one does. A ledger that does
not answer is said to be so, and never is a budget taken for unspent because nothing was heard of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from .balance import Balance, balance_of
from .commands import Command, GetBalance
from .decide import Answer
from .desk import Bell, Ticket
from .errors import LedgerUnavailable, TokenBudgetError
from .handles import Budget
from .ledger import Ledger

QUICK_S, SLOW_S = 0.19, 0.4  # between two looks, while something changes and while nothing does
CALLED_S = 3.0  # the latter where the ledger calls
LIVELY_S = 2.0  # how long after a change the next one is expected soon; more than a call may be late
PATIENCE_S = 2.0  # for an answer, before it is said that there is none


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a budget gave.

    Attributes:
        balance: the newest that is known.
        trouble: why there is no newer one; empty where this one is new.
        last: whether nothing more will be told, because the ledger is being closed here.
    """

    balance: Balance
    trouble: str = ""
    last: bool = False


Told = Callable[[Look], None]


class Silent(LedgerUnavailable):
    """There is no answer yet.

    Attributes:
        silent_s: for how long.
    """

    def __init__(self, silent_s: float) -> None:
        super().__init__(silent_s)
        self.silent_s = silent_s

    def __str__(self) -> str:
        return f"The ledger has not answered for {self.silent_s:.0f} s."


class Question:
    """What is asked of a ledger again and again, and never while the answer to the one before is to come."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._ticket: Ticket | None = None  # what was asked, and is not answered yet
        self._asked_at = 0.0

    def ask(self, command: Callable[..., Command], *given: Any, within_s: float) -> Answer:
        """Ask, unless the question before is not answered yet; wait for the answer.

        Args:
            command: of which kind; one that is answered in another way than the one before waits for that first.
            given: what it is about.
            within_s: how long to wait.

        Raises:
            Silent: it did not come in time.
            TokenBudgetError: what the ledger answered.
        """
        until = time.monotonic() + within_s
        if self._ticket is not None and self._ticket.command[1:] != given:
            self._answer(until)
        if self._ticket is None:
            self._asked_at = time.monotonic()
            self._ticket = self._ledger.ask_soon(command(self._ledger.new_id(), *given))
        return self._answer(until)

    def _answer(self, until: float) -> Answer:
        ticket = self._ticket
        assert ticket is not None  # noqa: S101 - tells the type checker
        if not ticket.wait(max(0.0, until - time.monotonic())):
            raise Silent(time.monotonic() - self._asked_at)
        self._ticket = None
        return ticket.outcome()


def trouble_of(error: TokenBudgetError) -> str:
    """Why there is nothing newer, as a sentence."""
    return str(error) if isinstance(error, Silent) else f"The ledger cannot be read: {error}"


def rest_s(ledger: Ledger, bell: Bell, changed_at: float) -> float:
    """How long to rest before the next look, unless the bell rings."""
    called = ledger.desk.watch(bell)
    return QUICK_S if time.monotonic() - changed_at < LIVELY_S else CALLED_S if called else SLOW_S


class Watching:
    """That somebody looks at a budget, until `end`.

    Attributes:
        look: what was seen last.
    """

    def __init__(self, budget: Budget, told: Told, look: Look) -> None:
        self.budget, self.told, self.look = budget, told, look
        self._question = Question(budget.ledger)
        self._hearing = threading.RLock()  # the thread that looks, and whoever ends this

    def hear(self, within_s: float, *, last: bool = False) -> Look:
        """Ask, unless the question before is not answered yet; wait for the answer, and say what there is now."""
        with self._hearing:
            balance, trouble = self.look.balance, ""
            try:
                balance = balance_of(self._question.ask(GetBalance, self.budget.name, within_s=within_s))
            except TokenBudgetError as error:
                trouble = trouble_of(error)
            return Look(balance, trouble, last)

    def tell(self, look: Look) -> bool:
        """Tell a look; whether it is another than the one before, but for its moment."""
        before, self.look = self.look, look
        self.told(look)
        return _essence(before) != _essence(look)

    def end(self) -> Look:
        """Look for a last time, tell nobody any more, and say what was seen."""
        watch = _watches.get(self.budget.ledger)
        if watch is not None:
            watch.leave(self)
        return self.look if self.look.last else self.hear(PATIENCE_S / 2, last=True)


def _essence(look: Look) -> tuple[object, ...]:
    """What a look has beside its moment."""
    balance = look.balance
    return (look.trouble, balance.limits, balance.calls_in_flight, balance.committed_usd, balance.committed_tokens)


def watch(budget: Budget, told: Told) -> Watching:
    """Look at a budget from now on, and call `told` with every look, from a thread.

    Args:
        budget: which one; its ledger must answer now.
        told: must neither raise nor take long.

    Raises:
        LedgerUnavailable, UnknownBudget: there is nothing to look at.
    """
    watching = Watching(budget, told, Look(budget.balance))
    with _joining:
        watch = _watches.get(budget.ledger)
        if watch is None or not watch.join_in(watching):
            watch = _watches[budget.ledger] = _Watch(budget.ledger)
            watch.join_in(watching)
    return watching


class _Watch:
    """All who look at budgets of one ledger, and the thread that looks for them; it ends when nobody does any more."""

    def __init__(self, ledger: Ledger) -> None:
        self._all: list[Watching] = []
        self._changing, self._bell, self._over = threading.RLock(), Bell(), False
        ledger.before_close.append(self._say_goodbye)
        threading.Thread(target=self._look_on, args=(ledger,), name="tokenbudget-watch", daemon=True).start()

    def join_in(self, watching: Watching) -> bool:
        """One more looks; not any more, where the thread has ended."""
        with self._changing:
            if not self._over:
                self._all.append(watching)
            return not self._over

    def leave(self, watching: Watching) -> None:
        """One looks no more."""
        with self._changing:
            if watching in self._all:
                self._all.remove(watching)
        self._bell.ring()

    def _look_on(self, ledger: Ledger) -> None:
        changed_at = time.monotonic()
        while True:
            self._bell.wait(rest_s(ledger, self._bell, changed_at))
            with self._changing:
                looking = tuple(self._all)
                if not looking:
                    self._over = True
                    ledger.before_close.remove(self._say_goodbye)
                    return
            if self._round(looking):
                changed_at = time.monotonic()

    def _round(self, looking: tuple[Watching, ...], *, last: bool = False) -> bool:
        """Look at all of them; whether something has changed."""
        until = time.monotonic() + PATIENCE_S
        changed = False
        for watching in looking:
            looked = watching.hear(until - time.monotonic(), last=last)
            with self._changing:
                there = watching in self._all
            changed |= there and watching.tell(looked)
        return changed

    def _say_goodbye(self) -> None:
        """The ledger is about to be closed here: look for a last time."""
        with self._changing:
            looking = tuple(self._all)
        self._round(looking, last=True)
        with self._changing:
            self._all = [watching for watching in self._all if watching not in looking]
        self._bell.ring()


_watches: WeakKeyDictionary[Ledger, _Watch] = WeakKeyDictionary()
_joining = threading.RLock()
