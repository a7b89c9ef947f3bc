"""One of several processes that spend from one budget: `python -m tests.shared_worker URL TASKS ROUNDS`.

Each task reserves a token, commits it, and says the id of what was acknowledged, until the budget refuses or its rounds end.
"""

# ruff: noqa: T201 - what it says is read by its test

from __future__ import annotations

import asyncio
import sys

import tokenbudget_lab as tbl


async def task(budget: tbl.Budget, rounds: int) -> None:
    for _ in range(rounds):
        try:
            held = await budget.reserve(tokens=1, timeout=20, if_lost="count")
            print("reserved", held.id, flush=True)
            await held.commit(tokens=1)
            print("committed", held.id, flush=True)
        except tbl.BudgetExceeded:
            print("refused", flush=True)
            return
        except tbl.LedgerUnavailable as error:
            print("unavailable", error, flush=True)


async def main(url: str, tasks: int, rounds: int) -> None:
    with tbl.connect(url) as ledger:
        budget = ledger.budget("lab/study")
        await asyncio.gather(*(task(budget, rounds) for _ in range(tasks)))
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
