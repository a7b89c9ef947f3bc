"""Writing an export: what is new goes into new files, is read back and proved, and counts when the manifest says so.

Its readers may rely on three things: a file that counts is never written again; what is not whole, or not what the ledger has,
never counts; and an export that was interrupted, or killed, is what it was before, with perhaps files that do not count
and that the next one removes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import GetHead
from .errors import ExportUnsound, InvalidValue, LedgerUnavailable, StoreFailed
from .events import continues
from .exports import LOCK, MANIFEST, MONTH, PART, ExportedFiles, Manifest, Part, export_folder, manifest_of
from .heads import Head, replace_file, sync_folder
from .ledger import Ledger
from .progress import Bar, bar_for
from .rows import arrow_schema, in_utc, proved

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1_000_000  # of a file at most
_DRAFT = ".draft"
_OURS = {MANIFEST, f"{MANIFEST}.tmp", LOCK}


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export has, and what this time has added.

    Attributes:
        folder: where it is.
        rows: events in all.
        new_rows: events that were added.
        new_files: files that were added, as paths from the folder.
        head: the hash of the last event, in hex.
    """

    folder: Path
    rows: int
    new_rows: int
    new_files: tuple[str, ...]
    head: str

    def __str__(self) -> str:
        files = f"{len(self.new_files):,} new file{'' if len(self.new_files) == 1 else 's'}"
        return f"{self.rows:,} events in {self.folder}, {self.new_rows:,} of them new, in {files}; head {self.head[:12]}"


def export(ledger: Ledger, folder: str | os.PathLike[str], *, progress: bool | None = None) -> Exported:
    """Write the events that an export does not have yet; see `Ledger.export`."""
    target = export_folder(folder)
    _, last, hash, *_ = ledger.ask(GetHead(ledger.new_id()))  # a damaged ledger has none that could be believed
    made = not target.exists()
    if made and not target.parent.is_dir():
        raise InvalidValue("folder", f"the folder {target.parent} does not exist")
    try:
        if made:
            target.mkdir(mode=0o700)
            sync_folder(target.parent)
        _only_ours(target)
        with _locked(target):
            return _grown(ledger, target, Head(last, hash), progress)
    except OSError as error:
        raise StoreFailed(f"the export {target} could not be finished: {error}") from error
    finally:
        if made:
            _leave_nothing(target)


def _grown(ledger: Ledger, target: Path, head: Head, progress: bool | None) -> Exported:  # noqa: FBT001 - it is passed on
    """The export with all events up to the head, and its manifest replaced."""
    _only_ours(target)
    before = _continued(ledger, target, head)
    if before.last_seq == head.seq:
        _sweep(target)
        return Exported(target, before.last_seq, 0, (), before.head)
    if not before.parts:  # from here on it is known whose files these are
        replace_file(target / MANIFEST, lambda _: before.to_json())
    _sweep(target)
    try:
        parts = _written(ledger, target, before.last_seq, head.seq, progress)
        _prove(target, parts, before, head, progress)
        after = Manifest(before.ledger, head.hash.hex(), (*before.parts, *(_in_place(target, part) for part in parts)))
        for month in {part.path.partition("/")[0] for part in after.parts[len(before.parts) :]}:
            sync_folder(target / month)
        sync_folder(target)
        replace_file(target / MANIFEST, lambda _: after.to_json())
    except BaseException:
        _sweep(target)
        raise
    new = after.parts[len(before.parts) :]
    return Exported(target, head.seq, head.seq - before.last_seq, tuple(part.path for part in new), after.head)


# --- what is there -------------------------------------------------------------------------------------------------------


def _only_ours(target: Path) -> None:
    """Refuse a folder in which anything lies that an export does not write.

    Raises:
        InvalidValue: with the first of it.
    """
    begun = (target / MANIFEST).exists()
    for path in sorted(target.iterdir()):
        other = next(_others(path), None) if begun and MONTH.fullmatch(path.name) else path
        if path.is_symlink() or (path.name not in _OURS and other is not None):
            advice = "name a new or an empty folder, or an export of this ledger"
            raise InvalidValue("folder", f"{other or path} is not from an export; {advice}")


def _others(month: Path) -> Iterator[Path]:
    """What lies in a month's folder and is none of its files; the folder where it is none."""
    if month.is_symlink() or not month.is_dir():
        yield month
        return
    for path in month.iterdir():
        if not PART.fullmatch(path.name.removesuffix(_DRAFT)) or path.is_symlink() or not path.is_file():
            yield path


def _continued(ledger: Ledger, target: Path, head: Head) -> Manifest:
    """What there is, if it is of this ledger.

    Raises:
        InvalidValue: it is of another one, or has what this one has not.
    """
    found = manifest_of(target)
    wanted = {1, head.seq if found is None or not found.parts else found.last_seq}
    rows = ledger.desk.arrow(["seq", "hash"], head.seq, ("in", "seq", *sorted(wanted))).read_all().to_pylist()
    hashes = {row["seq"]: row["hash"].hex() for row in rows}
    if found is None:
        return Manifest(hashes[1])
    if found.ledger != hashes[1]:
        raise InvalidValue("folder", f"{target} is the export of another ledger; name another folder")
    if found.parts and hashes.get(found.last_seq) != found.head:
        reason = f"its {found.last_seq:,} events are not those of this ledger, which was put back, or has lost events"
        raise InvalidValue("folder", f"{target} does not fit: {reason}; export into another folder")
    return found


