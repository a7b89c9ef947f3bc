"""How fast it goes, what it bought, what was held for nothing: each analysis against a hand computation."""

from __future__ import annotations

import csv
import random
import warnings
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import anthropic
import genai_prices
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Clock, also_on_postgres
from tests.provider import Provider, failed
from tests.test_replay import azure  # noqa: F401 - a fixture

STORES = ON_ONE_MACHINE

HOUR_S = 3600
ANY: Callable[[Any], Any] = lambda value: value  # noqa: E731 - what the types would refuse
MODELS = ("claude-haiku-5-5", "claude-sonnet-5-5", "gpt-5-mini")


def record(budget: tbl.Budget, usd: str | None, **tags: str) -> None:
    budget.record(usd=usd, tokens=10, tags=tags).result()


# --- pace and forecast -------------------------------------------------------------------------------------------------------


def evenly(ledger: tbl.Ledger, clock: Clock, hours: int) -> tbl.Budget:
    """A cent a minute for some hours, of a hundred dollars."""
    lab = ledger.budget("lab", usd=100)
    for _ in range(60 * hours):
        clock.advance(60)
        record(lab, "0.01")
    return lab


def test_the_forecast_of_an_even_spend_is_exact(ledger: tbl.Ledger, clock: Clock) -> None:
    """A cent a minute, two hours long: $98.80 are left, and last for 9,880 minutes."""
    row = tbl.forecast(evenly(ledger, clock, 2)).row(0, named=True)
    assert (row["left"], row["window"]) == (98.8, "")
    assert row["rate_per_h"] == row["rate_lower_per_h"] == row["rate_upper_per_h"] == pytest.approx(0.6, abs=1e-12)
    assert abs(row["runs_out"] - (clock.now + timedelta(minutes=9_880))) < timedelta(seconds=1)
    assert row["runs_out"] == row["runs_out_earliest"] == row["runs_out_latest"]


def test_the_forecast_of_an_uneven_spend_has_an_interval(ledger: tbl.Ledger, clock: Clock) -> None:
    """A cent in one minute, three in the next, none for a while."""
    lab = ledger.budget("lab", usd=100)
    for minute in range(60):
        clock.advance(60)
        if minute % 7 < 4:
            record(lab, "0.03" if minute % 2 else "0.01")
    row = tbl.forecast(lab).row(0, named=True)
    assert row["rate_lower_per_h"] < row["rate_per_h"] < row["rate_upper_per_h"]
    assert clock.now < row["runs_out_earliest"] < row["runs_out"] < row["runs_out_latest"]


def test_a_window_that_ends_before_is_not_run_out_of(ledger: tbl.Ledger, clock: Clock) -> None:
    """A limit per day, and one in all, of the budget above; it is noon."""
    ledger.budget("lab", usd=10)
    study = ledger.budget("lab/study", usd=2, window="day")
    for _ in range(60):
        clock.advance(60)
        record(study, "0.001")
    by_window = {row["window"]: row for row in tbl.forecast(study).rows(named=True)}
    assert set(by_window) == {"", "day"}
    assert by_window["day"]["runs_out"] is None
    assert by_window[""]["runs_out"] > clock.now


def test_nothing_spent_has_no_forecast_and_no_limit_nothing_left(ledger: tbl.Ledger) -> None:
    lab, free = ledger.budget("lab", usd=1), ledger.budget("free", limits=[])
    row = tbl.forecast(lab, calls=5).row(0, named=True)
    assert (row["rate_per_h"], row["runs_out"], row["planned"], row["fits"]) == (0.0, None, None, None)
    free.record(usd="0.5", tokens=9)
    row = tbl.forecast(free, calls=2).row(0, named=True)
    assert (row["budget"], row["left"], row["runs_out"], row["planned"], row["fits"]) == ("free", None, None, 1.0, None)
    assert tbl.pace(free).select("limit", "committed", "used", "pace").rows() == [(None, 0.5, None, None)]


