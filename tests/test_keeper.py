"""The keeper: shared, stopped, killed, elected again. Hundreds of kills in the middle of work are in `test_kills.py`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from multiprocessing.connection import Client
from pathlib import Path

import pytest

import tokenbudget_lab as tbl
from tests.history import checked, recorded
from tests.processes import is_gone, owner_pid, until
from tests.soaking import Pace
from tokenbudget_lab import keeper, link, outbox, wire
from tokenbudget_lab.commands import Command, ListBudgets, Record, Reserve
from tokenbudget_lab.desk import DirectBox, Ticket
from tokenbudget_lab.keeper import read_key
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.wire import pack, to_wire, unpack


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepers of tests leave half a second after their last client."""
    monkeypatch.setenv("TOKENBUDGET_KEEPER_LINGER_S", "0.5")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Where a ledger will live; its keeper is gone afterwards."""
    where = place_of(tmp_path / "spend.duckdb")
    yield where
    link.stop(where)


def told_of(place: Place) -> Path:
    """Where clients write down what they hear."""
    return place.file.with_name("told")


def test_two_connections_share_one_keeper_and_see_each_other(place: Place) -> None:
    """The second `connect` finds the keeper of the first."""
    with tbl.connect(place.file) as one, tbl.connect(place.file) as two:
        one.budget("lab", usd=1)
        with two.budget("lab").reserve(usd="0.30") as call:
            assert one.budget("lab").balance.reserved_usd == Decimal("0.3")
            call.commit(usd="0.20")
        assert one.budget("lab").balance.committed_usd == Decimal("0.2")


def test_a_keeper_leaves_shortly_after_its_last_client(place: Place) -> None:
    """Nothing stays behind: no process, no socket, and the file opens embedded."""
    with tbl.connect(place.file) as ledger:
        ledger.budget("lab", usd=1)
        pid = owner_pid(place)
    until(lambda: is_gone(pid))
    assert not list(place.folder.glob("k????????"))
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.budget("lab").balance.left_usd == 1


def test_an_embedded_owner_is_named_to_whoever_comes_next(place: Place) -> None:
    """The error carries the pid of the process that holds the file."""
    with tbl.connect(place.file, embedded=True), pytest.raises(tbl.LedgerBusy) as caught:
        tbl.connect(place.file)
    assert caught.value.pid == os.getpid()


def test_a_keeper_is_named_to_whoever_wants_the_file_alone(place: Place) -> None:
    """`embedded=True` beside a keeper is refused with the keeper's pid."""
    with tbl.connect(place.file), pytest.raises(tbl.LedgerBusy) as caught:
        tbl.connect(place.file, embedded=True)
    assert caught.value.pid == owner_pid(place)


def test_a_killed_keeper_is_replaced_and_what_it_acknowledged_is_there(place: Place) -> None:
    """What was granted before is committed after.

    reserve  a 0.30
    kill -9  the keeper
    commit   a 0.20    answered by its successor, within two seconds
    """
    with recorded(tbl.connect(place.file), told_of(place)) as ledger:
        lab = ledger.budget("lab", usd=1)
        call = lab.reserve_sync(usd="0.30")
        os.kill(owner_pid(place), signal.SIGKILL)
        start = time.monotonic()
        call.commit(usd="0.20").result()
        assert time.monotonic() - start < 2
        assert lab.balance.committed_usd == Decimal("0.2")
        ledger.verify()
        checked(ledger, told_of(place))


def test_a_waiter_rejoins_the_line_of_the_next_keeper(place: Place) -> None:
    """A killed keeper forgets who waits; the client sends the wait again."""
    told = told_of(place)
    with recorded(tbl.connect(place.file), told) as ledger, recorded(tbl.connect(place.file), told) as other:
        lab = ledger.budget("lab", usd=1)
        first = lab.reserve_sync(usd=1)
        got: list[tbl.Reservation] = []
        waiter = threading.Thread(target=lambda: got.append(other.budget("lab").reserve_sync(usd="0.5", wait=30)))
        waiter.start()
        os.kill(owner_pid(place), signal.SIGKILL)
        first.rollback().result()
        waiter.join(10)
        assert got[0].usd == Decimal("0.5")
        got[0].rollback().result()
        checked(ledger, told)


