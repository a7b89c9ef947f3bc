"""OpenAI's SDK through a budget, by its HTTP client: the SDK has no middleware.

The HTTP client that the SDK gets sends by the one that it had, so connections, proxies and hooks stay in use. An error that is
raised there and is neither httpx's nor the SDK's reaches the caller as it is, and is not retried. What goes over a WebSocket
goes past the HTTP client, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import httpx2

from ..errors import NotMetered
from ..metering import Meter
from . import openai_batches, transport


class _NoSocket(httpx2.URL):
    """Where an instrumented client would open its WebSockets: it has no path, so none is opened."""

    def __init__(self, meter: Meter) -> None:
        super().__init__("wss://refused")
        self._meter = meter

    @property
    def raw_path(self) -> NoReturn:
        """Refuse.

        Raises:
            NotMetered: always.
        """
        self._meter.used = True
        raise NotMetered("a WebSocket (realtime, live, responses.connect)")


def instrument(client: Any, meter: Meter) -> Any:
    """A client of the same type and with the same connections, whose calls count."""
    return _with(client, transport.instrument(client._client, meter))  # noqa: SLF001 - the SDK has no other name for it


def retagged(client: Any, tags: Mapping[str, str]) -> Any:
    """The same client with more tags; `None` where it is under no budget."""
    http = transport.retagged(client._client, tags)  # noqa: SLF001 - as above
    return None if http is None else _with(client, http)


def sync_batches(ledger: Any, client: Any) -> Any:
    """Settle the open batches that have ended; past the budget of the client, where it has one: once is enough."""
    http = client._client  # noqa: SLF001 - as above
    inner = transport.inner_of(http)
    if inner is not http:
        transport.meter_of(http).used = True
        client = client.with_options(http_client=inner)
    return openai_batches.sync_batches(ledger, client)


def _with(client: Any, http: Any) -> Any:
    made = client.with_options(http_client=http)
    made.websocket_base_url = _NoSocket(transport.meter_of(http))
    return made
