"""Reservations: what is granted, refused, repeated, and given back."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Home, Log
from tokenbudget_lab.commands import Extend, GetEntry, Lose, Reserve, Rollback
from tokenbudget_lab.stores.memory import MemoryStore

MINUTE = 60_000_000  # in microseconds, as commands say it


def a_reserve(
    ledger: tbl.Ledger, budget: str = "lab", *, usd: int | None = None, tokens: int | None = 300, key: str | None = None
) -> Reserve:
    return Reserve(ledger.new_id(), budget, usd, tokens, 1, 10 * MINUTE, "release", key)


# --- granted or refused ----------------------------------------------------------------------------------------------------


def test_a_reservation_holds_every_resource_on_the_whole_path(ledger: tbl.Ledger, log: Log) -> None:
    """One event says it all.

    limit     lab, lab/study: $1, 1000 tokens, 3 requests
    reserve   lab/study $0.30, 400 tokens, 2 requests
    """
    for name in ("lab", "lab/study"):
        ledger.budget(name, usd=1, tokens=1000, requests=3)
    held = ledger.budget("lab/study").reserve_sync(usd="0.30", tokens=400, requests=2)
    for balance in ledger.budgets():
        assert (balance.reserved_usd, balance.reserved_tokens, balance.reserved_requests) == (Decimal("0.3"), 400, 2)
        assert (balance.calls_in_flight, balance.committed_tokens) == (1, 0)
    event = log.last("reserved")
    assert (event.reservation, event.held_usd, event.held_tokens, event.requests) == (held.id, 3 * 10**11, 400, 2)


@pytest.mark.parametrize("resource", ["usd", "tokens", "requests"])
@pytest.mark.parametrize("tight", ["lab", "lab/study", "lab/study/run"])
def test_one_limit_that_does_not_hold_it_is_enough_to_refuse(ledger: tbl.Ledger, log: Log, tight: str, resource: str) -> None:
    """Nothing is held anywhere.

    limit     10 of everything in lab, lab/study, lab/study/run, but 1 of one resource in one of them
    reserve   2 of everything  refused
    """
    for name in ("lab", "lab/study", "lab/study/run"):
        ledger.budget(name, **{"usd": 10, "tokens": 10, "requests": 10, **({resource: 1} if name == tight else {})})  # type: ignore[arg-type] # keywords
    with pytest.raises(tbl.BudgetExceeded) as refused:
        ledger.budget("lab/study/run").reserve_sync(usd=2, tokens=2, requests=2)
    assert (refused.value.budget, refused.value.resource, refused.value.requested, refused.value.limit) == (
        tight,
        resource,
        2,
        1,
    )
    assert all(not (b.reserved_usd or b.reserved_tokens or b.reserved_requests) for b in ledger.budgets())
    assert "reserved" not in log.kinds


def test_the_last_millionth_of_a_millionth_of_a_dollar_can_be_reserved_and_not_one_more(ledger: tbl.Ledger) -> None:
    """Sums are exact.

    limit     $0.30
    reserve   $0.10, $0.10, $0.099999999999
    reserve   $0.000000000002  refused
    reserve   $0.000000000001
    """
    lab = ledger.budget("lab", usd="0.30")
    for usd in ("0.1", "0.1", "0.099999999999"):
        lab.reserve_sync(usd=usd)
    with pytest.raises(tbl.BudgetExceeded) as refused:
        lab.reserve_sync(usd="0.000000000002")
    assert refused.value.left == Decimal("0.000000000001")
    lab.reserve_sync(usd="0.000000000001")
    assert lab.balance.left_usd == 0


def test_a_refusal_says_all_its_numbers(ledger: tbl.Ledger, clock: Clock) -> None:
    """In attributes, and in one sentence.

    limit     lab $1 per day
    commit    lab/study $0.30
    reserve   lab/study $0.30, $0.30
    reserve   lab/study $0.30  refused
    """
    ledger.budget("lab", usd=1, window="day")
    study = ledger.budget("lab/study", usd=5)
    study.record(usd="0.30").result()
    study.reserve_sync(usd="0.30")
    study.reserve_sync(usd="0.30")
    with pytest.raises(tbl.BudgetExceeded) as refused:
        study.reserve_sync(usd="0.30")
    e = refused.value
    assert (e.budget, e.asked_by, e.resource, e.calls_in_flight, e.resets) == (
        "lab",
        "lab/study",
        "usd",
        2,
        "2026-11-24 00:00 UTC",
    )
    assert [e.requested, e.left, e.limit, e.reserved] == [Decimal("0.3"), Decimal("0.1"), Decimal(1), Decimal("0.6")]
    assert str(e) == (
        "lab/study: $0.30 requested, $0.10 of $1.00 left in lab ($0.60 held by 2 calls in flight); "
        "resets 2026-11-24 00:00 UTC; nothing was sent. Raise the limit with set_limit(...) or ask for less."
    )


def test_a_resource_that_is_limited_must_be_given(ledger: tbl.Ledger, log: Log) -> None:
    """Nothing unknown counts as zero; a zero that is said does.

    limit     lab tokens, lab/study $
    reserve   lab/study $1  refused: no tokens
    reserve   lab/study $1, 0 tokens
    """
    ledger.budget("lab", tokens=10)
    study = ledger.budget("lab/study", usd=5)
    with pytest.raises(tbl.AmountMissing) as missing:
        study.reserve_sync(usd=1)
    assert (missing.value.budget, missing.value.resource) == ("lab", "tokens")
    with pytest.raises(tbl.AmountMissing) as missing:
        study.reserve_sync(tokens=1)
    assert (missing.value.budget, missing.value.resource) == ("lab/study", "usd")
    study.reserve_sync(usd=1, tokens=0)
    assert log.kinds == ["budget_set", "budget_set", "reserved"]


def test_a_reserve_is_one_request_where_nothing_else_is_said(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", requests=2)
    lab.reserve_sync(tokens=5)
    assert lab.balance.left_requests == 1


def test_a_models_price_makes_the_hold(ledger: tbl.Ledger) -> None:
    """Counted as the most that the call can cost.

    price     $2 in, $10 out, per million tokens
    reserve   1,000,000 in, 100,000 out
    """
    ledger.set_price("own-model", input_usd_per_mtok=2, output_usd_per_mtok=10)
    lab = ledger.budget("lab", usd=5, tokens=2_000_000)
    held = lab.reserve_sync(model="own-model", input_tokens=1_000_000, max_output_tokens=100_000)
    assert (held.usd, held.tokens) == (Decimal(3), 1_100_000)


def test_a_model_without_a_price_is_refused_where_dollars_are_limited(ledger: tbl.Ledger, log: Log) -> None:
    """And only there.

    limit     lab $1, tokens 1000 tokens
    reserve   lab a model nobody knows  refused
    reserve   tokens a model nobody knows
    """
    with pytest.raises(tbl.PriceUnknown) as unknown:
        ledger.budget("lab", usd=1).reserve_sync(model="no-such-model", input_tokens=10, max_output_tokens=10)
    assert unknown.value.model == "no-such-model"
    ledger.budget("tokens", tokens=1000).reserve_sync(model="no-such-model", input_tokens=10, max_output_tokens=10)
    assert log.kinds == ["budget_set", "budget_set", "reserved"]


def test_calls_of_unknown_cost_refuse_dollars_until_they_are_adjusted(ledger: tbl.Ledger) -> None:
    """A limit in dollars cannot be kept while nobody knows what was spent.

    limit     none
    record    100 tokens, no price
    set_limit $1
    reserve   $0.50  refused
    adjust    $0.20
    reserve   $0.50
    """
    lab = ledger.budget("lab", limits=[])
    entry = lab.record(tokens=100).result()
    assert isinstance(entry, tbl.Counted)
    lab.set_limit(usd=1)
    with pytest.raises(tbl.PriceUnknown):
        lab.reserve_sync(usd="0.50")
    lab.adjust(entry.reservation, usd="0.20").result()
    lab.reserve_sync(usd="0.50")
    assert lab.balance.left_usd == Decimal("0.3")


def test_reserving_in_a_budget_that_is_not_there_or_closed_is_refused(ledger: tbl.Ledger, log: Log) -> None:
    with pytest.raises(tbl.UnknownBudget):
        ledger.ask(a_reserve(ledger))
    ledger.budget("lab", tokens=1000).close()
    with pytest.raises(tbl.BudgetClosed):
        ledger.ask(a_reserve(ledger))
    assert log.kinds == ["budget_set", "closed"]


# --- repeated --------------------------------------------------------------------------------------------------------------


def test_the_same_reserve_sent_again_is_answered_again_and_held_once(ledger: tbl.Ledger, log: Log) -> None:
    """With the state that it is in by now.

    reserve   300
    reserve   300  the same command
    commit    100
    reserve   300  the same command
    """
    lab = ledger.budget("lab", tokens=1000)
    command = a_reserve(ledger)
    first = ledger.ask(command)
    assert ledger.ask(command) == first
    assert lab.balance.reserved_tokens == 300
    tbl.Reservation(ledger, command, first).commit(tokens=100).result()
    assert ledger.ask(command) == (*first[:-1], "committed")
    assert log.kinds == ["budget_set", "reserved", "committed"]


def test_a_refusal_is_decided_anew(ledger: tbl.Ledger) -> None:
    """Sent again it is granted, when there is room by then.

    limit     1000 tokens
    reserve   a  800
    reserve   b  300  refused
    rollback  a
    reserve   b  300  the same command
    """
    lab = ledger.budget("lab", tokens=1000)
    a, b = lab.reserve_sync(tokens=800), a_reserve(ledger)
    with pytest.raises(tbl.BudgetExceeded):
        ledger.ask(b)
    a.rollback().result()
    ledger.ask(b)
    assert lab.balance.reserved_tokens == 300


@pytest.mark.parametrize("other", [{"tokens": 301}, {"usd": 1}, {"requests": 2}, {"budget": "lap"}])
def test_the_same_id_with_another_content_is_a_conflict(ledger: tbl.Ledger, log: Log, other: dict[str, Any]) -> None:
    """One id, one content.

    reserve   lab 300
    reserve   something else, the same id  refused
    """
    ledger.budget("lab", tokens=1000)
    ledger.budget("lap", tokens=1000)
    command = a_reserve(ledger)
    ledger.ask(command)
    with pytest.raises(tbl.IdConflict) as conflict:
        ledger.ask(command._replace(**other))
    assert (conflict.value.id, log.kinds) == (command.id, ["budget_set", "budget_set", "reserved"])


def test_the_same_key_with_another_amount_is_a_conflict(ledger: tbl.Ledger, log: Log) -> None:
    """In the same budget; a key of another budget is another key.

    reserve   lab 300  key=row-7
    reserve   lab 301  key=row-7  refused
    reserve   lap 301  key=row-7
    """
    lab, lap = ledger.budget("lab", tokens=1000), ledger.budget("lap", tokens=1000)
    lab.reserve_sync(tokens=300, key="row-7")
    with pytest.raises(tbl.IdConflict) as conflict:
        lab.reserve_sync(tokens=301, key="row-7")
    assert conflict.value.id == "row-7"
    lap.reserve_sync(tokens=301, key="row-7")
    assert log.kinds == ["budget_set", "budget_set", "reserved", "reserved"]


def test_a_key_remembers_how_its_call_ended(ledger: tbl.Ledger, log: Log) -> None:
    """A cell that runs again after its call was paid does not pay twice.

    reserve   300  key=row-7
    commit    100
    reserve   300  key=row-7
    commit    100
    """
    lab = ledger.budget("lab", tokens=1000)
    for _ in range(2):
        with lab.reserve(tokens=300, key="row-7") as call:
            call.commit(tokens=100)
    assert (call.state, lab.balance.committed_tokens) == ("committed", 100)
    assert log.kinds == ["budget_set", "reserved", "committed"]


# --- given back ------------------------------------------------------------------------------------------------------------


def test_a_rollback_is_repeated_without_harm(ledger: tbl.Ledger, log: Log) -> None:
    """Whoever sends it.

    reserve   300
    rollback
    rollback  the same command
    rollback  another command
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=300)
    command = Rollback(ledger.new_id(), held.id)
    assert ledger.ask(command) == ledger.ask(command) == (held.id, "rolled_back")
    assert held.rollback().result() == "rolled_back"
    assert (lab.balance.left_tokens, log.kinds) == (1000, ["budget_set", "reserved", "rolled_back"])


