"""What a researcher holds in her hands: a budget, a reservation, a receipt.

What may be refused is asked: `reserve(...)` and `extend(...)` do nothing until they are entered, awaited, or called by
their `_sync` twin. What no limit can refuse is submitted at once and returns a receipt: `commit`, `rollback`, `record`,
`adjust`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from .balance import Balance, balance_of
from .checks import seconds, tags_of, text_of
from .commands import Adjust, CloseBudget, Command, Commit, Extend, GetBalance, GetEntry, Lose, Record, Reserve, Rollback, SetLimit
from .errors import InvalidValue, LedgerUnavailable, NotEntered
from .limits import Window, instant, micros, window_code
from .usage import Usage, pico_of, tokens_of, usd_of
from .writer import Ticket

if TYPE_CHECKING:
    from .ledger import Ledger

log = logging.getLogger("tokenbudget_lab")
_UNSET: Any = object()


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


class Receipt:
    """Something that was handed in and that no limit can refuse; await it, or ask for its `result()`.

    Raises (when read):
        ReservationClosed: the reservation had ended in another way.
        LedgerUnavailable: it could not be written.
    """

    __slots__ = ("_handle", "_ledger", "_read", "_ticket")

    def __init__(self, ledger: Ledger, ticket: Ticket, handle: object) -> None:
        self._ledger, self._ticket, self._handle, self._read = ledger, ticket, handle, False
        ticket.wake(self._settled)

    def _settled(self) -> None:
        if (self._ticket.error is not None or self._ticket.answer[9:10] not in ((), ((),))) and not self._read:
            self._ledger.unread.append(self)

    @property
    def done(self) -> bool:
        """Whether the ledger has answered."""
        return self._ticket.settled

    def result(self, timeout_s: float | None = None) -> Counted | str:
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

    def __await__(self) -> Generator[Any, None, Counted | str]:
        if not self._ticket.settled:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._ticket.wake(lambda: _wake(loop, future))
            yield from future.__await__()
        return self._told()

    def _told(self) -> Counted | str:
        self._read = True
        with contextlib.suppress(ValueError):
            self._ledger.unread.remove(self)
        answer = self._ticket.outcome()
        if len(answer) == 2:  # noqa: PLR2004 - the answer to a rollback: id and state
            return str(answer[1])
        self._ledger.alert(answer[9])
        usd = None if answer[3] is None else usd_of(answer[3])
        return Counted(answer[0], answer[1], instant(answer[2]), usd, *answer[4:9])

    def belongs_to(self, handle: object) -> bool:
        """Whether that handle made it."""
        return self._handle is handle

    def __repr__(self) -> str:
        if not self.done:
            return "Receipt(on its way)"
        return f"Receipt({self._ticket.error or self._ticket.answer[:6]})"


def _wake(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(lambda: future.done() or future.set_result(None))


class Reservation:
    """Resources held for one call, until it is committed, rolled back, or expires.

    Attributes:
        id: a UUID version 7.
        budget: the name of its budget.
        usd, tokens, requests: what is held.
        expires: when it ends by itself (UTC).
    """

    __slots__ = ("_ended", "_ledger", "_receipts", "_state", "budget", "expires", "id", "model", "requests", "tokens", "usd")

    def __init__(self, ledger: Ledger, command: Reserve, answer: tuple[Any, ...]) -> None:
        self._ledger, self._receipts, self._ended = ledger, [], False
        self.id: str = answer[0]
        self.budget, self.model = command.budget, command.model
        self.usd = None if command.usd is None else usd_of(command.usd)
        self.tokens, self.requests = command.tokens, command.requests
        self.expires = None if answer[3] is None else instant(answer[3])
        self._state: str = answer[4]
        if self._state == "open":
            ledger.hold(self)

    def commit(
        self,
        usage: Any = None,
        *,
        usd: Decimal | int | str | float | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        basis: Literal["measured", "estimated", "unknown"] = "measured",
        response_id: str | None = None,
    ) -> Receipt:
        """Record what the call used and end the reservation.

        Args:
            usage: token counts: a `Usage`, or what the provider's SDK reports.
            usd: the cost, where it is not to be computed from the model's price.
            tokens: input and output together, where there is no `usage`.
            requests: calls; as held where not given.
            basis: how the amounts are known.
            response_id: the provider's id of the reply, to join with your own results.

        Returns:
            A receipt. A resource that is not given is counted as it was held, with basis `unknown`.

        Raises:
            InvalidValue: nothing was given, or not in 0 ….
        """
        self._ledger.raise_unread(self)
        if usage is None and usd is None and tokens is None and requests is None:
            raise InvalidValue("commit", "needs what the call used: reply.usage, a tbl.Usage, usd=… or tokens=…")
        used = Usage.of(usage) if usage is not None else None
        counts = _counts(used)
        detail = None
        pico = None if usd is None else pico_of("usd", usd)
        if pico is None and used is not None and self.model is not None:
            pico, detail = self._ledger.cost(used, self.model)
        if tokens is None and used is not None:
            tokens = used.tokens
        command = Commit(
            self._ledger.new_id(), self.id, pico, None if tokens is None else tokens_of("tokens", tokens),
            None if requests is None else tokens_of("requests", requests), _basis(basis), *counts,
            response_id=text_of("response_id", response_id), detail=detail,
        )  # fmt: skip
        return self._submit(command)

    def rollback(self) -> Receipt:
        """Give everything back: the call was never sent, or the provider refused it."""
        self._ledger.raise_unread(self)
        return self._submit(Rollback(self._ledger.new_id(), self.id))

    def lose(self) -> Receipt:
        """End it as its expiry would, but now: nobody knows whether the call was billed."""
        return self._submit(Lose(self._ledger.new_id(), self.id))

    def _submit(self, command: Command) -> Receipt:
        receipt = self._ledger.submit(command, self)
        self._receipts.append(receipt)
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
        self.expires = None if answer[3] is None else instant(answer[3])
        return self.expires

    @property
    def state(self) -> str:
        """`open`, `committed`, `rolled_back`, `released` or `counted`, as the ledger has it now."""
        self._state = str(self._ledger.ask(GetEntry(self._ledger.new_id(), self.id))[2])
        return self._state

    def leave(self, error: BaseException | None) -> Receipt | None:
        """What leaving the block does: nothing after commit or rollback, else a loss (error) or a rollback."""
        if not self._ended and self._state == "open":
            return self.lose() if error is not None else self.rollback()
        return self._receipts[-1] if self._receipts else None

    def __repr__(self) -> str:
        held = ", ".join(
            f"{name}={value}" for name, value in (("usd", self.usd), ("tokens", self.tokens), ("requests", self.requests)) if value is not None
        )
        until = f", expires {self.expires:%H:%M:%S} UTC" if self.expires else ""
        return f"Reservation({self.id} on {self.budget}: {held}{until})"


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

    __slots__ = ("_asked", "_held", "_ledger", "_make", "__weakref__")

    def __init__(self, ledger: Ledger, make: Any) -> None:
        self._asked = False
        self._ledger, self._make = ledger, make
        self._held: Reservation | None = None

    def _command(self) -> Reserve:
        if self._asked:
            raise NotEntered("this reserve(...) was entered before; make a new one for a new call")
        self._asked = True
        command: Reserve = self._make()
        return command

    def ask(self) -> Reservation:
        """Ask now and block until it is granted or refused."""
        self._held = self._ledger.reserve(self._command())
        return self._held

    async def _ask(self) -> Reservation:
        self._held = await self._ledger.reserve_async(self._command())
        return self._held

    def __await__(self) -> Generator[Any, None, Reservation]:
        return self._ask().__await__()

    def __enter__(self) -> Reservation:
        return self.ask()

    async def __aenter__(self) -> Reservation:
        return await self._ask()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        receipt = self._leave(error)
        if receipt is not None:
            try:
                receipt.result()
            except Exception as failed:
                _beside(failed, error)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        receipt = self._leave(error)
        if receipt is not None:
            try:
                await receipt
            except Exception as failed:
                _beside(failed, error)

    def _leave(self, error: BaseException | None) -> Receipt | None:
        held = self._held
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
        if not self._asked:
            warn("a reserve(...) was never entered or awaited, so nothing was reserved", RuntimeWarning, source=self, stacklevel=2)


def _beside(failed: Exception, error: BaseException | None) -> None:
    """Raise what went wrong while leaving; beside an error of the block's own it becomes a note on that."""
    if error is None:
        raise failed
    error.add_note(f"tokenbudget: the reservation could not be ended: {failed}")
    log.warning("the reservation could not be ended: %s", failed)


