"""Falling back: what answers in whose place, what is said of it, and what is no reason to fall back."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import anthropic
import pytest

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import OVERHEAD, Answer, Provider, failed
from tokenbudget_lab.counter import Content, System, Tools

MODEL = "claude-sonnet-5-5"


class Guess(tbl.TokenCounter):
    """Counts 5 of anything; or raises what it was told to."""

    def __init__(self, error: BaseException | None = None, note: str | None = None) -> None:
        self.error, self.note, self.asked = error, note, 0

    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> tbl.Count:
        return self.count_sync(content)

    def count_sync(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> tbl.Count:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return tbl.Count(5, exact=False, method="guess", margin=0.5, note=self.note)


class Endpoint(tbl.TokenCounter):
    """Answers, or not, as its test says at that moment; how often it was asked."""

    def __init__(self) -> None:
        self.asked, self.error = 0, tbl.EndpointUnreachable("endpoint", "the cable is out")

    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> tbl.Count:
        self.asked += 1
        if content == "slow":
            await asyncio.sleep(30)
        if content == "lost":
            await asyncio.sleep(0.05)
            raise self.error
        return tbl.Count(1, exact=True, method="endpoint")


def sync(counter: tbl.TokenCounter, content: Any = "How much?") -> tbl.Count:
    return counter.count_sync(content)


def awaited(counter: tbl.TokenCounter, content: Any = "How much?") -> tbl.Count:
    return asyncio.run(_counted(counter, content))


async def _counted(counter: tbl.TokenCounter, content: Any) -> tbl.Count:
    return await counter.count(content)


Ask = Callable[..., tbl.Count]
both = pytest.mark.parametrize("ask", [sync, awaited])
quiet = pytest.mark.filterwarnings("ignore:tokens are counted by")


class Clock:
    """Seconds that grow when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def endpoint(provider: Provider) -> tbl.ClaudeTokenCounter:
    """The real endpoint's counter, whose client does not try again."""
    return tbl.ClaudeTokenCounter(MODEL, cache_size=0, client=anthropic.Anthropic(max_retries=0, timeout=0.3))


# --- who answers, and what is said -------------------------------------------------------------------------------------


@both
def test_the_first_that_can_answers_and_the_others_are_not_asked(endpoint: tbl.ClaudeTokenCounter, ask: Ask) -> None:
    guess = Guess()
    count = ask(tbl.FallbackTokenCounter(endpoint, guess))
    assert count == tbl.Count(9 + OVERHEAD, exact=True, method="count_tokens")
    assert guess.asked == 0


@both
def test_a_fall_back_says_who_did_not_answer_and_why(endpoint: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask) -> None:
    """In its note, and in a warning."""
    provider.always(failed(529))
    counter = tbl.FallbackTokenCounter(endpoint, Guess(tbl.CountFailed("o200k", "images")), Guess(note="assumed"))
    with pytest.warns(UserWarning, match=r"counted by guess instead: .*count_tokens: .*overloaded \(529\).*o200k: images"):
        count = ask(counter)
    assert (count.tokens, count.exact, count.method, count.margin) == (5, False, "guess", 0.5)
    assert count.note is not None
    for word in ("count_tokens", "overloaded (529)", "o200k", "images", "; assumed"):
        assert word in count.note


def test_only_the_first_fall_back_of_a_kind_is_warned_of_but_every_count_says_it(
    endpoint: tbl.ClaudeTokenCounter, provider: Provider
) -> None:
    counter = tbl.FallbackTokenCounter(endpoint, Guess())
    provider.always(failed(529))
    with pytest.warns(UserWarning, match="overloaded") as told:
        notes = {counter.count_sync("a").note, counter.count_sync("b").note}
    assert (len(told), len(notes), None in notes) == (1, 1, False)
    provider.always(failed(401))
    with pytest.warns(UserWarning, match="refused the key"):
        counter.count_sync("a")
    counter.count_sync("b")  # a warning would be an error here


def test_warnings_come_to_an_end(provider: Provider, endpoint: tbl.ClaudeTokenCounter) -> None:
    """Where each content is refused for a reason of its own; the notes go on."""
    counter = tbl.FallbackTokenCounter(endpoint, Guess())
    with warnings.catch_warnings(record=True, action="always") as told:
        for n in range(30):
            provider.script(failed(400, f"reason {n}"))
            assert f"reason {n})" in str(counter.count_sync("a").note)
    assert len(told) == 10


@both
def test_where_none_can_the_error_names_all(endpoint: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask) -> None:
    provider.always(failed(529))
    counter = tbl.FallbackTokenCounter(endpoint, Guess(tbl.CountFailed("o200k", "images")))
    with pytest.raises(tbl.CountFailed, match=r"count_tokens nor o200k: .*overloaded.*images") as caught:
        ask(counter)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@both
@pytest.mark.parametrize(
    "error", [TypeError("a bug"), ZeroDivisionError(), tbl.InvalidType("content", "is bytes"), MemoryError()]
)
def test_a_bug_and_a_wrong_argument_are_no_reason_to_fall_back(ask: Ask, error: Exception) -> None:
    guess = Guess()
    with pytest.raises(type(error)) as caught:
        ask(tbl.FallbackTokenCounter(Guess(error), guess))
    assert (caught.value is error, guess.asked) == (True, 0)


def test_ctrl_c_is_no_reason_to_fall_back() -> None:
    guess = Guess()
    with pytest.raises(KeyboardInterrupt):
        tbl.FallbackTokenCounter(Guess(KeyboardInterrupt()), guess).count_sync("a")
    assert guess.asked == 0


