"""What the tests of instruments share: the ends of calls, and what a call costs by the catalogue alone."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import genai_prices
from genai_prices import data_snapshot

from tests.provider import Used


def settled(log: Any, calls: int) -> list[Any]:
    """The events that ended the calls, once there are so many."""
    deadline = time.monotonic() + 10
    while True:
        ends = [event for event in log.events if event.kind in ("committed", "rolled_back", "expired")]
        if len(ends) >= calls or time.monotonic() > deadline:
            assert len(ends) == calls, [event.kind for event in log.events]
            return ends
        time.sleep(0.01)


def priced(used: Used, provider: str = "openai", flavor: str | None = None) -> Decimal:
    """What the catalogue says that this costs: by its own reading, and none of ours."""
    flavor = flavor or {"/v1/responses": "responses", "/v1/embeddings": "embeddings"}.get(used.path, "chat")
    seller = data_snapshot.get_snapshot().find_provider(None, provider, None)
    _, usage = seller.extract_usage({"model": used.model, "usage": used.usage}, api_flavor=flavor)
    context = {name: str(value) for name, value in used.terms.items() if name == "service_tier"}
    return genai_prices.calc_price(usage, used.model, provider_id=provider, price_context=context).total_price


def usd(event: Any) -> Decimal:
    """What an event counts, in USD."""
    return Decimal(event.usd).scaleb(-12)
