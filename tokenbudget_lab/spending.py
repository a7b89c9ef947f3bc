"""Where the money went: sums over calls, by any label and any period."""

from __future__ import annotations

from typing import Any

import polars as pl

from .sources import By, Moment, Source, Where, calls_of, labels, must_have, period

SUMS = (
    *(
        "calls",
        "requests",
        "input_tokens",
        "output_tokens",
        "tokens",
        "cost_usd",
        "measured_usd",
        "estimated_usd",
        "unknown_usd",
    ),
    "unpriced_calls",
)
NEEDED = ("spent_at", "requests", "input_tokens", "output_tokens", "tokens", "cost_usd", "basis")
USD = pl.Decimal(38, 12)


def spend(
    source: Source | Any,
    by: By = None,
    *,
    every: str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """What calls used and cost, by label and period.

    A call counts with what its ledger counts for it now, parts and adjustments included, in the period of its `spent_at`; what
    is only held does not count. Sums over any groups add up to the sum of the whole.

    Args:
        source: a ledger, a budget (with all below it), an export, a frame of `ledger.calls()`, or a list of these.
        by: columns of `ledger.calls()`, `ledger`, fields of the origin (user, host, notebook, script, commit), tags, or
            expressions; one of them or a list.
        every: a length of time, such as `1d`: then the first column, `period`, says when each begins, in `tz`.
        since, until, month, tz: which time, see `calls_of`.
        where: which calls, see `calls_of`.

    Returns:
        A row per group, in the order of `period` and of falling cost: `calls`, `requests`, `input_tokens`, `output_tokens`,
        `tokens`, `cost_usd` (Decimal, USD) and its parts `measured_usd`, `estimated_usd` and `unknown_usd`, and
        `unpriced_calls`: how many calls count whose cost is not known, and is in none of these. Without `by` and `every` it is
        one row.

    Raises:
        InvalidType, InvalidValue: the source, a label, a time or a condition is none; see `calls_of`.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", limits=[])
        ...     receipts = [lab.record(tokens=10, usd=usd, tags={"arm": arm}) for usd, arm in [("0.5", "a"), ("0.2", "b")]]
        ...     spend(lab, by="arm").select("arm", "calls", "cost_usd").rows()
        [('a', 1, Decimal('0.500000000000')), ('b', 1, Decimal('0.200000000000'))]
    """
    calls = counted(calls_of(source, since=since, until=until, month=month, tz=tz, where=where, ordered=False))
    keys = labels(calls, by, ("period", *SUMS))
    if every is not None:
        keys.insert(0, period(every, tz))
    if not keys:
        return calls.select(sums()).collect()
    names = [key.meta.output_name() for key in keys]
    grouped = calls.group_by(keys).agg(sums())
    first = ["period"] if every is not None else []
    order = [*first, "cost_usd", *[name for name in names if name != "period"]]
    return grouped.sort(order, descending=[name == "cost_usd" for name in order], nulls_last=True).collect()


def counted(calls: pl.LazyFrame) -> pl.LazyFrame:
    """The calls that count something: what is only held, was rolled back or released is none of them.

    Raises:
        InvalidValue: a column is missing that says so.
    """
    must_have(calls, *NEEDED)
    return calls.filter(pl.col("requests").is_not_null())


def sums() -> list[pl.Expr]:
    """What is summed over calls: the columns `SUMS`; a sum over no call is 0."""
    priced = pl.col("cost_usd")
    return [
        pl.len().cast(pl.Int64).alias("calls"),
        *(pl.col(name).sum().cast(pl.Int64) for name in ("requests", "input_tokens", "output_tokens", "tokens")),
        priced.sum().cast(USD),
        *(
            priced.filter(pl.col("basis") == basis).sum().cast(USD).alias(f"{basis}_usd")
            for basis in ("measured", "estimated", "unknown")
        ),
        priced.is_null().sum().cast(pl.Int64).alias("unpriced_calls"),
    ]
