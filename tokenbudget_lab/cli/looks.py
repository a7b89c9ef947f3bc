"""Commands that look at a ledger and change nothing: status, events, sql, verify."""

# ruff: noqa: FBT002 - a flag on the command line is named where it is given

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, JustifyMethod
from rich.table import Column, Table

from tokenbudget_lab.balance import Balance
from tokenbudget_lab.errors import InvalidValue, LedgerCorrupt, money
from tokenbudget_lab.render import colored_bar, escaped, left_of, of_limit

from .budgets import limit_text
from .shell import (
    REFUSED,
    Embedded,
    Json,
    LedgerArgument,
    LedgerOption,
    chosen,
    complain,
    console,
    examples,
    glyphs,
    opened,
    plain,
    print_json,
    progress,
    shown,
)

app = typer.Typer()

_EVENT_COLUMNS = ("seq", "ts", "kind", "budget", "held_usd", "usd", "tokens", "model", "basis", "tags")
_NARROW_COLUMNS = ("seq", "ts", "kind", "budget", "held_usd", "usd", "tokens")
_WIDE = 110  # columns of a terminal
_MOST_ROWS = 1000  # of a table for people


@app.command(
    epilog=examples(
        "tokenbudget status",
        "tokenbudget status spend.duckdb --budget lab/prompt-study",
        "tokenbudget status spend.duckdb --json",
    )
)
def status(
    ledger: LedgerArgument = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="NAME", help="Only this budget and those below it.")] = None,
    option: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Show what every budget has committed, holds and has left.

    Ends with 1 if one is over its limit.
    """
    with opened(chosen(ledger, option), embedded=embedded) as book:
        found, where = book.budgets(budget), book.desk.where
    over = any(limit.left < 0 for balance in found for limit in balance.limits)
    if json:
        print_json({"ledger": where, "over": over, "budgets": plain(found)})
    else:
        out = console()
        out.print(balances_table(found, out) if found else "no budgets yet; make one: tokenbudget budget create NAME --usd 5")
        out.print(f"ledger {escaped(where)}", soft_wrap=True)
    raise typer.Exit(REFUSED if over else 0)


def balances_table(found: list[Balance], out: Console) -> Table:
    """What each budget has committed, holds and has left, a row for each limit of its own."""
    wide = out.width >= _WIDE
    windows = wide and any(limit.ends for balance in found for limit in balance.limits)
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("Committed", "Held", "Left")]
    table = _plain_table(
        Column("Budget", overflow="fold"), Column("", no_wrap=True), *numbers, "Limit", Column("Open", justify="right")
    )
    if windows:
        table.add_column("Resets (UTC)")
    for balance in found:
        name, calls = escaped(balance.budget), str(balance.calls_in_flight or "")
        if balance.closed:
            name += " (closed)"
        own = [limit for limit in balance.limits if limit.budget == balance.budget]
        for limit in own:
            told = (of_limit(limit, limit.committed), of_limit(limit, limit.reserved), left_of(limit))
            amounts = (each.split()[0] for each in told)
            drawn = colored_bar(limit, 20 if wide else 10, glyphs(out))
            resets = [f"{limit.ends:%Y-%m-%d %H:%M}" if limit.ends else ""] if windows else []
            table.add_row(name, drawn, *amounts, limit_text(limit), calls, *resets)
            name, calls = "", ""
        if not own:
            table.add_row(name, "", money(balance.committed_usd), money(balance.reserved_usd), "", "none", calls)
    return table


@app.command(
    epilog=examples(
        "tokenbudget events spend.duckdb",
        "tokenbudget events spend.duckdb --kind refused -n 100",
        "tokenbudget events --budget lab/prompt-study --json",
    )
)
def events(
    ledger: LedgerArgument = None,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="How many, the newest.")] = 20,
    budget: Annotated[str | None, typer.Option("--budget", metavar="NAME", help="Only of this budget.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only such as committed or refused.")] = None,
    option: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Show the newest events: every reserve, commit and refusal, in order."""
    import polars as pl

    with opened(chosen(ledger, option), embedded=embedded) as book:
        frame = book.events()
        for column, wanted in (("budget", budget), ("kind", kind)):
            if wanted is not None:
                frame = frame.filter(pl.col(column).cast(pl.String) == wanted)
        found = frame.tail(last).collect()
    if json:
        print_json(found.to_dicts())
    else:
        out = console()
        out.print(_table(found.select(_EVENT_COLUMNS if out.width >= _WIDE else _NARROW_COLUMNS), fold="budget"))


@app.command(
    epilog=examples(
        'tokenbudget sql "select kind, count(*) from events group by all"',
        'tokenbudget sql spend.duckdb "select model, sum(cost_usd) as usd from calls group by all order by usd desc"',
        "tokenbudget sql spend.duckdb \"select tags['condition'], count(*) from calls group by all\" --json",
    )
)
def sql(
    first: Annotated[str, typer.Argument(metavar="[LEDGER] QUERY", help="One SELECT, behind the ledger if that is named.")],
    second: Annotated[str | None, typer.Argument(metavar="", hidden=True)] = None,
    option: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Ask in SQL: one SELECT over events, calls, reservations, budgets and balances.

    It can change nothing.
    """
    ledger, query = (None, first) if second is None else (first, second)
    if second is None and not query.strip().count(" "):
        raise InvalidValue("QUERY", f'{query!r} is no query; write: tokenbudget sql [LEDGER] "select …"')
    with opened(chosen(ledger, option), embedded=embedded) as book:
        found = book.sql(query)
    if json:
        print_json(found.to_dicts())
        return
    rest = found.height - _MOST_ROWS
    more = [f"… and {rest:,} more rows; --json prints all"] if rest > 0 else []
    console().print(Group(_table(found.head(_MOST_ROWS)), *more))


@app.command(
    epilog=examples(
        "tokenbudget verify",
        "tokenbudget verify spend.duckdb --json",
    )
)
def verify(
    ledger: LedgerArgument = None,
    option: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Prove that the ledger is sound: replay every event, check the chain, compare the balances.

    Ends with 1 where it is not, and names the first event that does not fit.
    """
    try:
        with opened(chosen(ledger, option), embedded=embedded) as book, progress(quiet=json) as bar:
            task = bar.add_task("replaying", total=None)
            proof, where = book.verify(lambda done, total: bar.update(task, completed=done, total=total)), book.desk.where
    except LedgerCorrupt as error:
        if json:
            print_json({"sound": False, "seq": error.seq, "reason": error.reason})
        complain(error)
        raise typer.Exit(REFUSED) from None
    if json:
        print_json({"sound": True, "ledger": where, **plain(proof)})
    else:
        console().print(f"{escaped(where)}: {proof}", soft_wrap=True)


def _table(frame: Any, fold: str | None = None) -> Table:
    """A frame as a table; only the column `fold` is folded where there is not room for all, or else each one."""
    table = _plain_table()
    for name, kind in frame.schema.items():
        justify: JustifyMethod = "right" if kind.is_numeric() else "left"
        table.add_column(escaped(name), justify=justify, overflow="fold", no_wrap=fold not in (None, name))
    for row in frame.rows():
        table.add_row(*map(shown, row))
    return table


def _plain_table(*columns: Column | str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
