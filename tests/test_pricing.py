"""What a call cost: checked by hand, and against the catalogue's own arithmetic."""

import decimal
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from timeit import repeat

import genai_prices
import pytest
from genai_prices import data_snapshot
from hypothesis import given
from hypothesis import strategies as st

import tokenbudget_lab as tbl
from tokenbudget_lab import pricing
from tokenbudget_lab.errors import InvalidType, InvalidValue, PriceUnknown
from tokenbudget_lab.pricing import Prices
from tokenbudget_lab.usage import Usage

NOVEMBER = datetime(2026, 11, 20, 12, tzinfo=UTC)
LINEAR = ["claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-4-5", "gpt-5-mini", "gpt-4o", "gemini-2.5-flash"]
TIERED = ["claude-haiku-5-5", "claude-sonnet-4-5", "gpt-5.4", "gemini-2.5-pro"]
BY_DATE_AND_HOUR = ["o3", "deepseek-chat"]


@pytest.fixture
def prices() -> Prices:
    return Prices()


# --- by hand -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "usage", "usd"),
    [
        # $2 in, $10 out, $0.10 read, $2.50 written for 5 minutes, $4 for an hour, per million tokens
        ("claude-sonnet-5-5", Usage(1_000_000, 0), "2"),
        ("claude-sonnet-5-5", Usage(1_200, 300), "0.0054"),
        ("claude-sonnet-5-5", Usage(1_000_000, 0, cache_read_tokens=1_000_000), "0.1"),
        ("claude-sonnet-5-5", Usage(1_000_000, 0, cache_write_5m_tokens=1_000_000), "2.5"),
        ("claude-sonnet-5-5", Usage(1_000_000, 0, cache_write_1h_tokens=1_000_000), "4"),
        ("claude-sonnet-5-5", Usage(10_000, 500, 4_000, 3_000, 2_000, 400), "0.0229"),
        # $4, $20, $0.20, $5, $8
        ("claude-opus-5-5", Usage(10_000, 500, 4_000, 3_000, 2_000), "0.0458"),
        # $0.10, $0.50, $0.01, $0.125, $0.20 up to 100,000 input tokens; five times that for every token of a larger request
        ("claude-haiku-5-5", Usage(10_000, 500, 4_000, 3_000, 2_000), "0.001165"),
        ("claude-haiku-5-5", Usage(100_000, 1_000), "0.0105"),
        ("claude-haiku-5-5", Usage(100_001, 1_000), "0.0525005"),
        ("claude-haiku-5-5", Usage(200_000, 0, cache_read_tokens=150_000, cache_write_1h_tokens=50_000), "0.0575"),
        # $0.25, $2, $0.025; what it thinks is output
        ("gpt-5-mini", Usage(10_000, 1_000, cache_read_tokens=4_000, reasoning_tokens=800), "0.0036"),
        # $2.50, $15, $0.25 up to 272,000; then $5, $22.50, $0.50
        ("gpt-5.4", Usage(272_000, 1_000, cache_read_tokens=72_000), "0.533"),
        ("gpt-5.4", Usage(272_001, 1_000, cache_read_tokens=72_000), "1.058505"),
        # $1.25, $10, $0.125 up to 200,000; then $2.50, $15, $0.25
        ("gemini-2.5-pro", Usage(100_000, 2_000, cache_read_tokens=50_000), "0.08875"),
        ("gemini-2.5-pro", Usage(200_001, 2_000), "0.5300025"),
    ],
)
def test_costs_agree_with_the_price_list(prices: Prices, model: str, usage: Usage, usd: str) -> None:
    assert prices.cost(usage, model, at=NOVEMBER) == Decimal(usd)


@pytest.mark.parametrize(
    ("model", "context", "usd"),
    [
        ("claude-sonnet-5-5", {"processing": "batch"}, "0.006"),
        ("claude-opus-5-5", {"speed": "fast"}, "0.048"),
        ("gpt-5", {"service_tier": "flex"}, "0.005625"),
        ("gpt-5", {"service_tier": "default"}, "0.01125"),
    ],
)
def test_a_batch_or_a_fast_answer_has_its_own_price(prices: Prices, model: str, context: dict[str, str], usd: str) -> None:
    assert prices.cost(Usage(1_000, 1_000), model, at=NOVEMBER, context=context) == Decimal(usd)


