"""OpenAI's chat completions, responses and embeddings: what a request asks for, and what a stream says.

A chat's stream says what was used only when it is asked to, in a last chunk without choices. It is asked for where the caller
did not, and that chunk is then kept from the caller, who does not expect one.

References:
    https://platform.openai.com/docs/api-reference/chat-streaming
    https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..calls import MOST_KEPT, Call, Endpoint, Reads, Received, Stream, count_in, loaded, received_of, text_in
from ..errors import InvalidType, InvalidValue
from ..reported import Reported
from ..sse import Frame
from ..terms import UNSAID, Terms, terms_of
from ..usage import MAX_TOKENS

PROVIDER = "openai"
_AS_USUAL = ("auto", "default")
# Models whose answers hold nothing but what is seen; of all others a part may be reasoning that never comes.
_SEEN = re.compile(r"(?:ft:)?(?:gpt-3\.5|gpt-4|chatgpt-4)")
_BILLED_APART = frozenset({"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"})
_DONE = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


def chat_call(body: Mapping[str, Any]) -> Call:
    """What a request to `/chat/completions` asks for.

    Examples:
        >>> chat_call({"model": "gpt-5-mini", "messages": [], "max_completion_tokens": 100, "n": 2}).answers
        2
    """
    functions = [{"type": "function", "function": each} for each in _listed(body, "functions")]
    return Call(
        PROVIDER,
        text_in(body, "model"),
        body.get("messages") or [],
        tools=[*_listed(body, "tools"), *functions] or None,
        beside=_dumped(body.get("response_format"), body.get("prediction")),
        most_output_tokens=count_in(body, "max_completion_tokens", "max_tokens"),
        answers=max(1, count_in(body, "n") or 1),
        terms=_terms(body),
        stream=body.get("stream") is True,
    )


def response_call(body: Mapping[str, Any]) -> Call:
    """What a request to `/responses` asks for.

    Raises:
        InvalidValue: it asks for what is not paid with its reply, or for a text that the provider keeps.
    """
    for name, why in (
        ("background", "what it costs is not said by its reply; ask without background, or record it yourself"),
        ("conversation", "what the model will read again is not known; send the messages, or use previous_response_id"),
        ("prompt", "the text of a stored prompt is not known; send it as `instructions` and `input`"),
    ):
        if body.get(name):
            raise InvalidValue(name, f"{why}; nothing was sent")
    follows = body.get("previous_response_id")
    return Call(
        PROVIDER,
        text_in(body, "model"),
        body.get("input") or "",
        tools=body.get("tools") or None,
        system=body.get("instructions") or None,
        beside=_dumped(body.get("text")),
        most_output_tokens=count_in(body, "max_output_tokens"),
        terms=_terms(body),
        follows=follows if isinstance(follows, str) else None,
        stream=body.get("stream") is True,
    )


def embedding_call(body: Mapping[str, Any]) -> Call:
    """What a request to `/embeddings` asks for: texts, or texts that are given as tokens; nothing is written."""
    given = body.get("input")
    texts: Any = [given] if isinstance(given, str) else _listed(body, "input")
    known = 0
    if isinstance(given, list):
        if given and all(type(each) is int for each in given):
            texts, known = [], len(given)
        elif given and all(isinstance(each, list) for each in given):
            texts, known = [], sum(map(len, given))
    return Call(PROVIDER, text_in(body, "model"), "", beside=tuple(texts or ()), known_tokens=known, most_output_tokens=0)


def _listed(body: Mapping[str, Any], name: str) -> list[Any]:
    """A list that a request may have.

    Raises:
        InvalidType: it is none.
    """
    value = body.get(name) or []
    if not isinstance(value, list | tuple):
        raise InvalidType(name, f"of type {type(value).__name__}, not a list; nothing was sent")
    return list(value)


def _terms(body: Mapping[str, Any]) -> Terms:
    tier = body.get("service_tier")
    return UNSAID if not isinstance(tier, str) or tier in _AS_USUAL else terms_of(tier=tier)


def _dumped(*values: Any) -> tuple[str, ...]:
    return tuple(json.dumps(value, default=str) for value in values if value is not None)


class ChatStream(Stream):
    """A streamed chat completion.

    Args:
        hidden: the last chunk was not asked for by the caller.
        read: reads what a reply reports.
    """

    def __init__(self, *, hidden: bool = False, read: Reads = Reported.of) -> None:
        super().__init__()
        self._hidden, self._read = hidden, read
        self._chunks: list[bytes] = []
        self._size = 0
        self._usage: bytes | None = None
        self._done = False

    def feed(self, chunk: bytes) -> bytes:
        """Take more of it; returns it without what the caller did not ask for, and whole events only."""
        if not self._hidden:
            return super().feed(chunk)
        if self.garbled:  # it is not read any more, but it is the caller's
            return chunk
        seen = []
        for frame in self._frames.feed(chunk):
            self.take(frame)
            if frame.data is not self._usage or _choices(loaded(frame.data)):
                seen.append(frame.raw)
        return b"".join((*seen, self._frames.spilled()))

    def rest(self) -> bytes:
        """The event that did not come to its end."""
        return self._frames.rest if self._hidden else b""

    def take(self, frame: Frame) -> None:
        """Take one chunk; only the one that says what was used is looked at while all goes well."""
        if frame.data == b"[DONE]":
            self._done = True
        elif frame.data:
            self._size += len(frame.data)
            if self._size <= MOST_KEPT:
                self._chunks.append(frame.data)
            if b'"usage"' in frame.data and isinstance(loaded(frame.data).get("usage"), Mapping):
                self._usage = frame.data

    def received(self, *, ended: bool) -> Received:
        """What it comes to: measured when it has said what was used and come to its end."""
        told = Received(unseen=self.garbled)
        chunks = [loaded(each) for each in self._chunks]
        choices = [choice for chunk in chunks for choice in _choices(chunk)]
        finished = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
        first = chunks[0] if chunks else {}
        named, model = first.get("id"), first.get("model")
        told.response_id = named if isinstance(named, str) else None
        told.stop_reason = finished[0] if finished and isinstance(finished[0], str) else None
        last = loaded(self._usage or b"")
        if self._usage is not None and (self._done or (ended and finished and not _choices(last))):
            tier = next((each["service_tier"] for each in chunks if each.get("service_tier")), None)
            body = {"id": named, "object": "chat.completion", "model": model, "service_tier": tier, "usage": last["usage"]}
            try:
                told.reported = self._read(body)
            except InvalidValue:  # what it says contradicts itself: not known
                told.unseen = True
            else:
                return told
        written = last["usage"].get("completion_tokens") if last else None  # some say it all the way
        told.output_tokens = written if type(written) is int and 0 < written < MAX_TOKENS else 0
        told.text = "".join(text for choice in choices for text in _texts(choice.get("delta")))
        told.unseen |= not _is_seen(model) or self._size > MOST_KEPT
        return told


def _choices(chunk: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = chunk.get("choices")
    return [each for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else []


def _texts(value: Any) -> Iterator[str]:
    """All that a delta adds, however it is called: its content, refusal, reasoning, the arguments of its calls."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            if name not in ("role", "id", "type", "index"):
                yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def _is_seen(model: Any) -> bool:
    return isinstance(model, str) and _SEEN.match(model) is not None


