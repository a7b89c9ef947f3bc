"""Identifiers: UUID version 7, in full.

An id is the 36-character text form. It sorts by the time it was made (RFC 9562, section 5.7): 48 bits of Unix
milliseconds, then 74 random bits.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable

_RANDOM = 19  # hex digits in an id, of which one gives two bits
_BLOCK = 256 * _RANDOM // 2


def uuid7_source(clock_ns: Callable[[], int] = time.time_ns) -> Callable[[], str]:
    """Make a source of ids; one per process, because random bytes are drawn in blocks.

    Examples:
        >>> new_id = uuid7_source()
        >>> first, second = new_id(), new_id()
        >>> len(first), first[14], first != second
        (36, '7', True)
    """
    pool: list[str] = []

    def refill() -> str:
        text = os.urandom(_BLOCK).hex()
        noises = (text[i : i + _RANDOM] for i in range(0, len(text), _RANDOM))
        # The variant's two bits are 10, so the first of its four hex digits is one of 8, 9, a, b.
        pool.extend(f"7{n[:3]}-{'89ab'[int(n[3], 16) & 3]}{n[4:7]}-{n[7:]}" for n in noises)
        return pool.pop()

    def new_id() -> str:
        try:
            noise = pool.pop()
        except IndexError:
            noise = refill()
        ms = clock_ns() // 1_000_000
        return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-{noise}"

    os.register_at_fork(after_in_child=pool.clear) if hasattr(os, "register_at_fork") else None
    return new_id


new_id = uuid7_source()


def part_id(id: str, part: str | None) -> str | None:
    """The id of a part of something that has one, always the same; without a part itself; `None` for what is no UUID's text.

    Examples:
        >>> part_id("019a9a2b-0000-7000-8000-000000000000", "row-1")
        '619d4e14-62c6-52f1-b15a-a51e4d1284d2'
    """
    try:
        whole = uuid.UUID(id)
    except ValueError:
        return None
    if str(whole) != id:
        return None
    return id if part is None else str(uuid.uuid5(whole, part))


def made_at_us(id: str) -> int:
    """When a version 7 id was made, in Unix microseconds (to the millisecond).

    Raises:
        ValueError: it is of another form, and tells nothing.

    Examples:
        >>> made_at_us("019a9a2b-0000-7000-8000-000000000000")
        1763523100672000
    """
    if id[14:15] != "7":
        raise ValueError(f"{id!r} is no version 7 UUID")
    return int(id[:8] + id[9:13], 16) * 1000
