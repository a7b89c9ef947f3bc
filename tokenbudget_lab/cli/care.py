"""`tokenbudget backup`, `export`, `recover`, `clock`: when something is to be kept, or has gone wrong."""

# ruff: noqa: FBT002 - a flag on the command line is named where it is given

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenbudget_lab.connection import accept_clock
from tokenbudget_lab.connection import recover as recovered
from tokenbudget_lab.errors import LedgerDamaged
from tokenbudget_lab.render import escaped

from .shell import (
    REFUSED,
    Embedded,
    Json,
    LedgerArgument,
    LedgerOption,
    aloud,
    chosen,
    complain,
    examples,
    existing,
    opened,
    print_json,
)

app = typer.Typer()
clock = typer.Typer(name="clock", no_args_is_help=True, help="The machine's clock: say that it is right.")
app.add_typer(clock)


@app.command(
    epilog=examples(
        "tokenbudget backup spend.duckdb spend-2026-11.duckdb",
        "tokenbudget backup --ledger spend.duckdb /backups/spend.duckdb",
    )
)
def backup(
    first: Annotated[
        str, typer.Argument(metavar="[LEDGER] PATH", help="Where the copy is to be, behind the ledger if that is named.")
    ],
    second: Annotated[str | None, typer.Argument(metavar="", hidden=True)] = None,
    option: LedgerOption = None,
    json: Json = False,
) -> None:
    """Copy the ledger to a file of its own, while others go on using it; overwrites nothing."""
    ledger, path = (None, first) if second is None else (first, second)
    with opened(chosen(ledger, option)) as book:
        made = book.backup(path)
    if json:
        print_json({"backup": str(made), "bytes": made.stat().st_size})
    else:
        typer.echo(escaped(f"copied to {made} ({made.stat().st_size:,} bytes)"))


@app.command(
    epilog=examples(
        "tokenbudget export spend.duckdb spend-export",
        "tokenbudget export --ledger spend.duckdb /shared/spend-export --json",
    )
)
def export(
    first: Annotated[
        str,
        typer.Argument(
            metavar="[LEDGER] FOLDER",
            help="A new or empty folder, or an export of this ledger, behind the ledger if that is named.",
        ),
    ],
    second: Annotated[str | None, typer.Argument(metavar="", hidden=True)] = None,
    option: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Write the events to Parquet files, one folder per month; the next time only the newer ones.

    What is written is read back and proved before it counts. DuckDB, Polars and Spark read FOLDER/**/*.parquet, and
    tbl.read_export(FOLDER) has the ledger's frames.
    """
    ledger, folder = (None, first) if second is None else (first, second)
    with opened(chosen(ledger, option), embedded=embedded) as book:
        made = book.export(folder, progress=False if json else None)
    if json:
        print_json(made)
    else:
        typer.echo(escaped(str(made)))


@app.command(
    epilog=examples(
        "tokenbudget recover spend.duckdb",
        "tokenbudget recover spend.duckdb --accept-loss",
    )
)
def recover(
    ledger: LedgerArgument = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on without what is lost; the loss becomes an event.")
    ] = False,
    option: LedgerOption = None,
    json: Json = False,
) -> None:
    """Say what is missing from a damaged ledger, and go on without it where that is accepted.

    Ends with 1 where something is missing. Whatever was found is copied away first.
    """
    place = _damaged_place(chosen(ledger, option))
    try:
        told = recovered(place, accept_loss=accept_loss)
    except LedgerDamaged as error:
        if json:
            print_json({"sound": False, "seq": error.seq, "acknowledged": error.acknowledged, "copy": error.copy})
        complain(error)
        raise typer.Exit(REFUSED) from None
    aloud.damage = None  # it was said, and is over
    if json:
        print_json({"sound": True, "done": told})
    else:
        typer.echo(escaped(f"{place}: {told}"))


def _damaged_place(where: str | None) -> Path:
    """The path of a ledger that is there, or was: its file may be what is missing."""
    from tokenbudget_lab.connection import default_path
    from tokenbudget_lab.place import place_of

    place = place_of(default_path() if where is None else where)
    return place.file if place.heads.exists() else existing(where).file


@clock.command(
    epilog=examples(
        "tokenbudget clock accept spend.duckdb",
    )
)
def accept(ledger: LedgerArgument = None, option: LedgerOption = None) -> None:
    """Say that this machine's clock is right, where a ledger takes no writes because it was moved."""
    place = existing(chosen(ledger, option))
    accept_clock(place.file)
    typer.echo(escaped(f"accepted: {place.file} takes writes again"))
