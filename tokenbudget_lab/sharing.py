"""The part of the fold that a batch needs, out of a store that several processes write to.

Such a store keeps beside its events what they amount to, as rows. A batch takes the store's lock, loads the rows that its
commands touch into the same `State`, is decided as ever, and hands back the rows that it changed; nobody reads what others
wrote. Whoever decides may rely on this: totals that were not loaded are looked up when they are asked for, and never zero
because they are not known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from heapq import heappush
from typing import Any, NamedTuple, Protocol

from .accounts import Node, Totals
from .commands import Command, Commit, GetBalance, GetBudget, GetEntry, GetHead, ListBudgets, Record, Reserve
from .decide import Decisions
from .desk import Bell
from .errors import AccessDenied
from .events import Event
from .ids import part_id
from .limits import Cap
from .line import Line
from .state import State
from .store import Store

READS = frozenset({GetBudget, GetBalance, ListBudgets, GetEntry, GetHead})
Row = tuple[str, str, int, tuple[int, ...], list[list[Any]]]  # budget, window, its start, numbers, what was alerted
_FREES = frozenset({"budget_set", "closed", "committed", "part_committed", "rolled_back", "expired", "recorded", "adjusted"})
_MOVES = frozenset({"reserved", "extended", "committed", "rolled_back", "expired"})
_IN_LINE = 64  # of the waiters, who are looked up together with a batch


class Asked(NamedTuple):
    """What a batch touches, as far as is known before it is decided.

    Attributes:
        lock: whether it may write.
        ids, keys: of commands and entries; and (budget, key) pairs.
        budgets: names.
        starts: of windows.
        everything: all totals, whatever `budgets` and `starts` say.
        since: the last change of a budget that is known here.
    """

    lock: bool
    ids: list[str]
    keys: list[tuple[str, str]]
    budgets: list[str]
    starts: list[int]
    everything: bool
    since: int


class Loaded(NamedTuple):
    """What the store had.

    Attributes:
        seq, ts, head, ledger_id, recovered, clock_accepted, open_count: of the fold.
        changed: the last change of a budget.
        now: Unix microseconds.
        due: reservations whose time has run out.
        alarm: when the next one's will.
        names, starts: which totals were looked up; those that are not among them are zero.
    """

    seq: int
    ts: int
    head: bytes
    ledger_id: str | None
    recovered: int
    clock_accepted: int | None
    open_count: int
    changed: int
    now: int
    due: list[str]
    alarm: int | None
    events: list[Event]
    names: list[str]
    starts: list[int]
    totals: list[Row]
    budgets: list[tuple[str, dict[str, Any]]]


class Step(NamedTuple):
    """What a batch changed.

    Attributes:
        before: the last event before it.
        open: reservations that are open now: id, `seq`, when they expire.
        ended: ids of those that are not.
        freed: whether somebody who waits elsewhere may fit now.
    """

    before: int
    events: list[Event]
    head: tuple[Any, ...]
    totals: list[Row]
    open: list[tuple[str, int, int | None]]
    ended: list[str]
    budgets: list[tuple[str, int, dict[str, Any]]]
    freed: bool


class SharedStore(Store, Protocol):
    """A store that others write to as well."""

    def begin(self, asked: Asked) -> Loaded:
        """Take the lock and look up what is asked for.

        Raises:
            ServerLost: it was tried for long enough.
        """
        ...

    def sums(self, names: Sequence[str], starts: Sequence[int]) -> list[Row]:
        """More totals, in the midst of a batch."""
        ...

    def keep(self, step: Step) -> None:
        """Keep a batch and let go of the lock: all or nothing, and durable when this returns.

        Raises:
            StoreFailed: whether it was kept is known after `reopen`.
        """
        ...

    def release(self) -> None:
        """Let go of the lock; nothing was decided."""
        ...

    def listen(self, ring: Callable[[], None]) -> None:
        """Somebody waits in this process: be called when something was freed in another, where that can be."""
        ...

    def watch(self, bell: Bell) -> bool:
        """Somebody in this process shows what it comes to: ring when it was changed; whether that is so already."""
        ...

    def kept(self, seq: int, head: bytes) -> bool:
        """Whether an event stands in the log, when everybody has let go of the lock."""
        ...


class Sharing:
    """Loads what batches need, and keeps what they changed.

    Args:
        store: where.
        decisions: over a fold that is filled here.

    Attributes:
        alarm: when the next reservation expires, Unix microseconds, as far as is known here.
        wrote: `seq` and hash of the last event that this batch handed to the store.
    """

    def __init__(self, store: SharedStore, decisions: Decisions) -> None:
        self.store, self.decisions = store, decisions
        self.alarm: int | None = None
        self._ahead_us: int | None = None  # of the store's clock before this process's monotonic one
        self._changed = -1
        self._touched: list[tuple[Totals, tuple[int, ...], int]] = []
        self._rows: dict[tuple[str, str, int], Row] = {}
        self._names: set[str] = set()
        self._starts: set[int] = set()
        self._everything = self._locked = False
        self.wrote: tuple[int, bytes] | None = None
        decisions.state.load = self._fill

    def now(self) -> int:
        """The store's clock, as far as is known without asking it."""
        if self._ahead_us is None:
            return time.time_ns() // 1000
        return time.monotonic_ns() // 1000 + self._ahead_us

    # --- before a batch is decided ---------------------------------------------------------------------------------------

    def begin(self, batch: Sequence[Command], line: Line, *, write: bool = False) -> int:
        """Load what a batch needs.

        Args:
            batch: the commands.
            line: who waits.
            write: whether there is something to write, whatever the commands are.

        Returns:
            What time it is: Unix microseconds.
        """
        self.wrote = None
        only_reads = not write and not line and all(type(command) in READS for command in batch)
        asked = self._asked(batch, line, lock=not only_reads)
        loaded = self.store.begin(asked)
        if only_reads and loaded.due:  # what is due has to end first, and that is written
            try:
                loaded = self.store.begin(asked._replace(lock=True))
                asked = asked._replace(lock=True)
            except AccessDenied:  # who may only read sees it as still held
                loaded = self.store.begin(asked)
        self._locked, self._everything = asked.lock, asked.everything
        self._ahead_us = loaded.now - time.monotonic_ns() // 1000
        self._take(loaded)
        return loaded.now

    def _asked(self, batch: Sequence[Command], line: Line, *, lock: bool) -> Asked:
        state = self.decisions.state
        commands = [*batch, *(waiter.command for waiter, _ in zip(line, range(_IN_LINE), strict=False))]
        ids: set[str] = set()
        keys: set[tuple[str, str]] = set()
        names = set(line.budgets())
        for command in commands:
            more_ids, more_keys = wanted(command)
            ids.update(more_ids)
            keys.update(more_keys)
            name = getattr(command, "budget", None)
            if name is not None:
                names.add(name)
        now = self.now()
        starts: set[int] = set()
        for name in names:
            node = state.nodes.get(name)
            if node is not None:
                windows, until = node.windows_at(now)
                starts.update(windows, node.windows_at(until)[0] if windows else ())
        everything = any(type(command) in (GetHead, ListBudgets) for command in batch)
        return Asked(lock, list(ids), list(keys), list(names), list(starts), everything, self._changed)

    def _take(self, loaded: Loaded) -> None:
        """Fill the fold with what was loaded."""
        self._forget()
        state = self.decisions.state
        state.seq, state.ts, state.head, state.ledger_id = loaded.seq, loaded.ts, loaded.head, loaded.ledger_id
        state.recovered, state.clock_accepted, state.open_count = loaded.recovered, loaded.clock_accepted, loaded.open_count
        self.alarm, self._changed = loaded.alarm, loaded.changed
        if loaded.budgets:
            self._define(loaded.budgets)
        self._rows = {row[:3]: row for row in loaded.totals}
        self._names, self._starts = set(loaded.names), set(loaded.starts)
        if self._everything:
            for name, window, start in self._rows:
                account = state.nodes[name].account(window)
                if account is not None:
                    account.at(start)
        state.recall(loaded.events, in_flight=True)
        if self._locked:
            for id in loaded.due:
                expires = state.expires(id)
                if expires is not None:
                    heappush(state.due, (expires, state.open[id][3], id))

    def _forget(self) -> None:
        """Others may have changed whatever is known here, but what budgets there are."""
        for totals, _, _ in self._touched:
            totals.account.by_start.clear()
            totals.account.node.forget()
        self._touched = []
        self.decisions.state.forget_all()

    def _define(self, budgets: Iterable[tuple[str, dict[str, Any]]]) -> None:
        nodes = self.decisions.state.nodes
        for name, told in budgets:
            node = nodes.get(name)
            if node is None:
                parent = name.rpartition("/")[0]
                node = nodes[name] = Node(name, nodes[parent] if parent else None, told["tz"], told["anchor"], self._fill)
            node.set_caps(tuple(Cap(*cap) for cap in told["caps"]))
            node.alerts, node.closed = tuple(told["alerts"]), told["closed"]
        for node in nodes.values():
            node.forget()

    def _fill(self, totals: Totals) -> None:
        """Totals that are asked for the first time in a batch."""
        key = (totals.account.node.name, totals.account.cap.window, totals.start)
        row = self._rows.get(key)
        if row is None and not self._everything and not (key[0] in self._names and key[2] in self._starts):
            more = self.store.sums([key[0]], [key[2]])
            row = next((one for one in more if one[:3] == key), None)
        if row is not None:
            totals.restore(row[3])
            totals.alerted = {(resource, limit, threshold) for resource, limit, threshold in row[4]}
        self._touched.append((totals, totals.numbers(), len(totals.alerted)))

    # --- when it is decided ------------------------------------------------------------------------------------------------

    def end(self, events: list[Event]) -> None:
        """Keep what was decided.

        Raises:
            StoreFailed: as `SharedStore.keep`.
        """
        if events:
            step = self._step(events)
            self.wrote = (events[-1].seq, events[-1].hash)
            self.store.keep(step)
            self._changed = step.head[-1]
            soonest = [expires for _, _, expires in step.open if expires is not None]
            self.alarm = min([*soonest, *([] if self.alarm is None else [self.alarm])], default=None)
        elif self._locked:
            self.store.release()
        self._locked = False

    def _step(self, events: list[Event]) -> Step:
        state = self.decisions.state
        totals = [
            (t.account.node.name, t.account.cap.window, t.start, t.numbers(), [list(mark) for mark in sorted(t.alerted)])
            for t, numbers, alerted in self._touched
            if t.numbers() != numbers or len(t.alerted) != alerted
        ]
        open_: list[tuple[str, int, int | None]] = []
        ended: list[str] = []
        for id in {event.reservation: None for event in events if event.kind in _MOVES}:
            packed = state.open.get(id or "")
            if packed is None:
                ended.append(id or "")
            else:
                open_.append((packed[2], packed[3], packed[8]))
        changed = {event.budget: event.seq for event in events if event.kind in ("budget_set", "closed")}
        budgets = [(name, seq, definition(state.nodes[name])) for name, seq in changed.items()]
        head = head_of(state, max(changed.values(), default=self._changed))
        freed = any(event.kind in _FREES for event in events)
        return Step(events[0].seq - 1, events, head, totals, open_, ended, budgets, freed)

    def leave(self) -> None:
        """Let go of the lock, whatever happened; the next batch begins with nothing."""
        if self._locked:
            self._locked = False
            self.store.release()


