"""What a report says: sums that add up, and nothing unknown that reads as zero."""

from __future__ import annotations

import base64
import hashlib
import re
import runpy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenbudget_lab as tbl
from tests import postgres
from tests.conftest import Clock, also_on_postgres
from tokenbudget_lab.frames import schema
from tokenbudget_lab.ids import uuid7_source
from tokenbudget_lab.report_chart import MOST_PERIODS
from tokenbudget_lab.report_methods import notes, warnings
from tokenbudget_lab.stores.memory import MemoryStore
from tokenbudget_lab.stores.postgres import PostgresStore

STORE = "memory"
LIMIT = 200_000  # bytes of a page
ANY: Any = lambda value: value  # noqa: E731 - what the types would refuse


def opened(clock: Clock, store: str = "memory") -> tbl.Ledger:
    kept = PostgresStore(postgres.ledger(), clock_ns=clock.now_ns) if store == "postgres" else MemoryStore()
    return tbl.Ledger(store=kept, clock_ns=clock.now_ns, ids=uuid7_source(clock.now_ns))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock, store: str) -> Iterator[tbl.Ledger]:
    """A ledger on Monday, 23 November 2026, at noon."""
    with opened(clock, store) as ledger:
        yield ledger


def at(moment: str) -> datetime:
    return datetime.fromisoformat(moment).replace(tzinfo=UTC)


def calls(n: int, **columns: Any) -> pl.DataFrame:
    """A frame of `n` calls as a ledger has them: $0.01 and 15 tokens each, an hour apart, unless columns say otherwise."""
    made: dict[str, Any] = {
        "spent_at": [at("2026-11-01") + timedelta(hours=each) for each in range(n)],
        "requests": [1] * n,
        "input_tokens": [10] * n,
        "output_tokens": [5] * n,
        "tokens": [15] * n,
        "cost_usd": [Decimal("0.01")] * n,
        "basis": ["measured"] * n,
        "model": ["gpt-4o-mini"] * n,
        **columns,
    }
    return pl.DataFrame(made, schema_overrides={k: v for k, v in schema("calls").items() if k in made})


# --- sums --------------------------------------------------------------------------------------------------------------------


@also_on_postgres
def test_rows_periods_and_total_add_up(book: tbl.Ledger) -> None:
    """Over models, over days, and in all: the same dollar."""
    lab = book.budget("lab", usd=5)
    for day, model in ((20, "a"), (21, "a"), (21, "b"), (22, "b")):
        lab.record(usd="0.25", model=model, at=at(f"2026-11-{day}"))
    told = tbl.report(book)
    assert told.total["cost_usd"].item() == 1
    assert told.table["cost_usd"].sum() == told.periods["cost_usd"].sum() == 1
    assert told.table.select("model", "calls").rows() == [("a", 2), ("b", 2)]


@also_on_postgres
def test_an_empty_ledger_has_a_report(book: tbl.Ledger) -> None:
    """In every format; and it says that there are no calls."""
    told = tbl.report(book, by=["model", "arm"])
    assert told.methods == "No calls were recorded."
    assert (told.table.height, told.total["calls"].item()) == (0, 0)
    assert told.csv.count("\n") == 1
    for text in (told.html, told.markdown, told.tex, told.json, repr(told), told._repr_html_()):
        assert "No calls were recorded." in text
    assert "<svg" not in told.html
    assert pl.read_parquet(told.parquet).height == 0


def test_one_call_has_a_bar_and_a_row(book: tbl.Ledger) -> None:
    book.budget("lab", usd=5).record(tbl.Usage(1000, 100), model="gpt-4o-mini").result()
    told = tbl.report(book)
    assert told.html.count('class="bar"') == 1
    assert told.methods.startswith(
        "1 call to 1 model (gpt-4o-mini) was made on 2026-11-23 (UTC), using 1,000 input tokens and 100 output tokens, "
        "at a total cost of USD 0.000210."
    )


