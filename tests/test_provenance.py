"""What an event remembers of how its cost came about, and that a call is priced on the terms it was made on."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import genai_prices
import pytest

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Log, also_on_postgres
from tests.test_reported import chat, message, response
from tokenbudget_lab.events import from_detail
from tokenbudget_lab.terms import UNSAID

STORES = ON_ONE_MACHINE

SOURCE = f"genai-prices {genai_prices.__version__}"
USAGE = tbl.Usage(1_000, 1_000)
SIZE: dict[str, Any] = {"input_tokens": 1_000, "max_output_tokens": 2_000}


def counted(receipt: tbl.Receipt[tbl.Counted]) -> tbl.Counted:
    told = receipt.result()
    assert isinstance(told, tbl.Counted)
    return told


# --- provenance ---------------------------------------------------------------------------------------------------------------


@also_on_postgres
def test_every_computed_cost_says_whose_price_it_is(ledger: tbl.Ledger, log: Log) -> None:
    """The catalogue has no date of its own, so its version stands for it; a dated name says what it was found as.

    reserve   claude-haiku-5-5-20260915, above 100,000 tokens
    commit    below
    record    another model
    """
    lab = ledger.budget("lab", usd=5)
    held = lab.reserve_sync(model="claude-haiku-5-5-20260915", input_tokens=150_000, max_output_tokens=10)
    held.commit(USAGE).result()
    lab.record(USAGE, model="claude-sonnet-5-5").result()
    details = [from_detail(log.last(kind)) for kind in ("reserved", "committed", "recorded")]
    assert [detail["prices"] for detail in details] == [SOURCE] * 3
    assert [detail["priced_as"] for detail in details] == [
        "anthropic/claude-haiku-5-5",
        "anthropic/claude-haiku-5-5",
        "anthropic/claude-sonnet-5-5",
    ]
    assert [detail.get("above") for detail in details] == [100_000, 0, None]


def test_a_cost_that_was_said_has_no_price_list(ledger: tbl.Ledger, log: Log) -> None:
    held = ledger.budget("lab", usd=5).reserve_sync(model="claude-sonnet-5-5", usd=1)
    held.commit(USAGE, usd="0.5").result()
    assert [log.last(kind).detail for kind in ("reserved", "committed")] == [None, None]


def test_own_prices_say_so(ledger: tbl.Ledger, log: Log) -> None:
    ledger.set_price("qwen-local", input_usd_per_mtok=1, output_usd_per_mtok=1, batch_discount="0.5")
    told = counted(ledger.budget("lab", usd=5).record(USAGE, model="qwen-local", batch=True))
    assert (told.usd, from_detail(log.last("recorded"))) == (
        Decimal("0.001"),
        {"prices": "set by hand", "priced_as": "qwen-local", "context": {"processing": "batch"}},
    )


@also_on_postgres
def test_the_frame_of_calls_shows_it(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", usd=50)
    usage = tbl.Usage(150_000, 10, 0, 10_000, 20_000, web_searches=2)
    lab.record(usage, model="claude-haiku-5-5").result()
    lab.record(USAGE, model="claude-sonnet-5-5", batch=True).result()
    lab.record(usd=1).result()
    columns = ("cache_write_tokens", "cache_write_1h_tokens", "web_searches", "context", "prices", "priced_as", "above")
    assert ledger.calls().select(columns).collect().rows() == [
        (30_000, 20_000, 2, None, SOURCE, "anthropic/claude-haiku-5-5", 100_000),
        (0, None, None, '{"processing":"batch"}', SOURCE, "anthropic/claude-sonnet-5-5", None),
        (None, None, None, None, None, None, None),
    ]


def test_an_adjusted_cost_is_nobodys_price_list(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", usd=50)
    call = counted(lab.record(USAGE, model="claude-sonnet-5-5")).reservation
    lab.adjust(call, usd=1).result()
    assert ledger.calls().select("cost_usd", "prices").collect().row(0) == (Decimal(1), None)


# --- terms --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "terms", "hold", "cost"),
    [
        ("claude-sonnet-5-5", {}, "0.022", "0.012"),
        ("claude-sonnet-5-5", {"batch": True}, "0.011", "0.006"),
        ("claude-sonnet-5-5", {"tier": "batch"}, "0.011", "0.006"),
        ("claude-opus-5-5", {"speed": "fast"}, "0.088", "0.048"),
        ("gpt-5", {"tier": "flex"}, "0.010625", "0.005625"),
        ("gpt-5", {"tier": "priority"}, "0.0425", "0.0225"),
    ],
)
def test_a_commit_pays_the_terms_that_were_reserved_for(
    ledger: tbl.Ledger, model: str, terms: dict[str, Any], hold: str, cost: str
) -> None:
    held = ledger.budget("lab", usd=5).reserve_sync(model=model, **SIZE, **terms)
    assert held.usd == Decimal(hold)
    assert counted(held.commit(USAGE)).usd == Decimal(cost)


def test_terms_are_kept_where_the_hold_was_given_in_dollars_and_found_by_key(ledger: tbl.Ledger) -> None:
    """The second finds what the first reserved.

    reserve   $1 for a batch  key=b
    reserve   the same again
    commit    what was found
    """
    lab = ledger.budget("lab", usd=5)
    what: dict[str, Any] = {"model": "claude-sonnet-5-5", "usd": 1, "batch": True, "key": "b"}
    lab.reserve_sync(**what)
    assert counted(lab.reserve_sync(**what).commit(USAGE)).usd == Decimal("0.006")


@pytest.mark.parametrize(
    ("model", "reply", "usd"),
    [
        ("claude-sonnet-5-5", message(service_tier="standard"), "0.0007"),
        ("claude-sonnet-5-5", message(service_tier="batch"), "0.00035"),
        ("claude-opus-5-5", message(service_tier="standard", speed="fast") | {"model": "claude-opus-5-5"}, "0.0028"),
        ("gpt-5", chat() | {"service_tier": "default"}, "0.000625"),
        ("gpt-5", chat() | {"service_tier": "flex"}, "0.0003125"),
        ("gpt-5", response() | {"service_tier": "priority"}, "0.00125"),
    ],
)
def test_what_a_reply_reports_is_paid(ledger: tbl.Ledger, log: Log, model: str, reply: dict[str, Any], usd: str) -> None:
    held = ledger.budget("lab", usd=5).reserve_sync(model=model, **SIZE)
    told = counted(held.commit(reply))
    assert (told.usd, told.basis, log.last("committed").response_id) == (Decimal(usd), "measured", reply["id"])


@pytest.mark.parametrize(
    ("model", "reply", "reason"),
    [
        ("claude-sonnet-5-5", message(service_tier="priority"), "service_tier=priority"),
        ("gpt-5", chat() | {"service_tier": "scale"}, "service_tier=scale"),
        ("gpt-5", chat(prompt_tokens_details={"audio_tokens": 10}), "audio tokens"),
    ],
)
def test_a_reported_tier_without_a_price_is_recorded_and_its_cost_unknown(
    ledger: tbl.Ledger, log: Log, model: str, reply: dict[str, Any], reason: str
) -> None:
    """The money is gone: the hold's dollars are counted, and the event says why nobody knows better."""
    lab = ledger.budget("lab", usd=5)
    held = lab.reserve_sync(model=model, **SIZE)
    told = counted(held.commit(reply))
    assert (told.usd, told.tokens, told.basis) == (held.usd, 150, "unknown")
    assert reason in from_detail(log.last("committed"))["unpriced"]
    assert "prices" not in from_detail(log.last("committed"))


