"""A client that is killed in the middle of work: two threads that do a bit of everything, until somebody ends it.

What it asks and is told is written down; a point is added to a file for each verb that was answered.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import tokenbudget_lab as tbl
from tests.history import recorded
from tokenbudget_lab.commands import CopyFile


class Worker:
    """What one client does; whatever is held for longer than two seconds is lost with it.

    Args:
        ledger: where.
        chance: which verb comes next.
    """

    def __init__(self, ledger: tbl.Ledger, chance: random.Random) -> None:
        self.ledger, self.chance = ledger, chance
        self.lab, self.tight = ledger.budget("lab"), ledger.budget("lab/tight")
        self.verbs: list[Callable[[], object]] = [
            *[self.call] * 6, self.gives_back, self.records, self.squeezes, self.repeats, self.loses, self.defines, self.reads
        ]  # fmt: skip

    def work(self) -> object:
        """One verb, whichever."""
        return self.chance.choice(self.verbs)()

    def call(self) -> None:
        with self.lab.reserve(usd="0.30", timeout=2, if_lost="count") as call:
            call.commit(usd="0.20").result()

    def gives_back(self) -> None:
        self.lab.reserve_sync(tokens=1, usd=1, timeout=2).rollback().result()

    def records(self) -> None:
        self.lab.adjust(self.lab.record(usd="0.10").result().reservation, usd="0.11").result()

    def squeezes(self) -> None:
        """There is room for two of them, and they stand in line for a moment."""
        self.tight.reserve_sync(usd="0.40", timeout=2, wait=self.chance.choice([0, 0.1])).rollback().result()

    def repeats(self) -> None:
        """Others do the same under this key."""
        call = self.lab.reserve_sync(usd="0.05", timeout=2, key=f"row-{self.chance.randrange(200)}")
        call.commit(usd="0.04").result()

    def loses(self) -> None:
        call = self.lab.reserve_sync(usd="0.03", timeout=2, if_lost="count")
        call.extend_sync(1.9)
        call.lose().result()

    def defines(self) -> object:
        return self.ledger.budget("lab/new", usd=10) if self.chance.random() < 0.5 else self.lab.set_limit(usd=10**6)

    def reads(self) -> object:
        if self.chance.random() < 0.1:
            copy, *_ = self.ledger.ask(CopyFile(self.ledger.new_id()))
            shutil.rmtree(Path(copy).parent)
        if self.chance.random() < 0.5:
            return self.ledger.budgets()
        return self.chance.choice([self.lab, self.tight]).balance


def main() -> None:
    """Two threads on one connection."""
    path, told, points, seed = sys.argv[1:]
    ledger = recorded(tbl.connect(path), Path(told))
    with Path(points).open("xb", buffering=0) as file:

        def work(chance: random.Random) -> None:
            try:
                worker = Worker(ledger, chance)
                while True:
                    with suppress(tbl.Refused):  # whether it was refused with reason is seen in the history
                        worker.work()
                    file.write(b".")
                    time.sleep(chance.uniform(0, 0.004))
            except BaseException:  # noqa: BLE001 - whatever it is, nobody is left who could see it
                traceback.print_exc()
                os._exit(1)

        threads = [threading.Thread(target=work, args=(random.Random(f"{seed}-{n}"),), daemon=True) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
