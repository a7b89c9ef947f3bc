"""The command line, as people and scripts use it: what it prints, and with which code it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import tokenbudget_lab as tbl
from tokenbudget_lab.cli.entry import app

MODEL = "claude-sonnet-5-5"
COMMANDS = [
    "demo",
    "replay",
    "status",
    "events",
    "sql",
    "verify",
    "budget create",
    "budget list",
    "budget limit",
    "keeper status",
    "keeper stop",
    "backup",
    "export",
    "recover",
    "clock accept",
    "vendor-encodings",
    "estimate",
    "report",
    "watch",
]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's own is touched."""
    monkeypatch.delenv("TOKENBUDGET_LEDGER", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with $1.25 of $5 spent and $0.50 held."""
    path = tmp_path / "spend.duckdb"
    with tbl.connect(path, embedded=True) as ledger:
        lab = ledger.budget("lab", usd=5)
        with lab.reserve(usd="1.50", tags={"condition": "few-shot"}) as call:
            call.commit(usd="1.25")
        lab.reserve_sync(usd="0.50")
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="tokenbudget")


def told(*args: object, code: int = 0) -> Any:
    """What a command prints with --json."""
    result = run(*args, "--json", "--embedded")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


def trace(folder: Path, calls: int = 20) -> Path:
    path = folder / "trace.csv"
    path.write_text("TIMESTAMP,in,out\n" + "".join(f"2026-11-23 09:00:{n % 60:02},1000,100\n" for n in range(calls)))
    return path


def replay(file: Path, *more: object) -> tuple[object, ...]:
    return ("replay", file, "--input", "in", "--output", "out", "--max-output", 1000, "--model", MODEL, *more)


# --- help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"tokenbudget {command}" in result.stdout.split("Examples:")[1]


def test_the_version_is_told() -> None:
    assert run("--version").stdout == f"tokenbudget {tbl.__version__}\n"


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in run("--help").stdout


@pytest.mark.parametrize(
    "args", [("nonsense",), ("status", "--nonsense"), ("events", "x.duckdb", "-n", "many"), ("replay",), ("sql",)]
)
def test_bad_usage_ends_with_2(args: tuple[str, ...]) -> None:
    assert run(*args).exit_code == 2


# --- budgets -------------------------------------------------------------------------------------------------------------


def test_a_budget_is_created_listed_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "new.duckdb"
    made = told("budget", "create", "lab", "--usd", "20", "--window", "month", "--tz", "Europe/Berlin", "--ledger", path)
    assert (made["budget"], made["limit_usd"], made["left_usd"]) == ("lab", "20", "20")
    assert made["window_ends"].endswith("Z")
    told("budget", "create", "lab/pilot", "--tokens", "1000", "--requests", "7", "--ledger", path)
    assert [each["budget"] for each in told("budget", "list", path)] == ["lab", "lab/pilot"]
    assert told("budget", "limit", "lab", "--usd", "30.5", "--reason", "reviewer 2", "--ledger", path)["limit_usd"] == "30.5"


def test_creating_a_budget_again_changes_nothing_and_other_limits_are_refused(path: Path) -> None:
    told("budget", "create", "lab", "--usd", "5", "--ledger", path)
    result = run("budget", "create", "lab", "--usd", "6", "--ledger", path, "--embedded")
    assert result.exit_code == 1
    assert "lab exists with $5.00, not $6.00" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("lab",),
        ("lab", "--usd", "1", "--unlimited"),
        ("lab", "--usd", "much"),
        ("lab", "--usd", "-1"),
        ("lab", "--usd", "nan"),
        ("lab", "--usd", "1", "--window", "fortnight"),
        ("lab", "--usd", "1", "--window", "day", "--tz", "Mars/Base"),
        ("a//b", "--usd", "1"),
        ("a\nb", "--usd", "1"),
    ],
)
def test_a_budget_that_makes_no_sense_makes_no_ledger(tmp_path: Path, args: tuple[str, ...]) -> None:
    result = run("budget", "create", *args, "--ledger", tmp_path / "new.duckdb", "--embedded")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new.duckdb").exists()


# --- looking -------------------------------------------------------------------------------------------------------------


def test_status_shows_what_is_committed_held_and_left(path: Path) -> None:
    line = next(line for line in run("status", path, "--embedded").stdout.splitlines() if "lab" in line)
    assert all(amount in line for amount in ("$1.25", "$0.50", "$3.25", "$5.00"))


def test_status_in_json_has_usd_as_strings(path: Path) -> None:
    (balance,) = told("status", path)["budgets"]
    assert (balance["committed_usd"], balance["reserved_usd"], balance["left_usd"]) == ("1.25", "0.5", "3.25")
    assert balance["calls_in_flight"] == 1


def test_status_ends_with_1_where_a_budget_is_over(path: Path) -> None:
    with tbl.connect(path, embedded=True) as ledger:
        ledger.budget("lab").record(usd=9).result()
    assert told("status", path, code=1)["over"] is True


def test_events_are_told_in_order_the_newest_last(path: Path) -> None:
    assert [event["kind"] for event in told("events", path)] == ["created", "budget_set", "reserved", "committed", "reserved"]
    assert [event["kind"] for event in told("events", path, "-n", 2)] == ["committed", "reserved"]
    (committed,) = told("events", path, "--kind", "committed", "--budget", "lab")
    assert committed["usd"] == "1.25"
    assert committed["ts"].endswith("Z")


def test_events_are_a_table_for_people(path: Path) -> None:
    assert "committed" in run("events", path, "--embedded").stdout


def test_sql_answers_a_select(path: Path) -> None:
    assert told("sql", path, "select kind, sum(usd) as usd from events where kind = 'committed' group by all") == [
        {"kind": "committed", "usd": "1.25"}
    ]


@pytest.mark.parametrize(
    "query", ["delete from events", "select 1; select 2", "select * from read_text('/etc/passwd')", "select nonsense"]
)
def test_sql_that_is_no_select_over_the_ledger_ends_with_2(path: Path, query: str) -> None:
    result = run("sql", path, query, "--embedded")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("tokenbudget: ")


def test_sql_without_a_query_is_bad_usage(path: Path) -> None:
    assert run("sql", path).exit_code == 2


def test_a_sound_ledger_verifies(path: Path) -> None:
    proof = told("verify", path)
    assert (proof["sound"], proof["events"], proof["open_reservations"]) == (True, 5, 1)
    assert "sound: 5 events" in run("verify", path, "--embedded").stdout


def test_a_ledger_named_twice_is_bad_usage(path: Path) -> None:
    assert run("verify", path, "--ledger", "other.duckdb").exit_code == 2


def test_the_ledger_may_be_an_option_or_come_from_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("verify", "--ledger", path)["events"] == 5
    monkeypatch.setenv("TOKENBUDGET_LEDGER", str(path))
    assert told("verify")["ledger"] == str(path)


@pytest.mark.parametrize(
    "command", [("status",), ("events",), ("verify",), ("budget", "list"), ("keeper", "status"), ("keeper", "stop")]
)
def test_who_only_looks_makes_no_ledger(tmp_path: Path, command: tuple[str, ...]) -> None:
    missing = tmp_path / "missing.duckdb"
    result = run(*command, missing)
    assert result.exit_code == 3
    assert f"there is no ledger at {missing}" in result.stderr
    assert not list(tmp_path.glob("missing*"))


def test_without_any_ledger_the_default_one_is_missed_and_not_made(tmp_path: Path) -> None:
    assert run("status").exit_code == 3
    assert not list(tmp_path.rglob("*.duckdb"))


def test_another_kind_of_file_ends_with_3_and_stays_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("not a ledger, but long enough to be looked at")
    result = run("verify", other, "--embedded")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert other.read_text().startswith("not a ledger")


@pytest.mark.parametrize(
    "where", ["", "s3://bucket/spend.duckdb", "md:spend", "http://example.org/spend", "postgresql://user:se/cret@secret/db"]
)
def test_a_place_that_no_ledger_can_have_ends_with_2(where: str) -> None:
    result = run("verify", where)
    assert result.exit_code == 2
    assert "secret" not in result.stderr


def test_names_and_tags_are_shown_escaped_and_never_interpreted(tmp_path: Path) -> None:
    """ANSI escapes and right-to-left marks are shown; what looks like markup or an emoji code stays text."""
    path = tmp_path / "spend.duckdb"
    with tbl.connect(path, embedded=True) as ledger:
        budget = ledger.budget("[bold]:smile:\u202ex", usd=1)
        with budget.reserve(usd="0.1", tags={"evil": "\x1b[31m\x07[red]"}) as call:
            call.commit(usd="0.1")
    for command in ("status", "events", "budget list"):
        shown = run(*command.split(), path, "--embedded").stdout
        assert "[bold]:smile:\\u202ex" in shown
        assert not {"\x1b", "\x07", "\u202e"}.intersection(shown)
    assert "[red]" in run("sql", path, "select tags['evil'] from calls", "--embedded").stdout


# --- replay --------------------------------------------------------------------------------------------------------------


def test_a_replay_reports_what_would_have_happened(tmp_path: Path) -> None:
    """20 calls of $0.003 against $0.03: what fits is made, the rest refused."""
    path = tmp_path / "replay.duckdb"
    report = told(*replay(trace(tmp_path), "--usd", "0.03", "--ledger", path))
    assert report["made"] + report["refused"] == 20
    assert 0 < Decimal(report["cost_usd"]) == Decimal(report["committed_usd"]) <= Decimal("0.03")
    assert (report["uncapped_usd"], report["ledger"]) == ("0.06", str(path))
    again = told(*replay(trace(tmp_path), "--ledger", path))
    assert Decimal(again["committed_usd"]) <= Decimal("0.03")
    assert told("verify", path)["sound"] is True


def test_a_replay_says_which_ledger_it_wrote_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENBUDGET_LEDGER", str(tmp_path / "named.duckdb"))
    result = run(*replay(trace(tmp_path), "--usd", "1", "--embedded"))
    assert "20 of 20 in trace.csv" in result.stdout
    assert str(tmp_path / "named.duckdb") in result.stdout


def test_a_replay_with_another_cap_says_that_the_budget_differs(tmp_path: Path) -> None:
    path = tmp_path / "replay.duckdb"
    told(*replay(trace(tmp_path), "--usd", "1", "--ledger", path))
    result = run(*replay(trace(tmp_path), "--usd", "2", "--ledger", path, "--embedded"))
    assert result.exit_code == 1
    assert "replay exists with $1.00, not $2.00" in result.stderr
    assert "leave the limit out" in result.stderr


def test_a_bad_trace_ends_with_2_and_the_line_and_makes_no_ledger(tmp_path: Path) -> None:
    file = trace(tmp_path)
    file.write_text(file.read_text().replace(":01,1000", ":01,-1"))
    result = run(*replay(file, "--usd", "1", "--ledger", tmp_path / "replay.duckdb"))
    assert result.exit_code == 2
    assert result.stderr == "tokenbudget: trace.csv, line 3: in is -1; tokens cannot be negative\n"
    assert not (tmp_path / "replay.duckdb").exists()


def test_a_model_without_a_price_is_refused_and_makes_no_budget(tmp_path: Path) -> None:
    path = tmp_path / "replay.duckdb"
    result = run(*replay(trace(tmp_path), "--usd", "1", "--ledger", path, "--model", "no-such-model", "--embedded"))
    assert result.exit_code == 1
    assert told("budget", "list", path) == []


# --- processes -----------------------------------------------------------------------------------------------------------


def process(*args: object, **how: Any) -> subprocess.Popen[str]:
    code = "from tokenbudget_lab.cli import app; app(prog_name='tokenbudget')"
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


@pytest.mark.skipif(os.name == "nt", reason="signals to another process")
def test_an_interrupted_replay_leaves_nothing_held(tmp_path: Path) -> None:
    """Ctrl-C in the middle of 100,000 calls: exit code 130, a report of what was made, a sound ledger with nothing open."""
    path = tmp_path / "replay.duckdb"
    with process(*replay(trace(tmp_path, 100_000), "--usd", "1000", "--ledger", path, "--embedded")) as running:
        wal = path.with_name(path.name + ".wal")
        deadline = time.monotonic() + 60
        while not (wal.exists() and wal.stat().st_size > 200_000) and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "tokenbudget: interrupted; nothing is left held\n")
    assert "of 100,000 in trace.csv" in out
    assert told("verify", path)["open_reservations"] == 0


def test_two_commands_share_a_ledger_through_its_keeper(path: Path) -> None:
    """Without --embedded the file's keeper answers, and can be seen and stopped."""
    running = [process("status", path, "--json") for _ in range(2)]
    answers = [json.loads(each.communicate(timeout=60)[0]) for each in running]
    assert [answer["budgets"][0]["committed_usd"] for answer in answers] == ["1.25", "1.25"]
    assert json.loads(run("keeper", "status", path, "--json").stdout)["running"] is True
    assert json.loads(run("keeper", "stop", path, "--json").stdout)["stopped"] is True
    assert run("keeper", "status", path).exit_code == 1


def test_a_ledger_that_another_process_owns_ends_with_3(path: Path) -> None:
    with tbl.connect(path, embedded=True):
        result = run("verify", path, "--embedded")
    assert result.exit_code == 3
    assert "is held by process" in result.stderr


def test_output_that_nobody_reads_any_more_is_no_error(path: Path) -> None:
    with process("events", path, "--json", "--embedded") as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()
