"""A ledger as Polars frames: the columns, the tags, and how little is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock
from tokenbudget_lab import frames
from tokenbudget_lab.frames import COLUMNS, tag
from tokenbudget_lab.rows import COLUMNS as STORED

# --- the columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["events", "calls"])
def test_every_column_has_the_type_that_is_documented(ledger: tbl.Ledger, name: str) -> None:
    """What `COLUMNS` says, the lazy frame promises, and the collected frame has."""
    ledger.budget("lab", usd=1).reserve_sync(usd="0.3", tags={"arm": "b"})
    lazy: pl.LazyFrame = getattr(ledger, name)()
    assert lazy.collect_schema() == lazy.collect().schema == frames.schema(name)
    assert all(column.meaning for column in COLUMNS[name].values())


def test_events_have_the_columns_of_the_file() -> None:
    assert tuple(COLUMNS["events"]) == STORED


def test_money_is_exact_and_instants_know_their_zone(ledger: tbl.Ledger, clock: Clock) -> None:
    """Ten times a tenth of a dollar and a pico-dollar."""
    lab = ledger.budget("lab", usd=10)
    for _ in range(10):
        lab.record(usd=Decimal("0.100000000001")).result()
    frame = ledger.events().filter(pl.col("kind") == "recorded").collect()
    assert frame["usd"].sum() == Decimal("1.000000000010")
    assert frame["ts"].to_list() == [clock.now] * 10


def test_the_windows_of_a_call_are_instants_too(ledger: tbl.Ledger, clock: Clock) -> None:
    ledger.budget("lab", usd=10, window="day").reserve_sync(usd=1)
    starts = ledger.events().filter(pl.col("kind") == "reserved").select("windows").collect().item()
    assert starts.to_list() == [datetime(2026, 11, 23, tzinfo=UTC)]


# --- tags ----------------------------------------------------------------------------------------------------------------


def test_a_tag_is_a_column_when_it_is_asked_for(ledger: tbl.Ledger) -> None:
    """Two arms of an experiment, and a call without any tag."""
    lab = ledger.budget("lab", usd=10)
    lab.record(usd=1, tags={"arm": "a", "item": "1"}).result()
    lab.record(usd=2, tags={"arm": "b"}).result()
    lab.record(usd=4).result()
    costs = ledger.calls().group_by(tag("arm")).agg(pl.col("cost_usd").sum()).sort("arm", nulls_last=True).collect()
    assert costs.rows() == [("a", Decimal(1)), ("b", Decimal(2)), (None, Decimal(4))]


@pytest.mark.parametrize("value", ["'; DROP TABLE events; --", "x' OR '1'='1", "%", "_", "$x$", "", "é\u200b", "(a+)+$"])
def test_a_tag_is_kept_as_it_is_and_matches_only_itself(ledger: tbl.Ledger, value: str) -> None:
    lab = ledger.budget("lab", usd=10)
    lab.record(usd=1, tags={"q": value}).result()
    lab.record(usd=1, tags={"q": "another"}).result()
    assert ledger.calls().filter(tag("q") == value).select(tag("q")).collect().rows() == [(value,)]


def test_a_tag_may_be_named_like_a_column(ledger: tbl.Ledger) -> None:
    ledger.budget("lab", usd=10).record(usd=1, tags={"budget": "mine"}).result()
    assert ledger.calls().select("seq", tag("budget")).collect().rows() == [(3, "mine")]


# --- how little is read ----------------------------------------------------------------------------------------------------


class Watched:
    """A ledger's desk that notes which columns and how many events are read from it."""

    def __init__(self, ledger: tbl.Ledger) -> None:
        self._desk = ledger.desk
        self.read: list[tuple[set[str], int | None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._desk, name)

    def arrow(self, columns: Sequence[str] | None = None, upto: int | None = None) -> Any:
        """Note it, and read."""
        self.read.append((set(columns or STORED), upto))
        return self._desk.arrow(columns, upto)


@pytest.fixture
def watched() -> Iterator[Any]:
    with tbl.connect(":memory:") as ledger:
        lab = ledger.budget("lab", usd=10)
        for _ in range(5):
            lab.reserve_sync(usd=1).commit(usd="0.5").result()
        yield Watched(ledger)


@pytest.mark.parametrize(
    ("query", "read"),
    [
        (lambda e: e.select("model"), {"model"}),
        (lambda e: e.filter(pl.col("kind") == "committed").select(pl.col("usd").sum()), {"kind", "usd"}),
        (lambda e: e.group_by("budget").agg(pl.col("tokens").sum()), {"budget", "tokens"}),
        (lambda e: e.select(tag("arm")), {"tags"}),
    ],
)
def test_only_the_columns_in_use_are_read(watched: Any, query: Callable[[pl.LazyFrame], pl.LazyFrame], read: set[str]) -> None:
    query(frames.events(watched)).collect()
    assert watched.read == [(read, None)]


def test_the_cost_of_calls_needs_no_tags_and_no_hashes(watched: Any) -> None:
    assert frames.calls(watched).select(pl.col("cost_usd").sum()).collect().item() == Decimal("2.5")
    assert watched.read == [({"seq", "kind", "reservation", "usd"}, None)]


def test_the_first_events_are_read_alone(watched: Any) -> None:
    assert frames.events(watched).select("seq").head(3).collect()["seq"].to_list() == [1, 2, 3]
    assert watched.read == [({"seq"}, 3)]


def test_nothing_is_read_before_it_is_collected(watched: Any) -> None:
    assert "seq" in frames.events(watched).collect_schema()
    assert "cost_usd" in frames.calls(watched).collect_schema()
    assert watched.read == []


@pytest.mark.parametrize("name", ["events", "calls"])
@pytest.mark.parametrize(
    "query",
    [
        lambda f: f.select(pl.len()),
        lambda f: f.head(0),
        lambda f: f.head(4).filter(pl.col("seq") > 2),
        lambda f: f.filter(pl.col("seq") > 2).head(2).select("budget"),
        lambda f: f.sort("seq", descending=True).head(2),
        lambda f: f.filter(pl.col("budget") == "lab").top_k(2, by="seq"),
        lambda f: f.tail(2).select("reservation"),
        lambda f: f.slice(1, 2),
        lambda f: f.join(f, on="seq").select(pl.len()),
        lambda f: pl.concat([f, f]).select(pl.col("seq").sum()),
        lambda f: f.group_by("budget").len().sort("budget"),
        lambda f: f.filter(pl.col("seq") < 0),
    ],
)
def test_a_lazy_query_gives_what_it_gives_on_the_whole_frame(
    watched: Any, name: str, query: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> None:
    lazy: pl.LazyFrame = getattr(frames, name)(watched)
    whole = query(lazy.collect().lazy()).collect()
    assert query(lazy).collect(engine="in-memory").equals(whole)
    assert query(lazy).collect(engine="streaming").equals(whole)


def test_a_closed_ledger_says_so() -> None:
    with tbl.connect(":memory:") as ledger:
        lazy = ledger.events(), ledger.calls()
    for frame in lazy:
        with pytest.raises(tbl.LedgerClosed):
            frame.collect()
