"""Measure the ledger beside SQLite, on this machine, now: `make bench`, or `python benchmarks/ledger.py --help`.

A rate by itself says more about the machine than about the ledger, so every rate stands beside one of SQLite's that was
measured moments before, and the ratio is what counts. Rounds are interleaved and every figure is their median; a group of
measurements in which the disk was slow (fdatasync of 200 bytes, before and after each, took 0.3 ms or more) is left out.
After each measurement the file is opened again and checked: sound, and exactly the pairs that were counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package beside this file, installed or not

from benchmarks.crew import Crew
from benchmarks.tables import show

SLOW_DISK_MS = 0.3
LIMIT_S = 340.0  # no round is begun that would end later
LONGEST_S = 30.0  # one measurement
PROCESSES = (1, 2, 4, 8, 16)
BATCHES = (1, 100, 1_000, 10_000)


@dataclass(frozen=True, slots=True)
class Load:
    """Who works how: `way` is sqlite, `sqlite, chained`, embedded, keeper, or append."""

    way: str
    processes: int = 1
    tasks: int = 1  # in each process
    threads: int = 0  # instead of tasks
    size: int = 0  # events in each append


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measurement gave; `ratio` is to the SQLite of its group, `busy` CPU seconds per second by thread."""

    rate: float
    p50_ms: float
    p99_ms: float
    ratio: float | None
    busy: dict[str, float]


@dataclass(frozen=True, slots=True)
class Group:
    """Measurements that are compared, by way; with fdatasync's median (ms) before each of them and after the last."""

    sync_ms: list[float]
    ways: dict[str, Measured]

    @property
    def quiet(self) -> bool:
        """Whether the disk was as fast as it has to be for a comparison."""
        return max(self.sync_ms) < SLOW_DISK_MS


Round = dict[str, Group]


def plan(*, quick: bool) -> dict[str, list[Load]]:
    """Groups of loads; the first of each is the peer of the others."""
    groups: dict[str, list[Load]] = {}
    for tasks in (1_000, 1) if quick else (1_000, 1, 10, 100):
        groups[f"{tasks:,} task{'s' * (tasks > 1)}"] = [Load("sqlite"), Load("embedded", 1, tasks), Load("keeper", 1, tasks)]
    groups["1 task"].insert(1, Load("sqlite, chained"))
    for threads in (64,) if quick else (8, 64):
        groups[f"{threads} threads"] = [Load("sqlite"), Load("embedded", threads=threads), Load("keeper", threads=threads)]
    for processes in (1, 16) if quick else PROCESSES:
        title = f"{processes} process{'es' * (processes > 1)} × 50 tasks"
        groups[title] = [Load("sqlite", processes), Load("keeper", processes, 50)]
        if processes == 1:
            groups[title].insert(1, Load("embedded", 1, 50))
    for size in BATCHES:
        groups[f"append {size:,}"] = [Load("append", size=size)]
    return groups


def measure_round(crew: Crew, groups: dict[str, list[Load]], seconds: float) -> Round:
    """Every load once."""
    done: Round = {}
    for title, loads in groups.items():
        # DuckDB alone has its peer in another group.
        peer = done["1 task"].ways["sqlite"].rate if title.startswith("append") else None
        done[title] = measure_group(crew, loads, seconds, peer)
    return done


def measure_group(crew: Crew, loads: list[Load], seconds: float, peer: float | None) -> Group:
    """Loads in turn, beside the first of them where there is no other peer."""
    syncs, ways = [fdatasync_ms(crew.folder)], {}
    for load in loads:
        if load.way == "append":
            told = [crew.append(load.size, seconds / 2)]
            rate = told[0]["rate"] / 2  # a pair is two events
        else:
            window, count = seconds, 0
            while not count and window < LONGEST_S:  # on a machine that does not get round to it, a longer look
                told = crew.measure(load.way, load.processes, load.tasks, load.threads, window)
                count = sum(len(one["took"]) for one in told)
                rate, window = count / window, window * 4
        syncs.append(fdatasync_ms(crew.folder))
        took = sorted(s * 1e3 for one in told for s in one["took"])
        assert took, f"{load}: nothing ended inside the window, {LONGEST_S:g} s long"
        busy = {name: sum(one["busy"].get(name, 0.0) for one in told) for name in ("client", "writer", "link", "keeper")}
        ways[load.way] = Measured(rate, at(took, 0.5), at(took, 0.99), rate / peer if peer else None, busy)
        peer = peer or rate
    return Group(syncs, ways)


