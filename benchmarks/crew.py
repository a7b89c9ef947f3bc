"""The processes that make the load: started once, given one order after another, started together, checked afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Any, Self

from benchmarks.peer import SQLiteLedger

STARTS_IN_S = 0.05


class Crew:
    """Load-making processes, and the files that they work on.

    Args:
        folder: where the files are made; on the filesystem that is to be measured.
        size: how many processes.
        warm_s: how long they work before the window opens in which is counted.
    """

    def __init__(self, folder: Path, size: int, warm_s: float) -> None:
        self.folder, self._warm_s, self._numbers = folder, warm_s, count()
        # A keeper is stopped after its measurement; this is for those of a run that was broken off.
        environment = {**os.environ, "TOKENBUDGET_KEEPER_LINGER_S": "1"}
        self._workers = [
            subprocess.Popen(
                [sys.executable, Path(__file__).with_name("loads.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(size)
        ]

    def measure(self, way: str, processes: int, tasks: int, threads: int, seconds: float) -> list[dict[str, Any]]:
        """Let some of them work together on one new file, then check it.

        Returns:
            One answer per process: `pairs` in all, `took` (s) for each of those in the window, `busy` by thread.
        """
        path = self._new_file(way)
        order = {"do": way, "path": str(path), "tasks": tasks, "threads": threads, "seconds": seconds}
        told = self._together(self._workers[:processes], order)
        self._ask(do="check", what=way, path=str(path), pairs=sum(one["pairs"] for one in told), events=None)
        self._remove(path)
        return told

    def append(self, size: int, seconds: float) -> dict[str, Any]:
        """The store alone: batches of so many events, made before."""
        path = self._new_file("append")
        (told,) = self._together(self._workers[:1], {"do": "append", "path": str(path), "size": size, "seconds": seconds})
        self._ask(do="check", what="append", path=str(path), pairs=0, events=told["events"])
        self._remove(path)
        return told

    def stages(self, batch: int) -> dict[str, float]:
        """CPU µs per pair of each stage by itself."""
        return self._ask(do="stages", batch=batch, pairs=200 if batch == 1 else 10_000, dir=str(self.folder))

    def _new_file(self, way: str) -> Path:
        path = self.folder / f"{next(self._numbers)}.{'sqlite' if way.startswith('sqlite') else 'duckdb'}"
        if path.suffix == ".sqlite":
            SQLiteLedger.create(path)
        return path

    @staticmethod
    def _remove(path: Path) -> None:
        """What lies about would still be written to disk while the next one is measured."""
        for file in path.parent.glob(f"{path.name}*"):
            rmtree(file) if file.is_dir() else file.unlink()

    def _together(self, workers: list[subprocess.Popen[str]], order: dict[str, Any]) -> list[dict[str, Any]]:
        for index, worker in enumerate(workers):
            _tell(worker, json.dumps({**order, "index": index, "warm": self._warm_s}))
        for worker in workers:
            _answer(worker)  # ready
        start = time.monotonic() + STARTS_IN_S
        for worker in workers:
            _tell(worker, repr(start))
        return [_answer(worker) for worker in workers]

    def _ask(self, **order: Any) -> dict[str, Any]:
        _tell(self._workers[0], json.dumps(order))
        return _answer(self._workers[0])

    def __enter__(self) -> Self:
        for worker in self._workers:
            _answer(worker)  # up: nothing is measured while they start
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        for worker in self._workers:
            if error is not None:
                worker.kill()
            with worker:  # closes its stdin, which ends it
                pass


def _tell(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line + "\n")
    worker.stdin.flush()


def _answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a load-making process ended ({worker.wait()}); what it said stands above")
    answer: dict[str, Any] = json.loads(line)
    return answer
