"""Events out of PostgreSQL as Arrow: columns come through ADBC as integers and texts, and become what they are elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ExtraMissing, LedgerUnavailable, ServerUnreachable
from .rows import COLUMNS, INSTANTS, USD, arrow_schema
from .servers import Server, connected

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS = ("command", "reservation", "tags", *USD)


def fetched(server: Server, number: int, columns: Sequence[str] | None, upto: int | None) -> pa.RecordBatchReader:
    """The events up to a `seq`, in order.

    Raises:
        LedgerUnavailable: nobody answers; or while it is read, it broke off.
    """
    import pyarrow as pa

    names = COLUMNS if columns is None else tuple(columns)
    connected(server).close()  # what is wrong is said in our words, before the first batch is asked for
    fields = arrow_schema()
    schema = pa.schema([fields.field(name) for name in names])
    return pa.RecordBatchReader.from_batches(schema, _batches(server, _query(number, names, upto), schema))


def _query(number: int, names: Sequence[str], upto: int | None) -> str:
    wanted = ", ".join(f"{name}::text as {name}" if name in _TEXTS else name for name in names)
    until = "" if upto is None else f" and seq <= {int(upto)}"
    return f"select {wanted} from tokenbudget.log where ledger = {int(number)}{until} order by seq"  # noqa: S608 - names of our own


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
