"""What a call amounts to: one row from hold to outcome, and the same numbers as the balances."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Clock, also_on_postgres
from tokenbudget_lab.commands import Commit, GetEntry
from tokenbudget_lab.stores.memory import MemoryStore

STORES = ON_ONE_MACHINE

ONE_CENT = 10**10  # pico-dollars


def only_call(ledger: tbl.Ledger) -> dict[str, Any]:
    """The one row of calls."""
    return ledger.calls().collect().row(0, named=True)


def commit_part(ledger: tbl.Ledger, call: tbl.Reservation, part: str, cents: int | None, basis: str = "measured") -> None:
    """Commit one item of a batch."""
    usd = None if cents is None else cents * ONE_CENT
    ledger.ask(Commit(ledger.new_id(), call.id, usd, 10, 1, basis, input_tokens=7, output_tokens=3, part=part))


# --- how it ended --------------------------------------------------------------------------------------------------------


def test_a_committed_call_costs_what_it_used(ledger: tbl.Ledger, clock: Clock) -> None:
    """From hold to outcome.

    reserve   $0.30, 500 tokens
    commit    $0.10, 120 tokens   two seconds later
    """
    lab = ledger.budget("lab", usd=1)
    start = clock.now
    call = lab.reserve_sync(usd="0.30", tokens=500, key="row-1", tags={"arm": "b"}, timeout=60)
    clock.advance(2)
    call.commit(tbl.Usage(100, 20, cache_read_tokens=50), usd="0.10", response_id="msg_1").result()
    row = only_call(ledger)
    assert (row["state"], row["budget"], row["reservation"], row["key"]) == ("committed", "lab", call.id, "row-1")
    assert (row["held_usd"], row["held_tokens"], row["cost_usd"], row["tokens"]) == (Decimal("0.3"), 500, Decimal("0.1"), 120)
    assert (row["input_tokens"], row["output_tokens"], row["cache_read_tokens"]) == (100, 20, 50)
    assert (row["reserved"], row["ended"], row["latency_s"]) == (start, start + timedelta(seconds=2), 2.0)
    assert (row["basis"], row["response_id"], row["late"], row["overrun"]) == ("measured", "msg_1", False, False)
    assert row["expires"] == start + timedelta(seconds=60)


def test_an_open_call_has_cost_nothing_yet_and_that_is_not_zero(ledger: tbl.Ledger) -> None:
    ledger.budget("lab", usd=1).reserve_sync(usd="0.30")
    row = only_call(ledger)
    assert (row["state"], row["cost_usd"], row["tokens"], row["ended"], row["latency_s"]) == ("open", None, None, None, None)
    assert (row["reserved_usd"], row["reserved_tokens"], row["reserved_requests"]) == (Decimal("0.3"), None, 1)


@pytest.mark.parametrize(
    ("if_lost", "end", "state", "cost", "basis"),
    [
        ("count", "rollback", "rolled_back", None, None),
        ("count", "lose", "counted", Decimal("0.3"), "unknown"),
        ("release", "lose", "released", None, None),
    ],
)
def test_a_call_without_a_commit_costs_what_was_counted_for_it(
    ledger: tbl.Ledger, if_lost: Any, end: str, state: str, cost: Decimal | None, basis: str | None
) -> None:
    call = ledger.budget("lab", usd=1).reserve_sync(usd="0.30", if_lost=if_lost)
    getattr(call, end)().result()
    row = only_call(ledger)
    assert (row["state"], row["cost_usd"], row["basis"], row["reserved_usd"]) == (state, cost, basis, None)


@pytest.mark.parametrize("if_lost", ["count", "release"])
@also_on_postgres
def test_a_late_commit_is_what_counts(ledger: tbl.Ledger, clock: Clock, if_lost: Any) -> None:
    """It replaces what the expiry counted, and what was adjusted meanwhile.

    reserve   $0.30   expires after 10 s
    expired
    adjust    $0.25   only where the expiry counted
    commit    $0.40
    """
    lab = ledger.budget("lab", usd=1)
    call = lab.reserve_sync(usd="0.30", timeout=10, if_lost=if_lost)
    clock.advance(11)
    if if_lost == "count":
        lab.adjust(call, usd="0.25").result()
        assert only_call(ledger)["cost_usd"] == Decimal("0.25")
    clock.advance(1)
    call.commit(usd="0.40").result()
    row = only_call(ledger)
    assert (row["state"], row["cost_usd"], row["basis"]) == ("committed", Decimal("0.4"), "measured")
    assert (row["late"], row["overrun"], row["latency_s"]) == (True, True, 12.0)
    assert lab.balance.committed_usd == Decimal("0.4")


@also_on_postgres
def test_an_adjustment_replaces_the_amounts_that_it_names(ledger: tbl.Ledger) -> None:
    """The tokens stay; the last of two adjustments counts."""
    lab = ledger.budget("lab", usd=10)
    call = lab.reserve_sync(usd=1, tokens=100)
    call.commit(usd="0.5", tokens=60, basis="estimated").result()
    assert only_call(ledger)["basis"] == "estimated"
    lab.adjust(call, usd="0.9").result()
    lab.adjust(call, usd="0.7").result()
    row = only_call(ledger)
    assert (row["state"], row["cost_usd"], row["tokens"], row["basis"]) == ("committed", Decimal("0.7"), 60, "measured")


def test_a_call_without_a_price_has_no_cost(ledger: tbl.Ledger) -> None:
    with ledger.budget("lab", tokens=100).reserve(tokens=50) as call:
        call.commit(tokens=40)
    row = only_call(ledger)
    assert (row["cost_usd"], row["tokens"], row["basis"]) == (None, 40, "measured")


def test_a_late_commit_without_a_price_has_no_cost_either(ledger: tbl.Ledger, clock: Clock) -> None:
    """What was adjusted before does not shine through.

    reserve   50 tokens   expires after 10 s, and is counted
    adjust    $0.10
    commit    40 tokens
    """
    lab = ledger.budget("lab", tokens=100)
    call = lab.reserve_sync(tokens=50, timeout=10, if_lost="count")
    clock.advance(11)
    lab.adjust(call, usd="0.10").result()
    call.commit(tokens=40).result()
    row = only_call(ledger)
    assert (row["cost_usd"], row["tokens"]) == (None, 40)
    assert (lab.balance.committed_usd, lab.balance.unpriced_calls) == (Decimal(0), 1)


def test_a_record_was_spent_when_it_says(ledger: tbl.Ledger, clock: Clock) -> None:
    """Written now, of last week; nobody knows how long it took."""
    then = clock.now - timedelta(days=7)
    ledger.budget("lab", usd=1).record(usd="0.2", tokens=30, at=then).result()
    row = only_call(ledger)
    assert (row["state"], row["spent_at"], row["reserved"]) == ("recorded", then, clock.now)
    assert (row["cost_usd"], row["tokens"], row["held_usd"], row["latency_s"]) == (Decimal("0.2"), 30, None, None)


def test_what_has_no_other_moment_was_spent_when_it_was_reserved(ledger: tbl.Ledger, clock: Clock) -> None:
    ledger.budget("lab", usd=1).reserve_sync(usd="0.2")
    assert only_call(ledger)["spent_at"] == clock.now


@also_on_postgres
def test_the_parts_of_a_batch_add_up(ledger: tbl.Ledger) -> None:
    """A batch holds a dollar; two items are committed, then the rest, and then the invoice comes.

    reserve   $1.00
    part a    $0.20
    part b    $0.10   estimated
    commit    $0.30
    adjust    $0.55   for all of it
    """
    lab = ledger.budget("lab", usd=10)
    call = lab.reserve_sync(usd=1, tokens=100)
    commit_part(ledger, call, "a", 20)
    commit_part(ledger, call, "b", 10, "estimated")
    row = only_call(ledger)
    assert (row["state"], row["held_usd"], row["reserved_usd"], row["cost_usd"]) == (
        "open",
        Decimal(1),
        Decimal("0.7"),
        Decimal("0.3"),
    )
    assert (row["reserved_tokens"], row["tokens"], row["basis"]) == (80, 20, "estimated")
    call.commit(tbl.Usage(30, 10), usd="0.30").result()
    row = only_call(ledger)
    assert (row["state"], row["cost_usd"], row["tokens"], row["basis"]) == ("committed", Decimal("0.6"), 60, "estimated")
    assert (row["input_tokens"], row["output_tokens"], row["reserved_usd"]) == (44, 16, None)
    lab.adjust(call, usd="0.55").result()
    row = only_call(ledger)
    assert (row["cost_usd"], row["tokens"], row["requests"], row["basis"]) == (Decimal("0.55"), 60, 2, "measured")
    assert lab.balance.committed_usd == Decimal("0.55")


@also_on_postgres
def test_what_is_left_of_a_batch_is_counted_or_given_back(ledger: tbl.Ledger) -> None:
    """The item that is known stays counted, whatever becomes of the rest."""
    lab = ledger.budget("lab", usd=10)
    ends: Any = (("count", "counted", 1, "unknown"), ("release", "released", "0.2", "measured"))
    for if_lost, state, cost, basis in ends:
        call = lab.reserve_sync(usd=1, if_lost=if_lost)
        commit_part(ledger, call, "a", 20)
        call.lose().result()
        row = ledger.calls().collect().row(-1, named=True)
        assert (row["state"], row["cost_usd"], row["basis"]) == (state, Decimal(cost), basis)


def test_an_extension_moves_the_expiry(ledger: tbl.Ledger, clock: Clock) -> None:
    call = ledger.budget("lab", usd=10).reserve_sync(usd=1, timeout=10)
    clock.advance(5)
    call.extend_sync(100)
    assert only_call(ledger)["expires"] == clock.now + timedelta(seconds=100)


def test_alerts_and_refusals_are_no_calls(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", usd=1, alerts=[0.5])
    lab.reserve_sync(usd="0.9").commit(usd="0.9").result()
    with pytest.raises(tbl.BudgetExceeded):
        lab.reserve_sync(usd="0.9")
    assert {"alerted", "refused"} < set(ledger.events().collect()["kind"])
    assert ledger.calls().select("state", "budget").collect().rows() == [("committed", "lab")]


# --- the same numbers as the balances ------------------------------------------------------------------------------------

BUDGETS = ("lab", "lab/a", "lab/a/x", "lab/ab", "other")
amounts = st.fixed_dictionaries(
    {},
    optional={
        "usd": st.integers(0, 300).map(lambda n: Decimal(n) / 100),
        "tokens": st.integers(0, 99),
        "requests": st.integers(0, 3),
    },
).filter(bool)
Step = Callable[[tbl.Ledger, list[tbl.Reservation], list[int]], object]


def reserve(
    budget: str, held: dict[str, Any], if_lost: Any, ledger: tbl.Ledger, calls: list[tbl.Reservation], now: list[int]
) -> None:
    """Hold, for ten seconds."""
    calls.append(ledger.budget(budget).reserve_sync(**held, if_lost=if_lost, timeout=10))


def end(which: int, verb: str, used: dict[str, Any], ledger: tbl.Ledger, calls: list[tbl.Reservation], now: list[int]) -> None:
    """Do something to one of the calls so far."""
    if not calls:
        return
    call = calls[which % len(calls)]
    if verb == "adjust":
        ledger.budget(call.budget).adjust(call, **used).result()
    elif verb == "part":
        usd = None if "usd" not in used else int(used["usd"] * 100) * ONE_CENT
        ledger.ask(Commit(ledger.new_id(), call.id, usd, used.get("tokens"), used.get("requests"), "measured", part=str(which)))
    elif verb == "commit":
        call.commit(**used).result()
    else:
        getattr(call, verb)().result()


def record(budget: str, used: dict[str, Any], ledger: tbl.Ledger, calls: list[tbl.Reservation], now: list[int]) -> None:
    """Spend without a reservation."""
    ledger.budget(budget).record(**used).result()


def wait(seconds: int, ledger: tbl.Ledger, calls: list[tbl.Reservation], now: list[int]) -> None:
    """Let time pass."""
    now[0] += seconds * 1_000_000_000


verbs = st.sampled_from(["commit", "commit", "part", "part", "rollback", "lose", "adjust"])
steps = st.one_of(
    st.builds(
        partial,
        st.just(reserve),
        st.sampled_from(BUDGETS),
        amounts.filter(lambda held: any(held.values())),
        st.sampled_from(["count", "release"]),
    ),
    st.builds(partial, st.just(end), st.integers(0, 30), verbs, amounts),
    st.builds(partial, st.just(record), st.sampled_from(BUDGETS), amounts),
    st.builds(partial, st.just(wait), st.integers(1, 11)),
)


@settings(max_examples=25, deadline=None)
@given(history=st.lists(steps, min_size=20, max_size=60))
def test_calls_add_up_to_the_balances(history: list[Step]) -> None:
    """Whatever happened, each call is what the fold has, and over a budget and all below it they sum to its balance."""
    now, held = [10**18], list[tbl.Reservation]()
    with tbl.Ledger(store=MemoryStore(), clock_ns=lambda: now[0]) as ledger:
        for name in BUDGETS:
            ledger.budget(name, limits=[])
        for step in history:
            with suppress(tbl.Refused):  # a call that has ended does not end again
                step(ledger, held, now)
        balances = [ledger.budget(name).balance for name in BUDGETS]  # what is due expires here
        calls = ledger.calls().collect()
        for row in calls.iter_rows(named=True):
            assert of_the_fold(ledger, row["reservation"]) == of_the_frame(row)
        for balance in balances:
            below = calls.filter((pl.col("budget") == balance.budget) | pl.col("budget").str.starts_with(f"{balance.budget}/"))
            assert numbers(balance) == sums(below)
        shown = ledger.sql(f"select budget, {', '.join(NUMBERS)} from balances order by budget")  # noqa: S608 - names of our own
        assert shown.rows() == sorted((balance.budget, *numbers(balance)) for balance in balances)


NUMBERS = (
    "committed_usd",
    "committed_tokens",
    "committed_requests",
    "reserved_usd",
    "reserved_tokens",
    "reserved_requests",
    "calls_in_flight",
)


def numbers(balance: tbl.Balance) -> tuple[Any, ...]:
    """What a budget has committed and holds."""
    return tuple(getattr(balance, name) for name in NUMBERS)


def sums(calls: pl.DataFrame) -> tuple[Any, ...]:
    """The same from its calls."""
    columns = ("cost_usd", "tokens", "requests", "reserved_usd", "reserved_tokens", "reserved_requests")
    return (*(calls[name].sum() for name in columns), (calls["state"] == "open").sum())


def of_the_fold(ledger: tbl.Ledger, id: str) -> tuple[Any, ...]:
    """Budget, state, held and used, as the decisions have them."""
    _, budget, state, _, held, used = ledger.ask(GetEntry(ledger.new_id(), id))
    return (budget, state, *(held if state != "recorded" else (None, None, None)), *used)


def of_the_frame(row: dict[str, Any]) -> tuple[Any, ...]:
    """The same from a row of calls."""
    held = (pico(row["held_usd"]), row["held_tokens"], row["held_requests"])
    return (row["budget"], row["state"], *held, pico(row["cost_usd"]), row["tokens"], row["requests"])


def pico(usd: Decimal | None) -> int | None:
    """Integers, as the core counts."""
    return None if usd is None else int(usd.scaleb(12))