def test_planned_calls_cost_what_such_calls_cost(ledger: tbl.Ledger) -> None:
    """Of one condition, told by its tag; equal ones have no interval."""
    lab = ledger.budget("lab", usd=10)
    for _ in range(4):
        record(lab, "0.01", arm="a")
        record(lab, "0.50", arm="b")
    row = tbl.forecast(lab, calls=100, where={"arm": "a"}).row(0, named=True)
    assert (row["planned"], row["planned_lower"], row["planned_upper"], row["fits"]) == (1.0, 1.0, 1.0, True)
    mixed = tbl.forecast(lab, calls=100).row(0, named=True)
    assert mixed["planned"] == pytest.approx(25.5)
    assert mixed["planned_lower"] < mixed["planned"] < mixed["planned_upper"]
    assert mixed["fits"] is False


def test_pace_is_used_by_elapsed(ledger: tbl.Ledger, clock: Clock) -> None:
    """At noon half of the day is over; a quarter of the limit is used."""
    lab = ledger.budget("lab", usd=4, window="day")
    record(lab, "1")
    row = tbl.pace(lab).row(0, named=True)
    assert (row["elapsed"], row["used"], row["pace"]) == (0.5, 0.25, 0.5)
    assert (row["begins"], row["ends"]) == (clock.now - timedelta(hours=12), clock.now + timedelta(hours=12))


def test_a_limit_in_all_has_a_pace_until_a_day_that_is_said(ledger: tbl.Ledger, clock: Clock) -> None:
    """From its first call on.

    12:00   $1 of $4
    18:00   until 12:00 on the next day a quarter is over
    """
    lab = ledger.budget("lab", usd=4)
    record(lab, "1")
    clock.advance(6 * HOUR_S)
    assert tbl.pace(lab).item(0, "pace") is None
    assert tbl.pace(lab, until="2026-11-24T12:00").select("elapsed", "used", "pace").row(0) == (0.25, 0.25, 1.0)


def test_a_budget_burns_down_call_by_call(ledger: tbl.Ledger, clock: Clock) -> None:
    """Beside an even pace over the day, from midnight on; what went over is below zero.

    12:00   $1 of $2
    18:00   $1.50
    """
    lab = ledger.budget("lab", usd=2, window="day")
    record(lab, "1")
    clock.advance(6 * HOUR_S)
    record(lab, "1.5")
    rows = tbl.burn_down(lab)
    assert rows["left"].to_list() == [Decimal(2), Decimal(1), Decimal("-0.5")]
    assert rows["even_left"].to_list() == [2.0, 1.0, 0.5]
    assert rows["committed"].to_list() == [0, 1, Decimal("2.5")]


def as_source(kind: str, ledger: tbl.Ledger) -> Any:
    """The same calls by another way."""
    frame = ledger.calls().collect()
    return {"ledger": ledger, "list": [ledger], "frame": frame, "lazy": frame.lazy(), "pandas": frame.to_pandas()}[kind]


@pytest.mark.parametrize("kind", ["ledger", "list", "frame", "lazy", "pandas"])
def test_any_source_has_a_pace_and_a_forecast_of_a_limit_that_is_said(
    ledger: tbl.Ledger, clock: Clock, kind: str, tmp_path: Path
) -> None:
    """A cent a minute, two hours long, in a budget without a limit; of a hundred dollars, for four hours.

    The limit is said, so that every source has the same answer, and that is the one of a budget which has this limit.
    """
    lab = evenly(ledger, clock, 2)
    source, end = as_source(kind, ledger), clock.now + timedelta(hours=2)
    analyses: list[Callable[..., pl.DataFrame]] = [
        partial(tbl.forecast, calls=10), partial(tbl.pace, until=end), partial(tbl.burn_down, until=end)
    ]  # fmt: skip
    for analysis in analyses:
        told, own = (frame.drop("budget", strict=False) for frame in (analysis(source, limit_usd=100), analysis(lab)))
        assert told.equals(own)


