"""Many machines on one PostgreSQL ledger: `python benchmarks/postgres.py`; `make bench` runs it too.

Clients are processes of this machine, each with 50 tasks that reserve and commit, against one budget below another. Beside
them stand the naive way, with one transaction per step that locks the budget's rows by `SELECT … FOR UPDATE` and a connection
for each task, as far as the server has them; pgbench's own rate for a transaction that inserts one row: what this server and
its disk can do at all; and how long that takes one caller over one connection of psycopg, a bare round trip with commit. It
starts a server of its own, in a temporary folder, that waits for the disk (`fsync=on`, `synchronous_commit=on`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package beside this file, installed or not

from tests import postgres

ROOT = Path(__file__).resolve().parent.parent
CLIENTS, TASKS = (1, 4, 16, 64), 50
CONNECTIONS = 400  # of the naive way, in all: as many as a server of this size may be asked for
WIDTHS = (9, 8, 8, 6, 9, 7, 8, 12)
NAIVE = """
create table budgets (name text primary key, spent bigint, held bigint, cap bigint);
insert into budgets values ('lab', 0, 0, 1000000000), ('lab/study', 0, 0, 1000000000);
create table steps (id uuid primary key, kind text, amount bigint, at timestamptz default now());
create table one (id bigserial primary key, body text);
"""
OURS = """
import asyncio, sys, time
import tokenbudget_lab as tbl

async def main(url, tasks, seconds):
    times = []
    with tbl.connect(url) as ledger:
        study = ledger.budget("lab/study")
        print("ready", flush=True); sys.stdin.readline()
        end = time.monotonic() + seconds
        async def task():
            while time.monotonic() < end:
                began = time.perf_counter()
                held = await study.reserve(tokens=1, timeout=600)
                middle = time.perf_counter()
                await held.commit(tokens=1)
                times.extend((middle - began, time.perf_counter() - middle))
        await asyncio.gather(*(task() for _ in range(tasks)))
    print(*(round(t * 1e6) for t in times))
asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
"""
THEIRS = """
import asyncio, sys, time, uuid, threading
import psycopg

def step(con, kind, spent, held):
    with con.transaction():
        query = "select spent + held, cap from budgets where name in ('lab', 'lab/study') order by name for update"
        rows = con.execute(query).fetchall()
        assert all(used + max(held, 0) <= cap for used, cap in rows)
        con.execute("update budgets set spent = spent + %s, held = held + %s where name in ('lab', 'lab/study')", (spent, held))
        con.execute("insert into steps (id, kind, amount) values (%s, %s, %s)", (uuid.uuid4(), kind, 1))

times = []
end = None

def task(con):
    while time.monotonic() < end:
        began = time.perf_counter(); step(con, "reserved", 0, 1)
        middle = time.perf_counter(); step(con, "committed", 1, -1)
        times.extend((middle - began, time.perf_counter() - middle))

connections = [psycopg.connect(sys.argv[1], autocommit=True) for _ in range(int(sys.argv[2]))]
for con in connections: step(con, "warm", 0, 0)
print("ready", flush=True); sys.stdin.readline()
end = time.monotonic() + float(sys.argv[3])
tasks = [threading.Thread(target=task, args=(con,)) for con in connections]
for one in tasks: one.start()
for one in tasks: one.join()
for con in connections: con.close()
print(*(round(t * 1e6) for t in times))
"""
BARE = """
import sys, time
import psycopg

times = []
with psycopg.connect(sys.argv[1], autocommit=True) as con:
    print("ready", flush=True); sys.stdin.readline()
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end:
        began = time.perf_counter(); con.execute("insert into one (body) values (repeat('x', 600))")
        times.append(time.perf_counter() - began)
print(*(round(t * 1e6) for t in times))
"""


def race(program: str, url: str, clients: int, tasks: int, seconds: float) -> tuple[float, float, float]:
    """Pairs a second, and the median and 99th percentile of a step in ms."""
    command = [sys.executable, "-c", program, url, str(tasks), str(seconds)]
    env = {**os.environ, "TOKENBUDGET_PRICES": "off", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) for _ in range(clients)
    ]
    for one in running:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    began = time.monotonic()
    told = [one.communicate()[0] for one in running]
    took = time.monotonic() - began
    times = sorted(int(each) for text in told for each in text.split())
    return len(times) / 2 / max(took, seconds), statistics.median(times) / 1e3, times[int(len(times) * 0.99)] / 1e3


def pgbench(server: postgres.Server, clients: int, seconds: float) -> float:
    """Transactions a second that insert one row each, as pgbench counts them."""
    script = server.folder / "one.sql"
    script.write_text("insert into one (body) values (repeat('x', 600));\n")
    script.chmod(0o644)
    command: list[str | Path] = [
        server.bin / "pgbench", "-n", "-h", server.folder, "-U", postgres.USER, "-f", script, "-c", str(clients), "-j", "2",
        "-T", str(max(1, round(seconds))), "naive",
    ]  # fmt: skip
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout
    return float(next(line.split("=")[1].split()[0] for line in told.splitlines() if line.startswith("tps")))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, nargs="*", default=CLIENTS)
    given = parser.parse_args()
    if postgres.binaries() is None:
        print("no PostgreSQL server here: apt-get install postgresql")
        return
    with tempfile.TemporaryDirectory(prefix="tb-bench-") as folder:
        settings = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "shared_buffers": "256MB",
                    "max_connections": str(CONNECTIONS + 100)}  # fmt: skip
        server = postgres.Server(Path(folder), settings)
        server.make()
        try:
            measure(server, given.clients, given.seconds)
        finally:
            server.stop()


def measure(server: postgres.Server, counts: list[int], seconds: float) -> None:
    """One line for each number of clients."""
    server.run("create database naive")
    server.run(NAIVE, "naive")
    naive = f"host={server.folder} user={postgres.USER} dbname=naive"
    heads = ("pairs/s", "p50 ms", "p99 ms", "conns", "naive/s", "p50 ms", "p99 ms", "pgbench tps")
    print(f"{'clients':>8} {'tasks':>6}", *(f"{head:>{width}}" for head, width in zip(heads, WIDTHS, strict=True)))
    runs = [(1, 1), *((count, TASKS) for count in counts)]
    for number, (clients, tasks) in enumerate(runs):
        url = server.create(f"ours{number}")
        import tokenbudget_lab as tbl

        with tbl.connect(url) as ledger:
            ledger.budget("lab", tokens=10**9)
            ledger.budget("lab/study", tokens=10**9)
        ours = race(OURS, url, clients, tasks, seconds)
        connections = min(tasks, CONNECTIONS // clients)
        theirs = race(THEIRS, naive, clients, connections, seconds)
        plain = pgbench(server, clients, seconds)
        print(
            f"{clients:>8} {tasks:>6} {ours[0]:>9,.0f} {ours[1]:>8.1f} {ours[2]:>8.1f} {clients * connections:>6} "
            f"{theirs[0]:>9,.0f} {theirs[1]:>7.1f} {theirs[2]:>8.1f} {plain:>12,.0f}",
            flush=True,
        )
        if tasks == 1:
            _, middle, late = race(BARE, naive, 1, 1, seconds)
            print(
                f"a bare round trip with commit: p50 {middle:.1f} ms, p99 {late:.1f} ms; ours alone: {ours[2] / late:.1f} times"
            )
        with tbl.connect(url) as ledger:
            ledger.verify()


if __name__ == "__main__":
    main()
