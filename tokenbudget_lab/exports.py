"""An export as it lies on the disk: events in Parquet files, one folder per month, and the manifest that says which count.

    spend-export/
      _manifest.json                                     what there is, replaced in one step when all else is there
      _lock                                              whoever writes holds it
      month=2026-11/part-000000000001-000000000420.parquet

Its readers may rely on this: the files that the manifest names hold the events from 1 to its last, each once, in order, with
the hashes of the ledger that they are from; whatever else lies there does not count.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .conditions import Condition, to_sql
from .errors import ExportUnsound, InvalidValue, LedgerUnavailable, VersionMismatch, told
from .events import GENESIS
from .place import local_path, read_file
from .rows import COLUMNS, arrow_schema, in_utc

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

FORMAT = 1
MANIFEST, LOCK = "_manifest.json", "_lock"
MONTH = re.compile(r"month=\d{4}-\d\d")
PART = re.compile(r"part-(\d{12,})-(\d{12,})\.parquet")
_HASH = re.compile(r"[0-9a-f]{64}")
_PATTERN = "*?[]"
_MOST = 64 * 2**20  # bytes of a manifest
_FETCH = 50_000


@dataclass(frozen=True, slots=True)
class Part:
    """One file: the events from `first_seq` to `last_seq`; its path is relative to the folder, with slashes."""

    path: str
    first_seq: int
    last_seq: int
    bytes: int

    @property
    def rows(self) -> int:
        """How many events."""
        return self.last_seq - self.first_seq + 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an export has: the ledger's first hash, by which it is known, and the last one, by which it is proved; in hex."""

    ledger: str
    head: str = GENESIS.hex()
    parts: tuple[Part, ...] = ()

    @property
    def last_seq(self) -> int:
        """The last event, which is also how many there are."""
        return self.parts[-1].last_seq if self.parts else 0

    def to_json(self) -> bytes:
        """The file's content."""
        said = {"format": FORMAT, "rows": self.last_seq, "last_seq": self.last_seq, "head": self.head, "ledger": self.ledger}
        return json.dumps({**said, "files": [{**asdict(part), "rows": part.rows} for part in self.parts]}, indent=1).encode()


def export_folder(folder: Any) -> Path:
    """Check where an export is to be, or is.

    Raises:
        InvalidValue: no path of this machine, one with `..`, a symbolic link, or a file.
    """
    path = Path(local_path("folder", folder))
    if ".." in path.parts:
        raise InvalidValue("folder", f"{told(str(folder))} has .. in it; write the path in full")
    if set(_PATTERN).intersection(str(path.absolute())):  # DuckDB and Polars would look for other files
        raise InvalidValue("folder", f"{told(str(folder))} has one of {_PATTERN} in it, which readers take for a pattern")
    try:
        path = path.expanduser().absolute()
        if path.is_symlink():
            raise InvalidValue("folder", f"{path} is a symbolic link; name the folder itself")
        if path.exists() and not path.is_dir():
            raise InvalidValue("folder", f"{path} is there and is no folder")
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue("folder", f"{told(str(folder))}: {error}") from None
    return path