def test_a_rollback_after_the_release_does_nothing(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """It was given back already.

    reserve   300 for 60 s
    after     60 s
    rollback
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=300, timeout=60)
    clock.advance(60)
    assert held.rollback().result() == "released"
    assert (lab.balance.left_tokens, log.kinds) == (1000, ["budget_set", "reserved", "expired"])


@pytest.mark.parametrize("state", ["committed", "counted"])
def test_what_was_counted_cannot_be_rolled_back(ledger: tbl.Ledger, log: Log, state: str) -> None:
    """The error tells what was counted first.

    reserve   300
    commit    300, or lost
    rollback  refused
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=300, if_lost="count")
    (held.commit(tokens=300) if state == "committed" else held.lose()).result()
    before = log.kinds
    with pytest.raises(tbl.ReservationClosed) as closed:
        held.rollback().result()
    assert (closed.value.state, closed.value.first, closed.value.given) == (state, "300 tokens, 1 requests", "a rollback")
    assert (lab.balance.committed_tokens, log.kinds) == (300, before)


def test_an_expiry_is_an_event_and_never_comes_twice(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """Released or counted, by what was said when it was reserved.

    reserve   a  100, release
    reserve   b  200, count
    after     60 s, and again
    """
    lab = ledger.budget("lab", tokens=1000)
    lab.reserve_sync(tokens=100, timeout=60, if_lost="release")
    lab.reserve_sync(tokens=200, timeout=60, if_lost="count")
    for _ in range(2):
        clock.advance(60)
        assert (lab.balance.committed_tokens, lab.balance.reserved_tokens, lab.balance.calls_in_flight) == (200, 0, 0)
    expired = [(e.tokens, e.basis) for e in log.events if e.kind == "expired"]
    assert expired == [(None, None), (200, "unknown")]


def test_holds_of_bare_amounts_are_released_and_those_of_a_model_counted(ledger: tbl.Ledger, log: Log) -> None:
    """Where a model is known, the call may have been billed.

    reserve   a  100 tokens
    reserve   b  model, 50 in, 50 out
    """
    lab = ledger.budget("lab", tokens=1000)
    states = []
    for what in ({"tokens": 100}, {"model": "m", "input_tokens": 50, "max_output_tokens": 50}):
        held = lab.reserve_sync(**what)
        held.lose().result()
        states.append(held.state)
    assert states == ["released", "counted"]


def test_a_loss_is_told_once(ledger: tbl.Ledger, log: Log) -> None:
    """The same command again does nothing.

    reserve   300, count
    lose
    lose      the same command
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=300, if_lost="count")
    command = Lose(ledger.new_id(), held.id)
    assert ledger.ask(command) == ledger.ask(command) == (held.id, "counted")
    assert (lab.balance.committed_tokens, log.kinds) == (300, ["budget_set", "reserved", "expired"])


def test_time_that_goes_back_revives_nothing(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """An event's time never goes backwards.

    reserve   a  600 for 60 s
    after     60 s
    reserve   b  600 for 60 s
    back      an hour
    reserve   c  600  refused
    after     an hour and 60 s
    reserve   c  600
    """
    lab = ledger.budget("lab", tokens=1000)
    a = lab.reserve_sync(tokens=600, timeout=60)
    clock.advance(60)
    b = lab.reserve_sync(tokens=600, timeout=60)
    clock.advance(-3600)
    with pytest.raises(tbl.BudgetExceeded):
        lab.reserve_sync(tokens=600)
    assert (a.state, b.state) == ("released", "open")
    clock.advance(3600 + 60)
    lab.reserve_sync(tokens=600)
    stamps = [e.ts for e in log.events]
    assert stamps == sorted(stamps)


# --- extended --------------------------------------------------------------------------------------------------------------


def test_an_extension_moves_the_expiry_and_nothing_else(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """It holds what it held, where it held it.

    reserve   300 for 60 s
    after     50 s
    extend    60 s
    after     59 s  still held
    after     1 s   released
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=300, timeout=60)
    clock.advance(50)
    until = held.extend_sync(60)
    assert until is not None
    assert (until - clock.now).total_seconds() == 60
    assert held.expires == until
    clock.advance(59)
    assert (held.state, lab.balance.reserved_tokens) == ("open", 300)
    clock.advance(1)
    assert (held.state, lab.balance.reserved_tokens) == ("released", 0)
    assert log.kinds == ["budget_set", "reserved", "extended", "expired"]


