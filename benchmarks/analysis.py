"""Measure the analyses on ten million events: `python benchmarks/analysis.py --help`; `make bench` runs it.

`spend` by day and model stands beside the same question in SQL, asked of the same view of the same DuckDB file by DuckDB
itself, in turn. A report over ten ledgers, a million events each, is made once, with its page, its table and its JSON. Events
are written by one SQL statement, without their chain, since only reading them is measured. Peaks of memory are those of a
process of its own, less what it had before it read anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package beside this file, installed or not

import duckdb
import polars as pl
from rich.console import Console
from rich.table import Table

import tokenbudget_lab as tbl
from benchmarks.counting import memory
from tokenbudget_lab import frames
from tokenbudget_lab.rows import COLUMNS
from tokenbudget_lab.stores.duckdb import _as_text

ROUNDS, PROMISED = 3, 3.0
LEDGERS, REPORT_S = 10, 20
THIRTY_DAYS_US = 30 * 86_400 * 1_000_000
WHAT = {
    "by hand": "the same in SQL, by DuckDB itself",
    "spend": "tbl.spend by day and model",
    "spend by tag": "tbl.spend by a tag",
    "calls": "all columns of calls, written to Parquet",
    "calls by hand": "the same by DuckDB itself",
}
BY_HAND = """
select date_trunc('day', spent_at) as period, model, count(*) as calls, sum(requests) as requests,
       sum(input_tokens) as input_tokens, sum(output_tokens) as output_tokens, sum(tokens) as tokens, sum(cost_usd) as cost_usd,
       sum(cost_usd) filter (basis = 'measured') as measured_usd, sum(cost_usd) filter (basis = 'estimated') as estimated_usd,
       sum(cost_usd) filter (basis = 'unknown') as unknown_usd, count(*) filter (cost_usd is null) as unpriced_calls
from calls where requests is not null group by all order by period, cost_usd desc
"""
# Two events of each call: what it held, and what it used; of three models and seven conditions, over thirty days.
MADE = """
insert into events by name
select r * 2 + half + 1 as seq, make_timestamp((1793491200000000 + (r * 2 + half) * $step)::bigint) as ts,
       case half when 0 then 'reserved' else 'committed' end as kind, uuid() as command, 'lab' as budget,
       md5(r::varchar)::uuid as reservation, 1 as requests,
       case half when 0 then 0.002::decimal(38, 12) end as held_usd, case half when 0 then 2000 end as held_tokens,
       case half when 1 then (r % 1000 + 1)::decimal(38, 12) / 1000000 end as usd,
       case half when 1 then 500 + r % 400 end as tokens,
       case half when 1 then 400 end as input_tokens, case half when 1 then 100 + r % 400 end as output_tokens,
       case half when 1 then 'measured' else 'unknown' end as basis,
       case half when 0 then ['claude-haiku-5-5', 'claude-sonnet-5-5', 'gpt-5-mini'][r % 3 + 1] end as model,
       case half when 0 then map {'arm': (r % 7)::varchar} end as tags
