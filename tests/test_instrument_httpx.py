"""Any SDK on httpx or httpx2 under a budget: its HTTP client, and what the providers behind it say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import genai_prices
import httpx
import httpx2
import pytest

import tokenbudget_lab as tbl
from tests.provider import Answer, Provider, failed
from tests.settling import priced, settled, usd
from tokenbudget_lab import instrumenting
from tokenbudget_lab.metering import Meter

STORE = "memory"
ASK: list[Any] = [{"role": "user", "content": "What is a budget?"}]
HTTP = pytest.mark.parametrize("http", [httpx, httpx2], ids=["httpx", "httpx2"])
USED = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
# What providers say of what they used, as their documentation has it.
SAID: dict[str, tuple[str, str, dict[str, Any], tuple[int, int, int, int]]] = {
    "groq": ("https://api.groq.com/openai/v1", "llama-3.3-70b-versatile", {**USED, "queue_time": 0.1}, (90, 10, 0, 0)),
    "mistral": ("https://api.mistral.ai/v1", "mistral-large-latest", USED, (90, 10, 0, 0)),
    "deepseek": (
        "https://api.deepseek.com", "deepseek-chat", {**USED, "prompt_tokens_details": {"cached_tokens": 64}},
        (90, 10, 64, 0),
    ),
    "x-ai": (
        "https://api.x.ai/v1", "grok-4", {**USED, "total_tokens": 140, "completion_tokens_details": {"reasoning_tokens": 40}},
        (90, 50, 0, 40),
    ),
    "openrouter": ("https://openrouter.ai/api/v1", "openai/gpt-5-mini", {**USED, "cost": 0.1}, (90, 10, 0, 0)),
    "together": ("https://api.together.xyz/v1", "meta-llama/Llama-3.3-70B-Instruct-Turbo", USED, (90, 10, 0, 0)),
}  # fmt: skip


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-5-mini", "messages": ASK, "max_tokens": 64, **more}


def says(http: Any, reply: Any, asked: list[Any], kind: str = "application/json") -> Any:
    """A transport that says this to every request, wherever it goes."""

    def handler(request: Any) -> Any:
        asked.append((str(request.url), json.loads(request.content)))
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        return http.Response(200, content=content, headers={"content-type": kind})

    return http.MockTransport(handler)


# --- the client -------------------------------------------------------------------------------------------------------------


@HTTP
def test_an_http_client_is_metered_and_keeps_its_type(study: tbl.Budget, log: Any, provider: Provider, http: Any) -> None:
    with http.Client(base_url=f"{provider.url}/v1", headers={"authorization": "Bearer k"}) as plain:
        under = tbl.instrument(plain, study, tags={"a": "b"})
        assert type(under) is http.Client
        reply = tbl.tagged(under, item="q7").post("/chat/completions", json=chat()).json()
    committed = settled(log, 1)[0]
    assert (committed.response_id, usd(committed)) == (reply["id"], priced(provider.used[0]))
    assert dict(log.last("reserved").tags) == {"a": "b", "item": "q7"}
    assert provider.asked[0].headers["authorization"] == "Bearer k"


@HTTP
def test_an_async_http_client_is_metered(study: tbl.Budget, log: Any, provider: Provider, http: Any) -> None:
    async def asked() -> Any:
        async with http.AsyncClient() as plain:
            under = tbl.instrument(plain, study)
            assert type(under) is http.AsyncClient
            return (await under.post(f"{provider.url}/v1/chat/completions", json=chat())).json()

    assert asyncio.run(asked())["id"] == settled(log, 1)[0].response_id


@HTTP
def test_a_refusal_reaches_the_caller_and_nothing_is_sent(ledger: tbl.Ledger, provider: Provider, http: Any) -> None:
    with http.Client() as plain, pytest.raises(tbl.BudgetExceeded):
        tbl.instrument(plain, ledger.budget("poor", usd="0.000001")).post(f"{provider.url}/v1/chat/completions", json=chat())
    assert not provider.connections


@HTTP
def test_an_sdk_that_wraps_every_error_and_retries_sends_nothing_either(
    ledger: tbl.Ledger, provider: Provider, http: Any
) -> None:
    """As SDKs do that catch all that the HTTP client raises: the refusal is the cause of what the caller sees."""
    poor = ledger.budget("poor", usd="0.000001")

    def asked(client: Any) -> Any:
        for attempt in range(3):
            try:
                headers = {"x-stainless-retry-count": str(attempt)}
                return client.post(f"{provider.url}/v1/chat/completions", json=chat(), headers=headers)
            except Exception as error:  # noqa: BLE001 - as the SDK does
                wrapped = error
        raise ConnectionError("Connection error.") from wrapped

    with http.Client() as plain, pytest.raises(ConnectionError) as seen:
        asked(tbl.instrument(plain, poor))
    assert isinstance(seen.value.__cause__, tbl.BudgetExceeded)
    assert not provider.connections


@HTTP
def test_instrumenting_again_replaces_the_budget(ledger: tbl.Ledger, provider: Provider, http: Any) -> None:
    first, second = ledger.budget("first", usd=1), ledger.budget("second", usd=1)
    with http.Client() as plain:
        once = tbl.instrument(plain, first)
        once.get(f"{provider.url}/v1/models")
        tbl.instrument(once, second).post(f"{provider.url}/v1/chat/completions", json=chat())
    assert (first.balance.committed_requests, second.balance.committed_requests) == (0, 1)


@HTTP
def test_leaving_its_block_closes_the_connections_that_it_shares(study: tbl.Budget, provider: Provider, http: Any) -> None:
    plain = http.Client()
    with tbl.instrument(plain, study) as under:
        under.get(f"{provider.url}/v1/models")
    assert plain.is_closed


def test_authentication_in_several_steps_reserves_for_each(study: tbl.Budget, log: Any, provider: Provider) -> None:
    """The first answer is the server's question for the password, which costs nothing."""
    question = {"www-authenticate": 'Digest realm="r", nonce="n", algorithm=MD5, qop="auth"'}
    provider.script(Answer(status=401, body={}, headers=question))
    with httpx.Client(auth=httpx.DigestAuth("u", "p")) as plain:
        assert tbl.instrument(plain, study).post(f"{provider.url}/v1/chat/completions", json=chat()).is_success
    assert [event.kind for event in settled(log, 2)] == ["rolled_back", "committed"]


