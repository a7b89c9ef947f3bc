"""Filters on a ledger's frames: what is asked of the ledger, what is left to Polars, and that nobody can tell."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal, cast
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, also_on_postgres
from tokenbudget_lab import frames, sandbox
from tokenbudget_lab.conditions import Condition, to_sql
from tokenbudget_lab.predicates import condition_of

STORES = ON_ONE_MACHINE

BERLIN = ZoneInfo("Europe/Berlin")
c = pl.col


@pytest.fixture
def full(ledger: tbl.Ledger) -> tbl.Ledger:
    """A ledger with a null somewhere in most columns, and with texts that mean something in SQL."""
    for name in ("lab", "lab/a", "lab/ab", "lab/%"):
        ledger.budget(name, usd=100)
    for n, name in enumerate(("lab", "lab/a", "lab/ab", "lab/%", "lab/a", "lab")):
        call = ledger.budget(name).reserve_sync(usd=Decimal(n) / 10, tokens=n or None, key=f"it's {n}" if n % 2 else None)
        if n % 3:
            call.commit(tbl.Usage(n, n), usd=Decimal("0.100000000001") * n, response_id=f"é\u200b{n}").result()
    ledger.budget("lab").record(usd=1, tags={"arm": "a"}, at=datetime(2026, 11, 22, 23, 30, tzinfo=UTC)).result()
    return ledger


class Counted:
    """A source of events that notes what is asked of it, and how many rows it hands over."""

    def __init__(self, ledger: tbl.Ledger) -> None:
        self._desk = ledger.desk
        self.asked: list[Condition | None] = []
        self.rows = 0

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,
    ) -> Any:
        """Note it, and read."""
        import pyarrow as pa

        self.asked.append(where)
        table = self._desk.arrow(columns, upto, where, uuids=uuids).read_all()
        self.rows += table.num_rows
        return pa.RecordBatchReader.from_batches(table.schema, table.to_batches())


# --- nobody can tell the difference ----------------------------------------------------------------------------------------

TEXTS = ["committed", "lab", "lab/a", "lab/%", "lab/", "", "it's 1", "é\u200b1", "' or true --", "open", "Lab"]
INSTANTS = [
    datetime(2026, 11, 23, 12, tzinfo=UTC),
    datetime(2026, 11, 23, 13, tzinfo=BERLIN),
    datetime(2026, 11, 22, 23, 30, tzinfo=UTC),
    datetime(2026, 11, 23, 12, 10, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, tzinfo=UTC),
]
VALUES: dict[type[pl.DataType], list[Any]] = {
    pl.String: TEXTS,
    pl.Int64: [-1, 0, 1, 2, 3, 5, 7, 2**62, 1.5, 2.0, -0.5],
    pl.Float64: [0.0, 1.0, -1.0, 1, float("inf"), float("nan")],
    pl.Decimal: [Decimal(0), Decimal("0.1"), Decimal("0.100000000001"), Decimal("0.3"), 1, Decimal(-5), 0.5],
    pl.Datetime: [*INSTANTS, date(2026, 11, 23)],
    pl.Boolean: [True, False],
}
CLOSED: list[Literal["both", "left", "right", "none"]] = ["both", "left", "right", "none"]
SIGNS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


def leaves(frame: str) -> st.SearchStrategy[pl.Expr]:
    """What is said of one column."""
    kinds = frames.schema(frame)
    compared = [name for name, kind in kinds.items() if type(kind) in VALUES]
    texts = [name for name in compared if kinds[name] == pl.String]
    instants = [name for name in compared if isinstance(kinds[name], pl.Datetime)]
    whole = [name for name in compared if kinds[name] != pl.Boolean]

    @st.composite
    def some(draw: st.DrawFn) -> pl.Expr:
        how = draw(
            st.sampled_from(
                ["sign", "sign", "turned", "null", "in", "between", "starts", "odd", *(["zone"] if instants else [])]
            )
        )
        if how == "starts":
            return c(draw(st.sampled_from(texts))).str.starts_with(draw(st.sampled_from(TEXTS)))
        if how == "null":
            column = c(draw(st.sampled_from(list(kinds))))
            return draw(st.sampled_from([column.is_null(), column.is_not_null()]))
        if how == "odd":  # left to Polars
            return c(draw(st.sampled_from(texts))).str.len_chars() > draw(st.integers(0, 12))
        if how == "zone":
            of_berlin = c(draw(st.sampled_from(instants))).dt.convert_time_zone("Europe/Berlin")
            shown = draw(st.sampled_from(INSTANTS[:4])).astimezone(BERLIN)
            return cast("pl.Expr", draw(st.sampled_from(SIGNS))(of_berlin, shown))
        name = draw(st.sampled_from(compared if how == "sign" else whole))
        values = st.sampled_from(VALUES[type(kinds[name])])
        if how == "in":
            exact = {pl.Decimal: Decimal, pl.Datetime: datetime, pl.String: str, pl.Int64: int, pl.Float64: float}
            wanted = exact[type(kinds[name])]
            few = draw(st.lists(values.filter(lambda v: type(v) is wanted), max_size=4))
            null = draw(st.sampled_from([[], [None]]))
            return c(name).is_in(pl.Series([*few, *null], dtype=kinds[name]).implode())
        if how == "between":
            low, high, closed = draw(values), draw(values), draw(st.sampled_from(CLOSED))
            return c(name).is_between(low, high, closed=closed)
        sign = draw(st.sampled_from(SIGNS))
        value = draw(values)
        return cast("pl.Expr", sign(pl.lit(value), c(name)) if how == "turned" else sign(c(name), value))

    return some()


def predicates(frame: str) -> st.SearchStrategy[pl.Expr]:
    """Any of that, joined."""
    return st.recursive(
        leaves(frame),
        lambda inner: st.one_of(
            st.builds(operator.and_, inner, inner),
            st.builds(operator.or_, inner, inner),
            st.builds(operator.invert, inner),
            st.builds(operator.xor, inner, inner),
        ),
        max_leaves=5,
    )


def assert_alike(lazy: pl.LazyFrame, whole: pl.DataFrame, predicate: pl.Expr, first: int | None) -> None:
    """Filtered as it is read, and after it was read."""
    if first is not None:
        lazy, whole = lazy.head(first), whole.head(first)
    try:
        wanted = whole.lazy().filter(predicate).collect()
    except pl.exceptions.PolarsError as error:  # a question that Polars does not take is one that we do not take either
        with pytest.raises(type(error)):
            lazy.filter(predicate).collect()
    else:
        assert lazy.filter(predicate).collect().equals(wanted)


@pytest.mark.parametrize(("frame", "examples"), [("events", 100), ("calls", 30), ("reservations", 10), ("balances", 10)])
def test_a_filter_gives_what_it_gives_on_the_whole_frame(full: tbl.Ledger, frame: str, examples: int) -> None:
    """Whatever is pushed down, Polars agrees: nulls, ids, zones, money to the last decimal, lists with a null in them."""
    lazy: pl.LazyFrame = getattr(full, frame)()
    whole = lazy.collect()

    @settings(max_examples=examples, deadline=None)
    @given(predicate=predicates(frame), first=st.sampled_from([None, None, 0, 3, 9]))
    def check(predicate: pl.Expr, first: int | None) -> None:
        assert_alike(lazy, whole, predicate, first)

    check()


# --- how much is read ------------------------------------------------------------------------------------------------------

PUSHED: list[pl.Expr] = [
    c("kind") == "committed",
    c("kind") != "committed",
    c("seq") > 5,
    pl.lit(5) < c("seq"),
    c("tokens") >= 1.5,
    c("usd") <= Decimal("0.100000000001"),
    c("usd") > 0,
    c("ts") >= datetime(2036, 1, 1, tzinfo=UTC),
    c("ts").dt.convert_time_zone("Europe/Berlin") < datetime(2026, 1, 1, tzinfo=BERLIN),
    c("ts") < pl.lit(datetime(2026, 1, 1, tzinfo=BERLIN)).dt.convert_time_zone("UTC"),
    c("ts") > date(2036, 1, 1),
    c("key").is_null(),
    c("tags").is_not_null(),
    c("kind").is_in(["committed", "recorded"]),
    ~c("kind").is_in(["committed", None]),
    ~c("seq").is_in([1, 2, 3]),
    c("seq").is_between(2, 4, closed="none"),
    c("budget").str.starts_with("lab/a"),
    (c("kind") == "committed") & (c("budget") == "lab") | ~(c("seq") > 3),
    c("reservation") == "no id at all",
]


@pytest.mark.parametrize("predicate", PUSHED, ids=str)
def test_what_can_be_said_exactly_is_asked_of_the_ledger(full: tbl.Ledger, predicate: pl.Expr) -> None:
    """Not a row more is handed over than the filter leaves."""
    counted = Counted(full)
    found = frames.events(counted).filter(predicate).collect()
    assert counted.rows == found.height < full.events().collect().height


LEFT: list[pl.Expr] = [
    c("usd") > 0.1,  # the column becomes a float, by another rounding than SQL's
    c("ts").dt.day() == 23,
    c("kind").str.contains("mit"),
    c("tokens") > c("requests"),
    c("kind").is_in([]),
    c("kind").is_in(["committed", None], nulls_equal=True),
    (c("kind") == "committed") ^ (c("seq") > 3),
    (c("kind") == "committed") | (c("kind").str.len_chars() > 3),
    c("kind") == "comm\0itted",
    c("kind").is_in([f"text number {n}" for n in range(2000)]),  # too long to travel
]


@pytest.mark.parametrize("predicate", LEFT, ids=lambda each: str(each)[:40])
def test_what_cannot_be_said_exactly_is_left_to_polars(full: tbl.Ledger, predicate: pl.Expr) -> None:
    counted = Counted(full)
    found = frames.events(counted).filter(predicate).collect()
    assert counted.asked == [None]
    assert found.equals(full.events().collect().filter(predicate))


def test_what_polars_does_not_take_is_not_taken_though_nothing_would_be_left_of_it(full: tbl.Ledger) -> None:
    """It compares no instants of different zones."""
    for name in ("events", "calls"):
        lazy: pl.LazyFrame = getattr(full, name)()
        with pytest.raises(pl.exceptions.SchemaError):
            lazy.filter(c("seq") < 0, c("expires") == datetime(2026, 1, 1, tzinfo=BERLIN)).collect()


@pytest.mark.parametrize("zone", ["Europe/Berlin", None])
def test_an_instant_of_another_zone_is_no_value_to_ask_for(zone: str | None) -> None:
    other = pl.lit(datetime(2026, 1, 1, tzinfo=UTC)).cast(pl.Datetime("us", zone))
    assert condition_of(c("ts") == pl.select(other).item(), frames.schema("events")) is None


def test_of_a_conjunction_each_part_is_asked_for_that_can_be(full: tbl.Ledger) -> None:
    """And Polars sees to the rest."""
    counted = Counted(full)
    odd = c("key").str.len_chars() > 3
    found = frames.events(counted).filter(odd, c("kind") == "reserved", c("ts").dt.day() == 23, c("seq") > 8).collect()
    assert counted.asked == [("all", ("=", "kind", "reserved"), (">", "seq", 8))]
    assert 0 < found.height < counted.rows < full.events().collect().height


@also_on_postgres
def test_the_first_rows_are_counted_before_they_are_filtered(full: tbl.Ledger) -> None:
    """Of nine events, and not nine of those that are left."""
    for name, order in (("events", "seq"), ("calls", "seq"), ("balances", "budget")):
        lazy: pl.LazyFrame = getattr(full, name)()
        few = lazy.collect().head(3).filter(c("budget") == "lab/a")
        assert lazy.head(3).filter(c("budget") == "lab/a").collect().equals(few)
        assert lazy.collect()[order].is_sorted()


@also_on_postgres
def test_of_calls_only_the_rows_that_are_left_leave_the_sandbox(full: tbl.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    run = sandbox.run_in_parts

    def noting(*args: Any, **named: Any) -> Iterator[pl.DataFrame]:
        for answer in run(*args, **named):
            rows.append(answer.height)
            yield answer

    monkeypatch.setattr("tokenbudget_lab.frames.run_in_parts", noting)
    found = full.calls().filter(c("state") == "committed", c("cost_usd") > Decimal("0.3"), c("overrun")).collect()
    assert rows == [found.height]
    assert 0 < found.height < full.calls().collect().height


# --- conditions from anybody -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "condition",
    [
        (),
        ("all",),
        ("true", "1=1) or (1"),
        ("=", "kind; drop table events", "x"),
        ("=", "kind", None),
        ("=", "kind", ["a"]),
        ("=", "ts", ("us", 2**70)),
        ("=", "usd", Decimal("1e30")),
        ("=", "usd", Decimal("nan")),
        ("=", "usd", float("inf")),
        ("= 1 or 1 =", "seq", 1),
        ("in", "seq"),
        ("in", "seq", 1, "2"),
        ("not", ("null", "seq"), ("null", "seq")),
        "null",
    ],
)
def test_what_is_no_condition_is_refused_by_name_and_never_becomes_sql(ledger: tbl.Ledger, condition: Any) -> None:
    """Whoever sends it: a keeper takes it from the other end of a socket."""
    with pytest.raises(tbl.InvalidValue, match="where"):
        ledger.desk.arrow(["seq"], None, condition).read_all()


def test_a_condition_nested_too_deeply_is_refused() -> None:
    deep: Condition = ("null", "seq")
    for _ in range(100):
        deep = ("not", deep)
    with pytest.raises(tbl.InvalidValue, match="no condition"):
        to_sql(deep, ["seq"])


def test_a_predicate_nested_too_deeply_is_left_to_polars() -> None:
    deep = c("seq") == 0
    for n in range(60):
        deep = ~(deep | (c("seq") == n)) if n % 2 else deep & (c("seq") > n) | (c("seq") == n)
    condition = condition_of(deep, frames.schema("events"))
    assert condition is None or to_sql(condition, ["seq"])
