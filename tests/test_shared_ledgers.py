"""Several processes, one budget: on PostgreSQL, whatever happens to the processes, their connections and the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

import tokenbudget_lab as tbl
from tests import postgres
from tests.cutting import Verdict, at, by_chance, way
from tests.soaking import Pace
from tokenbudget_lab import watching, writer
from tokenbudget_lab.desk import Bell
from tokenbudget_lab.servers import server_of
from tokenbudget_lab.stores.postgres import PostgresStore

HERE = Path(__file__).parents[1]
SOON_S = 60.0


@pytest.fixture
def url() -> str:
    return postgres.ledger()


def through(folder: Path, url: str) -> str:
    """The same ledger by another way."""
    return url.replace(f"host={postgres.server().folder}", f"host={folder}")


def worker(url: str, tasks: int, rounds: int, told: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.shared_worker", url, str(tasks), str(rounds)]
    with told.open("w") as out:
        return subprocess.Popen(command, cwd=HERE, stdout=out, stderr=subprocess.STDOUT, text=True)


def spent(url: str, told: list[list[str]], limit: int) -> tuple[int, int]:
    """What was committed and counted in all; whatever was acknowledged is there, once, and nothing was over the limit."""
    with tbl.connect(url) as ledger:
        ledger.verify()
        events = list(ledger.desk.events(10**9))
        kept: dict[str, list[str]] = {}
        total = most = 0
        for event in events:
            if event.kind in ("reserved", "committed", "expired"):
                kept.setdefault(event.reservation or "", []).append(event.kind)
            if event.kind == "reserved":
                total += event.held_tokens or 0
            most = max(most, total)
        for line in told:
            if line[0] in ("reserved", "committed"):
                assert kept[line[1]].count(line[0]) == 1, line
        assert all(len(kinds) <= 2 for kinds in kept.values())
        assert most <= limit
        balance = ledger.budget("lab").balance
        return balance.committed_tokens, balance.reserved_tokens


@pytest.mark.timeout(180)
def test_four_processes_of_twenty_tasks_spend_exactly_what_there_is(url: str, tmp_path: Path) -> None:
    """Eighty callers ask for 400 tokens, and 250 are there.

    limit     lab 250 tokens, lab/study 1000
    reserve   1, commit 1, from 4 processes with 20 tasks each, 5 times
    """
    with tbl.connect(url) as ledger:
        ledger.budget("lab", tokens=250)
        ledger.budget("lab/study", tokens=1000)
    files = [tmp_path / str(n) for n in range(4)]
    workers = [worker(url, 20, 5, file) for file in files]
    assert [one.wait(SOON_S) for one in workers] == [0] * 4
    told = [line.split() for file in files for line in file.read_text().splitlines()]
    assert spent(url, told, 250) == (250, 0)
    assert sum(line[0] == "committed" for line in told) == 250


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sixteen_processes_of_fifty_tasks_never_overspend_while_they_are_killed_and_cut_off(
    url: str, tmp_path: Path, pace: Pace
) -> None:
    """Killed processes leave holds, which count when they expire; connections are cut anywhere all the while."""
    limit, folder = 20_000, tmp_path / "way"
    folder.mkdir()
    with tbl.connect(url) as ledger:
        ledger.budget("lab", tokens=limit)
        ledger.budget("lab/study", tokens=10 * limit)
    chance = pace.chance
    files: list[Path] = []
    with way(folder, postgres.server().folder, by_chance(chance, 200)) as cutting:
        running: list[subprocess.Popen[str]] = []
        for _ in range(120):
            while len(running) < 16:
                files.append(tmp_path / str(len(files)))
                running.append(worker(through(folder, url), 50, 40, files[-1]))
            time.sleep(0.5)
            os.kill(chance.choice(running).pid, signal.SIGKILL)
            running = [one for one in running if one.poll() is None]
        for one in running:
            one.wait(SOON_S * 5)
        assert cutting.cuts > 20
    told = [line.split() for file in files for line in file.read_text().splitlines() if not line.startswith("Traceback")]
    time.sleep(21)  # what the killed ones held
    committed, reserved = spent(url, told, limit)
    assert reserved == 0
    assert committed <= limit
    assert sum(line[0] == "committed" for line in told) <= committed


# --- a connection that is lost at each step ---------------------------------------------------------------------------

STEPS: list[Any] = [
    pytest.param(word, direction, verdict, id=f"{word.decode().split('.')[1]}-{name}")
    for word in (b"tokenbudget.load", b"tokenbudget.append")
    for name, direction, verdict in (
        ("before it arrives", "to", lambda piece: 0),
        ("in its midst", "to", lambda piece: len(piece) // 2),
        ("before its answer", "from", lambda piece: 0),
        ("in the midst of its answer", "from", lambda piece: len(piece) // 2),
    )
]


@pytest.mark.parametrize(("word", "direction", "verdict"), STEPS)
def test_what_was_cut_off_is_decided_once(word: bytes, direction: str, verdict: Any, url: str, tmp_path: Path) -> None:
    """The caller notices nothing.

    limit     100 tokens
    reserve   60, cut off
    commit    60, cut off
    """
    with way(tmp_path, postgres.server().folder, lambda _, __: None) as cutting:
        with tbl.connect(through(tmp_path, url)) as ledger:
            lab = ledger.budget("lab", tokens=100)
            cutting.judge = at(word, direction, verdict)
            held = lab.reserve_sync(tokens=60)
            cutting.judge = at(word, direction, verdict)
            held.commit(tokens=60).result()
            assert (lab.balance.committed_tokens, lab.balance.reserved_tokens) == (60, 0)
            kinds = [event.kind for event in ledger.desk.events(ledger.verify().events)]
        assert kinds == ["created", "budget_set", "reserved", "committed"]
        assert cutting.cuts == 2


@pytest.mark.parametrize(("word", "direction", "verdict"), STEPS)
def test_a_ledger_whose_opening_was_cut_off_is_begun_once(
    word: bytes, direction: str, verdict: Any, url: str, tmp_path: Path
) -> None:
    with way(tmp_path, postgres.server().folder, at(word, direction, verdict)) as cutting:
        with tbl.connect(through(tmp_path, url)) as ledger:
            assert [event.kind for event in ledger.desk.events(ledger.verify().events)] == ["created"]
        assert cutting.cuts == 1


def test_a_refusal_whose_answer_was_lost_is_kept_once(url: str, tmp_path: Path) -> None:
    """The server has committed it; by its id it would not be found, as what was refused may be asked for again.

    limit     100 tokens
    reserve   200, refused, its answer is lost
    """
    with way(tmp_path, postgres.server().folder, lambda _, __: None) as cutting:
        with tbl.connect(through(tmp_path, url)) as ledger:
            lab = ledger.budget("lab", tokens=100)
            cutting.judge = at(b"tokenbudget.append", "from", lambda piece: 0)
            with pytest.raises(tbl.BudgetExceeded, match="200 tokens requested"):
                lab.reserve_sync(tokens=200)
            kinds = [event.kind for event in ledger.desk.events(ledger.verify().events)]
        assert kinds == ["created", "budget_set", "refused"]
        assert cutting.cuts == 1


def test_refusals_that_were_only_counted_outlive_a_lost_connection(url: str, tmp_path: Path) -> None:
    """The first of a minute is written, the others are counted, and their number is written later.

    limit     100 tokens
    reserve   200, refused, 5 times
    record    1, its connection is lost
    """
    with way(tmp_path, postgres.server().folder, lambda _, __: None) as cutting:
        with tbl.connect(through(tmp_path, url)) as ledger:
            lab = ledger.budget("lab", tokens=100)
            for n in range(5):
                if n == 3:
                    cutting.judge = at(b"tokenbudget.append", "to", lambda piece: 0)
                    lab.record(tokens=1).result()
                with pytest.raises(tbl.BudgetExceeded):
                    lab.reserve_sync(tokens=200)
        assert cutting.cuts == 1
    assert refusals(url) == 5


def test_refusals_of_a_batch_that_is_decided_anew_are_counted_once(url: str, tmp_path: Path) -> None:
    """The second refusal of a minute is in one batch with a record, whose connection is lost.

    limit     100 tokens
    reserve   200, refused
    record    1, while somebody holds the head
    record    1, reserve 200, refused; cut off
    """
    appended = 0

    def judge(direction: str, piece: bytes) -> Verdict:
        nonlocal appended
        appended += direction == "to" and b"tokenbudget.append" in piece
        return 0 if appended == 2 and cutting.cuts == 0 else None

    with (
        way(tmp_path, postgres.server().folder, lambda _, __: None) as cutting,
        tbl.connect(through(tmp_path, url)) as ledger,
        psycopg.connect(server_of(url).conninfo) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        lab, queue = ledger.budget("lab", tokens=100), ledger.desk._queue  # type: ignore[attr-defined] # a writer's
        with pytest.raises(tbl.BudgetExceeded):
            lab.reserve_sync(tokens=200)
        cutting.judge = judge
        other.execute("select 1 from tokenbudget.heads where name = %s for no key update", (server_of(url).ledger,))
        receipts = [lab.record(tokens=1)]
        postgres.wait_until(lambda: not queue)
        receipts.append(lab.record(tokens=1))
        refused = pool.submit(lab.reserve_sync, tokens=200)
        postgres.wait_until(lambda: len(queue) == 2)
        other.rollback()
        assert isinstance(refused.exception(), tbl.BudgetExceeded)
        assert [receipt.result() is not None for receipt in receipts] == [True, True]
        assert (cutting.cuts, lab.balance.committed_tokens) == (1, 2)
    assert refusals(url) == 2


def refusals(url: str) -> int:
    """How many a ledger knows of."""
    with tbl.connect(url) as ledger:
        events = [event for event in ledger.desk.events(ledger.verify().events) if event.kind == "refused"]
    return sum(json.loads(event.detail or "")["count"] for event in events)


def test_who_waits_is_called_by_whoever_frees_something_elsewhere(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not only when it looks by itself.

    limit     100 tokens
    reserve   100, here
    reserve   100, there, waits
    rollback  here
    """
    monkeypatch.setattr(writer, "_LOOK_AGAIN_S", 60.0)
    with tbl.connect(url) as here, tbl.connect(url) as there, ThreadPoolExecutor(1) as pool:
        held = here.budget("lab", tokens=100).reserve_sync(tokens=100)
        waiting = pool.submit(there.budget("lab").reserve_sync, tokens=100, wait=30)
        name = url.partition("@/")[2].partition("?")[0]
        postgres.wait_until(lambda: postgres.server().run("select 1 from tokenbudget.waiting", name))
        began = time.monotonic()
        held.rollback().result()
        granted = waiting.result(timeout=20)
        assert time.monotonic() - began < 5
        assert granted.id != held.id