@pytest.mark.parametrize("kind", ["frame", "pandas"])
def test_a_frame_without_a_limit_has_what_was_used_and_what_planned_calls_will_cost(ledger: tbl.Ledger, kind: str) -> None:
    lab = ledger.budget("lab", usd=10)
    for usd in ("0.10", "0.30"):
        record(lab, usd)
    source = as_source(kind, ledger)
    assert tbl.pace(source).select("budget", "limit", "committed", "pace").rows() == [(None, None, 0.4, None)]
    row = tbl.forecast(source, calls=100).row(0, named=True)
    assert (row["left"], row["runs_out"], row["planned"], row["fits"]) == (None, None, pytest.approx(20), None)
    assert tbl.burn_down(source).select("committed", "left").rows()[-1] == (Decimal("0.4"), None)


def test_a_ledger_has_the_limits_of_its_open_budgets_each_once(ledger: tbl.Ledger) -> None:
    """So has a list of budgets, whose ancestors are the same one."""
    ledger.budget("lab", usd=10)
    one, two = ledger.budget("lab/one", usd=5), ledger.budget("lab/two", tokens=99)
    ledger.budget("old", usd=1).close()
    record(one, "1")
    for analysis in (tbl.pace, tbl.forecast):
        wanted = [("lab", "usd"), ("lab/one", "usd"), ("lab/two", "tokens")]
        assert sorted(analysis(ledger).select("budget", "resource").rows()) == wanted
        assert sorted(analysis([one, two]).select("budget", "resource").rows()) == wanted
        assert sorted(analysis([ledger, one]).select("budget", "resource").rows()) == wanted


def test_only_calls_of_a_time_and_condition_count_where_it_is_said(ledger: tbl.Ledger, clock: Clock) -> None:
    """A limit without a window for the month of December: at noon of the 16th half of it is over, a fifth of $5 is used.

    30 Nov   $2 arm a
     2 Dec   $1 arm a
     3 Dec   $4 arm b
    """
    lab = ledger.budget("lab", usd=5)
    clock.set("2026-12-16 12:00")
    for day, usd, arm in (("2026-11-30", 2, "a"), ("2026-12-02", 1, "a"), ("2026-12-03", 4, "b")):
        lab.record(usd=usd, tokens=9, at=datetime.fromisoformat(day).replace(tzinfo=UTC), tags={"arm": arm}).result()
    row = tbl.pace(lab, month="2026-12", where={"arm": "a"}).row(0, named=True)
    assert (row["committed"], row["used"], row["elapsed"], row["pace"]) == (1.0, 0.2, 0.5, 0.4)
    assert tbl.pace(lab, month="2026-12").item(0, "committed") == 5
    assert tbl.pace(lab).item(0, "committed") == 7
    left = tbl.burn_down(lab, month="2026-12", where={"arm": "a"})
    assert left.select("left", "even_left").row(0) == (Decimal(5), 5.0)
    assert left.item(-1, "left") == 4
    assert tbl.forecast(lab, calls=3, month="2026-12", where={"arm": "a"}).item(0, "planned") == 3


@pytest.mark.parametrize(
    ("analysis", "said"),
    [
        (lambda lab, free: tbl.burn_down(free), "no limit of usd; give limit_usd="),
        (lambda lab, free: tbl.burn_down(lab, resource="tokens", limit_usd=1), "is in USD"),
        (lambda lab, free: tbl.pace([lab, lab.ledger.calls()]), "a frame has no limit"),
        (lambda lab, free: tbl.pace(lab, limit_usd=-1), "limit_usd"),
        (lambda lab, free: tbl.burn_down(lab, resource=ANY("euro")), "none of usd"),
        (lambda lab, free: tbl.pace(ANY("lab")), "give a ledger, a budget"),
        (lambda lab, free: tbl.forecast(lab, over=ANY(3600)), "not a timedelta"),
        (lambda lab, free: tbl.forecast(lab, over=timedelta(0)), "too short"),
        (lambda lab, free: tbl.forecast(lab, calls=-1), "calls"),
    ],
)
def test_what_has_no_pace_is_named(ledger: tbl.Ledger, analysis: Callable[..., Any], said: str) -> None:
    with pytest.raises((tbl.InvalidValue, tbl.InvalidType), match=said):
        analysis(ledger.budget("lab", usd=1), ledger.budget("free", limits=[]))


