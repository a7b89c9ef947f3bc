"""The shapes of what is to be counted: tool definitions, system prompts, calls of tools, texts.

What has another shape is an error that names the place and the type it has, never what it says: that may be a prompt. Nothing
of unknown size is passed over, as it would be counted as zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .checks import MAX_TEXT
from .errors import InvalidType, InvalidValue, told

_TOOLS = "give a list of tool definitions, as the provider's API takes them"
_SYSTEM = "give a text, a list of text blocks such as {'type': 'text', 'text': 'Be brief.'}, or a list of messages"
_AROUND = {"role", "name", "type", "id", "status"}  # of a message, and not what it says
_DEEP = "is nested too deep, or holds itself"


def mapping_of(where: str, value: Any) -> Mapping[str, Any]:
    """A mapping, or what an SDK's object sends."""
    if isinstance(value, Mapping):
        return value
    if hasattr(value, "model_dump") and not isinstance(value, type):
        dumped: Mapping[str, Any] = value.model_dump(mode="json", exclude_none=True)
        return dumped
    raise InvalidType(where, f"is {type(value).__name__}, not a mapping")


def list_of(where: str, value: Any, wanted: str = "") -> Sequence[Any]:
    """A list, or another sequence that is no text."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return value
    raise InvalidType(where, f"is {type(value).__name__}, not a list{wanted and f'; {wanted}'}")


def text_in(where: str, value: Any) -> str:
    """A text."""
    if isinstance(value, str):
        return value
    raise InvalidType(where, "is missing; write an empty text" if value is None else f"is {type(value).__name__}, not a text")


def json_of(where: str, value: Any) -> str:
    """A value as it is sent."""

    def default(one: Any) -> dict[str, Any]:
        if hasattr(one, "model_dump") or isinstance(one, Mapping):
            return dict(mapping_of(where, one))
        raise InvalidType(where, f"has {type(one).__name__} in it, which is no JSON")

    try:
        return json.dumps(value, ensure_ascii=False, default=default)
    except InvalidValue:
        raise
    except TypeError:
        raise InvalidType(where, "has a key in it that JSON does not have") from None
    except (ValueError, RecursionError):
        raise InvalidValue(where, _DEEP) from None


def must_say_something(message: Mapping[str, Any]) -> None:
    """Refuse a message without content and without anything in its place, such as calls of tools."""
    if all(message[name] is None for name in message.keys() - _AROUND):
        raise InvalidType("content", "is missing in a message; give it a text, an empty one where nothing is said")


def model_of(model: Any, such_as: str = "gpt-5-mini") -> str:
    """The name of a model, without blanks around it."""
    if not isinstance(model, str):
        raise InvalidType("model", f"{told(model)} is {type(model).__name__}, not the name of a model")
    if not model.strip():
        raise InvalidValue("model", f"it is empty; give a name such as {such_as!r}")
    if len(model) > MAX_TEXT:
        raise InvalidValue("model", f"has {len(model):,} characters, and a name has {MAX_TEXT:,} at most")
    return model.strip()


# --- system prompts and calls of tools ---------------------------------------------------------------------------------------


def system_of(system: Any) -> list[Mapping[str, Any]]:
    """A system prompt as messages: a text or a list of blocks is one message, messages stay as they are.

    Examples:
        >>> system_of([{"type": "text", "text": "Be brief."}])
        [{'role': 'system', 'content': [{'type': 'text', 'text': 'Be brief.'}]}]
    """
    if system is None:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    given = [mapping_of(f"system[{n}]", each) for n, each in enumerate(list_of("system", system, _SYSTEM))]
    if not given or all("role" in each for each in given):
        return given
    for n, each in enumerate(given):
        if "role" in each or not isinstance(each.get("type"), str):
            raise InvalidType(f"system[{n}]", f"is neither a block nor one of several messages; {_SYSTEM}")
    return [{"role": "system", "content": given}]


def calls_in(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The calls of tools in a message of Chat Completions: each has a name and arguments."""
    calls = message.get("tool_calls")
    found = [] if calls is None else [("tool_calls", each) for each in list_of("tool_calls", calls)]
    if message.get("function_call") is not None:
        found.append(("function_call", message["function_call"]))
    mapped = [(name, mapping_of(name, each)) for name, each in found]
    return [each if each.get("function") is None else mapping_of(f"{name}.function", each["function"]) for name, each in mapped]


# --- tools -------------------------------------------------------------------------------------------------------------------


def tools_of(tools: Any) -> list[Mapping[str, Any]]:
    """Tool definitions of any provider, once it is known that they are some.

    Raises:
        InvalidType: a definition, its schema, or a part of that is of a type that none has.
        InvalidValue: a schema without an end.
    """
    found = [mapping_of(f"tools[{n}]", tool) for n, tool in enumerate(list_of("tools", tools, _TOOLS))]
    for n, tool in enumerate(found):
        where = f"tools[{n}]"
        try:
            _check_tool(where, tool)
        except RecursionError:
            raise InvalidValue(where, _DEEP) from None
    return found


def _check_tool(where: str, tool: Mapping[str, Any]) -> None:
    if tool.get("function") is not None:
        where, tool = f"{where}.function", mapping_of(f"{where}.function", tool["function"])
    for name in ("name", "description"):
        if tool.get(name) is not None:
            text_in(f"{where}.{name}", tool[name])
    for name in ("parameters", "input_schema"):
        if tool.get(name) is not None:
            _check_schema(f"{where}.{name}", mapping_of(f"{where}.{name}", tool[name]))


def _check_schema(where: str, schema: Any) -> None:
    """A JSON schema, as far as a count reads it; `true` is one that takes anything."""
    if isinstance(schema, bool):
        return
    schema = mapping_of(where, schema)
    if schema.get("enum") is not None:
        list_of(f"{where}.enum", schema["enum"])
    if schema.get("required") is not None and not isinstance(schema["required"], bool):
        list_of(f"{where}.required", schema["required"])
    if schema.get("items") is not None:
        _check_schema(f"{where}.items", schema["items"])
    if schema.get("properties") is not None:
        for name, each in mapping_of(f"{where}.properties", schema["properties"]).items():
            _check_schema(f"{where}.properties[{told(name, 40)}]", each)
