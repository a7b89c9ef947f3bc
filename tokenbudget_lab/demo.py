"""A provider that needs no key, and a small study to spend on: what runs the README, the examples and the demo as printed.

The clients are the real ones of Anthropic's SDK; what answers them is a server in this process that speaks the Messages
protocol on the loopback interface. Its readers may rely on two things: nothing leaves the machine, and runs repeat: text,
token counts, latencies and failures follow from the seed and the request alone, in whatever order calls arrive.
"""

from __future__ import annotations

import atexit
import csv
import json
import math
import os
import random
import socketserver
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .demo_batches import DemoBatches
from .errors import InvalidValue

if TYPE_CHECKING:
    import anthropic

CHARACTERS_PER_TOKEN = 4
_WORDS = "this demo answers here with words that mean little and cost what a budget can count".split()  # noqa: SIM905 - a sentence
_FAILURES = (
    (429, "rate_limit_error", "Number of requests has exceeded your rate limit (demo)."),
    (500, "api_error", "Internal server error (demo)."),
    (529, "overloaded_error", "Overloaded (demo)."),
)


@dataclass(frozen=True, slots=True)
class DemoItem:
    """One call of the demo study."""

    item: str
    condition: str  # zero-shot, few-shot or chain-of-thought
    model: str
    prompt: str
    max_tokens: int


def demo_study() -> list[DemoItem]:
    """The demo study: 20 self-made questions under three conditions, 60 calls.

    Examples:
        >>> sorted({item.condition for item in demo_study()})
        ['chain-of-thought', 'few-shot', 'zero-shot']
    """
    here, name = Path(__file__).parent, Path("data", "demo_study.csv")
    # In a wheel the data lie inside the package, in a checkout beside it.
    path = here / name if (here / name).is_file() else here.parent / name
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return [DemoItem(item, condition, model, prompt, int(tokens)) for item, condition, model, prompt, tokens in rows]


def demo_client(
    *, latency_s: tuple[float, float] = (0.05, 0.4), failure_rate: float = 0.0, seed: int = 0
) -> anthropic.Anthropic:
    """The SDK's own client, answered by a server in this process: no key, no network, no cost.

    Args:
        latency_s: shortest and longest time to answer, in seconds.
        failure_rate: the share of attempts that fail with 429, 500 or 529, from 0 to 1. The client retries them as the SDK
            does (twice); a retry is a new draw. To see every failure: `.with_options(max_retries=0)`.
        seed: another seed, other replies, token counts, latencies and failures.

    Raises:
        InvalidValue: a latency or rate out of its range.

    Examples:
        >>> client = demo_client(latency_s=(0, 0))
        >>> ask = [{"role": "user", "content": "What is a budget?"}]
        >>> client.messages.create(model="claude-sonnet-5-5", max_tokens=64, messages=ask).usage.input_tokens
        9
    """
    import anthropic
    import httpx2

    # With a transport of its own neither the SDK nor httpx2 looks for a proxy in the environment.
    transport = httpx2.HTTPTransport(trust_env=False, limits=httpx2.Limits(max_connections=1_000))
    http = anthropic.DefaultHttpxClient(transport=transport, trust_env=False)
    # Copies made by with_options() share this HTTP client, so its connections are closed with it and not with the first copy.
    weakref.finalize(http, transport.close)
    return anthropic.Anthropic(api_key="demo", base_url=_url(latency_s, failure_rate, seed), http_client=http)


def async_demo_client(
    *, latency_s: tuple[float, float] = (0.05, 0.4), failure_rate: float = 0.0, seed: int = 0
) -> anthropic.AsyncAnthropic:
    """`demo_client` for async code. It opens a connection for each call, so it works in any event loop and needs no closing."""
    import anthropic
    import httpx2

    limits = httpx2.Limits(max_connections=1_000, max_keepalive_connections=0)
    transport = httpx2.AsyncHTTPTransport(trust_env=False, limits=limits)
    http = anthropic.DefaultAsyncHttpxClient(transport=transport, trust_env=False)
    return anthropic.AsyncAnthropic(api_key="demo", base_url=_url(latency_s, failure_rate, seed), http_client=http)


