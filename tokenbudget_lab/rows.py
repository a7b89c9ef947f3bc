"""Events as rows: the columns of the events table, with their types and units, and the way from one form to the other.

Python rows (for DuckDB's appender) and Arrow batches (for analysis) have the same columns. USD is DECIMAL(38, 12), instants
are TIMESTAMPs in UTC.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from .conditions import Condition, to_sql
from .errors import LedgerCorrupt, StoreFailed
from .events import FIELDS, GENESIS, Event, Tags
from .usage import EXACT

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

COLUMNS: tuple[str, ...] = FIELDS
USD = ("held_usd", "usd")
INSTANTS = ("ts", "expires")
TEXT = ("kind", "command", "budget", "reservation", "key", "basis", "provider", "model", "response_id", "origin", "detail")
TYPES = {  # of the events table, as DuckDB says them
    **dict.fromkeys(COLUMNS, "BIGINT"),
    **dict.fromkeys(TEXT, "VARCHAR"),
    **dict.fromkeys(USD, "DECIMAL(38,12)"),
    **dict.fromkeys(INSTANTS, "TIMESTAMP"),
    **dict.fromkeys(("command", "reservation"), "UUID"),
    "windows": "TIMESTAMP[]",
    "tags": "MAP(VARCHAR, VARCHAR)",
    "hash": "BLOB",
}
T = TypeVar("T")
_new = tuple.__new__
_NEVER = 2**63 - 1  # microseconds; no instant that an event can have
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - DuckDB's TIMESTAMP has no zone; by rule it is UTC


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


def _plain(column: str) -> str:
    """A column in SQL as an event has it, lists as JSON: DuckDB makes the integers, several times faster than Python."""
    if column in USD:  # its text always has all twelve decimals
        return f"replace({column}::varchar, '.', '')::hugeint"
    if column in INSTANTS:  # of infinity it makes none, which would be taken for an instant that is absent
        return f"if(isinf({column}), {_NEVER}, epoch_us({column}))"
    if column == "windows":
        return "list_transform(windows, lambda start: epoch_us(start))::varchar"
    if column == "tags":
        return "to_json(tags)::varchar"
    return f"{column}::varchar" if column in ("command", "reservation") else column


PLAIN = ", ".join(map(_plain, COLUMNS))  # what `from_plain` takes


def _text(column: str) -> str:
    """A column in SQL as it stands in the canonical bytes."""
    if column == "windows":
        return f"replace({_plain(column)}, ' ', '')"
    if column == "tags":
        pairs = "list_transform(map_entries(tags), lambda tag: [tag.key, tag.value])::json::varchar"
        return f"if(tags is null, '[]', nullif({pairs}, '[]'))"  # no tags are null; an empty map is looked at again
    return f"coalesce({f'to_json({column}::varchar)' if column in TEXT else _plain(column)}::varchar, 'null')"


# What the fold reads, as JSON that is made without Python's lock; a few hundred events at a time stay in a processor's cache.
_AT_ONCE = 500
_FOLDED = frozenset((*COLUMNS[:14], "expires", "detail")) - {"command"}  # a proof keeps no commands
_HASH = COLUMNS.index("hash")
_NULL = "'null'"
_EVENT = f"'[' || concat_ws(',', {', '.join(_text(n) if n in _FOLDED else _NULL for n in COLUMNS)}) || ']'"
_CANONICAL = f"'[' || concat_ws(',', {', '.join(_text(column) for column in COLUMNS[:_HASH])}) || ']'"
_BEFORE = "lag(hash, 1, getvariable('previous')) over (order by seq)"
_PROOF = f"""
    select coalesce(bool_and(continues), false), '[' || string_agg(event, ',' order by seq) || ']', last(hash order by seq)
    from (
        select seq, hash, {_EVENT} as event,
            coalesce(unhex(sha256({_BEFORE} || encode({_CANONICAL}))) = hash, false) as continues
        from batch
    )
    group by seq // {_AT_ONCE} order by seq // {_AT_ONCE}
