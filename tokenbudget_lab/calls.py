"""A call as a budget sees it: what is asked for, and what of the reply has come so far.

What is asked for is read out of the request that an SDK sends, the reply out of the bytes that come back; nothing here keeps
more of either than it needs to count, and nothing of it is written anywhere. What cannot be read is unknown, and never zero.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .errors import InvalidType, InvalidValue, told
from .reported import Reported
from .sse import Frame, Frames
from .terms import UNSAID, Terms

Reads = Callable[[Any], Reported]
MOST_KEPT = 64 << 20  # of what a stream wrote; no answer is a tenth of it, and what comes behind is unseen
MOST_BYTES = 256 << 20  # of a reply that is not a stream; what is larger is not read


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks for.

    Attributes:
        provider: whom it is sent to.
        model: as the request names it.
        content, tools, system: what is counted; `content` is a text, messages, or a list of texts.
        beside: further texts that the model reads, such as a schema for its answer.
        known_tokens: input that was counted before, such as a text that is given as tokens.
        most_output_tokens: as the request limits an answer; `None` where it does not, 0 where there is none.
        answers: how many are asked for at once.
        terms: batch, tier and speed.
        cache_write: the input may be written to a cache, for `5m` or `1h`.
        follows: the id of an earlier reply that the model reads again.
        stream: the answer comes in pieces.
    """

    provider: str
    model: str
    content: Any = field(repr=False)
    tools: Any = field(default=None, repr=False)
    system: Any = field(default=None, repr=False)
    beside: tuple[str, ...] = field(default=(), repr=False)
    known_tokens: int = 0
    most_output_tokens: int | None = None
    answers: int = 1
    terms: Terms = UNSAID
    cache_write: Literal["5m", "1h"] | None = None
    follows: str | None = None
    stream: bool = False


@dataclass(slots=True)
class Received:
    """What of a reply has come so far.

    Attributes:
        reported: what the provider says it used, when it has said so to the end.
        input: what it said of the input, when only that has come: its usage as JSON.
        output_tokens: what it said last of the output; a placeholder in a stream that goes on.
        text: what the model wrote.
        unseen: something was written that cannot be counted: hidden reasoning, results of tools on the provider's side.
        refused: it ended with an error of the provider's.
        response_id, stop_reason: as the provider calls them.
    """

    reported: Reported | None = None
    input: Mapping[str, Any] | None = None
    output_tokens: int = 0
    text: str = field(default="", repr=False)
    unseen: bool = False
    response_id: str | None = None
    stop_reason: str | None = None


class Reading(ABC):
    """A reply while its bytes come in."""

    @abstractmethod
    def feed(self, chunk: bytes) -> bytes:
        """Take more of it; returns what the caller of the SDK is to see of that."""

    def rest(self) -> bytes:
        """What has been held back until the end of the stream."""
        return b""

    def left(self) -> None:  # noqa: B027 - most have nothing to note then
        """Whoever reads it wants no more: its connection was not broken."""

    @abstractmethod
    def received(self, *, ended: bool) -> Received:
        """What it comes to; `ended` says that its connection was not broken."""


class Whole(Reading):
    """A reply in one piece of JSON.

    Args:
        read: reads what the provider reports in it.
    """

    def __init__(self, read: Reads = Reported.of) -> None:
        self._body, self._too_large, self._read = bytearray(), False, read

    def feed(self, chunk: bytes) -> bytes:
        """Take more of it."""
        if not self._too_large:
            self._body += chunk
            if len(self._body) > MOST_BYTES:
                self._too_large = True
                self._body.clear()
        return chunk

    def received(self, *, ended: bool) -> Received:
        """What it comes to; half of it is nothing that could be read."""
        if not ended or self._too_large:
            return Received(unseen=True)
        try:
            body = json.loads(self._body)
        except (ValueError, RecursionError):
            return Received(unseen=True)
        return received_of(body, self._read)