@also_on_postgres
def test_one_tag_value_and_calls_without_the_tag_are_two_rows(book: tbl.Ledger) -> None:
    """A call without it is shown with a dash, and none is left out."""
    lab = book.budget("lab", usd=5)
    lab.record(usd="0.5", tags={"arm": "b"})
    lab.record(usd="0.25")
    lab.record(usd="0.125", tags={"arm": ""})
    told = tbl.report(book, by="arm")
    assert told.table.select("arm", pl.col("cost_usd").cast(float)).rows() == [("b", 0.5), (None, 0.25), ("", 0.125)]
    assert "| – | 1 |" in told.markdown
    assert '| "" | 1 |' in told.markdown


def test_what_is_held_is_not_spent(book: tbl.Ledger) -> None:
    """Nor does it count as a call.

    limit     5
    commit    1
    reserve   2   and it stays open
    """
    lab = book.budget("lab", usd=5)
    with lab.reserve(usd=1) as call:
        call.commit(usd=1)
    lab.reserve_sync(usd=2)
    told = tbl.report(book)
    assert told.total["cost_usd"].item() == 1
    assert notes(told.figures)[0] == "In flight: 1 call, holding USD 2.0000; what is held is not spent, and not counted."
    row = told.budgets.row(0, named=True)
    assert (row["limit"], row["committed"], row["held"], row["left"]) == (5, 1, 2, 2)


def test_the_example_of_the_page_about_reports_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "reports.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "block.py").write_text(block)
    runpy.run_path(str(tmp_path / "block.py"))
    assert "few-shot" in (tmp_path / "report.html").read_text()


# --- what is not known -------------------------------------------------------------------------------------------------------


def test_a_call_without_a_price_is_never_free(book: tbl.Ledger) -> None:
    """Its cost reads `unknown`, the sum is a lower bound, and the methods say how many are missing."""
    free = book.budget("free", limits=[])
    free.record(tbl.Usage(10, 10), model="nobody-1")
    free.record(tbl.Usage(1_000_000, 0), model="gpt-4o-mini")
    told = tbl.report(book)
    assert "not including 1 call without a known price" in told.methods
    assert "at a cost of at least USD 0.1500" in told.methods
    for text in (told.html, told.markdown, repr(told), told.tex):
        assert "unknown" in text
    assert "≥ 0.1500" in told.html
    assert ">?</text>" in told.html
    assert "\\ensuremath{\\geq} 0.1500" in told.tex
    assert told.table.filter(model="nobody-1")["unpriced_calls"].item() == 1


def test_calls_that_all_have_no_price_have_no_cost(book: tbl.Ledger) -> None:
    book.budget("free", limits=[]).record(tbl.Usage(10, 10), model="nobody-1")
    told = tbl.report(book)
    assert "at a cost that is not known." in told.methods
    assert "USD 0" not in told.methods
    assert re.search(r"Total \| 1 \| 10 \| 10 \| 20 \| unknown \| – \| – \| – \| 1 \|", told.markdown)


def test_estimated_and_unknown_amounts_are_told_apart(book: tbl.Ledger, clock: Clock) -> None:
    """Each has a column, and a share in the methods.

    commit    1    measured
    record    2    estimated
    reserve   1    for a model, and it is lost: counted as held, unknown
    """
    lab = book.budget("lab", usd=50)
    lab.record(usd=1)
    lab.record(usd=2, basis="estimated")
    lab.reserve_sync(usd=1, model="gpt-4o-mini", timeout=60)
    clock.advance(3600)
    lab.record(usd=0)
    told = tbl.report(book)
    assert told.total.select("measured_usd", "estimated_usd", "unknown_usd").row(0) == (1, 2, 1)
    assert (
        "Of this cost, USD 2.0000 (50.0 %) is estimated and USD 1.0000 (25.0 %) is what was held for calls whose outcome "
        "is not known."
    ) in told.methods
    assert all(head in told.html for head in ("Measured (USD)", "Estimated (USD)", "Unknown (USD)"))


def test_a_small_amount_does_not_read_as_zero() -> None:
    """In a table of many dollars, a hundredth of a cent."""
    told = tbl.report(calls(2, cost_usd=[Decimal(100), Decimal("0.0001")], model=["a", "b"]))
    assert "| b | 1 | 10 | 5 | 15 | &lt; 0.01 |" in told.markdown