# --- what it bought ----------------------------------------------------------------------------------------------------------


@also_on_postgres
def test_conditions_stand_side_by_side(ledger: tbl.Ledger) -> None:
    """By call, and by item, whose calls are summed first.

    a   one call of 1 cent for each of 20 items
    b   two of 1 and 2 cents for each
    """
    lab = ledger.budget("lab", limits=[])
    for item in map(str, range(20)):
        record(lab, "0.01", arm="a", item=item)
        record(lab, "0.01", arm="b", item=item)
        record(lab, "0.02", arm="b", item=item)
    calls = tbl.compare(lab, "arm")
    assert calls.select("arm", "calls", "units", "cost_usd").rows() == [
        ("a", 20, 20, Decimal("0.2")),
        ("b", 40, 40, Decimal("0.6")),
    ]
    items = tbl.compare(lab, "arm", per="item", baseline="a")
    assert items["units"].to_list() == [20, 20]
    assert items["ratio"].to_list() == pytest.approx([1, 3])
    assert items.select("mean_lower_usd", "mean_upper_usd").row(1) == pytest.approx((0.03, 0.03))
    assert calls.item(1, "mean_lower_usd") < 0.015 < calls.item(1, "mean_upper_usd")
    assert tbl.compare(lab, "arm").equals(calls)  # the same seed gives the same interval


@pytest.mark.parametrize("units", [30, 60_000])
def test_nine_in_ten_intervals_and_more_hold_the_mean(units: int) -> None:
    """Of exponential costs with a mean of 1 cent; by draws, and for many units by the normal distribution."""
    chance, held, trials = random.Random(7), 0, 20 if units < 100 else 12
    for trial in range(trials):
        usd = [Decimal(round(chance.expovariate(100) * 10**12)).scaleb(-12) for _ in range(units)]
        frame = pl.DataFrame({"cost_usd": usd}, schema={"cost_usd": pl.Decimal(38, 12)}).with_columns(
            pl.lit(datetime(2026, 1, 1, tzinfo=UTC)).alias("spent_at"),
            pl.lit("a").alias("arm"), pl.lit("measured").alias("basis"),
            *(pl.lit(1, pl.Int64).alias(name) for name in ("requests", "tokens", "input_tokens", "output_tokens")),
        )  # fmt: skip
        row = tbl.compare(frame, "arm", seed=trial).row(0, named=True)
        held += row["mean_lower_usd"] <= 0.01 <= row["mean_upper_usd"]
    assert held >= 0.8 * trials


def test_unknown_costs_are_counted_and_in_no_mean(ledger: tbl.Ledger) -> None:
    """An item of which one call has no price has none itself."""
    lab = ledger.budget("lab", limits=[])
    record(lab, "0.01", arm="a", item="1")
    record(lab, None, arm="a", item="1")
    record(lab, "0.05", arm="a", item="2")
    row = tbl.compare(lab, "arm", per="item").row(0, named=True)
    assert (row["units"], row["mean_usd"], row["unpriced_calls"]) == (1, 0.05, 2)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"by": None}, "no condition"),
        ({"by": "arm", "per": "item"}, "1 calls have no 'item'"),
        ({"by": "arm", "baseline": "z"}, "no condition; there are"),
        ({"by": ["arm", "budget"], "baseline": "a"}, "no condition; there are"),
    ],
)
def test_what_cannot_be_compared_is_named(ledger: tbl.Ledger, how: dict[str, Any], said: str) -> None:
    record(ledger.budget("lab", limits=[]), "0.01", arm="a")
    with pytest.raises(tbl.InvalidValue, match=said):
        tbl.compare(ledger, **how)