# --- the server --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Settings:
    latency_s: tuple[float, float]
    failure_rate: float
    seed: int

    def chance(self, purpose: str, content: str) -> random.Random:
        return random.Random(f"{self.seed}|{purpose}|{content}")  # noqa: S311 - chance without secrecy


def _url(latency_s: tuple[float, float], failure_rate: float, seed: int) -> str:
    shortest, longest = latency_s
    if not 0 <= shortest <= longest < math.inf:
        raise InvalidValue("latency_s", f"{latency_s} is not (shortest, longest) in seconds, such as (0.05, 0.4)")
    if not 0 <= failure_rate <= 1:
        raise InvalidValue("failure_rate", f"{failure_rate} is not between 0 and 1")
    return _serve(_Settings((float(shortest), float(longest)), float(failure_rate), seed), os.getpid())


@cache
def _serve(settings: _Settings, pid: int) -> str:
    """Start the server of these settings, and stop it when the process ends; a forked child gets its own."""
    server = _Server(settings)
    threading.Thread(target=server.serve_forever, args=(0.1,), name="tokenbudget demo", daemon=True).start()

    def stop() -> None:
        if os.getpid() == pid:  # the thread did not follow into a forked child, which would wait for it forever
            server.shutdown()
            server.server_close()

    atexit.register(stop)
    return f"http://127.0.0.1:{server.server_address[1]}"


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server.HTTPServer: it looks its own name up, which can take seconds where no name server answers.
    daemon_threads = True
    request_queue_size = 1_024

    def __init__(self, settings: _Settings) -> None:
        self.settings = settings
        self.batches = DemoBatches(lambda params: _reply(params, settings.chance("reply", _content(params))))
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may hang up whenever they like
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tokenbudget-demo", ""
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together

    def log_message(self, *_: Any) -> None:
        """Say nothing: the notebook is the researcher's."""

    def do_POST(self) -> None:
        """Answer one request."""
        path = self.path.partition("?")[0]
        body = self._body()
        if path.startswith("/v1/messages/batches"):
            self._batch(path, body)
            return
        needed = {"/v1/messages": ("model", "messages", "max_tokens"), "/v1/messages/count_tokens": ("model", "messages")}
        if path not in needed:
            self._fail(404, "not_found_error", f"{path}: the demo answers /v1/messages, its count_tokens and its batches")
        elif (wrong := _wrong(body, needed[path])) is not None:
            self._fail(400, "invalid_request_error", wrong)
        elif path.endswith("count_tokens"):
            self._send(200, {"input_tokens": _input_tokens(body)})
        else:
            self._answer(body)

    def do_GET(self) -> None:
        """Say in the API's form that there is no such thing here."""
        self.do_POST()

    def _batch(self, path: str, body: Any) -> None:
        """Create a batch, say how far one is, or give its results."""
        batches, id = self.server.batches, path.removeprefix("/v1/messages/batches").strip("/")
        name, _, part = id.partition("/")
        if self.command == "POST" and not id:
            made = batches.create(body, self.server.settings.latency_s[1])
            answer = made or _no_batch("requests: at least one request is required")
            self._send(200 if made else 400, answer)
        elif self.command == "GET" and part == "results" and (results := batches.results(name)) is not None:
            self._head(200, {"content-type": "application/x-jsonl", "transfer-encoding": "chunked"})
            for result in results:
                data = f"{json.dumps(result)}\n".encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")
        elif self.command == "GET" and not part and (found := batches.find(name, f"http://{self.headers['host']}")):
            self._send(200, found)
        else:
            self._send(404, _no_batch(f"{path}: there is no such batch, or it has no results yet"))

    def _body(self) -> Any:
        try:
            return json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        except ValueError:
            return None

    def _answer(self, body: dict[str, Any]) -> None:
        settings, content = self.server.settings, _content(body)
        wait = settings.chance("latency", content).uniform(*settings.latency_s)
        failure = settings.chance("failure", f"{self.headers.get('x-stainless-retry-count', 0)}|{content}")
        if failure.random() < settings.failure_rate:
            time.sleep(wait)
            self._fail(*failure.choice(_FAILURES))
            return
        reply = _reply(body, settings.chance("reply", content))
        if body.get("stream"):
            self._stream(reply, wait)
        else:
            time.sleep(wait)
            self._send(200, reply)

    def _stream(self, reply: dict[str, Any], wait: float) -> None:
        events = list(_events(reply))
        time.sleep(wait / 2)
        self._head(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})
        for event in events:
            time.sleep(wait / 2 / len(events))
            data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _fail(self, status: int, kind: str, message: str) -> None:
        # The first header is the API's; the second, which the SDK prefers, spares a demo the whole second.
        retry = {"retry-after": "1", "retry-after-ms": "100"} if status == _FAILURES[0][0] else {}
        self._send(status, {"type": "error", "error": {"type": kind, "message": message}}, retry)

    def _send(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self._head(status, {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})})
        self.wfile.write(data)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "request-id": f"req_demo_{uuid.uuid4().hex[:24]}"}.items():
            self.send_header(name, value)
        self.end_headers()


