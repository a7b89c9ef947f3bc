"""What an image costs in tokens, from its size in pixels; and its size, from the first bytes of a PNG, JPEG, GIF or WebP.

Only the head of the data is decoded, however large it is. A size that cannot be read is `None`, and such an image costs the
most that one of its provider's can.
"""

from __future__ import annotations

import binascii
from base64 import b64decode

_HEAD = 1 << 16  # characters of base64 that are looked at: cameras put a preview before a JPEG's size
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # JPEG's segments that tell its size

Size = tuple[int, int]


def tokens(size: Size | None, patch: int, most: int) -> int:
    """One token for each square patch, whole or begun, up to a maximum.

    Args:
        size: width and height in pixels; `None` where unknown.
        patch: edge of a square in pixels.
        most: what an image of any size costs at most.

    Examples:
        >>> tokens((280, 57), 28, 1_568), tokens((4_000, 3_000), 28, 1_568), tokens(None, 28, 1_568)
        (30, 1568, 1568)
    """
    if size is None:
        return most
    width, height = size
    return min(most, -(-width // patch) * -(-height // patch))


def size_of(data: str) -> Size | None:
    """Width and height of an image in base64, in pixels; `None` where its head does not say."""
    head = data[:_HEAD].encode("ascii", "ignore").translate(None, b" \r\n\t")
    try:
        raw = b64decode(head[: len(head) // 4 * 4])
    except binascii.Error:
        return None
    for read in (_png, _gif, _webp, _jpeg):
        size = read(raw)
        if size is not None:
            return size if min(size) > 0 else None
    return None


def _number(raw: bytes, start: int, length: int, *, little: bool = False) -> int:
    return int.from_bytes(raw[start : start + length], "little" if little else "big")


def _png(raw: bytes) -> Size | None:
    if not raw.startswith(b"\x89PNG\r\n\x1a\n") or raw[12:16] != b"IHDR" or len(raw) < 24:  # noqa: PLR2004 - the head's length
        return None
    return _number(raw, 16, 4), _number(raw, 20, 4)


def _gif(raw: bytes) -> Size | None:
    if raw[:6] not in {b"GIF87a", b"GIF89a"}:
        return None
    return _number(raw, 6, 2, little=True), _number(raw, 8, 2, little=True)


def _webp(raw: bytes) -> Size | None:
    if raw[:4] != b"RIFF" or raw[8:12] != b"WEBP":
        return None
    if raw[12:16] == b"VP8X":
        return _number(raw, 24, 3, little=True) + 1, _number(raw, 27, 3, little=True) + 1
    if raw[12:16] == b"VP8L":
        both = _number(raw, 21, 4, little=True)
        return (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    if raw[12:16] == b"VP8 ":
        return _number(raw, 26, 2, little=True) & 0x3FFF, _number(raw, 28, 2, little=True) & 0x3FFF
    return None


def _jpeg(raw: bytes) -> Size | None:
    """Follow the segments to the first frame."""
    if raw[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(raw) and raw[at] == 0xFF:  # noqa: PLR2004 - what each segment begins with
        kind = raw[at + 1]
        if kind in _FRAMES:
            return _number(raw, at + 7, 2), _number(raw, at + 5, 2)
        at += 1 if kind == 0xFF else 2 + max(2, _number(raw, at + 2, 2))  # noqa: PLR2004 - a filling byte
    return None
