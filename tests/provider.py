"""A provider on the loopback interface: it speaks the real protocols, does what a test tells it to, and tells what reached it.

    /v1/messages                      Anthropic's messages, streamed or not
    /v1/messages/count_tokens         Anthropic's counts
    /v1/responses/input_tokens        OpenAI's counts

A count is the number of characters in the system prompt, messages, tools, `input` and `instructions`, and `OVERHEAD`: so the
count of another content, or of half of it, is another number.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tokenbudget_lab import demo

OVERHEAD = 7
_READ = ("system", "messages", "tools", "input", "instructions")
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that reached the provider."""

    path: str
    headers: dict[str, str]
    body: Any
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider does with one request; without a status it answers as it should.

    Args:
        status: of HTTP.
        body: JSON, or bytes to be sent as they are; `None` is the right answer, or the error of that status.
        headers: beside those of content.
        after_s: how long it takes, in seconds.
        drop: closes the connection without an answer, `hang up`, or in the midst of it, `cut`.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    drop: str | None = None


def failed(status: int, message: str = "as the test wants it", retry_after: float | None = None) -> Answer:
    """An error in the form of both protocols."""
    error = {"type": _KINDS.get(status, "api_error"), "message": message, "code": None, "param": None}
    headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
    return Answer(status, {"type": "error", "error": error, "request_id": "req_test"}, headers)


def tokens_of(body: dict[str, Any]) -> int:
    """How many tokens this provider counts in a request."""
    return OVERHEAD + sum(len(demo._text(body.get(part))) for part in _READ)


class Provider:
    """The server, its script, and what it saw.

    Attributes:
        url: the base URL for Anthropic's SDK; OpenAI's wants `/v1` behind it.
        asked: the requests, in order of their arrival.
        connections: how many were opened so far.
        connected: how many are open.
        at_work: requests that wait for their answer.
        most_at_work: the most there have been at the same time.
        hung_up: how many clients closed the connection while they waited.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.connections = self.connected = self.at_work = self.most_at_work = self.hung_up = 0
        self.lock = threading.Lock()
        self._script: deque[Answer] = deque()
        self._always = Answer()
        self._go_on = threading.Event()
        self._go_on.set()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="provider", daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def script(self, *answers: Answer) -> None:
        """Answer the next requests so, in this order."""
        self._script.extend(answers)

    def always(self, answer: Answer) -> None:
        """Answer so whatever the script says nothing of."""
        self._always = answer

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Answer nobody until the block is left."""
        self._go_on.clear()
        try:
            yield
        finally:
            self._go_on.set()

    def close(self) -> None:
        """Go away: whoever connects is refused from now on."""
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_answer(self) -> Answer:
        """What the script says, else what is always said."""
        with self.lock:
            return self._script.popleft() if self._script else self._always

    def waits(self, connection: socket.socket, seconds: float) -> bool:
        """Let a request wait for its answer; false where the client hung up meanwhile."""
        with self.lock:
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        deadline, there = time.monotonic() + seconds, True
        try:
            while there and (not self._go_on.is_set() or time.monotonic() < deadline):
                there = _is_there(connection, min(0.02, seconds) if self._go_on.is_set() else 0.02)
        finally:
            with self.lock:
                self.at_work -= 1
                self.hung_up += not there
        return there


def _is_there(connection: socket.socket, seconds: float) -> bool:
    """Wait for a moment, or for the client to hang up: it says nothing else until it is answered."""
    readable, _, _ = select.select([connection], [], [], seconds)
    try:
        return not readable or bool(connection.recv(1, socket.MSG_PEEK))
    except ConnectionError:
        return False


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 1_024

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (ConnectionError, ValueError)):  # a client, or the server itself, hung up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        with self.server.provider.lock:
            self.server.provider.connections += 1
            self.server.provider.connected += 1

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().finish()
        with self.server.provider.lock:
            self.server.provider.connected -= 1

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer one request as the script says."""
        provider, path = self.server.provider, self.path.partition("?")[0]
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        with provider.lock:
            provider.asked.append(Asked(path, {name.lower(): value for name, value in self.headers.items()}, body))
        answer = provider.next_answer()
        if not provider.waits(self.connection, answer.after_s) or answer.drop == "hang up":
            self._hang_up()
        elif answer.body is not None:
            self._send(answer)
        else:
            right = _right(path, body) if answer.status == 200 else failed(answer.status)
            self._send(replace(answer, status=right.status, body=right.body, headers={**right.headers, **answer.headers}))

    def _send(self, answer: Answer) -> None:
        data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        headers = {"content-type": "application/json", "request-id": "req_test", **answer.headers}
        for name, value in {**headers, "content-length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data if answer.drop is None else data[: len(data) // 2])
        if answer.drop is not None:
            self.wfile.flush()
            self._hang_up()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # a reset, so that nobody takes it for an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


def _right(path: str, body: dict[str, Any]) -> Answer:
    if path == "/v1/messages/count_tokens":
        return Answer(body={"input_tokens": tokens_of(body)})
    if path == "/v1/responses/input_tokens":
        return Answer(body={"object": "response.input_tokens", "input_tokens": tokens_of(body)})
    if path != "/v1/messages":
        return failed(404, f"there is no {path}")
    reply = demo._reply(body, random.Random(0))
    reply["usage"]["input_tokens"] = tokens_of(body)
    return _streamed(reply) if body.get("stream") else Answer(body=reply)


def _streamed(reply: dict[str, Any]) -> Answer:
    said = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in demo._events(reply))
    return Answer(body=said.encode(), headers={"content-type": "text/event-stream; charset=utf-8"})


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider that both SDKs find in the environment, with a key for it."""
    provider = Provider()
    for name, value in {"ANTHROPIC": provider.url, "OPENAI": f"{provider.url}/v1"}.items():
        monkeypatch.setenv(f"{name}_BASE_URL", value)
        monkeypatch.setenv(f"{name}_API_KEY", f"test-key-of-{name.lower()}")
    for name in ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE", "ANTHROPIC_CUSTOM_HEADERS", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield provider
    provider.close()
