"""Commit: what a call used, once, whole or in parts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Log
from tokenbudget_lab.commands import Commit, Reserve
from tokenbudget_lab.events import from_detail


def counted(receipt: tbl.Receipt[tbl.Counted]) -> tbl.Counted:
    told = receipt.result()
    assert isinstance(told, tbl.Counted)
    return told


def a_commit(
    ledger: tbl.Ledger, held: tbl.Reservation, tokens: int, *, part: str | None = None, usd: int | None = None
) -> Commit:
    return Commit(ledger.new_id(), held.id, usd, tokens, 1, "measured", part=part)


def stands(budget: tbl.Budget) -> str:
    """Tokens, as `committed + reserved, calls in flight`."""
    balance = budget.balance
    return f"{balance.committed_tokens} + {balance.reserved_tokens}, {balance.calls_in_flight} in flight"


# --- once ------------------------------------------------------------------------------------------------------------------


def test_a_commit_moves_its_use_and_frees_the_rest_on_the_whole_path(ledger: tbl.Ledger, log: Log) -> None:
    """An event with all that is known of the call.

    reserve   lab/study 1000 tokens
    commit    600 in, of which 100 from a cache, and 50 out
    """
    ledger.budget("lab", tokens=5000)
    study = ledger.budget("lab/study", tokens=5000)
    held = study.reserve_sync(tokens=1000)
    told = counted(held.commit(tbl.Usage(600, 50, cache_read_tokens=100), response_id="msg_1"))
    assert (told.reservation, told.tokens, told.requests, told.basis, told.overrun, told.late) == (
        held.id,
        650,
        1,
        "measured",
        False,
        False,
    )
    assert [stands(ledger.budget(name)) for name in ("lab", "lab/study")] == ["650 + 0, 0 in flight"] * 2
    event = log.last("committed")
    assert (event.reservation, event.input_tokens, event.cache_read_tokens, event.output_tokens) == (held.id, 600, 100, 50)
    assert (event.tokens, event.response_id, event.budget) == (650, "msg_1", "lab/study")


def test_the_same_amount_again_is_the_first_commit(ledger: tbl.Ledger, log: Log) -> None:
    """Under its own id and under any other.

    reserve   1000
    commit    650
    commit    650  the same command
    commit    650  another command
    """
    lab = ledger.budget("lab", tokens=5000)
    held = lab.reserve_sync(tokens=1000)
    command = a_commit(ledger, held, 650)
    first = ledger.ask(command)
    assert ledger.ask(command) == first
    assert ledger.ask(a_commit(ledger, held, 650)) == first
    assert (stands(lab), log.kinds) == ("650 + 0, 0 in flight", ["budget_set", "reserved", "committed"])


def test_another_amount_is_refused_and_both_are_told(ledger: tbl.Ledger, log: Log) -> None:
    """To correct it there is adjust.

    reserve   1000
    commit    650
    commit    700  refused
    """
    lab = ledger.budget("lab", tokens=5000)
    held = lab.reserve_sync(tokens=1000)
    held.commit(tokens=650).result()
    with pytest.raises(tbl.ReservationClosed) as closed:
        held.commit(tokens=700).result()
    e = closed.value
    assert (e.reservation, e.state, e.first, e.given) == (
        held.id,
        "committed",
        "650 tokens, 1 requests",
        "700 tokens, 1 requests",
    )
    assert (stands(lab), log.kinds) == ("650 + 0, 0 in flight", ["budget_set", "reserved", "committed"])


def test_what_was_rolled_back_is_not_committed(ledger: tbl.Ledger, log: Log) -> None:
    """It said that the call was never sent.

    reserve   1000
    rollback
    commit    650  refused
    """
    lab = ledger.budget("lab", tokens=5000)
    held = lab.reserve_sync(tokens=1000)
    held.rollback().result()
    with pytest.raises(tbl.ReservationClosed) as closed:
        held.commit(tokens=650).result()
    assert (closed.value.state, stands(lab)) == ("rolled_back", "0 + 0, 0 in flight")
    assert log.kinds == ["budget_set", "reserved", "rolled_back"]


@pytest.mark.parametrize(
    ("held", "used", "overrun"),
    [
        ({"tokens": 100}, {"tokens": 101}, True),
        ({"tokens": 100}, {"tokens": 100}, False),
        ({"usd": "0.1"}, {"usd": "0.100000000001"}, True),
        ({"usd": "0.1"}, {"usd": "0.1"}, False),
        ({"tokens": 100, "requests": 2}, {"tokens": 100, "requests": 3}, True),
    ],
)
def test_more_than_the_hold_is_an_overrun(
    ledger: tbl.Ledger,
    log: Log,
    held: dict[str, Any],
    used: dict[str, Any],
    overrun: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Recorded, never refused, and said on the event."""
    reservation = ledger.budget("lab", limits=[]).reserve_sync(**held)
    assert counted(reservation.commit(**used)).overrun is overrun
    assert from_detail(log.last("committed")).get("overrun", False) is overrun


