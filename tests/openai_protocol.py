"""OpenAI's chat completions, responses, embeddings and models as the provider of the tests says them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tests.answers import OVERHEAD, SSE, Answer, Asked, Reply, Used, event, in_pieces, laid_over, refused, spoken, tokens_of

_MOST = 4_096  # tokens of a reply that nobody limits
_TIERS = {"priority": "priority", "fast": "priority", "flex": "flex"}  # else `default`
_ERROR = {"message": "The server had an error while processing your request.", "type": "server_error", "param": None}


def _used(asked: Asked, reply: dict[str, Any], usage: dict[str, Any]) -> Used:
    tier = {"service_tier": reply["service_tier"]} if reply.get("service_tier") else {}
    batch = {"batch": True} if asked.custom_id is not None else {}
    id = asked.custom_id or reply.get("id", "")
    return Used(asked.path, id, reply["model"], usage, {**tier, **batch})


def _tier(body: dict[str, Any]) -> str:
    return _TIERS.get(body.get("service_tier") or "", "default")


def _counted(answer: Answer, names: tuple[str, str], tokens: int, read: int) -> dict[str, Any]:
    """The usage, of which details are parts: what is told of them is added, unless the whole is told as well."""
    taken, given = names
    inside = answer.usage.get(f"{taken}_details") or {}
    hidden = (answer.usage.get(f"{given}_details") or {}).get("reasoning_tokens", 0)
    cached = inside.get("cached_tokens", 0) + inside.get("cache_write_tokens", 0)
    usage = {
        taken: read + cached,
        given: tokens + hidden,
        f"{taken}_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        f"{given}_details": {"reasoning_tokens": 0},
    }
    usage = laid_over(usage, answer.usage)
    return {"total_tokens": usage.get(taken, 0) + usage.get(given, 0), **usage}


# --- chat completions --------------------------------------------------------------------------------------------------


def chat(asked: Asked, answer: Answer, new_id: Callable[[str], str], now: int) -> Reply:
    """The answer to a request for a chat completion."""
    body = asked.body
    if not body.get("model") or not body.get("messages"):
        return refused(400, "you must provide a model and messages")
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or _MOST
    blocks, tokens, whole = spoken(answer, body["messages"], limit)
    n = body.get("n") or 1
    calls = [_call(block, new_id) for block in blocks if block["type"] == "tool_use"]
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    reason = answer.stop_reason or ("length" if not whole else "tool_calls" if calls else "stop")
    message = {
        "role": "assistant",
        "content": text or (None if calls else ""),
        "refusal": None,
        "annotations": [],
        **({"tool_calls": calls} if calls else {}),
    }
    reply = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": now,
        "model": body["model"],
        "choices": [{"index": each, "message": message, "logprobs": None, "finish_reason": reason} for each in range(n)],
        "usage": _counted(answer, ("prompt_tokens", "completion_tokens"), tokens * n, tokens_of(body)),
        "service_tier": _tier(body),
        "system_fingerprint": "fp_test",
    }
    usage = reply["usage"]
    reply = laid_over(reply, answer.fields)
    used = _used(asked, reply, usage)
    if not body.get("stream"):
        return Reply(reply, used=used)
    wanted = bool((body.get("stream_options") or {}).get("include_usage"))
    chunks = [event(chunk) for chunk in _chunks(reply, wanted=wanted)]
    if answer.error_after is not None:
        events = (*chunks[: answer.error_after], event({"error": {**_ERROR, "code": None}}))
        return Reply(events=events, headers=SSE, used=used, full=False)
    return Reply(events=(*chunks, b"data: [DONE]\n\n"), headers=SSE, used=used)


def _call(block: dict[str, Any], new_id: Callable[[str], str]) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": json.dumps(block["input"])}
    return {"id": block.get("id") or new_id("call"), "type": "function", "function": function}


def _chunks(reply: dict[str, Any], *, wanted: bool) -> Iterator[dict[str, Any]]:
    """The stream: usage comes last, in a chunk without choices, and only where it is wanted; then the others say `null`."""
    kept = ("id", "created", "model", "service_tier", "system_fingerprint")
    same = {**{name: reply[name] for name in kept if name in reply}, "object": "chat.completion.chunk"}
    none = {"usage": None} if wanted else {}
    for choice in reply["choices"]:
        for delta in _deltas(choice["message"]):
            yield {**same, "choices": [_part(choice["index"], delta, None)], **none}
    for choice in reply["choices"]:
        yield {**same, "choices": [_part(choice["index"], {}, choice["finish_reason"])], **none}
    if wanted and "usage" in reply:
        yield {**same, "choices": [], "usage": reply["usage"]}


def _part(index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    calls = message.get("tool_calls", [])
    yield {"role": "assistant", "content": None if calls and message["content"] is None else "", "refusal": None}
    for piece in in_pieces(message["content"] or ""):
        yield {"content": piece}
    for index, call in enumerate(calls):
        yield {"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": ""}}]}
        for piece in in_pieces(call["function"]["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


# --- responses ---------------------------------------------------------------------------------------------------------


def responses(asked: Asked, answer: Answer, new_id: Callable[[str], str], now: int) -> Reply:
    """The answer to a request for a response: completed, incomplete or failed."""
    body = asked.body
    if not body.get("model") or "input" not in body:
        return refused(400, "you must provide a model and an input")
    full = _response(body, answer, new_id, now)
    reply = laid_over(full, answer.fields)
    used = _used(asked, reply, full["usage"]) if full["usage"] is not None else None
    if not body.get("stream"):
        return Reply(reply, used=used)
    events = list(_response_events(reply, body))
    if answer.error_after is not None:
        error = {"type": "error", "code": "server_error", "message": _ERROR["message"], "param": None}
        events = [*events[: answer.error_after], error]
    numbered = [{**each, "sequence_number": number} for number, each in enumerate(events)]
    said = tuple(event(each, each["type"]) for each in numbered)
    return Reply(events=said, headers=SSE, used=used, full=answer.error_after is None)


def _response(body: dict[str, Any], answer: Answer, new_id: Callable[[str], str], now: int) -> dict[str, Any]:
    limit = body.get("max_output_tokens")
    blocks, tokens, whole = spoken(answer, [{"content": body["input"]}], limit or _MOST)
    reason = answer.stop_reason or (None if whole else "max_output_tokens")
    status = reason if reason == "failed" else "incomplete" if reason else "completed"
    usage = _counted(answer, ("input_tokens", "output_tokens"), tokens, tokens_of(body))
    same = ("instructions", "metadata", "previous_response_id", "temperature", "tool_choice", "tools", "top_p", "user")
    usual = {"metadata": {}, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": now,
        "status": status,
        "background": False,
        "error": {"code": "server_error", "message": _ERROR["message"]} if status == "failed" else None,
        "incomplete_details": {"reason": reason} if status == "incomplete" else None,
        "max_output_tokens": limit,
        "model": body["model"],
        "output": [] if status == "failed" else [_item(block, status, new_id) for block in blocks],
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": _tier(body),
        "store": True,
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
        **{name: body.get(name, usual.get(name)) for name in same},
        "usage": None if status == "failed" and not answer.usage else usage,
    }


def _item(block: dict[str, Any], status: str, new_id: Callable[[str], str]) -> dict[str, Any]:
    if block["type"] == "tool_use":
        call = {"call_id": block.get("id") or new_id("call"), "name": block["name"]}
        return {"id": new_id("fc"), "type": "function_call", "status": status, **call, "arguments": json.dumps(block["input"])}
    if block["type"] == "thinking":
        return {"id": new_id("rs"), "type": "reasoning", "summary": [{"type": "summary_text", "text": block["thinking"]}]}
    content = [{"type": "output_text", "text": block["text"], "annotations": [], "logprobs": []}]
    return {"id": new_id("msg"), "type": "message", "status": status, "role": "assistant", "content": content}


def _response_events(reply: dict[str, Any], body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The stream: only its last event has usage, and the tier that served it; the first repeat the one that was asked for."""
    tier = body.get("service_tier") or "auto"
    cleared: dict[str, Any] = {"error": None, "incomplete_details": None, "output": [], "usage": None}
    begun = {**reply, **cleared, "status": "in_progress", "service_tier": tier}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(reply["output"]):
        at: dict[str, Any] = {"output_index": index, "item_id": item["id"]}
        empty, steps = _item_events(item, at)
        yield {"type": "response.output_item.added", "output_index": index, "item": empty}
        yield from steps
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{reply['status']}", "response": reply}


