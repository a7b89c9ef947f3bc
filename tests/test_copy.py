"""A ledger that moves from a file to PostgreSQL and back: the same events, the same chain, the same balances."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tokenbudget_lab as tbl
from tests import postgres
from tokenbudget_lab import copying
from tokenbudget_lab.cli.entry import app
from tokenbudget_lab.events import Event


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's keeper leaves at once."""
    monkeypatch.setenv("TOKENBUDGET_KEEPER_LINGER_S", "0")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A ledger with calls that ended in every way, one in flight, and money of many decimals."""
    path = tmp_path / "spend.duckdb"
    with tbl.connect(path, embedded=True) as ledger:
        ledger.budget("lab", usd=100, alerts=(0.001, 0.8), window="month", tz="Europe/Berlin")
        study = ledger.budget("lab/study", limits=[tbl.Limit(usd=50), tbl.Limit(tokens=10_000, window="day")])
        for n in range(30):
            held = study.reserve_sync(usd="0.25", tokens=100, key=f"row-{n}", tags={"item": f"„{n}“"})
            if n % 3:
                held.commit(usd="0.123456789012", tokens=90).result()
            elif n:
                held.rollback().result()
        study.record(usd="0.1", tokens=1).result()
        ledger.budget("closed", usd=1).close()
    return path


def events_of(where: str | Path) -> list[Event]:
    with tbl.connect(where) as ledger:
        return list(ledger.desk.events(10**9))


def test_there_and_back_every_event_is_the_same(file: Path, tmp_path: Path) -> None:
    """And the copy is spent from as the first one was."""
    url, back = postgres.ledger(), tmp_path / "back.duckdb"
    there = copying.copy(file, url)
    again = copying.copy(url, back)
    events = events_of(file)
    assert (there.events, again.events) == (len(events), len(events))
    assert events_of(url) == events == events_of(back)
    assert there.proof == again.proof
    with tbl.connect(url) as ledger:
        study = ledger.budget("lab/study")
        assert (study.balance.committed_usd, study.balance.calls_in_flight) == (Decimal("2.56913578024"), 1)
        same = study.reserve_sync(usd="0.25", tokens=100, key="row-0")
        same.commit(usd="0.2", tokens=100).result()
        with pytest.raises(tbl.BudgetClosed):
            ledger.budget("closed").reserve_sync(usd="0.1")
        ledger.verify()


@pytest.mark.parametrize("to_server", [True, False])
def test_a_copy_that_was_interrupted_goes_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, to_server: bool
) -> None:
    monkeypatch.setattr(copying, "CHUNK", 7)
    target: str | Path = postgres.ledger() if to_server else tmp_path / "back.duckdb"
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copying.copy(file, target, stop)
    whole = len(events_of(file))
    assert copying.copy(file, target).events == whole - seen[-1]
    assert copying.copy(file, target).events == 0
    assert events_of(target) == events_of(file)
    if to_server:  # by which processes know whether they have heard of all budgets
        heads = postgres.server().run("select budgets from tokenbudget.heads", str(target).partition("@/")[2].partition("?")[0])
        assert max(heads) == (max(e.seq for e in events_of(file) if e.kind in ("budget_set", "closed")),)


def test_another_ledger_is_never_written_into(file: Path, tmp_path: Path) -> None:
    url, other = postgres.ledger(), tmp_path / "other.duckdb"
    for where in (url, other):
        with tbl.connect(where, embedded=where == other) as ledger:
            ledger.budget("lab", usd=1)
        before = events_of(where)
        with pytest.raises(tbl.InvalidValue, match="another ledger"):
            copying.copy(file, where)
        assert events_of(where) == before


def test_a_copy_that_has_gone_on_by_itself_is_left_alone(file: Path) -> None:
    url = postgres.ledger()
    copying.copy(file, url)
    with tbl.connect(url) as ledger:
        ledger.budget("lab").record(usd="0.1").result()
    with tbl.connect(file) as ledger:
        ledger.budget("lab").record(usd="0.2").result()
        ledger.budget("lab").record(usd="0.2").result()
    with pytest.raises(tbl.InvalidValue, match="gone on by itself"):
        copying.copy(file, url)


def test_the_command_makes_the_ledger_and_says_that_it_is_sound(file: Path) -> None:
    url = postgres.ledger() + "-copy"
    done = CliRunner().invoke(app, ["copy", str(file), url])
    assert done.exit_code == 0, done.output
    assert "copied" in done.output
    assert "sound" in done.output
