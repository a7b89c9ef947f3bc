"""Server-sent events out of the bytes of a stream, however they were cut into pieces.

Nothing is decoded and nothing is copied that is not an event's data. A reader may rely on three things: what is fed in one byte
at a time gives the same events, an event is given only when all of it has come, and an endless one ends the reading, not the
memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MOST_BYTES = 64 << 20  # of one event; no provider sends a hundredth of it
# A blank line: two ends of lines of any of the three kinds. A last \\r waits for what follows, which may be its \\n.
_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?=[^\n]))")


class Frame(NamedTuple):
    """One event.

    Attributes:
        event: its name; empty where it has none.
        data: its lines of data, put together.
        raw: all of its bytes as they came, the blank line behind it included.
    """

    event: bytes
    data: bytes
    raw: bytes

    def __repr__(self) -> str:  # it stands in tracebacks, and what a model wrote does not
        return f"Frame({len(self.raw)} bytes)"


class Frames:
    r"""The events of one stream.

    Attributes:
        garbled: an event became longer than any is; nothing is read any more.

    Examples:
        >>> frames = Frames()
        >>> [*frames.feed(b"event: ping\ndata: {}\n")], [frame.data for frame in frames.feed(b"\n")]
        ([], [b'{}'])
    """

    def __init__(self) -> None:
        self._rest, self._seen, self._spilled = bytearray(), 0, b""
        self.garbled = False

    @property
    def rest(self) -> bytes:
        """What has come of an event that has not come to its end."""
        return bytes(self._rest)

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """The events that these bytes complete."""
        if self.garbled:
            return
        self._rest += chunk
        while end := _END.search(self._rest, self._seen):
            raw = bytes(self._rest[: end.end()])
            del self._rest[: end.end()]
            self._seen = 0
            yield _frame(raw)
        self._seen = max(0, len(self._rest) - 3)  # an end may have begun
        if len(self._rest) > MOST_BYTES:
            self.garbled, self._spilled = True, bytes(self._rest)
            self._rest.clear()

    def spilled(self) -> bytes:
        """The event that became too long, once: whoever hands on whole events owes its caller these bytes."""
        spilled, self._spilled = self._spilled, b""
        return spilled


def _frame(raw: bytes) -> Frame:
    event, data = b"", []
    for line in raw.splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif name == b"event":
            event = value.removeprefix(b" ")
    return Frame(event, b"\n".join(data), raw)
