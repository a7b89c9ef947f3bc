"""Exports: Parquet files that grow, that others read, and that are what the ledger has or do not count."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from typer.testing import CliRunner

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Clock, also_on_postgres
from tokenbudget_lab import exporting, exports, frames, heads
from tokenbudget_lab.cli.entry import app
from tokenbudget_lab.place import place_of
from tokenbudget_lab.recovery import log_of
from tokenbudget_lab.stores import duckdb as store_module
from tokenbudget_lab.stores.duckdb import DuckDBStore
from tokenbudget_lab.stores.memory import MemoryStore

STORES = ON_ONE_MACHINE

FRAMES = ("events", "calls", "reservations", "balances")


def spend(ledger: tbl.Ledger, calls: int = 4) -> None:
    """Calls of which some are open, some tagged, some in other letters."""
    lab = ledger.budget("lab", limits=[tbl.Limit(usd=1000), tbl.Limit(usd=1000, window="day")], alerts=(0.5,))
    for n in range(calls):
        call = lab.reserve_sync(usd=Decimal("0.100000000001"), tokens=n or None, tags={"arm": "é\u200b"} if n % 2 else None)
        if n % 3:
            call.commit(tbl.Usage(n, 1), usd=Decimal("0.05"), response_id=f"it's {n}").result()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def small() -> Any:
    with tbl.connect(":memory:") as ledger:
        spend(ledger)
        yield ledger


def files_of(folder: Path) -> dict[str, bytes]:
    """All files, but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "_lock"
    }


# --- what it is ------------------------------------------------------------------------------------------------------------


@also_on_postgres
def test_an_export_has_the_frames_of_its_ledger(ledger: tbl.Ledger, folder: Path) -> None:
    """The very same: types, order, nulls, money to the last decimal, instants in UTC, hashes and tags."""
    spend(ledger)
    made = ledger.export(folder)
    again = tbl.read_export(folder)
    assert (made.rows, made.head) == (again.rows, again.head) == (ledger.verify().events, ledger.verify().head)
    for name in FRAMES:
        ours, theirs = getattr(again, name)(), getattr(ledger, name)()
        assert ours.collect_schema() == frames.schema(name)
        assert ours.collect().equals(theirs.collect())


def test_an_export_is_filtered_and_cut_as_its_ledger_is(ledger: tbl.Ledger, folder: Path) -> None:
    spend(ledger)
    ledger.export(folder)
    again = tbl.read_export(folder)
    asked = (pl.col("budget") == "lab") & (pl.col("seq") > 3) | pl.col("key").is_not_null()
    for name in ("events", "calls"):
        ours, theirs = getattr(again, name)(), getattr(ledger, name)()
        assert ours.filter(asked).collect().equals(theirs.collect().filter(asked))
        assert ours.head(5).filter(asked).collect().equals(theirs.collect().head(5).filter(asked))
    assert again.events().filter(asked).select(pl.len()).collect().item() > 0


