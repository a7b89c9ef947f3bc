"""`tokenbudget estimate`: what it prints, and with which code it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tokenbudget_lab as tbl
from tests.test_cli import _home, run  # noqa: F401 - a fixture

MODEL = ("--model", "gpt-4o-mini", "--max-output", "100")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three hundred prompts."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"Is review {n} positive?", "id": n}) for n in range(300)))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with a penny for the study, and five calls of a pilot that were measured."""
    path = tmp_path / "spend.duckdb"
    with tbl.connect(path, embedded=True) as ledger:
        ledger.budget("study", usd="0.01")
        pilot = ledger.budget("pilot", limits=[])
        for length in (8, 9, 10, 11, 12):
            pilot.record(tbl.Usage(10, length), model="gpt-4o-mini", tags={"label": "reviews"}).result()
    return path


def test_it_says_what_prompts_cost(prompts: Path) -> None:
    done = run("estimate", prompts, *MODEL)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "300 calls of gpt-4o-mini"
    assert lines[2].startswith("  output  30,000 (0 … 30,000) tokens")


def test_a_budget_that_pays_for_a_part_ends_with_one(prompts: Path, path: Path) -> None:
    """As a batch, at half the price, all of it fits."""
    done = run("estimate", prompts, *MODEL, "--budget", "study", "--ledger", path, "--embedded")
    assert done.exit_code == 1
    assert "of $0.01 left; the first " in done.stdout
    assert run("estimate", prompts, *MODEL, "--budget", "study", "--ledger", path, "--embedded", "--batch").exit_code == 0


def test_measured_answers_make_it_fit(prompts: Path, path: Path) -> None:
    """A tenth of the longest answer; a part surely fits, however long the answers are."""
    done = run("estimate", prompts, *MODEL, "--budget", "study", "--label", "reviews", "--ledger", path, "--embedded")
    assert done.exit_code == 0, done.output
    assert "as 5 measured calls of label reviews" in done.stdout
    assert "all of it is expected to fit, and " in done.stdout


def test_json_has_the_numbers_and_no_frame(prompts: Path, path: Path) -> None:
    done = run("estimate", prompts, *MODEL, "--budget", "study", "--ledger", path, "--embedded", "--json")
    told = json.loads(done.stdout)
    assert (told["calls"], told["output_tokens"], told["fits"], told["budget"]) == (300, 30_000, False, "study")
    assert told["cost_usd"] == told["cost_usd_upper"]
    assert "frame" not in told


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("nothing.csv", *MODEL), 2, "cannot be read"),
        (("PROMPTS", *MODEL, "--prompt", "text"), 2, "line 1: has no 'text'; it has prompt, id"),
        (("PROMPTS", *MODEL, "--ledger", "x.duckdb"), 2, "is not needed without --budget or --label"),
        (("PROMPTS", *MODEL, "--budget", "study", "--ledger", "x.duckdb"), 3, "there is no ledger"),
        (("PROMPTS", *MODEL, "--budget", "study", "--ledger", "no/x.duckdb"), 3, "there is no folder"),
        (("PROMPTS", *MODEL, "--label", "x", "--ledger", "no/x.duckdb", "--embedded"), 3, "Nothing was made or changed"),
        (("none.parquet", *MODEL), 2, "none.parquet cannot be read (No such file or directory)"),
        (("PROMPTS", *MODEL, "--budget", "stduy", "--ledger", "PATH", "--embedded"), 1, "study"),
        (
            ("PROMPTS", "--model", "nobody-1", "--max-output", "9", "--budget", "study", "--ledger", "PATH", "--embedded"),
            1,
            "no price",
        ),
        (("PROMPTS", "--model", "gpt-4o-mini"), 2, "--max-output"),
        (("PROMPTS", "--model", "", "--max-output", "9"), 2, "model"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_sentence(prompts: Path, path: Path, args: tuple[str, ...], code: int, said: str) -> None:
    done = run("estimate", *({"PROMPTS": str(prompts), "PATH": str(path)}.get(arg, arg) for arg in args))
    assert (done.exit_code, done.exception.__class__) == (code, SystemExit)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not {"x.duckdb", "no"} & {file.name for file in (*Path().iterdir(), *prompts.parent.iterdir())}


def test_a_model_without_a_price_is_told_why(prompts: Path) -> None:
    done = run("estimate", prompts, "--model", "nobody-1", "--max-output", "9")
    assert done.exit_code == 0
    assert "cost    unknown: genai-prices has no model 'nobody-1'" in done.stdout
    told = json.loads(run("estimate", prompts, "--model", "nobody-1", "--max-output", "9", "--json").stdout)
    assert (told["cost_usd"], told["unpriced_reason"]) == (None, "genai-prices has no model 'nobody-1'")


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    """In the middle of counting, with the shell's code and nothing else."""
    path = tmp_path / "many.txt"
    path.write_text("a word and another\n" * 2_000_000)
    code = "from tokenbudget_lab.cli import app; app()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "estimate", str(path), *MODEL], stdout=-1, stderr=-1, text=True, env=os.environ
    )
    with child:
        time.sleep(4)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=30)
    assert (child.returncode, out) == (130, "")
    assert said == "tokenbudget: interrupted\n"


IMPORTED = """
import sys, time
def slow(event, args):
    if event == "import" and args[0] == "typer":
        print("importing", flush=True)
        time.sleep(60)
sys.addaudithook(slow)
from tokenbudget_lab.cli import app
app()
"""


def test_ctrl_c_while_it_is_still_imported_ends_it_too() -> None:
    """In the first half second, before there is a command."""
    with subprocess.Popen([sys.executable, "-c", IMPORTED, "status"], stdout=-1, stderr=-1, text=True, env=os.environ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "importing\n"
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=30)
    assert (child.returncode, out, said) == (130, "", "tokenbudget: interrupted\n")