def test_an_expiry_never_comes_nearer(ledger: tbl.Ledger, log: Log) -> None:
    held = ledger.budget("lab", tokens=1000).reserve_sync(tokens=300, timeout=3600)
    before = held.expires
    assert held.extend_sync(60) == before
    assert log.kinds == ["budget_set", "reserved"]


def test_an_extension_can_be_awaited(ledger: tbl.Ledger, log: Log) -> None:
    """And does nothing until it is.

    extend    3600 s, not awaited
    extend    3600 s, awaited
    """
    held = ledger.budget("lab", tokens=1000).reserve_sync(tokens=300, timeout=60)
    held.extend(3600)
    before = held.expires

    async def story() -> None:
        await held.extend(3600)

    assert log.kinds == ["budget_set", "reserved"]
    asyncio.run(story())
    assert before is not None
    assert held.expires is not None
    assert (held.expires - before).total_seconds() == pytest.approx(3540, abs=60)


def test_the_same_extension_sent_again_gives_the_first_expiry(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """Later, and after it ended too.

    extend    100 s
    after     10 s
    extend    100 s  the same command
    rollback
    extend    100 s  the same command
    """
    held = ledger.budget("lab", tokens=1000).reserve_sync(tokens=300, timeout=60)
    command = Extend(ledger.new_id(), held.id, 100_000_000)
    first = ledger.ask(command)[3]
    clock.advance(10)
    assert ledger.ask(command)[3] == first
    held.rollback().result()
    assert ledger.ask(command)[3] == first
    assert log.kinds == ["budget_set", "reserved", "extended", "rolled_back"]
    with pytest.raises(tbl.IdConflict):
        ledger.ask(command._replace(timeout=200_000_000))


@pytest.mark.parametrize("end", ["commit", "rollback", "expire"])
def test_what_has_ended_is_not_extended(ledger: tbl.Ledger, clock: Clock, log: Log, end: str) -> None:
    held = ledger.budget("lab", tokens=1000).reserve_sync(tokens=300, timeout=60)
    if end == "expire":
        clock.advance(60)
    else:
        (held.commit(tokens=1) if end == "commit" else held.rollback()).result()
    with pytest.raises(tbl.ReservationClosed):
        held.extend_sync(3600)
    assert "extended" not in log.kinds


# --- whose it is -------------------------------------------------------------------------------------------------------------


def test_a_reservation_of_another_ledger_is_unknown_here(ledger: tbl.Ledger, log: Log) -> None:
    """Whatever is asked of it.

    reserve   300  in another ledger
    """
    ledger.budget("lab", tokens=1000)
    with tbl.Ledger(store=MemoryStore()) as elsewhere:
        foreign = elsewhere.budget("lab", tokens=1000).reserve_sync(tokens=300)
        here = tbl.Reservation(ledger, a_reserve(ledger), (foreign.id, 1, 0, None, "elsewhere"))
        for ask in (
            lambda: here.commit(tokens=1).result(),
            lambda: here.rollback().result(),
            lambda: here.lose().result(),
            lambda: here.extend_sync(60),
            lambda: here.state,
            lambda: ledger.budget("lab").adjust(foreign.id, tokens=1).result(),
            lambda: ledger.ask(GetEntry(ledger.new_id(), foreign.id)),
        ):
            with pytest.raises(tbl.UnknownReservation) as unknown:
                ask()
            assert unknown.value.reservation == foreign.id
    assert log.kinds == ["budget_set"]


def test_an_open_reservation_is_still_held_when_the_ledger_is_opened_again(ledger: tbl.Ledger, home: Home) -> None:
    """And its key still finds it.

    reserve   300  key=row-7
    close, open again
    reserve   300  key=row-7
    """
    held = ledger.budget("lab", tokens=1000).reserve_sync(tokens=300, key="row-7", timeout=3600)
    again = home.reopen().budget("lab").reserve_sync(tokens=300, key="row-7", timeout=3600)
    assert (again.id, again.expires) == (held.id, held.expires)
    assert home.ledger.budget("lab").balance.reserved_tokens == 300
