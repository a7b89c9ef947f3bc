"""Where prompts come from, and what is said of those that are none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import prompts
from tokenbudget_lab.prompts import prompts_of, read_prompts

MESSAGES = [{"role": "user", "content": "b"}]
FRAME = pl.DataFrame({"id": [1, 2], "text": ["a", "b"]})


def read(source: Any, column: Any = None) -> list[Any]:
    return list(chain.from_iterable(prompts_of(source, column)))


@pytest.mark.parametrize(
    ("source", "column"),
    [
        (["a", "b"], None),
        (("a", "b"), None),
        ((text for text in "ab"), None),
        (pl.Series(["a", "b"]), None),
        (FRAME, None),
        (FRAME, "text"),
        (FRAME.lazy(), "text"),
        (FRAME, pl.col("text").str.to_lowercase()),
        (FRAME.rename({"text": "prompt"}).with_columns(other=pl.lit("x")), None),
        (pa.table({"text": ["a", "b"]}), None),
        (pa.table([["x"] * 2, ["y"] * 2, ["a", "b"]], names=["id", "id", "text"]), "text"),
        (pd.DataFrame({"text": ["a", "b"]}, index=[7, 3]), None),
        (pd.DataFrame({"mixed": ["x", 1], "text": ["a", "b"]}), "text"),
        (pd.Series(["a", "b"], index=[7, 3]), None),
        (pd.Series(["a", "b"], dtype=object), None),
        (pd.Series(["a", "b"], dtype="category"), None),
        (pd.Index(["a", "b"]), None),
        (np.array(["a", "b"]), None),
        (np.array(["a", "b"], dtype=object), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_prompts_come_from_lists_frames_and_columns(source: Any, column: Any) -> None:
    assert read(source, column) == ["a", "b"]


def test_a_prompt_can_be_made_of_several_columns() -> None:
    assert read(FRAME, pl.format("{}: {}", "id", "text")) == ["1: a", "2: b"]


def test_a_prompt_can_be_messages() -> None:
    assert read(["a", MESSAGES]) == ["a", MESSAGES]
    assert read(pl.DataFrame({"prompt": [MESSAGES, MESSAGES]})) == [MESSAGES, MESSAGES]


def test_many_prompts_come_in_parts_and_are_not_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "AT_ONCE", 10)
    taken = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield "a"

    assert next(prompts_of(endless())) == ["a"] * 10
    assert len(taken) == 10
    assert [len(part) for part in prompts_of(pl.Series(["a"] * 25))] == [10, 10, 5]


@pytest.mark.parametrize(
    ("source", "column", "said"),
    [
        ("one text", None, "give a list"),
        (b"bytes", None, "give a list"),
        ({"a": 1}, None, "give a list"),
        (5, None, "give a list"),
        (None, None, "give a list"),
        (["a", None], None, "prompt 1: is missing"),
        (["a", 5], None, "prompt 1: is int"),
        (["a", b"b"], None, "prompt 1: is bytes"),
        (["a", ["b"]], None, "prompt 1: is list"),
        (["a"], "text", "names a column"),
        (pl.Series(["a", None]), None, "row 1: has no prompt"),
        (pl.Series([1, 2]), None, "row 0: is int"),
        (pl.Series(["a"]), "text", "names a column"),
        (FRAME, "txet", "there is no column 'txet'; it has id, text"),
        (FRAME.with_columns(more=pl.lit("x")), None, "say which column it is: id, text, more"),
        (FRAME, pl.col("nothing"), "cannot be made of this frame"),
        (FRAME, pl.col("id", "text"), "makes 2 columns"),
        (FRAME, pl.lit("Is this spam?"), "makes 1 prompts of 2 rows"),
        (FRAME, pl.col("text").first(), "makes 1 prompts of 2 rows"),
        (FRAME.lazy().select("nothing"), None, "cannot be made of this frame"),
        (pl.scan_parquet("/nowhere.parquet"), None, "cannot be made of this frame"),
        (pl.col("text"), None, "give a list of prompts, or a frame"),
        (pl.DataFrame(), None, "is a frame without columns"),
        (pl.scan_parquet("/nowhere.parquet"), None, "there is no file /nowhere.parquet)"),
        (FRAME, pl.col("nothing"), "there is no column 'nothing'"),
        (FRAME, 5, "prompt: is int, neither the name of a column nor"),
        (FRAME, "x" * 1_000_000, "there is no column 'xxx"),
        (
            pa.table([["a"], ["b"]], names=["text", "text"]),
            None,
            "several columns of one name; rename them: there are text, text",
        ),
        (pa.table([["a"], ["b"]], names=["text", "text"]), "text", "several columns of one name"),
        (pa.scalar("a"), None, "is StringScalar that cannot be read"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), None, "several columns of one name"),
        (pd.DataFrame({"text": ["a", None]}), None, "row 1: has no prompt"),
        (pd.Series(["a", float("nan")], dtype=object), None, "row 1: has no prompt"),
        (pd.DataFrame({"text": ["a"]}).groupby("text"), None, "is DataFrameGroupBy that cannot be read"),
        (np.array("a"), None, "is ndarray; give a list"),
        (np.array([["a"], ["b"]]), None, "prompt 0: is ndarray"),
        (np.array(["a", None], dtype=object), None, "prompt 1: is missing"),
        (np.array([1, 2]), None, "prompt 0: is int64"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_prompt_is_named(source: Any, column: Any, said: str) -> None:
    with pytest.raises(tbl.InvalidValue) as error:
        read(source, column)
    assert said in str(error.value)
    assert len(str(error.value)) < 300


class OfNoLength:
    """Two prompts that say that they are fewer than none."""

    def __len__(self) -> int:
        return -2  # noqa: PLE0303 - that is the point

    def __iter__(self) -> Iterator[str]:
        return iter("ab")


def test_who_says_nonsense_of_a_length_has_not_said_it() -> None:
    """It is asked for a bar only."""
    assert read(OfNoLength()) == ["a", "b"]
    assert prompts.count_of(OfNoLength()) is None
    for progress in (True, False):
        counter = tbl.EstimationTokenCounter("gpt-6-mini")
        assert (
            tbl.estimate(OfNoLength(), model="gpt-6-mini", max_output_tokens=1, counter=counter, progress=progress).calls == 2
        )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("p.txt", b"a\nb\n"),
        ("p.csv", b"id,prompt\n1,a\n2,b\n"),
        ("bom.csv", b'\xef\xbb\xbfprompt,id\n"a",1\n\nb,2\n'),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"id": 2, "prompt": "b"}'),
        ("p.NDJSON", b'{"prompt": "a"}\r\n{"prompt": "b"}\r\n'),
    ],
)
def test_files_of_prompts_are_read(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert list(read_prompts(tmp_path / name)) == ["a", "b"]


def test_parquet_and_messages_in_json_are_read(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "p.parquet")
    assert list(read_prompts(tmp_path / "p.parquet")) == ["a", "b"]
    (tmp_path / "m.jsonl").write_text('{"m": [{"role": "user", "content": "b"}]}')
    assert list(read_prompts(tmp_path / "m.jsonl", "m")) == [MESSAGES]


def test_a_long_prompt_in_a_csv_is_read_and_the_limit_is_as_before(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    (tmp_path / "p.csv").write_text("prompt\n" + "a" * 1_000_000 + "\n")
    assert [len(text) for text in map(str, read_prompts(tmp_path / "p.csv"))] == [1_000_000]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("p.pdf", b"", "p.pdf is of no kind that is read: .parquet, .csv"),
        ("none.csv", None, "cannot be read (No such file"),
        ("none.parquet", None, "none.parquet cannot be read (No such file or directory)"),
        ("p.parquet", b"no parquet", "cannot be read"),
        ("p.csv", b"id,text\n1,a\n", "line 1: has no column 'prompt'; it has id, text"),
        (
            "p.csv",
            b"My own words, as I wrote them.,7\nb,8\n",
            "line 1: has no column 'prompt'; it has 3 columns, and what should",
        ),
        ("p.csv", b"id,prompt\n1\n", "line 2: has 1 fields"),
        ("p.csv", b'id,prompt\n1,"a', "line 2: is no CSV"),
        ("p.csv", b"id,prompt\n1,\xff\n", "line 2: is not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', "line 2: is no JSON"),
        ("p.jsonl", b'{"prompt": NaN}', "line 1: is no JSON (NaN is no number of JSON)"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands there twice"),
        ("p.jsonl", b'{"prompt": ' + b"[" * 10_000, "line 1: is nested too deep"),
        ("p.jsonl", b'["a"]', "line 1: is no JSON object"),
        ("p.jsonl", b'{"text": "a"}', "line 1: has no 'prompt'; it has text"),
        ("p.jsonl", b'{"prompt": null}', "line 1: is missing"),
        ("p.jsonl", b'{"prompt": 5}', "line 1: is int"),
        ("p.txt", b"a\n\xff", "line 2: is not UTF-8"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(tbl.InvalidValue) as error:
        list(read_prompts(tmp_path / name))
    assert said in str(error.value)


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MOST_BYTES", 1000)
    for name in ("p.jsonl", "p.csv", "p.txt"):
        (tmp_path / name).write_bytes(b"prompt\n" + b"a" * 5000)
        with pytest.raises(tbl.InvalidValue, match=r"is longer than 1,000 bytes|no JSON"):
            list(read_prompts(tmp_path / name))


def test_what_a_prompt_says_is_in_no_error() -> None:
    """One message in place of a list of prompts, as everybody writes it once."""
    with pytest.raises(tbl.InvalidType) as error:
        read([["my own words"]])
    assert "my own words" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "column"),
    [
        (pd.DataFrame({"text": ["my own words", 5]}), None),
        (pd.Series(["my own words", 5]), None),
        (pl.DataFrame({"text": ["my own words"]}), pl.col("text").cast(pl.Int64)),
        (pl.DataFrame({"And my own words?": [1], "b": ["c"]}), "prompt"),
        (pl.DataFrame({"And my own words?": ["b"], "c": ["d"]}), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nor_what_stands_in_a_frame(source: Any, column: Any) -> None:
    """Libraries quote the value that they cannot convert; a file that was read without its header has prompts for names."""
    with pytest.raises(tbl.InvalidValue) as error:
        read(source, column)
    assert "my own words" not in str(error.value)


def test_nor_the_first_line_of_a_file_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("Is this spam? My own words.\nb\n")
    (tmp_path / "p.jsonl").write_text('{"Is this spam? My own words.": 1}')
    for name in ("p.csv", "p.jsonl"):
        with pytest.raises(tbl.InvalidValue, match="1 column, and what should name them looks like text") as error:
            list(read_prompts(tmp_path / name))
        assert "own words" not in str(error.value)


def test_a_file_is_the_one_that_is_named(tmp_path: Path) -> None:
    """Its name is no pattern; a folder or a pipe is no file; lines of text have no columns."""
    for name, rows in (("p1.parquet", 7), ("other.parquet", 3)):
        pl.DataFrame({"prompt": ["a"] * rows}).write_parquet(tmp_path / name)
    (tmp_path / "other.parquet").rename(tmp_path / "p[1].parquet")
    assert len(list(read_prompts(tmp_path / "p[1].parquet"))) == 3
    (tmp_path / "folder.parquet").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("folder.parquet", "pipe.csv"):
        with pytest.raises(tbl.InvalidValue, match="no regular file"):
            list(read_prompts(tmp_path / name))
    (tmp_path / "p.txt").write_text("a")
    with pytest.raises(tbl.InvalidValue, match="names a column"):
        list(read_prompts(tmp_path / "p.txt", "text"))
