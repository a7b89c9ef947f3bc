"""Ids that say that they were made after they were decided: a clock was set back in between, or a client's clock is ahead."""

from __future__ import annotations

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Home
from tokenbudget_lab import state as fold
from tokenbudget_lab.commands import Adjust, Command, Commit, Record, Reserve, Rollback, SetLimit
from tokenbudget_lab.ids import uuid7_source
from tokenbudget_lab.stores import duckdb as store_module

HOUR_US = 3_600_000_000


@pytest.fixture(autouse=True)
def snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every owner leaves a snapshot, so that the next one has forgotten all that had ended."""
    monkeypatch.setattr(store_module, "SNAPSHOT_EVENTS", 1)


@pytest.fixture
def lab(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("lab", tokens=1000)


def made_ahead(clock: Clock, seconds: float) -> str:
    """An id of a clock that is ahead."""
    return uuid7_source(lambda: clock.now_ns() + round(seconds * 1e9))()


def commands(ledger: tbl.Ledger, clock: Clock, seconds: float) -> list[Command]:
    """One of each kind that writes, with ids of a clock that is ahead."""
    held = [str(ledger.ask(Reserve(ledger.new_id(), "lab", None, 10, 1, 40 * HOUR_US, "release"))[0]) for _ in "abc"]
    entry = ledger.budget("lab").record(tokens=1).result()
    assert isinstance(entry, tbl.Counted)
    ids = [made_ahead(clock, seconds) for _ in range(7)]
    return [
        Record(ids[0], "lab", None, 2, 1, "measured"),
        Reserve(ids[1], "lab", None, 3, 1, 47 * HOUR_US, "count"),
        Commit(ids[2], held[0], None, 4, 1, "measured"),
        Commit(ids[3], held[1], None, 5, 1, "measured", part="row-1"),
        Rollback(ids[4], held[2]),
        Adjust(ids[5], entry.reservation, None, 6, None),
        SetLimit(ids[6], "lab", None, None, 999, None),
    ]


@pytest.mark.parametrize("ahead_s", [3, 10, 3599, 5 * 3600, 10 * 365 * 24 * 3600])
def test_sent_again_to_the_next_owner_it_is_decided_once(
    home: Home, ledger: tbl.Ledger, lab: tbl.Budget, clock: Clock, ahead_s: float
) -> None:
    """Whatever a client's clock said, and although the owner began with a snapshot.

    ids       made by a clock that is ahead, or was set back since
    send      each command
    reopen    and send each one again, and once more after the clocks are the same
    """
    sent = commands(ledger, clock, ahead_s)
    for command in sent:
        ledger.ask(command)
    before = ledger.verify()
    for later in (0, ahead_s):
        clock.advance(later)
        again = home.reopen()
        for command in sent:
            again.ask(command)
        assert later or (again.verify().events, again.verify().digest) == (before.events, before.digest)
    spent = 2 + 4 + 5 + 6
    assert again.budget("lab").balance.committed_tokens == spent + (3 if ahead_s > 47 * 3600 else 0)


@pytest.mark.parametrize("ahead_s", [10, 3599, 5 * 3600, 30 * 3600])
def test_sent_again_after_it_was_forgotten_it_is_decided_once(
    ledger: tbl.Ledger, lab: tbl.Budget, clock: Clock, ahead_s: float
) -> None:
    """What ended is remembered for an hour of the writer's clock; what says that it was made after that is not new.

    record    1, by a clock that is ahead
    after     two hours, and when the writer's clock is where the id says, and later
    record    1, the same command
    """
    command = Record(made_ahead(clock, ahead_s), "lab", None, 1, 1, "measured")
    first = ledger.ask(command)
    for later in (7200, ahead_s, 7200):
        clock.advance(later)
        lab.record(tokens=10).result()
        clock.advance(7200)
        lab.record(tokens=10).result()
        assert ledger.ask(command) == first
    assert lab.balance.committed_tokens == 61


def test_very_many_of_them_take_no_room(
    home: Home, ledger: tbl.Ledger, lab: tbl.Budget, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not kept one by one; what is sent until then is looked up."""
    monkeypatch.setattr(fold, "REMEMBER_COUNT", 10)
    sent = [Record(made_ahead(clock, 3600 + n), "lab", None, 1, 1, "measured") for n in range(30)]
    for command in sent:
        ledger.ask(command)
    state = ledger.desk.decisions.state  # type: ignore[attr-defined] # a writer
    assert len(state.early) <= 10
    clock.advance(1)
    assert [ledger.ask(command)[0] for command in sent] == [command.id for command in sent]
    again = home.reopen()
    assert [again.ask(command)[0] for command in sent] == [command.id for command in sent]
    assert again.budget("lab").balance.committed_tokens == 30


def test_ids_of_the_right_time_are_not_looked_up(ledger: tbl.Ledger, lab: tbl.Budget, home: Home, clock: Clock) -> None:
    """The store is asked for nothing on the way of an ordinary call."""
    command = Record(made_ahead(clock, 10), "lab", None, 1, 1, "measured")
    ledger.ask(command)
    clock.advance(1)
    state = home.reopen().desk.decisions.state  # type: ignore[attr-defined] # a writer
    clock.advance(3)
    assert not state.may_be_forgotten(home.ledger.new_id())
