"""Anthropic's message batches through a budget: reserved as a whole, settled as their results are read.

Results settle by `custom_id`, exactly once, whoever reads them: an instrumented client as it goes, or `ledger.sync_batches` in
another notebook on Monday.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import anthropic

from ..attempts import UNKNOWN_FATE, BatchAttempt
from ..batching import Batch, BatchState, batch, batches
from ..calls import Call
from ..errors import InvalidType, InvalidValue, UnknownReservation, told
from ..metering import Meter
from ..protocols.anthropic import call_of
from ..reservation import Counted, Receipt

log = logging.getLogger("tokenbudget_lab")
_RESULTS = re.compile(r"/v1/messages/batches/([^/?]+)/results(?:\?|$)")
_MOST_LINE = 64 << 20
_AT_ONCE = 1_000  # receipts that are on their way


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


def created(attempt: BatchAttempt, status: int, body: Any) -> Receipt[str] | None:
    """Settle by the answer to a batch's creation; the receipt is to be waited for: by that id the batch is found again."""
    if not 200 <= status < 300:  # noqa: PLR2004 - a success of HTTP
        attempt.abandoned() if status in UNKNOWN_FATE else attempt.refused()
        return None
    name = body.get("id") if isinstance(body, Mapping) else None
    if not isinstance(name, str) or not name:
        attempt.abandoned()
        return None
    ledger: Any = attempt.budget.ledger
    return Batch(ledger, attempt.made.id, attempt.budget.name, attempt.made.model).sent_as(name)


# --- results -----------------------------------------------------------------------------------------------------------------


class Settling:
    """A batch whose results are being read.

    Attributes:
        unknown: how many of them cannot be told.
    """

    def __init__(self, found: Batch) -> None:
        self.batch, self.unknown = found, 0
        self._before = found.settled_items()  # whatever they would cost today, they count already
        self._names: set[str] = set()
        self._receipts: list[Receipt[Counted]] = []

    @property
    def items(self) -> int:
        """How many were read."""
        return len(self._names)

    def take(self, result: Any) -> None:
        """Settle one item."""
        item = result.get("custom_id") if isinstance(result, Mapping) else None
        outcome = result.get("result") if isinstance(result, Mapping) else None
        if not isinstance(item, str) or not isinstance(outcome, Mapping):
            self.unknown += 1
            return
        self._names.add(item)
        if item in self._before:
            return
        if outcome.get("type") != "succeeded":
            self._receipts.append(self.batch.not_billed(item, str(outcome.get("type"))[:64]))
            return
        message = outcome.get("message")
        stop = message.get("stop_reason") if isinstance(message, Mapping) else None
        try:
            self._receipts.append(self.batch.settle(item, message, {"stop_reason": stop} if isinstance(stop, str) else None))
        except InvalidValue:  # what it used cannot be read: in the end the rest of the hold counts
            self.unknown += 1

    def check(self, *, all_of_them: bool = True) -> None:
        """Wait for what was settled, so that no error is lost."""
        if all_of_them or len(self._receipts) >= _AT_ONCE:
            receipts, self._receipts = self._receipts, []
            for receipt in receipts:
                receipt.result()

    async def check_async(self, *, all_of_them: bool = True) -> None:
        """The same in async code."""
        if all_of_them or len(self._receipts) >= _AT_ONCE:
            receipts, self._receipts = self._receipts, []
            for receipt in receipts:
                await receipt

    def hand_over(self, meter: Meter) -> None:
        """Have the receipts read with the next call."""
        meter.take(*self._receipts)
        self._receipts = []


class Results:
    """A batch's results while their lines come in, and what ends them: in the place of a reply and its settlement.

    Args:
        settling: the batch.
        meter: reads the receipts later.
        state: of the batch before.
    """

    def __init__(self, settling: Settling, meter: Meter, state: BatchState) -> None:
        self._settling, self._meter, self._state = settling, meter, state
        self._line, self._over = bytearray(), False

    def feed(self, chunk: bytes) -> bytes:
        """Take more of them."""
        self._line += chunk
        *lines, rest = bytes(self._line).split(b"\n")
        self._line = bytearray(rest)
        for line in lines:
            self._take(line)
        if len(self._line) > _MOST_LINE:
            self._line.clear()
            self._settling.unknown += 1
        return chunk

    def rest(self) -> bytes:
        """Nothing is held back."""
        return b""

    def _take(self, line: bytes) -> None:
        if line.strip():
            try:
                self._settling.take(json.loads(line))
            except (ValueError, RecursionError):
                self._settling.unknown += 1

    def broken(self, error: BaseException) -> None:  # noqa: ARG002 - it goes on to the caller
        """An error ended them."""
        self.end(ended=False)

    def leave(self) -> None:
        """They are not read to their end, or have been."""
        self.end(ended=False)

    def end(self, *, ended: bool) -> None:
        """The results have ended: what is left of the hold is given back once all of them were read."""
        if self._over:
            return
        self._over = True
        if ended:
            self._take(bytes(self._line))
        self._settling.hand_over(self._meter)
        if ended and self._settling.items >= self._state.items and self._state.state == "open":
            self._meter.take(self._settling.batch.finish(unknown=self._settling.unknown > 0))


def open_results(meter: Meter, name: str) -> Results | None:
    """What reads the results of a batch; `None` where the ledger does not know it."""
    ledger: Any = meter.ledger()
    try:
        found = batch(ledger, name)
    except UnknownReservation:
        log.warning("the results of %s are read by an instrumented client, and the ledger does not know that batch", name)
        return None
    state = batches(ledger, name, ended=True)[-1]
    if state.state in ("rolled_back", "counted"):
        log.warning("%s; its results count no more. What the provider billed besides: budget.record(…)", state)
        return None
    return Results(Settling(found), meter, state)


# --- from another notebook, on Monday ------------------------------------------------------------------------------------


def sync_batches(ledger: Any, client: Any) -> Any:
    """Settle all open batches that have ended."""
    if isinstance(client, anthropic.AsyncAnthropic):
        return _sync_async(ledger, client)
    open_ones = _known(ledger)
    for state in open_ones:
        if client.messages.batches.retrieve(state.name).processing_status == "ended":
            settling = Settling(state.of(ledger))
            for line in client.messages.batches.results(state.name):
                settling.take(_dumped(line))
                settling.check(all_of_them=False)
            settling.check()
            if settling.items >= state.items:
                settling.batch.finish(unknown=settling.unknown > 0).result()
    return _now(ledger, open_ones)


async def _sync_async(ledger: Any, client: anthropic.AsyncAnthropic) -> list[BatchState]:
    open_ones = _known(ledger)
    for state in open_ones:
        name = state.name or ""
        if (await client.messages.batches.retrieve(name)).processing_status == "ended":
            settling = Settling(state.of(ledger))
            async for line in await client.messages.batches.results(name):
                settling.take(_dumped(line))
                await settling.check_async(all_of_them=False)
            await settling.check_async()
            if settling.items >= state.items:
                await settling.batch.finish(unknown=settling.unknown > 0)
    return _now(ledger, open_ones)


def _known(ledger: Any) -> list[BatchState]:
    return [each for each in batches(ledger) if each.name is not None and each.provider in (None, "anthropic")]


def _now(ledger: Any, before: list[BatchState]) -> list[BatchState]:
    """The batches that were open, as they are now."""
    known = {each.reservation for each in before}
    return [each for each in batches(ledger, ended=True) if each.reservation in known]


def _dumped(line: Any) -> Any:
    return line.model_dump(mode="json", warnings=False)
