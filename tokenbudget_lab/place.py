"""Where a ledger lives on disk: its file, the folder beside it, and the paths that are refused.

`spend.duckdb` is the ledger; `spend.duckdb.d/` (mode 0700) holds what its owner needs: the lock, the key of the socket, who
the owner is, its log.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InvalidType, InvalidValue, LedgerBusy, LedgerUnavailable, NotALedger, told

_REMOTE = ("md:", "http://", "https://", "s3://", "gs://", "gcs://", "az://", "hf://")
_MAGIC = b"DUCK"


@dataclass(frozen=True, slots=True)
class Place:
    """The paths of one ledger."""

    file: Path

    @property
    def folder(self) -> Path:
        """What belongs to the ledger and is not the ledger."""
        return self.file.with_name(self.file.name + ".d")

    @property
    def lock(self) -> Path:
        """The file that the owner holds an exclusive `flock` on."""
        return self.folder / "lock"

    @property
    def owner(self) -> Path:
        """One JSON line about the owner: pid, host, socket, protocol."""
        return self.folder / "owner.json"

    @property
    def key(self) -> Path:
        """The secret that clients of the keeper prove to know."""
        return self.folder / "key"

    @property
    def heads(self) -> Path:
        """The newest heads of the chain, kept outside the file."""
        return self.folder / "heads"

    @property
    def snapshot(self) -> Path:
        """The fold at one event, a cache."""
        return self.folder / "snapshot"

    @property
    def clock(self) -> Path:
        """What is kept about the machine's clock."""
        return self.folder / "clock"

    @property
    def log(self) -> Path:
        """What the keeper has to say."""
        return self.folder / "keeper.log"

    def make_folder(self) -> None:
        """Make the folder, for this user only.

        Raises:
            NotALedger: it cannot be made here, or belongs to somebody else.
        """
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            status = self.folder.lstat()
        except OSError as error:
            raise NotALedger(str(self.file), f"its folder cannot be made ({error.strerror})") from error
        if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            raise NotALedger(str(self.file), f"{self.folder} belongs to somebody else or is no folder")
        if status.st_mode & 0o077:
            self.folder.chmod(0o700)

    def read_owner(self) -> dict[str, Any]:
        """What the owner says of itself; empty where nobody does."""
        try:
            told = json.loads(read_file(self.owner))
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def write_owner(self, **told: Any) -> None:
        """Say who owns the file: in one step, so that nobody reads half of it."""
        draft = self.folder / f"owner.{os.getpid()}.tmp"
        try:
            draft.touch(mode=0o600)
            draft.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), **told}) + "\n")
            draft.replace(self.owner)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def busy(self, advice: str) -> LedgerBusy:
        """The error that names the owner."""
        told = self.read_owner()
        host = told.get("host")
        if told.get("role") == "recovery":
            advice = "That process is recovering it; try again when it is done."
        if host and host != socket.gethostname():
            advice = "A DuckDB file belongs to one machine at a time; for several machines use a postgresql:// ledger."
        return LedgerBusy(str(self.file), told.get("pid"), host, advice)


MOUNTS = Path("/proc/self/mounts")
_SHARES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "sshfs", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "davfs"}
)


def place_of(where: Any) -> Place:
    """Check a path and find the ledger that it names; two names of one file give one place.

    Raises:
        InvalidType: neither a string nor a path.
        InvalidValue: empty, a NUL, a URL that is no path.
        NotALedger: a directory, a device, a FIFO, a hardlinked file, somebody else's symlink, another kind of file.

    Examples:
        >>> place_of("/tmp/spend.duckdb").folder.name
        'spend.duckdb.d'
    """
    text = local_path("where", where, "a ledger is a path or ':memory:'")
    try:
        path = Path(text).expanduser().absolute()
        foreign = path.is_symlink() and hasattr(os, "getuid") and path.lstat().st_uid not in (os.getuid(), 0)
        place = Place(Path(os.path.realpath(path)))
        str(place.file).encode()  # a name of other bytes reads as half surrogate pairs, and DuckDB takes none
    except RuntimeError as error:  # no such user behind the ~
        raise InvalidValue("where", f"{text!r}: {error}") from None
    except UnicodeEncodeError:
        raise InvalidValue(
            "where", f"{text!r} or its folder has a name that is not UTF-8; choose or rename one that is"
        ) from None
    except OSError as error:
        raise NotALedger(text, error.strerror or str(error)) from None
    if foreign:
        raise NotALedger(str(path), "it is somebody else's symbolic link")
    share = share_of(place.file)
    if share is not None:
        raise NotALedger(
            str(path),
            f"it is on a network share ({share}), where locks and syncs do not hold; choose a path on a disk of this machine",
        )
    _check_kind(place.file)
    return place


