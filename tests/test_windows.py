"""Windows: when they turn, and what counts in which."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Home, Log
from tokenbudget_lab.limits import instant, micros, window_bounds

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # goes back from 1:00 to midnight: two midnights, on 2026-11-01
    "America/Santiago",  # goes forward at midnight: none at all, on 2026-09-06
    "America/St_Johns",  # half past
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # half an hour
    "Pacific/Apia",
)


def at(moment: str) -> int:
    """A moment in UTC, as Unix microseconds."""
    return micros(datetime.fromisoformat(moment).replace(tzinfo=UTC))


def window(code: str, tz: str, moment: str) -> tuple[str, str]:
    """The window that contains a moment in UTC: start and end in UTC."""
    start, end = window_bounds(code, tz, 0, at(moment))
    return f"{instant(start):%Y-%m-%d %H:%M}", f"{instant(end):%Y-%m-%d %H:%M}"


def turns(ledger: tbl.Ledger, clock: Clock, budget: tbl.Budget, before: str, after: str) -> None:
    """The budget is full until a moment, and empty from it on."""
    clock.set(before)
    budget.record(usd=1).result()
    clock.advance(59.999999)
    with pytest.raises(tbl.BudgetExceeded) as refused:
        budget.reserve_sync(usd=1)
    assert refused.value.resets == f"{after} UTC"
    clock.set(after)
    assert budget.balance.left_usd == 1


# --- in Berlin -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "moment", "start", "end"),
    [
        ("day", "2026-11-23 12:00", "2026-11-22 23:00", "2026-11-23 23:00"),
        ("week", "2026-11-23 12:00", "2026-11-22 23:00", "2026-11-29 23:00"),
        ("month", "2026-11-23 12:00", "2026-10-31 23:00", "2026-11-30 23:00"),
        # forward on 2027-03-28: 23 hours
        ("day", "2027-03-28 00:59", "2027-03-27 23:00", "2027-03-28 22:00"),
        ("day", "2027-03-28 01:00", "2027-03-27 23:00", "2027-03-28 22:00"),
        ("day", "2027-03-28 22:00", "2027-03-28 22:00", "2027-03-29 22:00"),
        ("week", "2027-03-28 12:00", "2027-03-21 23:00", "2027-03-28 22:00"),
        ("month", "2027-03-28 12:00", "2027-02-28 23:00", "2027-03-31 22:00"),
        # back on 2027-10-31: 25 hours, and one of them twice
        ("day", "2027-10-31 00:30", "2027-10-30 22:00", "2027-10-31 23:00"),
        ("day", "2027-10-31 01:30", "2027-10-30 22:00", "2027-10-31 23:00"),
        ("day", "2027-10-31 22:59", "2027-10-30 22:00", "2027-10-31 23:00"),
        ("week", "2027-10-31 12:00", "2027-10-24 22:00", "2027-10-31 23:00"),
        ("month", "2027-10-31 12:00", "2027-09-30 22:00", "2027-10-31 23:00"),
        ("month", "2026-12-31 22:59", "2026-11-30 23:00", "2026-12-31 23:00"),
    ],
)
def test_windows_turn_at_midnight_in_berlin(code: str, moment: str, start: str, end: str) -> None:
    assert window(code, "Europe/Berlin", moment) == (start, end)


@pytest.mark.parametrize(
    ("length", "before", "after"),
    [
        ("day", "2027-03-28 21:59", "2027-03-28 22:00"),
        ("week", "2027-03-28 21:59", "2027-03-28 22:00"),
        ("month", "2027-03-31 21:59", "2027-03-31 22:00"),
        ("day", "2027-10-31 22:59", "2027-10-31 23:00"),
        ("week", "2027-10-31 22:59", "2027-10-31 23:00"),
        ("month", "2027-10-31 22:59", "2027-10-31 23:00"),
    ],
)
def test_a_limit_comes_back_at_midnight_in_berlin(
    ledger: tbl.Ledger, clock: Clock, length: Any, before: str, after: str
) -> None:
    """Across both changes of the clocks, to the microsecond."""
    lab = ledger.budget("lab", usd=1, window=length, tz="Europe/Berlin")
    turns(ledger, clock, lab, before, after)


def test_a_night_of_twenty_five_hours_is_one_day(ledger: tbl.Ledger, clock: Clock) -> None:
    """The hour that comes twice is in the same window both times.

    limit     $1 per day in Berlin
    at        2:30, before the clocks go back
    commit    $1
    at        2:30, after
    reserve   $1  refused
    """
    lab = ledger.budget("lab", usd=1, window="day", tz="Europe/Berlin")
    clock.set("2027-10-31 00:30")
    lab.record(usd=1).result()
    clock.set("2027-10-31 01:30")
    with pytest.raises(tbl.BudgetExceeded):
        lab.reserve_sync(usd=1)


# --- everywhere ------------------------------------------------------------------------------------------------------------


def moments(tz: str) -> Iterator[int]:
    """Two years: a moment of each day, and every quarter of an hour where the clocks change."""
    day, quarter, zone = 86_400_000_000, 900_000_000, ZoneInfo(tz)
    for noon in range(at("2026-01-01 12:00"), at("2028-01-01 12:00"), day):
        change = instant(noon).astimezone(zone).utcoffset() != instant(noon + day).astimezone(zone).utcoffset()
        yield from range(noon, noon + day, quarter if change else day)


@pytest.mark.parametrize("tz", ZONES)
@pytest.mark.parametrize("code", ["day", "week", "month", "5400s"])
def test_windows_follow_one_another_without_gap_or_overlap(tz: str, code: str) -> None:
    """Every moment lies in one window, and each window begins where the one before ended."""
    start, end = window_bounds(code, tz, 7, at("2026-01-01 12:00"))
    for moment in moments(tz):
        while moment >= end:
            assert window_bounds(code, tz, 7, end - 1) == (start, end)
            start, end = end, window_bounds(code, tz, 7, end)[1]
            assert window_bounds(code, tz, 7, start) == (start, end)
        assert window_bounds(code, tz, 7, moment) == (start, end)


@pytest.mark.parametrize(
    ("moment", "start", "end"),
    [
        ("2026-11-01 04:30", "2026-11-01 04:00", "2026-11-02 05:00"),
        ("2026-11-01 05:30", "2026-11-01 04:00", "2026-11-02 05:00"),
        ("2026-11-01 12:00", "2026-11-01 04:00", "2026-11-02 05:00"),
    ],
)
def test_a_day_with_two_midnights_begins_at_the_first(moment: str, start: str, end: str) -> None:
    """In Havana the clocks go back from one o'clock to midnight."""
    assert window("day", "America/Havana", moment) == (start, end)