class Budget:
    """A named budget; a charge counts in it and in all its ancestors.

    Attributes:
        name: its path, such as `lab/prompt-study`.
    """

    __slots__ = ("_ledger", "name")

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger, self.name = ledger, name

    @property
    def ledger(self) -> Ledger:
        """The ledger that it belongs to."""
        return self._ledger

    @property
    def balance(self) -> Balance:
        """Limits, committed, reserved, left: now."""
        return balance_of(self._ledger.ask(GetBalance(self._ledger.new_id(), self.name)))

    def reserve(
        self,
        *,
        usd: Decimal | int | str | float | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        model: str | None = None,
        input_tokens: int | None = None,
        max_output_tokens: int | None = None,
        timeout: float | timedelta | None = None,
        wait: float | bool = 0,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        if_lost: Literal["count", "release"] | None = None,
    ) -> Reserving:
        """Ask to hold resources for one call, in this budget and all its ancestors.

        Enter it (`with`, `async with`) or await it; until then it has done nothing.

        Args:
            usd: US dollars; computed from the model's price where not given.
            tokens: input and output together; from the two counts below where not given.
            requests: calls; 1 where not given.
            model: whose price to use.
            input_tokens: of the call, counted or estimated.
            max_output_tokens: the most it can answer.
            timeout: seconds (or a timedelta) until it ends by itself, 1 s to 48 h; the ledger's default where not given.
            wait: seconds to stand in line while calls in flight, or a new window, could make room; `True` is 600.
            key: makes it idempotent: the same key gets the same reservation.
            tags: up to 32 labels, 256 bytes each.
            if_lost: `count` the hold as spent when its fate stays unknown (the default with a model), or `release` it.

        Raises (when entered or awaited):
            BudgetExceeded: it does not fit; nothing is held.
            AmountMissing: a resource is limited and was not given.
            PriceUnknown: a limit in USD and no price.
            BudgetClosed: no new reservations here.

        Examples:
            >>> import tokenbudget_lab as tbl
            >>> with tbl.connect(":memory:") as ledger:
            ...     study = ledger.budget("study", usd=1)
            ...     with study.reserve(usd="0.30") as call:
            ...         receipt = call.commit(usd="0.12")
            ...     study.balance.left_usd
            Decimal('0.88')
        """
        given = (usd, tokens, requests, model, input_tokens, max_output_tokens)

        def make() -> Reserve:
            return self._reserve(given, timeout, wait, key, tags, if_lost)

        return Reserving(self._ledger, make)

    def reserve_sync(self, **what: Any) -> Reservation:
        """Ask for a reservation now and block until it is granted or refused; takes what `reserve` takes.

        Safe inside a running event loop, but a wait would block that loop.
        """
        return self.reserve(**what).ask()

    def _reserve(
        self,
        given: tuple[Any, ...],
        timeout: float | timedelta | None,
        wait: float | bool,
        key: str | None,
        tags: Mapping[str, str] | None,
        if_lost: str | None,
    ) -> Reserve:
        self._ledger.raise_unread(self)
        usd, tokens, requests, model, input_tokens, max_output_tokens = given
        if all(v is None for v in given):
            raise InvalidValue("reserve", "holds nothing: give usd=…, tokens=…, or model=… with input_tokens=… and max_output_tokens=…")
        if if_lost not in (None, "count", "release"):
            raise InvalidValue("if_lost", f"{if_lost!r} is neither 'count' nor 'release'")
        model = text_of("model", model)
        sized = _size(input_tokens, max_output_tokens)
        pico = None if usd is None else pico_of("usd", usd)
        detail = None
        if pico is None and model is not None and sized is not None:
            pico, detail = self._ledger.worst_case(model, *sized)
        count = (None if sized is None else sum(sized)) if tokens is None else tokens_of("tokens", tokens)
        calls = 1 if requests is None else tokens_of("requests", requests)
        if not (pico or count or calls):
            raise InvalidValue("reserve", "holds nothing: every amount is zero")
        return Reserve(
            self._ledger.new_id(), self.name, pico, count, calls, self._ledger.timeout(timeout),
            if_lost or ("count" if model else "release"), text_of("key", key), _wait(wait),
            self._ledger.provider(model), model, tags_of(tags), detail,
        )  # fmt: skip

    def record(
        self,
        usage: Any = None,
        *,
        model: str | None = None,
        usd: Decimal | int | str | float | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        at: datetime | None = None,
        basis: Literal["measured", "estimated", "unknown"] = "measured",
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        response_id: str | None = None,
    ) -> Receipt:
        """Count spend that had no reservation: another tool's, an import. No limit refuses it; the money is gone.

        Args:
            usage: token counts.
            model: whose price to use.
            usd: the cost, where it is not computed.
            tokens: input and output together, where there is no `usage`.
            requests: calls; 1 where not given.
            at: when it was spent (aware); now where not given.
            basis: how the amounts are known.
            key: makes it idempotent.
            tags: labels.
            response_id: the provider's id of the reply.
        """
        self._ledger.raise_unread(self)
        if usage is None and usd is None and tokens is None and requests is None:
            raise InvalidValue("record", "needs what was used: a tbl.Usage, usd=… or tokens=…")
        used = Usage.of(usage) if usage is not None else None
        model = text_of("model", model)
        pico, detail = None if usd is None else pico_of("usd", usd), None
        if pico is None and used is not None and model is not None:
            pico, detail = self._ledger.cost(used, model, at)
        if tokens is None and used is not None:
            tokens = used.tokens
        command = Record(
            self._ledger.new_id(), self.name, pico, None if tokens is None else tokens_of("tokens", tokens),
            1 if requests is None else tokens_of("requests", requests), _basis(basis), None if at is None else micros(at),
            self._ledger.provider(model), model, *_counts(used), response_id=text_of("response_id", response_id),
            key=text_of("key", key), tags=tags_of(tags), detail=detail,
        )  # fmt: skip
        return self._ledger.submit(command, self)

    def adjust(
        self,
        target: Reservation | str,
        *,
        usd: Decimal | int | str | float | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        reason: str | None = None,
    ) -> Receipt:
        """Correct what a committed, recorded or counted call used, in absolute amounts.

        Args:
            target: the reservation, or its id.
            usd, tokens, requests: the right amounts; what is not given stays.
            reason: why, for the log.

        Raises (when the receipt is read):
            NotAdjustable: nothing was counted for it.
        """
        self._ledger.raise_unread(self)
        if usd is None and tokens is None and requests is None:
            raise InvalidValue("adjust", "needs the right amount: usd=…, tokens=… or requests=…")
        command = Adjust(
            self._ledger.new_id(),
            target.id if isinstance(target, Reservation) else str(target),
            None if usd is None else pico_of("usd", usd),
            None if tokens is None else tokens_of("tokens", tokens),
            None if requests is None else tokens_of("requests", requests),
            text_of("reason", reason),
        )
        return self._ledger.submit(command, self)

    def set_limit(
        self,
        *,
        usd: Decimal | int | str | float | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        window: Window = _UNSET,
        reason: str | None = None,
    ) -> Balance:
        """Change a limit on purpose; below what is spent is allowed, and refuses all further reserves.

        Args:
            usd, tokens, requests: the new limits; what is not given stays.
            window: which of the budget's windows, where it has several.
            reason: why, for the log.

        Raises:
            WindowFixed: the budget does not count per that window.
            BudgetClosed: it takes no limits any more.
        """
        if usd is None and tokens is None and requests is None:
            raise InvalidValue("set_limit", "needs a limit: usd=…, tokens=… or requests=…")
        self._ledger.ask(
            SetLimit(
                self._ledger.new_id(),
                self.name,
                None if window is _UNSET else window_code(window),
                None if usd is None else pico_of("usd", usd),
                None if tokens is None else tokens_of("tokens", tokens),
                None if requests is None else tokens_of("requests", requests),
                text_of("reason", reason),
            )
        )
        return self.balance

    def close(self) -> Self:
        """Take no new reservations here and below; calls in flight end normally, the history stays."""
        self._ledger.ask(CloseBudget(self._ledger.new_id(), self.name))
        return self

    def __repr__(self) -> str:
        try:
            return f"Budget({self.balance!r})"
        except LedgerUnavailable as error:
            return f"Budget({self.name}: no balance, {error})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and (other.name, other._ledger) == (self.name, self._ledger)

    def __hash__(self) -> int:
        return hash((self.name, id(self._ledger)))


def _counts(used: Usage | None) -> tuple[int | None, ...]:
    if used is None:
        return (None,) * 5
    return (used.input_tokens, used.output_tokens, used.cache_read_tokens, used.cache_write_tokens, used.reasoning_tokens)


def _size(input_tokens: Any, max_output_tokens: Any) -> tuple[int, int] | None:
    if input_tokens is None and max_output_tokens is None:
        return None
    if input_tokens is None or max_output_tokens is None:
        missing = "input_tokens" if input_tokens is None else "max_output_tokens"
        raise InvalidValue(missing, "is needed too: a hold covers what goes in and the most that can come out")
    return tokens_of("input_tokens", input_tokens), tokens_of("max_output_tokens", max_output_tokens)


def _basis(basis: str) -> str:
    if basis not in ("measured", "estimated", "unknown"):
        raise InvalidValue("basis", f"{basis!r} is not 'measured', 'estimated' or 'unknown'")
    return basis


def _wait(wait: float | bool) -> int:
    if wait is True:
        return 600_000_000
    return 0 if not wait else seconds("wait", wait, least=0.0)

