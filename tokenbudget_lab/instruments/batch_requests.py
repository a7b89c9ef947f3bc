"""OpenAI's batches on their way through the transport: created, looked at, and their results read.

What happens is written once, as steps to wait for; sync and async code take them each in their way.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, NamedTuple, Protocol

from ..attempts import BatchAttempt
from ..errors import BatchUnread, TokenBudgetError
from ..metering import Meter
from ..pieces import Ending, beside
from .batches import created
from .openai_batches import calls_of, note, open_results, order_of

_PATHS = re.compile(r"(?:^|/(?:v\d\w*|openai))/(?P<what>batches(?:/[^/]+)?|files/(?P<file>[^/]+)/content)$")
_OF_ITS_OWN = (
    "content-length",
    "content-type",
    "transfer-encoding",
    "host",
    "idempotency-key",
    "x-stainless-retry-count",
    "accept",
)
_MOST_BYTES = 256 << 20  # of an input file; the provider takes 200 MB
_OK = 200


class Step(NamedTuple):
    """Something to wait for, in sync code and in async code."""

    now: Callable[[], Any]
    later: Callable[[], Awaitable[Any]]


Steps = Generator[Step, Any, Any]


class Way(Protocol):
    """What sends requests, past the budget."""

    meter: Meter

    def send(self, request: Any) -> Any:
        """Send one; in async code to be awaited."""

    def fetch(self, request: Any) -> Any:
        """The same, and go where its answer redirects to."""

    def asking(self, request: Any, path: str, headers: list[tuple[bytes, bytes]]) -> Any:
        """A GET of another path, beside a request."""

    def was_never_sent(self, error: BaseException) -> bool:
        """Whether it happened before any byte was sent."""

    def whole(self, response: Any, content: bytes) -> Any:
        """The response again, of which the content was read."""

    def read_along(self, response: Any, ending: Ending) -> Any:
        """The response, to be read along."""


def run(steps: Steps) -> Any:
    """Take the steps in sync code."""
    try:
        step = next(steps)
        while True:
            try:
                got = step.now()
            except BaseException as error:  # noqa: BLE001 - the steps say what becomes of it
                step = steps.throw(error)
            else:
                step = steps.send(got)
    except StopIteration as over:
        return over.value


async def run_async(steps: Steps) -> Any:
    """The same in async code."""
    try:
        step = next(steps)
        while True:
            try:
                got = await step.later()
            except BaseException as error:  # noqa: BLE001 - as above
                step = steps.throw(error)
            else:
                step = steps.send(got)
    except StopIteration as over:
        return over.value


def steps_for(way: Way, request: Any) -> Steps | None:
    """What a request does that is about a batch; `None` where it is about none."""
    found = _PATHS.search(request.url.path.rstrip("/"))
    if found is None:
        return None
    if request.method == "POST" and found["what"] == "batches":
        return _create(way, request)
    if request.method != "GET":
        return None
    if found["file"] is None:
        return _look(way, request)
    return _read(way, request, found["file"]) if found["file"] in way.meter.files else None


def _create(way: Way, request: Any) -> Steps:
    """Read what the batch would do, reserve all of it, and only then send it."""
    order = order_of((yield Step(request.read, request.aread)), str(request.url))
    content = yield from _input(way, request, order.file)
    attempt = yield _thread(way.meter.batch, calls_of(order, content))
    del content
    yield Step(attempt.ask, attempt.ask_async)
    try:
        response = yield _sending(way.send, request)
        answer = yield Step(response.read, response.aread)
    except BaseException as error:
        _failed(way, attempt, error)
        raise
    receipt = created(attempt, response.status_code, _json(answer))
    if receipt is not None:
        yield Step(receipt.result, partial(_awaited, receipt))
    return way.whole(response, answer)


def _input(way: Way, request: Any, file: str) -> Steps:
    """The content of an input file, asked for with the credentials of the request.

    Raises:
        BatchUnread: it is not to be had.
    """
    headers = [(name, value) for name, value in request.headers.raw if name.decode("latin-1").lower() not in _OF_ITS_OWN]
    path = request.url.path.rstrip("/").removesuffix("/batches") + f"/files/{file}/content"
    response = yield _sending(way.fetch, way.asking(request, path, headers))
    if response.status_code != _OK:
        yield Step(response.close, response.aclose)
        raise BatchUnread(file, f"HTTP {response.status_code}")
    content = yield Step(partial(_content, response), partial(_content_async, response))
    if content is None:
        raise BatchUnread(file, f"it is larger than {_MOST_BYTES >> 20} MB")
    return content


def _look(way: Way, request: Any) -> Steps:
    """Learn from how batches are doing which files are theirs."""
    response = yield _sending(way.send, request)
    if response.status_code != _OK:
        return response
    content = yield Step(response.read, response.aread)
    yield _thread(note, way.meter, _json(content))
    return way.whole(response, content)


def _read(way: Way, request: Any, file: str) -> Steps:
    """Settle the results of a batch while they are read."""
    results = yield _thread(open_results, way.meter, file)
    response = yield _sending(way.send, request)
    return response if results is None or response.status_code != _OK else way.read_along(response, results)


def _failed(way: Way, attempt: BatchAttempt, error: BaseException) -> None:
    """No answer came: settle by whether anything can have been sent, or by the response that a hook made an error of."""
    response = getattr(error, "response", None)
    try:
        if isinstance(error, Exception) and way.was_never_sent(error):
            attempt.refused()
        elif response is not None:
            created(attempt, response.status_code, None)
        else:
            attempt.abandoned()
    except TokenBudgetError as failed:
        beside(failed, error)


# --- steps -------------------------------------------------------------------------------------------------------------------


def _sending(send: Callable[[Any], Any], request: Any) -> Step:
    return Step(partial(send, request), partial(send, request))


def _thread(work: Callable[..., Any], *arguments: Any) -> Step:
    """What takes its time, beside the event loop."""
    return Step(partial(work, *arguments), partial(asyncio.to_thread, work, *arguments))


async def _awaited(receipt: Any) -> Any:
    return await receipt


def _content(response: Any) -> bytes | None:
    """All of a response, `None` where that is too much."""
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > _MOST_BYTES:
            response.close()
            return None
    return bytes(content)


async def _content_async(response: Any) -> bytes | None:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _MOST_BYTES:
            await response.aclose()
            return None
    return bytes(content)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
