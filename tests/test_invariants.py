"""Random days of a ledger against a model too simple to be wrong, with a store that fails; then properties of the parts.

The model knows SEMANTICS.md and nothing of the package's fold: a list of entries, and every sum is made anew from all of them.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal, localcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args
from zoneinfo import ZoneInfo

import hypothesis
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import tokenbudget_lab.state as fold
from tests import postgres
from tests.conftest import Clock
from tests.history import checked, recorded
from tests.soaking import Pace
from tokenbudget_lab import commands as ask
from tokenbudget_lab.clock import Mark
from tokenbudget_lab.conditions import Condition
from tokenbudget_lab.desk import Bell, DirectBox, Ticket
from tokenbudget_lab.errors import BudgetExceeded, InvalidValue, LedgerClosed, LedgerCorrupt, StoreFailed
from tokenbudget_lab.events import FIELDS, GENESIS, Event, Kind, chained
from tokenbudget_lab.ids import uuid7_source
from tokenbudget_lab.ledger import Ledger
from tokenbudget_lab.limits import window_bounds
from tokenbudget_lab.place import place_of
from tokenbudget_lab.sharing import Asked, Loaded, Row, SharedStore, Step
from tokenbudget_lab.store import Loss, Store
from tokenbudget_lab.stores.duckdb import DuckDBStore
from tokenbudget_lab.stores.memory import MemoryStore
from tokenbudget_lab.stores.postgres import PostgresStore
from tokenbudget_lab.usage import MAX_USD, PICO, pico_of, pico_of_cost, usd_of

Three = tuple[int | None, int | None, int | None]  # usd in pico-dollars, tokens, requests
SECOND = 1_000_000
RESOURCES = ("usd", "tokens", "requests")
SOON_S = 10.0  # what has not happened by then never will


# --- the model --------------------------------------------------------------------------------------------------------------


class No(Exception):
    """A command is refused, with one of these errors."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.names = set(names)


