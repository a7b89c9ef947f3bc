"""Damage: whatever happens to file or log, what is missing is noticed, and nothing is written before a copy is taken."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

import tokenbudget_lab as tbl
from tests.soaking import Pace
from tokenbudget_lab import link
from tokenbudget_lab.cli.entry import app
from tokenbudget_lab.connection import recover
from tokenbudget_lab.events import Event
from tokenbudget_lab.heads import Head, Heads
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.recovery import Checkpoint, log_of
from tokenbudget_lab.stores import duckdb as store_module
from tokenbudget_lab.stores.duckdb import DuckDBStore

CALLS = 6
HEADER = 140  # bytes in use of each of a DuckDB file's three headers of 4096
Change = Callable[[Place], None]


@pytest.fixture
def calls() -> int:
    """How many calls its ledger has."""
    return CALLS


@pytest.fixture
def place(tmp_path: Path, calls: int) -> Place:
    """A small ledger, closed: a budget of 1000 tokens, and calls of 10 that are committed."""
    path = tmp_path / "spend.duckdb"
    with tbl.connect(path, embedded=True) as ledger:
        lab = ledger.budget("lab", tokens=1000)
        for n in range(calls):
            with lab.reserve(tokens=10, key=f"row-{n}") as call:
                call.commit(tokens=10)
    return place_of(path)


def put(source: Path, place: Place) -> None:
    """Put a saved ledger, its folder too, in a place."""
    shutil.rmtree(place.folder, ignore_errors=True)
    log_of(place.file).unlink(missing_ok=True)
    shutil.copytree(source, place.file.parent, dirs_exist_ok=True)


def cut_log(place: Place) -> None:
    with log_of(place.file).open("rb+") as log:
        log.truncate(log_of(place.file).stat().st_size - 20)


def delete_log(place: Place) -> None:
    log_of(place.file).unlink()


def empty_log(place: Place) -> None:
    log_of(place.file).write_bytes(b"")


def flip_in_the_log(place: Place) -> None:
    data = bytearray(log_of(place.file).read_bytes())
    data[len(data) // 2] ^= 0x10
    log_of(place.file).write_bytes(data)


def zero_in_the_log(place: Place) -> None:
    data = bytearray(log_of(place.file).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    log_of(place.file).write_bytes(data)


def cut_the_table(place: Place) -> None:
    with duckdb.connect(place.file) as con:
        con.execute("drop trigger events_are_never_deleted on events")
        con.execute("delete from events where seq > 10")


def change_the_last_event(place: Place) -> None:
    with duckdb.connect(place.file) as con:
        con.execute("drop trigger events_are_never_changed on events")
        con.execute("update events set hash = 'x'::blob where seq = (select max(seq) from events)")


def put_another_ledger_there(place: Place) -> None:
    other = place.file.with_name("other.duckdb")
    with tbl.connect(other, embedded=True) as ledger:
        lab = ledger.budget("lab", tokens=10**6)
        for _ in range(CALLS):
            lab.record(tokens=1).result()
            lab.record(tokens=1).result()
    log_of(place.file).unlink()
    shutil.copy(other, place.file)
    shutil.copy(log_of(other), log_of(place.file))


CHANGES: list[Change] = [
    cut_log,
    delete_log,
    empty_log,
    flip_in_the_log,
    zero_in_the_log,
    cut_the_table,
    change_the_last_event,
    put_another_ledger_there,
]
some = pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(change.__name__))


def content(place: Place) -> dict[str, bytes]:
    """File and log; an empty log is as good as none, and DuckDB removes it."""
    found = {path.name: path.read_bytes() for path in (place.file, log_of(place.file)) if path.exists()}
    return {name: data for name, data in found.items() if data}


@some
def test_what_is_missing_is_named_and_nothing_is_written(place: Place, change: Change) -> None:
    """The good part is read; every verb that writes, and `verify`, name the loss; a copy of what was found is there."""
    change(place)
    before = content(place)
    with tbl.connect(place.file, embedded=True) as ledger:
        with pytest.raises(tbl.LedgerDamaged) as damaged:
            ledger.verify()
        with pytest.raises(tbl.LedgerDamaged):
            ledger.budget("lab/new", tokens=1)
        if change is not put_another_ledger_there and change not in (delete_log, empty_log):
            lab = ledger.budget("lab")
            assert lab.balance.committed_tokens in range(0, 10 * CALLS + 1, 10)
            with pytest.raises(tbl.LedgerDamaged):
                lab.reserve_sync(tokens=1)
        whole = ledger.events().collect().height >= 2 + 2 * CALLS
        assert not whole or change in (change_the_last_event, put_another_ledger_there)
    assert damaged.value.acknowledged == 2 + 2 * CALLS
    copy = Path(damaged.value.copy)
    assert content(place) == before == {name: (copy / name).read_bytes() for name in before}
    assert str(copy) in str(damaged.value)


@some
def test_opened_twice_it_is_copied_once(place: Place, change: Change) -> None:
    change(place)
    for _ in range(2):
        with tbl.connect(place.file, embedded=True) as ledger, pytest.raises(tbl.LedgerDamaged):
            ledger.verify()
    assert len(list(place.folder.glob("damaged-*"))) == 1


@some
def test_what_is_lost_can_be_given_up_and_that_is_an_event(place: Place, change: Change) -> None:
    """Afterwards it takes writes, is sound, and stays so when it is opened again.

    open      with the loss accepted
    reserve   10
    open      again
    """
    change(place)
    with tbl.Ledger(store=DuckDBStore(place, accept_loss=True)) as ledger:
        ledger.budget("new", tokens=1000).reserve_sync(tokens=10)
        ledger.verify()
    with tbl.connect(place.file, embedded=True) as ledger:
        ledger.verify()
        assert ledger.budget("new").balance.reserved_tokens == 10
        told = ledger.sql("select detail from events where kind = 'recovered'")["detail"].to_list()
    assert len(told) == 1
    assert f'"acknowledged":{2 + 2 * CALLS}' in told[0]
    assert len(list(place.folder.glob("damaged-*"))) == 1


def test_an_accepted_loss_of_everything_excuses_no_change_of_what_came_after(place: Place) -> None:
    """The new first event stands in front of the one that says so, and is as unchangeable as any.

    remove    the file
    open      with the loss accepted
    change    who began the ledger
    """
    place.file.unlink()
    log_of(place.file).unlink()
    tbl.Ledger(store=DuckDBStore(place, accept_loss=True)).close()
    alter(place, "update events set origin = 'x' where seq = 1")
    with tbl.connect(place.file, embedded=True) as ledger, pytest.raises(tbl.LedgerCorrupt, match="event 1"):
        ledger.verify()


def alter(place: Place, *statements: str) -> None:
    """Do what the triggers forbid, without them."""
    with duckdb.connect(place.file) as con:
        con.execute("drop trigger events_are_never_changed on events")
        for statement in statements:
            con.execute(statement)


@pytest.mark.parametrize("seq", ["null", "0", "-3"])
def test_a_row_outside_the_order_is_damage_and_does_not_stay(place: Place, seq: str) -> None:
    """Who accepts the loss has a ledger again."""
    alter(place, f"insert into events select * replace ({seq}::bigint as seq) from events where seq = 4")  # noqa: S608 - of our own
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.damage is not None
    tbl.Ledger(store=DuckDBStore(place, accept_loss=True)).close()
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.damage is None
        ledger.verify()


UNLIKE = [
    "ts = null",
    "ts = 'infinity'",
    "command = null",
    "budget = null",
    "windows = null",
    "windows = [null]",
    "windows = ['infinity'::timestamp]",
    "expires = 'infinity'",
    "expires = '-infinity'",
    "detail = '{'",
    "detail = '[]'",
    "tags = map {}",
    "hash = null",
]


@pytest.mark.parametrize("kind", ["budget_set", "committed"])
@pytest.mark.parametrize("unlike", UNLIKE)
def test_a_value_that_no_ledger_writes_is_named(place: Place, unlike: str, kind: str) -> None:
    """As an event that does not fit, and never as one that is hashed like another."""
    last = f"(select max(seq) from events where kind = '{kind}')"  # noqa: S608 - a name of our own
    alter(place, f"update events set {unlike} where seq = {last}")  # noqa: S608 - as it stands above
    with pytest.raises(tbl.LedgerCorrupt) as found, tbl.connect(place.file, embedded=True) as ledger:
        ledger.verify()
    changed = 2 if kind == "budget_set" else 2 + 2 * CALLS
    assert found.value.seq in {changed, changed + 1}  # an instant that is too late is seen at the next one


def test_a_tag_that_comes_twice_is_found(place: Place, tmp_path: Path) -> None:
    """DuckDB makes no such map, and takes one out of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tbl.connect(place.file, embedded=True) as ledger:
        ledger.budget("lab").record(tokens=1, tags={"arm": "b"}).result()
    twice = pa.array([[("arm", "c"), ("arm", "b")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"tags": twice}), tmp_path / "twice.parquet")
    tags = f"(select tags from read_parquet('{tmp_path / 'twice.parquet'}'))"  # noqa: S608 - a path of our own
    alter(place, f"update events set tags = {tags} where seq = {3 + 2 * CALLS}")  # noqa: S608 - as it stands above
    with pytest.raises(tbl.LedgerCorrupt), tbl.connect(place.file, embedded=True) as ledger:
        ledger.verify()


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        ("usd", "decimal(38, 11)", "usd * 10"),  # the same digits
        ("ts", "timestamp_ns", "ts"),
        ("tokens", "varchar", "tokens"),
    ],
)
def test_a_column_of_another_type_is_refused(place: Place, column: str, kind: str, value: str) -> None:
    """Its values would be hashed as they were and read as others: ten times the dollars."""
    alter(place, f"alter table events alter {column} type {kind} using ({value})::{kind}")
    with pytest.raises(tbl.NotALedger, match=f"the column {column} of events is"):
        tbl.connect(place.file, embedded=True)