def graded(ledger: tbl.Ledger) -> pl.DataFrame:
    """Three items of two conditions; the first took two calls."""
    lab = ledger.budget("lab", limits=[])
    for arm, factor in (("cheap", 1), ("dear", 3)):
        for item in ("1", "1", "2", "3"):
            record(lab, str(Decimal("0.10") * factor), arm=arm, item=f"{arm}{item}")
    return pl.DataFrame(
        {
            "item": [f"{arm}{n}" for arm in ("cheap", "dear") for n in (1, 2, 3)],
            "correct": [True, False, False, True, True, True],
            "kind": ["x", "x", "y"] * 2,
        }
    )


@pytest.mark.parametrize("pandas", [False, True])
def test_a_correct_answer_costs_all_that_its_condition_did(ledger: tbl.Ledger, *, pandas: bool) -> None:
    """Wrong answers cost too.

    cheap   4 calls of $0.10, 1 of 3 correct   $0.40 per correct answer
    dear    4 calls of $0.30, 3 of 3           $0.40
    """
    results = graded(ledger)
    table = tbl.cost_per(ledger, results.to_pandas() if pandas else results, on="item", score="correct", by="arm")
    sums = table.sort("arm").select("arm", "items", "score", "cost_usd").rows()
    assert sums == [("cheap", 3, 1.0, Decimal("0.4")), ("dear", 3, 3.0, Decimal("1.2"))]
    assert table["cost_per_score_usd"].to_list() == pytest.approx([0.4, 0.4])
    by_kind = tbl.cost_per(ledger, results, on="item", score="correct", by=["arm", "kind"])
    assert by_kind["cost_usd"].sum() == table["cost_usd"].sum()


def test_what_finds_no_partner_is_counted_aloud(ledger: tbl.Ledger) -> None:
    """And is in no sum."""
    results = graded(ledger)
    record(ledger.budget("lab"), "9", arm="cheap")
    record(ledger.budget("lab"), "9", arm="cheap", item="unknown")
    more = pl.concat([results, pl.DataFrame({"item": ["nobody"], "correct": [True], "kind": ["x"]})])
    with pytest.warns(UserWarning, match="2 calls have no result and 1 results have no call by item"):
        table = tbl.cost_per(ledger, more, on="item", score="correct")
    assert table.select("items", "cost_usd", "calls_without_result", "results_without_call").row(0) == (6, Decimal("1.6"), 2, 1)


def test_a_cost_that_is_not_known_is_not_taken_for_nothing(ledger: tbl.Ledger) -> None:
    """The item is left out with its score, and counted."""
    results = graded(ledger)
    record(ledger.budget("lab"), None, arm="dear", item="dear1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = tbl.cost_per(ledger, results, on="item", score="correct")
    assert table.select("items", "score", "unpriced_items").row(0) == (5, 3.0, 1)


def test_replies_join_by_their_ids(ledger: tbl.Ledger) -> None:
    """Where not told otherwise."""
    ledger.budget("lab", limits=[]).record(usd="0.2", tokens=1, response_id="msg_1").result()
    table = tbl.cost_per(ledger, pl.DataFrame({"response_id": ["msg_1"], "score": [0.5]}), score="score")
    assert table.item(0, "cost_per_score_usd") == 0.4


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([1, 2], "no frame"),
        (pl.DataFrame({"id": ["1"]}), "has no 'item'"),
        (pl.DataFrame({"item": ["1"]}), "has no 'score'"),
        (pl.DataFrame({"item": ["1"], "score": ["good"]}), "neither numbers nor true and false"),
        (pl.DataFrame({"item": ["1", "1"], "score": [1, 0]}), "comes 2 times"),
        (
            pl.DataFrame({"item": ["1"], "score": [None]}, schema={"item": pl.String, "score": pl.Float64}),
            "1 results have none",
        ),
        (pl.DataFrame({"item": ["1"], "score": [float("nan")]}), "1 results have none"),
    ],
)
def test_results_that_cannot_be_joined_are_named(ledger: tbl.Ledger, results: Any, said: str) -> None:
    with pytest.raises((tbl.InvalidValue, tbl.InvalidType), match=said):
        tbl.cost_per(ledger, results, on="item", score="score")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_frontier_is_what_no_other_row_beats(rows: list[tuple[int, int]]) -> None:
    """Asked of every pair."""
    table = pl.DataFrame(
        {"cost_usd": [cost for cost, _ in rows], "score": [score for _, score in rows]},
        schema={"cost_usd": pl.Int64, "score": pl.Int64},
    )
    for cost, score, on in tbl.frontier(table).select("cost_usd", "score", "on_frontier").rows():
        assert on == (not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in rows))


