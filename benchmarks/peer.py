"""The peer: the same steps in SQLite, as a competent engineer would write them at first.

WAL, `synchronous=FULL`, one `BEGIN IMMEDIATE` transaction per step: read the balances of the budget and its two ancestors,
check their limits, update them, write the reservation, append an event with the columns of our own, commit. Its amounts
come as integers and its commands are not looked up by their ids, both in its favour. With `chain=True` its events are
hash-chained as ours are.
"""

from __future__ import annotations

import sqlite3
import time
from hashlib import sha256
from pathlib import Path

from benchmarks.pairs import BUDGETS, LIMIT_PICO, TIMEOUT_US
from tokenbudget_lab.events import FIELDS, GENESIS, canonical
from tokenbudget_lab.ids import new_id

BUSY_S = 60.0
_SCHEMA = f"""
create table budgets (
    name text primary key, limit_usd integer, committed_usd integer, held_usd integer,
    committed_requests integer, held_requests integer, closed integer
) without rowid;
create table reservations (
    id text primary key, budget text, held_usd integer, requests integer, expires integer, state text
) without rowid;
create table events (seq integer primary key, {", ".join(name for name in FIELDS if name != "seq")});
"""
_READ = "select limit_usd, committed_usd, held_usd, closed from budgets where name in (?, ?, ?)"
_HOLD = "update budgets set held_usd = held_usd + ?, held_requests = held_requests + ? where name in (?, ?, ?)"
_COUNT = """
update budgets set held_usd = held_usd - ?, held_requests = held_requests - ?,
       committed_usd = committed_usd + ?, committed_requests = committed_requests + ?
where name in (?, ?, ?)
"""
_EVENT = f"insert into events values ({', '.join('?' * len(FIELDS))})"  # noqa: S608 - question marks


class SQLiteLedger:
    """One connection; a process has one, and its tasks take turns on it.

    Args:
        path: the file, made by `create`.
        origin: what stands on every event about who spends, as in ours.
        chain: whether events are hash-chained.
    """

    def __init__(self, path: Path, origin: str | None, *, chain: bool = False) -> None:
        self._con = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        self._con.execute("pragma synchronous = full")
        self._origin, self._chain = origin, chain

    @staticmethod
    def create(path: Path) -> None:
        """Make the file with its three budgets."""
        con = sqlite3.connect(path, isolation_level=None)
        con.execute("pragma journal_mode = wal")
        con.executescript(_SCHEMA)
        con.executemany("insert into budgets values (?, ?, 0, 0, 0, 0, 0)", [(name, LIMIT_PICO) for name in BUDGETS])
        con.close()

    def reserve(self, usd: int) -> str:
        """Hold an amount (pico-dollars) in all three budgets, or nowhere.

        Raises:
            ValueError: it does not fit.
        """
        id, ts = new_id(), time.time_ns() // 1000
        expires = ts + TIMEOUT_US
        run = self._con.execute
        run("begin immediate")
        for limit, committed, held, closed in run(_READ, BUDGETS):
            if closed or committed + held + usd > limit:
                run("rollback")
                raise ValueError(f"{usd} does not fit")
        run(_HOLD, (usd, 1, *BUDGETS))
        run("insert into reservations values (?, ?, ?, 1, ?, 'open')", (id, BUDGETS[-1], usd, expires))
        self._append(ts, "reserved", id, id, held_usd=usd, expires=expires)
        run("commit")
        return id

    def commit(self, id: str, usd: int) -> None:
        """Count what was used, once.

        Raises:
            ValueError: the reservation is not open.
        """
        command, ts = new_id(), time.time_ns() // 1000
        run = self._con.execute
        run("begin immediate")
        row = run("select held_usd, requests, state from reservations where id = ?", (id,)).fetchone()
        if row is None or row[2] != "open":
            run("rollback")
            raise ValueError(f"{id} is not open")
        run(_COUNT, (row[0], row[1], usd, row[1], *BUDGETS))
        run("update reservations set state = 'committed' where id = ?", (id,))
        self._append(ts, "committed", command, id, usd=usd, basis="measured")
        run("commit")

    def _append(
        self,
        ts: int,
        kind: str,
        command: str,
        reservation: str,
        *,
        held_usd: int | None = None,
        usd: int | None = None,
        basis: str | None = None,
        expires: int | None = None,
    ) -> None:
        seq, previous = None, None
        if self._chain:
            last = self._con.execute("select seq, hash from events order by seq desc limit 1").fetchone()
            seq, previous = (last[0] + 1, last[1]) if last else (1, GENESIS)
        body = (
            seq, ts, kind, command, BUDGETS[-1], reservation, None, None, held_usd, None, usd, None, 1, basis,
            None, None, None, None, None, expires, None, None, None, self._origin, None, None,
        )  # fmt: skip
        self._con.execute(_EVENT, (*body, _hash(previous, body)))

    def check(self, pairs: int) -> None:
        """What was counted is what is in the file: in the events, and in every budget."""
        kinds = dict(self._con.execute("select kind, count(*) from events group by kind").fetchall())
        assert kinds == {"reserved": pairs, "committed": pairs}, (kinds, pairs)
        for row in self._con.execute("select committed_requests, held_requests, held_usd from budgets"):
            assert row == (pairs, 0, 0), (row, pairs)

    def close(self) -> None:
        """Close the connection."""
        self._con.close()


def _hash(previous: bytes | None, body: tuple[object, ...]) -> bytes | None:
    return None if previous is None else sha256(previous + canonical(body)).digest()