def test_a_price_holds_from_its_day_on(prices: Prices) -> None:
    """gpt-5.6-sol went from $5 and $30 to $4 and $20 on 2026-08-21, a day that begins at midnight UTC."""
    usage, midnight = Usage(1_000, 1_000), datetime(2026, 8, 21, tzinfo=UTC)
    before = prices.cost(usage, "gpt-5.6-sol", at=midnight - timedelta(seconds=1))
    in_berlin = prices.cost(usage, "gpt-5.6-sol", at=midnight.astimezone(timezone(timedelta(hours=2))))
    assert (before, in_berlin) == (Decimal("0.035"), Decimal("0.024"))


def test_a_price_that_changes_within_a_day_does(prices: Prices) -> None:
    """deepseek-chat costs half at night, $0.135 for a million, and that again on the next request of the same day."""
    usage = Usage(1_000_000, 0)
    hours = [prices.cost(usage, "deepseek-chat", at=NOVEMBER.replace(hour=hour)) for hour in (12, 23, 12)]
    assert hours == [Decimal("0.27"), Decimal("0.135"), Decimal("0.27")]


# --- against the catalogue -------------------------------------------------------------------------------------------------


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Whole requests of every kind and size; sizes at which rates change are drawn often."""
    read, five, hour = (draw(st.one_of(st.just(0), st.integers(0, 300_000))) for _ in range(3))
    steps = st.sampled_from([100_000, 100_001, 200_000, 200_001, 272_000, 272_001])
    whole = draw(st.one_of(steps, st.integers(0, 3_000_000)))
    output = draw(st.integers(0, 200_000))
    return Usage(max(whole, read + five + hour), output, read, five, hour, draw(st.integers(0, output)))


def catalogued(usage: Usage) -> genai_prices.Usage:
    """The same counts as the catalogue takes them."""
    return genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        web_searches=usage.web_searches,
    )


def asked(usage: Usage, model: str, at: datetime, context: dict[str, str] | None = None) -> Decimal:
    """The catalogue's answer; a seller may stand before the model."""
    counts, seller = catalogued(usage), None
    try:
        data_snapshot.get_snapshot().find_provider_model(model, None, None, None)
    except LookupError:
        seller, _, model = model.partition("/") if "/" in model else ("openai", "", model)
    return genai_prices.calc_price(
        counts, model, provider_id=seller, genai_request_timestamp=at, price_context=context
    ).total_price


@given(usages(), st.sampled_from([*LINEAR, *TIERED, *BY_DATE_AND_HOUR]), st.integers(0, 24 * 730))
def test_a_cost_is_exactly_what_the_catalogue_computes(usage: Usage, model: str, hours: int) -> None:
    at = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
    assert pricing.cost(usage, model=model, at=at) == asked(usage, model, at)


@given(usages(), st.sampled_from(["claude-sonnet-5-5", "claude-haiku-5-5", "gpt-5.4", "gemini-2.5-pro"]))
def test_a_batch_costs_exactly_what_the_catalogue_computes(usage: Usage, model: str) -> None:
    assert pricing.cost(usage, model=model, at=NOVEMBER, batch=True) == asked(usage, model, NOVEMBER, {"processing": "batch"})


@given(usages(), st.sampled_from([*LINEAR, *TIERED]))
def test_no_request_without_cache_writes_costs_more_than_its_worst_case(usage: Usage, model: str) -> None:
    ordinary = Usage(usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, reasoning_tokens=usage.reasoning_tokens)
    cost = pricing.cost(ordinary, model=model, at=NOVEMBER)
    assert cost <= pricing.user_prices().worst_case(model, usage.input_tokens, usage.output_tokens, at=NOVEMBER)


def test_every_model_of_the_catalogue_is_priced_as_it_says_or_refused(prices: Prices) -> None:
    """A model that is found by its name costs what the catalogue computes; one without rates is refused, never free."""
    usage, refused, agreed = Usage(1_000, 500, cache_read_tokens=100), 0, 0
    for model in {info.id for provider in data_snapshot.get_snapshot().providers for info in provider.models}:
        try:
            cost = prices.cost(usage, model, at=NOVEMBER)
        except PriceUnknown:
            refused += 1
        else:
            agreed += 1
            assert cost == asked(usage, model, NOVEMBER) > 0, model
    assert agreed > 200
    assert refused > 0


