"""Events in a DuckDB file, owned by this process.

The owner holds an exclusive `flock` on a file of its own from before DuckDB opens the ledger until after it has closed it:
DuckDB's own lock is lost as soon as its process merely reads the file (a copy, a hash). DuckDB never checkpoints by itself:
a process killed in a checkpoint is the one way to leave a file that does not open.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from ..errors import LedgerForked, NotALedger, StoreFailed, VersionMismatch
from ..events import SCHEMA_VERSION, Event
from ..place import Place, check_content, warn_if_shared
from ..rows import COLUMNS, from_row, to_batch, to_row
from ..writer import finish

if TYPE_CHECKING:
    import duckdb
    from filelock import BaseFileLock

# Up to which version each statement brings a file; a file is never changed by an older package.
MIGRATIONS: dict[int, str] = {}
_SELECT = ", ".join(COLUMNS)
_FETCH = 20_000
_INSERT = f"insert into events values ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - question marks
MANY = 150  # from here on an Arrow batch is cheaper than the appender, and leaves the interpreter free while it is written

_open_stores: weakref.WeakSet[DuckDBStore] = weakref.WeakSet()


class DuckDBStore:
    """The ledger in a file; made if it does not exist.

    Args:
        place: where it lives.
        role: what this process is: `embedded`, or the `keeper`.

    Raises:
        LedgerBusy: another process owns the file.
        NotALedger: the file is something else, or cannot be written.
        VersionMismatch: a newer package made it.
    """

    def __init__(self, place: Place, *, role: Literal["embedded", "keeper"] = "embedded") -> None:
        self.place, self.where = place, str(place.file)
        self._pid = os.getpid()
        self._reading = threading.Lock()
        place.make_folder()
        warn_if_shared(place.file.parent)
        self._lock = self._acquire()
        try:
            place.write_owner(role=role)
            self._undisturbed(self._open)
        except BaseException:
            self._lock.release()
            raise
        _open_stores.add(self)

    def _undisturbed(self, work: Callable[[], None]) -> None:
        """Run in a thread of its own: in the main thread Ctrl-C would end DuckDB's work somewhere in the middle.

        Interrupted, it lets the work end, takes it back, and then lets the interrupt through.
        """
        failed: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
                failed.append(error)
            done.set()

        threading.Thread(target=run, name=f"tokenbudget opening {self.where}", daemon=True).start()
        try:
            done.wait()
        except BaseException:
            with contextlib.suppress(KeyboardInterrupt):  # one is on its way already
                finish(done)
            if not failed:
                self._con.close()
            raise
        if failed:
            raise failed[0]

    def _acquire(self) -> BaseFileLock:
        import filelock

        lock = filelock.FileLock(
            self.place.lock, mode=0o600, preserve_lock_file=True, fallback_to_soft=False, thread_local=False, blocking=False
        )
        try:
            lock.acquire()
        except filelock.Timeout:
            raise self.place.busy("Close it there, or connect without embedded=True.") from None
        except OSError as error:
            raise NotALedger(self.where, f"its lock cannot be taken ({error})") from error
        return lock

    def _open(self) -> None:
        import duckdb

        if not self.place.file.exists():
            self._make()
        check_content(self.place.file)
        try:
            con = duckdb.connect(self.where, config={"threads": 1, "autoinstall_known_extensions": False})
        except duckdb.Error as error:
            raise NotALedger(self.where, f"DuckDB cannot open it ({_first_line(error)})") from error
        try:
            con.execute("PRAGMA disable_checkpoint_on_shutdown")
            con.execute("SET checkpoint_threshold = '1TB'")
            con.execute("SET TimeZone = 'UTC'")
            con.execute("PRAGMA disable_optimizer")  # appends take a tenth less; readers have cursors, with theirs on
            self._check_version(con)
            self._protected = self._protect()
        except BaseException as error:
            con.close()
            if isinstance(error, duckdb.Error):
                raise NotALedger(self.where, _first_line(error)) from error
            raise
        self._con = con
        self._appender = con.appender("events")
        self._insert = con.extract_statements(_INSERT)[0]

    def _make(self) -> None:
        """A new ledger, made aside and put in its place in one step: killed before, there is none, and no half of one."""
        import duckdb

        draft = self.place.folder / "new.duckdb"
        for left_over in (draft, draft.with_name("new.duckdb.wal")):
            left_over.unlink(missing_ok=True)
        folder = files("tokenbudget_lab.stores")
        try:
            with duckdb.connect(draft) as con:
                con.execute("begin")
                con.execute(folder.joinpath("schema.sql").read_text())
                con.execute(folder.joinpath("views.sql").read_text())
                con.execute("insert into meta values ('schema', ?)", [str(SCHEMA_VERSION)])
                con.execute("commit")
            draft.chmod(0o600)
            draft.rename(self.place.file)
        except (OSError, duckdb.Error) as error:
            raise NotALedger(self.where, f"it cannot be made ({_first_line(error)})") from error

    def _check_version(self, con: duckdb.DuckDBPyConnection) -> None:
        import duckdb

        try:
            rows = con.execute("select value from meta where name = 'schema'").fetchall()
        except duckdb.CatalogException:
            rows = []
        if not rows:
            raise NotALedger(self.where, "it is a DuckDB database without a ledger's tables")
        found = int(rows[0][0])
        if found > SCHEMA_VERSION:
            raise VersionMismatch("schema", SCHEMA_VERSION, found)
        for version in range(found + 1, SCHEMA_VERSION + 1):
            con.execute("begin")
            con.execute(MIGRATIONS[version])
            con.execute("update meta set value = ? where name = 'schema'", [str(version)])
            con.execute("commit")

    def _protect(self) -> bool:
        """Nobody else may read it; whether its log is there, which DuckDB makes with the first append."""
        log = self.place.file.with_name(self.place.file.name + ".wal")
        for path in (self.place.file, log):
            with contextlib.suppress(FileNotFoundError):
                path.chmod(0o600)
        return log.exists()

    def load(self, after: int = 0) -> Iterator[Event]:
        """All events with a larger `seq`, in order."""
        cursor = self._con.cursor()
        cursor.execute(f"select {_SELECT} from events where seq > {int(after)} order by seq")  # noqa: S608 - names of our own
        while rows := cursor.fetchmany(_FETCH):
            yield from map(from_row, rows)
        cursor.close()

    def append(self, events: Sequence[Event]) -> None:
        """Keep these events in one transaction, synced to disk when this returns."""
        if self._pid != os.getpid():
            raise LedgerForked(self._pid)
        try:
            if len(events) == 1:  # parsed once: the appender is planned anew each time, and takes a third longer
                self._con.execute(self._insert, to_row(events[0]))
            elif len(events) < MANY:
                self._appender.append_rows([to_row(event) for event in events])
                self._appender.flush()
            else:
                self._con.register("_new", to_batch(events))
                self._con.execute("insert into events select * from _new").fetchall()
                self._con.unregister("_new")
        except Exception as error:
            raise StoreFailed(_first_line(error)) from error
        if not self._protected:
            self._protected = self._protect()

    def find(self, ids: Sequence[str], keys: Sequence[tuple[str, str]]) -> list[Event]:
        """All events of these entries and commands, in order."""
        cursor = self._con.cursor()
        by_key = [f"{budget}\0{key}" for budget, key in keys]
        cursor.execute(
            f"""
            with wanted as (select unnest(?::uuid[]) as id),
            entries as (
                select id from wanted
                union select reservation from events where command in (select id from wanted)
                union select reservation from events
                      where key is not null and budget || chr(0) || key in (select unnest(?::varchar[]))
            )
            select {_SELECT} from events
            where reservation in (select id from entries) or command in (select id from wanted)
            order by seq
            """,  # noqa: S608 - names of our own; values are parameters
            [_uuids(ids), by_key],
        )
        return [from_row(row) for row in cursor.fetchall()]

    def arrow(self, columns: Sequence[str] | None = None, upto: int | None = None) -> Any:
        """The events as a `pyarrow.RecordBatchReader`, over a cursor of its own."""
        chosen = COLUMNS if columns is None else [c for c in columns if c in COLUMNS]
        cast = {"command": "command::varchar as command", "reservation": "reservation::varchar as reservation"}
        names = ", ".join(cast.get(c, c) for c in chosen)
        where = "" if upto is None else f"where seq <= {int(upto)}"
        with self._reading:
            return self._con.cursor().sql(f"select {names} from events {where} order by seq").to_arrow_reader()  # noqa: S608 - as above

    def reopen(self) -> None:
        """Open the file again: what DuckDB replays is what is kept.

        Raises:
            LedgerUnavailable: it does not open.
        """
        import duckdb

        with contextlib.suppress(duckdb.Error):
            self._con.close()
        self._open()

    def close(self) -> None:
        """Close the file, then let go of the lock."""
        _open_stores.discard(self)
        if self._pid == os.getpid():
            self._con.close()
            self._lock.release()

    def forked(self) -> None:
        """In a forked child: never let DuckDB's destructor run, it would delete the parent's log."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._con))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._appender))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))


def _uuids(ids: Sequence[str]) -> list[str]:
    """Those that are UUIDs at all; nothing else can be in the file."""
    import uuid

    good = []
    for id in ids:
        with contextlib.suppress(ValueError):
            good.append(str(uuid.UUID(id)))
    return good


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
