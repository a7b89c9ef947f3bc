"""What was held for nothing, lost, or saved: the money beside the money that was spent well."""

from __future__ import annotations

from typing import Any

import polars as pl

from .repricing import prices_of, reprice
from .sources import By, Moment, Source, Where, calls_of, labels, must_have
from .spending import USD, counted

_CACHE = ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens")


def unused_holds(
    source: Source | Any,
    by: By = None,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """What reservations held and did not use: room that others could have had.

    Of calls that have ended, held USD. For each, held + overrun = used + unused; a call that was rolled back or released used
    nothing. One that counts and has no known cost is in no sum, only in `unpriced_calls`.

    Args:
        source: a ledger, a budget, an export, a frame of calls, or a list of these.
        by: labels to group by.
        since, until, month, tz, where: which calls, see `calls_of`.

    Returns:
        A row per group, the largest unused amount first: the labels, `calls`, `held_usd`, `used_usd`, `unused_usd`,
        `overrun_usd` (Decimal), `used_fraction` (used / held), `unused_usd_h`: what was held unused times the hours for which
        it was, and `unpriced_calls`.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     with ledger.budget("lab", usd=5).reserve(usd="0.30") as call:
        ...         receipt = call.commit(usd="0.10")
        ...     unused_holds(ledger).select("held_usd", "unused_usd").row(0)
        (Decimal('0.300000000000'), Decimal('0.200000000000'))
    """
    calls = calls_of(source, since=since, until=until, month=month, tz=tz, where=where)
    must_have(calls, "held_usd", "cost_usd", "requests", "ended", "latency_s")
    calls = calls.filter(pl.col("held_usd").is_not_null() & pl.col("ended").is_not_null())
    taken = ("calls", "held_usd", "used_usd", "unused_usd", "overrun_usd", "used_fraction", "unused_usd_h", "unpriced_calls")
    keys = labels(calls, by, taken)
    unpriced = pl.col("cost_usd").is_null() & pl.col("requests").is_not_null()
    zero = pl.lit(0, USD)
    used = pl.col("cost_usd").fill_null(zero)
    rows = calls.with_columns(
        unpriced.alias("_unpriced"),
        used.alias("_used"),
        pl.max_horizontal(pl.col("held_usd") - used, zero).cast(USD).alias("_unused"),
        pl.max_horizontal(used - pl.col("held_usd"), zero).cast(USD).alias("_over"),
    )
    known = ~pl.col("_unpriced")
    sums = [
        known.sum().cast(pl.Int64).alias("calls"),
        *(
            pl.col(column).filter(known).sum().cast(USD).alias(name)
            for column, name in [
                ("held_usd", "held_usd"),
                ("_used", "used_usd"),
                ("_unused", "unused_usd"),
                ("_over", "overrun_usd"),
            ]
        ),
        (pl.col("_unused").cast(pl.Float64) * pl.col("latency_s") / 3600).filter(known).sum().alias("unused_usd_h"),
        (~known).sum().cast(pl.Int64).alias("unpriced_calls"),
    ]
    held = pl.col("held_usd").cast(pl.Float64)
    fraction = (pl.col("used_usd").cast(pl.Float64) / pl.when(held > 0).then(held)).alias("used_fraction")
    return _table(rows, keys, sums, "unused_usd").with_columns(fraction).select(*_names(keys), *taken)


def lost_spend(
    source: Source | Any,
    by: By = None,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """Money that may have bought nothing, by what went wrong.

    `retried`: it went wrong in any of the ways below, and the SDK sent it again; each attempt is a call of its own, and this
    one bought nothing. `lost`: nobody heard of the call again, and its whole hold counts. `broken`: a stream broke off or was
    left, and what it used was estimated. `unknown`: it ended, and what it used cannot be told. `unpriced`: it counts, and there
    was no price for it. Which attempt a retry replaces is the latest before it with the same budget, model and counts.

    Args:
        source: a ledger, a budget, an export, a frame of calls, or a list of these.
        by: labels to group by besides.
        since, until, month, tz, where: which calls, see `calls_of`.

    Returns:
        A row per label and `reason`, the largest amount first: `calls`, `cost_usd` (Decimal; null for `unpriced`), and
        `share` of all that the label's calls cost.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", usd=5)
        ...     receipt = lab.record(usd="0.3", tokens=9).result()
        ...     receipt = lab.record(usd="0.1", tokens=9, basis="estimated").result()
        ...     lost_spend(lab).rows()
        [('broken', 1, Decimal('0.100000000000'), 0.25)]
    """
    every = calls_of(source, since=since, until=until, month=month, tz=tz, where=where)
    calls = counted(every)
    must_have(calls, "state", "basis", "cost_usd")
    keys = labels(calls, by, ("reason", "calls", "cost_usd", "share"))
    wrong = (pl.col("state") == "counted") | pl.col("basis").is_in(["estimated", "unknown"])
    again = _tried_again(every)
    reason = (
        pl.when(wrong & (pl.col("reservation").is_in(again) if again else pl.lit(False))).then(pl.lit("retried"))
        .when(pl.col("state") == "counted").then(pl.lit("lost"))
        .when(pl.col("basis") == "estimated").then(pl.lit("broken"))
        .when(pl.col("basis") == "unknown").then(pl.lit("unknown"))
        .when(pl.col("cost_usd").is_null()).then(pl.lit("unpriced"))
        .alias("reason")
    )  # fmt: skip
    names = _names(keys)
    sums = [pl.len().cast(pl.Int64).alias("calls"), pl.col("cost_usd").sum().cast(USD).alias("cost_usd")]
    found = calls.group_by(*keys, reason).agg(*sums, pl.col("cost_usd").is_null().all().alias("_none")).collect()
    cost = pl.col("cost_usd").cast(pl.Float64)
    whole = cost.sum().over(names) if names else cost.sum()
    found = found.with_columns((cost / pl.when(whole > 0).then(whole)).alias("share")).filter(pl.col("reason").is_not_null())
    without = [pl.when(~pl.col("_none")).then(pl.col(name)).alias(name) for name in ("cost_usd", "share")]
    found = found.with_columns(without).sort(
        "cost_usd", *names, "reason", descending=[True, *[False] * (len(names) + 1)], nulls_last=True
    )
    return found.select(*names, "reason", "calls", "cost_usd", "share")


def cache_savings(
    source: Source | Any,
    by: By = None,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """What the provider's prompt cache saved: the same calls, priced with and without it.

    saved = (price of the same tokens, none of them from or to the cache) - (price as it was). Writing to a cache costs more
    than plain input, so what is never read again saves less than nothing.

    Args:
        source: a ledger or a budget, whose calls are priced by the ledger's prices; an export, a frame of calls, or a list of
            these, whose calls are priced by the catalogue and the user's own.
        by: labels to group by.
        since, until, month, tz, where: which calls, see `calls_of`.

    Returns:
        A row per group, the largest saving first: the labels, `calls`, `input_tokens`, `cache_read_tokens`,
        `cache_write_tokens`, `read_fraction` (read / input), `with_cache_usd`, `without_cache_usd`, `saved_usd` (Decimal), and
        `unpriced_calls`, which cannot be priced and are in none of these.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", limits=[])
        ...     receipt = lab.record(tbl.Usage(10_000, 100, cache_read_tokens=9_000), model="claude-haiku-5-5")
        ...     cache_savings(lab).select("read_fraction", "saved_usd").row(0)
        (0.9, Decimal('0.000810000000'))
    """
    calls = counted(calls_of(source, since=since, until=until, month=month, tz=tz, where=where))
    must_have(calls, *_CACHE, "input_tokens")
    taken = (
        *("calls", "input_tokens", "cache_read_tokens", "cache_write_tokens", "read_fraction", "with_cache_usd"),
        *("without_cache_usd", "saved_usd", "unpriced_calls"),
    )
    keys = labels(calls, by, taken)
    rows = calls.with_columns(*(key.alias(f"_by {n}") for n, key in enumerate(keys))).collect()
    prices = prices_of(source)
    as_it_was = reprice(rows, prices=prices).get_column("repriced_usd")
    plain = rows.with_columns(pl.lit(0, pl.Int64).alias(name) for name in _CACHE)
    without = reprice(plain, prices=prices).get_column("repriced_usd")
    rows = rows.with_columns(as_it_was.alias("_with"), without.alias("_without"))
    known = pl.col("_with").is_not_null() & pl.col("_without").is_not_null()
    sums = [
        known.sum().cast(pl.Int64).alias("calls"),
        *(pl.col(name).filter(known).sum().cast(pl.Int64) for name in ("input_tokens", *_CACHE[:2])),
        pl.col("_with").filter(known).sum().cast(USD).alias("with_cache_usd"),
        pl.col("_without").filter(known).sum().cast(USD).alias("without_cache_usd"),
        (~known).sum().cast(pl.Int64).alias("unpriced_calls"),
    ]
    back = [pl.col(f"_by {n}").alias(name) for n, name in enumerate(_names(keys))]
    table = _table(rows.lazy(), back, sums, None).with_columns(
        (pl.col("without_cache_usd") - pl.col("with_cache_usd")).cast(USD).alias("saved_usd"),
        (pl.col("cache_read_tokens") / pl.when(pl.col("input_tokens") > 0).then(pl.col("input_tokens"))).alias("read_fraction"),
    )
    return table.select(*_names(keys), *taken).sort("saved_usd", *_names(keys), descending=[True, *[False] * len(keys)])


def estimate_error(
    source: Source | Any,
    by: By = None,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """How far counts before a call were from what the provider measured.

    Of measured calls whose input was counted before, and has tokens. The error of a call is counted / measured - 1: above 0 it
    was taken for more. What was held for is the count with its margin, so that errors lie above 0 rather than around it.

    Args:
        source: a ledger, a budget, an export, a frame of calls, or a list of these.
        by: labels to group by, such as `counted_by` or `model`.
        since, until, month, tz, where: which calls, see `calls_of`.

    Returns:
        A row per group: the labels, `calls`, `counted_tokens`, `measured_tokens`, `error` of the totals, `mean_absolute_error`,
        `worst_under` and `worst_over` of single calls, and `output_fraction`: what was answered of what was held for.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", usd=5)
        ...     with lab.reserve(model="claude-haiku-5-5", input_tokens=110, max_output_tokens=400) as call:
        ...         receipt = call.commit(tbl.Usage(100, 100))
        ...     round(estimate_error(lab).item(0, "error"), 9), estimate_error(lab).item(0, "output_fraction")
        (0.1, 0.25)
    """
    calls = counted(calls_of(source, since=since, until=until, month=month, tz=tz, where=where))
    must_have(calls, "counted_input_tokens", "max_output_tokens", "input_tokens", "output_tokens", "basis")
    measured = (pl.col("basis") == "measured") & (pl.col("input_tokens") > 0) & pl.col("counted_input_tokens").is_not_null()
    taken = ("calls", "counted_tokens", "measured_tokens", "error", "mean_absolute_error", "worst_under", "worst_over")
    keys = labels(calls, by, (*taken, "output_fraction"))
    error = pl.col("counted_input_tokens") / pl.col("input_tokens") - 1
    sums = [
        pl.len().cast(pl.Int64).alias("calls"),
        pl.col("counted_input_tokens").sum().alias("counted_tokens"),
        pl.col("input_tokens").sum().alias("measured_tokens"),
        (pl.col("counted_input_tokens").sum() / pl.col("input_tokens").sum() - 1).alias("error"),
        error.abs().mean().alias("mean_absolute_error"),
        error.min().alias("worst_under"),
        error.max().alias("worst_over"),
        (pl.col("output_tokens").sum() / pl.col("max_output_tokens").filter(pl.col("output_tokens").is_not_null()).sum())
        .alias("output_fraction"),
    ]  # fmt: skip
    table = _table(calls.filter(measured), keys, sums, None)
    return table.sort("mean_absolute_error", *_names(keys), descending=[True, *[False] * len(keys)], nulls_last=True)


def _tried_again(calls: pl.LazyFrame) -> list[str]:
    """The attempts that another one followed: of each retry the latest of the number before with the same budget and counts."""
    alike = ["ledger", "budget", "model", "counted_input_tokens", "max_output_tokens"]
    columns = calls.collect_schema()
    if not all(name in columns for name in (*alike, "sdk_attempt", "reserved", "reservation")):
        return []
    retries = calls.filter(pl.col("sdk_attempt").is_not_null()).select("reserved", *alike, "sdk_attempt").collect()
    if retries.is_empty():
        return []
    tries = calls.select("reserved", "reservation", *alike, pl.col("sdk_attempt").fill_null(1).alias("_n")).collect()
    retries = retries.with_columns((pl.col("sdk_attempt") - 1).alias("_n"))
    several = [frame.with_columns(pl.col("ledger").fill_null("")).sort("reserved") for frame in (retries, tries)]
    found = several[0].join_asof(several[1], on="reserved", by=[*alike, "_n"], check_sortedness=False)
    return found.get_column("reservation").drop_nulls().to_list()


def _names(keys: list[pl.Expr]) -> list[str]:
    return [key.meta.output_name() for key in keys]


def _table(calls: pl.LazyFrame, keys: list[pl.Expr], sums: list[pl.Expr], first: str | None) -> pl.DataFrame:
    """A row per group, or one; the largest of a column first."""
    if not keys:
        return calls.select(sums).collect()
    table = calls.group_by(keys).agg(sums).collect()
    names = _names(keys)
    return table if first is None else table.sort(first, *names, descending=[True, *[False] * len(names)])