@HTTP
@pytest.mark.parametrize("body", [b"", b"[]", b"not JSON", b'{"model": 5}', b'{"messages": []}', b'{"model": "x", "n": "two"}'])
def test_a_request_that_cannot_be_read_is_not_sent(study: tbl.Budget, provider: Provider, http: Any, body: bytes) -> None:
    with http.Client() as plain, pytest.raises(tbl.InvalidValue):
        tbl.instrument(plain, study).post(f"{provider.url}/v1/chat/completions", content=body)
    assert not provider.connections


def test_anthropics_messages_are_metered_without_its_sdk(study: tbl.Budget, log: Any, provider: Provider) -> None:
    body = {"model": "claude-sonnet-5-5", "max_tokens": 64, "messages": ASK, "stream": True}
    with (
        httpx.Client() as plain,
        tbl.instrument(plain, study).stream("POST", f"{provider.url}/v1/messages", json=body) as reply,
    ):
        assert reply.read()
    committed = settled(log, 1)[0]
    assert (committed.basis, usd(committed)) == ("measured", priced(provider.used[0], "anthropic", "default"))


def test_a_prompt_is_found_nowhere_in_the_ledger(study: tbl.Budget, log: Any, provider: Provider) -> None:
    secret = [{"role": "user", "content": "the secret of the lab"}]
    provider.script(Answer(text="an answer of the lab"), failed(400, "the secret of the lab"))
    with httpx.Client(headers={"authorization": "Bearer key-of-the-lab"}) as plain:
        for _ in range(2):
            tbl.instrument(plain, study).post(f"{provider.url}/v1/chat/completions", json=chat(messages=secret))
    settled(log, 2)
    assert "of the lab" not in repr(log.events)
    assert "of-the-lab" not in repr(log.events)


# --- other providers --------------------------------------------------------------------------------------------------------


