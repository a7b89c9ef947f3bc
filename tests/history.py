"""What clients were told, written down while they work and compared with the events afterwards.

A client's ledger is wrapped by `recorded`: each command is written down before it is handed in, and each answer before the
client hears of it, in a file that a `kill -9` leaves as it is. `check` reads the files of all clients and replays the events
in order of `seq`. The claims:

- every event that a client asked for stands there once, as it was asked for, and nothing that nobody asked for;
- every answer agrees with the fold at one place in the log, that lies behind all that was known to anybody when the command
  was sent, and before all that was sent after the answer was there (a command without an answer may be either, done or not);
- no event comes while a hold is open whose time is over, and no grant exceeds a limit.

The fold is the package's own, which `test_invariants.py` compares with a model; here it is asked whether the answers that
went out, over processes that were killed and disks that failed, are those of one log.
"""

from __future__ import annotations

import heapq
import itertools
import os
import pickle
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tokenbudget_lab import commands as ask
from tokenbudget_lab import errors
from tokenbudget_lab.accounts import Account, Node, Totals
from tokenbudget_lab.commands import Command
from tokenbudget_lab.conditions import Condition
from tokenbudget_lab.decide import is_full
from tokenbudget_lab.desk import Bell, Box, Desk, Ticket
from tokenbudget_lab.errors import LedgerCorrupt, Refused
from tokenbudget_lab.events import Event, from_detail
from tokenbudget_lab.ledger import Ledger
from tokenbudget_lab.limits import RESOURCES, Cap, decimal_or_int, window_bounds
from tokenbudget_lab.state import COMMITTED, COUNTED, NOTHING, OPEN, RECORDED, RELEASED, ROLLED_BACK, Entry, State

# --- writing down -------------------------------------------------------------------------------------------------------------


class Recording:
    """A desk that writes down what passes over it.

    Args:
        desk: where commands go.
        folder: where the file is made; one for all clients of a ledger.
    """

    def __init__(self, desk: Desk, folder: Path) -> None:
        self._desk, self.where, self.origin = desk, desk.where, desk.origin
        folder.mkdir(exist_ok=True)
        self._file = (folder / f"{os.getpid()}-{time.monotonic_ns()}.history").open("xb", buffering=0)
        self._numbers, self._boxes = itertools.count(), dict[Box, RecordingBox]()
        self.on_its_way: dict[int, int] = {}  # what each ticket was written down as

    def watch(self, bell: Bell) -> bool:
        return self._desk.watch(bell)

    def submit(self, ticket: Ticket) -> None:
        """Write a command down, then hand it in."""
        if self._file.closed:
            self._desk.submit(ticket)
            return
        if not isinstance(ticket.box, RecordingBox):
            ticket.box = self._boxes.setdefault(ticket.box, RecordingBox(ticket.box, self))
        self._file.write(self._sent(ticket, time.monotonic_ns()))
        try:
            self._desk.submit(ticket)
        finally:
            ticket.desk = self  # what it hands in by itself, to give back what nobody waits for, is written down too

    def _sent(self, ticket: Ticket, at: int) -> bytes:
        number = self.on_its_way[id(ticket)] = next(self._numbers)
        return pickle.dumps((number, at, ticket.command))

    def told(self, tickets: list[Ticket]) -> None:
        """Write answers down; called before anybody hears of them."""
        if self._file.closed:
            return
        now, frames = time.monotonic_ns(), []
        for ticket in tickets:
            if id(ticket) not in self.on_its_way:  # the desk's own
                frames.append(self._sent(ticket, 0))
            frames.append(pickle.dumps((self.on_its_way.pop(id(ticket)), now, ticket.answer, ticket.error)))
        self._file.write(b"".join(frames))

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,
    ) -> Any:
        """As the desk has them."""
        return self._desk.arrow(columns, upto, where, uuids=uuids)

    def events(self, upto: int) -> Iterator[Event]:
        """As the desk has them."""
        return self._desk.events(upto)

    def proved(self, upto: int) -> Iterator[tuple[Iterable[Event], bool]]:
        """As the desk has them."""
        return self._desk.proved(upto)

    @property
    def damage(self) -> errors.LedgerDamaged | None:
        """As the desk says."""
        return self._desk.damage

    def close(self) -> None:
        """All answers are there then."""
        self._desk.close()
        self._file.close()


