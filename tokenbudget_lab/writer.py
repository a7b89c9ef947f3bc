"""One thread that decides, so there is no race to lose.

The writer takes every command that waits, decides them one after another, appends all their events in one durable
transaction, and only then answers, reads included: a thousand callers share one sync to disk.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop
from itertools import takewhile
from typing import Any, cast

from . import clock
from .clock import Mark, Watch
from .commands import (
    AcceptClock,
    Cancel,
    CopyFile,
    GetBalance,
    GetBudget,
    GetEntry,
    GetHead,
    ListBudgets,
    Record,
    Reserve,
)
from .conditions import Condition
from .decide import Decisions
from .desk import Bell, Box, Latch, Ticket, finish, wait_for_own
from .errors import (
    BudgetExceeded,
    ClockJumped,
    IdConflict,
    LedgerClosed,
    LedgerDamaged,
    LedgerForked,
    LedgerUnavailable,
    ServerLost,
    StoreFailed,
    TokenBudgetError,
)
from .events import Event
from .ids import new_id
from .line import Line, Waiter
from .sharing import SharedStore, Sharing
from .state import State, seldom_collected
from .store import Store

# What the writer does beside deciding, and what reads only.
_OWN = frozenset({Cancel, AcceptClock, CopyFile})
_READS = frozenset({GetBudget, GetBalance, ListBudgets, GetEntry})
_LOOK_AGAIN_S = 1.0  # who waits for what others free
_ATTEMPTS = 4  # to decide a batch that was interrupted
_PATIENCE_S = 20.0  # less than what a store waits for a server, so that this is not waited for twice
log = logging.getLogger("tokenbudget_lab")
_content = operator.attrgetter("budget", "usd", "tokens", "requests")
_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


class Writer:
    """Decides and appends, in a thread of its own, for a store that nobody else writes to.

    Args:
        store: where the events are kept.
        clock_ns: Unix nanoseconds.
        ids: where ids come from.
        origin: JSON about this process, for commands that come from it.
        boot_ns: nanoseconds since the machine started, to notice that its clock was moved; only the machine's own clock is
            watched where it is not given.
        boot_id: which start of the machine that was.

    Raises:
        LedgerUnavailable: the store cannot be read.
        LedgerCorrupt: its events do not fit together.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        ids: Callable[[], str] = new_id,
        origin: str | None = None,
        boot_ns: Callable[[], int] | None = None,
        boot_id: Callable[[], str | None] = clock.boot_id,
    ) -> None:
        watched = boot_ns is not None or (clock_ns is time.time_ns and not store.shared)  # that one's time comes from elsewhere
        self._watched = (boot_ns or clock.boot_ns, boot_id) if watched else None
        self._watch: Watch | None = None
        self._now = 0  # the clock at the last batch, Unix microseconds
        self._halted = False  # only reading
        self._copies: list[Ticket] = []
        self.store, self.clock_ns, self.ids, self.origin = store, clock_ns, ids, origin
        self.sharing: Sharing | None = None  # where others write to the store as well
        self.where = store.where
        self._queue: deque[Ticket] = deque()
        self._idle, self._wake = False, Bell()
        self._closing = self._forked = self._gone = False
        self._pid = os.getpid()
        self.line = Line()
        self._failed_start: BaseException | None = None
        self._ready, self._ended = Latch(), Latch()
        self._thread = threading.Thread(target=self._run, name=f"tokenbudget writer {self.where}", daemon=True)
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            self.close()
            raise
        if self._failed_start is not None:
            raise self._failed_start
        _writers.add(self)

    def _start(self) -> None:
        """Fold what the store has, and begin a new ledger; here and not in the main thread, where Ctrl-C would cut in."""
        self._rebuild()
        if self.sharing is not None:
            self._start_shared()
            return
        if self.store.damage is not None:
            return
        self._watch = self._begin_watch()
        state, now = self.decisions.state, self.clock_ns() // 1000
        if state.seq == 0:
            self.decisions.create(self.ids(), now, self.origin)
        if self.store.loss is not None:
            believed = self._watch is None or self._watch.wrong_s() is None
            self.decisions.recover(now if believed else state.ts, self.origin, **self.store.loss._asdict())
        events = self._take_events()
        if events:
            self.store.append(events)

    def _start_shared(self) -> None:
        """Begin a new ledger, if nobody has; also where a connection is lost meanwhile."""
        deadline = time.monotonic() + _PATIENCE_S
        for attempt in range(_ATTEMPTS):
            try:
                self._begin_shared(self._shared())
                return
            except ServerLost as error:
                if attempt + 1 == _ATTEMPTS or time.monotonic() > deadline:
                    raise
                log.warning("%s: %s; begun anew", self.where, error.reason)
            self.store.reopen()
            self._rebuild()

    def _begin_shared(self, sharing: Sharing) -> None:
        now = sharing.begin([], self.line)
        if self.decisions.state.seq == 0:
            now = sharing.begin([], self.line, write=True)
            if self.decisions.state.seq == 0:
                self.decisions.create(self.ids(), now, self.origin)
        sharing.end(self._take_events())

    def _begin_watch(self) -> Watch | None:
        if self._watched is None:
            return None
        (boot_ns, boot_id), state = self._watched, self.decisions.state
        return Watch(
            self.clock_ns, boot_ns, boot=boot_id(), kept=self.store.clock_mark(), keep=self._keep_clock_mark,
            last=state.ts, accepted=state.clock_accepted,
        )  # fmt: skip

    def _keep_clock_mark(self, mark: Mark) -> None:
        """For the next owner; this one goes on without."""
        try:
            self.store.keep_clock_mark(mark)
        except StoreFailed as error:
            log.warning("%s: what the clock said is not kept: %s", self.where, error.reason)

    def _rebuild(self) -> None:
        state = self.store.snapshot() or State()
        if self.store.shared:
            self.decisions = Decisions(state, self.ids)
            if self.sharing is not None:
                self.decisions.refusals = self.sharing.decisions.refusals
            self.sharing = Sharing(cast("SharedStore", self.store), self.decisions)
            self._broken = False
            return
        with seldom_collected():
            for event in self.store.load(state.seq):
                state.apply(event)
        self.decisions = Decisions(state, self.ids)
        self._broken = False

    @property
    def damage(self) -> LedgerDamaged | None:
        """Why nothing is written."""
        return self.store.damage

    def submit(self, ticket: Ticket) -> None:
        """Hand in one command."""
        if self._closing or self._forked:
            self._check_open()
        ticket.desk = self
        self._queue.append(ticket)
        if self._idle:
            self._wake.ring()
        if self._gone:  # the thread ended in between
            self._turn_away()

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,
    ) -> Any:
        """The events as a `pyarrow.RecordBatchReader`, with all that was handed in before."""
        wait_for_own(self)
        return self.store.arrow(columns, upto, where, uuids=uuids)

    def events(self, upto: int) -> Iterator[Event]:
        """The events up to a `seq`, in order."""
        self._check_open()
        return takewhile(lambda event: event.seq <= upto, self.store.load())

    def proved(self, upto: int) -> Iterator[tuple[Iterable[Event], bool]]:
        """The events up to a `seq`, in order, in batches, each with whether its hashes are known to continue the chain."""
        self._check_open()
        return self.store.proved(upto)

    def watch(self, bell: Bell) -> bool:
        """Others may change it: ring when they do; whether that is so."""
        return self.sharing is not None and not self._closing and cast("SharedStore", self.store).watch(bell)

    def _check_open(self) -> None:
        if self._closing or self._forked:
            raise LedgerForked(self._pid) if self._forked else LedgerClosed(self.where)

    def submit_all(self, tickets: Sequence[Ticket]) -> None:
        """Hand in commands that came together."""
        if self._closing or self._forked:
            self._check_open()
        for ticket in tickets:
            ticket.desk = self
        self._queue.extend(tickets)
        if self._idle:
            self._wake.ring()
        if self._gone:
            self._turn_away()

    def close(self) -> None:
        """Answer all that was handed in, then close the store."""
        if self._forked or self._closing:
            return
        self._closing = True
        self._wake.ring()
        if threading.current_thread() is not self._thread:
            finish(self._ended)

    def forked(self) -> None:
        """This is a forked child now: the thread is gone, and the store belongs to the parent."""
        self._forked = True

    # --- the thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._ended.open()

    def _serve(self) -> None:
        try:
            self._start()
        except BaseException as error:  # noqa: BLE001 - raised again in the constructor
            self._failed_start, self._closing, self._gone = error, True, True
            self.store.close()
            return
        finally:
            self._ready.open()
        while True:
            batch = self._take()
            if not batch and self._closing:
                break
            self._work(batch)
        self._finish()

    def _take(self) -> list[Ticket]:
        if not self._queue:
            self._idle = True
            # Looked at again after `idle` was said: whoever came before that has not rung.
            if not self._queue and not self._closing:
                self._wake.wait(self._until_alarm_s())
            self._idle = False
        batch: list[Ticket] = []
        with contextlib.suppress(IndexError):
            while True:
                batch.append(self._queue.popleft())
        return batch

    def _until_alarm_s(self) -> float | None:
        if self._halted:  # nothing ends while nothing is written, but the clock may be put right
            return 1.0
        if self.sharing is not None:
            return self._until_shared_alarm_s(self.sharing)
        due = self.decisions.state.due
        while due and due[0][2] not in self.decisions.state.open:
            heappop(due)
        alarms = [due[0][0]] if due else []
        alarms += [self.line.alarm()] if self.line else []
        if not alarms:
            return None
        return min(max((min(alarms) - self.clock_ns() // 1000) / 1e6, 0.001), 3600.0)

    def _until_shared_alarm_s(self, sharing: Sharing) -> float | None:
        """Who waits is woken by whoever frees something; looked after all the same, as a call may be lost."""
        alarms = [] if sharing.alarm is None else [sharing.alarm]
        alarms += [self.line.alarm()] if self.line else []
        until_s = min(max((min(alarms) - sharing.now()) / 1e6, 0.001), 3600.0) if alarms else None
        return until_s if not self.line else min(until_s or _LOOK_AGAIN_S, _LOOK_AGAIN_S)

    def _work(self, batch: list[Ticket]) -> None:
        # A hold for who has hung up would stand in the way, or count, and nobody has sent that call; what was spent counts.
        batch = [ticket for ticket in batch if not (ticket.box.closed and type(ticket.command) is Reserve)]
        stopped = self._stopped(batch)
        self._halted = stopped is not None
        if stopped is not None:
            self._deliver(self._only_read(batch, stopped))
            return
        if self.sharing is not None:
            self._deliver(self._work_shared(batch))
            if self.line:
                self._shared().store.listen(self._wake.ring)
            return
        ts = self.clock_ns() // 1000
        self._is_now(ts)
        answered: list[Ticket] = []
        try:
            if self._broken or self.store.is_disturbed():
                self.store.reopen()
                self._rebuild()
                if self.store.damage is not None:
                    self._halted = True
                    self._deliver(self._only_read(batch, self.store.damage))
                    return
            self._recall(batch)
            self._decide_all(batch, answered, ts)
            events = self._take_events()
            if events:
                self.store.append(events)
            answered += self._copy()
        except Exception as error:  # noqa: BLE001 - whatever it is, no caller may be left without an answer
            self._copies = []
            answered = self._failed(batch, answered, error, ts)
        self._deliver(answered)
        self._tend()

    def _is_now(self, ts: int) -> None:
        if ts < self._now:
            self.line.earlier(self._now - ts)
        self._now = ts

    def _decide_all(self, batch: list[Ticket], answered: list[Ticket], ts: int) -> None:
        """Decide a whole batch, and whoever waits and fits now; collects who is answered."""
        self.decisions.expire(max(ts, self.decisions.state.ts))
        for ticket in batch:
            if self.line and type(ticket.command) is Reserve:
                answered += self._admit_waiters(ts)  # who stands in line comes before who comes now
                if self._is_another(ticket):
                    answered.append(ticket)
                    continue
            if type(ticket.command) in _OWN:
                answered += self._do(ticket, ts)
            elif self._answer(ticket, ts):
                answered.append(ticket)
        answered += self._admit_waiters(ts)
        self.decisions.flush_refusals(ts)

    def _work_shared(self, batch: list[Ticket]) -> list[Ticket]:
        """Decide a batch over a store that others write to; one that was interrupted, and is not kept, is decided anew."""
        deadline = time.monotonic() + _PATIENCE_S
        for attempt in range(_ATTEMPTS):
            answered: list[Ticket] = []
            ts, refusals = self._now, {of: [*seen] for of, seen in self.decisions.refusals.items()}
            try:
                if self._broken:
                    self.store.reopen()
                    self._rebuild()
                sharing = self._shared()
                ts = sharing.begin([ticket.command for ticket in batch], self.line)
                self._is_now(ts)
                self._called_by_others()
                self._decide_all(batch, answered, ts)
                sharing.end(self._take_events())
                return [*{id(ticket): ticket for ticket in (*answered, *self._copy())}.values()]
            except Exception as error:  # noqa: BLE001 - whatever it is, no caller may be left without an answer
                self._copies = []
                asked, stands = self._ask_again(batch, answered)
                if stands:
                    return [*{id(ticket): ticket for ticket in answered}.values()]
                self.decisions.refusals = refusals
                last = attempt + 1 == _ATTEMPTS or time.monotonic() > deadline
                if not isinstance(error, ServerLost) or last or not asked:
                    return self._told(asked, error, ts)
                batch = asked
                log.warning("%s: %s; decided anew", self.where, error.reason)
        raise AssertionError  # the last attempt has returned

    def _shared(self) -> Sharing:
        assert self.sharing is not None  # noqa: S101 - tells the type checker
        return self.sharing

    def _called_by_others(self) -> None:
        """Whatever others have freed, those who wait here are looked at again."""
        self.decisions.freed = self.decisions.freed or bool(self.line)

    def _ask_again(self, batch: list[Ticket], answered: list[Ticket]) -> tuple[list[Ticket], bool]:
        """After a failure: who has no answer, and whether the batch is kept all the same, so that all answers stand."""
        wrote = self._shared().wrote
        asked = {id(ticket): ticket for ticket in (*batch, *answered)}
        stands = False
        try:
            self.store.reopen()
            stands = wrote is not None and cast("SharedStore", self.store).kept(*wrote)
            self._rebuild()
        except Exception as error:  # noqa: BLE001 - tried again with the next batch; until then every caller gets the error
            log.warning("%s: %s", self.where, error)
            self._broken = True
        if not stands:
            for ticket in list(asked.values()):
                waiter = self.line.get(ticket.command.id)
                if waiter is not None:
                    self.line.remove(waiter)
                    asked |= {id(again): again for again in waiter.tickets}
                ticket.answer, ticket.error = (), None
        return list(asked.values()), stands

    def _told(self, asked: list[Ticket], error: Exception, ts: int) -> list[Ticket]:
        """Nothing is known of these but that they were not answered."""
        told = error if isinstance(error, LedgerUnavailable) else StoreFailed(f"{type(error).__name__}: {error}")
        late = [ticket for waiter in self.line.over(ts) for ticket in waiter.tickets]
        for ticket in (*asked, *late):
            ticket.answer, ticket.error = (), told
        return [*asked, *late]

    def _tend(self) -> None:
        """What the store has to do now and then, when everybody has an answer."""
        try:
            if not self._broken:
                self.store.tend(self.decisions.state)
        except Exception as error:  # noqa: BLE001 - nobody waits for it; the next batch opens the file again
            log.warning("%s: %s", self.where, error)
            self._broken = True

    def _stopped(self, batch: list[Ticket]) -> LedgerUnavailable | None:
        """Why nothing is written now, if so; who accepts the clock ends that."""
        if self.store.damage is not None:
            return self.store.damage
        if self._watch is None:
            return None
        wrong = self._watch.wrong_s()
        if wrong is None or any(type(ticket.command) is AcceptClock for ticket in batch):
            return None
        return ClockJumped(self.where, wrong)

    def _only_read(self, batch: list[Ticket], stopped: LedgerUnavailable) -> list[Ticket]:
        """Answer what only reads, as of the last event; all others are told why."""
        answered = [*batch, *(ticket for waiter in self.line for ticket in waiter.tickets)]
        self.line = Line()
        for ticket in answered:
            proves = type(ticket.command) is GetHead and not isinstance(stopped, LedgerDamaged)
            if type(ticket.command) in _READS or proves:
                self._answer(ticket, self.decisions.state.ts)
            elif type(ticket.command) is CopyFile and not isinstance(stopped, LedgerDamaged):  # a copy of damage looks whole
                self._do(ticket, self.decisions.state.ts)
            else:
                ticket.error = stopped
        self._copy()
        return answered

    def _do(self, ticket: Ticket, ts: int) -> list[Ticket]:
        """What the writer does by itself; returns who is answered."""
        command = ticket.command
        if type(command) is CopyFile:
            self._copies.append(ticket)  # when the batch is written
            return []
        if type(command) is AcceptClock:
            if self._watch is not None:
                self._watch.accept()
            ticket.answer = self.decisions.accept_clock(command, ts, ticket.box.origin)
            return [ticket]
        gone = self._leave_line(ticket)
        self._answer(ticket, ts)
        return [*gone, ticket]

    def _copy(self) -> list[Ticket]:
        """Make the copies that were asked for, of what stands in the file now."""
        tickets, self._copies = self._copies, []
        state = self.decisions.state
        for ticket in tickets:
            try:
                ticket.answer = (self.store.copy(), state.seq, state.head)
            except TokenBudgetError as error:
                ticket.error = error
        return tickets

    def _answer(self, ticket: Ticket, ts: int) -> bool:
        """Decide one command; whether it is answered now, or waits in line."""
        command = ticket.command
        try:
            ticket.answer = self.decisions.decide(command, ts, ticket.box.origin)
            if self.line and isinstance(command, Reserve | Record) and command.key is not None:
                self.line.call(command.budget, command.key)
        except BudgetExceeded as error:
            if isinstance(command, Reserve) and command.wait and self.decisions.could_fit_later(command, ts):
                self._wait_in_line(ticket, command, ts, error)
                return False
            ticket.error = error
        except TokenBudgetError as error:
            ticket.error = error
        return True

    def _wait_in_line(self, ticket: Ticket, command: Reserve, ts: int, error: BudgetExceeded) -> None:
        waiter = self.line.get(command.id)
        if waiter is not None:  # sent again: it keeps its place, and both are answered
            waiter.tickets = [t for t in waiter.tickets if t is not ticket and not t.box.closed] + [ticket]
            return
        self.line.add(Waiter(command, [ticket], ts + command.wait, error), self.decisions.state.nodes[command.budget])

    def _is_another(self, ticket: Ticket) -> bool:
        """Whether a reserve has the id of one in line and asks for something else."""
        waiter = self.line.get(ticket.command.id)
        if waiter is None or _content(waiter.command) == _content(ticket.command):
            return False
        ticket.error = IdConflict(ticket.command.id, "first a reserve of other amounts, which waits in line")
        return True

    def _leave_line(self, cancel: Ticket) -> list[Ticket]:
        """Take a waiter's tickets out of the line, as far as they are of the client that asks it."""
        assert isinstance(cancel.command, Cancel)  # noqa: S101 - tells the type checker
        waiter = self.line.get(cancel.command.target)
        if waiter is None:
            return []
        gone = [t for t in waiter.tickets if t.box is cancel.box]
        waiter.tickets = [t for t in waiter.tickets if t.box is not cancel.box]
        if not waiter.tickets:
            self.line.remove(waiter)
        for ticket in gone:
            ticket.error = waiter.error
        return gone

    def _admit_waiters(self, ts: int) -> list[Ticket]:
        """Grant those that fit now, in order of arrival; tell those whose time is over, or who can never fit."""
        freed, self.decisions.freed = self.decisions.freed, False
        if not self.line or not (freed or self.line.is_called(ts)):
            return []
        answered: list[Ticket] = []
        for waiter in self.line.to_ask(self.decisions.state.nodes, max(ts, self.decisions.state.ts)):
            if waiter.is_alone():
                self.line.remove(waiter)
            elif self._answer(waiter.tickets[0], ts):
                self.line.remove(waiter)
                answered += waiter.tickets
                for again in waiter.tickets[1:]:
                    again.answer, again.error = waiter.tickets[0].answer, waiter.tickets[0].error
        for waiter in self.line.over(ts):
            if not waiter.is_alone():
                self.decisions.refuse(waiter.command, ts, waiter.tickets[0].box.origin, waiter.error)
                for ticket in waiter.tickets:
                    ticket.error = waiter.error
                answered += waiter.tickets
        return answered

    def _recall(self, batch: Iterable[Ticket]) -> None:
        """Look up in the store what was forgotten, once for all commands of a batch."""
        if not self.decisions.state.forgotten_until:
            return
        ids: list[str] = []
        keys: list[tuple[str, str]] = []
        for ticket in batch:
            more_ids, more_keys = self.decisions.unknown_ids(ticket.command)
            ids += more_ids
            keys += more_keys
        if ids or keys:
            self.decisions.state.recall(self.store.find(ids, keys))

    def _take_events(self) -> list[Event]:
        events, self.decisions.events = self.decisions.events, []
        return events

    def _failed(self, batch: list[Ticket], answered: list[Ticket], error: Exception, ts: int) -> list[Ticket]:
        """Ask the store again what it kept: all of the batch, whose answers then stand, or nothing of it.

        Of a batch that is lost only what was decided before, and came again, is answered: decided once more, as the repeat
        that it is, because its answer may have told of what was lost with the batch.
        """
        told = error if isinstance(error, LedgerUnavailable) else StoreFailed(f"{type(error).__name__}: {error}")
        asked = {id(ticket): ticket for ticket in (*batch, *answered)}
        for ticket in list(asked.values()):
            waiter = self.line.get(ticket.command.id)
            if waiter is not None:
                self.line.remove(waiter)
                asked |= {id(again): again for again in waiter.tickets}
        stands, known = set[int](), set[str]()
        head = self.decisions.state.head
        try:
            self.store.reopen()
            self._rebuild()
            events = self.store.find([ticket.command.id for ticket in asked.values()], [])
            self.decisions.state.recall(events)
            known = {event.command for event in events if event.kind != "refused"}
            told = self.store.damage or told
            if self.decisions.state.head == head:
                stands = {id(ticket) for ticket in answered}
        except Exception:  # noqa: BLE001 - tried again with the next batch; until then every caller gets the error
            self._broken, known = True, set()
        for ticket in asked.values():
            if id(ticket) not in stands:
                ticket.answer, ticket.error = (), None if ticket.command.id in known else told
                if ticket.error is None:
                    self._answer(ticket, ts)
        return list(asked.values())

    def _deliver(self, answered: list[Ticket]) -> None:
        boxes: dict[Box, list[Ticket]] = {}
        for ticket in answered:
            boxes.setdefault(ticket.box, []).append(ticket)
        for box, tickets in boxes.items():
            try:
                box.deliver(tickets)
            except Exception:  # one client's trouble; the others must not wait for ever
                log.exception("%s: answers could not be handed over", self.where)

    def _finish(self) -> None:
        self._refuse([ticket for waiter in self.line for ticket in waiter.tickets])
        idle = self.sharing is not None and not self.decisions.counts_refusals()
        if not self._broken and not idle and self._stopped([]) is None:
            with contextlib.suppress(LedgerUnavailable):  # refusals that were only counted; no caller waits for them
                if self.sharing is not None:
                    self.sharing.begin([], self.line, write=self.decisions.counts_refusals())
                now = self.clock_ns() // 1000 if self.sharing is None else self.sharing.now()
                self.decisions.flush_refusals(now, now=True)
                events = self._take_events()
                if self.sharing is not None:
                    self.sharing.end(events)
                elif events:
                    self.store.append(events)
        self.store.close(None if self._broken else self.decisions.state)
        self._gone = True
        self._turn_away()

    def _turn_away(self) -> None:
        late = []
        with contextlib.suppress(IndexError):
            while True:
                late.append(self._queue.popleft())
        self._refuse(late)

    def _refuse(self, tickets: list[Ticket]) -> None:
        """Nobody is left to answer these; who sends again to the next keeper is not told anything."""
        for ticket in tickets:
            ticket.error = LedgerClosed(self.where)
        self._deliver([ticket for ticket in tickets if not ticket.box.sends_again])


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
