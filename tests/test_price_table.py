"""Agreement with genai-prices, called as it has to be called: one table of calls, and what the table covers."""

import doctest
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import genai_prices
import pytest

import tokenbudget_lab as tbl
from tests.test_pricing import catalogued
from tokenbudget_lab import Usage
from tokenbudget_lab.terms import terms_of

# model, terms, day (noon UTC), and per call: input (all of it), output (all of it), cache read, written for 5 m, for 1 h,
# reasoning (of the output), searches. A k is a thousand; 0 is a dot.
TABLE = """
model                terms      day            in      out   read  w5m   w1h   think search
claude-opus-5-5      -          2026-11-20     10k     2k    .     .     .     .     .
claude-opus-5-5      -          2026-11-20     90k     2k    80k   .     .     .     .
claude-opus-5-5      -          2026-11-20     90k     2k    .     80k   .     .     .
claude-opus-5-5      -          2026-11-20     90k     2k    .     .     80k   .     .
claude-opus-5-5      -          2026-11-20     90k     2k    40k   20k   10k   1k    3
claude-opus-5-5      batch      2026-11-20     10k     2k    .     .     .     .     .
claude-opus-5-5      batch      2026-11-20     90k     2k    40k   20k   10k   1k    .
claude-opus-5-5      batch      2026-10-14     90k     2k    40k   20k   10k   1k    2
claude-opus-5-5      fast       2026-11-20     10k     2k    .     .     .     .     .
claude-opus-5-5      fast       2026-11-20     90k     2k    40k   20k   10k   1k    .
claude-opus-5        -          2026-11-20     50k     5k    20k   .     .     2k    .
claude-opus-5        batch      2026-11-20     50k     5k    20k   .     9k    2k    .
claude-opus-5        fast       2026-11-20     50k     5k    20k   9k    .     2k    .
claude-sonnet-5-5    -          2026-11-20     1200    300   1000  .     .     .     .
claude-sonnet-5-5    -          2026-11-20     1       1     .     .     .     .     .
claude-sonnet-5-5    -          2026-11-20     900k    60k   100k  300k  200k  50k   .
claude-sonnet-5-5    batch      2026-11-20     900k    60k   100k  300k  200k  50k   .
claude-sonnet-5-5    batch      2026-11-20     3       1     1     1     1     .     .
claude-haiku-5-5     -          2026-11-20     100k    1k    .     .     .     .     .
claude-haiku-5-5     -          2026-11-20     100001  1k    .     .     .     .     .
claude-haiku-5-5     -          2026-11-20     200k    1k    90k   50k   50k   .     .
claude-haiku-5-5     batch      2026-11-20     100k    1k    90k   5k    5k    .     .
claude-haiku-5-5     batch      2026-11-20     100001  1k    90k   5k    5k    .     .
claude-haiku-4-5     -          2026-11-20     40k     4k    30k   .     5k    .     1
claude-haiku-4-5     batch      2026-11-20     40k     4k    30k   .     5k    .     .
claude-sonnet-4-5    -          2026-11-20     200k    4k    .     .     .     .     .
claude-sonnet-4-5    -          2026-11-20     200001  4k    50k   50k   .     .     .
claude-sonnet-4-5    batch      2026-11-20     200001  4k    50k   50k   50k   .     .
claude-sonnet-4-6    -          2026-11-20     30k     4k    .     .     9k    .     .
claude-3-haiku-20240307  -      2025-06-01     30k     4k    9k    9k    .     .     .
gpt-5                -          2026-11-20     10k     1k    4k    .     .     800   .
gpt-5                default    2026-11-20     10k     1k    4k    .     .     800   .
gpt-5                flex       2026-11-20     10k     1k    4k    .     .     800   .
gpt-5                priority   2026-11-20     10k     1k    4k    .     .     800   .
gpt-5                batch      2026-11-20     10k     1k    4k    .     .     800   .
gpt-5-mini           -          2025-12-01     10k     1k    .     .     .     .     .
gpt-5-mini           batch      2026-11-20     10k     1k    .     .     .     .     .
gpt-5.4              -          2026-11-20     272k    1k    72k   .     .     .     .
gpt-5.4              -          2026-11-20     272001  1k    72k   .     .     .     .
gpt-5.4              flex       2026-11-20     272k    1k    72k   .     .     .     .
gpt-5.4              flex       2026-11-20     272001  1k    72k   .     .     .     .
gpt-5.4              batch      2026-11-20     272001  1k    72k   .     .     .     .
gpt-5.4              priority   2026-11-20     272001  1k    72k   .     .     .     .
gpt-5.6-sol          -          2026-08-20     10k     1k    .     .     .     .     .
gpt-5.6-sol          -          2026-08-21     10k     1k    .     .     .     .     .
gpt-5.6-sol          flex       2026-11-20     10k     1k    .     2k    .     .     .
gpt-6-sol            -          2026-11-20     300k    1k    99k   99k   .     500   .
gpt-6-sol            flex       2026-11-20     300k    1k    99k   99k   .     500   .
gpt-6-sol            priority   2026-11-20     300k    1k    99k   99k   .     500   .
gpt-6-sol            batch      2026-11-20     300k    1k    99k   99k   .     500   .
gpt-6-astra          -          2026-11-20     10k     1k    .     5k    .     500   4
gpt-6-astra          flex       2026-11-20     10k     1k    .     5k    .     500   .
gpt-6-astra          priority   2026-11-20     10k     1k    .     5k    .     500   .
gpt-6-astra          batch      2026-11-20     10k     1k    .     5k    .     500   .
gpt-4.1              priority   2026-11-20     10k     1k    5k    .     .     .     .
gpt-4o               -          2026-11-20     10k     1k    5k    .     .     .     .
gpt-4o               batch      2026-11-20     10k     1k    5k    .     .     .     .
o3                   -          2025-06-01     10k     1k    .     .     .     900   .
o3                   -          2026-11-20     10k     1k    .     .     .     900   .
o3                   flex       2026-11-20     10k     1k    .     .     .     900   .
gemini-2.5-pro       -          2026-11-20     200k    2k    50k   .     .     .     .
gemini-2.5-pro       -          2026-11-20     200001  2k    50k   .     .     .     1
gemini-2.5-pro       batch      2026-11-20     200001  2k    50k   .     .     .     .
gemini-2.5-flash     -          2026-11-20     10k     2k    5k    .     .     1k    .
gemini-2.5-flash     batch      2026-11-20     10k     2k    .     .     .     1k    .
gemini-3.8-flash     batch      2026-11-20     10k     2k    .     .     .     .     .
mistral-large-2512   -          2026-11-20     10k     2k    .     .     .     .     .
mistral-large-2512   batch      2026-11-20     10k     2k    .     .     .     .     .
deepseek-chat        -          2026-11-20     10k     2k    5k    .     .     .     .
grok-4.3             -          2026-11-20     201k    2k    5k    .     .     .     .
grok-4.3             batch      2026-11-20     10k     2k    .     .     .     .     .
"""
CONTEXTS = {  # how genai-prices wants it to be said
    "-": None,
    "batch": {"processing": "batch"},
    "fast": {"speed": "fast"},
    "default": {"service_tier": "default"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}


class Case(NamedTuple):
    """One line of the table."""

    model: str
    terms: str
    at: datetime
    usage: Usage


def _case(line: str) -> Case:
    model, terms, day, *counts = line.split()
    numbers = [0 if count == "." else int(count.replace("k", "000")) for count in counts]
    return Case(model, terms, datetime.fromisoformat(day).replace(hour=12, tzinfo=UTC), Usage(*numbers))


CASES = [_case(line) for line in TABLE.strip().splitlines()[1:]]


def asked(case: Case) -> Decimal:
    """What genai-prices answers."""
    counts = catalogued(case.usage)
    context = CONTEXTS[case.terms]
    return genai_prices.calc_price(counts, case.model, genai_request_timestamp=case.at, price_context=context).total_price


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model} {case.terms} {case.at:%m-%d} {case.usage.input_tokens}")
def test_a_cost_is_what_the_catalogue_answers_when_it_is_asked_right(case: Case) -> None:
    batch, speed = case.terms == "batch", "fast" if case.terms == "fast" else None
    tier = case.terms if case.terms in ("default", "flex", "priority") else None
    cost = tbl.cost(case.usage, model=case.model, at=case.at, batch=batch, tier=tier, speed=speed, prices=tbl.Prices())
    assert cost == asked(case) > 0


