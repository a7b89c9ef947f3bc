"""SQL over a ledger's events, where it can do no harm: in a DuckDB of this process that is made for one query.

Its tables are `events` and the views `calls`, `reservations`, `budgets` and `balances` (`stores/views.sql`). The instance
that owns the ledger never sees the query. Three fences stand one behind the other: DuckDB's own parse of the query must be
one SELECT over tables and harmless table functions; it runs in a read-only transaction; and the instance has its settings
locked, with no files, no extensions and no Python variables to reach.

Only those columns travel that DuckDB's planner finds in use. Touching another one is an error inside DuckDB, and the query
is then run with all of them: a column that was not loaded can never be taken for an empty one.

In here instants are TIMESTAMP WITH TIME ZONE, so `date_trunc('day', ts)` means days in UTC, and
`date_trunc('day', ts at time zone 'Europe/Berlin')` means days in Berlin.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

from .desk import Source
from .errors import LedgerUnavailable, QueryRefused
from .leaving import ending_by
from .rows import COLUMNS, TYPES

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_T = TypeVar("_T")
_FENCED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "temp_directory": "",  # else the folder .tmp of the working folder may be read and written
}
_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_TABLE_FUNCTIONS = {"range", "generate_series", "unnest", "repeat", "json_each", "json_tree"}
_PLANNED_BY = "unused_columns"  # the one optimizer that runs when a query is asked for its columns
_NOT_LOADED = "this column was not loaded"
_TYPES = {name: kind.replace("TIMESTAMP", "TIMESTAMPTZ") for name, kind in TYPES.items()}
_FIRST_LINES = 6
_BEGINS = "kind in ('reserved', 'recorded')"
_PART_EVENTS = 1_000_000


def run(desk: Source, query: str, parameters: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Answer one SELECT; Ctrl-C ends it.

    Args:
        desk: where the events come from.
        query: DuckDB's SQL; `$name` stands for a parameter.
        parameters: values by name.

    Returns:
        Its rows: USD as Decimal, instants aware in UTC, ids as String, tags as Map(String, String). A sum of integers is
        Int64.

    Raises:
        QueryRefused: not one SELECT, it reaches outside, or DuckDB cannot run it.
    """
    if not isinstance(query, str):
        raise QueryRefused(f"{type(query).__name__} is no SQL text")
    if "\0" in query or any("\ud800" <= c <= "\udfff" for c in query):
        raise QueryRefused("it contains a NUL or half a surrogate pair")
    import duckdb

    given = dict(parameters or {}) or None
    with contextlib.closing(duckdb.connect(":memory:", config=_FENCED)) as con:
        return _interruptible(con, lambda: _answer(con, desk, query, given))


def run_in_parts(
    desk: Source, query: str, parameters: Mapping[str, Any] | None = None, *, calls: int | None = None
) -> Iterator[pl.DataFrame]:
    """Answer a SELECT of our own over the view `calls`, asked again and again of some of the calls, in their order.

    What one question takes is bounded so: folding all calls of a large ledger at once takes 1.5 kB of memory for each.

    Args:
        desk: where the events come from.
        query: DuckDB's SQL, of which the answers to parts of the calls, one behind the other, are the answer to all.
        parameters: values by name.
        calls: look at the first so many only.

    Yields:
        Its rows, as `run` gives them.

    Raises:
        QueryRefused: DuckDB cannot run it.
    """
    import duckdb

    given = dict(parameters or {}) or None
    with contextlib.closing(duckdb.connect(":memory:", config=_FENCED)) as con:
        bounds = _interruptible(con, lambda: _load_for_parts(con, desk, query, given, calls))
        for after, upto in itertools.pairwise(bounds):
            yield _interruptible(con, functools.partial(_part, con, query, given, after, upto))


def _load_for_parts(
    con: duckdb.DuckDBPyConnection, desk: Source, query: str, given: dict[str, Any] | None, calls: int | None
) -> list[int]:
    """Load what a query over calls needs.

    Returns:
        The ends of the parts: numbers of events.
    """
    _, needed = _planned(con, query, given)
    _load(con, desk, {*needed, "seq", "kind", "reservation"})
    begins = f"from loaded where {_BEGINS}"
    last = f"select max(seq) {begins}" if calls is None else f"select max(seq) from (select seq {begins} order by seq limit $n)"  # noqa: S608 - texts of our own
    [(end,)] = con.execute(last, {"n": calls} if calls is not None else None).fetchall()
    return [*range(0, end or 1, _PART_EVENTS), end or 1]


