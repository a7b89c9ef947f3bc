"""`tokenbudget init`, `copy`: make a ledger and say who may use it, or make it from another one."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenbudget_lab import copying
from tokenbudget_lab.connection import connect, default_path
from tokenbudget_lab.errors import InvalidValue
from tokenbudget_lab.founding import found
from tokenbudget_lab.render import escaped
from tokenbudget_lab.servers import is_url

from .shell import LedgerArgument, LedgerOption, chosen, examples, existing, progress

app = typer.Typer()
Roles = Annotated[list[str] | None, typer.Option(metavar="ROLE", help="A role that may look; again for others.")]
Spenders = Annotated[list[str] | None, typer.Option(metavar="ROLE", help="A role that may look and spend; again for others.")]


@app.command(
    epilog=examples(
        "tokenbudget init spend.duckdb",
        "tokenbudget init postgresql://ann@db.example.org/lab",
        "tokenbudget init 'postgresql://ann@db.example.org/lab?ledger=grant-7' --spend students --read auditor",
    )
)
def init(ledger: LedgerArgument = None, option: LedgerOption = None, read: Roles = None, spend: Spenders = None) -> None:
    """Make a ledger; one that is there stays as it is. In PostgreSQL this makes the schema, once, and the only one who may."""
    where = chosen(ledger, option)
    named = default_path() if where is None else where
    if not is_url(named):
        if read or spend:
            raise InvalidValue("--read, --spend", "are for databases; a file's rights are those of its folder")
        with connect(named) as opened:
            typer.echo(f"ledger {escaped(opened.desk.where)}")
        return
    shown, made = found(str(named), read=read or (), spend=spend or ())
    with connect(str(named)):  # its first event
        typer.echo(f"{'made' if made else 'is there already:'} ledger {escaped(shown)}")


@app.command(
    epilog=examples(
        "tokenbudget copy spend.duckdb postgresql://ann@db.example.org/lab",
        "tokenbudget copy postgresql://ann@db.example.org/lab spend.duckdb",
    )
)
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The ledger's file or URL.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Where no ledger is yet, or the beginning of such a copy.")],
) -> None:
    """Copy every event to another store, file or database, and prove the copy; interrupted, it goes on the next time.

    Stop using the first one: nothing keeps both from being spent from.
    """
    named = source if is_url(source) else str(existing(source).file)
    with progress() as bar:
        task = bar.add_task("copying", total=None)
        made = copying.copy(named, target, lambda done, total: bar.update(task, completed=done, total=total))
    typer.echo(escaped(str(made)))
