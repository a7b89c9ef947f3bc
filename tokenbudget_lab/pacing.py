"""How fast a budget is spent: against an even pace, and until when it lasts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean, stdev
from typing import Any, Literal, cast

import polars as pl

from .balance import Balance, LimitBalance
from .errors import InvalidType, InvalidValue, told
from .handles import Budget
from .lengths import t_of
from .sources import Moment, Where, calls_of, span
from .spending import USD, counted
from .usage import tokens_of

Resource = Literal["usd", "tokens", "requests"]
COLUMN = {"usd": "cost_usd", "tokens": "tokens", "requests": "requests"}
_BINS = 12
_MOMENT = timedelta(microseconds=1)
_INSTANT = pl.Datetime("us", "UTC")


def burn_down(
    budget: Budget, *, resource: Resource = "usd", until: Moment | None = None, tz: str | None = None
) -> pl.DataFrame:
    """What was left of a budget's own limit after each of its calls, beside an even pace.

    Args:
        budget: a budget with a limit of that resource; of several the tightest is taken, and of a window the present one.
        resource: `usd`, `tokens` or `requests`.
        until: when the budget is meant to be used up, where its limit has no window.
        tz: the zone of an `until` without one of its own; UTC where not given.

    Returns:
        A row per counted call, ordered by when it ended: `ended`; `used`, what it counts, null where that is not known;
        `committed`, all together; `left`; and `even_left`, what an even pace from the beginning to the end would have left,
        null where there is no end. USD are Decimal. The first row is the beginning, with nothing used: that of the window, or
        of the first call.

    Raises:
        InvalidValue: the budget has no such limit.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", usd=1)
        ...     receipts = [lab.record(usd="0.25", tokens=9).result() for _ in range(2)]
        ...     burn_down(lab).get_column("left").to_list()
        [Decimal('1.000000000000'), Decimal('0.750000000000'), Decimal('0.500000000000')]
    """
    balance = _balance(budget)
    limit = _tightest(balance, resource)
    kind = USD if resource == "usd" else pl.Int64
    rows = _used(budget, limit, limit.begins, balance.at)
    began, ends = _from_to(limit, rows, balance.at, until, tz)
    rows = rows.select(pl.coalesce("ended", "spent_at").alias("ended"), pl.col("used").cast(kind)).sort("ended")
    start = pl.DataFrame({"ended": [began], "used": [0]}, schema={"ended": _INSTANT, "used": pl.Int64})
    rows = pl.concat([start.cast({"used": kind}), rows])
    committed = pl.col("used").fill_null(0).cum_sum().cast(kind)
    even = pl.lit(None, pl.Float64)
    if ends is not None:
        share = (pl.col("ended") - began).dt.total_microseconds() / ((ends - began) / timedelta(microseconds=1))
        even = float(limit.limit) * (1 - share.clip(0, 1))
    return rows.with_columns(
        committed.alias("committed"),
        (pl.lit(limit.limit, dtype=kind) - committed).cast(kind).alias("left"),
        even.alias("even_left"),
    )


def pace(budget: Budget, *, until: Moment | None = None, tz: str | None = None) -> pl.DataFrame:
    """How far each limit of a budget and its ancestors is used, and how far its time is.

    Args:
        budget: which one.
        until: when limits without a window are meant to be used up; they begin with their first call.
        tz: the zone of an `until` without one of its own; UTC where not given.

    Returns:
        A row per limit: `budget`, `resource`, `window`, `limit` and `committed` (as floats), `begins`, `ends`, `elapsed` and
        `used` (as fractions), and `pace` = used / elapsed: 1 is even, 2 twice as fast; null where there is no end.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", tokens=100, window="day")
        ...     receipt = lab.record(tokens=50).result()
        ...     pace(lab).select("budget", "resource", "window", "used").row(0)
        ('lab', 'tokens', 'day', 0.5)
    """
    balance, rows = _balance(budget), []
    for limit in balance.limits:
        calls = _used(budget.ledger.budget(limit.budget), limit, limit.begins, balance.at)
        begins, ends = _from_to(limit, calls, balance.at, until, tz)
        elapsed = None if ends is None else min(max((balance.at - begins) / (ends - begins), 0.0), 1.0)
        used = float(limit.committed) / float(limit.limit) if limit.limit else None
        quotient = None if not elapsed or used is None else used / elapsed
        amounts = (float(limit.limit), float(limit.committed))
        rows.append((limit.budget, limit.resource, limit.window, *amounts, begins, ends, elapsed, used, quotient))
    kinds: dict[str, Any] = dict.fromkeys(("budget", "resource", "window"), pl.String)
    kinds |= dict.fromkeys(("limit", "committed"), pl.Float64) | dict.fromkeys(("begins", "ends"), _INSTANT)
    kinds |= dict.fromkeys(("elapsed", "used", "pace"), pl.Float64)
    return pl.DataFrame(rows, schema=kinds, orient="row")


def forecast(
    budget: Budget,
    *,
    over: timedelta = timedelta(hours=1),
    calls: int | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """When each limit of a budget and its ancestors will be reached at the recent pace, and what planned calls will take.

    The recent time is cut into twelve parts; with their mean m, standard deviation s and Student's t, the rate lies within
    m ± t·s/√12 nine times in ten, if what comes is like what was. What is spent evenly has s = 0: the forecast is then exact.
    A total of n planned calls after k counted ones lies within n·mean ± t·s·√(n + n²/k), the interval of a prediction.

    Args:
        budget: which one.
        over: how much of the past is recent.
        calls: how many more calls are planned.
        where: which calls the planned ones are like; see `calls_of`.

    Returns:
        A row per limit: `budget`, `resource`, `window`, `left`, `rate_per_h` with `rate_lower_per_h` and `rate_upper_per_h`,
        `runs_out`, not before `runs_out_earliest` and not after `runs_out_latest`: null where, at that rate, it does not before
        the window ends. With `calls`, `planned` and its bounds `planned_lower`, `planned_upper`: what these will take, null
        where no call is known; and `fits`, whether the upper one is left. Amounts are floats of the resource's unit.

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
    balance = _balance(budget)
    rows = [_foreseen(budget.ledger.budget(limit.budget), limit, balance.at, over, planned, where) for limit in balance.limits]
    text, number = pl.String, pl.Float64
    kinds: dict[str, Any] = {"budget": text, "resource": text, "window": text, "left": number}
    kinds |= dict.fromkeys(("rate_per_h", "rate_lower_per_h", "rate_upper_per_h"), number)
    kinds |= dict.fromkeys(("runs_out", "runs_out_earliest", "runs_out_latest"), _INSTANT)
    if planned is not None:
        kinds |= {"planned": number, "planned_lower": number, "planned_upper": number, "fits": pl.Boolean}
    return pl.DataFrame(rows, schema=kinds, orient="row")


