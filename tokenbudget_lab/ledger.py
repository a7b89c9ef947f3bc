"""One ledger: budgets, and everything that was spent on them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

from .balance import Balance, balance_of
from .checks import seconds
from .commands import Command, GetBudget, GetHead, ListBudgets, Reserve, SetBudget
from .costs import Prices, cost_of, hold_for, why_unpriced
from .decide import Answer, is_full
from .desk import Desk, DirectBox, LoopBox, Ticket
from .errors import (
    AmountMissing,
    BudgetExceeded,
    InvalidValue,
    LedgerCorrupt,
    LedgerDamaged,
    PriceUnknown,
    WouldDeadlock,
    money,
    shown,
)
from .events import continues
from .handles import Budget
from .ids import new_id
from .limits import Limit, budget_name, caps_of, instant, path_of, zone
from .origin import origin
from .reported import Reported
from .reservation import Receipt, Reservation, Reserving
from .state import Proof, seldom_collected
from .store import Store
from .terms import UNSAID, Terms
from .usage import Money, usd_of
from .writer import Writer

log = logging.getLogger("tokenbudget_lab")
DEFAULT_TIMEOUT_S = 600.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Alert:
    """A budget crossed one of its thresholds.

    Attributes:
        threshold: the fraction of the limit.
        committed, limit: amounts of the resource; USD as `Decimal`.
    """

    budget: str
    resource: str
    threshold: float
    committed: Any
    limit: Any

    def __str__(self) -> str:
        if self.resource == "usd":
            limit, committed = (f"${each:.4f}" if self.limit < 1 else money(each) for each in (self.limit, self.committed))
        else:
            limit, committed = f"{self.limit:,} {self.resource}", f"{self.committed:,}"
        spent = f"{self.threshold:.0%} of {limit} is spent ({committed})"
        return f"{shown(self.budget)}: {spent}"


class Notices(Protocol):
    """Where alerts are shown to who makes the calls: a notebook's cells."""

    def here(self) -> Any:
        """The place of a call that is made now, by this thread or task."""
        ...

    def show(self, alert: Alert, place: Any) -> None:
        """Show an alert at a call's place; called by the thread that brings answers, must neither raise nor block."""
        ...


@dataclass(frozen=True, slots=True)
class Verification:
    """A sound ledger.

    Attributes:
        events: how many were replayed; the last one's `seq`.
        head: its hash, in hex.
        digest: fingerprint of the balances that the replay gave, equal to those that decisions are made from.
        open_reservations: how many are in flight.
    """

    events: int
    head: str
    digest: str
    open_reservations: int

    def __str__(self) -> str:
        return (
            f"sound: {self.events:,} events, gapless and chained, replay to the balances in force; "
            f"{self.open_reservations:,} open reservations; head {self.head[:16]}…"
        )


