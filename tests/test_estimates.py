"""Prompts, counted and priced before they are sent."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab.counter import Content, Count, System, TokenCounter, Tools
from tokenbudget_lab.tally import Tally

MODEL = "claude-sonnet-5-5"  # $2 and $10 per million tokens
PRICED = "local"


class Words(TokenCounter):
    """Counts words; off by a tenth where it is told to be."""

    def __init__(self, margin: float = 0.0) -> None:
        self.margin = margin

    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        said = " ".join(content if isinstance(content, str) else (message["content"] for message in content))
        words = len(said.split()) + len(str(system or "").split()) + 100 * len(tools or ())
        return Count(words, exact=not self.margin, method="words", margin=self.margin)


@pytest.fixture
def ledger() -> Iterator[tbl.Ledger]:
    with tbl.connect(":memory:") as ledger:
        ledger.set_price(PRICED, input_usd_per_mtok=1, output_usd_per_mtok=10)
        ledger.budget("lab", limits=[])
        yield ledger


def estimate(prompts: Any, **how: Any) -> tbl.Estimate:
    settings: dict[str, Any] = {"model": PRICED, "max_output_tokens": 100, "counter": Words(), "progress": False}
    return tbl.estimate(prompts, **(settings | how))


def answered(ledger: tbl.Ledger, lengths: list[int], budget: str = "lab", **tags: str) -> None:
    """Calls that were measured."""
    for length in lengths:
        ledger.budget(budget).record(tbl.Usage(10, length), model=PRICED, tags=tags).result()


def test_an_unknown_answer_is_as_long_as_it_may_be(ledger: tbl.Ledger) -> None:
    """Two prompts of 3 and 1 words, at $1 and $10 per million tokens.

    input     3 + 1
    output    100 + 100, and perhaps nothing
    """
    plan = estimate(["a b c", "d"], ledger=ledger)
    assert (plan.calls, plan.input_tokens, plan.output_tokens) == (2, 4, 200)
    assert (plan.output_tokens_lower, plan.output_tokens_upper) == (0, 200)
    assert (plan.cost_usd, plan.cost_usd_lower, plan.cost_usd_upper) == tuple(
        map(Decimal, ("0.002004", "0.000004", "0.002004"))
    )
    assert plan.exact
    assert "no measured calls" in plan.answers
    assert plan.prices == "set by hand"


def test_a_counters_margin_is_an_interval(ledger: tbl.Ledger) -> None:
    plan = estimate(["a " * 100] * 3, ledger=ledger, counter=Words(0.1), max_output_tokens=0)
    assert (plan.input_tokens_lower, plan.input_tokens, plan.input_tokens_upper) == (270, 300, 330)
    assert plan.cost_usd_upper == Decimal("0.00033")
    assert plan.frame["hold_usd"].to_list() == [Decimal("0.00011")] * 3
    assert not plan.exact


def test_measured_answers_with_the_label_say_how_long_the_next_ones_will_be(ledger: tbl.Ledger) -> None:
    """Those with another label, another model, or estimated, say nothing."""
    answered(ledger, [20, 30, 40, 30, 30], label="few-shot")
    answered(ledger, [90] * 9, label="zero-shot")
    ledger.budget("lab").record(tbl.Usage(10, 99), model=PRICED, tags={"label": "few-shot"}, basis="estimated").result()
    ledger.budget("lab").record(tbl.Usage(10, 99), model="other", tags={"label": "few-shot"}).result()
    plan = estimate(["a"] * 10, ledger=ledger, label="few-shot")
    assert plan.output_tokens == 300
    assert 200 < plan.output_tokens_lower < 300 < plan.output_tokens_upper < 400
    assert plan.answers == "as 5 measured calls of label few-shot"
    assert estimate(["a"] * 10, ledger=ledger, label={"label": "zero-shot"}).output_tokens == 900


def test_too_few_measured_answers_say_nothing(ledger: tbl.Ledger) -> None:
    answered(ledger, [20] * 4, label="few-shot")
    plan = estimate(["a"], ledger=ledger, label="few-shot")
    assert (plan.output_tokens, plan.answers) == (100, "as long as allowed; 4 measured calls of label few-shot")


def test_no_answer_is_longer_than_it_may_be(ledger: tbl.Ledger) -> None:
    """Measured when 500 were allowed; now 100 are."""
    answered(ledger, [50, 500, 500, 500, 500, 500], label="long")
    plan = estimate(["a"] * 2, ledger=ledger, label="long")
    assert 150 < plan.output_tokens < 200
    assert plan.output_tokens_upper == 200


def test_without_a_label_the_budgets_own_calls_say_it(ledger: tbl.Ledger) -> None:
    """Its own and those of the budgets below it."""
    for name in ("lab/a", "lab/a/x", "lab/ab"):
        ledger.budget(name, limits=[])
    answered(ledger, [10, 10, 10], "lab/a")
    answered(ledger, [10, 10], "lab/a/x")
    answered(ledger, [90] * 5, "lab/ab")
    assert estimate(["a"], budget=ledger.budget("lab/a")).output_tokens == 10


@pytest.mark.parametrize("known", [5, 20, 200])
def test_nine_in_ten_totals_lie_in_the_interval(known: int) -> None:
    """Of answers whose lengths are anything but normal."""
    from tokenbudget_lab.lengths import answers_like

    chance, within = random.Random(known), 0
    for _ in range(400):
        lengths = [min(4000, round(chance.lognormvariate(5, 0.7))) for _ in range(known + 50)]
        told = answers_like(lengths[:known], calls=50, longest=4000, what="")
        within += told.lower * 50 <= sum(lengths[known:]) <= told.upper * 50
    assert 0.80 < within / 400 <= 0.97


def test_what_fits_is_told_before_anything_is_sent(ledger: tbl.Ledger) -> None:
    """$0.0051 left, calls of 1 word and at most 100 tokens: $0.001001 each.

    5 cost $0.005005; the sixth has no room for its hold
    """
    study = ledger.budget("lab/study", usd="0.0051")
    plan = estimate(["a"] * 9, budget="lab/study", ledger=ledger)
    assert (plan.calls_that_fit, plan.calls_that_surely_fit, plan.fits) == (5, 5, False)
    assert estimate(["a"] * 5, budget=study).fits
    assert study.balance.calls_in_flight == 0
    assert study.balance.committed_usd == 0


def test_what_is_said_to_fit_is_admitted_and_the_next_is_not(ledger: tbl.Ledger) -> None:
    """The ledger's own decisions, one call after the other, each using what was expected."""
    chance = random.Random(4)
    answered(ledger, [chance.randrange(20, 40) for _ in range(30)], label="x")
    prompts = ["a " * chance.randrange(1, 2000) for _ in range(300)]
    study = ledger.budget("lab/study", usd="0.05", tokens=150_000, requests=250)
    plan = estimate(prompts, budget=study, label="x")
    written = round(plan.output_tokens / plan.calls)
    made = 0
    for prompt in prompts:
        sent = len(prompt.split())
        try:
            with study.reserve(model=PRICED, input_tokens=sent, max_output_tokens=100) as call:
                call.commit(tbl.Usage(sent, written))
        except tbl.BudgetExceeded:
            break
        made += 1
    assert 0 < plan.calls_that_fit == made < 300  # type: ignore[operator] # there is a budget


