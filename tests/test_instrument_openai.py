"""OpenAI's SDK under a budget: the real SDK against a server that speaks the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx2
import openai
import pytest

import tokenbudget_lab as tbl
from tests.conftest import also_on_postgres
from tests.provider import Answer, Provider, Used, failed
from tests.settling import priced, settled, usd

STORE = "memory"
MODEL = "gpt-5-mini"
ASK: list[Any] = [{"role": "user", "content": "What is a budget?"}]
CALL = {"type": "tool_use", "name": "price", "input": {"of": "tea", "in": ["€", 1]}}
TOOL: Any = {"type": "function", "function": {"name": "price", "parameters": {"type": "object", "properties": {}}}}
Plain = Callable[..., openai.OpenAI]


@pytest.fixture
def plain(provider: Provider) -> Iterator[Plain]:
    """Makes clients of the SDK, and closes them."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(openai.OpenAI(**{"max_retries": 0, **options}))


@pytest.fixture
def client(study: tbl.Budget, plain: Plain) -> openai.OpenAI:
    return tbl.instrument(plain(), study)


def ask(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "max_completion_tokens": 64, "messages": ASK, **more})


def usages(chunks: Any) -> list[Any]:
    """What a stream showed of usage."""
    return [chunk.usage for chunk in chunks if chunk.usage is not None]


# --- chat -------------------------------------------------------------------------------------------------------------------


@also_on_postgres
def test_a_call_is_reserved_before_it_is_sent_and_committed_with_what_it_used(
    client: Any, log: Any, provider: Provider
) -> None:
    reply = ask(client)
    reserved, committed = log.last("reserved"), settled(log, 1)[0]
    assert (committed.input_tokens, committed.output_tokens) == (reply.usage.prompt_tokens, reply.usage.completion_tokens)
    assert (committed.basis, committed.response_id, committed.model) == ("measured", reply.id, MODEL)
    assert (committed.provider, reserved.seq < committed.seq) == ("openai", True)
    assert '"stop_reason":"stop"' in committed.detail
    assert '"request_id":"req_test"' in committed.detail
    assert len(provider.asked) == 1


