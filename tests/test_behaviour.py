"""What a ledger promises, one story for each promise; the other test files have the details, by noun."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Home, Log, in_line


def test_what_was_used_counts_and_not_what_was_held(ledger: tbl.Ledger, log: Log) -> None:
    """A commit ends the reservation and counts its use.

    limit     $1.00
    reserve   $0.30
    commit    $0.12
    """
    lab = ledger.budget("lab", usd=1)
    with lab.reserve(usd="0.30") as call:
        assert (lab.balance.committed_usd, lab.balance.left_usd) == (Decimal(0), Decimal("0.7"))
        call.commit(usd="0.12")
    assert (lab.balance.committed_usd, lab.balance.left_usd) == (Decimal("0.12"), Decimal("0.88"))
    assert log.kinds == ["budget_set", "reserved", "committed"]


def test_twenty_parallel_calls_of_thirty_cents_fit_three_times_into_a_dollar(ledger: tbl.Ledger, log: Log) -> None:
    """Whoever comes first is granted; the others are refused, and nobody overspends.

    limit     $1.00
    reserve   $0.30  20 times, from 20 threads
    """
    lab = ledger.budget("lab", usd=1)

    def take(_: int) -> bool:
        try:
            lab.reserve_sync(usd="0.30")
        except tbl.BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        granted = list(pool.map(take, range(20)))
    assert (granted.count(True), lab.balance.reserved_usd) == (3, Decimal("0.9"))
    assert log.kinds.count("reserved") == 3


def test_twenty_tasks_of_one_loop_fit_three_times_too(ledger: tbl.Ledger) -> None:
    """The same from async code.

    limit     $1.00
    reserve   $0.30  20 times, from 20 tasks
    """
    lab = ledger.budget("lab", usd=1)

    async def take() -> bool:
        try:
            await lab.reserve(usd="0.30")
        except tbl.BudgetExceeded:
            return False
        return True

    async def all_at_once() -> list[bool]:
        return await asyncio.gather(*(take() for _ in range(20)))

    assert asyncio.run(all_at_once()).count(True) == 3
    assert lab.balance.left_usd == Decimal("0.1")


def test_a_charge_counts_in_the_budget_and_in_all_its_ancestors(ledger: tbl.Ledger) -> None:
    """One commit, three totals.

    limit     lab $10, lab/study $5, lab/study/run $2
    commit    lab/study/run $1
    """
    for name, usd in (("lab", 10), ("lab/study", 5), ("lab/study/run", 2), ("lab/other", 2)):
        ledger.budget(name, usd=usd)
    with ledger.budget("lab/study/run").reserve(usd=1) as call:
        call.commit(usd=1)
    assert {b.budget: int(b.committed_usd) for b in ledger.budgets()} == {
        "lab": 1,
        "lab/other": 0,
        "lab/study": 1,
        "lab/study/run": 1,
    }


def test_what_an_ancestor_refuses_is_held_nowhere(ledger: tbl.Ledger, log: Log) -> None:
    """All or nothing.

    limit     lab 100 tokens, lab/study 1000 tokens
    reserve   lab/study 101  refused
    """
    ledger.budget("lab", tokens=100)
    study = ledger.budget("lab/study", tokens=1000)
    with pytest.raises(tbl.BudgetExceeded) as refused:
        study.reserve_sync(tokens=101)
    assert (refused.value.budget, refused.value.asked_by, refused.value.resource) == ("lab", "lab/study", "tokens")
    assert [b.reserved_tokens for b in ledger.budgets()] == [0, 0]
    assert log.kinds == ["budget_set", "budget_set", "refused"]


def test_rolled_back_tokens_can_be_reserved_again(ledger: tbl.Ledger) -> None:
    """A rollback gives the whole reservation back.

    limit     1000 tokens
    reserve   a  700
    reserve   b  400  refused
    rollback  a
    reserve   b  400
    """
    lab = ledger.budget("lab", tokens=1000)
    a = lab.reserve_sync(tokens=700)
    with pytest.raises(tbl.BudgetExceeded):
        lab.reserve_sync(tokens=400)
    a.rollback().result()
    lab.reserve_sync(tokens=400)
    assert lab.balance.reserved_tokens == 400


def test_a_block_that_is_left_without_commit_gives_its_hold_back(ledger: tbl.Ledger, log: Log) -> None:
    """The call was never made.

    limit     1000 tokens
    reserve   700, left normally
    """
    lab = ledger.budget("lab", tokens=1000)
    with lab.reserve(tokens=700):
        pass
    assert (lab.balance.left_tokens, log.kinds[-1]) == (1000, "rolled_back")


def test_a_hold_that_nobody_ends_is_released_when_its_time_runs_out(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """Bare amounts are given back.

    limit     1000 tokens
    reserve   700 for 60 s
    after     60 s
    reserve   700
    """
    lab = ledger.budget("lab", tokens=1000)
    lost = lab.reserve_sync(tokens=700, timeout=60)
    clock.advance(59.999)
    with pytest.raises(tbl.BudgetExceeded):
        lab.reserve_sync(tokens=700)
    clock.advance(0.001)
    lab.reserve_sync(tokens=700)
    assert lost.state == "released"
    assert log.kinds == ["budget_set", "reserved", "refused", "expired", "reserved"]


def test_a_call_whose_fate_is_unknown_is_not_free(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """Where a model is known the call may have been billed: its hold is counted, and said to be unknown.

    limit     1000 tokens
    reserve   model, 600 in, 100 out, for 60 s
    after     60 s
    """
    lab = ledger.budget("lab", tokens=1000)
    lost = lab.reserve_sync(model="claude-sonnet-5-5", input_tokens=600, max_output_tokens=100, timeout=60)
    clock.advance(60)
    assert (lab.balance.committed_tokens, lab.balance.reserved_tokens) == (700, 0)
    assert (lost.state, log.last("expired").basis) == ("counted", "unknown")


def test_an_overrun_is_recorded_and_refuses_what_comes_after(ledger: tbl.Ledger) -> None:
    """The money is gone, so the ledger says so.

    limit     1000 tokens
    reserve   500
    commit    1200
    reserve   1  refused
    """
    lab = ledger.budget("lab", tokens=1000)
    with lab.reserve(tokens=500) as call:
        told = call.commit(tokens=1200).result()
    assert isinstance(told, tbl.Counted)
    assert told.overrun
    with pytest.raises(tbl.BudgetExceeded) as refused:
        lab.reserve_sync(tokens=1)
    assert refused.value.left == -200


def test_spend_without_a_reservation_is_recorded_whatever_the_limit(ledger: tbl.Ledger) -> None:
    """The money is gone, so no limit refuses it.

    limit     $1.00
    record    $1.50
    """
    lab = ledger.budget("lab", usd=1)
    lab.record(usd="1.50").result()
    assert lab.balance.left_usd == Decimal("-0.5")


def test_an_amount_is_corrected_to_what_the_invoice_says(ledger: tbl.Ledger) -> None:
    """Adjust takes the right amount, not the difference.

    commit    $0.50
    adjust    $0.40
    """
    lab = ledger.budget("lab", usd=1)
    with lab.reserve(usd="0.50") as call:
        call.commit(usd="0.50")
    lab.adjust(call, usd="0.40", reason="invoice of November").result()
    assert lab.balance.committed_usd == Decimal("0.4")


def test_a_limit_changes_only_on_purpose(ledger: tbl.Ledger) -> None:
    """Running the cell again gets the budget; another limit in it raises.

    limit     $1.00
    limit     $1.00  the same cell again
    limit     $2.00  refused
    set_limit $2.00
    """
    assert ledger.budget("lab", usd=1) == ledger.budget("lab", usd=1)
    with pytest.raises(tbl.BudgetDiffers):
        ledger.budget("lab", usd=2)
    assert ledger.budget("lab").set_limit(usd=2).limit_usd == 2


def test_a_closed_budget_lets_calls_in_flight_end_and_takes_no_others(ledger: tbl.Ledger) -> None:
    """Closing is for what comes after it.

    reserve   500
    close
    reserve   1    refused
    commit    400
    """
    lab = ledger.budget("lab", tokens=1000)
    call = lab.reserve_sync(tokens=500)
    lab.close()
    with pytest.raises(tbl.BudgetClosed):
        lab.reserve_sync(tokens=1)
    call.commit(tokens=400).result()
    assert (lab.balance.committed_tokens, lab.balance.closed) == (400, True)


def test_the_same_key_gets_the_same_reservation(ledger: tbl.Ledger, log: Log) -> None:
    """A cell that runs twice holds once.

    reserve   $0.30  key=row-7
    reserve   $0.30  key=row-7
    """
    lab = ledger.budget("lab", usd=1)
    first, again = lab.reserve_sync(usd="0.30", key="row-7"), lab.reserve_sync(usd="0.30", key="row-7")
    assert (again.id, lab.balance.reserved_usd) == (first.id, Decimal("0.3"))
    assert log.kinds == ["budget_set", "reserved"]


def test_who_waits_is_granted_when_there_is_room(ledger: tbl.Ledger) -> None:
    """Waiting holds nothing, until it is granted.

    limit     1000 tokens
    reserve   a  700
    reserve   b  700  waits
    commit    a  100
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> tbl.Reservation:
        a = await lab.reserve(tokens=700)
        b = await in_line(lab, tokens=700, wait=60)
        await a.commit(tokens=100)
        granted: tbl.Reservation = await b
        return granted

    assert asyncio.run(story()).tokens == 700
    assert lab.balance.reserved_tokens == 700


