"""What measured calls teach an estimate, given by hand or read from a ledger."""

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenbudget_lab as tbl
from tests.paragraphs import PROSE
from tokenbudget_lab import EstimationTokenCounter, Usage
from tokenbudget_lab.errors import InvalidType, InvalidValue
from tokenbudget_lab.learning import ENOUGH, Pair, learned

MODELS = ["gpt-6-mini", "claude-sonnet-4-5", "claude-sonnet-5-5"]
MODEL = "claude-sonnet-5-5"


def off(estimate: float, truth: float) -> float:
    return abs(estimate / truth - 1)


def texts(number: int, seed: int = 1) -> list[str]:
    chance = random.Random(seed)
    words = " ".join(PROSE["English"] for _ in range(3)).split()
    return [" ".join(chance.choices(words, k=chance.randint(20, 400))) for _ in range(number)]


@settings(deadline=None, max_examples=30)
@given(st.floats(0.4, 2.5), st.floats(0, 0.05), st.integers(0, 99), st.sampled_from(MODELS))
def test_after_five_calls_a_batch_is_three_per_cent_off_at_most(truth: float, noise: float, seed: int, model: str) -> None:
    """The provider counts `truth` times what is estimated, each time off by less than `noise`."""
    chance = random.Random(seed)
    counter, unlearned = EstimationTokenCounter(model), EstimationTokenCounter(model)

    def measured(text: str) -> int:
        return int(unlearned.count_sync(text).tokens * truth * (1 + chance.uniform(-noise, noise)))

    first, batch = texts(ENOUGH, seed), texts(60, seed + 100)
    for text in first:
        counter.observe(counter.count_sync(text), measured(text))
    total = sum(counter.count_sync(text).tokens for text in batch)
    assert off(total, sum(measured(text) for text in batch)) <= 0.03 + noise / 2


def test_a_truth_of_1_27_is_learned_from_five_calls() -> None:
    counter = EstimationTokenCounter("claude-sonnet-5-5", label="few-shot")
    for text in texts(5):
        count = counter.count_sync(text)
        counter.observe(count, round(count.unscaled * 1.27))
    count = counter.count_sync(PROSE["English"])
    assert count.tokens == pytest.approx(count.unscaled * 1.27, abs=1)
    assert "learned from 5 calls" in str(count.note)


def test_what_is_already_scaled_is_not_scaled_again() -> None:
    """Fifty calls, each estimated with what the ones before have taught: the scale stays where it is."""
    counter = EstimationTokenCounter("claude-sonnet-5-5")
    for text in texts(50):
        count = counter.count_sync(text)
        counter.observe(count, round(count.unscaled * 1.27))
    assert counter.learned.scale == pytest.approx(1.27, abs=0.01)


def test_four_calls_teach_nothing() -> None:
    counter = EstimationTokenCounter("claude-sonnet-5-5")
    counter.learn([(100, 200)] * (ENOUGH - 1))
    assert counter.count_sync("Hello") == EstimationTokenCounter("claude-sonnet-5-5").count_sync("Hello")


@given(st.lists(st.tuples(st.integers(1, 2**52), st.integers(1, 2**52)), min_size=5, max_size=300))
def test_no_teacher_drives_it_to_nonsense(taught: list[tuple[int, int]]) -> None:
    found = learned([Pair(*pair) for pair in taught], 0.1)
    assert 0.3 <= found.scale <= 3
    assert found.margin is not None
    assert 0 < found.margin < math.inf


def test_one_odd_call_in_ten_does_not_move_it() -> None:
    taught = [Pair(1_000, 1_270)] * 18 + [Pair(1_000, 90_000), Pair(1_000, 1)]
    assert learned(taught, 0.1).scale == pytest.approx(1.27)


@pytest.mark.parametrize("number", [5, 10, 30, 100])
def test_learned_margins_cover_nine_calls_in_ten(number: int) -> None:
    """Five hundred labels, each learned from some calls; then one more call of each."""
    chance, covered = random.Random(number), 0
    for _ in range(500):
        scale = chance.uniform(0.7, 1.6)
        calls = [
            Pair(size := chance.randint(50, 5_000), size * scale * chance.lognormvariate(0, 0.06)) for _ in range(number + 1)
        ]
        found = learned(calls[:-1], 0.12)
        last = calls[-1]
        assert found.margin is not None
        covered += off(last.measured, round(last.estimated * found.scale)) <= found.margin
    assert covered / 500 >= 0.87


@pytest.mark.parametrize(
    ("estimated", "measured"), [(0, 5), (5, 0), (-1, 5), (math.nan, 5), (5, math.inf), (True, 5), ("5", 5), (5, None)]
)
def test_what_is_no_number_above_zero_teaches_nothing(estimated: Any, measured: Any) -> None:
    counter = EstimationTokenCounter("gpt-6-mini")
    with pytest.raises(InvalidValue):
        counter.observe(estimated, measured)
    assert counter.learned.calls == 0