@pytest.mark.parametrize(("limit", "fit"), [({"tokens": 350}, 3), ({"requests": 2}, 2), ({"tokens": 0}, 0), ({}, 9)])
def test_every_kind_of_limit_on_the_way_up_counts(ledger: tbl.Ledger, limit: dict[str, int], fit: int) -> None:
    ledger.budget("outer", limits=[] if not limit else None, **limit)  # type: ignore[arg-type] # one of the limits
    ledger.budget("outer/study", limits=[])
    assert estimate(["a"] * 9, budget="outer/study", ledger=ledger).calls_that_fit == fit


def test_uncertain_counts_surely_fit_less(ledger: tbl.Ledger) -> None:
    answered(ledger, [10, 20, 30, 40, 50], label="x")
    ledger.budget("lab/study", usd="0.01")
    plan = estimate(["a " * 500] * 40, budget="lab/study", ledger=ledger, label="x", counter=Words(0.2))
    assert plan.calls_that_fit is not None
    assert plan.calls_that_surely_fit is not None
    assert 0 < plan.calls_that_surely_fit < plan.calls_that_fit < 40
    assert "are expected to fit" in repr(plan)


def test_a_model_without_a_price_has_no_cost_and_is_refused_where_usd_are_limited(ledger: tbl.Ledger) -> None:
    """Unknown is never zero."""
    ledger.budget("lab/tokens", tokens=1000)
    ledger.budget("lab/usd", usd=1)
    plan = estimate(["a"], model="nobody-1", budget="lab/tokens", ledger=ledger)
    assert (plan.cost_usd, plan.cost_usd_upper, plan.frame["cost_usd"].to_list()) == (None, None, [None])
    assert plan.unpriced_reason == "genai-prices has no model 'nobody-1'"
    assert "  cost    unknown: genai-prices has no model 'nobody-1' (no price is known)" in repr(plan)
    assert estimate(["a"], ledger=ledger).unpriced_reason is None
    with pytest.raises(tbl.PriceUnknown):
        estimate(["a"], model="nobody-1", budget="lab/usd", ledger=ledger)


