"""OpenAI's SDK through a budget, by its HTTP client: the SDK has no middleware.

The HTTP client that the SDK gets sends by the one that it had, so connections, proxies and hooks stay in use. An error that is
raised there reaches the caller inside the SDK's own `APIConnectionError`, after retries; so it is raised once more, outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..metering import Meter
from . import transport


def instrument(client: Any, meter: Meter) -> Any:
    """A client of the same type and with the same connections, whose calls count."""
    return client.with_options(http_client=transport.instrument(client._client, meter))  # noqa: SLF001 - the SDK has no other name for it


def retagged(client: Any, tags: Mapping[str, str]) -> Any:
    """The same client with more tags; `None` where it is under no budget."""
    http = transport.retagged(client._client, tags)  # noqa: SLF001 - as above
    return None if http is None else client.with_options(http_client=http)
