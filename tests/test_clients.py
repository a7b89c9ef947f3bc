"""Clients, event loops and threads: one client each, nothing left open, nobody taken along.

Warnings are errors here, so a socket or a transport that nobody closed fails the test that made it.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import OVERHEAD, Answer, Provider, failed
from tokenbudget_lab import loops
from tokenbudget_lab.clients import PerLoop

MODEL = "claude-sonnet-5-5"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def counter(provider: Provider) -> Iterator[tbl.ClaudeTokenCounter]:
    with tbl.ClaudeTokenCounter(MODEL, cache_size=0) as counter:
        yield counter


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Every client of the SDK that is made."""
    made: list[type] = []
    for kind in (anthropic.Anthropic, anthropic.AsyncAnthropic):

        def counted(self: Any, *args: Any, real: Any = kind.__init__, **options: Any) -> None:
            made.append(type(self))
            real(self, *args, **options)

        monkeypatch.setattr(kind, "__init__", counted)
    return made


# --- one client, not one for each call ---------------------------------------------------------------------------------


def test_one_client_and_one_connection_serve_all_counts_one_after_the_other(
    counter: tbl.ClaudeTokenCounter, provider: Provider, made: list[type]
) -> None:
    for n in range(20):
        counter.count_sync("s" * n)
    assert (made, provider.connections) == ([anthropic.Anthropic], 1)

    async def main() -> None:
        for n in range(20):
            await counter.count("a" * n)

    asyncio.run(main())
    assert (made, provider.connections) == ([anthropic.Anthropic, anthropic.AsyncAnthropic], 2)


def test_no_more_connections_than_requests_at_the_same_time(
    counter: tbl.ClaudeTokenCounter, provider: Provider, made: list[type]
) -> None:
    async def main() -> None:
        await asyncio.gather(*[counter.count("a" * n) for n in range(300)])

    asyncio.run(main())
    assert (len(made), len(provider.asked)) == (1, 300)
    assert provider.connections <= 16


# --- loops that end ----------------------------------------------------------------------------------------------------


def test_the_same_counter_serves_one_loop_after_the_other(
    counter: tbl.ClaudeTokenCounter, provider: Provider, made: list[type]
) -> None:
    """Each with a client of its own; none fails, none hides a failure behind a retry, and none leaves a connection open."""
    for n in range(3):
        assert asyncio.run(counter.count("a" * n)).tokens == n + OVERHEAD
        until(lambda: provider.connected == 0)
    assert made == [anthropic.AsyncAnthropic] * 3
    assert [asked.headers["x-stainless-retry-count"] for asked in provider.asked] == ["0"] * 3
    assert len(counter._clients._leases) == len(counter._gates) == 1  # the others are let go of


def test_an_async_client_that_is_shared_by_loops_fails(provider: Provider) -> None:
    """Which the SDK's retries would have hidden: this is what the one client for each loop is for."""
    client = anthropic.AsyncAnthropic(max_retries=0, http_client=anthropic.DefaultAsyncHttpxClient())

    async def ask(client: anthropic.AsyncAnthropic = client) -> None:
        await client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "a"}])

    asyncio.run(ask())
    with pytest.raises((anthropic.APIConnectionError, RuntimeError)):
        asyncio.run(ask())
    with warnings.catch_warnings(action="ignore"):  # of what it left open
        del client, ask
        gc.collect()


