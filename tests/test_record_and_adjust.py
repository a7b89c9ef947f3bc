"""Record and adjust: spend without a reservation, and its corrections."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Log
from tokenbudget_lab.commands import Adjust, Record
from tokenbudget_lab.events import from_detail


def counted(receipt: tbl.Receipt[tbl.Counted]) -> tbl.Counted:
    told = receipt.result()
    assert isinstance(told, tbl.Counted)
    return told


def a_record(ledger: tbl.Ledger, tokens: int = 300, *, key: str | None = None) -> Record:
    return Record(ledger.new_id(), "lab", None, tokens, 1, "measured", key=key)


# --- record ----------------------------------------------------------------------------------------------------------------


def test_a_record_counts_on_the_whole_path_and_asks_no_limit(ledger: tbl.Ledger, log: Log) -> None:
    """An import of what another tool spent.

    limit     lab 100 tokens, lab/study 100 tokens
    record    lab/study 300, key=row-7, tagged
    """
    ledger.budget("lab", tokens=100)
    study = ledger.budget("lab/study", tokens=100)
    told = counted(study.record(tbl.Usage(200, 100), key="row-7", tags={"arm": "b"}, basis="estimated", response_id="msg_1"))
    assert (told.tokens, told.requests, told.basis) == (300, 1, "estimated")
    assert [b.committed_tokens for b in ledger.budgets()] == [300, 300]
    event = log.last("recorded")
    assert (event.reservation, event.key, event.tags, event.response_id) == (
        told.reservation,
        "row-7",
        (("arm", "b"),),
        "msg_1",
    )
    assert (event.input_tokens, event.output_tokens) == (200, 100)


def test_a_record_to_a_closed_budget_counts(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", usd=1).close()
    lab.record(usd="0.30").result()
    assert lab.balance.committed_usd == Decimal("0.3")


def test_the_same_record_again_counts_once(ledger: tbl.Ledger, log: Log) -> None:
    """By its id, and by its key.

    record    300  key=row-7
    record    300  the same command
    record    300  another command, key=row-7
    """
    lab = ledger.budget("lab", tokens=1000)
    command = a_record(ledger, key="row-7")
    first = ledger.ask(command)
    assert ledger.ask(command) == ledger.ask(a_record(ledger, key="row-7")) == first
    assert (lab.balance.committed_tokens, log.kinds) == (300, ["budget_set", "recorded"])


@pytest.mark.parametrize("other", [{"tokens": 301}, {"usd": 1}, {"requests": 2}, {"budget": "lap"}])
def test_another_record_under_the_same_id_is_a_conflict(ledger: tbl.Ledger, log: Log, other: dict[str, Any]) -> None:
    """One id, one content.

    record    lab 300
    record    something else, the same id  refused
    """
    for name in ("lab", "lap"):
        ledger.budget(name, tokens=1000)
    command = a_record(ledger)
    ledger.ask(command)
    with pytest.raises(tbl.IdConflict):
        ledger.ask(command._replace(**other))
    assert log.kinds == ["budget_set", "budget_set", "recorded"]


def test_one_key_is_for_a_record_or_for_a_reservation(ledger: tbl.Ledger, log: Log) -> None:
    """Neither answers for the other.

    record    300  key=row-7
    reserve   300  key=row-7  refused
    reserve   300  key=row-8
    record    300  key=row-8  refused
    """
    lab = ledger.budget("lab", tokens=1000)
    lab.record(tokens=300, key="row-7").result()
    with pytest.raises(tbl.IdConflict):
        lab.reserve_sync(tokens=300, key="row-7")
    lab.reserve_sync(tokens=300, key="row-8")
    with pytest.raises(tbl.IdConflict):
        lab.record(tokens=300, key="row-8").result()
    assert log.kinds == ["budget_set", "recorded", "reserved"]


def test_a_record_counts_in_the_window_of_its_time(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """Amounts in past windows change reports, never today's admission.

    limit     $10 per day
    record    $9 of yesterday
    record    $8 of today
    """
    lab = ledger.budget("lab", limits=[tbl.Limit(usd=10, window="day"), tbl.Limit(usd=100)])
    yesterday = clock.now - timedelta(days=1)
    lab.record(usd=9, at=yesterday).result()
    lab.record(usd=8, at=clock.now - timedelta(hours=12)).result()
    assert {limit.window: int(limit.committed) for limit in lab.balance.limits} == {"": 17, "day": 8}
    lab.reserve_sync(usd=2)
    spent = [from_detail(e)["spent"] for e in log.events if e.kind == "recorded"]
    assert spent[0] == yesterday.timestamp() * 1e6


def test_the_future_is_not_recorded(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    lab = ledger.budget("lab", usd=10)
    with pytest.raises(tbl.InvalidValue):
        lab.record(usd=1, at=clock.now + timedelta(seconds=1)).result()
    lab.record(usd=1, at=clock.now).result()
    assert log.kinds == ["budget_set", "recorded"]


@pytest.mark.parametrize(
    "at",
    [
        datetime(2026, 11, 23, 12, tzinfo=UTC).replace(tzinfo=None),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, tzinfo=UTC),
        "2026-11-23",
        0,
    ],
)
@pytest.mark.parametrize("used", [{"usd": 1}, {"usage": tbl.Usage(1, 1), "model": "claude-sonnet-5-5"}])
def test_a_time_that_is_none_is_an_error_in_the_call_itself(
    ledger: tbl.Ledger, log: Log, at: Any, used: dict[str, Any]
) -> None:
    lab = ledger.budget("lab", usd=10)
    with pytest.raises(tbl.InvalidValue):
        lab.record(**used, at=at)
    assert log.kinds == ["budget_set"]


def test_a_record_needs_what_is_limited(ledger: tbl.Ledger, log: Log) -> None:
    """Nothing unknown counts as zero.

    limit     $1 and 1000 tokens
    record    100 tokens  refused
    record    $0.10       refused
    record    a model nobody knows  refused
    """
    lab = ledger.budget("lab", usd=1, tokens=1000)
    with pytest.raises(tbl.AmountMissing) as missing:
        lab.record(tokens=100).result()
    assert missing.value.resource == "usd"
    with pytest.raises(tbl.AmountMissing) as missing:
        lab.record(usd="0.10").result()
    assert missing.value.resource == "tokens"
    with pytest.raises(tbl.PriceUnknown):
        lab.record(tbl.Usage(10, 10), model="no-such-model").result()
    assert log.kinds == ["budget_set"]


def test_a_record_of_nothing_is_an_error_in_the_call_itself(ledger: tbl.Ledger, log: Log) -> None:
    lab = ledger.budget("lab", usd=1)
    wrong: Any
    for wrong in ({}, {"model": "claude-sonnet-5-5"}, {"usd": -1}, {"usd": 1, "basis": "guessed"}):
        with pytest.raises(tbl.InvalidValue):
            lab.record(**wrong)
    assert log.kinds == ["budget_set"]


def test_a_record_of_a_model_costs_what_it_cost_then(ledger: tbl.Ledger) -> None:
    """Priced like a commit.

    price     $2 in, $10 out, per million tokens
    record    1,000,000 in, 100,000 out
    """
    ledger.set_price("own-model", input_usd_per_mtok=2, output_usd_per_mtok=10)
    lab = ledger.budget("lab", usd=10)
    assert counted(lab.record(tbl.Usage(1_000_000, 100_000), model="own-model")).usd == Decimal(3)


# --- adjust ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["committed", "recorded", "counted"])
def test_what_was_counted_is_set_to_what_is_right(ledger: tbl.Ledger, log: Log, state: str) -> None:
    """Absolute, as often as needed; down to nothing.

    count     $0.50, 100 tokens
    adjust    $0.40
    adjust    90 tokens
    adjust    0 of everything
    """
    lab = ledger.budget("lab", usd=1, tokens=1000)
    if state == "recorded":
        target = counted(lab.record(usd="0.50", tokens=100)).reservation
    else:
        held = lab.reserve_sync(usd="0.50", tokens=100, if_lost="count")
        (held.commit(usd="0.50", tokens=100) if state == "committed" else held.lose()).result()
        target = held.id
    told = counted(lab.adjust(target, usd="0.40", reason="invoice"))
    assert (told.usd, told.tokens, told.requests, told.basis) == (Decimal("0.4"), 100, 1, "measured")
    assert from_detail(log.last("adjusted"))["reason"] == "invoice"
    lab.adjust(target, tokens=90).result()
    assert (lab.balance.committed_usd, lab.balance.committed_tokens) == (Decimal("0.4"), 90)
    lab.adjust(target, usd=0, tokens=0, requests=0).result()
    assert (lab.balance.left_usd, lab.balance.left_tokens, lab.balance.committed_requests) == (Decimal(1), 1000, 0)


def test_an_adjustment_counts_in_the_window_of_what_it_corrects(ledger: tbl.Ledger, clock: Clock) -> None:
    """Yesterday's correction leaves today alone.

    limit     $10 per day, $100 in all
    record    $9
    next day
    adjust    $4
    """
    lab = ledger.budget("lab", limits=[tbl.Limit(usd=10, window="day"), tbl.Limit(usd=100)])
    entry = counted(lab.record(usd=9))
    clock.advance(86_400)
    lab.adjust(entry.reservation, usd=4).result()
    assert {limit.window: int(limit.committed) for limit in lab.balance.limits} == {"": 4, "day": 0}


def test_the_same_adjustment_again_changes_nothing(ledger: tbl.Ledger, log: Log) -> None:
    """Even after another one.

    record    $0.50
    adjust    $0.40
    adjust    $0.30
    adjust    $0.40  the same command as the first
    """
    lab = ledger.budget("lab", usd=1)
    entry = counted(lab.record(usd="0.50"))
    command = Adjust(ledger.new_id(), entry.reservation, 4 * 10**11, None, None)
    first = ledger.ask(command)
    lab.adjust(entry.reservation, usd="0.30").result()
    assert ledger.ask(command) == first
    assert (lab.balance.committed_usd, log.kinds.count("adjusted")) == (Decimal("0.3"), 2)
    with pytest.raises(tbl.IdConflict):
        ledger.ask(command._replace(usd=5 * 10**11))


@pytest.mark.parametrize("state", ["open", "rolled_back", "released"])
def test_only_what_was_counted_can_be_adjusted(ledger: tbl.Ledger, log: Log, state: str) -> None:
    lab = ledger.budget("lab", usd=1)
    held = lab.reserve_sync(usd="0.50")
    if state != "open":
        (held.rollback() if state == "rolled_back" else held.lose()).result()
    with pytest.raises(tbl.NotAdjustable) as refused:
        lab.adjust(held, usd="0.10").result()
    assert (refused.value.target, refused.value.state) == (held.id, state)
    assert (lab.balance.committed_usd, "adjusted" in log.kinds) == (Decimal(0), False)


def test_an_adjustment_of_nothing_is_an_error_in_the_call_itself(ledger: tbl.Ledger, log: Log) -> None:
    lab = ledger.budget("lab", usd=1)
    entry = counted(lab.record(usd="0.50"))
    wrong: Any
    for wrong in ({}, {"reason": "no amount"}, {"usd": -1}, {"tokens": 1.5}):
        with pytest.raises(tbl.InvalidValue):
            lab.adjust(entry.reservation, **wrong)
    assert log.kinds == ["budget_set", "recorded"]


def test_a_budget_adjusts_its_own_spend_and_that_below_it(ledger: tbl.Ledger, log: Log) -> None:
    """What counts elsewhere is not its business.

    record    lab/study 100, other 100
    adjust    lab: the study's 50; other: the study's 0  refused
    """
    lab, other = ledger.budget("lab", tokens=1000), ledger.budget("other", tokens=1000)
    study = ledger.budget("lab/study", tokens=1000)
    entry = counted(study.record(tokens=100))
    lab.adjust(entry.reservation, tokens=50).result()
    with pytest.raises(tbl.NotAdjustable, match="of lab/study, not of other"):
        other.adjust(entry.reservation, tokens=0).result()
    assert (study.balance.committed_tokens, log.kinds.count("adjusted")) == (50, 1)
