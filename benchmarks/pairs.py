"""What a pair is: which budgets, which amounts, which commands; the same for the ledger and for its peer."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tokenbudget_lab.commands import Commit, Reserve, SetBudget
from tokenbudget_lab.decide import Decisions
from tokenbudget_lab.events import Event
from tokenbudget_lab.ids import new_id
from tokenbudget_lab.origin import origin
from tokenbudget_lab.state import State
from tokenbudget_lab.usage import pico_of

BUDGETS = ("lab", "lab/study", "lab/study/run")
LIMIT_USD = 1_000_000  # in all three; never reached
HOLD_USD, USED_USD = "0.30", "0.20"
LIMIT_PICO, HOLD_PICO, USED_PICO = (pico_of("usd", amount) for amount in (LIMIT_USD, HOLD_USD, USED_USD))
TIMEOUT_US = 600_000_000  # as a ledger's default


def prebuilt(pairs: int, batch: int) -> Iterator[list[Event]]:
    """Sound events in batches of one instant, half of each reserves, half commits; the first one makes three budgets."""
    decisions, ts = Decisions(State()), time.time_ns() // 1000
    decisions.create(new_id(), ts, None)
    for name in BUDGETS:
        decisions.decide(SetBudget(new_id(), name, (("", LIMIT_PICO, None, None),), "UTC"), ts)
    yield _taken(decisions)
    for commands in commands_of(pairs, batch):
        ts += 1000
        for command in commands:
            decisions.decide(command, ts, origin())
            if batch == 1:
                yield _taken(decisions)
        if decisions.events:
            yield _taken(decisions)


def _taken(decisions: Decisions) -> list[Event]:
    events, decisions.events = decisions.events, []
    return events


def commands_of(pairs: int, batch: int) -> Iterator[list[Reserve | Commit]]:
    """The commands that pairs are made of: half a batch of reserves, then their commits."""
    half = max(1, batch // 2)
    for _ in range(0, pairs, half):
        ids = [new_id() for _ in range(half)]
        yield [*map(reserve, ids), *map(commit, ids)]


def reserve(id: str) -> Reserve:
    """The command that `run.reserve(usd=…)` makes."""
    return Reserve(id, BUDGETS[-1], HOLD_PICO, None, 1, TIMEOUT_US, "release")


def commit(id: str) -> Commit:
    """The command that `call.commit(usd=…)` makes."""
    return Commit(new_id(), id, USED_PICO, None, None, "measured")
