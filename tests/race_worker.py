"""One process of a race: five threads that wait for the word and then each ask for $0.30."""

from __future__ import annotations

import sys
import threading

import tokenbudget_lab as tbl


def main() -> None:
    """Say when ready; on a line from outside let all threads ask at once; say how many were granted."""
    budget = tbl.connect(sys.argv[1]).budget("lab")
    granted: list[str] = []
    barrier = threading.Barrier(6)

    def ask() -> None:
        barrier.wait()
        try:
            granted.append(budget.reserve_sync(usd="0.30").id)
        except tbl.BudgetExceeded:
            return

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)  # noqa: T201 - its parent waits for it
    sys.stdin.readline()
    barrier.wait()
    for thread in threads:
        thread.join()
    print(len(granted), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
