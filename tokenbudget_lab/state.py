"""The fold: what all events together amount to.

`apply` takes one event after another and is the only thing that changes a balance; `verify`, a reopened store and the tests
use the same fold. Open reservations are all here. Ended ones, and the ids of old commands, are remembered for an hour and
then looked up in the store when somebody asks (`recall`), so memory stays bounded.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from heapq import heapify, heappush
from typing import Any

from .accounts import Load, Node, Totals
from .errors import LedgerCorrupt
from .events import GENESIS, Event, from_detail
from .ids import made_at_us
from .limits import Cap

REMEMBER_US = 3_600 * 1_000_000
REMEMBER_COUNT = 20_000  # about 10 MB
# Once a key is forgotten every new one is looked up in the file, which takes several times as long as deciding.
REMEMBER_KEYED_COUNT = 200_000
SKEW_US = 2_000_000  # the writer's own ids are made a moment after its clock is read
OPEN, COMMITTED, ROLLED_BACK, RELEASED, COUNTED, RECORDED = (
    "open",
    "committed",
    "rolled_back",
    "released",
    "counted",
    "recorded",
)


Three = tuple[int | None, int | None, int | None]  # usd, tokens, requests
First = tuple[int, int, int | None, int | None, int | None, str | None, str | None]  # seq, ts, three amounts, basis, detail


End = tuple[str, str, str | None]  # kind, of which reservation or budget, of which part of it
# An entry as plain values: Python's collector does not look at these, and a ledger keeps very many.
Packed = tuple[Any, ...]
_SEQ, _EXPIRES, _PARTS = 3, 8, 16

NOTHING: Three = (None, None, None)
_ENDING = ("committed", "part_committed", "rolled_back", "expired", "closed")


def first_of(event: Event) -> First:
    """What the first answer to a command is made from."""
    return (event.seq, event.ts, event.usd, event.tokens, event.requests, event.basis, event.detail)


def opened(event: Event) -> Packed:
    """The entry that a reservation or a record begins with."""
    held: Three = (event.held_usd, event.held_tokens, event.requests)
    return (
        event.budget, event.key, event.reservation, event.seq, event.ts, event.windows, event.provider, event.model,
        event.expires, held, held, "count" if event.basis == "unknown" else "release", OPEN, None, 0, None, None,
    )  # fmt: skip


class Entry:
    """One reservation or record, from its hold to what it was counted as: what is kept of it, unpacked.

    Attributes:
        held, rest: what it held at first, and what of it no part has used yet.
        used: what is counted for it now, its parts included; `None` where nothing is.
        unpriced_count: how many of these charges have no cost.
        first: of the event that ended it, or recorded it.
        slots: the totals that it counts in.
    """

    __slots__ = (
        "expires",
        "first",
        "held",
        "id",
        "if_lost",
        "key",
        "model",
        "node",
        "parts",
        "provider",
        "rest",
        "seq",
        "slots",
        "state",
        "ts",
        "unpriced_count",
        "used",
        "windows",
    )
    used: Three | None
    first: First | None
    parts: dict[str, First] | None
    held: Three
    rest: Three
    id: str
    state: str
    expires: int | None

    def __init__(self, packed: Packed, nodes: dict[str, Node]) -> None:
        (
            name, self.key, self.id, self.seq, self.ts, self.windows, self.provider, self.model, self.expires,
            self.held, self.rest, self.if_lost, self.state, self.used, self.unpriced_count, self.first, parts,
        ) = packed  # fmt: skip
        self.node, self.parts = nodes[name], parts  # the same as in what was packed: a copy for each of 10,000 takes seconds
        self.slots = self.node.slots(self.windows)

    def packed(self) -> Packed:
        """Itself as plain values, its budget and key first."""
        return (
            self.node.name, self.key, self.id, self.seq, self.ts, self.windows, self.provider, self.model, self.expires,
            self.held, self.rest, self.if_lost, self.state, self.used, self.unpriced_count, self.first, self.parts,
        )  # fmt: skip

    def counts(self, *charges: Three) -> None:
        """What is counted for it from now on, instead of what was."""
        self.used, self.unpriced_count = None, 0
        for charge in charges:
            self.adds(charge)

    def adds(self, charge: Three) -> None:
        """One more charge is counted for it."""
        self.used = charge if self.used is None else _sum(self.used, charge)
        self.unpriced_count += charge[0] is None

    def end_counted(self) -> tuple[int | None, ...]:
        """What is counted for it beside its parts: usd, tokens, requests, and how many charges without a cost."""
        parts = [part[2:5] for part in self.parts.values()] if self.parts else []
        beside = (
            used - sum(part[n] or 0 for part in parts) if used is not None else None
            for n, used in enumerate(self.used or NOTHING)
        )
        return (*beside, self.unpriced_count - sum(part[0] is None for part in parts))


@lru_cache(maxsize=64)
def _stamp(ms: int) -> str:
    """How the ids of a millisecond begin: to compare texts is quicker than to read them."""
    text = f"{ms:012x}"
    return f"{text[:8]}-{text[8:]}"


def _is_later(id: str, ts: int) -> bool:
    """Whether an id says that it was made after an instant; one of another form does not say."""
    try:
        return made_at_us(id) > ts + SKEW_US
    except ValueError:
        return False


def end_of(event: Event) -> End:
    """What a command ended."""
    return (event.kind, event.reservation or event.budget, event.key)


def _sum(a: Three, b: Three) -> Three:
    usd, tokens, requests = (y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True))
    return (usd, tokens, requests)


def _charge(event: Event) -> Three:
    return (event.usd, event.tokens, event.requests)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """For a replay, which makes millions of values and no circle: Python's collector would walk them again and again."""
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(max(before[0], 200_000), max(before[1], 50), max(before[2], 50))
    try:
        yield
    finally:
        gc.set_threshold(*before)


