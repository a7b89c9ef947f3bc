"""A reservation and the receipts of what ends it.

What may be refused is asked: `reserve(...)` and `extend(...)` do nothing until they are entered, awaited, or called by
their `_sync` twin. What no limit can refuse is submitted at once and returns a receipt: `commit`, `rollback`, `record`,
`adjust`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import warnings
from collections.abc import Coroutine, Generator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from .checks import facts_of, seconds, text_of
from .commands import Command, Commit, Extend, GetEntry, Lose, Reserve, Rollback
from .desk import Ticket
from .errors import InvalidValue, LedgerUnavailable, NotEntered, shown
from .events import to_detail
from .limits import instant
from .reported import Reported
from .terms import UNSAID, Terms
from .usage import Money, pico_of, tokens_of, usd_of

if TYPE_CHECKING:
    from .handles import Budget
    from .ledger import Ledger

log = logging.getLogger("tokenbudget_lab")
T = TypeVar("T")
Counts = tuple[int | None, int | None, int | None, int | None, int | None]
_NO_COUNTS: Counts = (None, None, None, None, None)
_COUNTED = 10  # fields of the answer to what counts something


@dataclass(frozen=True, slots=True)
class Counted:
    """What the ledger recorded for a call.

    Attributes:
        usd: cost; `None` where there is no price.
        basis: `measured`, `estimated` or `unknown`.
        overrun: more than the hold was used.
        late: the reservation had expired before.
        seq: the event.
    """

    reservation: str
    seq: int
    at: datetime
    usd: Decimal | None
    tokens: int | None
    requests: int | None
    basis: str | None
    overrun: bool
    late: bool


class Receipt(Generic[T]):
    """Something that was handed in and that no limit can refuse; await it, or ask for its `result()`.

    Raises (when read):
        ReservationClosed: the reservation had ended in another way.
        LedgerUnavailable: it could not be written.
    """

    __slots__ = ("_cell", "_handle", "_ledger", "_read", "_ticket")

    def __init__(self, ledger: Ledger, ticket: Ticket, handle: object) -> None:
        self._ledger, self._ticket, self._handle, self._read = ledger, ticket, handle, False
        self._cell = None if ledger.notices is None else ledger.notices.here()
        ticket.receipt = self

    def settled(self) -> None:
        """The answer is there; an error, or an alert, is not to be lost when nobody reads it."""
        ticket = self._ticket
        crossed = len(ticket.answer) == _COUNTED and ticket.answer[9]
        if (ticket.error is not None or crossed) and not self._read:
            self._ledger.unread.append(self)
        if crossed:
            self._ledger.notice(crossed, self._cell)

    @property
    def done(self) -> bool:
        """Whether the ledger has answered."""
        return self._ticket.settled

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the answer.

        Args:
            timeout_s: how long at most, in seconds.

        Returns:
            What was counted; for a rollback the reservation's state.

        Raises:
            TimeoutError: no answer yet; it is still on its way.
        """
        if not self._ticket.wait(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s} s; the command is still on its way")
        return self._told()

    def __await__(self) -> Generator[Any, None, T]:
        if not self._ticket.settled:
            yield from self._ticket.future_here().__await__()
        return self._told()

    def future_here(self) -> asyncio.Future[None] | None:
        """What to await for the answer; `None` when it is there."""
        return None if self._ticket.settled else self._ticket.future_here()

    def raise_failure(self) -> None:
        """Raise the error of an answer that is there, without reading it."""
        ticket = self._ticket
        if ticket.error is not None or self._ledger.unread:
            self._told()

    def _told(self) -> T:
        first, self._read = not self._read, True
        if self._ledger.unread:
            with contextlib.suppress(ValueError):
                self._ledger.unread.remove(self)
        answer = self._ticket.outcome()
        if len(answer) != _COUNTED:
            return cast("T", str(answer[1]))  # of a rollback: id and state
        if answer[9] and first:
            self._ledger.alert(answer[9])
        usd = None if answer[3] is None else usd_of(answer[3])
        return cast("T", Counted(answer[0], answer[1], instant(answer[2]), usd, *answer[4:9]))

    def belongs_to(self, handle: object) -> bool:
        """Whether that handle made it: a budget, or a reservation's id."""
        return self._handle is handle

    def __repr__(self) -> str:
        ticket = self._ticket
        if not ticket.settled:
            return "Receipt(on its way)"
        if ticket.error is not None:
            return f"Receipt({type(ticket.error).__name__}: {ticket.error})"
        if len(ticket.answer) != _COUNTED:
            return f"Receipt({ticket.answer[1]})"
        _, seq, _, usd, tokens, requests, basis, *_ = ticket.answer
        used = {"usd": None if usd is None else usd_of(usd), "tokens": tokens, "requests": requests}
        amounts = ", ".join(f"{name}={value}" for name, value in used.items() if value is not None)
        return f"Receipt({amounts}, {basis}, event {seq})"