class RecordingBox:
    """A box whose answers are written down before they are handed over."""

    closed = sends_again = False

    def __init__(self, box: Box, desk: Recording) -> None:
        self._box, self._desk, self.origin = box, desk, box.origin

    def deliver(self, tickets: list[Ticket]) -> None:
        """Write down, then hand over."""
        self._desk.told(tickets)
        self._box.deliver(tickets)


L = TypeVar("L", bound=Ledger)


def recorded(ledger: L, folder: Path) -> L:
    """The ledger, which from now on writes down what it is asked and told."""
    ledger.desk = Recording(ledger.desk, folder)
    return ledger


class Asked(NamedTuple):
    """A command of some client, and what came of it. Instants are nanoseconds of the clock that all processes share."""

    command: Command
    sent: int
    told: int | None = None  # when the answer was there
    answer: tuple[Any, ...] = ()
    error: BaseException | None = None

    @property
    def answered(self) -> bool:
        """Whether the ledger has decided; else nobody knows what became of it."""
        return self.told is not None and (self.error is None or isinstance(self.error, Refused))


def read(folder: Path) -> list[Asked]:
    """What all clients wrote down."""
    return [asked for path in sorted(folder.glob("*.history")) for asked in _read(path)]


def _read(path: Path) -> list[Asked]:
    found: dict[int, Asked] = {}
    with path.open("rb") as file:
        while True:
            try:
                number, at, what, *error = pickle.load(file)
            except (EOFError, pickle.UnpicklingError):  # the last frame may be half of one: its writer was killed
                return list(found.values())
            if error:
                found[number] = found[number]._replace(told=at, answer=what, error=error[0])
            else:
                found[number] = Asked(what, at)


# --- comparing ----------------------------------------------------------------------------------------------------------------

OWN = {  # kinds that only a command makes, and which
    "budget_set": (ask.SetBudget, ask.SetLimit),
    "closed": (ask.CloseBudget,),
    "reserved": (ask.Reserve,),
    "extended": (ask.Extend,),
    "sent": (ask.Sent,),
    "committed": (ask.Commit,),
    "part_committed": (ask.Commit,),
    "rolled_back": (ask.Rollback,),
    "recorded": (ask.Record, ask.Commit),
    "adjusted": (ask.Adjust,),
    "clock_accepted": (ask.AcceptClock,),
}
UNTIMED = {"created", "recovered", "clock_accepted", "expired", "alerted", "refused"}  # they do not wait for what is due
MOST = 20  # lies that are told of


class Lies(AssertionError):
    """What clients were told, and what stands in the ledger, do not fit together."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was compared."""

    events: int
    clients_asked: int
    answered: int
    refused: int
    unknown: int

    def __str__(self) -> str:
        return f"{self.answered} of {self.clients_asked} commands answered ({self.refused} refused), {self.events} events"


def checked(ledger: Ledger, folder: Path) -> Checked:
    """Compare a ledger, that nobody else uses any more, with what its clients wrote down.

    Raises:
        Lies: with each of them.
    """
    return check(list(ledger.desk.events(10**12)), read(folder))


def check(events: Sequence[Event], asked: Iterable[Asked]) -> Checked:
    """Compare all events with all that was asked.

    Raises:
        Lies: with each of them.
    """
    history = History(events, sorted(asked, key=lambda each: each.sent))
    history.compare()
    if history.lies:
        more = f"\n… and {len(history.lies) - MOST} more" if len(history.lies) > MOST else ""
        raise Lies(f"{len(history.lies)} lies:\n" + "\n".join(history.lies[:MOST]) + more)
    all_of_it = history.asked
    answered = sum(each.answered for each in all_of_it)
    refused = sum(isinstance(each.error, Refused) for each in all_of_it)
    return Checked(len(events), len(all_of_it), answered, refused, len(all_of_it) - answered)


