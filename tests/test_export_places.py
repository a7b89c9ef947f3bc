"""Where an export may be, and what is none: refused by name, and left as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import tokenbudget_lab as tbl
from tests.test_export import files_of, spend
from tokenbudget_lab import exports, link
from tokenbudget_lab.place import place_of
from tokenbudget_lab.recovery import log_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def small() -> Iterator[tbl.Ledger]:
    with tbl.connect(":memory:") as ledger:
        spend(ledger)
        yield ledger


# --- where it may be ---------------------------------------------------------------------------------------------------------


def test_an_export_goes_into_a_folder_of_its_own_only(small: tbl.Ledger, tmp_path: Path) -> None:
    """A file, a link, somebody's folder, a path that climbs, no path at all: nothing is written."""
    full = tmp_path / "thesis"
    full.mkdir()
    (full / "thesis.tex").write_text("mine")
    (tmp_path / "link").symlink_to(full)
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    wrong: list[Any] = [full, *(tmp_path / name for name in ("link", "nowhere", "file", "pipe", "no/such"))]
    wrong += [
        tmp_path / "a" / ".." / "b",
        "../out",
        tmp_path / "a*b",
        tmp_path / "a[b]",
        "",
        " ",
        "a\0b",
        "s3://bucket/x",
        "https://me:secret@host/x",
        7,
        None,
        b"out",
    ]
    for path in wrong:
        with pytest.raises(tbl.InvalidValue, match="folder") as refused:
            small.export(path)
        assert "secret" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_else_may_lie_in_an_export(small: tbl.Ledger, folder: Path) -> None:
    """Neither beside the months nor in them, under whatever name; it is left as it is."""
    small.export(folder)
    month = next(folder.glob("month=*"))
    for path in (folder / "notes.txt", folder / "month=2026-1", month / "mine.parquet", month / "part-1-2.parquet"):
        path.write_text("mine")
        with pytest.raises(tbl.InvalidValue, match="not from an export"):
            small.export(folder)
        assert path.read_text() == "mine"
        path.unlink()
    (folder / "month=2020-01").symlink_to(month)
    with pytest.raises(tbl.InvalidValue, match="not from an export"):
        small.export(folder)
    (folder / "month=2020-01").unlink()
    small.export(folder)


def test_months_without_a_manifest_are_nobodys_export(small: tbl.Ledger, folder: Path) -> None:
    small.export(folder)
    (folder / "_manifest.json").unlink()
    with pytest.raises(tbl.InvalidValue, match="not from an export"):
        small.export(folder)
    with pytest.raises(tbl.InvalidValue, match="no export"):
        tbl.read_export(folder)


def test_another_ledgers_export_is_refused(small: tbl.Ledger, folder: Path) -> None:
    small.export(folder)
    before = files_of(folder)
    with tbl.connect(":memory:") as other:
        spend(other, 20)
        with pytest.raises(tbl.InvalidValue, match="another ledger"):
            other.export(folder)
    assert files_of(folder) == before


def test_a_ledger_that_was_put_back_does_not_go_on_with_an_export(tmp_path: Path, folder: Path) -> None:
    """A copy of the file from before, that then went another way.

    copy     the ledger
    export   with four more calls
    export   of the copy, after other calls
    """
    file, copy = tmp_path / "spend.duckdb", tmp_path / "copy.duckdb"
    with tbl.connect(file, embedded=True) as ledger:
        spend(ledger)
        ledger.backup(copy)
        spend(ledger)
        ledger.export(folder)
    with tbl.connect(copy, embedded=True) as other:
        for calls in (0, 40):
            spend(other, calls)
            with pytest.raises(tbl.InvalidValue, match="put back"):
                other.export(folder)


@pytest.mark.parametrize("embedded", [True, False])
def test_a_damaged_ledger_is_not_exported(tmp_path: Path, folder: Path, *, embedded: bool) -> None:
    """It would look whole."""
    file = tmp_path / "spend.duckdb"
    with tbl.connect(file, embedded=True) as ledger:
        spend(ledger)
    with log_of(file).open("rb+") as log:
        log.truncate(log_of(file).stat().st_size - 20)
    with tbl.connect(file, embedded=embedded) as ledger, pytest.raises(tbl.LedgerDamaged):
        ledger.export(folder)
    assert not folder.exists()
    if not embedded:
        link.stop(place_of(file))


