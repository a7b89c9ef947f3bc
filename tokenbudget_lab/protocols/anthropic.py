"""Anthropic's Messages: what a request asks for, and what its streams say.

A stream begins with a placeholder for the output and says the whole in `message_delta`, cumulatively; one that was broken off
has said nothing of what was written since. So a stream is measured when its last event has come, and estimated before.

References:
    https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ..calls import MOST_KEPT, Call, Endpoint, Received, Stream, count_in, loaded, text_in
from ..errors import InvalidValue
from ..reported import Reported
from ..sse import Frame
from ..terms import terms_of
from ..usage import MAX_TOKENS

PROVIDER = "anthropic"
_WRITTEN = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}
_BESIDE = frozenset({"signature_delta", "citations_delta"})  # no tokens of the model's
# Kinds of blocks whose every token is seen. Of thinking a summary comes, or nothing, and all of it is billed.
_COUNTED = frozenset({"text", "tool_use"})
_SCHEMAS = (("output_config", "format"), ("output_format",))


def call_of(body: Mapping[str, Any]) -> Call:
    """What a request to `/v1/messages` asks for.

    Raises:
        InvalidType: it names no model.

    Examples:
        >>> call_of({"model": "claude-sonnet-5-5", "max_tokens": 64, "messages": []}).most_output_tokens
        64
    """
    speed = body.get("speed")
    return Call(
        PROVIDER,
        text_in(body, "model"),
        body.get("messages") or [],
        tools=body.get("tools") or None,
        system=body.get("system") or None,
        beside=_schemas(body),
        most_output_tokens=count_in(body, "max_tokens"),
        cache_write=_cache_write(body),
        terms=terms_of(speed=speed if isinstance(speed, str) else None),
        stream=body.get("stream") is True,
    )


def _cache_write(body: Mapping[str, Any]) -> Literal["5m", "1h"] | None:
    """For how long something of the input is to be cached, the longest where there are several."""
    marks: list[Mapping[str, Any]] = []
    left: list[Any] = [body]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            if isinstance(part.get("cache_control"), Mapping):
                marks.append(part["cache_control"])
            part = part.values()
        left += [each for each in part if isinstance(each, Mapping | list | tuple)]
    if not marks:
        return None
    return "1h" if any(mark.get("ttl") == "1h" for mark in marks) else "5m"


def _schemas(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON schemas of an answer: the model reads them too."""
    found = []
    for path in _SCHEMAS:
        value: Any = body
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            found.append(json.dumps(value, default=str))
    return tuple(found)


class MessageStream(Stream):
    """A streamed message."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: dict[str, Any] = {}
        self._message: dict[str, Any] = {}
        self._pieces: list[bytes] = []
        self._size = 0
        self._begun = self._counted = self._stopped = False
        self._unseen = self._odd = False

    def take(self, frame: Frame) -> None:
        """Take one event; what was written is not looked at while all goes well."""
        kind = frame.event or _kind(frame.data)
        self._odd |= self._stopped and kind.startswith((b"content_", b"message_"))
        if kind == b"content_block_delta":
            self._keep(frame.data)
        elif kind == b"message_start":
            self._start(loaded(frame.data).get("message"))
        elif kind == b"content_block_start":
            block = loaded(frame.data).get("content_block")
            self._unseen |= not isinstance(block, Mapping) or str(block.get("type")) not in _COUNTED
            self._keep(frame.data)
        elif kind == b"message_delta":
            self._end(loaded(frame.data))
        elif kind == b"message_stop":
            self._stopped = True

    def left(self) -> None:
        """Its last event says nothing new, and some do not wait for it."""
        self._stopped |= self._message.get("stop_reason") is not None

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MOST_KEPT:
            self._unseen = True
        else:
            self._pieces.append(piece)

    def _start(self, message: Any) -> None:
        if self._begun:
            self._odd = True  # two messages in one stream: which of them the last event counts, nobody knows
        elif isinstance(message, Mapping) and isinstance(message.get("usage"), Mapping):
            self._message, self._usage, self._begun = dict(message), dict(message["usage"]), True

    def _end(self, data: Mapping[str, Any]) -> None:
        usage, delta = data.get("usage"), data.get("delta")
        if isinstance(usage, Mapping):
            before = _tokens(self._usage.get("output_tokens"))
            self._usage |= {name: value for name, value in usage.items() if value is not None}
            self._counted |= usage.get("output_tokens") is not None
            self._odd |= _tokens(self._usage.get("output_tokens")) < before  # it counts on, and never back
        if isinstance(delta, Mapping) and delta.get("stop_reason") is not None:
            self._message["stop_reason"] = delta["stop_reason"]

    def received(self, *, ended: bool) -> Received:  # noqa: ARG002 - its last event says so itself
        """What it comes to: measured when its last event has come, and the output was counted."""
        named, stop = self._message.get("id"), self._message.get("stop_reason")
        told = Received(
            response_id=named if isinstance(named, str) else None, stop_reason=stop if isinstance(stop, str) else None
        )
        odd = self._odd or self.garbled or not self._begun
        if self._stopped and self._counted and stop is not None and not odd:
            try:
                told.reported = Reported.of({**self._message, "usage": self._usage})
            except InvalidValue:  # what it says contradicts itself: not known
                odd = True
            else:
                return told
        told.input = self._usage if self._begun else None
        told.output_tokens = _tokens(self._usage.get("output_tokens"))
        told.text, hidden = _written(self._pieces)
        told.unseen = odd or hidden or self._unseen
        return told


def _kind(data: bytes) -> bytes:
    """What an event without a name calls itself."""
    kind = loaded(data).get("type")
    return kind.encode(errors="replace") if isinstance(kind, str) else b""


def _tokens(value: Any) -> int:
    return value if type(value) is int and 0 < value < MAX_TOKENS else 0


def _written(pieces: list[bytes]) -> tuple[str, bool]:
    """What was written, and whether a part of it is of a kind that is not known."""
    text, hidden = [], False
    for piece in pieces:
        event = loaded(piece)
        delta, block = event.get("delta"), event.get("content_block")
        if isinstance(delta, Mapping):
            kind = str(delta.get("type"))
            value = delta.get(_WRITTEN.get(kind, ""))
            hidden |= kind not in _WRITTEN and kind not in _BESIDE
        elif isinstance(block, Mapping):
            value = "".join(_begun(block))
        else:
            value, hidden = None, True
        if isinstance(value, str):
            text.append(value)
    return "".join(text), hidden


def _begun(block: Mapping[str, Any]) -> Iterator[str]:
    """What a block says as it starts: the name of a tool, and what a server did not leave for later."""
    for name in ("text", "thinking", "name"):
        value = block.get(name)
        if isinstance(value, str):
            yield value
    if block.get("input"):
        yield json.dumps(block["input"])


MESSAGES = Endpoint(PROVIDER, call_of, MessageStream)
