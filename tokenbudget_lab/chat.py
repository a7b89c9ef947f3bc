"""What an OpenAI request consists of: texts that are counted, tokens around them, and what can only be guessed.

Messages may be those of Chat Completions or items of the Responses API. OpenAI publishes what stands around a message for its
older chat models; for tools and images it publishes only parts, so these are estimates with a margin. What is neither text,
image nor call is refused: it would be counted as zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from .counter import Content, System, Tools
from .errors import CountFailed, InvalidType, told
from .shapes import calls_in, json_of, list_of, mapping_of, must_say_something, system_of, text_in, tools_of

A_MESSAGE, A_NAME, THE_REPLY = 3, 1, 3
A_CALL = 4  # around a tool call's name and arguments
THE_TOOLS = 12  # around all tool definitions
UNSURE_OF_TOOLS = 0.2
# Models for which OpenAI has published the tokens around a message; newer ones differ by some of them.
_PUBLISHED = ("gpt-3.5", "gpt-35", "gpt-4-", "gpt-4o", "chatgpt-4o")
# (tokens of an image in low detail, most tokens of one), the first prefix that fits; from OpenAI's guide to images and vision.
_IMAGES = (
    ("gpt-4o-mini", 2833, 48_169),
    ("gpt-4.1-mini", 70, 2_489),
    ("gpt-4.1-nano", 70, 3_779),
    ("gpt-5-mini", 70, 2_489),
    ("gpt-5-nano", 70, 3_779),
    ("o4-mini", 70, 2_642),
    ("gpt-4", 85, 1_445),
    ("gpt-5", 70, 1_190),
    ("o1", 75, 1_275),
    ("o3", 75, 1_275),
    ("", 70, 3_779),
)
_TEXTS = ("text", "input_text", "output_text", "summary_text")
_BY_ENDPOINT = "only the endpoint counts it: OpenAITokenCounter(model, endpoint=True)"


@dataclass(slots=True)
class Request:
    """The parts of a request.

    Args:
        texts: what is counted as text.
        around: tokens that are known to stand around the texts.
        guessed: the best estimate of the rest.
        slack: how many tokens the estimates may be off.
        tools: texts that are counted too, and estimate what the tool definitions come to.
        notes: what was estimated.
    """

    texts: list[str] = field(default_factory=list)
    around: int = 0
    guessed: int = 0
    slack: int = 0
    tools: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counted(self) -> list[str]:
        """All that is counted as text."""
        return [*self.texts, *self.tools] if self.tools else self.texts

    @property
    def plain(self) -> bool:
        """Whether it is one text, and nothing else."""
        return not (self.around or self.guessed or self.slack or self.tools or self.notes) and len(self.texts) == 1

    def note(self, text: str) -> None:
        """What was estimated, said once."""
        if text not in self.notes:
            self.notes += (text,)

    def add(self, text: Any) -> None:
        """One more text; what is absent adds nothing."""
        if text is not None:
            self.texts.append(text_in("content", text))


_KNOWN = {
    "role", "name", "content", "tool_calls", "function_call", "refusal", "type", "id", "status", "tool_call_id", "annotations",
}  # fmt: skip


def request_of(content: Content, *, tools: Tools | None, system: System | None, model: str) -> Request:
    """Take a request apart. A text by itself, without tools and system prompt, is that text and nothing around it.

    Raises:
        InvalidType: the content is neither text nor messages.
        CountFailed: there is audio, a file, or another thing in it that cannot be estimated.
    """
    request = Request()
    if isinstance(content, str) and tools is None and system is None:
        request.add(content)
        return request
    for message in (*system_of(system), *messages_of(content)):
        _add_message(request, message, model)
    request.around += THE_REPLY
    if not model.startswith(_PUBLISHED) and model != "gpt-4":
        request.slack += THE_REPLY + request.around // A_MESSAGE
        request.note("what stands around messages is published for older models only")
    if tools is not None and (said := tools_of(tools)):
        request.guessed += THE_TOOLS
        request.tools = (definitions(said),)
        request.note("tools are estimated")
    return request


def messages_of(content: Any) -> Sequence[Mapping[str, Any]]:
    """A text as one message of the user, messages as they are."""
    if isinstance(content, str):
        return ({"role": "user", "content": content},)
    if isinstance(content, bytes | bytearray | memoryview | Mapping) or not isinstance(content, Sequence):
        raise InvalidType("content", f"is {type(content).__name__}, neither a text nor a list of messages")
    messages: Sequence[Mapping[str, Any]] = content
    for each in messages:
        if not isinstance(each, Mapping):
            raise InvalidType("content", f"has {type(each).__name__} in it, where a message is a mapping")
    return messages


def _add_message(request: Request, message: Mapping[str, Any], model: str) -> None:
    kind = message.get("type", "message")
    if kind in {"function_call", "function_call_output"}:
        _add_call(request, message)
        return
    if kind != "message" or "role" not in message:
        raise CountFailed("tiktoken", f"a message of type {told(kind)} cannot be estimated; {_BY_ENDPOINT}")
    must_say_something(message)
    request.around += A_MESSAGE
    request.add(text_in("role", message["role"]))
    if message.get("name") is not None:
        request.around += A_NAME
        request.add(message["name"])
    for part in _parts(message.get("content")):
        _add_part(request, part, model)
    request.add(message.get("refusal"))
    for call in calls_in(message):
        _add_call(request, call)
    if unknown := message.keys() - _KNOWN:
        raise CountFailed("tiktoken", f"a message with {told(min(unknown, key=str))} cannot be estimated; {_BY_ENDPOINT}")


def _parts(content: Any) -> Sequence[Any]:
    if content is None:
        return ()
    if isinstance(content, str):
        return ({"type": "text", "text": content},)
    return list_of("content", content, "a message has a text or a list of parts")


def _add_part(request: Request, part: Any, model: str) -> None:
    part = mapping_of("content", part)
    kind = text_in("content.type", part.get("type"))
    if kind in _TEXTS:
        request.add(text_in("content.text", part.get("text")))
    elif kind == "refusal":
        request.add(part.get("refusal"))
    elif kind in {"image_url", "input_image"}:
        _add_image(request, part, model)
    else:
        raise CountFailed("tiktoken", f"a part of type {told(kind)} cannot be estimated; {_BY_ENDPOINT}")


def _add_image(request: Request, part: Mapping[str, Any], model: str) -> None:
    """Small or large, an image is between low detail and the most that one can come to."""
    least, most = next((least, most) for prefix, least, most in _IMAGES if model.startswith(prefix))
    given = part.get("image_url")
    detail = given.get("detail") if isinstance(given, Mapping) else part.get("detail")
    request.guessed += least if detail == "low" else (least + most) // 2
    request.slack += least // 5 if detail == "low" else (most - least + 1) // 2
    request.note("images are estimated")


def _add_call(request: Request, call: Mapping[str, Any]) -> None:
    """A call of a tool, or its result."""
    parts = [call[name] for name in ("name", "arguments", "output") if call.get(name) is not None]
    if not parts:
        raise CountFailed("tiktoken", f"a call of {told(call.get('type'))} cannot be estimated; {_BY_ENDPOINT}")
    for part in parts:
        request.add(part if isinstance(part, str) else json_of("arguments", part))
    request.guessed += A_CALL
    request.slack += A_CALL
    request.note("tool calls are estimated")


# --- tools -------------------------------------------------------------------------------------------------------------------


def definitions(tools: Tools) -> str:
    """Tool definitions as models are shown them: about as TypeScript has them.

    Examples:
        >>> print(definitions([{"type": "function", "function": {"name": "now", "description": "The time."}}]))
        namespace functions {
        // The time.
        type now = () => any;
        }
    """
    return "\n".join(("namespace functions {", *(_definition(tool) for tool in tools), "}"))


def _definition(tool: Mapping[str, Any]) -> str:
    told_of = tool.get("function") or tool
    if not told_of.get("name"):
        kind = told(tool.get("type"))
        raise CountFailed("tiktoken", f"a tool of type {kind} cannot be estimated; {_BY_ENDPOINT}")
    schema = told_of.get("parameters") or {}
    takes = f"_: {_type(schema)}" if schema.get("properties") else ""
    said = f"// {told_of['description']}\n" if told_of.get("description") else ""
    return f"{said}type {told_of['name']} = ({takes}) => any;"


def _type(schema: Any) -> str:
    """A JSON schema as a type; what is not known to this function stands in it as JSON."""
    if not isinstance(schema, Mapping):
        return json_of("tools", schema)
    if schema.get("enum") is not None:
        return " | ".join(json_of("tools", value) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return "{\n" + "\n".join(_properties(schema)) + "\n}"
    if kind == "array":
        return f"{_type(schema.get('items', {}))}[]"
    if isinstance(kind, str):
        return "number" if kind == "integer" else kind
    return json_of("tools", schema) if schema else "any"


def _properties(schema: Mapping[str, Any]) -> Iterator[str]:
    needed = schema.get("required")
    needed = needed if isinstance(needed, Sequence) else ()
    for name, of in (schema.get("properties") or {}).items():
        if isinstance(of, Mapping) and of.get("description"):
            yield f"// {of['description']}"
        yield f"{name}{'' if name in needed else '?'}: {_type(of)},"


# --- for the endpoint ---------------------------------------------------------------------------------------------------------


def as_items(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages of Chat Completions as items of the Responses API; such items as they are."""
    return [item for message in messages for item in _items(message)]


def _items(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "role" not in message:
        yield message
        return
    content, role = message.get("content"), message["role"]
    if role == "tool":
        yield {"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": content}
        return
    if content:
        parts = content if isinstance(content, str) else [_as_input(part, role) for part in _parts(content)]
        yield {"role": role, "content": parts}
    calls = calls_in(message)
    ids = (call.get("id") for call in message.get("tool_calls") or ())
    yield from ({"type": "function_call", "call_id": id, **call} for id, call in zip_longest(ids, calls))


def _as_input(part: Any, role: str) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return {"type": "output_text" if role == "assistant" else "input_text", "text": text_in("text", part.get("text"))}
    if kind == "image_url":
        given = part.get("image_url")
        given = given if isinstance(given, Mapping) else {"url": given}
        return {"type": "input_image", "image_url": text_in("url", given.get("url")), "detail": given.get("detail", "auto")}
    return part


def as_flat(tools: Tools) -> list[Mapping[str, Any]]:
    """Tool definitions of Chat Completions as those of the Responses API; such as they are."""
    return [{"type": "function", **tool["function"]} if tool.get("function") else tool for tool in tools_of(tools)]
