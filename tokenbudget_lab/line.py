"""The line of reserves that wait: who could be answered now, found without asking everybody.

Each budget's waiters stand in a row, in order of arrival, under a tree that knows the least and the most that any of them
asks. So ten thousand who do not fit cost about as much as ten.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .accounts import Node
from .commands import Reserve
from .desk import Ticket
from .errors import BudgetExceeded
from .limits import FOREVER

_NEVER, _UNLIMITED = 1 << 80, 1 << 79  # above every amount; what has no limit is still below `_NEVER`
Span = tuple[int, int, int, int, int, int]  # least and most usd, tokens, requests
_NOBODY: Span = (_NEVER, -1, _NEVER, -1, _NEVER, -1)
_ROOM = 16


@dataclass(slots=True)
class Waiter:
    """A reserve that stands in line, with everybody who sent it."""

    command: Reserve
    tickets: list[Ticket]
    deadline: int
    error: BudgetExceeded
    number: int = field(default=0)  # of its arrival

    def is_alone(self) -> bool:
        """Whether nobody waits for it any more; lets go of those who do not."""
        self.tickets = [ticket for ticket in self.tickets if not ticket.box.closed]
        return not self.tickets


class _Row:
    """The waiters of one budget."""

    __slots__ = ("_arrivals", "_lacking", "_places", "_spans", "_width", "count")

    def __init__(self) -> None:
        self.count = 0
        self._lacking = [0, 0, 0]  # how many do not say how much usd, tokens, requests they need
        self._lay([])

    def _lay(self, waiters: list[Waiter]) -> None:
        """Places for these, and as many again."""
        self._width = max(_ROOM, 2 << len(waiters).bit_length())
        self._places: list[Waiter | None] = [*waiters]
        self._arrivals = [waiter.number for waiter in waiters]
        leaves = [_span(waiter.command) for waiter in waiters]
        self._spans = [_NOBODY] * self._width + leaves + [_NOBODY] * (self._width - len(leaves))
        for n in range(self._width - 1, 0, -1):
            self._spans[n] = _both(self._spans[2 * n], self._spans[2 * n + 1])

    def _put(self, place: int, span: Span) -> None:
        n, spans = self._width + place, self._spans
        spans[n] = span
        while n > 1:
            n //= 2
            spans[n] = _both(spans[2 * n], spans[2 * n + 1])

    def _count(self, command: Reserve, by: int) -> None:
        self.count += by
        for n, amount in enumerate((command.usd, command.tokens, command.requests)):
            self._lacking[n] += by * (amount is None)

    def add(self, waiter: Waiter) -> None:
        if len(self._places) == self._width:
            self._lay([at for at in self._places if at is not None])
        self._places.append(waiter)
        self._arrivals.append(waiter.number)
        self._put(len(self._places) - 1, _span(waiter.command))
        self._count(waiter.command, 1)

    def remove(self, waiter: Waiter) -> None:
        place = bisect_left(self._arrivals, waiter.number)
        self._places[place] = None
        self._put(place, _NOBODY)
        self._count(waiter.command, -1)

    def first(self, number: int, node: Node | None, ts: int) -> Waiter | None:
        """The first from `number` on who would be answered: who fits, and who can never fit any more."""
        start, bounds = bisect_left(self._arrivals, number), self._bounds(node, ts)
        stack = [(1, 0, self._width)]
        while stack:
            n, low, width = stack.pop()
            if low + width <= start or not _may_answer(self._spans[n], bounds):
                continue
            if width == 1:
                return self._places[low]
            half = width // 2
            stack += ((2 * n + 1, low + half, half), (2 * n, low, half))
        return None

    def _bounds(self, node: Node | None, ts: int) -> Span | None:
        """Up to how much fits now, and above how much nothing ever will; `None` where everybody gets an answer."""
        fits, never = [_UNLIMITED] * 3, [_UNLIMITED] * 3
        if node is None or any(above.closed for above in node.path):
            return None
        for totals, *caps in node.checks(ts):
            numbers, lasting = totals.numbers(), not totals.account.cap.window
            for n, cap in enumerate(caps):
                if cap is None:
                    continue
                if self._lacking[n] or (n == 0 and totals.unpriced_count):  # these are told what is missing
                    return None
                fits[n] = min(fits[n], cap - numbers[n] - numbers[3 + n])
                never[n] = min(never[n], cap - numbers[n] if lasting else cap)
        return (fits[0], never[0], fits[1], never[1], fits[2], never[2])


def _span(command: Reserve) -> Span:
    usd, tokens, requests = command.usd or 0, command.tokens or 0, command.requests or 0
    return (usd, usd, tokens, tokens, requests, requests)


def _both(a: Span, b: Span) -> Span:
    if a is _NOBODY or b is _NOBODY:
        return b if a is _NOBODY else a
    return (min(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), max(a[3], b[3]), min(a[4], b[4]), max(a[5], b[5]))


def _may_answer(span: Span, bounds: Span | None) -> bool:
    if bounds is None or span is _NOBODY:
        return span is not _NOBODY
    fits = span[0] <= bounds[0] and span[2] <= bounds[2] and span[4] <= bounds[4]
    return fits or span[1] > bounds[1] or span[3] > bounds[3] or span[5] > bounds[5]


class Line:
    """Everybody who waits, by the id of what they wait for.

    Examples:
        >>> len(Line())
        0
    """

    def __init__(self) -> None:
        self._waiters: dict[str, Waiter] = {}
        self._rows: dict[str, _Row] = {}
        self._keyed: dict[tuple[str, str], dict[str, Waiter]] = {}
        self._called: list[Waiter] = []
        self._deadlines: list[tuple[int, int, str]] = []
        self._turn = FOREVER  # when the first window ends that somebody may wait for
        self._arrived, self._look_at = 0, 2_000

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters.values())

    def budgets(self) -> Iterable[str]:
        """In which somebody waits."""
        return self._rows.keys()

    def get(self, id: str) -> Waiter | None:
        """Who waits for this reserve."""
        return self._waiters.get(id)

    def add(self, waiter: Waiter, node: Node) -> None:
        """Stand behind all others."""
        self._arrived += 1
        waiter.number = self._arrived
        command = waiter.command
        self._waiters[command.id] = waiter
        row = self._rows.get(node.name)
        if row is None:
            row = self._rows[node.name] = _Row()
        row.add(waiter)
        if command.key is not None:
            self._keyed.setdefault((command.budget, command.key), {})[command.id] = waiter
        heapq.heappush(self._deadlines, (waiter.deadline, waiter.number, command.id))
        self._turn = min(self._turn, node.window_end())
        if len(self._waiters) > self._look_at:
            self._sweep()

    def _sweep(self) -> None:
        """Forget whose clients are gone, now and then: nobody else may ever look at them."""
        for waiter in [waiter for waiter in self if waiter.is_alone()]:
            self.remove(waiter)
        self._look_at = 2 * len(self._waiters) + 2_000

    def remove(self, waiter: Waiter) -> None:
        """Leave, wherever one stands."""
        command = waiter.command
        del self._waiters[command.id]
        row = self._rows[command.budget]
        row.remove(waiter)
        if not row.count:
            del self._rows[command.budget]
        if command.key is not None:
            same = self._keyed.get((command.budget, command.key), {})
            same.pop(command.id, None)
            if not same:
                self._keyed.pop((command.budget, command.key), None)
        if len(self._deadlines) > 2 * len(self._waiters) + 1_000:
            self._deadlines = [(w.deadline, w.number, w.command.id) for w in self]
            heapq.heapify(self._deadlines)

    def call(self, budget: str, key: str) -> None:
        """A call with this key was made: who waits with the same key gets it, or is told that it is another."""
        self._called += self._keyed.pop((budget, key), {}).values()

    def is_called(self, ts: int) -> bool:
        """Whether somebody must be looked at though nothing was freed."""
        return bool(self._called) or self.alarm() <= ts

    def alarm(self) -> int:
        """When somebody must be looked at next: a deadline, or a window's end."""
        deadlines = self._deadlines
        while deadlines and not self._stands(deadlines[0]):
            heapq.heappop(deadlines)
        return min(self._turn, deadlines[0][0]) if deadlines else self._turn

    def _stands(self, deadline: tuple[int, int, str]) -> bool:
        waiter = self._waiters.get(deadline[2])
        return waiter is not None and waiter.number == deadline[1]

    def to_ask(self, nodes: dict[str, Node], ts: int) -> Iterator[Waiter]:
        """Who could be answered, in order of arrival; whoever asks decides each before the next is looked for.

        What fits only shrinks meanwhile, so the next one never stands before the last.
        """
        heap = [(0, name) for name in self._rows]
        self._turn = FOREVER
        for name in self._rows:
            if name in nodes:
                nodes[name].checks(ts)
                self._turn = min(self._turn, nodes[name].window_end())
        while heap or self._called:
            if self._called:
                called = self._called.pop()
                if self._waiters.get(called.command.id) is called:
                    yield called
                continue
            number, name = heap[0]
            row = self._rows.get(name)
            waiter = None if row is None else row.first(number, nodes.get(name), ts)
            if waiter is None:
                heapq.heappop(heap)
            elif waiter.number > number:
                heapq.heapreplace(heap, (waiter.number, name))
            else:
                heapq.heapreplace(heap, (number + 1, name))
                yield waiter

    def over(self, ts: int) -> Iterable[Waiter]:
        """Those whose time is over; they leave."""
        while self._deadlines and self._deadlines[0][0] <= ts:
            deadline = heapq.heappop(self._deadlines)
            if self._stands(deadline):
                waiter = self._waiters[deadline[2]]
                self.remove(waiter)
                yield waiter

    def earlier(self, by_us: int) -> None:
        """The clock was put back, and nobody's wait must grow."""
        for waiter in self:
            waiter.deadline -= by_us
        self._deadlines = [(deadline - by_us, number, id) for deadline, number, id in self._deadlines]
