"""Charts: what is drawn is what `spend` and Polars find, and the pictures can be read anywhere and refer to nothing."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import polars as pl
import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock
from tokenbudget_lab import charts, pictures, placing, plotted, sources

STORE = "memory"
PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = (
    "<script>alert(1)</script>",
    "x" * 1000,
    "שלום עולם",
    "🙂🎉",
    "$x$",
    "]]>",
    "\"&amp;'",
    "pay\u202eoot",
    "datum['a.b']",
)


@pytest.fixture
def study(ledger: tbl.Ledger, clock: Clock) -> tbl.Budget:
    """Four days of two arms: ten calls that ended, one that was given back, one in flight."""
    study = ledger.budget("study", usd=5, window="month")
    clock.set("2026-11-24 09:00")
    for n in range(10):
        held = study.reserve_sync(usd="0.20", tags={"arm": "few-shot" if n % 3 else "zero-shot", "item": f"q{n}"})
        clock.advance(1 + n)
        held.commit(usd=f"0.{10 + n}").result()
        clock.advance(9 * 3600)
    study.reserve_sync(usd="0.20", tags={"arm": "few-shot"}).rollback().result()
    study.reserve_sync(usd="0.30", tags={"arm": "few-shot"})
    return study


def every_chart(source: Any) -> list[tbl.charts.Chart]:
    return [
        charts.spend_over_time(source, by="arm"),
        charts.spend_over_time(source),
        charts.burn_down(source, limit_usd=1),
        charts.latency(source, by="arm"),
        charts.unused_holds(source, by="arm"),
        charts.frontier([{"arm": "a", "cost_usd": 1, "score": 0.5}, {"arm": "b", "cost_usd": 2, "score": 0.7}]),
    ]


def tree(chart: tbl.charts.Chart) -> ET.Element:
    """A picture, parsed: it has to be sound XML."""
    return ET.fromstring(chart.svg)  # noqa: S314 - our own


def words(chart: tbl.charts.Chart) -> list[str]:
    """What a picture says."""
    return ["".join(text.itertext()) for text in tree(chart).iter("{http://www.w3.org/2000/svg}text")]


# --- spend over time ---------------------------------------------------------------------------------------------------------


def test_bars_are_what_spend_finds_per_day_and_label(study: tbl.Budget) -> None:
    data = charts.spend_over_time(study, by="arm").data
    expected = tbl.spend(study, by="arm", every="1d").select("period", "arm", "cost_usd")
    assert (
        data.select("period", pl.col("label").alias("arm"), "cost_usd")
        .sort("period", "arm")
        .equals(expected.sort("period", "arm"))
    )


def test_the_parts_of_a_bar_stand_upon_each_other(study: tbl.Budget) -> None:
    data = charts.spend_over_time(study, by="arm").data
    tops = data.group_by("period").agg((pl.col("below_usd") + pl.col("cost_usd")).max().alias("cost_usd")).sort("period")
    assert tops["cost_usd"].to_list() == tbl.spend(study, every="1d").sort("period")["cost_usd"].to_list()


def test_the_rest_is_one_series_and_the_title_says_so(study: tbl.Budget) -> None:
    """Ten items: the seven that cost most, and other; nothing is lost."""
    chart = charts.spend_over_time(study, by="item")
    by_label = chart.data.group_by("series", "label").agg(pl.col("cost_usd").sum()).sort("series")
    assert by_label["label"].to_list() == ["q9", "q8", "q7", "q6", "q5", "q4", "q3", "other"]
    assert by_label["cost_usd"].to_list()[-1] == Decimal("0.10") + Decimal("0.11") + Decimal("0.12")
    assert chart.title == "Spend per day by item: the costliest 7 of 10, and other"


def test_without_a_label_the_bars_say_how_well_the_spend_is_known(study: tbl.Budget) -> None:
    """Measured, estimated, unknown; the sums are those of `spend`, and stand under the title."""
    study.record(usd="0.4", basis="estimated").result()
    study.record(usd="0.2", basis="unknown").result()
    chart = charts.spend_over_time(study)
    sums = dict(chart.data.group_by("label").agg(pl.col("cost_usd").sum()).iter_rows())
    spent = tbl.spend(study).row(0, named=True)
    assert sums == {basis: spent[f"{basis}_usd"] for basis in ("measured", "estimated", "unknown")}
    assert "of it USD 0.40 estimated and USD 0.20 unknown" in chart.notes


def test_calls_without_a_price_are_said(ledger: tbl.Ledger) -> None:
    free = ledger.budget("free", limits=[])
    free.record(usd="0.5").result()
    free.record(tokens=100).result()
    assert "1 call without a price, not in it" in charts.spend_over_time(free).notes
    assert "1 call without a price, not in it" in charts.burn_down(free, limit_usd=1).notes


def test_days_begin_in_the_zone_that_is_asked_for(ledger: tbl.Ledger) -> None:
    """Half past eleven in the evening in London is the next day in Berlin, where it stands on the axis."""
    budget = ledger.budget("lab", limits=[])
    budget.record(usd="0.5", at=datetime(2026, 11, 20, 23, 30, tzinfo=UTC)).result()
    chart = charts.spend_over_time(budget, tz="Europe/Berlin")
    assert chart.data["period"][0].isoformat() == "2026-11-21T00:00:00+01:00"
    assert {"21 Nov", "Europe/Berlin"} <= {*words(chart)}


def test_more_bars_than_pixels_are_refused(ledger: tbl.Ledger) -> None:
    frame = pl.DataFrame(
        {"spent_at": pl.datetime_range(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC), "1m", eager=True)}
    )
    calls = frame.with_columns(
        requests=1, input_tokens=1, output_tokens=1, tokens=2, cost_usd=Decimal(1), basis=pl.lit("measured")
    )
    with pytest.raises(tbl.InvalidValue, match="1m makes 1,441 bars"):
        charts.spend_over_time(calls, every="1m")


# --- burn-down ---------------------------------------------------------------------------------------------------------------


def test_a_budget_burns_down_from_its_limit_to_what_is_left(study: tbl.Budget, clock: Clock) -> None:
    """From the month's first moment to now; what is held is said, and is not in the line."""
    clock.advance(60)
    chart = charts.burn_down(study)
    balance = study.balance
    assert chart.data.row(0)[::2] == (datetime(2026, 11, 1, tzinfo=UTC), Decimal(5))
    assert chart.data.row(-1)[::2] == (clock.now, 5 - balance.committed_usd)
    assert chart.data["left_usd"].is_sorted(descending=True)
    assert "USD 0.30 held by calls in flight, not in it" in chart.notes
    assert {"left", "even pace"} <= {*words(chart)}


