"""What a ledger's DuckDB file has in it, and what DuckDB says when it has not: damage, or trouble that is no damage.

Queries go over cursors, whose optimizer is on: it skips what cannot hold the row, and nothing stands in the way of the next
append.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FileInUse, StoreFailed
from .heads import Head
from .ids import new_id
from .place import out_of_files
from .rows import COLUMNS, TYPES

if TYPE_CHECKING:
    import duckdb

_HOLDER = re.compile(r"Could not set lock on file.*?PID (\d+)", re.DOTALL)
_DAMAGE = re.compile(r"checksum|corrupt|WAL|replay|serializ|not a valid DuckDB|block|header|enough bytes", re.IGNORECASE)
# What says nothing of the file: this process has it open already; the disk, or this process, is in trouble.
_NO_DAMAGE = ("different configuration", *map(os.strerror, (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)))


def connect(file: Path, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Open a file as an owner does: one thread, no checkpoint but those that are asked for.

    Raises:
        duckdb.Error: it does not open.
    """
    import duckdb

    # A name of its own, because DuckDB would hand out what this process still has open under this path, as it was then,
    # even if another file is there now: with another setting it refuses to.
    config: dict[str, Any] = {
        "threads": 1,
        "autoinstall_known_extensions": False,
        "custom_user_agent": f"tokenbudget_lab {new_id()}",
    }
    con = duckdb.connect(str(file), read_only=read_only, config=config)
    con.execute("PRAGMA disable_checkpoint_on_shutdown")
    con.execute("SET checkpoint_threshold = '1TB'")
    con.execute("SET TimeZone = 'UTC'")
    con.execute("PRAGMA disable_optimizer")  # appends take a tenth less; readers have cursors, with theirs on
    return con


def tell_trouble(where: str, error: duckdb.Error) -> None:
    """Raise what has nothing to do with what is in the file.

    Raises:
        FileInUse: another program has opened it.
        StoreFailed: the disk, or this process, is in trouble.
    """
    if any(said in str(error) for said in _NO_DAMAGE):
        raise StoreFailed(f"{where} cannot be opened: {first_line(error)}") from error
    held = _HOLDER.search(str(error))
    if held is not None:
        raise FileInUse(where, int(held[1])) from error


def last_whole(file: Path) -> int:
    """The last event of a file that is whole; -1 where DuckDB does not open it, or events are missing."""
    import duckdb

    with contextlib.suppress(duckdb.Error), connect(file, read_only=True) as con:
        last = int(con.execute("select coalesce(max(seq), 0), count(hash) from events").fetchall()[0][0])
        gap = _gap(con, last)
        return last if gap is None else -1
    return -1


def missing(con: duckdb.DuckDBPyConnection, head: Head) -> tuple[int, str] | None:
    """From which event on the file is not what was acknowledged, and why."""
    there = last_of(con)
    gap = _gap(con, there)
    if gap is not None:
        return gap, f"events are missing or double from event {gap} on, though later ones are there"
    if there < head.seq:
        return there + 1, f"{head.seq - there} events are missing behind event {there}"
    if hash_of(con, head.seq) != head.hash:
        return head.seq, "it is another ledger's file, an older copy that went on, or was changed"
    return None


def _gap(con: duckdb.DuckDBPyConnection, last: int) -> int | None:
    """The first `seq` that is not there once, before the last one; the count alone tells where all is well."""
    count = "select count(*) from events"
    if con.cursor().execute(count).fetchall() == [(last,)]:
        return None
    first_wrong = """
        select coalesce(min(place), 1) from (
            select seq, row_number() over (order by seq) as place from events where seq > 0
        ) where seq is distinct from place
    """
    return int(con.cursor().execute(first_wrong).fetchall()[0][0])


def other_columns(con: duckdb.DuckDBPyConnection) -> str | None:
    """What of the events table is not as it was made: the same digits in a column of another scale are other amounts."""
    described = con.cursor().execute("select * from events limit 0").description or ()
    found = {name: str(kind) for name, kind, *_ in described}
    if tuple(found) != COLUMNS:
        return "the columns of events are not those of a ledger"
    other = next((name for name in COLUMNS if found[name] != TYPES[name]), None)
    return None if other is None else f"the column {other} of events is {found[other]}, and was {TYPES[other]}"


def is_damage(error: duckdb.Error, file: Path) -> bool:
    """Whether DuckDB could get at the file and did not like what it found: no lock, permission or disk was in the way."""
    import duckdb

    said = str(error).replace(str(file), "")  # whatever its name is
    if out_of_files("", error) or "Could not set lock" in said:  # said of the log, it would look like damage
        return False
    return not isinstance(error, duckdb.IOException) or bool(_DAMAGE.search(said))


def last_of(con: duckdb.DuckDBPyConnection) -> int:
    """The last event."""
    return int(con.cursor().execute("select coalesce(max(seq), 0) from events").fetchall()[0][0])


def hash_of(con: duckdb.DuckDBPyConnection, seq: int) -> bytes | None:
    """An event's hash."""
    rows = con.cursor().execute("select hash from events where seq = ?", [seq]).fetchall()
    return None if not rows or rows[0][0] is None else bytes(rows[0][0])


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
