"""`tokenbudget watch`: what a terminal shows while another process spends, and the command that alerts start."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import link
from tokenbudget_lab.place import place_of

PATIENCE_S = 30.0
WATCH = (sys.executable, "-c", "from tokenbudget_lab.cli import app; app()", "watch")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A ledger with a budget that alerts, and a keeper."""
    path = tmp_path / "spend.duckdb"
    with tbl.connect(path) as ledger:
        ledger.budget("lab", limits=[])
        ledger.budget("lab/study", usd=1, alerts=(0.5,))
        yield path
    link.stop(place_of(path))


def spend(path: Path, usd: str) -> None:
    with tbl.connect(path) as ledger:
        ledger.budget("lab/study").record(usd=usd).result()


class Watched:
    """A watch in a process of its own, and what it has said so far."""

    def __init__(self, *arguments: str | Path, terminal: bool = False) -> None:
        self._read_end, write_end = os.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [*WATCH, *map(str, arguments), "--every", "0.2"],
            stdout=write_end, stderr=write_end, stdin=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )  # fmt: skip
        os.close(write_end)
        self.said = ""

    def until(self, there: Callable[[str], bool]) -> str:
        """Wait until it has said that."""
        deadline = time.monotonic() + PATIENCE_S
        while not there(self.said):
            ready, _, _ = select.select([self._read_end], [], [], max(0.0, deadline - time.monotonic()))
            more = b""
            with contextlib.suppress(OSError):  # a terminal whose other end is gone
                more = os.read(self._read_end, 65_536) if ready else b""
            assert more, f"it said only {self.said!r}"
            self.said += more.decode()
        return self.said

    def interrupted(self) -> int:
        """Ctrl-C; the code with which it ends."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._read_end)


def test_what_another_process_spends_is_a_line_and_ctrl_c_is_the_end(path: Path) -> None:
    with Watched(path) as watched:
        watched.until(lambda said: "$0.00 committed" in said)
        spend(path, "0.25")
        watched.until(lambda said: "$0.25 committed" in said and "$0.75 of $1.00 left" in said)
        assert watched.interrupted() == 0
    assert "Traceback" not in watched.said


def test_a_terminal_shows_a_table_that_moves(path: Path) -> None:
    with Watched(path, terminal=True) as watched:
        watched.until(lambda said: "lab/study" in said and "Ctrl-C ends" in said)
        spend(path, "0.60")
        watched.until(lambda said: "$0.60" in said and "alert  " in said and "50% of $1.00 is spent" in said)
        assert watched.interrupted() == 0


def test_an_alert_starts_the_command_once_and_tells_it_what_crossed(path: Path, tmp_path: Path) -> None:
    """What crossed before the watch began is no news, and a second call above the threshold is none either."""
    told = tmp_path / "told"
    script = tmp_path / "tell.sh"
    script.write_text(f'#!/bin/sh\nprintf "%s|" "$TOKENBUDGET_ALERT_BUDGET" "$TOKENBUDGET_ALERT_LIMIT" >> {told}\n')
    script.chmod(0o700)
    with tbl.connect(path) as ledger:
        ledger.budget("lab/old", usd=1, alerts=(0.1,)).record(usd="0.2").result()
    with Watched(path, "--on-alert", str(script)) as watched:
        watched.until(lambda said: "lab/study" in said)
        spend(path, "0.55")
        watched.until(lambda said: "is spent" in said)
        spend(path, "0.05")
        watched.until(lambda said: "$0.60 committed" in said)
        assert watched.interrupted() == 0  # commands that run are waited for
    assert told.read_text() == "lab/study|$1.00|"
    assert watched.said.count("is spent") == 1


def test_a_command_that_fails_is_said_and_the_watch_goes_on(path: Path) -> None:
    with Watched(path, "--on-alert", "false") as watched:
        watched.until(lambda said: "lab/study" in said)
        spend(path, "0.55")
        watched.until(lambda said: "--on-alert ended with 1" in said)
        spend(path, "0.05")
        watched.until(lambda said: "$0.60 committed" in said)


def test_a_name_is_no_command(path: Path, tmp_path: Path) -> None:
    """No shell reads what users named; `$(…)` in it is text."""
    with tbl.connect(path) as ledger:
        ledger.budget("$(touch${IFS}owned)", usd=1, alerts=(0.5,))
    with Watched(path, "--on-alert", "printenv TOKENBUDGET_ALERT_TEXT") as watched:
        watched.until(lambda said: "owned" in said)
        with tbl.connect(path) as ledger:
            ledger.budget("$(touch${IFS}owned)").record(usd="0.7").result()
        watched.until(lambda said: said.count("$(touch${IFS}owned): 50% of $1.00 is spent") >= 2)  # ours, and the command's
    assert not Path("owned").exists()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--on-alert", "no-such-command-here"), 2, "there is no command"),
        (("--on-alert", "'"), 2, "cannot be taken apart"),
        (("--on-alert", ""), 2, "there is no command"),
        (("--budget", "nobody"), 1, "nobody"),
    ],
)
def test_what_is_asked_wrongly_is_said_at_once(path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    with Watched(path, *arguments) as watched:
        assert watched.process.wait(PATIENCE_S) == code
        watched.until(lambda text: said in text)