def _part(con: duckdb.DuckDBPyConnection, query: str, given: dict[str, Any] | None, after: int, upto: int) -> pl.DataFrame:
    """The answer over the calls that these events began."""
    con.execute("drop view if exists events")
    begun = f"select reservation from loaded where {_BEGINS} and seq > {after:d} and seq <= {upto:d}"  # noqa: S608 - numbers
    _show(con, f"loaded where reservation in ({begun})")
    return _fetched(con, query, given)


def _interruptible(con: duckdb.DuckDBPyConnection, work: Callable[[], _T]) -> _T:
    """Work in a thread of its own: DuckDB does not reliably notice Ctrl-C, a main thread that waits does."""
    results: list[_T] = []
    errors: list[BaseException] = []
    done = threading.Event()  # and no join: interrupted, Python takes the thread for ended (bpo-45274)

    def worker() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=worker, name="tokenbudget sql", daemon=True).start()
    try:
        with ending_by(con.interrupt):
            while not done.wait(0.1):
                pass  # an endless wait would not notice a Ctrl-C that was delivered to another thread
    except BaseException:
        while not done.is_set():
            con.interrupt()
            done.wait(0.05)  # then again: an interrupt that falls between two statements is lost
        raise
    if errors:
        raise errors[0]
    return results[0]


def _answer(con: duckdb.DuckDBPyConnection, desk: Source, query: str, given: dict[str, Any] | None) -> pl.DataFrame:
    text, needed = _planned(con, query, given)
    _load(con, desk, needed)
    _show(con, "loaded")
    try:
        return _fetched(con, text, given)
    except QueryRefused as refused:
        if _NOT_LOADED not in refused.reason:
            raise
    con.execute("drop view events")
    con.execute("drop table loaded")
    _load(con, desk, COLUMNS)
    _show(con, "loaded")
    return _fetched(con, text, given)


def _planned(con: duckdb.DuckDBPyConnection, query: str, given: dict[str, Any] | None) -> tuple[str, Collection[str]]:
    """The text of a query that may run, and the columns of events that it needs; from here on nothing can be set."""
    import duckdb

    con.execute("set TimeZone = 'UTC'")
    with contextlib.suppress(duckdb.InvalidInputException):  # a kernel without ipywidgets, which cannot draw one either
        con.execute("set enable_progress_bar = false")  # it would be drawn into whatever is printed
    text = _checked(con, query)
    con.execute(f"create table events ({', '.join(f'{name} {kind}' for name, kind in _TYPES.items())})")
    for view in _views_in(text):
        con.execute(view)
    con.execute(f"set disabled_optimizers = '{','.join(_optimizers(con))}'")
    needed = _needed(con, text, given)
    con.execute("reset disabled_optimizers")
    con.execute("set lock_configuration = true")
    con.execute("drop table events")
    return text, needed


@functools.cache
def _views() -> dict[str, str]:
    """The statement that makes each view, in the order in which they build on each other."""
    text = files("tokenbudget_lab.stores").joinpath("views.sql").read_text()
    made = [f"create view {rest}" for rest in text.split("\ncreate view ")[1:]]
    return {view.split()[2]: view for view in made}


def _views_in(text: str) -> list[str]:
    """What makes the views that a query may name: more than it does, never fewer; each costs DuckDB some milliseconds."""
    named: list[str] = []
    text = text.lower()
    for name, view in reversed(_views().items()):
        if name in text:
            named.insert(0, view)
            text += view
    return named