def test_a_call_that_cost_far_more_stands_out_of_its_group(ledger: tbl.Ledger) -> None:
    """What is dear in one condition is usual in the other; equal costs have no outlier."""
    lab = ledger.budget("lab", limits=[])
    for n in range(9):
        record(lab, f"0.0{n % 3 + 1}", arm="a")
        record(lab, f"0.9{n % 3 + 1}", arm="b")
        record(lab, "0.5", arm="c")
    assert tbl.outliers(lab, "arm").is_empty()
    record(lab, "0.92", arm="a")
    assert tbl.outliers(lab, "arm").select("arm", "cost_usd", "typical").rows() == [("a", Decimal("0.92"), 0.02)]
    record(lab, "0.6", arm="c")
    assert set(tbl.outliers(lab, "arm")["arm"]) == {"a", "c"}  # though its median deviation is 0
    with pytest.raises(tbl.InvalidValue, match="holds no numbers"):
        tbl.outliers(lab, column="budget")


# --- what was held for nothing, lost, saved -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 99), st.none() | st.integers(0, 150), st.sampled_from("xy")), max_size=10))
def test_held_and_overrun_are_used_and_unused(calls: list[tuple[int, int | None, str]]) -> None:
    """In every group; nothing of it is negative."""
    with tbl.connect(":memory:") as ledger:
        lab = ledger.budget("lab", usd=1_000)
        for held, used, arm in calls:
            call = lab.reserve_sync(usd=held, tags={"arm": arm})
            (call.rollback() if used is None else call.commit(usd=used)).result()
        lab.reserve_sync(usd=1)  # is open, and so no unused one yet
        table = tbl.unused_holds(lab, "arm")
        assert table["held_usd"].sum() == sum(held for held, _, _ in calls)
        assert table["unused_usd"].sum() == sum(max(held - (used or 0), 0) for held, used, _ in calls)
        for row in table.rows(named=True):
            assert row["held_usd"] + row["overrun_usd"] == row["used_usd"] + row["unused_usd"]
            assert min(row["unused_usd"], row["overrun_usd"], row["unused_usd_h"]) >= 0


def test_what_was_held_for_long_weighs_more(ledger: tbl.Ledger, clock: Clock) -> None:
    """$2 of which $1.50 are not used, for half an hour."""
    call = ledger.budget("lab", usd=5).reserve_sync(usd=2, timeout=7200)
    clock.advance(HOUR_S / 2)
    call.commit(usd="0.5").result()
    assert tbl.unused_holds(ledger).select("unused_usd_h", "used_fraction").row(0) == (0.75, 0.25)


