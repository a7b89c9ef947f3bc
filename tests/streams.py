"""Streams as providers send them, and what a test reads of their bytes by itself: how much of an answer, and whether all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import anthropic
import openai

from tests.provider import Answer, Provider
from tokenbudget_lab.calls import Endpoint, Reading
from tokenbudget_lab.events import Event
from tokenbudget_lab.protocols.anthropic import MESSAGES
from tokenbudget_lab.protocols.openai import CHAT, RESPONSES, ChatStream

CLAUDE, SEEN, HIDES = "claude-sonnet-5-5", "gpt-4o", "gpt-5-mini"  # of the last one a part of the answer may never come
ASK: Any = [{"role": "user", "content": "How much?"}]
MEASURED, ESTIMATED, UNKNOWN = ("committed", "measured"), ("committed", "estimated"), ("expired", "unknown")
_TEXT = "Twenty-five: forty · две тысячи."
_TOOL = {"type": "tool_use", "name": "look", "input": {"where": "in the ledger"}}
_SEARCH: list[dict[str, Any]] = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "budgets"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [{"type": "web_search_result", "title": "Budgets", "url": "http://e", "encrypted_content": "abc"}],
    },
    {"type": "text", "text": _TEXT},
]
# What of an event is written by the model, in each of the protocols.
_MESSAGES = ("text", "partial_json", "thinking")
_CHAT = ("content", "arguments", "refusal")


@dataclass(frozen=True)
class Case:
    """One stream.

    Args:
        body: of the request that the caller makes.
        answer: what the provider says to it.
        endpoint: how it is read.
        sent: what is asked beside, by us.
        reads: makes what reads the stream, where it is not the endpoint's own.
        says: whether the stream says at its end what was used.
    """

    path: str
    body: dict[str, Any]
    answer: Answer
    endpoint: Endpoint
    sent: dict[str, Any] | None = None
    reads: Callable[[], Reading] | None = None
    says: bool = True

    def reading(self) -> Reading:
        """What reads it."""
        return (self.reads or self.endpoint.stream)()

    def bytes_of(self, provider: Provider) -> bytes:
        """The whole of it."""
        return provider.bytes_of(self.path, {**self.body, **(self.sent or {})}, self.answer)

    def written(self, data: bytes) -> str:
        """What the model wrote, of as much of the stream as is here: by a reading of the test's own."""
        return "".join(text for event in _events(data) for text in _texts(self.path, event))

    def is_all(self, data: bytes, *, ended: bool) -> bool:
        """Whether the provider has said to the end what was used."""
        if self.path == "/v1/messages":
            return data.endswith(b'data: {"type": "message_stop"}\n\n')
        if self.path == "/v1/responses":
            return any(event.get("type") == "response.completed" for event in _events(data))
        counted = any(event.get("usage") and not event["choices"] for event in _events(data))
        return counted and (ended or data.endswith(b"[DONE]\n\n"))

    def written_in(self, events: Iterable[dict[str, Any]]) -> str:
        """What the model wrote, in events as an SDK gives them."""
        return "".join(text for event in events for text in _texts(self.path, event))

    def outcomes(self, data: bytes, *, ended: bool) -> set[tuple[str, str]]:
        """How a call may end of whose stream so much has come: the kind of its last event, and its basis."""
        if self.says and self.is_all(data, ended=ended):
            return {MEASURED}
        events = list(_events(data))
        if self.path == "/v1/messages":
            blocks = {event["content_block"]["type"] for event in events if event["type"] == "content_block_start"}
            if any((event.get("usage") or {}).get("server_tool_use") for event in events):  # which costs more than was held
                return {ESTIMATED}
            return {UNKNOWN} if not events or blocks - {"text", "tool_use"} else {ESTIMATED}
        if self.body["model"] == HIDES:
            return {UNKNOWN}
        return {ESTIMATED} if self.written(data) else {ESTIMATED, UNKNOWN}  # the name of a tool may have come

    def client(self) -> Any:
        """A client of the SDK that sends it."""
        return (anthropic.Anthropic if self.path == "/v1/messages" else openai.OpenAI)(max_retries=0, timeout=10)

    def asked_of(self, client: Any) -> Any:
        """Where a client takes it."""
        if self.path == "/v1/messages":
            return client.messages
        return client.responses if self.path == "/v1/responses" else client.chat.completions