# --- what may run ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """DuckDB's errors in DuckDB's words."""
    import duckdb
    import polars as pl

    try:
        yield
    except (duckdb.Error, pl.exceptions.PolarsError, UnicodeError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        lines = lines[:_FIRST_LINES] or [type(error).__name__]
        if isinstance(error, duckdb.CatalogException):
            lines.append(f"The tables are events, {', '.join(_views())}.")
        raise QueryRefused("\n".join(lines)) from None


def _checked(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """The text of the one statement, after a look at its parse tree; nothing has run or been bound by then."""
    with _refusing():
        statements = con.extract_statements(query)
    if len(statements) != 1:
        raise QueryRefused(f"it has {len(statements)} statements, not one SELECT")
    kind, text = statements[0].type.name, statements[0].query
    if kind == "MULTI":
        raise QueryRefused("it takes several steps; give a PIVOT its columns: pivot … on … in (…)")
    if kind != "SELECT":
        raise QueryRefused(f"{kind.replace('_', ' ')} is no SELECT; a query only reads")
    with _refusing():
        row = con.execute("select json_serialize_sql($1::varchar)", [text]).fetchone()
    try:
        tree = json.loads(row[0]) if row else {}
    except RecursionError:
        raise QueryRefused("it is nested too deeply") from None
    if tree.get("error", True):
        raise QueryRefused(str(tree.get("error_message", "DuckDB cannot take it apart")))
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            _look_at(node)
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return text


def _look_at(node: dict[str, Any]) -> None:
    kind = node.get("type")
    if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _NODES:
        raise QueryRefused(f"{kind.removesuffix('_NODE').removesuffix('_QUERY')} inside a query; a query only reads")
    if kind == "TABLE_FUNCTION":
        name = str(node.get("function", {}).get("function_name", "")).lower()
        if name not in _TABLE_FUNCTIONS:
            raise QueryRefused(f"{name}(…) is not one of the ledger's tables, nor of {', '.join(sorted(_TABLE_FUNCTIONS))}")


# --- what has to travel ------------------------------------------------------------------------------------------------


def _optimizers(con: duckdb.DuckDBPyConnection) -> list[str]:
    return [name for (name,) in con.execute("select name from duckdb_optimizers()").fetchall() if name != _PLANNED_BY]


def _needed(con: duckdb.DuckDBPyConnection, text: str, given: dict[str, Any] | None) -> Collection[str]:
    """The columns of events that the plan reads; all of them where the plan does not say."""
    with _refusing():
        answer = con.sql(text, params=given)
        for name, type_ in zip(answer.columns, answer.types, strict=True):
            if str(type_).startswith(("INTERVAL", "UNION")):
                raise QueryRefused(
                    f"column {name} is {type_}, which no frame can hold; of an interval take epoch({name}), its seconds"
                )
        rows = con.execute(f"explain (format json) {text}", given).fetchall()
    needed: set[str] = set()
    waiting: list[Any] = [json.loads(row[1]) for row in rows]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
            continue
        waiting += node.get("children", [])
        told = node.get("extra_info", {})
        if str(told.get("Table", "")).endswith("events"):
            used = told.get("Projections", list(COLUMNS))
            needed |= {used} if isinstance(used, str) else set(used)
    return [name for name in COLUMNS if name in needed]


def _load(con: duckdb.DuckDBPyConnection, desk: Source, needed: Collection[str]) -> None:
    """Load these columns."""
    import duckdb

    chosen = [name for name in COLUMNS if name in needed] or ["seq"]
    con.execute(f"create table loaded ({', '.join(f'{name} {_TYPES[name]}' for name in chosen)})")
    reader = desk.arrow(chosen, uuids=True)
    try:
        con.register("incoming", reader)
        con.execute(f"insert into loaded select {', '.join(chosen)} from incoming")  # noqa: S608 - names of our own
        con.unregister("incoming")
    except duckdb.Error as error:
        raise LedgerUnavailable(f"the events could not be read: {error}") from error
    finally:
        reader.close()


def _show(con: duckdb.DuckDBPyConnection, rows: str) -> None:
    """Make `events` of these rows; columns that were not loaded are there, and fail when they are read."""
    loaded = {name for (name,) in con.execute("select column_name from (describe loaded)").fetchall()}
    shown = [name if name in loaded else f"error('{_NOT_LOADED}')::{kind} as {name}" for name, kind in _TYPES.items()]
    con.execute(f"create view events as select {', '.join(shown)} from {rows}")  # noqa: S608 - names of our own


# --- the answer ----------------------------------------------------------------------------------------------------------


def _fetched(con: duckdb.DuckDBPyConnection, text: str, given: dict[str, Any] | None) -> pl.DataFrame:
    con.execute("begin transaction read only")
    try:
        with _refusing():
            answer = con.sql(text, params=given)
            sums = [name for name, kind in zip(answer.columns, answer.types, strict=True) if str(kind) == "HUGEINT"]
            frame: pl.DataFrame = answer.pl()
    finally:
        con.execute("rollback")
    return frame.with_columns(_int64(frame[name]) for name in sums)


def _int64(sums: pl.Series) -> pl.Series:
    """A sum of integers, as an integer; it stays a Decimal where it is too large."""
    import polars as pl

    whole = sums.cast(pl.Int64, strict=False)
    return whole if whole.null_count() == sums.null_count() else sums
