"""What a test tells the provider to say, what reached it, and what it says that it used: values, and no server.

One vocabulary steers every protocol. `text` and `blocks` are what is said: blocks have Anthropic's form (`text`, `thinking`,
`tool_use`), and OpenAI's protocols say the same in theirs. `usage` has the names of the protocol that is spoken.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenbudget_lab import demo

OVERHEAD = 7
SSE = {"content-type": "text/event-stream; charset=utf-8"}
_READ = ("system", "messages", "tools", "input", "instructions")
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that reached the provider, or one line of a batch: that has a `custom_id`."""

    path: str
    headers: dict[str, str]
    body: Any
    at: float = field(default_factory=time.monotonic)
    method: str = "POST"
    query: dict[str, str] = field(default_factory=dict)
    custom_id: str | None = None


@dataclass(frozen=True, slots=True)
class Used:
    """What the provider says that one request used, which is what it would bill.

    Args:
        id: of the reply; in a batch, the `custom_id`.
        usage: as on the wire, also where a stream was not asked to say it.
        terms: what the price depends on beside the counts, as far as it was said: `service_tier`, `speed`, `inference_geo`,
            `batch`.
    """

    path: str
    id: str
    model: str
    usage: dict[str, Any]
    terms: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request: one body, or the events of a stream, which an error may have ended."""

    body: Any = None
    events: tuple[bytes, ...] | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    used: Used | None = None
    full: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """How a line of a batch ended, and what was said to it."""

    ends: str
    reply: Reply


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider does with one request; without a status it answers as it should.

    Args:
        status: of HTTP.
        body: JSON, or bytes to be sent as they are; `None` is the right answer, or the error of that status.
        headers: beside those of content, or instead of them.
        after_s: how long it takes, in seconds.
        drop: `hang up` closes the connection without an answer. The others leave off in the midst of the body: `cut` with a
            reset, `close` with an orderly close, `end` as if that were all of it, which HTTP cannot tell from the whole.
        text: what is said.
        blocks: what is said, in blocks.
        usage: counts laid over the right ones, also inside details; `...` leaves a name out.
        begun: the same for the usage at the start of Anthropic's stream.
        stop_reason: in the protocol's own words. Of `/v1/responses`: `max_output_tokens`, `content_filter` or `failed`.
        fields: laid over the reply, such as `model` or `service_tier`; `{"usage": ...}` is a reply that does not say its usage.
        ends: how a line of a batch ends: `succeeded`, also when the batch is cancelled, `errored`, `canceled` or `expired`.
        cut_at: leave off after so many bytes of the body as it is sent; without it, after half of them.
        stall_at: stand still after so many bytes of the body ...
        stall_s: ... for so long, in seconds; `math.inf` is until the client hangs up.
        piece_s: the time between the events of a stream, in seconds.
        error_after: say an error after so many events of a stream, and end it.
        framing: `length`, `chunked`, or `close`, where the end of the connection ends the body. A stream is `chunked`.
        encoded: `gzip`, or nothing.
        through: what becomes of the body's bytes before they are encoded, such as garbage.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    drop: str | None = None
    text: str | None = None
    blocks: list[dict[str, Any]] | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    begun: dict[str, Any] = field(default_factory=dict)
    stop_reason: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    ends: str | None = None
    cut_at: int | None = None
    stall_at: int | None = None
    stall_s: float = math.inf
    piece_s: float = 0.0
    error_after: int | None = None
    framing: str | None = None
    encoded: str | None = None
    through: Callable[[bytes], bytes] | None = None

    @property
    def leaves_off(self) -> bool:
        """Whether not all of it is sent, or its end is no end."""
        return self.drop is not None or self.cut_at is not None


def failed(status: int, message: str = "as the test wants it", retry_after: float | None = None) -> Answer:
    """An error in the form of both protocols."""
    error = {"type": _KINDS.get(status, "api_error"), "message": message, "code": None, "param": None}
    headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
    return Answer(status, {"type": "error", "error": error, "request_id": "req_test"}, headers)


def refused(status: int, message: str) -> Reply:
    """The same, as a reply."""
    answer = failed(status, message)
    return Reply(answer.body, status=status)


def tokens_of(body: dict[str, Any]) -> int:
    """How many tokens this provider counts in a request."""
    return OVERHEAD + sum(len(demo._text(body.get(part))) for part in _READ)


def laid_over(said: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """What a test tells, laid over what would be said without it."""
    both = {**said, **told}
    for name, value in told.items():
        if isinstance(value, dict) and isinstance(said.get(name), dict):
            both[name] = laid_over(said[name], value)
    return {name: value for name, value in both.items() if value is not ...}


def spoken(answer: Answer, messages: list[Any], limit: int) -> tuple[list[dict[str, Any]], int, bool]:
    """What is said: its blocks, how many tokens they are, and whether the limit left all of it."""
    if answer.blocks is None and answer.text is None:
        reply = demo._reply({"model": "", "messages": messages, "max_tokens": limit}, random.Random(0))
        return reply["content"], reply["usage"]["output_tokens"], reply["stop_reason"] == "end_turn"
    blocks = [{"type": "text", "text": answer.text}] if answer.blocks is None else [dict(block) for block in answer.blocks]
    tokens = max(1, math.ceil(len(demo._text(blocks)) / demo.CHARACTERS_PER_TOKEN))
    return blocks, min(tokens, limit), tokens <= limit


def in_pieces(text: str) -> list[str]:
    """A text as a stream says it."""
    size = max(1, len(text) // 8)
    return [text[at : at + size] for at in range(0, len(text), size)]


def event(data: Any, name: str | None = None) -> bytes:
    """One event of a stream."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


def on_the_wire(answer: Answer, reply: Reply) -> list[bytes]:
    """The body as it is sent, in the pieces in which it is sent, but for what is cut off."""
    if reply.events is not None:
        pieces = list(reply.events)
    else:
        pieces = [reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()]
    if answer.through is not None:
        pieces = [answer.through(b"".join(pieces))]
    if answer.encoded == "gzip":
        packer = zlib.compressobj(wbits=31)
        pieces = [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
        pieces[-1] += packer.flush()
    return pieces


def parted(pieces: list[bytes], answer: Answer) -> list[bytes]:
    """As much of a body as the answer wants to be sent, in pieces of which one ends where it stalls."""
    data = b"".join(pieces)
    most = len(data) if not answer.leaves_off else len(data) // 2 if answer.cut_at is None else min(answer.cut_at, len(data))
    ends = {0, most, *itertools.accumulate(map(len, pieces)), answer.stall_at or 0}
    return [data[begin:end] for begin, end in itertools.pairwise(sorted(end for end in ends if end <= most))]