@dataclass(eq=False, slots=True)
class Open:
    """An answer that is looked for: somewhere between two places in the log."""

    asked: Asked
    since: int  # when it was asked for; sent again, a reserve in line is told what its first sending met
    first: int = 0  # the place cannot be before this event was written
    last: int = 0  # nor after this one
    found: bool = False


@dataclass(slots=True)
class History:
    """Events, what was asked, and the lies that were found."""

    events: Sequence[Event]
    asked: list[Asked]
    lies: list[str] = field(default_factory=list)
    commands: dict[str, list[Command]] = field(default_factory=dict)  # by id; one may have come with several contents
    own: dict[str, Event] = field(default_factory=dict)  # by command: the event that it made
    state: State = field(default_factory=State)

    def compare(self) -> None:
        """Find all lies."""
        for each in self.asked:
            self.commands.setdefault(each.command.id, []).append(each.command)
        for event in self.events:
            self._own(event)
        undecided = {each.command.id for each in self.asked if not isinstance(each.error, Refused)}
        self.lies += [
            f"refused, and yet it stands there: {self.own[id]}" for id in self.own.keys() & self.commands.keys() - undecided
        ]
        looked_for = self._places()
        try:
            self._replay(looked_for)
        except LedgerCorrupt as error:
            self.lies.append(f"no replay: {error}")

    def _own(self, event: Event) -> None:
        """Whose event it is."""
        commands = self.commands.get(event.command, [])
        if event.kind in OWN or (event.kind == "expired" and commands):
            if not commands:
                self.lies.append(f"nobody asked for it: {event}")
            elif not any(isinstance(command, OWN.get(event.kind, ask.Lose)) for command in commands):
                self.lies.append(f"asked for something else: {commands}: {event}")
            if event.command in self.own:
                self.lies.append(f"stands there twice, first as event {self.own[event.command].seq}: {event}")
            self.own.setdefault(event.command, event)

    def _proves(self, each: Asked) -> int:
        """The last event that an answer is sure to know of."""
        if each.error is not None or not each.answered:
            return 0
        # One that changed nothing made no event; its id may have come again with what did.
        same = len(set(self.commands.get(each.command.id, ()))) < 2
        if each.command.id in self.own and (same or not isinstance(each.command, ask.SetLimit | ask.SetBudget | ask.Extend)):
            return self.own[each.command.id].seq
        kind, answer = type(each.command), each.answer
        if kind in (ask.Reserve, ask.Commit, ask.Record, ask.Adjust, ask.GetHead, ask.CopyFile, ask.AcceptClock):
            return int(answer[1])
        return 0

    def _places(self) -> list[Open]:
        """For each answer the places between which it must agree; and whether events stand in the order of their commands."""
        first_sent = dict[str, int]()
        for n, one in enumerate(self.asked):
            first_sent.setdefault(one.command.id, n)
        looked_for = [Open(one, self.asked[first_sent[one.command.id]].sent if _waits(one) else one.sent) for one in self.asked]
        moments = [(each.asked.sent, 0, n) for n, each in enumerate(looked_for)]
        moments += [(each.asked.told, 1, n) for n, each in enumerate(looked_for) if each.asked.told is not None]
        moments.sort()
        seen, known = set[str](), 0
        for _, answers, n in moments:
            each = looked_for[n]
            if answers:
                known = max(known, self._proves(each.asked))
                continue
            each.first = max(known, self._proves(each.asked))
            if _waits(each.asked):
                each.first = looked_for[first_sent[each.asked.command.id]].first
            event = self.own.get(each.asked.command.id)
            if event is not None and event.command not in seen and event.seq <= known:
                self.lies.append(f"asked for when event {known} was known to be there: {event}")
            seen.add(each.asked.command.id)
        next_event = len(self.events) + 1
        for _, answers, n in reversed(moments):
            each = looked_for[n]
            if answers:
                each.last = next_event - 1
            elif first_sent[each.asked.command.id] == n and each.asked.command.id in self.own:
                next_event = min(next_event, self.own[each.asked.command.id].seq)
        return [each for each in looked_for if each.asked.answered]

    def _replay(self, looked_for: list[Open]) -> None:
        """Take one event after another, and at each place look for the answers that may be from there.

        Each answer takes the first place where it agrees; one that was there before another command was sent comes first.
        """
        self.state.forgets = False
        coming = sorted(looked_for, key=lambda each: -each.first)
        unfound = [(each.asked.told or 0, n, each) for n, each in enumerate(looked_for)]
        heapq.heapify(unfound)
        waiting: list[Open] = []
        for place in range(len(self.events) + 1):
            if place:
                self._take(self.events[place - 1])
            arrived = False
            while coming and coming[-1].first <= place:
                waiting.append(coming.pop())
                arrived = True
            if arrived:
                waiting.sort(key=lambda each: each.asked.told or 0)
            still: list[Open] = []
            for each in waiting:
                while unfound and unfound[0][2].found:
                    heapq.heappop(unfound)
                its_turn = each.since <= unfound[0][0]
                if its_turn and place <= each.last and self._agrees(each.asked):
                    each.found = True
                elif each.last <= place:
                    self.lies.append(f"never so between events {each.first} and {each.last}: {each.asked}")
                    each.found = True
                else:
                    still.append(each)
            waiting = still
        self.lies += [f"knows of event {each.first}, which is not there: {each.asked}" for each in coming]

    # --- events against what was asked -------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        """Fold an event, after a look at whether it may come here and is what was asked for."""
        state, commands = self.state, self.commands.get(event.command, [])
        while state.due and (state.expires(state.due[0][2]) != state.due[0][0]):
            heapq.heappop(state.due)
        if event.kind not in UNTIMED and state.due and state.due[0][0] <= event.ts:
            self.lies.append(f"{state.due[0][2]} is still open though its time was over: {event}")
        before = state.entry(event.reservation)
        if event.kind == "expired" and not commands:
            if before is None or before.expires is None or before.expires > event.ts:
                self.lies.append(f"expires before its time: {event}")
        elif commands and event.kind in OWN and not any(_as_asked(event, command, before) for command in set(commands)):
            self.lies.append(f"is not what was asked for: {commands}: {event}")
        state.apply(event)
        if event.kind == "reserved" and any(_over(*check) for check in state.nodes[event.budget].checks(event.ts)):
            self.lies.append(f"granted over a limit: {event}")

    # --- answers against the fold ------------------------------------------------------------------------------------------

    def _agrees(self, each: Asked) -> bool:
        """Whether an answer is right here."""
        if each.error is not None:
            return self._refused(each.command, each.error)
        return bool(_ANSWERS[type(each.command)](self, each.command, each.answer))

    def _reserve(self, c: ask.Reserve, answer: Any) -> bool:
        entry = self.state.entry(answer[0])
        if entry is None or (entry.id != c.id and (c.key is None or entry.key != c.key)):
            return False
        told = (entry.seq, entry.ts, entry.expires, entry.state)
        return (entry.node.name, entry.held, told) == (c.budget, (c.usd, c.tokens, c.requests), tuple(answer[1:]))

    def _counted(self, c: ask.Commit | ask.Record | ask.Adjust, answer: Any) -> bool:
        """What is counted, and by which event; another command may have asked for the same before."""
        seq = answer[1]
        if not 0 < seq <= self.state.seq:
            return False
        event = self.events[seq - 1]
        what = from_detail(event)
        told = (event.reservation, seq, event.ts, event.usd, event.tokens, event.requests, event.basis)
        flags = (bool(what.get("overrun")), bool(what.get("late")))
        if (told, flags) != (tuple(answer[:7]), tuple(answer[7:9])) or (answer[9] and _alerts(answer[9]) != self._alerted(seq)):
            return False
        if isinstance(c, ask.Adjust):
            return bool(event.kind == "adjusted" and event.command == c.id and answer[0] == c.target)
        if isinstance(c, ask.Record):
            entry = self.state.entry(answer[0])
            return entry is not None and event.kind == "recorded" and (entry.id == c.id or entry.key == c.key is not None)
        kinds = ("part_committed",) if c.part is not None else ("committed", "recorded")
        given = zip((c.usd, c.tokens, c.requests), (event.usd, event.tokens, event.requests), strict=True)
        return (
            event.kind in kinds and answer[0] == c.reservation and event.key == c.part and all(a in (None, b) for a, b in given)
        )

    def _alerted(self, seq: int) -> tuple[Any, ...]:
        """The alerts that follow an event."""
        behind = (self.events[n] for n in range(seq, len(self.events)))
        alerts = itertools.takewhile(lambda event: event.kind == "alerted", behind)
        details = [(event.budget, from_detail(event)) for event in alerts]
        return tuple((budget, told["resource"], told["threshold"], told["limit"]) for budget, told in details)

    def _extend(self, c: ask.Extend, answer: Any) -> bool:
        id, seq, ts, expires, _ = answer
        entry, event = self.state.entry(c.reservation), self.own.get(c.id)
        if entry is None or (id, seq) != (entry.id, entry.seq):
            return False
        return expires == entry.expires if event is None else (ts, expires) == (event.ts, event.expires)

    def _ended(self, c: ask.Rollback | ask.Lose, answer: Any) -> bool:
        entry = self.state.entry(c.reservation)
        ends = (ROLLED_BACK, RELEASED) if isinstance(c, ask.Rollback) else (COMMITTED, ROLLED_BACK, RELEASED, COUNTED, RECORDED)
        return entry is not None and tuple(answer) == (entry.id, entry.state) and entry.state in ends

    def _sent(self, c: ask.Sent, answer: Any) -> bool:
        entry = self.state.entry(c.reservation)
        return entry is not None and answer[0] == entry.id

    def _close(self, c: ask.CloseBudget, answer: Any) -> bool:
        return tuple(answer) == (c.budget,) and self._is_closed(c.budget)

    def _set_budget(self, c: ask.SetBudget, answer: Any) -> bool:
        node, event = self.state.nodes.get(c.budget), self.own.get(c.id)
        if node is None or tuple(answer[:2]) != (c.budget, c.caps) or answer[5] != (event is not None):
            return False
        return event is not None or tuple(answer[:5]) == _definition(node)

    def _set_limit(self, c: ask.SetLimit, answer: Any) -> bool:
        return self._get_budget(c, answer)

    def _cancel(self, c: ask.Cancel, answer: Any) -> bool:
        entry = self.state.entry(c.target)
        states = (None,) if entry is None else (OPEN,) if entry.state == OPEN else (entry.state, None)  # or long forgotten
        return answer[0] == c.target and answer[1] in states

    def _get_budget(self, c: ask.GetBudget | ask.SetLimit, answer: Any) -> bool:
        node = self.state.nodes.get(c.budget)
        return node is not None and tuple(answer) == (*_definition(node), False)

    def _get_balance(self, c: ask.GetBalance, answer: Any) -> bool:
        return answer[0] == c.budget and self._balance(answer)

    def _list_budgets(self, c: ask.ListBudgets, answer: Any) -> bool:
        names = [name for name in sorted(self.state.nodes) if c.below is None or f"{name}/".startswith(f"{c.below}/")]
        names = [name for name in names if c.after is None or name > c.after]
        whole = len(answer) == len(names) or is_full(answer)
        return whole and [balance[0] for balance in answer] == names[: len(answer)] and all(map(self._balance, answer))

    def _balance(self, answer: Any) -> bool:
        """Whether a balance is the one that the fold has here; and nothing is held whose time is over."""
        name, ts, closed, tz, rows = answer
        node = self.state.nodes.get(name)
        if node is None or ts < self.state.ts or (closed, tz) != (self._is_closed(name), node.tz) or not self._nothing_due(ts):
            return False
        return bool(rows == tuple(_row(totals, ts) for totals in node.current(ts)))

    def _nothing_due(self, ts: int) -> bool:
        due = self.state.due
        return not due or due[0][0] > ts or all((self.state.expires(id) or ts + 1) > ts for id in self.state.open)

    def _get_entry(self, c: ask.GetEntry, answer: Any) -> bool:
        entry = self.state.entry(c.target)
        if entry is None:
            return False
        told = (entry.id, entry.node.name, entry.state, entry.expires, entry.held, entry.used or NOTHING)
        return tuple(answer) == told

    def _get_head(self, c: ask.GetHead, answer: Any) -> bool:
        state = self.state
        if answer[1] != state.seq:
            return False
        return tuple(answer[:5]) == (state.ledger_id, state.seq, state.head, state.digest(), state.open_count)

    def _copy_file(self, c: ask.CopyFile, answer: Any) -> bool:
        return tuple(answer[1:]) == (self.state.seq, self.state.head)

    def _accept_clock(self, c: ask.AcceptClock, answer: Any) -> bool:
        event = self.own.get(c.id)
        return event is not None and tuple(answer) == (c.id, event.seq)

    def _is_closed(self, name: str) -> bool:
        return any(above.closed for above in self.state.nodes[name].path)

    # --- refusals ----------------------------------------------------------------------------------------------------------

    def _refused(self, command: Any, error: BaseException) -> bool:
        """Whether a refusal, with all its numbers, is right here."""
        nodes = self.state.nodes
        if isinstance(error, errors.BudgetExceeded):
            return self._exceeds(command, error)
        if isinstance(error, errors.UnknownBudget):
            return error.budget not in nodes
        if isinstance(error, errors.BudgetClosed):
            return error.budget in nodes and nodes[error.budget].closed
        if isinstance(error, errors.BudgetDiffers):
            node = nodes.get(command.budget)
            same_alerts = node is not None and (not command.alerts or node.alerts == command.alerts)
            return node is not None and not (node.caps == command.caps and node.tz == command.tz and same_alerts)
        if isinstance(error, errors.ReservationClosed):
            return self._is_over(command, error)
        if isinstance(error, errors.UnknownReservation):
            return self.state.entry(error.reservation) is None
        if isinstance(error, errors.NotAdjustable):
            entry = self.state.entry(command.target)
            return entry is not None and (entry.state == error.state or error.state.startswith("of "))
        return True  # what is wrong with the command alone

    def _exceeds(self, c: Any, error: errors.BudgetExceeded) -> bool:
        node, n = self.state.nodes.get(error.budget), RESOURCES.index(error.resource)
        if node is None or error.requested <= error.left:
            return False
        if isinstance(c, ask.Reserve):
            amount = (c.usd, c.tokens, c.requests)[n] or 0
            if (error.asked_by, error.requested) != (c.budget, decimal_or_int(error.resource, amount)):
                return False
        told = (error.left, error.limit, error.reserved, error.calls_in_flight)
        return any(told == _left(totals, n, error.resource) for account in node.accounts for totals in _all(account))

    def _is_over(self, command: Any, error: errors.ReservationClosed) -> bool:
        entry = self.state.entry(command.reservation)
        if entry is None:
            return False
        if getattr(command, "part", None) is not None and command.part in (entry.parts or {}):
            return error.state == COMMITTED
        return entry.state != OPEN and entry.state == error.state


