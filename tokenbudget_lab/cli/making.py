"""`tokenbudget init`: make a ledger, and say who may use it."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenbudget_lab.connection import connect, default_path
from tokenbudget_lab.errors import InvalidValue
from tokenbudget_lab.founding import found
from tokenbudget_lab.render import escaped
from tokenbudget_lab.servers import is_url

from .shell import LedgerArgument, LedgerOption, chosen, examples

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
