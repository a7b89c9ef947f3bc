"""How fast money is spent: against an even pace, and until when it lasts.

A budget has limits, and those of its ancestors; a ledger has those of all its open budgets. A frame or an export has none, so
it has one row without a limit, or with the one that `limit_usd` says. Now is what the ledger's clock says; for a frame or an
export it is their last call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import fmean, stdev
from typing import Any, Literal, cast

import polars as pl

from .balance import LimitBalance
from .errors import InvalidType, InvalidValue, told
from .handles import Budget
from .lengths import t_of
from .sources import Moment, Source, Where, calls_of, place_of_source, span
from .spending import USD, counted
from .usage import pico_of, tokens_of, usd_of

Resource = Literal["usd", "tokens", "requests"]
COLUMN = {"usd": "cost_usd", "tokens": "tokens", "requests": "requests"}
_BINS = 12
_MOMENT = timedelta(microseconds=1)
_INSTANT = pl.Datetime("us", "UTC")


def burn_down(
    source: Source | Any,
    *,
    resource: Resource = "usd",
    limit_usd: Any = None,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """What was left of a limit after each call, beside an even pace.

    Args:
        source: a budget, whose own limit of that resource it is; of several the tightest is taken, and of a window the present
            one. Or a ledger, an export, a frame of calls, or a list of these: what they used, of `limit_usd` where it is given.
        resource: `usd`, `tokens` or `requests`.
        limit_usd: a limit for all calls of the source, instead of a budget's own.
        since, until, month: from when until when a limit without a window is meant to last; calls in that time count. From the
            first call on, and without an end, where not given.
        tz: the zone of moments without one of their own; UTC where not given.
        where: only such calls count; see `calls_of`.

    Returns:
        A row per counted call, ordered by when it ended: `ended`; `used`, what it counts, null where that is not known;
        `committed`, all together; `left`, null without a limit; and `even_left`, what an even pace from the beginning to the
        end would have left, null where there is no end. USD are Decimal. The first row is the beginning, with nothing used:
        that of the window, or of the first call.

    Raises:
        InvalidValue: the budget has no such limit, and none is given.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", usd=1)
        ...     receipts = [lab.record(usd="0.25", tokens=9).result() for _ in range(2)]
        ...     burn_down(lab).get_column("left").to_list(), burn_down(ledger, limit_usd=2).get_column("left").to_list()[-1]
        ([Decimal('1.000000000000'), Decimal('0.750000000000'), Decimal('0.500000000000')], Decimal('1.500000000000'))
    """
    cap, kind = _tightest(source, resource, limit_usd), USD if resource == "usd" else pl.Int64
    time = _Time(*span(since, until, month, tz))
    rows = _used(cap, time, where)
    began, ends = _from_to(cap, rows, time)
    rows = rows.select(pl.coalesce("ended", "spent_at").alias("ended"), pl.col("used").cast(kind)).sort("ended")
    start = pl.DataFrame({"ended": [began], "used": [0]}, schema={"ended": _INSTANT, "used": pl.Int64})
    rows = pl.concat([start.cast({"used": kind}), rows])
    committed = pl.col("used").fill_null(0).cum_sum().cast(kind)
    even = pl.lit(None, pl.Float64)
    if ends is not None and cap.limit is not None:
        share = (pl.col("ended") - began).dt.total_microseconds() / ((ends - began) / timedelta(microseconds=1))
        even = float(cap.limit) * (1 - share.clip(0, 1))
    return rows.with_columns(
        committed.alias("committed"),
        (pl.lit(cap.limit, dtype=kind) - committed).cast(kind).alias("left"),
        even.alias("even_left"),
    )


def pace(
    source: Source | Any,
    *,
    limit_usd: Any = None,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """How far each limit is used, and how far its time is.

    Args:
        source: a budget, whose limits and ancestors' limits these are; a ledger, with those of its open budgets; an export, a
            frame of calls, or a list of these.
        limit_usd: a limit for all calls of the source, instead of its budgets' own.
        since, until, month: from when until when limits without a window are meant to last; calls in that time count. From the
            first call on, and without an end, where not given.
        tz: the zone of moments without one of their own; UTC where not given.
        where: only such calls count; see `calls_of`.

    Returns:
        A row per limit: `budget`, `resource`, `window`, `limit` and `committed` (as floats), `begins`, `ends`, `elapsed` and
        `used` (as fractions), and `pace` = used / elapsed: 1 is even, 2 twice as fast; null where there is no end. Where
        nothing has a limit it is one row, with what was used in USD and null in its limit.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", tokens=100, window="day")
        ...     receipt = lab.record(tokens=50).result()
        ...     pace(lab).select("budget", "resource", "window", "used").row(0)
        ('lab', 'tokens', 'day', 0.5)
    """
    rows, time = [], _Time(*span(since, until, month, tz))
    for cap in _caps(source, limit_usd):
        calls = _used(cap, time, where)
        begins, ends = _from_to(cap, calls, time)
        elapsed = None if ends is None else min(max((cap.now - begins) / (ends - begins), 0.0), 1.0)
        whole = cap.committed is not None and where is None and (cap.begins is not None or time == _Time())
        committed = float(cap.committed if whole else calls.get_column("used").sum())
        used = committed / float(cap.limit) if cap.limit else None
        quotient = None if not elapsed or used is None else used / elapsed
        limit = None if cap.limit is None else float(cap.limit)
        rows.append((cap.budget, cap.resource, cap.window, limit, committed, begins, ends, elapsed, used, quotient))
    kinds: dict[str, Any] = dict.fromkeys(("budget", "resource", "window"), pl.String)
    kinds |= dict.fromkeys(("limit", "committed"), pl.Float64) | dict.fromkeys(("begins", "ends"), _INSTANT)
    kinds |= dict.fromkeys(("elapsed", "used", "pace"), pl.Float64)
    return pl.DataFrame(rows, schema=kinds, orient="row")


def forecast(
    source: Source | Any,
    *,
    over: timedelta = timedelta(hours=1),
    calls: int | None = None,
    limit_usd: Any = None,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """When each limit will be reached at the recent pace, and what planned calls will take.

    The recent time is cut into twelve parts; with their mean m, standard deviation s and Student's t, the rate lies within
    m ± t·s/√12 nine times in ten, if what comes is like what was. What is spent evenly has s = 0: the forecast is then exact.
    A total of n planned calls after k counted ones lies within n·mean ± t·s·√(n + n²/k), the interval of a prediction.

    Args:
        source: a budget, whose limits and ancestors' limits these are; a ledger, with those of its open budgets; an export, a
            frame of calls, or a list of these.
        over: how much of the past is recent.
        calls: how many more calls are planned.
        limit_usd: a limit for all calls of the source, instead of its budgets' own.
        since, until, month, tz, where: which calls the planned ones are like; see `calls_of`.

    Returns:
        A row per limit: `budget`, `resource`, `window`, `left`, `rate_per_h` with `rate_lower_per_h` and `rate_upper_per_h`,
        `runs_out`, not before `runs_out_earliest` and not after `runs_out_latest`: null where, at that rate, it does not before
        the window ends. With `calls`, `planned` and its bounds `planned_lower`, `planned_upper`: what these will take, null
        where no call is known; and `fits`, whether the upper one is left. Amounts are floats of the resource's unit. Where
        nothing has a limit it is one row, of USD, with null in what there is of one.

    Raises:
        InvalidType, InvalidValue: no length of time, or no number of calls.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", tokens=1_000)
        ...     receipts = [lab.record(tokens=10).result() for _ in range(6)]
        ...     forecast(lab, calls=50).select("left", "planned", "fits").row(0)
        (940.0, 500.0, True)

    References:
        Student's t to first order: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if not isinstance(over, timedelta):
        raise InvalidType("over", f"{told(over)} is {type(over).__name__}, not a timedelta")
    if over < timedelta(seconds=1):
        raise InvalidValue("over", f"{over} is too short to have a pace")
    planned = None if calls is None else tokens_of("calls", calls)
    alike = {"since": since, "until": until, "month": month, "tz": tz, "where": where}
    rows = [_foreseen(cap, over, planned, alike) for cap in _caps(source, limit_usd)]
    text, number = pl.String, pl.Float64
    kinds: dict[str, Any] = {"budget": text, "resource": text, "window": text, "left": number}
    kinds |= dict.fromkeys(("rate_per_h", "rate_lower_per_h", "rate_upper_per_h"), number)
    kinds |= dict.fromkeys(("runs_out", "runs_out_earliest", "runs_out_latest"), _INSTANT)
    if planned is not None:
        kinds |= {"planned": number, "planned_lower": number, "planned_upper": number, "fits": pl.Boolean}
    return pl.DataFrame(rows, schema=kinds, orient="row")


