"""Where prompts come from: a list, a column of a frame, a file; handed on in parts, so that a large set needs little memory.

A prompt is a text, or messages as a provider's API takes them. What is neither is an error that names its row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .counter import Content, size_of
from .errors import InvalidType, InvalidValue, told
from .lines import csv_fields, json_objects, names_told, text_lines

if TYPE_CHECKING:
    import polars as pl

AT_ONCE = 10_000
MOST_BYTES = 64 * 2**20  # of one line of a file of prompts
FORMATS = (".parquet", ".csv", ".jsonl", ".ndjson", ".txt")


def prompts_of(source: Any, column: str | pl.Expr | None = None) -> Iterator[list[Content]]:
    """Prompts in parts of ten thousand.

    Args:
        source: texts or lists of messages; or a Polars or pandas frame or column, or an Arrow table.
        column: of a frame, where the prompts stand: a name, or a Polars expression that makes them, such as
            `pl.format("Is this spam? {}", "text")`. Its only column, or only text column, or `prompt`, where not given.

    Raises:
        InvalidType: `source` is none of these, or a prompt is neither text nor messages.
        InvalidValue: no such column, or a row without a prompt.
    """
    if isinstance(source, str | bytes | Mapping):
        raise InvalidType("prompts", f"is {type(source).__name__}; give a list of prompts, or a frame")
    series = _series(source, column)
    if series is not None:
        yield from _of_series(series)
        return
    if column is not None:
        raise InvalidValue("prompt", f"names a column, and {type(source).__name__} has none")
    try:
        rows = enumerate(source)
    except TypeError:
        raise InvalidType("prompts", f"is {type(source).__name__}; give a list of prompts, or a frame") from None
    while part := list(islice(rows, AT_ONCE)):
        yield [content_of(f"prompt {n}", prompt) for n, prompt in part]


def count_of(source: Any) -> int | None:
    """How many prompts there are, where that is known before they are read."""
    return size_of(source)


def content_of(where: str, prompt: Any) -> Content:
    """Check that a prompt is one."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and all(isinstance(each, Mapping) for each in prompt):
        return prompt
    if prompt is None:
        raise InvalidValue(where, "is missing; leave the row out, or write an empty text")
    # What it is, and not what it says: a prompt is nobody else's business.
    raise InvalidType(where, f"is {type(prompt).__name__}, neither a text nor a list of messages")


def _series(source: Any, column: str | pl.Expr | None) -> pl.Series | None:
    """The column of a frame, of whichever library it is."""
    library = type(source).__module__.partition(".")[0]
    if library not in ("polars", "pandas", "pyarrow"):
        return None
    import polars as pl

    if library != "polars":
        source = _as_polars(source, library, column)
    if column is not None and not isinstance(column, str | pl.Expr):
        raise InvalidType("prompt", f"is {type(column).__name__}, neither the name of a column nor a Polars expression")
    if isinstance(source, pl.Series):
        if column is not None:
            raise InvalidValue("prompt", "names a column, and a single one was given")
        return source
    if not isinstance(source, pl.DataFrame | pl.LazyFrame):
        raise InvalidType("prompts", f"is {type(source).__name__}; give a list of prompts, or a frame")
    lazy = source.lazy()
    try:
        chosen = _column(lazy.collect_schema(), column) if column is None or isinstance(column, str) else column
        found: pl.DataFrame = lazy.select(chosen).collect()
        rows = found.height if isinstance(chosen, str) else lazy.select(pl.len()).collect().item()
    except (OSError, ArithmeticError, pl.exceptions.PolarsError) as error:
        raise InvalidValue("prompt", f"cannot be made of this frame ({_said(error)})") from error
    if found.width != 1:
        raise InvalidValue("prompt", f"makes {found.width} columns, and not one")
    if found.height != rows:
        raise InvalidValue("prompt", f"makes {found.height:,} prompts of {rows:,} rows, and not one of each")
    return found.to_series()


def _as_polars(source: Any, library: str, column: Any) -> Any:
    """Another library's frame or column; what an error of a conversion would say stays unsaid, as it quotes values."""
    import polars as pl

    names = [*map(str, getattr(source, "columns" if library == "pandas" else "column_names", ()))]
    if isinstance(column, str) and names.count(column) == 1:  # of the others nothing is asked, whatever they are
        position = names.index(column)
        source = source.iloc[:, [position]] if library == "pandas" else source.select([position])
        names = [column]
    if len(set(names)) < len(names):
        raise InvalidValue("prompts", f"has several columns of one name; rename them: there are {names_told(names)}")
    try:
        return pl.from_pandas(source) if library == "pandas" else pl.from_arrow(source)
    except (TypeError, ValueError, ArithmeticError, NotImplementedError, pl.exceptions.PolarsError):
        kind = type(source).__name__
        reason = f"is {kind} that cannot be read (a column of several types?); give a list of prompts, or say prompt="
        raise InvalidType("prompts", reason) from None