def test_an_overrun_is_seen_and_said(study: tbl.Budget) -> None:
    study.record(usd=6).result()
    chart = charts.burn_down(study)
    assert chart.data["left_usd"][-1] == Decimal("-2.45")
    assert chart.notes[0] == "USD 2.45 over the limit after USD 7.45 in 11 calls"
    assert "over the limit" in words(chart)


def test_a_frame_burns_down_from_a_limit_that_is_given(study: tbl.Budget) -> None:
    """From the first call to the last; without an end there is no even pace."""
    chart = charts.burn_down(sources.calls_of(study), limit_usd="1.5")
    assert chart.data.row(0)[::2] == (datetime(2026, 11, 24, 9, tzinfo=UTC), Decimal("1.5"))
    assert chart.data["left_usd"][-1] == Decimal("1.5") - tbl.spend(study)["cost_usd"][0]
    assert "even pace" not in words(chart)


def test_what_a_lifetime_budget_spent_before_is_gone(ledger: tbl.Ledger, clock: Clock) -> None:
    """A limit of $5, and $2 in October: the line of November begins at $3."""
    budget = ledger.budget("lab", usd=5)
    budget.record(usd=2, at=datetime(2026, 10, 5, tzinfo=UTC)).result()
    budget.record(usd=1).result()
    assert charts.burn_down(budget, month="2026-11").data["left_usd"].to_list()[:2] == [Decimal(3), Decimal(2)]


