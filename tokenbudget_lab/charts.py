"""Charts of what calls cost, held and took: `tbl.charts`, with the extra `charts` of the package.

Each function sums up in Polars what `spend` would find, and gives a `Chart`, which a notebook shows and `save` writes. Amounts
are in USD, in words; what is estimated, unknown or without a price is said under the title. Nothing is told by colour alone.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import polars as pl

from .balance import balance_of
from .commands import GetBalance
from .errors import InvalidType, InvalidValue, told
from .handles import Budget
from .layers import ROW, TALL, axis_title, bars, bullets, points, steps, strips
from .limits import instant, micros, window_bounds, window_text
from .pictures import Chart, chart, counted, doubts, drawing, nothing, short, usd
from .plotted import conditions, course, holds, latencies, spent
from .sources import By, Moment, Source, Where, calls_of, must_have, span
from .usage import pico_of, usd_of

__all__ = ["Chart", "burn_down", "frontier", "latency", "spend_over_time", "unused_holds"]

_MOST = 7  # labels that are told apart by colours
_MOST_ROWS = 12  # labels that are told apart by their places
_MOST_POINTS = 500
_PER = {"1h": "hour", "1d": "day", "1w": "week", "1mo": "month", "1q": "quarter", "1y": "year"}


def spend_over_time(
    source: Source | Any,
    by: By = None,
    every: str = "1d",
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> Chart:
    """What calls cost per day, or any other time, as stacked bars.

    The bars' parts carry the numbers that their labels have beside the chart. Without `by` they are what was measured,
    estimated and unknown. Only the seven labels that cost most stay themselves; the others are `other` together.

    Args:
        source: what `spend` takes: a ledger, a budget (with all below it), an export, a frame of calls, or a list of these.
        by: a column, a tag, a field of the origin, an expression, or a list of these.
        every: a length of time, such as `1h`, `1d`, `1w`, `1mo`.
        since, until, month, tz, where: which calls, see `spend`; the bars begin in `tz`.

    Raises:
        ExtraMissing: the extra `charts` is not installed.
        InvalidValue: more than a thousand bars; or what `spend` refuses.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     receipts = [ledger.budget("lab", limits=[]).record(usd="0.5", tags={"arm": arm}) for arm in "ab"]
        ...     tbl.charts.spend_over_time(ledger, by="arm")
        <chart: Spend per day by arm; USD 1.00 in 2 calls>
    """
    drawing()
    calls = calls_of(source, since=since, until=until, month=month, tz=tz, where=where)
    data, several = spent(calls, by, every, tz, _MOST)
    per = _PER.get(every, every)
    title = f"Spend per {per}{_by(by)}{_of(several, _MOST, 'the costliest')}"
    if data.is_empty():
        return nothing(data, title)
    sums = _totals(data, "calls", "cost_usd", "estimated_usd", "unknown_usd", "unpriced_calls")
    notes = [f"{usd(sums['cost_usd'])} in {counted(sums['calls'])}", *doubts(sums)]
    return chart(bars(data, every, per, tz), data, title, notes)


def burn_down(
    source: Source | Any,
    *,
    limit_usd: Any = None,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> Chart:
    """What was left of a limit in USD over time, against an even pace to its end.

    A call counts at its `spent_at`. Of a budget it is the limit that it has now, in the window that is now; without a window
    from its first call on. The even pace goes to the window's end, or to `until`; where there is neither, there is none.

    Args:
        source: a budget that limits USD; or, with `limit_usd`, whatever `spend` takes.
        limit_usd: the limit, in USD.
        since, until, month: another time than the budget's window. All of the limit is there when it begins; except where the
            budget has no window: then what was spent before is gone.
        tz: the zone of the times; a budget's own where not given.
        where: only some of the calls, see `spend`.

    Raises:
        ExtraMissing: the extra `charts` is not installed.
        InvalidValue: there is no limit, or none of USD; or what `spend` refuses.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", usd=2)
        ...     receipt = lab.record(usd="0.5")
        ...     tbl.charts.burn_down(lab)
        <chart: What is left of lab: USD 2.00; USD 1.50 left after USD 0.50 in 1 call>
    """
    drawing()
    said = span(since, until, month, tz)
    if limit_usd is not None:
        now = source.balance.at if isinstance(source, Budget) else None
        against = _Against("the limit", usd_of(pico_of("limit_usd", limit_usd)), *said, tz or "UTC", now=now)
    elif isinstance(source, Budget):
        against = _own(source, said, tz)
    else:
        raise InvalidValue("limit_usd", "is needed where the source is no budget: what is left is left of something")
    calls = calls_of(source, since=None if against.lifetime else against.start, until=against.end, where=where)
    found = course(calls, against.limit, against.start, against.end, against.now)
    title = f"What is left of {against.name}: {usd(against.limit)}{against.per}"
    if found.frame.is_empty():
        return nothing(found.frame, title)
    left, sums = found.frame["left_usd"][-1], found.sums
    gone = f"{usd(left)} left" if left >= 0 else f"{usd(-left)} over the limit"
    notes = [f"{gone} after {usd(sums['cost_usd'])} in {counted(sums['calls'])}", *doubts(sums)]
    if against.held:
        notes.append(f"{usd(against.held)} held by calls in flight, not in it")
    return chart(steps(found.frame, against.limit, against.end, against.tz), found.frame, title, notes)


class _Against(NamedTuple):
    """What a burn-down is of."""

    name: str
    limit: Decimal
    start: datetime | None
    end: datetime | None
    tz: str
    per: str = ""
    lifetime: bool = False
    held: Decimal = Decimal(0)
    now: datetime | None = None


def _own(budget: Budget, said: tuple[datetime | None, datetime | None], tz: str | None) -> _Against:
    """A budget's own limit, in the time that was said or else its window."""
    answer = budget.ledger.ask(GetBalance(budget.ledger.new_id(), budget.name))
    balance, zone = balance_of(answer), answer[3]
    limits = [limit for limit in balance.limits if limit.resource == "usd"]
    own = max((limit for limit in limits if limit.budget == budget.name), key=lambda limit: limit.used_fraction, default=None)
    if own is None:
        above = f"; {limits[0].budget} has one" if limits else ""
        raise InvalidValue("source", f"{told(budget.name)} has no limit in USD of its own{above}; give limit_usd=…")
    start, end = said
    if own.ends is not None and start is None and end is None:
        last = micros(own.ends)
        start, end = (instant(at) for at in window_bounds(own.window, zone, last, last - 1))
    per = f" per {window_text(own.window)}" if own.window else ""
    return _Against(short(budget.name), own.limit, start, end, tz or zone, per, not own.window, own.reserved, balance.at)


