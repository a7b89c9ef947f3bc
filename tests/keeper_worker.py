"""Reserves and commits until it is killed; writes down each reservation whose commit was acknowledged."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import tokenbudget_lab as tbl


def main() -> None:
    """Two threads on one connection."""
    path, note = sys.argv[1:]
    budget = tbl.connect(path).budget("lab")
    with Path(note).open("a", buffering=1) as file:

        def work() -> None:
            while True:
                with budget.reserve(usd="0.30", timeout=2, if_lost="count") as call:
                    call.commit(usd="0.20").result()
                    file.write(f"{call.id}.\n")

        threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