@pytest.mark.parametrize(
    ("model", "seller"),
    [
        ("groq/llama-3.3-70b-versatile", "groq"),
        ("openrouter/openai/gpt-5-mini", "openrouter"),
        ("azure/gpt-4o-2024-08-06", "azure"),
        ("text-embedding-3-small", "openai"),
    ],
)
def test_a_seller_before_a_model_has_its_own_price(prices: Prices, model: str, seller: str) -> None:
    assert prices.provider(model) == seller
    assert prices.cost(Usage(1_000, 0), model, at=NOVEMBER) == asked(Usage(1_000, 0), model, NOVEMBER)


def test_a_maker_before_a_name_that_is_known_alone_is_not_guessed_at(prices: Prices) -> None:
    """A router's name of a faster and dearer variant is not the maker's own model."""
    with pytest.raises(PriceUnknown):
        prices.cost(Usage(1_000, 500), "anthropic/claude-opus-4.8-fast", at=NOVEMBER)


# --- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["no-such-model", "claude-", "gpt-4o-my-own-finetune", "", "gemma-3"])
def test_a_model_without_a_price_is_refused_and_not_free(prices: Prices, model: str) -> None:
    with pytest.raises(PriceUnknown) as refused:
        prices.cost(Usage(0, 0), model)
    assert refused.value.model == model


@pytest.mark.parametrize(
    ("usage", "model", "context", "reason"),
    [
        (Usage(10, 0, cache_write_1h_tokens=10), "gpt-5.6-sol", None, "cache write 1h tokens"),
        (Usage(10, 10), "gemini-embedding-001", None, "output tokens"),
        (Usage(10, 10), "claude-sonnet-5-5", {"service_tier": "batch"}, "service_tier=batch"),
        (Usage(10, 10), "claude-sonnet-5-5", {"processing": "batch", "speed": "fast"}, "speed=fast"),
        (Usage(10, 10), "claude-sonnet-5-5", {"processing": "Batch"}, "processing=Batch"),
    ],
)
def test_what_the_catalogue_would_silently_count_too_low_is_refused(
    prices: Prices, usage: Usage, model: str, context: dict[str, str] | None, reason: str
) -> None:
    with pytest.raises(PriceUnknown, match=reason):
        prices.cost(usage, model, at=NOVEMBER, context=context)


def test_a_batch_before_the_first_known_batch_price_is_refused(prices: Prices) -> None:
    with pytest.raises(PriceUnknown, match="2026-10-01"):
        prices.cost(Usage(10, 10), "claude-sonnet-5-5", at=datetime(2026, 10, 1, tzinfo=UTC), context={"processing": "batch"})


def test_a_time_without_a_zone_is_refused(prices: Prices) -> None:
    with pytest.raises(InvalidValue, match="time zone"):
        prices.cost(Usage(1, 1), "claude-sonnet-5-5", at=datetime(2026, 11, 20))  # noqa: DTZ001 - it has none


@pytest.mark.parametrize(("argument", "given_"), [("model", None), ("at", "2026-11-20")])
def test_what_cannot_be_read_without_guessing_is_refused(prices: Prices, argument: str, given_: object) -> None:
    wrong: dict[str, object] = {"model": "claude-sonnet-5-5", "at": NOVEMBER, argument: given_}
    with pytest.raises(InvalidType, match=argument):
        prices.cost(Usage(1, 1), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("time", "offset"), [(datetime.min, 14), (datetime.max, -12)])  # noqa: DTZ901 - it gets one
def test_a_time_that_is_none_in_utc_is_named(time: datetime, offset: int) -> None:
    """The first and the last hours of all time, where the zone leads out of it; those that are times in UTC have a price."""
    there = time.replace(tzinfo=timezone(timedelta(hours=offset)))
    here = time.replace(tzinfo=UTC)
    with pytest.raises(InvalidValue, match=r"at: .* is outside the years 1 to 9999 in UTC"):
        pricing.cost(Usage(1, 1), model="gpt-4o", at=there)
    assert pricing.cost(Usage(1, 1), model="gpt-4o", at=here) > 0
    assert tbl.estimate(["a"], model="gpt-4o", max_output_tokens=1, at=here, progress=False).cost_usd
    with pytest.raises(InvalidValue, match="at: "):
        tbl.estimate(["a"], model="gpt-4o", max_output_tokens=1, at=there, progress=False)
    with tbl.connect(":memory:") as ledger, pytest.raises(InvalidValue, match="at: "):
        tbl.reprice(ledger, at=there)


