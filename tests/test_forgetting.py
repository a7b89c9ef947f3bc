"""Forgetting: what ended more than an hour ago is looked up in the store again, and nobody notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Home, Log
from tokenbudget_lab.commands import Adjust, Commit, Extend, GetHead, Record, Reserve, Rollback, SetBudget, SetLimit

HOUR = 3_600_000_000  # in microseconds, as commands say it


def remembered(ledger: tbl.Ledger) -> int:
    """How many reservations and records the ledger has in memory."""
    return int(ledger.ask(GetHead(ledger.new_id()))[5])


@pytest.fixture
def forget(ledger: tbl.Ledger, clock: Clock, home: Home) -> Callable[[], None]:
    """Let hours pass, and make sure that all that has ended is forgotten; over a shared store all is, with every batch."""

    def hours_later() -> None:
        clock.advance(7200)
        elsewhere = ledger.budget("elsewhere", limits=[])  # what is due expires here
        clock.advance(7200)
        elsewhere.record(tokens=1).result()
        known = 1 + sum(balance.calls_in_flight for balance in ledger.budgets())
        assert remembered(ledger) == (0 if home.store == "postgres" else known)

    return hours_later


@pytest.fixture(autouse=True)
def replays(ledger: tbl.Ledger, home: Home) -> Iterator[None]:
    """Opened again, the ledger has the same balances."""
    yield
    before = ledger.verify().digest
    assert home.reopen().verify().digest == before


@pytest.fixture
def lab(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("lab", tokens=1000)


Forget = Callable[[], None]


def test_what_is_open_is_never_forgotten(lab: tbl.Budget, log: Log, forget: Forget) -> None:
    """Its commit comes in time, however late.

    reserve   300 for 10 h
    after     4 h
    commit    100
    """
    held = lab.reserve_sync(tokens=300, timeout=36_000)
    forget()
    told = held.commit(tokens=100).result()
    assert isinstance(told, tbl.Counted)
    assert (told.late, lab.balance.committed_tokens) == (False, 100)


@pytest.mark.parametrize(("if_lost", "counted"), [("count", 300), ("release", 0)])
def test_a_very_late_commit_counts(lab: tbl.Budget, forget: Forget, if_lost: Literal["count", "release"], counted: int) -> None:
    """In the place of what was counted for it, if anything was.

    reserve   300 for 60 s
    after     4 h
    commit    100
    """
    held = lab.reserve_sync(tokens=300, timeout=60, if_lost=if_lost)
    forget()
    assert lab.balance.committed_tokens == counted
    told = held.commit(tokens=100).result()
    assert isinstance(told, tbl.Counted)
    assert (told.late, lab.balance.committed_tokens) == (True, 100)


def test_a_very_late_repeat_of_a_commit_is_the_first_one(ledger: tbl.Ledger, lab: tbl.Budget, log: Log, forget: Forget) -> None:
    """Another amount is still refused.

    reserve   300
    commit    100
    after     4 h
    commit    100  the same command, another command
    commit    200  refused
    """
    held = lab.reserve_sync(tokens=300)
    command = Commit(ledger.new_id(), held.id, None, 100, 1, "measured")
    first = ledger.ask(command)
    forget()
    assert ledger.ask(command) == ledger.ask(command._replace(id=ledger.new_id())) == first
    with pytest.raises(tbl.ReservationClosed) as closed:
        held.commit(tokens=200).result()
    assert (closed.value.first, log.kinds.count("committed")) == ("100 tokens, 1 requests", 1)


@pytest.mark.parametrize("end", ["rollback", "release", "count", "commit"])
def test_a_very_late_rollback_is_what_a_late_one_is(lab: tbl.Budget, log: Log, forget: Forget, end: str) -> None:
    """A no-op where nothing was counted, refused where something was.

    reserve   300
    end       somehow
    after     4 h
    rollback
    """
    held = lab.reserve_sync(tokens=300, timeout=60, if_lost="count" if end == "count" else "release")
    if end == "rollback":
        held.rollback().result()
    elif end == "commit":
        held.commit(tokens=300).result()
    forget()
    before = log.kinds
    if end in ("rollback", "release"):
        assert held.rollback().result() == {"rollback": "rolled_back", "release": "released"}[end]
    else:
        with pytest.raises(tbl.ReservationClosed):
            held.rollback().result()
    assert (log.kinds, lab.balance.committed_tokens) == (before, 0 if end in ("rollback", "release") else 300)


def test_a_very_late_adjustment_counts(ledger: tbl.Ledger, lab: tbl.Budget, log: Log, forget: Forget) -> None:
    """Against what stands now, corrections included; and it is repeated without harm.

    record    300
    adjust    200
    after     4 h
    adjust    100
    after     4 h
    adjust    100  the same command
    adjust    200  the same command as the first
    """
    entry = lab.record(tokens=300).result()
    assert isinstance(entry, tbl.Counted)
    commands = [Adjust(ledger.new_id(), entry.reservation, None, tokens, None) for tokens in (200, 100)]
    first = ledger.ask(commands[0])
    forget()
    second = ledger.ask(commands[1])
    assert lab.balance.committed_tokens == 100
    forget()
    assert [ledger.ask(command) for command in commands] == [first, second]
    assert (lab.balance.committed_tokens, log.kinds.count("adjusted")) == (100, 2)
    with pytest.raises(tbl.IdConflict):
        ledger.ask(commands[0]._replace(tokens=150))


def test_what_was_rolled_back_long_ago_is_not_adjustable(lab: tbl.Budget, forget: Forget) -> None:
    held = lab.reserve_sync(tokens=300)
    held.rollback().result()
    forget()
    with pytest.raises(tbl.NotAdjustable):
        lab.adjust(held, tokens=1).result()


def test_an_old_key_still_finds_its_call(lab: tbl.Budget, log: Log, forget: Forget) -> None:
    """A notebook that runs again tomorrow does not pay twice.

    reserve   300  key=row-7
    commit    100
    record    50   key=row-8
    after     4 h
    reserve   300  key=row-7
    commit    100
    record    50   key=row-8
    reserve   301  key=row-7  refused
    """
    for _ in range(2):
        with lab.reserve(tokens=300, key="row-7") as call:
            call.commit(tokens=100)
        lab.record(tokens=50, key="row-8").result()
        forget()
    with pytest.raises(tbl.IdConflict):
        lab.reserve_sync(tokens=301, key="row-7")
    assert lab.balance.committed_tokens == 150
    assert (log.kinds.count("reserved"), log.kinds.count("committed")) == (1, 1)


def test_an_old_reserve_or_record_is_answered_as_it_was(ledger: tbl.Ledger, lab: tbl.Budget, log: Log, forget: Forget) -> None:
    """With the state that it is in by now.

    reserve   300, rolled back
    record    50
    after     4 h
    reserve   300  the same command
    record    50   the same command
    reserve   301  the same id  refused
    """
    reserve = Reserve(ledger.new_id(), "lab", None, 300, 1, HOUR, "release")
    record = Record(ledger.new_id(), "lab", None, 50, 1, "measured")
    granted, counted = ledger.ask(reserve), ledger.ask(record)
    ledger.ask(Rollback(ledger.new_id(), reserve.id))
    forget()
    assert ledger.ask(reserve) == (*granted[:-1], "rolled_back")
    assert ledger.ask(record) == counted
    with pytest.raises(tbl.IdConflict):
        ledger.ask(reserve._replace(tokens=301))
    assert (log.kinds.count("reserved"), lab.balance.reserved_tokens) == (1, 0)


def test_an_old_command_about_a_budget_is_decided_once(ledger: tbl.Ledger, lab: tbl.Budget, log: Log, forget: Forget) -> None:
    """Sent again hours later it changes nothing.

    limit     lap 5
    set_limit lap 6
    set_limit lap 7
    after     4 h
    limit     lap 5  the same command
    set_limit lap 6  the same command
    """
    make = SetBudget(ledger.new_id(), "lap", (("", None, 5, None),), "UTC")
    limit = SetLimit(ledger.new_id(), "lap", None, None, 6, None)
    made = ledger.ask(make)
    ledger.ask(limit)
    ledger.budget("lap").set_limit(tokens=7)
    forget()
    before = log.kinds
    assert ledger.ask(make)[0] == made[0]
    ledger.ask(limit)
    assert (ledger.budget("lap").balance.limit_tokens, log.kinds) == (7, before)


def test_an_old_extension_gives_its_first_expiry(ledger: tbl.Ledger, lab: tbl.Budget, log: Log, forget: Forget) -> None:
    """However often it was extended since.

    reserve   300 for 60 s
    extend    10 h
    after     4 h
    extend    10 h  the same command
    """
    held = lab.reserve_sync(tokens=300, timeout=60)
    command = Extend(ledger.new_id(), held.id, 10 * HOUR)
    first = ledger.ask(command)
    forget()
    held.extend_sync(36_000)
    assert ledger.ask(command)[3] == first[3]
    assert log.kinds.count("extended") == 2


def test_the_parts_of_a_batch_are_remembered_with_it(ledger: tbl.Ledger, lab: tbl.Budget, log: Log, forget: Forget) -> None:
    """Settled, it is looked up whole.

    reserve   500, without expiry
    part      row-1 300
    commit    100
    after     4 h
    part      row-1 300  the same command
    adjust    250
    """
    command = Reserve(ledger.new_id(), "lab", None, 500, 2, 0, "count")
    batch = tbl.Reservation(ledger, command, ledger.ask(command))
    part = Commit(ledger.new_id(), batch.id, None, 300, 1, "measured", part="row-1")
    first = ledger.ask(part)
    batch.commit(tokens=100).result()
    forget()
    assert ledger.ask(part) == first
    lab.adjust(batch, tokens=250).result()
    assert (lab.balance.committed_tokens, lab.balance.committed_requests) == (250, 2)


def test_an_unknown_id_stays_unknown(ledger: tbl.Ledger, lab: tbl.Budget, forget: Forget) -> None:
    """Looked up, and not found."""
    forget()
    for wrong in (ledger.new_id(), "no uuid at all"):
        with pytest.raises(tbl.UnknownReservation):
            ledger.ask(Rollback(ledger.new_id(), wrong))


def test_a_forgotten_reservation_counts_in_the_window_of_its_reserve(
    ledger: tbl.Ledger, clock: Clock, home: Home, forget: Forget
) -> None:
    """Yesterday is yesterday, also when it is looked up.

    limit     100 tokens per day
    at        23:59
    reserve   60, count, for 60 s
    after     4 h
    reserve   100
    commit    60  late
    """
    day = ledger.budget("day", tokens=100, window="day")
    clock.set("2026-11-23 23:59")
    held = day.reserve_sync(tokens=60, timeout=60, if_lost="count")
    forget()
    day.reserve_sync(tokens=100, timeout=36_000)
    held.commit(tokens=60).result()
    assert (day.balance.committed_tokens, day.balance.reserved_tokens) == (0, 100)
