"""What every command shares: how it opens a ledger, how it speaks, and with which code it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from tokenbudget_lab import render
from tokenbudget_lab.connection import Ledger, connect, default_path
from tokenbudget_lab.errors import (
    BudgetDiffers,
    ExportUnsound,
    InvalidValue,
    LedgerCorrupt,
    LedgerDamaged,
    LedgerUnavailable,
    QueryRefused,
    Refused,
    TokenBudgetError,
    UnknownBudget,
)
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.servers import is_url, server_of

from . import interrupted

FINE, REFUSED, BAD_INPUT, UNAVAILABLE = 0, 1, 2, 3
_PIPE_WIDTH = 200  # columns of a table that goes to a file or another program
_HINTS: dict[type, str] = {
    BudgetDiffers: "Here: leave the limit out to go on with it, or change it with `tokenbudget budget limit`.",
    UnknownBudget: "Here: `tokenbudget budget list` shows those that exist, `tokenbudget budget create` makes one.",
}

LedgerArgument = Annotated[
    str | None,
    typer.Argument(metavar="[LEDGER]", help="The ledger's file or URL; as --ledger.", show_default=False),
]
LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        "-l",
        metavar="PATH|URL",
        help="The ledger's file, or its postgresql:// URL. Else the one that TOKENBUDGET_LEDGER names, else the default file "
        "in your data folder.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: USD as strings, instants in UTC.")]
Embedded = Annotated[
    bool, typer.Option("--embedded", help="Own the file in this process, without a keeper; nobody else may use it meanwhile.")
]


def examples(*lines: str) -> str:
    """Examples for the end of a command's help, one a line."""
    return "\n\n".join(("Examples:", *lines))


class Commands(TyperGroup):
    """Commands whose errors become one sentence and an exit code."""

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """Read the arguments; Ctrl-C meanwhile is none of the library's `Aborted`."""
        try:
            return super().make_context(*args, **settings)
        except KeyboardInterrupt:
            interrupted()

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what was read from a damaged ledger is shown, with its warning, and ends with 1."""
        aloud.damage = None
        log.addHandler(aloud)
        try:
            done = super().invoke(ctx)
        except typer.Exit as end:
            raise typer.Exit(end.exit_code or _unsound()) from None
        except TokenBudgetError as error:
            complain(error)
            raise typer.Exit(code_of(error)) from None
        except KeyboardInterrupt:
            interrupted()
        finally:
            log.removeHandler(aloud)
        if _unsound():
            raise typer.Exit(REFUSED)
        return done


class Aloud(logging.Handler):
    """Says on stderr what the package logs, as errors are said.

    Attributes:
        damage: why a ledger that this command opened is open for reading only.
    """

    damage: LedgerDamaged | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Say it in one line."""
        for each in record.args if isinstance(record.args, tuple) else ():
            self.damage = each if isinstance(each, LedgerDamaged) else self.damage
        typer.echo(f"tokenbudget: {render.escaped(record.getMessage())}", err=True)


aloud = Aloud(logging.WARNING)
log = logging.getLogger("tokenbudget_lab")


def _unsound() -> int:
    return FINE if aloud.damage is None else REFUSED


def code_of(error: TokenBudgetError) -> int:
    """The exit code for an error."""
    if isinstance(error, InvalidValue | QueryRefused):
        return BAD_INPUT
    if isinstance(error, Refused | LedgerCorrupt | ExportUnsound):
        return REFUSED
    return UNAVAILABLE if isinstance(error, LedgerUnavailable) else BAD_INPUT


def complain(error: TokenBudgetError) -> None:
    """Say what went wrong, on stderr, in one line."""
    if isinstance(error, LedgerDamaged) and aloud.damage is not None and error.args == aloud.damage.args:
        return  # it was said when the ledger was opened
    hint = next((f" {text}" for kind, text in _HINTS.items() if isinstance(error, kind)), "")
    text = render.escaped(str(error))
    typer.echo(f"tokenbudget: {text.rstrip('.') + '.' if hint else text}{hint}", err=True)


# --- ledgers ---------------------------------------------------------------------------------------------------------------


def chosen(argument: str | None, option: str | None) -> str | None:
    """The ledger that was named, by argument or option."""
    if argument is not None and option is not None and argument != option:
        raise InvalidValue("LEDGER", f"is given twice, as {argument!r} and with --ledger as {option!r}")
    return option if argument is None else argument


@contextlib.contextmanager
def opened(where: str | None, *, embedded: bool = False, make: bool = False) -> Iterator[Ledger]:
    """Open a ledger; one that does not exist is made only where `make` says so."""
    named = default_path() if where is None else where
    if is_url(named):
        where = str(named)
    with connect(where if make or where == ":memory:" or is_url(where) else existing(where).file, embedded=embedded) as ledger:
        yield ledger


def existing(where: str | None) -> Place:
    """The place of a ledger that is there already: who only looks must not make one."""
    named = default_path() if where is None else where
    if is_url(named):
        raise InvalidValue("LEDGER", f"{server_of(str(named)).where} is no file; this is for those alone")
    place = place_of(named)
    if not place.file.exists():
        advice = "`tokenbudget budget create NAME --usd 5 --ledger PATH` makes one"
        raise LedgerUnavailable(f"there is no ledger at {place.file}; {advice}.")
    return place


# --- output ----------------------------------------------------------------------------------------------------------------


def console(*, stderr: bool = False) -> Console:
    """A console that interprets nothing of what users named; piped, it is wide enough to cut nothing."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _PIPE_WIDTH
    return made


def glyphs(out: Console) -> str:
    """The characters that bars are made of, where the console can show them."""
    return render.BLOCKS if out.encoding.lower().startswith("utf") else render.ASCII


def print_json(value: Any) -> None:
    """Print one JSON document; a list has one line for each item."""
    if isinstance(value, list):
        typer.echo("[" + ",\n ".join(_encoded(item) for item in value) + "]")
    else:
        typer.echo(_encoded(value))


def _encoded(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=True, allow_nan=False)


def plain(value: Any) -> Any:
    """A value as JSON has it: money as strings, instants in UTC, durations in seconds, bytes in hex, no NaN.

    Examples:
        >>> plain({"usd": Decimal("0.120000"), "at": datetime(2026, 11, 23, 9, 30)})
        {'usd': '0.12', 'at': '2026-11-23T09:30:00Z'}
    """
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat() + "Z"  # every instant here is UTC, whether it says so or not
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def shown(value: Any) -> str:
    """A value in a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if isinstance(value, dict | list | tuple | bytes):
        value = json.dumps(plain(value), ensure_ascii=False)
    return render.escaped(str(value))


def progress(*, quiet: bool = False) -> Progress:
    """A bar on stderr that leaves nothing behind; none where nobody would see it."""
    out = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=out, transient=True, disable=quiet or not out.is_terminal)
