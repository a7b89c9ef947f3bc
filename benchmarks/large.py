"""Measure a ledger that has grown: `python benchmarks/large.py --help`; `make bench` runs it behind the rates.

What a ledger promises at any size: it opens, its keeper starts, and its millionth call costs what its first one did. Each
figure stands beside its limit; rates are ratios to an empty ledger's, measured in turn with it, each in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package beside this file, installed or not

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tokenbudget_lab import link
from tokenbudget_lab.commands import Commit, GetHead, Reserve, SetBudget
from tokenbudget_lab.connection import connect
from tokenbudget_lab.decide import Decisions
from tokenbudget_lab.desk import DirectBox, Ticket
from tokenbudget_lab.ids import new_id
from tokenbudget_lab.ledger import Ledger
from tokenbudget_lab.place import place_of
from tokenbudget_lab.state import State
from tokenbudget_lab.stores.duckdb import DuckDBStore

USD = 10**12
BATCH = 10_000
WEEKS_US = 172_800 * 1_000_000  # as long as a reservation may last
ORIGIN = '{"host":"bench","notebook":"study.ipynb","user":"ada"}'


# --- making one ----------------------------------------------------------------------------------------------------------


def make(path: Path, events: int, *, open_count: int = 0) -> None:
    """A ledger of so many events, decided and appended as any other; the last of them are reservations that stay open."""
    store = DuckDBStore(place_of(path))
    decisions = Decisions(State())
    now = time.time_ns() // 1000 - events * 10  # it ends about now
    decisions.create(new_id(), now, ORIGIN)
    decisions.decide(SetBudget(new_id(), "lab", (("", 10**9 * USD, None, None),), "UTC"), now)
    decisions.decide(SetBudget(new_id(), "lab/study", (("day", 10**9 * USD, None, None),), "UTC"), now)
    state = decisions.state
    with _progress() as progress:
        task = progress.add_task(f"{path.stem}: {events:,} events", total=events)
        while decisions.events or state.seq < events:
            stays = events - state.seq <= open_count
            for _ in range(min(BATCH, events - state.seq)):
                now += 9 if stays else 18
                hold = Reserve(
                    new_id(), "lab/study", 3 * USD // 100, 2_000, 1, WEEKS_US, "release", provider="anthropic",
                    model="claude-sonnet-4-5", tags=(("condition", "few-shot"),),
                )  # fmt: skip
                decisions.decide(hold, now, ORIGIN)
                if not stays:
                    used = Commit(new_id(), hold.id, USD // 100, 1_200, None, "measured", input_tokens=900, output_tokens=300)
                    decisions.decide(used, now, ORIGIN)
            state.forget(now)
            batch, decisions.events = decisions.events, []
            store.append(batch)
            store.tend(state)
            progress.update(task, completed=state.seq)
    store.close(state)


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


# --- measured in a process of its own ----------------------------------------------------------------------------------------


def opening(path: Path) -> dict[str, float]:
    """How long until the first balance is there, in seconds; imports are done before."""
    import duckdb  # noqa: F401 - not what is measured

    began = time.perf_counter()
    with connect(path, embedded=True) as ledger:
        assert ledger.budget("lab").balance.committed_usd is not None
        return {"s": time.perf_counter() - began}


def starting(path: Path) -> dict[str, float]:
    """The same through a keeper that has to be started for it."""
    began = time.perf_counter()
    with connect(path) as ledger:
        assert ledger.budget("lab").balance.committed_usd is not None
        took = time.perf_counter() - began
    link.stop(place_of(path))
    return {"s": took}


def proving(path: Path) -> dict[str, float]:
    """`verify`, in seconds, and how many events it replayed."""
    with connect(path, embedded=True) as ledger:
        began = time.perf_counter()
        return {"events": ledger.verify().events, "s": time.perf_counter() - began}


def holding(count: int) -> dict[str, float]:
    """Bytes of this process for each open reservation."""
    decisions = Decisions(State())
    now = time.time_ns() // 1000
    decisions.create(new_id(), now)
    decisions.decide(SetBudget(new_id(), "lab", (("day", 10**9 * USD, None, None),), "UTC"), now)
    gc.collect()
    before = _resident()
    for n in range(count):
        decisions.decide(Reserve(new_id(), "lab", USD // 100 + n % 1_000, 2_000 + n % 500, 1, WEEKS_US, "release"), now + n)
        decisions.events.clear()
    gc.collect()
    return {"bytes": (_resident() - before) / count}


def _resident() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - no file of the project
        return int(file.read().split()[1]) * resource.getpagesize()


def working(path: Path, tasks: int, seconds: float, in_line: int) -> dict[str, float]:
    """Pairs of reserve and commit a second, with so many waiters in line."""
    with connect(path, embedded=True) as ledger:
        run = ledger.budget("lab")
        if in_line:
            _stand(ledger, in_line)
        pairs = 0

        async def work(until: float) -> None:
            nonlocal pairs
            while time.perf_counter() < until:
                async with run.reserve(usd="0.03", tokens=2_000) as call:
                    call.commit(usd="0.01", tokens=1_200)
                pairs += 1

        async def all_at_once(for_s: float) -> float:
            nonlocal pairs
            pairs, began = 0, time.perf_counter()
            await asyncio.gather(*(work(began + for_s) for _ in range(tasks)))
            return pairs / (time.perf_counter() - began)

        asyncio.run(all_at_once(0.5))
        return {"rate": asyncio.run(all_at_once(seconds))}


def _stand(ledger: Ledger, count: int) -> None:
    """Waiters in a budget of their own that do not fit, each of another size."""
    full = ledger.budget("lab/full", tokens=10**6)
    if not full.balance.calls_in_flight:  # else it is held by the round before
        full.reserve_sync(tokens=10**6 - 1, usd=0, timeout=172_800)
    box = DirectBox(None)
    ledger.desk.submit(Ticket(GetHead(new_id()), box))
    for n in range(count):
        wait = Reserve(new_id(), "lab/full", 0, 2 + n, 1, WEEKS_US, "release", wait=3_600_000_000)
        ledger.desk.submit(Ticket(wait, box))


ONES: dict[str, Callable[..., dict[str, float]]] = {
    "opening": lambda a: opening(a.path),
    "starting": lambda a: starting(a.path),
    "proving": lambda a: proving(a.path),
    "holding": lambda a: holding(a.count),
    "working": lambda a: working(a.path, a.tasks, a.seconds, a.in_line),
}


def one(what: str, **how: Any) -> dict[str, float]:
    """Measure one thing in a new process."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    command = [sys.executable, __file__, "--one", what, *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1_800)
    if done.returncode:
        raise RuntimeError(f"{what} {options}: {done.stderr[-2_000:]}")
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def ratio(of: dict[str, Any], to: dict[str, Any], rounds: int, seconds: float, tasks: int) -> list[float]:
    """The rate of one ledger as a fraction of another's, in turn."""
    ratios = []
    for _ in range(rounds):
        peer = one("working", **to, seconds=seconds, tasks=tasks)["rate"]
        ratios.append(one("working", **of, seconds=seconds, tasks=tasks)["rate"] / peer)
    return ratios