def test_a_million_calls_make_a_short_line() -> None:
    """Steps closer than pixels are one; the end is exact."""
    many = 100_000
    frame = pl.DataFrame({"n": range(many)}).select(
        spent_at=pl.lit(datetime(2026, 11, 1, tzinfo=UTC)).dt.cast_time_unit("us") + pl.duration(seconds=pl.col("n")),
        requests=1, input_tokens=1, output_tokens=1, tokens=2, cost_usd=pl.lit(Decimal("0.0001")), basis=pl.lit("measured"),
    )  # fmt: skip
    chart = charts.burn_down(frame, limit_usd=20)
    assert chart.data.height <= plotted.MOST_STEPS + 2
    assert chart.data["left_usd"][-1] == Decimal(10)


@pytest.mark.parametrize(("limits", "said"), [({"tokens": 5}, "has no limit in USD"), ({"usd": 5}, "is needed")])
def test_a_burn_down_needs_a_limit(ledger: tbl.Ledger, limits: dict[str, Any], said: str) -> None:
    budget = ledger.budget("lab", **limits)
    with pytest.raises(tbl.InvalidValue, match=said):
        charts.burn_down(budget if "tokens" in limits else ledger)


def test_the_budget_above_that_has_the_limit_is_named(ledger: tbl.Ledger) -> None:
    ledger.budget("lab", usd=5)
    with pytest.raises(tbl.InvalidValue, match="lab has one; give limit_usd"):
        charts.burn_down(ledger.budget("lab/study", limits=[]))


# --- frontier ----------------------------------------------------------------------------------------------------------------


def test_the_frontier_is_what_nothing_beats() -> None:
    """Arm b is cheaper and better than c; d costs more than b and is no better; e has no score, and is left out, and said."""
    table = pl.DataFrame({"arm": [*"abcde"], "cost_usd": [1, 2, 3, 4, 5], "score": [0.5, 0.7, 0.6, 0.7, None]})
    chart = charts.frontier(table)
    assert dict(chart.data.select("arm", "frontier").iter_rows()) == {"a": True, "b": True, "c": False, "d": False}
    assert chart.title == "Cost and score: 2 of 4 on the frontier"
    assert "1 row without both numbers left out" in chart.notes
    assert {*"abcd", "cost (USD)", "score"} <= {*words(chart)}


def test_names_that_have_no_room_are_left_out_and_said() -> None:
    chart = charts.frontier([{"arm": f"the same place {n}", "cost_usd": 1.0, "score": 0.5} for n in range(20)])
    drawn = sum(word.startswith("the same place") for word in words(chart))
    assert f"{20 - drawn} names left out for want of room" in chart.notes


def test_no_name_covers_another_one() -> None:
    found = placing.places([(100.0, 100.0), (104.0, 104.0), (100.0, 108.0)], ["alpha", "beta", "gamma"], 400, 200)
    assert None not in found
    assert len({(place.dx, place.dy, place.align) for place in found if place}) == 3


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([{"arm": "a", "score": 1}], "lacks cost_usd"),
        ([{"cost_usd": "cheap", "score": 1}], "no numbers in 'cost_usd'"),
        ([{"cost_usd": n, "score": n} for n in range(501)], "501 rows"),
        (7, "give a frame"),
    ],
)
def test_what_is_no_table_of_conditions_is_said(table: Any, said: str) -> None:
    with pytest.raises(tbl.InvalidValue, match=said):
        charts.frontier(table)


# --- latency and holds -------------------------------------------------------------------------------------------------------