ANSWERS: dict[str, tuple[dict[str, Any], Answer]] = {
    "as it comes": ({}, Answer()),
    "without a limit": ({"max_completion_tokens": openai.omit}, Answer()),
    "with the old name of the limit": ({"max_completion_tokens": openai.omit, "max_tokens": 5}, Answer()),
    "three answers": ({"n": 3}, Answer(text="Both. " * 20)),
    "tools": ({"tools": [TOOL]}, Answer(blocks=[CALL])),
    "functions": ({"functions": [TOOL["function"]]}, Answer(blocks=[CALL])),
    "a schema": ({"response_format": {"type": "json_object"}}, Answer(text="{}")),
    "cached input": ({}, Answer(usage={"prompt_tokens_details": {"cached_tokens": 1_000}})),
    "reasoning": ({"model": "o3"}, Answer(usage={"completion_tokens_details": {"reasoning_tokens": 400}})),
    "flex": ({"service_tier": "flex"}, Answer()),
    "priority": ({"service_tier": "priority"}, Answer()),
    "flex that was served as usual": ({"service_tier": "flex"}, Answer(fields={"service_tier": "default"})),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("what", ANSWERS)
def test_a_chat_costs_what_the_catalogue_says_of_what_the_provider_said(
    client: Any, log: Any, provider: Provider, what: str, *, streamed: bool
) -> None:
    more, answer = ANSWERS[what]
    provider.script(answer)
    reply = ask(client, stream=streamed, **more)
    if streamed:
        assert not usages(reply)
    committed = settled(log, 1)[0]
    assert (committed.basis, usd(committed)) == ("measured", priced(provider.used[0]))


def test_no_maximum_holds_a_usual_one_and_several_answers_hold_it_for_each(client: Any, log: Any) -> None:
    ask(client, max_completion_tokens=openai.omit, n=2)
    reserved = log.last("reserved")
    assert reserved.held_tokens > 2 * 8_192
    assert '"no_maximum"' in reserved.detail


# --- streams ----------------------------------------------------------------------------------------------------------------


def test_the_usage_that_was_not_asked_for_is_asked_for_and_not_shown(client: Any, log: Any, provider: Provider) -> None:
    chunks = list(ask(client, stream=True))
    assert provider.asked[0].body["stream_options"] == {"include_usage": True}
    assert (usages(chunks), all(chunk.choices for chunk in chunks)) == ([], True)
    assert settled(log, 1)[0].basis == "measured"


def test_the_usage_that_was_asked_for_is_shown_once(client: Any, log: Any, provider: Provider) -> None:
    shown = usages(ask(client, stream=True, stream_options={"include_usage": True}))
    assert [usage.model_dump(exclude_unset=True) for usage in shown] == [provider.used[0].usage]
    assert settled(log, 1)[0].output_tokens == shown[0].completion_tokens


def test_a_stream_shows_the_same_as_that_of_a_plain_client(client: Any, plain: Plain, provider: Provider) -> None:
    """But for the ids, and that each chunk has a usage of `null`."""
    seen = []
    for each in (plain(), client):
        provider.script(Answer(blocks=[{"type": "text", "text": "Both."}, CALL]))
        seen.append([chunk.model_dump(exclude={"id", "usage"}) for chunk in ask(each, stream=True, tools=[TOOL])])
    for chunks in seen:
        for chunk in chunks:
            for choice in chunk["choices"]:
                for call in choice["delta"].get("tool_calls") or ():
                    call["id"] = None
    assert seen[0] == seen[1]


@pytest.mark.parametrize("encoded", [None, "gzip"])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_a_stream_is_read_however_it_is_packed(
    client: Any, log: Any, provider: Provider, encoded: str | None, framing: str
) -> None:
    provider.script(Answer(text="Both, and tea.", encoded=encoded, framing=framing))
    chunks = list(ask(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Both, and tea."
    assert settled(log, 1)[0].basis == "measured"


def test_a_whole_reply_is_read_however_it_is_packed(client: Any, log: Any, provider: Provider) -> None:
    provider.script(Answer(encoded="gzip"))
    assert ask(client).usage.completion_tokens == settled(log, 1)[0].output_tokens


def test_the_helper_for_streams_is_measured(client: openai.OpenAI, log: Any) -> None:
    with client.chat.completions.stream(model=MODEL, messages=ASK, max_completion_tokens=64) as stream:
        reply = stream.get_final_completion()
    assert reply.choices[0].message.content
    assert (settled(log, 1)[0].basis, reply.usage) == ("measured", None)


def test_a_raw_response_of_a_stream_hides_the_usage_too(client: openai.OpenAI, log: Any, provider: Provider) -> None:
    """And does not say how long it would have been with it."""
    provider.script(Answer(framing="length"))
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, stream=True)
    assert (raw.status_code, usages(raw.parse()), "content-length" in raw.headers) == (200, [], False)
    assert settled(log, 1)[0].basis == "measured"


def test_a_raw_response_has_headers_and_body(client: openai.OpenAI, log: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
    assert raw.headers["x-request-id"] == "req_test"
    assert raw.parse().id == settled(log, 1)[0].response_id


def test_a_reply_that_is_read_by_hand_is_measured(client: openai.OpenAI, log: Any) -> None:
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=ASK, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert (lines[-1], any('"completion_tokens"' in line for line in lines)) == ("data: [DONE]", False)
    assert settled(log, 1)[0].basis == "measured"


def test_a_stream_that_was_left_is_estimated_by_what_came(client: Any, log: Any, provider: Provider) -> None:
    """gpt-4o writes nothing that does not come."""
    provider.script(Answer(text="A budget is a promise. " * 50, piece_s=0.01))
    with ask(client, model="gpt-4o", stream=True) as stream:
        said = "".join(chunk.choices[0].delta.content or "" for chunk, _ in zip(stream, range(4), strict=False))
    committed = settled(log, 1)[0]
    assert (committed.basis, committed.output_tokens >= tbl.counter_for("gpt-4o").count_sync(said).tokens) == (
        "estimated",
        True,
    )


def test_a_reasoning_models_stream_that_was_left_is_counted_in_full(client: Any, log: Any, provider: Provider) -> None:
    """Nobody sees what it thought."""
    provider.script(Answer(text="A budget is a promise. " * 50, piece_s=0.01))
    with ask(client, stream=True) as stream:
        next(iter(stream))
    assert settled(log, 1)[0].basis == "unknown"


@pytest.mark.parametrize("model", ["gpt-4o", MODEL])
def test_a_stream_that_was_dropped_is_settled_when_it_is_collected(client: Any, log: Any, model: str) -> None:
    stream = ask(client, model=model, stream=True)
    next(iter(stream))
    del stream
    gc.collect()
    assert settled(log, 1)[0].basis in ("estimated", "unknown")


# --- what goes wrong ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_not_sent_and_not_retried(ledger: tbl.Ledger, provider: Provider, plain: Plain) -> None:
    """The SDK retries what it takes for an error of the connection; this is none."""
    poor = tbl.instrument(plain(max_retries=5), ledger.budget("poor", usd="0.000001"))
    with pytest.raises(tbl.BudgetExceeded, match=r"of \$0\.000001") as refused:
        ask(poor)
    assert (refused.value.budget, refused.value.resource, refused.value.__cause__) == ("poor", "usd", None)
    assert not provider.connections


def test_each_attempt_has_a_reservation_of_its_own(study: tbl.Budget, log: Any, provider: Provider, plain: Plain) -> None:
    """429 and 500 are refusals: what they held is given back; the third attempt is paid."""
    provider.script(failed(429, retry_after=0.01), failed(500, retry_after=0.01))
    ask(tbl.instrument(plain(max_retries=2), study))
    assert [event.kind for event in settled(log, 3)] == ["rolled_back", "rolled_back", "committed"]
    attempts = [event.detail for event in log.events if event.kind == "reserved"]
    assert ['"attempt":2' in detail for detail in attempts] == [False, True, False]
    assert '"attempt":3' in attempts[2]


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_is_followed_with_a_reservation_of_its_own(client: Any, log: Any, provider: Provider, status: int) -> None:
    provider.script(Answer(status=status, body=b"", headers={"location": f"{provider.url}/v1/chat/completions"}))
    assert ask(client, stream=True).response.status_code == 200
    assert [event.kind for event in settled(log, 1)] == ["rolled_back"]
    assert [asked.body["stream_options"] for asked in provider.asked] == [{"include_usage": True}] * 2


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_what_the_provider_refused_is_given_back(client: Any, log: Any, provider: Provider, status: int) -> None:
    provider.script(failed(status))
    with pytest.raises(openai.APIStatusError) as error:
        ask(client)
    assert (error.value.status_code, error.value.request_id) == (status, "req_test")
    assert [event.kind for event in settled(log, 1)] == ["rolled_back"]


@pytest.mark.parametrize("status", [502, 504])
def test_what_a_gateway_gave_up_on_is_counted(client: Any, log: Any, provider: Provider, status: int) -> None:
    provider.script(failed(status))
    with pytest.raises(openai.APIStatusError):
        ask(client)
    assert (settled(log, 1)[0].kind, settled(log, 1)[0].basis) == ("expired", "unknown")


def test_a_connection_that_was_never_made_costs_nothing(client: Any, log: Any, provider: Provider) -> None:
    provider.close()
    with pytest.raises(openai.APIConnectionError):
        ask(client)
    assert [event.kind for event in settled(log, 1)] == ["rolled_back"]


def test_a_key_that_no_connection_takes_costs_nothing(study: tbl.Budget, log: Any, provider: Provider, plain: Plain) -> None:
    """A line break behind a key that was read from a file."""
    with pytest.raises(openai.APIConnectionError):
        ask(tbl.instrument(plain(api_key="key\n"), study))
    assert [event.kind for event in settled(log, 1)] == ["rolled_back"]
    assert not provider.asked


@pytest.mark.parametrize("answer", [Answer(drop="hang up"), Answer(drop="cut"), Answer(after_s=5)], ids=["gone", "cut", "late"])
def test_a_call_that_was_lost_after_sending_is_counted_in_full(
    client: Any, log: Any, provider: Provider, answer: Answer
) -> None:
    provider.script(answer)
    with pytest.raises((openai.APIConnectionError, httpx2.HTTPError)):
        ask(client, timeout=0.5)
    assert (settled(log, 1)[0].kind, settled(log, 1)[0].basis) == ("expired", "unknown")


def test_the_timeouts_of_the_sdk_are_those_of_the_instrumented_client(study: tbl.Budget, plain: Plain) -> None:
    before = plain()
    under = tbl.instrument(before, study)
    assert (under.timeout, under.max_retries, under._client.timeout) == (before.timeout, 0, before._client.timeout)
    assert under._client.follow_redirects is before._client.follow_redirects is True
    under.models.list()


# --- async ------------------------------------------------------------------------------------------------------------------


async def until(done: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    while not done():  # noqa: ASYNC110 - the provider's threads have no event of this loop
        await asyncio.sleep(0.01)


def test_twenty_async_calls_of_which_three_fit(ledger: tbl.Ledger, provider: Provider) -> None:
    """Each holds a bit less than a third; 17 are refused, and 3 requests reach the server."""
    study = ledger.budget("race", usd="0.02")

    async def race() -> list[Any]:
        async with openai.AsyncOpenAI() as plain:
            client = tbl.instrument(plain, study, on_exceeded="raise", hold="worst")
            with provider.holding():
                calls = [asyncio.ensure_future(ask(client, max_completion_tokens=3_200)) for _ in range(20)]
                await until(lambda: sum(call.done() for call in calls) >= 17)
            return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(race())
    assert sum(isinstance(outcome, tbl.BudgetExceeded) for outcome in outcomes) == 17
    assert len(provider.asked) == 3


def test_an_async_stream_is_measured_and_its_usage_hidden(study: tbl.Budget, log: Any, provider: Provider) -> None:
    async def read() -> list[Any]:
        async with openai.AsyncOpenAI() as plain:
            return [chunk async for chunk in await ask(tbl.instrument(plain, study), stream=True)]

    assert usages(asyncio.run(read())) == []
    assert usd(settled(log, 1)[0]) == priced(provider.used[0])


def test_a_cancelled_call_is_counted_in_full(study: tbl.Budget, log: Any, provider: Provider) -> None:
    async def cancelled() -> None:
        async with openai.AsyncOpenAI() as plain:
            with provider.holding():
                call = asyncio.ensure_future(ask(tbl.instrument(plain, study)))
                await until(lambda: provider.at_work > 0)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call

    asyncio.run(cancelled())
    assert settled(log, 1)[0].basis == "unknown"


def test_what_is_compared_is_more_than_nothing(client: Any, provider: Provider) -> None:
    ask(client)
    assert priced(provider.used[0]) > Decimal("0.000001")
    assert isinstance(provider.used[0], Used)
