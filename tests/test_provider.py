"""The provider of the tests itself: both SDKs take what it says for the real thing."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.processes import until
from tests.provider import OVERHEAD, Answer, Provider, apart, failed

CLAUDE, GPT = "claude-sonnet-5-5", "gpt-6-mini"


def test_it_speaks_openais_counts(provider: Provider) -> None:
    with openai.OpenAI() as client:
        counted = client.responses.input_tokens.count(model=GPT, input="How much?", instructions="Be brief.")
    assert (counted.input_tokens, counted.object) == (18 + OVERHEAD, "response.input_tokens")
    assert provider.asked[0].path == "/v1/responses/input_tokens"
    assert provider.asked[0].headers["authorization"] == "Bearer test-key-of-openai"


def test_it_speaks_anthropics_messages(provider: Provider) -> None:
    """At once and streamed, with the same usage."""
    with anthropic.Anthropic() as client:
        ask: list[Any] = [{"role": "user", "content": "How much?"}]
        whole = client.messages.create(model=CLAUDE, max_tokens=50, messages=ask)
        with client.messages.stream(model=CLAUDE, max_tokens=50, messages=ask) as stream:
            streamed = stream.get_final_message()
    assert whole.usage.input_tokens == streamed.usage.input_tokens == 9 + OVERHEAD
    assert whole.usage.output_tokens == streamed.usage.output_tokens
    assert whole.content[0].to_dict()["text"] == streamed.content[0].to_dict()["text"]


def test_it_fails_as_it_is_told_to(provider: Provider) -> None:
    with openai.OpenAI(max_retries=1, timeout=0.3) as client:
        provider.script(failed(429, retry_after=0.2))
        assert client.responses.input_tokens.count(model=GPT, input="a").input_tokens == 1 + OVERHEAD
        first, second = provider.asked
        assert second.at - first.at >= 0.2
        for answer, error in (
            (failed(429), openai.RateLimitError),
            (failed(500), openai.InternalServerError),
            (failed(401), openai.AuthenticationError),
            (Answer(drop="hang up"), openai.APIConnectionError),
            (Answer(drop="cut"), openai.APIConnectionError),
            (Answer(after_s=1.0), openai.APITimeoutError),
        ):
            provider.script(answer)
            with pytest.raises(error):
                client.with_options(max_retries=0).responses.input_tokens.count(model=GPT, input="a")


def test_it_counts_connections_and_knows_who_hung_up(provider: Provider) -> None:
    with openai.OpenAI(max_retries=0, timeout=0.1) as client:
        client.responses.input_tokens.count(model=GPT, input="a")
        client.responses.input_tokens.count(model=GPT, input="b")
        assert (provider.connections, provider.connected, provider.hung_up) == (1, 1, 0)
        with provider.holding(), pytest.raises(openai.APITimeoutError):
            client.responses.input_tokens.count(model=GPT, input="c")
        until(lambda: provider.hung_up == 1)
    until(lambda: provider.connected == 0)
    assert (provider.most_at_work, provider.at_work) == (1, 0)


def test_it_holds_two_hundred_requests_at_the_same_time(provider: Provider) -> None:
    """With a thread for each, and none of them left when it goes away."""
    ask = {"model": CLAUDE, "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}

    async def many() -> list[int]:
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(timeout=30.0, limits=limits, trust_env=False) as http:
            said = [http.post(f"{provider.url}/v1/messages", json=ask) for _ in range(400)]
            with provider.holding():
                tasks = asyncio.gather(*said)
                await asyncio.to_thread(until, lambda: provider.at_work == 200)
            return [response.status_code for response in await tasks]

    before = threading.active_count()
    provider.always(Answer(after_s=0.02))
    assert asyncio.run(many()) == [200] * 400
    assert provider.most_at_work == 200
    assert len({used.id for used in provider.used}) == 400
    until(lambda: threading.active_count() <= before)


def test_it_serves_from_a_process_of_its_own() -> None:
    with apart(after_s=0.05) as url, anthropic.Anthropic(base_url=url, api_key="test-key") as client:
        start = time.monotonic()
        said = client.messages.create(model=CLAUDE, max_tokens=5, messages=[{"role": "user", "content": "How much?"}])
        assert said.usage.input_tokens == 9 + OVERHEAD
        assert time.monotonic() - start >= 0.05
    with pytest.raises(httpx2.ConnectError), httpx2.Client(trust_env=False) as http:
        http.get(url)
