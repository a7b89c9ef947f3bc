"""Tickets and where they are handed in: a command on its way, its answer, and how whoever waits is woken.

Nothing here decides. What wakes a thread is one step in C, because Ctrl-C may come between any two lines of Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from .commands import Cancel, Command, GetEntry, Reserve, Rollback
from .conditions import Condition
from .decide import Answer
from .errors import LedgerDamaged, LedgerUnavailable
from .events import Event
from .ids import new_id

AWAKE_S = 0.5  # how long a thread that waits sleeps without looking whether it was interrupted


class Ticket:
    """One command on its way, and its answer when it is there."""

    __slots__ = ("abandoned", "answer", "box", "command", "desk", "error", "future", "lazily", "receipt", "settled", "wakers")

    def __init__(self, command: Command, box: Box, future: asyncio.Future[None] | None = None) -> None:
        self.command, self.box, self.future = command, box, future
        self.desk: Desk | None = None
        self.answer: Answer = ()
        self.error: BaseException | None = None
        self.settled = self.abandoned = False
        self.lazily = False  # it may wait for a moment, to go along with another
        self.wakers: deque[Callable[[], None]] | None = None
        self.receipt: Settled | None = None  # told first, before anybody is woken

    def settle(self) -> None:
        """The answer is there: wake whoever waits, or give back what nobody waits for any more."""
        receipt, self.receipt = self.receipt, None  # it knows this ticket: no circle is left for the collector
        if receipt is not None:
            receipt.settled()
        self.settled = True
        if self.wakers is not None:
            self._call_wakers()
        if self.abandoned:
            self._undo()

    def wake(self, waker: Callable[[], None]) -> None:
        """Call `waker` when the answer is there, at once if it is."""
        if self.wakers is None:
            self.wakers = deque()
        self.wakers.append(waker)
        if self.settled:  # looked at after the waker was left there: `settle` has either seen it or is over
            self._call_wakers()

    def _call_wakers(self) -> None:
        with contextlib.suppress(IndexError):
            while self.wakers:
                self.wakers.popleft()()

    def future_here(self) -> asyncio.Future[None]:
        """A future of the running loop that is done when the answer is there."""
        loop = asyncio.get_running_loop()
        if self.future is not None and self.future.get_loop() is loop:
            return self.future
        future: asyncio.Future[None] = loop.create_future()
        self.wake(lambda: _set_soon(loop, future))
        return future

    def abandon(self) -> None:
        """Nobody waits for this any more: a grant that is there, or still comes, is given back."""
        self.abandoned = True
        if self.settled:
            self._undo()
        elif self.desk is not None and isinstance(self.command, Reserve) and self.command.wait:
            with contextlib.suppress(LedgerUnavailable):  # then nobody stands in line there any more
                self.desk.submit(Ticket(Cancel(new_id(), self.command.id), self.box))

    def _undo(self) -> None:
        granted = isinstance(self.command, Reserve) and self.error is None and self.answer[0] == self.command.id
        if granted and self.desk is not None:  # what a key found belongs to the call that made it
            with contextlib.suppress(LedgerUnavailable):  # then its expiry ends it
                self.desk.submit(Ticket(Rollback(new_id(), self.answer[0]), self.box))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block this thread until the answer is there.

        Returns:
            Whether it came in time.
        """
        if self.settled:
            return True
        lock = threading.Lock()
        lock.acquire()
        self.wake(lock.release)
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            # Ctrl-C in the moment before a thread falls asleep, or that another thread takes, is seen only when it wakes.
            left_s = max(0.0, until - time.monotonic())
            if lock.acquire(timeout=min(left_s, AWAKE_S)):
                return True
            if left_s <= AWAKE_S:
                return False

    def outcome(self) -> Answer:
        """The answer, or the error raised."""
        if self.error is not None:
            raise self.error
        return self.answer


class Settled(Protocol):
    """Who is told when an answer is there."""

    def settled(self) -> None:
        """It is there."""
        ...


