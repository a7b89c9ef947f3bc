"""Servers that fail before they have answered: at each step a hold is given back, or counted where something was sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import Answer, Provider
from tests.streams import CASES, UNKNOWN, ends_of
from tokenbudget_lab.instruments import anthropic as instrument

STORE = "memory"
ROLLED_BACK = ("rolled_back", None)
MESSAGE = CASES["a message"]


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("study", usd=10**6)


class Socket:
    """A server of one socket, that does what it is told to with each connection."""

    def __init__(self, does: Callable[[socket.socket], None] | None) -> None:
        self._listens = socket.create_server(("127.0.0.1", 0), backlog=0 if does is None else 8)
        self._taken = list[socket.socket]()
        self._thread = None if does is None else threading.Thread(target=self._serve, args=(does,), daemon=True)
        if self._thread is None:  # nobody accepts, and there is no room to wait
            for _ in range(4):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(self._listens.getsockname())
                self._taken.append(one)
        else:
            self._thread.start()
        self.url = f"http://127.0.0.1:{self._listens.getsockname()[1]}"

    def _serve(self, does: Callable[[socket.socket], None]) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._listens.accept()
                self._taken.append(one)
                does(one)

    def close(self) -> None:
        if self._thread is not None:  # what it took while it was told to end is closed with the others
            self._listens.shutdown(socket.SHUT_RDWR)
            self._thread.join(10)
        self._listens.close()
        for one in self._taken:
            one.close()


def says(text: bytes) -> Callable[[socket.socket], None]:
    def answer(one: socket.socket) -> None:
        one.recv(65536)
        one.sendall(text)
        one.close()

    return answer


def reads(one: socket.socket) -> None:
    one.recv(65536)


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
STEPS: dict[str, tuple[Callable[[socket.socket], None] | None, tuple[str, str | None]]] = {
    "nobody takes the connection": (None, ROLLED_BACK),
    "it closes before the request": (socket.socket.close, UNKNOWN),
    "it reads nothing": (lambda _: None, UNKNOWN),
    "it says nothing": (reads, UNKNOWN),
    "its status is garbage": (says(b"\x00\xff\r\n\r\n"), UNKNOWN),
    "half a status": (says(b"HTTP/1.1 20"), UNKNOWN),
    "its headers do not end": (says(_HEAD), UNKNOWN),
    "nothing behind its headers": (says(_HEAD + b"content-length: 9\r\n\r\n"), UNKNOWN),
    "a chunk's size is garbage": (says(_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"), UNKNOWN),
    "its gzip is none": (says(_HEAD + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd"), UNKNOWN),
    "its encoding is unknown": (says(_HEAD + b"content-encoding: rot13\r\ncontent-length: 4\r\n\r\nabcd"), UNKNOWN),
    "its body is empty": (says(_HEAD + b"content-length: 0\r\n\r\n"), UNKNOWN),
    "it refuses in half a body": (says(b"HTTP/1.1 429 no\r\ncontent-length: 99\r\n\r\n{"), ROLLED_BACK),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["sync", "async", "cancelled"])
def test_a_server_that_fails_at_a_step_leaves_no_hold(
    ledger: tbl.Ledger, study: tbl.Budget, log: Any, step: str, kind: str
) -> None:
    does, outcome = STEPS[step]
    server = Socket(does)
    options: Any = {"base_url": server.url, "api_key": "none", "max_retries": 0, "timeout": 0.15 if kind != "cancelled" else 5}
    body = {**MESSAGE.body, "messages": [{"role": "user", "content": "word " * (100_000 if step == "it reads nothing" else 1)}]}

    async def call() -> None:
        async with anthropic.AsyncAnthropic(**options) as plain:
            client = tbl.instrument(plain, study, hold="worst")  # so that nothing has to be looked up first
            client.messages  # noqa: B018 - it is imported on first use
            async with asyncio.timeout(0.3 if kind == "cancelled" else None):
                async for _ in await client.messages.create(**body):
                    pass

    try:
        with contextlib.suppress(anthropic.AnthropicError, httpx2.HTTPError, TimeoutError):
            if kind == "sync":
                with anthropic.Anthropic(**options) as plain:
                    list(tbl.instrument(plain, study).messages.create(**body))
            else:
                asyncio.run(call())
    finally:
        server.close()
    until(lambda: not study.balance.calls_in_flight)
    assert [(event.kind, event.basis) for event in ends_of(log).values()] == [outcome]
    assert study.balance.reserved_usd == study.balance.reserved_tokens == 0


def test_a_response_that_could_not_be_taken_is_counted(
    study: tbl.Budget, log: Any, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent, although the error is none of the connection's."""

    def broken(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr(instrument, "read_by", broken)
    with anthropic.Anthropic(max_retries=0) as plain, pytest.raises(LookupError):
        tbl.instrument(plain, study).messages.create(**MESSAGE.body)
    assert [(event.kind, event.basis) for event in ends_of(log).values()] == [UNKNOWN]


def test_a_ledger_that_is_closed_does_not_hide_that_the_connection_broke(provider: Provider) -> None:
    ledger = tbl.connect(":memory:")
    study = ledger.budget("study", usd=1)

    def close_and_hang_up(_: object) -> Answer:
        ledger.close()
        return Answer(drop="hang up")

    provider.reply = close_and_hang_up
    with anthropic.Anthropic(max_retries=0) as plain, pytest.raises(anthropic.APIConnectionError) as broken:
        tbl.instrument(plain, study).messages.create(**MESSAGE.body)
    assert "could not be settled" in broken.value.__notes__[0]