def _waits(asked: Asked) -> bool:
    """Whether it was refused when it had stood in line."""
    return isinstance(asked.error, errors.BudgetExceeded) and getattr(asked.command, "wait", 0) > 0


def _as_asked(event: Event, c: Any, before: Entry | None) -> bool:
    """Whether an event says what its command asked for."""
    amounts = (event.usd, event.tokens, event.requests)
    if isinstance(c, ask.Reserve):
        held = (event.held_usd, event.held_tokens, event.requests)
        told = (event.reservation, event.budget, event.key, held, event.expires)
        return told == (c.id, c.budget, c.key, (c.usd, c.tokens, c.requests), event.ts + c.timeout if c.timeout else None)
    if isinstance(c, ask.Record):
        return (event.reservation, event.budget, event.key, amounts) == (c.id, c.budget, c.key, (c.usd, c.tokens, c.requests))
    if isinstance(c, ask.Commit):
        rest = before.rest if before is not None and c.part is None else NOTHING
        used = tuple(held if given is None else given for given, held in zip((c.usd, c.tokens, c.requests), rest, strict=True))
        return event.reservation == c.reservation and (event.kind == "recorded" or (event.key, amounts) == (c.part, used))
    if isinstance(c, ask.Adjust):
        given = zip((c.usd, c.tokens, c.requests), amounts, strict=True)
        return event.reservation == c.target and all(new in (None, now) for new, now in given)
    if isinstance(c, ask.Sent):
        return (event.reservation, event.response_id) == (c.reservation, c.name)
    if isinstance(c, ask.Extend):
        return (event.reservation, event.expires) == (c.reservation, event.ts + c.timeout)
    if isinstance(c, ask.Rollback | ask.Lose):
        return event.reservation == c.reservation
    if isinstance(c, ask.SetBudget):
        return event.budget == c.budget and tuple(Cap(*cap) for cap in from_detail(event)["caps"]) == c.caps
    if isinstance(c, ask.SetLimit):
        caps = {cap[0]: cap[1:] for cap in from_detail(event)["caps"]}
        cap = caps.get(c.window if c.window is not None else next(iter(caps)) if len(caps) == 1 else "", [None] * 3)
        return event.budget == c.budget and all(a in (None, b) for a, b in zip((c.usd, c.tokens, c.requests), cap, strict=True))
    return isinstance(c, ask.AcceptClock) or event.budget == c.budget


