"""Anthropic's SDK under a budget: the real SDK against a server that speaks the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import pytest

import tokenbudget_lab as tbl
from tests.conftest import also_on_postgres
from tests.provider import Answer, Provider, failed
from tests.settling import settled
from tokenbudget_lab import lengths, link
from tokenbudget_lab.instruments.anthropic import BudgetMiddleware
from tokenbudget_lab.place import place_of

STORE = "memory"
MODEL = "claude-sonnet-5-5"
ASK: list[Any] = [{"role": "user", "content": "What is a budget?"}]
Plain = Callable[..., anthropic.Anthropic]


@pytest.fixture
def plain(provider: Provider) -> Iterator[Plain]:
    """Makes clients of the SDK, and closes them."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(anthropic.Anthropic(**{"max_retries": 0, **options}))


@pytest.fixture
def client(study: tbl.Budget, plain: Plain) -> anthropic.Anthropic:
    return tbl.instrument(plain(), study)


def ask(client: anthropic.Anthropic, **more: Any) -> Any:
    return client.messages.create(**{"model": MODEL, "max_tokens": 64, "messages": ASK, **more})


@also_on_postgres
def test_a_call_is_reserved_before_it_is_sent_and_committed_with_what_it_used(
    client: Any, log: Any, provider: Provider
) -> None:
    reply = ask(client)
    reserved, committed = log.last("reserved"), settled(log, 1)[0]
    assert (committed.input_tokens, committed.output_tokens) == (reply.usage.input_tokens, reply.usage.output_tokens)
    assert (committed.basis, committed.response_id, committed.model) == ("measured", reply.id, MODEL)
    assert reserved.seq < committed.seq
    assert '"stop_reason":"end_turn"' in committed.detail
    assert len(provider.asked) == 1


def test_a_client_keeps_its_type_and_its_connections(study: tbl.Budget, plain: Plain) -> None:
    before = plain()
    under = tbl.instrument(before, study)
    assert type(under) is anthropic.Anthropic
    assert under._client is before._client
    assert not before.middleware
    ask(under)


@also_on_postgres
def test_what_does_not_fit_is_not_sent(ledger: tbl.Ledger, provider: Provider, plain: Plain) -> None:
    poor = tbl.instrument(plain(), ledger.budget("poor", usd="0.000001"))
    with pytest.raises(tbl.BudgetExceeded, match=r"of \$0\.000001") as refused:
        ask(poor)
    assert (refused.value.budget, refused.value.resource) == ("poor", "usd")
    assert not provider.connections


def test_a_refusal_is_not_retried_although_another_middleware_was_handling_an_error(
    ledger: tbl.Ledger, provider: Provider, plain: Plain
) -> None:
    """The SDK looks along `__cause__` for an error that it retries; a refusal has none."""
    asked: list[int] = []

    def twice(request: Any, call_next: Any) -> Any:
        asked.append(request.retries_taken)
        try:
            raise anthropic.APIConnectionError(request=None)  # type: ignore[arg-type]
        except anthropic.APIConnectionError:
            return call_next(request)

    poor = ledger.budget("poor", usd="0.000001")
    with pytest.raises(tbl.BudgetExceeded):
        ask(tbl.instrument(plain(middleware=[twice]), poor))
    assert asked == [0]
    assert not provider.asked


@also_on_postgres
def test_each_attempt_has_a_reservation_of_its_own(study: tbl.Budget, log: Any, provider: Provider, plain: Plain) -> None:
    """429 and 529 are refusals: what they held is given back; the third attempt is paid."""
    provider.script(failed(429, retry_after=0), failed(529, retry_after=0))
    ask(tbl.instrument(plain(max_retries=2), study))
    assert [event.kind for event in settled(log, 3)] == ["rolled_back", "rolled_back", "committed"]
    attempts = [event.detail for event in log.events if event.kind == "reserved"]
    assert ['"attempt":2' in detail for detail in attempts] == [False, True, False]
    assert '"attempt":3' in attempts[2]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
def test_what_the_provider_refused_is_given_back(client: Any, log: Any, provider: Provider, status: int) -> None:
    provider.script(failed(status))
    with pytest.raises(anthropic.APIStatusError):
        ask(client)
    assert [event.kind for event in settled(log, 1)] == ["rolled_back"]


@pytest.mark.parametrize("status", [502, 504])
def test_what_a_gateway_gave_up_on_is_counted(client: Any, log: Any, provider: Provider, status: int) -> None:
    """The provider may have answered, and billed, what the gateway did not wait for."""
    provider.script(failed(status))
    with pytest.raises(anthropic.APIStatusError):
        ask(client)
    lost = settled(log, 1)[0]
    assert (lost.kind, lost.basis) == ("expired", "unknown")


