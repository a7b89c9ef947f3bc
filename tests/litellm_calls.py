"""LiteLLM under a budget: the real LiteLLM against a server that speaks the protocols.

It is run by `test_instrument_litellm.py` in a process of its own: LiteLLM keeps clients open that nobody can close.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.provider import Answer, Provider, failed
from tests.settling import priced, settled, usd

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm as _litellm

litellm: Any = _litellm  # it does not say what it exports
pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM's own, of which it has many
STORE = "memory"
ASK: list[Any] = [{"role": "user", "content": "What is a budget?"}]
GPT, CLAUDE = "openai/gpt-5-mini", "anthropic/claude-sonnet-5-5"


def place(provider: Provider, model: str) -> dict[str, Any]:
    """Where a model is asked for, instead of at its provider's."""
    bare = "" if model == CLAUDE or "gemini" in model else "/v1"
    return {"model": model, "api_base": provider.url + bare, "api_key": "k"}


def ask(under: Any, provider: Provider, model: str, *, way: str = "at once", **more: Any) -> Any:
    """A completion in one of four ways; of a stream its pieces."""
    said = {**place(provider, model), "messages": ASK, "max_tokens": 64, **more}

    async def asked() -> Any:
        if way == "async":
            return await under.acompletion(**said)
        return [piece async for piece in await under.acompletion(**said, stream=True)]

    if "async" in way:
        return asyncio.run(asked())
    return list(under.completion(**said, stream=True)) if way == "streamed" else under.completion(**said)


WAYS = pytest.mark.parametrize("way", ["at once", "streamed", "async", "async streamed"])
MODELS = pytest.mark.parametrize(("model", "seller", "flavor"), [(GPT, "openai", "chat"), (CLAUDE, "anthropic", "default")])


@WAYS
@MODELS
def test_a_call_costs_what_the_catalogue_says_of_what_the_provider_said(
    study: tbl.Budget, log: Any, provider: Provider, way: str, model: str, seller: str, flavor: str
) -> None:
    assert ask(tbl.instrument(litellm, study, tags={"a": "b"}), provider, model, way=way)
    committed = settled(log, 1)[0]
    assert (committed.basis, committed.model) == ("measured", model.partition("/")[2])
    assert usd(committed) == priced(provider.used[0], seller, flavor)
    assert dict(log.last("reserved").tags) == {"a": "b"}


TRIED = [
    GPT, CLAUDE, "gemini/gemini-2.5-flash", "groq/llama-3.3-70b-versatile", "mistral/mistral-large-latest",
    "deepseek/deepseek-chat", "xai/grok-4", "together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "openrouter/openai/gpt-5-mini", "hosted_vllm/gpt-5-mini", "fireworks_ai/accounts/fireworks/models/gpt-oss-120b",
    "perplexity/sonar", "cerebras/gpt-oss-120b",
]  # fmt: skip


@WAYS
@pytest.mark.parametrize("model", TRIED)
def test_a_refusal_reaches_the_caller_as_it_is_and_nothing_is_sent(
    ledger: tbl.Ledger, provider: Provider, way: str, model: str
) -> None:
    poor = ledger.budget("poor", tokens=1)
    with pytest.raises(tbl.BudgetExceeded):
        ask(tbl.instrument(litellm, poor), provider, model, way=way)
    assert not provider.connections


@pytest.mark.parametrize(
    "model", ["cohere_chat/command-r", "ollama/qwen", "azure/gpt-5-mini", "bedrock/x", "openai/responses/gpt-5"]
)
def test_a_provider_whose_client_is_not_known_is_refused(study: tbl.Budget, provider: Provider, model: str) -> None:
    with pytest.raises(tbl.NotMetered, match="by which client"):
        ask(tbl.instrument(litellm, study), provider, model)
    assert not provider.connections


@pytest.mark.parametrize("name", ["image_generation", "speech", "responses", "text_completion", "Router", "batch_completion"])
def test_what_is_not_metered_is_refused(study: tbl.Budget, name: str) -> None:
    with pytest.raises(tbl.NotMetered, match=name):
        getattr(tbl.instrument(litellm, study), name)


@pytest.mark.parametrize("past", [{"fallbacks": [CLAUDE]}, {"client": object()}, {"model_list": [{}]}])
def test_what_would_go_past_the_budget_is_refused(study: tbl.Budget, provider: Provider, past: dict[str, Any]) -> None:
    with pytest.raises(tbl.InvalidValue, match=next(iter(past))):
        ask(tbl.instrument(litellm, study), provider, GPT, **past)
    assert not provider.connections


def test_what_asks_no_model_is_litellms_own(study: tbl.Budget) -> None:
    under = tbl.instrument(litellm, study)
    assert under.token_counter(model="gpt-5-mini", text="Hi") > 0
    assert under.RateLimitError is litellm.RateLimitError


def test_each_attempt_has_a_reservation_of_its_own(study: tbl.Budget, log: Any, provider: Provider) -> None:
    provider.script(failed(500, retry_after=0.01))
    ask(tbl.instrument(litellm, study), provider, GPT, max_retries=1)
    assert [event.kind for event in settled(log, 2)] == ["rolled_back", "committed"]


def test_embeddings_are_metered(study: tbl.Budget, log: Any, provider: Provider) -> None:
    tbl.instrument(litellm, study).embedding(**place(provider, "openai/text-embedding-3-small"), input=["tea"])
    assert usd(settled(log, 1)[0]) == priced(provider.used[0])


def test_instrumenting_again_replaces_the_budget_and_tags_are_added(ledger: tbl.Ledger, log: Any, provider: Provider) -> None:
    first, second = ledger.budget("first", usd=1), ledger.budget("second", usd=1)
    under = tbl.instrument(tbl.instrument(litellm, first), second)
    ask(tbl.tagged(under, item="q7"), provider, GPT)
    assert dict(log.last("reserved").tags) == {"item": "q7"}
    settled(log, 1)
    assert (first.balance.committed_requests, second.balance.committed_requests) == (0, 1)


def test_a_call_that_went_past_its_client_warns_and_the_next_is_refused(study: tbl.Budget, provider: Provider) -> None:
    """As a later LiteLLM may do, that sends to a provider in another way."""
    under = tbl.instrument(litellm, study)
    under._client = lambda *_: None
    provider.script(Answer())
    with pytest.warns(RuntimeWarning, match="past the budget"):
        ask(under, provider, GPT)
    with pytest.raises(tbl.NotMetered):
        ask(under, provider, GPT)
    assert len(provider.asked) == 1
