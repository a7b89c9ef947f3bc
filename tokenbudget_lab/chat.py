"""What an OpenAI request consists of: texts that are counted, tokens around them, and what can only be guessed.

Messages may be those of Chat Completions or items of the Responses API. OpenAI publishes what stands around a message for its
older chat models; for tools and images it publishes only parts, so these are estimates with a margin. What is neither text,
image nor call is refused: it would be counted as zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .counter import Content, System, Tools
from .errors import CountFailed, InvalidType, told

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
            if not isinstance(text, str):
                raise InvalidType("content", f"of type {type(text).__name__}, not a text")
            self.texts.append(text)


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
    first = () if system is None else messages_of(system, "system")
    for message in (*first, *messages_of(content, "user")):
        _add_message(request, message, model)
    request.around += THE_REPLY
    if not model.startswith(_PUBLISHED) and model != "gpt-4":
        request.slack += THE_REPLY + request.around // A_MESSAGE
        request.note("what stands around messages is published for older models only")
    if tools:
        request.guessed += THE_TOOLS
        request.tools = (definitions(tools),)
        request.note("tools are estimated")
    return request


def messages_of(content: Any, role: str) -> Sequence[Mapping[str, Any]]:
    """A text as one message of a role, messages as they are."""
    if isinstance(content, str):
        return ({"role": role, "content": content},)
    if isinstance(content, bytes | Mapping) or not isinstance(content, Sequence):
        raise InvalidType("content", f"of type {type(content).__name__}, neither a text nor a list of messages")
    messages: Sequence[Mapping[str, Any]] = content
    for each in messages:
        if not isinstance(each, Mapping):
            raise InvalidType("content", f"of type {type(each).__name__}, not a message")
    return messages


def _add_message(request: Request, message: Mapping[str, Any], model: str) -> None:
    kind = message.get("type", "message")
    if kind in {"function_call", "function_call_output"}:
        _add_call(request, message)
        return
    if kind != "message" or "role" not in message:
        raise CountFailed("tiktoken", f"a message of type {told(kind)} cannot be estimated; {_BY_ENDPOINT}")
    request.around += A_MESSAGE
    request.add(message["role"])
    if message.get("name") is not None:
        request.around += A_NAME
        request.add(message["name"])
    for part in _parts(message.get("content")):
        _add_part(request, part, model)
    request.add(message.get("refusal"))
    for call in (*(message.get("tool_calls") or ()), message.get("function_call")):
        if call is not None:
            _add_call(request, call.get("function") or call)
    if unknown := message.keys() - _KNOWN:
        raise CountFailed("tiktoken", f"a message with {told(min(unknown))} cannot be estimated; {_BY_ENDPOINT}")


def _parts(content: Any) -> Sequence[Any]:
    if content is None:
        return ()
    if isinstance(content, str):
        return ({"type": "text", "text": content},)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidType("content", f"of type {type(content).__name__}, neither a text nor a list of parts")
    return content


def _add_part(request: Request, part: Any, model: str) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXTS:
        if not isinstance(part.get("text"), str):
            raise InvalidType("content", "a part of type text has no text")
        request.add(part["text"])
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
    for name in ("name", "arguments", "output"):
        value = call.get(name)
        request.add(value if value is None or isinstance(value, str) else json.dumps(value))
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


def _definition(tool: Any) -> str:
    if not isinstance(tool, Mapping):
        raise InvalidType("tools", f"of type {type(tool).__name__}, not a tool definition")
    told_of = tool.get("function") or tool
    if "name" not in told_of:
        kind = told(tool.get("type"))
        raise CountFailed("tiktoken", f"a tool of type {kind} cannot be estimated; {_BY_ENDPOINT}")
    schema = told_of.get("parameters") or {}
    takes = f"_: {_type(schema)}" if schema.get("properties") else ""
    said = f"// {told_of['description']}\n" if told_of.get("description") else ""
    return f"{said}type {told_of['name']} = ({takes}) => any;"


def _type(schema: Any) -> str:
    """A JSON schema as a type; what is not known to this function stands in it as JSON."""
    if not isinstance(schema, Mapping):
        return json.dumps(schema)
    if "enum" in schema:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return "{\n" + "\n".join(_properties(schema)) + "\n}"
    if kind == "array":
        return f"{_type(schema.get('items', {}))}[]"
    if isinstance(kind, str):
        return "number" if kind == "integer" else kind
    return json.dumps(schema, ensure_ascii=False) if schema else "any"


def _properties(schema: Mapping[str, Any]) -> Iterator[str]:
    needed = schema.get("required") or ()
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
        yield {"role": role, "content": content if isinstance(content, str) else [_as_input(part, role) for part in content]}
    for call in message.get("tool_calls") or ():
        yield {"type": "function_call", "call_id": call.get("id"), **call["function"]}


def _as_input(part: Any, role: str) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return {"type": "output_text" if role == "assistant" else "input_text", "text": part["text"]}
    if kind == "image_url":
        given = part["image_url"]
        given = given if isinstance(given, Mapping) else {"url": given}
        return {"type": "input_image", "image_url": given["url"], "detail": given.get("detail", "auto")}
    return part


def as_flat(tools: Tools) -> list[Mapping[str, Any]]:
    """Tool definitions of Chat Completions as those of the Responses API; such as they are."""
    return [{"type": "function", **tool["function"]} if "function" in tool else tool for tool in tools]