# --- its parts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rate:
    """Of a resource in an hour, with its bounds."""

    mean: float
    lower: float
    upper: float


def _foreseen(
    owner: Budget, limit: LimitBalance, now: datetime, over: timedelta, planned: int | None, where: Where | None
) -> tuple[Any, ...]:
    rate = _rate(_used(owner, limit, now - over + _MOMENT, now), now, over)
    left = float(limit.left)
    times = [_runs_out(left, each, now, limit.ends) for each in (rate.mean, rate.upper, rate.lower)]
    row = (limit.budget, limit.resource, limit.window, left, rate.mean, rate.lower, rate.upper, *times)
    if planned is None:
        return row
    known = (
        counted(calls_of(owner, until=now + _MOMENT, where=where))
        .select(COLUMN[limit.resource])
        .drop_nulls()
        .collect()
        .to_series()
    )
    total = _planned([float(each) for each in known.to_list()], planned)
    return (*row, *total, None if total[2] is None else total[2] <= left)


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


def _balance(budget: Any) -> Balance:
    if not isinstance(budget, Budget):
        raise InvalidType("budget", f"{told(budget)} is {type(budget).__name__}; a limit is a budget's: give a budget")
    return budget.balance


def _tightest(balance: Balance, resource: Resource) -> LimitBalance:
    if resource not in COLUMN:
        raise InvalidValue("resource", f"{told(resource)} is none of {', '.join(COLUMN)}")
    own = [limit for limit in balance.limits if limit.budget == balance.budget and limit.resource == resource]
    if not own:
        raise InvalidValue("budget", f"{told(balance.budget)} has no limit of {resource}")
    return max(own, key=lambda limit: limit.used_fraction)


def _used(budget: Budget, limit: LimitBalance, since: datetime | None, now: datetime) -> pl.DataFrame:
    """What counted from a moment until now: `spent_at`, `ended` and `used`, which is null where it is not known."""
    calls = counted(calls_of(budget, since=since, until=now + _MOMENT))
    return calls.select("spent_at", "ended", pl.col(COLUMN[limit.resource]).alias("used")).collect()


def _from_to(
    limit: LimitBalance, calls: pl.DataFrame, now: datetime, until: Moment | None, tz: str | None
) -> tuple[datetime, datetime | None]:
    """From when until when a limit is to last: its window, or from its first call until a moment that was said."""
    if limit.begins is not None:
        return limit.begins, limit.ends
    first = cast("datetime | None", calls.get_column("spent_at").min()) or now
    _, end = span(None, until, None, tz)
    return first, None if end is None or end <= first else end