def _item_events(item: dict[str, Any], at: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An item as it starts, and what comes until it is done."""
    if item["type"] == "reasoning":
        return {**item, "summary": []}, []
    started = {**item, "status": "in_progress"}
    if item["type"] == "function_call":
        name, words = "response.function_call_arguments", item["arguments"]
        deltas = [{"type": f"{name}.delta", **at, "delta": piece} for piece in in_pieces(words)]
        return {**started, "arguments": ""}, [*deltas, {"type": f"{name}.done", **at, "arguments": words}]
    (part,) = item["content"]
    at = {**at, "content_index": 0}
    name = "response.output_text"
    return {**started, "content": []}, [
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *({"type": f"{name}.delta", **at, "delta": piece, "logprobs": []} for piece in in_pieces(part["text"])),
        {"type": f"{name}.done", **at, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
    ]


# --- embeddings and models ---------------------------------------------------------------------------------------------


def embeddings(asked: Asked, answer: Answer) -> Reply:
    """As many vectors as there are inputs; a token of the input is a character, or a number."""
    body = asked.body
    if not body.get("model") or not body.get("input"):
        return refused(400, "you must provide a model and an input")
    given = body["input"]
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    read = OVERHEAD + sum(map(len, inputs))
    usage = laid_over({"prompt_tokens": read, "total_tokens": read}, answer.usage)
    vector = [0.5] * (body.get("dimensions") or 8)
    packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    said = packed if body.get("encoding_format") == "base64" else vector
    data = [{"object": "embedding", "index": index, "embedding": said} for index in range(len(inputs))]
    reply = laid_over({"object": "list", "data": data, "model": body["model"], "usage": usage}, answer.fields)
    return Reply(reply, used=_used(asked, reply, usage))


def models(asked: Asked, names: tuple[str, ...], now: int) -> Reply:
    """The models there are, or one of them."""
    said = [{"id": name, "object": "model", "created": now, "owned_by": "openai"} for name in names]
    if asked.path == "/v1/models":
        return Reply({"object": "list", "data": said})
    wanted = [model for model in said if model["id"] == asked.path.removeprefix("/v1/models/")]
    return Reply(wanted[0]) if wanted else refused(404, "there is no such model")
