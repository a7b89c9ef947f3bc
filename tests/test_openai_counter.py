"""OpenAI's counts: the same as tiktoken's without a network, and honest about all that tiktoken does not know."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import polars as pl
import pytest

import tokenbudget_lab as tbl
from tests.languages import LANGUAGES
from tokenbudget_lab import encodings
from tokenbudget_lab.chat import THE_REPLY
from tokenbudget_lab.errors import CountFailed, EncodingMissing, EndpointUnreachable, InvalidType, InvalidValue

PACKAGE = Path(tbl.__file__).resolve().parent.parent
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "name": "ada", "content": "What is a budget?"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "Its name."}, "unit": {"enum": ["C", "F"]}},
            "required": ["town"],
        },
    },
}
IMAGE = {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]}


def text_of(model: str, text: str) -> int:
    return len(encodings.encoding(tbl.OpenAITokenCounter(model).encoding).encode(text, disallowed_special=()))


# --- texts ---------------------------------------------------------------------------------------------------------------

OFFLINE = """
    import json, socket, statistics, sys, sysconfig
    from pathlib import Path

    def refused(*args, **kwargs):
        raise AssertionError("the network was asked")

    socket.socket.connect = socket.getaddrinfo = socket.create_connection = refused

    import tokenbudget_lab as tbl
    from tests.languages import LANGUAGES
    from tokenbudget_lab.encodings import encoding

    code = [path.read_text(errors="replace") for path in sorted(Path(statistics.__file__).parent.glob("*.py"))]
    texts = {**LANGUAGES, **{f"code {n}": text for n, text in enumerate(code)}, "names": json.dumps(LANGUAGES)}
    told = {}
    for model in ("gpt-5-mini", "gpt-4"):
        for backend in ("tiktoken", "toktok", "auto"):
            counter = tbl.OpenAITokenCounter(model, backend=backend)
            encode = encoding(counter.encoding).encode
            many = counter.count_many_sync(texts.values())
            for (name, text), count in zip(texts.items(), many, strict=True):
                truth = len(encode(text, disallowed_special=()))
                assert count.tokens == truth == counter.count_sync(text).tokens and count.exact, (model, backend, name)
    print(len(LANGUAGES), len(code))