def test_a_cost_whose_basis_is_not_said_is_pointed_out() -> None:
    told = tbl.report(calls(2, basis=["measured", None]))
    assert "0.010000 has no basis said" in " ".join(notes(told.figures))
    assert "it is not recorded how it is known" in told.methods


def test_tokens_that_were_not_said_are_pointed_out(book: tbl.Ledger) -> None:
    lab = book.budget("lab", limits=[])
    lab.record(usd=1)
    lab.record(tokens=70)
    told = notes(tbl.report(book).figures)
    assert "Without token counts: 1 call, in no number of tokens." in told
    assert "using 70 tokens (1 call did not say its own), at" in tbl.report(book).methods
    assert "with tokens that were not recorded, at" in tbl.report(book, where=pl.col("cost_usd") == 1).methods
    assert "70 tokens are counted that are not said to be input or output." in told


# --- budgets -----------------------------------------------------------------------------------------------------------------


def test_a_budget_without_a_limit_says_so(book: tbl.Ledger) -> None:
    book.budget("free", limits=[]).record(usd="0.5")
    told = tbl.report(book)
    assert told.budgets.select("limit", "left", "committed").row(0) == (None, None, Decimal("0.5"))
    assert "none of its own" in told.html


def test_a_budget_over_its_limit_comes_first(book: tbl.Ledger) -> None:
    """Before all numbers, and before a hundred others."""
    for n in range(150):
        book.budget(f"b{n:03}", usd=5)
    book.budget("zz", usd=1).record(usd=3)
    told = tbl.report(book)
    assert warnings(told.figures) == ["Over the limit: zz."]
    assert told.html.index("Over the limit: ") < told.html.index("1 call to")
    assert told.html.index("<bdi>zz</bdi>") < told.html.index("<bdi>b000</bdi>")
    assert "2.00 over" in told.html
    assert "… and 51 more" in told.html


def test_of_a_budget_its_own_and_those_below_it_are_reported(book: tbl.Ledger) -> None:
    book.budget("lab", usd=5)
    book.budget("lab/a", usd=1).record(usd="0.5")
    book.budget("other", usd=1).record(usd="0.5")
    told = tbl.report([book.budget("lab"), book.budget("lab/a")])
    assert told.budgets["budget"].to_list() == ["lab", "lab/a"]
    assert told.total["cost_usd"].item() == Decimal("0.5")


def test_a_frame_has_no_budgets() -> None:
    told = tbl.report(calls(3))
    assert told.budgets.height == 0
    assert "Budgets" not in told.html


# --- time --------------------------------------------------------------------------------------------------------------------


def test_a_month_is_that_of_its_zone(book: tbl.Ledger) -> None:
    """October in Berlin begins in summer time and ends in winter time: from 22:00 to 23:00 UTC.

    30 Sep  21:59   no
    30 Sep  22:00   yes
    31 Oct  22:59   yes
    31 Oct  23:00   no
    """
    lab = book.budget("lab", limits=[])
    for moment in ("2026-09-30 21:59", "2026-09-30 22:00", "2026-10-31 22:59", "2026-10-31 23:00"):
        lab.record(usd=1, at=at(moment))
    told = tbl.report(book, month="2026-10", tz="Europe/Berlin")
    assert told.total["calls"].item() == 2
    assert "from 2026-10-01 to 2026-10-31 (Europe/Berlin)" in told.methods
    assert told.figures.title == "Spend by model, 2026-10"


def test_the_hour_that_comes_twice_is_two_hours(book: tbl.Ledger) -> None:
    """On 25 October 2026 it is half past two in Berlin at 00:30 and at 01:30 UTC."""
    lab = book.budget("lab", limits=[])
    for moment in ("2026-10-25 00:30", "2026-10-25 01:30"):
        lab.record(usd=1, at=at(moment))
    told = tbl.report(book, every="1h", tz="Europe/Berlin")
    assert told.table["calls"].to_list() == [1, 1]
    assert "2026-10-25 02:00+02:00" in told.html
    assert "2026-10-25 02:00+01:00" in told.html


