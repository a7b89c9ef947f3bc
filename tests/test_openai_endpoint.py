"""Counting by OpenAI's endpoint, through the real SDK and a server that speaks its protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import OVERHEAD, Answer, Provider, failed


def sync(counter: tbl.OpenAITokenCounter, content: Any) -> tbl.Count:
    return counter.count_sync(content)


def awaited(counter: tbl.OpenAITokenCounter, content: Any) -> tbl.Count:
    return asyncio.run(counter.count(content))


Ask = Callable[..., tbl.Count]
both = pytest.mark.parametrize("ask", [sync, awaited])


@pytest.fixture
def counter(provider: Provider) -> Iterator[tbl.OpenAITokenCounter]:
    counter = tbl.OpenAITokenCounter("gpt-6-mini", endpoint=True)
    yield counter
    counter.close()


@both
def test_the_endpoint_counts_exactly_also_a_model_that_tiktoken_does_not_know(
    counter: tbl.OpenAITokenCounter, provider: Provider, ask: Ask
) -> None:
    assert ask(counter, "How much?") == tbl.Count(9 + OVERHEAD, exact=True, method="responses.input_tokens")
    assert provider.asked[0].path == "/v1/responses/input_tokens"


@both
@pytest.mark.parametrize(
    "busy", [failed(429, retry_after=0.1), failed(529), failed(500), Answer(drop="hang up")], ids=["429", "529", "500", "lost"]
)
def test_the_sdks_retry_helps_once(counter: tbl.OpenAITokenCounter, provider: Provider, ask: Ask, busy: Answer) -> None:
    provider.script(busy)
    assert ask(counter, "How much?").tokens == 9 + OVERHEAD
    assert len(provider.asked) == 2


def test_retry_after_is_waited_for(counter: tbl.OpenAITokenCounter, provider: Provider) -> None:
    provider.script(failed(429, retry_after=1))
    counter.count_sync("How much?")
    first, second = provider.asked
    assert second.at - first.at >= 0.95


@both
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failed(429), tbl.CountFailed),
        (failed(401), tbl.CountFailed),
        (Answer(body=b"<html>log in</html>", headers={"content-type": "text/html"}), tbl.CountFailed),
        (Answer(body=b'{"input_tokens": '), tbl.CountFailed),
        (Answer(body={"input_tokens": 0}), tbl.CountFailed),
        (Answer(body={"input_tokens": "7"}), tbl.CountFailed),
        (Answer(body={"tokens": 7}), tbl.CountFailed),
        (Answer(body=[]), tbl.CountFailed),
        (Answer(after_s=5), tbl.EndpointUnreachable),
        (Answer(drop="hang up"), tbl.EndpointUnreachable),
    ],
    ids=["429", "401", "html", "half", "zero", "text", "other", "list", "slow", "lost"],
)
def test_what_is_no_count_is_an_error_that_says_so(
    provider: Provider, ask: Ask, answer: Answer, error: type[tbl.CountFailed]
) -> None:
    """And never zero, a guess, or the SDK's own error."""
    provider.always(answer)
    with openai.OpenAI(max_retries=0, timeout=0.3) as client:
        counter = tbl.OpenAITokenCounter("gpt-6-mini", client=client)
        with pytest.raises(error) as found:
            ask(counter, "How much?")
    assert "test-key" not in str(found.value)


def test_one_client_is_made_and_one_connection_for_many_counts(
    counter: tbl.OpenAITokenCounter, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    init = openai.OpenAI.__init__

    def noted(self: openai.OpenAI, **how: Any) -> None:
        made.append(self)
        init(self, **how)

    monkeypatch.setattr(openai.OpenAI, "__init__", noted)
    for n in range(20):
        counter.count_sync(f"text {n}")
    assert (len(made), provider.connections, len(provider.asked)) == (1, 1, 20)


def test_the_same_counter_serves_one_loop_after_the_other(counter: tbl.OpenAITokenCounter, provider: Provider) -> None:
    """Nothing of a closed loop is used again, and no retry hides that it was."""

    async def several() -> list[int]:
        return [count.tokens for count in await asyncio.gather(*(counter.count("x" * n) for n in range(1, 6)))]

    for _ in range(3):
        assert asyncio.run(several()) == [n + OVERHEAD for n in range(1, 6)]
    assert len(provider.asked) == 15
    assert not any(asked.headers.get("x-stainless-retry-count", "0") != "0" for asked in provider.asked)


def test_threads_and_a_running_loop_count_at_the_same_time(counter: tbl.OpenAITokenCounter, provider: Provider) -> None:
    async def inside() -> int:
        return counter.count_sync("inside a loop").tokens  # blocks the loop, and works

    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda n: counter.count_sync("x" * n).tokens, range(1, 41)))
        assert asyncio.run(inside()) == 13 + OVERHEAD
    assert counts == [n + OVERHEAD for n in range(1, 41)]


def test_many_are_asked_for_some_at_a_time(counter: tbl.OpenAITokenCounter, provider: Provider) -> None:
    provider.always(Answer(after_s=0.05))
    counts = counter.count_many_sync(["x" * n for n in range(1, 31)], concurrency=5, progress=False)
    assert [count.tokens for count in counts] == [n + OVERHEAD for n in range(1, 31)]
    assert 1 < provider.most_at_work <= 5


def test_a_cancelled_count_hangs_up(counter: tbl.OpenAITokenCounter, provider: Provider) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(counter.count("slow"))
        await asyncio.to_thread(until, lambda: provider.at_work == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with provider.holding():
        asyncio.run(cancelled())
        until(lambda: provider.hung_up == 1)
    assert counter.count_sync("next").tokens == 4 + OVERHEAD


def test_a_thread_of_the_users_own_is_no_trouble(counter: tbl.OpenAITokenCounter) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(counter.count("a thread")).tokens))
    thread.start()
    thread.join()
    assert found == [8 + OVERHEAD]
