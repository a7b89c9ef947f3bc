"""What a report is made of: sums of calls, budgets and facts, read once.

All sums are over the same rows, so that they add up to each other. What is not known stays visible: estimated and unknown
amounts have columns of their own, a call without a price is in no amount and is counted, and what is only held is not spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

import polars as pl

from .balance import Balance
from .errors import InvalidType, InvalidValue, told
from .handles import Budget
from .limits import zone
from .sources import By, Moment, Source, Where, calls_of, labels, must_have, place_of_source
from .spending import NEEDED, SUMS, USD, counted, spend

MOST_LABELS = 16
_MORE = ("state", "model", "prices", "reserved_requests", "reserved_usd", "ledger")
# How long a period is where nobody says so: the first of these that makes a chart of few enough bars.
_LENGTHS = ((timedelta(days=3), "1h"), (timedelta(days=100), "1d"), (timedelta(days=700), "1w"), (timedelta(days=3000), "1mo"))
_INSTANT = pl.Datetime("us", "UTC")
_BUDGETS: dict[str, Any] = {
    "ledger": pl.String,
    "budget": pl.String,
    "resource": pl.String,
    "window": pl.String,
    "limit": USD,
    "committed": USD,
    "held": USD,
    "left": USD,
    "resets": _INSTANT,
    "closed": pl.Boolean,
    "unpriced_calls": pl.Int64,
    "at": _INSTANT,
}


@runtime_checkable
class HasBudgets(Protocol):
    """What balances can be read from: a ledger."""

    def budgets(self) -> list[Balance]:
        """The balance of every budget."""


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """What a report says, in any format.

    Attributes:
        title: its title.
        scope: which calls these are, as a sentence.
        keys: the columns of `table` that are labels, `period` first where there is one.
        table: a row per group, see `spend`.
        total: one row, the sum of the whole.
        periods: a row per period with calls; the columns of `spend`.
        every: how long a period is.
        budgets: a row per budget and limit of its own as of `at`; `limit` and `left` are null where it has none. Amounts are
            of `resource`: USD, tokens, or requests.
        tz: the zone of all periods and dates.
        first, last: when the first and the last call was made; `None` without a call.
        models: how many calls each model has, most first; `None` is a model that was not recorded.
        prices: how many calls each price list has priced; `None` stands for costs that were given with the call.
        ledgers: where the calls are from.
        untold_calls: calls that did not say their tokens, and are in no count of these.
        open_calls: reservations in flight.
        held_usd: what these hold, which is not spent; of those that hold USD.
        gaps: what is missing or cannot be trusted, a sentence each.
    """

    title: str
    scope: str
    keys: tuple[str, ...]
    table: pl.DataFrame
    total: pl.DataFrame
    periods: pl.DataFrame
    every: str
    budgets: pl.DataFrame
    tz: str
    first: datetime | None
    last: datetime | None
    models: tuple[tuple[str | None, int], ...]
    prices: tuple[tuple[str | None, int], ...]
    ledgers: tuple[str, ...]
    untold_calls: int
    open_calls: int
    held_usd: Decimal
    gaps: tuple[str, ...]

    @property
    def sums(self) -> dict[str, Any]:
        """The total by name."""
        return self.total.row(0, named=True)

    @property
    def over(self) -> pl.DataFrame:
        """The rows of `budgets` that are over their limit."""
        return self.budgets.filter(pl.col("left") < 0)


def gather(
    sources: Source | Any,
    by: By,
    *,
    every: str | None,
    since: Moment | None,
    until: Moment | None,
    month: str | None,
    tz: str | None,
    where: Where | None,
    title: str | None,
    gaps: Sequence[str] = (),
) -> Figures:
    """Read what a report says; see `reports.report`.

    Args:
        sources, by, every, since, until, month, tz, where, title: as there.
        gaps: what the reader is to know to be missing, a sentence each.

    Raises:
        InvalidType, InvalidValue: see `spend`; too many labels, or one that is a list or a map.
    """
    if title is not None and not isinstance(title, str):
        raise InvalidType("title", f"{told(title)} is {type(title).__name__}, not a string")
    local = zone(tz or "UTC")
    try:
        calls = calls_of(sources, since=since, until=until, month=month, tz=tz, where=where, ordered=False)
        rows = narrow(calls, by).collect()
        table = spend(rows, by=by, every=every, tz=tz)
    except UnicodeEncodeError:
        raise InvalidValue("by or where", "has half a surrogate pair, which no tag or column has") from None
    except pl.exceptions.PolarsError as error:  # a column that is not there, a text compared with a number
        raise InvalidValue("by or where", f"cannot be applied to these calls: {str(error).splitlines()[0]}") from None
    keys = tuple(name for name in table.columns if name not in SUMS)
    _must_be_labels(table, keys)
    spent = counted(rows.lazy()).collect()
    first, last = (None if at is None else at.astimezone(local) for at in (spent["spent_at"].min(), spent["spent_at"].max()))  # type: ignore[union-attr] # a column of instants
    length = every or length_between(first, last)
    open_calls, held_usd = _in_flight(rows)
    return Figures(
        title=title or _title(keys, month),
        scope=_scope(since, until, month, local.key, where),
        keys=keys,
        table=table,
        total=spend(rows),
        periods=spend(rows, every=length, tz=tz),
        every=length,
        budgets=_budgets(sources),
        tz=local.key,
        first=first,
        last=last,
        models=_counts(spent, "model"),
        prices=_counts(spent.filter(pl.col("cost_usd").is_not_null()), "prices"),
        ledgers=_ledgers(sources, rows),
        untold_calls=spent.filter(pl.col("input_tokens").is_null() & (pl.col("tokens").fill_null(0) == 0)).height,
        open_calls=open_calls,
        held_usd=held_usd,
        gaps=(*gaps, *_damages(sources)),
    )


def narrow(calls: pl.LazyFrame, by: By, also: By = None) -> pl.LazyFrame:
    """Only the columns in use: a report reads each ledger once, and keeps no more of it than it needs.

    Args:
        calls: of a source, see `calls_of`.
        by: the labels of the report.
        also: labels that calls are yet to be chosen by.

    Raises:
        InvalidValue: too many labels, or one that is none.
    """
    must_have(calls, *NEEDED)
    keys = labels(calls, by, ("period", *SUMS))
    if len(keys) > MOST_LABELS:
        raise InvalidValue("by", f"{len(keys)} labels are given; {MOST_LABELS} is the most")
    columns = calls.collect_schema()
    found = {key.meta.output_name(): key for key in (*keys, *labels(calls, also))}
    # What a name stands for in tags or origin is taken out of them here: they are the widest columns of all.
    names = [name for each in (by, also) for name in ([each] if isinstance(each, str) else each or ())]
    made = {name: found[name] for name in names if isinstance(name, str) and name not in columns}
    roots = {root for name, key in found.items() if name not in made for root in key.meta.root_names()}
    return calls.select(*(name for name in columns if name in roots | {*NEEDED, *_MORE}), *made.values())


# --- its parts ---------------------------------------------------------------------------------------------------------------


def _must_be_labels(table: pl.DataFrame, keys: Iterable[str]) -> None:
    for name in keys:
        if table.schema[name].is_nested() or table.schema[name] in (pl.Binary, pl.Object):
            raise InvalidValue("by", f"{told(name)} is {table.schema[name]}, which no cell of a table holds")


def _in_flight(rows: pl.DataFrame) -> tuple[int, Decimal]:
    """How many reservations are open, and what they hold; none where a frame does not say it."""
    if "state" not in rows.columns:
        return 0, Decimal(0)
    found = rows.filter(pl.col("state") == "open")
    return found.height, Decimal(found["reserved_usd"].sum() if "reserved_usd" in rows.columns else 0)


def length_between(first: datetime | None, last: datetime | None) -> str:
    """How long the periods are in which a time is told: a hundred or fewer of them."""
    if first is None or last is None:
        return "1d"
    return next((every for most, every in _LENGTHS if last - first <= most), "1y")


def _title(keys: Sequence[str], month: str | None) -> str:
    named = " and ".join(filter(None, (", ".join(keys[:-1]), *keys[-1:])))
    return (f"Spend by {named}" if keys else "Spend") + (f", {month}" if month else "")


def _scope(since: Moment | None, until: Moment | None, month: str | None, tz: str, where: Where | None) -> str:
    """Which calls these are: the arguments, read back."""
    if month is not None:
        when = f"Calls of {month} ({tz})"
    elif since is None and until is None:
        when = "All calls"
    else:
        limits = (("from", since), ("until before", until))
        when = f"Calls {' '.join(f'{word} {at}' for word, at in limits if at is not None)} ({tz})"
    if where is None:
        return f"{when}."
    chosen = [f"{name} is {_values(value)}" for name, value in where.items()] if isinstance(where, Mapping) else [str(where)]
    return f"{when} where {' and '.join(chosen)}."


def _values(value: Any) -> str:
    if isinstance(value, list | tuple | set | frozenset):
        several = [str(each) for each in value]
        return several[0] if len(several) == 1 else f"one of {', '.join(several[:10])}{', …' if len(several) > 10 else ''}"  # noqa: PLR2004 - as many as one reads
    return "missing" if value is None else str(value)


def _counts(rows: pl.DataFrame, column: str) -> tuple[tuple[str | None, int], ...]:
    if column not in rows.columns:
        return ((None, rows.height),) if rows.height else ()
    found = rows.group_by(column).len().sort("len", column, descending=[True, False], nulls_last=True)
    return tuple(found.iter_rows())


def _each(sources: Any) -> list[Any]:
    return list(sources) if isinstance(sources, list | tuple) else [sources]


def _ledgers(sources: Any, rows: pl.DataFrame) -> tuple[str, ...]:
    """The places of all ledgers that were read, those without a call included."""
    owners = (each.ledger if isinstance(each, Budget) else each for each in _each(sources))
    asked = (getattr(getattr(owner, "desk", owner), "where", None) for owner in owners if isinstance(owner, HasBudgets))
    return tuple(
        dict.fromkeys((*(str(each) for each in asked if each is not None), *rows["ledger"].unique().sort().drop_nulls()))
    )


def _damages(sources: Any) -> list[str]:
    """Of a ledger that is open for reading only, because some of it is lost."""
    owners = {id(owner): owner for each in _each(sources) for owner in [each.ledger if isinstance(each, Budget) else each]}
    damages = (getattr(owner, "damage", None) for owner in owners.values() if isinstance(owner, HasBudgets))
    return [str(damage) for damage in damages if damage is not None]


def _budgets(sources: Any) -> pl.DataFrame:
    """A row per budget and limit; of a budget that was given, and all below it, or of whole ledgers."""
    given = _each(sources)
    whole = {place_of_source(each): each for each in given if isinstance(each, HasBudgets)}
    found = {(key, balance.budget): (owner, balance) for key, owner in whole.items() for balance in owner.budgets()}
    for each in given:
        if isinstance(each, Budget) and place_of_source(each.ledger) not in whole:
            key = place_of_source(each.ledger)
            found |= {(key, one.budget): (each.ledger, one) for one in each.ledger.budgets(each.name)}
    rows = [row for owner, balance in found.values() for row in _limits(owner, balance)]
    return pl.DataFrame(rows, schema=_BUDGETS, orient="row").sort("ledger", "budget", maintain_order=True)


def _limits(owner: Any, balance: Balance) -> list[tuple[Any, ...]]:
    where = str(getattr(getattr(owner, "desk", owner), "where", ""))
    end = (balance.closed, balance.unpriced_calls, balance.at)
    own = [limit for limit in balance.limits if limit.budget == balance.budget]
    if not own:
        bare = (None, balance.committed_usd, balance.reserved_usd, None, None)
        return [(where, balance.budget, "usd", "", *bare, *end)]
    return [
        (
            *(where, balance.budget, each.resource, each.window),
            *(Decimal(amount) for amount in (each.limit, each.committed, each.reserved, each.left)),
            *(each.ends, *end),
        )
        for each in own
    ]
