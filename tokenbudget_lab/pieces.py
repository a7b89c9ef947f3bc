"""The bytes of a reply on their way from the connection to the SDK: read along, and settled at their end, however they end.

An SDK closes a stream that it has read, that broke, or that its user left; one that nobody closes is settled when it is
collected. What is compressed is handed on decompressed, since it has to be read here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any, Protocol

from .attempts import Attempt
from .calls import Either, Reading, Reads, Unread, Whole
from .errors import LedgerForked, TokenBudgetError
from .reported import Reported

log = logging.getLogger("tokenbudget_lab")


def reading_for(content_type: str, stream: Reading, read: Reads = Reported.of) -> Reading:
    """What reads a reply of this kind: `stream` for server-sent events, also where the server calls them something else."""
    kind = content_type.partition(";")[0].strip().lower()
    return stream if kind == "text/event-stream" else Either(stream, Whole(read))


class Settlement:
    """The end of a reply: whichever comes first of its last byte, its close, an error, and its collection settles the call."""

    __slots__ = ("attempt",)

    def __init__(self, attempt: Attempt, reading: Reading) -> None:
        self.attempt = attempt
        attempt.reading = reading

    def feed(self, chunk: bytes) -> bytes:
        """Read along; what cannot be read goes to the caller all the same."""
        reading = self.attempt.reading
        if reading is None:
            return chunk
        try:
            return reading.feed(chunk)
        except Exception as error:  # noqa: BLE001 - the caller's reply is no worse for it
            log.warning("a reply could not be read along (%s); its whole hold will be counted", type(error).__name__)
            self.attempt.reading = Unread()
            return chunk

    def rest(self) -> bytes:
        """What has been held back until the end."""
        return b"" if self.attempt.reading is None else self.attempt.reading.rest()

    def leave(self) -> None:
        """Settle it, where whoever reads it wants no more."""
        if self.attempt.reading is not None:
            self.attempt.reading.left()
        self.end(ended=False)

    def end(self, *, ended: bool) -> None:
        """Settle it, the first time."""
        if self.attempt.is_open and not sys.is_finalizing():  # then its hold ends by itself, counted as unknown
            try:
                self.attempt.read(ended=ended)
            except LedgerForked:
                if ended:
                    raise  # what was left, or dropped, is the parent's to settle

    def broken(self, error: BaseException) -> None:
        """Settle what an error ended; that the ledger does not take it becomes a note on that error, which goes on."""
        try:
            self.end(ended=False)
        except TokenBudgetError as failed:
            beside(failed, error)


def beside(failed: Exception, error: BaseException) -> None:
    """A call could not be settled, while another error is on its way to the caller."""
    error.add_note(f"tokenbudget: the call could not be settled: {failed}")
    log.warning("a call could not be settled: %s", failed)


class Ending(Protocol):
    """What reads a reply along, and is told how it ended."""

    def feed(self, chunk: bytes) -> bytes:
        """Take more of it; returns what the caller of the SDK is to see of that."""

    def rest(self) -> bytes:
        """What has been held back until the end."""

    def end(self, *, ended: bool) -> None:
        """It ended: with its last byte, or before."""

    def leave(self) -> None:
        """Whoever reads it wants no more."""

    def broken(self, error: BaseException) -> None:
        """An error ended it, which goes on to the caller."""


def read_along(source: Iterator[bytes], settlement: Ending) -> Iterator[bytes]:
    """The bytes of a reply, for sync code."""
    ended = False
    try:
        for chunk in source:
            if seen := settlement.feed(chunk):
                yield seen
        ended = True
        if rest := settlement.rest():
            yield rest
    except GeneratorExit:
        if ended:
            settlement.end(ended=True)
        else:
            settlement.leave()
        raise
    except BaseException as error:
        settlement.broken(error)
        raise
    settlement.end(ended=True)


async def read_along_async(source: AsyncIterator[bytes], settlement: Ending) -> AsyncIterator[bytes]:
    """The bytes of a reply, for async code."""
    ended = False
    try:
        async for chunk in source:
            if seen := settlement.feed(chunk):
                yield seen
        ended = True
        if rest := settlement.rest():
            yield rest
    except GeneratorExit:
        if ended:
            settlement.end(ended=True)
        else:
            settlement.leave()
        raise
    except BaseException as error:
        settlement.broken(error)
        raise
    settlement.end(ended=True)


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
        except BaseException as error:
            self._settlement.broken(error)
            raise
        self._settlement.leave()

    async def aclose(self) -> None:
        """The same in async code."""
        try:
            await self._response.aclose()
        except BaseException as error:
            self._settlement.broken(error)
            raise
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
