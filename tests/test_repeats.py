"""Repeats: an id belongs to one command; with another one it is a conflict, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Log
from tokenbudget_lab.commands import (
    Adjust,
    CloseBudget,
    Command,
    Commit,
    Extend,
    Lose,
    Record,
    Reserve,
    Rollback,
    Sent,
    SetBudget,
    SetLimit,
)

MINUTE_US = 60_000_000
TOKENS = (("", None, 1000, None),)


def reserve(id: str) -> Reserve:
    """A hold of one token in `lab`."""
    return Reserve(id, "lab", None, 1, 1, 10 * MINUTE_US, "release")


def commands(ledger: tbl.Ledger) -> dict[str, Callable[[str], Command]]:
    """Every command that writes, each about a budget or reservation of its own, by an id to be given."""
    held = {name: str(ledger.ask(reserve(ledger.new_id()))[0]) for name in ("a", "b", "c", "d", "e", "f")}
    entry = ledger.budget("lab").record(tokens=1).result()
    assert isinstance(entry, tbl.Counted)
    return {
        "budget": lambda id: SetBudget(id, "lab/new", TOKENS, "UTC"),
        "limit": lambda id: SetLimit(id, "lab", None, None, 999, None),
        "close": lambda id: CloseBudget(id, "lab/old"),
        "reserve": reserve,
        "extend": lambda id: Extend(id, held["a"], 3600 * 1_000_000),
        "sent": lambda id: Sent(id, held["a"], "msgbatch_1"),
        "commit": lambda id: Commit(id, held["b"], None, 1, 1, "measured"),
        "another commit": lambda id: Commit(id, held["c"], None, 1, 1, "measured"),
        "part": lambda id: Commit(id, held["d"], None, 1, 0, "measured", part="row-1"),
        "another part": lambda id: Commit(id, held["d"], None, 1, 0, "measured", part="row-2"),
        "rollback": lambda id: Rollback(id, held["e"]),
        "lose": lambda id: Lose(id, held["f"]),
        "record": lambda id: Record(id, "lab", None, 2, 1, "measured"),
        "adjust": lambda id: Adjust(id, entry.reservation, None, 5, None),
    }


NAMES = (
    "budget", "limit", "close", "reserve", "extend", "sent", "commit", "another commit", "part", "another part", "rollback",
    "lose", "record", "adjust",
)  # fmt: skip


@pytest.mark.parametrize("after_h", [0, 4])
@pytest.mark.parametrize("first", NAMES)
def test_an_id_that_came_with_another_command_is_a_conflict(
    ledger: tbl.Ledger, log: Log, clock: Clock, first: str, after_h: int
) -> None:
    """Also when the first one was so long ago that it has to be looked up; the first one itself is a repeat.

    lab       1000 tokens, with lab/old below it
    first     some command
    second    each other command with the id of the first
    """
    ledger.budget("lab", tokens=1000)
    ledger.budget("lab/old", tokens=1000)
    every, id = commands(ledger), ledger.new_id()
    answer = ledger.ask(every[first](id))
    if after_h:
        clock.advance(after_h * 3600)
        ledger.ask(reserve(ledger.new_id()))  # what is old is forgotten at the end of a batch
    before = log.kinds
    for name, command in every.items():
        if name != first:
            with pytest.raises(tbl.IdConflict):
                ledger.ask(command(id))
    again = ledger.ask(every[first](id))
    assert (log.kinds, again[0]) == (before, answer[0])