@pytest.mark.parametrize("model", [MODEL, "nobody-1"])
def test_a_tier_that_is_mistyped_is_named_without_a_budget_too(model: str) -> None:
    """One that exists, and has no price for this model, is an estimate without a cost, with the reason."""
    for how, said in (({"tier": "flx"}, "tier: 'flx' has"), ({"speed": "fsat"}, "speed: 'fsat' has a price in no price list")):
        with pytest.raises(tbl.InvalidValue, match=said):
            estimate(["a"], model=model, **how)
    assert estimate(["a"], model=MODEL, tier="standard", speed="standard").cost_usd
    plan = estimate(["a"], model=MODEL, tier="flex")
    assert plan.cost_usd is None
    assert "none for service_tier=flex on" in str(plan.unpriced_reason)


def test_a_batch_is_priced_as_one() -> None:
    whole, half = (estimate(["a b"] * 3, model=MODEL, batch=batch) for batch in (False, True))
    assert whole.cost_usd is not None
    assert half.cost_usd == whole.cost_usd / 2
    assert "batch" in half.prices


def test_each_call_pays_the_rates_of_its_own_size() -> None:
    """Prompts above a size at which rates change cost more, and only they."""
    model = "gemini-2.5-pro"
    plan = estimate(["a " * 100_000, "a " * 300_000], model=model, max_output_tokens=0)
    each = [tbl.cost(tbl.Usage(n, 0), model=model) for n in (100_000, 300_000)]
    assert plan.cost_usd == sum(each)
    assert each[1] > 3 * each[0]


def test_the_frame_has_a_row_for_each_call_and_adds_up(ledger: tbl.Ledger) -> None:
    plan = estimate(pl.DataFrame({"text": ["a b", "c"]}), ledger=ledger, prompt="text", system="s t")
    assert plan.frame["input_tokens"].to_list() == [4, 3]
    assert plan.frame["cost_usd"].sum() == plan.cost_usd
    assert plan.frame.columns == ["input_tokens", "input_tokens_upper", "output_tokens", "cost_usd", "hold_usd"]


def test_progress_is_told(ledger: tbl.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenbudget_lab import prompts

    monkeypatch.setattr(prompts, "AT_ONCE", 2)
    told: list[Any] = []
    estimate(["a"] * 5, ledger=ledger, progress=lambda *done: told.append(done))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_it_says_all_of_it_in_a_few_lines(ledger: tbl.Ledger) -> None:
    ledger.budget("lab/study", usd=1)
    said = repr(estimate(["a b"] * 1500, budget="lab/study", ledger=ledger)).split("\n")
    assert said == [
        "1,500 calls of local",
        "  input   3,000 tokens (words)",
        "  output  150,000 (0 … 150,000) tokens (as long as allowed; no measured calls of budget lab/study)",
        "  cost    $1.50 ($0.003 … $1.50) (set by hand)",
        "  budget  lab/study: $1.00 of $1.00 left; the first 998 calls fit",
    ]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"prompts": []}, "prompts: there are none"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"budget": "lab"}, "say in which ledger"),
        ({"label": "x"}, "say where they are"),
        ({"model": 5}, "model"),
        ({"budget": 5}, "budget: is int, neither a budget nor the name of one"),
        ({"counter": 5}, "counter: is int, and no TokenCounter"),
        ({"counter": Words}, "counter: is ABCMeta, and no TokenCounter"),
        ({"counter": None, "model": "gpt-4o", "tools": 5}, "^tools: is int, not a list; give a list of tool definitions"),
        ({"counter": None, "model": "gpt-4o", "system": 5}, "^system: is int, not a list; give a text, a list of text blocks"),
    ],
    ids=str,
)
def test_what_means_nothing_is_named(how: dict[str, Any], said: str) -> None:
    prompts = how.pop("prompts", ["a"])
    with pytest.raises(tbl.InvalidValue, match=said):
        estimate(prompts, **how)


def test_a_text_that_would_act_on_a_terminal_is_shown_escaped(ledger: tbl.Ledger) -> None:
    assert "\x1b" not in repr(estimate(["a"], ledger=ledger, model="evil\x1b[2J"))


def test_margins_of_one_are_no_negative_count() -> None:
    count = Count(10, exact=False, method="x", margin=3.0)
    assert (count.lower, count.upper) == (0, 40)
    with pytest.raises(tbl.InvalidValue):
        Count(10, exact=False, method="x", margin=math.nan)