def test_lost_spend_says_what_went_wrong(ledger: tbl.Ledger) -> None:
    """Measured spend is in the whole, and in none of the reasons.

    measured   $0.50
    broken     $0.20, estimated
    lost       $0.30, the whole hold
    unpriced   one call
    """
    lab = ledger.budget("lab", limits=[tbl.Limit(tokens=1_000)])
    record(lab, "0.5")
    lab.record(usd="0.2", tokens=1, basis="estimated").result()
    lab.reserve_sync(usd="0.3", tokens=5, if_lost="count").lose().result()
    record(lab, None)
    assert tbl.lost_spend(lab).rows() == [
        ("lost", 1, Decimal("0.3"), pytest.approx(0.3)),
        ("broken", 1, Decimal("0.2"), pytest.approx(0.2)),
        ("unpriced", 1, None, None),
    ]


def test_what_the_sdk_tried_again_bought_nothing(ledger: tbl.Ledger, provider: Provider) -> None:
    """The gateway gave up on the first attempt, which may have been billed; the provider refused the second; the third came.

    And one that broke off for good, on a model of its own, is no retried one.
    """
    provider.script(failed(504), failed(429, retry_after=0))
    plain = anthropic.Anthropic(base_url=provider.url, api_key="none", max_retries=2)
    with plain:
        study = ledger.budget("study", usd=5)
        messages = [{"role": "user", "content": "Once more"}]
        client = tbl.instrument(plain, study)
        client.messages.create(model="claude-haiku-5-5", max_tokens=50, messages=ANY(messages))
    study.record(usd="0.1", tokens=9, basis="estimated").result()
    calls = ledger.calls().select("sdk_attempt", "state", "basis").collect()
    assert calls["sdk_attempt"].to_list() == [None, 2, 3, None]
    told = tbl.lost_spend(ledger)
    assert dict(told.select("reason", "calls").rows()) == {"retried": 1, "broken": 1}
    assert tbl.lost_spend(ledger.calls().drop("sdk_attempt")).get_column("reason").to_list().count("retried") == 0


def test_the_cache_saved_what_the_catalogue_says(ledger: tbl.Ledger, clock: Clock) -> None:
    """Of the same tokens without a cache; writing costs more than it saves."""
    lab = ledger.budget("lab", limits=[])
    usage = {"input_tokens": 50_000, "output_tokens": 1_000}
    lab.record(tbl.Usage(**usage, cache_read_tokens=40_000), model=MODELS[1], tags={"arm": "read"}).result()
    lab.record(tbl.Usage(**usage, cache_write_5m_tokens=40_000), model=MODELS[1], tags={"arm": "written"}).result()
    table = {row["arm"]: row for row in tbl.cache_savings(lab, "arm").rows(named=True)}
    plain = genai_prices.calc_price(genai_prices.Usage(**usage), MODELS[1], genai_request_timestamp=clock.now).total_price
    for row in table.values():
        assert row["without_cache_usd"] == plain
    assert table["read"]["saved_usd"] == plain - lab.ledger.calls().collect()["cost_usd"].min()  # type: ignore[attr-defined] # a ledger with frames
    assert table["written"]["saved_usd"] < 0
    assert table["read"]["read_fraction"] == 0.8


@pytest.mark.parametrize("whole", [False, True])
def test_the_cache_of_a_model_of_ones_own_saves_by_the_ledgers_prices(ledger: tbl.Ledger, *, whole: bool) -> None:
    """900 of 1,000 tokens at $1 in place of $10 per million."""
    ledger.set_price("local", input_usd_per_mtok=10, output_usd_per_mtok=10, cache_read_usd_per_mtok=1)
    lab = ledger.budget("lab", limits=[])
    lab.record(tbl.Usage(1_000, 0, cache_read_tokens=900), model="local").result()
    row = tbl.cache_savings(ledger if whole else lab).row(0, named=True)
    assert (row["calls"], row["saved_usd"], row["unpriced_calls"]) == (1, Decimal("0.0081"), 0)