def frontier(table: Any, x: str = "cost_usd", y: str = "score", label: str | None = None) -> Chart:
    """Which conditions are worth their price: a point each, and a line through those that no other one beats.

    Args:
        table: a row per condition: a frame (Polars, pandas or Arrow), or a list of dictionaries.
        x: the column of which less is better.
        y: the column of which more is better.
        label: the column that names the points; the first with text where not given.

    Raises:
        ExtraMissing: the extra `charts` is not installed.
        InvalidValue: a column is missing or has no numbers; there are more than 500 rows.

    Examples:
        >>> rows = [{"arm": "a", "cost_usd": 1.0, "score": 0.7}, {"arm": "b", "cost_usd": 2.0, "score": 0.6}]
        >>> frontier(rows)
        <chart: Cost and score: 1 of 2 on the frontier; filled and joined: no other is both cheaper and better>
    """
    drawing()
    frame = _table(table)
    must_have(frame.lazy(), x, y, *([] if label is None else [label]))
    for name in (x, y):
        if not (frame.schema[name].is_numeric() or frame.schema[name] == pl.Null):
            raise InvalidValue("table", f"has no numbers in {told(name)}, which is {frame.schema[name]}")
    texts = [name for name, kind in frame.schema.items() if kind in (pl.String, pl.Categorical, pl.Enum) and name not in (x, y)]
    data = conditions(frame, x, y)
    left_out = frame.height - data.height
    notes = [f"{counted(left_out, 'row')} without both numbers left out"] if left_out else []
    both = f"{axis_title(x, unit=False).capitalize()} and {axis_title(y, unit=False)}"
    if data.is_empty():
        return nothing(data, both, "no conditions", notes)
    if data.height > _MOST_POINTS:
        raise InvalidValue("table", f"has {data.height:,} rows; a row is a condition here, and {_MOST_POINTS} is the most")
    layers, unnamed = points(data, x, y, label or next(iter(texts), None))
    said = [f"filled and joined: no other is both {'cheaper' if x.endswith('usd') else 'lower'} and better"]
    said += [f"{counted(unnamed, 'name')} left out for want of room"] if unnamed else []
    title = f"{both}: {data['frontier'].sum():,} of {data.height:,} on the frontier"
    return chart(layers, data, title, [*said, *notes], height=TALL)