# --- late ------------------------------------------------------------------------------------------------------------------


def test_a_commit_after_the_release_counts_although_the_room_was_given_away(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """The ledger never hides money that is gone.

    limit     1000 tokens
    reserve   a  800 for 60 s, release
    after     60 s
    reserve   b  800
    commit    a  700  late
    reserve   c  1    refused
    """
    lab = ledger.budget("lab", tokens=1000)
    a = lab.reserve_sync(tokens=800, timeout=60)
    clock.advance(60)
    lab.reserve_sync(tokens=800)
    told = counted(a.commit(tokens=700))
    assert (told.late, told.overrun, stands(lab)) == (True, False, "700 + 800, 1 in flight")
    assert from_detail(log.last("committed"))["late"] is True
    with pytest.raises(tbl.BudgetExceeded) as refused:
        lab.reserve_sync(tokens=1)
    assert refused.value.left == -500


def test_a_commit_after_the_expiry_replaces_what_was_counted_for_it(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """What is known takes the place of what was feared.

    reserve   800 for 60 s, count
    after     60 s
    commit    300  late
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=800, timeout=60, if_lost="count")
    clock.advance(60)
    assert stands(lab) == "800 + 0, 0 in flight"
    told = counted(held.commit(tokens=300))
    assert (told.late, told.basis, stands(lab)) == (True, "measured", "300 + 0, 0 in flight")
    assert log.kinds == ["budget_set", "reserved", "expired", "committed"]


def test_a_late_commit_is_repeated_without_harm(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """It ends once, however late.

    reserve   800 for 60 s, count
    after     60 s
    commit    300, 300
    commit    200  refused
    rollback  refused
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=800, timeout=60, if_lost="count")
    clock.advance(60)
    assert counted(held.commit(tokens=300)) == counted(held.commit(tokens=300))
    for again in (held.commit(tokens=200), held.rollback()):
        with pytest.raises(tbl.ReservationClosed):
            again.result()
    assert (stands(lab), log.kinds.count("committed")) == ("300 + 0, 0 in flight", 1)


def test_a_late_commit_replaces_a_correction_of_what_was_counted(ledger: tbl.Ledger, clock: Clock) -> None:
    """Whatever stands for the call by then.

    reserve   800 for 60 s, count
    after     60 s
    adjust    500
    commit    300  late
    adjust    200
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=800, timeout=60, if_lost="count")
    clock.advance(60)
    lab.adjust(held, tokens=500).result()
    held.commit(tokens=300).result()
    assert stands(lab) == "300 + 0, 0 in flight"
    lab.adjust(held, tokens=200).result()
    assert stands(lab) == "200 + 0, 0 in flight"


# --- what is not known -----------------------------------------------------------------------------------------------------


def test_a_resource_that_is_not_told_counts_as_it_was_held_and_is_unknown(ledger: tbl.Ledger) -> None:
    """Nothing is counted as zero because it was not known.

    reserve   $0.50, 1000 tokens
    commit    300 tokens
    """
    lab = ledger.budget("lab", usd=5, tokens=5000)
    told = counted(lab.reserve_sync(usd="0.50", tokens=1000).commit(tokens=300))
    assert (told.usd, told.tokens, told.requests, told.basis) == (Decimal("0.5"), 300, 1, "unknown")


def test_a_models_price_makes_the_cost(ledger: tbl.Ledger, log: Log) -> None:
    """From what was used, not from what was held.

    price     $2 in, $10 out, per million tokens
    reserve   1,000,000 in, 100,000 out
    commit    500,000 in, 20,000 out
    """
    ledger.set_price("own-model", input_usd_per_mtok=2, output_usd_per_mtok=10)
    lab = ledger.budget("lab", usd=5)
    held = lab.reserve_sync(model="own-model", input_tokens=1_000_000, max_output_tokens=100_000)
    told = counted(held.commit(tbl.Usage(500_000, 20_000)))
    assert (told.usd, told.basis) == (Decimal("1.2"), "measured")
    assert "prices" in from_detail(log.last("committed"))


def test_a_commit_without_a_price_counts_the_dollars_that_were_held(ledger: tbl.Ledger) -> None:
    """They are said to be unknown.

    reserve   a model without a price, $0.40 by hand
    commit    100 in, 50 out
    """
    lab = ledger.budget("lab", usd=5)
    held = lab.reserve_sync(model="no-such-model", usd="0.40", tokens=1000)
    told = counted(held.commit(tbl.Usage(100, 50)))
    assert (told.usd, told.tokens, told.basis) == (Decimal("0.4"), 150, "unknown")


def test_a_commit_of_nothing_is_an_error_in_the_call_itself(ledger: tbl.Ledger, log: Log) -> None:
    """The hold stays, and can be committed properly."""
    held = ledger.budget("lab", tokens=5000).reserve_sync(tokens=1000)
    wrong: Any
    for wrong in ({}, {"usage": {"no": "counts"}}, {"tokens": -1}, {"usd": "much"}, {"tokens": 1, "basis": "guessed"}):
        with pytest.raises(tbl.InvalidValue):
            held.commit(**wrong)
    assert log.kinds == ["budget_set", "reserved"]
    held.commit(tokens=0).result()
    assert held.state == "committed"


# --- in parts ---------------------------------------------------------------------------------------------------------------


def a_batch(ledger: tbl.Ledger, tokens: int = 1000, *, if_lost: str = "count", timeout: int = 0) -> tbl.Reservation:
    """A batch's hold, which does not expire unless it is told to."""
    command = Reserve(ledger.new_id(), "lab", None, tokens, 10, timeout, if_lost)
    return tbl.Reservation(ledger, command, ledger.ask(command))


def test_a_part_moves_its_use_and_the_rest_stays_held(ledger: tbl.Ledger, log: Log) -> None:
    """By the name that the provider gives it.

    limit     1000 tokens
    reserve   1000 tokens, 10 requests
    part      row-1 300
    part      row-2 200
    """
    lab = ledger.budget("lab", tokens=1000)
    batch = a_batch(ledger)
    for name, tokens in (("row-1", 300), ("row-2", 200)):
        ledger.ask(a_commit(ledger, batch, tokens, part=name))
    assert stands(lab) == "500 + 500, 1 in flight"
    assert (lab.balance.committed_requests, lab.balance.reserved_requests) == (2, 8)
    assert [(e.key, e.tokens) for e in log.events if e.kind == "part_committed"] == [("row-1", 300), ("row-2", 200)]


def test_a_batchs_hold_does_not_expire(ledger: tbl.Ledger, clock: Clock) -> None:
    """It ends by settlement or rollback."""
    lab = ledger.budget("lab", tokens=1000)
    batch = a_batch(ledger)
    assert batch.expires is None
    clock.advance(100 * 86_400)
    assert (batch.state, stands(lab)) == ("open", "0 + 1000, 1 in flight")


def test_the_same_part_again_is_the_first_one(ledger: tbl.Ledger, log: Log) -> None:
    """After the whole was committed too.

    part      row-1 300
    part      row-1 300  the same command, another command
    commit    0
    part      row-1 300
    """
    lab = ledger.budget("lab", tokens=1000)
    batch = a_batch(ledger)
    command = a_commit(ledger, batch, 300, part="row-1")
    first = ledger.ask(command)
    assert ledger.ask(command) == ledger.ask(a_commit(ledger, batch, 300, part="row-1")) == first
    batch.commit(tokens=0, requests=0).result()
    assert ledger.ask(command) == first
    assert (stands(lab), log.kinds) == ("300 + 0, 0 in flight", ["budget_set", "reserved", "part_committed", "committed"])


def test_another_amount_for_a_part_is_refused(ledger: tbl.Ledger, log: Log) -> None:
    """And says which part.

    part      row-1 300
    part      row-1 301  refused
    """
    lab = ledger.budget("lab", tokens=1000)
    batch = a_batch(ledger)
    ledger.ask(a_commit(ledger, batch, 300, part="row-1"))
    with pytest.raises(tbl.ReservationClosed) as closed:
        ledger.ask(a_commit(ledger, batch, 301, part="row-1"))
    assert (closed.value.reservation, closed.value.first) == (f"{batch.id} part row-1", "300 tokens, 1 requests")
    assert (stands(lab), log.kinds) == ("300 + 700, 1 in flight", ["budget_set", "reserved", "part_committed"])


@pytest.mark.parametrize(
    ("end", "left"),
    [
        ("commit", "450 + 0, 0 in flight"),
        ("rollback", "300 + 0, 0 in flight"),
        ("expire and count", "1000 + 0, 0 in flight"),
        ("expire and release", "300 + 0, 0 in flight"),
    ],
)
def test_what_ends_a_batch_ends_its_rest(ledger: tbl.Ledger, clock: Clock, log: Log, end: str, left: str) -> None:
    """Its parts stay counted, and no part comes after it.

    reserve   1000
    part      row-1 300
    end       commit 150, or rollback, or expiry
    part      row-2 100  refused
    """
    lab = ledger.budget("lab", tokens=1000)
    timeout = 60_000_000 if end.startswith("expire") else 0
    batch = a_batch(ledger, if_lost="count" if end.endswith("count") else "release", timeout=timeout)
    ledger.ask(a_commit(ledger, batch, 300, part="row-1"))
    if end == "commit":
        batch.commit(tokens=150).result()
    elif end == "rollback":
        batch.rollback().result()
    clock.advance(60)
    assert stands(lab) == left
    before = log.kinds
    with pytest.raises(tbl.ReservationClosed):
        ledger.ask(a_commit(ledger, batch, 100, part="row-2"))
    assert (stands(lab), log.kinds) == (left, before)


def test_parts_above_the_hold_are_recorded_and_hold_nothing_back(ledger: tbl.Ledger) -> None:
    """The money is gone.

    limit     1000 tokens
    reserve   500
    part      row-1 400
    part      row-2 400
    commit    0
    """
    lab = ledger.budget("lab", tokens=1000)
    batch = a_batch(ledger, 500)
    for name in ("row-1", "row-2"):
        ledger.ask(a_commit(ledger, batch, 400, part=name))
    assert stands(lab) == "800 + 0, 1 in flight"
    batch.commit(tokens=0, requests=0).result()
    assert stands(lab) == "800 + 0, 0 in flight"


def test_a_late_commit_of_a_batch_replaces_the_rest_that_was_counted(ledger: tbl.Ledger, clock: Clock) -> None:
    """Its parts were known before, and an adjustment says the whole.

    reserve   1000 for 60 s, count
    part      row-1 300
    after     60 s
    commit    100  late
    adjust    350
    """
    lab = ledger.budget("lab", tokens=1000)
    batch = a_batch(ledger, timeout=60_000_000)
    ledger.ask(a_commit(ledger, batch, 300, part="row-1"))
    clock.advance(60)
    assert stands(lab) == "1000 + 0, 0 in flight"
    batch.commit(tokens=100).result()
    assert stands(lab) == "400 + 0, 0 in flight"
    lab.adjust(batch, tokens=350).result()
    assert stands(lab) == "350 + 0, 0 in flight"


def test_an_adjustment_gives_all_parts_their_price(ledger: tbl.Ledger) -> None:
    """Parts without a price refuse dollars until then.

    reserve   1000 tokens
    part      row-1 300 tokens, no price
    part      row-2 200 tokens, no price
    rollback
    set_limit $1
    adjust    $0.30
    """
    lab = ledger.budget("lab", tokens=1000)
    batch = a_batch(ledger)
    for name, tokens in (("row-1", 300), ("row-2", 200)):
        ledger.ask(a_commit(ledger, batch, tokens, part=name))
    batch.commit(tokens=0, requests=0, usd=0).result()
    lab.set_limit(usd=1)
    assert lab.balance.unpriced_calls == 2
    with pytest.raises(tbl.CallsUnpriced, match=r"2 calls without a cost .*adjust\(call, usd=…\)") as unpriced:
        lab.reserve_sync(usd="0.1", tokens=1)
    assert "set_price" not in str(unpriced.value)
    assert isinstance(unpriced.value, tbl.PriceUnknown)
    lab.adjust(batch, usd="0.30").result()
    assert (lab.balance.unpriced_calls, lab.balance.left_usd) == (0, Decimal("0.7"))
