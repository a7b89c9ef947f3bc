"""A ledger as Polars frames, and the columns that they have.

`events` are as they were written; `calls` has one row per reservation or record, `reservations` those that are open, and
`balances` one row per budget. All are lazy: nothing is read before `collect`, then only the columns in use, and of the rows
those that a filter leaves as far as it can be asked for (`predicates.py`). Absent is null, never 0. `COLUMNS` says of every
column its type, unit and meaning; the types there are Polars' own, and three that are short for

    USD      Decimal(38, 12)
    Instant  Datetime("us", "UTC")
    Tags     Map(String, String); `tag("condition")` is one label's value
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from .conditions import Condition, to_sql
from .desk import Source
from .exports import existing_export
from .leaving import ended_in_time
from .predicates import condition_of
from .rows import in_utc
from .sandbox import run, run_in_parts

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
        "sdk_attempt": Column("Int64", "", "2 for the SDK's first retry of a request, and so on; null for what is none"),
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
    "reservations": {
        "reservation": Column("String", "", "id of the reservation"),
        "budget": Column("String", "", "name of the budget"),
        "reserved": Column("Instant", "UTC", "when it was granted"),
        "expires": Column("Instant", "UTC", "when it ends by itself; extensions included"),
        "reserved_usd": Column("USD", "USD", "held now: the parts committed so far are taken off; null where no USD are held"),
        "reserved_tokens": Column("Int64", "tokens", "held now, as reserved_usd"),
        "reserved_requests": Column("Int64", "calls", "held now, as reserved_usd"),
        "provider": Column("String", "", "who sells the model"),
        "model": Column("String", "", "the model's name"),
        "key": Column("String", "", "the caller's idempotency key"),
        "tags": Column("Tags", "", "the caller's labels"),
    },
    "balances": {
        "budget": Column("String", "", "name of the budget; all amounts are its own and those of all budgets below it"),
        "committed_usd": Column("USD", "USD", "counted since it was made, whatever its windows; 0 where nothing is"),
        "reserved_usd": Column("USD", "USD", "held now by open reservations; 0 where nothing is"),
        "committed_tokens": Column("Int64", "tokens", "as committed_usd"),
        "reserved_tokens": Column("Int64", "tokens", "as reserved_usd"),
        "committed_requests": Column("Int64", "calls", "as committed_usd"),
        "reserved_requests": Column("Int64", "calls", "as reserved_usd"),
        "calls_in_flight": Column("Int64", "calls", "open reservations"),
        "unpriced_calls": Column("Int64", "calls", "ended and counted, without a cost: committed_usd lacks them"),
        "calls": Column("Int64", "calls", "reservations and records in all, whatever became of them"),
    },
}
_ORDER = {"calls": ("seq",), "reservations": ("reserved", "reservation"), "balances": ("budget",)}


def events(desk: Source) -> pl.LazyFrame:
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

    def read(names: list[str], n_rows: int | None, where: Condition | None) -> Iterator[pl.DataFrame]:
        import polars as pl

        reader = desk.arrow(names, n_rows, where)  # the first n rows end with event n
        try:
            for batch in reader:
                frame = pl.from_arrow(batch.cast(in_utc(batch.schema)))
                assert isinstance(frame, pl.DataFrame)  # noqa: S101 - tells the type checker
                yield frame
        finally:
            reader.close()

    return _lazy("events", read)


def calls(desk: Source, *, ordered: bool = True) -> pl.LazyFrame:
    """One row per reservation or record, from hold to outcome, in the order in which they began.

    Over a budget and all below it, `cost_usd`, `tokens` and `requests` add up to what the budget has committed since it was
    made, and `reserved_usd`, `reserved_tokens` and `reserved_requests` to what it has reserved.

    Args:
        desk: where the events come from.
        ordered: whether the order matters; of millions it takes as long as all the rest.

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
    return _view("calls", desk, ordered=ordered)


def reservations(desk: Source) -> pl.LazyFrame:
    """The open reservations and what they still hold, in the order in which they were granted.

    Args:
        desk: where the events come from.

    Returns:
        The columns of `COLUMNS["reservations"]`. One whose time is over is among them until its expiry is an event.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     call = ledger.budget("lab", usd=1).reserve_sync(usd="0.3", key="row-1")
        ...     ledger.reservations().select("budget", "reserved_usd", "key").collect().row(0)
        ('lab', Decimal('0.300000000000'), 'row-1')
    """
    return _view("reservations", desk)


