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
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .desk import Source
from .errors import LedgerUnavailable, QueryRefused
from .rows import COLUMNS, INSTANTS, TEXT, USD

if TYPE_CHECKING:
    import duckdb
    import polars as pl

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
_VIEWS = ("calls", "reservations", "budgets", "balances")
_PLANNED_BY = "unused_columns"  # the one optimizer that runs when a query is asked for its columns
_NOT_LOADED = "this column was not loaded"
_TYPES = {
    **dict.fromkeys(COLUMNS, "bigint"),
    **dict.fromkeys(TEXT, "varchar"),
    **dict.fromkeys(USD, "decimal(38, 12)"),
    **dict.fromkeys(INSTANTS, "timestamptz"),
    **dict.fromkeys(("command", "reservation"), "uuid"),
    "windows": "timestamptz[]",
    "tags": "map(varchar, varchar)",
    "hash": "blob",
}
_FIRST_LINES = 6


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

    con = duckdb.connect(":memory:", config=_FENCED)
    return _interruptible(con, lambda: _answer(con, desk, query, dict(parameters or {}) or None))


def _interruptible(con: duckdb.DuckDBPyConnection, work: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """Work in a thread of its own: DuckDB does not reliably notice Ctrl-C, a main thread that waits does."""
    import duckdb

    results: list[pl.DataFrame] = []
    errors: list[BaseException] = []
    done = threading.Event()  # and no join: interrupted, Python takes the thread for ended (bpo-45274)

    def worker() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            errors.append(error)
        finally:
            con.close()
            done.set()

    threading.Thread(target=worker, name="tokenbudget sql", daemon=True).start()
    try:
        while not done.wait(0.1):
            pass  # an endless wait would not notice a Ctrl-C that was delivered to another thread
    except BaseException:
        while not done.is_set():
            with contextlib.suppress(duckdb.Error):  # closed by now
                con.interrupt()
            done.wait(0.05)  # then again: an interrupt that falls between two statements is lost
        raise
    if errors:
        raise errors[0]
    return results[0]


def _answer(con: duckdb.DuckDBPyConnection, desk: Source, query: str, given: dict[str, Any] | None) -> pl.DataFrame:
    import duckdb

    con.execute("set TimeZone = 'UTC'")
    with contextlib.suppress(duckdb.InvalidInputException):  # a kernel without ipywidgets, which cannot draw one either
        con.execute("set enable_progress_bar = false")  # it would be drawn into whatever is printed
    text = _checked(con, query)
    con.execute(f"create table events ({', '.join(f'{name} {kind}' for name, kind in _TYPES.items())})")
    if any(view in text.lower() for view in _VIEWS):
        con.execute(files("tokenbudget_lab.stores").joinpath("views.sql").read_text())
    con.execute(f"set disabled_optimizers = '{','.join(_optimizers(con))}'")
    needed = _needed(con, text, given)
    con.execute("reset disabled_optimizers")
    con.execute("set lock_configuration = true")
    con.execute("drop table events")
    _load(con, desk, needed)
    try:
        return _fetched(con, text, given)
    except QueryRefused as refused:
        if _NOT_LOADED not in refused.reason:
            raise
    con.execute("drop view events")
    con.execute("drop table loaded")
    _load(con, desk, COLUMNS)
    return _fetched(con, text, given)


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
            lines.append(f"The tables are events, {', '.join(_VIEWS)}.")
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


def _needed(con: duckdb.DuckDBPyConnection, text: str, given: dict[str, Any] | None) -> Sequence[str]:
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


def _load(con: duckdb.DuckDBPyConnection, desk: Source, needed: Sequence[str]) -> None:
    """Make `events` with these columns in it; the others are there, and fail when they are read."""
    import duckdb

    chosen = needed or ("seq",)
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
    shown = [name if name in chosen else f"error('{_NOT_LOADED}')::{kind} as {name}" for name, kind in _TYPES.items()]
    con.execute(f"create view events as select {', '.join(shown)} from loaded")  # noqa: S608 - as above


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