def at(ordered: list[float], fraction: float) -> float:
    """A quantile."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def fdatasync_ms(folder: Path, times: int = 40) -> float:
    """What the disk takes for what every transaction needs: the median fdatasync of a 200-byte append, in ms."""
    sync = getattr(os, "fdatasync", os.fsync)
    took = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(times):
            file.write(b"x" * 200)
            began = time.perf_counter()
            sync(file.fileno())
            took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def medians(rounds: list[Round]) -> dict[str, dict[str, Measured]]:
    """Over rounds, of each figure by itself; the ratio is the median of ratios, not the ratio of medians."""
    told = {}
    for title, first in rounds[0].items():
        every = [one[title] for one in rounds]
        kept = [group for group in every if group.quiet] or every
        told[title] = {way: _median([group.ways[way] for group in kept]) for way in first.ways}
    return told


def _median(several: list[Measured]) -> Measured:
    ratios = [one.ratio for one in several if one.ratio is not None]
    return Measured(
        statistics.median(one.rate for one in several),
        statistics.median(one.p50_ms for one in several),
        statistics.median(one.p99_ms for one in several),
        statistics.median(ratios) if ratios else None,
        {name: statistics.median(one.busy[name] for one in several) for name in several[0].busy},
    )


def machine(folder: Path) -> dict[str, Any]:
    """Where this was measured, and with what."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "duckdb": version("duckdb"),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "folder": str(folder),
        "load_before": os.getloadavg()[0],
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the ledger beside SQLite; what counts are the ratios.")
    parser.add_argument("--quick", action="store_true", help="one short round, under a minute: for trying the benchmark itself")
    parser.add_argument("--rounds", type=int, help="at most; as many as fit into six minutes (default 5)")
    parser.add_argument("--seconds", type=float, help="for each measurement (default 2)")
    parser.add_argument(
        "--dir", type=Path, default=Path(__file__).parent, help="where to make the files (default: beside this)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds there")
    return parser.parse_args()


def main() -> None:
    """Measure, then show."""
    args = arguments()
    rounds_wanted, seconds = args.rounds or (1 if args.quick else 5), args.seconds or (0.5 if args.quick else 2.0)
    groups = plan(quick=args.quick)
    began, rounds = time.monotonic(), list[Round]()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=args.dir, ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        about = machine(folder.parent)
        with Crew(folder, max(PROCESSES), warm_s=0.2 if args.quick else 0.3) as crew:
            for number in range(rounds_wanted):
                started = time.monotonic()
                rounds.append(measure_round(crew, groups, seconds))
                now = time.monotonic()
                _tell(number, rounds[-1], now - started)
                if now - began + (now - started) > LIMIT_S and args.rounds is None:
                    break
            stages = {batch: crew.stages(batch) for batch in (1, 1_000)}
    quiet = {title: sum(one[title].quiet for one in rounds) for title in groups}
    about |= {"load_after": os.getloadavg()[0], "rounds": len(rounds), "quiet": quiet}
    about |= {"seconds_each": seconds, "took_s": round(time.monotonic() - began)}
    result = medians(rounds)
    show(about, result, stages)
    if args.json:
        told = {"about": about, "medians": result, "stages_us_per_pair": stages, "rounds": rounds}
        args.json.write_text(json.dumps(told, default=asdict, indent=1) + "\n")


def _tell(number: int, one: Round, took_s: float) -> None:
    syncs = [ms for group in one.values() for ms in group.sync_ms]
    slow = [title for title, group in one.items() if not group.quiet]
    median = statistics.median(syncs)
    said = f"round {number + 1}: {took_s:.0f} s, fdatasync {min(syncs):.2f} … {max(syncs):.2f}, median {median:.2f} ms"
    left_out = f"; left out for a slow disk: {', '.join(slow)}" if slow else ""
    print(said + left_out, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