class Ledger:
    """A ledger over a store or a desk.

    Args:
        store: where the events are kept; this process must be the only one that writes there.
        desk: what takes commands instead (a keeper's link).
        prices: what turns usage into money.
        timeout: seconds until a reservation ends by itself, where none is given per reserve; 1 s to 48 h.
        clock_ns: Unix nanoseconds.
        ids: where ids come from.

    Examples:
        >>> from tokenbudget_lab.stores.memory import MemoryStore
        >>> with Ledger(store=MemoryStore()) as ledger:
        ...     ledger.budget("lab", tokens=1000).balance.left_tokens
        1000
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        desk: Desk | None = None,
        prices: Prices | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT_S,
        clock_ns: Callable[[], int] = time.time_ns,
        ids: Callable[[], str] = new_id,
    ) -> None:
        if (store is None) == (desk is None):
            raise InvalidValue("store", "a ledger has a store or a desk, one of them")
        self._timeout = seconds("timeout", timeout)
        self.desk: Desk = desk if desk is not None else Writer(store, clock_ns=clock_ns, ids=ids, origin=origin())  # type: ignore[arg-type] # one of both is given
        self.prices, self.new_id, self._clock_ns = prices, ids, clock_ns
        self.unread: list[Receipt[Any]] = []
        self._direct = DirectBox(self.desk.origin)
        self._loops: dict[int, LoopBox] = {}
        self._held: dict[str, Reservation] = {}  # by id, while they are open as far as this process knows
        self._alarms: list[Callable[[Alert], None]] = []
        self.notices: Notices | None = None  # where alerts are shown beside the log, as soon as they are known
        self.before_close: list[Callable[[], None]] = []  # who is to read the last numbers; none of them raises
        self._closed = False

    # --- budgets -------------------------------------------------------------------------------------------------------

    def budget(
        self,
        name: str,
        *,
        usd: Money | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        window: Any = None,
        limits: Iterable[Limit] | None = None,
        tz: str = "UTC",
        alerts: Sequence[float] = (),
    ) -> Budget:
        """Create a budget, or get it.

        Args:
            name: a path: `lab/prompt-study`; its parent must exist. A charge counts in the budget and in every ancestor.
            usd, tokens, requests: the most that may be used, in all or per `window`.
            window: `None`, `"day"`, `"week"`, `"month"` or a timedelta; fixed at creation.
            limits: several limits at once, instead of the four above; `[]` makes a budget that only its ancestors limit.
            tz: whose midnights a day, week or month turns at.
            alerts: fractions of the limits to be told about, such as `(0.5, 0.8, 1.0)`.

        Returns:
            The budget. Without any limit given: the one that exists.

        Raises:
            UnknownBudget: none of that name, and no limit given to make it.
            BudgetDiffers: it exists with other limits; nothing was changed.

        Examples:
            >>> import tokenbudget_lab as tbl
            >>> ledger = tbl.connect(":memory:")
            >>> ledger.budget("lab", usd=2000, window="month", tz="Europe/Berlin")
            Budget(lab: $0.00 committed, $0.00 reserved · $2,000.00 of $2,000.00 per month left · resets ... UTC)
            >>> ledger.close()
        """
        name = budget_name(name)
        given = usd is not None or tokens is not None or requests is not None
        if limits is not None and given:
            raise InvalidValue("limits", "give either limits=[…] or usd=…, tokens=…, requests=…")
        if limits is None and not given:
            if window is not None or alerts:
                alone = "window" if window is not None else "alerts"
                raise InvalidValue(alone, "needs a limit beside it: usd=…, tokens=… or requests=…")
            self.ask(GetBudget(self.new_id(), name))
            return Budget(self, name)
        chosen = list(limits) if limits is not None else [Limit(usd=usd, tokens=tokens, requests=requests, window=window)]
        zone(tz)
        self.ask(SetBudget(self.new_id(), name, caps_of(chosen), tz, _thresholds(alerts)))
        return Budget(self, name)

    def budgets(self, below: str | None = None) -> list[Balance]:
        """The balance of every budget, or of those at and below one, in order of their names.

        They are of one instant, unless there are thousands: those come in several answers, each of an instant of its own.
        """
        name = None if below is None else budget_name(below)
        page = self.ask(ListBudgets(self.new_id(), name))
        found = [*map(balance_of, page)]
        while is_full(page):
            page = self.ask(ListBudgets(self.new_id(), name, page[-1][0]))
            found += map(balance_of, page)
        return found

    # --- asking ----------------------------------------------------------------------------------------------------------

    def ask(self, command: Command) -> Answer:
        """Block until a command is answered. Safe inside a running event loop: the writer has a thread of its own."""
        return self._asked(command, lambda answer: answer)

    def _asked(self, command: Command, take: Callable[[Answer], T]) -> T:
        """Ask, and take the answer; interrupted anywhere between, what was granted is given back."""
        ticket = Ticket(command, self._direct)
        try:
            self.desk.submit(ticket)
            ticket.wait()
            return take(ticket.outcome())
        except BaseException:
            ticket.abandon()
            raise

    def ask_soon(self, command: Command) -> Ticket:
        """Hand in a question, and look for its answer later; nobody waits."""
        ticket = Ticket(command, self._direct)
        self.desk.submit(ticket)
        return ticket

    async def ask_async(self, command: Command) -> Answer:
        """Await a command's answer; cancelled, what was granted is given back."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        ticket = Ticket(command, self._box(loop), future)
        try:
            self.desk.submit(ticket)
            await future
        except BaseException:
            ticket.abandon()
            raise
        return ticket.outcome()

    def _box(self, loop: asyncio.AbstractEventLoop) -> LoopBox:
        box = self._loops.get(id(loop))
        if box is None or box.loop is not loop:
            for key, old in list(self._loops.items()):
                if old.loop.is_closed():
                    self._loops.pop(key, None)
            box = self._loops[id(loop)] = LoopBox(loop, self.desk.origin)
        return box

    def submit(self, command: Command, handle: object, *, lazily: bool = False) -> Receipt[Any]:
        """Hand in what no limit can refuse; `lazily` lets it wait for some milliseconds, to go along with another."""
        loop = asyncio._get_running_loop()  # noqa: SLF001 - asyncio documents it for those who need no exception
        ticket = Ticket(command, self._direct) if loop is None else Ticket(command, self._box(loop), loop.create_future())
        ticket.lazily = lazily
        receipt: Receipt[Any] = Receipt(self, ticket, handle)
        self.desk.submit(ticket)
        return receipt

    def reserve(self, command: Reserve) -> Reservation:
        """Ask for a reservation and block until it is granted or refused."""
        try:
            if command.wait and self._own_holds(command):
                self._must_not_wait_for_itself(command)
            return self._asked(command, lambda answer: Reservation(self, command, answer))
        except PriceUnknown as error:
            raise self._why(command, error) from None

    def _must_not_wait_for_itself(self, command: Reserve) -> None:
        """Refuse a wait for room that this thread holds itself: try without waiting, and see which limit is in the way."""
        try:
            self.ask(command._replace(wait=0))
        except BudgetExceeded as error:
            for held in self._own_holds(command):
                if error.budget in path_of(held.budget):
                    raise WouldDeadlock(
                        f"this thread holds {held.id} in {held.budget} and would wait for its room: {error} "
                        "End that reservation first, or wait in another thread."
                    ) from error

    async def reserve_async(self, reserving: Reserving) -> Reservation:
        """Ask for a reservation and await the answer."""
        command = reserving.command()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        ticket = Ticket(command, self._box(loop), future)
        try:
            self.desk.submit(ticket)
            await future
            if ticket.error is None:
                held = reserving.held = Reservation(self, command, ticket.answer)
                return held
        except BaseException:
            ticket.abandon()
            raise
        if isinstance(ticket.error, PriceUnknown):
            raise self._why(command, ticket.error) from None
        raise ticket.error

    def _why(self, command: Reserve, error: PriceUnknown) -> Exception:
        if command.model is None or error.model != command.model:
            return error
        made = json.loads(command.detail) if command.detail is not None else {}
        if "input_tokens" not in made:
            return AmountMissing(command.budget, "usd")
        return PriceUnknown(command.model, why_unpriced(self.prices, command.model, made.get("context")), error.undone)

    # --- who holds what in this process ------------------------------------------------------------------------------------

    def hold(self, reservation: Reservation) -> None:
        """Remember that this thread holds it."""
        reservation.thread = threading.get_ident()
        self._held[reservation.id] = reservation

    def held(self, reservation_id: str) -> Reservation | None:
        """A reservation of this process that is open, as far as it knows."""
        return self._held.get(reservation_id)

    def let_go(self, reservation: Reservation) -> None:
        """It has ended."""
        self._held.pop(reservation.id, None)

    def _own_holds(self, command: Reserve) -> list[Reservation]:
        """Reservations of this thread (or of the loop that runs in it) that share a budget with the one asked for."""
        own: list[Reservation] = []
        me, now, path = threading.get_ident(), instant(self._clock_ns() // 1000), set(path_of(command.budget))
        for held in list(self._held.values()):
            if held.expires is not None and held.expires < now:
                self.let_go(held)
            elif held.thread == me and path.intersection(path_of(held.budget)):
                own.append(held)
        return own

    def raise_unread(self, handle: object) -> None:
        """Raise the error of an earlier receipt that nobody read, and tell its alerts."""
        if self.unread:
            for receipt in list(self.unread):
                if receipt.belongs_to(handle):
                    receipt.result()

    def on_alert(self, callback: Callable[[Alert], None]) -> None:
        """Call this when a call of this process crosses an alert's threshold; each one is also a log line and an event."""
        self._alarms.append(callback)

    def alert(self, crossed: Iterable[tuple[Any, ...]]) -> None:
        """Tell about thresholds that were crossed."""
        for told in map(_alert, crossed):
            if self.notices is None or log.hasHandlers():  # without a handler it would be shown a second time
                log.warning("%s", told)
            for callback in self._alarms:
                callback(told)

    def notice(self, crossed: Iterable[tuple[Any, ...]], place: Any) -> None:
        """Show thresholds that were crossed, of each limit the highest, where there is somebody to see it."""
        if self.notices is not None:
            for told in {(each.budget, each.resource, each.limit): each for each in map(_alert, crossed)}.values():
                self.notices.show(told, place)

    # --- prices ------------------------------------------------------------------------------------------------------------

    def timeout(self, given: float | timedelta | None) -> int:
        """A reservation's time to live, in microseconds."""
        return self._timeout if given is None else seconds("timeout", given)

    def provider(self, model: str | None) -> str | None:
        """Who sells a model, where that is known."""
        return None if model is None or self.prices is None else self.prices.provider(model)

    def cost(
        self, used: Reported, model: str | None, terms: Terms, at: datetime | None = None
    ) -> tuple[int | None, str | None]:
        """Pico-dollars of a call, and for its event's `detail` where they are from; no dollars where there is no price."""
        return cost_of(self.prices, used, model, terms, at)

    def worst_case(
        self,
        model: str,
        input_tokens: int,
        max_output_tokens: int,
        terms: Terms = UNSAID,
        cache_write: Literal["5m", "1h"] | None = None,
    ) -> tuple[int | None, str]:
        """Pico-dollars that a call of this size can cost at most, and what the hold was made from."""
        return hold_for(self.prices, model, input_tokens, max_output_tokens, terms, cache_write)

    # --- proving -----------------------------------------------------------------------------------------------------------

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Verification:
        """Replay every event: gapless, chained, and folding to exactly the balances in force.

        Args:
            progress: called now and then with the events done and the events in all.

        Raises:
            LedgerCorrupt: with the first event that does not fit.
        """
        _, last, head, digest, open_count, _ = self.ask(GetHead(self.new_id()))
        state = Proof()
        with seldom_collected():
            for events, known in self.desk.proved(last):
                for event in events:
                    if not (known or event.seq != state.seq + 1 or continues(event, state.head)):
                        raise LedgerCorrupt(
                            event.seq, "its hash does not continue the chain; it or an event before it was changed"
                        )
                    state.apply(event)
                state.forget(state.ts)
                if progress is not None:
                    progress(state.seq, last)
        if (state.seq, state.head) != (last, head):
            raise LedgerCorrupt(state.seq + 1, f"{last - state.seq} events are missing behind event {state.seq}")
        if state.digest() != digest:
            raise LedgerCorrupt(last, "replaying gives other balances than those in force")
        return Verification(last, head.hex(), digest, open_count)

    @property
    def damage(self) -> LedgerDamaged | None:
        """Why this ledger is open for reading only, and what its numbers lack; `None` where nothing is known to be missing."""
        return self.desk.damage

    @property
    def closed(self) -> bool:
        """Whether this object was closed."""
        return self._closed

    # --- the end -------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for what was handed in, then let go; raises what no one has read of failed receipts."""
        if not self._closed:
            for last_look in list(self.before_close):
                last_look()
            self._closed = True
            self.desk.close()
            for receipt in list(self.unread):
                receipt.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self.desk.where!r}{', closed' if self._closed else ''})"


def _alert(crossed: tuple[Any, ...]) -> Alert:
    budget, resource, threshold, used, limit = crossed
    return Alert(budget, resource, threshold, *((usd_of(used), usd_of(limit)) if resource == "usd" else (used, limit)))


def _thresholds(alerts: Sequence[float]) -> tuple[float, ...]:
    for alert in alerts:
        if type(alert) not in (int, float) or not 0 < alert <= 10:  # noqa: PLR2004 - 1000 %
            raise InvalidValue("alerts", f"{alert!r} is no fraction of a limit, such as 0.8")
    return tuple(sorted({float(alert) for alert in alerts}))
