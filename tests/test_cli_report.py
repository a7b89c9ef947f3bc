"""`tokenbudget report`: what it prints and writes, and with which code it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

import tokenbudget_lab as tbl
from tests.test_cli import _home, run  # noqa: F401 - a fixture
from tokenbudget_lab.cli import reporting
from tokenbudget_lab.recovery import log_of
from tokenbudget_lab.reports import FORMATS, Report


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with two ledgers, each with a call, of arm a ($0.25) and of arm b ($0.50)."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for arm, usd in (("a", "0.25"), ("b", "0.50")):
        with tbl.connect(folder / f"{arm}.duckdb", embedded=True) as ledger:
            ledger.budget(f"lab-{arm}", usd=1).record(usd=usd, model="gpt-4o-mini", tags={"arm": arm}).result()
    return folder


def report(*args: object, code: int = 0) -> str:
    """What the command prints, with the errors behind it."""
    done = run("report", *args, "--embedded")
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.stdout + done.stderr


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_pattern_is_every_ledger_that_it_matches(runs: Path) -> None:
    """Without the files beside them; and a ledger that is named as well is read once."""
    said = report(runs / "*.duckdb", runs / "a.duckdb", "--by", "arm,model")
    assert "2 calls to 1 model (gpt-4o-mini)" in said
    assert "a total cost of USD 0.7500" in said
    assert [line.split()[:3] for line in said.splitlines() if "gpt-4o-mini  " in line] == [
        ["b", "gpt-4o-mini", "1"],
        ["a", "gpt-4o-mini", "1"],
    ]


def test_every_output_is_written(runs: Path, tmp_path: Path) -> None:
    said = report(runs / "*.duckdb", *(arg for ending in FORMATS for arg in ("-o", tmp_path / f"r{ending}")), "--title", "Ours")
    assert {f"r{ending}" for ending in FORMATS} <= files(tmp_path)
    assert f"wrote {tmp_path / 'r.html'}" in said
    assert "<h1>Ours</h1>" in (tmp_path / "r.html").read_text()
    assert "lab-a" in (tmp_path / "r.html").read_text()


def test_a_folder_gets_every_format_and_a_summary(runs: Path, tmp_path: Path) -> None:
    """Twice, when it is told to replace what is there."""
    out = tmp_path / "reports" / "2026"
    report(runs / "*.duckdb", "-o", f"{out}/")
    assert files(out) == {"summary.json", *(f"report{ending}" for ending in FORMATS)}
    told = json.loads((out / "summary.json").read_text())
    assert (told["schema_version"], told["exit_code"], told["over"], told["total"]["cost_usd"]) == (1, 0, [], "0.75")
    assert [(each["ledger"], each["sound"]) for each in told["ledgers"]] == [
        (str(runs / "a.duckdb"), True),
        (str(runs / "b.duckdb"), True),
    ]
    assert "there already" in report(runs / "a.duckdb", "-o", f"{out}/", code=2)
    report(runs / "a.duckdb", "-o", out, "--force")
    assert json.loads((out / "summary.json").read_text())["total"]["cost_usd"] == "0.25"


def test_a_budget_over_its_limit_ends_with_one(runs: Path, tmp_path: Path) -> None:
    with tbl.connect(runs / "b.duckdb", embedded=True) as ledger:
        ledger.budget("lab-b").record(usd=2).result()
    assert f"Over the limit: lab-b in {runs / 'b.duckdb'}." in report(runs / "*.duckdb", "-o", f"{tmp_path}/out/", code=1)
    (over,) = json.loads((tmp_path / "out" / "summary.json").read_text())["over"]
    assert (over["budget"], over["left"], over["ledger"]) == ("lab-b", "-1.5", str(runs / "b.duckdb"))


@pytest.mark.parametrize("what", ["nothing", "garbage", "a folder", "an empty file"])
def test_a_ledger_that_cannot_be_read_is_named_and_the_others_are_reported(runs: Path, tmp_path: Path, what: str) -> None:
    """With 1; in the page, the methods and the summary too, because the sum is not of all calls. Nothing is made."""
    bad = runs / "c.duckdb"
    if what == "a folder":
        bad.mkdir()
    elif what != "nothing":
        bad.write_bytes(b"garbage" * 1000 if what == "garbage" else b"")
    said = report(runs / "a.duckdb", bad, "-o", f"{tmp_path}/out/", code=1)
    assert "c.duckdb" in said
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (told["exit_code"], told["total"]["cost_usd"]) == (1, "0.25")
    assert [(each["read"], Path(each["ledger"]).name) for each in told["ledgers"]] == [(True, "a.duckdb"), (False, "c.duckdb")]
    for text in (told["methods"], (tmp_path / "out" / "report.html").read_text()):
        assert f"Missing: {bad} could not be read" in text
    if what == "nothing":
        assert not bad.exists()


def test_a_password_in_the_name_of_a_ledger_is_nowhere(runs: Path, tmp_path: Path) -> None:
    said = report(runs / "a.duckdb", "postgresql://me:secret@host/db", "-o", f"{tmp_path}/out/", code=1)
    assert "PostgreSQL" in said
    assert "secret" not in said + "".join(path.read_text(errors="replace") for path in (tmp_path / "out").iterdir())


def test_no_ledger_at_all_is_no_report(runs: Path, tmp_path: Path) -> None:
    """But a summary that says so."""
    report(runs / "c.duckdb", "-o", f"{tmp_path}/out/", "-o", tmp_path / "r.html", code=1)
    assert files(tmp_path / "out") == {"summary.json"}
    assert not (tmp_path / "r.html").exists()
    assert files(runs) == {name for arm in "ab" for name in (f"{arm}.duckdb", f"{arm}.duckdb.d", f"{arm}.duckdb.wal")} & files(
        runs
    )


def test_an_unsound_ledger_is_named(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported, with a warning before all numbers, and the code is 1."""

    def unsound(self: tbl.Ledger, progress: object = None) -> None:
        if self.desk.where.endswith("b.duckdb"):
            raise tbl.LedgerCorrupt(3, "its hash does not continue the chain")

    proved = tbl.Ledger.verify

    def verify(self: tbl.Ledger, progress: object = None) -> tbl.Verification:
        unsound(self)
        return proved(self)

    monkeypatch.setattr(tbl.Ledger, "verify", verify)
    said = report(runs / "*.duckdb", "-o", f"{tmp_path}/out/", code=1)
    assert "its hash does not continue the chain" in said
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [each["sound"] for each in told["ledgers"]] == [True, False]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index(f"Not sound: {runs / 'b.duckdb'}") < page.index("2 calls to")