@pytest.mark.parametrize("ask", [lambda name: pricing.cost(Usage(1, 1), model=name), tbl.counter_for, tbl.OpenAITokenCounter])
def test_a_name_without_an_end_is_no_name_and_is_not_printed(ask: Callable[[str], object]) -> None:
    with pytest.raises(InvalidValue, match="model: has 1,000,000 characters, and a name has 1,024 at most"):
        ask("x" * 1_000_000)
    with pytest.raises(PriceUnknown) as unknown:
        pricing.cost(Usage(1, 1), model="x" * 1_000)
    assert len(str(unknown.value)) < 400


def test_only_a_call_that_was_to_be_made_was_not_sent() -> None:
    """What is refused with a missing price, and what its error says of it.

    cost           nothing: nothing was to be sent
    reserve        nothing was sent
    record         nothing was recorded
    """
    with pytest.raises(PriceUnknown) as asked:
        pricing.cost(Usage(1, 1), model="no-such-model")
    assert "unknown. Say it: ledger.set_price('no-such-model'" in str(asked.value)
    assert str(asked.value).endswith("or write it into prices.toml")
    with tbl.connect(":memory:") as ledger:
        study = ledger.budget("study", usd=1)
        with pytest.raises(PriceUnknown, match=r"unknown and nothing was sent\. .* or pass usd=…"):
            study.reserve_sync(model="no-such-model", input_tokens=1, max_output_tokens=1)
        with pytest.raises(PriceUnknown, match=r"unknown and nothing was recorded\. .* or pass usd=…"):
            study.record(Usage(1, 1), model="no-such-model").result()


def test_a_name_with_its_provider_before_it_is_told_the_name_that_has_a_price() -> None:
    """It is not priced as that: OpenRouter sells models of the same names, some at several times the price."""
    with pytest.raises(PriceUnknown, match="where openai itself is asked, call it 'gpt-4o'"):
        pricing.cost(Usage(1, 1), model="openai/gpt-4o")
    with pytest.raises(PriceUnknown) as unknown:
        pricing.cost(Usage(1, 1), model="nobody/gpt-4o")
    assert "call it" not in str(unknown.value)


def test_a_refused_price_travels_between_processes(prices: Prices) -> None:
    with pytest.raises(PriceUnknown) as refused:
        prices.worst_case("no-such-model", 1, 1)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


# --- holds -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "input_tokens", "max_output_tokens", "usd"),
    [
        ("claude-sonnet-5-5", 1_200, 800, "0.0104"),
        ("claude-haiku-5-5", 100_000, 1_000, "0.0105"),
        ("claude-haiku-5-5", 100_001, 1_000, "0.0525005"),
        ("gemini-embedding-001", 1_000, 0, "0.00015"),
    ],
)
def test_the_worst_case_is_plain_input_and_all_output(
    prices: Prices, model: str, input_tokens: int, max_output_tokens: int, usd: str
) -> None:
    assert prices.worst_case(model, input_tokens, max_output_tokens, at=NOVEMBER) == Decimal(usd)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, 2**53])
def test_a_hold_for_an_impossible_size_is_refused(prices: Prices, wrong: int) -> None:
    with pytest.raises(InvalidValue):
        prices.worst_case("claude-sonnet-5-5", 1, wrong)


# --- prices set by hand ----------------------------------------------------------------------------------------------------


def test_a_price_set_by_hand_counts_for_every_token(prices: Prices) -> None:
    """Cached tokens cost what input costs unless something else was said, and capitals do not matter."""
    prices.set_price("Qwen-Local", input_usd_per_mtok="0.2", output_usd_per_mtok=0.6, cache_read_usd_per_mtok=Decimal("0.05"))
    assert prices.cost(Usage(1_000, 500, 400, 300, 200, 100), "qwen-local", at=NOVEMBER) == Decimal("0.00044")
    assert prices.worst_case("QWEN-LOCAL", 1_000, 500) == Decimal("0.0005")


def test_a_price_set_by_hand_replaces_the_catalogue_here_and_nowhere_else(prices: Prices) -> None:
    before = prices.cost(Usage(1_000, 1_000), "claude-sonnet-5-5")
    prices.set_price("claude-sonnet-5-5", input_usd_per_mtok=1, output_usd_per_mtok=1)
    assert prices.cost(Usage(1_000, 1_000), "claude-sonnet-5-5") == Decimal("0.002")
    assert Prices().cost(Usage(1_000, 1_000), "claude-sonnet-5-5") == before


def test_a_model_is_free_only_when_somebody_said_so(prices: Prices) -> None:
    prices.set_price("my-laptop", input_usd_per_mtok=0, output_usd_per_mtok=0)
    assert prices.cost(Usage(1_000, 1_000), "my-laptop") == 0


