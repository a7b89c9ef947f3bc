"""The `tokenbudget` command.

Its users may rely on three things: what was refused, is over its limit or unsound ends with 1, bad usage or input with 2, a
ledger that cannot be reached with 3; an error is one sentence on stderr; and `--json` prints one JSON document, with USD as
strings and instants in UTC.
"""

from .entry import app as app
