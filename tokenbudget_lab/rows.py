"""Events as rows: the columns of the events table, with their types and units, and the way from one form to the other.

Python rows (for DuckDB's appender) and Arrow batches (for analysis) have the same columns. USD is DECIMAL(38, 12), instants
are TIMESTAMPs in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, Any, cast

from .events import FIELDS, Event
from .usage import EXACT

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS: tuple[str, ...] = FIELDS
USD = ("held_usd", "usd")
INSTANTS = ("ts", "expires")
TEXT = ("kind", "command", "budget", "reservation", "key", "basis", "provider", "model", "response_id", "origin", "detail")
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - DuckDB's TIMESTAMP has no zone; by rule it is UTC
_MICROSECOND = timedelta(microseconds=1)


@lru_cache(maxsize=4096)
def timestamp(us: int) -> datetime:
    """Unix microseconds as DuckDB's TIMESTAMP, which is UTC without saying so."""
    return _EPOCH + timedelta(microseconds=us)


@lru_cache(maxsize=4096)
def usd(pico: int) -> Decimal:
    """Pico-dollars as DECIMAL(38, 12)."""
    return Decimal(pico).scaleb(-12, EXACT)


def to_row(e: Event) -> tuple[Any, ...]:
    """One event as a row for DuckDB."""
    return (
        e[0], timestamp(e[1]), e[2], e[3], e[4], e[5], e[6],
        [timestamp(start) for start in e[7]],
        None if e[8] is None else usd(e[8]), e[9],
        None if e[10] is None else usd(e[10]),
        *e[11:19],
        None if e[19] is None else timestamp(e[19]),
        *e[20:24],
        # A dict whose keys are `key` and `value` is read as lists of both, whatever it was meant to be.
        dict(zip(("key", "value"), map(list, zip(*e[24], strict=True)), strict=True)) if e[24] else None,
        e[25], e[26],
    )  # fmt: skip


def micros(moment: datetime) -> int:
    """A TIMESTAMP as Unix microseconds."""
    return (moment.replace(tzinfo=None) - _EPOCH) // _MICROSECOND


def pico(amount: Decimal | None) -> int | None:
    """A DECIMAL(38, 12) as pico-dollars."""
    return None if amount is None else int(amount.scaleb(12, EXACT))


def from_row(row: Sequence[Any]) -> Event:
    """A row of DuckDB as the event that it was made from."""
    values = list(row)
    values[1] = micros(row[1])
    values[3] = str(row[3])
    values[5] = None if row[5] is None else str(row[5])
    values[7] = tuple(micros(start) for start in row[7])
    values[8], values[10] = pico(row[8]), pico(row[10])
    values[19] = None if row[19] is None else micros(row[19])
    values[24] = tuple(sorted(row[24].items() if isinstance(row[24], dict) else row[24] or ()))
    values[26] = bytes(row[26])
    return Event._make(values)


@lru_cache(maxsize=1)
def arrow_schema() -> pa.Schema:
    """The columns with their Arrow types."""
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = dict.fromkeys(COLUMNS, pa.int64())
    kinds |= dict.fromkeys(TEXT, pa.string())
    kinds |= dict.fromkeys(USD, pa.decimal128(38, 12))
    kinds |= dict.fromkeys(INSTANTS, pa.timestamp("us"))
    kinds |= {"windows": pa.list_(pa.timestamp("us")), "tags": pa.map_(pa.string(), pa.string()), "hash": pa.binary()}
    return pa.schema(list(kinds.items()))


def to_arrow(events: Iterable[Event], columns: Sequence[str] | None = None, batch_size: int = 50_000) -> pa.RecordBatchReader:
    """Events as Arrow record batches, for stores that keep them in Python."""
    import pyarrow as pa

    names = COLUMNS if columns is None else tuple(columns)
    fields = arrow_schema()
    schema = pa.schema([fields.field(name) for name in names])
    source = iter(events)

    def batches() -> Iterator[pa.RecordBatch]:
        while chunk := list(islice(source, batch_size)):
            yield to_batch(chunk, names)

    return pa.RecordBatchReader.from_batches(schema, batches())


def to_batch(events: Sequence[Event], names: Sequence[str] = COLUMNS) -> pa.RecordBatch:
    """Events as one Arrow record batch, built column by column."""
    import pyarrow as pa

    fields = arrow_schema()
    columns = dict(zip(COLUMNS, zip(*events, strict=True), strict=True))
    arrays = [_array(name, columns[name], fields.field(name).type) for name in names]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([fields.field(name) for name in names]))


def _array(name: str, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if name in USD:
        return _decimals(values, kind)
    if name in INSTANTS:
        return pa.array(values, pa.int64()).view(kind)
    if name == "windows":
        offsets = pa.array([0, *accumulate(map(len, values))], pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array(list(chain.from_iterable(values)), pa.int64()).view(kind.value_type))
    if name == "tags":
        return pa.array([list(v) if v else None for v in values], kind)
    return pa.array(values, kind)


def _decimals(pico: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    """Pico-dollars as DECIMAL(38, 12): the same integers, 16 bytes each, so nothing is computed."""
    import pyarrow as pa

    known = [value is not None for value in pico]
    if not any(known):
        return pa.nulls(len(pico), kind)
    data = b"".join([bytes(16) if value is None else value.to_bytes(16, "little", signed=True) for value in pico])
    valid = None if all(known) else pa.array(known).buffers()[1]
    return pa.Array.from_buffers(kind, len(pico), [valid, pa.py_buffer(data)])


def from_arrow(reader: pa.RecordBatchReader) -> Iterator[Event]:
    """Arrow record batches with all columns as the events that they were made from."""
    for batch in reader:
        columns = [_values(name, batch.column(name)) for name in COLUMNS]
        yield from map(Event._make, zip(*columns, strict=True))


def _values(name: str, column: pa.Array) -> Sequence[Any]:
    """A column as an event has it; instants stay the integers that they are, which is half the work."""
    import pyarrow as pa

    if name in INSTANTS:
        return cast("list[Any]", column.cast(pa.int64()).to_pylist())
    if name == "windows":
        return [tuple(starts) for starts in column.cast(pa.list_(pa.int64())).to_pylist()]
    if name == "tags":
        return [tuple(sorted(tags)) if tags else () for tags in column.to_pylist()]
    if column.null_count == len(column):
        return [None] * len(column)
    if name in USD:
        return [pico(amount) for amount in column.to_pylist()]
    return cast("list[Any]", column.to_pylist())
