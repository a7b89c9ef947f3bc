"""What the money bought: conditions side by side, cost per point of a score, and the calls that cost far more than others."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import polars as pl

from .errors import InvalidType, InvalidValue, told
from .lines import names_told
from .sources import By, Moment, Source, Where, calls_of, label, labels, must_have
from .spending import USD, counted

RESAMPLES = 2_000
_FEW = 1_000  # units up to which Python draws faster than Polars
_MANY = 50_000  # units from which on the interval is the normal one, that the bootstrap's comes to
_Z = 1.959964  # of the normal distribution: 95 in 100 lie within
_FAR = 3.5


def compare(
    source: Source | Any,
    by: By,
    *,
    per: str | None = None,
    baseline: str | None = None,
    seed: int = 0,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """Conditions side by side: what a call, or an item, costs in each, with intervals.

    The interval is the percentile bootstrap's, 95 in 100: the units are drawn again 2,000 times, with repetition, and the mean
    of each draw lies in it 95 times of 100. From 50,000 units on it is mean ± 1.96·s/√n, which the bootstrap's comes to. A
    difference is told from zero when the interval of the ratio to the baseline leaves 1 out.

    Args:
        source: a ledger, a budget, an export, a frame of calls, or a list of these.
        by: what tells the conditions apart: a column, a tag, an expression, or several.
        per: what a unit is: a tag such as `item`, whose calls are summed first; a call where not given.
        baseline: the condition that others are compared with, where `by` is one label.
        seed: of the draws; the same seed gives the same intervals.
        since, until, month, tz, where: which calls, see `calls_of`.

    Returns:
        A row per condition, the cheapest first: the labels, `calls`, `units`, `cost_usd` (Decimal), `mean_usd` with
        `mean_lower_usd` and `mean_upper_usd` (floats, USD per unit, null for fewer than two units), and `unpriced_calls`, which
        are in none of these. With a baseline also `ratio` to it, with `ratio_lower` and `ratio_upper`.

    Raises:
        InvalidValue: a call without the tag that `per` names; a baseline that is no condition.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", limits=[])
        ...     costs = [("zero-shot", "0.01"), ("zero-shot", "0.03"), ("few-shot", "0.04"), ("few-shot", "0.08")]
        ...     receipts = [lab.record(tokens=9, usd=usd, tags={"arm": arm}).result() for arm, usd in costs]
        ...     compare(lab, "arm", baseline="zero-shot").select("arm", "mean_usd", "ratio").rows()
        [('zero-shot', 0.02, 1.0), ('few-shot', 0.06, 3.0)]

    References:
        Efron, B. and Tibshirani, R. J. (1993): An Introduction to the Bootstrap, chapter 13.
    """
    calls = counted(calls_of(source, since=since, until=until, month=month, tz=tz, where=where))
    keys = labels(calls, by, ("calls", "units", "cost_usd", "unpriced_calls", "_unit"))
    if not keys:
        raise InvalidValue("by", "names no condition; give a column or a tag")
    names = [key.meta.output_name() for key in keys]
    units = _units(calls, keys, per).collect()
    if per is not None and units.get_column("_unit").null_count():
        missing = units.filter(pl.col("_unit").is_null()).get_column("calls").sum()
        raise InvalidValue("per", f"{missing:,} calls have no {told(per)}; leave them out with where=")
    conditions = _sides(units, names)
    keys_told = conditions.select(names).rows()
    drawn = {key: _draws(costs, f"{seed} {key}") for key, costs in zip(keys_told, conditions.get_column("_costs"), strict=True)}
    if baseline is not None and (len(names) != 1 or (baseline,) not in drawn):
        known = names_told([str(key[0]) for key in drawn])
        raise InvalidValue("baseline", f"{told(baseline)} is no condition; there are {known}")
    means = ("mean_usd", "mean_lower_usd", "mean_upper_usd")
    added = [_columns(means, [_interval(drawn[key]) for key in keys_told])]
    if baseline is not None:
        ratios = ("ratio", "ratio_lower", "ratio_upper")
        added.append(_columns(ratios, [_ratio(drawn[key], drawn[(baseline,)]) for key in keys_told]))
    table = pl.concat([conditions.drop("_costs"), *added], how="horizontal")
    order = [*names, "calls", "units", "cost_usd", *means, "unpriced_calls"]
    order += ["ratio", "ratio_lower", "ratio_upper"] if baseline is not None else []
    return table.select(order).sort("mean_usd", *names, nulls_last=True)


def cost_per(
    source: Source | Any,
    results: Any,
    *,
    on: str = "response_id",
    score: str,
    by: By = None,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """What a point of your own score cost: a correct answer, a solved task.

    Calls with the same key are summed first, so an item that took three calls costs what all three did; then they are joined
    with your results, a row per key. What finds no partner is counted, and warned about: it is in no cost and no score.

    Args:
        source: a ledger, a budget, an export, a frame of calls, or a list of these.
        results: your results: a frame (Polars, pandas, Arrow) with the columns `on` and `score`.
        on: what joins them: `response_id`, or a tag of the calls, such as `item`.
        score: the column of the score: numbers, or true and false, which count 1 and 0.
        by: labels of the calls, or columns of the results, to group by.
        since, until, month, tz, where: which calls, see `calls_of`.

    Returns:
        A row per group: the labels, `items`, `score` (the sum), `mean_score`, `cost_usd` (Decimal), `cost_per_score_usd`
        (float; null where the score is 0), `unpriced_items`: items with a call of unknown cost, in no sum; and
        `calls_without_result` and `results_without_call`, of the whole source, the same in each row.

    Raises:
        InvalidType: `results` is no frame, or its score no number.
        InvalidValue: a column is missing; a key comes twice in the results, or a score is null.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", limits=[])
        ...     for item, usd in [("a", "0.10"), ("a", "0.05"), ("b", "0.15")]:
        ...         receipt = lab.record(tokens=9, usd=usd, tags={"item": item})
        ...     graded = pl.DataFrame({"item": ["a", "b"], "correct": [True, False]})
        ...     cost_per(lab, graded, on="item", score="correct").select("items", "score", "cost_per_score_usd").row(0)
        (2, 1.0, 0.3)
    """
    graded = _graded(results, on, score)
    calls = counted(calls_of(source, since=since, until=until, month=month, tz=tz, where=where))
    wanted = [] if by is None else [by] if isinstance(by, str | pl.Expr) else list(by)
    theirs = [each for each in wanted if isinstance(each, str) and each in graded.columns]
    keys = labels(calls, [each for each in wanted if each not in theirs], ("items", "score", "cost_usd", "_key"))
    names = [key.meta.output_name() for key in keys]
    items = (
        calls.group_by(label(calls, on).alias("_key"), *keys)
        .agg(
            pl.len().alias("_calls"),
            pl.col("cost_usd").sum().cast(USD),
            pl.col("cost_usd").is_null().any().alias("_unpriced"),
        )
        .collect()
    )
    matched = items.join(graded, on="_key", how="inner")
    lost = items.join(graded, on="_key", how="anti").get_column("_calls").sum()
    unmet = graded.join(items, on="_key", how="anti").height
    _warn_unmatched(int(lost or 0), unmet, on)
    group = [*names, *theirs]
    priced = ~pl.col("_unpriced")
    sums = [
        priced.sum().cast(pl.Int64).alias("items"),
        pl.col("_score").filter(priced).sum().alias("score"),
        pl.col("_score").filter(priced).mean().alias("mean_score"),
        pl.col("cost_usd").filter(priced).sum().cast(USD),
        (~priced).sum().cast(pl.Int64).alias("unpriced_items"),
    ]
    table = matched.group_by(group).agg(sums) if group else matched.select(sums)
    each = pl.col("cost_usd").cast(pl.Float64) / pl.when(pl.col("score") != 0).then(pl.col("score"))
    return table.select(
        *group, "items", "score", "mean_score", "cost_usd", each.alias("cost_per_score_usd"), "unpriced_items",
        pl.lit(int(lost or 0), pl.Int64).alias("calls_without_result"), pl.lit(unmet, pl.Int64).alias("results_without_call"),
    ).sort("cost_per_score_usd", *group, nulls_last=True)  # fmt: skip


def frontier(table: pl.DataFrame, *, cost: str = "cost_usd", score: str = "score") -> pl.DataFrame:
    """Which rows no other one beats: none costs at most as much and scores at least as high, and is better in one of them.

    Args:
        table: a row per condition, such as `cost_per` gives.
        cost, score: the columns to be low and high.

    Returns:
        The table, the cheapest first, with `on_frontier`; null where a cost or score is null.

    Examples:
        >>> table = pl.DataFrame({"arm": ["a", "b", "c"], "cost_usd": [1.0, 2.0, 3.0], "score": [0.5, 0.4, 0.9]})
        >>> frontier(table).select("arm", "on_frontier").rows()
        [('a', True), ('b', False), ('c', True)]
    """
    for name in (cost, score):
        if name not in table.columns:
            raise InvalidValue("table", f"has no {told(name)}; it has {names_told(table.columns)}")
    rows = table.sort(cost, score, descending=[False, True], nulls_last=True)
    known = pl.col(cost).is_not_null() & pl.col(score).is_not_null()
    high = pl.col(score).cast(pl.Float64)
    rows = rows.with_columns((high > high.shift(1).cum_max().fill_null(-math.inf)).alias("_better"))
    best = pl.col("_better").first().over(cost, score)  # of rows that are alike in both, each is on it or none
    return rows.with_columns(pl.when(known).then(best).alias("on_frontier")).drop("_better")


def outliers(
    source: Source | Any,
    by: By = None,
    *,
    column: str = "cost_usd",
    beyond: float = _FAR,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """Calls that cost far more, or less, than others of their group.

    How far a value x is out is its modified z-score, 0.6745·(x - median)/MAD, with the median absolute deviation; where more
    than half of a group are equal and MAD is 0, (x - median)/(1.2533·mean absolute deviation).

    Args:
        source: a ledger, a budget, an export, a frame of calls, or a list of these.
        by: which calls are alike: labels; all of them where not given.
        column: a number of each call: `cost_usd`, `tokens`, `latency_s`, …
        beyond: how far out a call must be.
        since, until, month, tz, where: which calls, see `calls_of`.

    Returns:
        The rows of those calls, the farthest first: the labels, `reservation`, `spent_at`, the column, `typical` (the median of
        its group) and `score`.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", limits=[])
        ...     receipts = [lab.record(tokens=9, usd=usd).result() for usd in ["0.01", "0.02", "0.03", "0.02", "0.90"]]
        ...     outliers(lab).select("cost_usd", "typical").rows()
        [(Decimal('0.900000000000'), 0.02)]

    References:
        Iglewicz, B. and Hoaglin, D. C. (1993): How to Detect and Handle Outliers, section 3.
    """
    calls = counted(calls_of(source, since=since, until=until, month=month, tz=tz, where=where))
    must_have(calls, column, "reservation")
    if not calls.collect_schema()[column].is_numeric():
        raise InvalidValue("column", f"{told(column)} holds no numbers")
    keys = labels(calls, by, ("reservation", "spent_at", column, "typical", "score"))
    names = [key.meta.output_name() for key in keys]
    rows = calls.select(*keys, "reservation", "spent_at", column).filter(pl.col(column).is_not_null()).collect()
    group: Sequence[Any] = names or [pl.lit(0)]
    value = pl.col(column).cast(pl.Float64)
    rows = rows.with_columns(value.median().over(group).alias("typical"))
    away = (value - pl.col("typical")).abs()
    rows = rows.with_columns(away.median().over(group).alias("_mad"), away.mean().over(group).alias("_mean"))
    wide = pl.when(pl.col("_mad") > 0).then(pl.col("_mad") / 0.6745).otherwise(pl.col("_mean") * 1.253314)
    scored = rows.with_columns(((value - pl.col("typical")) / pl.when(wide > 0).then(wide)).alias("score"))
    found = scored.filter(pl.col("score").abs() > beyond).sort(pl.col("score").abs(), descending=True)
    return found.select(*names, "reservation", "spent_at", column, "typical", "score")


# --- their parts -------------------------------------------------------------------------------------------------------------


def _units(calls: pl.LazyFrame, keys: list[pl.Expr], per: str | None) -> pl.LazyFrame:
    """A row per unit: its labels, calls and cost; null where the cost of one of its calls is not known."""
    known = pl.col("cost_usd")
    if per is None:
        return calls.select(*keys, pl.lit("").alias("_unit"), pl.lit(1).alias("calls"), known)
    whole = pl.when(known.is_not_null().all()).then(known.sum()).cast(USD).alias("cost_usd")
    return calls.group_by(*keys, label(calls, per).alias("_unit")).agg(pl.len().alias("calls"), whole)


def _sides(units: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """A row per condition: its sums, and `_costs`, the known ones of its units."""
    known = pl.col("cost_usd").is_not_null()
    return units.group_by(names, maintain_order=True).agg(
        pl.col("calls").filter(known).sum().cast(pl.Int64),
        known.sum().cast(pl.Int64).alias("units"),
        pl.col("calls").filter(~known).sum().cast(pl.Int64).alias("unpriced_calls"),
        pl.col("cost_usd").drop_nulls().cast(pl.Float64).alias("_costs"),
        pl.col("cost_usd").sum().cast(USD).alias("cost_usd"),
    )


def _columns(names: Sequence[str], rows: list[tuple[float | None, float | None, float | None]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Float64), orient="row")


def _draws(costs: pl.Series, seed: str) -> list[float] | None:
    """The means of the draws, the mean itself first; `None` of no units, and only the mean of one."""
    if not len(costs):
        return None
    mean = fmean(costs)
    if len(costs) == 1:
        return [mean]
    chance = random.Random(seed)  # noqa: S311 - no secrets
    if len(costs) >= _MANY:
        error = stdev(costs) / math.sqrt(len(costs))
        return [mean, *(chance.gauss(mean, error) for _ in range(RESAMPLES))]
    if len(costs) <= _FEW:
        values = costs.to_list()
        return [mean, *(fmean(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))]
    seeds = (chance.randrange(2**63) for _ in range(RESAMPLES))
    return [mean, *(costs.sample(len(costs), with_replacement=True, seed=each).mean() for each in seeds)]  # type: ignore[list-item] # of numbers


def _between(draws: Sequence[float]) -> tuple[float | None, float | None]:
    if not draws:
        return None, None
    ordered = sorted(draws)
    return ordered[round(0.025 * (len(ordered) - 1))], ordered[round(0.975 * (len(ordered) - 1))]


def _interval(draws: list[float] | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if draws is None else (draws[0], *_between(draws[1:]))


def _ratio(draws: list[float] | None, base: list[float] | None) -> tuple[float | None, float | None, float | None]:
    if not draws or not base or not base[0]:
        return None, None, None
    if draws is base:
        return 1.0, 1.0, 1.0
    pairs = zip(draws[1:], base[1:], strict=False)
    return draws[0] / base[0], *_between([one / other for one, other in pairs if other])


def _graded(results: Any, on: str, score: str) -> pl.DataFrame:
    """The results with a key and a score of known types.

    Raises:
        InvalidType, InvalidValue: they are not as they should be.
    """
    library = type(results).__module__.partition(".")[0]
    if library == "pandas":
        results = pl.from_pandas(results)
    elif library == "pyarrow":
        results = pl.from_arrow(results)
    if isinstance(results, pl.LazyFrame):
        results = results.collect()
    if not isinstance(results, pl.DataFrame):
        raise InvalidType("results", f"{told(results)} is {type(results).__name__}, no frame")
    for name in (on, score):
        if name not in results.columns:
            raise InvalidValue("results", f"has no {told(name)}; it has {names_told(results.columns)}")
    kind = results.schema[score]
    if not (kind.is_numeric() or kind == pl.Boolean):
        raise InvalidType("score", f"{told(score)} holds {kind}, neither numbers nor true and false")
    graded = results.with_columns(pl.col(on).cast(pl.String).alias("_key"), pl.col(score).cast(pl.Float64).alias("_score"))
    missing = graded.filter(pl.col("_score").is_null() | pl.col("_score").is_nan()).height
    if missing:
        raise InvalidValue("score", f"{missing:,} results have none; leave them out, or say what they count")
    twice = graded.filter(pl.col("_key").is_duplicated() & pl.col("_key").is_not_null())
    if twice.height:
        raise InvalidValue(
            "results", f"{told(twice.item(0, '_key'))} comes {twice.height:,} times; give one result for each key"
        )
    return graded


def _warn_unmatched(calls: int, results: int, on: str) -> None:
    said = [f"{n:,} {what}" for n, what in ((calls, "calls have no result"), (results, "results have no call")) if n]
    if said:
        warnings.warn(f"{' and '.join(said)} by {on}; they are in no sum", UserWarning, stacklevel=3)
