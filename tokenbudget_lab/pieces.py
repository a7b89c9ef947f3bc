"""The bytes of a reply on their way from the connection to the SDK: read along, and settled at their end, however they end.

An SDK closes a stream that it has read, that broke, or that its user left; one that nobody closes is settled when it is
collected. What is compressed is handed on decompressed, since it has to be read here.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any, Protocol

from .attempts import Attempt, dropped, watch_dropped
from .calls import Reading, Reads, Whole
from .reported import Reported


def reading_for(content_type: str, stream: Reading, read: Reads = Reported.of) -> Reading:
    """What reads a reply of this kind: `stream` for server-sent events."""
    return stream if content_type.partition(";")[0].strip().lower() == "text/event-stream" else Whole(read)


class Settlement:
    """The end of a reply: whichever comes first of its last byte, its close, an error, and its collection settles the call."""

    __slots__ = ("__weakref__", "_watch", "attempt", "reading")

    def __init__(self, attempt: Attempt, reading: Reading) -> None:
        self.attempt, self.reading = attempt, reading
        watch_dropped()
        self._watch = weakref.finalize(self, dropped, attempt, reading)
        self._watch.atexit = False  # then its hold ends by itself, counted as unknown

    def leave(self) -> None:
        """Settle it, where whoever reads it wants no more."""
        self.reading.left()
        self.end(ended=False)

    def end(self, *, ended: bool) -> None:
        """Settle it, the first time."""
        if self._watch.detach():
            self.attempt.received(self.reading.received(ended=ended))


class Ending(Protocol):
    """What reads a reply along, and is told how it ended."""

    @property
    def reading(self) -> Reading:
        """Takes its bytes."""

    def end(self, *, ended: bool) -> None:
        """It ended: with its last byte, or before."""

    def leave(self) -> None:
        """Whoever reads it wants no more."""


def read_along(source: Iterator[bytes], settlement: Ending) -> Iterator[bytes]:
    """The bytes of a reply, for sync code."""
    reading, ended = settlement.reading, False
    try:
        for chunk in source:
            seen = reading.feed(chunk)
            if seen:
                yield seen
        ended = True
        if rest := reading.rest():
            yield rest
    except GeneratorExit:
        reading.left()
        raise
    finally:
        settlement.end(ended=ended)


async def read_along_async(source: AsyncIterator[bytes], settlement: Ending) -> AsyncIterator[bytes]:
    """The bytes of a reply, for async code."""
    reading, ended = settlement.reading, False
    try:
        async for chunk in source:
            seen = reading.feed(chunk)
            if seen:
                yield seen
        ended = True
        if rest := reading.rest():
            yield rest
    except GeneratorExit:
        reading.left()
        raise
    finally:
        settlement.end(ended=ended)


class Pieces:
    """What takes the place of a response's stream, in sync and async code; a subclass is a stream of one version of httpx."""

    def __init__(self, response: Any, settlement: Ending) -> None:
        self._response, self._settlement = response, settlement

    def __iter__(self) -> Iterator[bytes]:
        return read_along(self._response.iter_bytes(), self._settlement)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return read_along_async(self._response.aiter_bytes(), self._settlement)

    def close(self) -> None:
        """Close the connection's part, and settle what is left."""
        try:
            self._response.close()
        finally:
            self._settlement.leave()

    async def aclose(self) -> None:
        """The same in async code."""
        try:
            await self._response.aclose()
        finally:
            self._settlement.leave()


@cache
def _stream_class(http: Any) -> type[Any]:
    return type("Metered", (Pieces, http.SyncByteStream, http.AsyncByteStream), {})


def read_by(http: Any, response: Any, settlement: Ending) -> None:
    """Have a response that is not read yet read along.

    Args:
        http: `httpx2` or `httpx`, whichever the response is of.
        response: is changed: what it yields from now on is decompressed.
        settlement: of its call.
    """
    source = http.Response(
        response.status_code, headers=response.headers, stream=response.stream, extensions=response.extensions
    )
    response.stream = _stream_class(http)(source, settlement)
    if response.headers.pop("content-encoding", None) is not None:
        response.headers.pop("content-length", None)  # it was that of what was compressed