def _set_soon(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Box(Protocol):
    """Where answers go; `origin` says for whom, as JSON."""

    origin: str | None
    closed: bool
    """Nobody waits here any more: its waiters leave the line."""
    sends_again: bool
    """What is not answered is sent again, to whoever owns the ledger then."""

    def deliver(self, tickets: list[Ticket]) -> None:
        """Hand over answers; called by the writer's thread, must not block."""
        ...


class DirectBox:
    """Answers for threads: each is woken by its ticket."""

    closed = sends_again = False

    def __init__(self, origin: str | None) -> None:
        self.origin = origin

    def deliver(self, tickets: list[Ticket]) -> None:
        """Wake each."""
        for ticket in tickets:
            ticket.settle()


class LoopBox:
    """Answers for one event loop: one wake-up for all of a batch."""

    closed = sends_again = False

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: str | None) -> None:
        self.loop, self.origin = loop, origin

    def deliver(self, tickets: list[Ticket]) -> None:
        """Wake the loop once; if it is gone, nobody waits any more."""
        for ticket in tickets:
            ticket.settle()
        try:
            self.loop.call_soon_threadsafe(self._set_all, tickets)
        except RuntimeError:
            for ticket in tickets:
                ticket.abandon()

    @staticmethod
    def _set_all(tickets: list[Ticket]) -> None:
        for ticket in tickets:
            if ticket.future is not None:
                _set(ticket.future)


class Source(Protocol):
    """Where events are read from: a ledger's desk, or an export."""

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,
    ) -> Any:
        """The events as a `pyarrow.RecordBatchReader`: of these columns, up to this `seq`, and of those the ones asked for.

        Ids are texts; with `uuids` they may be Arrow's UUIDs, which DuckDB reads faster.
        """
        ...


class Desk(Source, Protocol):
    """Takes commands and answers them: the writer itself, or the link to a keeper."""

    where: str
    origin: str | None

    @property
    def damage(self) -> LedgerDamaged | None:
        """Why the ledger can only be read, as far as is known here."""
        ...

    def submit(self, ticket: Ticket) -> None:
        """Hand in one command; the answer comes through the ticket's box.

        Raises:
            LedgerUnavailable: closed, forked, or broken.
        """
        ...

    def events(self, upto: int) -> Iterator[Event]:
        """The events up to a `seq`, in order."""
        ...

    def proved(self, upto: int) -> Iterator[tuple[Iterable[Event], bool]]:
        """The events up to a `seq`, in order, in batches, each with whether its hashes are known to continue the chain."""
        ...

    def watch(self, bell: Bell) -> bool:
        """Somebody shows what the ledger comes to: ring when it has changed; whether that is so, and looking is not needed."""
        ...

    def close(self) -> None:
        """Answer what was handed in, then let go."""
        ...


def wait_for_own(desk: Desk) -> None:
    """Wait until all that this thread handed in is decided and kept: who reads the events then finds her own calls in them.

    Raises:
        LedgerUnavailable: that is not known.
    """
    ticket = Ticket(GetEntry(new_id(), new_id()), DirectBox(desk.origin))  # of nobody: all that matters is its turn
    desk.submit(ticket)
    ticket.wait()
    if isinstance(ticket.error, LedgerUnavailable):
        raise ticket.error


class Bell:
    """Wakes one thread. Ringing is one step in C: Ctrl-C inside `threading.Event.set` would leave its lock taken for ever."""

    __slots__ = ("__weakref__", "_rung")

    def __init__(self) -> None:
        self._rung: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        """Wake it, now or when it next waits."""
        self._rung.put(None)

    def wait(self, timeout_s: float | None = None) -> None:
        """Until it rings, or has since the last time."""
        with contextlib.suppress(Empty):
            self._rung.get(timeout=timeout_s)
            while True:
                self._rung.get_nowait()


class Latch:
    """Opens once; as safe against Ctrl-C as a bell."""

    __slots__ = ("_lock", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Let everybody through."""
        self.is_open = True
        self._lock.release()

    def wait(self) -> None:
        """Until it is open."""
        if not self.is_open and self._lock.acquire():
            self._lock.release()


def finish(done: Latch) -> None:
    """Wait for work that must not be left in the middle; Ctrl-C meanwhile is let through afterwards.

    A thread that is inside DuckDB when the interpreter goes down takes the process with it.
    """
    interrupt: KeyboardInterrupt | None = None
    while not done.is_open:
        try:
            done.wait()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
