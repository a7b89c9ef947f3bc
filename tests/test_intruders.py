"""Somebody else touches a ledger's files while it is used: what was acknowledged is there, or what was done to it is named.

DuckDB notices none of this. Its owner looks at file, log, heads and lock before each decision, and opens the file again when
one of them is not as it was left: then nothing is lost, or the loss is named before anything more is acknowledged.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import link
from tokenbudget_lab.heads import Head, Heads
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.recovery import log_of
from tokenbudget_lab.state import State
from tokenbudget_lab.stores import duckdb as store_module

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="an open file can be neither replaced nor removed there")
LIMIT = 200
Intrusion = Callable[[Place], None]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_of(tmp_path / "spend.duckdb")


@pytest.fixture(params=["embedded", "keeper"])
def embedded(request: pytest.FixtureRequest, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether this process owns the file, or a keeper does."""
    monkeypatch.setenv("TOKENBUDGET_KEEPER_LINGER_S", "0.1")
    yield request.param == "embedded"
    link.stop(place)


def spend(lab: tbl.Budget, calls: int) -> tuple[int, tbl.TokenBudgetError | None]:
    """Tokens of calls that were acknowledged, and what ended them."""
    for n in range(calls):
        try:
            with lab.reserve(tokens=10) as call:
                call.commit(tokens=10).result()
        except tbl.TokenBudgetError as error:
            return 10 * n, error
    return 10 * calls, None


# --- what is done -------------------------------------------------------------------------------------------------------------


def copy_and_hash(place: Place) -> None:
    """In this process, which drops DuckDB's own lock where it is the owner."""
    shutil.copy(place.file, place.file.with_name("copied"))
    place.file.read_bytes()
    log_of(place.file).read_bytes()


def touch(place: Place) -> None:
    place.file.touch()
    log_of(place.file).touch()


def link_and_remove_the_link(place: Place) -> None:
    again = place.file.with_name("again")
    again.hardlink_to(place.file)
    again.unlink()


def replace_it_by_its_copy(place: Place) -> None:
    for path in (place.file, log_of(place.file)):
        copied = path.with_name("copied")
        shutil.copy(path, copied)
        copied.replace(path)


def move_it_away_and_back(place: Place) -> None:
    away = place.file.with_name("away")
    place.file.rename(away)
    away.rename(place.file)


def open_it_in_another_process(place: Place) -> None:
    """DuckDB folds the log in and removes it: the owner's next writes would go into a log that nobody finds.

    A keeper's lock on the file holds, and nothing comes of it.
    """
    copy_and_hash(place)
    opened = "import contextlib, duckdb, sys\nwith contextlib.suppress(duckdb.IOException): duckdb.connect(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-c", opened, str(place.file)], check=True, timeout=60)


def remove_the_folder(place: Place) -> None:
    shutil.rmtree(place.folder)


def remove_the_lock(place: Place) -> None:
    place.lock.unlink()


def remove_the_heads(place: Place) -> None:
    place.heads.unlink()


def remove_the_file(place: Place) -> None:
    place.file.unlink()


def remove_the_log(place: Place) -> None:
    log_of(place.file).unlink()


def remove_the_log_and_the_heads(place: Place) -> None:
    """The owner itself still knows what it has acknowledged."""
    remove_the_log(place)
    remove_the_heads(place)


def remove_everything(place: Place) -> None:
    shutil.rmtree(place.folder)
    place.file.unlink()
    log_of(place.file).unlink()


def cut_the_log(place: Place) -> None:
    os.truncate(log_of(place.file), log_of(place.file).stat().st_size - 20)


def empty_the_log(place: Place) -> None:
    os.truncate(log_of(place.file), 0)


def write_into_the_log(place: Place) -> None:
    with log_of(place.file).open("r+b") as log:
        log.seek(-100, os.SEEK_END)
        log.write(b"intruder")


def write_into_the_file(place: Place) -> None:
    with place.file.open("r+b") as file:
        file.write(bytes(12288))


