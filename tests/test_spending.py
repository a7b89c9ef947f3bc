"""Where the money went: any source, any label, any time; and sums over groups are the sum of the whole."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Clock, also_on_postgres
from tokenbudget_lab import link
from tokenbudget_lab.place import place_of
from tokenbudget_lab.sources import calls_of, span
from tokenbudget_lab.spending import SUMS

STORES = ON_ONE_MACHINE

RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["lab", "lab/a", "lab/b"]),
        st.none() | st.integers(0, 10**13).map(lambda pico: Decimal(pico).scaleb(-12)),
        st.sampled_from(["measured", "estimated", "unknown"]),
        st.dictionaries(st.sampled_from(["arm", "item"]), st.sampled_from(["x", "y", "$x$ and $y$"]), max_size=2),
    ),
    max_size=12,
)


def spent(ledger: tbl.Ledger, **calls: str) -> None:
    """A recorded call for each name, that costs so much; `arm` says which."""
    lab = ledger.budget("lab", limits=[])
    for arm, usd in calls.items():
        lab.record(usd=usd, tokens=10, tags={"arm": arm}).result()


@settings(deadline=None, max_examples=12)
@given(records=RECORDS)
def test_sums_over_any_groups_are_the_sum_of_the_whole(records: list[tuple[Any, ...]]) -> None:
    """To the last digit: by budget, tag, basis, day, and several; and the parts by basis add up to the cost."""
    with tbl.connect(":memory:") as ledger:
        for name in ("lab", "lab/a", "lab/b"):
            ledger.budget(name, limits=[])
        for name, usd, basis, tags in records:
            ledger.budget(name).record(usd=usd, tokens=7, basis=basis, tags=tags).result()
        whole = tbl.spend(ledger).row(0, named=True)
        known = [usd for _, usd, _, _ in records if usd is not None]
        assert (whole["calls"], whole["cost_usd"]) == (len(records), sum(known, Decimal(0)))
        assert whole["unpriced_calls"] == len(records) - len(known)
        for by in ("budget", "arm", ["arm", "item"], "basis", (pl.col("cost_usd") > 5).alias("dear")):
            groups = tbl.spend(ledger, by, every="1d")
            assert {name: groups[name].sum() for name in SUMS} == whole
            assert groups.filter(
                pl.col("cost_usd") != pl.sum_horizontal("measured_usd", "estimated_usd", "unknown_usd")
            ).is_empty()


def test_only_what_counts_is_spent(ledger: tbl.Ledger) -> None:
    """What is held, was rolled back or released is not; what was lost is, as unknown.

    reserve   $0.30, and no end
    reserve   $0.30, rollback
    reserve   $0.30, commit $0.10
    reserve   $0.30, lost
    """
    lab = ledger.budget("lab", usd=5)
    kept = lab.reserve_sync(usd="0.30")
    lab.reserve_sync(usd="0.30").rollback().result()
    lab.reserve_sync(usd="0.30").commit(usd="0.10").result()
    lab.reserve_sync(usd="0.30", if_lost="count").lose().result()
    row = tbl.spend(lab).row(0, named=True)
    assert (row["calls"], row["cost_usd"], row["measured_usd"]) == (2, Decimal("0.4"), Decimal("0.1"))
    assert (row["unknown_usd"], row["estimated_usd"]) == (Decimal("0.3"), 0)
    kept.rollback().result()


@also_on_postgres
def test_a_budget_is_all_below_it_and_no_call_comes_twice(ledger: tbl.Ledger) -> None:
    """Of budgets of one ledger, one below the other, and their ledger besides."""
    for name in ("lab", "lab/a", "labyrinth"):
        ledger.budget(name, limits=[]).record(usd=1, tokens=1).result()
    lab, inner = ledger.budget("lab"), ledger.budget("lab/a")
    costs = [tbl.spend(source).item(0, "cost_usd") for source in (lab, inner, [lab, inner], [inner, ledger, lab], ledger)]
    assert costs == [2, 1, 2, 3, 3]


def test_ledgers_are_told_apart(ledger: tbl.Ledger) -> None:
    spent(ledger, a="1")
    with tbl.connect(":memory:") as other:
        spent(other, a="2", b="4")
        both = tbl.spend([ledger, other], ["ledger"])
    assert both["cost_usd"].sum() == 7


def test_two_connections_to_one_file_are_one_ledger(tmp_path: Path) -> None:
    """Whatever of it is in the list; ledgers in memory are each their own."""
    path = tmp_path / "spend.duckdb"
    try:
        with tbl.connect(path) as one, tbl.connect(path) as two:
            spent(one, a="1")
            sources = ([one, two], [one.budget("lab"), two.budget("lab")], [one.budget("lab"), two])
            assert [tbl.spend(source).item(0, "cost_usd") for source in sources] == [1, 1, 1]
    finally:
        link.stop(place_of(path))


def test_an_export_says_what_its_ledger_says(ledger: tbl.Ledger, tmp_path: Path) -> None:
    spent(ledger, a="1", b="2.5")
    ledger.export(tmp_path / "export", progress=False)
    export = tbl.read_export(tmp_path / "export")
    assert tbl.spend(export, "arm", every="1d").equals(tbl.spend(ledger, "arm", every="1d"))


@pytest.mark.parametrize("library", ["polars", "lazy", "pandas", "arrow"])
def test_a_frame_of_any_library_says_what_its_ledger_says(ledger: tbl.Ledger, library: str) -> None:
    """Though pandas makes floats of integers with gaps, and pairs of tags."""
    spent(ledger, a="1", b="2.5")
    lab = ledger.budget("lab")
    lab.record(tbl.Usage(100, 20), model="claude-haiku-5-5", tags={"arm": "a"}).result()
    calls = ledger.calls().collect()
    frame = {"polars": calls, "lazy": calls.lazy(), "pandas": calls.to_pandas(), "arrow": calls.to_arrow()}[library]
    assert tbl.spend(frame, "arm", every="1h").equals(tbl.spend(ledger, "arm", every="1h"))


def test_a_column_that_a_frame_has_besides_is_a_label(ledger: tbl.Ledger) -> None:
    spent(ledger, a="1", b="2")
    frame = ledger.calls().with_columns(pl.lit("mine").alias("group"))
    assert tbl.spend(frame, "group").select("group", "cost_usd").row(0) == ("mine", 3)


def test_who_spent_is_a_label(ledger: tbl.Ledger) -> None:
    """A field of the origin."""
    spent(ledger, a="1")
    assert tbl.spend(ledger, "user")["user"].null_count() == 0
    assert tbl.spend(ledger, ["host", "script"]).height == 1


@also_on_postgres
def test_days_and_months_are_those_of_the_zone(ledger: tbl.Ledger, clock: Clock) -> None:
    """Half an hour before midnight in UTC it is tomorrow in Berlin, and another month.

    23:30 on 30 November, UTC    0:30 on 1 December in Berlin
    """
    clock.set("2026-11-30 23:30")
    spent(ledger, a="1")
    utc, berlin = tbl.spend(ledger, every="1mo"), tbl.spend(ledger, every="1mo", tz="Europe/Berlin")
    assert utc.item(0, "period") == datetime(2026, 11, 1, tzinfo=UTC)
    assert berlin.item(0, "period") == datetime(2026, 12, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    in_november = [tbl.spend(ledger, month="2026-11", tz=tz).item(0, "calls") for tz in ("UTC", "Europe/Berlin")]
    assert in_november == [1, 0]


def test_a_day_of_25_hours_is_one_day(ledger: tbl.Ledger) -> None:
    """In the night to 25 October 2026 clocks in Berlin go back.

    22:30 UTC on the 24th, 22:30 UTC on the 25th   both on the 25th there
    23:30 UTC on the 25th                          on the 26th
    """
    lab = ledger.budget("lab", limits=[])
    for moment in ("2026-10-24T22:30Z", "2026-10-25T22:30Z", "2026-10-25T23:30Z"):
        lab.record(usd=1, tokens=1, at=datetime.fromisoformat(moment)).result()
    assert tbl.spend(ledger, every="1d", tz="Europe/Berlin")["calls"].to_list() == [2, 1]
    assert tbl.spend(ledger, since="2026-10-25", until="2026-10-26", tz="Europe/Berlin").item(0, "calls") == 2


@pytest.mark.parametrize(
    "since",
    [
        "2026-11-23",
        "2026-11-23T12:00",
        date(2026, 11, 23),
        datetime(2026, 11, 23, 11, 59),  # noqa: DTZ001 - as people write it
        datetime(2026, 11, 23, 12, tzinfo=UTC),
    ],
)
def test_a_time_is_a_date_a_moment_or_their_text(ledger: tbl.Ledger, clock: Clock, since: Any) -> None:
    """From it on; it is Monday noon."""
    spent(ledger, a="1")
    clock.advance(-86_400)
    assert tbl.spend(ledger, since=since).item(0, "calls") == 1
    assert tbl.spend(ledger, until=since).item(0, "calls") == 0
    assert tbl.spend(ledger, until=clock.now + timedelta(days=1, seconds=1)).item(0, "calls") == 1


@given(st.integers(1, 9998), st.integers(1, 12))
def test_months_follow_one_another(year: int, month: int) -> None:
    following = (year + month // 12, month % 12 + 1)
    _, end = span(None, None, f"{year:04}-{month:02}", "UTC")
    begin, _ = span(None, None, f"{following[0]:04}-{following[1]:02}", "UTC") if following[0] < 9999 else (end, None)
    assert begin == end


@pytest.mark.parametrize(
    ("where", "cost"),
    [
        ({"arm": "a"}, 1),
        ({"arm": ["a", "b"]}, 3),
        ({"arm": "a", "budget": "lab"}, 1),
        ({"arm": None}, 4),
        ({}, 7),
        (pl.col("cost_usd") > 1, 6),
        (tbl.tag("arm") == "b", 2),
    ],
)
def test_a_condition_is_an_expression_or_what_labels_are(ledger: tbl.Ledger, where: Any, cost: int) -> None:
    spent(ledger, a="1", b="2")
    ledger.budget("lab").record(usd=4, tokens=1).result()
    assert tbl.spend(ledger, where=where).item(0, "cost_usd") == cost


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"month": "11-2026"}, "write it as 2026-11"),
        ({"month": "2026-13"}, "write it as 2026-11"),
        ({"month": "2026-11", "since": "2026-11-01"}, "one or the other"),
        ({"since": "yesterday"}, "no moment"),
        ({"since": 5}, "give a datetime"),
        ({"since": "2026-11-02", "until": "2026-11-01"}, "is before since"),
        ({"tz": "Mars/Olympus"}, "no time zone"),
        ({"every": "daily"}, "1h, 1d, 1w, 1mo"),
        ({"every": "0d"}, "1h, 1d, 1w, 1mo"),
        ({"by": ["arm", "arm"]}, "another column of the result"),
        ({"by": "cost_usd"}, "another column of the result"),
        ({"by": 7}, "neither a name"),
        ({"where": "arm = 'a'"}, "neither a Polars expression nor a mapping"),
    ],
)
def test_what_is_no_time_label_or_condition_is_named(ledger: tbl.Ledger, how: dict[str, Any], said: str) -> None:
    with pytest.raises((tbl.InvalidValue, tbl.InvalidType), match=said):
        tbl.spend(ledger, **how)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "give a ledger, a budget, a frame of calls"),
        ("spend.duckdb", "give a ledger, a budget, a frame of calls"),
        ([], "empty list"),
        (pl.DataFrame({"a": [1]}), "none of ledger.calls"),
        (pl.DataFrame({"spent_at": [datetime(2026, 1, 1, tzinfo=UTC)]}), "lacks"),
    ],
)
def test_what_has_no_calls_is_named(source: Any, said: str) -> None:
    with pytest.raises((tbl.InvalidValue, tbl.InvalidType), match=said):
        tbl.spend(source)


def test_an_empty_ledger_has_spent_nothing(ledger: tbl.Ledger) -> None:
    """The sums are 0, as nothing was; and there is no group."""
    assert set(tbl.spend(ledger).row(0)) == {0}
    assert tbl.spend(ledger, "model", every="1d").is_empty()


def test_a_million_values_of_a_tag_are_a_million_rows() -> None:
    """As a frame, since nobody waits for a million calls."""
    many = 1_000_000
    calls = pl.select(
        pl.int_range(many).cast(pl.String).alias("item"),
        pl.lit(datetime(2026, 11, 1, tzinfo=UTC)).alias("spent_at"),
        *(pl.lit(1, pl.Int64).alias(name) for name in ("requests", "input_tokens", "output_tokens", "tokens")),
        pl.lit("0.000001").cast(pl.Decimal(38, 12)).alias("cost_usd"),
        pl.lit("measured").alias("basis"),
    )
    table = tbl.spend(calls, "item")
    assert (table.height, table["cost_usd"].sum()) == (many, 1)


def test_only_what_is_needed_is_read(ledger: tbl.Ledger) -> None:
    """The plan names the columns of the sums and the label, and neither tags nor origin."""
    spent(ledger, a="1")
    plan = calls_of(ledger).select("cost_usd", "model").explain()
    assert "PROJECT" in plan
    assert "*/" not in plan.split("PROJECT")[1].split("COLUMNS")[0]
