"""A ledger as Polars frames: the columns, the tags, and how little is read."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock
from tests.test_calls import commit_part
from tokenbudget_lab import frames
from tokenbudget_lab.conditions import Condition
from tokenbudget_lab.frames import COLUMNS, tag
from tokenbudget_lab.rows import COLUMNS as STORED
from tokenbudget_lab.sandbox import run_in_parts

# --- the columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_has_the_type_that_is_documented(ledger: tbl.Ledger, name: str) -> None:
    """What `COLUMNS` says, the lazy frame promises, and the collected frame has."""
    ledger.budget("lab", usd=1).reserve_sync(usd="0.3", tags={"arm": "b"})
    lazy: pl.LazyFrame = getattr(ledger, name)()
    assert lazy.collect_schema() == lazy.collect().schema == frames.schema(name)
    assert all(column.meaning for column in COLUMNS[name].values())


# Pinned: code of others reads these columns by name and type. A change is for the changelog.
PINNED = {
    "events": "seq Int64, ts Instant, kind String, command String, budget String, reservation String, key String, "
    "windows List(Instant), held_usd USD, held_tokens Int64, usd USD, tokens Int64, requests Int64, basis String, "
    "input_tokens Int64, output_tokens Int64, cache_read_tokens Int64, cache_write_tokens Int64, reasoning_tokens Int64, "
    "expires Instant, provider String, model String, response_id String, origin String, tags Tags, detail String, hash Binary",
    "calls": "seq Int64, reservation String, budget String, state String, reserved Instant, spent_at Instant, ended Instant, "
    "latency_s Float64, expires Instant, held_usd USD, held_tokens Int64, held_requests Int64, counted_input_tokens "
    "Int64, max_output_tokens Int64, counted_by String, sdk_attempt Int64, reserved_usd USD, reserved_tokens Int64, "
    "reserved_requests Int64, cost_usd USD, tokens Int64, requests Int64, basis String, input_tokens Int64, "
    "output_tokens Int64, cache_read_tokens Int64, cache_write_tokens Int64, cache_write_1h_tokens Int64, "
    "reasoning_tokens Int64, web_searches Int64, context String, prices String, priced_as String, above Int64, late "
    "Boolean, overrun Boolean, provider String, model String, response_id String, key String, tags Tags, origin String",
    "reservations": "reservation String, budget String, reserved Instant, expires Instant, reserved_usd USD, "
    "reserved_tokens Int64, reserved_requests Int64, provider String, model String, key String, tags Tags",
    "balances": "budget String, committed_usd USD, reserved_usd USD, committed_tokens Int64, reserved_tokens Int64, "
    "committed_requests Int64, reserved_requests Int64, calls_in_flight Int64, unpriced_calls Int64, calls Int64",
}


def test_the_columns_of_all_frames_are_these() -> None:
    assert {name: ", ".join(f"{column} {kind.type}" for column, kind in COLUMNS[name].items()) for name in COLUMNS} == PINNED


def test_reservations_are_what_is_open_and_balances_what_it_amounts_to(ledger: tbl.Ledger) -> None:
    """A batch of a dollar of which a part is paid, a call that is over, and one below.

    lab/a   reserve   $1.00, 100 tokens   key row-1
    lab/a   reserve   $0.30               committed with $0.20
    lab     record    $0.50
    """
    lab, below = ledger.budget("lab", usd=10), ledger.budget("lab/a", usd=10)
    call = below.reserve_sync(usd=1, tokens=100, key="row-1", tags={"arm": "b"})
    commit_part(ledger, call, "a", 20)
    below.reserve_sync(usd="0.3").commit(usd="0.2").result()
    lab.record(usd="0.5").result()
    row = ledger.reservations().collect().row(0, named=True)
    assert (row["reservation"], row["budget"], row["key"], row["tags"]) == (call.id, "lab/a", "row-1", {"arm": "b"})
    assert (row["reserved_usd"], row["reserved_tokens"], row["expires"]) == (Decimal("0.8"), 90, call.expires)
    found = ledger.balances().select("budget", "committed_usd", "reserved_usd", "calls_in_flight", "calls").collect()
    assert found.rows() == [("lab", Decimal("0.9"), Decimal("0.8"), 1, 3), ("lab/a", Decimal("0.4"), Decimal("0.8"), 1, 2)]
    assert found["committed_usd"].to_list() == [each.balance.committed_usd for each in (lab, below)]


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

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,
    ) -> Any:
        """Note it, and read."""
        self.read.append((set(columns or STORED), upto))
        return self._desk.arrow(columns, upto, where, uuids=uuids)


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


# --- a part at a time ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tangled() -> Iterator[tbl.Ledger]:
    """Twelve calls that end in another order than they began, some in parts, some never, one adjusted long after."""
    with tbl.connect(":memory:") as ledger:
        lab = ledger.budget("lab", usd=100)
        open_ = [lab.reserve_sync(usd=1, tags={"n": str(n)}) for n in range(10)]
        paid = lab.record(usd="0.5", tags={"n": "10"}).result()
        commit_part(ledger, lab.reserve_sync(usd=1, tokens=100, tags={"n": "11"}), "a", 20)
        for n, call in enumerate(reversed(open_[2:])):
            call.commit(usd=Decimal(n) / 10).result() if n % 3 else call.rollback().result()
        lab.adjust(paid.reservation, usd="0.25").result()
        yield ledger


@pytest.mark.parametrize("size", [2, 7, 1_000_000])
@pytest.mark.parametrize(
    "query",
    [
        lambda f: f,
        lambda f: f.head(5),
        lambda f: f.head(7).filter(pl.col("state") == "open"),
        lambda f: f.filter(pl.col("state") == "committed").head(3),
        lambda f: f.filter(tag("n") == "11"),
        lambda f: f.tail(3).select("seq", "cost_usd"),
        lambda f: f.select(pl.len()),
    ],
)
def test_calls_are_the_same_whatever_the_part_that_is_folded_at_once(
    tangled: tbl.Ledger, monkeypatch: pytest.MonkeyPatch, size: int, query: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> None:
    """Calls whose events lie in many parts are whole, each stands once, and in the order in which they began."""
    whole = pl.DataFrame(tangled.sql("select * from calls order by seq"))
    monkeypatch.setattr("tokenbudget_lab.sandbox._PART_EVENTS", size)
    assert query(tangled.calls()).collect().rows() == query(whole.lazy()).collect().rows()


def test_an_early_end_leaves_no_question_behind(tangled: tbl.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polars stops asking for parts once it has enough rows; what was made for the question is gone then."""
    monkeypatch.setattr("tokenbudget_lab.sandbox._PART_EVENTS", 1)
    before = threading.active_count()
    parts = run_in_parts(tangled.desk, "select seq from calls order by seq")
    assert next(parts).height <= 1
    parts.close()  # type: ignore[attr-defined] # it is a generator
    assert threading.active_count() == before
    assert tangled.calls().filter(pl.col("seq") > 0).head(1).collect().height == 1


ASKED_AND_GONE = """
import polars as pl
import tokenbudget_lab as tbl
from tokenbudget_lab import sandbox

sandbox._PART_EVENTS = 1
ledger = tbl.connect(":memory:")
lab = ledger.budget("lab", usd=100)
for _ in range(20):
    lab.record(usd="0.1").result()
print(ledger.calls().filter(pl.col("seq") > 0).head(1).collect().height)
"""


def test_python_ends_well_while_polars_asks_for_more_than_was_needed() -> None:
    """A thread that comes out of DuckDB when Python has gone aborts the process, and with it says that all was in vain."""
    done = subprocess.run([sys.executable, "-c", ASKED_AND_GONE], capture_output=True, text=True, timeout=60, check=False)
    # What DuckDB's bindings say of objects that a thread still had is nobody's error.
    said = [line for line in done.stderr.splitlines() if "nanobind" not in line and not line.startswith(" - ")]
    assert (done.returncode, done.stdout, said) == (0, "1\n", [])
