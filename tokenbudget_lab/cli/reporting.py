"""`tokenbudget report`: what was spent, over one ledger or many, for a terminal, a paper, or a job that runs by night."""

# ruff: noqa: FBT002 - a flag on the command line is named where it is given

from __future__ import annotations

import glob
import json as encoding
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from tokenbudget_lab.balance import Balance
from tokenbudget_lab.connection import default_path
from tokenbudget_lab.errors import InvalidValue, LedgerCorrupt, TokenBudgetError, redacted
from tokenbudget_lab.render import escaped
from tokenbudget_lab.servers import is_url, server_of

from .shell import (
    FINE,
    REFUSED,
    Embedded,
    Json,
    LedgerOption,
    complain,
    console,
    examples,
    existing,
    opened,
    plain,
    print_json,
    progress,
)

app = typer.Typer()

_MOST_ROWS = 50  # of a table in the terminal
_SUMMARY_VERSION = 1


@dataclass(frozen=True, slots=True)
class Read:
    """A ledger that was read to its end and closed: of many, only one is open at a time.

    Attributes:
        where: its path.
        frame: its calls, of the time that was asked for.
        balances: of its budgets.
        damage: why it is not sound; `None` where it is.
        events: how many it has, where it is sound.
        first: the hash of its first event, which copies of a ledger have in common.
    """

    where: str
    frame: Any
    balances: list[Balance]
    damage: str | None
    events: int | None
    first: bytes | None = None

    def calls(self) -> Any:
        """Its calls, as a lazy frame."""
        return self.frame.lazy()

    def budgets(self) -> list[Balance]:
        """The balance of every budget."""
        return self.balances