from range($events // 2) rows(r), range(2) halves(half) order by r, half
"""


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a DuckDB file, as a ledger's frames read them."""

    con: duckdb.DuckDBPyConnection
    where: str

    def arrow(
        self, columns: Sequence[str] | None = None, upto: int | None = None, where: None = None, *, uuids: bool = False
    ) -> Any:
        """What a store gives."""
        assert where is None
        names = ", ".join(columns or COLUMNS if uuids else map(_as_text, columns or COLUMNS))
        some, cursor = "" if upto is None else f"where seq <= {upto}", self.con.cursor()
        if uuids:
            cursor.execute("set session arrow_lossless_conversion = true")
        return cursor.sql(f"select {names} from events {some} order by seq").to_arrow_reader(100_000)  # noqa: S608 - names of our own

    @property
    def desk(self) -> Events:
        """Where its rows come from."""
        return self

    def calls(self) -> pl.LazyFrame:
        """One row per call."""
        return frames.calls(self)  # type: ignore[arg-type] # it is asked for rows only


def make(path: Path, events: int) -> None:
    """A file of so many events."""
    with duckdb.connect(path) as con:
        con.execute("set TimeZone = 'UTC'")
        con.execute(files("tokenbudget_lab.stores").joinpath("schema.sql").read_text())
        con.execute(files("tokenbudget_lab.stores").joinpath("views.sql").read_text())
        con.execute("drop trigger events_are_never_changed on events")
        con.execute("drop trigger events_are_never_deleted on events")
        con.execute(MADE, {"events": events, "step": THIRTY_DAYS_US // events})


def asked(con: duckdb.DuckDBPyConnection, lot: Events, scratch: Path) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    return {
        "by hand": lambda: con.sql(BY_HAND).pl(),
        "spend": lambda: tbl.spend(lot, "model", every="1d"),
        "spend by tag": lambda: tbl.spend(lot, "arm"),
        "calls": lambda: lot.calls().sink_parquet(scratch / "calls.parquet"),
        "calls by hand": lambda: con.execute(f"copy (select * from calls order by seq) to '{scratch / 'hand.parquet'}'"),  # noqa: S608 - a folder of our own
    }


def measure(path: Path, what: str) -> dict[str, float]:
    """Seconds and megabytes of one question, the median of some rounds."""
    with duckdb.connect(path, read_only=True) as con, tempfile.TemporaryDirectory() as scratch:
        con.execute("set TimeZone = 'UTC'")
        ask = asked(con, Events(con, str(path)), Path(scratch))[what]
        tbl.spend(pl.DataFrame(schema=frames.schema("calls")))  # what is imported once
        took, before = [], memory("VmRSS")
        for _ in range(ROUNDS):
            start = time.perf_counter()
            ask()
            took.append(time.perf_counter() - start)
        return {"s": statistics.median(took), "MB": memory("VmHWM") - before}


def measure_report(folder: Path) -> dict[str, float]:
    """Seconds, those of the processor, and megabytes of one report over all the files of a folder, by model and arm."""
    lots, before = [], memory("VmRSS")
    for path in sorted(folder.glob("*.duckdb")):
        con = duckdb.connect(path, read_only=True)
        con.execute("set TimeZone = 'UTC'")
        lots.append(Events(con, str(path)))
    start, busy = time.perf_counter(), time.process_time()
    told = tbl.report(lots, by=["model", "arm"], month="2026-11")
    written = told.html, told.csv, told.json
    took, cpu = time.perf_counter() - start, time.process_time() - busy
    assert all(written)
    return {"s": took, "cpu_s": cpu, "calls": told.total["calls"].item(), "MB": memory("VmHWM") - before}


def asked_apart(path: Path, what: str) -> dict[str, float]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--measure", str(path), what]
    told: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return told


def report_table(found: dict[str, float], events: int) -> Table:
    """What a report took."""
    table = Table("question", "s", "CPU s", "promised", "MB at most", title=f"{LEDGERS} ledgers of {events:,} events")
    table.add_row(
        f"tbl.report by model and arm, {found['calls']:,.0f} calls",
        *(f"{found['s']:.1f}", f"{found['cpu_s']:.1f}", f"{REPORT_S} s", f"{found['MB']:,.0f}"),
    )
    return table


def main() -> None:
    """Print a table; or, in a process of its own, measure one question."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--report-events", type=int, default=1_000_000, help="of each of the ledgers that are reported")
    parser.add_argument("--only-report", action="store_true", help="leave the others out")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "WHAT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        where, what = given.measure
        print(json.dumps(measure_report(Path(where)) if what == "report" else measure(Path(where), what)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for n in range(LEDGERS):
            make(Path(folder, f"{n}.duckdb"), given.report_events)
        Console().print(report_table(asked_apart(Path(folder), "report"), given.report_events))
    if given.only_report:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "events.duckdb")
        make(path, given.events)
        found = {}
        for what in WHAT:
            found[what] = asked_apart(path, what)
        table = Table("question", "s", "times DuckDB's own", "promised", "MB at most", title=f"{given.events:,} events")
        for what, told in WHAT.items():
            peer = found["calls by hand" if what.startswith("calls") else "by hand"]["s"]
            promised = f"{PROMISED:g}" if what == "spend" else ""
            table.add_row(
                told, f"{found[what]['s']:.1f}", f"{found[what]['s'] / peer:.1f}", promised, f"{found[what]['MB']:,.0f}"
            )
        Console().print(table)


if __name__ == "__main__":
    main()
