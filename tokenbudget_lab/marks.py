"""What is kept about the machine's clock, in a small file beside the ledger; written seldom, and never for an append.

That writing was stopped counts only in the very file that said so: a ledger that was copied elsewhere, or a folder that was
restored, does not bring it along.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .clock import Ahead, Mark
from .heads import replace_file


def write(path: Path, mark: Mark) -> None:
    """Put a mark in the place of the last one, in one step.

    Raises:
        OSError: it is not sure to be there.
    """
    replace_file(path, lambda inode: json.dumps({**mark._asdict(), "file": inode}).encode())


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
