"""Events in a DuckDB file, owned by this process.

The owner holds an exclusive `flock` on a file of its own from before DuckDB opens the ledger until after it has closed it:
DuckDB's own lock is lost as soon as its process merely reads the file (a copy, a hash). DuckDB never checkpoints by itself:
a process killed in a checkpoint is the one way to leave a file that does not open. Each append ends with the head of the
chain in a file of its own; a ledger that does not reach it is opened for reading only.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import marks, snapshots
from ..clock import Mark
from ..conditions import Condition, to_sql
from ..desk import Latch, finish
from ..errors import LedgerDamaged, LedgerForked, NotALedger, StoreFailed, TokenBudgetError, VersionMismatch
from ..events import SCHEMA_VERSION, Event
from ..findings import connect, first_line, hash_of, is_damage, last_of, last_whole, missing, other_columns, tell_trouble
from ..heads import Head, Heads, sync_folder
from ..place import Place, check_content, out_of_files, warn_if_shared
from ..recovery import Checkpoint, Undisturbed, copy_aside, copy_once, log_of, new_folder, put_back, readable_copy, rewrite_log
from ..rows import COLUMNS, PLAIN, Rows, from_arrow, from_plain, proved, to_batch, to_row
from ..state import State
from ..store import Loss

if TYPE_CHECKING:
    import duckdb
    from filelock import BaseFileLock

log = logging.getLogger("tokenbudget_lab")

# Up to which version each statement brings a file; a file is never changed by an older package.
MIGRATIONS: dict[int, str] = {}


def _as_text(column: str) -> str:
    """A column as Arrow has it: ids as text."""
    return f"{column}::varchar as {column}" if column in ("command", "reservation") else column


_FETCH = 50_000
_INSERT = f"insert into events values ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - question marks
CHECKPOINT_TRANSACTIONS = int(os.environ.get("TOKENBUDGET_CHECKPOINT_TRANSACTIONS", "10000"))  # half a second to replay
LOGGED = 2_000  # bytes of log per transaction: 1.2 kB of a record, 2.9 kB of a call with tags, 4.8 kB of one with a price
CHECKPOINT_LOG = 64 * 2**20  # bytes, or a tenth of the file where that is more
LEFT_OVER_S = 24 * 3600.0  # after which nobody is at work on a copy any more
SNAPSHOT_EVENTS = 10_000  # behind the last snapshot, at closing
MANY = 150  # from here on an Arrow batch is cheaper than the appender, and leaves the interpreter free while it is written

_open_stores: weakref.WeakSet[DuckDBStore] = weakref.WeakSet()


class DuckDBStore:
    """The ledger in a file; made if it does not exist.

    Args:
        place: where it lives.
        role: what this process is: `embedded`, the `keeper`, or in the middle of a `recovery`.
        accept_loss: go on without acknowledged events that the file has lost.

    Attributes:
        damage: why it is open for reading only.
        loss: what was given up, until it stands in the log.
        told: what opening it put right by itself, for whoever asked for it to be opened.

    Raises:
        LedgerBusy: another process owns the file.
        NotALedger: the file is something else, or cannot be written.
        VersionMismatch: a newer package made it.
    """

    shared = False

    def __init__(
        self, place: Place, *, role: Literal["embedded", "keeper", "recovery"] = "embedded", accept_loss: bool = False
    ) -> None:
        self.place, self.where, self._role = place, str(place.file), role
        self.damage: LedgerDamaged | None = None
        self.loss: Loss | None = None
        self.told: list[str] = []
        self._accept_loss, self._checkpoint, self._transactions = accept_loss, Checkpoint(place), 0
        self._as_left, self._acknowledged = Undisturbed(place), Head(0, b"")
        self._whole_before: int | None = None  # while it is damaged: what stands from here on does not count
        self._put_off = 0  # no checkpoint before so many transactions
        self._snapped = 0  # `seq` of the snapshot
        self._pid = os.getpid()
        self._reading = threading.Lock()
        self._rows: weakref.WeakSet[Rows] = weakref.WeakSet()
        place.make_folder()
        warn_if_shared(place.file.parent)
        try:
            self._own(role)
        except TokenBudgetError as error:
            raise out_of_files(self.where, error) or error from error.__cause__
        _open_stores.add(self)

    def _own(self, role: str) -> None:
        self._lock = self._acquire()
        try:
            self._note_lock()
            self.place.write_owner(role=role)
            self._heads = Heads(self.place.heads)
            self._undisturbed(self._open)
            self._transactions = self._logged()
        except OSError as error:
            self._lock.release()
            raise StoreFailed(f"{self.place.folder}: {error}") from error
        except BaseException:
            self._lock.release()
            raise

    def _undisturbed(self, work: Callable[[], None]) -> None:
        """Run in a thread of its own: in the main thread Ctrl-C would end DuckDB's work somewhere in the middle.

        Interrupted, it lets the work end, takes it back, and then lets the interrupt through.
        """
        failed: list[BaseException] = []
        done = Latch()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
                failed.append(error)
            done.open()

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

        head = self._heads.read()
        if self._acknowledged.seq > (head.seq if head is not None else 0):  # the heads were lost while it was open
            head = self._acknowledged
        if not self.place.file.exists() and (head is None or self._accept_loss):
            self._clear_the_way()
            self._make()
        con, found = self._settled(head)
        if found is not None:
            con = self._damaged(con, head or Head(0, b""), *found)
        assert con is not None  # noqa: S101 - nothing was found, or it can be read; tells the type checker
        try:
            self._con = con
            self._insert = con.extract_statements(_INSERT)[0]
            if self.damage is None:
                self._protected = self._protect()
                self._appender = con.appender("events")
                last = last_of(con)
                hash = hash_of(con, last)
                if hash is not None and self.loss is None and (last, hash) != self._heads.read():
                    self._heads.write(Head(last, hash))
                self._as_left.note()
        except BaseException as error:
            con.close()
            if isinstance(error, duckdb.Error | OSError):
                raise NotALedger(self.where, first_line(error)) from error
            raise

    def _settled(self, head: Head | None) -> tuple[duckdb.DuckDBPyConnection | None, tuple[int, str] | None]:
        """What `_look` finds when nothing is left of a checkpoint that was cut short.

        While a connection is open DuckDB takes whoever opens the same name to what it had opened, even if another file is there
        now: it has to be closed before a file is put back, and whatever fails.
        """
        con, found = self._look(head)
        if not self._checkpoint.interrupted:
            return con, found
        last = 0 if con is None or found is not None else last_of(con)  # an older folder may have been put beside a newer file
        ended = self._checkpoint.is_behind(last)
        if not ended and self._checkpoint.has_copy:
            if con is not None:  # what was written may not be on the disk, though it can be read; the copy is
                con.close()
            kept = self._checkpoint.restore(keep=found is not None)
            if kept is not None:
                self.told.append(
                    f"{self.where}: a checkpoint was cut short; the copy made before it is back, what was found is in {kept}"
                )
                log.warning("%s", self.told[-1])
            con, found = self._look(head)
        try:
            self._checkpoint.end()
        except OSError:
            if con is not None:
                con.close()
            raise
        return con, found

    def _look(self, head: Head | None) -> tuple[duckdb.DuckDBPyConnection | None, tuple[int, str] | None]:
        """Open the file, and say from which event on it is not what it was, and why; nothing is written."""
        import duckdb

        if not self.place.file.exists():
            return None, (1, "the file is gone")
        if not os.access(self.place.file, os.R_OK | os.W_OK):
            raise NotALedger(self.where, "it cannot be read and written by this user")
        nothing = head is None and not self._checkpoint.interrupted  # was ever acknowledged from here
        try:
            check_content(self.place.file)
        except NotALedger as error:
            if nothing or error.__cause__ is not None:  # it could not be read
                raise
            return None, (0, error.reason)
        try:
            con = connect(self.place.file)
        except duckdb.Error as error:
            tell_trouble(self.where, error)
            if nothing or not is_damage(error, self.place.file):
                raise NotALedger(self.where, f"DuckDB cannot open it ({first_line(error)})") from error
            return None, (0, f"DuckDB cannot open it: {first_line(error)}")
        try:
            self._check_version(con)
            found = None if head is None else missing(con, head)
        except duckdb.Error as error:
            con.close()
            tell_trouble(self.where, error)
            if head is None:
                raise NotALedger(self.where, first_line(error)) from error
            return None, (0, f"DuckDB cannot read it: {first_line(error)}")
        except BaseException:
            con.close()
            raise
        return con, found

    def _damaged(self, con: duckdb.DuckDBPyConnection | None, head: Head, seq: int, reason: str) -> duckdb.DuckDBPyConnection:
        """Copy away what was found; then read what is good, or go on without the rest where that was asked for."""
        if con is not None and not self._accept_loss:
            con.close()
        try:
            copy = copy_once(self.place)
        except BaseException:
            if con is not None:
                con.close()
            raise
        readable = None
        if con is None:
            readable = readable_copy(copy, self._checkpoint.copy, self.place.file.name, reason, last_whole)
            if readable is None:
                raise LedgerDamaged(seq, f"{reason}; nothing of it can be read", self.where, head.seq, str(copy))
            con = connect(readable, read_only=True)
            seq = last_of(con) + 1
        elif not self._accept_loss:
            con = connect(self.place.file, read_only=True)
        if not self._accept_loss:
            self._whole_before = seq
            self.damage = LedgerDamaged(seq, reason, self.where, head.seq, str(copy))
            log.warning("%s", self.damage)
            return con
        self.damage, self.loss, self._whole_before = None, Loss(seq, head.seq, reason, copy.name), None
        if readable is not None:
            con.close()
            put_back(self.place, readable.parent, readable.name)
            con = connect(self.place.file)
        elif last_of(con) >= seq:  # what stands behind a gap cannot be kept
            con.close()
            self._make(copy / self.place.file.name, seq)
            log_of(self.place.file).unlink(missing_ok=True)
            con = connect(self.place.file)
        return con

    def _clear_the_way(self) -> None:
        """A log without its file belongs to what was there before, and no new file can be opened beside it."""
        log = log_of(self.place.file)
        if not log.exists():
            return
        if not self._accept_loss:
            raise NotALedger(
                self.where, f"its file is gone and its log is there: put the file back beside {log}, or move the log away"
            )
        copy_once(self.place)
        log.unlink()

    def _make(self, kept: Path | None = None, before: int = 0) -> None:
        """A ledger, made aside and put in its place in one step: killed before, there is none, and no half of one.

        Args:
            kept: a file whose events it begins with; none where it is new.
            before: up to which `seq`, that one left out.
        """
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
                if kept is not None:
                    con.execute("attach '{}' as kept (read_only)".format(str(kept).replace("'", "''")))
                    con.execute("insert into events select * from kept.events where seq > 0 and seq < ? order by seq", [before])
                    con.execute("detach kept")
                con.execute("checkpoint")  # said, because what fails while it closes is not told
            if log_of(draft).exists():
                raise OSError(f"{log_of(draft)} could not be folded into it")
            draft.chmod(0o600)
            draft.rename(self.place.file)
            sync_folder(self.place.file.parent)
        except (OSError, duckdb.Error) as error:
            if isinstance(error, PermissionError) or "Permission denied" in str(error):
                raise NotALedger(self.where, f"it cannot be made ({first_line(error)})") from error
            raise StoreFailed(f"{self.where} cannot be made: {first_line(error)}") from error

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
        other = other_columns(con)
        if other is not None:
            raise NotALedger(self.where, other)

    def _protect(self) -> bool:
        """Nobody else may read it; whether its log is there, which DuckDB makes with the first append."""
        wal = log_of(self.place.file)
        for path in (self.place.file, wal):
            with contextlib.suppress(FileNotFoundError):
                path.chmod(0o600)
        return wal.exists()

    def load(self, after: int = 0) -> Iterator[Event]:
        """All events with a larger `seq`, in order."""
        where = f"where seq > {int(after)}"
        if self._whole_before is not None:
            where += f" and seq < {self._whole_before}"
        if last_of(self._con) - after >= _FETCH:  # importing Arrow takes longer than it saves for few, and room for many
            return from_arrow(self._arrow(where))
        few = self._con.cursor().execute(f"select {PLAIN} from events {where} order by seq")  # noqa: S608 - names of our own
        return from_plain(few.fetchall())

    def proved(self, upto: int) -> Iterator[tuple[Iterable[Event], bool]]:
        """The events up to a `seq`, and what has no place in the order, in batches; whether their hashes continue the chain."""
        return proved(self._arrow(f"where seq <= {int(upto)} or seq is null"))

    def snapshot(self) -> State | None:
        """The fold at an event of this file, as far as it was kept; `None` where it does not fit or there is none."""
        state = snapshots.read(self.place.snapshot)
        if state is None:
            return None
        if hash_of(self._con, state.seq) != state.head:
            return None
        self._snapped = state.seq
        return state

    def append(self, events: Sequence[Event]) -> None:
        """Keep these events in one transaction, synced to disk when this returns."""
        if self._pid != os.getpid():
            raise LedgerForked(self._pid)
        if self.damage is not None:
            raise self.damage
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
            if not self._as_left.log_has_changed():
                raise OSError("what was written is not in the log of this name")
            if self.loss is not None:  # it stands in the log now
                self._heads.reset()
                self.loss, self._accept_loss = None, False
            self._heads.write(head := Head(events[-1].seq, events[-1].hash))
        except Exception as error:
            raise StoreFailed(first_line(error)) from error
        self._acknowledged = head
        self._transactions += 1
        if not self._protected:
            try:
                self._protected = self._protect()
            except OSError as error:
                raise StoreFailed(first_line(error)) from error
        self._as_left.note()

    def is_disturbed(self) -> bool:
        """Whether file, log, heads or lock are not as they were left: replaced, removed, or written by somebody else."""
        name = self._as_left.disturbed()
        if name is not None and self.damage is None:
            log.warning("%s: %s was changed by somebody else while in use; it is opened again", self.where, name)
        return name is not None

    def tend(self, state: State) -> None:
        """What is due when nobody waits: a checkpoint, behind a copy of the file, before the log takes long to replay.

        Raises:
            StoreFailed: it could not be made; the file has to be opened again.
        """
        if self.damage is not None or not self._is_due():
            return
        import duckdb

        if self.is_disturbed():
            raise StoreFailed("no checkpoint of a file that somebody else has changed")
        try:
            self._checkpoint.begin(state.seq)
        except StoreFailed as error:
            if self._checkpoint.interrupted:  # marked, and perhaps not on the disk
                raise
            log.warning(
                "%s: no checkpoint now; %s", self.where, error
            )  # no room for the copy; what is written is not in danger
            self._put_off = self._transactions + max(1, CHECKPOINT_TRANSACTIONS // 10)
            return
        try:
            self._con.execute("checkpoint")
        except duckdb.TransactionException:  # somebody reads; the copy was in vain, and the next time is near
            self._put_off = self._transactions + max(1, CHECKPOINT_TRANSACTIONS // 10)
        except duckdb.Error as error:
            raise StoreFailed(f"the checkpoint failed: {first_line(error)}") from error
        else:
            self._transactions, self._put_off, self._protected = 0, 0, False
        try:
            self._checkpoint.end()
        except OSError as error:
            raise StoreFailed(first_line(error)) from error
        self._as_left.note()
        self._snap(state)

    def _snap(self, state: State) -> None:
        try:
            snapshots.write(self.place.snapshot, state)
        except OSError as error:  # it saves time and nothing else
            log.warning("%s: no snapshot (%s)", self.where, error)
        else:
            self._snapped = state.seq

    def _logged(self) -> int:
        """About how many transactions stand in the log: owners that each write a few make a long one together."""
        with contextlib.suppress(FileNotFoundError):
            return log_of(self.place.file).stat().st_size // LOGGED
        return 0

    def _is_due(self) -> bool:
        if self._transactions < max(1, self._put_off):
            return False
        if self._transactions >= CHECKPOINT_TRANSACTIONS:
            return True
        with contextlib.suppress(FileNotFoundError):
            size = log_of(self.place.file).stat().st_size
            return size > CHECKPOINT_LOG and size > self.place.file.stat().st_size // 10
        return False

    def copy(self) -> str:
        """A copy of file and log, in a new folder beside the ledger; those of backups that were killed long ago are removed."""
        for old in self.place.folder.glob("copy-*"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > LEFT_OVER_S:
                    shutil.rmtree(old)
        return str(copy_aside(self.place, new_folder(self.place, "copy")) / self.place.file.name)

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
            select {PLAIN} from events
            where reservation in (select id from entries) or command in (select id from wanted)
            order by seq
            """,  # noqa: S608 - names of our own; values are parameters
            [_uuids(ids), by_key],
        )
        return list(from_plain(cursor.fetchall()))

    def clock_mark(self) -> Mark | None:
        """What was kept last about the machine's clock."""
        return marks.read(self.place.clock)

    def keep_clock_mark(self, mark: Mark) -> None:
        """Keep this about the machine's clock for the next owner.

        Raises:
            StoreFailed: it is not sure to be kept.
        """
        try:
            marks.write(self.place.clock, mark)
        except OSError as error:
            raise StoreFailed(f"{self.place.clock} cannot be written ({error})") from error

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,
    ) -> Any:
        """The events as a `pyarrow.RecordBatchReader`, over a cursor of its own."""
        chosen = COLUMNS if columns is None else [c for c in columns if c in COLUMNS]
        asked, given = ("true", {}) if where is None else to_sql(where, COLUMNS)
        upto_there = "" if upto is None else f"seq <= {int(upto)} and "
        return self._arrow(f"where {upto_there}{asked}", chosen, given, uuids=uuids)

    def _arrow(
        self, where: str, columns: Sequence[str] = COLUMNS, given: dict[str, Any] | None = None, *, uuids: bool = False
    ) -> Any:
        names = ", ".join(columns if uuids else map(_as_text, columns))
        with self._reading:
            cursor = self._con.cursor()
            if uuids:
                cursor.execute("set session arrow_lossless_conversion = true")  # of this cursor only
            query = f"select {names} from events {where} order by seq"  # noqa: S608 - names of our own; values are parameters
            reader = cursor.sql(query, params=given or None).to_arrow_reader(_FETCH)
        rows = Rows(reader, self.where)
        self._rows.add(rows)
        return rows.reader()

    def reopen(self) -> None:
        """Open the file again: what DuckDB replays is what is kept.

        Raises:
            LedgerUnavailable: it does not open.
        """
        import duckdb

        for rows in list(self._rows):
            rows.end()
        with contextlib.suppress(duckdb.Error):
            self._con.close()
        try:
            self._take_again()
            rewrite_log(self.place)
        except OSError as error:
            raise StoreFailed(f"the log could not be synced ({error})") from error
        self._open()

    def _take_again(self) -> None:
        """Lock and heads, where somebody has removed them from their folder: else another owner would take them too.

        Raises:
            LedgerBusy: one has.
        """
        if not (self._lock.is_locked and self.owns_lock()):
            self._lock.release()
            self.place.make_folder()
            self._lock = self._acquire()
            self._note_lock()
            if not self.place.owner.exists():
                self.place.write_owner(role=self._role)
        heads = Heads(self.place.heads)
        self._heads.close()
        self._heads = heads

    def _note_lock(self) -> None:
        self._lock_file = self.place.lock.stat().st_ino

    def owns_lock(self) -> bool:
        """Whether the file that is locked is the one that others would lock."""
        with contextlib.suppress(OSError):
            return self.place.lock.stat().st_ino == self._lock_file
        return False

    def close(self, state: State | None = None) -> None:
        """Close the file, then let go of the lock; a fold that is given, and far from the last snapshot, becomes one."""
        _open_stores.discard(self)
        if self._pid == os.getpid():
            if state is not None and self.damage is None and state.seq - self._snapped >= SNAPSHOT_EVENTS:
                self._snap(state)
            self._con.close()
            self._heads.close()
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


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
