"""Refusals: noted, but no flood."""

from __future__ import annotations

from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Home, Log
from tokenbudget_lab.events import from_detail


def refuse(budget: tbl.Budget, times: int = 1, **what: Any) -> None:
    """Ask for what does not fit."""
    for _ in range(times):
        with pytest.raises(tbl.BudgetExceeded):
            budget.reserve_sync(**what)


def noted(log: Log) -> list[tuple[str, str, str, int]]:
    """Budget asked, budget that refused, resource and count of each event."""
    details = [(e.budget, from_detail(e)) for e in log.events if e.kind == "refused"]
    return [(budget, detail["by"], detail["resource"], detail["count"]) for budget, detail in details]


def test_the_first_refusal_is_an_event_with_what_was_asked(ledger: tbl.Ledger, log: Log) -> None:
    lab = ledger.budget("lab", usd=1)
    refuse(lab, usd=2, tokens=50, model="m", tags={"arm": "b"})
    event = log.last("refused")
    assert (event.held_usd, event.held_tokens, event.requests, event.model, event.tags) == (
        2 * 10**12,
        50,
        1,
        "m",
        (("arm", "b"),),
    )
    assert from_detail(event) == {"by": "lab", "resource": "usd", "left": "1", "limit": "1", "count": 1}


def test_later_refusals_of_a_minute_are_one_event(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """Written when the minute is over.

    at        12:00:10, 1,000 refusals
    at        12:00:59, 1 refusal
    at        12:01:00
    """
    lab = ledger.budget("lab", tokens=1)
    clock.set("2026-11-23 12:00")
    clock.advance(10)
    refuse(lab, 1000, tokens=2)
    clock.advance(49)
    refuse(lab, tokens=2)
    assert noted(log) == [("lab", "lab", "tokens", 1)]
    clock.advance(1)
    assert lab.balance.left_tokens == 1
    assert noted(log) == [("lab", "lab", "tokens", 1), ("lab", "lab", "tokens", 1000)]
    assert from_detail(log.last("refused"))["minute"] == int(clock.now.timestamp() - 60) * 1_000_000


def test_each_minute_begins_anew(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """A refusal a minute is an event a minute.

    at        12:00, 12:01, 12:02
    """
    lab = ledger.budget("lab", tokens=1)
    for _ in range(3):
        refuse(lab, tokens=2)
        clock.advance(60)
    assert noted(log) == [("lab", "lab", "tokens", 1)] * 3


def test_each_budget_and_each_resource_is_counted_by_itself(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """Who asked, who refused, and what for.

    limit     lab 10 tokens, lab/a 5 tokens, lab/b $1
    refused   lab/a by lab/a and by lab, lab/b by lab/b, each three times
    """
    ledger.budget("lab", tokens=10)
    a, b = ledger.budget("lab/a", limits=[]), ledger.budget("lab/b", usd=1)
    for _ in range(3):
        refuse(a, tokens=11)
        refuse(b, tokens=11, usd=0)
        refuse(b, tokens=1, usd=2)
    clock.advance(60)
    assert a.balance.left_tokens == 10
    kinds = {("lab/a", "lab", "tokens"), ("lab/b", "lab", "tokens"), ("lab/b", "lab/b", "usd")}
    assert sorted(noted(log)) == sorted((*kind, count) for kind in kinds for count in (1, 2))


def test_what_was_only_counted_is_written_when_the_ledger_closes(
    ledger: tbl.Ledger, clock: Clock, log: Log, home: Home
) -> None:
    """Within its minute.

    at        12:00:00, 3 refusals
    close
    """
    lab = ledger.budget("lab", tokens=1)
    refuse(lab, 3, tokens=2)
    home.reopen()
    assert sum(count for *_, count in noted(log)) == 3


def test_other_refusals_are_no_events(ledger: tbl.Ledger, log: Log) -> None:
    """They are mistakes, not demand.

    reserve   without the resource that is limited
    reserve   in a closed budget
    """
    lab = ledger.budget("lab", tokens=1)
    with pytest.raises(tbl.AmountMissing):
        lab.reserve_sync(usd=1)
    lab.close()
    with pytest.raises(tbl.BudgetClosed):
        lab.reserve_sync(tokens=1)
    assert log.kinds == ["budget_set", "closed"]