@app.command(
    epilog=examples(
        "tokenbudget report --by model",
        "tokenbudget report 'runs/*.duckdb' --by user,model --month 2026-11 --tz Europe/Berlin -o report.html -o report.tex",
        "tokenbudget report spend.duckdb --by condition --where model=gpt-4o-mini --every 1d --json",
        "tokenbudget report '/data/*.duckdb' --by user --month 2026-11 -o /srv/reports/2026-11/ --force",
    )
)
def report(
    ledgers: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LEDGER]...", help="Ledgers' files, or patterns such as 'runs/*.duckdb'.", show_default=False),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="NAME,...", help="A column, a tag, user, host, notebook, ledger; model if not given."),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A file ending with .html, .md, .csv, .json, .tex or .parquet, or a FOLDER/ for all of them; repeatable.",
        ),
    ] = None,
    month: Annotated[str | None, typer.Option("--month", metavar="YYYY-MM", help="Only this month.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="WHEN", help="From when on, such as 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="WHEN", help="Until when, not included.")] = None,
    tz: Annotated[str | None, typer.Option("--tz", metavar="ZONE", help="Whose days and months; UTC if not given.")] = None,
    every: Annotated[str | None, typer.Option("--every", metavar="LENGTH", help="Rows per 1h, 1d, 1w, 1mo too.")] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="NAME=VALUE", help="Only such calls; one name twice: either.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="What it is about.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    option: LedgerOption = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """Report what was spent, from ledgers that are each proved sound before they are believed.

    Ends with 1 if a budget is over its limit, or a ledger is unsound or cannot be read; the others are reported.
    """
    import polars as pl

    from tokenbudget_lab.figures import gather, narrow
    from tokenbudget_lab.frames import schema
    from tokenbudget_lab.reports import Report
    from tokenbudget_lab.sources import calls_of, period, span

    when = {"since": since, "until": until, "month": month, "tz": tz}
    span(**when)
    if every is not None:
        period(every, tz)
    conditions, labels = _conditions(where or []), [name for each in by or ["model"] for name in each.split(",") if name]
    files, folders = _targets(output or [], force=force)

    def needed(calls: Any) -> Any:
        return narrow(calls, labels, list(conditions))

    needed(calls_of(pl.DataFrame(schema=schema("calls"))))  # what is wrong with a label is said before there is work to lose
    read, missed = _read_all(_places(ledgers or [], option), when, needed, embedded=embedded, quiet=json)
    made = None
    if read:
        gaps = [f"Missing: {where} {reason.rstrip('.')}." for where, reason in missed.items()]
        made = Report(gather(read, labels, every=every, **when, where=conditions or None, title=title, gaps=gaps))
    told = _summary(made, read, missed)
    _write(made, files, folders, told, force=force)
    if json:
        print_json(told if made is None else {**told, "report": encoding.loads(made.json)})
    elif made is not None:
        _say(made, [*files, *folders])
    raise typer.Exit(told["exit_code"])


# --- what is asked -----------------------------------------------------------------------------------------------------------


def _conditions(given: Sequence[str]) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise InvalidValue("--where", f"{each!r} is not NAME=VALUE, such as model=gpt-4o-mini")
        found.setdefault(name, []).append(value)
    return dict(found)


def _places(given: Sequence[str], option: str | None) -> list[str | None]:
    """Every ledger that is meant, once; a pattern is what it matches, unless a file has that very name."""
    from tokenbudget_lab.reports import place

    found: list[str | None] = []
    for each in (*given, *([] if option is None else [option])):
        if is_url(each):
            found.append(each)
            continue
        path = place(each)
        if not any(sign in each for sign in "*?[") or path.exists():
            found.append(each)
            continue
        matched = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())  # noqa: PTH207 - a pattern may be absolute
        if not matched:
            raise InvalidValue("LEDGER", f"no file matches {each!r}")
        found += matched
    return list({None if each is None else str(place(each).resolve()): each for each in found}.values()) or [None]


def _targets(given: Sequence[str], *, force: bool) -> tuple[list[Path], list[Path]]:
    """Files and folders to write, checked before there is work to lose."""
    from tokenbudget_lab.reports import FORMATS, place, writable

    files: list[Path] = []
    folders: list[Path] = []
    for each in given:
        path = place(each)
        if not each.endswith("/") and not path.is_dir():
            files.append(writable(each, force=force))
            continue
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidValue("--output", f"the folder {path} cannot be made ({error.strerror})") from None
        for ending in FORMATS:
            writable(path / f"report{ending}", force=force)
        writable(path / "summary.json", force=force)
        folders.append(path)
    return list(dict.fromkeys(files)), list(dict.fromkeys(folders))


# --- reading -----------------------------------------------------------------------------------------------------------------


def _read_all(
    places: Sequence[str | None], when: dict[str, str | None], needed: Callable[[Any], Any], *, embedded: bool, quiet: bool
) -> tuple[list[Read], dict[str, str]]:
    """Each ledger in turn; those that cannot be read, or are copies of others, by their paths, with the reason."""
    read: list[Read] = []
    missed: dict[str, str] = {}
    with progress(quiet=quiet) as bar:
        for place in places:
            try:
                read.append(_read(place, when, needed, bar, embedded=embedded))
            except TokenBudgetError as error:
                complain(error)
                missed[redacted(str(place))] = f"could not be read ({str(error).rstrip('.')})"  # a URL may have a password
    kept: dict[bytes | None, Read] = {}
    for each in sorted(read, key=lambda each: each.events or 0, reverse=True):
        longest = kept.setdefault(each.first, each)
        if longest is not each and each.first is not None:
            missed[each.where] = f"is left out: it is a copy of {longest.where}, whose calls would count twice"
            typer.echo(f"tokenbudget: {escaped(f'{each.where} {missed[each.where]}')}", err=True)
    return [each for each in read if each.where not in missed], missed


def _read(
    place: str | None, when: dict[str, str | None], needed: Callable[[Any], Any], bar: Progress, *, embedded: bool
) -> Read:
    import polars as pl

    from tokenbudget_lab.sources import calls_of

    named = default_path() if place is None else place
    path = server_of(str(named)).where if is_url(named) else str(existing(place).file)
    task = bar.add_task(escaped(f"proving {path.rpartition('/')[2]}"), total=None)
    damage, events = None, None
    with opened(str(named) if is_url(named) else path, embedded=embedded) as book:
        try:
            events = book.verify(lambda done, total: bar.update(task, completed=done, total=total)).events
        except LedgerCorrupt as error:
            damage = f"Not sound: {error}" if path in str(error) else f"Not sound: {path}: {error}"
            typer.echo(f"tokenbudget: {escaped(damage)}", err=True)  # which of many it is
        frame = needed(calls_of(book, ordered=False, **when)).drop("ledger", strict=False).collect()  # type: ignore[arg-type] # texts, all of them
        first = book.events().filter(pl.col("seq") == 1).select("hash").collect()
        balances = book.budgets()
    bar.remove_task(task)
    return Read(path, frame, balances, damage, events, first.item() if first.height == 1 else None)


# --- telling -----------------------------------------------------------------------------------------------------------------


def _summary(made: Any, read: Sequence[Read], missed: dict[str, str]) -> dict[str, Any]:
    """What a script wants to know of the run."""
    over = [] if made is None else made.figures.over.to_dicts()
    unsound = [each for each in read if each.damage is not None]
    found = [
        {"ledger": each.where, "read": True, "sound": each.damage is None, "events": each.events, "reason": each.damage}
        for each in read
    ]
    found += [
        {"ledger": where, "read": False, "sound": None, "events": None, "reason": reason} for where, reason in missed.items()
    ]
    return plain(  # type: ignore[no-any-return] # a dict as before
        {
            "schema": "tokenbudget_lab.report-run",
            "schema_version": _SUMMARY_VERSION,
            "exit_code": REFUSED if over or unsound or missed else FINE,
            "ledgers": found,
            "over": over,
            "title": None if made is None else made.figures.title,
            "methods": None if made is None else made.methods,
            "total": None if made is None else made.figures.sums,
        }
    )


def _write(made: Any, files: Sequence[Path], folders: Sequence[Path], told: dict[str, Any], *, force: bool) -> None:
    """Each file at once or not at all; the summary of a folder last, so that who sees it sees the others."""
    from tokenbudget_lab.reports import FORMATS, put

    for file in files if made is not None else ():
        made.save(file, force=force)
    for folder in folders:
        for ending in FORMATS if made is not None else ():
            made.save(folder / f"report{ending}", force=force)
        put(folder / "summary.json", (encoding.dumps(told, indent=1, allow_nan=False) + "\n").encode(), force=force)


def _say(made: Any, written: Sequence[Path]) -> None:
    from tokenbudget_lab.report_methods import notes, over_limit
    from tokenbudget_lab.report_text import table

    out = console()
    if written:
        for path in written:
            typer.echo(escaped(f"wrote {path}{'/' if path.is_dir() else ''}"))
    else:
        out.print(escaped(made.figures.title), table(made.figures, _MOST_ROWS), sep="\n\n", end="\n\n")
        for text in (made.methods, *notes(made.figures)):
            out.print(escaped(text), soft_wrap=True)
    for text in over_limit(made.figures):
        typer.echo(f"tokenbudget: {text}", err=True)
