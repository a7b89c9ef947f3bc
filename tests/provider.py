"""A provider on the loopback interface: it speaks the real protocols, does what a test tells it to, and tells what reached it.

    /v1/messages                      Anthropic's messages, streamed or not
    /v1/messages/count_tokens         Anthropic's counts
    /v1/messages/batches              Anthropic's batches
    /v1/chat/completions              OpenAI's chat completions, streamed or not
    /v1/responses                     OpenAI's responses, streamed or not
    /v1/responses/input_tokens        OpenAI's counts
    /v1/embeddings                    OpenAI's embeddings
    /v1/files, /v1/batches            OpenAI's batches, and the files that they read and write
    /v1/models                        OpenAI's list of models

`python -m tests.provider` serves until its standard input ends: what is measured then has the interpreter to itself.

A count is the number of characters in the system prompt, messages, tools, `input` and `instructions`, and `OVERHEAD`: so the
count of another content, or of half of it, is another number.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import select
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from tests.answers import OVERHEAD, Answer, Asked, Reply, Used, failed, on_the_wire, parted, tokens_of
from tests.desk import Desk

__all__ = ["OVERHEAD", "Answer", "Asked", "Provider", "Used", "apart", "failed", "provider", "tokens_of"]


class Provider:
    """The server, its script, and what it saw.

    Attributes:
        url: the base URL for Anthropic's SDK; OpenAI's wants `/v1` behind it.
        reply: what to answer to a request, or to a line of a batch, that the script says nothing of; `None` is as always.
        asked: the requests, in order of their arrival; an uploaded form is its parts by name.
        used: what the requests used that were answered in full, and the lines of batches when these end.
        broken: what those used whose answer was broken off.
        connections: how many were opened so far.
        open: those that are.
        at_work: requests that wait for their answer.
        most_at_work: the most there have been at the same time.
        hung_up: how many clients closed the connection while they waited.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.used: list[Used] = []
        self.broken: list[Used] = []
        self.reply: Callable[[Asked], Answer | None] | None = None
        self.connections = self.at_work = self.most_at_work = self.hung_up = 0
        self.lock = threading.RLock()
        self._script: deque[Answer] = deque()
        self._always = Answer()
        self._go_on = threading.Event()
        self._go_on.set()
        self._closed = False
        self.open: set[socket.socket] = set()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="provider", daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._desk = Desk(self.url)

    @property
    def connected(self) -> int:
        """How many connections are open."""
        return len(self.open)

    def script(self, *answers: Answer) -> None:
        """Answer the next requests so, in this order."""
        self._script.extend(answers)

    def always(self, answer: Answer) -> None:
        """Answer so whatever neither the script nor `reply` says anything of."""
        self._always = answer

    def bytes_of(self, path: str, body: Any = None, answer: Answer | None = None, method: str = "POST") -> bytes:
        """The body of the response, as it would be sent if this were the next request: `cut_at` counts in it."""
        path, _, query = path.partition("?")
        asked = Asked(path, {}, body, method=method, query=dict(parse_qsl(query)))
        with self.lock:
            answer = answer or (self._script[0] if self._script else self._unscripted(asked))
            return b"".join(on_the_wire(answer, copy.deepcopy(self._desk).answer(asked, answer, self._told)))

    def batches_take(self, looks: int | None) -> None:
        """How many looks at a batch see it at work before it ends; with `None`, it ends when it is finished or cancelled."""
        self._desk.looks = looks

    def finish(self, batch_id: str, ends: str = "succeeded") -> None:
        """End a batch now: so ends every line of which `reply` does not say otherwise."""
        with self.lock:
            self._desk.finish(batch_id, ends, self._told)
            self._bill()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Answer nobody until the block is left."""
        self._go_on.clear()
        try:
            yield
        finally:
            self._go_on.set()

    def close(self) -> None:
        """Go away: whoever is connected is cut off, and whoever connects is refused from now on."""
        self._closed = True
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self.lock:
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def next_answer(self, asked: Asked) -> Answer:
        """What the script says, else `reply`, else what is always said."""
        with self.lock:
            return self._script.popleft() if self._script else self._unscripted(asked)

    def _told(self, asked: Asked) -> Answer | None:
        return self.reply(asked) if self.reply is not None else None

    def _unscripted(self, asked: Asked) -> Answer:
        return self._told(asked) or self._always

    def right(self, asked: Asked, answer: Answer) -> Reply:
        """What is said to this request."""
        with self.lock:
            reply = self._desk.answer(asked, answer, self._told)
            self._bill()
            return reply

    def _bill(self) -> None:
        self.used += self._desk.billed
        self._desk.billed.clear()

    def waits(self, connection: socket.socket, seconds: float) -> bool:
        """Let a request wait for its answer; false where the client hung up meanwhile, or the provider did."""
        with self.lock:
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        deadline, there = time.monotonic() + seconds, True
        try:
            while there and not self._closed and (not self._go_on.is_set() or time.monotonic() < deadline):
                there = _is_there(connection, min(0.02, seconds) if self._go_on.is_set() else 0.02)
        finally:
            with self.lock:
                self.at_work -= 1
                self.hung_up += not there
        return there and not self._closed


def _is_there(connection: socket.socket, seconds: float) -> bool:
    """Wait for a moment, or for the client to hang up: it says nothing else until it is answered."""
    poll = select.poll()  # `select.select` knows the first 1,024 descriptors only
    poll.register(connection, select.POLLIN)
    try:
        return not poll.poll(seconds * 1_000) or bool(connection.recv(1, socket.MSG_PEEK))
    except ConnectionError:
        return False


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 1_024

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        super().__init__(("127.0.0.1", 0), _Handler)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection: where it is to be reset, without the farewell that would pass for an end."""
        lingers, _ = struct.unpack("ii", request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
        if lingers:
            self.close_request(request)
        else:
            super().shutdown_request(request)

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
            self.server.provider.open.add(self.connection)

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().finish()
        with self.server.provider.lock:
            self.server.provider.open.discard(self.connection)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer one request as the script says."""
        provider, asked = self.server.provider, self._read()
        with provider.lock:
            provider.asked.append(asked)
        answer = provider.next_answer(asked)
        if not provider.waits(self.connection, answer.after_s) or answer.drop == "hang up":
            self._hang_up()
        else:
            self._send(answer, provider.right(asked, answer))

    def do_GET(self) -> None:
        """The same."""
        self.do_POST()

    def do_DELETE(self) -> None:
        """The same."""
        self.do_POST()

    def _read(self) -> Asked:
        headers = {name.lower(): value for name, value in self.headers.items()}
        path, _, query = self.path.partition("?")
        data = self.rfile.read(int(headers.get("content-length", 0)))
        kind = headers.get("content-type", "")
        body = _form(kind, data) if kind.startswith("multipart/") else json.loads(data) if data else None
        return Asked(path, headers, body, method=self.command, query=dict(parse_qsl(query)))

    def _send(self, answer: Answer, reply: Reply) -> None:
        """Send the head, and the body piece by piece: as much of it as the answer wants to be sent."""
        whole = on_the_wire(answer, reply)
        pieces = parted(whole, answer)
        size, sent = sum(map(len, whole)), sum(map(len, pieces))
        framing = answer.framing or ("length" if reply.events is None else "chunked")
        self._head(answer, reply, framing, sent if answer.drop == "end" else size)
        all_sent = self._send_pieces(answer, pieces, reply.used, chunked=framing == "chunked", full=reply.full and sent == size)
        if not all_sent or (answer.leaves_off and answer.drop not in ("close", "end")):
            self._hang_up()
        elif answer.drop == "close" or framing == "close":
            self.close_connection = True
        elif framing == "chunked":
            self.wfile.write(b"0\r\n\r\n")

    def _head(self, answer: Answer, reply: Reply, framing: str, size: int) -> None:
        framed = {
            "length": {"content-length": str(size)},
            "chunked": {"transfer-encoding": "chunked"},
            "close": {"connection": "close"},
        }[framing]
        encoded = {"content-encoding": answer.encoded} if answer.encoded else {}
        usual = {"content-type": "application/json", "request-id": "req_test", "x-request-id": "req_test"}
        self.send_response(reply.status)
        for name, value in {**usual, **reply.headers, **encoded, **answer.headers, **framed}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_pieces(self, answer: Answer, pieces: list[bytes], used: Used | None, *, chunked: bool, full: bool) -> bool:
        """Send a body; false where the client hung up meanwhile. What it used is kept before the client has all of it."""
        provider, sent, left = self.server.provider, 0, len(pieces)
        try:
            for piece in (*pieces, b""):
                wait = answer.stall_s if sent == answer.stall_at else answer.piece_s if sent and piece else 0.0
                if sent or wait:  # the head leaves with what comes first
                    self.wfile.flush()
                if wait and not provider.waits(self.connection, wait):
                    return False
                left -= 1
                if left == 0 and used is not None:
                    (provider.used if full else provider.broken).append(used)
                    used = None
                sent += len(piece)
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked and piece else piece)
        finally:
            if used is not None:
                provider.broken.append(used)
        return True

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # a reset, so that nobody takes it for an end
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


def _form(kind: str, data: bytes) -> dict[str, Any]:
    """The parts of an upload by name: a file is its name and its bytes."""
    boundary = b"--" + kind.partition("boundary=")[2].strip('"').encode()
    parts: dict[str, Any] = {}
    for part in data.split(boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        names = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
        content = content.removesuffix(b"\r\n")
        parts[names["name"]] = (names["filename"], content) if "filename" in names else content.decode()
    return parts


@contextlib.contextmanager
def apart(after_s: float = 0.0) -> Iterator[str]:
    """A provider in a process of its own, for what is measured here; its URL."""
    command = [sys.executable, "-m", "tests.provider", str(after_s)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
    assert process.returncode == 0


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


def _serve(after_s: float) -> None:
    served = Provider()
    served.always(Answer(after_s=after_s))
    sys.stdout.write(f"{served.url}\n")
    sys.stdout.flush()
    sys.stdin.read()
    served.close()


if __name__ == "__main__":
    _serve(float((*sys.argv[1:], "0")[0]))
