"""Any SDK on httpx or httpx2 through a budget: a transport that stands between its HTTP client and the connections.

A small table says where calls are made that cost something, and what they say. Whatever else is posted is let through only
where it is known to cost nothing: what cannot be priced is refused, and not taken for free.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from ..attempts import Attempt
from ..calls import Endpoint
from ..errors import InvalidValue, NotMetered
from ..metering import Meter
from ..pieces import Settlement, read_by, reading_for
from ..protocols.anthropic import MESSAGES
from ..protocols.openai import CHAT, EMBEDDINGS, RESPONSES, ChatStream, with_usage

# Ends of paths, so that whatever stands before them (`/v1`, `/openai/deployments/…`) is of no account.
_PAID: tuple[tuple[re.Pattern[str], Endpoint], ...] = (
    (re.compile(r"/chat/completions$"), CHAT),
    (re.compile(r"/responses$"), RESPONSES),
    (re.compile(r"/embeddings$"), EMBEDDINGS),
    (re.compile(r"/v1/messages$"), MESSAGES),
)
_FREE = re.compile(
    r"/(?:count_tokens|input_tokens|moderations|models|organization|admin|tokenize|oauth)(?:/|$)"
    r"|/files(?:/[^/]+)?$|/uploads(?:/|$)|/batches/[^/]+/cancel$|/responses/[^/]+/cancel$|/conversations(?:/|$)"
)
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol")


class _Sent(NamedTuple):
    """What is sent for a call."""

    request: Any
    endpoint: Endpoint
    hidden: bool  # the last chunk was not asked for by the caller


class BudgetTransport:
    """Reserves before a request is sent, and settles by what comes back; sync and async.

    Args:
        http: `httpx2` or `httpx`.
        inner: the HTTP client that sends; its connections, cookies and hooks stay in use.
        meter: the budget, tags and policy.
    """

    def __init__(self, http: Any, inner: Any, meter: Meter, *, warns: bool = False) -> None:
        self.http, self.inner, self.meter, self._warns = http, inner, meter, warns
        self._never_sent = tuple(getattr(http, name) for name in _NEVER_SENT)

    def handle_request(self, request: Any) -> Any:
        """One attempt of a sync client."""
        self.meter.used = True
        endpoint = _endpoint(request)
        if endpoint is None:
            return self._send(request)
        body = _json(request.read())
        sent = self._sent(request, endpoint, body)
        attempt = self.meter.attempt(endpoint.call(body), retries=_retries(request))
        try:
            attempt.ask()
            response = self._send(sent.request)
        except BaseException as error:
            self._failed(attempt, error)
            raise
        return self._answered(response, attempt, sent)

    async def handle_async_request(self, request: Any) -> Any:
        """One attempt of an async client."""
        self.meter.used = True
        endpoint = _endpoint(request)
        if endpoint is None:
            return await self._send(request)
        body = _json(await request.aread())
        sent = self._sent(request, endpoint, body)
        attempt = await self.meter.attempt_async(endpoint.call(body), retries=_retries(request))
        try:
            await attempt.ask_async()
            response = await self._send(sent.request)
        except BaseException as error:
            self._failed(attempt, error)
            raise
        return self._answered(response, attempt, sent)

    def _send(self, request: Any) -> Any:
        """By the inner client, whose redirects and authentication are the outer one's business."""
        return self.inner.send(request, stream=True, auth=None, follow_redirects=False)

    def _sent(self, request: Any, endpoint: Endpoint, body: Mapping[str, Any]) -> _Sent:
        asks = with_usage(body) if endpoint is CHAT else None
        if asks is None:
            return _Sent(request, endpoint, hidden=False)
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"content-length"]
        content = json.dumps(asks).encode()
        changed = self.http.Request(
            request.method, request.url, headers=headers, content=content, extensions=request.extensions
        )
        return _Sent(changed, endpoint, hidden=True)

    def _failed(self, attempt: Attempt, error: BaseException) -> None:
        if attempt.sent and isinstance(error, self._never_sent):
            attempt.refused()
        else:
            attempt.abandoned()

    def _answered(self, response: Any, attempt: Attempt, sent: _Sent) -> Any:
        """Settle by the response, or by what will be read of it."""
        request_id = response.headers.get("x-request-id") or response.headers.get("request-id")
        if request_id:
            attempt.note(request_id=request_id)
        if attempt.answered(response.status_code):
            stream = ChatStream(hidden=True) if sent.hidden else sent.endpoint.stream()
            read_by(self.http, response, Settlement(attempt, reading_for(response.headers.get("content-type", ""), stream)))
        return response

    def close(self) -> None:
        """Close the inner client."""
        self.inner.close()

    async def aclose(self) -> None:
        """The same in async code."""
        await self.inner.aclose()

    def __del__(self, finalizing: Any = sys.is_finalizing, warn: Any = warnings.warn) -> None:
        meter = getattr(self, "meter", None)
        if meter is not None and self._warns and not meter.used and not finalizing():
            warn(
                "an instrumented client was never called. tbl.instrument(client, …) returns a new client; the one that you "
                "gave it is under no budget",
                RuntimeWarning,
                source=self,
                stacklevel=2,
            )


