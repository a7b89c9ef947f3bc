"""What is kept about the machine's clock, in a small file beside the ledger; written seldom, and never for an append.

That writing was stopped counts only in the very file that said so: a ledger that was copied elsewhere, or a folder that was
restored, does not bring it along.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from .clock import Ahead, Mark
from .heads import sync_folder


def write(path: Path, mark: Mark) -> None:
    """Put a mark in the place of the last one, in one step.

    Raises:
        OSError: it is not sure to be there.
    """
    draft = path.with_name(path.name + ".tmp")
    draft.unlink(missing_ok=True)
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps({**mark._asdict(), "file": os.fstat(handle).st_ino}))
            file.flush()
            os.fsync(handle)
        draft.replace(path)
        sync_folder(path.parent)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def read(path: Path) -> Mark | None:
    """The mark, where there is one that is whole."""
    try:
        with path.open() as file:
            told = json.load(file)
            itself = told["file"] == os.fstat(file.fileno()).st_ino
        ahead = Ahead(int(told["ahead"][0]), float(told["ahead"][1])) if told["ahead"] and itself else None
        return Mark(told["boot"], int(told["offset"]), ahead)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
