"""Usage out of the bodies that providers answer with: normalised once, checked, and never zero because it was not known."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import anthropic.types
import anthropic.types.beta
import pytest
from genai_prices import data_snapshot, extract_usage

import tokenbudget_lab as tbl
from tokenbudget_lab.reported import Reported
from tokenbudget_lab.terms import Terms

NOVEMBER = datetime(2026, 11, 20, 12, tzinfo=UTC)


def message(**usage: Any) -> dict[str, Any]:
    """A reply of Anthropic's."""
    told = {"input_tokens": 100, "output_tokens": 50, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, **usage}
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": told,
    }


def chat(**usage: Any) -> dict[str, Any]:
    """A reply of OpenAI's chat completions."""
    told = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150, **usage}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop", "logprobs": None}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5", "choices": [choice], "usage": told}


def response(**usage: Any) -> dict[str, Any]:
    """A reply of OpenAI's responses."""
    told = {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 50,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 150,
        **usage,
    }
    return {"id": "resp_1", "object": "response", "status": "completed", "model": "gpt-5", "output": [], "usage": told}


CACHED = {"cache_read_input_tokens": 4_000, "cache_creation_input_tokens": 5_000}
SPLIT = {"cache_creation": {"ephemeral_5m_input_tokens": 3_000, "ephemeral_1h_input_tokens": 2_000}}
GOOGLE = {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120}
XAI = {
    "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 150,
    "completion_tokens_details": {"reasoning_tokens": 30},
    "prompt_tokens_details": {"cached_tokens": 60},
}  # fmt: skip
BODIES: list[tuple[str, str, dict[str, Any], tbl.Usage]] = [
    ("anthropic", "default", message(), tbl.Usage(100, 50)),
    ("anthropic", "default", message(**CACHED), tbl.Usage(9_100, 50, 4_000, 5_000)),
    ("anthropic", "default", message(**CACHED, **SPLIT), tbl.Usage(9_100, 50, 4_000, 3_000, 2_000)),
    ("anthropic", "default", message(output_tokens_details={"thinking_tokens": 40}), tbl.Usage(100, 50, reasoning_tokens=40)),
    ("anthropic", "default", message(server_tool_use={"web_search_requests": 3}), tbl.Usage(100, 50, web_searches=3)),
    ("openai", "chat", chat(), tbl.Usage(100, 50)),
    (
        "openai", "chat",
        chat(prompt_tokens_details={"cached_tokens": 60, "audio_tokens": 0, "cache_write_tokens": 20},
             completion_tokens_details={"reasoning_tokens": 40, "audio_tokens": 0}),
        tbl.Usage(100, 50, 60, 20, reasoning_tokens=40),
    ),
    ("openai", "responses", response(), tbl.Usage(100, 50)),
    (
        "openai", "responses",
        response(input_tokens_details={"cached_tokens": 60, "cache_write_tokens": 20},
                 output_tokens_details={"reasoning_tokens": 40}),
        tbl.Usage(100, 50, 60, 20, reasoning_tokens=40),
    ),
    ("openai", "embeddings", {"usage": {"prompt_tokens": 8, "total_tokens": 8}}, tbl.Usage(8, 0)),
    ("google", "default", {"modelVersion": "gemini-2.5-flash", "usageMetadata": GOOGLE}, tbl.Usage(100, 20)),
    (
        "google", "default",
        {"modelVersion": "gemini-2.5-pro", "responseId": "r-1", "usageMetadata": {
            "promptTokenCount": 100, "cachedContentTokenCount": 60, "candidatesTokenCount": 20, "thoughtsTokenCount": 30,
            "toolUsePromptTokenCount": 7, "totalTokenCount": 157,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}],
            "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 20}],
        }},
        tbl.Usage(107, 50, 60, reasoning_tokens=30),
    ),
    ("google", "anthropic", message(**CACHED, **SPLIT), tbl.Usage(9_100, 50, 4_000, 3_000, 2_000)),
    ("google", "chat", {"model": "gemini-2.5-flash", "usage": chat()["usage"]}, tbl.Usage(100, 50)),
    (
        "aws", "default",
        {"usage": {"inputTokens": 100, "outputTokens": 50, "totalTokens": 9_150,
                   "cacheReadInputTokens": 4_000, "cacheWriteInputTokens": 5_000,
                   "cacheDetails": [{"ttl": "5m", "inputTokens": 3_000}, {"ttl": "1h", "inputTokens": 2_000}]}},
        tbl.Usage(9_100, 50, 4_000, 3_000, 2_000),
    ),
    ("aws", "anthropic", message(**CACHED), tbl.Usage(9_100, 50, 4_000, 5_000)),
    ("azure", "chat", chat(), tbl.Usage(100, 50)),
    ("azure", "responses", response(), tbl.Usage(100, 50)),
    ("mistral", "default", {"model": "mistral-large-2512", "usage": chat()["usage"]}, tbl.Usage(100, 50)),
    (
        "groq", "default",
        {"model": "openai/gpt-oss-20b", "service_tier": "on_demand",
         "usage": {**chat()["usage"], "queue_time": 0.1, "prompt_tokens_details": {"cached_tokens": 60}}},
        tbl.Usage(100, 50, 60),
    ),
    ("deepseek", "chat", {"model": "deepseek-chat", "usage": chat()["usage"]}, tbl.Usage(100, 50)),
    ("x-ai", "chat", {"model": "grok-4.3", "usage": XAI}, tbl.Usage(100, 50, 60, reasoning_tokens=30)),
    ("x-ai", "responses", {**response(), "model": "grok-4.3"}, tbl.Usage(100, 50)),
    ("openrouter", "chat", {"model": "openai/gpt-5", "usage": chat()["usage"]}, tbl.Usage(100, 50)),
    ("moonshotai", "chat", {"usage": chat()["usage"]}, tbl.Usage(100, 50)),
    ("fireworks", "chat", {"usage": chat()["usage"]}, tbl.Usage(100, 50)),
    ("cohere", "default", {"usage": {"billed_units": {"input_tokens": 100, "output_tokens": 50}}}, tbl.Usage(100, 50)),
]  # fmt: skip
IDS = [f"{provider} {flavor} {number}" for number, (provider, flavor, *_) in enumerate(BODIES)]