def test_the_page_about_prices_runs_as_it_is_printed() -> None:
    page = Path(__file__).parent.parent / "docs" / "prices.md"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testfile(str(page), module_relative=False, optionflags=flags).failed == 0


@pytest.mark.parametrize("terms", ["batch", "fast", "flex", "priority"])
def test_terms_are_never_priced_as_the_standard(terms: str) -> None:
    """Each line of the table with terms costs something else than the same call without."""
    same = [case for case in CASES if case.terms == terms and asked(case) == asked(case._replace(terms="-"))]
    assert same == []


def test_the_table_covers_every_dimension() -> None:
    """Sixty calls: models of six sellers, all terms, all kinds of tokens, steps in time and size."""
    assert len(CASES) >= 60
    assert len({case.model for case in CASES}) >= 20
    assert {case.terms for case in CASES} == set(CONTEXTS)
    prices = tbl.Prices()
    assert {prices.provider(case.model) for case in CASES} >= {"anthropic", "openai", "google", "mistral", "deepseek", "x-ai"}
    kinds = ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "reasoning_tokens", "web_searches")
    for kind in kinds:
        assert {case.terms for case in CASES if getattr(case.usage, kind)} >= {"-", "batch"}, kind
    for terms in ("-", "batch", "flex", "priority"):
        context = terms_of(tier=None if terms == "-" else terms).context
        same = [case for case in CASES if case.terms == terms]
        assert any(prices.quote(each.usage, each.model, at=each.at, context=context).above for each in same), terms
    by_day = {(case.model, case.usage, case.terms): set() for case in CASES}  # type: ignore[var-annotated] # costs
    for case in CASES:
        by_day[case.model, case.usage, case.terms].add(asked(case))
    assert sum(len(costs) > 1 for costs in by_day.values()) >= 2  # the same call on two days