@dataclass
class Pot:
    """A budget: its limits by window, the lifetime's under `""`."""

    name: str
    tz: str
    since: int
    alerts: tuple[float, ...]
    caps: dict[str, Three] = field(default_factory=lambda: {"": (None, None, None)})
    closed: bool = False

    def limits(self) -> tuple[tuple[Any, ...], ...]:
        return tuple((window, *cap) for window, cap in self.caps.items() if any(limit is not None for limit in cap))

    def window(self, code: str, at: int) -> object:
        """Which window an instant lies in; not where that starts, so nothing here knows about midnights."""
        if not code:
            return "ever"
        if code.endswith("s"):
            return (at - self.since) // (int(code[:-1]) * SECOND)
        day = datetime.fromtimestamp(at // SECOND, ZoneInfo(self.tz)).date()
        return {"day": day, "week": day.isocalendar()[:2], "month": (day.year, day.month)}[code]


@dataclass
class Charge:
    """A reservation or a record."""

    id: str
    budget: str
    at: int  # which windows it counts in
    held: Three
    state: str = "open"
    key: str | None = None
    expires: int | None = None
    counts_when_lost: bool = False
    parts: dict[str, tuple[Three, tuple[Any, ...]]] = field(default_factory=dict)
    end: Three | None = None  # what its end counted
    set_to: Three | None = None  # an adjustment
    answer: tuple[Any, ...] = ()  # what its end was answered with

    def rest(self) -> Three:
        parts = sums(part for part, _ in self.parts.values())
        return cast(
            "Three", tuple(None if have is None else max(0, have - took) for have, took in zip(self.held, parts, strict=True))
        )

    def used(self) -> list[Three]:
        if self.set_to is not None:
            return [self.set_to]
        return [*(part for part, _ in self.parts.values()), *([] if self.end is None else [self.end])]

    def used_in_all(self) -> Three:
        columns = zip(*self.used(), strict=True) if self.used() else ((), (), ())
        return cast(
            "Three", tuple(None if all(v is None for v in column) else sum(v or 0 for v in column) for column in columns)
        )


def sums(charges: Iterator[Three] | Sequence[Three]) -> list[int]:
    return [sum(column) for column in zip((0, 0, 0), *([v or 0 for v in charge] for charge in charges), strict=True)]


def path_of(name: str) -> list[str]:
    return [name.rsplit("/", up)[0] for up in range(name.count("/") + 1)]


class InLine(NamedTuple):
    command: ask.Reserve
    until: int
    who: list[Any]  # everybody who sent it

    @property
    def settled(self) -> bool:
        return any(who.settled for who in self.who)


class Model:
    """What a ledger is to do; `do` answers with a tuple, in which `...` stands for whatever it is, or raises `No`."""

    def __init__(self) -> None:
        self.pots: dict[str, Pot] = {}
        self.charges: list[Charge] = []
        self.line: list[InLine] = []  # in order of arrival
        self.clock = 0  # at the last batch: put back, it makes nobody wait longer
        self.once: dict[str, tuple[object, tuple[Any, ...]]] = {}  # what was changed by a command that ends nothing
        self.excused: set[str] = set()  # budgets that may be overspent: overrun, late, recorded, adjusted, lowered

    def run(self, asked: Sequence[tuple[ask.Command, Any]], now: int, clock: int) -> list[tuple[Any, object]]:
        """One batch of commands, each with who asks: who gets what, as far as it is answered."""
        back, self.clock = max(0, self.clock - clock), clock
        self.line = [waiting._replace(until=waiting.until - back) for waiting in self.line]
        self.expire(now)
        told: list[tuple[Any, object]] = []
        for command, who in asked:
            if isinstance(command, ask.Reserve):
                told += self.admit(now, clock)  # who stands in line comes before who comes now
            try:
                if not isinstance(command, ask.Reserve):
                    told.append((who, self.do(command, now)))
                elif not self.stands_in_line(command, who, now, clock):
                    told.append((who, self.reserve(command, now)))
            except No as no:
                told.append((who, no))
        return told + self.admit(now, clock)

    def expire(self, now: int) -> None:
        for charge in self.charges:
            if charge.state == "open" and charge.expires is not None and charge.expires <= now:
                self.lost(charge)

    @staticmethod
    def lost(charge: Charge) -> None:
        if charge.counts_when_lost:
            charge.end = charge.rest()
        charge.state = "counted" if charge.counts_when_lost else "released"

    def stands_in_line(self, c: ask.Reserve, who: Any, now: int, clock: int) -> bool:
        """Whether a reserve that does not fit waits; one that waits already keeps its place and its time."""
        content = (c.budget, c.usd, c.tokens, c.requests)
        before = [waiting for waiting in self.line if waiting.command.id == c.id]
        if any(content != (w.command.budget, w.command.usd, w.command.tokens, w.command.requests) for w in before):
            raise No("IdConflict")
        if not c.wait or not self.does_not_fit_yet(c, now):
            return False
        if before:
            before[0].who.append(who)
        else:
            self.line.append(InLine(c, clock + c.wait, [who]))
        return True

    def admit(self, now: int, clock: int) -> list[tuple[Any, object]]:
        told: list[tuple[Any, object]] = []
        for waiting in list(self.line):
            if self.does_not_fit_yet(waiting.command, now) and clock < waiting.until:
                continue
            self.line.remove(waiting)
            answer: object
            try:
                answer = self.reserve(waiting.command, now)
            except No as no:
                answer = no
            told += [(who, answer) for who in waiting.who]
        return told

    def do(self, c: Any, now: int) -> object:
        verbs: dict[str, Any] = {
            "SetBudget": self.set_budget,
            "SetLimit": self.set_limit,
            "CloseBudget": self.close,
            "Extend": self.extend,
            "Commit": self.commit,
            "Rollback": self.rollback,
            "Lose": self.lose,
            "Record": self.record,
            "Adjust": self.adjust,
            "Cancel": self.cancel,
            "GetEntry": self.entry,
            "GetHead": self.head,
        }
        return cast("object", verbs[type(c).__name__](c, now))

    # budgets

    def pot(self, name: str) -> Pot:
        if name not in self.pots:
            raise No("UnknownBudget")
        return self.pots[name]

    def must_be_open(self, name: str) -> None:
        if any(self.pots[above].closed for above in path_of(name)):
            raise No("BudgetClosed")

    def repeated(self, c: Any, content: object) -> tuple[Any, ...] | None:
        """The first answer to a command that comes again."""
        if c.id not in self.once:
            return None
        first, answer = self.once[c.id]
        if first != content:
            raise No("IdConflict")
        return answer

    def set_budget(self, c: ask.SetBudget, now: int) -> tuple[Any, ...]:
        again = self.repeated(c, (c.budget, c.caps))
        if again is not None:
            return again
        pot = self.pots.get(c.budget)
        if pot is not None:
            by_calendar = any(window in ("day", "week", "month") for window, *_ in c.caps)
            if pot.limits() != c.caps or (by_calendar and pot.tz != c.tz) or (c.alerts and c.alerts != pot.alerts):
                raise No("BudgetDiffers")
            return (pot.name, c.caps, pot.tz, pot.alerts, pot.closed, False)
        parent = c.budget.rpartition("/")[0]
        if parent:
            if parent not in self.pots:
                raise No("ParentMissing")
            self.must_be_open(parent)
        pot = self.pots[c.budget] = Pot(c.budget, c.tz, now, c.alerts)
        pot.caps |= {window: (usd, tokens, requests) for window, usd, tokens, requests in c.caps}
        self.once[c.id] = ((c.budget, c.caps), (c.budget, c.caps, c.tz, c.alerts, False, True))
        return self.once[c.id][1]

    def set_limit(self, c: ask.SetLimit, now: int) -> tuple[Any, ...]:
        pot, asked = self.pot(c.budget), (c.usd, c.tokens, c.requests)
        if c.id in self.once:
            first = cast("Three", self.once[c.id][0])
            if any(new not in (None, old) for new, old in zip(asked, first, strict=True)):
                raise No("IdConflict")
            return (pot.name,)
        self.must_be_open(c.budget)
        limits = {window: cap for window, *cap in pot.limits()}
        window = c.window if c.window is not None else next(iter(limits)) if len(limits) == 1 else ""
        if window not in limits and (window or limits):
            raise No("WindowFixed")
        old = pot.caps[window]
        new = cast("Three", tuple(b if a is None else a for a, b in zip(asked, old, strict=True)))
        if new != old:
            pot.caps[window] = new
            self.once[c.id] = (new, ())
            if any(b is not None and (a is None or b < a) for a, b in zip(old, new, strict=True)):
                self.excused.add(pot.name)
        return (pot.name, pot.limits(), pot.tz, pot.alerts, False, False)

    def close(self, c: ask.CloseBudget, now: int) -> tuple[Any, ...]:
        self.pot(c.budget).closed = True
        return (c.budget,)

    # what counts where

    def counted_in(self, name: str, window: str, at: int) -> list[Charge]:
        pot = self.pots[name]
        here = pot.window(window, at)
        below = (c for c in self.charges if name in path_of(c.budget))
        return [c for c in below if pot.window(window, c.at) == here]

    def row(self, name: str, window: str, at: int) -> tuple[int, ...]:
        """Committed, reserved (three each), open reservations, charges without a price."""
        charges = self.counted_in(name, window, at)
        used = [one for charge in charges for one in charge.used()]
        held = [charge for charge in charges if charge.state == "open"]
        return (*sums(used), *sums([c.rest() for c in held]), len(held), sum(one[0] is None for one in used))

    def rows(self, name: str) -> list[tuple[str, str, Three]]:
        return [(above, window, cap) for above in path_of(name) for window, cap in self.pots[above].caps.items()]

    def limits(self, name: str) -> list[tuple[str, str, Three]]:
        return [row for row in self.rows(name) if any(limit is not None for limit in row[2])]

    def overspent(self, now: int) -> list[str]:
        """Budgets with more committed and reserved than a limit of theirs allows."""
        return [
            name
            for name, pot in self.pots.items()
            for window, cap in pot.caps.items()
            for limit, used, held in zip(cap, self.row(name, window, now)[:3], self.row(name, window, now)[3:6], strict=True)
            if limit is not None and used + held > limit
        ]

    # reservations

    def known(self, id: str, budget: str, key: str | None) -> Charge | None:
        by_id = [c for c in self.charges if c.id == id]
        by_key = [c for c in self.charges if key is not None and (c.budget, c.key) == (budget, key)]
        return next(iter(by_id + by_key), None)

    def charge(self, id: str) -> Charge:
        for charge in self.charges:
            if charge.id == id:
                return charge
        raise No("UnknownReservation")

    def reserve(self, c: ask.Reserve, now: int) -> tuple[Any, ...]:
        known, asked = self.known(c.id, c.budget, c.key), (c.usd, c.tokens, c.requests)
        if known is not None:
            if known.state == "recorded" or (known.budget, known.held) != (c.budget, asked):
                raise No("IdConflict")
            return (known.id, ..., known.at, known.expires, known.state)
        self.refuse(c, now)
        expires = now + c.timeout if c.timeout else None
        self.charges.append(Charge(c.id, c.budget, now, asked, "open", c.key, expires, c.if_lost == "count"))
        return (c.id, ..., now, expires, "open")

    def refuse(self, c: ask.Reserve, now: int) -> None:
        """Refuse a new reservation that lacks something, or for which there is no room."""
        self.pot(c.budget)
        self.must_be_open(c.budget)
        missing: set[str] = set()
        exceeded = False
        for name, window, cap in self.limits(c.budget):
            row = self.row(name, window, now)
            missing |= self.missing(c, cap)
            if cap[0] is not None and row[7]:
                missing.add("CallsUnpriced")
            for limit, used, held, want in zip(cap, row[:3], row[3:6], (c.usd, c.tokens, c.requests), strict=True):
                exceeded |= limit is not None and used + held + (want or 0) > limit
        if missing:
            raise No(*missing)
        if exceeded:
            raise No("BudgetExceeded")

    @staticmethod
    def missing(c: ask.Reserve | ask.Record, cap: Three) -> set[str]:
        asked = (c.usd, c.tokens, c.requests)
        lacking = [r for r, limit, want in zip(RESOURCES, cap, asked, strict=True) if limit is not None and want is None]
        return {"PriceUnknown" if resource == "usd" and c.model else "AmountMissing" for resource in lacking}

    def does_not_fit_yet(self, c: ask.Reserve, now: int) -> bool:
        """Whether all that is in the way of a reserve are holds, or what was used in a window that ends."""
        if self.known(c.id, c.budget, c.key) is not None:
            return False
        try:
            self.refuse(c, now)
        except No as no:
            return no.names == {"BudgetExceeded"} and not any(
                limit is not None and (want or 0) + (used if not window else 0) > limit
                for name, window, cap in self.limits(c.budget)
                for limit, used, want in zip(cap, self.row(name, window, now), (c.usd, c.tokens, c.requests), strict=False)
            )
        return False

    def extend(self, c: ask.Extend, now: int) -> tuple[Any, ...]:
        charge = self.charge(c.reservation)
        again = self.repeated(c, (c.reservation, c.timeout))
        if again is not None:
            return (*again, charge.state)
        if charge.state != "open":
            raise No("ReservationClosed")
        if charge.expires is not None and now + c.timeout > charge.expires:
            charge.expires = now + c.timeout
            self.once[c.id] = ((c.reservation, c.timeout), (charge.id, ..., now, charge.expires))
        return (charge.id, ..., now, charge.expires, "open")

    def commit(self, c: ask.Commit, now: int) -> tuple[Any, ...]:
        charge, used, basis = self.charge(c.reservation), (c.usd, c.tokens, c.requests), c.basis
        if c.part is not None:
            return self.commit_part(c, charge, now)
        rest = charge.rest()
        if any(given is None and held is not None for given, held in zip(used[:2], rest[:2], strict=True)):
            basis = "unknown"
        used = cast("Three", tuple(held if given is None else given for given, held in zip(used, rest, strict=True)))
        if charge.state in ("committed", "rolled_back", "recorded"):
            if charge.state != "committed" or charge.end != used:
                raise No("ReservationClosed")
            return charge.answer
        late = charge.state != "open"
        overrun = any(held is not None and (took or 0) > held for took, held in zip(used, rest, strict=True))
        if late or overrun:
            self.excused |= set(path_of(charge.budget))
        charge.state, charge.end, charge.set_to = "committed", used, None
        charge.answer = (charge.id, ..., now, *used, basis, overrun, late)
        return charge.answer

    def commit_part(self, c: ask.Commit, charge: Charge, now: int) -> tuple[Any, ...]:
        used: Three = (c.usd, c.tokens, c.requests)
        if c.part in charge.parts:
            first, answer = charge.parts[c.part]
            if first != used:
                raise No("ReservationClosed")
            return answer
        if charge.state != "open":
            raise No("ReservationClosed")
        if any((took or 0) > (held or 0) for took, held in zip(used, charge.rest(), strict=True)):
            self.excused |= set(path_of(charge.budget))
        answer = (charge.id, ..., now, *used, c.basis, False, False)
        charge.parts[str(c.part)] = (used, answer)
        return answer

    def rollback(self, c: ask.Rollback, now: int) -> tuple[Any, ...]:
        charge = self.charge(c.reservation)
        if charge.state in ("committed", "counted", "recorded"):
            raise No("ReservationClosed")
        if charge.state == "open":
            charge.state = "rolled_back"
        return (charge.id, charge.state)

    def lose(self, c: ask.Lose, now: int) -> tuple[Any, ...]:
        charge = self.charge(c.reservation)
        if charge.state == "open":
            self.lost(charge)
        return (charge.id, charge.state)

    def record(self, c: ask.Record, now: int) -> tuple[Any, ...]:
        known, used = self.known(c.id, c.budget, c.key), (c.usd, c.tokens, c.requests)
        if known is not None:
            if (known.state, known.budget, known.end) != ("recorded", c.budget, used):
                raise No("IdConflict")
            return known.answer
        self.pot(c.budget)
        if c.ts is not None and c.ts > now:
            raise No("InvalidValue")
        missing = {m for _, _, cap in self.limits(c.budget) for m in self.missing(c, cap)}
        if missing:
            raise No(*missing)
        self.excused |= set(path_of(c.budget))
        answer = (c.id, ..., now, *used, c.basis, False, False)
        at = now if c.ts is None else c.ts
        self.charges.append(Charge(c.id, c.budget, at, (None, None, None), "recorded", c.key, end=used, answer=answer))
        return answer

    def adjust(self, c: ask.Adjust, now: int) -> tuple[Any, ...]:
        charge, asked = self.charge(c.target), (c.usd, c.tokens, c.requests)
        if c.id in self.once:
            target, first = cast("tuple[str, Three]", self.once[c.id][0])
            if target != c.target or any(new not in (None, old) for new, old in zip(asked, first, strict=True)):
                raise No("IdConflict")
            return self.once[c.id][1]
        if charge.state not in ("committed", "counted", "recorded"):
            raise No("NotAdjustable")
        used = cast("Three", tuple(old if new is None else new for new, old in zip(asked, charge.used_in_all(), strict=True)))
        charge.set_to = used
        self.excused |= set(path_of(charge.budget))
        answer = (charge.id, ..., now, *used, "measured", False, False)
        self.once[c.id] = ((charge.id, used), answer)
        return answer

    def cancel(self, c: ask.Cancel, now: int) -> tuple[Any, ...]:
        self.line = [waiting for waiting in self.line if waiting.command.id != c.target]
        return (c.target,)

    def entry(self, c: ask.GetEntry, now: int) -> tuple[Any, ...]:
        charge = self.charge(c.target)
        held = ... if charge.state == "recorded" else charge.held
        return (charge.id, charge.budget, charge.state, charge.expires, held, charge.used_in_all())

    def head(self, c: ask.GetHead, now: int) -> tuple[Any, ...]:
        return (..., ..., ..., ..., sum(charge.state == "open" for charge in self.charges))


def agrees(answer: Sequence[Any], told: tuple[Any, ...]) -> bool:
    return len(answer) >= len(told) and all(want is ... or want == got for got, want in zip(answer, told, strict=False))


# --- a writer that can be stopped, and a store that fails -------------------------------------------------------------------


class Gate:
    """A box that keeps the writer waiting when it is handed an answer: what is handed in meanwhile is one batch."""

    closed = sends_again = False

    def __init__(self) -> None:
        self.origin: str | None = None
        self.reached, self.open = threading.Event(), threading.Event()

    def deliver(self, tickets: list[Ticket]) -> None:
        self.reached.set()
        assert self.open.wait(SOON_S)


class FailingStore:
    """A store whose next append fails when it is told so.

    `lost`: before anything is kept. `unanswered`: everything is kept, only nobody hears of it. `shut`: kept as well, and the
    store cannot even be opened again at once.
    """

    def __init__(self, inner: Store) -> None:
        self.inner, self.where, self.shared = inner, inner.where, inner.shared
        self.damage, self.loss = inner.damage, inner.loss
        self.plan: str | None = None
        self.fired: str | None = None
        self.shut, self.blind = False, 0  # how often it does not read
        self.last_ts = 0
        self.commands: set[str] = set()  # that something was kept of, refusals aside
        self.latest: set[str] = set()  # those of the latest append
        self._note(list(inner.load()))

    def _note(self, events: Sequence[Event]) -> None:
        self.latest = {event.command for event in events if event.kind != "refused"}
        self.commands |= self.latest
        self.last_ts = events[-1].ts if events else self.last_ts

    def load(self, after: int = 0) -> Iterator[Event]:
        return self.inner.load(after)

    def proved(self, upto: int) -> Iterator[tuple[Iterable[Event], bool]]:
        return self.inner.proved(upto)

    def append(self, events: Sequence[Event]) -> None:
        self._keep(events, lambda: self.inner.append(events))

    def keep(self, step: Step) -> None:
        self._keep(step.events, lambda: self._shared.keep(step))

    def _keep(self, events: Sequence[Event], keep: Callable[[], None]) -> None:
        self.fired, self.plan = self.plan, None
        if self.fired == "lost":
            raise StoreFailed("the disk is full")
        keep()
        self._note(events)
        if self.fired is not None:
            self.shut = self.fired == "shut"
            raise OSError("the disk is gone")

    @property
    def _shared(self) -> SharedStore:
        return cast("SharedStore", self.inner)

    def begin(self, asked: Asked) -> Loaded:
        return self._shared.begin(asked)

    def sums(self, names: Sequence[str], starts: Sequence[int]) -> list[Row]:
        return self._shared.sums(names, starts)

    def release(self) -> None:
        self._shared.release()

    def listen(self, ring: Callable[[], None]) -> None:
        self._shared.listen(ring)

    def watch(self, bell: Bell) -> bool:
        return self._shared.watch(bell)

    def kept(self, seq: int, head: bytes) -> bool:
        return self._shared.kept(seq, head)

    def find(self, ids: Sequence[str], keys: Sequence[tuple[str, str]]) -> list[Event]:
        if self.blind:
            self.blind -= 1
            raise OSError("the disk does not read")
        return self.inner.find(ids, keys)

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,
    ) -> Any:
        return self.inner.arrow(columns, upto, where, uuids=uuids)

    def snapshot(self) -> fold.State | None:
        return self.inner.snapshot()

    def clock_mark(self) -> Mark | None:
        return self.inner.clock_mark()

    def keep_clock_mark(self, mark: Mark) -> None:
        self.inner.keep_clock_mark(mark)

    def tend(self, state: fold.State) -> None:
        self.inner.tend(state)

    def copy(self) -> str:
        return self.inner.copy()

    def is_disturbed(self) -> bool:
        return self.inner.is_disturbed()

    def reopen(self) -> None:
        if self.shut:
            self.shut = False
            raise StoreFailed("the disk is still gone")
        self.inner.reopen()

    def close(self, state: fold.State | None = None) -> None:
        self.inner.close(state)


