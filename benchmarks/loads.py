"""One of the processes that make the load: reads an order, says ready, waits for the start, works, tells what it counted.

Every task reserves and commits, again and again. What is measured is what ends inside a window that is the same for all
processes of a measurement and opens a moment after the start; what ends outside is counted for the check only.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package beside this file, installed or not

from benchmarks.pairs import BUDGETS, HOLD_PICO, HOLD_USD, LIMIT_USD, USED_PICO, USED_USD, prebuilt
from benchmarks.peer import SQLiteLedger
from benchmarks.stages import stages
from tokenbudget_lab import link
from tokenbudget_lab.connection import connect
from tokenbudget_lab.handles import Budget
from tokenbudget_lab.origin import origin
from tokenbudget_lab.place import place_of
from tokenbudget_lab.stores.duckdb import DuckDBStore

_THREADS = {"tokenbudget writer": "writer", "tokenbudget answers": "link", "tokenbudget commands": "link"}


@dataclass(slots=True)
class Tally:
    """What one task or thread counts: all pairs, and how long those took (s) that ended inside the window."""

    opens: float
    closes: float
    pairs: int = 0
    took: list[float] = field(default_factory=list)

    def add(self, began: float) -> float:
        """One pair is acknowledged; the instant is when the next one begins."""
        ended = time.monotonic()
        self.pairs += 1
        if self.opens <= ended < self.closes:
            self.took.append(ended - began)
        return ended


# --- the loads ---------------------------------------------------------------------------------------------------------


async def _pairs(run: Budget, tally: Tally) -> None:
    began = time.monotonic()
    while began < tally.closes:
        async with run.reserve(usd=HOLD_USD) as call:
            call.commit(usd=USED_USD)
        began = tally.add(began)


async def _tasks(run: Budget, tallies: list[Tally], keeper_pid: int | None) -> dict[str, float]:
    """All tasks at once; returns CPU seconds per second of the window, by thread."""
    window = tallies[0]

    async def watch() -> dict[str, float]:
        await asyncio.sleep(window.opens - time.monotonic())
        before = _clocks(keeper_pid)
        await asyncio.sleep(window.closes - time.monotonic())
        after = _clocks(keeper_pid)
        passed = after.pop("wall") - before["wall"]
        return {name: (value - before[name]) / passed for name, value in after.items()}

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(_pairs(run, tally) for tally in tallies))
    return await watching


def _clocks(keeper_pid: int | None) -> dict[str, float]:
    told = {"wall": time.monotonic(), "client": 0.0, "writer": 0.0, "link": 0.0, "keeper": _cpu_of(keeper_pid)}
    if not hasattr(time, "pthread_getcpuclockid"):  # macOS: one figure for the whole process
        return told | {"client": time.process_time()}
    for thread in threading.enumerate():
        kind = next((kind for prefix, kind in _THREADS.items() if thread.name.startswith(prefix)), "client")
        told[kind] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))
    return told


def _cpu_of(pid: int | None) -> float:
    """CPU seconds of another process; 0 where there is no /proc to tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _threads(run: Budget, tallies: list[Tally]) -> None:
    def work(tally: Tally) -> None:
        began = time.monotonic()
        while began < tally.closes:
            with run.reserve(usd=HOLD_USD) as call:
                call.commit(usd=USED_USD)
            began = tally.add(began)

    workers = [threading.Thread(target=work, args=(tally,)) for tally in tallies]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _ours(order: dict[str, Any]) -> dict[str, Any]:
    place = place_of(order["path"])
    with connect(order["path"], embedded=order["do"] == "embedded") as ledger:
        run = [ledger.budget(name, usd=LIMIT_USD) for name in BUDGETS][-1]
        # One process of a measurement watches the keeper, which all of them keep busy.
        watched = place.read_owner().get("pid") if order["do"] == "keeper" and order["index"] == 0 else None
        window = _at_the_start(order)
        tallies = [Tally(*window) for _ in range(order["threads"] or order["tasks"])]
        busy: dict[str, float] = {}
        if order["threads"]:
            _threads(run, tallies)
        else:
            busy = asyncio.run(_tasks(run, tallies, watched))
    return {"pairs": sum(t.pairs for t in tallies), "took": [s for t in tallies for s in t.took], "busy": busy}


def _sqlite(order: dict[str, Any]) -> dict[str, Any]:
    ledger = SQLiteLedger(order["path"], origin(), chain=order["do"] == "sqlite, chained")
    tally = Tally(*_at_the_start(order))
    began = time.monotonic()
    while began < tally.closes:
        ledger.commit(ledger.reserve(HOLD_PICO), USED_PICO)
        began = tally.add(began)
    ledger.close()
    return {"pairs": tally.pairs, "took": tally.took, "busy": {}}


def _at_the_start(order: dict[str, Any]) -> tuple[float, float]:
    """Say ready, wait for the start (an instant of the clock that all processes share), and give the window."""
    gc.collect()
    _say({"ready": os.getpid()})
    start = float(sys.stdin.readline())
    time.sleep(max(0.0, start - time.monotonic()))
    return start + order["warm"], start + order["warm"] + order["seconds"]


# --- the store alone ---------------------------------------------------------------------------------------------------


def _append(order: dict[str, Any]) -> dict[str, Any]:
    size: int = order["size"]
    first, *batches = prebuilt({1: 1_500, 100: 10_000, 1_000: 20_000}.get(size, 30_000), size)
    store = DuckDBStore(place_of(order["path"]))
    store.append(first)
    events, took = 0, []
    _, closes = _at_the_start(order)
    for batch in batches:
        begun = time.monotonic()
        store.append(batch)
        ended = time.monotonic()
        events += len(batch)
        took.append(ended - begun)
        if ended > closes:
            break
    store.close()
    return {"events": len(first) + events, "took": took, "rate": events / sum(took), "busy": {}}


# --- the check ---------------------------------------------------------------------------------------------------------


def _check(order: dict[str, Any]) -> dict[str, Any]:
    """What was acknowledged is in the file, opened again: gapless, chained, replayed, and as many as were counted."""
    path, pairs, events = order["path"], order["pairs"], order["events"]
    if order["what"].startswith("sqlite"):
        peer = SQLiteLedger(path, None)
        peer.check(pairs)
        peer.close()
        return {}
    link.stop(place_of(path))
    with connect(path, embedded=True) as ledger:
        found = ledger.verify()
        if events is not None:
            assert found.events == events, (found.events, events)
            return {}
        assert (found.events, found.open_reservations) == (1 + len(BUDGETS) + 2 * pairs, 0), (found, pairs)
        for name in BUDGETS:
            balance = ledger.budget(name).balance
            assert balance.committed_usd * 10 == 2 * pairs, (balance, pairs)
            assert (balance.committed_requests, balance.calls_in_flight) == (pairs, 0), (balance, pairs)
    return {}


def _say(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


def main() -> None:
    """Do what is ordered, one JSON line each, until there are no more."""
    _say({"up": os.getpid()})
    doing = {"check": _check, "append": _append, "embedded": _ours, "keeper": _ours, "stages": stages}
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        _say(doing.get(order["do"], _sqlite)(order))


if __name__ == "__main__":
    main()