class ResponseStream(Stream):
    """A streamed response.

    Args:
        read: reads what a response reports.
    """

    def __init__(self, read: Reads | None = None) -> None:
        super().__init__()
        self._read = read or response_report
        self._pieces: list[bytes] = []
        self._size = 0
        self._begun: bytes | None = None
        self._last: bytes | None = None

    def take(self, frame: Frame) -> None:
        """Take one event."""
        kind = frame.event or str(loaded(frame.data).get("type", "")).encode()
        if kind.decode(errors="replace") in _DONE:
            self._last = frame.data
        elif kind == b"response.created":
            self._begun = frame.data
        elif kind.endswith(b".delta"):
            self._size += len(frame.data)
            if self._size <= MOST_KEPT:
                self._pieces.append(frame.data)

    def received(self, *, ended: bool) -> Received:  # noqa: ARG002 - its last event says so itself
        """What it comes to: measured when its last event has come, which holds the whole response."""
        if self._last is not None:
            whole = received_of(loaded(self._last).get("response"), self._read)
            if whole.reported is not None:
                return whole
        begun = loaded(self._begun or b"").get("response")
        begun = begun if isinstance(begun, Mapping) else {}
        named = begun.get("id")
        written = (loaded(piece).get("delta") for piece in self._pieces)
        return Received(
            text="".join(text for each in written for text in _texts(each)),
            unseen=self.garbled or self._size > MOST_KEPT or not _is_seen(begun.get("model")),
            response_id=named if isinstance(named, str) else None,
        )


def response_report(body: Any, read: Reads = Reported.of) -> Reported:
    """What a response reports; tools that the provider runs and bills apart from tokens leave its cost unknown.

    Examples:
        >>> usage = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}
        >>> response_report({"object": "response", "output": [{"type": "file_search_call"}], "usage": usage}).unpriced
        'its file_search_call is billed apart from its tokens, and for how much is not known here'
    """
    reported = read(body)
    output = body.get("output") if isinstance(body, Mapping) else None
    kinds = {str(each.get("type")) for each in output if isinstance(each, Mapping)} if isinstance(output, list) else set()
    apart = sorted(kinds & _BILLED_APART)
    if apart and reported.unpriced is None:
        why = f"its {', '.join(apart)} is billed apart from its tokens, and for how much is not known here"
        reported = replace(reported, unpriced=why)
    return reported


def with_usage(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """A chat's request that asks for what was used too; `None` where it does so already, or is no stream.

    Examples:
        >>> with_usage({"stream": True, "messages": []})["stream_options"]
        {'include_usage': True}
    """
    options = body.get("stream_options") or {}
    if body.get("stream") is not True or not isinstance(options, Mapping) or options.get("include_usage"):
        return None
    return {**body, "stream_options": {**options, "include_usage": True}}


CHAT = Endpoint(PROVIDER, chat_call, ChatStream, asking=with_usage)
RESPONSES = Endpoint(PROVIDER, response_call, ResponseStream, response_report)
EMBEDDINGS = Endpoint(PROVIDER, embedding_call, ChatStream)