def test_a_connection_that_was_never_made_costs_nothing(study: tbl.Budget, log: Any, provider: Provider, plain: Plain) -> None:
    provider.close()
    with pytest.raises(anthropic.APIConnectionError):
        ask(tbl.instrument(plain(max_retries=0), study))
    assert [event.kind for event in settled(log, 1)] == ["rolled_back"]


def test_a_request_that_could_not_be_made_costs_nothing(client: Any, log: Any) -> None:
    with pytest.raises(AttributeError, match="encode"):
        ask(client, extra_headers={"x-number": 5})
    assert [event.kind for event in settled(log, 1)] == ["rolled_back"]


@pytest.mark.parametrize("drop", ["hang up", "cut"])
def test_a_connection_that_broke_after_sending_is_counted_in_full(client: Any, log: Any, provider: Provider, drop: str) -> None:
    provider.script(Answer(drop=drop))
    with pytest.raises(anthropic.APIConnectionError):
        ask(client)
    lost = settled(log, 1)[0]
    assert (lost.kind, lost.basis) == ("expired", "unknown")


def test_a_reply_that_is_no_json_is_counted_in_full(client: Any, log: Any, provider: Provider) -> None:
    provider.script(Answer(body=b"<html>all is well</html>", headers={"content-type": "text/html"}))
    ask(client)
    assert settled(log, 1)[0].basis == "unknown"


def test_a_timeout_is_counted_in_full(client: Any, log: Any, provider: Provider) -> None:
    provider.script(Answer(after_s=5))
    with pytest.raises(anthropic.APITimeoutError):
        ask(client, timeout=0.2)
    assert settled(log, 1)[0].basis == "unknown"


