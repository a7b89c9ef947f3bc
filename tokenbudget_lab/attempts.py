"""One HTTP attempt that was granted, until it is settled: by what the provider says, by what has come, or as lost.

Its reader may rely on four things: an attempt is settled once, whoever comes first; nothing is called measured that the
provider did not say to the end; what is estimated is never less than what has come; and one that nobody settles, or whose
settling was interrupted, is settled when it is collected.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from queue import SimpleQueue
from typing import Any

from .calls import Call, Reading, Received
from .choosing import local_counter_for
from .commands import Reserve
from .counter import Count
from .errors import CountFailed, InvalidValue, LedgerForked, LedgerUnavailable, NotEntered
from .handles import Budget
from .reported import Reported, response_id
from .reservation import Receipt, Reservation, Reserving
from .usage import Usage

log = logging.getLogger("tokenbudget_lab")
# A gateway said so, not the provider, who may have done the work and billed it.
UNKNOWN_FATE = frozenset({502, 504, 520, 524})
_WORD = re.compile(r"[\w.:/@+=-]{1,120}", re.ASCII)  # a sentence of the provider's may quote the prompt


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
        reading: the reply while it comes.
    """

    __slots__ = (
        "_begun",
        "_done",
        "_handed_in",
        "_learn",
        "_remember",
        "_reserving",
        "_turn",
        "call",
        "counted",
        "facts",
        "reading",
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
        self._done = True  # nothing is held yet
        self._turn = [True]  # whoever pops it settles; a pop is one step, and a collection may come in the midst of another
        self._reserving, self._handed_in, self._learn, self._remember = reserving, handed_in, learn, remember
        self.call = replace(call, content=None, tools=None, system=None, beside=())  # its words have been counted
        self.counted, self._begun = counted, 0.0
        self.sent = False
        self.reading: Reading | None = None
        self.facts: dict[str, str | float] = {}

    def ask(self) -> None:
        """Reserve, and block until that is granted.

        Raises:
            BudgetExceeded: it does not fit; nothing is to be sent.
        """
        watch_dropped()
        self._done = False
        self._reserving.ask()
        self._begun, self.sent = time.monotonic(), True

    async def ask_async(self) -> None:
        """The same in async code; cancelled, what was granted is given back."""
        watch_dropped()
        self._done = False
        await self._reserving
        self._begun, self.sent = time.monotonic(), True

    def abandoned(self) -> None:
        """Called while an error is handled: what was granted and not sent is given back, what was sent is lost."""
        if self._reserving.held is None:
            if self._reserving.granted() is None:
                self._done = True  # refused, or given back by who asked
            else:
                _dropped.put(self)  # Ctrl-C came with the answer; the hold may have been given back already
        elif self.sent and not was_connecting(sys.exception()):
            self.lost()
        else:
            self.refused()

    @property
    def is_open(self) -> bool:
        """Whether nobody has begun to settle it."""
        return bool(self._turn)

    @property
    def _held(self) -> Reservation:
        held = self._reserving.held
        if held is None:
            raise NotEntered("nothing was reserved for this call")
        held.lazily = True  # the caller has her reply: what settles it goes along with her next call
        return held

    # --- its end ---------------------------------------------------------------------------------------------------------

    def refused(self) -> None:
        """The provider refused it, or it was never sent: give the hold back."""
        self._end(self._held.rollback)

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
        self._end(self._held.lose)

    def received(self, received: Received) -> None:
        """Settle it by what has come of the reply."""
        self._end(lambda: self._counted(lambda: received))

    def read(self, *, ended: bool) -> None:
        """Settle it by what its reading has come to; `ended` says that its connection was not broken."""
        reading = self.reading
        if reading is not None:
            self._end(lambda: self._counted(lambda: reading.received(ended=ended)))

    def _end(self, handed: Callable[[], Receipt[Any]]) -> None:
        """Hand in what settles it, the first time; interrupted in the midst of it, a thread sees to it that it was."""
        try:
            if self._take():
                self._handed_in(handed())
                self._done = True
        except Exception:
            self._done = True  # the ledger takes nothing any more: the hold ends by itself
            raise
        except BaseException:
            _dropped.put(self)
            raise

    def _take(self) -> bool:
        """Whether this is the one that settles it."""
        try:
            self._turn.pop()
        except IndexError:
            return False
        return True

    def _counted(self, received: Callable[[], Received]) -> Receipt[Any]:
        """Commit what has come, or lose it; whatever a provider wrote, its hold is not left open."""
        try:
            told = received()
            receipt = self._broken(told) if told.reported is None else self._measured(told.reported, told.stop_reason)
        except LedgerUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - not to be known beforehand
            log.warning("what a reply used cannot be read (%s); its whole hold is counted", type(error).__name__)
            receipt = None
        return self._held.lose() if receipt is None else receipt

    def _measured(self, reported: Reported, stop_reason: str | None) -> Receipt[Any]:
        """The provider said what it used."""
        terms = reported.terms
        self.note(stop_reason=stop_reason, service_tier="batch" if terms.batch else terms.tier)
        receipt = self._commit(reported, "measured", reported.response_id)
        if reported.finished and self.call.answers == 1 and self.call.most_output_tokens != 0:
            self._learn(reported.usage.output_tokens)
        return receipt

    def _broken(self, received: Received) -> Receipt[Any] | None:
        """It ended too early: count what has come, or the whole hold where that says too little or is less."""
        used, whole = self._used_until(received, max(self._written(received.text), received.output_tokens))
        if used is None:
            return None
        more: dict[str, Any] = {}
        if received.unseen or not whole:
            held, usd = self._held, self._held.cost(used)
            if not _is_more(usd, held.usd) and not _is_more(used.tokens, held.tokens):
                return None
            more = {"usd": max(usd or Decimal(), held.usd or Decimal()) or None, "tokens": max(used.tokens, held.tokens or 0)}
        self.note(stop_reason=received.stop_reason, broken_off="yes")
        return self._commit(used, "estimated", response_id(received.response_id), **more)

    def _written(self, text: str) -> int:
        """How many tokens a text has at most."""
        try:
            return local_counter_for(self.call.model).count_sync(text).upper if text else 0
        except CountFailed:  # another package's counter
            return len(text.encode(errors="replace"))  # no token is less than a byte

    def _used_until(self, received: Received, written: int) -> tuple[Reported | None, bool]:
        """What a broken reply used at least, `None` where nothing has come of it; and whether the provider said its input."""
        if received.input is not None:
            try:
                return Reported.of({**received.input, "output_tokens": written}), True
            except InvalidValue:
                return (Reported(Usage(self.counted.upper, written)) if written else None), False
        return (Reported(Usage(self.counted.upper, written)) if written else None), True

    def _commit(self, reported: Reported, basis: Any, replied: str | None, **more: Any) -> Receipt[Any]:
        self.note(latency_s=round(time.monotonic() - self._begun, 4))
        if replied is not None and self._remember is not None:
            self._remember(replied, reported.tokens)
        return self._held.commit(reported, basis=basis, response_id=replied, facts=self.facts, **more)

    def note(self, **facts: str | float | None) -> None:
        """What its event is to remember of it: numbers and single words."""
        for name, value in facts.items():
            if value is not None and (not isinstance(value, str) or _WORD.fullmatch(value)):
                self.facts[name] = value

    # --- what nobody ended -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Nobody is to look at it again."""
        self._done = True

    def make_sure(self) -> None:
        """Settle it, if the ledger still holds it: nobody did, or who did was interrupted."""
        held = self._reserving.granted()
        if held is None or self._done:
            return
        if not self._turn:
            if held.state != "open":
                held.forget()
                return
            self._turn.append(True)
        if self.reading is not None:
            self.read(ended=False)
        elif self.sent:
            self.lost()
        else:
            self.refused()

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not getattr(self, "_done", True) and not finalizing():  # then its hold ends by itself, counted as unknown
            _dropped.put(self)  # one step: a collection may come anywhere, and must ask nobody for anything


def _is_more(used: Any, held: Any) -> bool:
    return used is not None and held is not None and bool(used > held)


# --- where an error came from --------------------------------------------------------------------------------------------


def frames_of(error: BaseException | None) -> list[tuple[str, str]]:
    """The modules and functions that an error went through, the outermost first."""
    found, where = [], None if error is None else error.__traceback__
    while where is not None:
        found.append((str(where.tb_frame.f_globals.get("__name__", "")), where.tb_frame.f_code.co_name))
        where = where.tb_next
    return found


def was_connecting(error: BaseException | None) -> bool:
    """Whether it came, or cut in, while a connection was made or waited for: then nothing of the request was sent."""
    waits = ("_connect", "wait_for_connection")
    return any(module.startswith("httpcore") and name in waits for module, name in frames_of(error))


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

_dropped: SimpleQueue[Attempt] = SimpleQueue()
_settler: threading.Thread | None = None
_settler_lock = threading.Lock()


def watch_dropped() -> None:
    """Have a thread that settles what was collected, or interrupted, before it came to its end."""
    global _settler  # noqa: PLW0603 - one per process, by intent
    if _settler is not None and _settler.is_alive():
        return
    with _settler_lock:
        if _settler is None or not _settler.is_alive():
            _settler = threading.Thread(target=_settle_dropped, args=(_dropped,), name="tokenbudget dropped", daemon=True)
            _settler.start()


def _settle_dropped(dropped: SimpleQueue[Attempt]) -> None:
    while True:
        attempt = dropped.get()
        try:
            attempt.make_sure()
        except LedgerForked:  # it is the parent's to settle
            pass
        except Exception as error:  # noqa: BLE001 - its hold ends by itself then, counted as unknown
            log.warning("a call that was dropped could not be settled; its hold will be counted: %s", error)
        attempt.close()
        del attempt


def _after_fork_in_child() -> None:
    """The parent settles what is its own; its thread, and a lock that it held, are not here."""
    global _dropped, _settler, _settler_lock
    _dropped, _settler, _settler_lock = SimpleQueue(), None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