# --- limits ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Time:
    """From when until when, where it was said."""

    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Cap:
    """A limit, or that there is none, with the calls that count against it; what only a budget's limit has is else `None`."""

    calls: Any
    now: datetime
    budget: str | None = None
    resource: str = "usd"
    window: str = ""
    limit: Any = None
    committed: Any = None
    reserved: Any = 0
    begins: datetime | None = None
    ends: datetime | None = None


def _caps(source: Any, limit_usd: Any) -> list[_Cap]:
    """The limits of the budgets of a source, each once; or one of all its calls."""
    sources = list(source) if isinstance(source, list | tuple) else [source]
    if limit_usd is not None:
        return [_Cap(source, _now(sources), limit=usd_of(pico_of("limit_usd", limit_usd)))]
    limits = {
        (place_of_source(owner), limit.budget, limit.resource, limit.window): _cap(owner, limit, now)
        for each in sources
        for owner, limit, now in _limits(each)
    }
    if limits and not all(map(_has_limits, sources)):
        raise InvalidValue("source", "has a frame beside budgets, and a frame has no limit; ask apart, or give limit_usd=")
    name = sources[0].name if len(sources) == 1 and isinstance(sources[0], Budget) else None
    return [*limits.values()] or [_Cap(source, _now(sources), name)]


