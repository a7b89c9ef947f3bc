"""The soak: long tests for as long as there is time, with chances that a seed repeats; and what each of them did, printed.

`pytest -m soak` takes every round of every long test. `--soak-minutes 20` mixes them and gives each a part of that time; what
it does then, and in which order, follows from `TOKENBUDGET_SEED` and the time alone.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")
_began = time.monotonic()


class Pace:
    """How much of a long test is done in this run.

    Attributes:
        chance: where this test's chances come from: the run's seed, and the test's name.
    """

    def __init__(self, node: pytest.Item, share_s: float | None) -> None:
        self._node, self._share_s = node, share_s
        self.chance = random.Random(f"{os.environ['TOKENBUDGET_SEED']} {node.nodeid}")

    def some(self, items: Sequence[T]) -> Iterator[T]:
        """All items; where time is short, as many as there is time for, but one, in any order."""
        if self._share_s is None:
            yield from items
            return
        until, done = time.monotonic() + self._share_s, 0
        for item in self.chance.sample(items, len(items)):
            yield item
            done += 1
            if time.monotonic() > until:
                break
        self.says(f"{done} of {len(items)} in the time that there was")

    def seconds(self, wanted: float) -> float:
        """For how long to do something that is done for a time."""
        return wanted if self._share_s is None else min(wanted, self._share_s)

    def says(self, text: str) -> None:
        """What the test did, for the end of the run."""
        self._node.user_properties.append(("did", text))


@pytest.fixture
def pace(request: pytest.FixtureRequest) -> Pace:
    """How much of this test there is time for."""
    minutes = request.config.getoption("--soak-minutes")
    if not minutes or request.node.get_closest_marker("soak") is None:
        return Pace(request.node, None)
    left = request.config.stash[_LEFT]
    share_s = max(_began + 60 * minutes - time.monotonic(), 0) / max(len(left), 1)
    left.discard(request.node.nodeid)
    return Pace(request.node, share_s)


_LEFT = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-minutes", type=float, default=0, help="with -m soak: mix the long tests and end after this time")


@pytest.hookimpl(trylast=True)  # behind `-m`
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak-minutes"):
        items.sort(key=lambda item: item.nodeid)
        random.Random(os.environ["TOKENBUDGET_SEED"]).shuffle(items)
        config.stash[_LEFT] = {item.nodeid for item in items if "pace" in getattr(item, "fixturenames", ())}


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--soak-minutes")
    if minutes and time.monotonic() > _began + 60 * minutes:
        pytest.skip("the time is over")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = [
        f"{report.nodeid.rpartition('/')[2]}: {text}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for what, text in report.user_properties
        if what == "did"
    ]
    if told:
        terminalreporter.section("what the long tests did")
        for line in told:
            terminalreporter.line(line)
        seed = os.environ["TOKENBUDGET_SEED"]
        terminalreporter.line(
            f"{(time.monotonic() - _began) / 60:.1f} minutes; TOKENBUDGET_SEED={seed} has the same chances again"
        )