def test_the_waiter_of_a_client_that_died_holds_nothing(place: Place, tmp_path: Path) -> None:
    """A lost connection leaves the line."""
    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=1)
        first = lab.reserve_sync(usd=1)
        code = """if True:
            import sys, tokenbudget_lab as tbl
            lab = tbl.connect(sys.argv[1]).budget("lab")
            print("up", flush=True)
            lab.reserve_sync(usd=1, wait=60)
        """
        with subprocess.Popen([sys.executable, "-c", code, str(place.file)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            child.kill()
        first.rollback().result()
        with lab.reserve(usd=1, wait=10) as call:
            call.commit(usd=1)


def test_a_client_without_the_key_gets_nowhere_and_disturbs_nobody(place: Place) -> None:
    """No key, a wrong key, silence, garbage, a message of 10 MB: closed, and the others go on."""
    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=1)
        address = place.read_owner()["socket"]
        with pytest.raises((multiprocessing.AuthenticationError, OSError, EOFError)):
            Client(address, family="AF_UNIX", authkey=b"wrong")
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(address)
        loud = socket.socket(socket.AF_UNIX)
        loud.connect(address)
        with pytest.raises(OSError):  # noqa: PT011 - reset or broken pipe, as the kernel likes
            loud.sendall(b"\x7f" * 10_000_000)
        assert lab.balance.left_usd == 1
        silent.settimeout(5)
        silent.recv(4096)  # the challenge
        assert silent.recv(4096) == b""  # and then, two seconds later, the end
        silent.close()
        loud.close()


def test_the_key_of_another_ledger_opens_nothing(place: Place, tmp_path: Path) -> None:
    """Each ledger has its own: who may use one may not use the other for that."""
    other = place_of(tmp_path / "other.duckdb")
    with tbl.connect(place.file) as ledger, tbl.connect(other.file) as another:
        lab = ledger.budget("lab", usd=1)
        with pytest.raises((multiprocessing.AuthenticationError, OSError, EOFError)):
            Client(place.read_owner()["socket"], family="AF_UNIX", authkey=read_key(other))
        assert read_key(place) != read_key(other)
        assert lab.balance.left_usd == 1
        assert not list(another.budgets())


def test_half_a_message_and_then_silence_keeps_nobody_waiting(place: Place) -> None:
    """From a client that was let in, before and behind its first word: it is waited for, by its own thread alone."""
    message = pack({"protocol": wire.PROTOCOL_VERSION, "purpose": "commands"})
    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=1)
        late = Client(place.read_owner()["socket"], family="AF_UNIX", authkey=read_key(place))
        os.write(late.fileno(), len(message).to_bytes(4, "big") + message[:5])
        halted = link.find(place, "commands")
        assert halted is not None
        os.write(halted.fileno(), (1000).to_bytes(4, "big") + b"half")
        with lab.reserve(usd=1, wait=10) as call:
            call.commit(usd="0.5")
        with pytest.raises((EOFError, OSError)):  # whoever has not said who it is after two seconds is hung up on
            late.recv_bytes()
        late.close()
        assert lab.balance.left_usd == Decimal("0.5")
        halted.close()
        pid = owner_pid(place)
    until(lambda: is_gone(pid))  # with its last client, though one of them never finished its sentence


