"""What was measured, for people: rates beside SQLite's and beside the aims, and where a pair's time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from benchmarks.ledger import Measured

AIMS = {
    ("1,000 tasks", "embedded"): 6.0,
    ("1,000 tasks", "keeper"): 5.0,
    ("16 processes × 50 tasks", "keeper"): 4.0,
    ("1 task", "embedded"): 0.12,
    ("1 task", "keeper"): 0.08,
}
# Which measurements are taken apart, and the batch whose stages are like theirs.
APART = {
    ("1,000 tasks", "embedded"): 1_000,
    ("1,000 tasks", "keeper"): 1_000,
    ("16 processes × 50 tasks", "keeper"): 1_000,
    ("1 task", "embedded"): 1,
    ("1 task", "keeper"): 1,
}
CLIENT = ("client", "link")
WRITER = ("decide", "fold", "hash + JSON", "rows", "DuckDB")
SAYS = {
    "client": "client: handles, tasks, event loop",
    "link": "client: messages",
    "keeper reads": "keeper: reading messages",
    "decide": "writer: deciding",
    "fold": "writer: folding",
    "hash + JSON": "writer: hash and JSON",
    "rows": "writer: events to rows",
    "DuckDB": "writer: DuckDB's append",
    "keeper answers": "keeper: packing answers",
    "rest": "writer: queue, waking, garbage, the rest",
    "waiting": "waiting: disk, locks",
}
FULL = 0.85  # of all cores: then it is they that limit

Results = dict[str, dict[str, "Measured"]]


def show(about: dict[str, Any], results: Results, stages: dict[int, dict[str, float]]) -> None:
    """Print all of it."""
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(_head(about))
    console.print(_rates(results, about))
    console.print(Text(_NOTES, style="dim"))
    apart = {key: _parts(results[key[0]][key[1]], stages[batch]) for key, batch in APART.items()}
    console.print(_profile(results, apart))
    console.print(Text(_PROFILE_NOTES, style="dim"))
    console.print(Text("\nWhat would double it", style="bold"))
    for (title, way), parts in apart.items():
        console.print(f"[bold]{title}, {way}[/]: {_doubling(results[title][way], parts, way, about['cores'])}")


_NOTES = (
    "A pair is a reserve and its commit; p50 and p99 are of a pair, from asking to the acknowledged commit. "
    "× SQLite: beside the SQLite of the same group and round. SQLite: WAL, synchronous=FULL, one BEGIN IMMEDIATE transaction "
    "per step, three budgets read, checked and updated; one connection per process, because its rate does not rise with tasks "
    "or threads; “chained” adds our hash chain. Its checkpoints (every 1,000 pages) are in its figures. "
    "append: DuckDBStore.append of events made before, so many at once; two events count as a pair, p50 and p99 are of one "
    "append, × SQLite is beside 1 task. quiet: rounds with a fast disk; 0 means that "
    "all are in the figures, and these say little. Each file was opened again: sound, every acknowledged pair in it, no other."
)
_PROFILE_NOTES = (
    "Client, messages, elapsed and the sums were read in the measured rounds, from the clocks of threads and keeper; the "
    "stages by running each alone over the same commands, in batches of 1,000 (1 task: of 1). The rest is the writer "
    "thread's CPU less its stages; with the keeper, all of the keeper's. Waiting: elapsed time in which none of them computed."
)


def _head(about: dict[str, Any]) -> Text:
    quiet, total = sum(about["quiet"].values()), len(about["quiet"]) * about["rounds"]
    kept = f"{quiet} of {total} groups; {total - quiet} left out because fdatasync took 0.3 ms or more"
    if not quiet:
        kept = f"ALL {total} GROUPS HAD A SLOW DISK (fdatasync ≥ 0.3 ms); they are all in here, and say little"
    return Text(
        f"\n{about['system']}, {about['cores']} cores, load {about['load_before']:.1f} → {about['load_after']:.1f}; "
        f"Python {about['python']}, DuckDB {about['duckdb']}, SQLite {about['sqlite']}; on {about['folder']}\n"
        f"medians of {about['rounds']} rounds, {kept}; {about['seconds_each']:g} s each, {about['took_s']} s in all"
    )


def _rates(results: Results, about: dict[str, Any]) -> Table:
    table = Table(title="Reserve + commit", title_justify="left", title_style="bold")
    for name in ("load", "way"):
        table.add_column(name)
    for name in ("pairs/s", "p50 ms", "p99 ms", "× SQLite", "aim", "quiet"):
        table.add_column(name, justify="right")
    for title, ways in results.items():
        for n, (way, one) in enumerate(ways.items()):
            table.add_row(
                title if n == 0 else "",
                "DuckDB alone" if way == "append" else way,
                f"{one.rate:,.0f}",
                f"{one.p50_ms:.2f}",
                f"{one.p99_ms:.2f}",
                "" if one.ratio is None else f"{one.ratio:.2f}",
                _aim(AIMS.get((title, way)), one.ratio, about["quiet"][title]),
                _quiet(about["quiet"][title], about["rounds"]) if n == 0 else "",
                end_section=n == len(ways) - 1,
            )
    return table


def _aim(aim: float | None, ratio: float | None, quiet: int) -> Text:
    if aim is None or ratio is None:
        return Text("")
    if not quiet:
        return Text(f"≥ {aim:g} slow disk", "yellow")
    return Text(f"≥ {aim:g} met", "green") if ratio >= aim else Text(f"≥ {aim:g} MISSED", "red")


def _quiet(quiet: int, rounds: int) -> Text:
    return Text(f"{quiet}/{rounds}", "" if quiet else "red")


def _parts(one: Measured, stages: dict[str, float]) -> dict[str, float]:
    """µs per pair by part; they add up to all CPU and to what was waited."""
    cpu = {name: seconds / one.rate * 1e6 for name, seconds in one.busy.items()}
    parts = {"client": cpu["client"]}
    kept = cpu["writer"]
    if cpu["keeper"]:
        kept = cpu["keeper"]
        parts |= {"link": cpu["link"], "keeper reads": stages["keeper reads"], "keeper answers": stages["keeper answers"]}
    parts |= {name: stages[name] for name in WRITER}
    told = sum(us for name, us in parts.items() if name not in CLIENT)
    parts["rest"] = max(0.0, kept - told)
    parts["waiting"] = max(0.0, 1e6 / one.rate - sum(cpu.values()))
    return parts


def _profile(results: Results, apart: dict[tuple[str, str], dict[str, float]]) -> Table:
    table = Table(title="Where the time goes (µs per pair)", title_justify="left", title_style="bold")
    table.add_column("")
    for title, way in apart:
        table.add_column(f"{title}\n{way}", justify="right")
    for name, says in SAYS.items():
        table.add_row(says, *(f"{parts[name]:,.1f}" if name in parts else "" for parts in apart.values()))
    table.add_section()
    measured = [results[title][way] for title, way in apart]
    table.add_row("elapsed", *(f"{1e6 / one.rate:,.1f}" for one in measured), style="bold")
    table.add_row("clients' CPU", *(f"{_client_us(one):,.1f}" for one in measured))
    table.add_row("keeper's CPU", *(f"{_keeper_us(one):,.1f}" if one.busy["keeper"] else "" for one in measured))
    table.add_row("cores busy", *(f"{sum(one.busy.values()):.2f}" for one in measured))
    return table


def _client_us(one: Measured) -> float:
    return sum(one.busy[name] for name in ("client", "link", "writer")) / one.rate * 1e6


def _keeper_us(one: Measured) -> float:
    return one.busy["keeper"] / one.rate * 1e6


def _doubling(one: Measured, parts: dict[str, float], way: str, cores: int) -> str:
    """What limits, and which parts would have to go, largest first, for half of the time."""
    elapsed, busy = 1e6 / one.rate, sum(one.busy.values())
    busier = max(_client_us(one), _keeper_us(one))
    if parts["waiting"] > elapsed / 2:
        limit = f"nobody computes for {parts['waiting'] / elapsed:.0%} of the time."
    elif busy > FULL * cores:
        limit = f"all {cores} cores are busy ({busy:.1f}): only less work helps."
    elif way == "embedded":
        limit = f"one interpreter for client and writer, {busy:.2f} cores busy."
    else:
        limit = (
            f"{busy:.2f} of {cores} cores busy: clients ({_client_us(one):,.0f} µs) and keeper ({_keeper_us(one):,.0f} µs) "
            f"take turns; both always at work would be × {elapsed / busier:.1f}."
        )
    total, gone, taken = sum(parts.values()), 0.0, []
    for name, us in sorted(parts.items(), key=lambda part: -part[1]):
        if gone < total / 2:
            gone += us
            taken.append(f"{SAYS[name]} ({us:,.0f})")
    without = "it" if len(taken) == 1 else "them"
    return (
        f"{limit} Of {total:,.0f} µs of work and waiting, {total / 2:,.0f} would have to go. The largest: {'; '.join(taken)}. "
        f"Without {without}, which nothing reaches, × {total / max(total - gone, 1e-9):.1f}."
    )