# --- an export that is not what it says --------------------------------------------------------------------------------------


def test_a_file_that_is_missing_or_cut_is_named(small: tbl.Ledger, folder: Path) -> None:
    """By who reads, and by who would go on with it."""
    small.export(folder)
    part = next(folder.glob("month=*/part-*"))
    data = part.read_bytes()
    (folder.parent / "same").write_bytes(data)
    for damage in (lambda: part.write_bytes(data[:-1]), part.unlink, lambda: part.symlink_to(folder.parent / "same")):
        damage()
        for use in (tbl.read_export, small.export):
            with pytest.raises((tbl.ExportUnsound, tbl.InvalidValue), match=r"part-"):
                use(folder)
    part.unlink()
    part.write_bytes(data)
    assert tbl.read_export(folder).events().collect().height == small.events().collect().height


NAME, NONE = "part-000000000001-000000000001.parquet", "part-000000000001-000000000000.parquet"


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"path": "../../etc/passwd", "first_seq": 1, "last_seq": 1, "rows": 1, "bytes": 1}]},
        {"files": [{"path": "/etc/passwd", "first_seq": 1, "last_seq": 1, "rows": 1, "bytes": 1}]},
        {"files": [{"path": f"../{NAME}", "first_seq": 1, "last_seq": 1, "rows": 1, "bytes": 1}], "rows": 1, "last_seq": 1},
        {
            "files": [{"path": f"month=2026-11/{NONE}", "first_seq": 1, "last_seq": 0, "rows": 0, "bytes": 1}],
            "rows": 0,
            "last_seq": 0,
        },
        {"files": []},
        {"files": None},
        {"rows": 1},
        {"last_seq": "12"},
        {"head": "xyz"},
        {"ledger": None},
        {"format": None},
    ],
    ids=str,
)
def test_a_manifest_that_makes_no_sense_is_refused(small: tbl.Ledger, folder: Path, change: dict[str, Any]) -> None:
    """It leads nowhere else, whoever wrote it."""
    small.export(folder)
    path = folder / "_manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for use in (tbl.read_export, small.export):
        with pytest.raises(tbl.ExportUnsound, match="makes no sense"):
            use(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")])
def test_a_manifest_that_is_none_is_refused(small: tbl.Ledger, folder: Path, text: str | bytes) -> None:
    small.export(folder)
    (folder / "_manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(tbl.ExportUnsound, match="makes no sense"):
        tbl.read_export(folder)


def test_a_newer_format_is_told(small: tbl.Ledger, folder: Path) -> None:
    small.export(folder)
    path = folder / "_manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": exports.FORMAT + 1}))
    with pytest.raises(tbl.VersionMismatch, match="export version 2"):
        tbl.read_export(folder)


def test_who_reads_an_export_reaches_nothing_else(small: tbl.Ledger, folder: Path) -> None:
    small.export(folder)
    part = next(folder.glob("month=*/part-*"))
    with exports._reader_of([str(part)]) as con:
        assert con.execute("select seq from read_parquet($1)", [str(part)]).fetchall()
        for query in (
            f"from read_text('{folder}/_manifest.json')",
            f"copy (select 1) to '{folder}/x.csv'",
            f"attach '{folder}/x.duckdb'",
            "set enable_external_access = true",
            "install httpfs",
        ):
            with pytest.raises(duckdb.Error):
                con.execute(query)


def test_a_path_with_a_quote_in_it_is_a_path(small: tbl.Ledger, tmp_path: Path) -> None:
    for name in ("it's, mine", "é\u200b", "month=2026-11", "a b", "%41", "$x", "{a,b}"):
        small.export(tmp_path / name)
        assert tbl.read_export(tmp_path / name).events().collect().equals(small.events().collect())