@pytest.fixture
def serving(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[keeper.Keeper]:
    """A keeper in a thread of this process, with small buffers, so that it can be watched."""
    monkeypatch.setattr(outbox, "MAX_BACKLOG", 100_000)
    monkeypatch.setattr(keeper, "SEND_BUFFER", 4096)
    serving = keeper.Keeper(place)
    server = threading.Thread(target=serving.serve)
    server.start()
    yield serving
    serving.stop()
    server.join()


def test_a_client_that_was_hung_up_on_is_answered_all_the_same(
    place: Place, serving: keeper.Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It connects again, sends again, and everything is decided once.

    ask       for 200 budgets, twenty times, and read no answer
    record    1.00
    read      again, when the keeper has hung up
    """
    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=10)
        for n in range(200):
            ledger.budget(f"lab/{n}", usd=1)
        gate, answers = threading.Event(), link.Link._answers
        monkeypatch.setattr(link.Link, "_answers", lambda self, told: (gate.wait(30), answers(self, told)))
        asked = [Ticket(ListBudgets(ledger.new_id()), DirectBox(None)) for _ in range(20)]
        for ticket in asked:
            ledger.desk.submit(ticket)
            time.sleep(0.01)
        receipt = lab.record(usd=1)
        until(lambda: not serving._connections)
        gate.set()
        assert all(ticket.wait(20) and len(ticket.outcome()) == 201 for ticket in asked)
        receipt.result()
        assert lab.balance.committed_usd == 1


def test_a_keeper_without_a_thread_left_goes_on(place: Place, serving: keeper.Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could not be let in tries again; who is there is served."""
    start, failures = threading.Thread.start, iter(range(3))

    def fails(thread: threading.Thread) -> None:
        if thread.name == "tokenbudget client" and next(failures, None) is not None:
            raise RuntimeError("can't start new thread")
        start(thread)

    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=1)
        monkeypatch.setattr(threading.Thread, "start", fails)
        with tbl.connect(place.file) as other:
            assert other.budget("lab").balance.left_usd == 1
        assert next(failures, None) is None
        until(lambda: len(serving._connections) == 1)
        lab.record(usd=1).result()


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits are Linux's to set")
def test_a_keeper_without_a_file_descriptor_left_goes_on(place: Place) -> None:
    """Who comes waits until there is one; who is there is served.

    limit     the keeper's files to those that it has open
    connect   ten more
    reserve   by the first
    raise     the limit
    connect   again
    """
    import resource

    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=1)
        pid, address = owner_pid(place), place.read_owner()["socket"]
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(10)]
        for each in waiting:
            each.connect(address)
        time.sleep(0.5)
        lab.record(usd="0.1").result()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        for each in waiting:
            each.close()
        with tbl.connect(place.file) as other:
            assert other.budget("lab").balance.committed_usd == Decimal("0.1")
        assert owner_pid(place) == pid


FEW_FILES = """if True:
    import resource, sys, tokenbudget_lab as tbl
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
    with tbl.connect(sys.argv[1]) as ledger:
        lab = ledger.budget("lab", usd=1)
        print("up", flush=True)
        sys.stdin.readline()
        lab.record(usd="0.1").result()
        print(lab.balance.committed_usd, flush=True)
"""


def test_a_keeper_lets_in_as_many_as_it_has_file_descriptors_for(place: Place) -> None:
    """Those above are hung up on at once; the others do not notice."""
    child = subprocess.Popen([sys.executable, "-c", FEW_FILES, str(place.file)], stdin=-1, stdout=-1, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        pid = owner_pid(place)
        let_in = []
        while (connection := link.find(place, "commands")) is not None:
            let_in.append(connection)
            assert len(let_in) < 48
        told, _ = child.communicate("go\n", timeout=30)
        for each in let_in:
            each.close()
    assert told == "0.1\n"
    assert owner_pid(place) == pid
    assert len(let_in) >= 8


NEGATIVE = pack(((1, 5, "id", "r", -5, None, None, "measured", *[None] * 8),))


@pytest.mark.parametrize(
    "message",
    [b"", b"\xff" * 100, pack(None), pack(5), pack((1, 2, 3)), pack(((),)), pack(((0, 99),)), pack(((0, 3, "x"),)), NEGATIVE],
)
def test_a_message_that_is_none_closes_that_connection_only(place: Place, message: bytes) -> None:
    """Garbage, unknown commands, wrong fields and negative amounts are not answered; the ledger does not change, and the
    keeper has nothing to say about it.
    """
    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=1)
        connection = link.find(place, "commands")
        assert connection is not None
        connection.send_bytes(message)
        with pytest.raises((EOFError, OSError)):
            connection.recv_bytes()
        connection.close()
        assert lab.balance.left_usd == 1
    assert place.log.read_text() == ""