def test_a_price_set_by_hand_says_nothing_about_batches(prices: Prices) -> None:
    prices.set_price("qwen-local", input_usd_per_mtok=1, output_usd_per_mtok=1)
    with pytest.raises(PriceUnknown, match="set by hand"):
        prices.cost(Usage(1, 1), "qwen-local", context={"processing": "batch"})


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "cheap", "", True, [1], "0.0000000000001"])
@pytest.mark.parametrize("argument", ["input_usd_per_mtok", "output_usd_per_mtok", "cache_write_1h_usd_per_mtok"])
def test_a_price_that_is_no_amount_of_money_is_refused_and_changes_nothing(
    prices: Prices, argument: str, wrong: object
) -> None:
    given_: dict[str, object] = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1, argument: wrong}
    with pytest.raises(InvalidValue, match=argument):
        prices.set_price("qwen-local", **given_)
    with pytest.raises(PriceUnknown):
        prices.cost(Usage(1, 1), "qwen-local")


# --- where a price comes from ----------------------------------------------------------------------------------------------


def test_a_price_says_where_it_comes_from(prices: Prices) -> None:
    prices.set_price("qwen-local", input_usd_per_mtok=1, output_usd_per_mtok=1)
    assert prices.provenance("claude-sonnet-5-5") == f"genai-prices {genai_prices.__version__}"
    assert prices.provenance("qwen-local") == "set by hand"
    with pytest.raises(PriceUnknown):
        prices.provenance("no-such-model")


def test_a_model_says_who_sells_it(prices: Prices) -> None:
    models = ["claude-sonnet-5-5", "gpt-5-mini", "gemini-2.5-pro", "no-such-model"]
    assert [prices.provider(model) for model in models] == ["anthropic", "openai", "google", None]


def test_updated_prices_are_used_from_then_on_and_named(prices: Prices) -> None:
    """genai-prices can fetch new prices while we run; what was read before from the old ones is forgotten."""
    bundled = data_snapshot.get_snapshot()
    before = prices.cost(Usage(1_000, 0), "claude-sonnet-5-5")
    only_openai = [provider for provider in bundled.providers if provider.id == "openai"]
    data_snapshot.set_custom_snapshot(
        data_snapshot.DataSnapshot(only_openai, from_auto_update=True, timestamp=datetime(2026, 11, 21, 12))  # noqa: DTZ001
    )
    try:
        assert prices.provenance("gpt-5-mini").endswith(", updated 2026-11-21")
        with pytest.raises(PriceUnknown):
            prices.cost(Usage(1_000, 0), "claude-sonnet-5-5")
    finally:
        data_snapshot.set_custom_snapshot(None)
    assert prices.cost(Usage(1_000, 0), "claude-sonnet-5-5") == before


# --- exact and fast --------------------------------------------------------------------------------------------------------


def test_a_cost_is_exact_even_where_the_caller_rounds_decimals() -> None:
    prices = Prices()
    with decimal.localcontext(decimal.Context(prec=3)):
        prices.set_price("qwen-local", input_usd_per_mtok="1.2345", output_usd_per_mtok=1)
        costs = [prices.cost(Usage(1_234_567, 7_654_321), model, at=NOVEMBER) for model in ("claude-sonnet-5-5", "qwen-local")]
    assert costs == [Decimal("79.012344"), Decimal("9.1783939615")]


def test_usage_as_a_provider_reports_it_can_be_priced() -> None:
    reported = {
        "input_tokens": 1_000,
        "output_tokens": 500,
        "cache_read_input_tokens": 4_000,
        "cache_creation_input_tokens": 5_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 3_000, "ephemeral_1h_input_tokens": 2_000},
    }
    assert pricing.cost(reported, model="claude-sonnet-5-5", at=NOVEMBER) == Decimal("0.0229")


def test_the_process_has_one_set_of_prices() -> None:
    assert pricing.user_prices() is pricing.user_prices()


def test_a_known_model_is_priced_many_times_faster_than_by_the_catalogue(prices: Prices) -> None:
    """3 µs against 140 µs where this was written; asserted is a fifth, so that a busy machine does not decide."""
    usage = Usage(1_200, 300, cache_read_tokens=1_000)
    ours = min(repeat(lambda: prices.cost(usage, "claude-sonnet-5-5", at=NOVEMBER), number=200, repeat=5))
    theirs = min(repeat(lambda: asked(usage, "claude-sonnet-5-5", NOVEMBER), number=200, repeat=5))
    assert ours < theirs / 5
