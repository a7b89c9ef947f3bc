"""What a budget costs a client: time of a call, and throughput of many at once, beside the bare client.

A server in a process of its own answers after 20 ms, or after a second. Bare and under a budget take turns in one run, so
that the noise of the machine falls on both; what is said is the ratio of their medians. One at a time, where the wait for a
ledger is seen most, the same is measured with one in memory, which is what the client's own work costs, and with one on a RAM
disk; and what this disk takes to keep a few bytes, without which no reserve can be durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
from rich.console import Console
from rich.table import Table

import tokenbudget_lab as tbl
from tokenbudget_lab.place import place_of

MODEL = "claude-haiku-5-5"
ASK: Any = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "What is a budget? " * 10}]}
LATENCY_S, LONG_S = 0.02, 1.0
RAM_DISK = Path("/dev/shm")  # noqa: S108 - Linux's own, if there
ROUNDS, ALONE, TOGETHER, CALLS, MANY = 5, 30, 200, 1_000, 50_000
REPLY = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": [{"type": "text", "text": "Money."}],
    "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 60, "output_tokens": 3},
}  # fmt: skip


def main() -> None:
    """Measure, and print."""
    console = Console(width=120)
    table = Table(title="Calls bare and under a budget (a ledger with its keeper); medians")
    for name in ("", "bare", "under a budget", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    with tempfile.TemporaryDirectory() as folder, tbl.connect(Path(folder) / "spend.duckdb") as ledger:
        study = ledger.budget("bench", usd=1_000_000)
        with _served(LATENCY_S):
            _short(study, table)
        with _served(LONG_S):
            latencies, rounds = asyncio.run(_together(study, 2, 3 * TOGETHER))
            table.add_row(f"1 s, async, {TOGETHER} at once, latency", *_compared(*latencies))
            table.add_row(f"1 s, async, {TOGETHER} at once, {3 * TOGETHER} calls in", *_compared(*rounds))
        with _served(LATENCY_S):
            _elsewhere(table)
        synced = f"{1e3 * statistics.median(_syncs(Path(folder))):.2f} ms"
    console.print(table)
    console.print(f"to append 200 bytes to a file here and sync them takes {synced}; a reserve is answered after two of these")
    for line in _memory():
        console.print(line)


def _elsewhere(table: Table) -> None:
    """One call at a time where no disk is waited for."""
    places = {"in memory": ":memory:"}
    if RAM_DISK.is_dir():
        ram = Path(tempfile.mkdtemp(dir=RAM_DISK))
        places["with its keeper, on a RAM disk"] = str(ram / "spend.duckdb")
    try:
        for said, where in places.items():
            with tbl.connect(where) as ledger, anthropic.Anthropic(http_client=_pool()) as plain:
                bare, ours = _sync(plain, tbl.instrument(plain, ledger.budget("bench", usd=1_000_000)))
                table.add_row(f"20 ms, sync, one at a time, ledger {said}", *_compared(bare, ours))
    finally:
        if RAM_DISK.is_dir():
            shutil.rmtree(ram, ignore_errors=True)


def _syncs(folder: Path) -> Iterator[float]:
    """How long it takes to have a few bytes on this disk, again and again."""
    with (folder / "synced").open("wb", buffering=0) as file:
        for _ in range(200):
            begun = time.perf_counter()
            file.write(b"x" * 200)
            os.fdatasync(file.fileno())
            yield time.perf_counter() - begun


def _memory() -> Iterator[str]:
    """How large this process and the keeper are while one client makes fifty thousand calls, which are answered at once."""

    def answered(request: httpx2.Request) -> httpx2.Response:  # noqa: ARG001 - always the same
        return httpx2.Response(200, json=REPLY)

    with tempfile.TemporaryDirectory() as folder, tbl.connect(path := Path(folder) / "spend.duckdb") as ledger:
        http = anthropic.DefaultHttpxClient(transport=httpx2.MockTransport(answered))
        with anthropic.Anthropic(api_key="none", http_client=http) as plain:
            client = tbl.instrument(plain, ledger.budget("bench", usd=1_000_000))
            for calls in range(1, MANY + 1):
                client.messages.create(**ASK)
                if calls % (MANY // 5) == 0:
                    keeper = resident_mb(place_of(path).read_owner()["pid"])
                    yield f"after {calls:,} calls: {resident_mb(os.getpid()):.0f} MB here, {keeper:.0f} MB in the keeper"


def resident_mb(pid: int) -> float:
    """What a process has in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@contextlib.contextmanager
