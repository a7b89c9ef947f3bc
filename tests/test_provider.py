"""The provider of the tests itself: both SDKs take what it says for the real thing."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from tests.processes import until
from tests.provider import OVERHEAD, Answer, Provider, failed

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