def test_a_day_without_midnight_begins_when_the_clock_jumps() -> None:
    """In Santiago they go forward from midnight to one o'clock."""
    assert window("day", "America/Santiago", "2026-09-06 12:00") == ("2026-09-06 04:00", "2026-09-07 03:00")


# --- of a length -----------------------------------------------------------------------------------------------------------


def test_a_timedelta_window_starts_where_its_budget_was_made(ledger: tbl.Ledger, clock: Clock) -> None:
    """And its windows follow one another.

    limit     $1 per 90 min, made at 12:07
    """
    clock.set("2026-11-23 12:07")
    lab = ledger.budget("lab", usd=1, window=timedelta(minutes=90))
    turns(ledger, clock, lab, "2026-11-23 13:36", "2026-11-23 13:37")
    turns(ledger, clock, lab, "2026-11-23 15:06", "2026-11-23 15:07")


def test_a_timedelta_window_stays_where_it_was_when_the_ledger_is_opened_again(
    ledger: tbl.Ledger, clock: Clock, home: Home
) -> None:
    clock.set("2026-11-23 12:07")
    before = ledger.budget("lab", usd=1, window=timedelta(hours=1)).balance.window_ends
    clock.set("2026-11-23 12:50")
    assert home.reopen().budget("lab").balance.window_ends == before == datetime(2026, 11, 23, 13, 7, tzinfo=UTC)