def head_of(state: State, changed: int) -> tuple[Any, ...]:
    """A ledger's head as it is kept; `changed` is the `seq` of the last change of a budget."""
    return (
        state.seq, state.ts, state.head.hex(), state.ledger_id, state.recovered, state.clock_accepted, state.open_count, changed
    )  # fmt: skip


def definition(node: Node) -> dict[str, Any]:
    """A budget as it is kept."""
    caps = [list(account.cap) for account in node.accounts]
    return {"tz": node.tz, "anchor": node.anchor, "caps": caps, "alerts": list(node.alerts), "closed": node.closed}


def wanted(command: Command) -> tuple[list[str], list[tuple[str, str]]]:
    """Ids and keys that a decision may need, where nothing is remembered."""
    kind = type(command)
    if kind in (GetHead, ListBudgets, GetBudget, GetBalance):
        return [], []
    ids = [command.id]
    target = getattr(command, "reservation", None) or getattr(command, "target", None)
    if target is not None:
        ids.append(target)
    if isinstance(command, Commit) and command.part is not None:
        orphan = part_id(command.reservation, command.part)
        ids += [] if orphan is None else [orphan]
    key = getattr(command, "key", None)
    keys = [(command.budget, key)] if key is not None and isinstance(command, Reserve | Record) else []
    return ids, keys