# --- learning from a ledger --------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger() -> Iterator[tbl.Ledger]:
    with tbl.connect(":memory:") as opened:
        opened.budget("study", usd=100)
        yield opened


def call(
    ledger: Any, text: str, factor: float, counter: EstimationTokenCounter, *, tags: Any = "own", basis: str = "measured"
) -> None:
    """Estimate, reserve, and commit what the provider would have said."""
    count = counter.count_sync(text)
    given = counter.tags(count) if tags == "own" else tags
    with ledger.budget("study").reserve(
        model=counter.model, input_tokens=count.upper, max_output_tokens=10, tags=given
    ) as held:
        held.commit(Usage(round(count.unscaled * factor), 5), basis=basis)


def test_it_learns_from_the_measured_calls_of_its_label(ledger: tbl.Ledger) -> None:
    few = EstimationTokenCounter(MODEL, label="few-shot")
    many = EstimationTokenCounter(MODEL, label="many-shot")
    for text in texts(6):
        call(ledger, text, 1.27, few)
        call(ledger, text, 0.8, many)
    learner = EstimationTokenCounter(MODEL, ledger=ledger, label="few-shot")
    assert learner.learned.scale == pytest.approx(1.27, abs=0.01)
    assert EstimationTokenCounter(MODEL, ledger=ledger, label="many-shot").learned.scale == pytest.approx(0.8, abs=0.01)
    assert EstimationTokenCounter(MODEL, ledger=ledger, label="other").learned.calls == 0
    assert EstimationTokenCounter("claude-opus-5-5", ledger=ledger, label="few-shot").learned.calls == 0
    assert EstimationTokenCounter(MODEL, ledger=ledger).learned.calls == 12


def test_a_ledger_s_calls_are_not_corrected_twice(ledger: tbl.Ledger) -> None:
    for round_ in range(4):
        counter = EstimationTokenCounter(MODEL, ledger=ledger, label="few-shot")
        for text in texts(6, round_):
            call(ledger, text, 1.27, counter)
    assert EstimationTokenCounter(MODEL, ledger=ledger, label="few-shot").learned == pytest.approx((1.27, 0.024, 24), abs=0.01)


def test_reading_a_ledger_again_counts_no_call_twice(ledger: tbl.Ledger) -> None:
    counter = EstimationTokenCounter(MODEL, label="few-shot")
    for text in texts(6):
        call(ledger, text, 1.27, counter)
    assert [counter.learn_from(ledger) for _ in range(3)] == [6, 6, 6]
    assert counter.learned.calls == 6


@pytest.mark.parametrize("basis", ["estimated", "unknown"])
def test_a_usage_that_was_not_measured_teaches_nothing(ledger: tbl.Ledger, basis: str) -> None:
    counter = EstimationTokenCounter(MODEL, label="few-shot")
    for text in texts(8):
        call(ledger, text, 1.27, counter, basis=basis)
    assert counter.learn_from(ledger) == 0


def test_open_lost_and_given_back_calls_teach_nothing(ledger: tbl.Ledger) -> None:
    counter = EstimationTokenCounter(MODEL, label="few-shot")
    study = ledger.budget("study")
    for text in texts(6):
        count = counter.count_sync(text)
        study.reserve_sync(model=MODEL, input_tokens=count.upper, max_output_tokens=10, tags=counter.tags(count))
        with study.reserve(model=MODEL, input_tokens=count.upper, max_output_tokens=10, tags=counter.tags(count)):
            pass
    assert counter.learn_from(ledger) == 0


def test_calls_without_an_estimate_teach_five_times_and_only_upwards(ledger: tbl.Ledger) -> None:
    up, down = (EstimationTokenCounter(MODEL, label=label) for label in ("up", "down"))
    for text in texts(9):
        call(ledger, text, 1.6, up, tags={"label": "up"})
        call(ledger, text, 0.5, down, tags={"label": "down"})
    assert (up.learn_from(ledger), down.learn_from(ledger)) == (5, 5)
    assert up.learned.scale > 1.3
    assert down.learned.scale == 1


@pytest.mark.parametrize("estimate", ["", "many", "-5", "0", "1e99", "'; DROP TABLE events; --"])
def test_a_tag_that_is_no_estimate_teaches_nothing(ledger: tbl.Ledger, estimate: str) -> None:
    counter = EstimationTokenCounter(MODEL, label="few-shot")
    for text in texts(6):
        call(ledger, text, 1.0, counter, tags={"estimate": estimate, "label": "few-shot"} if estimate else {"label": "other"})
    counter.learn_from(ledger)
    assert counter.learned.scale == 1


def test_what_is_no_ledger_is_refused() -> None:
    with pytest.raises(InvalidType):
        EstimationTokenCounter(MODEL, ledger={})  # type: ignore[arg-type]
