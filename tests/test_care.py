"""Care: checkpoints behind a copy, snapshots that are never trusted over the events, backups, and a clock that was moved."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock
from tests.history import checked, recorded
from tests.processes import owner_pid, until
from tokenbudget_lab import link, recovery, snapshots
from tokenbudget_lab.ids import uuid7_source
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.recovery import Checkpoint, log_of
from tokenbudget_lab.state import State
from tokenbudget_lab.store import Store
from tokenbudget_lab.stores import duckdb as store_module
from tokenbudget_lab.stores.duckdb import DuckDBStore
from tokenbudget_lab.stores.memory import MemoryStore
from tokenbudget_lab.writer import Writer

HOUR_NS = 3600 * 10**9


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_of(tmp_path / "spend.duckdb")


def work(ledger: tbl.Ledger, calls: int) -> None:
    """Calls of 10 tokens: every third stays open, the others are committed."""
    lab = ledger.budget("lab", limits=[tbl.Limit(tokens=10**9), tbl.Limit(tokens=10**9, window="day")], alerts=(0.5,))
    for n in range(calls):
        held = lab.reserve_sync(tokens=10, key=f"row-{n}", tags={"n": str(n)}, timeout=3600)
        if n % 3:
            held.commit(tokens=10).result()


# --- checkpoints ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after ten transactions."""
    monkeypatch.setattr(store_module, "CHECKPOINT_TRANSACTIONS", 10)


def test_the_log_is_folded_into_the_file_behind_a_copy(place: Place, often: None) -> None:
    """Nothing is lost by it, and the copy from before the last one is kept."""
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 30)
        ledger.verify()
        size = log_of(place.file).stat().st_size
    assert size < 10_000
    assert (Checkpoint(place).copy / place.file.name).exists()
    assert not Checkpoint(place).interrupted
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.verify().open_reservations == 10


