"""Old calls leave the memory soon, those with a key later: while no key was forgotten, a new one is looked up nowhere."""

from __future__ import annotations

from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Home
from tokenbudget_lab import state as fold
from tokenbudget_lab.commands import GetHead, Record

STORES = ON_ONE_MACHINE
KEYS = [f"k{n}" for n in range(5)]


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "REMEMBER_COUNT", 10)
    monkeypatch.setattr(fold, "REMEMBER_KEYED_COUNT", 5)


def looked_up(ledger: tbl.Ledger, key: str) -> list[tuple[str, str]]:
    """The keys that the store would be asked for, when a call comes with this one."""
    decisions: Any = ledger.desk.decisions  # type: ignore[attr-defined] # a writer
    [*_, keys] = decisions.unknown_ids(Record(ledger.new_id(), "lab", None, 1, 1, "measured", key=key))
    return list(keys)


def record(lab: tbl.Budget, *keys: str | None) -> list[Any]:
    receipts = [lab.record(tokens=1, key=key) for key in keys]
    return [receipt.result() for receipt in receipts]


def test_calls_without_a_key_are_forgotten_first(ledger: tbl.Ledger) -> None:
    """Of 5 calls with a key and 40 without, 10 and the 5 are remembered, and a sixth key is known to be new."""
    lab = ledger.budget("lab", tokens=1000)
    first = record(lab, *KEYS)
    record(lab, *[None] * 40)
    assert int(ledger.ask(GetHead(ledger.new_id()))[5]) == 15
    assert ledger.desk.decisions.state.forgotten_until  # type: ignore[attr-defined] # a writer
    assert looked_up(ledger, "new") == []
    assert record(lab, *KEYS) == first
    assert lab.balance.committed_tokens == 45


def test_once_a_key_is_forgotten_each_is_looked_up(ledger: tbl.Ledger) -> None:
    """Old calls are found by theirs, and count once."""
    lab = ledger.budget("lab", tokens=1000)
    first = record(lab, *KEYS)
    record(lab, *[f"later{n}" for n in range(30)])
    assert looked_up(ledger, "new") == [("lab", "new")]
    assert record(lab, *KEYS) == first
    assert lab.balance.committed_tokens == 35


def test_a_ledger_that_begins_with_a_snapshot_looks_every_key_up(
    home: Home, ledger: tbl.Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot has nothing of what had ended."""
    monkeypatch.setattr("tokenbudget_lab.stores.duckdb.SNAPSHOT_EVENTS", 1)
    first = record(ledger.budget("lab", tokens=1000), *KEYS)
    lab = home.reopen().budget("lab")
    assert record(lab, *KEYS) == first
    assert lab.balance.committed_tokens == 5