class Reservation:
    """Resources held for one call, until it is committed, rolled back, or expires.

    Attributes:
        id: a UUID version 7.
        budget: the name of its budget.
        tokens, requests: what is held, beside `usd`.
        terms: batch, tier and speed that it was made for.
    """

    __slots__ = (
        "_ended",
        "_expires_us",
        "_found",
        "_ledger",
        "_pico",
        "_receipt",
        "_state",
        "budget",
        "id",
        "lazily",
        "model",
        "requests",
        "terms",
        "thread",
        "tokens",
    )

    def __init__(self, ledger: Ledger, command: Reserve, answer: tuple[Any, ...]) -> None:
        self._ledger, self._ended = ledger, False
        self._found = answer[0] != command.id  # by its key: it belongs to the call that made it
        self._receipt: Receipt[Any] | None = None  # of what was handed in last
        self.thread = 0  # that asked for it, while it is held
        self.lazily = False  # nobody waits for what it hands in
        self.id: str = answer[0]
        self.budget, self.model = command.budget, command.model
        self.terms = _terms(command.detail)
        self._pico, self.tokens, self.requests = command.usd, command.tokens, command.requests
        self._expires_us: int | None = answer[3]
        self._state: str = answer[4]
        if self._state == "open":
            ledger.hold(self)

    @property
    def usd(self) -> Decimal | None:
        """US dollars held; `None` where none are."""
        return None if self._pico is None else usd_of(self._pico)

    @property
    def expires(self) -> datetime | None:
        """When it ends by itself (UTC)."""
        return None if self._expires_us is None else instant(self._expires_us)

    def commit(
        self,
        usage: Any = None,
        *,
        usd: Money | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        basis: Literal["measured", "estimated", "unknown"] = "measured",
        response_id: str | None = None,
        facts: Mapping[str, str | float] | None = None,
    ) -> Receipt[Counted]:
        """Record what the call used and end the reservation.

        Args:
            usage: token counts: a `Usage`, what the provider's SDK reports, or its whole reply. A batch, tier or speed that is
                reported in it counts before what was reserved for; one without a price leaves the cost unknown.
            usd: the cost, where it is not to be computed from the model's price.
            tokens: input and output together, where there is no `usage`.
            requests: calls; as held where not given.
            basis: how the amounts are known; those of a reply that was broken off are `estimated` at best.
            response_id: the provider's id of the reply, to join with your own results; a whole reply has it.
            facts: what else its event is to remember, under `call` in its `detail`: up to 16 short ones, such as `latency_s`.

        Returns:
            A receipt. A resource that is not given is counted as it was held, with basis `unknown`.

        Raises:
            InvalidValue: nothing was given, or not in 0 ….
        """
        self._ledger.raise_unread(self.id)
        if usage is None and usd is None and tokens is None and requests is None:
            raise InvalidValue("commit", "needs what the call used: reply.usage, a tbl.Usage, usd=… or tokens=…")
        used = Reported.of(usage) if usage is not None else None
        detail = None
        pico = None if usd is None else pico_of("usd", usd)
        if used is not None:
            priced, detail = self._ledger.cost(used, None if usd is not None else self.model, self.terms)
            pico = priced if usd is None else pico
            tokens = used.tokens if tokens is None else tokens
            response_id = used.response_id if response_id is None else response_id
        detail = with_facts(detail, facts)
        command = Commit(
            self._ledger.new_id(), self.id, pico, None if tokens is None else tokens_of("tokens", tokens),
            None if requests is None else tokens_of("requests", requests), basis_of(basis, used), *counts_of(used),
            text_of("response_id", response_id), None, detail, self.budget,
        )  # fmt: skip
        return self._submit(command)

    def rollback(self) -> Receipt[str]:
        """Give everything back: the call was never sent, or the provider refused it."""
        self._ledger.raise_unread(self.id)
        return self._submit(Rollback(self._ledger.new_id(), self.id))

    def lose(self) -> Receipt[str]:
        """End it as its expiry would, but now: nobody knows whether the call was billed."""
        return self._submit(Lose(self._ledger.new_id(), self.id))

    def cost(self, used: Reported) -> Decimal | None:
        """USD of a use on the terms that it was made for; `None` where there is no price."""
        pico, _ = self._ledger.cost(used, self.model, self.terms)
        return None if pico is None else usd_of(pico)

    def forget(self) -> None:
        """It has ended, and whoever ended it could not say so."""
        self._ended = True
        self._ledger.let_go(self)

    def _submit(self, command: Command) -> Receipt[Any]:
        receipt = self._receipt = self._ledger.submit(command, self.id, lazily=self.lazily)
        self._ended = True
        self._ledger.let_go(self)
        return receipt

    def extend(self, timeout: float | timedelta) -> Extending:
        """Ask for more time: await it, or use `extend_sync`.

        Args:
            timeout: seconds (or a timedelta) from now, 1 s to 48 h; the expiry never comes nearer.
        """
        return Extending(self, Extend(self._ledger.new_id(), self.id, seconds("timeout", timeout)))

    def extend_sync(self, timeout: float | timedelta) -> datetime | None:
        """Move the expiry to `timeout` seconds from now.

        Raises:
            ReservationClosed: it has ended.
        """
        return self.extended(self._ledger.ask(self.extend(timeout).command))

    def extended(self, answer: tuple[Any, ...]) -> datetime | None:
        """Take over the new expiry."""
        self._expires_us = answer[3]
        return self.expires

    @property
    def state(self) -> str:
        """`open`, `committed`, `rolled_back`, `released` or `counted`, as the ledger has it now."""
        self._state = str(self._ledger.ask(GetEntry(self._ledger.new_id(), self.id))[2])
        return self._state

    def leave(self, error: BaseException | None) -> Receipt[Any] | None:
        """What leaving the block does: nothing after commit or rollback, else a loss (error) or a rollback.

        What a key found is left as it is: whoever reserved it may be in the middle of the call.
        """
        if not self._ended and self._state == "open" and not self._found:
            return self.lose() if error is not None else self.rollback()
        return self._receipt

    def __repr__(self) -> str:
        held = ", ".join(
            f"{name}={value}"
            for name, value in (("usd", self.usd), ("tokens", self.tokens), ("requests", self.requests))
            if value is not None
        )
        until = f", expires {self.expires:%H:%M:%S} UTC" if self.expires else ""
        return f"Reservation({self.id} on {shown(self.budget)}: {held}{until})"


