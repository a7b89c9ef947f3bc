"""Saving a report: the ending picks the format, nothing is half written, and nothing is overwritten unasked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenbudget_lab as tbl
from tests.test_reports import calls
from tokenbudget_lab.reports import FORMATS


@pytest.fixture
def told() -> tbl.Report:
    return tbl.report(calls(3))


@pytest.mark.parametrize("ending", FORMATS)
def test_the_ending_picks_the_format(told: tbl.Report, tmp_path: Path, ending: str) -> None:
    made = told.save(tmp_path / f"r{ending.upper()}")
    content = FORMATS[ending](told)
    assert made.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


@pytest.mark.parametrize("name", ["r.docx", "r", ".html", "no/r.html", "folder.html", "r\0.html", "r.html.exe", ""])
def test_what_cannot_be_written_is_named(told: tbl.Report, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(tbl.InvalidValue):
        told.save(f"{tmp_path}/{name}", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_a_name_that_is_too_long_is_named(told: tbl.Report, tmp_path: Path) -> None:
    with pytest.raises(tbl.InvalidValue, match="File name too long"):
        told.save(tmp_path / f"{'x' * 300}.html")


def test_a_path_of_bytes_is_none(told: tbl.Report) -> None:
    with pytest.raises(tbl.InvalidType):
        told.save(b"r.html")  # type: ignore[arg-type] # as said


def test_a_file_that_is_there_stays_without_force(told: tbl.Report, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("mine")
    with pytest.raises(tbl.InvalidValue, match="there already"):
        told.save(path)
    assert path.read_text() == "mine"
    told.save(path, force=True)
    assert path.read_text() == told.html


def test_no_link_is_written_through(told: tbl.Report, tmp_path: Path) -> None:
    """With force the link itself is replaced."""
    (tmp_path / "precious.txt").write_text("thesis")
    link = tmp_path / "r.md"
    link.symlink_to(tmp_path / "precious.txt")
    with pytest.raises(tbl.InvalidValue, match="there already"):
        told.save(link)
    told.save(link, force=True)
    assert (tmp_path / "precious.txt").read_text() == "thesis"
    assert not link.is_symlink()


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")


def _interrupted(_: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("fail", "raised"), [(_full, tbl.InvalidValue), (_interrupted, KeyboardInterrupt)])
@pytest.mark.parametrize("force", [False, True])
def test_interrupted_the_old_file_is_there_and_no_other(
    told: tbl.Report,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[int], None],
    raised: type[BaseException],
    *,
    force: bool,
) -> None:
    """By a full disk, or by Ctrl-C."""
    old = tmp_path / "r.html"
    if force:
        old.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(raised):
        told.save(old, force=force)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({"r.html": "old"} if force else {})


def test_interrupted_at_the_rename_no_name_is_left_claimed(
    told: tbl.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        told.save(tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_of_those_who_save_to_one_path_one_does(told: tbl.Report, tmp_path: Path) -> None:
    ends: list[str] = []

    def save() -> None:
        try:
            ends.append(told.save(tmp_path / "r.json").name)
        except tbl.InvalidValue:
            ends.append("refused")

    saving = [threading.Thread(target=save) for _ in range(6)]
    for each in saving:
        each.start()
    for each in saving:
        each.join()
    assert sorted(ends) == ["r.json", *["refused"] * 5]
    assert (tmp_path / "r.json").read_text() == told.json
