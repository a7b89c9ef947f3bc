"""What each stage of a pair costs by itself: the package's own functions, one after another, in one thread.

What one thread does beside another in a real run fights for the interpreter lock and cannot be told apart from outside; so
the writer's stages are run here alone, over the same commands. The real run's CPU per thread (in `loads`) says what they
leave unexplained.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.pairs import commands_of, prebuilt
from tokenbudget_lab.commands import Commit, Reserve
from tokenbudget_lab.decide import Decisions
from tokenbudget_lab.events import Event, chained
from tokenbudget_lab.origin import origin
from tokenbudget_lab.place import place_of
from tokenbudget_lab.rows import to_batch, to_row
from tokenbudget_lab.state import State
from tokenbudget_lab.stores.duckdb import DuckDBStore
from tokenbudget_lab.wire import from_wire, pack, to_wire, unpack

Batches = list[list[Event]]


def stages(order: dict[str, Any]) -> dict[str, float]:
    """CPU µs per pair of every stage, with `batch` events in each transaction; `disk` is waited, not worked.

    Returns:
        Stage → µs per pair; the stages of the keeper's messages have names of their own.
    """
    batch, pairs = order["batch"], order["pairs"]
    gc.disable()  # what the collector costs depends on all that the process holds; it is in what stays unexplained
    commands = list(commands_of(pairs, batch))
    count = sum(map(len, commands)) / 2
    first, *batches = prebuilt(round(count), batch)
    events = [event for some in batches for event in some]
    bodies = [event[:-1] for event in events]
    decided = _best(lambda: _deciding(first, commands))
    hashed = _best(lambda: _cpu(lambda body: chained(bytes(32), body), bodies))
    folded = _best(lambda: _folding(first, events))
    formed = _best(lambda: _cpu(to_batch if batch > 1 else lambda some: [to_row(event) for event in some], batches))
    worked, waited = _appending(order["dir"], first, batches)
    told = {
        "decide": decided - hashed - folded,
        "hash + JSON": hashed,
        "fold": folded,
        "rows": formed,
        "DuckDB": worked - formed,
        "disk": waited,
        "keeper reads": _best(lambda: _cpu(_reading, [_message(some) for some in commands])),
        "keeper answers": _best(lambda: _cpu(_answering, commands)),
        "client sends": _best(lambda: _cpu(_message, commands)),
    }
    gc.enable()
    return {name: max(0.0, seconds) / count * 1e6 for name, seconds in told.items()}


def _best(measure: Callable[[], float]) -> float:
    """The fastest of three: what is above it is other people's noise."""
    return min(measure() for _ in range(3))


def _cpu(work: Callable[[Any], object], items: Iterable[Any]) -> float:
    began = time.thread_time()
    for item in items:
        work(item)
    return time.thread_time() - began


def _deciding(first: list[Event], commands: list[list[Reserve | Commit]]) -> float:
    state, told = State(), origin()
    for event in first:
        state.apply(event)
    decisions, ts = Decisions(state), state.ts
    began = time.thread_time()
    for some in commands:
        ts += 1000
        for command in some:
            decisions.decide(command, ts, told)
    return time.thread_time() - began


def _folding(first: list[Event], events: list[Event]) -> float:
    state = State()
    for event in first:
        state.apply(event)
    return _cpu(state.apply, events)


def _appending(folder: str, first: list[Event], batches: Batches) -> tuple[float, float]:
    """CPU and waiting of the store's appends, as they come in a real run; once, because a ledger is written once."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        store = DuckDBStore(place_of(Path(inside, "stages.duckdb")))
        store.append(first)
        began, wall = time.thread_time(), time.monotonic()
        for some in batches:
            store.append(some)
        worked, passed = time.thread_time() - began, time.monotonic() - wall
        store.close()
    return worked, max(0.0, passed - worked)


def _message(commands: list[Reserve | Commit]) -> bytes:
    return pack(tuple(to_wire(number, command) for number, command in enumerate(commands)))


def _reading(message: bytes) -> None:
    for item in unpack(message):
        from_wire(item)


def _answering(commands: list[Reserve | Commit]) -> None:
    """Answers of the size that they have."""
    pack(tuple((number, True, (command.id, number, 1, 2, "open")) for number, command in enumerate(commands)))
