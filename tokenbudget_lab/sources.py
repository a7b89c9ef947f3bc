"""Where an analysis finds its calls: a ledger, a budget with all below it, an export, a frame of calls, or a list of these.

Whatever it is becomes one lazy frame with the columns of `ledger.calls()` and one more, `ledger`, that says where each row is
from. A frame may have other columns beside them, and need not have all. Times are those of `spent_at`, the moment whose windows
a call counts in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, Literal, Protocol, runtime_checkable
from zoneinfo import ZoneInfo

import polars as pl

from . import frames
from .errors import InvalidType, InvalidValue, told
from .frames import schema, tag
from .handles import Budget
from .limits import zone
from .lines import names_told

ORIGIN = ("user", "host", "notebook", "script", "commit")
TAGS = pl.Map(pl.String, pl.String)
Moment = datetime | date | str
Where = pl.Expr | Mapping[str, Any]
By = str | pl.Expr | Sequence[str | pl.Expr] | None
_MONTH = re.compile(r"(\d{4})-(\d{2})")
_EVERY = re.compile(r"[1-9]\d{0,3}(?:mo|[smhdwqy])")


@runtime_checkable
class HasCalls(Protocol):
    """What calls can be read from: a ledger, or an export of one."""

    def calls(self) -> pl.LazyFrame:
        """One row per reservation or record."""


Source = HasCalls | Budget | pl.LazyFrame | pl.DataFrame | Sequence[Any]


def calls_of(
    source: Source | Any,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
    ordered: bool = True,
) -> pl.LazyFrame:
    """The calls of a source, in a time and on a condition.

    Args:
        source: a ledger, a budget (with all below it), an export, a frame of `ledger.calls()` (Polars, pandas or Arrow), or a
            list of these. Of one ledger no call comes twice, though it is named twice, or one budget is below the other; of
            frames that is yours to see to.
        since, until: from when on, and until when (not included): a datetime, a date, or ISO text such as `2026-11-01`;
            without a zone of its own it is in `tz`.
        month: a month instead of these, such as `2026-11`.
        tz: an IANA zone; UTC where not given.
        where: a Polars expression over the columns, or what columns, fields of the origin or tags are: a value, or a list of
            values, such as `{"condition": ["few-shot", "zero-shot"]}`.
        ordered: whether a ledger's calls come in the order in which they began; sorting millions takes a while.

    Returns:
        The columns of `ledger.calls()`, as far as the source has them, `ledger`, and whatever else a frame has.

    Raises:
        InvalidType: the source is none of these.
        InvalidValue: a moment, month or zone that is none; a column that the source lacks; a copy or an export beside its
            ledger.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", limits=[])
        ...     receipt = lab.record(tokens=10, usd="0.5", tags={"arm": "b"})
        ...     calls_of(lab, where={"arm": "b"}).select("cost_usd", "ledger").collect().row(0)
        (Decimal('0.500000000000'), ':memory:')
    """
    found = [*_frames(source if isinstance(source, list | tuple) else [source], ordered=ordered)]
    if not found:
        raise InvalidValue("source", "is an empty list; give a ledger, a budget or a frame of calls")
    calls = found[0] if len(found) == 1 else pl.concat(found, how="diagonal")
    start, end = span(since, until, month, tz)
    if start is not None:
        calls = calls.filter(pl.col("spent_at") >= start)
    if end is not None:
        calls = calls.filter(pl.col("spent_at") < end)
    return calls if where is None else calls.filter(_condition(calls, where))


def span(
    since: Moment | None, until: Moment | None, month: str | None, tz: str | None
) -> tuple[datetime | None, datetime | None]:
    """From when, until when (UTC).

    Examples:
        >>> span(None, None, "2026-02", "Europe/Berlin")[1].isoformat()
        '2026-02-28T23:00:00+00:00'
    """
    local = zone(tz or "UTC")
    if month is None:
        start, end = _moment("since", since, local), _moment("until", until, local)
        if start is not None and end is not None and start > end:
            raise InvalidValue("until", f"{told(until)} is before since={told(since)}")
        return start, end
    if since is not None or until is not None:
        raise InvalidValue("month", "is given beside since or until; give one or the other")
    found = _MONTH.fullmatch(str(month))
    if found is None or not 1 <= int(found[2]) <= 12 or not 1 <= int(found[1]) < 9999:  # noqa: PLR2004 - a calendar's months and years
        raise InvalidValue("month", f"{told(month)} is no month; write it as 2026-11")
    first = datetime(int(found[1]), int(found[2]), 1, tzinfo=local)
    following = (first + timedelta(days=31)).replace(day=1)
    return first.astimezone(UTC), following.astimezone(UTC)


def label(calls: pl.LazyFrame, name: str) -> pl.Expr:
    """What a name stands for: a column, a field of the origin (user, host, notebook, script, commit), or a tag; in this order.

    Examples:
        >>> label(pl.LazyFrame({"arm": ["b"]}), "arm").meta.output_name()
        'arm'
    """
    columns = calls.collect_schema()
    if name in columns:
        return pl.col(name)
    if name in ORIGIN and "origin" in columns:
        return pl.col("origin").str.json_path_match(f"$.{name}").alias(name)
    if "tags" not in columns:
        raise InvalidValue("by", f"there is no {told(name)}; there are {names_told(list(columns))}")
    return tag(name)


def labels(calls: pl.LazyFrame, by: By, taken: Iterable[str] = ()) -> list[pl.Expr]:
    """Labels to group by, under names of their own.

    Args:
        calls: what is grouped.
        by: a name, a Polars expression, or several.
        taken: names that other columns of the result have.
    """
    several = [] if by is None else [by] if isinstance(by, str | pl.Expr) or not isinstance(by, Iterable) else list(by)
    if not all(isinstance(each, str | pl.Expr) for each in several):
        raise InvalidType("by", f"{told(by)} is neither a name, nor a Polars expression, nor a list of these")
    found = [label(calls, each) if isinstance(each, str) else each for each in several]
    names = [expr.meta.output_name() for expr in found]
    for name in names:
        if name in set(taken) or names.count(name) > 1:
            raise InvalidValue(
                "by", f"{told(name)} is the name of another column of the result; say .alias(…) of an expression"
            )
    return found


def period(every: str, tz: str | None) -> pl.Expr:
    """The beginning of the hour, day, week, month … that a call counts in, in a time zone.

    A day is one where its midnight comes twice, as in Havana when summer time ends; it begins with the first of them.

    Args:
        every: `1h`, `1d`, `1w`, `1mo`, `1q`, `1y`, or several of these.
        tz: an IANA zone; UTC where not given.
    """
    if _EVERY.fullmatch(str(every)) is None:
        raise InvalidValue("every", f"{told(every)} is no length of time; write 1h, 1d, 1w, 1mo")
    key = zone(tz or "UTC").key
    begins = pl.col("spent_at").dt.convert_time_zone(key).dt.truncate(every)
    if not every.endswith(("s", "m", "h")):
        begins = begins.dt.replace_time_zone(None).dt.replace_time_zone(key, ambiguous="earliest")
    return begins.alias("period")


def must_have(calls: pl.LazyFrame, *names: str) -> None:
    """Say which columns an analysis needs, where one is missing.

    Raises:
        InvalidValue: naming them.
    """
    columns = list(calls.collect_schema())
    missing = [name for name in names if name not in columns]
    if missing:
        raise InvalidValue("source", f"lacks {names_told(missing)}; it has {names_told(columns)}")


# --- its parts ---------------------------------------------------------------------------------------------------------------


def _frames(sources: Sequence[Any], *, ordered: bool) -> Iterable[pl.LazyFrame]:
    """A frame per source; budgets of one ledger are one source, and none beside their ledger."""
    budgets: dict[Any, list[Budget]] = {}
    whole: dict[Any, Any] = {}
    for source in sources:
        if isinstance(source, Budget):
            budgets.setdefault(place_of_source(source.ledger), []).append(source)
        elif isinstance(source, HasCalls):
            whole.setdefault(place_of_source(source), source)
        else:
            yield _normal(source)
    _all_different([*whole.values(), *(chosen[0].ledger for key, chosen in budgets.items() if key not in whole)])
    for source in whole.values():
        yield _named(source, ordered=ordered)
    for key, chosen in budgets.items():
        if key not in whole:
            names = sorted({budget.name for budget in chosen})
            inside = [(pl.col("budget") == name) | pl.col("budget").str.starts_with(f"{name}/") for name in names]
            yield _named(chosen[0].ledger, ordered=ordered).filter(reduce(or_, inside))


def _all_different(ledgers: Sequence[Any]) -> None:
    """See to it that none is a copy of another: their calls would count twice, and their first events have one hash."""
    seen: dict[bytes, Any] = {}
    for ledger in ledgers if len(ledgers) > 1 else ():
        if not callable(getattr(ledger, "events", None)):
            continue
        for first in ledger.events().select("hash").head(1).collect()["hash"]:
            other = seen.setdefault(first, ledger)
            if other is not ledger:
                one, two = (told(str(_where(each) or each)) for each in (ledger, other))
                raise InvalidValue("source", f"{one} is a copy of {two}, whose calls would count twice; leave one of them out")


def _where(source: Any) -> Any:
    return getattr(getattr(source, "desk", source), "where", None)


def place_of_source(source: Any) -> Any:
    """What two connections to one file have in common; a ledger in memory is only itself."""
    where = _where(source)
    return id(source) if where is None or str(where) == ":memory:" else str(where)


def _named(source: Any, *, ordered: bool) -> pl.LazyFrame:
    where, desk = _where(source), getattr(source, "desk", None)
    calls: pl.LazyFrame = source.calls() if ordered or desk is None else frames.calls(desk, ordered=False)
    return calls.with_columns(pl.lit(None if where is None else str(where), pl.String).alias("ledger"))


def _normal(source: Any) -> pl.LazyFrame:
    """A frame of whichever library, its columns of the types that a ledger's have."""
    library = type(source).__module__.partition(".")[0]
    if library == "pandas" and hasattr(source, "columns"):
        source = pl.from_pandas(source)
    elif library == "pyarrow":
        source = pl.from_arrow(source)
    if not isinstance(source, pl.DataFrame | pl.LazyFrame):
        raise InvalidType(
            "source",
            f"{told(source)} is {type(source).__name__}; give a ledger, a budget, a frame of calls, or a list of these",
        )
    calls, have = source.lazy(), source.lazy().collect_schema()
    if "ledger" not in have:
        calls = calls.with_columns(pl.lit(None, pl.String).alias("ledger"))
    if "spent_at" not in have:
        raise InvalidValue(
            "source", f"is a frame without spent_at, and so none of ledger.calls(); it has {names_told(list(have))}"
        )
    wanted = schema("calls")
    casts = [_cast(name, kind, wanted[name]) for name, kind in have.items() if name in wanted and kind != wanted[name]]
    return calls.with_columns(casts)