def received_of(body: Any, read: Reads = Reported.of) -> Received:
    """A whole reply: its usage, and what it says of itself; without a usage that can be read, what it wrote is unseen."""
    if isinstance(body, list) and body:  # Google's streams that are no server-sent events: the last one says it all
        body = body[-1]
    if not isinstance(body, Mapping):
        return Received(unseen=True)
    stop = body.get("stop_reason") or _finish(body.get("choices")) or body.get("status")
    named = body.get("id") if isinstance(body.get("id"), str) else None
    try:
        reported = read(body)
    except InvalidValue:  # no usage, or one that contradicts itself: what it used is not known
        return Received(unseen=True, response_id=named)
    return Received(reported, response_id=reported.response_id, stop_reason=stop if isinstance(stop, str) else None)


def _finish(choices: Any) -> Any:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first.get("finish_reason") if isinstance(first, Mapping) else None


class Unread(Reading):
    """A reply that cannot be read."""

    def feed(self, chunk: bytes) -> bytes:
        """Take more of it."""
        return chunk

    def received(self, *, ended: bool) -> Received:  # noqa: ARG002 - all the same
        """What it comes to is not known."""
        return Received(unseen=True)


class Either(Reading):
    """A reply of which nobody says what it is: JSON begins with a bracket, and no event does.

    Args:
        stream, whole: what reads either.
    """

    def __init__(self, stream: Reading, whole: Reading) -> None:
        self._stream, self._whole = stream, whole
        self._chosen: Reading | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take more of it."""
        if self._chosen is None:
            begins = chunk.lstrip()[:1]
            if not begins:  # white space means nothing to either
                return chunk
            self._chosen = self._whole if begins in b"{[" else self._stream
        return self._chosen.feed(chunk)

    def rest(self) -> bytes:
        """What has been held back."""
        return b"" if self._chosen is None else self._chosen.rest()

    def left(self) -> None:
        """Whoever reads it wants no more."""
        if self._chosen is not None:
            self._chosen.left()

    def received(self, *, ended: bool) -> Received:
        """What it comes to."""
        return (self._chosen or self._whole).received(ended=ended)


class Stream(Reading):
    """A reply as server-sent events: the bytes become events, and what they say is a provider's own business."""

    def __init__(self) -> None:
        self._frames = Frames()

    def feed(self, chunk: bytes) -> bytes:
        """Take more of it."""
        for frame in self._frames.feed(chunk):
            self.take(frame)
        self._frames.spilled()
        return chunk

    @abstractmethod
    def take(self, frame: Frame) -> None:
        """Take one event."""

    @property
    def garbled(self) -> bool:
        """Whether it could not be read to its end."""
        return self._frames.garbled


def loaded(data: bytes) -> Mapping[str, Any]:
    """The JSON object of an event's data; an empty one where it is none."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, Mapping) else {}


class Endpoint(NamedTuple):
    """A place where a provider takes calls.

    Attributes:
        provider: whose.
        call: reads a request's JSON.
        stream: makes what reads a streamed reply to it.
        read: reads what a whole reply reports.
        asking: the request that also asks its stream what was used, `None` where it does so already; `stream` is then made
            with `hidden=True`.
    """

    provider: str
    call: Callable[[Mapping[str, Any]], Call]
    stream: Callable[..., Reading]
    read: Reads = Reported.of
    asking: Callable[[Mapping[str, Any]], dict[str, Any] | None] | None = None


# --- reading a request ---------------------------------------------------------------------------------------------------


def text_in(body: Mapping[str, Any], name: str) -> str:
    """A text that a request must have.

    Raises:
        InvalidType: it is missing, or no text.
    """
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidType(name, f"{told(value)} is no {name}; the call cannot be priced, and was not sent")
    return value


def count_in(body: Mapping[str, Any], *names: str) -> int | None:
    """The first of several counts that a request has; `None` where it has none.

    Raises:
        InvalidType: it is no whole number.
        InvalidValue: it is negative.
    """
    for name in names:
        value = body.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidType(name, f"{told(value)} is {type(value).__name__}, not a whole number; nothing was sent")
            if value < 0:
                raise InvalidValue(name, f"{value} is negative; nothing was sent")
            return value
    return None