# --- the machine ------------------------------------------------------------------------------------------------------------


# How much of an answer never changes: not the state that a reservation is in by now.
LASTING = {"Reserve": 3, "Commit": 9, "Record": 9, "Adjust": 9}


class Sent(NamedTuple):
    command: Any
    answer: tuple[Any, ...]


ANY = st.integers(0, 2**16)  # which of the things that there are
NAMES = st.sampled_from(["lab", "lab/study", "lab/study/run", "lab/other", "solo"])
USD, TOKENS, CALLS = st.integers(0, 30), st.integers(0, 30), st.integers(0, 2)
ALL: st.SearchStrategy[Three] = st.tuples(USD, TOKENS, CALLS)
AMOUNTS: st.SearchStrategy[Three] = st.one_of(ALL, ALL, ALL, st.tuples(st.none() | USD, st.none() | TOKENS, st.none() | CALLS))
CAP: st.SearchStrategy[Three] = st.tuples(
    st.none() | st.integers(0, 99), st.none() | st.integers(0, 99), st.none() | st.integers(0, 8)
).filter(lambda cap: any(limit is not None for limit in cap))
CAPS = st.dictionaries(st.sampled_from(["", "day", "week", "month", "3600s"]), CAP, max_size=2).map(
    lambda caps: tuple(sorted((window, *cap) for window, cap in caps.items()))
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo"])
TIMEOUTS = st.sampled_from([60 * SECOND, 600 * SECOND, 7200 * SECOND, 0])
KEYS = st.sampled_from([None, None, "one", "two"])
LOST = st.sampled_from(["count", "release"])
MODELS = st.sampled_from([None, "claude-sonnet-5-5"])
PLANS = st.sampled_from([None, None, None, None, "lost", "unanswered", "shut"])  # how the next append fails
VERBS = st.sampled_from(["commit", "commit", "part", "part", "extend", "rollback", "lose"])
LATER = st.sampled_from(["adjust", "adjust", "commit", "look", "cancel"])
PARTS = st.sampled_from(["a", "b", "c"])
# The evening before São Paulo's clocks skip midnight; the one before Berlin's go back; a month's last.
STARTS = st.sampled_from(["2018-11-03 22:00", "2018-10-27 21:30", "2026-11-30 23:30"])


class Day(RuleBasedStateMachine):
    """Every verb, in any order, alone and in batches, with repetitions, failures, restarts and a clock that also goes back."""

    remember = fold.REMEMBER_COUNT, fold.REMEMBER_KEYED_COUNT

    def __init__(self) -> None:
        super().__init__()
        self.remembered = fold.REMEMBER_COUNT, fold.REMEMBER_KEYED_COUNT
        fold.REMEMBER_COUNT, fold.REMEMBER_KEYED_COUNT = self.remember
        self.folder = tempfile.TemporaryDirectory()
        self.told = Path(self.folder.name) / "told"
        self.clock, self.model = Clock(), Model()
        self.kept = MemoryStore()
        self.batch: list[ask.Command] = []
        self.batching = False
        self.plan: str | None = None
        self.passed_s = 0.0  # time that passes when the next batch is there
        self.sent: list[Any] = []
        self.answers: dict[str, Sent] = {}
        self.targets: list[str] = []
        self.open()

    def open(self) -> None:
        self.store = FailingStore(self.opened())
        ledger = Ledger(store=self.store, clock_ns=self.clock.now_ns, ids=uuid7_source(self.clock.now_ns))
        self.ledger = recorded(ledger, self.told)
        self.box = DirectBox(None)

    def opened(self) -> Store:
        return self.kept

    def id(self) -> str:
        return self.ledger.new_id()

    def target(self, which: int, *, in_flight: bool) -> str:
        """Mostly something in flight, or something that has ended; else anything that was ever asked for."""
        such = [charge.id for charge in self.model.charges if (charge.state == "open") == in_flight]
        these = such if such and which % 4 else self.targets
        return these[which // 4 % len(these)]

    def name(self, which: int) -> str:
        names = sorted(self.model.pots)
        return names[which // 16 % len(names)] if names and which % 16 else "nowhere"

    # how commands get there

    def hand_in(self, command: ask.Command) -> Ticket:
        ticket = Ticket(command, self.box)
        self.ledger.desk.submit(ticket)
        return ticket

    def send(self, command: ask.Command) -> None:
        self.batch.append(command)
        if command not in self.sent:
            self.sent.append(command)
        if not self.batching:
            self.go()

    @property
    def now(self) -> int:
        """What the writer calls now: its clock, or the last event's time where the clock was put back."""
        return max(self.clock.now_ns() // 1000, self.store.last_ts)

    def go(self) -> None:
        """Hand in what was collected as one batch, and compare what comes back."""
        commands, self.batch, self.batching = self.batch, [], False
        plan, self.plan = self.plan, None
        gate = Gate()
        self.ledger.desk.submit(Ticket(ask.GetHead(self.id()), gate))
        assert gate.reached.wait(SOON_S)
        self.clock.advance(self.passed_s)
        self.passed_s, self.store.fired, self.store.plan = 0.0, None, plan
        now, clock = self.now, self.clock.now_ns() // 1000
        tickets = [self.hand_in(command) for command in commands]
        last = self.hand_in(ask.GetHead(self.id()))
        gate.open.set()
        assert last.wait(SOON_S)
        self.store.plan = None
        if self.store.fired == "lost":
            for ticket in tickets:
                self.compare_lost(ticket)
            asked = {command.id for command in commands}  # who asks once more has only this place in line
            self.model.line = [waiting for waiting in self.model.line if waiting.command.id not in asked]
            self.drop_who_was_told_off()
            self.go()
            return
        for ticket, expected in self.model.run([(ticket.command, ticket) for ticket in tickets], now, clock):
            self.compare(ticket, expected)
        if self.store.fired is not None:
            self.drop_who_was_told_off()

    def drop_who_was_told_off(self) -> None:
        """Who stood in line, and would have been answered by the batch that failed, has to ask again."""
        self.ledger.ask(ask.GetHead(self.id()))
        for waiting in [waiting for waiting in self.model.line if waiting.settled]:
            assert all(type(who.error) is StoreFailed for who in waiting.who)
            self.model.line.remove(waiting)

    def compare_lost(self, ticket: Ticket) -> None:
        """Nothing of the batch was kept: nothing of it is acknowledged, but what was so before."""
        command: Any = ticket.command
        assert ticket.wait(SOON_S)
        if type(ticket.error) is StoreFailed:
            return
        was_closed = isinstance(command, ask.CloseBudget) and self.model.pots[command.budget].closed
        assert was_closed or command.id in self.store.commands
        if ticket.error is None:
            self.acknowledged(command, ticket.answer)

    def compare(self, ticket: Ticket, expected: object) -> None:
        command: Any = ticket.command
        assert ticket.wait(SOON_S), f"{command} got no answer, and should have got {expected}"
        if self.store.fired is not None and type(ticket.error) is StoreFailed:
            kept = command.id in self.store.latest
            assert not kept or self.store.fired == "shut", f"{command} was kept, and gets {ticket.error}"
            return
        if isinstance(expected, No):
            assert type(ticket.error).__name__ in expected.names, f"{command}: {ticket.error!r}, {ticket.answer}"
            return
        assert ticket.error is None, f"{command}: {ticket.error!r} instead of {expected}"
        assert agrees(ticket.answer, cast("tuple[Any, ...]", expected)), f"{command}: {ticket.answer} instead of {expected}"
        self.acknowledged(command, ticket.answer)

    def acknowledged(self, command: Any, answer: tuple[Any, ...]) -> None:
        """The same command gets the same answer, for ever."""
        lasting = LASTING.get(type(command).__name__)
        if lasting is None or command.id not in self.store.commands:
            return
        first = self.answers.setdefault(command.id, Sent(command, answer[:lasting]))
        assert first.command != command or first.answer == answer[:lasting]

    # rules

    @initialize(
        start=STARTS,
        caps=st.tuples(CAPS.filter(bool), CAPS, CAPS),
        zones=st.tuples(ZONES, ZONES, ZONES),
        first=st.lists(ALL, max_size=3),
    )
    def begin(self, start: str, caps: tuple[Any, ...], zones: tuple[str, ...], first: list[Three]) -> None:
        self.clock.set(start)
        for name, cap, tz in zip(("lab", "lab/study", "lab/study/run"), caps, zones, strict=True):
            self.send(ask.SetBudget(self.id(), name, cap, tz, (0.5, 1.0)))
        for which, amounts in enumerate(first, 1):
            self.ask_for(which << 4 | 1, amounts, 600 * SECOND, "count", None, 0, None)

    @rule(name=NAMES, caps=CAPS, tz=ZONES, alerts=st.sampled_from([(), (0.5, 1.0)]))
    def create(self, name: str, caps: tuple[Any, ...], tz: str, alerts: tuple[float, ...]) -> None:
        self.send(ask.SetBudget(self.id(), name, caps, tz, alerts))

    @rule(which=ANY, window=st.sampled_from([None, None, "", "day", "3600s"]), cap=CAP)
    def set_limit(self, which: int, window: str | None, cap: Three) -> None:
        self.send(ask.SetLimit(self.id(), self.name(which), window, *cap))

    @precondition(lambda self: len(self.sent) > 12)
    @rule(which=ANY, sure=st.integers(0, 7))
    def close_budget(self, which: int, sure: int) -> None:
        if not sure:
            self.send(ask.CloseBudget(self.id(), self.name(which)))

    @rule(which=ANY, amounts=AMOUNTS, timeout=TIMEOUTS, if_lost=LOST, key=KEYS, model=MODELS, plan=PLANS)
    def reserve(
        self, which: int, amounts: Three, timeout: int, if_lost: str, key: str | None, model: str | None, plan: str | None
    ) -> None:
        self.plan = self.plan or plan
        self.ask_for(which, amounts, timeout, if_lost, key, 0, model)

    @rule(which=ANY, several=st.lists(ALL, min_size=1, max_size=4), timeout=TIMEOUTS, wait=st.sampled_from([60, 7200, 200_000]))
    def stand_in_line(self, which: int, several: list[Three], timeout: int, wait: int) -> None:
        for amounts in several:
            self.ask_for(which, amounts, timeout, "count", None, wait * SECOND, None)

    def ask_for(
        self, which: int, amounts: Three, timeout: int, if_lost: str, key: str | None, wait: int, model: str | None
    ) -> None:
        command = ask.Reserve(self.id(), self.name(which), *amounts, timeout, if_lost, key, wait, None, model)
        self.targets.append(command.id)
        self.send(command)

    @precondition(lambda self: not self.batching and self.model.overspent(self.now))
    @rule(which=ANY)
    def reserve_nothing_where_too_much_is_spent(self, which: int) -> None:
        """Not even nothing is granted there; the model says so, and here it stands once more in so many words."""
        over = self.model.overspent(self.now)
        ticket = self.hand_in(ask.Reserve(self.id(), over[which % len(over)], 0, 0, 0, 60 * SECOND, "release"))
        assert ticket.wait(SOON_S)
        assert ticket.error is not None

    @precondition(lambda self: self.targets)
    @rule(which=ANY, verb=VERBS, used=AMOUNTS, part=PARTS, plan=PLANS)
    def go_on(self, which: int, verb: str, used: Three, part: str, plan: str | None) -> None:
        self.plan = self.plan or plan
        id, target = self.id(), self.target(which, in_flight=True)
        commands: dict[str, ask.Command] = {
            "commit": ask.Commit(id, target, *used, "measured"),
            "part": ask.Commit(id, target, *used, "estimated", part=part),
            "extend": ask.Extend(id, target, 60 * SECOND << which % 8),
            "rollback": ask.Rollback(id, target),
            "lose": ask.Lose(id, target),
        }
        self.send(commands[verb])

    @precondition(lambda self: self.targets)
    @rule(which=ANY, verb=LATER, used=AMOUNTS)
    def come_back(self, which: int, verb: str, used: Three) -> None:
        id, target = self.id(), self.target(which, in_flight=False)
        commands: dict[str, ask.Command] = {
            "adjust": ask.Adjust(id, target, *used),
            "commit": ask.Commit(id, target, *used, "measured"),
            "look": ask.GetEntry(id, target),
            "cancel": ask.Cancel(id, target),
        }
        self.send(commands[verb])

    @rule(which=ANY, used=AMOUNTS, ago=st.sampled_from([None, None, 0, 3600, 90_000, 3_000_000, -5]), key=KEYS)
    def record(self, which: int, used: Three, ago: int | None, key: str | None) -> None:
        at = None if ago is None else self.now - ago * SECOND
        command = ask.Record(self.id(), self.name(which), *used, "measured", at, key=key)
        self.targets.append(command.id)
        self.send(command)

    @precondition(lambda self: self.sent)
    @rule(which=ANY)
    def repeat(self, which: int) -> None:
        self.send(self.sent[which % len(self.sent)])

    @precondition(lambda self: self.sent)
    @rule(which=ANY, more=st.integers(1, 5))
    def repeat_with_other_content(self, which: int, more: int) -> None:
        command = self.sent[which % len(self.sent)]
        if hasattr(command, "tokens"):
            self.send(command._replace(tokens=(command.tokens or 0) + more))
        elif hasattr(command, "timeout"):
            self.send(command._replace(timeout=command.timeout + more))

    @rule(seconds=st.sampled_from([0.5, 59, 61, 600, 3599, 7201, 86_400, 700_000, -30, -4000]))
    def time_passes(self, seconds: float) -> None:
        self.passed_s += seconds
        if not self.batching:
            self.go()

    @rule(plan=PLANS)
    def begin_a_batch(self, plan: str | None) -> None:
        self.batching, self.plan = True, self.plan or plan

    @precondition(lambda self: self.batching)
    @rule()
    def end_a_batch(self) -> None:
        self.go()

    @precondition(lambda self: not self.batching)
    @rule()
    def restart(self) -> None:
        self.ledger.close()
        for waiting in self.model.line:
            assert all(who.wait(SOON_S) and type(who.error) is LedgerClosed for who in waiting.who)
        self.model.line = []
        self.open()

    # what holds after each of them

    @invariant()
    def nothing_is_wrong(self) -> None:
        if self.batching:
            return
        told = self.ledger.ask(ask.ListBudgets(self.id()))
        now = self.now
        assert not any(waiting.settled for waiting in self.model.line)
        assert [answer[0] for answer in told] == sorted(self.model.pots)
        for name, ts, closed, _, rows in told:
            expected = [(pot, window, *cap, *self.model.row(pot, window, now)) for pot, window, cap in self.model.rows(name)]
            assert [(*row[:5], *row[7:]) for row in rows] == expected
            assert all(start <= ts < end for _, _, _, _, _, start, end, *_ in rows)
            assert closed == any(self.model.pots[above].closed for above in path_of(name))
        assert set(self.model.overspent(now)) <= self.model.excused
        for balance in self.ledger.budgets():
            assert [
                (lim.budget, lim.window) for lim in balance.limits if lim.left < 0 and lim.budget not in self.model.excused
            ] == []
            limits = [lim.left for lim in balance.limits if lim.resource == "tokens"]
            assert balance.left_tokens == min(limits, default=None)
        proof = self.ledger.verify()
        assert proof.open_reservations == sum(charge.state == "open" for charge in self.model.charges)
        assert not any(c.state == "open" and c.expires is not None and c.expires <= now for c in self.model.charges)

    def teardown(self) -> None:
        try:
            self.plan = None
            self.go()
            for sent in self.answers.values():
                self.send(sent.command)
            self.restart()
            self.nothing_is_wrong()
            state = replay(self.store.load())
            assert state.digest() == self.ledger.verify().digest
            checked(self.ledger, self.told)
            for name, node in state.nodes.items():
                for account in node.accounts:
                    for start, totals in account.by_start.items():
                        assert totals.numbers() == self.model.row(name, account.cap.window, start), (name, account.cap, start)
        finally:
            fold.REMEMBER_COUNT, fold.REMEMBER_KEYED_COUNT = self.remembered
            self.ledger.close()
            self.folder.cleanup()


def replay(events: Iterator[Event]) -> fold.State:
    state = fold.State()
    for event in events:
        state.apply(event)
    return state


class DayInAFile(Day):
    def opened(self) -> Store:
        return DuckDBStore(place_of(Path(self.folder.name) / "spend.duckdb"))


class DayOnAServer(Day):
    def __init__(self) -> None:
        self.url = postgres.ledger()
        super().__init__()

    def opened(self) -> Store:
        return PostgresStore(self.url, clock_ns=self.clock.now_ns)


class ForgetfulDay(Day):
    """Remembers hardly anything by itself: what a command needs is looked up in the store."""

    remember = 3, 2


def run(machine: type[Day], examples: int, steps: int, **more: Any) -> None:
    few = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck), **more
    )
    run_state_machine_as_test(machine, settings=few)


@pytest.mark.parametrize(("machine", "examples"), [(Day, 50), (ForgetfulDay, 40), (DayInAFile, 8), (DayOnAServer, 8)])
def test_a_random_day_goes_as_in_the_model(machine: type[Day], examples: int) -> None:
    run(machine, examples, 40)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("machine", "examples"), [(Day, 2000), (ForgetfulDay, 2000), (DayInAFile, 500), (DayOnAServer, 500)])
def test_thousands_of_random_days_go_as_in_the_model(machine: type[Day], examples: int, pace: Pace) -> None:
    for _ in pace.some(range(examples // 10)):
        run(hypothesis.seed(pace.chance.randrange(2**32))(machine), 10, 60)


# --- what the machine found, each in its own words --------------------------------------------------------------------------


@pytest.fixture
def opened(clock: Clock) -> Iterator[tuple[Ledger, FailingStore]]:
    """A ledger over a store that can be made to fail, on the clock of the test."""
    store = FailingStore(MemoryStore())
    with Ledger(store=store, clock_ns=clock.now_ns, ids=uuid7_source(clock.now_ns)) as ledger:
        yield ledger, store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("hours", [0.5, 2, 48])
def test_a_ledger_opens_again_after_an_entry_was_charged_late(
    opened: tuple[Ledger, FailingStore], clock: Clock, hours: float
) -> None:
    """A replay has forgotten what ended more than an hour before; the later event says all that it needs.

    record    100 tokens
    reserve   300 tokens, and it expires
    …         hours pass
    adjust    the record: 70
    commit    the reservation: 50
    """
    ledger, store = opened
    lab = ledger.budget("lab", limits=[])
    record = str(ledger.ask(ask.Record(ledger.new_id(), "lab", None, 100, 1, "measured"))[0])
    call = lab.reserve_sync(tokens=300, timeout=60, if_lost="count")
    clock.advance(hours * 3600)
    lab.adjust(record, tokens=70).result()
    call.commit(tokens=50).result()
    assert (replay(store.load()).digest(), lab.balance.committed_tokens) == (ledger.verify().digest, 120)


def test_a_clock_that_was_ahead_while_nothing_was_written_opens_no_window(
    opened: tuple[Ledger, FailingStore], clock: Clock
) -> None:
    """Put right, it finds the window that it had left.

    limit     1000 tokens per day
    record    1000
    …         the clock is a year ahead while the balance is looked at, then right again
    reserve   1    refused
    """
    ledger, _ = opened
    lab = ledger.budget("lab", tokens=1000, window="day")
    lab.record(tokens=1000).result()
    clock.advance(365 * 86_400)
    assert lab.balance.left_tokens == 1000
    clock.advance(-365 * 86_400)
    with pytest.raises(BudgetExceeded):
        lab.reserve_sync(tokens=1)


def test_a_late_commit_that_was_kept_is_acknowledged_though_its_append_failed(
    opened: tuple[Ledger, FailingStore], clock: Clock
) -> None:
    """Also where the reservation ended so long ago that it has to be looked up.

    reserve   300 tokens, and it expires after a minute
    …         two hours pass
    commit    200, kept, but the store says nothing
    """
    ledger, store = opened
    call = ledger.budget("lab", tokens=1000).reserve_sync(tokens=300, timeout=60)
    clock.advance(61)
    ledger.verify()
    clock.advance(7200)
    store.plan = "unanswered"
    receipt = cast("Any", call.commit(tokens=200).result())
    assert (receipt.tokens, receipt.late) == (200, True)


@pytest.mark.parametrize("blind", [1, 2])
def test_what_could_not_be_looked_up_gets_its_first_answer_or_a_named_error(
    opened: tuple[Ledger, FailingStore], clock: Clock, blind: int
) -> None:
    """It is looked up once more; if that fails too, it can be asked again.

    record    100 tokens
    …         two hours pass, another record
    record    the first once more, while the store cannot read
    """
    ledger, store = opened
    ledger.budget("lab", tokens=1000)
    command = ask.Record(ledger.new_id(), "lab", None, 100, 1, "measured")
    first = ledger.ask(command)
    clock.advance(7200)
    ledger.ask(command._replace(id=ledger.new_id()))
    store.blind = blind
    if blind > 1:
        with pytest.raises(StoreFailed):
            ledger.ask(command)
    assert ledger.ask(command) == first


def test_a_repeat_in_a_lost_batch_tells_nothing_of_what_was_lost_with_it(opened: tuple[Ledger, FailingStore]) -> None:
    """The commit is not kept, so the reservation is open.

    reserve   100
    commit    100, and the reserve once more in the same batch, which is lost
    """
    ledger, store = opened
    ledger.budget("lab", tokens=1000)
    reserve = ask.Reserve(ledger.new_id(), "lab", None, 100, 1, 60_000_000, "release")
    first = ledger.ask(reserve)
    commit = ask.Commit(ledger.new_id(), reserve.id, None, 100, 1, "measured")
    gate, box = Gate(), DirectBox(None)
    ledger.desk.submit(Ticket(ask.GetHead(ledger.new_id()), gate))
    assert gate.reached.wait(SOON_S)
    store.plan = "lost"
    lost, again = Ticket(commit, box), Ticket(reserve, box)
    ledger.desk.submit(lost)
    ledger.desk.submit(again)
    gate.open.set()
    assert again.wait(SOON_S)
    assert (type(lost.error), again.outcome()) == (StoreFailed, first)


# --- money ------------------------------------------------------------------------------------------------------------------

PICO_USD = st.integers(0, MAX_USD * PICO - 1)


@given(pico=PICO_USD, precision=st.integers(1, 40))
@example(pico=MAX_USD * PICO - 1, precision=1)
def test_money_survives_the_way_out_and_back_whatever_the_decimal_context(pico: int, precision: int) -> None:
    with localcontext(Context(prec=precision)):
        usd = usd_of(pico)
        assert (pico_of("usd", usd), pico_of("usd", str(usd)), pico_of("usd", f"{usd:f}")) == (pico, pico, pico)


@given(one=PICO_USD, other=PICO_USD)
def test_sums_of_money_are_exact(one: int, other: int) -> None:
    assert usd_of(one) + usd_of(other) == usd_of(one + other)
    assert usd_of(one - other) == -usd_of(other - one)


@given(usd=st.decimals(0, 10**6, places=15))
def test_more_than_twelve_decimals_are_refused_and_never_rounded(usd: Decimal) -> None:
    exact = usd * PICO
    if exact == exact.to_integral_value():
        assert pico_of("usd", usd) == exact
    else:
        with pytest.raises(InvalidValue):
            pico_of("usd", usd)


@given(usd=st.floats(0, 1e9))
def test_a_float_is_the_number_that_it_prints(usd: float) -> None:
    try:
        assert usd_of(pico_of("usd", usd)) == Decimal(repr(usd))
    except InvalidValue:
        assert Decimal(repr(usd)) * PICO % 1 != 0


@given(cost=st.decimals(0, 10**9, places=18))
def test_a_computed_cost_is_rounded_up_by_less_than_a_pico_dollar(cost: Decimal) -> None:
    assert 0 <= usd_of(pico_of_cost(cost)) - cost < usd_of(1)


# --- windows ----------------------------------------------------------------------------------------------------------------

# Zones whose midnight was skipped or came twice, whose day was skipped, with offsets of half an hour and of seconds.
ODD_ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/Sao_Paulo", "America/Havana", "America/St_Johns", "Africa/Cairo"]
) | (
    st.sampled_from(["Africa/Monrovia", "Asia/Beirut", "Asia/Gaza", "Asia/Kathmandu", "Asia/Pyongyang", "Asia/Tehran"])
    | st.sampled_from(["Pacific/Apia", "Pacific/Kwajalein", "Antarctica/Casey"])
)
CODES = st.sampled_from(["day", "week", "month", "1s", "3600s", "86400s", "100000s"])
INSTANTS = st.integers(0, 4_102_444_800 * SECOND)  # 1970 … 2100


def changes_of(tz: str) -> list[int]:
    """Instants in microseconds at which a zone's clocks change, until 2040."""
    zone, found = ZoneInfo(tz), []

    def offset(second: int) -> object:
        return datetime.fromtimestamp(second, zone).utcoffset()

    for day in range(0, 2_208_988_800, 86_400 * 20):
        before, after = day, day + 86_400 * 20
        if offset(before) != offset(after):
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (middle, after) if offset(middle) == offset(day) else (before, middle)
            found.append(after * SECOND)
    return found or [0]


CHANGES: dict[str, list[int]] = {}


@st.composite
def near_a_change(draw: st.DrawFn) -> tuple[str, int]:
    """A zone, and an instant within two days of a change of its clocks."""
    tz = draw(ODD_ZONES)
    change = draw(st.sampled_from(CHANGES.setdefault(tz, changes_of(tz))))
    return tz, max(
        0, change + draw(st.integers(-2 * 86_400, 2 * 86_400) | st.integers(-2, 2)) * SECOND + draw(st.integers(-1, 1))
    )


@settings(max_examples=600, deadline=None)
@given(code=CODES, where=near_a_change() | st.tuples(ODD_ZONES, INSTANTS), anchor=INSTANTS)
@example(code="day", where=("America/Havana", 876_634_199 * SECOND), anchor=0)  # an hour that came twice, after midnight
@example(code="day", where=("Pacific/Apia", 1_325_239_200 * SECOND), anchor=0)  # a day that never was
def test_windows_follow_one_another_and_contain_their_instant(code: str, where: tuple[str, int], anchor: int) -> None:
    tz, at = where
    start, end = window_bounds(code, tz, anchor, at)
    assert start <= at < end
    assert window_bounds(code, tz, anchor, start) == window_bounds(code, tz, anchor, end - 1) == (start, end)
    assert window_bounds(code, tz, anchor, end)[0] == end
    assert window_bounds(code, tz, anchor, start - 1)[1] == start


# --- the chain --------------------------------------------------------------------------------------------------------------


def a_day_with_everything(store: Store) -> Ledger:
    """A ledger with an event of each kind, still open."""
    clock = Clock()
    store.loss = Loss(2, 3, "two events are missing", "damaged-1")
    ledger = Ledger(store=store, clock_ns=clock.now_ns, ids=uuid7_source(clock.now_ns))
    ledger.ask(ask.AcceptClock(ledger.new_id()))
    lab = ledger.budget("lab", usd=1, alerts=(0.1,))
    run = ledger.budget("lab/run", limits=[])
    call = run.reserve_sync(usd="0.30", tokens=100, key="k", tags={"arm": "a"}, timeout=60, if_lost="count")
    call.extend_sync(120)
    ledger.ask(ask.Sent(ledger.new_id(), call.id, "batch_1"))
    with suppress(BudgetExceeded):
        run.reserve_sync(usd=2)
    ledger.ask(ask.Commit(ledger.new_id(), call.id, 10**10, 10, None, "measured", 7, 3, 1, 1, 1, "msg_1", "part"))
    clock.advance(300)
    run.reserve_sync(usd="0.10").rollback().result()
    run.reserve_sync(usd="0.10").commit(usd="0.20").result()
    lab.record(tokens=5, usd="0.01", key="r").result()
    call.commit(usd="0.05").result()
    lab.adjust(call, usd="0.04", reason="invoice").result()
    run.close()
    return ledger


def other(value: Any) -> st.SearchStrategy[Any]:
    """Another value that could stand in the same column."""
    values: st.SearchStrategy[Any] = st.none() | st.integers(0, 2**53) | st.text(max_size=5)
    if isinstance(value, int):
        values = st.integers(value - 3, value + 3)
    elif isinstance(value, bytes):
        values = st.binary(min_size=32, max_size=32)
    elif isinstance(value, tuple):
        values = st.just((*value, 1)) | st.just(value[:-1])
    elif isinstance(value, str):
        values = st.text(max_size=5) | st.just(value + " ") | st.just(value[:-1])
    return values.filter(lambda new: new != value)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_changed_field_of_any_event_is_found_and_named(data: st.DataObject) -> None:
    store = MemoryStore()
    with a_day_with_everything(store) as ledger:
        assert {event.kind for event in store._events} == set(get_args(Kind))
        place = data.draw(st.integers(0, len(store._events) - 1))
        event, name = store._events[place], data.draw(st.sampled_from(FIELDS))
        new = data.draw(other(getattr(event, name)))
        store._events[place] = event._replace(**{name: new})
        with pytest.raises(LedgerCorrupt) as found:
            ledger.verify()
        assert found.value.seq in {event.seq, new if name == "seq" else event.seq}
        store._events[place] = event
        ledger.verify()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), how=st.sampled_from(["removed", "doubled", "swapped", "cut", "forged"]))