async def until(done: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    while not done():  # noqa: ASYNC110 - the provider's threads have no event of this loop
        await asyncio.sleep(0.01)


# --- streams ----------------------------------------------------------------------------------------------------------------


def test_a_stream_that_was_read_is_measured(client: anthropic.Anthropic, log: Any) -> None:
    with client.messages.stream(model=MODEL, max_tokens=64, messages=ASK) as stream:
        reply = stream.get_final_message()
    committed = settled(log, 1)[0]
    assert (committed.basis, committed.output_tokens) == ("measured", reply.usage.output_tokens)
    assert committed.response_id == reply.id


def test_a_stream_of_bare_events_is_measured(client: Any, log: Any) -> None:
    events = list(ask(client, stream=True))
    assert events[-1].type == "message_stop"
    assert settled(log, 1)[0].basis == "measured"


def test_a_stream_that_was_left_is_estimated_by_what_came(client: anthropic.Anthropic, log: Any) -> None:
    with client.messages.stream(model=MODEL, max_tokens=64, messages=ASK) as stream:
        received = next(iter(stream.text_stream))
    committed = settled(log, 1)[0]
    assert committed.basis == "estimated"
    assert committed.output_tokens >= max(1, len(received) // 8)
    assert committed.input_tokens


def test_a_stream_that_was_dropped_is_settled_when_it_is_collected(client: Any, log: Any) -> None:
    stream = ask(client, stream=True)
    next(iter(stream))
    del stream
    gc.collect()
    assert settled(log, 1)[0].basis in ("estimated", "unknown")


def test_a_stream_that_was_never_begun_is_settled_when_it_is_collected(client: Any, log: Any) -> None:
    stream = ask(client, stream=True)
    assert stream is not None
    del stream
    gc.collect()
    assert settled(log, 1)[0].basis == "unknown"


def test_a_reply_that_is_read_by_hand_is_measured(client: anthropic.Anthropic, log: Any) -> None:
    with client.messages.with_streaming_response.create(model=MODEL, max_tokens=64, messages=ASK) as response:
        reply = response.parse()
    assert reply.usage.output_tokens == settled(log, 1)[0].output_tokens


# --- async ------------------------------------------------------------------------------------------------------------------


def test_twenty_async_calls_of_which_three_fit(ledger: tbl.Ledger, provider: Provider) -> None:
    """Each holds a bit less than a third; 17 are refused, and 3 requests reach the server."""
    study = ledger.budget("race", usd="0.1")

    async def race() -> list[Any]:
        async with anthropic.AsyncAnthropic() as plain:
            client = tbl.instrument(plain, study, on_exceeded="raise", hold="worst")
            with provider.holding():
                calls = [
                    asyncio.ensure_future(client.messages.create(model=MODEL, max_tokens=3_100, messages=ASK))
                    for _ in range(20)
                ]
                await until(lambda: sum(call.done() for call in calls) >= 17)
            return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(race())
    assert sum(isinstance(outcome, tbl.BudgetExceeded) for outcome in outcomes) == 17
    assert len(provider.asked) == 3


def test_a_cancelled_call_is_counted_in_full(study: tbl.Budget, log: Any, provider: Provider) -> None:
    async def cancelled() -> None:
        async with anthropic.AsyncAnthropic() as plain:
            with provider.holding():
                call = asyncio.ensure_future(
                    tbl.instrument(plain, study).messages.create(model=MODEL, max_tokens=9, messages=ASK)
                )
                await until(lambda: provider.at_work > 0)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call

    asyncio.run(cancelled())
    assert settled(log, 1)[0].basis == "unknown"


def test_a_call_that_was_cancelled_while_it_stood_in_line_costs_nothing(
    ledger: tbl.Ledger, log: Any, provider: Provider
) -> None:
    study = ledger.budget("full", requests=1)

    async def cancelled() -> None:
        async with anthropic.AsyncAnthropic() as plain, study.reserve(requests=1):
            call = asyncio.ensure_future(tbl.instrument(plain, study).messages.create(model=MODEL, max_tokens=9, messages=ASK))
            await asyncio.sleep(0.2)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(cancelled())
    assert study.balance.reserved_requests == study.balance.committed_requests == 0
    assert not provider.asked


def test_an_async_stream_is_measured(study: tbl.Budget, log: Any, provider: Provider) -> None:
    async def read() -> Any:
        async with (
            anthropic.AsyncAnthropic() as plain,
            tbl.instrument(plain, study).messages.stream(model=MODEL, max_tokens=64, messages=ASK) as stream,
        ):
            return await stream.get_final_message()

    reply = asyncio.run(read())
    assert settled(log, 1)[0].output_tokens == reply.usage.output_tokens


# --- the client -------------------------------------------------------------------------------------------------------------


def test_counting_tokens_passes_free(client: Any, log: Any) -> None:
    assert client.messages.count_tokens(model=MODEL, messages=ASK).input_tokens
    assert "reserved" not in log.kinds


def test_what_costs_something_unknown_is_refused(client: Any, provider: Provider) -> None:
    with pytest.raises(tbl.NotMetered, match="/v1/complete"):
        client.post("/v1/complete", body={"prompt": "x"}, cast_to=object)
    assert not provider.asked


def test_instrumenting_again_replaces_the_budget(ledger: tbl.Ledger, client: Any, study: tbl.Budget) -> None:
    other = ledger.budget("other", usd=1)
    again = tbl.instrument(client, other)
    assert sum(isinstance(each, BudgetMiddleware) for each in again.middleware) == 1
    ask(again)
    assert (study.balance.committed_requests, other.balance.committed_requests) == (0, 1)
    client.messages.count_tokens(model=MODEL, messages=ASK)


def test_a_client_that_was_never_called_warns(study: tbl.Budget, provider: Provider) -> None:
    gc.collect()
    with anthropic.Anthropic() as client:
        tbl.instrument(client, study)
        with pytest.warns(RuntimeWarning, match="never called"):
            gc.collect()


def test_tags_stand_on_the_call(study: tbl.Budget, log: Any, provider: Provider, plain: Plain) -> None:
    labelled = tbl.instrument(plain(), study, tags={"condition": "few-shot", "item": "none"})
    ask(tbl.tagged(labelled, item="q7"))
    assert dict(log.last("reserved").tags) == {"condition": "few-shot", "item": "q7"}


def test_threads_label_their_calls_without_disturbing_each_other(client: Any, log: Any) -> None:
    threads = [threading.Thread(target=lambda n=n: ask(tbl.tagged(client, item=str(n)))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settled(log, 20)
    items = sorted(dict(event.tags)["item"] for event in log.events if event.kind == "reserved")
    assert items == sorted(map(str, range(20)))


def test_a_plain_client_cannot_be_tagged() -> None:
    with pytest.raises(tbl.InvalidValue, match="under no budget"):
        tbl.tagged(anthropic.Anthropic(api_key="none"), item="q7")


def test_no_budget_means_nothing_is_sent(provider: Provider, plain: Plain) -> None:
    with pytest.raises(tbl.NoBudget):
        ask(tbl.instrument(plain()))
    assert not provider.asked


def test_what_is_learned_is_held_and_never_more_than_the_call_allows(client: Any, log: Any) -> None:
    for _ in range(21):
        ask(client)
    ask(client, max_tokens=5)
    reserved = [event for event in log.events if event.kind == "reserved"]
    assert '"hold":"worst"' in reserved[0].detail
    assert '"hold":"auto: 99% of 20 answers"' in reserved[20].detail
    assert '"max_output_tokens":5' in reserved[21].detail
    assert log.last("committed").usd <= Decimal(10**12)


@pytest.mark.parametrize(
    "wrong",
    [{"hold": "much"}, {"on_exceeded": "pray"}, {"wait": -1}, {"wait": float("nan")}, {"counter": 5}, {"tags": {"a": 1}}],
)
def test_a_wrong_argument_is_named(study: tbl.Budget, wrong: dict[str, Any]) -> None:
    with pytest.raises(tbl.InvalidValue, match=next(iter(wrong))):
        tbl.instrument(anthropic.Anthropic(api_key="none"), study, **wrong)


@pytest.mark.parametrize("client", [5, None, "client", anthropic.Anthropic])
def test_what_is_no_client_is_refused(study: tbl.Budget, client: Any) -> None:
    with pytest.raises(tbl.InvalidType, match="not known here"):
        tbl.instrument(client, study)


def test_whoever_makes_the_client_can_put_it_under_a_budget(study: tbl.Budget, plain: Plain, log: Any) -> None:
    ask(plain(middleware=[study.middleware(tags={"arm": "b"}, hold="worst")]))
    assert dict(log.last("reserved").tags) == {"arm": "b"}
    assert settled(log, 1)[0].basis == "measured"


def test_a_middleware_that_answers_itself_costs_nothing(study: tbl.Budget, plain: Plain, log: Any, provider: Provider) -> None:
    """Ours stands innermost: what does not get there is not sent."""
    kept = anthropic.types.Message.model_construct(id="kept")
    client = tbl.instrument(plain(middleware=[lambda request, call_next: kept]), study)
    assert ask(client) is kept
    assert "reserved" not in log.kinds
    client.with_options(middleware=client.middleware[1:]).messages.count_tokens(model=MODEL, messages=ASK)


def test_what_another_middleware_asks_twice_is_reserved_twice(study: tbl.Budget, plain: Plain, log: Any) -> None:
    def twice(request: Any, call_next: Any) -> Any:
        call_next(request)
        return call_next(request)

    ask(tbl.instrument(plain(middleware=[twice]), study))
    assert [event.kind for event in settled(log, 2)] == ["committed", "committed"]


@pytest.mark.parametrize(("control", "times"), [({"type": "ephemeral"}, "1.25"), ({"type": "ephemeral", "ttl": "1h"}, "2")])
def test_what_is_to_be_cached_is_held_at_the_price_of_writing_it(
    client: Any, log: Any, control: dict[str, str], times: str
) -> None:
    """Writing a prompt to the cache costs more than reading it once; the answer costs what it did."""
    words = "What is a budget? " * 50
    ask(client, messages=[{"role": "user", "content": [{"type": "text", "text": words}]}], max_tokens=1)
    ask(
        client,
        messages=[{"role": "user", "content": [{"type": "text", "text": words, "cache_control": control}]}],
        max_tokens=1,
    )
    plain, cached = (event for event in log.events if event.kind == "reserved")
    answer = 10 * 10**6  # of one token, in pico-dollars
    assert Decimal(cached.held_usd - answer) == (plain.held_usd - answer) * Decimal(times)


def test_what_settles_a_call_waits_for_company(tmp_path: Path, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a commit; sent with what comes next it is one transaction of the keeper's. Who asks here sees it."""
    monkeypatch.setattr(link, "LAZY_S", 30)
    with tbl.connect(tmp_path / "spend.duckdb") as ledger, tbl.connect(tmp_path / "spend.duckdb") as other:
        study = ledger.budget("study", usd=1)
        ask(tbl.instrument(plain(), study))
        seen = other.budget("study").balance
        assert (seen.committed_requests, seen.reserved_requests) == (0, 1)
        assert (study.balance.committed_requests, other.budget("study").balance.committed_requests) == (1, 1)
    link.stop(place_of(tmp_path / "spend.duckdb"))


def test_what_settles_the_last_call_is_sent_soon_by_itself(tmp_path: Path, plain: Plain) -> None:
    with tbl.connect(tmp_path / "spend.duckdb") as ledger, tbl.connect(tmp_path / "spend.duckdb") as other:
        ask(tbl.instrument(plain(), ledger.budget("study", usd=1)))
        until = time.monotonic() + 5
        while not other.budget("study").balance.committed_requests:
            assert time.monotonic() < until
    link.stop(place_of(tmp_path / "spend.duckdb"))


def test_calls_that_begin_at_once_read_the_ledger_once(
    study: tbl.Budget, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it teaches takes a moment to read; two hundred readings at the same time would take all of the machine."""
    readings: list[str] = []
    measured = lengths.measured

    def counted(*arguments: Any) -> list[int]:
        readings.append(arguments[1])
        return measured(*arguments)

    monkeypatch.setattr(lengths, "measured", counted)

    async def at_once() -> None:
        async with anthropic.AsyncAnthropic() as client:
            under = tbl.instrument(client, study)
            await asyncio.gather(*(under.messages.create(model=MODEL, max_tokens=9, messages=ASK) for _ in range(20)))

    asyncio.run(at_once())
    assert readings == [MODEL]