def test_who_waits_looks_by_itself_where_nobody_can_call(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with engines that speak the protocol and have no LISTEN."""
    monkeypatch.setattr(PostgresStore, "listen", lambda self, ring: None)
    with tbl.connect(url) as here, tbl.connect(url) as there, ThreadPoolExecutor(1) as pool:
        held = here.budget("lab", tokens=100).reserve_sync(tokens=100)
        waiting = pool.submit(there.budget("lab").reserve_sync, tokens=100, wait=30)
        time.sleep(0.2)
        held.rollback().result()
        assert waiting.result(timeout=10).id != held.id


def test_who_watches_is_called_by_whoever_changes_something_elsewhere(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gauge and a dashboard here, which would not look by themselves; spend, and then spend again, there."""
    for name in ("SLOW_S", "CALLED_S"):
        monkeypatch.setattr(watching, name, 60.0)
    with tbl.connect(url) as here, tbl.connect(url) as there:
        study = here.budget("study", usd=5)
        with tbl.gauge(study) as gauge, tbl.dashboard(here) as dashboard:
            postgres.wait_until(lambda: here.desk.watch(Bell()))
            time.sleep(watching.LIVELY_S + 0.5)  # both are at rest
            for spent in (Decimal("0.25"), Decimal("0.50")):
                there.budget("study").record(usd="0.25").result()
                postgres.wait_until(lambda spent=spent: gauge._shown.committed_usd == spent)
                postgres.wait_until(lambda spent=spent: dashboard._sight.balances[0].committed_usd == spent)


def test_two_ledgers_of_one_database_never_touch(url: str) -> None:
    """The same budget in both, and no token of one in the other."""
    other = postgres.ledger()
    with tbl.connect(url) as one, tbl.connect(other) as two:
        for ledger, tokens in ((one, 10), (two, 20)):
            ledger.budget("lab", tokens=100).record(tokens=tokens).result()
        assert [ledger.budget("lab").balance.committed_tokens for ledger in (one, two)] == [10, 20]
        assert [ledger.verify().events for ledger in (one, two)] == [3, 3]
        assert one.events().collect().height == 3


def test_who_is_stopped_with_the_head_in_hand_is_thrown_out_and_the_others_go_on(url: str) -> None:
    """A process that was stopped holds the head until the server ends its idle transaction; then others go on."""
    with tbl.connect(url) as ledger:
        ledger.budget("lab", tokens=100)
        store = PostgresStore(url)
        store._ask("set idle_in_transaction_session_timeout = '500ms'", ())
        store._ask("begin; select 1 from tokenbudget.heads for no key update", ())
        began = time.monotonic()
        ledger.budget("lab").record(tokens=1).result()
        assert 0.3 < time.monotonic() - began < 5
        store.close()


def test_a_server_that_is_started_again_is_waited_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What was acknowledged before is there, and what is asked for meanwhile is answered afterwards."""
    postgres.server()  # there is PostgreSQL at all
    folder = Path("/tmp") / f"tb-restart-{os.getpid()}"  # noqa: S108 - a path that is short enough for a socket
    folder.mkdir()
    server = postgres.Server(folder, {"max_connections": "20", "fsync": "off"})
    try:
        server.make()
        with tbl.connect(server.url("tb_template")) as ledger:
            lab = ledger.budget("lab", tokens=100)
            lab.record(tokens=1).result()
            server.stop()
            receipt = lab.record(tokens=2)
            time.sleep(0.3)
            server.start()
            receipt.result()
            assert lab.balance.committed_tokens == 3
            assert ledger.verify().events == 4
        server.stop()
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)
