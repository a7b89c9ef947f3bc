"""Copies of a ledger's file, and what is done when the file is not what it was.

DuckDB replays what is left of its log without a word, and a checkpoint is the one moment at which a killed process can leave
a file that does not open. So a checkpoint begins with a synced copy and a mark, and ends with the mark's removal; a file that
does not reach the newest head that is kept outside it is damaged, and nothing is written to it before a copy was taken.

Whoever calls these owns the ledger's lock, and DuckDB does not write meanwhile. The file itself is only ever read by another
process: the owner's own reading would drop DuckDB's lock.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from .errors import InvalidValue, StoreFailed
from .heads import sync_folder
from .place import Place, read_file

_START = 4096  # bytes of a DuckDB file, in which it says that it is one
_POSITION = re.compile(r"entry at byte position (\d+)")


def log_of(file: Path) -> Path:
    """DuckDB's write-ahead log of a file."""
    return file.with_name(file.name + ".wal")


def copy_aside(place: Place, into: Path) -> Path:
    """Copy file and log into a new folder, on the disk when this returns.

    Raises:
        StoreFailed: there is no whole copy.
    """
    try:
        into.mkdir(mode=0o700)
        for source in (place.file, log_of(place.file)):
            if source.exists():
                copy_file(source, into / source.name)
        sync_folder(into)
        sync_folder(into.parent)
    except OSError as error:
        shutil.rmtree(into, ignore_errors=True)
        raise StoreFailed(f"{place.file} could not be copied to {into} ({error})") from error
    return into


def copy_file(source: Path, target: Path) -> None:
    """Copy one file by another process, and sync the copy.

    Raises:
        OSError: it is not copied.
    """
    if sys.platform == "win32":
        shutil.copyfile(source, target)
    else:
        done = subprocess.run(["cp", "--", str(source), str(target)], capture_output=True, check=False)  # noqa: S603, S607 - the system's cp, paths of our own
        if done.returncode:
            raise OSError(done.stderr.decode(errors="replace").strip())
    target.chmod(0o600)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


