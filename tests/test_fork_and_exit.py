"""Forked children, interrupts, and the end of the interpreter: nothing is harmed, nothing that was handed in is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Home, Log
from tokenbudget_lab.desk import Ticket

EMBEDDED = pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "keeper"])


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepers of tests leave at once after their last client."""
    monkeypatch.setenv("TOKENBUDGET_KEEPER_LINGER_S", "0.1")


def run(program: str, *arguments: object, code: int = 0) -> str:
    """Run a Python program to its end.

    Returns:
        What it printed; what it complained of behind that.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:This process:DeprecationWarning",
            "-c",
            textwrap.dedent(program),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def spent(path: Path) -> int:
    """Tokens that a sound ledger says were spent on `lab`."""
    with tbl.connect(path, embedded=True) as ledger:
        ledger.verify()
        return ledger.budget("lab").balance.committed_tokens


def until_free(path: Path) -> None:
    """Wait until no keeper holds the file any more."""
    deadline = time.monotonic() + 30
    while True:
        try:
            tbl.connect(path, embedded=True).close()
        except tbl.LedgerBusy:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


# --- forked ------------------------------------------------------------------------------------------------------------

FORKING = """
    import asyncio, os, subprocess, sys
    import tokenbudget_lab as tbl

    OTHER = "\\n".join([
        "import sys, tokenbudget_lab as tbl",
        "try:",
        "    tbl.connect(sys.argv[1], embedded=True)",
        "except tbl.LedgerBusy as error:",
        "    print(error.pid)",
    ])
    path, embedded, way = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
    ledger = tbl.connect(path, embedded=embedded)
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=300)
    entry = lab.record(tokens=10).result()

    async def awaited():
        await lab.reserve(tokens=1)

    verbs = {
        "get": lambda: ledger.budget("lab"), "make": lambda: ledger.budget("new", usd=1), "list": ledger.budgets,
        "balance": lambda: lab.balance, "reserve": lambda: lab.reserve_sync(tokens=1), "await": lambda: asyncio.run(awaited()),
        "record": lambda: lab.record(tokens=1), "adjust": lambda: lab.adjust(entry.reservation, tokens=1),
        "limit": lambda: lab.set_limit(tokens=1), "close": lab.close, "commit": lambda: held.commit(tokens=1),
        "rollback": held.rollback, "lose": held.lose, "extend": lambda: held.extend_sync(60), "state": lambda: held.state,
        "verify": ledger.verify,
    }
    if way == "sys.exit":  # the others need not load what reads
        verbs |= {
            "events": lambda: ledger.events().collect(), "calls": lambda: ledger.calls().collect(),
            "sql": lambda: ledger.sql("select count(*) from events"),
        }
    with lab.reserve(tokens=100) as around:
        child = os.fork()
        if child == 0:
            for name, verb in verbs.items():
                try:
                    verb()
                except tbl.LedgerForked as error:
                    assert error.parent == os.getppid()
                else:
                    print(name, "was not refused", flush=True)
            if way == "sys.exit":
                sys.exit(7)
            elif way == "os._exit":
                os._exit(7)
            elif way == "error":
                raise SystemError("of the child's own")
            elif way == "close":
                ledger.close()
                ledger.close()
                sys.exit(7)
            elif way == "exec":
                os.execv(sys.executable, [sys.executable, "-c", "raise SystemExit(7)"])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (1 if way == "error" else 7)
        print("state", around.state, held.state)
        if embedded:
            told = subprocess.run([sys.executable, "-c", OTHER, path], capture_output=True, text=True, check=True).stdout
            assert int(told) == os.getpid(), told
        around.commit(tokens=90)
    held.commit(tokens=200).result()
    ledger.verify()
    ledger.close()
    ledger = tbl.connect(path, embedded=embedded)
    print(ledger.verify().open_reservations, ledger.budget("lab").balance.committed_tokens)
    ledger.close()