def _served(after_s: float) -> Iterator[None]:
    """A provider in a process of its own, that answers after so long."""
    command = [sys.executable, "-m", "tests.provider", str(after_s)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        os.environ |= {"ANTHROPIC_BASE_URL": server.stdout.readline().strip(), "ANTHROPIC_API_KEY": "none"}
        try:
            yield
        finally:
            server.stdin.close()


def _short(study: tbl.Budget, table: Table) -> None:
    with anthropic.Anthropic(http_client=_pool()) as plain:
        bare, ours = _sync(plain, tbl.instrument(plain, study))
        table.add_row("20 ms, sync, one at a time, per call", *_compared(bare, ours))
    bare, ours = asyncio.run(_alone(study))
    table.add_row("20 ms, async, one at a time, per call", *_compared(bare, ours))
    latencies, rounds = asyncio.run(_together(study, ROUNDS, CALLS))
    table.add_row(f"20 ms, async, {TOGETHER} at once, latency", *_compared(*latencies))
    table.add_row(f"20 ms, async, {TOGETHER} at once, {CALLS:,} calls in", *_compared(*rounds))


def _pool() -> Any:
    return anthropic.DefaultHttpxClient(limits=httpx2.Limits(max_connections=TOGETHER))


def _compared(bare: list[float], ours: list[float]) -> tuple[str, str, str]:
    a, b = statistics.median(bare), statistics.median(ours)
    return f"{a * 1000:.2f} ms", f"{b * 1000:.2f} ms", f"{b / a:.3f}"


def _sync(plain: anthropic.Anthropic, client: anthropic.Anthropic) -> tuple[list[float], list[float]]:
    taken: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(ROUNDS):
        for which, each in enumerate((plain, client)):
            for _ in range(ALONE):
                begun = time.perf_counter()
                each.messages.create(**ASK)
                taken[which].append(time.perf_counter() - begun)
    return taken[0], taken[1]


async def _alone(study: tbl.Budget) -> tuple[list[float], list[float]]:
    taken: dict[int, list[float]] = {0: [], 1: []}
    async with anthropic.AsyncAnthropic() as plain:
        client = tbl.instrument(plain, study)
        for _ in range(ROUNDS):
            for which, each in enumerate((plain, client)):
                for _ in range(ALONE):
                    begun = time.perf_counter()
                    await each.messages.create(**ASK)
                    taken[which].append(time.perf_counter() - begun)
    return taken[0], taken[1]


async def _together(
    study: tbl.Budget, times: int, calls: int
) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Latencies, and times of whole rounds: each bare and under a budget."""
    latencies: dict[int, list[float]] = {0: [], 1: []}
    rounds: dict[int, list[float]] = {0: [], 1: []}
    http = anthropic.DefaultAsyncHttpxClient(limits=httpx2.Limits(max_connections=TOGETHER, max_keepalive_connections=TOGETHER))
    async with anthropic.AsyncAnthropic(http_client=http) as plain:
        client = tbl.instrument(plain, study)
        await _round(lambda: client.messages.create(**ASK), TOGETHER)  # what the ledger teaches is read with the first
        for _ in range(times):
            for which, each in enumerate((plain, client)):
                begun = time.perf_counter()
                latencies[which] += await _round(lambda each=each: each.messages.create(**ASK), calls)  # type: ignore[misc]
                rounds[which].append(time.perf_counter() - begun)
    return (latencies[0], latencies[1]), (rounds[0], rounds[1])


async def _round(call: Callable[[], Coroutine[Any, Any, Any]], calls: int) -> list[float]:
    taken: list[float] = []
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            begun = time.perf_counter()
            await call()
            taken.append(time.perf_counter() - begun)

    await asyncio.gather(*(worker() for _ in range(TOGETHER)))
    return taken


if __name__ == "__main__":
    main()