# --- inclusive counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("provider", "flavor", "body", "usage"), BODIES, ids=IDS)
def test_a_body_is_read_with_inclusive_counts(provider: str, flavor: str, body: dict[str, Any], usage: tbl.Usage) -> None:
    assert tbl.read_reply(body, provider=provider, flavor=flavor).usage == usage


@pytest.mark.parametrize(("provider", "flavor", "body", "usage"), BODIES, ids=IDS)
def test_a_body_is_read_as_the_catalogue_reads_it(provider: str, flavor: str, body: dict[str, Any], usage: tbl.Usage) -> None:
    theirs = extract_usage({**body, "model": None, "modelVersion": None}, provider_id=provider, api_flavor=flavor).usage
    told = (
        theirs.reported_value("input_tokens"),
        theirs.reported_value("output_tokens"),
        theirs.reported_value("cache_read_tokens"),
        theirs.reported_value("cache_write_tokens"),
        theirs.reported_value("cache_write_1h_tokens"),
        theirs.reported_value("output_reasoning_tokens"),
        theirs.reported_value("web_searches"),
    )
    ours = (
        usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens,
        usage.cache_write_1h_tokens, usage.reasoning_tokens, usage.web_searches,
    )  # fmt: skip
    assert ours == told


def test_every_flavor_of_every_provider_is_read_or_refused_by_name() -> None:
    """An empty body has no usage, whoever sent it."""
    flavors = [
        (seller.id, each.api_flavor) for seller in data_snapshot.get_snapshot().providers for each in seller.extractors or ()
    ]
    assert len(flavors) > 60
    for provider, flavor in flavors:
        with pytest.raises(tbl.InvalidValue):
            tbl.read_reply({}, provider=provider, flavor=flavor)


