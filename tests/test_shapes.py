"""Tools, system prompts and messages of odd shapes: each local counter names what is wrong, and quotes nothing."""

from __future__ import annotations

from typing import Any

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab.chat import as_flat, as_items

MODELS = ("gpt-4o", "claude-sonnet-5-5", "gemini-2.5-pro")
SECRET = "my own words"
deep: dict[str, Any] = {}
deep["properties"] = {"again": deep}


def schema(**properties: Any) -> list[dict[str, Any]]:
    return [{"name": "f", "parameters": {"type": "object", "properties": properties}}]


@pytest.fixture(params=MODELS)
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tbl.TokenCounter:
    """A counter of this machine: OpenAI's, and the estimates of Claude and of others."""
    for key in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(key, raising=False)
    return tbl.counter_for(request.param)


ODD_TOOLS = [
    (5, "tools: is int, not a list; give a list of tool definitions"),
    ("abc", "tools: is str, not a list"),
    ({"name": "f"}, "tools: is dict, not a list"),
    ([5], "tools[0]: is int, not a mapping"),
    ([{"name": "f"}, {"function": SECRET}], "tools[1].function: is str, not a mapping"),
    ([{"parameters": SECRET}], "tools[0].parameters: is str, not a mapping"),
    ([{"name": "f", "input_schema": [SECRET]}], "tools[0].input_schema: is list, not a mapping"),
    ([{"name": 5}], "tools[0].name: is int, not a text"),
    ([{"name": "f", "parameters": {"properties": [SECRET]}}], "tools[0].parameters.properties: is list, not a mapping"),
    (schema(a=SECRET), "tools[0].parameters.properties['a']: is str, not a mapping"),
    (schema(a={"enum": 5}), "tools[0].parameters.properties['a'].enum: is int, not a list"),
    (schema(a={"items": {"properties": 5}}), "properties['a'].items.properties: is int, not a mapping"),
    ([{"name": "f", "parameters": {"properties": {"a": {}}, "required": 5}}], "parameters.required: is int, not a list"),
    (schema(a={"enum": [{SECRET}]}), "tools: has set in it, which is no JSON"),
    ([{"name": "f", "parameters": deep}], "tools[0]: is nested too deep, or holds itself"),
]


@pytest.mark.parametrize(("tools", "said"), ODD_TOOLS, ids=[said for _, said in ODD_TOOLS])
def test_an_odd_tool_definition_is_named(counter: tbl.TokenCounter, tools: Any, said: str) -> None:
    """The same by each counter."""
    with pytest.raises(tbl.InvalidValue) as error:
        counter.count_sync("hi", tools=tools)
    assert said in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(("tools", "said"), ODD_TOOLS[:7], ids=[said for _, said in ODD_TOOLS[:7]])
def test_and_by_the_counters_that_would_ask_an_endpoint(tools: Any, said: str) -> None:
    """Nothing is sent."""
    with pytest.raises(tbl.InvalidValue) as error:
        tbl.ClaudeTokenCounter("claude-sonnet-5-5", client=tbl.demo_client()).count_sync("hi", tools=tools)
    assert said in str(error.value)
    with pytest.raises(tbl.InvalidValue):
        as_flat(tools)


def test_usual_tools_are_what_they_were(counter: tbl.TokenCounter) -> None:
    """Of Chat Completions, the Responses API and Anthropic; a schema may be `true`, and a property `required`."""
    usual: tuple[dict[str, Any], ...] = (
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": True, "b": {"required": True}}}}},
        {"type": "function", "name": "f", "description": None, "parameters": {}},
        {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"enum": ["x", None]}}}},
    )
    for tool in usual:
        assert counter.count_sync("hi", tools=[tool]).tokens > counter.count_sync("hi").tokens
    assert counter.count_sync("hi", tools=[]).tokens >= 1


@pytest.mark.parametrize("calls", [5, SECRET, {"a": 1}, [5], [SECRET], [{"function": 5}]], ids=str)
def test_calls_of_tools_are_a_list_of_mappings(counter: tbl.TokenCounter, calls: Any) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    with pytest.raises(tbl.InvalidType, match="tool_calls") as error:
        counter.count_sync([message])
    assert SECRET not in str(error.value)
    with pytest.raises(tbl.InvalidType, match="tool_calls"):
        as_items([message])


def test_a_call_that_is_none_of_a_function_is_not_counted_as_nothing() -> None:
    call = {"id": "call_1", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    with pytest.raises(tbl.CountFailed, match="'custom' cannot be estimated"):
        tbl.OpenAITokenCounter("gpt-4o").count_sync([{"role": "assistant", "content": None, "tool_calls": [call]}])


# --- system prompts ----------------------------------------------------------------------------------------------------------

BLOCKS = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]


def test_a_system_prompt_may_be_blocks_of_text(counter: tbl.TokenCounter) -> None:
    """They count as the same text does."""
    assert counter.count_sync("hi", system=BLOCKS) == counter.count_sync("hi", system="Be brief.")
    plans = [
        tbl.estimate(["hi"], model="gpt-4o", max_output_tokens=1, counter=counter, system=system, progress=False)
        for system in (BLOCKS, "Be brief.")
    ]
    assert plans[0].input_tokens == plans[1].input_tokens


def test_a_system_prompt_may_be_messages(counter: tbl.TokenCounter) -> None:
    message = [{"role": "system", "content": "Be brief."}]
    assert counter.count_sync("hi", system=message) == counter.count_sync("hi", system="Be brief.")


@pytest.mark.parametrize(
    ("system", "said"),
    [
        (5, "system: is int, not a list; give a text, a list of text blocks such as"),
        ({"type": "text", "text": SECRET}, "system: is dict, not a list"),
        (b"my own words", "system: is bytes, not a list"),
        ([SECRET], "system[0]: is str, not a mapping"),
        ([{"text": SECRET}], "system[0]: is neither a block nor one of several messages; give a text"),
        ([*BLOCKS, {"role": "system", "content": SECRET}], "system[1]: is neither a block nor one of several messages"),
        ([{"type": "text", "text": None}], "content.text: is missing"),
    ],
    ids=str,
)
def test_another_system_prompt_is_told_what_is_wanted(counter: tbl.TokenCounter, system: Any, said: str) -> None:
    with pytest.raises(tbl.InvalidType) as error:
        counter.count_sync("hi", system=system)
    assert said in str(error.value)
    assert SECRET not in str(error.value)


# --- parts of messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "text", "text": None}], "content.text: is missing; write an empty text"),
        ([{"type": "text"}], "content.text: is missing"),
        ([{"type": "text", "text": 5}], "content.text: is int, not a text"),
        ([{"text": SECRET}], "content.type: is missing"),
        ([{"type": [SECRET]}], "content.type: is list, not a text"),
        ([None], "content: is NoneType, not a mapping"),
        (None, "content: is missing in a message"),
        (5, "content: is int, not"),
    ],
    ids=str,
)
def test_what_is_missing_is_not_counted_as_nothing(counter: tbl.TokenCounter, content: Any, said: str) -> None:
    """Nor is it quoted; of many it is named by its place."""
    messages = [{"role": "user", "content": content}]
    for count in (lambda: counter.count_sync(messages), lambda: counter.count_many_sync(["a", messages])):
        with pytest.raises(tbl.InvalidType) as error:
            count()
        assert SECRET not in str(error.value)
    assert str(error.value).startswith("contents[1]")
    with pytest.raises(tbl.InvalidType) as error:
        counter.count_sync(messages)
    assert said in str(error.value)