def test_of_an_export_only_the_rows_and_columns_in_use_are_read(
    small: tbl.Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.export(folder)
    read: list[tuple[int, int]] = []
    arrow = exports.ExportedFiles.arrow

    def noting(*args: Any, **how: Any) -> Any:
        table = arrow(*args, **how).read_all()
        read.append((table.num_rows, table.num_columns))
        return table.to_reader()

    monkeypatch.setattr(exports.ExportedFiles, "arrow", noting)
    found = tbl.read_export(folder).events().filter(pl.col("kind") == "committed").select("usd").collect()
    assert read == [(found.height, 2)]


def test_others_read_it_by_month(ledger: tbl.Ledger, clock: Clock, folder: Path) -> None:
    """DuckDB and Polars find the months in the folders' names; the types are Parquet's own.

    November   9 events
    December   some more
    """
    spend(ledger)
    clock.set("2026-12-01 00:00")
    spend(ledger, 2)
    ledger.export(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["_lock", "_manifest.json", "month=2026-11", "month=2026-12"]
    found = (
        duckdb.connect()
        .execute(
            "select month, min(seq) as first, max(seq) as last, count(*) as rows, any_value(typeof(ts)) as ts, "
            "any_value(typeof(usd)) as usd, any_value(typeof(hash)) as hash, any_value(typeof(tags)) as tags "
            "from read_parquet($1, hive_partitioning = true) group by month order by month",
            [f"{folder}/**/*.parquet"],
        )
        .fetchall()
    )
    types = ("TIMESTAMP WITH TIME ZONE", "DECIMAL(38,12)", "BLOB", "MAP(VARCHAR, VARCHAR)")
    assert [(row[0], *row[4:]) for row in found] == [("2026-11", *types), ("2026-12", *types)]
    assert found[0][2] + 1 == found[1][1]
    whole = pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).collect()
    assert whole.drop("month").equals(ledger.events().collect())
    assert whole.filter(pl.col("month") == "2026-12")["ts"].min() == datetime(2026, 12, 1, tzinfo=UTC)


def test_what_is_written_is_for_its_user_alone(small: tbl.Ledger, folder: Path) -> None:
    small.export(folder)
    assert {path.stat().st_mode & 0o077 for path in (folder, *folder.rglob("*"))} == {0}


# --- how it grows ----------------------------------------------------------------------------------------------------------


@also_on_postgres
def test_the_next_export_adds_what_is_new_and_touches_nothing_else(ledger: tbl.Ledger, folder: Path) -> None:
    spend(ledger)
    first = ledger.export(folder)
    before = files_of(folder)
    assert ledger.export(folder).new_rows == 0
    assert files_of(folder) == before
    spend(ledger, 3)
    second = ledger.export(folder)
    after = files_of(folder)
    assert {name: after[name] for name in before if name != "_manifest.json"} == {
        name: data for name, data in before.items() if name != "_manifest.json"
    }
    assert set(after) - set(before) == set(second.new_files)
    assert second.rows == first.rows + second.new_rows
    assert tbl.read_export(folder).events().collect().equals(ledger.events().collect())


def test_a_long_export_has_many_files(small: tbl.Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to read a file of a hundred million events."""
    monkeypatch.setattr(exporting, "ROWS", 1)
    arrow = MemoryStore.arrow
    monkeypatch.setattr(MemoryStore, "arrow", lambda *args, **how: cut(arrow(*args, **how), 4))
    made = small.export(folder)
    assert len(made.new_files) == -(-made.rows // 4)
    assert tbl.read_export(folder).calls().collect().equals(small.calls().collect())


def cut(reader: Any, rows: int) -> Any:
    """The same in small batches."""
    import pyarrow as pa

    table = reader.read_all()
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=rows))


def test_a_ledger_that_went_on_after_a_loss_is_exported_with_it(tmp_path: Path, folder: Path) -> None:
    """The loss is an event, and what follows it continues the chain."""
    file = tmp_path / "spend.duckdb"
    with tbl.connect(file, embedded=True) as ledger:
        spend(ledger)
    with log_of(file).open("rb+") as log:
        log.truncate(log_of(file).stat().st_size - 20)
    with tbl.Ledger(store=DuckDBStore(place_of(file), accept_loss=True)) as ledger:
        spend(ledger, 2)
        ledger.export(folder)
        found = tbl.read_export(folder).events().collect()
        assert found.equals(ledger.events().collect())
    assert "recovered" in found["kind"]


def test_an_event_in_the_place_of_another_is_not_exported(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that opens from its snapshot does not look at what is before; what is exported of it is looked at.

    change    event 7 comes to be a second 6, and holds more
    """
    monkeypatch.setattr(store_module, "SNAPSHOT_EVENTS", 1)
    file = tmp_path / "spend.duckdb"
    with tbl.connect(file, embedded=True) as ledger:
        spend(ledger, 6)
    with duckdb.connect(file) as con:
        con.execute("drop trigger events_are_never_changed on events")
        con.execute("update events set seq = 6, held_usd = 7 where seq = 7")
    with tbl.connect(file, embedded=True) as ledger, pytest.raises(tbl.ExportUnsound, match="event 7"):
        ledger.export(folder)


# --- what does not count -----------------------------------------------------------------------------------------------------


def fail_in(name: str, error: BaseException) -> Callable[[pytest.MonkeyPatch], None]:
    """Something goes wrong in one step."""

    def broken(*_: object, **__: object) -> Any:
        raise error

    return lambda patch: patch.setattr(exporting, name, broken)


def fail_at_manifest(error: BaseException) -> Callable[[pytest.MonkeyPatch], None]:
    """When the parts have their names and the manifest is still the old one."""

    def broken(path: Path, content: Callable[[int], bytes]) -> None:
        if json.loads(content(0))["rows"]:
            raise error
        heads.replace_file(path, content)

    return lambda patch: patch.setattr(exporting, "replace_file", broken)


STEPS = [
    fail_in("_prove", KeyboardInterrupt()),
    fail_in("_in_place", KeyboardInterrupt()),
    fail_in("_months", KeyboardInterrupt()),
    fail_in("sync_folder", OSError(28, "No space left on device")),
    fail_at_manifest(KeyboardInterrupt()),
    fail_at_manifest(OSError(28, "No space left on device")),
]


@pytest.mark.parametrize("step", STEPS, ids=range(len(STEPS)))
def test_an_export_that_is_cut_short_leaves_the_one_before(
    ledger: tbl.Ledger, folder: Path, step: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """By Ctrl-C or a full disk, at any step; the first one leaves nothing, and the next one is whole."""
    spend(ledger)
    for first in (True, False):
        if not first:
            ledger.export(folder)
            spend(ledger, 2)
        before = files_of(folder)
        with pytest.MonkeyPatch.context() as patch:
            step(patch)
            with pytest.raises((KeyboardInterrupt, tbl.StoreFailed)):
                ledger.export(folder)
        assert files_of(folder) == before
        assert folder.exists() != first
    ledger.export(folder)
    assert tbl.read_export(folder).events().collect().equals(ledger.events().collect())


def test_an_interrupt_behind_the_manifest_keeps_what_it_names(
    small: tbl.Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts by then."""

    def late(path: Path, content: Callable[[int], bytes]) -> None:
        heads.replace_file(path, content)
        if json.loads(content(0))["rows"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "replace_file", late)
    with pytest.raises(KeyboardInterrupt):
        small.export(folder)
    assert tbl.read_export(folder).events().collect().equals(small.events().collect())


KILLED = """if True:
    import os, sys, tokenbudget_lab as tbl
    from tokenbudget_lab import exporting
    step = getattr(exporting, sys.argv[3])
    left = [int(sys.argv[4])]

    def killed(*args, **settings):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return step(*args, **settings)

    setattr(exporting, sys.argv[3], killed)
    tbl.connect(sys.argv[1], embedded=True).export(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("step", "times"), [("_months", 0), ("_prove", 0), ("_in_place", 0), ("sync_folder", 1), ("replace_file", 1)]
)
def test_an_export_that_was_killed_goes_on(tmp_path: Path, folder: Path, step: str, times: int) -> None:
    """What others see meanwhile is the beginning of the events, each once; what does not count is removed by the next."""
    file = tmp_path / "spend.duckdb"
    with tbl.connect(file, embedded=True) as ledger:
        spend(ledger)
    killed = subprocess.run([sys.executable, "-c", KILLED, file, folder, step, str(times)], check=False, timeout=100)
    assert killed.returncode == 9
    assert tbl.read_export(folder).rows == 0
    assert any(folder.glob("month=*/*")) == (step != "_months")
    with tbl.connect(file, embedded=True) as ledger:
        whole = ledger.events().collect()
        seen = [pl.read_parquet(path) for path in sorted(folder.glob("month=*/*.parquet"))]
        if seen:
            assert pl.concat(seen).equals(whole.head(sum(frame.height for frame in seen)))
        spend(ledger, 1)  # so that what is new has another name than what was left
        made = ledger.export(folder)
        assert tbl.read_export(folder).events().collect().equals(ledger.events().collect())
    assert set(files_of(folder)) == {"_manifest.json", *made.new_files}


def test_what_is_read_back_must_be_what_the_ledger_has(
    small: tbl.Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cent that changed on its way, and a row that is not there."""
    import pyarrow as pa

    write = exporting._Draft.write

    def changed(self: Any, rows: Any, bar: Any) -> None:
        place = rows.schema.get_field_index("tokens")
        write(self, rows.set_column(place, rows.schema.field(place), pa.array([7] * rows.num_rows, pa.int64())), bar)

    def fewer(self: Any, rows: Any, bar: Any) -> None:
        write(self, rows.slice(0, rows.num_rows - 1), bar)

    for wrong, reason in ((changed, "event 1 was not read back"), (fewer, "new events up to")):
        with monkeypatch.context() as patch:
            patch.setattr(exporting._Draft, "write", wrong)
            with pytest.raises(tbl.ExportUnsound, match=reason):
                small.export(folder)
        assert not folder.exists()
    small.export(folder)


def test_two_exports_at_once_are_one_after_the_other(small: tbl.Ledger, folder: Path) -> None:
    """The second one is told so."""
    small.export(folder)
    with exporting._locked(folder), pytest.raises(tbl.LedgerUnavailable, match="another export"):
        small.export(folder)


# --- from the command line ---------------------------------------------------------------------------------------------------


def test_export_from_the_command_line(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "spend.duckdb"
    with tbl.connect(file, embedded=True) as ledger:
        spend(ledger)
        rows = ledger.verify().events

    def run(*args: object) -> Any:
        return CliRunner().invoke(app, ["export", *map(str, args), "--embedded"])

    done = run(file, folder, "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["rows"], told["new_rows"], len(told["new_files"])) == (0, rows, rows, 1)
    assert "0 of them new" in run("--ledger", file, folder).stdout
    assert run(file, tmp_path).exit_code == 2
    next(folder.glob("month=*/*")).unlink()
    done = run(file, folder)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    shutil.rmtree(folder)


def test_a_long_export_shows_how_far_it_is(small: tbl.Ledger, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.export(folder, progress=True)
    said = capsys.readouterr().err
    assert "exporting" in said
    assert "checking" in said