@pytest.mark.parametrize("body", [message(**CACHED, **SPLIT, service_tier="batch", speed="standard")])
def test_an_sdks_object_and_its_json_are_read_the_same(body: dict[str, Any]) -> None:
    plain = anthropic.types.Message.model_validate(body)
    beta = anthropic.types.beta.BetaMessage.model_validate(body)
    assert Reported.of(plain) == Reported.of(beta) == Reported.of(body)
    assert Reported.of(plain.usage).usage == Reported.of(body).usage


def test_openais_objects_are_read_like_their_json() -> None:
    openai = pytest.importorskip("openai.types")
    from openai.types.responses import Response

    tiered = {**chat(), "service_tier": "flex"}
    assert Reported.of(openai.chat.ChatCompletion.model_validate(tiered)) == Reported.of(tiered)
    assert Reported.of(Response.model_construct(**response())).usage == Reported.of(response()).usage


# --- what nobody may take for zero --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "provider", "flavor"),
    [
        (message() | {"usage": None}, "anthropic", "default"),
        (message() | {"usage": {"output_tokens": 5}}, "anthropic", "default"),
        (chat() | {"usage": None}, "openai", "chat"),  # a stream without include_usage
        (chat() | {"usage": {"prompt_tokens": 8, "total_tokens": 20}}, "openai", "chat"),
        (response() | {"usage": None, "status": "in_progress"}, "openai", "responses"),
        ({"usageMetadata": {}}, "google", "default"),
        ({"usageMetadata": {"candidatesTokenCount": 5}}, "google", "default"),
        ({"usage": {"inputTokens": "100", "outputTokens": 5}}, "aws", "default"),
        ({"usage": {"inputTokens": 100}}, "aws", "default"),
        ({}, "mistral", "default"),
        ("a text", "mistral", "default"),
        (None, "openai", "chat"),
    ],
)
def test_a_body_without_usage_is_a_named_error(body: Any, provider: str, flavor: str) -> None:
    with pytest.raises(tbl.InvalidType):
        tbl.read_reply(body, provider=provider, flavor=flavor)


@pytest.mark.parametrize(
    ("body", "provider", "flavor"),
    [
        (message(cache_creation_input_tokens=5_001, **SPLIT), "anthropic", "default"),
        (message(cache_creation_input_tokens=0, **SPLIT), "anthropic", "default"),
        (message(output_tokens_details={"thinking_tokens": 51}), "anthropic", "default"),
        (chat(total_tokens=151), "openai", "chat"),
        (chat(total_tokens=149), "openai", "chat"),
        (chat(prompt_tokens_details={"cached_tokens": 101}), "openai", "chat"),
        (response(total_tokens=1), "openai", "responses"),
        (message(input_tokens=-1), "anthropic", "default"),
        (message(output_tokens=1.5), "anthropic", "default"),
        (message(output_tokens=True), "anthropic", "default"),
        ({"usageMetadata": GOOGLE | {"totalTokenCount": 121}}, "google", "default"),
        ({"usageMetadata": GOOGLE | {"cachedContentTokenCount": 101}}, "google", "default"),
        (
            {"usage": {"inputTokens": 1, "outputTokens": 1, "cacheWriteInputTokens": 9,
                       "cacheDetails": [{"ttl": "1h", "inputTokens": 8}]}},
            "aws", "default",
        ),
    ],
)  # fmt: skip
def test_a_body_that_contradicts_itself_is_a_named_error(body: dict[str, Any], provider: str, flavor: str) -> None:
    with pytest.raises(tbl.InvalidValue):
        tbl.read_reply(body, provider=provider, flavor=flavor)


def test_xais_reasoning_beside_the_completion_is_counted_through_openais_client_too() -> None:
    assert tbl.Usage.of(XAI) == tbl.Usage(100, 50, 60, reasoning_tokens=30)


