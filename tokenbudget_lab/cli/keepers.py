"""`tokenbudget keeper`: status, stop."""

# ruff: noqa: FBT002 - a flag on the command line is named where it is given

from __future__ import annotations

import typer

from tokenbudget_lab.errors import KeeperUnreachable
from tokenbudget_lab.render import escaped

from .shell import REFUSED, Json, LedgerArgument, LedgerOption, chosen, examples, existing, print_json

app = typer.Typer(name="keeper", no_args_is_help=True, help="The process that owns a ledger's file: see it, stop it.")


@app.command(
    epilog=examples(
        "tokenbudget keeper status spend.duckdb",
        "tokenbudget keeper status --json",
    )
)
def status(ledger: LedgerArgument = None, option: LedgerOption = None, json: Json = False) -> None:
    """Show which process owns the ledger's file; ends with 1 where none does."""
    from tokenbudget_lab import link

    told = link.status(existing(chosen(ledger, option)))
    if json:
        print_json(told)
    elif told["running"]:
        typer.echo(escaped(f"running: process {told.get('pid')} on {told.get('host')} owns {told['path']}"))
    else:
        typer.echo(escaped(f"not running: {told['path']} is owned by nobody; the next command that needs it starts a keeper"))
    raise typer.Exit(0 if told["running"] else REFUSED)


@app.command(
    epilog=examples(
        "tokenbudget keeper stop spend.duckdb",
    )
)
def stop(ledger: LedgerArgument = None, option: LedgerOption = None, json: Json = False) -> None:
    """Ask the keeper to leave; it answers what was asked and closes the file. Who needs it starts it again."""
    from tokenbudget_lab import link

    place = existing(chosen(ledger, option))
    running = bool(link.status(place)["running"])
    stopped = link.stop(place) if running else False
    if running and not stopped:
        raise KeeperUnreachable(str(place.file), "it was asked to leave and is still there")
    if json:
        print_json({"path": str(place.file), "stopped": stopped})
    else:
        typer.echo(escaped(f"{'stopped' if stopped else 'not running'}: {place.file}"))