def test_ledgers_whose_budgets_have_other_zones_are_reported_in_one(clock: Clock) -> None:
    """The same instant is one day in Auckland and another in Honolulu; the report's zone decides."""
    with opened(clock) as one, opened(clock) as two:
        one.budget("nz", usd=5, window="day", tz="Pacific/Auckland").record(usd=1, at=at("2026-11-22 23:00"))
        two.budget("hi", usd=5, window="day", tz="Pacific/Honolulu").record(usd=2, at=at("2026-11-22 23:00"))
        told = tbl.report([one, two], by="budget", every="1d", tz="Pacific/Auckland")
    assert [f"{day:%Y-%m-%d}" for day in told.table["period"]] == ["2026-11-23", "2026-11-23"]
    assert told.table["cost_usd"].to_list() == [2, 1]
    assert told.budgets["budget"].to_list() == ["hi", "nz"]


def test_many_periods_show_the_newest_and_the_sum_of_the_others() -> None:
    told = tbl.report(calls(500), every="1h", by=None)
    assert told.html.count('class="bar"') == MOST_PERIODS
    assert f"… and {500 - MOST_PERIODS:,} earlier" in told.html
    assert told.periods.height == 500


@pytest.mark.parametrize("cost", ["0.000000000001", "12345678901", "-5", "0"])
def test_a_chart_has_an_axis_for_every_amount(cost: str) -> None:
    """Whose numbers have room."""
    page = tbl.report(calls(2, cost_usd=[Decimal(cost)] * 2)).html
    shown = re.findall(r'text-anchor="end" x="58"[^>]*>([^<]*)<', page)
    assert len(shown) >= 2
    assert max(map(len, shown)) <= 8


@pytest.mark.parametrize("every", ["1d", "1mo"])
def test_a_day_whose_midnight_comes_twice_is_one_day(every: str) -> None:
    """In Havana it is half past midnight on 1 November 2026 at 04:30 and at 05:30 UTC; the report of the month has both."""
    moments = ["2026-11-01 03:59", "2026-11-01 04:30", "2026-11-01 05:30", "2026-11-01 15:30"]
    frame = calls(4, spent_at=[at(moment) for moment in moments])
    told = tbl.report(frame, by=None, every=every, month="2026-11", tz="America/Havana")
    assert [(f"{begins:%Y-%m-%d %z}", n) for begins, n in told.table.select("period", "calls").rows()] == [
        ("2026-11-01 -0400", 3)
    ]


def test_a_day_without_a_midnight_is_one_day() -> None:
    """In Cairo the clocks go from midnight to one at the beginning of 24 April 2026."""
    frame = calls(3, spent_at=[at(moment) for moment in ("2026-04-23 21:59", "2026-04-23 22:00", "2026-04-24 20:59")])
    told = tbl.report(frame, by=None, every="1d", tz="Africa/Cairo")
    assert [(f"{begins:%d %H:%M}", n) for begins, n in told.table.select("period", "calls").rows()] == [
        ("23 00:00", 1),
        ("24 01:00", 2),
    ]


# --- several ledgers ---------------------------------------------------------------------------------------------------------


def test_two_connections_to_one_file_have_its_budgets_once(tmp_path: Path) -> None:
    """So do a budget through one and the ledger through the other; and no call counts twice."""
    with tbl.connect(tmp_path / "a.duckdb") as one, tbl.connect(tmp_path / "a.duckdb") as two:
        one.budget("lab", usd=5).record(usd=1).result()
        for sources in ([one, two], [one.budget("lab"), two], [one.budget("lab"), two.budget("lab")]):
            told = tbl.report(sources)
            assert told.budgets["budget"].to_list() == ["lab"]
            assert told.total["cost_usd"].item() == 1


def test_a_copy_of_a_ledger_does_not_count_beside_it(tmp_path: Path) -> None:
    """Nor does its export, nor a budget of the copy; empty ledgers, of which none has a first event, are no copies."""
    with tbl.connect(tmp_path / "a.duckdb", embedded=True) as one, tbl.connect(":memory:") as empty:
        lab = one.budget("lab", usd=5)
        lab.record(usd=1).result()
        one.backup(tmp_path / "b.duckdb")
        one.export(tmp_path / "parts")
        export = tbl.read_export(tmp_path / "parts")
        with tbl.connect(tmp_path / "b.duckdb", embedded=True) as two:
            for sources in ([one, two], [lab, two], [lab, two.budget("lab")], [export, one], [export, two.budget("lab")]):
                with pytest.raises(tbl.InvalidValue, match=r"is a copy of .*would count twice"):
                    tbl.report(sources)
            with tbl.connect(":memory:") as another:
                assert tbl.spend([one, empty, another])["cost_usd"].item() == 1


