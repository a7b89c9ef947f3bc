"""What goes wrong on the way, as both SDKs see it: answers cut at any byte, that stall, that are garbage, framed in any way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.processes import until
from tests.provider import Answer, Provider

CLAUDE, GPT = "claude-sonnet-5-5", "gpt-6-mini"
ASK: Any = [{"role": "user", "content": "How much?"}]
ERRORS = (anthropic.AnthropicError, openai.OpenAIError, httpx2.HTTPError, ValueError)
MESSAGE = {"model": CLAUDE, "max_tokens": 50, "messages": ASK}
BODIES: dict[str, Any] = {
    "/v1/messages": MESSAGE,
    "/v1/messages?stream": {**MESSAGE, "stream": True},
    "/v1/chat/completions": {"model": GPT, "messages": ASK},
    "/v1/chat/completions?stream": {"model": GPT, "messages": ASK, "stream": True, "stream_options": {"include_usage": True}},
    "/v1/responses": {"model": GPT, "input": "How much?"},
    "/v1/responses?stream": {"model": GPT, "input": "How much?", "stream": True},
}


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=5.0, trust_env=False) as client:
        yield client


def got(http: httpx2.Client, provider: Provider, path: str, body: Any) -> tuple[bytes, str | None]:
    """The bytes that arrived of a body, and the error that ended them."""
    came = b""
    try:
        with http.stream("POST", provider.url + path, json=body) as response:
            for piece in response.iter_raw():
                came += piece
    except httpx2.HTTPError as error:
        return came, type(error).__name__
    return came, None


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("encoded", [None, "gzip"])
def test_the_bytes_of_an_answer_are_known_before_it_is_asked_for(
    provider: Provider, http: httpx2.Client, path: str, encoded: str | None
) -> None:
    """Each time, though no two replies have the same id."""
    provider.always(Answer(encoded=encoded))
    path, body = path.partition("?")[0], BODIES[path]
    before = []
    for _ in range(3):
        before.append(provider.bytes_of(path, body))
        assert got(http, provider, path, body) == (before[-1], None)
    assert len(set(before)) == 3
    assert len({used.id for used in provider.used}) == 3


@pytest.mark.parametrize("drop", ["cut", "close", "end"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_an_answer_leaves_off_at_any_byte(provider: Provider, http: httpx2.Client, framing: str, drop: str) -> None:
    """What came is what was sent; an error tells so unless the end passes for one. What it used is kept apart."""
    body = {**BODIES["/v1/messages?stream"], "max_tokens": 1}
    size = len(provider.bytes_of("/v1/messages", body))
    for at in (*range(0, size, 61), size):
        provider.broken.clear()
        whole = provider.bytes_of("/v1/messages", body)
        provider.script(Answer(drop=drop, cut_at=at, framing=framing))
        came, error = got(http, provider, "/v1/messages", body)
        unseen = drop == "end" or (framing == "close" and drop == "close") or (at == size and framing == "length")
        assert (error is None) == unseen, at
        assert came == whole[:at]
        assert len(provider.broken) == (at < size)
    assert len(provider.used) == 1


def ask(path: str) -> Any:
    """The same through the SDK: what it returns, or the last event of its stream."""
    body = {**BODIES[path]}
    claude = path.startswith("/v1/messages")
    client = (anthropic.Anthropic if claude else openai.OpenAI)(max_retries=0, timeout=2.0)
    kinds = {"/v1/messages": "messages", "/v1/chat/completions": "chat.completions", "/v1/responses": "responses"}
    resource: Any = client
    for name in kinds[path.partition("?")[0]].split("."):
        resource = getattr(resource, name)
    with client:
        said = resource.create(**body)
        return list(said)[-1] if body.get("stream") else said


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("drop", ["cut", "close"])
def test_the_sdks_notice_an_answer_that_leaves_off(provider: Provider, path: str, drop: str) -> None:
    size = len(provider.bytes_of(path.partition("?")[0], BODIES[path]))
    for at in (0, size // 2, size - 20):
        provider.script(Answer(cut_at=at, drop=drop))
        with pytest.raises(ERRORS):
            ask(path)
    assert (len(provider.used), len(provider.broken)) == (0, 3)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("encoded", [None, "gzip"])
def test_framing_and_encoding_change_nothing(provider: Provider, path: str, framing: str, encoded: str | None) -> None:
    provider.always(Answer(framing=framing, encoded=encoded))
    ask(path)
    assert (len(provider.used), len(provider.broken)) == (1, 0)


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_that_stalls_runs_into_the_clients_timeout(provider: Provider, path: str) -> None:
    """At the start, in the midst, and where only the end is missing; the provider sees who hung up."""
    body, path = BODIES[path], path.partition("?")[0]
    with httpx2.Client(timeout=0.4, trust_env=False) as http:
        size = len(provider.bytes_of(path, body))
        for place in (0, size // 2, size):
            provider.script(Answer(stall_at=place, framing="chunked"))
            came, error = got(http, provider, path, body)
            assert (len(came), error) == (place, "ReadTimeout")
        until(lambda: provider.hung_up == 3)
    assert provider.at_work == 0
    assert (len(provider.used), len(provider.broken)) == (1, 2)


def test_an_answer_that_stalls_for_a_moment_goes_on(provider: Provider) -> None:
    provider.script(Answer(stall_at=100, stall_s=0.05), Answer(piece_s=0.002))
    assert ask("/v1/messages?stream").type == ask("/v1/messages?stream").type == "message_stop"
    assert len(provider.used) == 2


@pytest.mark.parametrize("path", [path for path in BODIES if path.endswith("stream")])
@pytest.mark.parametrize("events", [0, 1, 4])
def test_a_stream_breaks_off_with_an_error(provider: Provider, path: str, events: int) -> None:
    provider.script(Answer(error_after=events))
    if path.startswith("/v1/responses"):
        assert ask(path).type == "error"
    else:
        with pytest.raises((anthropic.APIStatusError, openai.APIError)):
            ask(path)
    assert (len(provider.used), len(provider.broken)) == (0, 1)


@pytest.mark.parametrize("path", [path for path in BODIES if path.endswith("stream")])
def test_garbage_in_a_stream_is_an_error(provider: Provider, path: str) -> None:
    def spoiled(data: bytes) -> bytes:
        return data[:200] + b"\xff\x00}{" + data[200:]

    provider.script(Answer(through=spoiled))
    with pytest.raises(ERRORS):
        ask(path)


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
def test_any_status_with_any_protocol(provider: Provider, status: int) -> None:
    for path in BODIES:
        provider.script(Answer(status=status, headers={"retry-after": "1"}))
        with pytest.raises((anthropic.APIStatusError, openai.APIStatusError)) as raised:
            ask(path)
        error: Any = raised.value
        assert (error.status_code, error.response.headers["retry-after"]) == (status, "1")
    assert not provider.used


def test_another_content_type_is_sent_as_told(provider: Provider, http: httpx2.Client) -> None:
    provider.script(Answer(headers={"content-type": "text/html"}))
    assert http.post(f"{provider.url}/v1/messages", json=MESSAGE).headers["content-type"] == "text/html"


def test_whoever_waits_is_let_go_when_the_provider_goes_away(provider: Provider) -> None:
    provider.script(Answer(stall_at=10, stall_s=math.inf))
    with httpx2.Client(trust_env=False) as http, http.stream("POST", f"{provider.url}/v1/messages", json=MESSAGE) as response:
        provider.close()
        with pytest.raises(httpx2.HTTPError):
            response.read()
    until(lambda: provider.connected == provider.at_work == 0)
