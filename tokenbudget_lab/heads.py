"""The newest heads of a ledger's chain, kept outside its file: what DuckDB does not notice is missing, is noticed by these.

Two slots, written in turn, so that a torn write leaves the one before. A slot is written and synced after an append and
before its answers: a head behind the file is normal (killed in between); one ahead of it, or off its chain, is loss.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

_SLOT = struct.Struct("<8sQ32sI")  # magic, seq, hash, checksum of these
_MAGIC = b"tbl-head"
_APART = 4096  # two slots never share a block


class Head(NamedTuple):
    """The last event that was acknowledged."""

    seq: int
    hash: bytes


class Heads:
    """The file with the two slots; made if it is not there.

    Args:
        path: where it is.

    Raises:
        OSError: it cannot be made or read.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(path, flags, 0o600)
        self._slot = 0

    def read(self) -> Head | None:
        """The newest head that is whole; `None` where there is none."""
        heads = [self._read(slot) for slot in (0, 1)]
        self._slot = 1 if heads[0] is not None and (heads[1] is None or heads[0] > heads[1]) else 0
        return max((head for head in heads if head is not None), default=None)

    def _read(self, slot: int) -> Head | None:
        os.lseek(self._fd, slot * _APART, os.SEEK_SET)
        data = os.read(self._fd, _SLOT.size)
        if len(data) < _SLOT.size:
            return None
        magic, seq, hash, checksum = _SLOT.unpack(data)
        return Head(seq, hash) if magic == _MAGIC and checksum == crc32(data[:-4]) else None

    def write(self, head: Head) -> None:
        """Put a head into the slot of the older one, on the disk when this returns.

        Raises:
            OSError: it is not sure to be there.
        """
        data = _SLOT.pack(_MAGIC, head.seq, head.hash, 0)
        data = data[:-4] + struct.pack("<I", crc32(data[:-4]))
        os.lseek(self._fd, self._slot * _APART, os.SEEK_SET)
        if os.write(self._fd, data) != len(data):
            raise OSError("a head was written in part")
        getattr(os, "fdatasync", os.fsync)(self._fd)
        self._slot = 1 - self._slot

    def reset(self) -> None:
        """Forget both heads: what they say is lost was given up.

        Raises:
            OSError: they are still there.
        """
        os.ftruncate(self._fd, 0)
        os.fsync(self._fd)
        self._slot = 0

    def close(self) -> None:
        """Let go of the file."""
        with suppress(OSError):
            os.close(self._fd)


def replace_file(path: Path, content: Callable[[int], bytes]) -> None:
    """Put a small file in the place of the last one, in one step; what somebody prepared as its draft is not followed.

    Args:
        path: where.
        content: what is in it, given the inode that it will have.

    Raises:
        OSError: it is not sure to be there; the last one stays.
    """
    draft = path.with_name(path.name + ".tmp")
    draft.unlink(missing_ok=True)
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content(os.fstat(handle).st_ino))
            file.flush()
            os.fsync(handle)
        draft.replace(path)
        sync_folder(path.parent)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in a folder stays so after a power cut."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
