"""What a researcher holds in her hands: a budget by its name."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex

from .balance import Balance, balance_of
from .checks import key_of, seconds, tags_of, text_of
from .commands import Adjust, CloseBudget, GetBalance, GetBudget, Record, Reserve, SetLimit
from .errors import InvalidValue, LedgerUnavailable, shown, told
from .events import to_detail
from .limits import Window, micros, window_code
from .reported import Reported
from .reservation import Counted, Receipt, Reservation, Reserving, basis_of, counts_of
from .scopes import Use
from .terms import UNSAID, Terms, terms_of
from .usage import Money, most_of, pico_of, tokens_of

if TYPE_CHECKING:
    from .ledger import Ledger

_UNSET: Any = object()


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
        usd: Money | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        model: str | None = None,
        input_tokens: SupportsIndex | None = None,
        max_output_tokens: int | None = None,
        batch: bool = False,
        tier: str | None = None,
        speed: str | None = None,
        cache_write: Literal["5m", "1h"] | None = None,
        timeout: float | timedelta | None = None,
        wait: float = 0,
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
            input_tokens: of the call, counted or estimated; of a `Count` the upper end is held.
            max_output_tokens: the most it can answer.
            batch: it is one of a batch, and paid as such; so is its commit.
            tier: the service tier, where it has a price of its own: `flex`, `priority`, …
            speed: `fast`, the same.
            cache_write: its prompt may be written to a cache that lives so long, which costs more than reading it once.
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
        amounts = (usd, tokens, requests, model, input_tokens, max_output_tokens)
        terms = terms_of(batch=batch, tier=tier, speed=speed)
        return Reserving(self, (*amounts, terms, timeout, wait, key, tags, if_lost, cache_write))

    def reserve_sync(
        self,
        *,
        usd: Money | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        model: str | None = None,
        input_tokens: SupportsIndex | None = None,
        max_output_tokens: int | None = None,
        batch: bool = False,
        tier: str | None = None,
        speed: str | None = None,
        cache_write: Literal["5m", "1h"] | None = None,
        timeout: float | timedelta | None = None,
        wait: float = 0,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        if_lost: Literal["count", "release"] | None = None,
    ) -> Reservation:
        """Ask for a reservation now and block until it is granted or refused; takes what `reserve` takes.

        Safe inside a running event loop, but a wait would block that loop.
        """
        amounts = (usd, tokens, requests, model, input_tokens, max_output_tokens)
        terms = terms_of(batch=batch, tier=tier, speed=speed)
        return Reserving(self, (*amounts, terms, timeout, wait, key, tags, if_lost, cache_write)).ask()

    def command(
        self,
        usd: Money | None,
        tokens: int | None,
        requests: int | None,
        model: str | None,
        input_tokens: SupportsIndex | None,
        max_output_tokens: int | None,
        terms: Terms,
        timeout: float | timedelta | None,
        wait: float,
        key: str | None,
        tags: Mapping[str, str] | None,
        if_lost: str | None,
        cache_write: Literal["5m", "1h"] | None = None,
    ) -> Reserve:
        """What `reserve` asks, once it is entered."""
        self._ledger.raise_unread(self)
        if usd is None and tokens is None and requests is None and model is None and input_tokens is max_output_tokens is None:
            raise InvalidValue(
                "reserve", "holds nothing: give usd=…, tokens=…, or model= with input_tokens= and max_output_tokens="
            )
        if cache_write not in (None, "5m", "1h"):
            raise InvalidValue("cache_write", f"{told(cache_write)} is neither '5m' nor '1h'")
        if if_lost not in (None, "count", "release"):
            raise InvalidValue("if_lost", f"{if_lost!r} is neither 'count' nor 'release'")
        model = text_of("model", model)
        if terms is not UNSAID and model is None:
            raise InvalidValue("model", "is needed beside batch=, tier= or speed=: they choose among a model's prices")
        sized = _size(input_tokens, max_output_tokens)
        pico = None if usd is None else pico_of("usd", usd)
        detail = None if terms.context is None else to_detail(context=terms.context)
        if pico is None and model is not None and sized is not None:
            pico, detail = self._ledger.worst_case(model, *sized, terms, cache_write)
        count = (None if sized is None else sum(sized)) if tokens is None else tokens_of("tokens", tokens)
        calls = 1 if requests is None else tokens_of("requests", requests)
        if not (pico or count or calls):
            raise InvalidValue("reserve", "holds nothing: every amount is zero")
        return Reserve(
            self._ledger.new_id(), self.name, pico, count, calls, self._ledger.timeout(timeout),
            if_lost or ("count" if model else "release"), key_of(key), _wait(wait),
            self._ledger.provider(model), model, tags_of(tags), detail,
        )  # fmt: skip

    def record(
        self,
        usage: Any = None,
        *,
        model: str | None = None,
        usd: Money | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        batch: bool = False,
        tier: str | None = None,
        speed: str | None = None,
        at: datetime | None = None,
        basis: Literal["measured", "estimated", "unknown"] = "measured",
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        response_id: str | None = None,
    ) -> Receipt[Counted]:
        """Count spend that had no reservation: another tool's, an import. No limit refuses it; the money is gone.

        Args:
            usage: token counts: a `Usage`, what the provider's SDK reports, or its whole reply.
            model: whose price to use.
            usd: the cost, where it is not computed.
            tokens: input and output together, where there is no `usage`.
            requests: calls; 1 where not given.
            batch, tier, speed: on what terms it was made; what the reply reports counts before them.
            at: when it was spent (aware); now where not given.
            basis: how the amounts are known.
            key: makes it idempotent.
            tags: labels.
            response_id: the provider's id of the reply.
        """
        self._ledger.raise_unread(self)
        if usage is None and usd is None and tokens is None and requests is None:
            raise InvalidValue("record", "needs what was used: a tbl.Usage, usd=… or tokens=…")
        used = Reported.of(usage) if usage is not None else None
        model, terms = text_of("model", model), terms_of(batch=batch, tier=tier, speed=speed)
        pico, detail = None if usd is None else pico_of("usd", usd), None
        if used is not None:
            priced, detail = self._ledger.cost(used, None if usd is not None else model, terms, at)
            pico = priced if usd is None else pico
            tokens = used.tokens if tokens is None else tokens
            response_id = used.response_id if response_id is None else response_id
        command = Record(
            self._ledger.new_id(), self.name, pico, None if tokens is None else tokens_of("tokens", tokens),
            1 if requests is None else tokens_of("requests", requests), basis_of(basis, used),
            None if at is None else micros(at), self._ledger.provider(model), model, *counts_of(used),
            text_of("response_id", response_id), key_of(key), tags_of(tags), detail,
        )  # fmt: skip
        return self._ledger.submit(command, self)

    def adjust(
        self,
        target: Reservation | str,
        *,
        usd: Money | None = None,
        tokens: int | None = None,
        requests: int | None = None,
        reason: str | None = None,
    ) -> Receipt[Counted]:
        """Correct what a committed, recorded or counted call used, in absolute amounts.

        Args:
            target: the reservation, or its id.
            usd, tokens, requests: the right amounts; what is not given stays.
            reason: why, for the log.

        Raises (when the receipt is read):
            NotAdjustable: nothing was counted for it, or it is of a budget that is neither this one nor below it.
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
            self.name,
        )
        return self._ledger.submit(command, self)

    def set_limit(
        self,
        *,
        usd: Money | None = None,
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

    def middleware(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        hold: Literal["auto", "worst"] = "auto",
        on_exceeded: Literal["wait", "raise"] = "wait",
        wait: float = 600.0,
        counter: Any = None,
    ) -> Any:
        """What puts a client of Anthropic's SDK under this budget, for whoever makes the client; takes what `instrument` takes.

        Examples:
            >>> import anthropic
            >>> import tokenbudget_lab as tbl
            >>> with tbl.connect(":memory:") as ledger:
            ...     study = ledger.budget("study", usd=1)
            ...     client = anthropic.Anthropic(api_key="none", middleware=[study.middleware(tags={"arm": "b"})])
        """
        # By its name: the SDK's side is above this file, and is loaded when somebody asks for it.
        made = importlib.import_module(".instrumenting", __package__)
        return made.middleware(self, tags=tags, hold=hold, on_exceeded=on_exceeded, wait=wait, counter=counter)

    def use(self) -> Use:
        """Make it the current budget of instrumented clients.

        As a block, `with study.use():` or `async with`, it is in force in the block, in the tasks that this creates and in
        `asyncio.to_thread`, and nowhere else; also for clients that have a budget of their own: whoever puts a block under a
        budget means all of it. As a statement, `study.use()`, it is the budget of this process for clients that have none, in
        the cells and threads that come, wherever no block is open: until `.end()` of what it returns, or the next such
        statement.

        Returns:
            What can be entered or ended; its repr says what is in force. Entered, it gives the budget, and is a block: the
            process then has the budget that it had before.

        Examples:
            >>> import tokenbudget_lab as tbl
            >>> with tbl.connect(":memory:") as ledger:
            ...     study = ledger.budget("study", usd=5)
            ...     study.use()
            <use of study: in force in this process, where no block has another; .end() ends it>
            >>> study.use().end()
        """
        return Use(self)

    def close(self) -> Self:
        """Take no new reservations here and below; calls in flight end normally, the history stays."""
        self._ledger.ask(CloseBudget(self._ledger.new_id(), self.name))
        return self

    def __repr__(self) -> str:
        try:
            return f"Budget({self.balance!r})"
        except LedgerUnavailable as error:
            return f"Budget({shown(self.name)}: no balance, {error})"

    def _repr_html_(self) -> str | None:
        """What a notebook shows: a gauge of this moment; `tbl.gauge(budget)` is one that moves."""
        meters = importlib.import_module(".meters", __package__)  # by its name, as above
        with contextlib.suppress(LedgerUnavailable):  # the text says why
            alerts = self._ledger.ask(GetBudget(self._ledger.new_id(), self.name))[3]
            html: str = meters.gauge_html(self.balance, meters.Outlook(tuple(alerts), final=True))
            return html
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and (other.name, other._ledger) == (self.name, self._ledger)

    def __hash__(self) -> int:
        return hash((self.name, id(self._ledger)))


def _size(input_tokens: Any, max_output_tokens: Any) -> tuple[int, int] | None:
    if input_tokens is None and max_output_tokens is None:
        return None
    if input_tokens is None or max_output_tokens is None:
        missing = "input_tokens" if input_tokens is None else "max_output_tokens"
        raise InvalidValue(missing, "is needed too: a hold covers what goes in and the most that can come out")
    return most_of("input_tokens", input_tokens), tokens_of("max_output_tokens", max_output_tokens)


def _wait(wait: float) -> int:
    if wait is True:
        return 600_000_000
    return 0 if not wait else seconds("wait", wait, least=0.0)