def test_a_ledger_with_a_forged_event_is_unsound(runs: Path, tmp_path: Path) -> None:
    """Somebody wrote another amount into the file: it is named with the event, the other one is reported as sound."""
    with duckdb.connect(runs / "b.duckdb") as con:
        con.execute("drop trigger events_are_never_changed on events")
        con.execute("update events set usd = usd / 10 where kind = 'recorded'")
    said = report(runs / "*.duckdb", "-o", f"{tmp_path}/out/", code=1)
    assert f"Not sound: {runs / 'b.duckdb'}: event 3" in said
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(each["read"], each["sound"]) for each in told["ledgers"]] == [(True, True), (True, False)]
    assert "Not sound: " in told["methods"]


def test_a_copy_of_a_ledger_does_not_count_twice(runs: Path, tmp_path: Path) -> None:
    """The longer one of the two counts; the other is named, and the code is 1."""
    with tbl.connect(runs / "a.duckdb", embedded=True) as ledger:
        ledger.backup(runs / "0.duckdb")
        ledger.budget("lab-a").record(usd="0.10", model="gpt-4o-mini").result()
    said = report(runs / "*.duckdb", "-o", f"{tmp_path}/out/", code=1)
    assert f"{runs / '0.duckdb'} is left out: it is a copy of {runs / 'a.duckdb'}" in said
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["total"]["cost_usd"] == "0.85"
    assert [Path(each["ledger"]).name for each in told["ledgers"] if not each["read"]] == ["0.duckdb"]


def test_a_link_to_a_ledger_does_not_count_twice(runs: Path) -> None:
    (runs / "z.duckdb").symlink_to(runs / "a.duckdb")
    assert "a total cost of USD 0.7500" in report(runs / "*.duckdb", runs / "b.duckdb")


def test_a_damaged_ledger_is_reported_as_far_as_it_can_be_read(runs: Path, tmp_path: Path) -> None:
    """Its log was cut: it opens for reading only, the code is 1, and page and methods say that something is missing."""
    with log_of(runs / "b.duckdb").open("rb+") as log:
        log.truncate(log_of(runs / "b.duckdb").stat().st_size - 20)
    report(runs / "*.duckdb", "-o", f"{tmp_path}/out/", code=1)
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [each["sound"] for each in told["ledgers"]] == [True, False]
    assert "Not sound: " in told["methods"]
    assert "Not sound: " in (tmp_path / "out" / "report.html").read_text()


