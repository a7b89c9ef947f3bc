"""The command and its parts."""

# ruff: noqa: FBT002 - a flag on the command line is named where it is given

from __future__ import annotations

from typing import Annotated

import typer

from tokenbudget_lab import __version__

from . import budgets, care, keepers, looks, making, plans, reporting, runs, tables, watching
from .shell import Commands, examples

EXAMPLES = examples(
    "tokenbudget demo",
    "tokenbudget budget create prompt-study --usd 25",
    "tokenbudget status",
    'tokenbudget sql "select model, sum(cost_usd) from calls group by all"',
)
CODES = (
    "Ends with 0 if all is fine, 1 if something was refused, is over or unsound, 2 for bad usage or input, 3 if the ledger "
    "cannot be reached."
)

app = typer.Typer(
    name="tokenbudget",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"{EXAMPLES}\n\n{CODES}",
)
for part in (runs, plans, making, budgets, looks, watching, reporting, care, keepers, tables):
    app.add_typer(part.app)


def _version(asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if asked:
        typer.echo(f"tokenbudget {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version of tokenbudget_lab and leave."),
    ] = False,
) -> None:
    """Hard token and dollar budgets for experiments with language models.

    The ledger is a file or in a database: --ledger PATH|URL, or the one that TOKENBUDGET_LEDGER names, or the default file in
    your data folder.
    """
