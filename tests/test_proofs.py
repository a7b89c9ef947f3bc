"""Proving a long log: what DuckDB finds right is folded from its JSON, in batches, and is what was written."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.test_invariants import a_day_with_everything
from tokenbudget_lab.events import FIELDS, Event, chained
from tokenbudget_lab.rows import TEXT, proved, to_arrow
from tokenbudget_lab.stores.memory import MemoryStore

FOLDED = [name for name in FIELDS[:14] if name != "command"] + ["expires", "detail"]


@pytest.fixture(scope="module")
def events() -> list[Event]:
    """An event of each kind, then two and a half thousand ordinary ones: several groups, in several batches."""
    store = MemoryStore()
    with a_day_with_everything(store) as ledger:
        study = ledger.budget("lab/study", limits=[tbl.Limit(usd=10**6, window="day")])
        for n in range(1250):
            with study.reserve(usd="0.000000000001", tokens=n, tags={"arm": 'few "shot"'}) as call:
                call.commit(tokens=n)
        return list(store.load())


def batches(events: list[Event], size: int = 900) -> list[tuple[list[Event], bool]]:
    return [(list(found), continues) for found, continues in proved(to_arrow(events, batch_size=size))]


def test_what_is_proved_is_what_was_written(events: list[Event]) -> None:
    found = batches(events)
    assert [continues for _, continues in found] == [True] * 3
    for there, was in zip(chain.from_iterable(part for part, _ in found), events, strict=True):
        assert {name: getattr(there, name) for name in FOLDED} == {name: getattr(was, name) for name in FOLDED}
    assert found[0][0][-1].hash == events[899].hash
    assert found[-1][0][-1].hash == events[-1].hash


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "seq"])
def test_a_batch_with_another_value_anywhere_is_not_proved(events: list[Event], name: str) -> None:
    """Nor what follows it, where it is the hash that the next batch begins with; the others are."""
    chance = random.Random(name)
    place = chance.choice([0, 450, 899, chance.randrange(900)])
    value = getattr(events[place], name)
    new = another(name, value)
    changed = [*events[:place], events[place]._replace(**{name: new}), *events[place + 1 :]]
    found = batches(changed)
    assert [continues for _, continues in found] == [False, not (name == "hash" and place == 899), True]
    assert list(chain.from_iterable(part for part, continues in found if not continues))[:900] == changed[:900]


def another(name: str, value: Any) -> Any:
    """Another value that could stand in the same column."""
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, bytes):
        return bytes(32)
    if isinstance(value, tuple):
        return (*value, 1) if name == "windows" else (*value, ("z", "z"))
    return "x" if name in TEXT else 7


def test_strings_that_json_writes_in_several_ways_are_looked_at_again_and_are_sound(tmp_path: Path) -> None:
    """The canonical bytes are ASCII, DuckDB's are not: `é`, an emoji and a control character are not proved, but verified."""
    with tbl.connect(tmp_path / "spend.duckdb", embedded=True) as ledger:
        lab = ledger.budget("lab", tokens=10_000)
        for n in range(700):
            lab.record(tokens=1, key=f"n{n}", tags={"arm": "café 🌱" if n == 650 else "plain"})
        assert ledger.verify().events > 700


def test_a_forged_event_is_not_proved_from_the_next_one_on(events: list[Event]) -> None:
    """Chained by its forger, who did not chain those that follow: the batch with the seam is looked at again."""
    event = events[899]
    forged = chained(events[898].hash, event._replace(tokens=(event.tokens or 0) + 1)[:-1])
    assert [continues for _, continues in batches([*events[:899], forged, *events[900:]])] == [True, False, True]