"""


@pytest.mark.parametrize(
    ("way", "embedded"),
    [
        ("sys.exit", True),
        ("os._exit", True),
        ("error", True),
        ("close", True),
        ("exec", True),
        ("sys.exit", False),
        ("error", False),
    ],
)
def test_a_forked_child_is_refused_in_each_verb_and_harms_nothing(tmp_path: Path, way: str, *, embedded: bool) -> None:
    """However it leaves; the parent goes on, and nobody else gets its file meanwhile.

    record    10
    reserve   300, 100
    fork      the child tries every verb, and leaves
    commit    90, 200
    close, open again
    """
    told = run(FORKING, tmp_path / "spend.duckdb", embedded, way)
    assert "was not refused" not in told
    lines = [line for line in told.splitlines() if line.startswith(("state", "0 "))]
    assert lines == ["state open open", "0 300"]


def test_a_forked_child_of_a_memory_ledger_is_refused_too(tmp_path: Path) -> None:
    """It would spend from a copy."""
    program = FORKING.replace("tbl.connect(path, embedded=embedded)", 'tbl.connect(":memory:")', 1)
    told = run(program.split("    held.commit(tokens=200)")[0], ":memory:", False, "sys.exit")
    assert told.startswith("state open open\n")


def test_a_store_that_a_forked_child_forgets_keeps_its_log(tmp_path: Path) -> None:
    """DuckDB's own end, in the child, would delete what the parent has written.

    append    event 1
    fork      the child drops the store and leaves
    append    event 2
    open again
    """
    program = """
        import gc, os, sys
        from tokenbudget_lab.commands import SetBudget
        from tokenbudget_lab.decide import Decisions
        from tokenbudget_lab.ids import new_id
        from tokenbudget_lab.place import place_of
        from tokenbudget_lab.state import State
        from tokenbudget_lab.stores.duckdb import DuckDBStore

        decisions = Decisions(State())
        decisions.create(new_id(), 1)
        decisions.decide(SetBudget(new_id(), "lab", (), "UTC"), 2)
        store = DuckDBStore(place_of(sys.argv[1]))
        store.append(decisions.events[:1])
        child = os.fork()
        if child == 0:
            del store
            gc.collect()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        store.append(decisions.events[1:])
        store.close()
        store = DuckDBStore(place_of(sys.argv[1]))
        print([event.kind for event in store.load()])
        store.close()
    """
    assert run(program, tmp_path / "spend.duckdb").startswith("['created', 'budget_set']\n")


def test_a_forked_child_may_open_the_ledger_for_itself(tmp_path: Path) -> None:
    """Through a keeper, both spend from one budget.

    limit     1000 tokens
    record    1   by the parent
    record    10  by the child
    """
    program = """
        import os, sys, tokenbudget_lab as tbl
        ledger = tbl.connect(sys.argv[1])
        ledger.budget("lab", tokens=1000).record(tokens=1).result()
        child = os.fork()
        if child == 0:
            with tbl.connect(sys.argv[1]) as own:
                own.budget("lab").record(tokens=10).result()
            sys.exit()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(ledger.budget("lab").balance.committed_tokens)
        ledger.close()
    """
    assert run(program, tmp_path / "spend.duckdb") == "11\n"


# --- the end of the interpreter --------------------------------------------------------------------------------------------


@EMBEDDED
@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("sys.exit(3)", 3), ("1 / 0", 1)], ids=["end", "exit", "error"])
def test_what_was_handed_in_is_written_at_the_end(tmp_path: Path, end: str, code: int, *, embedded: bool) -> None:
    """Receipts that nobody reads, a ledger that nobody closes.

    record    1, 500 times
    end       somehow
    """
    program = f"""
        import sys, tokenbudget_lab as tbl
        lab = tbl.connect(sys.argv[1], embedded={embedded}).budget("lab", tokens=1000)
        for _ in range(500):
            lab.record(tokens=1)
        {end}
    """
    told = run(program, tmp_path / "spend.duckdb", code=code)
    assert ("ZeroDivisionError" in told) == (code == 1)
    until_free(tmp_path / "spend.duckdb")
    assert spent(tmp_path / "spend.duckdb") == 500


def test_a_failure_that_nobody_read_is_told_at_the_end(tmp_path: Path) -> None:
    """On stderr, because nobody is left to catch it.

    record    $1, where tokens are limited  fails, not read
    """
    program = """
        import sys, tokenbudget_lab as tbl
        tbl.connect(sys.argv[1], embedded=True).budget("lab", tokens=1000).record(usd=1)
    """
    assert "lab limits tokens, and no tokens were given" in run(program, tmp_path / "spend.duckdb")


def test_a_thread_that_waits_does_not_keep_the_interpreter_from_ending(tmp_path: Path) -> None:
    """A daemon thread in the line for a day.

    reserve   a  1000
    reserve   b  1000  waits, in a daemon thread
    end
    """
    program = """
        import sys, threading, time, tokenbudget_lab as tbl
        lab = tbl.connect(sys.argv[1], embedded=True).budget("lab", tokens=1000)
        lab.reserve_sync(tokens=1000)
        threading.Thread(target=lambda: lab.reserve_sync(tokens=1000, wait=86_400), daemon=True).start()
        assert lab.balance.calls_in_flight == 1
    """
    run(program, tmp_path / "spend.duckdb")
    with tbl.connect(tmp_path / "spend.duckdb", embedded=True) as ledger:
        assert ledger.verify().open_reservations == 1


def test_closing_from_many_threads_is_closing_once(ledger: tbl.Ledger, home: Home) -> None:
    """And every receipt is answered before.

    record    1, 100 times
    close     8 times at once
    """
    lab = ledger.budget("lab", tokens=1000)
    receipts = [lab.record(tokens=1) for _ in range(100)]
    threads = [threading.Thread(target=ledger.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    assert all(isinstance(receipt.result(timeout_s=20), tbl.Counted) for receipt in receipts)
    assert home.reopen().budget("lab").balance.committed_tokens == 100


# --- interrupted -----------------------------------------------------------------------------------------------------------


def test_interrupts_inside_verbs_leave_a_ledger_that_works(ledger: tbl.Ledger, log: Log) -> None:
    """Each verb is finished or undone.

    reserve, commit 1  again and again, with Ctrl-C every now and then
    """
    lab = ledger.budget("lab", tokens=1_000_000)
    main, stop, interrupts, seen = threading.get_ident(), threading.Event(), 0, 0

    def inside() -> bool:
        frame = sys._current_frames()[main]
        return frame.f_code is Ticket.wait.__code__

    def interrupt() -> None:
        nonlocal interrupts
        while not stop.is_set():
            if inside():
                interrupts += 1
                os.kill(os.getpid(), signal.SIGINT)
                while interrupts > seen and not stop.is_set():
                    time.sleep(0.0005)

    thread = threading.Thread(target=interrupt)
    thread.start()
    deadline = time.monotonic() + 60
    try:
        while seen < 20:
            try:
                while time.monotonic() < deadline:  # the interrupt comes somewhere in here
                    with lab.reserve(tokens=1) as call:
                        call.commit(tokens=1).result()
            except KeyboardInterrupt:
                seen += 1
            assert time.monotonic() < deadline
    finally:
        stop.set()
        thread.join()
    before = lab.balance.committed_tokens
    with lab.reserve(tokens=5) as call:
        call.commit(tokens=5)
    kinds, after = log.kinds, lab.balance
    assert after.committed_tokens == before + 5
    assert after.calls_in_flight <= seen  # an interrupt between the grant and the block leaves a hold that expires
    ended = sum(kinds.count(kind) for kind in ("committed", "rolled_back", "expired"))
    assert kinds.count("reserved") == ended + after.calls_in_flight
