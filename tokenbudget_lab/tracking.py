"""Rows one after the other, with a bar that shows the money, and without those that were done before."""

from __future__ import annotations

import operator
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from .errors import InvalidType, InvalidValue, told
from .handles import Budget
from .keyed import Keys, check_kinds
from .money_bar import MoneyBar

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")
Key = str | int | Callable[[Any], Any]


@overload
def track(
    rows: pl.DataFrame,
    budget: Budget | None = None,
    *,
    key: Key | None = None,
    done: Iterable[Any] = (),
    progress: bool | None = None,
) -> Tracked[dict[str, Any]]: ...
@overload
def track(
    rows: Iterable[T] | AsyncIterable[T],
    budget: Budget | None = None,
    *,
    key: Key | None = None,
    done: Iterable[Any] = (),
    progress: bool | None = None,
) -> Tracked[T]: ...
def track(
    rows: Any,
    budget: Budget | None = None,
    *,
    key: Key | None = None,
    done: Iterable[Any] = (),
    progress: bool | None = None,
) -> Tracked[Any]:
    """Go through rows with `for` or `async for`, and see what they cost so far and will cost in all.

    A row counts as done when the next one is asked for. A loop that is left, by `break` or by a refusal, leaves the bar as a
    line that says how far it came and what it spent.

    Args:
        rows: a list, a generator, anything that can be gone through; rows of a Polars or pandas frame come as dicts by column.
            An async iterable wants `async for`, which takes all others too.
        budget: whose money is shown; without one it is a plain bar.
        key: what tells a row from all others: a column's name, an attribute, or a function of the row.
        done: keys of rows that are left out, because they were done before: ids, a column of them, a dict of results.
        progress: whether to show a bar; by itself in a terminal or notebook, to who waits for more than a second.

    Returns:
        Something to go through.

    Raises:
        InvalidType: `rows` cannot be gone through; a key cannot be hashed; keys in `done` are texts, and those of the rows are
            not, or the reverse.
        InvalidValue: a row without the key, or with that of another one. In a list or frame it is found before the first row.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     study, replies = ledger.budget("study", usd=1), {2: "asked yesterday"}
        ...     for row in tbl.track([{"id": 1}, {"id": 2}, {"id": 3}], study, key="id", done=replies):
        ...         with study.reserve(usd="0.10") as call:
        ...             receipt = call.commit(usd="0.08")
        ...             replies[row["id"]] = "asked today"
        >>> sorted(replies)
        [1, 2, 3]
    """
    return Tracked(rows, budget, key, done, progress)


class Tracked(Generic[T]):
    """Rows with a bar; each `for` or `async for` over it has a bar of its own."""

    def __init__(
        self,
        rows: Any,
        budget: Budget | None,
        key: Key | None,
        done: Iterable[Any],
        progress: bool | None,  # noqa: FBT001 - it is passed on
    ) -> None:
        if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable | AsyncIterable):
            raise InvalidType("rows", f"is {type(rows).__name__}; give a list, a frame, or what yields rows")
        self._rows, self._budget, self._key, self._progress = rows, budget, _key(key), progress
        self._done, self._before = _done(done, key), 0
        if key is not None and (isinstance(rows, list | tuple) or _is_frame(rows)):
            keys = _RowKeys(self._key, self._done)
            self._before = sum(keys.is_done(row) for row in _named(rows))

    def _walk(self) -> tuple[MoneyBar, _RowKeys]:
        total = len(self._rows) if isinstance(self._rows, Sized) else None
        meter = MoneyBar("rows", total, self._budget, self._progress, self._before)
        return meter, _RowKeys(self._key, self._done)

    def __iter__(self) -> Iterator[T]:
        if not isinstance(self._rows, Iterable):
            raise InvalidType("rows", f"{type(self._rows).__name__} comes asynchronously: write `async for`")
        meter, keys = self._walk()
        try:
            for row in _named(self._rows):
                if keys.is_done(row):
                    meter.skip()
                    continue
                yield row
                meter.ended()
        finally:
            meter.settle_sync()

    async def __aiter__(self) -> AsyncIterator[T]:
        meter, keys = self._walk()
        try:
            async with aclosing(_later(self._rows)) as rows:
                async for row in rows:
                    if keys.is_done(row):
                        meter.skip()
                        continue
                    yield row
                    meter.ended()
            await meter.settle()
        finally:
            meter.close()


# --- rows ------------------------------------------------------------------------------------------------------------------


def _is_frame(rows: Any) -> bool:
    return _is_polars(rows) or hasattr(rows, "itertuples")


def _is_polars(rows: Any) -> bool:
    return hasattr(rows, "iter_rows") and hasattr(rows, "schema")


def _named(rows: Any) -> Iterator[Any]:
    """Rows one after the other; those of a frame by their columns."""
    if _is_polars(rows):
        return iter(rows.iter_rows(named=True))
    if hasattr(rows, "itertuples"):  # pandas
        columns = list(rows.columns)
        return (dict(zip(columns, row, strict=True)) for row in rows.itertuples(index=False, name=None))
    return iter(rows)


async def _later(rows: Any) -> AsyncGenerator[Any, None]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in _named(rows):
            yield row


# --- keys ------------------------------------------------------------------------------------------------------------------


class _RowKeys:
    """Which rows were done before."""

    def __init__(self, key: Callable[[int, Any], Any] | None, done: frozenset[Any]) -> None:
        self._key, self._done, self._seen, self._place = key, done, Keys("rows"), 0

    def is_done(self, row: Any) -> bool:
        if self._key is None:
            return False
        key = self._seen.add(self._place, self._key(self._place, row))
        if self._place == 0:
            check_kinds("done", self._done, key)
        self._place += 1
        return key in self._done


def _key(key: Key | None) -> Callable[[int, Any], Any] | None:
    if key is None:
        return None
    if callable(key):
        of = key  # the type checker forgets what `key` is in what is called later
        return lambda _, row: of(row)
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise InvalidType("key", f"{told(key)} is {type(key).__name__}, not a column, an attribute or a function of a row")
    return lambda place, row: _value(place, row, key)


def _value(place: int, row: Any, key: Any) -> Any:
    """The value of a row under a name."""
    for of in (operator.getitem, getattr):
        try:
            found = of(row, key)
        except (LookupError, TypeError, AttributeError):
            continue
        if of is operator.getitem or not callable(found):  # `keys` of a mapping is no column
            return found
    columns = f"; it has {', '.join(map(str, row))[:200] or 'nothing'}" if isinstance(row, Mapping) else ""
    raise InvalidValue("key", f"rows[{place}], {type(row).__name__}, has no {told(key)}{columns}")


def _done(done: Any, key: object) -> frozenset[Any]:
    if isinstance(done, str | bytes) or not isinstance(done, Iterable):
        raise InvalidType("done", f"is {type(done).__name__}, not a list, a column or a dict of keys")
    try:
        keys = frozenset(done)
    except TypeError:
        raise InvalidType("done", "has a key in it that cannot be hashed") from None
    if keys and key is None:
        raise InvalidValue("key", "is needed beside done=: it tells which row is done")
    return keys