def test_a_window_gives_its_limit_back_when_it_turns(ledger: tbl.Ledger, clock: Clock) -> None:
    """At midnight, where the lab is.

    limit     $20 per day, Europe/Berlin
    commit    $20 at 23:59 in Berlin
    reserve   $1  refused
    at        00:00 in Berlin
    reserve   $1
    """
    clock.set("2026-11-23 22:59")
    lab = ledger.budget("lab", usd=20, window="day", tz="Europe/Berlin")
    lab.record(usd=20).result()
    with pytest.raises(tbl.BudgetExceeded) as refused:
        lab.reserve_sync(usd=1)
    assert refused.value.resets == "2026-11-23 23:00 UTC"
    clock.set("2026-11-23 23:00")
    assert lab.reserve_sync(usd=1).usd == 1


def test_who_looks_finds_her_own_calls(ledger: tbl.Ledger) -> None:
    """What was handed in before stands in the events that are read, though nobody has waited for its receipt.

    reserve   $0.001  300 times
    commit    $0.001  300 times, without looking
    read      300 commits
    """
    lab = ledger.budget("lab", usd=1)
    calls = [lab.reserve_sync(usd="0.001") for _ in range(300)]
    receipts = [call.commit(usd="0.001") for call in calls]
    kinds = ledger.desk.arrow(["kind"]).read_all()["kind"].to_pylist()
    assert kinds.count("committed") == 300
    assert ledger.calls().filter(state="open").collect().is_empty()
    assert {receipt.result().usd for receipt in receipts} == {Decimal("0.001")}


def test_what_was_acknowledged_is_there_when_the_ledger_is_opened_again(ledger: tbl.Ledger, home: Home) -> None:
    """Replaying the events gives the balances that decisions were made from.

    limit     $1.00
    commit    $0.25
    reserve   $0.30
    close, open again
    """
    lab = ledger.budget("lab", usd=1)
    with lab.reserve(usd="0.50") as call:
        call.commit(usd="0.25")
    lab.reserve_sync(usd="0.30")
    before = ledger.verify().digest
    again = home.reopen()
    assert again.verify().digest == before
    assert repr(again.budget("lab")) == "Budget(lab: $0.25 committed, $0.30 reserved · $0.45 of $1.00 left · 1 in flight)"
