"""The machine's clock: what an owner leaves to the next one, and what is forgotten when it was no jump."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenbudget_lab as tbl
from tests.test_care import Machine
from tokenbudget_lab import clock
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.recovery import log_of
from tokenbudget_lab.store import Loss
from tokenbudget_lab.stores.duckdb import DuckDBStore
from tokenbudget_lab.stores.memory import MemoryStore


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_of(tmp_path / "spend.duckdb")


@pytest.fixture
def machine() -> Machine:
    return Machine()


def is_stopped(ledger: tbl.Ledger) -> float | None:
    """By how many seconds the clock is said to be wrong, where nothing is written; else one more record is."""
    try:
        ledger.budget("lab").record(tokens=1).result()
    except tbl.ClockJumped as jumped:
        return jumped.seconds
    return None


@pytest.fixture(params=["memory", "duckdb"])
def reopened(request: pytest.FixtureRequest, machine: Machine, place: Place) -> Callable[[], tbl.Ledger]:
    """Opens one ledger again and again, each time by another owner."""
    memory = MemoryStore()
    return lambda: machine.open(memory if request.param == "memory" else DuckDBStore(place))


@pytest.fixture
def spent(machine: Machine, reopened: Callable[[], tbl.Ledger]) -> None:
    """A ledger whose budget of the day is spent, and whose owner has left an hour after."""
    with reopened() as ledger:
        ledger.budget("lab", tokens=100, window="day").record(tokens=100).result()
        machine.advance(3600)


TEN_YEARS = 10 * 365 * 24 * 3600


@pytest.mark.parametrize("when", ["while it is owned", "while nobody owns it"])
def test_a_clock_that_was_moved_is_not_forgotten_by_the_next_owner(
    machine: Machine, reopened: Callable[[], tbl.Ledger], spent: None, when: str
) -> None:
    """Who only waits until the keeper has left and is started again gets no fresh window.

    limit     100 tokens a day, spent
    clock     ten years ahead
    reopen    refused
    reopen    refused
    accept    record; and opened again, record
    """
    if when == "while it is owned":
        with reopened() as ledger:
            machine.clock.advance(TEN_YEARS)
            assert is_stopped(ledger) == TEN_YEARS
    else:
        machine.clock.advance(TEN_YEARS)
    for _ in range(2):
        with reopened() as ledger:
            assert is_stopped(ledger) == TEN_YEARS
    with reopened() as ledger:
        ledger.ask(tbl.commands.AcceptClock(ledger.new_id()))
        assert is_stopped(ledger) is None
    with reopened() as ledger:
        assert is_stopped(ledger) is None


def test_stopped_for_a_clock_that_is_ahead_it_stays_so_when_the_machine_is_started_again(
    machine: Machine, reopened: Callable[[], tbl.Ledger], spent: None
) -> None:
    """Until somebody accepts it, or it is put right.

    clock     ten years ahead, refused
    restart   of the machine; refused, and by the owner after that
    clock     put right: record
    """
    with reopened() as ledger:
        machine.clock.advance(TEN_YEARS)
        assert is_stopped(ledger) == TEN_YEARS
    machine.restart()
    for _ in range(2):
        machine.advance(600)
        with reopened() as ledger:
            assert is_stopped(ledger) == TEN_YEARS
    with reopened() as ledger:
        machine.clock.advance(-TEN_YEARS)
        assert is_stopped(ledger) is None
        machine.clock.advance(TEN_YEARS)
        assert is_stopped(ledger) == TEN_YEARS


def test_accepted_after_the_machine_was_started_again_it_is_right_for_good(
    machine: Machine, reopened: Callable[[], tbl.Ledger], spent: None
) -> None:
    """The machine's new start is what the clock is compared with from then on.

    clock     ten years ahead, refused
    restart   of the machine; accept: record; and with another owner, record
    """
    with reopened() as ledger:
        machine.clock.advance(TEN_YEARS)
        assert is_stopped(ledger) == TEN_YEARS
    machine.restart()
    with reopened() as ledger:
        ledger.ask(tbl.commands.AcceptClock(ledger.new_id()))
        assert is_stopped(ledger) is None
    machine.advance(60)
    with reopened() as ledger:
        assert is_stopped(ledger) is None


def test_a_clock_that_is_put_right_while_nobody_owns_the_ledger_needs_no_word(
    machine: Machine, reopened: Callable[[], tbl.Ledger], spent: None
) -> None:
    """And that it was ahead once does not count after the machine's next start.

    clock     two hours ahead, refused
    clock     put right: record
    restart   of the machine, a day later: record
    """
    with reopened() as ledger:
        machine.clock.advance(7200)
        assert is_stopped(ledger) == 7200
    machine.clock.advance(-7200)
    with reopened() as ledger:
        assert is_stopped(ledger) is None
    machine.advance(24 * 3600)
    machine.restart()
    with reopened() as ledger:
        assert is_stopped(ledger) is None


def test_a_loss_that_is_accepted_while_the_clock_is_ahead_is_no_event_of_that_year(machine: Machine) -> None:
    """It stands where time stood."""
    store = MemoryStore()
    with machine.open(store) as ledger:
        ledger.budget("lab", tokens=100)
    then = machine.clock.now_ns() // 1000
    machine.clock.advance(TEN_YEARS)
    store.loss = Loss(3, 9, "its log was cut", "damaged-1")
    with machine.open(store) as ledger:
        assert [(event.kind, event.ts) for event in ledger.desk.events(99)][-1] == ("recovered", then)


@pytest.mark.parametrize("moved_while", ["it is owned", "nobody owns it"])
def test_what_is_no_jump_stops_no_later_owner(
    machine: Machine, reopened: Callable[[], tbl.Ledger], spent: None, moved_while: str
) -> None:
    """A month of sleep, small corrections that add up to hours, and the machine started again with another clock.

    clock     40 minutes ahead, six times
    sleep     a month
    clock     40 minutes back
    restart   of the machine, and its clock a day ahead
    """
    small: list[tuple[Callable[[float], None], float]] = [(machine.clock.advance, 2400)] * 6
    for move, seconds in [*small, (machine.advance, 30 * 24 * 3600), (machine.clock.advance, -2400)]:
        if moved_while == "it is owned":
            with reopened() as ledger:
                move(seconds)
                ledger.budget("lab")
        else:
            move(seconds)
        with reopened() as ledger:
            machine.advance(2400)  # time enough to be past the last event
            assert is_stopped(ledger) is None
    machine.restart()
    machine.clock.advance(24 * 3600)
    with reopened() as ledger:
        assert is_stopped(ledger) is None


def test_a_ledger_that_is_copied_elsewhere_is_not_stopped_for_the_clock_it_came_from(machine: Machine, place: Place) -> None:
    """The other machine's clock was never moved.

    clock     two hours ahead, refused
    copy      file and folder, and three hours later to another machine
    """
    with machine.open(DuckDBStore(place)) as ledger:
        ledger.budget("lab", tokens=100)
        machine.clock.advance(7200)
        assert is_stopped(ledger) == 7200
    other = place_of(place.file.with_name("other.duckdb"))
    for source, target in ((place.file, other.file), (log_of(place.file), log_of(other.file))):
        shutil.copyfile(source, target)
    shutil.copytree(place.folder, other.folder)
    machine.clock.advance(-7200)
    machine.advance(3 * 3600)
    machine.restart()
    with machine.open(DuckDBStore(other)) as ledger:
        assert is_stopped(ledger) is None
    with machine.open(DuckDBStore(place)) as ledger:
        assert is_stopped(ledger) == 7200


def test_a_clock_mark_that_cannot_be_read_or_kept_stops_nobody(
    machine: Machine, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of it, nothing, or a folder in its place: the owner begins with the clock as it is; what is not kept is said."""
    with machine.open(DuckDBStore(place)) as ledger:
        ledger.budget("lab", tokens=100)
    for data in (place.clock.read_bytes()[:-9], b"", b"[]", b'{"boot": 1}'):
        place.clock.write_bytes(data)
        with machine.open(DuckDBStore(place)) as ledger:
            assert is_stopped(ledger) is None
    place.clock.unlink()
    place.clock.mkdir()
    with caplog.at_level(logging.WARNING), machine.open(DuckDBStore(place)) as ledger:
        assert is_stopped(ledger) is None
    assert "is not kept" in caplog.text


