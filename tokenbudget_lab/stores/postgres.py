"""Ledgers in PostgreSQL, for many machines: a log that several processes append to, one batch at a time.

A batch takes two round trips, however many callers wait in it: the first locks the ledger's head and brings what the batch
touches, the second appends, updates what the log amounts to, and commits. A connection that is lost in between takes the
lock and all that was decided with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID
from weakref import WeakSet

from ..clock import Mark
from ..conditions import Condition, columns_of
from ..desk import Bell
from ..errors import (
    InvalidValue,
    LedgerCorrupt,
    LedgerDamaged,
    LedgerMissing,
    LedgerUnavailable,
    ServerLost,
    ServerUnreachable,
    VersionMismatch,
)
from ..events import Event
from ..fetching import fetched
from ..listening import Listener
from ..rows import COLUMNS, only, proved
from ..servers import Server, connected, reading, server_of, told
from ..sharing import Asked, Loaded, Row, Step
from ..state import State
from ..store import Loss

if TYPE_CHECKING:
    import psycopg

SCHEMA = 2
PATIENCE_S = 30.0  # while a server restarts, or another one takes over
_FETCH = 5_000
_FEW = 2_000  # events that are read sooner one by one than it takes ADBC to connect
_AGAIN = ("40001", "40P01", "55P03", "57014", "25P03", "25006", "57P01", "57P02", "57P03")  # may go well the next time
log = logging.getLogger("tokenbudget_lab")


class PostgresStore:
    """One ledger of a database.

    Args:
        url: `postgresql://user:password@host/database?ledger=name`.
        clock_ns: Unix nanoseconds, where it is not the server that says what time it is.
        patience_s: how long a server that is gone is waited for.

    Raises:
        InvalidValue: the URL cannot be read.
        ServerUnreachable: nobody answers.
        AccessDenied: not this user.
        LedgerMissing: it was never made.
        VersionMismatch: a newer package made the schema.
    """

    shared = True
    damage: LedgerDamaged | None = None
    loss: Loss | None = None

    def __init__(self, url: str, *, clock_ns: Callable[[], int] | None = None, patience_s: float = PATIENCE_S) -> None:
        self._server = server_of(url)
        self.where, self._clock_ns, self._patience_s = self._server.where, clock_ns, patience_s
        self._con: psycopg.Connection[Any] | None = None
        self._acknowledged = (0, b"")
        self._listener: Listener | None = None
        self._watcher: Listener | None = None
        self._watching, self._bells = threading.Lock(), WeakSet[Bell]()  # whoever watches does so in a thread of its own
        self._pid = os.getpid()
        con = self._connect()
        try:
            self._number = _number(con, self._server)
        except BaseException:
            self._drop()
            raise

    # --- a batch -------------------------------------------------------------------------------------------------------

    def begin(self, asked: Asked) -> Loaded:
        """Take the head, and look up what is asked for; a server that is gone is waited for.

        Raises:
            ServerLost: for too long.
            LedgerUnavailable: it will not go well the next time either.
        """
        now = None if self._clock_ns is None else self._clock_ns() // 1000
        told_ = {
            "lock": asked.lock, "now": now, "ids": _uuids(asked.ids), "keys": asked.keys, "budgets": asked.budgets,
            "starts": asked.starts, "all": asked.everything, "since": asked.since,
        }  # fmt: skip
        start = "begin" if asked.lock else "begin isolation level repeatable read read only"
        end = "" if asked.lock else "; commit"
        rows = self._patiently(f"{start}; select tokenbudget.load(%s, %s::json){end}", (self._number, json.dumps(told_)))
        loaded = _loaded(rows[1][0][0])
        self._must_go_on(loaded)
        return loaded

    def _patiently(self, query: str, values: tuple[Any, ...]) -> list[list[tuple[Any, ...]]]:
        """The rows of each statement, tried again while that makes sense."""
        deadline, pause = time.monotonic() + self._patience_s, 0.02
        while True:
            try:
                return self._ask(query, values)
            except (ServerLost, ServerUnreachable) as error:
                if time.monotonic() + pause > deadline:
                    raise ServerLost(self.where, error.reason) from None
            time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - so that not all come back at once
            pause = min(pause * 2, 1.0)

    def _ask(self, query: str, values: tuple[Any, ...]) -> list[list[tuple[Any, ...]]]:
        """One round trip; whatever fails ends the connection, and with it the transaction and its lock."""
        import psycopg

        con = self._con if self._con is not None else self._connect()
        try:
            cursor = con.execute(query, values)
            rows = [cursor.fetchall() if cursor.description else []]
            while cursor.nextset():
                rows.append(cursor.fetchall() if cursor.description else [])
            return rows
        except psycopg.Error as error:
            failed = self._failed(error)
        except BaseException:  # an interrupt in the midst of an answer
            self._drop()
            raise
        self._drop()
        raise failed

    def _failed(self, error: psycopg.Error) -> LedgerUnavailable:
        import psycopg

        state = error.sqlstate or ""
        if state in ("42501", "3F000", "42P01") or (state == "25006" and self._takes_writes()):
            return told(self.where, error)
        if state in _AGAIN or not state or state.startswith("08") or isinstance(error, psycopg.InterfaceError):
            reason = (
                "somebody holds the ledger's head" if state == "55P03" else f"the server broke off ({state or 'no answer'})"
            )
            return ServerLost(self.where, reason)
        return ServerLost(self.where, f"it says {state}: {error.diag.message_primary or ''}")

    def _takes_writes(self) -> bool:
        """Whether it is this connection that may only read; a server that stands by for another is waited for."""
        return self._con is not None and self._con.info.parameter_status("in_hot_standby") == "off"

    def _must_go_on(self, loaded: Loaded) -> None:
        """What was acknowledged here is there: a server put back, or another one that had not heard, is noticed."""
        seq, hash = self._acknowledged
        if loaded.seq < seq or (loaded.seq == seq and hash and loaded.head != hash):
            self._drop()
            raise LedgerCorrupt(loaded.seq + 1, f"event {seq} was acknowledged, and the server does not have it any more")

    def sums(self, names: Sequence[str], starts: Sequence[int]) -> list[Row]:
        """More totals, in the midst of a batch."""
        query = "select tokenbudget.sums(%s, %s, %s::bigint[], false)"
        return _rows(self._in_batch(query, (self._number, list(names), list(starts)))[0][0][0])

    def _in_batch(self, query: str, values: tuple[Any, ...]) -> list[list[tuple[Any, ...]]]:
        if self._con is None:
            raise ServerLost(self.where, "the connection was lost in the midst of a batch")
        return self._ask(query, values)

    def keep(self, step: Step) -> None:
        """Keep a batch and let go of the head.

        Raises:
            ServerLost: whether it was kept is to be looked up.
        """
        told_ = {
            "events": [(*e[:-1], e[-1].hex()) for e in step.events], "head": step.head, "totals": step.totals,
            "open": step.open, "ended": step.ended, "budgets": step.budgets, "freed": step.freed,
        }  # fmt: skip
        query = "select tokenbudget.append(%s, %s, %s::jsonb); commit"
        self._in_batch(query, (self._number, step.before, json.dumps(told_)))
        self._acknowledged = (step.events[-1].seq, step.events[-1].hash)

    def release(self) -> None:
        """Let go of the head; nothing was decided."""
        if self._con is not None:
            with contextlib.suppress(LedgerUnavailable):  # then the connection is closed, which lets go as well
                self._ask("rollback", ())

    def kept(self, seq: int, head: bytes) -> bool:
        """Whether an event stands in the log, when everybody has let go of the head, also who was cut off."""
        query = (
            "begin; select 1 from tokenbudget.heads where ledger = %s for no key update;"
            " select hash from tokenbudget.log where ledger = %s and seq = %s; commit"
        )
        found = self._patiently(query, (self._number, self._number, seq))[2]
        stands = bool(found) and bytes(found[0][0]) == head
        if stands:
            self._acknowledged = max(self._acknowledged, (seq, head))
        return stands

    def listen(self, ring: Callable[[], None]) -> None:
        """Somebody waits here: be called when something was freed elsewhere."""
        if self._listener is None or not self._listener.needed():
            self._listener = Listener(self._server, self._number, ring)

    def watch(self, bell: Bell) -> bool:
        """Somebody looks at this ledger: ring for them when it was changed, also elsewhere; whether that is so already."""
        with self._watching:
            self._bells.add(bell)
            watcher = self._watcher
            if watcher is None or not (watcher.needed() or watcher.is_young()):
                self._watcher = watcher = Listener(self._server, self._number, self._ring_all, watches=True)
            return watcher.called

    def _ring_all(self) -> None:
        for bell in list(self._bells):
            bell.ring()

    def _connect(self) -> psycopg.Connection[Any]:
        self._con = connected(self._server)
        return self._con

    def _drop(self) -> None:
        con, self._con = self._con, None
        if con is not None:
            con.close()

    # --- reading ---------------------------------------------------------------------------------------------------------

    def load(self, after: int = 0) -> Iterator[Event]:
        """All events with a larger `seq`, in order."""
        return self._read(after, None)

    def _read(self, after: int, upto: int | None) -> Iterator[Event]:
        import psycopg

        query = (
            "select tokenbudget.plain(l) from tokenbudget.log l"
            " where ledger = %s and seq > %s and seq <= coalesce(%s, seq) order by seq"
        )
        try:
            with reading(self._server) as con, psycopg.ServerCursor(con, "events") as cursor:
                cursor.itersize = _FETCH
                cursor.execute(query, (self._number, after, upto))
                for (row,) in cursor:
                    yield _event(row)
        except psycopg.Error as error:
            raise told(self.where, error) from None

    def proved(self, upto: int) -> Iterator[tuple[Iterable[Event], bool]]:
        """The events up to a `seq`, in batches; whether their hashes are known to continue the chain.

        Raises:
            LedgerCorrupt: there are others, which no batch brings and whoever reads the log would take for spent.
        """
        self._no_others()
        if upto <= _FEW:
            return iter([(self._read(0, upto), False)])
        return proved(fetched(self._server, self._number, None, upto))

    def _no_others(self) -> None:
        """See to it that no row stands before the first event or behind the head: whoever spends may add rows."""
        import psycopg

        query = (
            "select min(l.seq) from tokenbudget.log l join tokenbudget.heads h using (ledger)"
            " where ledger = %s and (l.seq < 1 or l.seq > h.seq)"
        )
        try:
            with reading(self._server) as con:
                rows = con.execute(query, (self._number,)).fetchall()
        except psycopg.Error as error:
            raise told(self.where, error) from None
        if rows[0][0] is not None:
            raise LedgerCorrupt(rows[0][0], "it stands outside the order of the events; somebody has added it")

    def find(self, ids: Sequence[str], keys: Sequence[tuple[str, str]]) -> list[Event]:
        """All events of these entries and commands, in order."""
        with reading(self._server) as con:
            query = "select tokenbudget.plain(l) from tokenbudget.found(%s, %s::uuid[], %s::json) l order by seq"
            rows = con.execute(query, (self._number, _uuids(ids), json.dumps(list(keys)))).fetchall()
        return [_event(row) for (row,) in rows]

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,  # noqa: ARG002 - they are texts here
    ) -> Any:
        """The events as a `pyarrow.RecordBatchReader`."""
        if where is None:
            return fetched(self._server, self._number, columns, upto)
        wanted = COLUMNS if columns is None else tuple(columns)
        needed = {*wanted, *columns_of(where), "seq"}
        reader = fetched(self._server, self._number, [name for name in COLUMNS if name in needed], upto, where)
        return only(reader, wanted, where)

    # --- what a file needs and a server does not ---------------------------------------------------------------------------

    def snapshot(self) -> State | None:
        """None: nothing is replayed."""
        return None

    def append(self, events: Sequence[Event]) -> None:  # noqa: ARG002 - nothing is written
        """Not without what the events amount to: see `keep`."""
        raise InvalidValue("events", f"{self.where} takes a batch with what it amounts to")

    def is_disturbed(self) -> bool:
        """Never: whoever writes takes the head."""
        return False

    def clock_mark(self) -> Mark | None:
        """None: it is the server that says what time it is."""
        return None

    def keep_clock_mark(self, mark: Mark) -> None:
        """The server says what time it is."""

    def tend(self, state: State) -> None:
        """The server tends itself."""

    def copy(self) -> str:
        """There is no file."""
        raise InvalidValue("backup", "a ledger on PostgreSQL has no file to copy; pg_dump copies the database")

    def reopen(self) -> None:
        """Let go of the connection; the next batch makes another."""
        self._drop()

    def close(self, state: State | None = None) -> None:  # noqa: ARG002 - nothing is kept of it
        """Let go of the connection."""
        if os.getpid() != self._pid:
            return
        listening = [listener for listener in (self._listener, self._watcher) if listener is not None and listener.needed()]
        for listener in listening:
            listener.close()
            with contextlib.suppress(LedgerUnavailable):  # then it is cut off as well, or ends by itself
                self._ask("select pg_notify(%s, '')", (listener.channel,))
        for listener in listening:
            listener.join()
        self._drop()


def _number(con: psycopg.Connection[Any], server: Server) -> int:
    """Of a ledger in its database."""
    import psycopg

    failed: LedgerUnavailable
    try:
        found = con.execute("select schema from tokenbudget.meta").fetchall()
        if len(found) != 1 or found[0][0] != SCHEMA:
            raise VersionMismatch("schema", SCHEMA, found[0][0] if found else 0)
        row = con.execute("select ledger from tokenbudget.heads where name = %s", (server.ledger,)).fetchone()
        if row is None:
            raise LedgerMissing(server.where, f"the database has none of the name {server.ledger!r}")
        return int(row[0])
    except psycopg.Error as error:
        failed = told(server.where, error)
    raise failed


def _uuids(ids: Sequence[str]) -> list[str]:
    """Those that are ids at all: nothing else is in the log."""
    found = []
    for id in ids:
        with contextlib.suppress(ValueError):
            found.append(str(UUID(id)))
    return found


def _event(row: list[Any]) -> Event:
    row[7], row[24], row[26] = tuple(row[7]), tuple(map(tuple, row[24])), bytes.fromhex(row[26])
    return Event(*row)


def _rows(rows: list[list[Any]] | None) -> list[Row]:
    return [(budget, window, start, tuple(numbers), alerted) for budget, window, start, numbers, alerted in rows or ()]


def _loaded(told: dict[str, Any]) -> Loaded:
    seq, ts, head, id, recovered, clock_accepted, in_flight, changed = told["head"]
    return Loaded(
        seq, ts, bytes.fromhex(head), id, recovered, clock_accepted, in_flight, changed, told["now"], told["due"], told["next"],
        [_event(row) for row in told["events"]], told["names"], told["starts"], _rows(told["totals"]),
        [(name, definition) for name, definition in told["budgets"] or ()],
    )  # fmt: skip