@HTTP
@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("seller", SAID)
def test_a_provider_is_known_by_its_address_and_its_usage_is_read_as_it_says_it(
    study: tbl.Budget, log: Any, http: Any, seller: str, *, streamed: bool
) -> None:
    url, model, usage, counts = SAID[seller]
    asked: list[Any] = []
    whole = {"id": "c_1", "object": "chat.completion", "model": model, "usage": usage}
    choice = {"index": 0, "finish_reason": "stop"}
    if streamed:
        last = {**whole, "choices": [{**choice, "delta": {"content": "Both."}}]}
        reply: Any = b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"
    else:
        reply = {**whole, "choices": [{**choice, "message": {"role": "assistant", "content": "Both."}}]}
    kind = "text/event-stream" if streamed else "application/json"
    with http.Client(transport=says(http, reply, asked, kind)) as plain:
        text = tbl.instrument(plain, study).post(f"{url}/chat/completions", json=chat(model=model, stream=streamed)).text
    committed = settled(log, 1)[0]
    read = (committed.input_tokens, committed.output_tokens, committed.cache_read_tokens, committed.reasoning_tokens)
    assert (committed.provider, committed.basis, read, "Both." in text) == (seller, "measured", counts, True)
    theirs = genai_prices.Usage(
        input_tokens=counts[0], output_tokens=counts[1], cache_read_tokens=counts[2], output_reasoning_tokens=counts[3]
    )
    assert usd(committed) == genai_prices.calc_price(theirs, model, provider_id=seller).total_price
    assert ("stream_options" in asked[0][1]) == (streamed and seller != "mistral")


def test_a_server_of_ones_own_is_metered_at_ones_own_price(ledger: tbl.Ledger, log: Any, provider: Provider) -> None:
    ledger.set_price("qwen-local", input_usd_per_mtok=1, output_usd_per_mtok=2)
    with httpx.Client() as plain:
        under = tbl.instrument(plain, ledger.budget("lab", usd=1))
        used = under.post(f"{provider.url}/v1/chat/completions", json=chat(model="qwen-local")).json()["usage"]
    cost = used["prompt_tokens"] + 2 * used["completion_tokens"]
    assert usd(settled(log, 1)[0]) * 1_000_000 == cost


# --- Google -----------------------------------------------------------------------------------------------------------------

GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash"
COUNTS = {"promptTokenCount": 90, "candidatesTokenCount": 10, "thoughtsTokenCount": 30, "totalTokenCount": 130}
CONTENTS = [{"role": "user", "parts": [{"text": "What is a budget?"}]}]


def said(text: str, stop: str | None = "STOP", **more: Any) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, **({"finishReason": stop} if stop else {}), **more}
    return {"candidates": [candidate], "usageMetadata": COUNTS, "modelVersion": "gemini-2.5-flash", "responseId": "g_1"}


def gemini(study: tbl.Budget, reply: Any, kind: str = "application/json", what: str = "generateContent", **more: Any) -> Any:
    asked: list[Any] = []
    body = {"contents": CONTENTS, "generationConfig": {"maxOutputTokens": 64}, **more}
    with httpx.Client(transport=says(httpx, reply, asked, kind)) as plain:
        return tbl.instrument(plain, study).post(f"{GEMINI}:{what}", json=body), asked


def gemini_price() -> Any:
    usage = genai_prices.Usage(input_tokens=90, output_tokens=40, output_reasoning_tokens=30)
    return genai_prices.calc_price(usage, "gemini-2.5-flash", provider_id="google").total_price


def test_googles_content_is_metered(study: tbl.Budget, log: Any) -> None:
    gemini(study, said("Both."), tools=[{"functionDeclarations": [{"name": "price"}]}])
    committed = settled(log, 1)[0]
    assert (committed.model, committed.provider, committed.response_id) == ("gemini-2.5-flash", "google", "g_1")
    assert (committed.basis, committed.output_tokens, usd(committed)) == ("measured", 40, gemini_price())


@pytest.mark.parametrize("events", [True, False], ids=["events", "a list"])
def test_googles_streams_are_metered(study: tbl.Budget, log: Any, *, events: bool) -> None:
    pieces = [said("Both", None), said(".")]
    packed = b"".join(b"data: " + json.dumps(each).encode() + b"\r\n\r\n" for each in pieces)
    reply, kind = (packed, "text/event-stream") if events else (json.dumps(pieces).encode(), "application/json")
    gemini(study, reply, kind, "streamGenerateContent")
    committed = settled(log, 1)[0]
    assert (committed.basis, usd(committed)) == ("measured", gemini_price())


