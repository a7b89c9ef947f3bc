"""Write the pictures of docs/charts.md, docs/charts_*.svg: a study of one month, made up and the same at every run.

python docs/make_charts.py
"""

# ruff: noqa: INP001 - a script

import random
from datetime import UTC, datetime
from pathlib import Path

import tokenbudget_lab as tbl
from tokenbudget_lab.stores.memory import MemoryStore

HERE = Path(__file__).parent
ARMS = {"zero-shot": 1, "few-shot": 2, "chain of thought": 3, "self-consistency": 5}  # and how much each costs
SCORES = {"zero-shot": 0.61, "few-shot": 0.70, "chain of thought": 0.68, "self-consistency": 0.76}


class Clock:
    """A clock of the study's own: its month passes in a second."""

    def __init__(self) -> None:
        self.ns = int(datetime(2026, 11, 2, 8, tzinfo=UTC).timestamp()) * 1_000_000_000

    def now_ns(self) -> int:
        """Unix nanoseconds."""
        return self.ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.ns += int(seconds * 1e9)


def run(ledger: tbl.Ledger, clock: Clock) -> tbl.Budget:
    """A study that spends faster than its month goes by."""
    chance = random.Random(7)  # noqa: S311 - chance without secrecy
    study = ledger.budget("prompt-study", usd=60, window="month")
    for _ in range(240):
        clock.advance(chance.expovariate(1 / 6000))
        arm, size = chance.choice([*ARMS.items()])
        held = study.reserve_sync(usd=f"{0.12 * size:.2f}", tags={"arm": arm})
        clock.advance(chance.lognormvariate(0.3 * size, 0.5))
        held.commit(usd=f"{0.1 * size * chance.uniform(0.3, 1.2):.4f}").result()
    study.record(usd="1.20", basis="estimated", tags={"arm": "few-shot"}).result()
    return study


def draw() -> None:
    """One picture for each function."""
    clock = Clock()
    with tbl.Ledger(store=MemoryStore(), clock_ns=clock.now_ns) as ledger:
        study = run(ledger, clock)
        spent = tbl.spend(study, by="arm")
        table = [{**row, "score": SCORES[row["arm"]]} for row in spent.iter_rows(named=True)]
        pictures = {
            "spend": tbl.charts.spend_over_time(study, by="arm"),
            "burn_down": tbl.charts.burn_down(study),
            "frontier": tbl.charts.frontier(table, label="arm"),
            "latency": tbl.charts.latency(study, by="arm"),
            "holds": tbl.charts.unused_holds(study, by="arm"),
        }
    for name, chart in pictures.items():
        chart.save(HERE / f"charts_{name}.svg")


if __name__ == "__main__":
    draw()
