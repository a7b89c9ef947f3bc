"""The `tokenbudget` command.

Its users may rely on three things: what was refused, is over its limit or unsound ends with 1, bad usage or input with 2, a
ledger that cannot be reached with 3; an error is one sentence on stderr; and `--json` prints one JSON document, with USD as
strings and instants in UTC.
"""

from __future__ import annotations

import sys
from typing import Any

INTERRUPTED = 130  # the shell's code for Ctrl-C


def app(**settings: Any) -> None:
    """Run the command. It is imported here, where Ctrl-C is waited for: its parts take half a second."""
    try:
        from .entry import app as command

        command(**settings)
    except KeyboardInterrupt:
        interrupted()


def interrupted() -> None:
    """Say it, and end."""
    print("tokenbudget: interrupted", file=sys.stderr)  # noqa: T201 - nothing else may be there yet
    sys.exit(INTERRUPTED)
