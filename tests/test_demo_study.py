"""The demo: it ends within its cap, counts what it does not know, and leaves a sound ledger."""

import json
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tokenbudget_lab as tbl
from tests import postgres
from tokenbudget_lab import study


@pytest.fixture(scope="module", params=["duckdb", "postgres"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> study.Study:
    folder = tmp_path_factory.mktemp("demo")
    where = postgres.ledger() if request.param == "postgres" else str(folder / "demo.duckdb")
    with Console(record=True, width=80).capture() as _:
        return study.run(Console(quiet=True), where, embedded=True)


def test_the_study_ends_within_its_caps_and_is_refused_when_the_money_is_gone(report: study.Study) -> None:
    assert all(limit.left >= 0 for balance in report.balances for limit in balance.limits)
    assert sum(row.refused for row in report.conditions) > 0
    assert "requested" in report.refusal


def test_every_attempt_is_accounted_for(report: study.Study) -> None:
    """What was reserved counts, or was given back; what was refused was never reserved."""
    with tbl.connect(report.ledger, embedded=True) as ledger:
        reserved = ledger.sql("select count(*) as n from events where kind = 'reserved'")["n"][0]
    assert sum(row.calls + row.failed for row in report.conditions) == reserved
    assert reserved + sum(row.refused for row in report.conditions) >= 61


def test_the_killed_process_is_counted_as_unknown(report: study.Study) -> None:
    """Its hold alone is more than half a cent."""
    assert sum(row.unknown for row in report.conditions) == 1
    thinking = next(row for row in report.conditions if row.condition == "chain-of-thought")
    assert thinking.unknown_usd >= Decimal("0.005")
    assert report.balances[0].calls_in_flight == 0


def test_the_table_adds_up_to_the_budget(report: study.Study) -> None:
    assert sum(row.cost_usd for row in report.conditions) == report.balances[0].committed_usd


def test_the_ledger_stays_and_is_sound(report: study.Study) -> None:
    with tbl.connect(report.ledger, embedded=True) as ledger:
        assert ledger.verify().open_reservations == report.proof.open_reservations == 0


def test_the_closing_screen_fits_a_terminal_and_says_what_to_do_next(report: study.Study) -> None:
    out = Console(width=80, record=True, quiet=False, force_terminal=False)
    with out.capture() as screen:
        study.show_closing(out, report)
    lines = screen.get().splitlines()
    table = [line for line in lines if line.startswith(("Condition", "zero-shot", "few-shot", "chain-of-thought"))]
    assert len(table) == 4
    assert max(map(len, table)) <= 80
    assert [line.split()[1] for line in lines if line.startswith("  tokenbudget")] == ["status", "report", "sql", "verify"]


def test_an_address_with_a_password_is_in_no_list_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that is killed is told it, and not among its arguments."""
    told: list[str] = []

    class Told(subprocess.Popen[str]):
        def __init__(self, command: list[str], **options: Any) -> None:
            told.extend(command)
            super().__init__(command, **options)

    url = postgres.ledger().replace("postgres@", "postgres:hunter2@")
    with tbl.connect(url) as ledger:
        study._budgets(ledger)
    monkeypatch.setattr(subprocess, "Popen", Told)
    assert "held $0.0053" in study._crash(url, embedded=False)
    assert told
    assert "hunter2" not in "".join(told)


def test_the_command_shows_the_balance_moving_in_plain_lines(tmp_path: Path) -> None:
    """Through the keeper, in a process of its own, without a terminal."""
    code = "from tokenbudget_lab.cli import app; app()"
    command = [sys.executable, "-W", "error", "-c", code, "demo", "--ledger", str(tmp_path / "demo.duckdb"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert json.loads(done.stdout)["proof"]["open_reservations"] == 0
    assert "was killed in the middle of its call" in done.stderr
    assert done.stderr.count("left · ") >= 2
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("report", ["duckdb"], indirect=True)
def test_a_second_demo_goes_on_with_what_the_first_one_left(
    report: study.Study, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process that was to be killed may be refused then; nobody's traceback is shown, and the caps hold."""
    shutil.copytree(Path(report.ledger).parent, tmp_path / "again")
    with Console(record=True, width=80).capture() as _:
        again = study.run(Console(quiet=True), str(tmp_path / "again" / "demo.duckdb"), embedded=True)
    assert capfd.readouterr().err == ""
    assert all(limit.left >= 0 for balance in again.balances for limit in balance.limits)
    assert again.balances[0].committed_usd >= report.balances[0].committed_usd