def test_budgets_of_one_name_in_several_ledgers_are_told_apart(tmp_path: Path) -> None:
    """Whose limit it is that is passed; and that a row stands for both of them."""
    with tbl.connect(tmp_path / "a.duckdb", embedded=True) as one, tbl.connect(tmp_path / "b.duckdb", embedded=True) as two:
        one.budget("lab", usd=5).record(usd=1).result()
        two.budget("lab", usd=5).record(usd=7).result()
        told = tbl.report([one, two], by="budget")
        assert told.table.select("budget", "cost_usd").rows() == [("lab", 8)]
        assert "One row stands for budgets of that name in several ledgers: lab" in told.markdown.replace("\\_", "_")
        assert warnings(told.figures) == [f"Over the limit: lab in {tmp_path / 'b.duckdb'}."]
        apart = tbl.report([one, two], by=["ledger", "budget"])
        assert apart.table["cost_usd"].to_list() == [7, 1]
        assert not [note for note in notes(apart.figures) if "One row" in note]


# --- against plain SQL -------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["commit", "rollback", "lose", "record", "open", "unpriced"]), st.integers(0, 10**9),
              st.sampled_from(["measured", "estimated", "unknown"]), st.sampled_from("ab")),
    max_size=12,
)  # fmt: skip
BY_HAND = """
select coalesce(sum(usd), 0) as usd, coalesce(sum(usd) filter (basis = 'measured'), 0) as measured,
       coalesce(sum(usd) filter (basis = 'estimated'), 0) as estimated,
       coalesce(sum(usd) filter (basis = 'unknown'), 0) as unknown,
       count(*) filter (requests is not null) as calls, count(*) filter (requests is not null and usd is null) as unpriced
from (
    select arg_max_null(usd, seq) as usd, arg_max_null(basis, seq) as basis, arg_max_null(requests, seq) as requests
    from events where kind in ('committed', 'rolled_back', 'expired', 'recorded', 'adjusted') group by reservation
)
"""


@settings(deadline=None, max_examples=25)
@given(STEPS)
def test_a_report_has_the_sums_of_plain_sql_over_the_events(steps: list[tuple[str, int, str, str]]) -> None:
    """Whatever became of the calls: to the last digit, each basis by itself, and calls without a price apart."""
    with tbl.connect(":memory:") as ledger:
        lab = ledger.budget("lab", limits=[])
        for what, pico, basis, arm in steps:
            usd, tags = Decimal(pico).scaleb(-12), {"arm": arm}
            if what in ("record", "unpriced"):
                given_usd = None if what == "unpriced" else usd
                lab.record(usd=given_usd, tokens=3, basis=ANY(basis), tags=tags).result()
                continue
            call = lab.reserve_sync(usd=usd, tokens=3, tags=tags, if_lost="count")
            if what != "open":
                ends: dict[str, Any] = {"commit": partial(call.commit, usd=usd), "rollback": call.rollback, "lose": call.lose}
                ends[what]().result()
        told = tbl.report(ledger, by="arm")
        plain, total = ledger.sql(BY_HAND).row(0, named=True), told.figures.sums
    assert (plain["usd"], plain["calls"], plain["unpriced"]) == (total["cost_usd"], total["calls"], total["unpriced_calls"])
    for basis in ("measured", "estimated", "unknown"):
        assert plain[basis] == total[f"{basis}_usd"] == told.table[f"{basis}_usd"].sum() == told.periods[f"{basis}_usd"].sum()


# --- size --------------------------------------------------------------------------------------------------------------------


