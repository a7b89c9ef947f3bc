"""A balance as text and SVG: nothing interpreted, nothing said by colour alone."""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import render
from tokenbudget_lab.balance import LimitBalance


@pytest.fixture
def ledger() -> Iterator[tbl.Ledger]:
    with tbl.connect(":memory:") as ledger:
        yield ledger


def spent(ledger: tbl.Ledger, name: str = "study") -> tbl.Balance:
    """$3.10 of $5 are committed, $0.80 are held."""
    budget = ledger.budget(name, usd=5)
    budget.record(usd="3.10").result()
    budget.reserve_sync(usd="0.80")
    return budget.balance


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lab/prompt-study", "lab/prompt-study"),
        ("größe · 日本語 · 🙂", "größe · 日本語 · 🙂"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\tc\rd\x00", "a\\nb\\tc\\rd\\x00"),
        ("pay\u202eoot", "pay\\u202eoot"),
        ("a\u200bb\ufeffc\u2028d", "a\\u200bb\\ufeffc\\u2028d"),
        ("\x9b31m", "\\x9b31m"),
        ("a\U000e0041b\u3164", "a\\U000e0041b\\u3164"),
    ],
)
def test_what_cannot_be_seen_is_shown_escaped(text: str, shown: str) -> None:
    assert render.escaped(text) == shown


def test_a_line_shows_what_is_committed_held_and_left(ledger: tbl.Ledger) -> None:
    assert render.balance_text(spent(ledger), width=20) == (
        "study  ████████████▒▒▒▒····  $3.10 committed · $0.80 held · $1.10 of $5.00 left"
    )


def test_a_line_is_ascii_where_nothing_else_can_be_shown(ledger: tbl.Ledger) -> None:
    assert render.balance_text(spent(ledger), glyphs=render.ASCII).isascii()


def test_a_budget_over_its_limit_says_by_how_much(ledger: tbl.Ledger) -> None:
    """An overrun shows as the end of the bar.

    limit     $5.00
    spent     $3.10, $0.80 held
    record    $2.10
    """
    spent(ledger)
    ledger.budget("study").record(usd="2.10").result()
    assert render.balance_text(ledger.budget("study").balance, width=12).endswith(
        "$5.20 committed · $0.80 held · $1.00 over $5.00"
    )
    assert "!!" in render.balance_text(ledger.budget("study").balance, width=12)


def test_the_tightest_limit_is_named_where_it_is_an_ancestors(ledger: tbl.Ledger) -> None:
    ledger.budget("lab", usd=1)
    ledger.budget("lab/study", usd=100)
    ledger.budget("lab/study").record(usd="0.90").result()
    assert "in lab: $0.90 committed · $0.00 held · $0.10 of $1.00 left" in render.balance_text(
        ledger.budget("lab/study").balance
    )


def test_small_limits_are_shown_to_the_hundredth_of_a_cent(ledger: tbl.Ledger) -> None:
    assert "$0.0450 of $0.0450 left" in render.balance_text(ledger.budget("small", usd="0.045").balance)


@pytest.mark.parametrize(
    ("limit", "committed", "held"), [(100, 0, 0), (100, 33, 33), (100, 1, 99), (100, 120, 7), (0, 5, 0), (0, 0, 0)]
)
@pytest.mark.parametrize("width", [1, 7, 24, 408])
def test_a_bars_parts_are_its_width(limit: int, committed: int, held: int, width: int) -> None:
    parts = render.segments(LimitBalance("b", "tokens", "", limit, committed, held, None), width)
    assert parts.committed + parts.held + parts.over + parts.left == width
    assert min(parts.committed, parts.held, parts.over, parts.left) >= 0


def test_a_gauge_says_all_in_a_sentence(ledger: tbl.Ledger) -> None:
    svg = ET.fromstring(render.gauge_svg(spent(ledger)))  # noqa: S314 - our own
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "Budget study: $3.10 committed and $0.80 held, $1.10 of $5.00 left."


def test_a_gauge_loads_nothing_and_its_parts_differ_in_shape(ledger: tbl.Ledger) -> None:
    svg = render.gauge_svg(spent(ledger)).replace("http://www.w3.org/2000/svg", "")
    assert "http" not in svg
    assert render.COMMITTED in svg
    assert 'fill="url(#tbl-held)"' in svg


def test_a_gauge_interprets_no_name(ledger: tbl.Ledger) -> None:
    name = "<script>alert(1)<script>" + "\u202e" + '"onload=' + "x" * 300
    label = ET.fromstring(render.gauge_svg(spent(ledger, name))).get("aria-label")  # noqa: S314 - our own
    assert label is not None
    assert "<script>" in label
    assert "\\u202e" in label
    assert "<script>" not in render.gauge_svg(ledger.budget(name).balance)


def test_a_gauge_of_an_unlimited_budget_has_no_bar(ledger: tbl.Ledger) -> None:
    assert "no limit" in render.gauge_svg(ledger.budget("open", limits=[]).balance)