def cut_the_file(place: Place) -> None:
    os.truncate(place.file, 12288)


def copy_another_ledger_over_it(place: Place) -> None:
    other = place.file.with_name("other.duckdb")
    with tbl.connect(other, embedded=True) as ledger:
        ledger.budget("lab", tokens=10**6)
    shutil.copy(other, place.file)


def move_another_ledger_over_it(place: Place) -> None:
    other = place.file.with_name("other.duckdb")
    with tbl.connect(other, embedded=True) as ledger:
        ledger.budget("lab", tokens=10**6)
    other.replace(place.file)
    log_of(other).replace(log_of(place.file))


def move_the_heads_on(place: Place) -> None:
    """As a second owner would, that has decided something else."""
    heads = Heads(place.heads)
    newest = heads.read()
    assert newest is not None
    heads.write(Head(newest.seq + 1, b"x" * 32))
    heads.close()


HARMLESS: list[Intrusion] = [
    copy_and_hash,
    touch,
    link_and_remove_the_link,
    replace_it_by_its_copy,
    move_it_away_and_back,
    open_it_in_another_process,
    remove_the_lock,
    remove_the_heads,
    remove_the_folder,
]
HARMFUL: list[Intrusion] = [
    remove_the_file,
    remove_the_log,
    remove_the_log_and_the_heads,
    remove_everything,
    cut_the_log,
    empty_the_log,
    write_into_the_log,
    write_into_the_file,
    cut_the_file,
    copy_another_ledger_over_it,
    move_another_ledger_over_it,
    move_the_heads_on,
]