"""


def test_offline_every_document_of_many_languages_and_code_counts_as_tiktoken_counts_it(tmp_path: Path) -> None:
    """In a process of its own, with empty caches, in which any connection fails."""
    path = os.pathsep.join([str(PACKAGE), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        environment[name] = str(tmp_path / "none")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OFFLINE)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    languages, files = map(int, done.stdout.split())
    assert languages >= 45
    assert files >= 100
    assert not list(tmp_path.rglob("*.tiktoken"))


@pytest.mark.parametrize("text", ["", " ", "\0", "\ud800", "<|endoftext|>", "<|im_start|>system\n", "a\r\n\r\nb"])
def test_odd_texts_are_texts(text: str) -> None:
    count = tbl.OpenAITokenCounter("gpt-4o").count_sync(text)
    assert (count.tokens, count.exact, count.note) == (text_of("gpt-4o", text), True, None)


@pytest.mark.parametrize("model", ["gpt-6", "gpt-6-mini", "my-own-model"])
def test_a_model_that_tiktoken_does_not_know_is_counted_in_the_newest_encoding_and_says_so(model: str) -> None:
    count = tbl.OpenAITokenCounter(model).count_sync("What is a budget?" * 10)
    assert count.tokens == text_of("gpt-4o", "What is a budget?" * 10)
    assert (count.exact, count.margin) == (False, 0.1)
    assert count.note == f"assumed: tiktoken does not know {model}"


def test_a_provider_before_the_name_is_passed_over() -> None:
    assert tbl.OpenAITokenCounter("openai/gpt-4").encoding == "cl100k_base"


def test_an_encoding_whose_table_is_not_here_is_named() -> None:
    with pytest.raises(EncodingMissing, match="p50k_base"):
        tbl.OpenAITokenCounter("text-davinci-003").count_sync("hello")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": ""}, InvalidValue),
        ({"model": None}, InvalidType),
        ({"model": "gpt-4o", "backend": "magic"}, InvalidValue),
        ({"model": "gpt-4o", "client": object()}, InvalidType),
    ],
)
def test_what_makes_no_counter_is_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        tbl.OpenAITokenCounter(**arguments)


# --- requests --------------------------------------------------------------------------------------------------------------


def test_messages_have_tokens_around_them() -> None:
    """3 a message, 1 a name, 3 for the reply; roles, names and contents as texts."""
    count = tbl.OpenAITokenCounter("gpt-4o").count_sync(MESSAGES)
    texts = sum(text_of("gpt-4o", text) for text in ("system", "Be brief.", "user", "ada", "What is a budget?"))
    assert (count.tokens, count.exact, count.margin) == (texts + 2 * 3 + 1 + 3, True, 0.0)


def test_a_system_prompt_is_a_message_more() -> None:
    counter = tbl.OpenAITokenCounter("gpt-4o")
    asked = counter.count_sync("What?", system="Be brief.")
    assert asked == counter.count_sync([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}])


def test_messages_of_models_of_which_nothing_is_published_have_a_margin_of_some_tokens() -> None:
    count = tbl.OpenAITokenCounter("gpt-5-mini").count_sync(MESSAGES)
    assert (count.exact, count.upper - count.tokens) == (False, THE_REPLY + 3)


def test_tools_are_an_estimate() -> None:
    counter = tbl.OpenAITokenCounter("gpt-4o")
    bare, count = counter.count_sync(MESSAGES), counter.count_sync(MESSAGES, tools=[TOOL])
    assert 20 < count.tokens - bare.tokens < 80
    assert (count.exact, count.note) == (False, "tools are estimated")
    assert count.upper > count.tokens


def test_tools_of_the_responses_api_are_the_same() -> None:
    counter = tbl.OpenAITokenCounter("gpt-4o")
    flat = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
    assert counter.count_sync("hi", tools=[flat]) == counter.count_sync("hi", tools=[TOOL])


def test_images_are_an_estimate_that_holds_the_smallest_and_the_largest() -> None:
    counter = tbl.OpenAITokenCounter("gpt-4o")
    count, bare = counter.count_sync([IMAGE]), counter.count_sync([{"role": "user", "content": "Who?"}])
    assert not count.exact
    assert count.lower <= bare.tokens + 85
    assert count.upper >= bare.tokens + 1_445


@pytest.mark.parametrize(
    "content",
    [
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": [{"type": "file", "file": {}}]}],
        [{"type": "reasoning", "id": "r1"}],
    ],
)
def test_what_cannot_be_estimated_is_refused_and_not_counted_as_nothing(content: Any) -> None:
    with pytest.raises(CountFailed, match="endpoint=True"):
        tbl.OpenAITokenCounter("gpt-4o").count_sync(content)


@pytest.mark.parametrize("content", [None, 5, b"bytes", {"role": "user"}, ["text"], [{"role": "user", "content": 5}]])
def test_what_is_neither_text_nor_messages_is_refused(content: Any) -> None:
    with pytest.raises(InvalidType, match="content"):
        tbl.OpenAITokenCounter("gpt-4o").count_sync(content)


# --- many ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["tiktoken", "toktok"])
def test_many_are_counted_as_each_by_itself(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and messages mixed, in batches of three."""
    monkeypatch.setattr("tokenbudget_lab.counters.openai._AT_ONCE", 3)
    counter = tbl.OpenAITokenCounter("gpt-4o", backend=backend)
    contents: list[Any] = [*LANGUAGES.values(), MESSAGES, "", [IMAGE], "x" * 100_000]
    each = [counter.count_sync(content) for content in contents]
    assert counter.count_many_sync(contents) == each
    assert asyncio.run(counter.count_many(iter(contents))) == each


def test_a_column_of_a_frame_is_counted() -> None:
    column = pl.Series("prompt", ["one", "one two"])
    assert [int(count) for count in tbl.OpenAITokenCounter("gpt-4o").count_many_sync(column)] == [1, 2]


def test_a_null_of_a_column_is_named_by_its_place() -> None:
    with pytest.raises(InvalidType, match=r"contents\[1\]"):
        tbl.OpenAITokenCounter("gpt-4o").count_many_sync(pl.Series("prompt", ["one", None]))


def test_the_loop_goes_on_while_many_are_counted() -> None:
    async def beats() -> int:
        counting = asyncio.create_task(counter.count_many(["word " * 50_000] * 40))
        beaten = 0
        while not counting.done():
            await asyncio.sleep(0.001)
            beaten += 1
        return beaten

    counter = tbl.OpenAITokenCounter("gpt-4o", backend="tiktoken")
    counter.count_sync("warm")
    assert asyncio.run(beats()) > 20


# --- the endpoint ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked() -> list[Any]:
    return []