def test_another_protocol_is_a_named_error(place: Place) -> None:
    """Client and keeper of different versions do not guess."""
    with tbl.connect(place.file):
        connection = Client(place.read_owner()["socket"], family="AF_UNIX", authkey=read_key(place))
        connection.send_bytes(pack({"protocol": 99, "purpose": "commands"}))
        ok, (name, _) = unpack(connection.recv_bytes())
        assert (ok, name) == (False, "VersionMismatch")
        connection.close()


def test_a_key_that_others_can_read_is_refused(place: Place) -> None:
    """A prepared key would let its maker in."""
    place.make_folder()
    place.key.write_bytes(b"k" * 32)
    place.key.chmod(0o644)
    with pytest.raises(tbl.NotALedger, match="key"):
        tbl.connect(place.file)


def test_a_path_too_long_for_a_socket_still_works(tmp_path: Path) -> None:
    """The socket goes to the user's runtime folder then."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    place = place_of(deep / "spend.duckdb")
    with tbl.connect(place.file) as ledger:
        assert ledger.budget("lab", usd=1).balance.left_usd == 1
        assert not place.read_owner()["socket"].startswith(str(deep))
    link.stop(place)


def test_what_a_keeper_cannot_open_is_the_clients_error(place: Place) -> None:
    """The keeper's reason reaches whoever asked, and the file stays as it was."""
    place.file.write_bytes(b"not a ledger at all")
    with pytest.raises(tbl.NotALedger, match="not a DuckDB file"):
        tbl.connect(place.file)
    assert place.file.read_bytes() == b"not a ledger at all"


BROKEN = """if True:
    import os, sys
    if "tokenbudget_lab.keeper" in sys.orig_argv:
        with open(os.environ["STARTS"], "a") as starts:
            starts.write("x")
        {how}
"""


