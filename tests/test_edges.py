"""What is at the edges of data, for every analysis and the report: a sensible answer, or an error that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import tokenbudget_lab as tbl
from tests.test_reports import at, calls
from tokenbudget_lab.frames import schema

Analysis = Callable[[Any], pl.DataFrame]
GRADED = pl.DataFrame({"response_id": ["r-0"], "correct": [True]})


def cost_per(source: Any) -> pl.DataFrame:
    """What finds no partner is warned of elsewhere."""
    return tbl.cost_per(source, GRADED, score="correct", by="arm", where=pl.col("response_id") == "r-0")


ANALYSES: dict[str, Analysis] = {
    "spend": lambda source: tbl.spend(source, "arm", every="1d"),
    "pace": tbl.pace,
    "burn_down": lambda source: tbl.burn_down(source, limit_usd=5),
    "forecast": lambda source: tbl.forecast(source, calls=5),
    "compare": lambda source: tbl.compare(source, "arm"),
    "cost_per": cost_per,
    "frontier": lambda source: tbl.frontier(cost_per(source)),
    "outliers": lambda source: tbl.outliers(source, "arm"),
    "unused_holds": lambda source: tbl.unused_holds(source, "arm"),
    "lost_spend": lambda source: tbl.lost_spend(source, "arm"),
    "cache_savings": lambda source: tbl.cache_savings(source, "arm"),
    "estimate_error": lambda source: tbl.estimate_error(source, "arm"),
    "reprice": lambda source: tbl.reprice(source, model="gpt-5-mini"),
    "report": lambda source: _report(source).table,
}
each = pytest.mark.parametrize("name", ANALYSES)


def _report(source: Any) -> tbl.Report:
    """In every format, each of which has to come about."""
    told = tbl.report(source, by="arm")
    assert all((told.html, told.markdown, told.tex, told.csv, told.json, told.parquet, repr(told)))
    return told


def spent(table: pl.DataFrame) -> Decimal:
    """What a table says was spent, whichever column says it."""
    return next(
        (Decimal(str(table[name].sum())) for name in ("cost_usd", "used", "committed") if name in table.columns), Decimal(0)
    )


WHOLE = ("spend", "compare", "cost_per", "frontier", "reprice", "report", "burn_down")  # whose amounts are those of all calls


def record(budget: tbl.Budget, usd: str = "0.25", **more: Any) -> None:
    budget.record(tbl.Usage(100, 50), usd=usd, model="gpt-5-mini", response_id="r-0", **more).result()


def frame(ledger: tbl.Ledger) -> pl.DataFrame:
    return ledger.calls().collect()


@pytest.fixture
def book() -> Any:
    with tbl.connect(":memory:") as ledger:
        yield ledger


@pytest.mark.filterwarnings("ignore:1 results have no call")
@each
def test_an_empty_ledger_has_spent_nothing(book: tbl.Ledger, name: str) -> None:
    """As a ledger, and as the frame of it; with a budget and without one."""
    for source in (book, frame(book), frame(book).to_pandas()):
        assert spent(ANALYSES[name](source)) == 0
    lab = book.budget("lab", usd=1)
    for source in (book, lab, [lab]):
        assert spent(ANALYSES[name](source)) == 0


@each
def test_one_call_is_all_there_is(book: tbl.Ledger, name: str) -> None:
    """Of one value of a tag: a quarter."""
    lab = book.budget("lab", usd=1)
    record(lab, tags={"arm": "a"})
    for source in (book, lab, frame(book), frame(book).to_pandas(), [book, lab]):
        table = ANALYSES[name](source)
        if name in WHOLE:
            assert spent(table) == Decimal("0.25")
        if "arm" in table.columns:
            assert set(table["arm"]) <= {"a"}


@each
def test_calls_without_a_tag_are_a_group_of_their_own(book: tbl.Ledger, name: str) -> None:
    lab = book.budget("lab", usd=1)
    record(lab, tags={"arm": "a"})
    record(lab, tags={"other": "a"})
    record(lab)
    table = ANALYSES[name](book)
    if name in WHOLE and name not in ("cost_per", "frontier"):
        assert spent(table) == Decimal("0.75")
    if name in ("spend", "compare", "report"):
        assert dict(table.select("arm", "calls").rows()) == {"a": 1, None: 2}


@each
def test_a_frame_of_another_version_is_read_or_what_it_lacks_is_named(book: tbl.Ledger, name: str) -> None:
    """An older one lacks columns, and a newer one has others and in another order."""
    record(book.budget("lab", usd=1), tags={"arm": "a"})
    newer = frame(book).with_columns(colour=pl.lit("red"), seq=pl.col("seq").cast(pl.Int32)).select(pl.all().reverse())
    newer = newer.select(reversed(newer.columns))
    assert ANALYSES[name](newer).equals(ANALYSES[name](frame(book))) or name == "reprice"
    old = ("counted_input_tokens", "max_output_tokens", "counted_by", "sdk_attempt", "cache_write_1h_tokens", "web_searches")
    try:
        table = ANALYSES[name](frame(book).drop(old))
    except tbl.InvalidValue as error:
        assert any(column in str(error) for column in old)  # noqa: PT017 - either it is an answer, or it names the column
    else:
        assert name not in WHOLE or spent(table) == Decimal("0.25")


@each
def test_instants_of_other_zones_are_the_same_instants(name: str) -> None:
    """A frame in Auckland's time beside one in UTC: to the same calls the same answers."""
    some = pl.DataFrame(schema=schema("calls"))
    told = calls(3, response_id=["r-0", "r-1", "r-2"], reservation=["a", "b", "c"], state=["recorded"] * 3)
    told = pl.concat([some, told], how="diagonal").with_columns(arm=pl.lit("a"))
    away = told.with_columns(pl.col("spent_at").dt.convert_time_zone("Pacific/Auckland").dt.cast_time_unit("ns"))
    assert ANALYSES[name](away).equals(ANALYSES[name](told))
    halves = [away.head(1), told.tail(2)]
    assert spent(ANALYSES[name](halves)) == spent(ANALYSES[name](told))


