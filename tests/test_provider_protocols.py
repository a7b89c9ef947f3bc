"""The protocols of the tests' provider: what both SDKs, sync and async, at once and streamed, read in what it says."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import openai
import pytest

from tests.provider import OVERHEAD, Answer, Provider

CLAUDE, GPT = "claude-sonnet-5-5", "gpt-6-mini"
ASK: Any = [{"role": "user", "content": "How much?"}]
READ = 9 + OVERHEAD
THOUGHT, SAID = {"type": "thinking", "thinking": "Say both.", "signature": "s"}, {"type": "text", "text": "Both."}
CALL = {"type": "tool_use", "name": "price", "input": {"of": "tea", "in": ["€", 1]}}


def claude(way: str, **more: Any) -> Any:
    """A message, asked for in one of the ways the SDK has."""
    ask = {"model": CLAUDE, "max_tokens": 500, "messages": ASK, **more}

    def at_once() -> Any:
        with anthropic.Anthropic() as client:
            return client.messages.create(**ask)

    def beta() -> Any:
        with anthropic.Anthropic() as client:
            return client.beta.messages.create(**ask)

    def streamed() -> Any:
        with anthropic.Anthropic() as client, client.messages.stream(**ask) as stream:
            return stream.get_final_message()

    def beta_streamed() -> Any:
        with anthropic.Anthropic() as client, client.beta.messages.stream(**ask) as stream:
            return stream.get_final_message()

    async def async_at_once() -> Any:
        async with anthropic.AsyncAnthropic() as client:
            return await client.messages.create(**ask)

    async def async_streamed() -> Any:
        async with anthropic.AsyncAnthropic() as client, client.messages.stream(**ask) as stream:
            return await stream.get_final_message()

    coroutines = {"async": async_at_once, "async streamed": async_streamed}
    if way in coroutines:
        return asyncio.run(coroutines[way]())
    return {"at once": at_once, "beta": beta, "streamed": streamed, "beta streamed": beta_streamed}[way]()


@pytest.mark.parametrize("way", ["at once", "streamed", "beta", "beta streamed", "async", "async streamed"])
def test_a_message_has_the_usage_that_a_test_wants(provider: Provider, way: str) -> None:
    """Cache writes are the sum of their kinds, and output includes thinking."""
    provider.script(
        Answer(
            blocks=[THOUGHT, SAID, CALL],
            usage={
                "cache_read_input_tokens": 100,
                "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 3},
                "output_tokens_details": {"thinking_tokens": 40},
                "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
                "service_tier": "priority",
                "speed": "fast",
            },
        )
    )
    message = claude(way)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (READ, 100, 23)
    assert (usage.cache_creation.ephemeral_5m_input_tokens, usage.cache_creation.ephemeral_1h_input_tokens) == (20, 3)
    assert usage.output_tokens_details.thinking_tokens == 40 < usage.output_tokens
    assert (usage.server_tool_use.web_search_requests, usage.service_tier, usage.speed) == (2, "priority", "fast")
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert (message.content[1].text, message.content[2].input, message.stop_reason) == ("Both.", CALL["input"], "tool_use")
    (used,) = provider.used
    assert (used.path, used.id, used.model) == ("/v1/messages", message.id, CLAUDE)
    assert used.usage["output_tokens"] == usage.output_tokens
    assert used.terms == {"service_tier": "priority", "speed": "fast"}


def chat(way: str, **more: Any) -> Any:
    """A chat completion as a whole, however it came."""
    ask = {"model": GPT, "messages": ASK, **more}
    counted = {**ask, "stream_options": {"include_usage": True}}

    def at_once() -> Any:
        with openai.OpenAI() as client:
            return client.chat.completions.create(**ask)

    def streamed() -> Any:
        with openai.OpenAI() as client, client.chat.completions.stream(**counted) as stream:
            return stream.get_final_completion()

    async def async_at_once() -> Any:
        async with openai.AsyncOpenAI() as client:
            return await client.chat.completions.create(**ask)

    async def async_streamed() -> Any:
        async with openai.AsyncOpenAI() as client, client.chat.completions.stream(**counted) as stream:
            return await stream.get_final_completion()

    coroutines = {"async": async_at_once, "async streamed": async_streamed}
    return asyncio.run(coroutines[way]()) if way in coroutines else {"at once": at_once, "streamed": streamed}[way]()


@pytest.mark.parametrize("way", ["at once", "streamed", "async", "async streamed"])
def test_a_chat_completion_has_the_usage_that_a_test_wants(provider: Provider, way: str) -> None:
    """Details are parts: of the prompt, and of the completion."""
    usage = {"prompt_tokens_details": {"cached_tokens": 64}, "completion_tokens_details": {"reasoning_tokens": 10}}
    provider.script(Answer(blocks=[SAID, CALL], usage=usage))
    completion = chat(way, n=2, service_tier="flex")
    assert completion.usage.prompt_tokens == READ + 64
    assert completion.usage.completion_tokens > 10
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.usage.prompt_tokens_details.cached_tokens == 64
    assert completion.usage.completion_tokens_details.reasoning_tokens == 10
    assert completion.service_tier == "flex"
    for choice in completion.choices:
        assert (choice.message.content, choice.finish_reason) == ("Both.", "tool_calls")
        assert choice.message.tool_calls[0].function.name == "price"
    (used,) = provider.used
    assert (used.id, used.usage, used.terms) == (completion.id, completion.usage.to_dict(), {"service_tier": "flex"})


@pytest.mark.parametrize("wanted", [True, False])
def test_a_chat_stream_says_its_usage_only_where_it_is_wanted(provider: Provider, wanted: bool) -> None:  # noqa: FBT001
    """And then every chunk but the last says `null`, and the last has no choices."""
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if wanted else {}
    with openai.OpenAI() as client, client.chat.completions.create(model=GPT, messages=ASK, stream=True, **more) as stream:
        chunks = [chunk.to_dict() for chunk in stream]
    assert ["usage" in chunk for chunk in chunks] == [wanted] * len(chunks)
    assert [chunk.get("usage") for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    (used,) = provider.used
    assert not wanted or (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], used.usage)


def responded(way: str, **more: Any) -> Any:
    """A response as a whole, from the last event where it is streamed."""
    ask = {"model": GPT, "input": "How much?", **more}

    def at_once() -> Any:
        with openai.OpenAI() as client:
            return client.responses.create(**ask)

    def streamed() -> Any:
        with openai.OpenAI() as client, client.responses.create(**ask, stream=True) as stream:
            return list(stream)[-1].response

    async def async_at_once() -> Any:
        async with openai.AsyncOpenAI() as client:
            return await client.responses.create(**ask)

    async def async_streamed() -> Any:
        async with openai.AsyncOpenAI() as client, await client.responses.create(**ask, stream=True) as stream:
            return [event async for event in stream][-1].response

    coroutines = {"async": async_at_once, "async streamed": async_streamed}
    return asyncio.run(coroutines[way]()) if way in coroutines else {"at once": at_once, "streamed": streamed}[way]()


@pytest.mark.parametrize("way", ["at once", "streamed", "async", "async streamed"])
@pytest.mark.parametrize(
    ("reason", "status"), [(None, "completed"), ("max_output_tokens", "incomplete"), ("content_filter", "incomplete")]
)
def test_a_response_has_the_usage_that_a_test_wants(provider: Provider, way: str, reason: str | None, status: str) -> None:
    usage = {"input_tokens_details": {"cached_tokens": 64}, "output_tokens_details": {"reasoning_tokens": 10}}
    provider.script(Answer(blocks=[THOUGHT, SAID, CALL], usage=usage, stop_reason=reason))
    response = responded(way, service_tier="priority")
    assert (response.status, response.output_text, response.service_tier) == (status, "Both.", "priority")
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.usage.input_tokens == READ + 64
    assert response.usage.output_tokens > response.usage.output_tokens_details.reasoning_tokens == 10
    (used,) = provider.used
    assert (used.id, used.usage) == (response.id, response.usage.to_dict())


@pytest.mark.parametrize("way", ["at once", "streamed", "async", "async streamed"])
def test_a_response_that_failed_says_no_usage(provider: Provider, way: str) -> None:
    provider.script(Answer(stop_reason="failed"))
    response = responded(way)
    assert (response.status, response.usage, response.error.code) == ("failed", None, "server_error")
    assert not provider.used


def test_the_sdks_helper_takes_a_streamed_response_for_the_real_thing(provider: Provider) -> None:
    provider.script(Answer(blocks=[SAID, CALL]))
    with openai.OpenAI() as client, client.responses.stream(model=GPT, input="How much?") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "Both."
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


@pytest.mark.parametrize("given", ["How much?", ["How", " much?"], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_embeddings_are_as_many_as_their_inputs(provider: Provider, given: Any) -> None:
    async def asked() -> Any:
        async with openai.AsyncOpenAI() as client:
            return await client.embeddings.create(model="text-embedding-3-small", input=given, encoding_format="float")

    with openai.OpenAI() as client:
        for said in (client.embeddings.create(model="text-embedding-3-small", input=given), asyncio.run(asked())):
            assert (said.usage.prompt_tokens, said.usage.total_tokens) == (READ, READ)
            assert said.data[0].embedding == [0.5] * 8
            assert len(said.data) == (2 if given == ["How", " much?"] else 1)


def test_models_are_listed(provider: Provider) -> None:
    with openai.OpenAI() as client:
        assert GPT in [model.id for model in client.models.list()]
        assert client.models.retrieve(GPT).id == GPT


def test_a_hook_answers_by_what_was_asked(provider: Provider) -> None:
    """The script goes first, what is always said last."""
    provider.reply = lambda asked: Answer(text="One.") if asked.body.get("metadata", {}).get("user_id") == "1" else None
    provider.script(Answer(text="Scripted."))
    provider.always(Answer(text="Always."))
    said = [claude("at once", metadata={"user_id": user}).content[0].text for user in ("1", "1", "2")]
    assert said == ["Scripted.", "One.", "Always."]


@pytest.mark.parametrize("way", ["at once", "async"])
def test_a_reply_may_say_another_model_and_no_usage(provider: Provider, way: str) -> None:
    """What it used is known all the same."""
    provider.always(Answer(fields={"usage": ..., "model": "another"}))
    for said in (claude(way), chat(way), responded(way)):
        assert (said.model, getattr(said, "usage", None)) == ("another", None)
    with openai.OpenAI() as client:
        chunks = list(client.chat.completions.create(model=GPT, messages=ASK, stream=True))
        events = list(client.responses.create(model=GPT, input="How much?", stream=True))
    with anthropic.Anthropic() as client:
        started, *_ = client.messages.create(model=CLAUDE, max_tokens=9, messages=ASK, stream=True)
    assert (chunks[-1].usage, events[-1].to_dict()["response"].get("usage")) == (None, None)  # type: ignore[attr-defined]
    assert "usage" not in started.to_dict()["message"]  # type: ignore[operator]
    assert [used.model for used in provider.used] == ["another"] * 6
    assert all(used.usage for used in provider.used)