def test_a_loop_that_is_closed_without_its_generators_troubles_no_other(
    counter: tbl.ClaudeTokenCounter, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody closes its client in the next one, where that would fail."""
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(counter.count("a")).tokens == 1 + OVERHEAD
    loop.close()

    async def main() -> int:
        with warnings.catch_warnings(action="ignore"):  # of what was left open
            count = await counter.count("bb")
            gc.collect()
            await asyncio.sleep(0.05)
            return count.tokens

    assert asyncio.run(main()) == 2 + OVERHEAD
    assert [asked.headers["x-stainless-retry-count"] for asked in provider.asked] == ["0", "0"]
    assert not caplog.records


def test_loops_in_threads_have_each_their_own_client(
    counter: tbl.ClaudeTokenCounter, provider: Provider, made: list[type]
) -> None:
    counts: list[int] = []

    async def main() -> None:
        counts.extend([count.tokens for count in await asyncio.gather(*[counter.count("a" * n) for n in range(50)])])

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == sorted([n + OVERHEAD for n in range(50)] * 4)
    assert made == [anthropic.AsyncAnthropic] * 4
    until(lambda: provider.connected == 0)


def test_what_is_made_for_a_loop_goes_with_it() -> None:
    """Though it refers to its loop, which would keep a weak key alive for ever."""
    per_loop: PerLoop[Any] = PerLoop(asyncio.get_running_loop)

    async def here() -> int:
        return id(per_loop.here())

    for _ in range(5):
        asyncio.run(here())
    assert len(per_loop) == 1


def test_a_counter_that_is_dropped_closes_its_connections(provider: Provider) -> None:
    async def main() -> None:
        counter = tbl.ClaudeTokenCounter(MODEL)
        await asyncio.gather(*[counter.count("a" * n) for n in range(9)])
        del counter
        gc.collect()
        await asyncio.to_thread(until, lambda: provider.connected == 0)

    asyncio.run(main())
    counter = tbl.ClaudeTokenCounter(MODEL)
    counter.count_sync("How much?")
    del counter
    gc.collect()
    until(lambda: provider.connected == 0)


def test_closing_closes_and_a_later_count_opens_again(provider: Provider) -> None:
    async def main() -> None:
        async with tbl.ClaudeTokenCounter(MODEL, cache_size=0) as counter:
            counter.count_sync("How much?")
            await counter.count("How much?")
            assert provider.connected == 2
        await asyncio.to_thread(until, lambda: provider.connected == 0)
        assert (await counter.count("How much?")).tokens == 9 + OVERHEAD
        counter.close()  # whose client of this loop is closed by the loop, in a moment
        await asyncio.to_thread(until, lambda: provider.connected == 0)

    asyncio.run(main())


# --- sync code where a loop runs ---------------------------------------------------------------------------------------


def test_count_sync_works_inside_a_running_loop(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    """Also while a task of that very loop is asking for the same."""
    provider.always(Answer(after_s=0.1))

    async def main() -> list[int]:
        asking = asyncio.create_task(counter.count("How much?"))
        await asyncio.to_thread(until, lambda: provider.at_work == 1)
        now = counter.count_sync("How much?")  # the loop stands still meanwhile
        return [now.tokens, (await asking).tokens]

    assert asyncio.run(asyncio.wait_for(main(), 10)) == [9 + OVERHEAD] * 2
    assert len(provider.asked) == 2


def test_a_coroutine_from_sync_code_has_the_private_loops_client(
    counter: tbl.ClaudeTokenCounter, provider: Provider, made: list[type]
) -> None:
    for n in range(3):
        assert loops.run(counter.count("a" * n)).tokens == n + OVERHEAD
    assert (made, provider.connections) == ([anthropic.AsyncAnthropic], 1)
    counter.close()
    until(lambda: provider.connected == 0)


# --- clients of the user's own -----------------------------------------------------------------------------------------


def test_a_sync_client_of_ones_own_serves_async_code_from_threads(provider: Provider, made: list[type]) -> None:
    provider.always(Answer(after_s=0.02))
    with anthropic.Anthropic(default_headers={"x-whose": "mine"}) as client:
        counter = tbl.ClaudeTokenCounter(MODEL, client=client, concurrency=4)

        async def main() -> list[int]:
            return [count.tokens for count in await asyncio.gather(*[counter.count("a" * n) for n in range(30)])]

        assert asyncio.run(main()) == [n + OVERHEAD for n in range(30)]
        assert counter.count_sync("How much?").tokens == 9 + OVERHEAD
        counter.close()
        assert not client.is_closed()  # it is not ours to close
    assert {asked.headers["x-whose"] for asked in provider.asked} == {"mine"}
    assert (made, provider.most_at_work) == ([anthropic.Anthropic], 4)


def test_an_async_client_of_ones_own_serves_its_loop_and_says_so_elsewhere(provider: Provider) -> None:
    async def first(counter: tbl.ClaudeTokenCounter, client: anthropic.AsyncAnthropic) -> None:
        assert (await counter.count("How much?")).tokens == 9 + OVERHEAD
        with pytest.raises(tbl.CountFailed, match=r"await counter\.count.*allow_nested_loops"):
            counter.count_sync("How much?")
        await client.close()

    client = anthropic.AsyncAnthropic(default_headers={"x-whose": "mine"})
    counter = tbl.ClaudeTokenCounter(MODEL, async_client=client, cache_size=0)
    asyncio.run(first(counter, client))
    assert {asked.headers["x-whose"] for asked in provider.asked} == {"mine"}
    with pytest.raises(tbl.CountFailed, match="belongs to another event loop"):
        asyncio.run(counter.count("How much?"))
    with pytest.raises(tbl.CountFailed, match="only an AsyncAnthropic was given"):
        counter.count_sync("How much?")
    assert len(provider.asked) == 1  # nothing was tried


def test_of_two_clients_of_ones_own_each_has_its_place(provider: Provider) -> None:
    async def main(counter: tbl.ClaudeTokenCounter, ours: anthropic.AsyncAnthropic | None) -> None:
        await counter.count("How much?")
        counter.count_sync("How much?")
        if ours is not None:
            await ours.close()

    with anthropic.Anthropic(default_headers={"x-whose": "sync"}) as client:
        async_client = anthropic.AsyncAnthropic(default_headers={"x-whose": "async"})
        counter = tbl.ClaudeTokenCounter(MODEL, client=client, async_client=async_client, cache_size=0)
        asyncio.run(main(counter, async_client))
        asyncio.run(main(counter, None))  # another loop: the sync client does it
    assert [asked.headers["x-whose"] for asked in provider.asked] == ["async", "sync", "sync", "sync"]


# --- who gives up ------------------------------------------------------------------------------------------------------


def test_a_cancelled_count_takes_nobody_along(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    """Its request is given up, and one of those who wait for the same asks in its place."""

    async def main() -> list[Any]:
        with provider.holding():
            tasks = [asyncio.create_task(counter.count("How much?")) for _ in range(5)]
            await asyncio.to_thread(until, lambda: provider.at_work == 1)
            tasks[0].cancel()
            await asyncio.to_thread(until, lambda: provider.hung_up == 1 and provider.at_work == 1)
            tasks[3].cancel()  # one who only waits
            await asyncio.sleep(0.05)
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(main())
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(others.pop(2), asyncio.CancelledError)
    assert [count.tokens for count in others] == [9 + OVERHEAD] * 3
    assert len(provider.asked) == 2
    assert not counter._answers._asking


def test_a_count_that_waits_for_its_turn_can_be_cancelled(provider: Provider) -> None:
    """And the turn is not lost."""
    counter = tbl.ClaudeTokenCounter(MODEL, concurrency=1)

    async def main() -> int:
        with provider.holding():
            tasks = [asyncio.create_task(counter.count("a" * n)) for n in range(4)]
            await asyncio.to_thread(until, lambda: provider.at_work == 1)
            tasks[1].cancel()
            tasks[2].cancel()
            await asyncio.sleep(0.01)
        return (await tasks[3]).tokens

    assert asyncio.run(main()) == 3 + OVERHEAD
    assert len(provider.asked) == 2


# --- the retries, once more, where loops change ------------------------------------------------------------------------


def test_a_retry_of_the_sdk_stays_in_its_loop(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    for _ in range(2):
        provider.script(failed(429, retry_after=0.1))
        assert asyncio.run(counter.count("How much?")).tokens == 9 + OVERHEAD
    assert [asked.headers["x-stainless-retry-count"] for asked in provider.asked] == ["0", "1", "0", "1"]
