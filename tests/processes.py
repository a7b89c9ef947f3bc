"""Processes that tests start, stop and kill: waiting for what comes about by itself, and who owns a ledger."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenbudget_lab.place import Place


def until(true: Callable[[], bool], within_s: float = 10.0, look_s: float = 0.005) -> float:
    """Wait for something that comes about by itself; how long it took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < within_s, "it did not come about in time"
        time.sleep(look_s)
    return time.monotonic() - start


def owner_pid(place: Place) -> int:
    """Which process says that it owns a ledger."""
    return int(place.read_owner()["pid"])


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def said_before_killed(script: str, *arguments: Any) -> str:
    """The first line that another process says, which is killed then."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        process.kill()
    return said