def _cap(owner: Any, limit: LimitBalance, now: datetime) -> _Cap:
    amounts = (limit.limit, limit.committed, limit.reserved)
    return _Cap(owner.budget(limit.budget), now, limit.budget, limit.resource, limit.window, *amounts, limit.begins, limit.ends)


def _has_limits(source: Any) -> bool:
    return isinstance(source, Budget) or callable(getattr(source, "budgets", None))


def _limits(source: Any) -> Iterable[tuple[Any, LimitBalance, datetime]]:
    """A budget's limits and its ancestors', or those of all open budgets of a ledger."""
    if isinstance(source, Budget):
        balance = source.balance
        yield from ((source.ledger, limit, balance.at) for limit in balance.limits)
    elif _has_limits(source):
        for balance in source.budgets():
            own = [limit for limit in balance.limits if limit.budget == balance.budget and not balance.closed]
            yield from ((source, limit, balance.at) for limit in own)


def _now(sources: list[Any]) -> datetime:
    """By the clocks of the ledgers; else the last call."""
    clocks: list[datetime | None] = [each.balance.at for each in sources if isinstance(each, Budget)]
    clocks += [each.at for one in sources if _has_limits(one) and not isinstance(one, Budget) for each in one.budgets()[:1]]
    if not clocks and sources:
        clocks = [calls_of(sources).select(pl.col("spent_at").max()).collect().item()]
    return max((clock for clock in clocks if clock is not None), default=None) or datetime.now(UTC)


def _tightest(source: Any, resource: Resource, limit_usd: Any) -> _Cap:
    if resource not in COLUMN:
        raise InvalidValue("resource", f"{told(resource)} is none of {', '.join(COLUMN)}")
    if limit_usd is not None and resource != "usd":
        raise InvalidValue("limit_usd", f"is in USD, and resource is {told(resource)}")
    if isinstance(source, list | tuple) and len(source) == 1:
        source = source[0]
    if limit_usd is not None or not isinstance(source, Budget):
        sources = list(source) if isinstance(source, list | tuple) else [source]
        limit = None if limit_usd is None else usd_of(pico_of("limit_usd", limit_usd))
        return _Cap(source, _now(sources), resource=resource, limit=limit)
    balance = source.balance
    own = [limit for limit in balance.limits if limit.budget == balance.budget and limit.resource == resource]
    if not own:
        also = "; give limit_usd=" if resource == "usd" else ""
        raise InvalidValue("source", f"{told(balance.budget)} has no limit of {resource}{also}")
    return _cap(source.ledger, max(own, key=lambda limit: limit.used_fraction), balance.at)


