"""`tokenbudget watch`: budgets in a terminal while calls run, wherever they run, and a command of yours for their alerts."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Self

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tokenbudget_lab.balance import Balance
from tokenbudget_lab.connection import Ledger
from tokenbudget_lab.errors import InvalidValue, LedgerUnavailable, UnknownBudget, money
from tokenbudget_lab.render import balance_text, escaped
from tokenbudget_lab.usage import usd_of

from .looks import balances_table
from .shell import LedgerArgument, LedgerOption, chosen, console, examples, glyphs, opened

app = typer.Typer()

_SHOWN = 5  # alerts below the table
_PATIENCE_S = 5.0  # for commands that still run when the watch ends


@dataclass(frozen=True, slots=True)
class Crossed:
    """An alert that was written to the ledger, by whichever process."""

    seq: int
    at: datetime
    budget: str
    resource: str
    threshold: float
    limit: str

    def __str__(self) -> str:
        return f"{self.at:%H:%M:%S}  {escaped(self.budget)}: {self.threshold:.0%} of {self.limit} is spent"

    def environment(self) -> dict[str, str]:
        """What a command is told of it: values, in no line that a shell reads."""
        told = {"budget": self.budget, "resource": self.resource, "threshold": f"{self.threshold:g}", "limit": self.limit}
        told |= {"at": f"{self.at:%Y-%m-%dT%H:%M:%SZ}", "text": str(self)}
        return {f"TOKENBUDGET_ALERT_{name.upper()}": value.replace("\0", "") for name, value in told.items()}


@app.command(
    epilog=examples(
        "tokenbudget watch",
        "tokenbudget watch spend.duckdb --budget lab/prompt-study",
        "tokenbudget watch --on-alert 'notify-send \"a budget\"'",
        "tokenbudget watch --on-alert ./tell-the-group.sh   # it reads $TOKENBUDGET_ALERT_TEXT",
    )
)
def watch(
    ledger: LedgerArgument = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="NAME", help="Only this budget and those below it.")] = None,
    every: Annotated[float, typer.Option("--every", min=0.2, max=3600, metavar="S", help="Seconds between two looks.")] = 1.0,
    on_alert: Annotated[
        str | None,
        typer.Option(
            "--on-alert",
            metavar="COMMAND",
            help="Run this, without a shell, for each alert from now on; it is told in TOKENBUDGET_ALERT_TEXT, _BUDGET, "
            "_RESOURCE, _THRESHOLD, _LIMIT and _AT.",
        ),
    ] = None,
    option: LedgerOption = None,
) -> None:
    """Show budgets while calls run, here or in other processes, until Ctrl-C.

    Where no terminal is, each change is a line.
    """
    command = None if on_alert is None else _runnable(on_alert)
    with opened(chosen(ledger, option)) as book, _Commands(command) as commands:
        if budget is not None:
            book.budgets(budget)  # a name that is none is said now
        out = console()
        screen = _Screen(out, book.desk.where) if out.is_terminal else _Lines(out)
        with screen, contextlib.suppress(KeyboardInterrupt):
            for found, crossed, trouble in _looks(book, budget, every):
                commands.run(crossed)  # first: what is shown has been told
                screen.show(found, crossed, trouble)


def _runnable(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InvalidValue("--on-alert", f"cannot be taken apart ({error})") from None
    if not words or shutil.which(words[0]) is None:
        raise InvalidValue("--on-alert", f"there is no command {words[0] if words else ''!r} that can be run")
    return words


def _looks(book: Ledger, name: str | None, every_s: float) -> Iterator[tuple[list[Balance], list[Crossed], str]]:
    """What there is, what has crossed since the look before, and why there is no newer one; again and again."""
    found: list[Balance] = []
    began, last = datetime.now(UTC), 0
    while True:
        crossed: list[Crossed] = []
        trouble = ""
        try:
            first, found = not found, book.budgets(name)
            if first and found:
                began = found[0].at  # by the ledger's own clock
            crossed = _crossed(book, name, began, last)
            last = max((each.seq for each in crossed), default=last)
        except LedgerUnavailable as error:
            trouble = f"the ledger cannot be read: {error}"
        except UnknownBudget as error:  # of a ledger that was put in its place
            trouble = str(error)
        yield found, crossed, trouble
        time.sleep(every_s)


def _crossed(book: Ledger, name: str | None, began: datetime, last: int) -> list[Crossed]:
    import polars as pl

    wanted = (pl.col("kind") == "alerted") & (pl.col("ts") >= began) & (pl.col("seq") > last)
    rows = book.events().filter(wanted).select("seq", "ts", "budget", "detail").collect()
    made = [_read(*row) for row in rows.iter_rows()]
    return [each for each in made if name is None or each.budget == name or each.budget.startswith(f"{name}/")]


def _read(seq: int, at: datetime, budget: str, detail: str) -> Crossed:
    told: dict[str, Any] = json.loads(detail)
    resource, limit = told["resource"], int(told["limit"])
    text = money(usd_of(limit)) if resource == "usd" else f"{limit:,} {resource}"
    return Crossed(seq, at, budget, resource, float(told["threshold"]), text)


# --- showing -----------------------------------------------------------------------------------------------------------------


class _Screen:
    """A table that is drawn again in its place."""

    def __init__(self, out: Console, where: str) -> None:
        self._out, self._where = out, where
        self._live = Live(console=out, auto_refresh=False)
        self._alerts: list[Crossed] = []

    def show(self, found: list[Balance], crossed: list[Crossed], trouble: str) -> None:
        """Draw what there is."""
        self._alerts = [*self._alerts, *crossed][-_SHOWN:]
        at = f"as of {found[0].at:%H:%M:%S} UTC · " if found else ""
        below = [Text(f"alert  {each}", style="bold") for each in self._alerts]
        below += [Text(escaped(trouble), style="bold red")] if trouble else []
        below.append(Text(f"{at}Ctrl-C ends · {escaped(self._where)}", style="dim"))
        table = balances_table(found, self._out) if found else Text("no budgets yet")
        self._live.update(Group(table, *below), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


class _Lines:
    """A line for each change, for a file or another program."""

    def __init__(self, out: Console) -> None:
        self._out, self._said = out, dict[str, str]()

    def show(self, found: list[Balance], crossed: list[Crossed], trouble: str) -> None:
        """Say what is new."""
        for balance in found:
            self._say(balance.budget, balance_text(balance, glyphs=glyphs(self._out)))
        self._say("", escaped(trouble))
        for each in crossed:
            self._out.print(f"alert  {each}", soft_wrap=True)
        self._out.file.flush()

    def _say(self, about: str, text: str) -> None:
        if text != self._said.get(about, ""):
            self._said[about] = text
            if text:
                self._out.print(f"{datetime.now(UTC):%H:%M:%S}  {text}", soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to say."""


class _Commands:
    """Commands that were started for alerts; one that fails is said, and the watch goes on."""

    def __init__(self, words: list[str] | None) -> None:
        self._words, self._running = words, list[subprocess.Popen[bytes]]()

    def run(self, crossed: list[Crossed]) -> None:
        """Start one for each alert, and hear of those that have ended."""
        for each in crossed if self._words is not None else ():
            environment = {**os.environ, **each.environment()}
            try:
                started = subprocess.Popen(self._words or [], stdin=subprocess.DEVNULL, env=environment)  # noqa: S603 - her own command
            except OSError as error:
                typer.echo(f"tokenbudget: --on-alert could not be run ({error.strerror})", err=True)
            else:
                self._running.append(started)
        self._running = [each for each in self._running if not self._ended(each)]

    def _ended(self, process: subprocess.Popen[bytes]) -> bool:
        code = process.poll()
        if code:
            typer.echo(f"tokenbudget: --on-alert ended with {code}", err=True)
        return code is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + _PATIENCE_S
        for each in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(max(0.0, until - time.monotonic()))
