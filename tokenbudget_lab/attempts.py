"""One HTTP attempt that was granted, until it is settled: by what the provider says, by what has come, or as lost.

Its reader may rely on three things: an attempt is settled once, whoever comes first; nothing is called measured that the
provider did not say to the end; and what is estimated is never less than what has come.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Literal

from .calls import Call, Reading, Received
from .choosing import local_counter_for
from .commands import Reserve
from .counter import Count
from .errors import InvalidValue, NotEntered
from .handles import Budget
from .reported import Reported
from .reservation import Receipt, Reservation, Reserving
from .usage import Usage

log = logging.getLogger("tokenbudget_lab")
# A gateway said so, not the provider, who may have done the work and billed it.
UNKNOWN_FATE = frozenset({502, 504, 520, 524})


class Attempt:
    """One HTTP attempt: asked for, sent, and settled once.

    Args:
        call: what is asked for.
        reserving: its hold, which was not asked for yet.
        counted: its input.
        handed_in: takes the receipt of what settles it.
        learn: takes the length of its answer, in tokens, once that was measured.
        remember: takes the id of its reply and all of its tokens, once they are known.

    Attributes:
        sent: it may have reached the provider.
    """

    __slots__ = (
        "_begun",
        "_handed_in",
        "_learn",
        "_lock",
        "_open",
        "_remember",
        "_reserving",
        "call",
        "counted",
        "facts",
        "sent",
    )

    def __init__(
        self,
        call: Call,
        reserving: Reserving,
        counted: Count,
        *,
        handed_in: Callable[[Receipt[Any]], None],
        learn: Callable[[int], None],
        remember: Callable[[str, int], None] | None = None,
    ) -> None:
        self._reserving, self._handed_in, self._learn, self._remember = reserving, handed_in, learn, remember
        self.call = replace(call, content=None, tools=None, system=None, beside=())  # its words have been counted
        self.counted = counted
        self._lock, self._open, self._begun = threading.Lock(), True, 0.0
        self.sent = False
        self.facts: dict[str, str | float] = {}

    def ask(self) -> None:
        """Reserve, and block until that is granted.

        Raises:
            BudgetExceeded: it does not fit; nothing is to be sent.
        """
        self._reserving.ask()
        self._begun, self.sent = time.monotonic(), True

    async def ask_async(self) -> None:
        """The same in async code; cancelled, what was granted is given back."""
        await self._reserving
        self._begun, self.sent = time.monotonic(), True

    def abandoned(self) -> None:
        """It was interrupted: what was granted and not sent is given back, what was sent is lost."""
        if self.sent:
            self.lost()
        elif self._reserving.held is not None:
            self.refused()

    @property
    def _held(self) -> Reservation:
        held = self._reserving.held
        if held is None:
            raise NotEntered("nothing was reserved for this call")
        return held

    def refused(self) -> None:
        """The provider refused it, or it was never sent: give the hold back."""
        if self._take():
            self._handed_in(self._held.rollback())

    def answered(self, status: int) -> bool:
        """Whether there is a reply to be read; an error of the provider's gives the hold back, one of a gateway's loses it."""
        if 200 <= status < 300:  # noqa: PLR2004 - a success of HTTP
            return True
        if status in UNKNOWN_FATE:
            self.lost()
        else:
            self.refused()
        return False

    def lost(self) -> None:
        """Nobody knows what it used: the whole hold is counted, as unknown."""
        if self._take():
            self._handed_in(self._held.lose())

    def received(self, received: Received) -> None:
        """Settle it by what has come of the reply."""
        if received.reported is not None:
            self.measured(received.reported, received.stop_reason)
        else:
            self._broken(received)

    def measured(self, reported: Reported, stop_reason: str | None = None) -> None:
        """The provider said what it used."""
        if not self._take():
            return
        usage, terms = reported.usage, reported.terms
        self.note(stop_reason=stop_reason, service_tier="batch" if terms.batch else terms.tier)
        self._commit(reported, "measured", reported.response_id)
        if reported.finished and self.call.answers == 1 and self.call.most_output_tokens != 0:
            self._learn(usage.output_tokens)

    def _broken(self, received: Received) -> None:
        """It ended too early: count what has come, or the whole hold where that says too little or is less."""
        written = local_counter_for(self.call.model).count_sync(received.text).upper if received.text else 0
        written = max(written, received.output_tokens)
        usage = self._usage_until(received, written)
        if usage is None or (received.unseen and not self._is_above_hold(usage)):
            self.lost()
            return
        if self._take():
            self.note(stop_reason=received.stop_reason, broken_off="yes")
            self._commit(Reported(usage), "estimated", received.response_id)

    def _usage_until(self, received: Received, written: int) -> Usage | None:
        """What a broken reply used at least; `None` where nothing has come of it."""
        if received.input is not None:
            try:
                told_usage = Usage.of({**received.input, "output_tokens": written})
            except InvalidValue:
                return None
            return told_usage
        if not written:
            return None
        return Usage(self.counted.upper, written)

    def _is_above_hold(self, usage: Usage) -> bool:
        return self._held.tokens is not None and usage.tokens > self._held.tokens

    def _commit(self, reported: Reported, basis: Literal["measured", "estimated"], response_id: str | None) -> None:
        self.note(latency_s=round(time.monotonic() - self._begun, 4))
        if response_id is not None and self._remember is not None:
            self._remember(response_id, reported.tokens)
        self._handed_in(self._held.commit(reported, basis=basis, response_id=response_id, facts=self.facts))

    def note(self, **facts: str | float | None) -> None:
        """What its event is to remember of it."""
        for name, value in facts.items():
            if value is not None:
                self.facts[name] = value[:120] if isinstance(value, str) else value

    def _take(self) -> bool:
        """Whether this is the one that settles it."""
        with self._lock:
            taken, self._open = self._open, False
        return taken


class _Asking(Reserving):
    """A reservation whose command is made already."""

    __slots__ = ("_made",)

    def __init__(self, budget: Budget, made: Reserve) -> None:
        super().__init__(budget, ())
        self._made = made

    def command(self) -> Reserve:
        """What is asked; once."""
        if self._asked:
            raise NotEntered("this batch was asked for before")
        self._asked = True
        return self._made


class BatchAttempt:
    """A batch that is asked for as a whole, and then sent.

    Args:
        budget: where it counts.
        made: what is asked.
        handed_in: takes the receipts of what ends it.

    Attributes:
        sent: it may have reached the provider.
    """

    def __init__(self, budget: Budget, made: Reserve, handed_in: Callable[[Receipt[Any]], None]) -> None:
        self.budget, self.made, self._handed_in = budget, made, handed_in
        self._reserving, self.sent = _Asking(budget, made), False

    def ask(self) -> None:
        """Reserve all of it, and block until that is granted.

        Raises:
            BudgetExceeded: it does not fit; nothing is to be sent.
        """
        self._reserving.ask()
        self.sent = True

    async def ask_async(self) -> None:
        """The same in async code."""
        await self._reserving
        self.sent = True

    def refused(self) -> None:
        """The provider refused it, or it was never sent: give the hold back."""
        if self._reserving.held is not None:
            self._handed_in(self._reserving.held.rollback())

    def abandoned(self) -> None:
        """It was interrupted: what was sent stays held, since nobody knows whether the provider has it."""
        if not self.sent:
            self.refused()
        elif self._reserving.held is not None:
            log.warning(
                "the answer to a batch was lost, so its hold stays: ledger.batches() has it as %s. If the provider has it, "
                "ledger.batch(id).sent_as(…); if not, ledger.batch(id).rollback()",
                self._reserving.held.id,
            )


# --- what nobody ended ---------------------------------------------------------------------------------------------------

_dropped: SimpleQueue[tuple[Attempt, Reading]] = SimpleQueue()
_settler: threading.Thread | None = None
_settler_lock = threading.Lock()


def watch_dropped() -> None:
    """Have a thread that settles what the garbage collector found: it may run anywhere, and must ask nobody for anything."""
    global _settler  # noqa: PLW0603 - one per process, by intent
    if _settler is not None and _settler.is_alive():
        return
    with _settler_lock:
        if _settler is None or not _settler.is_alive():
            _settler = threading.Thread(target=_settle_dropped, name="tokenbudget dropped", daemon=True)
            _settler.start()


def dropped(attempt: Attempt, reading: Reading) -> None:
    """A stream was collected before it came to its end; safe inside a collection."""
    _dropped.put((attempt, reading))


def _settle_dropped() -> None:
    while True:
        attempt, reading = _dropped.get()
        try:
            attempt.received(reading.received(ended=False))
        except Exception as error:  # noqa: BLE001 - its hold ends by itself then, counted as unknown
            log.warning("a stream that was dropped could not be settled; its hold will be counted: %s", error)
        del attempt, reading