def balances(desk: Source) -> pl.LazyFrame:
    """What each budget and all below it have committed and hold, by name.

    Args:
        desk: where the events come from.

    Returns:
        The columns of `COLUMNS["balances"]`: since the budget was made, while a limit may count per window.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", usd=1)
        ...     receipt = ledger.budget("lab/a", usd=1).record(usd="0.25")
        ...     ledger.balances().select("budget", "committed_usd").collect().rows()
        [('lab', Decimal('0.250000000000')), ('lab/a', Decimal('0.250000000000'))]
    """
    return _view("balances", desk)


def _view(frame: str, desk: Source, *, ordered: bool = True) -> pl.LazyFrame:
    """A view of `stores/views.sql` as a frame."""

    def read(names: list[str], n_rows: int | None, where: Condition | None) -> Iterator[pl.DataFrame]:
        asked, given = ("true", {}) if where is None else to_sql(where, COLUMNS[frame])
        chosen, order = (", ".join(f'"{name}"' for name in some) for some in (names, _ORDER[frame]))
        sorting = f"order by {order}" if ordered else ""
        if frame == "calls":
            yield from run_in_parts(desk, f"select {chosen} from calls where {asked} {sorting}", given, calls=n_rows)  # noqa: S608 - as below
            return
        rows = frame if n_rows is None else f"(from {frame} order by {order} limit {int(n_rows)})"
        yield run(desk, f"with rows as (from {rows} where {asked}) select {chosen} from rows {sorting}", given)  # noqa: S608 - names of our own; values are parameters

    return _lazy(frame, read)


class Export:
    """An export as the frames of its ledger, with the same columns.

    Attributes:
        folder: where it is.
        rows: how many events it has.
        head: the hash of the last one, in hex.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._files, manifest = existing_export(folder)
        self.folder, self.rows, self.head = self._files.folder, manifest.last_seq, manifest.head

    def events(self) -> pl.LazyFrame:
        """As `Ledger.events()`, of the events that were exported."""
        return events(self._files)

    def calls(self) -> pl.LazyFrame:
        """As `Ledger.calls()`, of the events that were exported."""
        return calls(self._files)

    def reservations(self) -> pl.LazyFrame:
        """As `Ledger.reservations()`: what was open when it was exported."""
        return reservations(self._files)

    def balances(self) -> pl.LazyFrame:
        """As `Ledger.balances()`, of the events that were exported."""
        return balances(self._files)

    def __repr__(self) -> str:
        return f"Export({str(self.folder)!r}, {self.rows:,} events)"


def read_export(folder: str | os.PathLike[str]) -> Export:
    """Read an export; the ledger that it is from need not be there.

    Args:
        folder: what `Ledger.export` or `tokenbudget export` has written. Later events are seen when it is read again.

    Raises:
        InvalidValue: there is no export.
        ExportUnsound: files are missing, or are not those that were written.
        VersionMismatch: a newer version of the package wrote it.
    """
    return Export(folder)


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
    """The Polars types of the columns of a frame of `COLUMNS`.

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


def _lazy(frame: str, read: Callable[[list[str], int | None, Condition | None], Iterator[pl.DataFrame]]) -> pl.LazyFrame:
    """A frame that reads the columns and rows that a query over it needs.

    Args:
        frame: its name in `COLUMNS`.
        read: given columns, a number of rows and a condition, those of the first rows that meet it; Polars counts the rows
            before it filters them.
    """
    import polars as pl
    from polars.io.plugins import register_io_source

    types = schema(frame)

    def source(
        names: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _size: int | None
    ) -> Iterator[pl.DataFrame]:
        chosen = list(COLUMNS[frame]) if names is None else names
        if predicate is None:
            yield from ended_in_time(read(chosen, n_rows, None))
            return
        # Polars looks at what is left, and where nothing is left it can still say that it does not take the question.
        yield pl.DataFrame(schema={name: types[name] for name in chosen}).filter(predicate)
        for part in ended_in_time(read(chosen, n_rows, condition_of(predicate, types))):
            yield part.filter(predicate)

    return register_io_source(source, schema=types, validate_schema=True, explain_name=f"ledger {frame}")