def test_a_cancellation_is_no_reason_to_fall_back_and_ends_the_request(provider: Provider) -> None:
    guess = Guess()
    counter = tbl.FallbackTokenCounter(tbl.ClaudeTokenCounter(MODEL), guess)

    async def main() -> None:
        with provider.holding():
            task = asyncio.create_task(counter.count("a"))
            await asyncio.to_thread(until, lambda: provider.at_work == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(until, lambda: provider.hung_up == 1)

    asyncio.run(main())
    assert guess.asked == 0


@pytest.mark.parametrize(
    ("counters", "options", "error"),
    [
        ([], {}, tbl.InvalidValue),
        (["o200k"], {}, tbl.InvalidType),
        ([Guess()], {"pause_s": -1}, tbl.InvalidValue),
        ([Guess()], {"pause_s": float("nan")}, tbl.InvalidValue),
    ],
)
def test_wrong_arguments_are_refused_at_the_making(
    counters: list[Any], options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        tbl.FallbackTokenCounter(*counters, **options)


# --- how it recovers ---------------------------------------------------------------------------------------------------


@quiet
@both
@pytest.mark.parametrize("busy", [failed(429), failed(529), Answer(body=b"<html>")])
def test_after_a_refusal_the_first_counter_is_asked_again_at_once(
    endpoint: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask, busy: Answer
) -> None:
    provider.script(busy)
    counter = tbl.FallbackTokenCounter(endpoint, Guess())
    assert [ask(counter).method for _ in range(3)] == ["guess", "count_tokens", "count_tokens"]


@quiet
@both
def test_what_cannot_be_reached_is_left_alone_for_some_seconds(
    endpoint: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask
) -> None:
    """A thousand counts wait for one time limit, and each says how it was made.

    endpoint  answers nothing in time
    count     1000 times: the first one waits for 0.3 s
    29 s      still left alone
    31 s      asked again, and it answers
    """
    clock = Clock()
    counter = tbl.FallbackTokenCounter(endpoint, Guess(), clock=clock)
    provider.script(Answer(after_s=1.0))
    start = time.monotonic()
    first, *others = [counter.count_sync("a") for _ in range(1000)]
    assert time.monotonic() - start < 5
    assert len(provider.asked) == 1
    assert {count.method for count in (first, *others)} == {"guess"}
    assert "did not answer in time" in str(first.note)
    assert {"it is asked again in 30 s" in str(count.note) for count in others} == {True}
    clock.now += 29
    assert "it is asked again in 1 s" in str(ask(counter).note)
    clock.now += 2
    assert ask(counter).method == "count_tokens"
    assert len(provider.asked) == 2


@quiet
def test_those_that_wait_for_what_is_lost_wait_no_longer() -> None:
    """A hundred thousand that were asked together do not wait for each other's time limits.

    count  "slow" 100 times, "lost" once: whoever began before it is not answered any more
    """
    endpoint, guess = Endpoint(), Guess()
    counter = tbl.FallbackTokenCounter(endpoint, guess)

    async def main() -> list[tbl.Count]:
        return await asyncio.gather(*[counter.count(text) for text in ["slow"] * 100 + ["lost"]])

    counts = asyncio.run(asyncio.wait_for(main(), 10))
    assert {count.method for count in counts} == {"guess"}
    assert all("the cable is out" in str(count.note) for count in counts)
    assert not counter._turns[0]._asking


@quiet
def test_one_slow_answer_among_good_ones_is_no_loss() -> None:
    """What has answered others since is there; only the one that got no answer falls back."""
    endpoint = Endpoint()
    counter = tbl.FallbackTokenCounter(endpoint, Guess())

    async def main() -> list[str]:
        lost = asyncio.create_task(counter.count("lost"))
        await asyncio.sleep(0.01)
        good = await counter.count("good")
        return [(await lost).method, good.method, (await counter.count("good")).method]

    assert asyncio.run(main()) == ["guess", "endpoint", "endpoint"]


@quiet
def test_without_a_pause_each_count_tries(endpoint: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    provider.script(Answer(drop="hang up"), Answer(drop="hang up"))
    counter = tbl.FallbackTokenCounter(endpoint, Guess(), pause_s=0)
    assert [counter.count_sync("a").method for _ in range(3)] == ["guess", "guess", "count_tokens"]


@quiet
def test_threads_and_loops_share_what_is_known_to_be_lost(endpoint: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    """A loop that has ended meanwhile is no trouble."""
    counter = tbl.FallbackTokenCounter(endpoint, Guess())
    provider.script(Answer(drop="hang up"))
    assert asyncio.run(counter.count("a")).method == "guess"
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(counter.count_sync("a").method))
    thread.start()
    thread.join()
    assert told == ["guess"]
    assert asyncio.run(counter.count("a")).method == "guess"
    assert len(provider.asked) == 1


@quiet
def test_many_are_counted_though_the_endpoint_is_busy_now_and_then(provider: Provider) -> None:
    """Every count is right, or says that it is a guess, with the SDK's own retries off."""
    provider.script(*[failed(429), Answer()] * 20)
    client = anthropic.Anthropic(max_retries=0)
    counter = tbl.FallbackTokenCounter(tbl.ClaudeTokenCounter(MODEL, client=client), Guess())

    async def main() -> list[tbl.Count]:
        return await asyncio.gather(*[counter.count("a" * n) for n in range(60)])

    counts = asyncio.run(main())
    client.close()
    assert sum(count.method == "guess" for count in counts) == 20
    for n, count in enumerate(counts):
        assert count.tokens == (n + OVERHEAD if count.exact else 5)
        assert (count.note is None) is count.exact