@pytest.fixture
def transport(asked: list[Any]) -> httpx2.MockTransport:
    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append((request.url.path, json.loads(request.content)))
        if "refuse" in request.content.decode():
            return httpx2.Response(400, json={"error": {"message": "no such model; key sk-abcdefghijkl"}})
        if "odd" in request.content.decode():
            return httpx2.Response(200, json={"object": "something"})
        return httpx2.Response(200, json={"object": "response.input_tokens", "input_tokens": 42})

    return httpx2.MockTransport(answer)


@pytest.fixture
def client(transport: httpx2.MockTransport) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=transport), max_retries=0) as client:
        yield client


def test_the_endpoint_counts_what_it_would_be_sent(client: openai.OpenAI, asked: list[Any]) -> None:
    """Chat messages become items, tools of Chat become flat."""
    count = tbl.OpenAITokenCounter("gpt-5-mini", client=client).count_sync([IMAGE], tools=[TOOL], system="Be brief.")
    [(path, body)] = asked
    assert (count, path) == (tbl.Count(42, exact=True, method="responses.input_tokens"), "/v1/responses/input_tokens")
    assert body["instructions"] == "Be brief."
    assert [part["type"] for part in body["input"][0]["content"]] == ["input_text", "input_image"]
    assert body["tools"][0]["name"] == "weather"


def test_calls_of_tools_become_items(client: openai.OpenAI, asked: list[Any]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    tbl.OpenAITokenCounter("gpt-5-mini", client=client).count_sync(messages)
    assert [item["type"] for item in asked[0][1]["input"]] == ["function_call", "function_call_output"]


@pytest.mark.parametrize("word", ["refuse", "odd"])
def test_what_the_endpoint_does_not_count_is_an_error_without_keys(client: openai.OpenAI, word: str) -> None:
    with pytest.raises(CountFailed) as failed:
        tbl.OpenAITokenCounter("gpt-5-mini", client=client).count_sync(word)
    assert "sk-abc" not in str(failed.value)


def test_an_endpoint_that_cannot_be_reached_is_named() -> None:
    with (
        openai.OpenAI(api_key="k", base_url="http://127.0.0.1:9/", max_retries=0) as client,
        pytest.raises(EndpointUnreachable, match="no connection"),
    ):
        tbl.OpenAITokenCounter("gpt-5-mini", client=client).count_sync("hello")


def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(CountFailed, match="OPENAI_API_KEY"):
        tbl.OpenAITokenCounter("gpt-5-mini", endpoint=True).count_sync("hello")


def test_async_code_asks_too_also_many_times(transport: httpx2.MockTransport, client: openai.OpenAI) -> None:
    async def ask(make: Callable[[], tbl.OpenAITokenCounter]) -> list[int]:
        counter = make()
        return [int(await counter.count("a")), *map(int, await counter.count_many(["b", "c"]))]

    async def ask_with_its_own() -> list[int]:
        async with openai.AsyncOpenAI(api_key="k", http_client=httpx2.AsyncClient(transport=transport)) as own:
            return await ask(lambda: tbl.OpenAITokenCounter("gpt-5-mini", async_client=own))

    assert asyncio.run(ask(lambda: tbl.OpenAITokenCounter("gpt-5-mini", client=client))) == [42, 42, 42]
    assert asyncio.run(ask_with_its_own()) == [42, 42, 42]


def test_a_failed_one_of_many_is_named_by_its_place(client: openai.OpenAI) -> None:
    with pytest.raises(CountFailed) as failed:
        tbl.OpenAITokenCounter("gpt-5-mini", client=client).count_many_sync(["a", "b", "refuse", "c"])
    assert failed.value.index == 2


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "text": "long " * 1000},
        {"role": "user", "content": [{"type": "text", "content": "long " * 1000}]},
        {"role": "user", "content": [{"type": "text", "text": None}]},
    ],
    ids=["unknown key", "unknown key of a part", "no text"],
)
def test_nothing_of_a_message_is_passed_over(message: dict[str, Any]) -> None:
    """What is under a wrong key would be counted as nothing."""
    with pytest.raises((CountFailed, InvalidType)):
        tbl.OpenAITokenCounter("gpt-4o").count_sync([message])


def test_calls_and_refusals_of_older_replies_are_counted() -> None:
    counter = tbl.OpenAITokenCounter("gpt-4o")
    for part in ({"function_call": {"name": "f", "arguments": "x " * 5000}}, {"refusal": "no " * 5000}):
        assert counter.count_sync([{"role": "assistant", "content": None, **part}]).tokens > 5000