def _sweep(target: Path) -> None:
    """Remove what does not count: what the manifest that is there now does not name."""
    with contextlib.suppress(ExportUnsound, OSError):
        manifest = manifest_of(target)
        if manifest is None:
            return
        counted = {part.path for part in manifest.parts}
        for month in target.glob("month=*"):
            if MONTH.fullmatch(month.name) and not any(_others(month)):
                for file in month.iterdir():
                    if f"{month.name}/{file.name}" not in counted:
                        file.unlink()
                with contextlib.suppress(OSError):  # it is not empty
                    month.rmdir()


def _leave_nothing(target: Path) -> None:
    """Remove a folder that was made for an export of which there is nothing."""
    with contextlib.suppress(ExportUnsound, OSError):
        manifest = manifest_of(target)
        if manifest is None or not manifest.parts:
            for name in _OURS:
                (target / name).unlink(missing_ok=True)
            target.rmdir()


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(
        target / LOCK, mode=0o600, preserve_lock_file=True, fallback_to_soft=False, thread_local=False, blocking=False
    )
    try:
        lock.acquire()
    except filelock.Timeout:
        raise LedgerUnavailable(f"{target}: another export is being written there; try again when it is done") from None
    try:
        yield
    finally:
        lock.release()


# --- what is new -----------------------------------------------------------------------------------------------------------


def _written(ledger: Ledger, target: Path, after: int, last: int, progress: bool | None) -> list[Part]:  # noqa: FBT001 - it is passed on
    """New files under names that do not count yet, on the disk when this returns."""
    reader = ledger.desk.arrow(None, last, (">", "seq", after))
    schema = in_utc(arrow_schema())
    parts: list[Part] = []
    draft: _Draft | None = None
    try:
        with bar_for("exporting", last - after, progress) as bar:
            for batch in reader:
                for month, rows in _months(batch.cast(schema)):
                    if draft is not None and (draft.month != month or draft.rows >= ROWS):
                        parts.append(draft.finished())
                        draft = None
                    draft = draft or _Draft(target, month, after + 1 + sum(part.rows for part in parts), schema)
                    draft.write(rows, bar)
        if draft is not None:
            parts.append(draft.finished())
            draft = None
    finally:
        reader.close()
        if draft is not None:
            draft.close()
    return parts


def _months(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The months of a batch in order, in UTC: an event's time never goes backwards."""
    import pyarrow as pa
    import pyarrow.compute as pc

    months = pc.strftime(batch.column("ts").cast(pa.timestamp("us")), format="%Y-%m")
    start = 0
    while start < batch.num_rows:
        month = months[start].as_py()
        length = pc.index(pc.not_equal(months.slice(start), month), value=True).as_py()
        length = batch.num_rows - start if length < 0 else length
        yield f"month={month}", batch.slice(start, length)
        start += length


class _Draft:
    """A file that is being written."""

    def __init__(self, target: Path, month: str, first: int, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self.month, self.rows, self._first = month, 0, first
        (target / month).mkdir(mode=0o700, exist_ok=True)
        self._path = target / month / f"part-{first:012}-{first:012}.parquet{_DRAFT}"
        self._file = open(self._path, "xb", opener=_private)  # noqa: SIM115 - closed when it is finished
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def write(self, rows: pa.RecordBatch, bar: Bar) -> None:
        """Add rows."""
        self._writer.write_batch(rows)
        self.rows += rows.num_rows
        bar.update(rows.num_rows)

    def finished(self) -> Part:
        """The file, on the disk, under the name that it will have and still a draft."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        last = self._first + self.rows - 1
        name = f"part-{self._first:012}-{last:012}.parquet{_DRAFT}"
        self._path.rename(self._path.with_name(name))
        return Part(f"{self.month}/{name}", self._first, last, size)

    def close(self) -> None:
        """Let go of a file that is not to be finished."""
        self._writer.is_open = False  # else it would be finished when it is collected
        with contextlib.suppress(OSError):
            self._file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def _prove(target: Path, parts: list[Part], before: Manifest, head: Head, progress: bool | None) -> None:  # noqa: FBT001 - it is passed on
    """Read the new files back: they must have each event once, and continue the chain to the ledger's head.

    Raises:
        ExportUnsound: they do not.
    """
    seq, hash, rows = before.last_seq, bytes.fromhex(before.head), 0
    with bar_for("checking", head.seq - seq, progress) as bar:
        for events, known in proved(ExportedFiles(target, parts).arrow(), hash):
            done = rows
            for event in events:
                if event.seq != seq + 1 or not (known or continues(event, hash)):
                    raise ExportUnsound(str(target), f"event {seq + 1} was not read back as the ledger has it")
                seq, hash, rows = event.seq, event.hash, rows + 1
            bar.update(rows - done)
    if (seq, hash, rows) != (head.seq, head.hash, head.seq - before.last_seq):
        wanted = f"{head.seq - before.last_seq:,} events up to {head.seq:,}"
        raise ExportUnsound(
            str(target), f"{rows:,} new events up to {seq:,} were read back, not {wanted} with the ledger's head"
        )


def _in_place(target: Path, part: Part) -> Part:
    """A draft under its own name, from which on others see it."""
    path = part.path.removesuffix(_DRAFT)
    (target / part.path).rename(target / path)
    return Part(path, part.first_seq, part.last_seq, part.bytes)
