"""Budgets: made, got, limited, closed."""

from __future__ import annotations

from decimal import Decimal

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Home, Log
from tokenbudget_lab import decide
from tokenbudget_lab.commands import CloseBudget, GetBudget, SetBudget, SetLimit
from tokenbudget_lab.events import from_detail

# --- made and got --------------------------------------------------------------------------------------------------------


def test_making_a_budget_is_an_event_with_its_limits(ledger: tbl.Ledger, log: Log) -> None:
    """All that was said of it.

    limit     $5 and 1,000 tokens, per month in Berlin; alert at 80 %
    """
    ledger.budget("lab", usd=5, tokens=1000, window="month", tz="Europe/Berlin", alerts=[0.8])
    made = from_detail(log.last("budget_set"))
    assert (made["caps"], made["tz"], made["alerts"]) == ([["month", 5 * 10**12, 1000, None]], "Europe/Berlin", [0.8])


def test_the_same_limits_again_get_the_budget_and_write_nothing(ledger: tbl.Ledger, log: Log) -> None:
    """However they are written.

    limit     $5.00 in all and $1 per day
    limit     $1 per day and "5"
    """
    first = ledger.budget("lab", limits=[tbl.Limit(usd="5.00"), tbl.Limit(usd=1, window="day")])
    again = ledger.budget("lab", limits=[tbl.Limit(usd=1, window="day"), tbl.Limit(usd=Decimal(5))])
    assert (first, hash(first), log.kinds) == (again, hash(again), ["budget_set"])


def test_a_budget_without_limits_given_is_got(ledger: tbl.Ledger, log: Log) -> None:
    ledger.budget("lab", usd=5)
    assert ledger.budget("lab").balance.limit_usd == 5
    assert log.kinds == ["budget_set"]


def test_an_unknown_budget_is_an_error_that_knows_the_nearest_names(ledger: tbl.Ledger, log: Log) -> None:
    ledger.budget("prompt-study", usd=5)
    with pytest.raises(tbl.UnknownBudget) as unknown:
        ledger.budget("promt-study")
    assert (unknown.value.budget, unknown.value.nearest) == ("promt-study", ("prompt-study",))
    assert log.kinds == ["budget_set"]


@pytest.mark.parametrize(
    "other",
    [
        {"usd": 6, "window": "day", "tz": "Europe/Berlin", "alerts": [0.8]},
        {"usd": 5, "window": "week", "tz": "Europe/Berlin", "alerts": [0.8]},
        {"usd": 5, "window": "day", "tz": "UTC", "alerts": [0.8]},
        {"usd": 5, "window": "day", "tz": "Europe/Berlin", "alerts": [0.9]},
        {"usd": 5, "tokens": 1, "window": "day", "tz": "Europe/Berlin", "alerts": [0.8]},
        {"limits": [], "tz": "Europe/Berlin"},
    ],
    ids=["amount", "window", "zone", "alerts", "resource", "none"],
)
def test_other_limits_for_a_budget_that_exists_are_refused(ledger: tbl.Ledger, log: Log, other: dict[str, object]) -> None:
    """Running a cell again never changes a limit.

    limit     $5 per day in Berlin, alert at 80 %
    limit     something else  refused
    """
    lab = ledger.budget("lab", usd=5, window="day", tz="Europe/Berlin", alerts=[0.8])
    before = lab.balance.limits
    with pytest.raises(tbl.BudgetDiffers) as differs:
        ledger.budget("lab", **other)  # type: ignore[arg-type] # keyword arguments of many types
    assert differs.value.existing == "$5.00 per day (Europe/Berlin), alerts at 80%"
    assert (lab.balance.limits, log.kinds) == (before, ["budget_set"])


def test_a_budget_needs_its_parent(ledger: tbl.Ledger, log: Log) -> None:
    with pytest.raises(tbl.ParentMissing) as missing:
        ledger.budget("lab/study", usd=5)
    assert (missing.value.budget, log.kinds) == ("lab", [])


def test_a_closed_budget_gets_no_children(ledger: tbl.Ledger, log: Log) -> None:
    """Wherever on the way up it was closed.

    close     lab
    limit     lab/study/run  refused, for lab
    """
    ledger.budget("lab", usd=5)
    ledger.budget("lab/study", usd=5)
    ledger.budget("lab").close()
    with pytest.raises(tbl.BudgetClosed) as closed:
        ledger.budget("lab/study/run", usd=5)
    assert (closed.value.budget, log.kinds) == ("lab", ["budget_set", "budget_set", "closed"])