def test_json_has_the_summary_and_the_report(runs: Path) -> None:
    done = run("report", runs / "a.duckdb", "--json", "--embedded", "--where", "arm=a", "--where", "arm=b")
    told = json.loads(done.stdout)
    assert (told["exit_code"], told["report"]["rows"][0]["cost_usd"]) == (0, "0.25")
    assert "arm is one of a, b" in told["report"]["scope"]


def test_the_arguments_choose_calls(runs: Path) -> None:
    assert "No calls were recorded." in report(runs / "*.duckdb", "--month", "2020-01", "--tz", "Europe/Berlin")
    assert "1 call to" in report(runs / "*.duckdb", "--where", "arm=b", "--since", "2020-01-01", "--every", "1d")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("none-*.duckdb",), "no file matches"),
        (("A", "-o", "r.docx"), "which say the format"),
        (("A", "-o", "no/r.html"), "does not exist"),
        (("A", "--month", "2026-13"), "is no month"),
        (("A", "--month", "2026-11", "--since", "2026-11-01"), "one or the other"),
        (("A", "--tz", "Mars/Olympus"), "no time zone"),
        (("A", "--every", "soon"), "no length of time"),
        (("A", "--where", "arm"), "NAME=VALUE"),
        (("A", "--where", "requests=x"), "cannot be applied"),
        (("A", "--by", "tags"), "no cell of a table"),
        (("A", "-o", "~nobody-has-this-name/r.html"), "home"),
        (("~nobody-has-this-name/x.duckdb",), "home"),
        (("A", "--where", "arm=\udcff"), "half a surrogate pair"),
    ],
    ids=str,
)
def test_bad_usage_ends_with_two(runs: Path, args: tuple[str, ...], said: str) -> None:
    given = (str(runs / "a.duckdb") if arg == "A" else arg for arg in args)
    assert said in report(*given, code=2)


def test_bad_outputs_are_noticed_before_any_ledger_is_read(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "_read_all", lambda *_, **__: pytest.fail("it was read"))
    (tmp_path / "r.html").touch()
    assert "there already" in report(runs / "a.duckdb", "-o", tmp_path / "r.html", code=2)


def test_a_terminal_sees_no_escape_of_others(runs: Path) -> None:
    with tbl.connect(runs / "a.duckdb", embedded=True) as ledger:
        ledger.budget("lab-a").record(usd="0.1", tags={"arm": "\x1b[31m[bold]red"}).result()
    said = report(runs / "a.duckdb", "--by", "arm", "--title", "\x1b[2J")
    assert "\x1b" not in said
    assert "\\x1b[31m[bold]red" in said


def test_the_only_ledger_may_be_the_default(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENBUDGET_LEDGER", str(runs / "a.duckdb"))
    assert "USD 0.2500" in report()
    assert "USD 0.5000" in report("--ledger", runs / "b.duckdb")


SLOW = """
import sys, time
from tokenbudget_lab import reports
def slow(report):
    print("writing", flush=True)
    time.sleep(60)
reports.FORMATS[".md"] = slow
from tokenbudget_lab.cli import app
app()
"""


def test_ctrl_c_leaves_whole_files_only(runs: Path, tmp_path: Path) -> None:
    """The first is there in full; the second is not there at all."""
    out = tmp_path / "out"
    out.mkdir()
    command = [
        sys.executable,
        "-c",
        SLOW,
        "report",
        str(runs / "a.duckdb"),
        "--embedded",
        "-o",
        f"{out}/r.html",
        "-o",
        f"{out}/r.md",
    ]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=os.environ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    assert (child.returncode, said) == (130, "tokenbudget: interrupted\n")
    assert files(out) == {"r.html"}
    assert (out / "r.html").read_text().endswith("</html>\n")


def test_a_summary_is_written_last(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds it finds the others."""

    def fail(self: Report) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Report, "tex", property(fail))
    done = run("report", runs / "a.duckdb", "--embedded", "-o", f"{tmp_path}/out/")
    assert done.exit_code == 130
    assert "summary.json" not in files(tmp_path / "out")
