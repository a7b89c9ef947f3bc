"""What a cell spent: its own calls, all of them, and nothing of what is not known taken for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab.cells import Ran, Spent, line, now, spent_by


@pytest.fixture
def ledger() -> Iterator[tbl.Ledger]:
    with tbl.connect(":memory:") as ledger:
        yield ledger


def test_a_call_belongs_to_the_cell_in_which_it_was_reserved(ledger: tbl.Ledger) -> None:
    """The first cell's call ends while the second runs; a thread's counts as any other."""
    study = ledger.budget("study", usd=5)
    first = Ran(1, now())
    call = study.reserve_sync(usd=1)
    first.ended = now()
    second = Ran(2, now())
    call.commit(usd="0.50", tokens=10).result()
    thread = threading.Thread(target=lambda: study.record(usd="0.25", tokens=5).result())
    thread.start()
    thread.join()
    assert spent_by([ledger], [first, second]) == [
        Spent(calls=1, tokens=10, cost_usd=Decimal("0.50")), Spent(calls=1, tokens=5, cost_usd=Decimal("0.25")),
    ]  # fmt: skip


def test_what_was_spent_between_two_cells_is_none_of_theirs(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", usd=5)
    first = Ran(1, now(), now())
    study.record(usd=1).result()
    assert [str(spent) for spent in spent_by([ledger], [first, Ran(2, now())])] == ["no calls", "no calls"]


def test_calls_of_another_origin_are_not_this_processs(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", usd=5)
    cell = Ran(1, now())
    ledger._direct.origin, mine = '{"user":"another"}', ledger._direct.origin
    study.record(usd=1).result()
    ledger._direct.origin = mine
    study.record(usd=2).result()
    assert spent_by([ledger], [cell])[0].cost_usd == 2


def test_calls_without_a_known_cost_are_not_said_to_cost_nothing(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", tokens=1000)
    cell = Ran(1, now())
    study.record(tbl.Usage(input_tokens=10, output_tokens=1), model="nobody-knows-it").result()
    assert str(spent_by([ledger], [cell])[0]) == "1 call, 11 tokens, cost unknown"


def test_calls_that_did_not_say_their_tokens_are_not_said_to_use_none(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", usd=5)
    cell = Ran(1, now())
    study.record(usd="0.5").result()
    assert str(spent_by([ledger], [cell])[0]) == "1 call, tokens unknown, $0.5000"
    study.record(usd="0.5", tokens=0).result()
    study.record(usd="0.5", tokens=9).result()
    assert str(spent_by([ledger], [cell])[0]).startswith("3 calls, 9 tokens (")


def test_what_is_open_refused_or_lost_is_said(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", usd=5)
    cell = Ran(1, now())
    study.record(usd="1.50", tokens=7).result()
    with pytest.raises(RuntimeError), study.reserve(usd=1, if_lost="count"):
        raise RuntimeError
    study.reserve_sync(usd=1)
    with pytest.raises(tbl.BudgetExceeded):
        study.reserve_sync(usd=3)
    assert line(study, cell) == (
        "study: 2 calls, 7 tokens (1 did not say), $2.50, $1.00 of it unknown, counted as held, 1 not ended yet, 1 refused "
        "in this cell · $1.50 of $5.00 left"
    )


def test_only_what_was_spent_in_the_cells_budget_is_in_its_line(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", usd=5)
    ledger.budget("lab/study", usd=5)
    ledger.budget("lab-two", usd=5)
    cell = Ran(1, now())
    for name in ("lab", "lab/study", "lab-two"):
        ledger.budget(name).record(usd=1).result()
    assert line(lab, cell).startswith("lab: 2 calls")


def test_a_ledger_that_is_gone_leaves_the_spend_unknown(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", usd=5)
    ledger.close()
    assert "what this cell spent is not known: the ledger :memory: is closed" in line(study, Ran(1, now()))
