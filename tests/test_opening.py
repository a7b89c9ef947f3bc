"""Opening and making a ledger in a file: all of it, or nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tokenbudget_lab as tbl
from tests.soaking import Pace

OPEN_AND_SAY = """if True:
    import sys, tokenbudget_lab as tbl
    import duckdb, filelock
    print("up", flush=True)
    try:
        with tbl.connect(sys.argv[1], embedded=True) as ledger:
            ledger.budget("lab", usd=1)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("rounds", [pytest.param(12, id="few"), pytest.param(150, id="all", marks=pytest.mark.soak)])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_ledger_is_made_in_one_step_or_not_at_all(tmp_path: Path, how: signal.Signals, rounds: int, pace: Pace) -> None:
    """Interrupted or killed at any moment of its making, the next `connect` finds a whole ledger or makes one."""
    for n in pace.some(range(rounds)):
        where = tmp_path / f"spend-{n}.duckdb"
        with subprocess.Popen(
            [sys.executable, "-c", OPEN_AND_SAY, str(where)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.08 * n / rounds)  # another moment each round; nothing is waited for
            child.send_signal(how)
            _, said = child.communicate()
        assert b"FATAL" not in said
        assert b"Query interrupted" not in said, "DuckDB, and not the ledger, was interrupted"
        with tbl.connect(where, embedded=True) as ledger:
            assert ledger.budget("lab", usd=1).balance.left_usd == 1
            ledger.verify()


def test_what_stands_in_the_way_of_a_new_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    """An empty file, and a database that is no ledger, are refused and not written to."""
    empty = tmp_path / "empty.duckdb"
    empty.touch()
    with pytest.raises(tbl.NotALedger, match="empty"):
        tbl.connect(empty, embedded=True)
    assert empty.stat().st_size == 0
    import duckdb

    other = tmp_path / "other.duckdb"
    with duckdb.connect(other) as con:
        con.execute("create table results (score double)")
    before = other.read_bytes()
    with pytest.raises(tbl.NotALedger, match="without a ledger's tables"):
        tbl.connect(other, embedded=True)
    assert other.read_bytes() == before
