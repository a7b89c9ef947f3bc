"""Anthropic's Messages: what a request asks for, and what its streams say.

A stream begins with a placeholder for the output and says the whole in `message_delta`, cumulatively; one that was broken off
has said nothing of what was written since. So a stream is measured when its last event has come, and estimated before.

References:
    https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from ..calls import Call, Endpoint, Received, Stream, count_in, loaded, text_in
from ..errors import InvalidValue
from ..reported import Reported
from ..sse import Frame
from ..terms import terms_of

PROVIDER = "anthropic"
_WRITTEN = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}
_COUNTED = frozenset({"text", "tool_use", "thinking"})  # kinds of blocks whose every token is seen
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
        self._stopped = self._begun = False
        self._unseen = False

    def take(self, frame: Frame) -> None:
        """Take one event; what was written is not looked at while all goes well."""
        kind = frame.event
        if kind == b"content_block_delta":
            self._pieces.append(frame.data)
        elif kind == b"message_start":
            message = loaded(frame.data).get("message")
            if isinstance(message, Mapping) and isinstance(message.get("usage"), Mapping):
                self._message, self._usage, self._begun = dict(message), dict(message["usage"]), True
        elif kind == b"content_block_start":
            block = loaded(frame.data).get("content_block")
            self._unseen |= not isinstance(block, Mapping) or block.get("type") not in _COUNTED
        elif kind == b"message_delta":
            data = loaded(frame.data)
            usage, delta = data.get("usage"), data.get("delta")
            if isinstance(usage, Mapping):
                self._usage |= {name: value for name, value in usage.items() if value is not None}
            if isinstance(delta, Mapping) and delta.get("stop_reason") is not None:
                self._message["stop_reason"] = delta["stop_reason"]
        elif kind == b"message_stop":
            self._stopped = True

    def left(self) -> None:
        """Its last event says nothing new, and some do not wait for it."""
        self._stopped |= self._message.get("stop_reason") is not None

    def received(self, *, ended: bool) -> Received:  # noqa: ARG002 - its last event says so itself
        """What it comes to: measured when its last event has come, or nobody wanted that after all had been said."""
        named, stop = self._message.get("id"), self._message.get("stop_reason")
        told = Received(
            response_id=named if isinstance(named, str) else None, stop_reason=stop if isinstance(stop, str) else None
        )
        if not self._begun or self.garbled:
            told.unseen = True
            return told
        if self._stopped and stop is not None:
            try:
                told.reported = Reported.of({**self._message, "usage": self._usage})
            except InvalidValue:  # what it says contradicts itself: not known
                told.unseen = True
            return told
        told.input = self._usage
        output = self._usage.get("output_tokens")
        told.output_tokens = output if isinstance(output, int) and output > 0 else 0
        told.text, hidden = _written(self._pieces)
        told.unseen = self._unseen or hidden
        return told


def _written(pieces: list[bytes]) -> tuple[str, bool]:
    """What was written, and whether a part of it cannot be seen: thinking of which only the signature comes."""
    text, signed, thought = [], False, False
    for piece in pieces:
        delta = loaded(piece).get("delta")
        kind = delta.get("type") if isinstance(delta, Mapping) else None
        value = delta.get(_WRITTEN.get(str(kind), "")) if isinstance(delta, Mapping) else None
        if isinstance(value, str):
            text.append(value)
            thought |= kind == "thinking_delta" and bool(value)
        signed |= kind == "signature_delta"
    return "".join(text), signed and not thought


MESSAGES = Endpoint(PROVIDER, call_of, MessageStream)
