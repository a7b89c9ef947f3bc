"""Counting for Claude: what is asked, what is answered, what is remembered, and what goes wrong, through the real SDK."""

from __future__ import annotations

import asyncio
import io
import pickle
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import pytest
from anthropic.types import TextBlock

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import OVERHEAD, Answer, Provider, failed

MODEL = "claude-sonnet-5-5"
TOOL = {"name": "look", "description": "Look it up.", "input_schema": {"type": "object", "properties": {}}}


def sync(counter: tbl.ClaudeTokenCounter, content: Any, **more: Any) -> tbl.Count:
    return counter.count_sync(content, **more)


def awaited(counter: tbl.ClaudeTokenCounter, content: Any, **more: Any) -> tbl.Count:
    return asyncio.run(counter.count(content, **more))


Ask = Callable[..., tbl.Count]
both = pytest.mark.parametrize("ask", [sync, awaited])


@pytest.fixture
def counter(provider: Provider) -> tbl.ClaudeTokenCounter:
    return tbl.ClaudeTokenCounter(MODEL)


# --- what is counted ---------------------------------------------------------------------------------------------------


@both
def test_a_text_is_counted_as_one_message_of_the_user(counter: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask) -> None:
    count = ask(counter, "How much?")
    assert count == tbl.Count(9 + OVERHEAD, exact=True, method="count_tokens")
    (asked,) = provider.asked
    assert (asked.path, asked.body) == (
        "/v1/messages/count_tokens",
        {"model": MODEL, "messages": [{"role": "user", "content": "How much?"}]},
    )


@both
def test_messages_tools_and_system_are_counted_as_they_are_given(
    counter: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask
) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]},
        {"role": "assistant", "content": [TextBlock(type="text", text="A cat.")]},
        {"role": "user", "content": "And now?"},
    ]
    ask(counter, messages, tools=[TOOL], system="Be brief.")
    messages[1]["content"] = [{"type": "text", "text": "A cat."}]
    assert provider.asked[0].body == {"model": MODEL, "messages": messages, "tools": [TOOL], "system": "Be brief."}


@both
@pytest.mark.parametrize("content", [b"bytes", 12, None, {"role": "user", "content": "x"}, ["text"], iter([])])
def test_what_is_neither_text_nor_messages_is_refused(
    counter: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask, content: Any
) -> None:
    with pytest.raises(tbl.InvalidType, match="content"):
        ask(counter, content)
    assert not provider.asked


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"model": ""}, tbl.InvalidValue),
        ({"model": None}, tbl.InvalidType),
        ({"concurrency": 0}, tbl.InvalidValue),
        ({"concurrency": 1.5}, tbl.InvalidType),
        ({"cache_size": -1}, tbl.InvalidValue),
        ({"cache_size": True}, tbl.InvalidType),
        ({"client": "sk-ant-key"}, tbl.InvalidType),
    ],
)
def test_wrong_arguments_are_refused_at_the_making(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(wrong))):
        tbl.ClaudeTokenCounter(**{"model": MODEL, **wrong})


def test_a_client_of_the_other_kind_is_refused_at_the_making(provider: Provider) -> None:
    with pytest.raises(tbl.InvalidType, match="not AsyncAnthropic"):
        tbl.ClaudeTokenCounter(MODEL, client=anthropic.AsyncAnthropic())  # type: ignore[arg-type]
    with anthropic.Anthropic() as client, pytest.raises(tbl.InvalidType, match="not Anthropic"):
        tbl.ClaudeTokenCounter(MODEL, async_client=client)  # type: ignore[arg-type]


# --- what is remembered ------------------------------------------------------------------------------------------------


@both
def test_what_was_counted_is_not_asked_again(counter: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask) -> None:
    """Nor when async code asks for what sync code asked before; whatever differs in any part is asked."""
    first, again = counter.count_sync("How much?"), ask(counter, "How much?")
    assert (first, len(provider.asked)) == (again, 1)
    for more in ({"system": "Be brief."}, {"tools": [TOOL]}, {"system": "Be brief"}):
        ask(counter, "How much?", **more)
        ask(counter, "How much?", **more)
    assert len(provider.asked) == 4
    ask(counter, [{"role": "user", "content": "How much?"}])  # which is what the text means
    assert len(provider.asked) == 4


