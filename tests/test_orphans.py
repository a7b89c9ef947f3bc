"""Orphans: what was reserved and lost with a damaged file is counted when it is committed, because the money is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock
from tokenbudget_lab.commands import Commit
from tokenbudget_lab.events import from_detail
from tokenbudget_lab.ids import new_id, uuid7_source
from tokenbudget_lab.place import place_of
from tokenbudget_lab.store import Loss
from tokenbudget_lab.stores import duckdb as store_module
from tokenbudget_lab.stores.duckdb import DuckDBStore
from tokenbudget_lab.stores.memory import MemoryStore


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "duckdb"])
def reopened(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tbl.Ledger]:
    """Opens a ledger that has given up a loss; each owner begins with a snapshot, where there are any."""
    monkeypatch.setattr(store_module, "SNAPSHOT_EVENTS", 1)
    memory, opened = MemoryStore(), [0]

    def reopened() -> tbl.Ledger:
        store: Any = memory if request.param == "memory" else DuckDBStore(place_of(tmp_path / "spend.duckdb"))
        store.loss = Loss(1, 9, "its log was cut", "damaged-1") if not opened[0] else None
        ledger = tbl.Ledger(store=store, clock_ns=clock.now_ns, ids=uuid7_source(clock.now_ns))
        store.loss, opened[0] = None, 1
        return ledger

    return reopened


@pytest.fixture
def ledger(reopened: Callable[[], tbl.Ledger]) -> Iterator[tbl.Ledger]:
    ledger = reopened()
    ledger.budget("lab", tokens=1000)
    ledger.budget("lab/study", tokens=500)
    yield ledger
    ledger.close()
    again = reopened()
    again.verify()
    again.close()


def lost(budget: str, tokens: int, *, reservation: str, part: str | None = None) -> Commit:
    """A commit of a reservation that this ledger has lost."""
    return Commit(new_id(), reservation, None, tokens, 1, "measured", part=part, budget=budget)


def committed(ledger: tbl.Ledger, name: str = "lab") -> int | None:
    return ledger.budget(name).balance.committed_tokens


def test_each_part_of_a_batch_that_was_lost_is_counted_once(
    ledger: tbl.Ledger, reopened: Callable[[], tbl.Ledger], clock: Clock
) -> None:
    """By its name, whatever the id; and another amount for the same part is refused, as it is in a batch that was not lost.

    part      row-1 10, row-2 20, of a batch that was lost
    part      row-1 10, again: the same command, another command
    part      row-1 11  refused
    after     2 h, with another owner
    commit    5, the rest
    part      row-1 10, row-2 20, again
    """
    batch = new_id()
    parts = [lost("lab/study", 10 * n, reservation=batch, part=f"row-{n}") for n in (1, 2)]
    first = [ledger.ask(part) for part in parts]
    assert ledger.ask(parts[0]) == ledger.ask(parts[0]._replace(id=new_id())) == first[0]
    with pytest.raises(tbl.ReservationClosed):
        ledger.ask(parts[0]._replace(id=new_id(), tokens=11))
    ledger.close()
    clock.advance(7200)
    again = reopened()
    again.ask(lost("lab/study", 5, reservation=batch))
    assert [again.ask(part._replace(id=new_id())) for part in parts] == [again.ask(part) for part in parts] == first
    assert (committed(again, "lab/study"), committed(again)) == (35, 35)
    again.verify()
    again.close()


def test_a_part_says_what_it_was_of_and_can_be_corrected(ledger: tbl.Ledger) -> None:
    batch = new_id()
    answer = ledger.ask(lost("lab", 10, reservation=batch, part="row-1"))
    ledger.budget("lab").adjust(answer[0], tokens=7).result()
    event = next(event for event in ledger.desk.events(answer[1]) if event.seq == answer[1])
    assert from_detail(event) == {"orphan": True, "part": "row-1", "reservation": batch}
    assert committed(ledger) == 7


def test_a_call_whose_budget_was_lost_too_counts_in_the_nearest_one_above(ledger: tbl.Ledger) -> None:
    """The limits that are left hold, and the event says where it was spent.

    commit    30 in lab/gone/deep, of which only lab is left; and again
    """
    command = lost("lab/gone/deep", 30, reservation=new_id())
    answer = ledger.ask(command)
    assert ledger.ask(command) == ledger.ask(command._replace(id=new_id())) == answer
    event = next(event for event in ledger.desk.events(answer[1]) if event.seq == answer[1])
    assert (event.budget, from_detail(event)["budget"], committed(ledger)) == ("lab", "lab/gone/deep", 30)


def test_a_call_with_no_budget_left_is_told_how_to_be_counted(ledger: tbl.Ledger) -> None:
    """Nothing is made up: a budget has limits, and nobody knows them any more.

    commit    30 in gone  refused, with what to do
    limit     gone 100
    commit    30, the same
    """
    command = lost("gone/deep", 30, reservation=new_id())
    with pytest.raises(
        tbl.BudgetLost, match=r"'gone/deep' was lost .* 30 tokens, 1 requests spent and not counted. Make .* again"
    ):
        ledger.ask(command)
    ledger.budget("gone", tokens=100)
    ledger.budget("gone/deep", tokens=100)
    ledger.ask(command)
    assert committed(ledger, "gone") == 30


@pytest.mark.parametrize("part", [None, "row-1"])
@pytest.mark.parametrize("id", ["row-7", "{019a9a2b-0000-7000-8000-000000000000}"])
def test_what_is_no_id_of_a_reservation_is_no_orphan(ledger: tbl.Ledger, id: str, part: str | None) -> None:
    with pytest.raises(tbl.UnknownReservation):
        ledger.ask(lost("lab", 1, reservation=id, part=part))
    assert committed(ledger) == 0
