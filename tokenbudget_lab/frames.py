"""A ledger as Polars frames: `events`, as they were written, and `calls`, one row per reservation or record.

Both are lazy: nothing is read before `collect`, and then only the columns in use. Absent is null, never 0. `COLUMNS` says of
every column its type, unit and meaning; the types there are Polars' own, and three that are short for

    USD      Decimal(38, 12)
    Instant  Datetime("us", "UTC")
    Tags     Map(String, String); `tag("condition")` is one label's value
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from .desk import Desk
from .sandbox import run

if TYPE_CHECKING:
    import polars as pl


class Column(NamedTuple):
    """What one column holds."""

    type: str
    unit: str
    meaning: str


_USAGE = {
    "input_tokens": Column("Int64", "tokens", "sent, cache reads and writes included"),
    "output_tokens": Column("Int64", "tokens", "answered, reasoning included"),
    "cache_read_tokens": Column("Int64", "tokens", "of the input, read from the provider's cache"),
    "cache_write_tokens": Column("Int64", "tokens", "of the input, written to the provider's cache"),
    "reasoning_tokens": Column("Int64", "tokens", "of the output, spent on thinking"),
}

COLUMNS: dict[str, dict[str, Column]] = {
    "events": {
        "seq": Column("Int64", "", "number of the event: 1, 2, 3 … without gaps"),
        "ts": Column("Instant", "UTC", "when the writer decided it; never goes backwards"),
        "kind": Column(
            "String", "", "created, budget_set, closed, reserved, extended, committed, part_committed, rolled_back, …"
        ),
        "command": Column("String", "", "id of the command that asked for it, or of the writer's own tick"),
        "budget": Column("String", "", "name of the budget"),
        "reservation": Column("String", "", "id of the reservation or record that it belongs to"),
        "key": Column("String", "", "the caller's idempotency key; of a part, its name"),
        "windows": Column("List(Instant)", "UTC", "starts of the windows it counts in, leaf to root, lifetimes left out"),
        "held_usd": Column("USD", "USD", "what a reservation holds"),
        "held_tokens": Column("Int64", "tokens", "what a reservation holds"),
        "usd": Column("USD", "USD", "what the limits count"),
        "tokens": Column("Int64", "tokens", "what the limits count"),
        "requests": Column("Int64", "calls", "held by a reservation, or counted"),
        "basis": Column("String", "", "measured, estimated, unknown; on reserved: unknown where a lost call is counted"),
        **_USAGE,
        "expires": Column("Instant", "UTC", "when the reservation ends by itself"),
        "provider": Column("String", "", "who sells the model"),
        "model": Column("String", "", "the model's name"),
        "response_id": Column("String", "", "the provider's id of the reply"),
        "origin": Column("String", "JSON", "who spent: user, host, notebook or script, git commit"),
        "tags": Column("Tags", "", "the caller's labels"),
        "detail": Column("String", "JSON", "what only this kind of event has"),
        "hash": Column("Binary", "SHA-256", "of the hash before and this event's canonical bytes"),
    },
    "calls": {
        "seq": Column("Int64", "", "number of the event that began it"),
        "reservation": Column("String", "", "id of the reservation or record"),
        "budget": Column("String", "", "name of the budget"),
        "state": Column("String", "", "open, committed, rolled_back, released, counted (lost, and counted as held), recorded"),
        "reserved": Column("Instant", "UTC", "when it was granted; of a record, when it was written"),
        "spent_at": Column("Instant", "UTC", "the moment whose windows it counts in: a record's at=, else as reserved"),
        "ended": Column("Instant", "UTC", "when it ended; null while open"),
        "latency_s": Column("Float64", "seconds", "from the grant to the end; null while open, and for records"),
        "expires": Column("Instant", "UTC", "when it ends, or would have ended, by itself; extensions included"),
        "held_usd": Column("USD", "USD", "held when it was granted"),
        "held_tokens": Column("Int64", "tokens", "held when it was granted"),
        "held_requests": Column("Int64", "calls", "held when it was granted"),
        "counted_input_tokens": Column(
            "Int64", "tokens", "its input as it was counted before it was sent; null where it was not"
        ),
        "max_output_tokens": Column("Int64", "tokens", "of its output, what was held for"),
        "counted_by": Column("String", "", "how an instrumented client counted its input"),
        "reserved_usd": Column("USD", "USD", "held now: the parts committed so far are taken off; null once ended"),
        "reserved_tokens": Column("Int64", "tokens", "held now, as reserved_usd"),
        "reserved_requests": Column("Int64", "calls", "held now, as reserved_usd"),
        "cost_usd": Column(
            "USD", "USD", "counted now, parts and adjustments included; null where nothing is, or no price was known"
        ),
        "tokens": Column("Int64", "tokens", "counted now, parts and adjustments included; null where nothing is"),
        "requests": Column("Int64", "calls", "counted now, parts and adjustments included; null where nothing is"),
        "basis": Column(
            "String", "", "how well that is known: the weakest of measured, estimated, unknown; adjusted is measured"
        ),
        **dict(list(_USAGE.items())[:4]),
        "cache_write_1h_tokens": Column("Int64", "tokens", "of those, to a cache that lives an hour; null for none"),
        "reasoning_tokens": _USAGE["reasoning_tokens"],
        "web_searches": Column("Int64", "searches", "that the provider made and bills; null for none"),
        "context": Column("String", "JSON", "on what terms: processing (batch), service_tier, speed; null for the standard"),
        "prices": Column(
            "String", "", "whose prices, and which state of them, made the cost; null where it was said, or unknown"
        ),
        "priced_as": Column("String", "", "that list's name of the model; with parts, of the last one, as the two beside it"),
        "above": Column(
            "Int64", "tokens", "the rates hold for requests of more input than this; null where size does not matter"
        ),
        "late": Column("Boolean", "", "committed after it had expired"),
        "overrun": Column("Boolean", "", "the commit was more than the hold"),
        "provider": Column("String", "", "who sells the model"),
        "model": Column("String", "", "the model's name"),
        "response_id": Column("String", "", "the provider's id of the reply; with parts, of the last one"),
        "key": Column("String", "", "the caller's idempotency key"),
        "tags": Column("Tags", "", "the caller's labels"),
        "origin": Column("String", "JSON", "who spent: user, host, notebook or script, git commit"),
    },
}


def events(desk: Desk) -> pl.LazyFrame:
    """Every event, in order.

    Args:
        desk: where the events come from.

    Returns:
        The columns of `COLUMNS["events"]`.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", usd=1)
        ...     ledger.events().select("seq", "kind").collect().rows()
        [(1, 'created'), (2, 'budget_set')]
    """

    def read(names: list[str], n_rows: int | None) -> Iterator[pl.DataFrame]:
        import polars as pl

        reader = desk.arrow(names, n_rows)  # the first n rows end with event n
        try:
            for batch in reader:
                frame = pl.from_arrow(batch.cast(_in_utc(batch.schema)))
                assert isinstance(frame, pl.DataFrame)  # noqa: S101 - tells the type checker
                yield frame
        finally:
            reader.close()

    return _lazy("events", read)


def calls(desk: Desk) -> pl.LazyFrame:
    """One row per reservation or record, from hold to outcome, in the order in which they began.

    Over a budget and all below it, `cost_usd`, `tokens` and `requests` add up to what the budget has committed since it was
    made, and `reserved_usd`, `reserved_tokens` and `reserved_requests` to what it has reserved.

    Args:
        desk: where the events come from.

    Returns:
        The columns of `COLUMNS["calls"]`: the view `calls` of `stores/views.sql`, which is what defines it.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     with ledger.budget("lab", usd=1).reserve(usd="0.3", tags={"arm": "b"}) as call:
        ...         receipt = call.commit(usd="0.25")
        ...     ledger.calls().select("state", "cost_usd", tag("arm")).collect().row(0)
        ('committed', Decimal('0.250000000000'), 'b')
    """

    def read(names: list[str], n_rows: int | None) -> Iterator[pl.DataFrame]:
        chosen = ", ".join(f'"{name}"' for name in names)
        yield run(desk, f"select {chosen} from calls order by calls.seq limit $n", {"n": n_rows})  # noqa: S608 - names of our own

    return _lazy("calls", read)


def tag(name: str) -> pl.Expr:
    """One label out of `tags`, as a column of its name.

    Args:
        name: the label's name.

    Returns:
        String; null where a row does not have it.

    Examples:
        >>> str(tag("condition").meta.output_name())
        'condition'
    """
    import polars as pl

    return pl.col("tags").map.get(pl.lit(name)).alias(name)


def schema(frame: str) -> pl.Schema:
    """The Polars types of the columns of `events` or `calls`.

    Examples:
        >>> schema("calls")["cost_usd"]
        Decimal(precision=38, scale=12)
    """
    import polars as pl

    instant = pl.Datetime("us", "UTC")
    short: dict[str, Any] = {
        "USD": pl.Decimal(38, 12),
        "Instant": instant,
        "List(Instant)": pl.List(instant),
        "Tags": pl.Map(pl.String, pl.String),
    }
    return pl.Schema({name: short.get(column.type) or getattr(pl, column.type) for name, column in COLUMNS[frame].items()})


def _lazy(frame: str, read: Callable[[list[str], int | None], Iterator[pl.DataFrame]]) -> pl.LazyFrame:
    """A frame that reads the columns and rows that a query over it needs."""
    from polars.io.plugins import register_io_source

    def source(
        names: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _size: int | None
    ) -> Iterator[pl.DataFrame]:
        for part in read(names or list(COLUMNS[frame]), n_rows):  # Polars counts the rows before it filters them
            yield part if predicate is None else part.filter(predicate)

    return register_io_source(source, schema=schema(frame), validate_schema=True, explain_name=f"ledger {frame}")


def _in_utc(fields: Any) -> Any:
    """An Arrow schema with the zone of its instants said: by rule they are UTC."""
    import pyarrow as pa

    aware = pa.timestamp("us", "UTC")

    def zoned(kind: Any) -> Any:
        if pa.types.is_list(kind):
            return pa.list_(zoned(kind.value_type))
        return aware if pa.types.is_timestamp(kind) else kind

    return pa.schema([field.with_type(zoned(field.type)) for field in fields])