def _cast(name: str, kind: Any, wanted: Any) -> pl.Expr:
    """A column as a ledger has it; pandas makes floats of integers with gaps, and pairs of tags."""
    column = pl.col(name)
    if wanted == TAGS and isinstance(kind, pl.List) and isinstance(kind.inner, pl.List):
        pair = pl.element().list
        return column.list.eval(pl.struct(pair.get(0).alias("key"), pair.get(1).alias("value"))).cast(TAGS)
    if wanted == pl.Datetime("us", "UTC") and kind == pl.Datetime and kind.time_zone is None:
        return column.dt.replace_time_zone("UTC").dt.cast_time_unit("us")
    return column.cast(wanted)


def _condition(calls: pl.LazyFrame, where: Where) -> pl.Expr:
    if isinstance(where, pl.Expr):
        return where
    if not isinstance(where, Mapping):
        raise InvalidType("where", f"{told(where)} is neither a Polars expression nor a mapping such as {{'model': 'gpt-4o'}}")
    found = pl.lit(True)
    for name, value in where.items():
        column = label(calls, name)
        if value is None:
            found &= column.is_null()
        else:
            found &= column.is_in(list(value)) if isinstance(value, list | tuple | set | frozenset) else column == value
    return found


def _moment(name: Literal["since", "until"], moment: Any, local: ZoneInfo) -> datetime | None:
    if moment is None:
        return None
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            raise InvalidValue(name, f"{told(moment)} is no moment; write it as 2026-11-01 or 2026-11-01T18:30") from None
    elif isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)  # noqa: DTZ001 - the zone is said below
    if not isinstance(moment, datetime):
        raise InvalidType(name, f"{told(moment)} is {type(moment).__name__}; give a datetime, a date, or ISO text")
    try:
        return (moment.replace(tzinfo=local) if moment.tzinfo is None else moment).astimezone(UTC)
    except OverflowError:
        raise InvalidValue(name, f"{told(moment)} is beyond the years that have dates") from None