def test_counts_before_are_held_against_what_was_measured(ledger: tbl.Ledger) -> None:
    """Of calls whose input was counted: 20 % over, 10 % under."""
    lab = ledger.budget("lab", usd=5)
    for counted, measured in ((120, 100), (90, 100)):
        with lab.reserve(model=MODELS[0], input_tokens=counted, max_output_tokens=50) as call:
            call.commit(tbl.Usage(measured, 10))
    with lab.reserve(usd="0.1") as call:
        call.commit(usd="0.1")
    row = tbl.estimate_error(lab).row(0, named=True)
    assert (row["calls"], row["counted_tokens"], row["measured_tokens"]) == (2, 210, 200)
    found = [row[name] for name in ("error", "mean_absolute_error", "worst_under", "worst_over", "output_fraction")]
    assert found == pytest.approx([0.05, 0.15, -0.1, 0.2, 0.2])


ANALYSES: list[Callable[[Any], pl.DataFrame]] = [
    tbl.spend, tbl.unused_holds, tbl.lost_spend, tbl.cache_savings, tbl.estimate_error, tbl.outliers,
    lambda source: tbl.compare(source, "arm"),
    lambda source: tbl.cost_per(source, pl.DataFrame(schema={"response_id": pl.String, "s": pl.Int64}), score="s"),
]  # fmt: skip


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("as_frame", [False, True])
def test_an_empty_ledger_is_a_sensible_answer(
    ledger: tbl.Ledger, analysis: Callable[[Any], pl.DataFrame], *, as_frame: bool
) -> None:
    """As a ledger with an open call does: nothing has been spent."""
    assert analysis(ledger.calls().collect() if as_frame else ledger).height <= 1
    ledger.budget("lab", usd=1).reserve_sync(usd="0.5")
    assert analysis(ledger).height <= 1


# --- a recorded day ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2_000, pytest.param(None, marks=pytest.mark.soak)], ids=["its beginning", "all of it"])
def day(azure: Path, request: pytest.FixtureRequest) -> list[tuple[str, int, int, str]]:  # noqa: F811 - the fixture
    """The first calls of a recorded day, or all: when, input, output; each by one of three models."""
    with azure.open() as file:
        rows = list(islice(csv.DictReader(file), request.param))
    return [
        (row["TIMESTAMP"][:26], int(row["ContextTokens"]), int(row["GeneratedTokens"]), MODELS[n % 3])
        for n, row in enumerate(rows)
    ]


@also_on_postgres
def test_totals_of_a_recorded_day_are_those_of_plain_sql_and_of_the_file(
    ledger: tbl.Ledger, day: list[tuple[str, int, int, str]]
) -> None:
    """To the last digit: by model and hour, against sums over the events, and against prices called by hand."""
    lab = ledger.budget("lab", limits=[])
    moments = [datetime.fromisoformat(when + "+00:00") for when, *_ in day]
    for at, (_, sent, written, model) in zip(moments, day, strict=True):
        lab.record(tbl.Usage(sent, written), model=model, at=at)
    by_hand: dict[tuple[str, datetime], Decimal] = defaultdict(Decimal)
    for at, (_, sent, written, model) in zip(moments, day, strict=True):
        price = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=sent, output_tokens=written), model, genai_request_timestamp=at
        )
        by_hand[model, at.replace(minute=0, second=0, microsecond=0)] += price.total_price
    found = tbl.spend(lab, "model", every="1h")
    assert {(row["model"], row["period"]): row["cost_usd"] for row in found.rows(named=True)} == by_hand
    plain = ledger.sql(
        "select model, sum(usd) as usd, sum(input_tokens) as sent from events where kind = 'recorded' group by model"
    )
    table = {row["model"]: row for row in tbl.spend(lab, "model").rows(named=True)}
    assert {row["model"]: (row["usd"], row["sent"]) for row in plain.rows(named=True)} == {
        model: (row["cost_usd"], row["input_tokens"]) for model, row in table.items()
    }
    assert tbl.spend(lab).item(0, "cost_usd") == sum(by_hand.values())