def each(intrusions: list[Intrusion]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("intrude", intrusions, ids=lambda intrude: str(intrude.__name__))


@each(HARMLESS)
def test_what_takes_nothing_away_is_noticed_by_nobody(place: Place, intrude: Intrusion, *, embedded: bool) -> None:
    """Every call is answered, all that was acknowledged is there, and the cap holds.

    limit     200 tokens
    call      10, 5 times
    intrude
    call      10, until it is refused
    """
    with tbl.connect(place.file, embedded=embedded) as ledger:
        lab = ledger.budget("lab", tokens=LIMIT)
        assert spend(lab, 5) == (50, None)
        intrude(place)
        acknowledged, error = spend(lab, 30)
        assert (acknowledged, type(error)) == (150, tbl.BudgetExceeded)
        ledger.verify()
    link.stop(place)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.budget("lab").balance.committed_tokens == LIMIT
        ledger.verify()


@each(HARMFUL)
def test_what_takes_something_away_is_named_before_anything_more_is_acknowledged(
    place: Place, intrude: Intrusion, *, embedded: bool
) -> None:
    """And nothing is written to what is left; opened again, it is named again.

    limit     200 tokens
    call      10, 5 times
    intrude
    call      10  an error
    """
    with tbl.connect(place.file, embedded=embedded) as ledger:
        lab = ledger.budget("lab", tokens=LIMIT)
        assert spend(lab, 5) == (50, None)
        intrude(place)
        acknowledged, error = spend(lab, 1)
        assert acknowledged == 0
        # With everything gone the next keeper, which knows of nothing, makes a new ledger, and that has no such budget.
        gone = intrude is remove_everything and not embedded
        assert isinstance(error, (tbl.LedgerDamaged, tbl.UnknownBudget) if gone else tbl.LedgerDamaged)
    link.stop(place)
    if intrude in (remove_everything, remove_the_log_and_the_heads):  # nothing is left that could tell
        return
    with pytest.raises(tbl.LedgerDamaged), tbl.connect(place.file, embedded=True) as ledger:
        ledger.verify()


def test_a_folder_that_is_removed_lets_no_second_owner_in(place: Place, *, embedded: bool) -> None:
    """Its lock is gone with it; whoever comes then shares the ledger, or is told who owns it.

    limit     200 tokens
    remove    the folder
    call      10, by the one and by another, in turns, until it is refused
    """
    with tbl.connect(place.file, embedded=embedded) as ledger:
        lab = ledger.budget("lab", tokens=LIMIT)
        acknowledged, _ = spend(lab, 5)
        shutil.rmtree(place.folder)
        for _ in range(10):
            try:
                with tbl.connect(place.file, embedded=embedded) as other:
                    acknowledged += spend(other.budget("lab"), 1)[0]
            except tbl.LedgerUnavailable as error:
                assert embedded, error  # noqa: PT017 - it may be refused, by whatever name, where a process owns the file
            acknowledged += spend(lab, 1)[0]
        acknowledged += spend(lab, 30)[0]
    link.stop(place)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.budget("lab").balance.committed_tokens == acknowledged == LIMIT
        ledger.verify()


def test_a_keeper_that_is_slow_to_make_room_is_waited_for(place: Place) -> None:
    """Its folder was removed, and it comes to see that only when the machine has time for it."""
    with tbl.connect(place.file) as ledger:
        acknowledged, _ = spend(ledger.budget("lab", tokens=LIMIT), 1)
        owner = int(place.read_owner()["pid"])
        shutil.rmtree(place.folder)
        os.kill(owner, signal.SIGSTOP)
        late = threading.Timer(1.0, os.kill, (owner, signal.SIGCONT))
        late.start()
        try:
            with tbl.connect(place.file) as other:
                acknowledged += spend(other.budget("lab"), 1)[0]
        finally:
            late.join()
        assert ledger.budget("lab").balance.committed_tokens == acknowledged
    link.stop(place)


def test_no_checkpoint_is_made_of_a_file_that_is_not_there_any_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fold the log, which is all that is left, into a file without a name."""
    with tbl.connect(place.file, embedded=True) as ledger:
        lab = ledger.budget("lab", tokens=LIMIT)
        spend(lab, 5)
        store, seq = ledger.desk.store, ledger.verify().events  # type: ignore[attr-defined] # a writer
        tend = store.tend

        def lose_and_tend(state: State) -> None:
            if state.seq > seq and place.file.exists():
                place.file.rename(place.file.with_name("away"))
                monkeypatch.setattr(store_module, "CHECKPOINT_TRANSACTIONS", 1)
            tend(state)

        monkeypatch.setattr(store, "tend", lose_and_tend)
        lab.record(tokens=10).result()
        assert isinstance(spend(lab, 1)[1], tbl.LedgerDamaged)
        monkeypatch.undo()
        place.file.with_name("away").rename(place.file)
        assert spend(lab, 1) == (10, None)
        assert lab.balance.committed_tokens == 70
        ledger.verify()


def test_what_goes_into_a_file_without_a_name_is_not_acknowledged(place: Place) -> None:
    """DuckDB would take whoever opens a path to what this process still has open under it, though another file is there now.

    open      by DuckDB itself, in this process
    replace   file and log by their copies
    open      the ledger  an error, until the other is closed
    """
    with tbl.connect(place.file, embedded=True) as ledger:
        spend(ledger.budget("lab", tokens=LIMIT), 5)
    with duckdb.connect(str(place.file), config={"threads": 1, "autoinstall_known_extensions": False}) as con:
        con.execute("pragma disable_checkpoint_on_shutdown")
        con.execute("create table mine (x int)")
        replace_it_by_its_copy(place)
        with pytest.raises(tbl.StoreFailed, match="different configuration"):
            tbl.connect(place.file, embedded=True)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert spend(ledger.budget("lab"), 1) == (10, None)
        ledger.verify()


def test_an_append_that_does_not_show_in_the_log_is_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it went: into a log that was removed a moment before.

    limit     200 tokens
    call      10, 5 times
    remove    the log, between the look at it and the append
    call      10  an error
    """
    with tbl.connect(place.file, embedded=True) as ledger:
        lab = ledger.budget("lab", tokens=LIMIT)
        assert spend(lab, 5) == (50, None)
        store = ledger.desk.store  # type: ignore[attr-defined] # a writer
        looked = store.is_disturbed

        def look_too_early() -> bool:
            found: bool = looked()
            log_of(place.file).unlink(missing_ok=True)
            log_of(place.file).touch()
            store._as_left.note()
            return found

        monkeypatch.setattr(store, "is_disturbed", look_too_early)
        acknowledged, error = spend(lab, 1)
        assert (acknowledged, type(error)) == (0, tbl.LedgerDamaged)


def test_a_reader_in_the_middle_of_its_rows_does_not_stand_in_the_way_of_opening_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to ask again; DuckDB would have waited for it.

    call      10, 5 times
    read      the first rows
    touch     the file
    call      10, 5 times
    read      the rest  an error
    """
    monkeypatch.setattr(store_module, "_FETCH", 2)
    with tbl.connect(place.file, embedded=True) as ledger:
        lab = ledger.budget("lab", tokens=LIMIT)
        assert spend(lab, 5) == (50, None)
        reader = ledger.desk.arrow()
        assert reader.read_next_batch().num_rows > 0
        touch(place)
        assert spend(lab, 5) == (50, None)
        with pytest.raises(tbl.StoreFailed, match="ask again"):
            list(reader)
        assert ledger.verify().events == ledger.events().collect().height


# --- forked children ----------------------------------------------------------------------------------------------------------

FORKED = """
import concurrent.futures, gc, multiprocessing, os, shutil, sys, warnings
import duckdb
import tokenbudget_lab as tbl
warnings.simplefilter("ignore", DeprecationWarning)
path, embedded, way = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
ledger = tbl.connect(path, embedded=embedded)
lab = ledger.budget("lab", tokens=200)

def spend(calls):
    n = 0
    try:
        for n in range(calls):
            lab.reserve_sync(tokens=10).commit(tokens=10).result()
    except tbl.TokenBudgetError as error:
        return n, type(error).__name__
    return calls, ""

def raw():
    # As it comes, with the owner's settings, and by its bytes.
    for config in ({}, {"threads": 1, "autoinstall_known_extensions": False}):
        try:
            with duckdb.connect(path, config=config) as con:
                con.execute("create table mine (x int)")
        except duckdb.Error as error:
            pass
    shutil.copy(path, path + ".copied")
    open(path, "rb").read()

def in_the_child():
    global ledger, lab
    if way == "raw":
        raw()
    elif way == "collected":
        del ledger, lab
        gc.collect()
        sys.exit(0)
    else:
        assert spend(1) == (0, "LedgerForked"), "it was not refused"

print(spend(5))
if way in ("process", "raw in a process"):
    way = "raw" if way.startswith("raw") else way
    child = multiprocessing.get_context("fork").Process(target=in_the_child)
    child.start(); child.join()
    assert child.exitcode == 0, child.exitcode
elif way == "pool":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(spend, [1, 1]) == [(0, "LedgerForked")] * 2
elif way == "executor":
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(spend, [1, 1])) == [(0, "LedgerForked")] * 2
else:
    child = os.fork()
    if child == 0:
        in_the_child()
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(spend(30))
ledger.verify()
ledger.close()
ledger = tbl.connect(path, embedded=embedded)
ledger.verify()
print(ledger.budget("lab").balance.committed_tokens)
ledger.close()
"""


@pytest.mark.parametrize("way", ["raw", "collected", "process", "raw in a process", "pool", "executor"])
def test_forked_children_of_every_kind_harm_nothing(place: Place, way: str, *, embedded: bool) -> None:
    """One that opens the file by DuckDB and writes, one that collects the ledger, those of multiprocessing.

    limit     200 tokens
    call      10, 5 times
    fork
    call      10, until it is refused
    open again
    """
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(place.file), str(embedded), way],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, ["(5, '')", "(15, 'BudgetExceeded')", "200"]), done.stderr
