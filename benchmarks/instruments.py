"""What a budget costs a client: time of a call, throughput of many at once, memory over many, beside the bare client.

A server in a process of its own answers each call after 20 ms. Bare and under a budget take turns in one run, so that the noise
of the machine falls on both; what is said is the ratio of their medians.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anthropic
import httpx2
from rich.console import Console
from rich.table import Table

import tokenbudget_lab as tbl

MODEL = "claude-haiku-5-5"
ASK: Any = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "What is a budget? " * 10}]}
LATENCY_S = 0.02
ROUNDS, ALONE, TOGETHER, CALLS = 9, 30, 200, 1_000
MANY = 50_000


def main() -> None:
    """Measure, and print."""
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        [sys.executable, "-m", "tests.provider", str(LATENCY_S)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        assert server.stdin is not None
        os.environ |= {"ANTHROPIC_BASE_URL": server.stdout.readline().strip(), "ANTHROPIC_API_KEY": "none"}
        try:
            with tbl.connect(Path(folder) / "spend.duckdb") as ledger:
                console.print(_times(ledger.budget("bench", usd=1_000_000)))
        finally:
            server.stdin.close()


def _times(study: tbl.Budget) -> Table:
    table = Table(title=f"A call of {LATENCY_S * 1000:.0f} ms, bare and under a budget (a ledger with its keeper)")
    for name in ("", "bare", "under a budget", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    with anthropic.Anthropic(http_client=_pool()) as plain:
        bare, ours = _sync(plain, tbl.instrument(plain, study))
        table.add_row("sync, one at a time, per call", *_compared(bare, ours))
    bare, ours = asyncio.run(_alone(study))
    table.add_row("async, one at a time, per call", *_compared(bare, ours))
    latencies, rounds = asyncio.run(_together(study))
    table.add_row(f"async, {TOGETHER} at once, latency", *_compared(*latencies))
    table.add_row(f"async, {TOGETHER} at once, {CALLS:,} calls in", *_compared(*rounds))
    return table


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


async def _together(study: tbl.Budget) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Latencies, and times of whole rounds: each bare and under a budget."""
    latencies: dict[int, list[float]] = {0: [], 1: []}
    rounds: dict[int, list[float]] = {0: [], 1: []}
    http = anthropic.DefaultAsyncHttpxClient(limits=httpx2.Limits(max_connections=TOGETHER, max_keepalive_connections=TOGETHER))
    async with anthropic.AsyncAnthropic(http_client=http) as plain:
        client = tbl.instrument(plain, study)
        for _ in range(ROUNDS):
            for which, each in enumerate((plain, client)):
                begun = time.perf_counter()
                latencies[which] += await _round(lambda each=each: each.messages.create(**ASK))  # type: ignore[misc]
                rounds[which].append(time.perf_counter() - begun)
    return (latencies[0], latencies[1]), (rounds[0], rounds[1])


async def _round(call: Callable[[], Coroutine[Any, Any, Any]]) -> list[float]:
    taken: list[float] = []
    left = iter(range(CALLS))

    async def worker() -> None:
        for _ in left:
            begun = time.perf_counter()
            await call()
            taken.append(time.perf_counter() - begun)

    await asyncio.gather(*(worker() for _ in range(TOGETHER)))
    return taken


if __name__ == "__main__":
    main()