def test_a_record_on_terms_without_a_price_is_refused_where_dollars_are_limited(ledger: tbl.Ledger, log: Log) -> None:
    lab = ledger.budget("lab", usd=5)
    with pytest.raises(tbl.PriceUnknown):
        lab.record(USAGE, model="claude-sonnet-5-5", tier="priority").result()
    assert log.kinds == ["budget_set"]


def test_a_reserve_on_terms_without_a_price_is_refused_before_it_is_sent(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", usd=5)
    with pytest.raises(tbl.PriceUnknown, match="service_tier=priority"):
        lab.reserve_sync(model="claude-sonnet-5-5", **SIZE, tier="priority")
    with pytest.raises(tbl.InvalidValue, match="model"):
        lab.reserve_sync(usd=1, batch=True)


def test_a_broken_stream_is_estimated_and_never_measured(ledger: tbl.Ledger) -> None:
    """Its one output token is a placeholder; who knows better says so."""
    lab = ledger.budget("lab", usd=5)
    broken = message(output_tokens=1) | {"stop_reason": None}
    assert counted(lab.reserve_sync(model="claude-sonnet-5-5", **SIZE).commit(broken)).basis == "estimated"
    assert counted(lab.record(broken, model="claude-sonnet-5-5", basis="unknown")).basis == "unknown"
    assert counted(lab.record(message(), model="claude-sonnet-5-5")).basis == "measured"


def test_what_was_billed_beside_a_reply_counts_in_tokens_and_dollars(ledger: tbl.Ledger, log: Log) -> None:
    compaction = {"type": "compaction", "input_tokens": 90_000, "output_tokens": 1_000}
    reply = message(iterations=[compaction]) | {"model": "claude-haiku-5-5"}
    told = counted(ledger.budget("lab", usd=5).record(reply, model="claude-haiku-5-5"))
    assert (told.tokens, told.usd) == (91_150, Decimal("0.009535"))
    event = log.last("recorded")
    assert (event.input_tokens, from_detail(event)["beside"]) == (100, [[None, 90_000, 1_000]])


def test_whatever_a_provider_reports_an_events_detail_stays_short() -> None:
    """A keeper takes 4,096 characters of it; a commit must not be refused for what a reply says."""
    advice = {"type": "advisor_message", "model": "é" * 1_000, "input_tokens": 10**15, "output_tokens": 10**15}
    reply = message(iterations=[advice] * 50, service_tier="é" * 1_000, speed="é" * 1_000)
    with tbl.connect(":memory:") as ledger:
        _, detail = ledger.cost(tbl.Reported.of(reply), "é" * 1_000, UNSAID)
    assert detail is not None
    assert len(detail) < 4_096


def test_the_price_is_that_of_the_model_that_answered(ledger: tbl.Ledger, log: Log) -> None:
    """A dated snapshot can cost more than what its undated name costs now; the provider bills what answered."""
    study = ledger.budget("study", usd=1)
    reply = {
        "id": "r1",
        "object": "chat.completion",
        "model": "gpt-4o-2024-05-13",
        "usage": {"prompt_tokens": 1000, "completion_tokens": 1000},
    }
    with study.reserve(model="gpt-4o", input_tokens=1000, max_output_tokens=1000) as call:
        counted = call.commit(reply).result()
    assert (
        counted.usd
        == tbl.cost(tbl.Usage(1000, 1000), model="gpt-4o-2024-05-13")
        > tbl.cost(tbl.Usage(1000, 1000), model="gpt-4o")
    )
    assert tbl.cost(reply, model="gpt-4o") == counted.usd
    assert '"answered_by":"gpt-4o-2024-05-13"' in (log.last("committed").detail or "")


def test_a_price_that_the_user_said_holds_whoever_answered(ledger: tbl.Ledger) -> None:
    """A deployment has a name of her own, and its replies name the model behind it."""
    prices = tbl.Prices()
    prices.set_price("our-deployment", input_usd_per_mtok=1, output_usd_per_mtok=1)
    with tbl.connect(":memory:", prices=prices) as own:
        study = own.budget("study", usd=1)
        with study.reserve(model="our-deployment", input_tokens=1000, max_output_tokens=1000) as call:
            reply = {
                "object": "chat.completion",
                "model": "gpt-4o",
                "usage": {"prompt_tokens": 1000, "completion_tokens": 1000},
            }
            assert call.commit(reply).result().usd == Decimal("0.002")


def test_a_model_of_another_name_that_nobody_has_a_price_for_has_no_cost(ledger: tbl.Ledger, log: Log) -> None:
    """It is not priced as what was asked for: it may have cost anything."""
    study = ledger.budget("study", usd=1)
    with study.reserve(model="gpt-4o", input_tokens=1000, max_output_tokens=1000) as call:
        reply = {
            "object": "chat.completion",
            "model": "some-other",
            "usage": {"prompt_tokens": 1000, "completion_tokens": 1000},
        }
        counted = call.commit(reply).result()
    assert (counted.basis, counted.usd) == ("unknown", Decimal("0.0125"))
    assert "some-other" in (log.last("committed").detail or "")