def manifest_of(folder: Path) -> Manifest | None:
    """What an export says that it has; `None` where there is no manifest.

    Raises:
        ExportUnsound: it makes no sense, or a file is missing or has another size.
        VersionMismatch: a newer package wrote it.
    """
    try:
        text = read_file(folder / MANIFEST, _MOST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExportUnsound(str(folder), f"{MANIFEST} cannot be read ({error.strerror})") from error
    try:
        said = json.loads(text)
        if said["format"] > FORMAT:
            raise VersionMismatch("export", FORMAT, int(said["format"]))
        manifest = _sound(said)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ExportUnsound(str(folder), f"{MANIFEST} makes no sense ({type(error).__name__})") from None
    for part in manifest.parts:
        path = folder / part.path
        if path.parent.is_symlink() or path.is_symlink() or not path.is_file():
            raise ExportUnsound(str(folder), f"{part.path} is missing")
        if path.stat().st_size != part.bytes:
            raise ExportUnsound(str(folder), f"{part.path} has {path.stat().st_size:,} bytes, and had {part.bytes:,}")
    return manifest


def _sound(said: Mapping[str, Any]) -> Manifest:
    """A manifest from JSON.

    Raises:
        ValueError: its parts do not fit together, or a path leads elsewhere.
    """
    parts = tuple(Part(each["path"], each["first_seq"], each["last_seq"], each["bytes"]) for each in said["files"])
    manifest = Manifest(said["ledger"], said["head"], parts)
    ends = [0, *(part.last_seq for part in parts)]
    for part, before in zip(parts, ends, strict=False):
        month, _, name = part.path.partition("/")
        found = PART.fullmatch(name)
        if not MONTH.fullmatch(month) or not found or (int(found[1]), int(found[2])) != (part.first_seq, part.last_seq):
            raise ValueError(part.path)
        if part.first_seq != before + 1 or part.rows < 1 or type(part.bytes) is not int:
            raise ValueError(part.path)
    sizes = (said["rows"], said["last_seq"], *(each["rows"] for each in said["files"]))
    if sizes != (manifest.last_seq, manifest.last_seq, *(part.rows for part in parts)):
        raise ValueError("rows")
    if not (_HASH.fullmatch(manifest.ledger) and _HASH.fullmatch(manifest.head)):
        raise ValueError("hash")
    return manifest


class ExportedFiles:
    """The files of an export as a source of events.

    Args:
        folder: where they are.
        parts: which, in order.
    """

    def __init__(self, folder: Path, parts: Sequence[Part]) -> None:
        self.folder, self._parts = folder, parts

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,  # noqa: ARG002 - they are texts here
    ) -> Any:
        """The events as a `pyarrow.RecordBatchReader`, in order: each file is ordered, and they follow each other."""
        import pyarrow as pa

        chosen = [name for name in COLUMNS if columns is None or name in columns]
        fields = arrow_schema()
        schema = in_utc(pa.schema([fields.field(name) for name in chosen]))
        asked, given = ("true", {}) if where is None else to_sql(where, COLUMNS)
        if upto is not None:
            asked = f"seq <= {int(upto)} and {asked}"
        parts = [part for part in self._parts if upto is None or part.first_seq <= upto]
        query = f"select {', '.join(chosen)} from read_parquet($file, hive_partitioning = false) where {asked} order by seq"  # noqa: S608 - names of our own; values are parameters
        return pa.RecordBatchReader.from_batches(schema, self._batches(query, given, parts, schema))

    def _batches(self, query: str, given: dict[str, Any], parts: Sequence[Part], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        import duckdb

        paths = [str(self.folder / part.path) for part in parts]
        with _reader_of(paths) as con:
            for path in paths:
                try:
                    reader = con.sql(query, params={**given, "file": path}).to_arrow_reader(_FETCH)
                    for batch in reader:
                        yield batch.cast(schema)
                except (duckdb.Error, OSError) as error:
                    raise LedgerUnavailable(f"{path} cannot be read: {error}") from error


def _reader_of(paths: list[str]) -> duckdb.DuckDBPyConnection:
    """A DuckDB that reaches these files and nothing else."""
    import duckdb

    con = duckdb.connect(
        ":memory:",
        config={
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": "",
        },
    )
    con.execute("set allowed_paths = $1", [paths])
    con.execute("set TimeZone = 'UTC'")
    con.execute("set enable_external_access = false")
    con.execute("set lock_configuration = true")
    return con


def existing_export(folder: str | os.PathLike[str]) -> tuple[ExportedFiles, Manifest]:
    """An export that is there.

    Raises:
        InvalidValue: it is not there.
        ExportUnsound: it is not whole.
        VersionMismatch: a newer package wrote it.
    """
    path = export_folder(folder)
    manifest = manifest_of(path)
    if manifest is None:
        raise InvalidValue("folder", f"{path} is no export: there is no {MANIFEST} in it")
    return ExportedFiles(path, manifest.parts), manifest