def ends_of(log: Any) -> dict[str, Event]:
    """The events that ended calls, by reservation."""
    return {event.reservation: event for event in log.events if event.kind in ("committed", "rolled_back", "expired")}


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    for each in data.split(b"\n\n")[:-1]:
        said = each.partition(b"data: ")[2]
        if said != b"[DONE]":
            yield json.loads(said)


def _texts(path: str, event: dict[str, Any]) -> Iterator[str]:
    if path == "/v1/responses":
        if event["type"].endswith(".delta"):
            yield event["delta"]
    elif path == "/v1/messages":
        if event["type"] == "content_block_delta":
            yield from (event["delta"][name] for name in _MESSAGES if name in event["delta"])
    else:
        for choice in event["choices"]:
            calls = [call["function"] for call in choice["delta"].get("tool_calls", ())]
            for said in (choice["delta"], *calls):
                yield from (said[name] for name in _CHAT if said.get(name))


def _message(**said: Any) -> Case:
    return Case("/v1/messages", {"model": CLAUDE, "max_tokens": 400, "messages": ASK, "stream": True}, Answer(**said), MESSAGES)


def _chat(model: str, *, usage: bool | None, asked: dict[str, Any] | None = None, **said: Any) -> Case:
    """A chat: `usage` is asked for by the caller, by us, or (`None`) by nobody."""
    asking = {"stream_options": {"include_usage": True}}
    body = {"model": model, "messages": ASK, "stream": True, "max_completion_tokens": 400, **(asked or {})}
    body |= asking if usage else {}
    hidden = partial(ChatStream, hidden=True) if usage is False else None
    sent = asking if usage is False else None
    return Case("/v1/chat/completions", body, Answer(**said), CHAT, sent, hidden, says=usage is not None)


def _response(model: str, **said: Any) -> Case:
    body = {"model": model, "input": "How much?", "stream": True, "max_output_tokens": 400}
    return Case("/v1/responses", body, Answer(**said), RESPONSES)


CASES: dict[str, Case] = {
    "a message": _message(text=_TEXT),
    "a message with a tool": _message(blocks=[{"type": "text", "text": "Let me see."}, _TOOL]),
    "a message with thinking": _message(blocks=[{"type": "thinking", "thinking": _TEXT}, {"type": "text", "text": "25"}]),
    "a message with hidden thinking": _message(
        blocks=[{"type": "redacted_thinking", "data": "EmwKAhgB"}, {"type": "text", "text": _TEXT}]
    ),
    "a message with a search": _message(blocks=_SEARCH, usage={"server_tool_use": {"web_search_requests": 1}}),
    "a chat": _chat(SEEN, usage=True, text=_TEXT),
    "a chat whose usage we ask for": _chat(SEEN, usage=False, text=_TEXT),
    "a chat that says no usage": _chat(SEEN, usage=None, text=_TEXT),
    "a chat that may reason": _chat(HIDES, usage=False, text=_TEXT),
    "a chat with a tool": _chat(SEEN, usage=False, blocks=[{"type": "text", "text": "Let me see."}, _TOOL]),
    "a chat of two answers": _chat(SEEN, usage=False, asked={"n": 2}, text=_TEXT),
    "a response": _response(SEEN, text=_TEXT),
    "a response that may reason": _response(HIDES, text=_TEXT),
    "a response with a tool": _response(SEEN, blocks=[{"type": "thinking", "thinking": "Hm."}, _TOOL]),
}