@pytest.mark.parametrize(
    ("how", "error", "says", "starts"),
    [
        ("import duckdb; duckdb.connect = None", "LedgerUnavailable", "TypeError.*not callable", 1),
        ("os._exit(3)", "KeeperUnreachable", "ended without a word", 5),
    ],
)
def test_a_keeper_that_cannot_start_says_why_and_is_not_started_for_ever(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, error: str, says: str, starts: int
) -> None:
    """Whatever goes wrong is the client's error; where nothing is told, a few attempts are enough."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(BROKEN.format(how=how))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    with pytest.raises(getattr(tbl, error), match=says):
        tbl.connect(place.file)
    assert len((tmp_path / "starts").read_text()) == starts


def test_a_ledger_held_on_another_host_names_it(place: Place) -> None:
    """A shared home directory: the error names the host and points to PostgreSQL."""
    with tbl.connect(place.file, embedded=True):
        place.owner.write_text(json.dumps({"pid": 4711, "host": "node-17", "role": "embedded"}))
        with pytest.raises(tbl.LedgerBusy, match=r"node-17.*postgresql") as caught:
            tbl.connect(place.file)
    assert caught.value.host == "node-17"


def test_stop_makes_the_keeper_leave_and_the_next_call_starts_another(place: Place) -> None:
    """`stop` is harmless: whoever still needs the ledger elects a new keeper."""
    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=1)
        before = owner_pid(place)
        assert link.stop(place)
        assert lab.balance.left_usd == 1
        assert owner_pid(place) != before


def test_what_a_client_that_hung_up_asked_for_is_not_held_and_what_it_spent_counts(place: Place) -> None:
    """It was read late, by a keeper that was stopped meanwhile.

    stop      the keeper
    reserve   0.90     by a client that hangs up before the keeper goes on
    record    0.05     by the same
    """
    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=1)
        connection = link.find(place, "commands")
        assert connection is not None
        os.kill(owner_pid(place), signal.SIGSTOP)
        asked: list[Command] = [
            Reserve(ledger.new_id(), "lab", 9 * 10**11, None, None, 600_000_000, "count"),
            Record(ledger.new_id(), "lab", 5 * 10**10, None, None, "measured"),
        ]
        connection.send_bytes(pack(tuple(to_wire(n, command) for n, command in enumerate(asked))))
        connection.close()
        os.kill(owner_pid(place), signal.SIGCONT)
        until(lambda: lab.balance.committed_usd == Decimal("0.05"))
        assert lab.balance.reserved_usd == 0


def test_a_hold_is_not_decided_for_who_hung_up_while_it_waited_for_the_writer() -> None:
    box = DirectBox(None)
    box.closed = True  # as a connection's is when its client is gone
    with tbl.connect(":memory:") as ledger:
        lab = ledger.budget("lab", usd=1)
        ledger.desk.submit(Ticket(Reserve(ledger.new_id(), "lab", 10**12, None, None, 600_000_000, "release"), box))
        assert lab.balance.reserved_usd == 0


def test_copying_and_hashing_the_file_while_it_is_used_harms_nothing(place: Place) -> None:
    """The lock is on another file than DuckDB's own, which such a reader would drop."""
    with tbl.connect(place.file) as ledger:
        lab = ledger.budget("lab", usd=1)
        place.file.read_bytes()
        with pytest.raises(tbl.LedgerBusy):
            tbl.connect(place.file, embedded=True)
        with lab.reserve(usd="0.5") as call:
            call.commit(usd="0.5")
        ledger.verify()


# --- a keeper that does not answer --------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[tbl.Ledger]:
    """A ledger whose keeper is stopped in its tracks, and clients that give up after a second."""
    ledger = recorded(tbl.connect(place.file), told_of(place))  # in its own time, on a machine that is busy
    ledger.budget("lab", tokens=100)
    pid = int(place.read_owner()["pid"])
    with monkeypatch.context() as patch:
        patch.setattr(link, "ANSWER_S", 1.0)
        patch.setattr(link, "CONNECT_S", 1.0)
        os.kill(pid, signal.SIGSTOP)
        yield ledger
        os.kill(pid, signal.SIGCONT)
    with ledger:
        until(lambda: ledger.budget("lab").balance.calls_in_flight == 0)  # a grant that came too late is given back
        checked(ledger, told_of(place))
    link.stop(place)


@pytest.mark.parametrize("what", ["reserve", "wait", "connect", "rows", "status"])
def test_a_keeper_that_is_stopped_hangs_nobody(stopped: tbl.Ledger, place: Place, what: str) -> None:
    """Each verb says within its time that nobody answers; waiting in line is given its own time first."""
    lab = tbl.Budget(stopped, "lab")
    verbs: dict[str, Callable[[], object]] = {
        "reserve": lambda: lab.reserve_sync(tokens=1),
        "wait": lambda: lab.reserve_sync(tokens=1, wait=1),
        "connect": lambda: tbl.connect(place.file),
        "rows": lambda: stopped.sql("select 1 from events"),
        "status": lambda: link.status(place),
    }
    with pytest.raises(tbl.KeeperUnreachable):
        verbs[what]()


