"""What charts show, as frames: summed up in Polars before anything is drawn; a million calls make no larger a chart than ten.

Each frame has `series`, the number that a label has in the chart (1 is the largest), and `label`, its whole text; null is null.
Labels beyond the largest ones are one series with the label `other`, which comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import polars as pl

from .comparing import frontier
from .errors import InvalidValue
from .sources import By, labels, must_have
from .spending import SUMS, USD, counted, spend

MOST_PERIODS = 1_000  # bars; beyond it each is thinner than a pixel
MOST_STEPS = 500  # of a line; beyond it they are closer than pixels
BASES = ("measured", "estimated", "unknown")
QUANTILES = {"p05_s": 0.05, "p25_s": 0.25, "median_s": 0.5, "p75_s": 0.75, "p95_s": 0.95}
_LATENCY = ("spent_at", "latency_s")
_HOLDS = ("held_usd", "cost_usd", "basis", "state", "ended")


class Split(NamedTuple):
    """A frame whose rows know their series, and how many labels there are."""

    frame: pl.DataFrame
    labels: int


def split(frame: pl.DataFrame, names: Sequence[str], weight: pl.Expr, most: int) -> Split:
    """Number the labels by weight, and make one of those after the first `most`.

    Args:
        frame: its columns `names` are the labels.
        weight: what is summed up to rank them.
        most: how many stay themselves.

    Examples:
        >>> calls = pl.DataFrame({"arm": ["a", "b", "b", None], "usd": [1, 2, 3, 4]})
        >>> split(calls, ["arm"], pl.col("usd").sum(), 2).frame.select("series", "label").rows()
        [(3, 'other'), (1, 'b'), (1, 'b'), (2, None)]
    """
    if not names:
        return Split(frame.with_columns(pl.lit(1).alias("series"), pl.lit("all").alias("label")), 1)
    keys = [f"key {n}" for n in range(len(names))]  # a label may be called as a column of ours is
    frame, names = frame.rename(dict(zip(names, keys, strict=True))), keys
    groups = frame.group_by(names).agg(weight.alias("weight"))
    largest = groups.sort(["weight", *names], descending=[True, *[False] * len(names)], nulls_last=True).head(most)
    told = pl.Series("label", [_label(row) for row in largest.select(names).rows()], pl.String)
    numbered = largest.select(names).with_row_index("series", 1).with_columns(told, pl.col("series").cast(pl.Int32))
    rest = pl.col("series").is_null()
    joined = frame.join(numbered, on=names, how="left", nulls_equal=True, maintain_order="left")
    return Split(
        joined.with_columns(
            pl.when(rest).then(pl.lit("other")).otherwise("label").alias("label"), pl.col("series").fill_null(most + 1)
        ),
        groups.height,
    )


def _label(row: Sequence[Any]) -> str | None:
    """One label's text; of several together, each in its place."""
    if len(row) == 1:
        return None if row[0] is None else str(row[0])
    return " / ".join("(none)" if value is None else str(value) for value in row)


def spent(calls: pl.LazyFrame, by: By, every: str, tz: str | None, most: int) -> Split:
    """What was spent per period and label; without a label, per basis.

    Returns:
        A row per period and series: `period`, `until` (when it ends), `series`, `label`, `calls`, `cost_usd`, `estimated_usd`,
        `unknown_usd`, `unpriced_calls`, and `below_usd`, what the series under it add up to.
    """
    sums = spend(calls, by, every=every, tz=tz)
    if sums["period"].n_unique() > MOST_PERIODS:
        raise InvalidValue("every", f"{every} makes {sums['period'].n_unique():,} bars; give a longer time, such as 1d or 1w")
    names = [name for name in sums.columns if name not in {"period", *SUMS}]
    found = split(sums, names, pl.col("cost_usd").sum(), most) if names else _by_basis(sums)
    summed = found.frame.group_by("period", "series", "label").agg(
        pl.col("calls", "unpriced_calls").sum(), pl.col("cost_usd", "estimated_usd", "unknown_usd").sum().cast(USD)
    )
    below = pl.col("cost_usd").cum_sum().over("period") - pl.col("cost_usd")
    frame = summed.sort("period", "series").with_columns(
        pl.col("period").dt.offset_by(every).alias("until"), below.cast(USD).alias("below_usd")
    )
    return Split(frame, found.labels)