def test_twenty_thousand_tag_values_are_500_rows_and_one_for_the_others() -> None:
    """Which has their sum, and their number is said aloud."""
    frame = calls(20_000, cost_usd=[Decimal(20_000 - n) / 100 for n in range(20_000)])
    frame = frame.with_columns(pl.Series("item", [f"row-{n:05}" for n in range(20_000)]))
    told = tbl.report(frame, by="item")
    assert told.table.height == 20_000
    assert "the first 500 of 20,000 rows" in told.html
    assert "… and 19,500 more" in told.html
    rest = told.table.tail(19_500)["cost_usd"].sum()
    assert f"{rest:,.2f}" in told.html
    assert f"{rest:,.2f}" in told.markdown
    assert len(told.html.encode()) < LIMIT
    assert told.csv.count("\n") == 20_001


@pytest.mark.parametrize("text", ["<&\"'$" * 2000, "🎉" * 10_000, "\u202e" * 10_000, "\\" * 9_999, "مرحبا" * 2000])
def test_a_page_is_small_whatever_the_data(text: str) -> None:
    """16 labels, each of 10,000 of the characters whose escapes are the longest, in 600 rows."""
    names = [f"{n}{text}"[:10_000] for n in range(600)]
    frame = calls(600, model=names).with_columns(*(pl.Series(f"l{n}", names) for n in range(16)))
    told = tbl.report(frame, by=[f"l{n}" for n in range(16)], title=text)
    assert len(told.html.encode()) < LIMIT
    assert "more" in told.html
    assert pl.read_parquet(told.parquet)["l0"].str.len_chars().max() == len(names[0])


def test_a_page_asks_for_nothing(book: tbl.Ledger) -> None:
    """No script, link, picture or font; and its policy would let none through."""
    book.budget("lab", usd=5).record(usd=1, tags={"arm": "url(http://e/x.png) src=http://e"})
    page = tbl.report(book, by="arm").html
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" for style in styles)
    policy = f"default-src 'none'; style-src {hashes}; base-uri 'none'; form-action 'none'"
    assert len(styles) == 2
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page
    assert "style=" not in page  # which the policy would not apply
    ours = page.replace("url(http://e/x.png) src=http://e", "")
    for word in ("http:", "https:", "src=", "url(", "href", "<script", "@import", "<link", "<iframe", "onload"):
        assert word not in ours, word


def test_a_page_can_be_read_by_everybody(book: tbl.Ledger) -> None:
    book.budget("lab", usd=5).record(usd=1)
    page = tbl.report(book).html
    assert '<html lang="en">' in page
    assert page.count("<h1>") == 1
    assert page.count("<table>") == page.count("<caption>") == 3
    assert re.findall(r"<th(?! scope=)[^>]*>", page.replace("<thead>", "")) == []
    assert page.count('role="region" tabindex="0" aria-label=') == 4  # what scrolls can be reached without a mouse
    for rule in ("prefers-color-scheme:dark", "@media print"):
        assert rule in page
    assert re.search(r'<svg role="img" aria-label="[^"]+', page)
    assert "<title>2026-11-23 12:00+00:00: USD 1.0000, 1 call</title>" in page


# --- arguments ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"by": "no such column"},
        {"by": "tags"},
        {"by": [f"model{n}" for n in range(17)]},
        {"title": 5},
        {"tz": "Mars/Olympus"},
        {"every": "soon"},
        {"month": "2026-13"},
        {"where": {"requests": "x"}},
        {"where": pl.col("nowhere") == 1},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_is_wrong_is_named(arguments: dict[str, Any]) -> None:
    frame = calls(2).with_columns(tags=pl.lit(None, schema("calls")["tags"])).drop("model")
    if arguments.get("by") == "no such column":
        frame = frame.drop("tags")
    with pytest.raises(tbl.InvalidValue):
        tbl.report(frame, **{"by": None, **arguments})


def test_no_source_is_an_error() -> None:
    with pytest.raises(tbl.InvalidValue, match="empty list"):
        tbl.report([])


def test_what_was_asked_is_read_back(book: tbl.Ledger) -> None:
    book.budget("lab", usd=5).record(usd=1, tags={"arm": "b"})
    told = tbl.report(book, since="2026-11-01", tz="Europe/Berlin", where={"arm": ["a", "b"], "model": None})
    scope = "from 2026-11-01 (Europe/Berlin) where arm is one of a, b and model is missing."
    assert told.figures.scope == f"Calls {scope}"
    assert told.methods.endswith(f"Included: calls {scope}")