def test_a_budget_may_be_limited_by_its_ancestors_only(ledger: tbl.Ledger) -> None:
    """An empty list is a limit list too.

    limit     lab $1, lab/study nothing
    reserve   lab/study $2  refused by lab
    """
    ledger.budget("lab", usd=1)
    study = ledger.budget("lab/study", limits=[])
    with pytest.raises(tbl.BudgetExceeded) as refused:
        study.reserve_sync(usd=2)
    assert (refused.value.budget, study.balance.limit_usd, study.balance.left_usd) == ("lab", None, Decimal(1))


def test_making_a_budget_is_decided_once_however_often_it_is_sent(ledger: tbl.Ledger, log: Log) -> None:
    """The answer was lost, the limit raised since, the command sent again: it still was its making.

    limit     $5
    set_limit $7
    limit     $5  the same command
    """
    command = SetBudget(ledger.new_id(), "lab", (("", 5 * 10**12, None, None),), "UTC")
    first = ledger.ask(command)
    ledger.budget("lab").set_limit(usd=7)
    again = ledger.ask(command)
    assert (first[0], first[-1]) == (again[0], again[-1]) == ("lab", True)
    assert (ledger.budget("lab").balance.limit_usd, log.kinds) == (Decimal(7), ["budget_set", "budget_set"])


def test_the_id_of_a_budget_makes_no_second_one(ledger: tbl.Ledger, log: Log) -> None:
    """One id, two contents.

    limit     lab $5
    limit     lap $5  the same id
    """
    command = SetBudget(ledger.new_id(), "lab", (("", 5 * 10**12, None, None),), "UTC")
    ledger.ask(command)
    with pytest.raises(tbl.IdConflict):
        ledger.ask(command._replace(budget="lap"))
    assert log.kinds == ["budget_set"]


# --- read ----------------------------------------------------------------------------------------------------------------


def test_budgets_are_listed_by_name_all_or_below_one(ledger: tbl.Ledger) -> None:
    for name in ("lab", "lab/b", "lab/a", "lab/a/x", "labour"):
        ledger.budget(name, usd=1)
    assert [b.budget for b in ledger.budgets()] == ["lab", "lab/a", "lab/a/x", "lab/b", "labour"]
    assert [b.budget for b in ledger.budgets("lab/a")] == ["lab/a", "lab/a/x"]
    with pytest.raises(tbl.UnknownBudget):
        ledger.budgets("lav")