def test_a_ledger_whose_file_is_gone_is_not_made_anew(place: Place) -> None:
    """A new one would be a new budget; with its folder gone too, it is a new ledger."""
    place.file.unlink()
    log_of(place.file).unlink()
    with pytest.raises(tbl.LedgerDamaged, match="the file is gone"):
        tbl.connect(place.file, embedded=True)
    assert not place.file.exists()
    shutil.rmtree(place.folder)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.budgets() == []


def test_the_keeper_serves_a_damaged_ledger_for_reading_and_says_so(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Every client hears it when it connects, as it would with the file in its own process."""
    cut_log(place)
    with tbl.connect(place.file) as ledger, tbl.connect(place.file) as other:
        assert caplog.text.count("is damaged from event") == 2
        assert ledger.damage is not None
        assert other.damage is not None
        assert (ledger.damage.args, type(ledger.damage)) == (other.damage.args, tbl.LedgerDamaged)
        with pytest.raises(tbl.LedgerDamaged) as damaged:
            ledger.budget("lab").reserve_sync(tokens=1)
        assert ledger.budget("lab").balance.committed_tokens == 10 * (CALLS - 1)
    assert damaged.value.seq == 2 + 2 * CALLS
    link.stop(place)


@pytest.mark.parametrize("embedded", [True, False])
def test_damage_is_heard_wherever_the_ledger_is_looked_at(place: Place, *, embedded: bool) -> None:
    """The numbers are shown, the warning stands on stderr once, and the end is 1: unsound."""
    cut_log(place)
    for command in (["status"], ["budget", "list"], ["sql", "select count(*) from events"], ["events"], ["verify"]):
        done = CliRunner().invoke(app, [*command, "--ledger", str(place.file), *(["--embedded"] if embedded else [])])
        assert done.exit_code == 1
        assert done.stderr.count("\n") == done.stderr.count("is damaged from event") == 1
        assert bool(done.stdout) == (command != ["verify"])
    link.stop(place)


def test_a_sound_ledger_is_proved_without_taking_it_from_those_who_use_it(place: Place) -> None:
    """`recover` asks the keeper, which stays, and so do its clients."""
    with tbl.connect(place.file) as ledger:
        owner = place.read_owner()
        assert recover(place.file).startswith("nothing is lost; ")
        assert recover(place.file, accept_loss=True).startswith("nothing is lost; ")
        assert place.read_owner() == owner
        ledger.budget("lab").record(tokens=1).result()
    link.stop(place)


def test_a_damaged_ledger_is_recovered_while_it_is_used(place: Place) -> None:
    """Those who read it meanwhile go on afterwards, with the keeper that comes then."""
    cut_log(place)
    with tbl.connect(place.file) as ledger:
        reading = threading.Event()

        def read() -> None:
            while not reading.is_set():
                ledger.budget("lab")

        reader = threading.Thread(target=read)
        reader.start()
        told = recover(place.file, accept_loss=True)
        reading.set()
        reader.join()
        assert told.startswith(f"went on without events {2 + 2 * CALLS} to {2 + 2 * CALLS} (1 lost;")
        ledger.budget("lab").record(tokens=1).result()
        assert ledger.damage is None
    link.stop(place)


def test_who_owns_the_file_in_a_recovery_is_named_as_that(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_log(place)
    monkeypatch.setattr(link, "CONNECT_S", 5.0)
    with tbl.Ledger(store=DuckDBStore(place, role="recovery", accept_loss=True)):
        for embedded in (True, False):
            with pytest.raises(tbl.LedgerBusy, match="is recovering it; try again when it is done"):
                tbl.connect(place.file, embedded=embedded)


def test_an_older_copy_is_put_back_and_noticed(place: Place, tmp_path: Path) -> None:
    """File and log as they were three calls before, the folder as it is now.

    copy      file and log
    commit    30 more
    restore   the copy
    """
    saved = content(place)
    with tbl.connect(place.file, embedded=True) as ledger:
        for _ in range(3):
            with ledger.budget("lab").reserve(tokens=10) as call:
                call.commit(tokens=10)
    for name, data in saved.items():
        (tmp_path / name).write_bytes(data)
    with tbl.connect(place.file, embedded=True) as ledger, pytest.raises(tbl.LedgerDamaged) as damaged:
        ledger.budget("lab").reserve_sync(tokens=1)
    assert (damaged.value.seq, damaged.value.acknowledged) == (3 + 2 * CALLS, 8 + 2 * CALLS)


def test_a_call_whose_reservation_was_lost_is_counted_when_it_is_committed(place: Place) -> None:
    """As a record that says so, once; the money is gone.

    reserve   100, and it is lost
    accept    the loss
    commit    80, twice the same
    """
    saved = content(place)
    with tbl.connect(place.file, embedded=True) as ledger:
        held = ledger.budget("lab").reserve_sync(tokens=100)
    for name, data in saved.items():
        (place.file.parent / name).write_bytes(data)
    with tbl.Ledger(store=DuckDBStore(place, accept_loss=True)) as ledger:
        held._ledger = ledger
        first = held.commit(tokens=80).result()
        assert held.commit(tokens=80).result() == first
        assert ledger.budget("lab").balance.committed_tokens == 10 * CALLS + 80
        with pytest.raises(tbl.ReservationClosed):
            held.commit(tokens=90).result()
        ledger.verify()


def test_a_reservation_that_never_was_counts_nothing_where_nothing_was_lost(place: Place) -> None:
    with tbl.connect(place.file, embedded=True) as ledger:
        held = ledger.budget("lab").reserve_sync(tokens=100)
        held.id = ledger.new_id()
        with pytest.raises(tbl.UnknownReservation):
            held.commit(tokens=80).result()


# --- the log, byte by byte ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(request: pytest.FixtureRequest, place: Place, tmp_path: Path) -> Path:
    """A copy of the ledger, taken when all that a test asks for was done to it."""
    if "folded" in request.fixturenames:
        request.getfixturevalue("folded")
    folder = tmp_path / "saved"
    folder.mkdir()
    for path in (place.file, log_of(place.file)):
        if path.exists():
            shutil.copy(path, folder)
    shutil.copytree(place.folder, folder / place.folder.name)
    return folder


def is_noticed(place: Place) -> bool:
    """Whether it is open for reading only, and readable, with a copy taken; else it must be as it was."""
    with tbl.connect(place.file, embedded=True) as ledger:
        damaged = None
        try:
            ledger.verify()
        except tbl.LedgerDamaged as error:
            damaged = error
        if damaged is None:
            assert ledger.budget("lab").balance.committed_tokens == 20
            return False
        assert ledger.events().collect().height == damaged.seq - 1
        assert Path(damaged.copy, place.file.name).exists()
        return True


@pytest.mark.parametrize("calls", [2])
@pytest.mark.parametrize("every", [pytest.param(197, id="few"), pytest.param(1, id="all", marks=pytest.mark.soak)])
@pytest.mark.timeout(3600)
def test_a_log_cut_anywhere_is_noticed(place: Place, saved: Path, every: int, pace: Pace) -> None:
    """Each cut loses at least the end of the last commit."""
    size = log_of(place.file).stat().st_size
    cuts = range(0, size, every)
    done = noticed = 0
    for cut in pace.some(cuts):
        done += 1
        put(saved, place)
        with log_of(place.file).open("rb+") as log:
            log.truncate(cut)
        noticed += is_noticed(place)
    pace.says(f"{noticed} of {done} cuts noticed")
    assert noticed == done


@pytest.mark.parametrize("calls", [2])
@pytest.mark.parametrize("every", [pytest.param(197, id="few"), pytest.param(1, id="all", marks=pytest.mark.soak)])
@pytest.mark.timeout(7200)
def test_a_byte_flipped_anywhere_is_noticed_or_harmless(place: Place, saved: Path, every: int, pace: Pace) -> None:
    """Harmless: everything that was acknowledged is there, and replays to the same balances."""
    data = log_of(place.file).read_bytes()
    offsets = range(0, len(data), every)
    done = noticed = 0
    for offset in pace.some(offsets):
        done += 1
        put(saved, place)
        flipped = bytearray(data)
        flipped[offset] ^= 1 << offset % 8
        log_of(place.file).write_bytes(flipped)
        noticed += is_noticed(place)
    pace.says(f"{noticed} of {done} flips noticed, {done - noticed} harmless")
    assert noticed > done * 0.9


# --- the file, behind a checkpoint ------------------------------------------------------------------------------------------


@pytest.fixture
def folded(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The small ledger with all its events in the file, none in the log, and a snapshot."""
    monkeypatch.setattr(store_module, "CHECKPOINT_TRANSACTIONS", 1)
    with tbl.connect(place.file, embedded=True) as ledger:
        ledger.budget("lab").record(tokens=0, usd=0, requests=1).result()
    monkeypatch.undo()
    assert not log_of(place.file).exists()
    assert place.snapshot.exists()
    return place


def rows(place: Place) -> list[Event]:
    """All events of a ledger that proves to be sound.

    Raises:
        TokenBudgetError: it does not.
    """
    with tbl.connect(place.file, embedded=True) as ledger:
        proof = ledger.verify()
        return list(ledger.desk.events(proof.events))


def noticed(folded: Place, saved: Path, pace: Pace, changes: list[Callable[[Place], None]]) -> tuple[int, int]:
    """How many of these changes are noticed, and how many harmless: the replay is what it was, bit for bit."""
    before, named = rows(folded), 0
    put(saved, folded)
    assert rows(folded) == before
    done = 0
    for change in pace.some(changes):
        done += 1
        put(saved, folded)
        change(folded)
        try:
            after = rows(folded)
        except tbl.TokenBudgetError:
            named += 1
        else:
            assert after == before
    return named, done - named


@pytest.mark.parametrize("calls", [2])
@pytest.mark.parametrize("every", [pytest.param(24_989, id="few"), pytest.param(401, id="many", marks=pytest.mark.soak)])
@pytest.mark.timeout(7200)
def test_a_byte_flipped_in_the_file_is_noticed_or_harmless(folded: Place, saved: Path, every: int, pace: Pace) -> None:
    """Each of its headers, and bytes of all blocks, evenly spread; most of the file is unused space."""

    def flip(offset: int) -> Callable[[Place], None]:
        def change(place: Place) -> None:
            with place.file.open("r+b") as file:
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 1 << offset % 8]))

        return change

    size = folded.file.stat().st_size
    headers = [at for at in range(3 * 4096) if at % 4096 < HEADER][:: max(1, every // 401)]
    offsets = sorted({*headers, *range(0, size, every)})
    named, harmless = noticed(folded, saved, pace, [flip(offset) for offset in offsets])
    pace.says(f"{named} of {named + harmless} flips noticed, {harmless} harmless, in {size} bytes")
    assert named > (named + harmless) // 20


@pytest.mark.parametrize("calls", [2])
@pytest.mark.parametrize("every", [pytest.param(39_989, id="few"), pytest.param(1999, id="many", marks=pytest.mark.soak)])
@pytest.mark.timeout(7200)
def test_a_file_cut_anywhere_is_noticed(folded: Place, saved: Path, every: int, pace: Pace) -> None:
    """A file that lacks its end has lost events, or nothing that was in use."""

    def cut_at(size: int) -> Callable[[Place], None]:
        return lambda place: os.truncate(place.file, size)

    size = folded.file.stat().st_size
    cuts = range(0, size, every)
    named, harmless = noticed(folded, saved, pace, [cut_at(cut) for cut in cuts])
    pace.says(f"{named} of {named + harmless} cuts noticed, {harmless} harmless, of {size} bytes")
    assert named > (named + harmless) // 2


# --- what can be saved, is ---------------------------------------------------------------------------------------------------


def test_a_torn_file_is_put_together_from_the_copy_before_its_checkpoint_and_its_log(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost then, though neither the file nor the copy has all of it.

    checkpoint  behind a copy
    call        4 more, in the log
    torn        a block of the file
    """
    monkeypatch.setattr(store_module, "CHECKPOINT_TRANSACTIONS", 1)
    with tbl.connect(place.file, embedded=True) as ledger:
        ledger.budget("lab").record(tokens=1).result()
    monkeypatch.undo()
    with tbl.connect(place.file, embedded=True) as ledger:
        for _ in range(4):
            ledger.budget("lab").record(tokens=1).result()
        events = ledger.verify().events
    with place.file.open("r+b") as file:
        file.seek(12_288 + 100)
        file.write(b"\xff" * 8)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.damage is not None
        assert ledger.budget("lab").balance.committed_tokens == 10 * CALLS + 5
    recover(place.file, accept_loss=True)
    link.stop(place)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.verify().events == events + 1  # that it was recovered
        assert ledger.budget("lab").balance.committed_tokens == 10 * CALLS + 5


@pytest.mark.parametrize("name", ["spend.duckdb", "replay-wal-block.duckdb"])
def test_a_file_that_another_program_has_open_is_busy_and_not_damaged(tmp_path: Path, name: str) -> None:
    """Whatever its name is; the other one is named, and nothing is copied or cut."""
    path = tmp_path / name
    with tbl.connect(path, embedded=True) as ledger:
        ledger.budget("lab", tokens=10).record(tokens=1).result()
    code = "import sys, duckdb; con = duckdb.connect(sys.argv[1], read_only=True); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        asks: list[Callable[[], object]] = [lambda: tbl.connect(path, embedded=True), lambda: tbl.connect(path)]
        asks.append(lambda: recover(path, accept_loss=True))
        for ask in asks:
            with pytest.raises(tbl.FileInUse) as held:
                ask()
            assert held.value.pid == other.pid
        other.communicate(b"")
    assert not list(place_of(path).folder.glob("damaged-*"))
    with tbl.connect(path, embedded=True) as ledger:
        assert ledger.budget("lab").balance.committed_tokens == 1
        ledger.verify()


def test_a_folder_that_was_copied_in_a_checkpoint_takes_no_newer_file_back(place: Place, tmp_path: Path) -> None:
    """A sync client may put it back; the file has all that its heads say, and more."""
    checkpoint = Checkpoint(place)
    with tbl.connect(place.file, embedded=True) as ledger:
        seq = ledger.verify().events
    checkpoint.begin(seq)
    shutil.copytree(place.folder, tmp_path / "synced")
    checkpoint.end()
    with tbl.connect(place.file, embedded=True) as ledger:
        ledger.budget("lab").record(tokens=1).result()
        events = ledger.verify().events
    shutil.rmtree(place.folder)
    shutil.copytree(tmp_path / "synced", place.folder)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.verify().events == events > seq


def test_a_gap_in_the_middle_is_damage_from_there_on(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file takes a newer log that begins behind it: what stands before the gap is read, and kept where it is accepted.

    backup      of 6 calls
    call        3 more, and a checkpoint
    call        2 more, in the log
    put back    the backup, beside that log
    """
    with tbl.connect(place.file, embedded=True) as ledger:
        before = ledger.verify().events
    older = tmp_path / "older.duckdb"
    shutil.copy(place.file, older)
    shutil.copy(log_of(place.file), log_of(older))
    with duckdb.connect(str(older)) as con:
        con.execute("checkpoint")
    with monkeypatch.context() as patch, tbl.connect(place.file, embedded=True) as ledger:
        for _ in range(3):
            ledger.budget("lab").record(tokens=1).result()
        patch.setattr(store_module, "CHECKPOINT_TRANSACTIONS", 1)
        ledger.budget("lab").record(tokens=1).result()
        patch.undo()
        for _ in range(2):
            ledger.budget("lab").record(tokens=1).result()
    shutil.rmtree(place.folder / "before", ignore_errors=True)
    shutil.copy(older, place.file)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.damage is not None
        assert ledger.damage.seq == before + 1
        assert ledger.budget("lab").balance.committed_tokens == 10 * CALLS
        with pytest.raises(tbl.LedgerDamaged):
            ledger.budget("lab").record(tokens=1).result()
    recover(place.file, accept_loss=True)
    link.stop(place)
    with tbl.connect(place.file, embedded=True) as ledger:
        ledger.budget("lab").record(tokens=1).result()
        assert ledger.verify().events == before + 2
        assert ledger.budget("lab").balance.committed_tokens == 10 * CALLS + 1


def test_damage_that_is_looked_at_again_and_again_is_copied_once(place: Place) -> None:
    """As a gauge does that stays open: whatever looks at a log changes its time, and not what is in it."""
    delete_log(place)
    for n in range(3):
        os.utime(place.file, ns=(n, n))
        with tbl.connect(place.file, embedded=True) as ledger:
            assert ledger.damage is not None
    assert len(list(place.folder.glob("damaged-*"))) == 1
    with place.file.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with contextlib.suppress(tbl.LedgerDamaged), tbl.connect(place.file, embedded=True):
        pass
    assert len(list(place.folder.glob("damaged-*"))) == 2


def test_half_a_note_beside_a_copy_is_no_trouble(place: Place) -> None:
    """What a full disk leaves of it: the damage is copied once more."""
    delete_log(place)
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.damage is not None
    for note in place.folder.glob("damaged-*/found.json"):
        note.write_text("")
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.damage is not None
    recover(place.file, accept_loss=True)
    link.stop(place)


def test_a_log_whose_file_is_gone_is_in_the_way_of_a_new_ledger_and_stays(place: Place) -> None:
    """File and folder were removed, the log was forgotten."""
    place.file.unlink()
    shutil.rmtree(place.folder)
    data = log_of(place.file).read_bytes()
    with pytest.raises(tbl.NotALedger, match="move the log away"):
        tbl.connect(place.file, embedded=True)
    assert log_of(place.file).read_bytes() == data
    assert not place.file.exists()


# --- the heads ----------------------------------------------------------------------------------------------------------------


def test_a_torn_head_leaves_the_one_before(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "heads")
    assert heads.read() is None
    for seq in (1, 2, 3):
        heads.write(Head(seq, bytes([seq]) * 32))
    assert heads.read() == Head(3, b"\3" * 32)
    data = bytearray((tmp_path / "heads").read_bytes())
    data[10] ^= 1  # the slot of 3
    (tmp_path / "heads").write_bytes(data)
    assert heads.read() == Head(2, b"\2" * 32)
    heads.write(Head(4, b"\4" * 32))
    assert heads.read() == Head(4, b"\4" * 32)
    heads.close()


def test_a_head_behind_the_file_is_a_killed_process_and_nothing_more(place: Place) -> None:
    heads = Heads(place.heads)
    newest = heads.read()
    heads.reset()
    assert newest is not None
    with duckdb.connect(place.file, read_only=True) as con:
        rows = con.execute("select seq, hash from events where seq = 5").fetchall()
    heads.write(Head(rows[0][0], bytes(rows[0][1])))
    heads.close()
    with tbl.connect(place.file, embedded=True) as ledger:
        assert ledger.verify().events == newest.seq