def test_events_that_are_missing_doubled_moved_or_forged_are_found_and_named(data: st.DataObject, how: str) -> None:
    store = MemoryStore()
    with a_day_with_everything(store) as ledger:
        events = store._events
        n = data.draw(st.integers(1, len(events) - 2))
        event = events[n]
        if how == "removed":
            del events[n]
        elif how == "doubled":
            events.insert(n, event)
        elif how == "swapped":
            events[n], events[n + 1] = events[n + 1], event
        elif how == "cut":
            del events[n:]
        else:  # a forger who chains her event, but not all that follow
            events[n] = chained(events[n - 1].hash, event._replace(tokens=(event.tokens or 0) + 1)[:-1])
        with pytest.raises(LedgerCorrupt) as found:
            ledger.verify()
        assert found.value.seq in {event.seq, event.seq + 1}


def test_the_chain_is_what_its_description_says(tmp_path: Path) -> None:
    """SHA-256 over the hash before and the event's fields as JSON, computed here by hand; in a file as in memory."""
    import json
    from hashlib import sha256

    for store in (MemoryStore(), DuckDBStore(place_of(tmp_path / "spend.duckdb"))):
        with a_day_with_everything(cast("Store", store)) as ledger:
            events, head = list(store.load()), GENESIS
            for event in events:
                body = json.dumps(event[:-1], separators=(",", ":"), ensure_ascii=True).encode()
                head = sha256(head + body).digest()
                assert event.hash == head
            assert (ledger.verify().head, [b.seq - a.seq for a, b in pairwise(events)]) == (head.hex(), [1] * (len(events) - 1))
