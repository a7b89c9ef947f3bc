"""A ledger copied to another store: every event as it is, so the chain of hashes is the same, and proved in the end.

A copy that was interrupted goes on where it stopped. Nothing keeps both from being spent from afterwards: whoever moves a
ledger stops using the first one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import NamedTuple, Protocol

from .accounts import Totals
from .commands import GetHead
from .connection import connect
from .errors import InvalidValue, LedgerBusy, LedgerCorrupt, LedgerMissing
from .events import GENESIS, Event
from .founding import found
from .ledger import Verification
from .place import place_of
from .servers import is_url
from .sharing import Asked, Row, Step, definition, head_of
from .state import State, seldom_collected
from .stores.duckdb import DuckDBStore
from .stores.postgres import PostgresStore

CHUNK = 5_000  # events in one transaction
PATIENCE_S = 10.0  # for a keeper that has no client any more, and leaves
Where = str | os.PathLike[str]


class Copied(NamedTuple):
    """What was copied.

    Attributes:
        events: how many were written now.
        proof: of the copy.
    """

    events: int
    proof: Verification

    def __str__(self) -> str:
        return f"copied {self.events:,} events; the copy is {self.proof}"


class _Target(Protocol):
    def last(self) -> tuple[int, bytes]: ...
    def take(self, events: list[Event], state: State) -> None: ...
    def close(self) -> None: ...


def copy(source: Where, target: Where, progress: Callable[[int, int], None] | None = None) -> Copied:
    """Copy a ledger, or what a copy of it lacks.

    Args:
        source: its path or URL.
        target: a path or URL where no ledger is, or the beginning of a copy of this one.
        progress: told how many events are copied, and of how many.

    Returns:
        How many events were written, and the proof of the copy: the same balances and the same head.

    Raises:
        InvalidValue: another ledger is there, or one that has gone on by itself.
        LedgerCorrupt: what was copied is not what the source has.
    """
    with connect(source) as book:
        _, last, head, digest, *_ = book.ask(GetHead(book.new_id()))
        with closing(_target(target)) as into:
            written = _continue(book.desk.events(last), last, into, progress)
    with connect(target) as made:
        proof = made.verify()
    if (proof.head, proof.digest) != (head.hex(), digest):
        raise LedgerCorrupt(proof.events, "the copy does not end as its source does; somebody has written to it meanwhile")
    return Copied(written, proof)


def _target(target: Where) -> _Target:
    if is_url(target):
        return _Server(str(target))
    return _File(target)


def _continue(events: Iterator[Event], last: int, into: _Target, progress: Callable[[int, int], None] | None) -> int:
    have, hash = into.last()
    state, head = State(), GENESIS
    with seldom_collected():
        for event in islice(events, have):
            state.apply(event)
            head = event.hash
        if (state.seq, head) != (have, hash):
            raise InvalidValue(
                "target", "another ledger is there, or a copy that has gone on by itself; nothing is overwritten"
            )
        while chunk := list(islice(events, CHUNK)):
            for event in chunk:
                state.apply(event)
            into.take(chunk, state)
            if progress is not None:
                progress(state.seq, last)
    return state.seq - have


class _File:
    """A DuckDB file, owned by this process meanwhile."""

    def __init__(self, path: Where) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._store = DuckDBStore(place_of(path))
                return
            except LedgerBusy:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def last(self) -> tuple[int, bytes]:
        seq, hash = 0, GENESIS
        for event in self._store.load():
            seq, hash = event.seq, event.hash
        return seq, hash

    def take(self, events: list[Event], state: State) -> None:
        self._store.append(events)
        self._store.tend(state)

    def close(self) -> None:
        self._store.close()


class _Server:
    """A ledger in PostgreSQL, with all that its log amounts to."""

    def __init__(self, url: str) -> None:
        try:
            self._store = PostgresStore(url)
        except LedgerMissing:
            found(url)
            self._store = PostgresStore(url)
        self._kept: dict[tuple[str, str, int], tuple[tuple[int, ...], int]] = {}
        self._changed = 0

    def _begin(self) -> tuple[int, bytes]:
        loaded = self._store.begin(Asked(lock=True, ids=[], keys=[], budgets=[], starts=[], everything=False, since=1 << 62))
        self._changed = max(self._changed, loaded.changed)
        return loaded.seq, loaded.head

    def last(self) -> tuple[int, bytes]:
        seq, hash = self._begin()
        self._store.release()
        return seq, hash

    def take(self, events: list[Event], state: State) -> None:
        before = self._begin()[0]
        changed = {event.budget: event.seq for event in events if event.kind in ("budget_set", "closed")}
        self._changed = max([self._changed, *changed.values()])
        ids = dict.fromkeys(event.reservation for event in events if event.reservation is not None)
        open_ = [(p[2], p[3], p[8]) for p in (state.open.get(id) for id in ids) if p is not None]
        budgets = [(name, seq, definition(state.nodes[name])) for name, seq in changed.items()]
        ended = [id for id in ids if id not in state.open]
        self._store.keep(
            Step(before, events, head_of(state, self._changed), list(self._new(state)), open_, ended, budgets, freed=False)
        )

    def _new(self, state: State) -> Iterator[Row]:
        """The totals that the last events have changed."""
        for totals in _totals(state):
            key = (totals.account.node.name, totals.account.cap.window, totals.start)
            now = (totals.numbers(), len(totals.alerted))
            if self._kept.get(key) != now:
                self._kept[key] = now
                yield (*key, now[0], [list(mark) for mark in sorted(totals.alerted)])

    def close(self) -> None:
        self._store.close()


def _totals(state: State) -> Iterable[Totals]:
    return (t for node in state.nodes.values() for account in node.accounts for t in account.by_start.values())