# --- all of it ---------------------------------------------------------------------------------------------------------


def measure(folder: Path, args: argparse.Namespace) -> list[tuple[str, list[float], float, str]]:
    """What, its values, its limit, and the unit; a ratio's limit is a least one."""
    empty, big, held, million = (folder / f"{name}.duckdb" for name in ("empty", "past", "held", "proved"))
    rows: list[tuple[str, list[float], float, str]] = []

    def several(what: str, **how: Any) -> list[float]:
        return [one(what, **how)["s"] for _ in range(args.rounds)]

    make(empty, 3)
    make(million, args.events // 10)
    make(held, args.open + 3, open_count=args.open)
    make(big, args.events)
    rows.append((f"open {args.events:,} events", several("opening", path=big), 1.0, "s"))
    rows.append((f"start a keeper on {args.events:,} events", several("starting", path=big), 1.0, "s"))
    rows.append(("start a keeper on an empty ledger", several("starting", path=empty), 1.0, "s"))
    rows.append((f"verify {args.events // 10:,} events", several("proving", path=million), 10.0 * args.events / 10**7, "s"))
    rows.append((f"memory of an open reservation, of {args.open:,}", [one("holding", count=args.open)["bytes"]], 1_000, "B"))
    many = {"rounds": args.rounds, "seconds": args.seconds}
    peer = {"path": empty}
    for tasks in (1_000, 1):
        says = f"{tasks:,} task{'s' * (tasks > 1)}"
        rows.append((f"{says}, behind {args.events:,} events", ratio({"path": big}, peer, tasks=tasks, **many), 0.8, "×"))
        rows.append((f"{says}, beside {args.open:,} open", ratio({"path": held}, peer, tasks=tasks, **many), 0.8, "×"))
        line = {"path": empty, "in_line": 10_000}
        rows.append((f"{says}, beside 10,000 in line", ratio(line, peer, tasks=tasks, **many), 0.8, "×"))
    return rows


def show(rows: list[tuple[str, list[float], float, str]]) -> None:
    """Print what was measured beside what it must be."""
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    load = os.getloadavg()[0]
    console.print(f"\n[bold]A ledger that has grown[/]  load {load:.1f} at the end; medians, and the worst of the rounds")
    table = Table(box=None, pad_edge=False)
    for name in ("what", "median", "worst", "limit", ""):
        table.add_column(name, justify="left" if name in ("what", "") else "right")
    for what, values, limit, unit in rows:
        at_least = unit == "×"
        middle, worst = statistics.median(values), min(values) if at_least else max(values)
        kept = middle >= limit if at_least else middle <= limit
        says = f"{'≥' if at_least else '≤'} {limit:g} {unit}"
        table.add_row(what, f"{middle:,.2f} {unit}", f"{worst:,.2f} {unit}", says, "" if kept else "[red]missed[/]")
    console.print(table)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure a ledger that has grown, beside an empty one.")
    parser.add_argument("--events", type=int, default=10_000_000, help="of the largest ledger (default 10,000,000)")
    parser.add_argument("--open", type=int, default=1_000_000, help="open reservations (default 1,000,000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each rate")
    parser.add_argument(
        "--dir", type=Path, default=Path(__file__).parent, help="where to make the files (default: beside this)"
    )
    parser.add_argument("--one", choices=list(ONES), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--in-line", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Make the ledgers, measure, show."""
    args = arguments()
    if args.one:
        print(json.dumps(ONES[args.one](args)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-", dir=args.dir, ignore_cleanup_errors=True) as name:
        show(measure(Path(name).resolve(), args))


if __name__ == "__main__":
    main()