@pytest.mark.parametrize(("provider", "flavor"), [("acme", "default"), ("openai", "default"), ("novita", "default")])
def test_a_provider_or_flavor_that_is_not_known_is_refused_with_those_that_are(provider: str, flavor: str) -> None:
    with pytest.raises(tbl.InvalidValue, match="known"):
        tbl.read_reply(chat(), provider=provider, flavor=flavor)


# --- terms, and what has another price ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "provider", "flavor", "terms"),
    [
        (message(service_tier="batch"), "anthropic", "default", Terms(batch=True)),
        (message(service_tier="standard", speed="fast"), "anthropic", "default", Terms(False, "standard", "fast")),
        (chat() | {"service_tier": "flex"}, "openai", "chat", Terms(tier="flex")),
        (response() | {"service_tier": "priority"}, "openai", "responses", Terms(tier="priority")),
        (response() | {"service_tier": "default"}, "openai", "responses", Terms(tier="standard")),
        ({"usageMetadata": GOOGLE | {"trafficType": "ON_DEMAND"}}, "google", "default", Terms(tier="standard")),
        ({"usageMetadata": GOOGLE | {"trafficType": "ON_DEMAND_FLEX"}}, "google", "default", Terms(tier="flex")),
        ({"usageMetadata": GOOGLE | {"trafficType": "PROVISIONED_THROUGHPUT"}}, "google", "default",
         Terms(tier="provisioned_throughput")),
        ({"usage": {"inputTokens": 1, "outputTokens": 1}, "serviceTier": {"type": "flex"}}, "aws", "default",
         Terms(tier="flex")),
    ],
)  # fmt: skip
def test_the_terms_that_a_call_was_served_on_are_read(body: Any, provider: str, flavor: str, terms: Terms) -> None:
    assert tbl.read_reply(body, provider=provider, flavor=flavor).terms == terms


def test_a_reported_batch_is_priced_as_one() -> None:
    usage = anthropic.types.Usage.model_validate(message(service_tier="batch")["usage"])
    assert tbl.cost(usage, model="claude-sonnet-5-5", at=NOVEMBER) == Decimal("0.00035")
    assert tbl.cost(message(), model="claude-sonnet-5-5", at=NOVEMBER) == Decimal("0.0007")


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (message(service_tier="priority"), "claude-sonnet-5-5"),
        (message(speed="warp"), "claude-sonnet-5-5"),
        (message(inference_geo="moon"), "claude-sonnet-5-5"),
        (chat() | {"service_tier": "scale"}, "gpt-5"),
        (chat(prompt_tokens_details={"audio_tokens": 10}), "gpt-5"),
        (chat(completion_tokens_details={"audio_tokens": 10}), "gpt-5"),
        (message(server_tool_use={"web_search_requests": 1}) | {"model": "llm-of-nobody"}, "llm-of-nobody"),
        (
            message(iterations=[{"type": "fallback_message", "model": "claude-haiku-5-5"}]),
            "claude-sonnet-5-5",
        ),
    ],
)  # fmt: skip
def test_what_has_a_price_that_is_not_known_here_is_not_standard(body: dict[str, Any], model: str) -> None:
    with pytest.raises(tbl.PriceUnknown):
        tbl.cost(body, model=model, at=NOVEMBER)


def test_pictures_cost_what_text_does_where_the_price_list_knows_no_other_price() -> None:
    """Gemini 2.5 Flash hears at another price than it reads; what it sees costs the same."""

    def seen(modality: str) -> tbl.Reported:
        details = [{"modality": "TEXT", "tokenCount": 40}, {"modality": modality, "tokenCount": 60}]
        body = {"modelVersion": "gemini-2.5-flash", "usageMetadata": GOOGLE | {"promptTokensDetails": details}}
        return tbl.read_reply(body, provider="google")

    assert tbl.cost(seen("IMAGE"), model="gemini-2.5-flash", at=NOVEMBER) == Decimal("0.00008")
    with pytest.raises(tbl.PriceUnknown, match="audio"):
        tbl.cost(seen("AUDIO"), model="gemini-2.5-flash", at=NOVEMBER)