class Checkpoint:
    """The copy and the mark around a checkpoint."""

    def __init__(self, place: Place) -> None:
        self.place, self.copy = place, place.folder / "before"
        self.mark = place.folder / "checkpointing"

    @property
    def interrupted(self) -> bool:
        """Whether a checkpoint was begun and its end is not known."""
        return self.mark.exists()

    @property
    def has_copy(self) -> bool:
        """Whether there is anything to go back to; somebody may have made room."""
        return (self.copy / self.place.file.name).exists()

    def begin(self, seq: int) -> None:
        """Take the copy, then say that a checkpoint is under way.

        Args:
            seq: the last event of the file.

        Raises:
            StoreFailed: no copy, or no mark, so no checkpoint.
        """
        shutil.rmtree(self.copy, ignore_errors=True)  # there may be no room for two
        draft = copy_aside(self.place, draft_of(self.copy))
        try:
            draft.replace(self.copy)
            flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            handle = os.open(self.mark, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(str(seq))
            sync_folder(self.place.folder)
        except OSError as error:
            raise StoreFailed(f"{self.mark} cannot be written ({error})") from error

    def is_behind(self, seq: int) -> bool:
        """Whether the mark is of a checkpoint that ended: no event is acknowledged while one is under way.

        After a power cut a mark may be there again whose removal was not synced.
        """
        try:
            return int(read_file(self.mark)) < seq
        except (OSError, ValueError):
            return False

    def end(self) -> None:
        """The file is whole: forget that there was one; the copy stays until the next."""
        self.mark.unlink(missing_ok=True)
        sync_folder(self.place.folder)

    def restore(self, *, keep: bool) -> Path | None:
        """Put the copy back in the file's place; from then on nothing is different from before the checkpoint.

        Args:
            keep: copy what was there aside first.

        Returns:
            Where that is.

        Raises:
            StoreFailed: there is no copy, or it cannot be put back.
        """
        kept = copy_aside(self.place, new_folder(self.place, "broken")) if keep else None
        put_back(self.place, self.copy, self.place.file.name)
        return kept


def finish_backup(copy: Path, target: Path, seq: int, head: bytes) -> Path:
    """Make one file of a copy and its log, prove that it ends where it should, and put it in its place; the copy is gone then.

    Raises:
        InvalidValue: something has come to be there.
        StoreFailed: the copy cannot be read, ends elsewhere, or does not get there; nothing is there then.
    """
    import duckdb

    try:
        with duckdb.connect(str(copy)) as con:
            con.execute("checkpoint")
            rows = con.execute("select seq, hash from events order by seq desc limit 1").fetchall()
        if [(number, bytes(hash)) for number, hash in rows] != [(seq, head)]:
            raise StoreFailed(f"the copy in {copy.parent} does not end with event {seq}")
        _put_new(copy, target)
    except FileExistsError:
        raise InvalidValue("path", f"{target} is there already, and a backup overwrites nothing") from None
    except (OSError, duckdb.Error) as error:
        raise StoreFailed(f"the backup {target} could not be finished ({error})") from error
    finally:
        shutil.rmtree(copy.parent, ignore_errors=True)
    return target


class Undisturbed:
    """What a ledger's files look like while nobody but their owner touches them: which they are, their size and last change.

    A file that was replaced, removed, or written by somebody else is noticed before the next event is acknowledged.
    """

    def __init__(self, place: Place) -> None:
        self._names = [str(path) for path in (place.file, log_of(place.file), place.heads, place.lock)]
        self._noted: list[tuple[int, ...] | None] = []

    def note(self) -> None:
        """They are as their owner has just left them."""
        self._noted = [_stat(name) for name in self._names]

    def disturbed(self) -> str | None:
        """The first that is not as it was left."""
        for name, noted in zip(self._names, self._noted, strict=False):
            if _stat(name) != noted:
                return name
        return None

    def log_has_changed(self) -> bool:
        """Whether the log is not as it was left: an append that it does not show went into a file without a name."""
        return not self._noted or _stat(self._names[1]) != self._noted[1]


def _stat(name: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(name)  # noqa: PTH116 - asked four times an append
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _put_new(source: Path, target: Path) -> None:
    """Copy a DuckDB file to where nothing is; on the disk when this returns.

    It is made under its own name, which nobody can have prepared and no second backup can share, and its beginning is written
    last: killed before, it is no DuckDB file and nobody takes it for a ledger. That needs no rename, which would overwrite, and
    no hard link, which many filesystems do not have and a killed process leaves behind.

    Raises:
        FileExistsError: something is there, a link that leads nowhere included.
        OSError: it could not be written; what there was of it is gone.
    """
    with open(target, "xb", opener=_private) as made:
        try:
            with source.open("rb") as whole:
                start = whole.read(_START)
                made.seek(len(start))
                shutil.copyfileobj(whole, made, 2**20)
                made.flush()
                os.fsync(made.fileno())
                made.seek(0)
                made.write(start)
                made.flush()
                os.fsync(made.fileno())
            sync_folder(target.parent)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def copy_once(place: Place) -> Path:
    """Copy away a damaged file and its log; where they were copied before and are the same, that copy will do.

    Returns:
        The folder.
    """
    found = [_looks(path) for path in (place.file, log_of(place.file), place.heads)]
    for folder in sorted(place.folder.glob("damaged-*")):
        note = folder / "found.json"
        with suppress(OSError, ValueError):  # half a note: copied once more
            if json.loads(note.read_text()) == found or _holds(folder, place):
                return folder
    folder = copy_aside(place, new_folder(place, "damaged"))
    try:
        shutil.copyfile(place.heads, folder / "heads")
        (folder / "found.json").write_text(json.dumps(found))
    except OSError as error:
        raise StoreFailed(f"{place.heads} could not be copied to {folder} ({error})") from error
    return folder


def _holds(folder: Path, place: Place) -> bool:
    """Whether a copy is what was found, byte for byte: DuckDB touches a log that it looks at, and changes nothing in it."""
    copies = [(place.file, place.file.name), (log_of(place.file), log_of(place.file).name), (place.heads, "heads")]
    if not all(source.exists() == (folder / name).exists() for source, name in copies) or not (folder / "found.json").exists():
        return False
    return all(filecmp.cmp(source, folder / name, shallow=False) for source, name in copies if source.exists())


def _looks(path: Path) -> list[int] | None:
    """What tells one state of a file from another: size and time of its last change."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    return None


def put_back(place: Place, folder: Path, file: str) -> None:
    """Replace file and log by those in a folder, file last: killed in between, it is done again.

    Raises:
        StoreFailed: they could not be replaced.
    """
    try:
        for source, target in ((log_of(folder / file), log_of(place.file)), (folder / file, place.file)):
            if source.exists():
                draft = draft_of(place.folder / "restored")
                copy_file(source, draft)
                draft.replace(target)
            else:
                target.unlink(missing_ok=True)
        sync_folder(place.file.parent)
    except OSError as error:
        raise StoreFailed(f"{folder} could not be put back ({error})") from error


def rewrite_log(place: Place) -> None:
    """Put a synced copy of the log in its place: after a sync that failed, what is read may never get to the disk.

    Raises:
        OSError: it is not sure to be there.
    """
    log = log_of(place.file)
    if log.exists():
        draft = draft_of(place.folder / "log")
        copy_file(log, draft)
        draft.replace(log)
        sync_folder(log.parent)


def draft_of(path: Path) -> Path:
    """A name for what becomes this file or folder, of this process alone; what others have left of theirs is removed.

    A `cp` outlives an owner that was killed: where it still writes to is never what the next owner uses.
    """
    for left in path.parent.glob(f"{path.name}.draft-*"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
    return path.with_name(f"{path.name}.draft-{os.getpid()}")


def new_folder(place: Place, what: str) -> Path:
    """A name beside the ledger that is not taken."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    names = (place.folder / f"{what}-{stamp}{'' if not n else f'-{n}'}" for n in range(1000))
    return next(path for path in names if not path.exists())


def readable_copy(found: Path, before: Path, name: str, said: str, last_of: Callable[[Path], int]) -> Path | None:
    """Of all that can be made of a damaged file, what has the most events.

    That is, in this order: file and log as they are; the log cut before the entry that DuckDB cannot replay; the copy from
    before the last checkpoint, folded, with the log that was written since; no log; that copy as it is.

    Args:
        found: the folder with the copy of what was found; the result is made in it.
        before: the folder with the copy from before the last checkpoint.
        name: the ledger's.
        said: what DuckDB said of it.
        last_of: the last event of a file; -1 where it cannot be read.
    """
    best, most = None, -1
    for number, (source, prepare) in enumerate(
        (
            (found, None),
            (found, lambda log: _cut(log, said)),
            (before, lambda log: _fold(log, found)),
            (found, _drop),
            (before, None),
        )
    ):
        if not (source / name).exists():
            continue
        folder = found / f"readable-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("readable*", "found.json", "heads"))
        file = folder / name
        if prepare is not None:
            prepare(log_of(file))
        last = last_of(file)
        if last > most:
            worse, best, most = best, file, last
        else:
            worse = file
        if worse is not None:
            shutil.rmtree(worse.parent, ignore_errors=True)
    return best


def _cut(log: Path, said: str) -> None:
    found = _POSITION.search(said)
    with suppress(FileNotFoundError), log.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep = max(int(found[1]) - 1, 0) if found else size
        file.truncate(min(keep, size))


def _drop(log: Path) -> None:
    log.unlink(missing_ok=True)


def _fold(log: Path, found: Path) -> None:
    """Fold a log into its file, and put the one in its place that was found."""
    import duckdb

    with suppress(duckdb.Error), duckdb.connect(str(log.with_suffix(""))) as con:
        con.execute("checkpoint")
    if not log.exists() and (found / log.name).exists():
        shutil.copyfile(found / log.name, log)
