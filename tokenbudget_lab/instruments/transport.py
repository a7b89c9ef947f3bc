"""Any SDK on httpx or httpx2 through a budget: a transport that stands between its HTTP client and the connections.

Its reader may rely on two things: a request that costs something is reserved before its first byte is sent, each redirect and
each retry anew; and the HTTP client that was given sends it, so its connections, proxies, cookies and hooks stay in use.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from ..attempts import Attempt
from ..calls import Call, Endpoint, Reading
from ..endpoints import endpoint_at
from ..errors import InvalidValue, TokenBudgetError
from ..metering import Meter
from ..pieces import Ending, Settlement, beside, read_by, reading_for
from .batch_requests import run, run_async, steps_for

_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError")
_ILLEGAL = "Illegal header"  # a key with a line break in it, which the connection does not take


class _Sent(NamedTuple):
    """What is sent for a call."""

    call: Call
    request: Any
    endpoint: Endpoint
    hidden: bool  # the last chunk was not asked for by the caller

    def reading(self, content_type: str) -> Reading:
        """What reads the reply."""
        stream = self.endpoint.stream(hidden=True) if self.hidden else self.endpoint.stream()
        return reading_for(content_type, stream, self.endpoint.read)


class BudgetTransport:
    """Reserves before a request is sent, and settles by what comes back; sync and async.

    Args:
        http: `httpx2` or `httpx`.
        inner: the HTTP client that sends; its connections, cookies and hooks stay in use.
        meter: the budget, tags and policy.
        warns: that nothing was ever sent through it.
    """

    def __init__(self, http: Any, inner: Any, meter: Meter, *, warns: bool = False) -> None:
        self.http, self.inner, self.meter, self._warns = http, inner, meter, warns
        self._never_sent = tuple(getattr(http, name) for name in _NEVER_SENT)

    def handle_request(self, request: Any) -> Any:
        """One attempt of a sync client."""
        self.meter.used = True
        if (steps := steps_for(self, request)) is not None:
            return run(steps)
        endpoint = _endpoint(request)
        if endpoint is None:
            return self.send(request)
        sent = self._sent(request, endpoint, request.read())
        attempt = self.meter.attempt(sent.call, retries=_retries(request))
        answered = False
        try:
            attempt.ask()
            response = self.send(sent.request)
            answered = True
            return self._answered(response, attempt, sent)
        except BaseException as error:
            self._failed(attempt, error, answered=answered)
            raise

    async def handle_async_request(self, request: Any) -> Any:
        """One attempt of an async client."""
        self.meter.used = True
        if (steps := steps_for(self, request)) is not None:
            return await run_async(steps)
        endpoint = _endpoint(request)
        if endpoint is None:
            return await self.send(request)
        sent = self._sent(request, endpoint, await request.aread())
        attempt = await self.meter.attempt_async(sent.call, retries=_retries(request))
        answered = False
        try:
            await attempt.ask_async()
            response = await self.send(sent.request)
            answered = True
            return self._answered(response, attempt, sent)
        except BaseException as error:
            self._failed(attempt, error, answered=answered)
            raise

    def send(self, request: Any) -> Any:
        """By the inner client; redirects and authentication are the outer one's business, which asks again for each."""
        return self.inner.send(request, stream=True, auth=None, follow_redirects=False)

    def fetch(self, request: Any) -> Any:
        """The same for a request of our own."""
        return self.inner.send(request, stream=True, auth=None, follow_redirects=True)

    def asking(self, request: Any, path: str, headers: list[tuple[bytes, bytes]]) -> Any:
        """A GET of another path, with the same credentials and within the same time."""
        timeout = {name: value for name, value in request.extensions.items() if name == "timeout"}
        return self.http.Request("GET", request.url.copy_with(path=path), headers=headers, extensions=timeout)

    def _sent(self, request: Any, endpoint: Endpoint, content: bytes) -> _Sent:
        if self.inner.is_closed:
            raise RuntimeError("Cannot send a request, as the client has been closed.")
        body = _json(content)
        call, asks = endpoint.call(body), endpoint.asking and endpoint.asking(body)
        if not asks:
            return _Sent(call, request, endpoint, hidden=False)
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"content-length"]
        changed = self.http.Request(
            request.method, request.url, headers=headers, content=json.dumps(asks).encode(), extensions=request.extensions
        )
        return _Sent(call, changed, endpoint, hidden=True)

    def _failed(self, attempt: Attempt, error: BaseException, *, answered: bool) -> None:
        """No response came, or none that could be taken; that the ledger does not take it becomes a note on the error."""
        try:
            if answered:
                attempt.lost()  # where it is not settled yet
            else:
                self._unanswered(attempt, error)
        except TokenBudgetError as failed:
            beside(failed, error)

    def _unanswered(self, attempt: Attempt, error: BaseException) -> None:
        """Settle by whether anything can have been sent, or by the response that a hook made an error of."""
        if isinstance(error, self.http.HTTPStatusError) and not attempt.answered(error.response.status_code):
            return
        if attempt.sent and self.was_never_sent(error):
            attempt.refused()
        else:
            attempt.abandoned()

    def was_never_sent(self, error: BaseException) -> bool:
        """Whether it happened before any byte was sent."""
        illegal = isinstance(error, self.http.LocalProtocolError) and str(error).startswith(_ILLEGAL)
        return illegal or isinstance(error, self._never_sent)

    def _answered(self, response: Any, attempt: Attempt, sent: _Sent) -> Any:
        """Settle by the response, or by what will be read of it."""
        request_id = response.headers.get("x-request-id") or response.headers.get("request-id")
        if request_id:
            attempt.note(request_id=request_id)
        if not attempt.answered(response.status_code):
            return response
        reading = sent.reading(response.headers.get("content-type", ""))
        if response.is_stream_consumed or response.is_closed:  # a hook has read it
            return self._read(response, attempt, reading)
        read_by(self.http, response, Settlement(attempt, reading))
        if sent.hidden:
            response.headers.pop("content-length", None)  # less will be seen than is sent
        return response

    def _read(self, response: Any, attempt: Attempt, reading: Reading) -> Any:
        seen = reading.feed(response.content) + reading.rest()
        attempt.received(reading.received(ended=True))
        return self.whole(response, seen)

    def whole(self, response: Any, content: bytes) -> Any:
        """The response again, of which the content was read."""
        framing = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in framing]
        return self.http.Response(response.status_code, headers=headers, content=content, extensions=response.extensions)

    def read_along(self, response: Any, ending: Ending) -> Any:
        """The response, to be read along."""
        if response.is_stream_consumed or response.is_closed:  # a hook has read it
            ending.feed(response.content)
            ending.end(ended=True)
            return self.whole(response, response.content)
        read_by(self.http, response, ending)
        return response

    def close(self) -> None:
        """Close the inner client."""
        self.inner.close()

    async def aclose(self) -> None:
        """The same in async code."""
        await self.inner.aclose()

    def __repr__(self) -> str:
        return f"BudgetTransport({self.meter!r})"

    def __del__(self) -> None:
        if getattr(self, "_warns", False):
            self.meter.warn_unused(self)