@each
def test_budgets_of_other_zones_are_analysed_together(book: tbl.Ledger, name: str) -> None:
    for city in ("Pacific/Auckland", "Pacific/Honolulu"):
        record(book.budget(city.partition("/")[2], usd=1, window="day", tz=city), tags={"arm": "a"})
    table = ANALYSES[name](book)
    assert name not in WHOLE or spent(table) == Decimal("0.5")


@each
def test_a_budget_without_a_limit_has_spent_what_it_has(book: tbl.Ledger, name: str) -> None:
    free = book.budget("free", limits=[])
    record(free, tags={"arm": "a"})
    for source in (free, book):
        table = ANALYSES[name](source)
        assert name not in WHOLE or spent(table) == Decimal("0.25")
    if name in ("pace", "forecast"):
        assert table.height == 1


@each
def test_what_was_spent_before_the_first_budget_counts(book: tbl.Ledger, name: str) -> None:
    """A call of last year, that is recorded now; a window of today has none of it, its lifetime all."""
    lab = book.budget("lab", limits=[tbl.Limit(usd=1), tbl.Limit(usd=1, window="day")])
    record(lab, at=datetime.now(UTC) - timedelta(days=400), tags={"arm": "a"})
    table = ANALYSES[name](book)
    assert name not in WHOLE or spent(table) == Decimal("0.25")
    if name == "pace":
        assert dict(table.select("window", "committed").rows()) == {"": 0.25, "day": 0.0}


@pytest.fixture(scope="module")
def million() -> pl.DataFrame:
    """A million calls, each of an arm of its own."""
    n = 1_000_000
    number = pl.int_range(n).cast(pl.String)
    blank = {name: kind for name, kind in schema("calls").items() if name != "tags"}
    few = calls(1, spent_at=[at("2026-11-01")], state=["committed"], held_usd=[Decimal("0.02")], latency_s=[1.0])
    one = pl.concat([pl.DataFrame(schema=blank), few], how="diagonal").with_columns(ended=pl.col("spent_at"))
    return one.select(pl.all().repeat_by(n).explode()).with_columns(reservation=number, response_id="r-" + number, arm=number)


@each
def test_a_million_values_of_a_tag_are_a_million_groups(million: pl.DataFrame, name: str) -> None:
    """Those analyses that price calls or draw samples, one by one, have a tenth of them here."""
    slow = name in ("forecast", "compare", "cache_savings", "reprice")
    some = million.head(100_000) if slow else million
    if name == "report":
        told = tbl.report(some, by="arm")
        assert told.table.height == some.height
        assert len(told.html.encode()) < 200_000
        assert "… and 999," in told.html
        return
    table = ANALYSES[name](some)
    if name in ("spend", "compare", "unused_holds", "cache_savings"):
        assert table.height == some.height
    if name in WHOLE and name not in ("cost_per", "frontier"):
        assert spent(table) == Decimal("0.01") * some.height