@pytest.mark.parametrize("page", [1, 2, 3, 4, 7, 10, 16, 17, 18])
def test_more_budgets_than_one_answer_holds_are_listed_all_the_same(
    ledger: tbl.Ledger, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Each once and in order, wherever an answer ends.

    lab       a budget, and two below it
    other     a budget, and two below it
    """
    names = ["lab", "lab/a", "lab/b", "other", "other/a", "other/b"]
    for name in names:
        ledger.budget(name, limits=[tbl.Limit(usd=1), tbl.Limit(tokens=10, window="day")])
    monkeypatch.setattr(decide, "PAGE", page)
    assert [b.budget for b in ledger.budgets()] == names
    assert [b.budget for b in ledger.budgets("other")] == names[3:]


def test_left_is_what_the_tightest_limit_on_the_way_up_leaves(ledger: tbl.Ledger) -> None:
    """Tightest is what is used most, in proportion.

    limit     lab $1, lab/study $5, of which $3 per day
    reserve   $0.80
    """
    ledger.budget("lab", usd=1)
    study = ledger.budget("lab/study", limits=[tbl.Limit(usd=5), tbl.Limit(usd=3, window="day")])
    study.reserve_sync(usd="0.80")
    balance = study.balance
    assert (balance.left_usd, balance.left_by, balance.window_ends) == (Decimal("0.2"), "lab", None)
    assert (balance.limit_usd, balance.reserved_usd, balance.calls_in_flight) == (Decimal(3), Decimal("0.8"), 1)


def test_asking_for_an_unknown_budget_is_an_error_in_each_way(ledger: tbl.Ledger, log: Log) -> None:
    nobody = tbl.Budget(ledger, "nobody")
    for ask in (
        lambda: nobody.balance,
        lambda: nobody.reserve_sync(usd=1),
        lambda: nobody.set_limit(usd=1),
        nobody.close,
        lambda: nobody.record(usd=1).result(),
        lambda: ledger.ask(GetBudget(ledger.new_id(), "nobody")),
    ):
        with pytest.raises(tbl.UnknownBudget):
            ask()
    assert log.kinds == []


# --- limited ---------------------------------------------------------------------------------------------------------------


def test_a_new_limit_is_an_event_with_its_reason_and_leaves_what_is_spent_and_held(ledger: tbl.Ledger, log: Log) -> None:
    """The balance goes on under it.

    limit     $1
    commit    $0.25
    reserve   $0.50
    set_limit $2, for reviewer 2
    """
    lab = ledger.budget("lab", usd=1)
    with lab.reserve(usd=1) as call:
        call.commit(usd="0.25")
    lab.reserve_sync(usd="0.50")
    balance = lab.set_limit(usd=2, reason="reviewer 2")
    assert (balance.limit_usd, balance.committed_usd, balance.reserved_usd) == (Decimal(2), Decimal("0.25"), Decimal("0.5"))
    assert from_detail(log.last("budget_set"))["reason"] == "reviewer 2"


def test_the_same_limit_again_writes_nothing(ledger: tbl.Ledger, log: Log) -> None:
    ledger.budget("lab", usd=1, tokens=10).set_limit(usd="1.00")
    assert log.kinds == ["budget_set"]


def test_a_limit_below_what_is_spent_and_held_refuses_every_further_reserve(ledger: tbl.Ledger, log: Log) -> None:
    """Nothing is taken back, and nothing more is given.

    limit     1000 tokens
    commit    300
    reserve   300
    set_limit 500
    reserve   1  refused
    """
    lab = ledger.budget("lab", tokens=1000)
    lab.record(tokens=300).result()
    held = lab.reserve_sync(tokens=300)
    assert lab.set_limit(tokens=500).left_tokens == -100
    with pytest.raises(tbl.BudgetExceeded):
        lab.reserve_sync(tokens=1)
    held.commit(tokens=300).result()
    assert (lab.balance.committed_tokens, log.kinds[-1]) == (600, "committed")


def test_what_is_not_given_stays(ledger: tbl.Ledger) -> None:
    """Each limit is set by itself.

    limit     $1, 10 tokens; 5 requests per day
    set_limit 20 tokens in all
    set_limit 6 requests per day
    """
    lab = ledger.budget("lab", limits=[tbl.Limit(usd=1, tokens=10), tbl.Limit(requests=5, window="day")])
    lab.set_limit(tokens=20)
    lab.set_limit(requests=6, window="day")
    assert {(limit.resource, limit.window): limit.limit for limit in lab.balance.limits} == {
        ("usd", ""): 1,
        ("tokens", ""): 20,
        ("requests", "day"): 6,
    }


def test_a_budget_with_one_window_needs_not_be_told_which(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", usd=1, window="day")
    lab.set_limit(usd=2)
    assert [(limit.window, limit.limit) for limit in lab.balance.limits] == [("day", 2)]


@pytest.mark.parametrize(("made", "given"), [("day", "month"), ("day", None), (None, "day")])
def test_windows_are_fixed_when_a_budget_is_made(ledger: tbl.Ledger, log: Log, made: str | None, given: str | None) -> None:
    lab = ledger.budget("lab", usd=1, window=made)
    with pytest.raises(tbl.WindowFixed):
        lab.set_limit(usd=2, window=given)  # type: ignore[arg-type] # a literal, from a parameter
    assert log.kinds == ["budget_set"]


def test_a_closed_budget_takes_no_limit(ledger: tbl.Ledger, log: Log) -> None:
    """Nor does what is below it."""
    lab, study = ledger.budget("lab", usd=1), ledger.budget("lab/study", usd=1)
    lab.close()
    for budget in (lab, study):
        with pytest.raises(tbl.BudgetClosed) as closed:
            budget.set_limit(usd=2)
        assert closed.value.budget == "lab"
    assert log.kinds == ["budget_set", "budget_set", "closed"]


def test_a_limit_is_set_once_however_often_it_is_sent(ledger: tbl.Ledger, log: Log) -> None:
    """Even after it was changed again, and after the budget was closed.

    set_limit $2
    set_limit $3
    set_limit $2  the same command as the first
    close
    set_limit $2  the same command as the first
    """
    lab = ledger.budget("lab", usd=1)
    command = SetLimit(ledger.new_id(), "lab", None, 2 * 10**12, None, None)
    ledger.ask(command)
    lab.set_limit(usd=3)
    ledger.ask(command)
    assert lab.balance.limit_usd == 3
    lab.close()
    ledger.ask(command)
    assert log.kinds == ["budget_set", "budget_set", "budget_set", "closed"]


@pytest.mark.parametrize("other", [{"usd": 4 * 10**12}, {"tokens": 5}, {"budget": "lap"}, {"window": "day"}])
def test_the_id_of_a_limit_takes_no_other_content(ledger: tbl.Ledger, log: Log, other: dict[str, object]) -> None:
    for name in ("lab", "lap"):
        ledger.budget(name, limits=[tbl.Limit(usd=1), tbl.Limit(usd=1, window="day")])
    command = SetLimit(ledger.new_id(), "lab", "", 2 * 10**12, None, None)
    ledger.ask(command)
    with pytest.raises(tbl.IdConflict):
        ledger.ask(command._replace(**other))  # type: ignore[arg-type] # fields of many types
    assert log.kinds == ["budget_set"] * 3


# --- closed ----------------------------------------------------------------------------------------------------------------


def test_closing_refuses_reserves_in_the_whole_subtree_and_nowhere_else(ledger: tbl.Ledger, log: Log) -> None:
    """Ancestors and siblings go on.

    close     lab/study
    reserve   lab/study, lab/study/run  refused
    reserve   lab, lab/other
    """
    for name in ("lab", "lab/study", "lab/study/run", "lab/other"):
        ledger.budget(name, usd=1)
    ledger.budget("lab/study").close()
    for name in ("lab/study", "lab/study/run"):
        with pytest.raises(tbl.BudgetClosed) as closed:
            ledger.budget(name).reserve_sync(usd="0.1")
        assert closed.value.budget == "lab/study"
        assert ledger.budget(name).balance.closed
    for name in ("lab", "lab/other"):
        ledger.budget(name).reserve_sync(usd="0.1")
    assert log.kinds == ["budget_set"] * 4 + ["closed", "reserved", "reserved"]


def test_a_closed_budget_still_counts_what_is_known_to_be_spent(ledger: tbl.Ledger) -> None:
    """Open holds end normally; what is recorded or corrected later is no less gone.

    reserve   a 100, b 100, c 100
    close
    commit    a 90
    rollback  b
    extend    c
    record    50
    adjust    a 80
    """
    lab = ledger.budget("lab", tokens=1000)
    a, b, c = (lab.reserve_sync(tokens=100) for _ in range(3))
    lab.close()
    a.commit(tokens=90).result()
    assert b.rollback().result() == "rolled_back"
    assert c.extend_sync(3600) is not None
    lab.record(tokens=50).result()
    lab.adjust(a, tokens=80).result()
    assert (lab.balance.committed_tokens, lab.balance.reserved_tokens) == (130, 100)


def test_closing_twice_is_closing_once(ledger: tbl.Ledger, log: Log) -> None:
    lab = ledger.budget("lab", usd=1)
    assert lab.close().close() is lab
    command = CloseBudget(ledger.new_id(), "lab")
    assert ledger.ask(command) == ledger.ask(command) == ("lab",)
    assert log.kinds == ["budget_set", "closed"]


def test_a_budget_stays_closed_when_the_ledger_is_opened_again(ledger: tbl.Ledger, home: Home) -> None:
    ledger.budget("lab", usd=1).close()
    with pytest.raises(tbl.BudgetClosed):
        home.reopen().budget("lab").reserve_sync(usd=1)


def test_a_budget_says_how_it_stands(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", tokens=10_000, requests=5)
    lab.record(tokens=2500).result()
    lab.reserve_sync(tokens=500)
    lab.close()
    assert repr(lab) == (
        "Budget(lab: 2,500 tokens committed, 500 reserved · 7,000 of 10,000 tokens left · 3 of 5 requests left · "
        "1 in flight · closed)"
    )