def latency(
    source: Source | Any,
    by: By = None,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> Chart:
    """How long calls took, from the grant to the end: a box of quantiles per label, the twelve labels with most calls.

    Args:
        source, by, since, until, month, tz, where: which calls under which labels, see `spend`.

    Raises:
        ExtraMissing: the extra `charts` is not installed.
        InvalidValue: what `spend` refuses.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     with ledger.budget("lab", usd=2).reserve(usd="0.5") as call:
        ...         receipt = call.commit(usd="0.1")
        ...     tbl.charts.latency(ledger).title
        'Latency of 1 call'
    """
    drawing()
    calls = calls_of(source, since=since, until=until, month=month, tz=tz, where=where)
    data, several = latencies(calls, by, _MOST_ROWS)
    if data.is_empty():
        return nothing(data, f"Latency{_by(by)}")
    title = f"Latency of {counted(_totals(data, 'calls')['calls'])}{_by(by)}{_of(several, _MOST_ROWS, 'those with most calls')}"
    notes = ["line: 5 to 95 %", "box: 25 to 75 %", "across it, and in figures: the median"]
    return chart(strips(data), data, title, notes, height=ROW * (data.height + 0.5))


def unused_holds(
    source: Source | Any,
    by: By = None,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> Chart:
    """What calls held against what they used, in USD, per label: the twelve labels that held most.

    Of calls that have ended, were counted, and have a price; those that were given back unused are said under the title.

    Args:
        source, by, since, until, month, tz, where: which calls under which labels, see `spend`.

    Raises:
        ExtraMissing: the extra `charts` is not installed.
        InvalidValue: what `spend` refuses.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     with ledger.budget("lab", usd=2).reserve(usd="0.5") as call:
        ...         receipt = call.commit(usd="0.1")
        ...     tbl.charts.unused_holds(ledger)
        <chart: Held and used; USD 0.10 used of USD 0.50 held by 1 call>
    """
    drawing()
    calls = calls_of(source, since=since, until=until, month=month, tz=tz, where=where)
    data, several = holds(calls, by, _MOST_ROWS)
    title = f"Held and used{_by(by)}{_of(several, _MOST_ROWS, 'those that held most')}"
    if not data["calls"].sum():
        return nothing(data, title)
    sums = _totals(data, *(name for name in data.columns if name not in {"series", "label"}))
    notes = [f"{usd(sums['used_usd'])} used of {usd(sums['held_usd'])} held by {counted(sums['calls'])}", *doubts(sums)]
    notes += [f"{usd(sums['over_usd'])} used beyond holds"] if sums["over_usd"] else []
    notes += [f"{counted(sums['given_back'])} given back unused, not in it"] if sums["given_back"] else []
    return chart(bullets(data), data, title, notes, height=ROW * (data.height + 0.5))


def _by(by: By) -> str:
    """The labels' names in a title."""
    several = [] if by is None else [by] if isinstance(by, str | pl.Expr) else list(by)
    names = [each if isinstance(each, str) else each.meta.output_name() for each in several]
    return f" by {' and '.join(short(name) for name in names)}" if names else ""


def _of(several: int, most: int, which: str) -> str:
    return f": {which} {most} of {several:,}, and other" if several > most else ""


def _totals(data: pl.DataFrame, *names: str) -> dict[str, Any]:
    return data.select(pl.col(name).sum() for name in names).row(0, named=True)


def _table(table: Any) -> pl.DataFrame:
    """A frame of whichever library, or rows, as a frame of Polars."""
    library = type(table).__module__.partition(".")[0]
    if library == "pandas" and hasattr(table, "columns"):
        table = pl.from_pandas(table)
    elif library == "pyarrow":
        table = pl.from_arrow(table)
    elif isinstance(table, list | tuple) and all(isinstance(row, dict) for row in table):
        table = pl.DataFrame(list(table), infer_schema_length=None)
    if isinstance(table, pl.LazyFrame):
        table = table.collect()
    if not isinstance(table, pl.DataFrame):
        raise InvalidType("table", f"{told(table)} is {type(table).__name__}; give a frame, or a list of dictionaries")
    return table
