"""One runner of a race, in whichever environment: `race.py` starts it.

It says `ready` when it has a way through its budget, and waits for a line. Then it calls in turn until something is raised,
from twenty threads or tasks at once, or once, as one of twenty processes; and prints how each call ended.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind everything that is installed

from benchmarks.racers import CALLS, RACERS, Call, Race, Refused


def said(what: str) -> None:
    """A line for `race.py`, whoever else prints meanwhile."""
    sys.stdout.write(f"\n{what}\n")
    sys.stdout.flush()


def ended(error: BaseException | None) -> None:
    """Tell how a call ended: `paid`, `refused` for want of budget, or anything else that happened."""
    name = type(error).__name__
    if error is None:
        said("ended paid")
    else:
        refused = isinstance(error, Refused) or "Budget" in name
        said("ended refused" if refused else f"ended failed: {name}: {error}".replace("\n", " "))


def one(call: Call, number: int, start: Callable[[], object] = bool) -> bool:
    """One call, once it may start; whether it was made, and nothing was raised."""
    start()
    try:
        call(number)
    except Exception as error:  # noqa: BLE001 - whatever a package raises is what is told
        ended(error)
        return False
    ended(None)
    return True


def in_threads(call: Call) -> None:
    """All calls from threads that start together."""
    barrier = threading.Barrier(CALLS)
    threads = [threading.Thread(target=one, args=(call, number, barrier.wait)) for number in range(CALLS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def in_tasks(call: Call) -> None:
    """All calls in one event loop."""

    async def task(number: int) -> None:
        try:
            await call(number)
        except Exception as error:  # noqa: BLE001 - as above
            ended(error)
        else:
            ended(None)

    await asyncio.gather(*(task(number) for number in range(CALLS)))


def main(name: str, how: str, folder: str, number: str) -> None:
    """Get ready, wait for a line, and go."""
    racer = RACERS[name]
    with racer.way(Race(how, Path(folder), racer.model)) as call:
        assert inspect.iscoroutinefunction(call) == (how == "tasks")
        said("ready")
        sys.stdin.readline()
        if how == "tasks":
            asyncio.run(in_tasks(call))
        elif how == "threads":
            in_threads(call)
        elif how == "processes":
            one(call, int(number))
        else:  # as a study does, which ends where it is told to
            all(one(call, each) for each in range(CALLS))


if __name__ == "__main__":
    main(*sys.argv[1:])
