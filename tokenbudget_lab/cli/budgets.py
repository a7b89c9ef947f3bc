"""`tokenbudget budget`: create, list, limit."""

# ruff: noqa: FBT002 - a flag on the command line is named where it is given

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from tokenbudget_lab.balance import Balance, LimitBalance
from tokenbudget_lab.errors import InvalidValue
from tokenbudget_lab.limits import Limit, budget_name, window_text, zone
from tokenbudget_lab.render import balance_text, escaped, left_of, of_limit

from .shell import Embedded, Json, LedgerArgument, LedgerOption, chosen, console, examples, glyphs, opened, print_json

app = typer.Typer(name="budget", no_args_is_help=True, help="Create budgets, list them, change their limits.")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
Name = Annotated[str, typer.Argument(metavar="NAME", help="A path such as lab/prompt-study.", show_default=False)]
Usd = Annotated[str | None, typer.Option("--usd", metavar="AMOUNT", help="US dollars.", show_default=False)]
Tokens = Annotated[int | None, typer.Option("--tokens", help="Input and output together.", show_default=False)]
Requests = Annotated[int | None, typer.Option("--requests", help="Calls.", show_default=False)]
Window = Annotated[
    str | None,
    typer.Option("--window", metavar="WINDOW", help="Per day, week, month, or a time such as 12h; in all if not given."),
]


@app.command(
    epilog=examples(
        "tokenbudget budget create lab --usd 2000 --window month --tz Europe/Berlin",
        "tokenbudget budget create lab/prompt-study --usd 150 --alert 0.8",
        "tokenbudget budget create lab/prompt-study/pilot --tokens 1000000 --ledger spend.duckdb",
    )
)
def create(
    name: Name,
    usd: Usd = None,
    tokens: Tokens = None,
    requests: Requests = None,
    window: Window = None,
    tz: Annotated[str, typer.Option("--tz", metavar="ZONE", help="Whose midnights a day, week or month turns at.")] = "UTC",
    alert: Annotated[
        list[float] | None,
        typer.Option("--alert", metavar="FRACTION", help="Tell when so much is spent, e.g. 0.8; repeatable."),
    ] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="No limit of its own, only those above it.")] = False,
    ledger: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Create a budget; again with the same limits, it changes nothing."""
    given: dict[str, Any] = {"usd": usd, "tokens": tokens, "requests": requests}
    if unlimited == any(value is not None for value in given.values()):
        raise InvalidValue("budget create", "needs --usd, --tokens or --requests, or else --unlimited")
    limits = [] if unlimited else [Limit(**given, window=window_of(window))]
    name, tz = budget_name(name), zone(tz).key  # a typing error must not make a ledger
    with opened(ledger, embedded=embedded, make=True) as book:
        _tell(book.budget(name, limits=limits, tz=tz, alerts=alert or ()).balance, json=json)


@app.command(
    "list",
    epilog=examples(
        "tokenbudget budget list",
        "tokenbudget budget list spend.duckdb --below lab --json",
    ),
)
def show(
    ledger: LedgerArgument = None,
    below: Annotated[str | None, typer.Option("--below", metavar="NAME", help="Only this budget and those below it.")] = None,
    option: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """List the budgets and their limits."""
    with opened(chosen(ledger, option), embedded=embedded) as book:
        found = book.budgets(below)
    if json:
        print_json(found)
        return
    table = Table("Budget", "Limits", "Left", box=box.SIMPLE_HEAD)
    for balance in found:
        own = [limit for limit in balance.limits if limit.budget == balance.budget]
        table.add_row(
            escaped(balance.budget),
            "\n".join(map(limit_text, own)) or "only those above it",
            "closed" if balance.closed else "\n".join(map(left_of, own)),
        )
    console().print(table if found else "no budgets yet; make one: tokenbudget budget create NAME --usd 5")


@app.command(
    epilog=examples(
        'tokenbudget budget limit lab/prompt-study --usd 200 --reason "reviewer 2"',
        "tokenbudget budget limit lab --usd 0 --window month",
    )
)
def limit(
    name: Name,
    usd: Usd = None,
    tokens: Tokens = None,
    requests: Requests = None,
    window: Window = None,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the log.")] = None,
    ledger: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Change a budget's limit; below what is spent is allowed, and refuses all further calls."""
    given: dict[str, Any] = {"usd": usd, "tokens": tokens, "requests": requests}
    if window is not None:
        given["window"] = window_of(window)
    with opened(ledger, embedded=embedded) as book:
        _tell(book.budget(name).set_limit(**given, reason=reason), json=json)


def _tell(balance: Balance, *, json: bool) -> None:
    if json:
        print_json(balance)
    else:
        out = console()
        out.print(balance_text(balance, glyphs=glyphs(out)), soft_wrap=True)


def limit_text(of: LimitBalance) -> str:
    """A limit as people say it."""
    return of_limit(of, of.limit) + (f" per {window_text(of.window)}" if of.window else "")


def window_of(text: str | None) -> Any:
    """A window as it is written on the command line.

    Examples:
        >>> window_of("week"), window_of("12h")
        ('week', datetime.timedelta(seconds=43200))
    """
    if text is None or text in ("day", "week", "month"):
        return text
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if not found:
        raise InvalidValue("--window", f"{text!r} is not day, week, month, or a time such as 90s, 30m, 12h, 7d")
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