# --- where it could be wrong without a word ----------------------------------------------------------------------------------


def test_a_closed_budget_pays_for_nothing(ledger: tbl.Ledger) -> None:
    """Nor does one below it."""
    child = ledger.budget("lab/study", usd=1)
    ledger.budget("lab").close()
    plan = estimate(["a"] * 3, budget=child)
    assert (plan.calls_that_fit, plan.fits) == (0, False)
    assert "closed; no call fits" in repr(plan)


def test_answers_of_one_length_are_not_all_that_there_are(ledger: tbl.Ledger) -> None:
    """Five that were cut off at 10 say little of those that may have 1,000; what surely fits is as long as it may be."""
    study = ledger.budget("lab/study", usd="0.5")
    answered(ledger, [10] * 5, "lab/study")
    plan = estimate(["a"] * 1000, budget=study, max_output_tokens=1000)
    assert plan.output_tokens_lower < plan.output_tokens == 10_000 < plan.output_tokens_upper
    assert (plan.calls_that_fit, plan.fits) == (1000, False)
    assert plan.calls_that_surely_fit is not None
    assert plan.calls_that_surely_fit < 60


def test_short_answers_are_not_rounded_away(ledger: tbl.Ledger) -> None:
    """A mean of 0.4 tokens, at $10 per million: 400 tokens of 1,000 calls cost $0.004."""
    answered(ledger, [0, 1, 0, 1, 0] * 20, label="short")
    plan = estimate(["a"] * 1000, ledger=ledger, label="short", max_output_tokens=2)
    assert plan.output_tokens == plan.frame["output_tokens"].sum() == 400
    assert plan.cost_usd == plan.frame["cost_usd"].sum() == Decimal("0.005")


def test_a_record_of_several_requests_is_not_one_long_answer(ledger: tbl.Ledger) -> None:
    for _ in range(9):
        ledger.budget("lab").record(tbl.Usage(1000, 5000), model=PRICED, requests=100, tags={"label": "many"}).result()
    assert "no measured calls" in estimate(["a"], ledger=ledger, label="many").answers


def test_amounts_are_rounded_up_as_the_ledger_rounds_them(ledger: tbl.Ledger) -> None:
    """Less than the smallest unit is one of it."""
    ledger.set_price("tiny", input_usd_per_mtok="0.000000000001", output_usd_per_mtok=0)
    study = ledger.budget("lab/study", usd="0.000000000005")
    plan = estimate(["a"] * 10, budget=study, model="tiny", max_output_tokens=0)
    assert plan.calls_that_fit == 5
    assert plan.frame["hold_usd"].to_list() == [Decimal("0.000000000001")] * 10


@pytest.mark.parametrize("label", ["", {}, 5, {"a": 3}, {1: "a"}], ids=str)
def test_a_label_is_a_text_or_tags(ledger: tbl.Ledger, label: Any) -> None:
    with pytest.raises(tbl.InvalidType, match="label"):
        estimate(["a"], ledger=ledger, label=label)


def test_nothing_is_counted_for_a_price_that_cannot_be_asked_for() -> None:
    """What is wrong with the terms is said before the first of many prompts is read."""

    def unread() -> Iterator[str]:
        raise AssertionError
        yield ""

    for wrong in ({"tier": "flx"}, {"at": "tomorrow"}, {"model": "x" * 1_000_000}, {"budget": "x" * 1_000_000}):
        with pytest.raises(tbl.InvalidValue) as error:
            estimate(unread(), **wrong)
        assert len(str(error.value)) < 200


def test_a_long_label_is_not_told_whole(ledger: tbl.Ledger) -> None:
    assert len(repr(estimate(["a"], ledger=ledger, label="x" * 1_000_000))) < 500


def test_what_a_label_says_makes_no_line_of_its_own(ledger: tbl.Ledger) -> None:
    said = repr(estimate(["a"], ledger=ledger, label="x)\n  cost    $0.00 (free)"))
    assert len(said.split("\n")) == 4
    assert "C:\\new" in repr(estimate(["a"], ledger=ledger, label="C:\\new"))


def test_equal_counts_are_kept_once() -> None:
    """A hundred thousand counts of which three hundred are different take little more than four bytes each."""
    counts = (Count(n % 300, exact=False, method="words", margin=0.1) for n in range(100_000))
    tally: Tally[Count] = Tally()
    tracemalloc.start()
    try:
        tally.add(counts)
        assert tracemalloc.get_traced_memory()[0] / 100_000 < 8
    finally:
        tracemalloc.stop()
    assert (len(tally), len(tally.different)) == (100_000, 300)
    assert [count.tokens for count in tally] == [n % 300 for n in range(100_000)]