def test_a_stream_of_googles_that_does_not_say_why_it_stopped_is_counted_in_full(study: tbl.Budget, log: Any) -> None:
    gemini(study, b"data: " + json.dumps(said("Both", None)).encode() + b"\n\n", "text/event-stream", "streamGenerateContent")
    assert settled(log, 1)[0].basis == "unknown"


def test_a_search_of_googles_is_billed_apart_so_the_call_counts_as_it_was_held(study: tbl.Budget, log: Any) -> None:
    gemini(study, said("Both.", groundingMetadata={"webSearchQueries": ["tea"]}))
    assert settled(log, 1)[0].usd == log.last("reserved").held_usd


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"cachedContent": "cachedContents/1"}, tbl.InvalidValue),
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": ""}}]}]}, tbl.CountFailed),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "x"}}]}]}, tbl.CountFailed),
        ({"generationConfig": {"maxOutputTokens": "64"}}, tbl.InvalidType),
    ],
)
def test_what_cannot_be_counted_of_googles_is_not_sent(study: tbl.Budget, more: dict[str, Any], error: Any) -> None:
    asked: list[Any] = []
    with httpx.Client(transport=says(httpx, {}, asked)) as plain, pytest.raises(error):
        tbl.instrument(plain, study).post(f"{GEMINI}:generateContent", json={"contents": CONTENTS, **more})
    assert not asked


# --- llmock -----------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_server_of_the_protocols_is_metered_the_same(llmock: Any, study: tbl.Budget, log: Any) -> None:
    """Chat, responses and messages of llmock, at once and streamed, through the real SDKs."""
    import anthropic
    import openai

    with openai.OpenAI() as plain, anthropic.Anthropic() as other:
        gpt, claude = tbl.instrument(plain, study), tbl.instrument(other, study)
        for streamed in (False, True):
            for reply in (
                gpt.chat.completions.create(model="gpt-5-mini", messages=ASK, stream=streamed),
                gpt.responses.create(model="gpt-5-mini", input="What is a budget?", stream=streamed),
                claude.messages.create(model="claude-sonnet-5-5", max_tokens=64, messages=ASK, stream=streamed),
            ):
                assert not streamed or list(reply)
    assert [event.basis for event in settled(log, 6)] == ["measured"] * 6


# --- others' SDKs -----------------------------------------------------------------------------------------------------------


class Theirs:
    """Somebody else's client, and the way into it."""

    def __init__(self, meter: Meter | None = None) -> None:
        self.meter = meter

    @staticmethod
    def instrument(client: Any, meter: Meter) -> Any:
        return Theirs(meter)

    @staticmethod
    def retagged(client: Any, tags: Any) -> Any:
        return None if client.meter is None else Theirs(client.meter.tagged(tags))


@pytest.fixture
def _plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `pip install` of another package would have brought."""
    instrumenting._way_for.cache_clear()
    points = [EntryPoint(name, "tests.test_instrument_httpx:Theirs", instrumenting.GROUP) for name in ("tests", "openai")]
    monkeypatch.setattr(instrumenting, "entry_points", lambda group, name: EntryPoints(points).select(name=name))
    yield
    instrumenting._way_for.cache_clear()


@pytest.mark.usefixtures("_plugin")
def test_another_package_brings_the_way_into_its_sdk(study: tbl.Budget) -> None:
    under = tbl.instrument(Theirs(), study, tags={"a": "b"})
    assert type(under) is Theirs
    assert tbl.tagged(under, item="q7").meter.item_tags == {"item": "q7"}  # type: ignore[union-attr] # it is metered
    with pytest.raises(tbl.InvalidValue, match="under no budget"):
        tbl.tagged(Theirs(), item="q7")


def test_what_is_installed_is_looked_through_once(study: tbl.Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a hundred times as long as a label may."""
    with httpx.Client() as plain:
        under = tbl.instrument(plain, study)
        monkeypatch.setattr(instrumenting, "entry_points", None)
        assert type(tbl.tagged(under, item="q7")) is httpx.Client


@pytest.mark.usefixtures("_plugin")
def test_another_packages_way_goes_before_ours(study: tbl.Budget) -> None:
    import openai

    with openai.OpenAI(api_key="none") as client:
        assert isinstance(tbl.instrument(client, study), Theirs)