def instrument(client: Any, meter: Meter) -> Any:
    """An httpx or httpx2 client of the same kind and with the same connections, whose calls count."""
    return _over(_package(client), inner_of(client), meter, warns=True)


def retagged(client: Any, tags: Mapping[str, str]) -> Any:
    """The same client with more tags; `None` where it is under no budget."""
    ours = _transport(client)
    return None if ours is None else _over(ours.http, ours.inner, ours.meter.tagged(tags))


def inner_of(client: Any) -> Any:
    """The client beneath, where one is under a budget already: budgets replace each other, and never stack."""
    ours = _transport(client)
    return client if ours is None else ours.inner


def meter_of(client: Any) -> Meter:
    """The meter of a client that was made here."""
    ours = _transport(client)
    if ours is None:
        raise InvalidValue("client", "is under no budget")
    return ours.meter


def _transport(client: Any) -> BudgetTransport | None:
    found = getattr(client, "_transport", None)
    return found if isinstance(found, BudgetTransport) else None


def _package(client: Any) -> Any:
    """`httpx` or `httpx2`."""
    packages = (kind.__module__.partition(".")[0] for kind in type(client).__mro__)
    return importlib.import_module(next(package for package in packages if package in ("httpx", "httpx2")))


@cache
def _transport_class(http: Any) -> type[BudgetTransport]:
    return type("BudgetTransport", (BudgetTransport, http.BaseTransport, http.AsyncBaseTransport), {})


def _over(http: Any, inner: Any, meter: Meter, *, warns: bool = False) -> Any:
    """A client that sends by a transport of ours and does all else as the inner one does."""
    kind = http.AsyncClient if isinstance(inner, http.AsyncClient) else http.Client
    return kind(
        transport=_transport_class(http)(http, inner, meter, warns=warns), auth=inner.auth, params=inner.params,
        headers=inner.headers, cookies=inner.cookies, timeout=inner.timeout, follow_redirects=inner.follow_redirects,
        max_redirects=inner.max_redirects, base_url=inner.base_url, trust_env=inner.trust_env,
    )  # fmt: skip


# --- a request ---------------------------------------------------------------------------------------------------------------


def _endpoint(request: Any) -> Endpoint | None:
    url = request.url
    return endpoint_at(request.method, f"{url.scheme}://{url.host}", url.path)


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, Mapping):
        raise InvalidValue("request", "its body is no JSON object, so it cannot be priced; nothing was sent")
    return body


def _retries(request: Any) -> int:
    """Which attempt it is, as SDKs made by Stainless say."""
    said = request.headers.get("x-stainless-retry-count", "")
    return int(said) if said.isdecimal() and len(said) < 4 else 0  # noqa: PLR2004 - no SDK tries a thousand times