def test_a_clock_that_is_put_right_after_a_start_behind_needs_no_word(
    machine: Machine, reopened: Callable[[], tbl.Ledger], spent: None
) -> None:
    """What the machine's start had to do with the wrong clock is forgotten with it, for the next owner too.

    restart   of the machine, its clock two hours behind: refused
    clock     put right: record
    reopen    record
    clock     ten years ahead: refused
    """
    machine.restart()
    machine.clock.advance(-7200)
    with reopened() as ledger:
        assert is_stopped(ledger) == -3600
        machine.clock.advance(7200)
        assert is_stopped(ledger) is None
    with reopened() as ledger:
        assert is_stopped(ledger) is None
        machine.clock.advance(TEN_YEARS)
        assert is_stopped(ledger) == TEN_YEARS


def test_an_owner_that_leaves_while_it_is_stopped_writes_nothing(
    machine: Machine, reopened: Callable[[], tbl.Ledger], spent: None
) -> None:
    """Refusals that were only counted would be events of a year that has not come, and time would stand still until then.

    reserve   1, refused three times: one event, two are counted
    clock     ten years ahead, and the ledger is closed
    clock     put right: record
    """
    with reopened() as ledger:
        for _ in range(3):
            with pytest.raises(tbl.BudgetExceeded):
                ledger.budget("lab").reserve_sync(tokens=1)
        machine.clock.advance(TEN_YEARS)
    machine.clock.advance(-TEN_YEARS)
    with reopened() as ledger:
        assert is_stopped(ledger) is None
        assert max(event.ts for event in ledger.desk.events(99)) == machine.clock.now_ns() // 1000


def test_on_macos_the_time_since_the_start_goes_on_in_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """There `time.monotonic` stands still, and a night's sleep would be a clock that went ahead by hours."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(time, "clock_gettime_ns", lambda which: which)
    assert clock.boot_ns() == time.CLOCK_MONOTONIC_RAW
