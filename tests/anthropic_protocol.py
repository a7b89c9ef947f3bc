"""Anthropic's messages as the provider of the tests says them, at once and as a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.answers import SSE, Answer, Asked, Reply, Used, event, in_pieces, laid_over, refused, spoken, tokens_of

# What the last event of a stream repeats of the usage: these are cumulative, and the terms are not among them.
_CUMULATIVE = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens_details",
    "server_tool_use",
    "iterations",
)
_TERMS = ("service_tier", "speed", "inference_geo")


def messages(asked: Asked, answer: Answer, new_id: Callable[[str], str]) -> Reply:
    """The answer to a request for a message; in a batch, its tier says so."""
    body = asked.body
    if missing := [name for name in ("model", "messages", "max_tokens") if not body.get(name)]:
        return refused(400, f"{missing[0]}: Field required")
    full = _message(asked, answer, new_id)
    reply, usage = laid_over(full, answer.fields), full["usage"]
    terms = {name: usage[name] for name in _TERMS if usage.get(name) is not None}
    batch = {"batch": True} if asked.custom_id is not None else {}
    used = Used(asked.path, asked.custom_id or reply["id"], reply["model"], usage, {**terms, **batch})
    if not body.get("stream"):
        return Reply(reply, used=used)
    events = list(_events(reply, answer))
    if answer.error_after is not None:
        error = {"type": "overloaded_error", "message": "Overloaded"}
        events = [*events[: answer.error_after], {"type": "error", "error": error, "request_id": None}]
    said = tuple(event(each, each["type"]) for each in events)
    return Reply(events=said, headers=SSE, used=used, full=answer.error_after is None)


def _message(asked: Asked, answer: Answer, new_id: Callable[[str], str]) -> dict[str, Any]:
    body = asked.body
    blocks, tokens, whole = spoken(answer, body["messages"], body["max_tokens"])
    called = any(block["type"] == "tool_use" for block in blocks)
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"id": new_id("toolu"), **block} if block["type"] == "tool_use" else block for block in blocks],
        "stop_reason": answer.stop_reason or ("max_tokens" if not whole else "tool_use" if called else "end_turn"),
        "stop_sequence": None,
        "usage": _usage(asked, answer, tokens),
    }


def _usage(asked: Asked, answer: Answer, tokens: int) -> dict[str, Any]:
    thought = (answer.usage.get("output_tokens_details") or {}).get("thinking_tokens", 0)
    written = answer.usage.get("cache_creation") or {}
    usage = {
        "input_tokens": tokens_of(asked.body),
        "cache_creation_input_tokens": sum(count for count in written.values() if isinstance(count, int)),
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": tokens + thought,  # which includes thinking
        "service_tier": "standard" if asked.custom_id is None else "batch",
        **{name: asked.body[name] for name in ("speed", "inference_geo") if asked.body.get(name)},
    }
    return laid_over(usage, answer.usage)


def _events(reply: dict[str, Any], answer: Answer) -> Iterator[dict[str, Any]]:
    usage = reply.get("usage") or {}
    details = ("output_tokens_details", "server_tool_use", "iterations")  # nothing of these has come about yet
    first = {name: value for name, value in {**usage, "output_tokens": 1}.items() if name not in details}
    begun = {**reply, "content": [], "stop_reason": None, "stop_sequence": None}
    if "usage" in reply:
        begun["usage"] = laid_over(first, answer.begun) if usage else reply["usage"]
    yield {"type": "message_start", "message": begun}
    for index, block in enumerate(reply["content"]):
        empty, deltas = _deltas(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        if index == 0:
            yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {name: reply[name] for name in ("stop_reason", "stop_sequence", "stop_details") if name in reply}
    last = {name: usage[name] for name in _CUMULATIVE if name in usage}
    yield {"type": "message_delta", "delta": delta, **({"usage": last} if last else {})}
    yield {"type": "message_stop"}


def _deltas(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it starts, and what is added to it."""
    kind = block["type"]
    if kind == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in in_pieces(block["text"])]
    if kind == "thinking":
        thoughts = [{"type": "thinking_delta", "thinking": piece} for piece in in_pieces(block["thinking"])]
        signed = {"type": "signature_delta", "signature": block.get("signature", "as-signed")}
        return {**block, "thinking": "", "signature": ""}, [*thoughts, signed]
    if kind in ("tool_use", "server_tool_use"):
        pieces = ["", *in_pieces(json.dumps(block["input"]))]
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return block, []
