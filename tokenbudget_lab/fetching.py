"""Events out of PostgreSQL as Arrow: columns come through ADBC as integers and texts, and become what they are elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .conditions import Condition
from .errors import ExtraMissing, LedgerUnavailable, ServerUnreachable
from .rows import COLUMNS, INSTANTS, USD, arrow_schema
from .servers import Server, connected

if TYPE_CHECKING:
    import pyarrow as pa

_NAMES = ("kind", "budget", "key", "basis", "provider", "model", "response_id", "origin")  # texts, compared as they are written
_TEXTS = ("command", "reservation", "tags", *USD)


def fetched(
    server: Server, number: int, columns: Sequence[str] | None, upto: int | None, where: Condition | None = None
) -> pa.RecordBatchReader:
    """The events up to a `seq`, in order.

    Args:
        server, number: which ledger, and its number in the database.
        columns: which of theirs; all where not given.
        upto: the last `seq`.
        where: which events, and maybe others: as far as the server can tell as surely as whoever asks it again afterwards.

    Raises:
        LedgerUnavailable: nobody answers; or while it is read, it broke off.
    """
    import pyarrow as pa

    names = COLUMNS if columns is None else tuple(columns)
    connected(server).close()  # what is wrong is said in our words, before the first batch is asked for
    fields = arrow_schema()
    schema = pa.schema([fields.field(name) for name in names])
    return pa.RecordBatchReader.from_batches(schema, _batches(server, _query(number, names, upto, where), schema))


def _query(number: int, names: Sequence[str], upto: int | None, where: Condition | None) -> str:
    wanted = ", ".join(f"{name}::text as {name}" if name in _TEXTS else name for name in names)
    bounds = [f"ledger = {int(number)}", *([] if upto is None else [f"seq <= {int(upto)}"]), *pushed(where)]
    return f"select {wanted} from tokenbudget.log where {' and '.join(bounds)} order by seq"  # noqa: S608 - names and values of our own


def pushed(where: Condition | None) -> list[str]:
    """What of a condition the server can tell: texts that are equal or one of several, and bounds of `seq` and `ts`.

    The rest is left to whoever asks again: rows that are not asked for may come, none that is asked for is missing.

    Examples:
        >>> pushed(("all", ("=", "kind", "refused"), (">", "ts", ("us", 5)), ("true", "late")))
        ["kind in ('refused')", 'ts > 5']
        >>> pushed(("in", "budget", "a", "o'b")), pushed(("any", ("=", "kind", "refused"), ("null", "key")))
        (["budget in ('a', 'o''b')"], [])
    """
    if where is None:
        return []
    found = []
    for word, column, *values in where[1:] if where[0] == "all" else (where,):
        if word in ("=", "in") and column in _NAMES and all(type(text) is str and _can_be_asked(text) for text in values):
            found.append(f"{column} in ({', '.join(map(_quoted, values))})")
        elif column == "seq" and word in ("=", "in", "<", "<=", ">", ">=") and all(type(value) is int for value in values):
            found.append(f"seq {word} ({', '.join(map(str, values))})" if word == "in" else f"seq {word} {values[0]}")
        elif column == "ts" and word in ("<", "<=", ">", ">=") and type(values[0]) is tuple and values[0][0] == "us":
            found.append(f"ts {word} {int(values[0][1])}")
    return found


def _can_be_asked(text: str) -> bool:
    """Whether every server reads it in quotes as it is written."""
    return text.isprintable() and "\\" not in text


def _quoted(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))


def _batches(server: Server, query: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    try:
        import adbc_driver_manager
        from adbc_driver_postgresql import dbapi
    except ImportError as error:
        raise ExtraMissing("postgres", "adbc-driver-postgresql") from error
    import pyarrow as pa

    failed: LedgerUnavailable
    try:
        with dbapi.connect(server.conninfo) as con, con.cursor() as cursor:
            cursor.execute(query)
            for batch in cursor.fetch_record_batch():
                arrays = [_array(batch.column(n), field) for n, field in enumerate(schema)]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        return
    except adbc_driver_manager.Error as error:
        failed = ServerUnreachable(server.where, f"reading broke off ({error.sqlstate or type(error).__name__})")
    raise failed


def _array(given: Any, field: Any) -> Any:
    import pyarrow as pa

    if field.name in USD:
        whole = given.cast(pa.decimal128(38, 0))  # the same integers, counted in pico-dollars
        return pa.Array.from_buffers(field.type, len(whole), whole.buffers(), whole.null_count, whole.offset)
    if field.name in INSTANTS:
        return given.view(field.type)
    if field.name == "windows":
        return given.cast(field.type)
    if field.name == "tags":
        return pa.array([[*map(tuple, json.loads(text))] or None for text in given.to_pylist()], field.type)
    return given.cast(field.type)