"""  # noqa: S608 - names of our own


def from_plain(rows: Iterable[tuple[Any, ...]]) -> Iterator[Event]:
    """Rows of `select PLAIN` as the events that they were made from."""
    for row in rows:
        starts, tags = row[7], row[24]
        try:
            starts = () if starts == "[]" else _starts(starts)
            tags = () if tags is None else _tags(tags)
        except (TypeError, ValueError):  # null, or what the JSON of a list cannot say: infinity
            raise LedgerCorrupt(row[0], "its windows or tags are not what a ledger writes") from None
        yield _new(Event, (*row[:7], starts, *row[8:24], tags, row[25], row[26]))


def _folded(texts: Iterable[str], last: bytes) -> Iterator[Event]:
    """Events from JSON, without what the fold does not read; of their hashes only the last is there."""
    rows = chain.from_iterable(map(json.loads, texts))
    row = next(rows)
    for after in rows:
        row[7] = tuple(row[7])
        yield _new(Event, row)
        row = after
    row[7], row[_HASH] = tuple(row[7]), last
    yield _new(Event, row)


@lru_cache(maxsize=4096)
def _starts(text: str) -> tuple[int, ...]:
    return tuple(json.loads(text))


@lru_cache(maxsize=4096)
def _tags(text: str) -> Tags:
    pairs = json.loads(text, object_pairs_hook=tuple)  # a key that comes twice too, which a dict would make one of
    if not pairs:  # hashed like none, which is null
        raise ValueError(text)
    return tuple(sorted(pairs))


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


def only(reader: pa.RecordBatchReader, columns: Sequence[str], where: Condition) -> pa.RecordBatchReader:
    """Those events of a reader that are asked for, in order, for stores that keep them in Python.

    Args:
        reader: with all columns that the condition looks at, and `seq`.
        columns: the ones that are wanted.
        where: which events.
    """
    import duckdb

    asked, given = to_sql(where, COLUMNS)
    with duckdb.connect() as con:
        con.register("incoming", reader)
        query = f"select {', '.join(columns)} from incoming where {asked} order by seq"  # noqa: S608 - names of our own
        return con.sql(query, params=given).to_arrow_table().to_reader()


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


def in_utc(fields: pa.Schema) -> pa.Schema:
    """An Arrow schema with the zone of its instants said: by rule they are UTC."""
    import pyarrow as pa

    aware = pa.timestamp("us", "UTC")

    def zoned(kind: Any) -> Any:
        if pa.types.is_list(kind):
            return pa.list_(zoned(kind.value_type))
        return aware if pa.types.is_timestamp(kind) else kind

    return pa.schema([field.with_type(zoned(field.type)) for field in fields])


def from_arrow(reader: pa.RecordBatchReader) -> Iterator[Event]:
    """Arrow record batches with all columns, in order of `seq`, as the events that they were made from."""
    for rows in _ahead(_batches(reader)):
        yield from from_plain(rows)


def proved(reader: pa.RecordBatchReader, previous: bytes = GENESIS) -> Iterator[tuple[Iterable[Event], bool]]:
    """Events as from `from_arrow`, in batches, each with whether all its hashes were found to continue the chain.

    DuckDB computes the hashes, of a text that differs from the canonical bytes where a string has other than plain characters.
    So what it finds is right is right, and what it does not find is to be looked at again. Of what is right only those fields
    are there that the fold reads, and only the last hash.

    Args:
        reader: with all columns, in order of `seq`.
        previous: the hash of the event before the first one.
    """
    for texts, last, rows in _ahead(_proofs(reader, previous)):
        if rows is None:
            yield _folded(texts, last), True
        else:
            yield from_plain(rows), False


def _batches(reader: pa.RecordBatchReader) -> Iterator[list[tuple[Any, ...]]]:
    """Rows of `PLAIN`, batch by batch."""
    import duckdb

    with duckdb.connect() as con:
        for batch in reader:
            yield _plain_rows(con, batch)


def _plain_rows(con: duckdb.DuckDBPyConnection, batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    import pyarrow as pa

    con.register("batch", pa.Table.from_batches([batch]))
    rows = con.execute(f"select {PLAIN} from batch order by seq").fetchall()  # noqa: S608 - names of our own
    con.unregister("batch")
    return rows


def _proofs(reader: pa.RecordBatchReader, previous: bytes) -> Iterator[tuple[list[str], bytes, list[tuple[Any, ...]] | None]]:
    """For each batch that continues the chain its events as JSON and the last hash; for another also its rows of `PLAIN`."""
    import duckdb
    import pyarrow as pa

    with duckdb.connect() as con:
        for batch in reader:
            if not batch.num_rows:
                continue
            con.register("batch", pa.Table.from_batches([batch]))
            con.execute("set variable previous = ?::blob", [previous])
            try:
                groups = con.execute(_PROOF).fetchall()
            except duckdb.Error as error:  # a map with one key twice
                first = batch.column("seq")[0].as_py()
                raise LedgerCorrupt(first, f"DuckDB cannot read it, or one of the {batch.num_rows:,} with it") from error
            con.unregister("batch")
            previous = groups[-1][2]
            rows = None if all(continues for continues, _, _ in groups) else _plain_rows(con, batch)
            yield [text for _, text, _ in groups], previous, rows


def _ahead(batches: Iterator[T]) -> Iterator[T]:
    """The same, each made in another thread while the one before is used: DuckDB computes without the interpreter's lock."""
    with ThreadPoolExecutor(1, "tokenbudget rows") as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


class Rows:
    """Events on their way to a reader, who may be slow; while they are, DuckDB would wait for ever to open the file again."""

    def __init__(self, reader: Any, where: str) -> None:
        self._reader, self._where, self._ended = reader, where, False
        self._reading = threading.Lock()
        self._schema = reader.schema

    def reader(self) -> Any:
        """The same as a reader that can be ended."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[Any]:
        while True:
            with self._reading:
                if self._ended:
                    raise StoreFailed(f"{self._where} was opened again in the middle of a query; ask again")
                try:
                    batch = self._reader.read_next_batch()
                except StopIteration:
                    return
            yield batch

    def end(self) -> None:
        """Whoever still reads is told so."""
        with self._reading:
            self._ended = True
            self._reader.close()
            self._reader = None