def _column(schema: Mapping[str, Any], column: str | None) -> str:
    import polars as pl

    names = list(schema)
    if not names:
        raise InvalidValue("prompts", "is a frame without columns")
    if column is not None:
        if column not in names:
            raise InvalidValue("prompt", f"there is no column {told(column)}; it has {names_told(names)}")
        return column
    texts = [name for name, kind in schema.items() if kind == pl.String]
    if "prompt" in names or len(texts) != 1:
        if "prompt" not in names:
            raise InvalidValue("prompt", f"say which column it is: {names_told(names)}")
        return "prompt"
    return texts[0]


def _of_series(series: pl.Series, before: int = 0) -> Iterator[list[Content]]:
    """The prompts of a column that has so many rows before these."""
    import polars as pl

    missing = series.is_null().arg_true()
    if len(missing):
        raise InvalidValue(f"row {before + missing[0]}", "has no prompt; leave the row out, or write an empty text")
    for start in range(0, len(series), AT_ONCE):
        part, row = series.slice(start, AT_ONCE).to_list(), before + start
        yield part if series.dtype == pl.String else [content_of(f"row {row + n}", prompt) for n, prompt in enumerate(part)]


# --- files -------------------------------------------------------------------------------------------------------------------


def read_prompts(path: Path, column: str | None = None) -> Iterator[Content]:
    """The prompts of a file; the ending says what it is: Parquet, CSV with a header, a JSON object a line, a text a line.

    Args:
        path: the file.
        column: where the prompts stand; `prompt` where not given. In JSON it may hold a text or a list of messages.

    Raises:
        InvalidValue: no such file or column, or a line that is none; with the line's number.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise InvalidValue("prompts", f"{path.name} is of no kind that is read: {', '.join(FORMATS)}")
    if path.exists() and not path.is_file():
        raise InvalidValue("prompts", f"{path} is no regular file")
    if kind == ".txt" and column is not None:
        raise InvalidValue("prompt", f"names a column, and {path.name} has none: each of its lines is a prompt")
    if kind == ".parquet":
        return chain.from_iterable(_of_parquet(_parquet(path), column))
    return _read_lines(path, kind, column or "prompt")


def _parquet(path: Path) -> pl.LazyFrame:
    import polars as pl

    try:
        path.open("rb").close()  # says why not in the system's words
        frame = pl.scan_parquet(path, glob=False)
        frame.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise InvalidValue("prompts", f"{path} cannot be read: it is no Parquet file, or a part of one") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    return frame


def _of_parquet(frame: pl.LazyFrame, column: str | None) -> Iterator[list[Content]]:
    """Its prompts, read in parts: Polars finds the pages of a slice, and a column read as a whole is kept as a whole."""
    import polars as pl

    name, rows = _column(frame.collect_schema(), column), frame.select(pl.len()).collect().item()
    for start in range(0, rows, AT_ONCE):
        part = _series(frame.slice(start, AT_ONCE), name)
        yield from _of_series(part, start) if part is not None else ()


def _unreadable(path: Path, error: OSError) -> InvalidValue:
    return InvalidValue("prompts", f"{path} cannot be read ({error.strerror or type(error).__name__})")


def _said(error: Exception) -> str:
    """What is wrong with a frame: which file or column is missing; of other errors their kind, as they may quote prompts."""
    import polars as pl

    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, FileNotFoundError):
        return f"there is no file {first.partition('): ')[2] or first}"
    if isinstance(error, pl.exceptions.ColumnNotFoundError):
        return f"there is no column {told(first.partition('; ')[0].removeprefix('unable to find column ').strip(chr(34)))}"
    return type(error).__name__


def _read_lines(path: Path, kind: str, column: str) -> Iterator[Content]:
    try:
        with path.open("rb") as file:
            if kind == ".txt":
                yield from (line.rstrip("\r\n") for line in text_lines(file, path.name, MOST_BYTES))
            elif kind == ".csv":
                yield from _of_csv(file, path.name, column)
            else:
                for where, row in json_objects(file, path.name, MOST_BYTES):
                    if column not in row:
                        raise InvalidValue(where, f"has no {told(column)}; it has {names_told(list(row))}")
                    yield content_of(where, row[column])
    except OSError as error:
        raise _unreadable(path, error) from error


def _of_csv(file: Any, name: str, column: str) -> Iterator[str]:
    before = csv.field_size_limit(MOST_BYTES)  # of the whole process, for as long as this file is read
    try:
        for _, (prompt,) in csv_fields(file, name, [column], MOST_BYTES):
            yield prompt
    finally:
        csv.field_size_limit(before)