def instrument(client: Any, meter: Meter) -> Any:
    """An httpx or httpx2 client of the same kind and with the same connections, whose calls count."""
    http = importlib.import_module(_package(client))
    return _over(http, inner_of(client), BudgetTransport(http, inner_of(client), meter, warns=True))


def retagged(client: Any, tags: Mapping[str, str]) -> Any:
    """The same client with more tags; `None` where it is under no budget."""
    ours = _transport(client)
    if ours is None:
        return None
    return _over(ours.http, ours.inner, BudgetTransport(ours.http, ours.inner, ours.meter.tagged(tags)))


def inner_of(client: Any) -> Any:
    """The client beneath, where one is under a budget already: budgets replace each other, and never stack."""
    ours = _transport(client)
    return client if ours is None else ours.inner


def _transport(client: Any) -> BudgetTransport | None:
    found = getattr(client, "_transport", None)
    return found if isinstance(found, BudgetTransport) else None


def _package(client: Any) -> str:
    """`httpx` or `httpx2`."""
    packages = (kind.__module__.partition(".")[0] for kind in type(client).__mro__)
    return next(package for package in packages if package in ("httpx", "httpx2"))


@cache
def _transport_class(http: Any) -> type[BudgetTransport]:
    return type("BudgetTransport", (BudgetTransport, http.BaseTransport, http.AsyncBaseTransport), {})


def _over(http: Any, inner: Any, transport: BudgetTransport) -> Any:
    """A client that sends by this transport and does all else as the inner one does."""
    transport.__class__ = _transport_class(http)
    kind = http.AsyncClient if isinstance(inner, http.AsyncClient) else http.Client
    return kind(
        transport=transport, auth=inner.auth, params=inner.params, headers=inner.headers, cookies=inner.cookies,
        timeout=inner.timeout, follow_redirects=inner.follow_redirects, max_redirects=inner.max_redirects,
        base_url=inner.base_url, trust_env=inner.trust_env,
    )  # fmt: skip


# --- a request ---------------------------------------------------------------------------------------------------------------


def _endpoint(request: Any) -> Endpoint | None:
    """Where a request goes; `None` where that costs nothing.

    Raises:
        NotMetered: it costs something, and nobody here knows what.
    """
    path = request.url.path
    if request.method.upper() in ("GET", "HEAD", "OPTIONS", "DELETE"):
        return None
    for pattern, endpoint in _PAID:
        if pattern.search(path):
            return endpoint
    if _FREE.search(path):
        return None
    raise NotMetered(f"{request.method} {path}")


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
