"""Alerts: told once per budget, resource, window, limit and threshold."""

from __future__ import annotations

import logging
from decimal import Decimal

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Home, Log
from tokenbudget_lab.events import from_detail


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tokenbudget_lab")


def alerted(log: Log) -> list[tuple[str, str, float]]:
    """Budget, resource and threshold of each alert, in order."""
    details = [(e.budget, from_detail(e)) for e in log.events if e.kind == "alerted"]
    return [(budget, detail["resource"], detail["threshold"]) for budget, detail in details]


def test_a_charge_that_crosses_a_threshold_is_told_once(ledger: tbl.Ledger, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """As an event, a call of the callback, and a line in the log.

    limit     $1, alerts at 50 % and 80 %
    record    $0.49
    record    $0.01  50 %
    record    $0.20
    record    $0.20  80 %
    """
    told: list[tbl.Alert] = []
    ledger.on_alert(told.append)
    lab = ledger.budget("lab", usd=1, alerts=[0.8, 0.5])
    for usd in ("0.49", "0.01", "0.20", "0.20"):
        lab.record(usd=usd).result()
    assert alerted(log) == [("lab", "usd", 0.5), ("lab", "usd", 0.8)]
    assert [(a.budget, a.threshold, a.committed, a.limit) for a in told] == [
        ("lab", 0.5, Decimal("0.5"), Decimal(1)),
        ("lab", 0.8, Decimal("0.9"), Decimal(1)),
    ]
    assert [r.getMessage() for r in caplog.records] == [str(a) for a in told]
    assert str(told[0]) == "lab: 50% of $1.00 is spent ($0.50)"


def test_an_alert_of_a_small_limit_is_told_to_the_hundredth_of_a_cent(ledger: tbl.Ledger) -> None:
    """As the amounts beside it are."""
    told: list[tbl.Alert] = []
    ledger.on_alert(told.append)
    ledger.budget("lab", usd="0.05", alerts=[0.5]).record(usd="0.0282").result()
    assert [str(alert) for alert in told] == ["lab: 50% of $0.0500 is spent ($0.0282)"]


@pytest.mark.parametrize("end", ["commit", "late", "lose", "expire", "record", "adjust", "part"])
def test_whatever_is_counted_can_cross_a_threshold(ledger: tbl.Ledger, clock: Clock, log: Log, end: str) -> None:
    """An ancestor's too.

    limit     lab 100 tokens, alert at 50 %
    count     lab/study 60
    """
    ledger.budget("lab", tokens=100, alerts=[0.5])
    study = ledger.budget("lab/study", limits=[])
    if end in ("record", "adjust"):
        entry = study.record(tokens=60 if end == "record" else 10).result()
        assert isinstance(entry, tbl.Counted)
        if end == "adjust":
            study.adjust(entry.reservation, tokens=60).result()
    else:
        held = study.reserve_sync(tokens=60, if_lost="release" if end == "late" else "count", timeout=60)
        if end in ("late", "expire"):
            clock.advance(60)
        if end in ("commit", "late"):
            held.commit(tokens=60).result()
        elif end == "lose":
            held.lose().result()
        elif end == "part":
            commit = tbl.commands.Commit(ledger.new_id(), held.id, None, 60, 1, "measured", part="row-1")
            ledger.ask(commit)
    assert alerted(log) == [("lab", "tokens", 0.5)]


def test_what_is_only_held_is_no_alert(ledger: tbl.Ledger, log: Log) -> None:
    lab = ledger.budget("lab", tokens=100, alerts=[0.5])
    lab.reserve_sync(tokens=100).rollback().result()
    assert alerted(log) == []


def test_a_threshold_that_is_crossed_again_is_not_told_again(ledger: tbl.Ledger, log: Log, home: Home) -> None:
    """Not after a correction, not after the ledger was opened again.

    limit     100 tokens, alert at 50 %
    record    60  told
    adjust    40
    adjust    60
    close, open again
    record    1
    """
    lab = ledger.budget("lab", tokens=100, alerts=[0.5])
    entry = lab.record(tokens=60).result()
    assert isinstance(entry, tbl.Counted)
    for tokens in (40, 60):
        lab.adjust(entry.reservation, tokens=tokens).result()
    home.reopen().budget("lab").record(tokens=1).result()
    assert alerted(log) == [("lab", "tokens", 0.5)]


def test_a_new_window_and_a_new_limit_are_told_anew(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """Each for itself.

    limit     100 tokens per day, alert at 50 %
    record    50  told
    next day
    record    50  told
    set_limit 120
    record    10  told
    record    10
    """
    lab = ledger.budget("lab", tokens=100, window="day", alerts=[0.5])
    lab.record(tokens=50).result()
    clock.advance(86_400)
    lab.record(tokens=50).result()
    lab.set_limit(tokens=120)
    for _ in range(2):
        lab.record(tokens=10).result()
    marks = [from_detail(e) for e in log.events if e.kind == "alerted"]
    assert [(m["limit"], m["start"] > marks[0]["start"]) for m in marks] == [(100, False), (100, True), (120, True)]


def test_each_resource_and_each_budget_has_its_own(ledger: tbl.Ledger, log: Log) -> None:
    """One charge may cross many.

    limit     lab $1, 100 tokens; lab/study 50 tokens; alerts at 100 %
    record    lab/study $1, 100 tokens
    """
    ledger.budget("lab", usd=1, tokens=100, alerts=[1])
    study = ledger.budget("lab/study", tokens=50, alerts=[1.0])
    study.record(usd=1, tokens=100).result()
    assert alerted(log) == [("lab/study", "tokens", 1.0), ("lab", "usd", 1.0), ("lab", "tokens", 1.0)]


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_threshold_is_crossed_at_exactly_its_fraction(percent: int) -> None:
    """55 % of 100 tokens is 55 tokens, although 0.55 · 100 is more in floating point."""
    with tbl.connect(":memory:") as ledger:
        told: list[tbl.Alert] = []
        ledger.on_alert(told.append)
        lab = ledger.budget("lab", tokens=100, alerts=[percent / 100])
        lab.record(tokens=percent - 1).result()
        assert told == []
        lab.record(tokens=1).result()
        assert [alert.committed for alert in told] == [percent]


def test_an_alert_is_told_once_however_often_its_receipt_is_read(ledger: tbl.Ledger) -> None:
    """By result, and by leaving the block.

    limit     100 tokens, alert at 50 %
    commit    60, read twice, left
    """
    told: list[tbl.Alert] = []
    ledger.on_alert(told.append)
    with ledger.budget("lab", tokens=100, alerts=[0.5]).reserve(tokens=60) as call:
        receipt = call.commit(tokens=60)
        assert receipt.result() == receipt.result()
    assert len(told) == 1


def test_an_alert_whose_receipt_nobody_reads_is_told_by_the_next_verb(ledger: tbl.Ledger) -> None:
    """Or by closing.

    limit     100 tokens, alerts at 50 % and 100 %
    record    60, not read
    record    40, not read
    close
    """
    told: list[float] = []
    ledger.on_alert(lambda alert: told.append(alert.threshold))
    lab = ledger.budget("lab", tokens=100, alerts=[0.5, 1.0])
    lab.record(tokens=60)
    assert lab.balance.committed_tokens == 60
    lab.record(tokens=40)
    assert told == [0.5]
    ledger.close()
    assert told == [0.5, 1.0]