def _by_basis(sums: pl.DataFrame) -> Split:
    """Sums parted by how well they are known; the calls are told with what was measured."""
    parts = []
    for number, basis in enumerate(BASES, 1):
        own = {name: pl.col(f"{name}_usd") if name == basis else pl.lit(0).cast(USD) for name in BASES[1:]}
        counts = ("calls", "unpriced_calls")
        parts.append(
            sums.select(
                "period",
                pl.lit(number, pl.Int32).alias("series"),
                pl.lit(basis).alias("label"),
                *(pl.col(name) if number == 1 else pl.lit(0, pl.Int64).alias(name) for name in counts),
                pl.col(f"{basis}_usd").alias("cost_usd"),
                *(amount.alias(f"{name}_usd") for name, amount in own.items()),
            )
        )
    frame = pl.concat([part for part in parts if part is parts[0] or part["cost_usd"].sum()])
    return Split(frame, frame["series"].n_unique())


class Course(NamedTuple):
    """What was left over time, with what it was counted against."""

    frame: pl.DataFrame
    sums: dict[str, Any]


def course(calls: pl.LazyFrame, limit: Decimal, start: datetime | None, until: datetime | None, now: datetime | None) -> Course:
    """What was left of a limit, after every call.

    Args:
        calls: all that count under the limit, those before `start` too.
        limit: USD.
        start: where the line begins; at the first call where not given.
        until: where it ends at the latest.
        now: until when it is known that no other call came.

    Returns:
        `at`, `cost_usd` (what counted since the row before) and `left_usd`: never rising, the first row at the start. At most
        `MOST_STEPS` and two rows: calls that are closer than pixels are one step, at the last of them. And sums over the calls.
    """
    counting = counted(calls)
    kept = counting.select("spent_at", "cost_usd", "basis").collect()
    costs = kept.select("spent_at", pl.col("cost_usd").fill_null(0)).sort("spent_at")
    first = start if start is not None else costs["spent_at"].min()
    assert isinstance(first, datetime | None)  # noqa: S101 - tells the type checker
    if first is None:
        return Course(pl.DataFrame(schema={"at": pl.Datetime("us", "UTC"), "cost_usd": USD, "left_usd": USD}), {})
    before = costs.filter(pl.col("spent_at") < first)["cost_usd"].sum()
    shown = costs.filter(pl.col("spent_at") >= first)
    width = max((((shown["spent_at"].max() or first) - first) / MOST_STEPS).total_seconds() * 1e6, 1)  # type: ignore[operator, union-attr] # a Series of instants has an instant as its largest
    step = ((pl.col("spent_at") - first).dt.total_microseconds() / width).floor().alias("step")
    steps = shown.group_by(step).agg(pl.col("spent_at").max().alias("at"), pl.col("cost_usd").sum()).sort("at").drop("step")
    parts = [pl.DataFrame({"at": [first], "cost_usd": [before]}), steps]
    last = steps["at"].max() if steps.height else first
    seen = now if now is None or until is None else min(now, until)
    if seen is not None and seen > last:  # type: ignore[operator] # as above
        parts.append(pl.DataFrame({"at": [seen], "cost_usd": [Decimal(0)]}))
    exact = [part.select(pl.col("at").cast(pl.Datetime("us", "UTC")), pl.col("cost_usd").cast(USD)) for part in parts]
    left = (pl.lit(limit).cast(USD) - pl.col("cost_usd").cum_sum()).cast(USD)
    return Course(pl.concat(exact).with_columns(left.alias("left_usd")), _sums(kept))


def _sums(kept: pl.DataFrame) -> dict[str, Any]:
    amounts = (pl.col("cost_usd").filter(pl.col("basis") == basis).sum().cast(USD).alias(f"{basis}_usd") for basis in BASES)
    unpriced = pl.col("cost_usd").is_null().sum().alias("unpriced_calls")
    return kept.select(pl.len().alias("calls"), pl.col("cost_usd").sum().cast(USD), *amounts, unpriced).row(0, named=True)


