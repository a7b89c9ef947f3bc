"""Commands that run something: demo, replay."""

# ruff: noqa: FBT002 - a flag on the command line is named where it is given

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from tokenbudget_lab import replay as play
from tokenbudget_lab.errors import InvalidValue, money
from tokenbudget_lab.render import escaped

from . import INTERRUPTED
from .shell import Embedded, Json, LedgerOption, console, examples, opened, plain, print_json, progress

app = typer.Typer()

_BUDGET = "replay"


@app.command(
    epilog=examples(
        "tokenbudget demo",
        "tokenbudget demo --ledger demo.duckdb",
        "tokenbudget demo --ledger 'postgresql://ann@db.example.org/lab?ledger=demo'",
    )
)
def demo(
    ledger: Annotated[
        str | None,
        typer.Option("--ledger", "-l", metavar="PATH|URL", help="Where to keep it; a new temporary folder if not given."),
    ] = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """A small study against a cap, in seconds, with no key and no network.

    Three conditions, 20 parallel calls, a provider that is slow and sometimes fails, and a process that is killed.

    The cap holds, and the ledger stays for you to explore.
    """
    from tokenbudget_lab import study

    report = study.run(console(stderr=json), ledger, embedded=embedded)
    if json:
        print_json(report)


@app.command(
    epilog=examples(
        "tokenbudget replay trace.csv --input ContextTokens --output GeneratedTokens --max-output 1024 "
        "--model claude-sonnet-5-5 --usd 25 --parallel 50",
        "tokenbudget replay trace.csv --input in --output out --max-output 1024 --model claude-sonnet-5-5 --usd 25 "
        "--speed 60 --time when --ledger whatif.duckdb",
    )
)
def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE.csv", help="One recorded call a line, with a header.")],
    input_column: Annotated[str, typer.Option("--input", metavar="COLUMN", help="Where the input tokens stand.")],
    output_column: Annotated[str, typer.Option("--output", metavar="COLUMN", help="Where the output tokens stand.")],
    max_output: Annotated[int, typer.Option("--max-output", min=0, help="What each call lets the model write, in tokens.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Whose prices the calls pay.")],
    usd: Annotated[
        str | None, typer.Option("--usd", metavar="AMOUNT", help="The cap; for a budget that exists, its own.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", metavar="NAME", help="Whose cap; a second run goes on with it.")] = _BUDGET,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="Calls in flight at most.")] = play.DEFAULT_PARALLEL,
    speed: Annotated[
        float | None, typer.Option("--speed", metavar="X", help="Play the trace's times X times faster; else without pauses.")
    ] = None,
    time: Annotated[str, typer.Option("--time", metavar="COLUMN", help="When a call came; read with --speed.")] = "TIMESTAMP",
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", help="How long a call stands in line while calls in flight may make room."),
    ] = play.DEFAULT_WAIT_S,
    ledger: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Run a recorded trace of real calls through a budget: what would have happened under this cap?

    Nothing is sent to any provider. Each call reserves the most that it could have cost and commits what it used.

    When the cap is reached, calls are refused. A second run on the same ledger spends what the first has left.
    """
    if speed is not None and not speed > 0:
        raise InvalidValue("--speed", f"{speed} is not a factor above 0")
    calls = play.read_trace(
        trace, input_column=input_column, output_column=output_column, time_column=None if speed is None else time
    )
    with opened(ledger, embedded=embedded, make=True) as book, progress(quiet=json) as bar:
        play.check_price(book, model)
        whose = book.budget(budget, usd=usd)
        task = bar.add_task("replaying", total=len(calls))

        def tell(made: int, refused: int, cost: Decimal) -> None:
            text = f"{made:,} made · {refused:,} refused · {money(cost)}"
            bar.update(task, completed=made + refused, description=text)

        report = play.run(
            whose, calls, model=model, max_output_tokens=max_output, parallel=parallel, speed=speed, wait=wait, tell=tell
        )
    if json:
        print_json({**plain(report), "pairs_per_second": round(report.pairs_per_second, 1)})
    else:
        console().print(_report(report, trace.name))
    if report.interrupted:
        typer.echo("tokenbudget: interrupted; nothing is left held", err=True)
        raise typer.Exit(INTERRUPTED)


def _report(report: play.Replay, trace: str) -> Table:
    cap = "none in USD" if report.limit_usd is None else money(report.limit_usd)
    left = "" if report.left_usd is None else f", {money(report.left_usd)} left"
    pace = (report.made + report.refused) / report.seconds if report.seconds else 0
    rows = (
        ("calls made", f"{report.made:,} of {report.calls:,} in {escaped(trace)}"),
        ("refused", f"{report.refused:,}"),
        ("cost", f"{money(report.cost_usd)} at the prices of {escaped(report.model)}"),
        ("cap", f"{cap} on {escaped(report.budget)}: {money(report.committed_usd)} committed{left}"),
        ("overruns", f"{report.overruns:,} calls, {money(report.overrun_usd)} above their holds"),
        ("holds unused", f"{money(report.unused_usd)} of {money(report.held_usd)} held"),
        ("without a cap", f"{money(report.uncapped_usd)} for the whole trace"),
        ("took", f"{report.seconds:.1f} s, {pace:,.0f} calls decided a second"),
        ("ledger", escaped(report.ledger)),
    )
    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    return table