def _used(cap: _Cap, time: _Time, where: Where | None = None) -> pl.DataFrame:
    """What counted until now: `spent_at`, `ended` and `used`, which is null where it is not known.

    It is counted from the beginning of the window on, or else in the time that was said.
    """
    now = cap.now + _MOMENT
    start, end = (cap.begins, None) if cap.begins is not None else (time.start, time.end)
    end = now if end is None else max(min(end, now), start or end)
    calls = counted(calls_of(cap.calls, since=start, until=end, where=where))
    ended = pl.col("ended" if "ended" in calls.collect_schema() else "spent_at")
    return calls.select("spent_at", ended.alias("ended"), pl.col(COLUMN[cap.resource]).alias("used")).collect()


def _from_to(cap: _Cap, calls: pl.DataFrame, time: _Time) -> tuple[datetime, datetime | None]:
    """From when until when a limit is to last: its window, or from its first call until a moment that was said."""
    if cap.begins is not None:
        return cap.begins, cap.ends
    first = time.start or cast("datetime | None", calls.get_column("spent_at").min()) or cap.now
    return first, None if time.end is None or time.end <= first else time.end


# --- rates -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rate:
    """Of a resource in an hour, with its bounds."""

    mean: float
    lower: float
    upper: float


def _foreseen(cap: _Cap, over: timedelta, planned: int | None, alike: dict[str, Any]) -> tuple[Any, ...]:
    recent = counted(calls_of(cap.calls, since=cap.now - over + _MOMENT, until=cap.now + _MOMENT))
    used = pl.col(COLUMN[cap.resource])
    rate = _rate(recent.select("spent_at", used.alias("used")).collect(), cap.now, over)
    left = _left(cap)
    times = [None if left is None else _runs_out(left, each, cap.now, cap.ends) for each in (rate.mean, rate.upper, rate.lower)]
    row = (cap.budget, cap.resource, cap.window, left, rate.mean, rate.lower, rate.upper, *times)
    if planned is None:
        return row
    like = counted(calls_of(cap.calls, **alike)).filter(pl.col("spent_at") <= cap.now)
    total = _planned([float(each) for each in like.select(used).drop_nulls().collect().to_series().to_list()], planned)
    return (*row, *total, None if total[2] is None or left is None else total[2] <= left)


def _left(cap: _Cap) -> float | None:
    if cap.limit is None:
        return None
    committed = _used(cap, _Time()).get_column("used").sum() if cap.committed is None else cap.committed
    return float(cap.limit - committed - cap.reserved)


def _rate(spent: pl.DataFrame, now: datetime, over: timedelta) -> _Rate:
    each = over / _BINS
    sums = [0.0] * _BINS
    for moment, used in spent.select("spent_at", "used").rows():
        # Behind the end of one part begins the next: what comes at `now` itself belongs to the last.
        sums[min(max(_BINS - 1 - math.floor((now - moment) / each), 0), _BINS - 1)] += float(used or 0)
    hours = each / timedelta(hours=1)
    mean, around = fmean(sums), t_of(_BINS) * stdev(sums) / math.sqrt(_BINS)
    if math.isclose(max(sums), min(sums), rel_tol=1e-9):
        around = 0.0  # what is even but for rounding is even
    return _Rate(mean / hours, max(0.0, mean - around) / hours, (mean + around) / hours)


def _runs_out(left: float, per_hour: float, now: datetime, ends: datetime | None) -> datetime | None:
    if left <= 0:
        return now
    if per_hour <= 0:
        return None
    try:
        when = now + timedelta(hours=left / per_hour)
    except OverflowError:
        return None
    return when if ends is None or when < ends else None


def _planned(known: list[float], calls: int) -> tuple[float | None, float | None, float | None]:
    if not known:
        return None, None, None
    mean = fmean(known)
    if len(known) == 1:
        return calls * mean, None, None
    around = t_of(len(known)) * stdev(known) * math.sqrt(calls + calls**2 / len(known))
    return calls * mean, max(0.0, calls * mean - around), calls * mean + around