def latencies(calls: pl.LazyFrame, by: By, most: int) -> Split:
    """How long calls took, as quantiles.

    Returns:
        A row per series: `series`, `label`, `calls`, the quantiles `p05_s` … `p95_s`, and `max_s`, all in seconds.
    """
    must_have(calls, *_LATENCY)
    keys = labels(calls, by, ("latency_s",))
    timed = calls.filter(pl.col("latency_s").is_not_null()).select(*keys, "latency_s").collect()
    found = split(timed, [name for name in timed.columns if name != "latency_s"], pl.len(), most)
    took = pl.col("latency_s")
    quantiles = [took.quantile(at, "linear").alias(name) for name, at in QUANTILES.items()]
    grouped = found.frame.group_by("series", "label").agg(pl.len().alias("calls"), *quantiles, took.max().alias("max_s"))
    return Split(grouped.sort("series"), found.labels)


def holds(calls: pl.LazyFrame, by: By, most: int) -> Split:
    """What calls held, and what they used of it.

    Of calls that have ended, held USD, and whose cost is known. The others that have ended and held USD are counted: those that
    were given back unused, and those without a price.

    Returns:
        A row per series: `series`, `label`, `calls`, `held_usd`, `used_usd`, `unused_usd` (held and not used), `over_usd` (used
        beyond the hold), `estimated_usd`, `unknown_usd` (of what was used), `given_back`, `unpriced_calls`.
    """
    must_have(calls, *_HOLDS, "requests")
    keys = labels(calls, by, (*_HOLDS, "requests"))
    kept = calls.filter(pl.col("held_usd").is_not_null() & pl.col("ended").is_not_null())
    held = kept.select(*keys, "held_usd", "cost_usd", "basis", "requests").collect()
    names = [name for name in held.columns if name not in {"held_usd", "cost_usd", "basis", "requests"}]
    known = pl.col("cost_usd").is_not_null()
    found = split(held, names, pl.col("held_usd").filter(known).sum(), most)
    hold, cost = pl.col("held_usd").filter(known), pl.col("cost_usd").filter(known)
    more = hold - cost

    def part(basis: str) -> pl.Expr:
        return pl.col("cost_usd").filter(pl.col("basis") == basis).sum().cast(USD).alias(f"{basis}_usd")

    grouped = found.frame.group_by("series", "label").agg(
        known.sum().cast(pl.Int64).alias("calls"),
        hold.sum().cast(USD).alias("held_usd"),
        cost.sum().cast(USD).alias("used_usd"),
        more.filter(more > 0).sum().cast(USD).alias("unused_usd"),
        (-more.filter(more < 0).sum()).cast(USD).alias("over_usd"),
        part("estimated"),
        part("unknown"),
        pl.col("requests").is_null().sum().cast(pl.Int64).alias("given_back"),
        (pl.col("requests").is_not_null() & ~known).sum().cast(pl.Int64).alias("unpriced_calls"),
    )
    return Split(grouped.sort("series"), found.labels)


def conditions(table: pl.DataFrame, x: str, y: str) -> pl.DataFrame:
    """Which rows no other row beats: none is as cheap and better, or as good and cheaper.

    Args:
        table: a row per condition.
        x: the column of which less is better.
        y: the column of which more is better.

    Returns:
        The rows in which both are numbers, in the order of `x`, with `frontier`: whether no other row beats it.

    Examples:
        >>> table = pl.DataFrame({"usd": [1, 2, 3, 2], "score": [0.5, 0.8, 0.7, 0.8]})
        >>> conditions(table, "usd", "score")["frontier"].to_list()
        [True, True, True, False]
    """
    usable = table.filter(pl.col(x).cast(pl.Float64).is_finite() & pl.col(y).cast(pl.Float64).is_finite())
    return frontier(usable.drop("frontier", strict=False), cost=x, score=y).rename({"on_frontier": "frontier"})
