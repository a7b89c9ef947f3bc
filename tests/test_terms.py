"""Batch, tier and speed: said in plain words, and never taken for the standard."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenbudget_lab as tbl
from tokenbudget_lab.counter import Count
from tokenbudget_lab.terms import UNSAID, Terms, reported_terms, terms_of

NOVEMBER = datetime(2026, 11, 20, 12, tzinfo=UTC)
USAGE = tbl.Usage(1_000, 1_000)


def cost(model: str, **terms: Any) -> Decimal:
    return tbl.cost(USAGE, model=model, at=NOVEMBER, **terms)


# --- the traps of a price list ---------------------------------------------------------------------------------------------


def test_a_tier_called_batch_is_a_batch() -> None:
    """The catalogue answers `{"service_tier": "batch"}` with the standard price, without a word."""
    counts = genai_prices.Usage(input_tokens=1_000, output_tokens=1_000)
    trapped = genai_prices.calc_price(counts, "claude-sonnet-5-5", price_context={"service_tier": "batch"}).total_price
    assert trapped == cost("claude-sonnet-5-5") == Decimal("0.012")
    assert cost("claude-sonnet-5-5", tier="batch") == cost("claude-sonnet-5-5", batch=True) == Decimal("0.006")


def test_a_speed_has_to_be_said_and_is_then_paid() -> None:
    assert (cost("claude-opus-5-5"), cost("claude-opus-5-5", speed="fast")) == (Decimal("0.024"), Decimal("0.048"))


@pytest.mark.parametrize(
    ("model", "terms"),
    [
        ("claude-sonnet-5-5", {"tier": "priority"}),
        ("claude-sonnet-5-5", {"tier": "flex"}),
        ("claude-sonnet-5-5", {"speed": "fast"}),
        ("claude-sonnet-5-5", {"tier": "Batch"}),
        ("gpt-5", {"tier": "scale"}),
        ("gpt-5", {"tier": "auto"}),
        ("gpt-5", {"tier": "ultrafast"}),
        ("gpt-5", {"speed": "fast"}),
        ("gpt-5-pro", {"tier": "flex"}),
        ("gemini-2.5-pro", {"tier": "priority"}),
        ("no-such-model", {"batch": True}),
    ],
)
def test_terms_without_a_price_are_refused_and_not_standard(model: str, terms: dict[str, Any]) -> None:
    with pytest.raises(tbl.PriceUnknown):
        cost(model, **terms)


@pytest.mark.parametrize(
    ("model", "terms"),
    [("claude-opus-5-5", {"batch": True, "speed": "fast"}), ("gpt-5", {"batch": True, "tier": "priority"})],
)
def test_two_terms_at_once_are_refused_where_only_one_would_count(model: str, terms: dict[str, Any]) -> None:
    """The catalogue has a price for each of them, and takes the first: a fast answer for half the price."""
    with pytest.raises(tbl.PriceUnknown, match="together"):
        cost(model, **terms)


def test_the_tier_that_is_standard_costs_the_standard_price_on_every_model() -> None:
    """`default` is dropped here; should a price list ever give it another price, this says so."""
    from genai_prices import data_snapshot

    models = [model for seller in data_snapshot.get_snapshot().providers for model in seller.models]
    named = [m for m in models if any(v.when == {"service_tier": "default"} for v in m.price_variants or ())]
    assert len(named) > 20
    for model in named:
        assert vars(model.get_prices(NOVEMBER, {"service_tier": "default"})) == vars(model.get_prices(NOVEMBER)), model.id
    assert cost("gpt-5", tier="default") == cost("gpt-5", tier="standard") == cost("gpt-5")


# --- what is said and what is reported ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "speed", "terms"),
    [
        (None, None, UNSAID),
        ("standard", None, Terms(False, "standard", None)),
        ("default", None, Terms(None, "standard", None)),
        ("on_demand", None, Terms(None, "standard", None)),
        ("batch", "standard", Terms(True, None, "standard")),
        ("priority", None, Terms(None, "priority", None)),
        (None, "fast", Terms(None, None, "fast")),
        ("never heard of", None, Terms(None, "never heard of", None)),
        (7, None, Terms(None, "int", None)),
    ],
)
def test_reported_terms_keep_what_is_not_known(tier: Any, speed: Any, terms: Terms) -> None:
    assert reported_terms(tier, speed) == terms


@pytest.mark.parametrize(
    ("said", "reported", "context"),
    [
        (Terms(), Terms(), None),
        (Terms(batch=True), reported_terms("batch", None), {"processing": "batch"}),
        (Terms(batch=True), reported_terms("default", None), {"processing": "batch"}),  # stands in OpenAI's batches too
        (Terms(batch=True), reported_terms("standard", None), None),  # Anthropic says that it was none
        (Terms(), reported_terms("batch", None), {"processing": "batch"}),
        (Terms(tier="priority"), reported_terms("default", None), None),  # it was served at the standard after all
        (Terms(tier="flex"), reported_terms("priority", None), {"service_tier": "priority"}),
        (Terms(speed="fast"), reported_terms("standard", "standard"), None),
        (Terms(speed="fast"), reported_terms("standard", None), {"speed": "fast"}),
    ],
)
def test_what_the_provider_reports_counts_before_what_was_asked_for(
    said: Terms, reported: Terms, context: dict[str, str] | None
) -> None:
    assert said.corrected(reported).context == context


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 1}, {"batch": "yes"}, {"tier": 7}, {"tier": ""}, {"speed": "\n"}, {"speed": b"fast"}, {"tier": "x" * 65}],
)
def test_terms_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(tbl.InvalidValue, match=next(iter(wrong))):
        terms_of(**wrong)


# --- holds -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size", "how", "usd"),
    [
        ("claude-sonnet-5-5", (1_200, 800), {}, "0.0104"),
        ("claude-sonnet-5-5", (1_200, 800), {"batch": True}, "0.0052"),
        ("claude-opus-5-5", (1_000, 1_000), {"speed": "fast"}, "0.048"),
        ("claude-sonnet-5-5", (1_000_000, 0), {"cache_write": "5m"}, "2.5"),
        ("claude-sonnet-5-5", (1_000_000, 0), {"cache_write": "1h"}, "4"),
        ("claude-haiku-5-5", (100_001, 1_000), {"batch": True}, "0.02625025"),
        ("gpt-5.4", (272_001, 1_000), {"tier": "flex"}, "0.6912525"),
    ],
)
def test_a_worst_case_is_priced_on_its_terms(model: str, size: tuple[int, int], how: dict[str, Any], usd: str) -> None:
    assert tbl.worst_case(model, *size, at=NOVEMBER, **how) == Decimal(usd)


def test_near_a_step_an_estimate_is_priced_at_its_upper_end() -> None:
    """99,000 tokens, give or take 5 %, may be more than 100,000, and five times as dear."""
    count = Count(99_000, exact=False, method="estimate", margin=0.05)
    assert tbl.worst_case("claude-haiku-5-5", count, 0, at=NOVEMBER) == Decimal("0.051975")
    assert tbl.worst_case("claude-haiku-5-5", 99_000, 0, at=NOVEMBER) == Decimal("0.0099")


def test_a_wrong_lifetime_of_a_cache_is_refused() -> None:
    with pytest.raises(tbl.InvalidValue, match="cache_write"):
        tbl.worst_case("claude-sonnet-5-5", 1, 1, cache_write="2h")  # type: ignore[arg-type]


@given(st.integers(90_000, 110_000), st.floats(0, 0.2), st.floats(0, 1), st.sampled_from(["claude-haiku-5-5", "gpt-5.4"]))
def test_no_true_size_within_a_margin_costs_more_than_the_hold(tokens: int, margin: float, place: float, model: str) -> None:
    count = Count(tokens, exact=False, method="estimate", margin=margin)
    true = round(tokens + place * (count.upper - tokens))
    hold = tbl.worst_case(model, count, 100, at=NOVEMBER)
    assert tbl.cost(tbl.Usage(true, 100), model=model, at=NOVEMBER, prices=tbl.Prices()) <= hold


def test_a_reservation_holds_the_upper_end_of_an_estimate() -> None:
    with tbl.connect(":memory:") as ledger:
        count = Count(99_000, exact=False, method="estimate", margin=0.05)
        held = ledger.budget("lab", usd=5).reserve_sync(model="claude-haiku-5-5", input_tokens=count, max_output_tokens=0)
        assert (held.tokens, held.usd) == (103_950, Decimal("0.051975"))