def test_latencies_are_polars_quantiles_per_label(study: tbl.Budget) -> None:
    data = charts.latency(study, by="arm").data
    ended = sources.calls_of(study).filter(pl.col("latency_s").is_not_null()).with_columns(tbl.tag("arm"))
    plain = ended.group_by("arm").agg(pl.len(), pl.col("latency_s").median()).sort("len", descending=True).collect()
    assert data.select("label", "calls", "median_s").rows() == plain.rows()


def test_holds_are_told_against_what_was_used(study: tbl.Budget) -> None:
    """Ten calls held $0.20 each; the one that was given back is said, the one in flight is not there."""
    chart = charts.unused_holds(study, by="arm")
    used = dict(tbl.spend(study, by="arm").select("arm", "cost_usd").iter_rows())
    assert dict(chart.data.select("label", "used_usd").iter_rows()) == used
    assert chart.data["held_usd"].sum() == Decimal("2.00")
    assert (chart.data["held_usd"] - chart.data["used_usd"]).to_list() == chart.data["unused_usd"].to_list()
    assert chart.notes == ("USD 1.45 used of USD 2.00 held by 10 calls", "1 call given back unused, not in it")


def test_what_was_used_beyond_holds_is_said(study: tbl.Budget) -> None:
    study.reserve_sync(usd="0.10").commit(usd="0.50").result()
    chart = charts.unused_holds(study)
    assert chart.data["over_usd"].to_list() == [Decimal("0.40")]
    assert "USD 0.40 used beyond holds" in chart.notes


# --- all of them -------------------------------------------------------------------------------------------------------------


def test_a_picture_refers_to_nothing_outside(study: tbl.Budget) -> None:
    for chart in every_chart(study):
        assert {*re.findall(r"https?://[^\"'\s<]*", chart.svg)} <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert not re.search(r"<(script|image|foreignObject|style|use)|url\(|href=", chart.svg)


def test_a_picture_has_no_ground_of_its_own_and_says_itself(study: tbl.Budget) -> None:
    """Transparent, so that it stands on light and dark pages; its title and notes are there for screen readers."""
    for chart in every_chart(study):
        root = tree(chart)
        assert 'fill="white"' not in chart.svg.split("<g", 1)[0]
        assert root.get("aria-label", "").startswith(chart.title)
        assert chart.png(1).startswith(PNG)


