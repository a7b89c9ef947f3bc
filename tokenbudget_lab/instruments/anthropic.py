"""Anthropic's SDK through a budget, by the SDK's own middleware: one reservation for each HTTP attempt.

The middleware stands innermost, so that what another one answers itself, or asks twice, is reserved as often as it is sent. An
error that is raised here has no cause: the SDK looks for one that it retries along `__cause__`, and a refusal is not to be.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import anthropic
import httpx2

from ..attempts import Attempt, BatchAttempt, frames_of
from ..calls import Endpoint, received_of
from ..errors import NotMetered, TokenBudgetError
from ..metering import Meter
from ..pieces import Settlement, beside, read_by, reading_for
from ..protocols.anthropic import MESSAGES
from .batches import created

AnyClient = anthropic.Anthropic | anthropic.AsyncAnthropic
# What a POST does without asking a model. All others cost something, or may.
_FREE = re.compile(
    r"/v1/(?:messages/count_tokens|messages/batches/[^/]+/cancel|files|skills|organizations|user_profiles|vaults"
    r"|memory_stores|environments|tunnels)(?:/|$)"
)
_MAKING = ("_prepare_options", "_build_request", "_prepare_request")
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)


class BudgetMiddleware(anthropic.Middleware):
    """Reserves before an attempt is sent, and settles by what comes back.

    Args:
        meter: the budget, tags and policy.
    """

    def __init__(self, meter: Meter, *, warns: bool = False) -> None:
        self.meter, self._warns = meter, warns

    def handle(self, request: Any, call_next: Any) -> Any:
        """One attempt of a sync client."""
        self.meter.used = True
        if _creates_batch(request):
            return self._batch(request, call_next)
        endpoint = _endpoint(request)
        if endpoint is None:
            return self._read(request, call_next)
        try:
            attempt = self.meter.attempt(endpoint.call(_body(request)), retries=request.retries_taken)
        except TokenBudgetError as error:
            raise error from None
        answered = False
        try:
            _ask(attempt)
            response = call_next(request)
            answered = True
            return _answered(response, attempt, endpoint)
        except BaseException as error:
            _failed(attempt, error, answered=answered)
            raise

    async def handle_async(self, request: Any, call_next: Any) -> Any:
        """One attempt of an async client."""
        self.meter.used = True
        if _creates_batch(request):
            return await self._batch_async(request, call_next)
        endpoint = _endpoint(request)
        if endpoint is None:
            return await self._read_async(request, call_next)
        try:
            attempt = await self.meter.attempt_async(endpoint.call(_body(request)), retries=request.retries_taken)
        except TokenBudgetError as error:
            raise error from None
        answered = False
        try:
            try:
                await attempt.ask_async()
            except TokenBudgetError as error:
                raise error from None
            response = await call_next(request)
            answered = True
            return _answered(response, attempt, endpoint)
        except BaseException as error:
            _failed(attempt, error, answered=answered)
            raise

    # --- batches -----------------------------------------------------------------------------------------------------------

    def _batch(self, request: Any, call_next: Any) -> Any:
        from . import anthropic_batches

        try:
            attempt = self.meter.batch(anthropic_batches.calls_of(_body(request)))
            attempt.ask()
        except TokenBudgetError as error:
            raise error from None
        try:
            response = call_next(request)
        except BaseException as error:
            _failed_batch(attempt, error)
            raise
        receipt = created(attempt, response.http_response.status_code, _json(response.http_response))
        if receipt is not None:
            receipt.result()
        return response

    async def _batch_async(self, request: Any, call_next: Any) -> Any:
        from . import anthropic_batches

        try:
            attempt = await asyncio.to_thread(self.meter.batch, anthropic_batches.calls_of(_body(request)))
            await attempt.ask_async()
        except TokenBudgetError as error:
            raise error from None
        try:
            response = await call_next(request)
        except BaseException as error:
            _failed_batch(attempt, error)
            raise
        receipt = created(attempt, response.http_response.status_code, _json(response.http_response))
        if receipt is not None:
            await receipt
        return response

    def _read(self, request: Any, call_next: Any) -> Any:
        """What costs nothing; the results of a batch are settled while they are read."""
        from . import anthropic_batches

        name = anthropic_batches.results_of(request.url) if request.method.lower() == "get" else None
        if name is None:
            return call_next(request)
        results, response = anthropic_batches.open_results(self.meter, name), call_next(request)
        if results is not None and response.http_response.is_success:
            read_by(httpx2, response.http_response, results)
        return response

    async def _read_async(self, request: Any, call_next: Any) -> Any:
        from . import anthropic_batches

        name = anthropic_batches.results_of(request.url) if request.method.lower() == "get" else None
        if name is None:
            return await call_next(request)
        results = await asyncio.to_thread(anthropic_batches.open_results, self.meter, name)
        response = await call_next(request)
        if results is not None and response.http_response.is_success:
            read_by(httpx2, response.http_response, results)
        return response

    def __repr__(self) -> str:
        return f"BudgetMiddleware({self.meter!r})"

    def __del__(self) -> None:
        if getattr(self, "_warns", False):
            self.meter.warn_unused(self)


def instrument(client: AnyClient, meter: Meter) -> AnyClient:
    """A client of the same type and with the same connections, whose calls count."""
    return _with(client, BudgetMiddleware(meter, warns=True))


def retagged(client: AnyClient, tags: Mapping[str, str]) -> AnyClient | None:
    """The same client with more tags; `None` where it is under no budget."""
    ours = next((each for each in client.middleware if isinstance(each, BudgetMiddleware)), None)
    return None if ours is None else _with(client, BudgetMiddleware(ours.meter.tagged(tags)))


def _with(client: AnyClient, middleware: BudgetMiddleware) -> AnyClient:
    """Innermost, in the place of any other of ours."""
    others = [each for each in client.middleware if not isinstance(each, BudgetMiddleware)]
    return client.with_options(middleware=[*others, middleware])


def sync_batches(ledger: Any, client: AnyClient) -> Any:
    """Settle the open batches that have ended."""
    from . import anthropic_batches

    return anthropic_batches.sync_batches(ledger, client)


# --- an attempt --------------------------------------------------------------------------------------------------------------


def _creates_batch(request: Any) -> bool:
    return bool(request.method.lower() == "post" and request.url.partition("?")[0] == "/v1/messages/batches")


def _endpoint(request: Any) -> Endpoint | None:
    """Where a request goes; `None` where that costs nothing.

    Raises:
        NotMetered: it costs something, and nobody here knows what.
    """
    path = request.url.partition("?")[0]
    if request.method.lower() != "post" or _FREE.match(path):
        return None
    if path == "/v1/messages":
        return MESSAGES
    raise NotMetered(f"POST {path}")


def _body(request: Any) -> Mapping[str, Any]:
    body, more = request.json, request.options.extra_json
    body = body if isinstance(body, Mapping) else {}
    return {**body, **more} if more else body


def _ask(attempt: Attempt) -> None:
    try:
        attempt.ask()
    except TokenBudgetError as error:
        raise error from None


def _failed(attempt: Attempt, error: BaseException, *, answered: bool) -> None:
    """No response came, or none that could be taken: settle by whether anything can have been sent."""
    try:
        if answered:
            attempt.lost()  # where it is not settled yet
        elif attempt.sent and _never_sent(error):
            attempt.refused()
        else:
            attempt.abandoned()
    except TokenBudgetError as failed:
        beside(failed, error)


def _failed_batch(attempt: BatchAttempt, error: BaseException) -> None:
    if isinstance(error, Exception) and _never_sent(error):
        attempt.refused()
    else:
        attempt.abandoned()


def _never_sent(error: BaseException) -> bool:
    """Whether it happened before any byte was sent: while the request was made, or its connection."""
    if isinstance(error, anthropic.APIConnectionError):
        return isinstance(error.__cause__, _NEVER_SENT)
    frames = frames_of(error)
    if isinstance(error, Exception):
        return not any(name == "send" and module.startswith("httpx2") for module, name in frames)
    # Ctrl-C may come behind the sending as well; these functions are before it.
    return any(name in _MAKING and module.startswith("anthropic") for module, name in frames)


def _answered(response: Any, attempt: Attempt, endpoint: Endpoint) -> Any:
    """Settle by the response, or by what will be read of it."""
    if not isinstance(response, anthropic.APIResponse | anthropic.AsyncAPIResponse):
        attempt.lost()  # another middleware made something of it: what was used is not known
        return response
    http = response.http_response
    request_id = http.headers.get("request-id")
    if request_id:
        attempt.note(request_id=request_id)
    if not attempt.answered(http.status_code):
        return response
    if http.is_closed or http.is_stream_consumed:
        attempt.received(received_of(_json(http)))
    else:
        kind = http.headers.get("content-type", "")
        read_by(httpx2, http, Settlement(attempt, reading_for(kind, endpoint.stream())))
    return response


def _json(http: Any) -> Any:
    try:
        return http.json()
    except (ValueError, RecursionError):
        return None