def _no_batch(why: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": "invalid_request_error", "message": why}}


# --- what it says ------------------------------------------------------------------------------------------------------


def _wrong(body: Any, needed: tuple[str, ...]) -> str | None:
    if not isinstance(body, dict):
        return "The request body is not valid JSON"
    for name in needed:
        if body.get(name) in (None, ""):
            return f"{name}: Field required"
    if not isinstance(body["messages"], list) or not body["messages"]:
        return "messages: at least one message is required"
    if "max_tokens" in needed and (type(body["max_tokens"]) is not int or body["max_tokens"] < 1):
        return "max_tokens: must be greater than or equal to 1"
    return None


def _content(body: dict[str, Any]) -> str:
    """What chance depends on: not on streaming, nor on the limit, which only cuts the reply off."""
    return json.dumps({key: value for key, value in body.items() if key not in ("stream", "max_tokens")}, sort_keys=True)


def _text(value: Any) -> str:
    """All that a model would read in a part of a request."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text, value))
    unread = ("role", "type", "cache_control", "data", "media_type")
    return "".join(_text(each) for key, each in value.items() if key not in unread) if isinstance(value, dict) else ""


def _input_tokens(body: dict[str, Any]) -> int:
    read = "".join(_text(body.get(part)) for part in ("system", "messages", "tools"))
    return math.ceil(len(read) / CHARACTERS_PER_TOKEN) + 4 * len(body["messages"])


def _reply(body: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    prompt = _text(body["messages"][-1])
    median = 150 if "step by step" in prompt.lower() else 25
    wanted = 1 + int(chance.lognormvariate(math.log(median), 0.5))
    tokens = min(wanted, body["max_tokens"])
    text = f"To “{' '.join(prompt.split()[-8:])}”: "
    while len(text) < tokens * CHARACTERS_PER_TOKEN:
        text += chance.choice(_WORDS) + " "
    return {
        "id": f"msg_demo_{uuid.uuid4().hex[:24]}",  # as from the provider: no two replies share one
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": text[: tokens * CHARACTERS_PER_TOKEN]}],
        "stop_reason": "end_turn" if tokens == wanted else "max_tokens",
        "stop_sequence": None,
        "usage": {
            "input_tokens": _input_tokens(body),
            "output_tokens": tokens,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "service_tier": "standard",
        },
    }


def _events(reply: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The reply as a stream: usage starts with a placeholder, and the last one is the whole."""
    usage, text = reply["usage"], reply["content"][0]["text"]
    begun = {**reply, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": begun}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "ping"}
    piece = max(1, len(text) // 8)
    for at in range(0, len(text), piece):
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text[at : at + piece]}}
    yield {"type": "content_block_stop", "index": 0}
    cumulative = {name: count for name, count in usage.items() if isinstance(count, int)}
    yield {"type": "message_delta", "delta": {"stop_reason": reply["stop_reason"], "stop_sequence": None}, "usage": cumulative}
    yield {"type": "message_stop"}