def test_a_log_that_has_grown_is_folded_in_whatever_the_number_of_transactions(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few large batches make a log that is as slow to replay as many small ones."""
    monkeypatch.setattr(store_module, "CHECKPOINT_LOG", 20_000)
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 60)
        ledger.verify()
    assert log_of(place.file).stat().st_size < 40_000
    assert Checkpoint(place).copy.exists()


def test_owners_that_each_write_a_little_fold_the_log_in_together(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short sessions do not leave a log that takes longer to open each time.

    checkpoint  after about 60 transactions
    sessions    20, of 12 each
    """
    monkeypatch.setattr(store_module, "CHECKPOINT_TRANSACTIONS", 60)
    sizes = []
    for _ in range(20):
        with tbl.connect(place.file, embedded=True) as ledger:
            lab = ledger.budget("lab", tokens=10**6)
            for _ in range(12):
                lab.record(tokens=1).result()
        log = log_of(place.file)
        sizes.append(log.stat().st_size if log.exists() else 0)  # there is none when the last one checkpointed at its end
    assert max(sizes) < 60 * 2 * store_module.LOGGED
    assert Checkpoint(place).copy.exists()


CHECKPOINTING = """if True:
    import os, pathlib, sys
    import tokenbudget_lab as tbl
    from tests.history import recorded
    from tokenbudget_lab.stores import duckdb as store
    from tokenbudget_lab import recovery
    store.CHECKPOINT_TRANSACTIONS = 5
    where, at = sys.argv[1:]
    def killed(self, *rest):
        os.kill(os.getpid(), 9)
    def after(work):
        def run(self, *rest):
            work(self, *rest)
            killed(self)
        return run
    if at == "before the copy": recovery.Checkpoint.begin = killed
    if at == "behind the mark": recovery.Checkpoint.begin = after(recovery.Checkpoint.begin)
    if at == "behind the checkpoint": recovery.Checkpoint.end = killed
    if at == "behind the end": recovery.Checkpoint.end = after(recovery.Checkpoint.end)
    if at == "in the copy":
        copy_file = recovery.copy_file
        def half(source, target):
            copy_file(source, target)
            os.truncate(target, target.stat().st_size // 2)
            killed(None)
        recovery.copy_file = half
    with recorded(tbl.connect(where, embedded=True), pathlib.Path(where).with_name("told")) as ledger:
        lab = ledger.budget("lab", tokens=10**6)
        while True:
            lab.record(tokens=1).result()
            print("acknowledged", flush=True)
"""


def told_of(place: Place) -> Path:
    """Where clients write down what they hear."""
    return place.file.with_name("told")


MOMENTS = ["before the copy", "in the copy", "behind the mark", "behind the checkpoint", "behind the end"]


def killed_at(place: Place, moment: str) -> int:
    """How many records a process acknowledged that was killed at a moment of a checkpoint."""
    code = [sys.executable, "-c", CHECKPOINTING, str(place.file), moment]
    child = subprocess.run(code, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL, child.stderr
    return child.stdout.count("acknowledged")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_of_a_checkpoint_nothing_is_lost(place: Place, moment: str) -> None:
    acknowledged = killed_at(place, moment)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.budget("lab").balance.committed_tokens in (acknowledged, acknowledged + 1)
        ledger.verify()
        checked(ledger, told_of(place))
        assert not Checkpoint(place).interrupted


@pytest.mark.parametrize(
    ("how", "embedded"),
    [("torn", True), ("emptied in the middle", True), ("cut", True), ("cut", False), ("without a header", True)],
)
def test_a_file_that_a_checkpoint_left_torn_is_restored_from_the_copy(
    place: Place,
    caplog: pytest.LogCaptureFixture,
    how: str,
    embedded: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """It says so, through a keeper too, and what was found is kept."""
    acknowledged = killed_at(place, "behind the mark")
    data = bytearray(place.file.read_bytes())
    if how == "torn":
        data[:8192] = bytes(8192)
        data[8:12] = b"DUCK"
    elif how == "without a header":
        data[:4096] = bytes(4096)
    elif how == "cut":
        del data[len(data) // 2 :]
    else:
        data[12288:] = bytes(len(data) - 12288)
        log_of(place.file).unlink()
    place.file.write_bytes(data)
    with caplog.at_level(logging.WARNING), tbl.connect(place.file, embedded=embedded) as ledger:
        assert ledger.budget("lab").balance.committed_tokens in (acknowledged, acknowledged + 1)
        ledger.verify()
        checked(ledger, told_of(place))
        assert ledger.damage is None
    assert caplog.text.count("a checkpoint was cut short") == 1
    if not embedded:
        link.stop(place)
    (kept,) = place.folder.glob("broken-*")
    assert (kept / place.file.name).read_bytes() == data


SLOW_CP = """#!/bin/sh
# Opens its target at once, and writes to it two seconds later; a log it copies as ever.
case "$2" in *.wal) exec /bin/cp "$@";; esac
exec 3> "$3"
touch "$0.opened"
sleep 2
cat "$2" >&3
touch "$0.written"
"""


def with_slow_cp(folder: Path) -> str:
    """A `PATH` on which `cp` takes its time."""
    slow = folder / "slow"
    slow.mkdir()
    (slow / "cp").write_text(SLOW_CP)
    (slow / "cp").chmod(0o700)
    return f"{slow}{os.pathsep}{os.environ['PATH']}"


def test_a_cp_that_outlives_its_killed_owner_writes_to_no_file_that_is_in_use(place: Place, tmp_path: Path) -> None:
    """`kill -9` ends the owner and not what it has started.

    one   is killed behind the mark of a checkpoint
    two   puts the copy back, and is killed while its `cp` is at work
    three puts it back too, and goes on; then that `cp` writes
    """
    acknowledged = killed_at(place, "behind the mark")
    code = "import sys, tokenbudget_lab as tbl; tbl.connect(sys.argv[1], embedded=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place.file)], env={**os.environ, "PATH": with_slow_cp(tmp_path)}
    ) as two:
        until((tmp_path / "slow" / "cp.opened").exists)
        two.kill()
    with recorded(tbl.connect(place.file, embedded=True), told_of(place)) as ledger:
        ledger.budget("lab").record(tokens=1).result()
        until((tmp_path / "slow" / "cp.written").exists)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.budget("lab").balance.committed_tokens in (acknowledged + 1, acknowledged + 2)
        ledger.verify()
        checked(ledger, told_of(place))


def test_the_mark_of_a_checkpoint_that_ended_takes_nothing_back(place: Place) -> None:
    """After a power cut it may be there again, where its removal was not synced; the copy is older than what is acknowledged.

    mark      at the third call, and it is removed
    call      3 more
    mark      is there again
    """
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 3)
        seq = ledger.verify().events
    checkpoint = Checkpoint(place)
    checkpoint.begin(seq)
    checkpoint.end()
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 6)
        events = ledger.verify().events
    checkpoint.mark.write_text(str(seq))
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.verify().events == events > seq
    assert not checkpoint.interrupted


@pytest.mark.parametrize("torn", [False, True])
def test_a_checkpoint_whose_copy_was_removed_takes_nothing_away(place: Place, *, torn: bool) -> None:
    """Somebody made room. What can be read is the ledger; what cannot is named, and left as it is."""
    acknowledged = killed_at(place, "behind the mark")
    shutil.rmtree(Checkpoint(place).copy)
    if torn:
        data = place.file.read_bytes()
        place.file.write_bytes(data[:4096] + bytes(8192) + data[12288:])
    before = place.file.read_bytes()
    if torn:
        with pytest.raises(tbl.LedgerDamaged):
            tbl.connect(place.file, embedded=True)
        assert place.file.read_bytes() == before
        return
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.budget("lab").balance.committed_tokens in (acknowledged, acknowledged + 1)
        ledger.verify()


def test_where_there_is_no_room_for_the_copy_there_is_no_checkpoint_and_the_ledger_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again after a tenth of the transactions; the file is not opened again for it."""
    tried: list[Path] = []

    def full(source: Path, target: Path) -> None:
        tried.append(target)
        raise OSError("no space left")

    monkeypatch.setattr(store_module, "CHECKPOINT_TRANSACTIONS", 20)
    monkeypatch.setattr(recovery, "copy_file", full)
    monkeypatch.setattr(DuckDBStore, "reopen", lambda _: pytest.fail("it was opened again"))
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 20)
        ledger.verify()
    assert 5 < len(tried) < 12
    assert "no checkpoint now" in caplog.text
    monkeypatch.undo()
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.verify().open_reservations == 7


def test_readers_do_not_stand_in_the_way_of_a_checkpoint(place: Place, often: None) -> None:
    """One that is in the middle of its rows goes on, and so do those who write."""
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 10)
        reader = ledger.desk.arrow()
        first = next(reader)
        work(ledger, 30)
        assert first.num_rows + sum(batch.num_rows for batch in reader) >= 17
        ledger.verify()


def test_a_backup_whose_keeper_is_killed_is_made_by_the_next(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first one has left of it is not in the way.

    backup    begins
    kill -9   the keeper
    backup    ends
    """
    monkeypatch.setenv("TOKENBUDGET_KEEPER_LINGER_S", "0.5")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", with_slow_cp(tmp_path))
        ledger = tbl.connect(place.file)
    with ledger:
        ledger.budget("lab", tokens=10).record(tokens=1).result()
        made: list[Path] = []
        backup = threading.Thread(target=lambda: made.append(ledger.backup(tmp_path / "copy.duckdb")))
        backup.start()
        until((tmp_path / "slow" / "cp.opened").exists)
        os.kill(owner_pid(place), signal.SIGKILL)
        backup.join(30)
        assert made == [tmp_path / "copy.duckdb"]
    link.stop(place)
    with tbl.connect(made[0], embedded=True) as copy:
        assert copy.budget("lab").balance.committed_tokens == 1
        copy.verify()


# --- snapshots --------------------------------------------------------------------------------------------------------------


def folded(place: Place) -> State:
    """The fold of all events from the first."""
    store = DuckDBStore(place)
    state = State()
    for event in store.load():
        state.apply(event)
    store.close()
    return state


def numbers(state: State) -> tuple[object, ...]:
    opened = dict(state.open)
    return state.seq, state.ts, state.head, state.digest(), opened, state.open_count, state.ledger_id


def test_a_snapshot_is_the_fold(place: Place) -> None:
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 30)
        ledger.budget("lab").close()
        ledger.budget("big", usd=10**12).record(usd=9 * 10**11).result()
    state = folded(place)
    again = snapshots.load(snapshots.dump(state))
    assert numbers(again) == numbers(state)
    assert [node.caps for node in again.nodes.values()] == [node.caps for node in state.nodes.values()]