@pytest.mark.parametrize("color", [*pictures.SERIES, pictures.INK])
def test_colors_stand_out_on_white_and_on_black(color: str) -> None:
    """Three to one at least, the least that guidelines ask of what is drawn."""
    red, green, blue = (int(color[n : n + 2], 16) / 255 for n in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05
    assert 1.05 / light >= 3
    assert light / 0.0556 >= 3  # the ground of dark notebooks, #111


def test_hostile_labels_are_text(ledger: tbl.Ledger) -> None:
    """Markup, maths, long, right-to-left, emoji, and none at all: each is one series, cut where it is long."""
    budget = ledger.budget("lab", limits=[])
    for n, label in enumerate(HOSTILE):
        budget.record(usd=10 - n, tags={"arm": label} if len(label.encode()) <= 256 else {}).result()
    frame = ledger.calls().with_columns(arm=pl.Series([*HOSTILE], dtype=pl.String)).collect()
    for source in (budget, frame, frame.with_columns(arm=pl.lit("x" * 10_000)), frame.with_columns(arm=pl.lit("a\nb\x00"))):
        for chart in (*every_chart(source)[:2], charts.unused_holds(source, by="arm")):
            assert not {"script", "b", "image"} & {element.tag.rpartition("}")[2] for element in tree(chart).iter()}
            assert max(len(word) for word in words(chart)) < 120
    shown = words(charts.spend_over_time(budget, by="arm"))
    assert {"1 · <script>alert(1)</script>", "2 · (none)", "3 · שלום עולם", "5 · $x$"} <= {*shown}


@pytest.mark.parametrize("name", ["label", "series", "weight", "until", "key 0"])
def test_a_label_may_be_called_as_a_column_of_the_chart(study: tbl.Budget, name: str) -> None:
    calls = sources.calls_of(study).with_columns(tbl.tag("arm").alias(name))
    assert charts.latency(calls, by=name).data.equals(charts.latency(study, by="arm").data)
    assert charts.spend_over_time(calls, by=name).data.equals(charts.spend_over_time(study, by="arm").data)


def test_labels_that_look_the_same_stay_apart(study: tbl.Budget) -> None:
    """Two labels that differ beyond what is shown, and one that is called as the null is."""
    calls = sources.calls_of(study).collect().with_columns(arm=pl.Series(["x" * 99 + "1", "x" * 99 + "2", "(none)", None] * 3))
    drawn = [word for word in words(charts.latency(calls, by="arm")) if "calls" in word or "#" in word]
    assert len({*drawn}) == 5  # the four and the title


def test_where_there_are_no_calls_a_chart_says_so(ledger: tbl.Ledger) -> None:
    ledger.budget("lab", usd=1)
    for chart in every_chart(ledger)[:5]:
        assert chart.data.is_empty()
        assert "no calls" in words(chart)
        assert "no calls" in repr(chart)


def test_an_empty_table_has_no_conditions() -> None:
    assert "no conditions" in words(charts.frontier(pl.DataFrame({"cost_usd": [], "score": []})))


def test_a_notebook_gets_both_pictures_and_a_sentence(study: tbl.Budget) -> None:
    data, metadata = charts.latency(study)._repr_mimebundle_()
    assert set(data) == {"image/svg+xml", "image/png", "text/plain"}
    assert base64.b64decode(data["image/png"]).startswith(PNG)
    assert metadata["image/png"]["width"] > 300
    assert (
        data["text/plain"]
        == "<chart: Latency of 11 calls; line: 5 to 95 %; box: 25 to 75 %; across it, and in figures: the median>"
    )


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<svg "), ("a.PNG", PNG), ("a.html", b"<!doctype html>")])
def test_a_chart_is_saved_as_its_ending_says(study: tbl.Budget, tmp_path: Path, name: str, begins: bytes) -> None:
    written = charts.latency(study).save(tmp_path / name)
    assert written.read_bytes().startswith(begins)
    assert b"<script" not in written.read_bytes()


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.svg.gz"])
def test_other_endings_are_refused(study: tbl.Budget, tmp_path: Path, name: str) -> None:
    with pytest.raises(tbl.InvalidValue, match=r"ends with none of \.svg, \.png, \.html"):
        charts.latency(study).save(tmp_path / name)
    assert not [*tmp_path.glob("a*")]


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_without_the_extra_the_error_says_what_to_install(
    study: tbl.Budget, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for draw in (charts.spend_over_time, charts.burn_down, charts.latency, charts.unused_holds, charts.frontier):
        with pytest.raises(tbl.ExtraMissing, match=r'pip install "tokenbudget_lab\[charts\]"'):
            draw(study)


def test_a_picture_is_the_same_in_every_time_zone() -> None:
    """What draws it reads the machine's zone when it starts."""
    script = (
        "import datetime as d, tokenbudget_lab as tbl; ledger = tbl.connect(':memory:')\n"
        "ledger.budget('lab', limits=[]).record(usd=1, at=d.datetime(2026, 11, 20, 23, 30, tzinfo=d.UTC)).result()\n"
        "print(tbl.charts.spend_over_time(ledger, every='1h').svg)"
    )
    here, there = (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ, "TZ": tz})
        for tz in ("UTC", "America/New_York")
    )
    assert "20 Nov 23:00" in here.stdout
    assert here.stdout == there.stdout


def test_charts_are_found_at_the_top() -> None:
    assert tbl.charts is charts
    assert "charts" in dir(tbl)