def test_a_keeper_that_is_asked_to_leave_sends_no_waiter_away(place: Place) -> None:
    """Who stands in line stands in the next one's.

    reserve   100 of 100
    reserve   100  waits
    stop      the keeper
    rollback  the first
    """
    with recorded(tbl.connect(place.file), told_of(place)) as ledger:
        lab = ledger.budget("lab", tokens=100)
        first = lab.reserve_sync(tokens=100)
        got: list[object] = []

        def wait() -> None:
            try:
                got.append(lab.reserve_sync(tokens=100, wait=60))
            except tbl.TokenBudgetError as error:
                got.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: lab.balance.reserved_tokens == 100)
        link.stop(place)
        first.rollback().result()
        waiting.join(30)
        assert [type(each) for each in got] == [tbl.Reservation]
        checked(ledger, told_of(place))
    link.stop(place)


INTERRUPTED = """if True:
    import pathlib, random, signal, sys, time
    import tokenbudget_lab as tbl
    from tests.history import checked, recorded
    where, told, seed = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    chance = random.Random(seed)
    ledger = recorded(tbl.connect(where), told)
    lab = ledger.budget("lab", tokens=10**9)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    ends, interrupts = time.monotonic() + 4, 0
    while time.monotonic() < ends:
        try:
            # Again after a while: Python drops an interrupt that comes in the middle of a __del__.
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 3e-3), 0.05)
            while True:
                with lab.reserve(tokens=1) as call:
                    call.commit(tokens=1)
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            interrupts += 1
        lab.balance
    ledger.verify()
    checked(ledger, told)
    ledger.close()
    print(interrupts)
"""


@pytest.mark.parametrize("rounds", [pytest.param(1, id="few"), pytest.param(30, id="many", marks=pytest.mark.soak)])
@pytest.mark.parametrize("where", ["memory", "keeper"])
@pytest.mark.timeout(900)
def test_ctrl_c_at_any_moment_hangs_nothing(tmp_path: Path, where: str, rounds: int, pace: Pace) -> None:
    """Hundreds of interrupts, and every time the next verb is answered; what was told agrees with what is there."""
    interrupts = 0
    for n in pace.some(range(rounds)):
        place, told = place_of(tmp_path / f"{n}.duckdb"), tmp_path / f"told-{n}"
        child = subprocess.run(
            [
                sys.executable,
                "-c",
                INTERRUPTED,
                str(place.file) if where == "keeper" else ":memory:",
                told,
                str(pace.chance.random()),
            ],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert child.returncode == 0, child.stderr
        assert int(child.stdout) > 100
        interrupts += int(child.stdout)
        link.stop(place)
    pace.says(f"{interrupts:,} interrupts")


IN_A_HANDLER = """if True:
    import faulthandler, signal, sys, time
    import tokenbudget_lab as tbl
    ledger = tbl.connect(sys.argv[1]) if len(sys.argv) > 1 else tbl.connect(":memory:")
    lab = ledger.budget("lab", tokens=10**9)
    handled = counted = 0

    def handler(*_):
        global handled
        handled += 1
        lab.record(tokens=1)
        if handled % 50 == 0:
            lab.balance
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

    faulthandler.dump_traceback_later(30, exit=True)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    ends = time.monotonic() + 4
    while time.monotonic() < ends:
        lab.record(tokens=1)
        counted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(handled, lab.balance.committed_tokens - handled - counted)
    ledger.close()
"""


@pytest.mark.parametrize("where", ["memory", "keeper"])
@pytest.mark.timeout(120)
def test_a_verb_in_a_signal_handler_hangs_nothing(place: Place, where: str) -> None:
    """The handler of a signal cuts into a verb and calls verbs itself; all of both count, once."""
    child = subprocess.run(
        [sys.executable, "-c", IN_A_HANDLER, *([str(place.file)] if where == "keeper" else [])],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    handled, missing = map(int, child.stdout.split())
    assert (handled > 100, missing) == (True, 0)
    link.stop(place)
