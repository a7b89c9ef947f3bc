"""Commands about calls that are not sent yet: estimate."""

# ruff: noqa: FBT002 - a flag on the command line is named where it is given

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from tokenbudget_lab import estimates
from tokenbudget_lab.connection import Ledger
from tokenbudget_lab.errors import InvalidValue
from tokenbudget_lab.prompts import FORMATS, read_prompts
from tokenbudget_lab.render import escaped

from .shell import REFUSED, Embedded, Json, LedgerOption, console, examples, opened, plain, print_json, progress

app = typer.Typer()


@app.command(
    epilog=examples(
        "tokenbudget estimate prompts.parquet --model claude-sonnet-5-5 --max-output 800",
        "tokenbudget estimate prompts.jsonl --model gpt-6-mini --max-output 200 --prompt question --batch",
        "tokenbudget estimate prompts.csv --model claude-sonnet-5-5 --max-output 800 --budget lab/study --label few-shot",
    )
)
def estimate(
    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS", help=f"A file of prompts: {', '.join(FORMATS)}.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Who will answer.")],
    max_output: Annotated[int, typer.Option("--max-output", min=0, help="What each call lets the model write, in tokens.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="COLUMN", help="Where the prompts stand; `prompt` if not given.")
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="NAME", help="Does all of it fit here?")] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="TEXT", help="Earlier calls with the tag label=TEXT say how long answers will be."),
    ] = None,
    batch: Annotated[bool, typer.Option("--batch", help="Priced as a batch.")] = False,
    ledger: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Count and price prompts before they are sent; nothing is sent, and nothing is held.

    Ends with 1 where the budget is not expected to pay for all of it.
    """
    with contextlib.ExitStack() as stack:
        book = stack.enter_context(opened(ledger, embedded=embedded)) if _looks_back(budget, label, ledger) else None
        found = _estimated(
            prompts, prompt, quiet=json, model=model, max_output_tokens=max_output, label=label, budget=budget, ledger=book,
            batch=batch,
        )  # fmt: skip
    if json:
        shown = {name: plain(getattr(found, name)) for name in estimates.Estimate.__slots__ if name != "frame"}
        print_json({**shown, "fits": found.fits})
    else:
        console().print("\n".join(map(escaped, repr(found).split("\n"))), soft_wrap=True)
    if found.calls_that_fit is not None and found.calls_that_fit < found.calls:
        raise typer.Exit(REFUSED)


def _looks_back(budget: str | None, label: str | None, ledger: str | None) -> bool:
    if ledger is not None and budget is None and label is None:
        raise InvalidValue("--ledger", "is not needed without --budget or --label")
    return budget is not None or label is not None


def _estimated(file: Path, column: str | None, *, quiet: bool, ledger: Ledger | None, **how: object) -> estimates.Estimate:
    with progress(quiet=quiet) as bar:
        task = bar.add_task(f"counting {file.name}", total=None)

        def tell(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        return estimates.estimate(read_prompts(file, column), ledger=ledger, progress=tell, **how)  # type: ignore[arg-type] # checked above