def test_a_ledger_that_begins_with_a_snapshot_goes_on_as_before(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open calls end, ended ones are looked up, keys find their calls, and the proof is of all events.

    snapshot  with 10 open calls
    commit    an open one; a committed one again, the same and another amount
    reserve   with an old key
    """
    monkeypatch.setattr(store_module, "SNAPSHOT_EVENTS", 1)
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 30)
        lab = ledger.budget("lab")
        one, other = lab.reserve_sync(tokens=5), lab.reserve_sync(tokens=5, key="mine")
        other.commit(tokens=4).result()
    assert place.snapshot.exists()
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.desk.decisions.state.forgotten_until > 0, "it began with the snapshot"  # type: ignore[attr-defined] # a writer
        lab, one._ledger, other._ledger = ledger.budget("lab"), ledger, ledger
        one.commit(tokens=5).result()
        again = other.commit(tokens=4).result()
        assert isinstance(again, tbl.Counted)
        with pytest.raises(tbl.ReservationClosed):
            other.commit(tokens=5).result()
        assert lab.reserve_sync(tokens=5, key="mine").id == other.id
        assert lab.balance.committed_tokens == 209
        ledger.verify()


@pytest.mark.parametrize("what", ["a flipped byte", "half of it", "another ledger's", "nothing", "another version"])
def test_a_snapshot_that_does_not_fit_is_not_used(place: Place, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(store_module, "SNAPSHOT_EVENTS", 1)
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 6)
    data = place.snapshot.read_bytes()
    if what == "another ledger's":
        with tbl.connect(place.file.with_name("other.duckdb"), embedded=True) as ledger:
            work(ledger, 6)
        data = place_of(place.file.with_name("other.duckdb")).snapshot.read_bytes()
    elif what == "another version":
        data = snapshots.dump(folded(place)).replace(b'"version":3', b'"version":1')
    place.snapshot.write_bytes(
        {
            "a flipped byte": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
            "half of it": data[: len(data) // 2],
            "nothing": b"",
        }.get(what, data)
    )
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.budget("lab").balance.committed_tokens == 40
        assert ledger.desk.decisions.state.forgotten_until == 0  # type: ignore[attr-defined] # a writer
        ledger.verify()


@pytest.mark.parametrize("what", ["closed", "tz", "alerts", "caps"])
def test_a_snapshot_of_another_budget_is_found_by_verify(place: Place, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that opens what was closed, or gives a budget more, though nothing of it is spent."""
    monkeypatch.setattr(store_module, "SNAPSHOT_EVENTS", 1)
    with tbl.connect(place.file, embedded=True) as ledger:
        ledger.budget("new", usd=1)
    state = snapshots.read(place.snapshot)
    assert state is not None
    node = state.nodes["new"]
    if what == "caps":
        node.set_caps((node.accounts[0].cap._replace(usd=10**15),))
    else:
        setattr(node, what, {"closed": True, "tz": "Asia/Tokyo", "alerts": (0.5,)}[what])
    place.snapshot.write_bytes(snapshots.dump(state))
    with tbl.connect(place.file, embedded=True) as ledger, pytest.raises(tbl.LedgerCorrupt, match="other balances"):
        ledger.verify()


def test_a_forged_snapshot_is_found_by_verify(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says that less is spent, with a right checksum."""
    monkeypatch.setattr(store_module, "SNAPSHOT_EVENTS", 1)
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 6)
    state = snapshots.read(place.snapshot)
    assert state is not None
    state.nodes["lab"].accounts[0].at(0).committed_tokens -= 10
    place.snapshot.write_bytes(snapshots.dump(state))
    with tbl.connect(place.file, embedded=True) as ledger, pytest.raises(tbl.LedgerCorrupt, match="other balances"):
        ledger.verify()


# --- backups ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["embedded", "keeper"])
def ledger(request: pytest.FixtureRequest, place: Place) -> Iterator[tbl.Ledger]:
    with tbl.connect(place.file, embedded=request.param == "embedded") as ledger:
        work(ledger, 9)
        yield ledger
    if request.param == "keeper":
        link.stop(place)


def test_a_backup_is_one_whole_file(ledger: tbl.Ledger, tmp_path: Path) -> None:
    """While others spend; it opens by itself, and the ledger goes on."""
    spending = threading.Thread(target=work, args=(ledger, 30))
    spending.start()
    made = ledger.backup(tmp_path / "copy.duckdb")
    spending.join()
    assert (made, log_of(made).exists(), made.stat().st_mode & 0o077) == (tmp_path / "copy.duckdb", False, 0)
    with tbl.connect(made, embedded=True) as copy:
        proof, original = copy.verify(), ledger.verify()
        assert 2 <= proof.events <= original.events
    assert not list(tmp_path.glob("spend.duckdb.d/copy-*"))


def test_a_backup_overwrites_nothing(ledger: tbl.Ledger, tmp_path: Path) -> None:
    there = tmp_path / "there.duckdb"
    there.write_text("mine")
    for path in (there, tmp_path / "spend.duckdb", tmp_path / "no such folder" / "x.duckdb"):
        with pytest.raises(tbl.InvalidValue):
            ledger.backup(path)
    assert there.read_text() == "mine"


def test_a_backup_needs_no_hard_links(ledger: tbl.Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sticks and network shares have none."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with tbl.connect(ledger.backup(tmp_path / "copy.duckdb"), embedded=True) as copy:
        copy.verify()


def test_a_backup_writes_through_no_link(ledger: tbl.Ledger, tmp_path: Path) -> None:
    """Whatever name somebody prepared in a shared folder: the target's, or one that a draft might have."""
    (tmp_path / "precious.txt").write_text("thesis")
    for name in ("copy.duckdb", f".copy.duckdb.{os.getpid()}", f".other.duckdb.{os.getpid()}"):
        (tmp_path / name).symlink_to(tmp_path / "precious.txt")
    (tmp_path / "nowhere.duckdb").symlink_to(tmp_path / "nothing")
    for name in ("copy.duckdb", "nowhere.duckdb"):
        with pytest.raises(tbl.InvalidValue, match="there already"):
            ledger.backup(tmp_path / name)
    ledger.backup(tmp_path / "other.duckdb")
    assert (tmp_path / "precious.txt").read_text() == "thesis"
    assert not (tmp_path / "nothing").exists()


def test_a_backup_that_fails_leaves_nothing(ledger: tbl.Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a file nor the copy that it was to be made from."""

    def full(_: object, made: BinaryIO, length: int) -> None:
        made.write(bytes(length))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(tbl.StoreFailed, match="No space left"):
            ledger.backup(tmp_path / "copy.duckdb")
    assert not (tmp_path / "copy.duckdb").exists()
    assert not list(tmp_path.glob("spend.duckdb.d/copy-*"))
    ledger.backup(tmp_path / "copy.duckdb")


def test_of_backups_to_one_path_one_is_made(ledger: tbl.Ledger, tmp_path: Path) -> None:
    """The others say that it is there."""
    ends: list[str] = []

    def make() -> None:
        try:
            ends.append(str(ledger.backup(tmp_path / "copy.duckdb")))
        except tbl.TokenBudgetError as error:
            ends.append(type(error).__name__)

    making = [threading.Thread(target=make) for _ in range(4)]
    for each in making:
        each.start()
    for each in making:
        each.join()
    assert sorted(ends) == sorted([str(tmp_path / "copy.duckdb"), *["InvalidValue"] * 3])
    with tbl.connect(tmp_path / "copy.duckdb", embedded=True) as copy:
        copy.verify()
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("spend.duckdb", "spend.duckdb.wal", "spend.duckdb.d"),
        *("copy.duckdb", "copy.duckdb.wal", "copy.duckdb.d"),
    }
    assert not list(tmp_path.glob("spend.duckdb.d/copy-*"))


KILLED_BACKUP = """if True:
    import os, shutil, sys, tokenbudget_lab as tbl
    whole = shutil.copyfileobj

    def killed(source, made, length):
        whole(source, made, length)
        made.flush()
        os._exit(9)

    ledger = tbl.connect(sys.argv[1], embedded=True)
    shutil.copyfileobj = killed
    ledger.backup(sys.argv[2])
"""


def test_a_backup_that_was_killed_is_no_ledger_and_its_copy_goes_with_a_later_one(place: Place, tmp_path: Path) -> None:
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 3)
    half = tmp_path / "half.duckdb"
    assert subprocess.run([sys.executable, "-c", KILLED_BACKUP, place.file, half], check=False).returncode == 9
    with pytest.raises(tbl.NotALedger, match="not a DuckDB file"):
        tbl.connect(half, embedded=True)
    (left,) = place.folder.glob("copy-*")
    with tbl.connect(place.file, embedded=True) as ledger:
        ledger.backup(tmp_path / "one.duckdb")
        assert left.exists()  # somebody may be at work on it
        os.utime(left, (time.time() - 2 * 86_400,) * 2)
        ledger.backup(tmp_path / "two.duckdb")
    assert not list(place.folder.glob("copy-*"))


@pytest.mark.parametrize("embedded", [True, False])
def test_there_is_no_backup_of_a_damaged_ledger(place: Place, tmp_path: Path, *, embedded: bool) -> None:
    """Its heads stay behind, so that the copy would look whole, and verify.

    commit    9 calls
    cut       the log
    """
    with tbl.connect(place.file, embedded=True) as ledger:
        work(ledger, 9)
    with log_of(place.file).open("rb+") as cut:
        cut.truncate(log_of(place.file).stat().st_size - 20)
    with tbl.connect(place.file, embedded=embedded) as ledger:
        with pytest.raises(tbl.LedgerDamaged):
            ledger.backup(tmp_path / "copy.duckdb")
        assert ledger.budget("lab").balance.committed_tokens > 0
    assert not (tmp_path / "copy.duckdb").exists()
    assert not list(place.folder.glob("copy-*"))
    if not embedded:
        link.stop(place)


def test_there_is_no_backup_of_memory(tmp_path: Path) -> None:
    with tbl.connect(":memory:") as ledger, pytest.raises(tbl.InvalidValue, match="in memory"):
        ledger.backup(tmp_path / "copy.duckdb")


# --- the clock --------------------------------------------------------------------------------------------------------------


class Machine:
    """Two clocks that go together until one is set."""

    def __init__(self) -> None:
        self.clock, self.boot, self.start = Clock(), HOUR_NS, "the first"

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.boot += round(seconds * 1e9)

    def restart(self) -> None:
        """It is started again, and its clock goes on from what it was set to."""
        self.boot, self.start = 0, f"the one after {self.start}"

    def open(self, store: Store) -> tbl.Ledger:
        ids = uuid7_source(self.clock.now_ns)
        desk = Writer(store, clock_ns=self.clock.now_ns, ids=ids, boot_ns=lambda: self.boot, boot_id=lambda: self.start)
        return tbl.Ledger(desk=desk, ids=ids)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize("hours", [-2, 2, 24 * 3650])
def test_a_clock_that_is_moved_stops_the_writing_until_it_is_accepted(machine: Machine, hours: int) -> None:
    """A day's budget that is spent does not open because somebody sets the clock; reading goes on.

    limit     100 tokens a day, spent
    clock     moved
    reserve   refused
    accept
    """
    with machine.open(MemoryStore()) as ledger:
        lab = ledger.budget("lab", tokens=100, window="day")
        lab.record(tokens=100).result()
        machine.clock.advance(hours * 3600)
        with pytest.raises(tbl.ClockJumped) as jumped:
            lab.reserve_sync(tokens=1)
        assert (round(jumped.value.seconds), lab.balance.committed_tokens) == (hours * 3600, 100)
        ledger.verify()
        ledger.ask(tbl.commands.AcceptClock(ledger.new_id()))
        lab.record(tokens=1).result()
        assert ledger.verify().events == 5


@pytest.mark.parametrize("seconds", [3000, -3000, 100 * 24 * 3600])
def test_time_that_passes_and_clocks_that_are_corrected_are_no_jump(machine: Machine, seconds: float) -> None:
    with machine.open(MemoryStore()) as ledger:
        lab = ledger.budget("lab", tokens=100)
        (machine.clock if abs(seconds) < 3600 else machine).advance(seconds)
        lab.reserve_sync(tokens=1)


def test_a_clock_that_is_put_right_needs_no_word(machine: Machine) -> None:
    with machine.open(MemoryStore()) as ledger:
        lab = ledger.budget("lab", tokens=100)
        machine.clock.advance(7200)
        with pytest.raises(tbl.ClockJumped):
            lab.reserve_sync(tokens=1)
        machine.clock.advance(-7200)
        lab.reserve_sync(tokens=1)


def test_who_stands_in_line_when_the_clock_is_moved_is_told(machine: Machine) -> None:
    with machine.open(MemoryStore()) as ledger:
        lab = ledger.budget("lab", tokens=100)
        lab.reserve_sync(tokens=100)
        told: list[BaseException] = []

        def wait() -> None:
            try:
                lab.reserve_sync(tokens=50, wait=60)
            except tbl.ClockJumped as error:
                told.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        deadline = time.monotonic() + 20
        while not ledger.desk.line and time.monotonic() < deadline:  # type: ignore[attr-defined] # a writer
            time.sleep(0.001)
        machine.clock.advance(7200)
        assert lab.balance.reserved_tokens == 100
        waiting.join(20)
        assert len(told) == 1


def test_a_start_behind_the_last_event_waits_to_be_accepted_once(machine: Machine) -> None:
    """Then the ledger opens with that clock; its own time stands still until the clock has caught up.

    record
    clock     a day back, and the ledger is opened again
    record    refused
    accept    record; and opened again, record
    """
    store = MemoryStore()
    with machine.open(store) as ledger:
        ledger.budget("lab", tokens=100).record(tokens=1).result()
    machine.clock.advance(-24 * 3600)
    with machine.open(store) as ledger:
        with pytest.raises(tbl.ClockJumped) as jumped:
            ledger.budget("lab").record(tokens=1).result()
        assert round(jumped.value.seconds) == -24 * 3600
        ledger.ask(tbl.commands.AcceptClock(ledger.new_id()))
        ledger.budget("lab").record(tokens=1).result()
    with machine.open(store) as ledger:
        ledger.budget("lab").record(tokens=1).result()
        assert ledger.budget("lab").balance.committed_tokens == 3


# --- from the command line --------------------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", "from tokenbudget_lab.cli import app; app()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "TOKENBUDGET_KEEPER_LINGER": "0"},
    )
    return done.returncode, done.stdout, done.stderr


def test_backup_recover_and_clock_from_the_command_line(place: Place, tmp_path: Path) -> None:
    """A lost event is named, with 1; given up, it is sound again, with 0."""
    path = str(place.file)
    with tbl.connect(path, embedded=True) as ledger:
        work(ledger, 3)
    saved = {source: source.read_bytes() for source in (place.file, log_of(place.file))}
    assert command("recover", path)[::2] == (0, "")
    code, said, _ = command("backup", path, str(tmp_path / "copy.duckdb"), "--json")
    assert (code, json.loads(said)["backup"]) == (0, str(tmp_path / "copy.duckdb"))
    assert command("clock", "accept", path)[0] == 0
    link.stop(place)
    for source, data in saved.items():
        source.write_bytes(data)
    code, _, complaint = command("recover", path)
    assert code == 1
    assert "--accept-loss" in complaint
    code, said, _ = command("recover", path, "--accept-loss")
    assert (code, "went on without" in said) == (0, True)
    assert command("verify", path)[0] == 0
    link.stop(place)
    shutil.rmtree(place.folder)