def _all(account: Account) -> list[Totals]:
    """Its windows, and one in which nothing has happened yet."""
    return [*account.by_start.values(), Totals(account, 0)]


def _left(totals: Totals, n: int, resource: str) -> tuple[Any, ...] | None:
    """What is left of a limit, the limit, what is held, by how many."""
    limit, numbers = totals.account.cap[1 + n], totals.numbers()
    if not isinstance(limit, int):
        return None
    left, held = limit - numbers[n] - numbers[3 + n], numbers[3 + n]
    return (*(decimal_or_int(resource, value) for value in (left, limit, held)), totals.open_count)


def _over(totals: Totals, *limits: int | None) -> bool:
    """Whether more is promised than a limit allows."""
    numbers = totals.numbers()
    return any(limit is not None and numbers[n] + numbers[3 + n] > limit for n, limit in enumerate(limits))


def _row(totals: Totals, ts: int) -> tuple[Any, ...]:
    account = totals.account
    bounds = window_bounds(account.cap.window, account.node.tz, account.node.anchor, ts)
    return (account.node.name, *account.cap, *bounds, *totals.numbers())


def _definition(node: Node) -> tuple[Any, ...]:
    return (node.name, node.caps, node.tz, node.alerts, node.closed)


def _alerts(told: Iterable[Sequence[Any]]) -> tuple[Any, ...]:
    """Alerts of an answer without what was used, which stands on no event."""
    return tuple((budget, resource, threshold, limit) for budget, resource, threshold, _, limit in told)


_ANSWERS: dict[type, Any] = {
    ask.SetBudget: History._set_budget,
    ask.SetLimit: History._set_limit,
    ask.CloseBudget: History._close,
    ask.Reserve: History._reserve,
    ask.Extend: History._extend,
    ask.Commit: History._counted,
    ask.Rollback: History._ended,
    ask.Sent: History._sent,
    ask.Lose: History._ended,
    ask.Record: History._counted,
    ask.Adjust: History._counted,
    ask.Cancel: History._cancel,
    ask.GetBudget: History._get_budget,
    ask.GetBalance: History._get_balance,
    ask.ListBudgets: History._list_budgets,
    ask.GetEntry: History._get_entry,
    ask.GetHead: History._get_head,
    ask.CopyFile: History._copy_file,
    ask.AcceptClock: History._accept_clock,
}
