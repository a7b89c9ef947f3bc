"""Anthropic's message batches: what they ask for, and what their results say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import anthropic

from ..batching import Batch, BatchState
from ..calls import Call
from ..errors import InvalidType, told
from ..metering import Meter
from ..protocols.anthropic import PROVIDER, call_of
from ..reservation import Counted, Receipt
from .batches import Results, Settling, now, open_at, state_of

_RESULTS = re.compile(r"/v1/messages/batches/([^/?]+)/results(?:\?|$)")


def results_of(path: str) -> str | None:
    """The batch whose results a request asks for; `None` where it asks for something else."""
    found = _RESULTS.search(path)
    return None if found is None else found[1]


def calls_of(body: Mapping[str, Any]) -> list[Call]:
    """The calls of a batch.

    Raises:
        InvalidType: it is no batch that can be priced.
    """
    requests = body.get("requests")
    if not isinstance(requests, list) or not requests:
        raise InvalidType("requests", f"{told(requests)} is no list of requests; the batch cannot be priced, and was not sent")
    calls = []
    for number, each in enumerate(requests):
        params = each.get("params") if isinstance(each, Mapping) else None
        if not isinstance(params, Mapping):
            raise InvalidType(f"requests[{number}]", "has no params; the batch cannot be priced, and was not sent")
        calls.append(call_of(params))
    return calls


def settle(found: Batch, item: str, line: Mapping[str, Any]) -> Receipt[Counted]:
    """Settle an item by its line of the results.

    Raises:
        InvalidValue: what it used cannot be told.
    """
    outcome = line.get("result")
    if not isinstance(outcome, Mapping):
        raise InvalidType("result", f"{told(outcome)} is no result")
    if outcome.get("type") != "succeeded":
        return found.not_billed(item, str(outcome.get("type"))[:64])
    message = outcome.get("message")
    stop = message.get("stop_reason") if isinstance(message, Mapping) else None
    return found.settle(item, message, {"stop_reason": stop} if isinstance(stop, str) else None)


def open_results(meter: Meter, name: str) -> Results | None:
    """What reads the results of a batch; `None` where they are not to count."""
    state = state_of(meter, name)
    if state is None:
        return None
    ledger: Any = meter.ledger()
    settling = Settling(state.of(ledger), settle)
    return Results(settling, meter, lambda: _finish(settling, state))


def _finish(settling: Settling, state: BatchState) -> Receipt[Any] | None:
    """End a batch of which all items were read."""
    if len(settling.names) < state.items or state.state != "open":
        return None
    return settling.batch.finish(unknown=settling.unknown > 0)


# --- from another notebook, on Monday ------------------------------------------------------------------------------------


def sync_batches(ledger: Any, client: Any) -> Any:
    """Settle all open batches that have ended."""
    if isinstance(client, anthropic.AsyncAnthropic):
        return _sync_async(ledger, client)
    open_ones = open_at(ledger, PROVIDER)
    for state in open_ones:
        if client.messages.batches.retrieve(state.name).processing_status == "ended":
            settling = Settling(state.of(ledger), settle)
            for line in client.messages.batches.results(state.name):
                settling.take(_dumped(line))
                settling.check(all_of_them=False)
            settling.check()
            receipt = _finish(settling, state)
            if receipt is not None:
                receipt.result()
    return now(ledger, open_ones)


async def _sync_async(ledger: Any, client: anthropic.AsyncAnthropic) -> list[BatchState]:
    open_ones = open_at(ledger, PROVIDER)
    for state in open_ones:
        name = state.name or ""
        if (await client.messages.batches.retrieve(name)).processing_status == "ended":
            settling = Settling(state.of(ledger), settle)
            async for line in await client.messages.batches.results(name):
                settling.take(_dumped(line))
                await settling.check_async(all_of_them=False)
            await settling.check_async()
            receipt = _finish(settling, state)
            if receipt is not None:
                await receipt
    return now(ledger, open_ones)


def _dumped(line: Any) -> Any:
    return line.model_dump(mode="json", warnings=False)
