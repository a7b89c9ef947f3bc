"""What batches of all providers share: how one that was sent is noted, and how its results settle as their lines come in.

Results settle by `custom_id`, exactly once, whoever reads them: an instrumented client as it goes, or `ledger.sync_batches` in
another notebook on Monday.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..attempts import UNKNOWN_FATE, BatchAttempt
from ..batching import Batch, BatchState, batches
from ..errors import InvalidValue
from ..metering import Meter
from ..reservation import Counted, Receipt

log = logging.getLogger("tokenbudget_lab")
MOST_LINE = 64 << 20  # bytes
_AT_ONCE = 1_000  # receipts that are on their way
Settles = Callable[[Batch, str, Mapping[str, Any]], Receipt[Counted]]


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

    Args:
        found: the batch.
        settles: what settles one item by its line, and raises `InvalidValue` where that cannot be told.

    Attributes:
        names: the items that were read.
        before: those that count already, whatever they would cost today.
        unknown: how many lines, or what they used, cannot be told.
    """

    def __init__(self, found: Batch, settles: Settles) -> None:
        self.batch, self._settles = found, settles
        self.names: set[str] = set()
        self.unknown = 0
        self.before = found.settled_items()
        self._receipts: list[Receipt[Counted]] = []
        self._line = bytearray()

    def take(self, line: Any) -> None:
        """Settle one item."""
        item = line.get("custom_id") if isinstance(line, Mapping) else None
        if not isinstance(item, str):
            self.unknown += 1
            return
        self.names.add(item)
        if item in self.before:
            return
        try:
            self._receipts.append(self._settles(self.batch, item, line))
        except InvalidValue:  # what it used cannot be read: in the end the rest of the hold counts
            self.unknown += 1

    def feed(self, chunk: bytes) -> None:
        """Settle the lines that these bytes complete."""
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._take(bytes(self._line) + line)
            self._line.clear()
        self._line += rest
        if len(self._line) > MOST_LINE:
            self._line.clear()
            self.unknown += 1

    def end(self) -> None:
        """Settle what stands behind the last line break."""
        self._take(bytes(self._line))
        self._line.clear()

    def _take(self, line: bytes) -> None:
        if line.strip():
            try:
                self.take(json.loads(line))
            except (ValueError, RecursionError):
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
        finish: ends the batch, where all of it has been read.
    """

    def __init__(self, settling: Settling, meter: Meter, finish: Callable[[], Receipt[Any] | None]) -> None:
        self._settling, self._meter, self._finish = settling, meter, finish
        self._over = False

    def feed(self, chunk: bytes) -> bytes:
        """Take more of them."""
        self._settling.feed(chunk)
        return chunk

    def rest(self) -> bytes:
        """Nothing is held back."""
        return b""

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
            self._settling.end()
        self._settling.hand_over(self._meter)
        receipt = self._finish() if ended else None
        if receipt is not None:
            self._meter.take(receipt)


def state_of(meter: Meter, name: str) -> BatchState | None:
    """A batch whose results are read; `None` where they are not to count, which its reader is told."""
    ledger: Any = meter.ledger()
    found = batches(ledger, name, ended=True)
    if not found:
        log.warning("the results of %s are read by an instrumented client, and the ledger does not know that batch", name)
        return None
    if found[-1].state in ("rolled_back", "counted"):
        log.warning("%s; its results count no more. What the provider billed besides: budget.record(…)", found[-1])
        return None
    return found[-1]


# --- from another notebook, on Monday ------------------------------------------------------------------------------------


def open_at(ledger: Any, provider: str) -> list[BatchState]:
    """The open batches of which this provider knows."""
    return [each for each in batches(ledger) if each.name is not None and each.provider == provider]


def now(ledger: Any, before: list[BatchState]) -> list[BatchState]:
    """The batches that were open, as they are now."""
    known = {each.reservation for each in before}
    return [each for each in batches(ledger, ended=True) if each.reservation in known]