def local_path(argument: str, given: Any, advice: str = "name a path of this machine") -> str:
    """A path of this machine, as text.

    Raises:
        InvalidType: neither a string nor a path.
        InvalidValue: empty, a NUL, a URL.
    """
    if not isinstance(given, str | os.PathLike):
        raise InvalidType(argument, f"{told(given)} is {type(given).__name__}, not a path")
    text = os.fspath(given)
    if not isinstance(text, str):
        raise InvalidType(argument, "is bytes, not a path of text")
    if not text.strip() or "\0" in text:
        raise InvalidValue(argument, f"{told(text)} is no path; write something like 'spend.duckdb'")
    if text.lower().startswith(_REMOTE) or "://" in text:
        scheme = text.partition(":")[0]  # and no more of it: there may be a password
        raise InvalidValue(argument, f"{scheme + ':…'!r} is no local file; {advice}")
    return text


def share_of(path: Path) -> str | None:
    """The kind of network share that a path is on, as Linux tells; `None` for a local disk, and where it cannot be told."""
    try:
        mounts = [line.split() for line in MOUNTS.read_text(errors="replace").splitlines()]
    except OSError:
        return None
    at = [(point.replace("\\040", " "), kind) for _, point, kind, *_ in mounts]
    around = [(point, kind) for point, kind in at if path.is_relative_to(point)]
    kind = max(around, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return kind if kind.removeprefix("fuse.") in _SHARES else None


def read_file(path: Path, size: int = -1) -> bytes:
    """What stands in a small file of the folder; no link is followed, and no pipe waited for.

    Raises:
        OSError: it is not there, or no file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        return file.read(size)


def _check_kind(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise NotALedger(str(path), f"there is no folder {path.parent}") from None
        return
    except OSError as error:
        raise NotALedger(str(path), error.strerror or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise NotALedger(str(path), "it is a directory, a device or a pipe")
    if status.st_nlink > 1:
        raise NotALedger(str(path), "it has several names (hard links), and each would get a keeper of its own")


def check_content(path: Path) -> None:
    """Look at the first bytes, as the future owner and before DuckDB does: opening must never overwrite something else.

    Raises:
        NotALedger: empty, or not a DuckDB file.
    """
    if path.exists():
        try:
            with path.open("rb") as file:
                head = file.read(12)
        except OSError as error:
            raise NotALedger(str(path), f"it cannot be read ({error.strerror})") from error
        if head[8:12] != _MAGIC:
            raise NotALedger(str(path), "it is empty" if not head else "it is not a DuckDB file")


def out_of_files(where: str, error: BaseException) -> LedgerUnavailable | None:
    """The error of a process that has too many files open, where that is behind another error; `None` where it is not."""
    behind: BaseException | None = error
    while behind is not None:
        if getattr(behind, "errno", None) in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in str(behind):
            return LedgerUnavailable(
                f"{where} cannot be opened: too many files are open in this process. Close some, or allow more with "
                "`ulimit -n`, and try again; the ledger was left as it is."
            )
        behind = behind.__cause__
    return None


def warn_if_shared(folder: Path) -> None:
    """Say so where others could replace the ledger's file; with `TOKENBUDGET_STRICT=1` refuse it.

    Raises:
        NotALedger: others may write to the folder, and strictness was asked for.
    """
    if sys.platform == "win32":
        return
    mode = folder.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        text = f"others may write to {folder}, and so replace a ledger in it"
        if os.environ.get("TOKENBUDGET_STRICT"):
            raise NotALedger(str(folder), text)
        warnings.warn(text, stacklevel=3)