# --- more than the totals -----------------------------------------------------------------------------------------------------


def test_a_compaction_is_billed_beside_the_totals() -> None:
    """Anthropic's beta leaves it out of them; each request is priced by its own size."""
    compaction = {"type": "compaction", "input_tokens": 90_000, "output_tokens": 1_000,
                  "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}  # fmt: skip
    turn = {**compaction, "type": "message", "input_tokens": 20_000, "output_tokens": 500}
    body = message(input_tokens=20_000, output_tokens=500, iterations=[compaction, turn]) | {"model": "claude-haiku-5-5"}
    reported = Reported.of(anthropic.types.beta.BetaMessage.model_validate(body))
    assert (reported.usage, reported.beside) == (tbl.Usage(20_000, 500), ((None, tbl.Usage(90_000, 1_000)),))
    assert reported.tokens == 111_500
    small = tbl.cost(tbl.Usage(20_000, 500), model="claude-haiku-5-5", at=NOVEMBER)
    large = tbl.cost(tbl.Usage(90_000, 1_000), model="claude-haiku-5-5", at=NOVEMBER)
    assert tbl.cost(reported, model="claude-haiku-5-5", at=NOVEMBER) == small + large


def test_another_models_advice_is_billed_at_its_own_price() -> None:
    advice = {"type": "advisor_message", "model": "claude-opus-5-5", "input_tokens": 1_000, "output_tokens": 1_000,
              "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}  # fmt: skip
    assert tbl.cost(message(iterations=[advice]), model="claude-sonnet-5-5", at=NOVEMBER) == Decimal("0.0007") + Decimal(
        "0.024"
    )


# --- streams ---------------------------------------------------------------------------------------------------------------


def test_a_stream_that_was_broken_off_is_not_finished() -> None:
    """Its first event has one output token, as a placeholder."""
    started = message(output_tokens=1) | {"stop_reason": None}
    assert not Reported.of(started).finished
    assert not Reported.of(json.loads(json.dumps(chat())) | {"choices": [{"index": 0, "finish_reason": None}]}).finished
    assert not Reported.of(response() | {"status": "in_progress"}).finished
    assert all(Reported.of(body).finished for body in (message(), chat(), response()))


def test_a_reply_says_its_id_and_an_empty_one_is_none() -> None:
    assert Reported.of(message()).response_id == "msg_01XFDUDYJgAACzvnptvVoYEL"
    assert Reported.of(chat() | {"id": ""}).response_id is None
    assert Reported.of(message()["usage"]).response_id is None


def test_a_total_counts_where_there_are_no_details() -> None:
    """900 tokens that nobody explains are not free."""
    with pytest.raises(tbl.InvalidValue, match="contradicts itself"):
        tbl.Usage.of({"input_tokens": 1000, "output_tokens": 100, "total_tokens": 2000})
    assert tbl.Usage.of({"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}).tokens == 1100


def test_tokens_cost_more_where_the_region_does_and_searches_do_not() -> None:
    """Claude in the US: 1.1 times the price of all tokens; a search costs what it does everywhere."""
    plain, searched = message(), message(server_tool_use={"web_search_requests": 2})
    here = tbl.cost(plain, model="claude-sonnet-5-5", at=NOVEMBER)
    searches = tbl.cost(searched, model="claude-sonnet-5-5", at=NOVEMBER) - here
    assert searches > 0
    there = {**searched, "usage": {**searched["usage"], "inference_geo": "us"}}
    assert tbl.cost(there, model="claude-sonnet-5-5", at=NOVEMBER) == here * Decimal("1.1") + searches
    anywhere = {**plain, "usage": {**plain["usage"], "inference_geo": "global"}}
    assert tbl.cost(anywhere, model="claude-sonnet-5-5", at=NOVEMBER) == here