class State:
    """Budgets, balances and reservations, folded from events.

    Examples:
        >>> State().seq
        0
    """

    def __init__(self) -> None:
        self.seq, self.ts, self.head = 0, 0, GENESIS
        self.ledger_id: str | None = None
        self.nodes: dict[str, Node] = {}
        self.open: dict[str, Packed] = {}
        self._at_hand: Entry | None = None  # the open one that was asked for last
        self.ended: dict[str, Packed] = {}  # reservations and records that ended, for as long as they are remembered
        self.keys: dict[tuple[str, str], str] = {}
        self.done: dict[str, Event] = {}  # commands that ended nothing: limits, extensions, adjustments
        self.ends: dict[str, End] = {}  # commands that ended something: a reservation, a part of it, a budget
        self.due: list[tuple[int, int, str]] = []  # a heap of expiries, in order of `seq`; ended ones are skipped when met
        self.open_count = 0
        self.recovered = 0  # `seq` of the last time that lost events were given up
        self.clock_accepted: int | None = None  # what a clock said that was accepted though it stood behind the last event
        self.forgotten_until = 0  # what ended before this instant may have been forgotten
        self.forgotten_keys = False  # whether any of it had a key
        self.early: set[str] = set()  # ids that say that they were made after their end: a clock was set back in between
        self.load: Load | None = None  # where totals are, if not all of them are here
        self.forgets = True  # with each event; who decides says when instead, because a batch looks up before it decides
        self._ended: deque[tuple[int, str, str]] = deque()  # when, and the two ids that it is known by
        self._keyed: deque[tuple[int, str, str]] = deque()  # older ones that had a key
        self._apply = {
            "created": self._created,
            "budget_set": self._budget_set,
            "closed": self._closed,
            "reserved": self._reserved,
            "extended": self._extended,
            "sent": self._sent,
            "committed": self._committed,
            "part_committed": self._part_committed,
            "rolled_back": self._rolled_back,
            "expired": self._expired,
            "recorded": self._recorded,
            "adjusted": self._adjusted,
            "refused": self._noted,
            "alerted": self._alerted,
            "recovered": self._recovered,
            "clock_accepted": self._clock_accepted,
        }

    def entry(self, id: str | None) -> Entry | None:
        """A reservation or record that is open or remembered.

        An open one is the same object until another is asked for: whoever has it sees what an event makes of it.
        """
        at_hand = self._at_hand
        if at_hand is not None and at_hand.id == id and at_hand.state == OPEN:
            return at_hand
        packed = self.open.get(id or "")
        if packed is not None:
            self._at_hand = Entry(packed, self.nodes)
            return self._at_hand
        packed = self.ended.get(id or "")
        return None if packed is None else Entry(packed, self.nodes)

    def expires(self, id: str) -> int | None:
        """When an open reservation ends by itself."""
        packed = self.open.get(id)
        return None if packed is None else packed[_EXPIRES]

    def enter_again(self, packed: Packed) -> None:
        """Remember an open reservation whose hold is in the totals already: a snapshot's."""
        budget, key, id, seq, *_ = packed
        self.open[id] = packed
        self.open_count += 1
        if key is not None:
            self.keys[budget, key] = id
        if packed[_EXPIRES] is not None:
            heappush(self.due, (packed[_EXPIRES], seq, id))

    def apply(self, event: Event) -> None:
        """Take one event.

        Raises:
            LedgerCorrupt: it cannot follow the events before it.
        """
        if event.seq != self.seq + 1:
            raise LedgerCorrupt(event.seq, f"follows event {self.seq}")
        try:
            if event.ts < self.ts:
                raise LedgerCorrupt(event.seq, "is older than the event before it")
            self._apply[event.kind](event)
        except KeyError as missing:
            raise LedgerCorrupt(event.seq, f"{event.kind} names {missing} which is not there") from None
        except (TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:  # null, or of another form
            raise LedgerCorrupt(event.seq, f"{event.kind} makes no sense ({type(error).__name__})") from error
        self.seq, self.ts, self.head = event.seq, event.ts, event.hash

    # --- budgets -------------------------------------------------------------------------------------------------------

    def _created(self, event: Event) -> None:
        self.ledger_id = from_detail(event)["ledger"]

    def _budget_set(self, event: Event) -> None:
        what = from_detail(event)
        node = self.nodes.get(event.budget)
        if node is None:
            parent = event.budget.rpartition("/")[0]
            node = Node(event.budget, self.nodes[parent] if parent else None, what["tz"], event.ts, self.load)
            self.nodes[event.budget] = node
        node.set_caps(tuple(Cap(*cap) for cap in what["caps"]))
        node.alerts = tuple(what.get("alerts", ()))
        for other in self.nodes.values():
            if node in other.path:
                other.forget()
        self._did(event)

    def _recovered(self, event: Event) -> None:
        self.recovered = event.seq

    def _clock_accepted(self, event: Event) -> None:
        self.clock_accepted = from_detail(event)["clock"]

    def _closed(self, event: Event) -> None:
        self.nodes[event.budget].closed = True
        self._did_end(event)

    def _noted(self, event: Event) -> None:
        self.nodes[event.budget]  # a refusal changes nothing, but it names a budget that exists

    def _alerted(self, event: Event) -> None:
        what = from_detail(event)
        account = self.nodes[event.budget].account(what["window"])
        if account is None:
            raise KeyError(what["window"])
        account.at(what["start"]).alerted.add((what["resource"], what["limit"], what["threshold"]))

    # --- reservations ----------------------------------------------------------------------------------------------------

    def _reserved(self, event: Event) -> None:
        self._enter(event)
        usd, tokens, requests = event.held_usd or 0, event.held_tokens or 0, event.requests or 0
        for t in self.nodes[event.budget].slots(event.windows):
            t.reserved_usd += usd
            t.reserved_tokens += tokens
            t.reserved_requests += requests
            t.open_count += 1
        self.open_count += 1
        if event.expires is not None:
            heappush(self.due, (event.expires, event.seq, event.reservation or ""))
            if len(self.due) > 2 * self.open_count + 10_000:
                self.due = [(p[_EXPIRES], p[_SEQ], id) for id, p in self.open.items() if p[_EXPIRES] is not None]
                heapify(self.due)

    def _extended(self, event: Event) -> None:
        entry = self._open(event)
        entry.expires = event.expires
        self.open[entry.id] = entry.packed()
        heappush(self.due, (event.expires or 0, event.seq, entry.id))
        self._did(event)

    def _sent(self, event: Event) -> None:
        self._open(event)  # it changes nothing, but it names a reservation that is open
        self._did(event)

    def _committed(self, event: Event) -> None:
        packed = self.open.get(event.reservation or "")
        at_hand = self._at_hand is not None and self._at_hand.id == event.reservation
        if packed is not None and not at_hand and packed[_PARTS] is None:
            self._commit_whole(packed, event)
            return
        entry = self.entry(event.reservation)
        if entry is None:
            self._charge_forgotten(event)
            return
        if entry.state == OPEN:
            self._release(entry)
        elif entry.state not in (COUNTED, RELEASED):
            raise LedgerCorrupt(event.seq, f"commits a reservation that is {entry.state}")
        self._end(entry, COMMITTED, event)

    def _commit_whole(self, packed: Packed, event: Event) -> None:
        """What a replay does most of all, in one go: end an open reservation without parts that nobody has at hand."""
        name, key, id, seq, ts, windows, provider, model, expires, held, rest, if_lost, *_ = packed
        held_usd, held_tokens, held_requests = rest[0] or 0, rest[1] or 0, rest[2] or 0
        used = (event.usd, event.tokens, event.requests)
        usd, tokens, requests, unpriced = event.usd or 0, event.tokens or 0, event.requests or 0, event.usd is None
        for t in self.nodes[name].slots(windows):
            t.reserved_usd -= held_usd
            t.reserved_tokens -= held_tokens
            t.reserved_requests -= held_requests
            t.open_count -= 1
            t.committed_usd += usd
            t.committed_tokens += tokens
            t.committed_requests += requests
            t.unpriced_count += unpriced
        self.open_count -= 1
        del self.open[id]
        self.ended[id] = (
            name, key, id, seq, ts, windows, provider, model, expires, held, rest, if_lost, COMMITTED, used,
            int(unpriced), first_of(event), None,
        )  # fmt: skip
        self._did_end(event, id)

    def _part_committed(self, event: Event) -> None:
        entry = self._open(event)
        rest, used, unpriced = entry.rest, entry.used or NOTHING, entry.unpriced_count
        self._part(entry, event)
        self.open[entry.id] = entry.packed()
        for t in entry.slots:
            t.reserved_usd -= (rest[0] or 0) - (entry.rest[0] or 0)
            t.reserved_tokens -= (rest[1] or 0) - (entry.rest[1] or 0)
            t.reserved_requests -= (rest[2] or 0) - (entry.rest[2] or 0)
        self._recount(entry.slots, used, entry.used or NOTHING, entry.unpriced_count - unpriced)
        self._did_end(event)

    def _rolled_back(self, event: Event) -> None:
        entry = self._open(event)
        self._release(entry)
        self._end(entry, ROLLED_BACK, event)

    def _expired(self, event: Event) -> None:
        entry = self._open(event)
        self._release(entry)
        self._end(entry, COUNTED if entry.if_lost == "count" else RELEASED, event)

    def _recorded(self, event: Event) -> None:
        self._enter(event)
        self._end(self._open(event), RECORDED, event)

    def _adjusted(self, event: Event) -> None:
        entry = self.entry(event.reservation)
        if entry is None:
            self._charge_forgotten(event)
        elif entry.used is None:
            raise LedgerCorrupt(event.seq, f"adjusts a reservation that is {entry.state}")
        else:
            used, unpriced = entry.used, entry.unpriced_count
            entry.counts(_charge(event))
            self.ended[entry.id] = entry.packed()
            self._recount(entry.slots, used, entry.used, entry.unpriced_count - unpriced)
        self._did(event)

    def _enter(self, event: Event) -> None:
        id = event.reservation or ""
        if id in self.open or id in self.ended:
            raise LedgerCorrupt(event.seq, f"enters {id} a second time")
        self.nodes[event.budget]  # is there
        self.open[id] = opened(event)
        if event.key is not None:
            self.keys[event.budget, event.key] = id

    def _open(self, event: Event) -> Entry:
        id = event.reservation or ""
        if id in self.ended:
            raise LedgerCorrupt(event.seq, f"{event.kind}, but the reservation has ended")
        entry = self.entry(id)
        if entry is None:
            raise KeyError(id)
        return entry

    def _release(self, entry: Entry) -> None:
        usd, tokens, requests = entry.rest
        usd, tokens, requests = usd or 0, tokens or 0, requests or 0
        for t in entry.slots:
            t.reserved_usd -= usd
            t.reserved_tokens -= tokens
            t.reserved_requests -= requests
            t.open_count -= 1
        self.open_count -= 1

    def _charge_forgotten(self, event: Event) -> None:
        """Charge anew what ended so long ago that a replay has forgotten it: the event says where and what it replaces."""
        was = from_detail(event).get("was")
        if was is None:
            raise KeyError(event.reservation)
        *old, unpriced = was
        slots = self.nodes[event.budget].slots(event.windows)
        self._recount(slots, (old[0], old[1], old[2]), _charge(event), (event.usd is None) - unpriced)

    @staticmethod
    def _recount(slots: tuple[Totals, ...], old: Three, new: Three, unpriced: int) -> None:
        """Bring totals from what was counted for an entry to what is counted now."""
        usd, tokens = (new[0] or 0) - (old[0] or 0), (new[1] or 0) - (old[1] or 0)
        requests = (new[2] or 0) - (old[2] or 0)
        for t in slots:
            t.committed_usd += usd
            t.committed_tokens += tokens
            t.committed_requests += requests
            t.unpriced_count += unpriced

    def _end(self, entry: Entry, state: str, event: Event) -> None:
        used, unpriced = entry.used or NOTHING, entry.unpriced_count
        self._mark(entry, state, event)
        self._recount(entry.slots, used, entry.used or NOTHING, entry.unpriced_count - unpriced)
        self.open.pop(entry.id, None)
        self.ended[entry.id] = entry.packed()
        if state == RECORDED:
            self._remember(event.ts, event.command, entry.id)
        else:
            self._did_end(event, entry.id)

    # --- what an entry remembers: the part of the fold that `recall` repeats ------------------------------------------------

    @staticmethod
    def _mark(entry: Entry, state: str, event: Event) -> None:
        entry.state, entry.first = state, first_of(event)
        last = _charge(event) if state in (COMMITTED, RECORDED) else entry.rest if state == COUNTED else None
        if entry.parts:
            entry.counts(*(part[2:5] for part in entry.parts.values()), *([] if last is None else [last]))
        else:
            entry.used, entry.unpriced_count = last, last is not None and last[0] is None

    @staticmethod
    def _part(entry: Entry, event: Event) -> None:
        entry.parts = entry.parts or {}
        entry.parts[event.key or ""] = first_of(event)
        used = _charge(event)
        usd, tokens, requests = (
            None if have is None else have - min(have, take or 0) for have, take in zip(entry.rest, used, strict=True)
        )
        entry.rest = (usd, tokens, requests)
        entry.adds(used)

    def _did(self, event: Event) -> None:
        self.done[event.command] = event
        self._remember(event.ts, event.command)

    def _did_end(self, event: Event, entry: str = "") -> None:
        self.ends[event.command] = end_of(event)
        self._remember(event.ts, event.command, entry)

    def _remember(self, ts: int, command: str, entry: str = "") -> None:
        self._ended.append((ts, command, entry))
        stamp = _stamp((ts + SKEW_US) // 1000)
        if command[:13].lower() > stamp and _is_later(command, ts):
            self.early.add(command)
        if entry and entry[:13].lower() > stamp and _is_later(entry, ts):
            self.early.add(entry)
        if self.forgets:
            self.forget(ts)

    def may_be_forgotten(self, id: str) -> bool:
        """Whether an id that is not known may be one that was forgotten; one of another form may always be.

        Whatever is forgotten was made before it ended, and so before `forgotten_until`, or is in `early`.
        """
        return id in self.early or not _is_later(id, self.forgotten_until)

    def forget(self, ts: int) -> None:
        """Drop what ended more than an hour before, and what is too much; a store has it, and `recall` brings it back."""
        while self._ended and (self._ended[0][0] < ts - REMEMBER_US or len(self._ended) > REMEMBER_COUNT):
            ended = self._ended.popleft()
            packed = self.ended.get(ended[2])
            if packed is not None and packed[1] is not None:
                self._keyed.append(ended)
            else:
                self._drop(*ended)
        while self._keyed and (self._keyed[0][0] < ts - REMEMBER_US or len(self._keyed) > REMEMBER_KEYED_COUNT):
            self._drop(*self._keyed.popleft())
        if len(self.early) > REMEMBER_COUNT:
            self.trim_early()

    def _drop(self, ended: int, command: str, entry: str) -> None:
        self.done.pop(command, None)
        self.ends.pop(command, None)
        packed = self.ended.pop(entry, None)
        if packed is not None and packed[1] is not None:
            self.keys.pop(packed[:2], None)
            self.forgotten_keys = True
        self.forgotten_until = max(self.forgotten_until, ended)

    def trim_early(self) -> None:
        """Drop early ids whose time has come; too many are not kept one by one: all up to the latest may be forgotten ones."""
        self.early = {id for id in self.early if _is_later(id, self.forgotten_until)}
        if len(self.early) > REMEMBER_COUNT // 2:
            self.forgotten_until = max(map(made_at_us, self.early))
            self.early = set()

    def forget_all(self) -> None:
        """Drop every entry and command, open ones too: they are loaded again when they are needed. Balances do not change."""
        self.open, self.ended, self.keys, self.done, self.ends = {}, {}, {}, {}, {}
        self.due, self.early, self._at_hand = [], set(), None
        self._ended.clear()
        self._keyed.clear()

    def recall(self, events: Iterable[Event], *, in_flight: bool = False) -> None:
        """Remember entries and commands again that were forgotten; balances do not change.

        Args:
            events: all events of each entry, in order of `seq`.
            in_flight: open ones may be among them.
        """
        recalled: dict[str | None, Entry] = {}
        for event in events:
            if event.kind in ("budget_set", "extended", "sent", "adjusted") and event.command not in self.done:
                self.done[event.command] = event
                self._ended.append((self.ts, event.command, ""))
            if event.kind in _ENDING and event.command not in self.ends:
                self.ends[event.command] = end_of(event)
                self._ended.append((self.ts, event.command, ""))
            if event.kind in ("reserved", "recorded") and self.entry(event.reservation) is None:
                recalled[event.reservation] = Entry(opened(event), self.nodes)
                if event.key is not None:
                    self.keys[event.budget, event.key] = event.reservation or ""
                self._ended.append((self.ts, "", event.reservation or ""))
            if event.reservation in recalled:
                self._retrace(recalled[event.reservation], event)
        for entry in recalled.values():
            if entry.state != OPEN:
                self.ended[entry.id] = entry.packed()
            elif in_flight:
                self.open[entry.id] = entry.packed()
            else:
                raise LedgerCorrupt(entry.seq, "is open in the file, and not in the balances in force")

    def _retrace(self, entry: Entry, event: Event) -> None:
        if event.kind == "committed":
            self._mark(entry, COMMITTED, event)
        elif event.kind == "rolled_back":
            self._mark(entry, ROLLED_BACK, event)
        elif event.kind == "recorded":
            self._mark(entry, RECORDED, event)
        elif event.kind == "expired":
            self._mark(entry, COUNTED if entry.if_lost == "count" else RELEASED, event)
        elif event.kind == "adjusted":
            entry.counts(_charge(event))
        elif event.kind == "extended":
            entry.expires = event.expires
        elif event.kind == "part_committed":
            self._part(entry, event)

    def digest(self) -> str:
        """A fingerprint of every budget and its balances: equal after every replay of the same events.

        Returns:
            SHA-256 in hex.
        """
        lines = [
            f"{name}|{node.tz}|{node.closed}|{node.alerts}|{[account.cap for account in node.accounts]}"
            for name, node in sorted(self.nodes.items())
        ]
        lines += [
            f"{name}|{account.cap!r}|{start}|{totals.numbers()}|{sorted(totals.alerted)}"
            for name, node in sorted(self.nodes.items())
            for account in node.accounts
            for start, totals in sorted(account.by_start.items())
            if any(totals.numbers()) or totals.alerted
        ]
        return sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


class Proof(State):
    """The same fold for who only wants to know what it amounts to: no command comes again, so their ids are not kept.

    It forgets when told to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forgets = False

    def _did(self, event: Event) -> None:
        pass

    def _did_end(self, event: Event, entry: str = "") -> None:
        if entry:
            self._remember(event.ts, "", entry)

    def _remember(self, ts: int, command: str, entry: str = "") -> None:
        self._ended.append((ts, command, entry))