# --- what counts in which -----------------------------------------------------------------------------------------------------


def test_a_reservation_counts_to_its_end_in_the_window_of_its_reserve(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """A call over midnight is yesterday's.

    limit     $1 per day
    at        23:59
    reserve   a  $0.60, b $0.40
    at        00:01
    reserve   c  $1  fits: today is empty
    commit    a  $0.60
    extend    b
    """
    lab = ledger.budget("lab", usd=1, window="day")
    clock.set("2026-11-23 23:59")
    a, b = lab.reserve_sync(usd="0.60"), lab.reserve_sync(usd="0.40")
    clock.set("2026-11-24 00:01")
    lab.reserve_sync(usd=1)
    a.commit(usd="0.60").result()
    b.extend_sync(3600)
    assert (lab.balance.committed_usd, lab.balance.left_usd) == (Decimal(0), Decimal(0))
    clock.advance(3600)
    assert lab.balance.reserved_usd == 0
    reserved = [e.windows for e in log.events if e.kind == "reserved"]
    assert reserved == [(at("2026-11-23 00:00"),)] * 2 + [(at("2026-11-24 00:00"),)]


@pytest.mark.parametrize("end", ["commit", "overrun", "rollback", "late", "lose"])
def test_however_it_ends_todays_window_does_not_move(ledger: tbl.Ledger, clock: Clock, end: str) -> None:
    """What was reserved yesterday is yesterday's business.

    at        23:59
    reserve   $0.60
    at        00:01
    end       somehow
    """
    lab = ledger.budget("lab", limits=[tbl.Limit(usd=1, window="day"), tbl.Limit(usd=100)])
    clock.set("2026-11-23 23:59")
    held = lab.reserve_sync(usd="0.60", if_lost="count")
    clock.set("2026-11-24 00:01")
    if end == "late":
        clock.advance(3600)
    receipts = {"commit": "0.60", "late": "0.60", "overrun": "5"}
    (held.commit(usd=receipts[end]) if end in receipts else getattr(held, end)()).result()
    today = {(limit.window, int(limit.left * 100)) for limit in lab.balance.limits}
    assert today == {("day", 100), ("", {"overrun": 9500, "rollback": 10000}.get(end, 9940))}


def test_every_window_on_the_way_up_must_have_room(ledger: tbl.Ledger, clock: Clock) -> None:
    """A new day does not help a month that is full.

    limit     lab $2 per month, lab/study $1 per day
    commit    $1 on each of two days
    reserve   $1 on the third  refused by lab
    reserve   $1 on the first of December
    """
    ledger.budget("lab", usd=2, window="month")
    study = ledger.budget("lab/study", usd=1, window="day")
    for _ in range(2):
        study.record(usd=1).result()
        clock.advance(86_400)
    with pytest.raises(tbl.BudgetExceeded) as refused:
        study.reserve_sync(usd=1)
    assert (refused.value.budget, refused.value.resets) == ("lab", "2026-12-01 00:00 UTC")
    clock.set("2026-12-01 00:00")
    study.reserve_sync(usd=1)


def test_windows_are_what_they_were_when_the_ledger_is_opened_again(ledger: tbl.Ledger, clock: Clock, home: Home) -> None:
    """What was reserved yesterday still ends yesterday.

    at        23:59
    reserve   $0.60
    at        00:01
    close, open again
    reserve   $1
    """
    clock.set("2026-11-23 23:59")
    ledger.budget("lab", usd=1, window="day").reserve_sync(usd="0.60")
    clock.set("2026-11-24 00:01")
    lab = home.reopen().budget("lab")
    lab.reserve_sync(usd=1)
    clock.advance(3600)
    assert lab.balance.left_usd == 1
