"""A text's tokens, exactly, in bounded time, whatever the text is.

tiktoken is the reference; toktok, where it is installed, is ten times as fast, and is compared with tiktoken before it is
believed. Text that looks like a special token is text. Lone surrogates are repaired as tiktoken repairs them.

Examples:
    >>> tally("hello <|endoftext|> world", "o200k_base")
    Tally(tokens=9, forced=0)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from . import encodings
from .errors import CountFailed, InvalidValue, told

if TYPE_CHECKING:
    import tiktoken

Backend = Literal["auto", "tiktoken", "toktok"]
BACKENDS: tuple[Backend, ...] = ("auto", "tiktoken", "toktok")
PIECE = 32_768  # characters that tiktoken is given at once: a run of a million spaces is more than its expressions take
SHORT = 2_000  # below this tiktoken is sooner done with one text than toktok with starting
# Behind a letter or digit every encoding cuts where one of these follows: cut there, the count stays the same.
_CUT = re.compile("[^\\W_](?=[ ,.;:!?\u3001\u3002\uff0c\uff01\uff1a\uff1b\uff1f\u0964])|[A-Za-z0-9](?=\n)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONE = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")
# What toktok takes for a letter or mark and tiktoken, a Unicode version behind, does not, in and above the first plane.
# The first is searched as a bitmap, and most texts have nothing above it.
_NEWER_LOW = re.compile("[\u088f\u0c5c\u0cdc\u1acf-\u1add\u1ae0-\u1aeb\ua7ce\ua7cf\ua7d2\ua7d4\ua7f1]")
_HIGH = re.compile("[\U00010000-\U0010ffff]")
_NEWER_HIGH = re.compile(
    "[\U00010940-\U0001095f\U00010ec0-\U00010efb\U00011b60-\U00011b7f\U00011db0-\U00011def\U00016ea0-\U00016edf"
    "\U00016ff2-\U00016ff6\U000187f8-\U000187ff\U00018d09-\U00018d1e\U00018d80-\U00018dff\U0001e6c0-\U0001e6ff"
    "\U0002b73a-\U0002b73f\U0002cea2-\U0002cead\U000323b0-\U0003347f]"
)
_FAST = ("o200k_base", "o200k_harmony", "cl100k_base")
_SAMPLE = (
    "It's 12,345.67 today -- isn't it?\r\n\r\n\tdef f(x):  return x**2  # naïve café",
    "Привет, как дела? 你好。世界 日本語のテキスト مرحبا بالعالم नमस्ते ไทย 안녕하세요 👩‍👩‍👧 <|endoftext|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa            \n\n\n   XMLHttpRequest'LL \0\x07 ½ ٣٤ e\u0301\u0323",
)
_log = logging.getLogger("tokenbudget_lab")
Fast = Callable[[Sequence[str]], list[int]]


class Tally(NamedTuple):
    """A text's tokens.

    Attributes:
        tokens: how many.
        forced: at how many places the text was cut where its encoding may not cut it; 0 where the count is exact.
    """

    tokens: int
    forced: int = 0


def tally(text: str, name: str, backend: Backend = "auto") -> Tally:
    """The tokens of one text in an encoding.

    Raises:
        EncodingMissing: the encoding's table is not on this machine.
        CountFailed: the backend cannot count in this encoding.
    """
    if backend == "tiktoken" or (backend == "auto" and len(text) <= SHORT):
        return _slowly(text, name)
    return tallies([text], name, backend)[0]


def tallies(texts: Sequence[str], name: str, backend: Backend = "auto") -> list[Tally]:
    """The tokens of many texts; toktok takes them all at once, on every core, without holding the interpreter."""
    fast = None if backend == "tiktoken" else fast_counter(name, needed=backend == "toktok")
    if fast is None:
        return [_slowly(text, name) for text in texts]
    newer = [n for n, text in enumerate(texts) if _is_newer(text)]
    counted = [Tally(tokens) for tokens in _quickly(fast, texts)]
    for n in newer:
        counted[n] = _slowly(texts[n], name)
    return counted


def _is_newer(text: str) -> bool:
    """Whether toktok may count it differently, for characters that tiktoken does not know yet."""
    if text.isascii():
        return False
    return bool(_NEWER_LOW.search(text) or (_HIGH.search(text) and _NEWER_HIGH.search(text)))


def _quickly(fast: Fast, texts: Sequence[str]) -> list[int]:
    try:
        return fast([_copied(text) for text in texts])
    except UnicodeEncodeError:
        return fast([repaired(text) for text in texts])


def _copied(text: str) -> str:
    """A text whose UTF-8 goes when the count is done: beside one that is not ASCII, Python keeps it as long as that lives."""
    return text if text.isascii() else text[:1] + text[1:]


def repaired(text: str) -> str:
    r"""A text without lone surrogates, and with its pairs as the characters they stand for.

    Examples:
        >>> repaired("\ud83d\ude00 \ud800") == "😀 \ufffd"
        True
    """
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return _LONE.sub("\ufffd", text).encode("utf-16", "surrogatepass").decode("utf-16")


# --- tiktoken ----------------------------------------------------------------------------------------------------------------


def _slowly(text: str, name: str) -> Tally:
    encoding = encodings.encoding(name)
    if len(text) <= PIECE:
        return _encoded(encoding, text)
    counts = [(_encoded(encoding, piece), forced) for piece, forced in _pieces(repaired(text))]
    return Tally(sum(each.tokens for each, _ in counts), sum(each.forced + forced for each, forced in counts))


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """A text in pieces, each with whether its end was forced."""
    start = 0
    while len(text) - start > PIECE:
        found = _CUT.search(text, start + PIECE // 2, start + PIECE)
        end = found.end() if found else start + PIECE
        yield text[start:end], found is None
        start = end
    yield text[start:], False


def _encoded(encoding: tiktoken.Encoding, text: str) -> Tally:
    try:
        # Not `encode_ordinary`: where its expressions give up that panics, past every `except Exception`.
        return Tally(len(encoding.encode(_copied(text), disallowed_special=())))
    except ValueError as error:
        if len(text) <= 1:
            raise CountFailed(f"tiktoken {encoding.name}", told(error)) from None
        halves = [_encoded(encoding, text[: len(text) // 2]), _encoded(encoding, text[len(text) // 2 :])]
        return Tally(sum(each.tokens for each in halves), 1 + sum(each.forced for each in halves))


# --- toktok ----------------------------------------------------------------------------------------------------------------


def fast_counter(name: str, *, needed: bool = False) -> Fast | None:
    """Toktok for an encoding, when it is installed and counts a sample as tiktoken does; else `None`.

    Raises:
        CountFailed: it is needed, and there is none.
    """
    found = _fast(name)
    if callable(found):
        return found
    if needed:
        raise CountFailed(f"toktok {name}", found)
    return None


@cache
def _fast(name: str) -> Fast | str:
    """The counter, or why there is none."""
    if name not in _FAST:
        return "it has no such encoding"
    try:
        from toktok import batch_count
    except ImportError:
        return "it is not installed: pip install 'tokenbudget-lab[fast]'"

    def fast(texts: Sequence[str]) -> list[int]:
        counted: list[int] = batch_count(texts, name)
        return counted

    if fast(_SAMPLE) != [_slowly(text, name).tokens for text in _SAMPLE]:
        _log.warning("toktok counts %s differently from tiktoken on a sample; tiktoken counts instead", name)
        return "it counts a sample differently from tiktoken"
    return fast


def checked_backend(backend: str) -> Backend:
    """The backend of that name."""
    for known in BACKENDS:
        if backend == known:
            return known
    raise InvalidValue("backend", f"{told(backend)} is not one of {', '.join(BACKENDS)}")