class Extending:
    """An extension that was not asked for yet: await it."""

    __slots__ = ("command", "reservation")

    def __init__(self, reservation: Reservation, command: Extend) -> None:
        self.reservation, self.command = reservation, command

    def __await__(self) -> Generator[Any, None, datetime | None]:
        answer = yield from self.reservation._ledger.ask_async(self.command).__await__()  # noqa: SLF001 - one file, one idea
        return self.reservation.extended(answer)


class Reserving:
    """A reservation that was not asked for yet: enter it (`with`, `async with`) or await it."""

    __slots__ = ("_arguments", "_asked", "_budget", "_facts", "_id", "_warns", "held")

    def __init__(
        self,
        budget: Budget,
        arguments: tuple[Any, ...],
        facts: Mapping[str, str | float] | None = None,
        *,
        warns: bool = True,
    ) -> None:
        self._asked, self._warns = False, warns
        self._budget, self._arguments, self._facts = budget, arguments, facts
        self.held: Reservation | None = None
        self._id: str | None = None  # of what was asked for

    def command(self) -> Reserve:
        """What is asked; once."""
        if self._asked:
            raise NotEntered("this reserve(...) was entered before; make a new one for a new call")
        self._asked = True
        command = self._budget.command(*self._arguments)
        self._id = command.id
        return command if not self._facts else command._replace(detail=with_facts(command.detail, self._facts))

    def granted(self) -> Reservation | None:
        """What was granted, also where Ctrl-C came before anybody could take it."""
        if self.held is None and self._id is not None:
            self.held = self._budget.ledger.held(self._id)
        return self.held

    def ask(self) -> Reservation:
        """Ask now and block until it is granted or refused."""
        self.held = self._budget.ledger.reserve(self.command())
        return self.held

    def __await__(self) -> Generator[Any, None, Reservation]:
        return self.__aenter__().__await__()

    def __enter__(self) -> Reservation:
        return self.ask()

    def __aenter__(self) -> Coroutine[Any, Any, Reservation]:
        return self._budget.ledger.reserve_async(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        receipt = self._leave(error)
        if receipt is not None:
            try:
                receipt.result()
            except Exception as failed:  # noqa: BLE001 - raised again, or noted beside the block's own
                _beside(failed, error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        receipt = self._leave(error)
        if receipt is not None:
            try:
                future = receipt.future_here()
                if future is not None:
                    await future
                receipt.raise_failure()
            except Exception as failed:  # noqa: BLE001 - raised again, or noted beside the block's own
                _beside(failed, error)

    def _leave(self, error: BaseException | None) -> Receipt[Any] | None:
        held = self.held
        if held is None:
            return None
        try:
            return held.leave(error)
        except LedgerUnavailable as failed:
            _beside(failed, error)
            return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotEntered(
            f".{name}: nothing is reserved yet. Write `with budget.reserve(...) as call:`, `await budget.reserve(...)`, "
            "or budget.reserve_sync(...)"
        )

    def __repr__(self) -> str:
        return f"<reserve(...), {'asked' if self._asked else 'not asked yet: enter or await it'}>"

    def __del__(self, warn: Any = warnings.warn) -> None:
        try:
            asked = self._asked or not self._warns
        except NotEntered:  # interrupted while it was made
            return
        if not asked:
            warn(
                "a reserve(...) was never entered or awaited, so nothing was reserved",
                RuntimeWarning,
                source=self,
                stacklevel=2,
            )


def _beside(failed: Exception, error: BaseException | None) -> None:
    """Raise what went wrong while leaving; beside an error of the block's own it becomes a note on that."""
    if error is None:
        raise failed
    error.add_note(f"tokenbudget: the reservation could not be ended: {failed}")
    log.warning("the reservation could not be ended: %s", failed)


@lru_cache(maxsize=1024)
def _told(facts: tuple[tuple[str, str | float], ...]) -> str:
    """Facts as JSON; those of a hold are the same again and again."""
    return to_detail(call=dict(facts))


def with_facts(detail: str | None, facts: Mapping[str, str | float] | None) -> str | None:
    """An event's detail, and under `call` what else it is to remember: apart from what decisions are made from."""
    if not facts:
        return detail
    more = _told(tuple(facts_of(facts).items()))
    return more if detail is None or detail == "{}" else f"{more[:-1]},{detail[1:]}"


def counts_of(reported: Reported | None) -> Counts:
    """Input, output, cache read, cache write and reasoning tokens of the request itself, as events have them."""
    if reported is None:
        return _NO_COUNTS
    used = reported.usage
    return (used.input_tokens, used.output_tokens, used.cache_read_tokens, used.cache_write_tokens, used.reasoning_tokens)


def basis_of(basis: str, used: Reported | None) -> str:
    """Check how amounts are known; the counts of a reply that was broken off are placeholders, and not measured."""
    if basis not in ("measured", "estimated", "unknown"):
        raise InvalidValue("basis", f"{basis!r} is not 'measured', 'estimated' or 'unknown'")
    return "estimated" if basis == "measured" and used is not None and not used.finished else basis


def _terms(detail: str | None) -> Terms:
    """The terms that a reserve was asked on, out of what it says of them."""
    if detail is None or '"context"' not in detail:
        return UNSAID
    said = json.loads(detail).get("context", {})
    return Terms("processing" in said or None, said.get("service_tier"), said.get("speed"))
