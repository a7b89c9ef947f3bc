"""Text → about how many tokens, from fitted weights: one for each byte, pair of neighbours and block of Unicode.

The three sums see what matters to a tokenizer: which letters there are (and so, which language), where words, numbers and runs
begin and end, and which script it is. No word is looked up and none is kept. The time is linear in the text, whatever it is.

The weights are in `data/estimation.json`, which says what they were fitted on; `data/fit_estimation.py` of the repository makes
it again.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any
from zlib import adler32

# Sixteen kinds of bytes: blank, line break, digit, capital, letters by how common they are, signs; other controls are 15;
# and of all that is not ASCII 13 begins two bytes, 15 more, 14 goes on.
KINDS = (
    *(" ", "\n\r\t\v\f", "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "aiou", "e", "tn", "srl", "dcmfpg", "wybvkxjqzh"),
    *("_-", ".,;:!?'\"`", "()[]{}<>/\\|=+*&^%$#@~"),
)
PARTS = ("letters", "pairs", "blocks")
# Blanks and controls, what lines are drawn with, and the later bytes of a character.
_UNCOUNTED = bytes(range(33)) + b"-=*#~_.+/?!%@" + bytes(range(0x80, 0xC0))
_BLOCK = 1 << 16  # bytes weighed at once
_EXACT = 256  # 256 times 255 is less than the 65,521 at which Adler's sum begins anew


def _kinds() -> bytes:
    kind = [15] * 128 + [14] * 64 + [13] * 32 + [15] * 32
    for number, characters in enumerate(KINDS):
        for character in characters:
            kind[ord(character)] = number
    return bytes(kind)


_KIND = _kinds()


@dataclass(frozen=True, slots=True)
class Table:
    """256 weights in tokens, each kept as a byte: `low + step * byte`."""

    low: float
    step: float
    weights: bytes

    def sum(self, data: bytes) -> float:
        """The weights of all bytes together."""
        weighed = data.translate(self.weights)
        if len(weighed) <= _EXACT:
            total = adler32(weighed, 0) & 0xFFFF  # its lower half is the sum of the bytes, and nothing sums bytes faster
        else:
            total = sum(adler32(weighed[i : i + _EXACT], 0) & 0xFFFF for i in range(0, len(weighed), _EXACT))
        return self.low * len(data) + self.step * total


@dataclass(frozen=True, slots=True)
class Family:
    """Models that share a tokenizer, and how their tokens are estimated.

    Args:
        name: what it is called in a count's method.
        letters, pairs, blocks: the weights.
        margins: for texts of up to so many tokens, how far nine estimates in ten are off at most.
    """

    name: str
    letters: Table
    pairs: Table
    blocks: Table
    margins: tuple[tuple[float, float], ...]

    def tokens(self, text: str) -> float:
        """About how many tokens a text has: at least 1, unless it is empty.

        Examples:
            >>> 6 <= family("o200k").tokens("Nothing is spent that was not reserved.") <= 10
            True
        """
        data = encoded(text)
        if len(data) <= _BLOCK:
            total = self.letters.sum(data) + self.pairs.sum(pairs(data))
        else:
            parts = [data[i : i + _BLOCK] for i in range(0, len(data), _BLOCK)]
            total = sum(self.letters.sum(part) + self.pairs.sum(pairs(part)) for part in parts)
        if len(data) != len(text):
            total += self.blocks.sum(blocks(text))
        return total if total > 1 and total * 8 >= len(text) else max(total, _least(data))

    def margin(self, tokens: float) -> float:
        """How far the estimate may be off, as a part of it."""
        for most, margin in self.margins:
            if tokens <= most:
                return margin
        return self.margins[-1][1]


def _least(data: bytes) -> float:
    """What a text has at least, when its weights say less than any prose has: a few characters again and again, mostly.

    Blanks and the signs that lines are drawn with make long tokens, of up to 128; of all else four characters count as one.
    """
    return len(data.translate(None, _UNCOUNTED)) / 4 + len(data) / 128 + 1 if data else 0.0


def encoded(text: str) -> bytes:
    """UTF-8, halves of surrogate pairs as three bytes of their own."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def pairs(data: bytes) -> bytes:
    """For each byte its kind, times 16, and the kind of the one before it; the first one follows a blank.

    Examples:
        >>> pairs(b"a 7").hex()
        '400420'
    """
    kinds = int.from_bytes(data.translate(_KIND), "big")
    return (kinds << 4 | kinds >> 8).to_bytes(len(data), "big")


def blocks(text: str) -> bytes:
    """The upper byte of each UTF-16 unit: 4 is Cyrillic, 0x30 is kana, 0x4E to 0x9F are Chinese characters.

    Examples:
        >>> blocks("aж語").hex()
        '00048a'
    """
    return text.encode("utf-16-le", "surrogatepass")[1::2]


@cache
def about() -> dict[str, Any]:
    """What the weights were fitted on, how, and the errors on texts that they had not seen."""
    content: dict[str, Any] = json.loads(files(__package__).joinpath("data/estimation.json").read_text("utf-8"))
    return content


@cache
def family(name: str) -> Family:
    """The family of this name: `o200k`, `claude-4.6` (and before) or `claude-4.7+`."""
    kept = about()["families"][name]
    return family_of(name, kept)


def family_of(name: str, kept: Mapping[str, Any]) -> Family:
    """A family as it is kept: three tables, and margins where they are known."""
    letters, pairs, blocks = (
        Table(part["low"], part["step"], b64decode(part["weights"])) for part in map(kept.get, PARTS) if part
    )
    return Family(name, letters, pairs, blocks, tuple((float(most), float(part)) for most, part in kept.get("margins", ())))
