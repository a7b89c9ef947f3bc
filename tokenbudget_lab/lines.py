"""Text files line by line, with bounded memory: what is wrong in one is said with the line's number."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, BinaryIO, NoReturn

from .errors import InvalidValue, told

MOST_BYTES = 1_000_000  # of one line
_NAME = re.compile(r"[\w.:/()\[\]-]{1,30}(?: [\w.:/()\[\]-]{1,20})?")  # of a column: one word or two, and short ones
_MOST_NAMES = 20


def text_lines(file: BinaryIO, name: str, most_bytes: int = MOST_BYTES) -> Iterator[str]:
    """The lines of a UTF-8 file, with or without a BOM.

    Raises:
        InvalidValue: one is too long, or no UTF-8.
    """
    for number in count(1):
        line = file.readline(most_bytes)
        if not line:
            return
        if len(line) == most_bytes:
            raise InvalidValue(f"{name}, line {number}", f"is longer than {most_bytes:,} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InvalidValue(f"{name}, line {number}", "is not UTF-8; save the file as UTF-8") from None


def csv_fields(
    file: BinaryIO, name: str, columns: Sequence[str], most_bytes: int = MOST_BYTES
) -> Iterator[tuple[str, list[str]]]:
    """The fields of these columns of a CSV file with a header, each row with where it ends: `trace.csv, line 7`.

    Raises:
        InvalidValue: no such column, a row that is cut, or what is no CSV.
    """
    rows = csv.reader(text_lines(file, name, most_bytes), strict=True)
    header = next(_rows(rows, name), [])
    at = [_index(header, column, name) for column in columns]
    for row in _rows(rows, name):
        where = f"{name}, line {rows.line_num}"
        if len(row) != len(header):
            raise InvalidValue(where, f"has {len(row)} fields, and the header has {len(header)}; half a line?")
        yield where, [row[n] for n in at]


def _rows(rows: Any, name: str) -> Iterator[list[str]]:
    """The rows that are not blank."""
    try:
        for row in rows:
            if row:
                yield row
    except csv.Error as error:
        raise InvalidValue(f"{name}, line {rows.line_num}", f"is no CSV ({error})") from error


def _index(header: list[str], column: str, name: str) -> int:
    if header.count(column) != 1:
        many = f"{header.count(column)} columns" if column in header else "no column"
        raise InvalidValue(f"{name}, line 1", f"has {many} {told(column)}; it has {names_told(header)}")
    return header.index(column)


def names_told(names: Sequence[str]) -> str:
    """The names of columns in an error; only their number where one is no name: it may be a prompt, of a file without a header.

    Examples:
        >>> names_told(["id", "prompt text"]), names_told([])
        ('id, prompt text', 'nothing')
        >>> names_told(["7", "Is this spam? You have won!"])
        '2 columns, and what should name them looks like text; is the header missing? The first line has to name the columns'
    """
    if all(_NAME.fullmatch(name) for name in names):
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        return ", ".join(names[:_MOST_NAMES]) + more or "nothing"
    what = f"{len(names):,} column{'' if len(names) == 1 else 's'}, and what should name them looks like text"
    return f"{what}; is the header missing? The first line has to name the columns"


def json_objects(file: BinaryIO, name: str, most_bytes: int = MOST_BYTES) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object a line, each with where it stands; blank lines are passed by.

    Raises:
        InvalidValue: what is no object, or one that names a key twice, has NaN, or is nested too deep.
    """
    for number, line in enumerate(text_lines(file, name, most_bytes), 1):
        where = f"{name}, line {number}"
        if line.strip():
            try:
                found = json.loads(line, parse_constant=_no_number, object_pairs_hook=_unique)
            except RecursionError:
                raise InvalidValue(where, "is nested too deep") from None
            except ValueError as error:
                raise InvalidValue(where, f"is no JSON ({error}); half a line?") from None
            if not isinstance(found, dict):
                raise InvalidValue(where, f"is no JSON object, it is {type(found).__name__}")
            yield where, found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:n]))
        raise ValueError(f"the key {twice[:40]!r} stands there twice")
    return found