def test_only_so_many_counts_are_remembered_and_the_oldest_goes_first(provider: Provider) -> None:
    counter = tbl.ClaudeTokenCounter(MODEL, cache_size=2)
    for text in ("a", "b", "a", "c", "a", "b"):  # b was forgotten for c
        counter.count_sync(text)
    assert [asked.body["messages"][0]["content"] for asked in provider.asked] == ["a", "b", "c", "b"]
    assert len(counter._answers) == 2
    counter = tbl.ClaudeTokenCounter(MODEL, cache_size=0)
    assert [counter.count_sync("d").tokens, counter.count_sync("d").tokens] == [1 + OVERHEAD] * 2
    assert (len(provider.asked), len(counter._answers)) == (6, 0)


def test_nothing_of_the_content_is_kept(counter: tbl.ClaudeTokenCounter) -> None:
    counter.count_sync("the patient's name is Ada", system="a secret system prompt")
    kept = repr(vars(counter)) + repr(vars(counter._answers)) + repr(counter)
    assert not any(word in kept for word in ("Ada", "secret", "test-key"))


def test_an_error_is_not_remembered(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    provider.script(failed(400))
    with pytest.raises(tbl.CountFailed):
        counter.count_sync("How much?")
    assert counter.count_sync("How much?").tokens == 9 + OVERHEAD


def test_messages_that_change_while_they_wait_are_counted_as_they_were(
    counter: tbl.ClaudeTokenCounter, provider: Provider
) -> None:
    """And the changed ones are not taken for them."""
    counter = tbl.ClaudeTokenCounter(MODEL, concurrency=1)
    messages = [{"role": "user", "content": "one"}]

    async def main() -> tbl.Count:
        with provider.holding():
            first = asyncio.create_task(counter.count("something in the way"))
            waiting = asyncio.create_task(counter.count(messages))
            await asyncio.to_thread(until, lambda: provider.at_work == 1)
            messages.append({"role": "user", "content": "two"})
        await first
        return await waiting

    assert asyncio.run(main()).tokens == 3 + OVERHEAD
    assert counter.count_sync(messages).tokens == 6 + OVERHEAD


def test_an_open_file_is_sent_and_not_remembered(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    """What it holds may differ the next time."""
    for data in (b"one", b"two"):
        source = {"type": "base64", "media_type": "image/png", "data": io.BytesIO(data)}
        counter.count_sync([{"role": "user", "content": [{"type": "image", "source": source}]}])
    sent = [asked.body["messages"][0]["content"][0]["source"]["data"] for asked in provider.asked]
    assert sent == ["b25l", "dHdv"]


# --- who asks at the same time -----------------------------------------------------------------------------------------


def test_equal_tasks_ask_once(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    async def main() -> list[tbl.Count]:
        return await asyncio.gather(*[counter.count(text) for text in ["a", "bb"] * 100])

    provider.always(Answer(after_s=0.1))
    assert [count.tokens for count in asyncio.run(main())] == [1 + OVERHEAD, 2 + OVERHEAD] * 100
    assert len(provider.asked) == 2


def test_equal_threads_ask_once(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    provider.always(Answer(after_s=0.2))
    with ThreadPoolExecutor(32) as pool:
        counts = list(pool.map(counter.count_sync, ["a", "bb"] * 16))
    assert [count.tokens for count in counts] == [1 + OVERHEAD, 2 + OVERHEAD] * 16
    assert len(provider.asked) == 2


@pytest.mark.parametrize("concurrency", [1, 5])
def test_no_more_requests_at_the_same_time_than_wanted(provider: Provider, concurrency: int) -> None:
    """Of 40 tasks, then of 20 threads; and no fewer."""
    provider.always(Answer(after_s=0.03))
    counter = tbl.ClaudeTokenCounter(MODEL, concurrency=concurrency)

    async def main() -> None:
        await asyncio.gather(*[counter.count("t" * n) for n in range(40)])

    asyncio.run(main())
    assert provider.most_at_work == concurrency
    provider.most_at_work = 0
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(counter.count_sync, ["s" * n for n in range(100, 140)]))
    assert provider.most_at_work == concurrency


def test_many_threads_get_each_its_own_count(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    texts = ["x" * (n % 150) for n in range(600)]
    with ThreadPoolExecutor(32) as pool:
        assert [count.tokens for count in pool.map(counter.count_sync, texts)] == [len(text) + OVERHEAD for text in texts]
    assert len(provider.asked) == 150
    assert provider.connections <= 16


def test_one_error_is_told_to_all_who_waited_for_it(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    provider.script(Answer(400, failed(400).body, after_s=0.2))

    async def main() -> list[Any]:
        return await asyncio.gather(*[counter.count("a") for _ in range(5)], return_exceptions=True)

    errors = asyncio.run(main())
    assert {type(error) for error in errors} == {tbl.CountFailed}
    assert (len({id(error) for error in errors}), len(provider.asked)) == (5, 1)  # each has its own traceback


# --- what goes wrong ---------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("busy", [failed(429, retry_after=0.3), failed(529), failed(500), Answer(drop="hang up")])
def test_the_sdks_retry_helps_once(counter: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask, busy: Answer) -> None:
    provider.script(busy)
    assert ask(counter, "How much?").tokens == 9 + OVERHEAD
    first, second = provider.asked
    assert second.headers["x-stainless-retry-count"] == "1"
    assert second.at - first.at >= float(busy.headers.get("retry-after", 0.0))


REFUSALS = {
    "401": (failed(401, "invalid x-api-key: test-key-of-anthropic"), r"refused the key \(401\); check ANTHROPIC_API_KEY"),
    "404": (failed(404, "model: claude-9"), r"does not know 'claude-sonnet-5-5', or does not count \(404: model: claude-9\)"),
    "400": (failed(400, "messages: too few"), r"refused the request \(400: messages: too few\)"),
    "400 with a key": (failed(400, "what is test-key-of-anthropic?"), r"400: what is \[redacted\]"),
    "429": (failed(429), r"rate limit is reached \(429\)"),
    "529": (failed(529), r"overloaded \(529\)"),
    "503 in HTML": (Answer(503, b"<html>busy</html>"), r"overloaded \(503\)"),
    "no JSON": (Answer(body=b'{"input_tokens": 1'), "is no count"),
    "nothing": (Answer(body=b""), "is no count"),
    "a login page": (Answer(body=b"<html>log in</html>", headers={"content-type": "text/html"}), "is no count"),
    "a list": (Answer(body=[12]), "is no count"),
    "null": (Answer(body=b"null"), "is no count"),
    "another shape": (Answer(body={"tokens": 12}), "is no count"),
    "text": (Answer(body={"input_tokens": "12"}), "is no count"),
    "a fraction": (Answer(body={"input_tokens": 12.5}), "is no count"),
    "true": (Answer(body={"input_tokens": True}), "is no count"),
    "negative": (Answer(body={"input_tokens": -1}), "is no count"),
    "zero": (Answer(body={"input_tokens": 0}), "is no count"),  # every request has tokens
    "too much": (Answer(body={"input_tokens": 2**60}), "is no count"),
    "a hang-up": (Answer(drop="hang up"), "no connection to the API"),
    "half an answer": (Answer(drop="cut"), "no connection to the API"),
    "silence": (Answer(after_s=1.0), "did not answer in time"),
}


@both
@pytest.mark.parametrize(("answer", "said"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_no_count_is_an_error_that_says_so(provider: Provider, ask: Ask, answer: Answer, said: str) -> None:
    """It pickles, tells no key, and the next count works."""
    provider.script(answer)
    with anthropic.Anthropic(timeout=0.2, max_retries=0) as client:
        counter = tbl.ClaudeTokenCounter(MODEL, client=client)
        with pytest.raises(tbl.CountFailed, match=said) as caught:
            ask(counter, "How much?")
        error = caught.value
        unreachable = "no connection" in said or "in time" in said
        assert isinstance(error, tbl.EndpointUnreachable) is unreachable
        assert "test-key" not in f"{error} {error.args!r}"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert ask(counter, "How much?").tokens == 9 + OVERHEAD


@both
def test_where_nobody_listens_there_is_no_connection(provider: Provider, ask: Ask) -> None:
    provider.close()
    counter = tbl.ClaudeTokenCounter(MODEL)
    start = time.monotonic()
    with pytest.raises(tbl.EndpointUnreachable, match=r"no connection to the API \(ConnectError\)"):
        ask(counter, "How much?")
    assert time.monotonic() - start < 10


@both
def test_without_a_key_nothing_is_sent_and_the_key_may_come_later(
    counter: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the next cell, as it happens."""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(tbl.CountFailed, match="no API key, and nothing was sent; set ANTHROPIC_API_KEY"):
        ask(counter, "How much?")
    assert not provider.asked
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key-that-was-forgotten")
    assert ask(counter, "How much?").tokens == 9 + OVERHEAD
    assert provider.asked[0].headers["authorization"] == "Bearer test-key-that-was-forgotten"


def test_after_a_refused_key_the_environment_is_read_anew(
    counter: tbl.ClaudeTokenCounter, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.script(failed(401))
    with pytest.raises(tbl.CountFailed, match="refused the key"):
        counter.count_sync("How much?")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key-that-is-right")
    counter.count_sync("How much?")
    assert provider.asked[-1].headers["authorization"] == "Bearer test-key-that-is-right"


@both
def test_half_a_surrogate_pair_cannot_be_sent(counter: tbl.ClaudeTokenCounter, provider: Provider, ask: Ask) -> None:
    with pytest.raises(tbl.CountFailed, match="surrogate pair"):
        ask(counter, "a\ud800b")
    assert not provider.asked


@both
def test_a_bug_is_seen_as_it_is(provider: Provider, ask: Ask) -> None:
    """An error of the caller's own code is none of the endpoint."""

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("in a middleware")

    with anthropic.Anthropic(middleware=[broken]) as client:
        counter = tbl.ClaudeTokenCounter(MODEL, client=client)
        with pytest.raises(ZeroDivisionError):
            ask(counter, "How much?")


def test_a_closed_client_is_named(provider: Provider) -> None:
    client = anthropic.Anthropic(max_retries=0)
    client.close()
    with pytest.raises(tbl.CountFailed, match="the client is closed"):
        tbl.ClaudeTokenCounter(MODEL, client=client).count_sync("How much?")


def test_a_key_is_in_no_traceback(counter: tbl.ClaudeTokenCounter, provider: Provider) -> None:
    provider.script(failed(429), failed(429), failed(429))
    with pytest.raises(tbl.CountFailed) as caught:
        counter.count_sync("How much?")
    assert "test-key" not in "".join(traceback.format_exception(caught.value))


def test_a_thread_that_waits_asks_for_itself_when_the_first_one_meets_a_bug(provider: Provider) -> None:
    """Whoever waited is told an answer, not that somebody else's code broke."""
    first = threading.Event()

    def broken_once(request: Any, call_next: Any) -> Any:
        if not first.is_set():
            first.set()
            time.sleep(0.2)
            raise ZeroDivisionError
        return call_next(request)

    with anthropic.Anthropic(middleware=[broken_once]) as client, ThreadPoolExecutor(2) as pool:
        counter = tbl.ClaudeTokenCounter(MODEL, client=client)
        breaks = pool.submit(counter.count_sync, "a")
        first.wait()
        assert pool.submit(counter.count_sync, "a").result().tokens == 1 + OVERHEAD
        with pytest.raises(ZeroDivisionError):
            breaks.result()
