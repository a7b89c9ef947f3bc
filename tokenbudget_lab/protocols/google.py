"""Google's `generateContent`: what a request asks for, and what its streams say.

Each piece of a stream says what was used so far, so the last one holds; it is the one that says why the model stopped. The
model's name stands in the path, and what it thinks is part of its output.

References:
    https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ..calls import Call, Endpoint, Reads, Received, Stream, count_in, loaded, received_of
from ..errors import CountFailed, InvalidValue
from ..reported import Reported
from ..sse import Frame

PROVIDER = "google"
_TEXTS = ("functionCall", "functionResponse", "executableCode", "codeExecutionResult")


def call_of(body: Mapping[str, Any], *, model: str, stream: bool = False) -> Call:
    """What a request to `…/models/MODEL:generateContent` asks for.

    Raises:
        CountFailed: a part of it is no text.
        InvalidValue: it builds on a text that the provider keeps.

    Examples:
        >>> said = {"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": {"maxOutputTokens": 64}}
        >>> call_of(said, model="gemini-2.5-flash").most_output_tokens
        64
    """
    cached = _either(body, "cachedContent", "cached_content")
    if cached:
        raise InvalidValue("cachedContent", "what is kept there is not known; send the contents; nothing was sent")
    config = _either(body, "generationConfig", "generation_config")
    config = config if isinstance(config, Mapping) else {}
    tools, schema = body.get("tools"), _either(config, "responseSchema", "responseJsonSchema", "response_schema")
    return Call(
        PROVIDER,
        model,
        [_message(each) for each in body.get("contents") or ()],
        system=_text(_either(body, "systemInstruction", "system_instruction")) or None,
        beside=tuple(json.dumps(each, default=str) for each in (tools, schema) if each),
        most_output_tokens=count_in(config, "maxOutputTokens", "max_output_tokens"),
        answers=max(1, count_in(config, "candidateCount", "candidate_count") or 1),
        stream=stream,
    )


def _either(body: Mapping[str, Any], *names: str) -> Any:
    """What stands under the first of several spellings that is there."""
    return next((body[name] for name in names if body.get(name) is not None), None)


def _message(content: Any) -> dict[str, Any]:
    role = content.get("role") if isinstance(content, Mapping) else None
    return {"role": "assistant" if role == "model" else "user", "content": _text(content)}


def _text(content: Any) -> str:
    """The words of a content's parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content.get("parts") if isinstance(content, Mapping) else content
    return "\n".join(_part(each) for each in (parts if isinstance(parts, list) else [parts]) if each is not None)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        if isinstance(part.get("text"), str):
            return str(part["text"])
        for name in _TEXTS:
            if name in part:
                return json.dumps(part[name], default=str)
    kind = ", ".join(map(str, part))[:80] if isinstance(part, Mapping) else type(part).__name__
    raise CountFailed("text parts", f"a part of the request is {kind}, which is not counted here; nothing was sent")


def report(body: Any, read: Reads) -> Reported:
    """What a reply reports; one that searched the web was billed for that too."""
    reported = read(body)
    if reported.unpriced is None and any("groundingMetadata" in each for each in _candidates(body)):
        reported = replace(
            reported, unpriced="its searches are billed apart from its tokens, and for how much is not known here"
        )
    return reported


class ContentStream(Stream):
    """A streamed reply.

    Args:
        read: reads what a reply reports.
    """

    def __init__(self, read: Reads) -> None:
        super().__init__()
        self._read = read
        self._pieces: list[bytes] = []

    def take(self, frame: Frame) -> None:
        """Take one piece."""
        if frame.data:
            self._pieces.append(frame.data)

    def received(self, *, ended: bool) -> Received:
        """What it comes to: measured when the model has said why it stopped, and the stream came to its end."""
        pieces = [loaded(each) for each in self._pieces]
        told = [each for each in pieces if isinstance(each.get("usageMetadata"), Mapping)]
        stops = [stop for each in pieces for stop in _stops(each)]
        if ended and told and stops and not self.garbled:
            grounded = [each for each in pieces if any("groundingMetadata" in one for one in _candidates(each))]
            whole = received_of({**told[-1], "candidates": _candidates((grounded or told)[-1])}, self._read)
            whole.stop_reason = stops[0]
            return whole
        texts = (part.get("text") for each in pieces for part in _parts(each))
        # What it thinks does not come, so what has come says too little of what was written.
        return Received(text="".join(text for text in texts if isinstance(text, str)), unseen=True)


def _candidates(body: Any) -> list[Mapping[str, Any]]:
    found = body.get("candidates") if isinstance(body, Mapping) else None
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _stops(body: Mapping[str, Any]) -> Iterator[str]:
    return (each["finishReason"] for each in _candidates(body) if isinstance(each.get("finishReason"), str))


def _parts(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for each in _candidates(body):
        content = each.get("content")
        parts = content.get("parts") if isinstance(content, Mapping) else None
        yield from (part for part in parts or () if isinstance(part, Mapping))


def endpoint(model: str, read: Callable[[Any], Reported], *, stream: bool) -> Endpoint:
    """Where this model takes calls."""
    read = partial(report, read=read)
    return Endpoint(PROVIDER, partial(call_of, model=model, stream=stream), partial(ContentStream, read), read)
