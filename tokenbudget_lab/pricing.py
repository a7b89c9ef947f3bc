"""Usage, model and date → cost in USD, over genai-prices.

No price is kept here: rates are read from the catalogue for one model and one day, and each reading is checked against the
catalogue's own arithmetic before it is used. Its readers may rely on three things: a cost is exact; it is the cost of a whole
request, because rates may depend on its size; and what has no price raises `PriceUnknown`, it is never zero.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InvalidType, InvalidValue, PriceUnknown
from .usage import Usage, pico_of, tokens_of, usd_of

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, Provider

_MILLION = Decimal(1_000_000)
_EXACT = Context(prec=100)  # The caller may have set a decimal context that rounds; money is computed in ours.


class Rates(NamedTuple):
    """USD per million tokens of each kind (and per million requests); `None` where nobody has said a price."""

    input: Decimal | None
    cache_read: Decimal | None
    cache_write_5m: Decimal | None
    cache_write_1h: Decimal | None
    output: Decimal | None
    reasoning: Decimal | None
    request: Decimal = Decimal(0)

    def cost(self, model: str, usage: Usage) -> Decimal:
        """The exact cost of one request; `PriceUnknown` where it used a kind of token that has no price."""
        read, five, hour = usage.cache_read_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens
        plain, thought = usage.input_tokens - read - five - hour, usage.reasoning_tokens
        return self.total(model, (plain, read, five, hour, usage.output_tokens - thought, thought))

    def total(self, model: str, counts: tuple[int, ...]) -> Decimal:
        """The exact cost of so many tokens of each kind, in the order of the fields; none is counted in two kinds."""
        total = self.request
        for kind, count in enumerate(counts):
            if count:
                rate = self[kind]
                if rate is None:
                    raise PriceUnknown(model, f"the catalogue has none for its {self._fields[kind].replace('_', ' ')} tokens")
                total = _EXACT.fma(rate, count, total)
        return _EXACT.divide(total, _MILLION)


@dataclass(frozen=True, slots=True)
class Tariff:
    """A model's rates at one time: `rates[n]` holds for requests of more than `starts[n - 1]` input tokens."""

    starts: tuple[int, ...]
    rates: tuple[Rates, ...]

    def for_size(self, input_tokens: int) -> Rates:
        """The rates of a request of this many input tokens; all its tokens pay them."""
        return self.rates[bisect_left(self.starts, input_tokens)]


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """What was read from one state of the catalogue."""

    snapshot: Any
    tariffs: dict[Any, Tariff] = field(default_factory=dict)
    misses: dict[str, str] = field(default_factory=dict)


class Prices:
    """The catalogue's prices and those set by hand; safe to share between threads.

    `context` says in which way a request was made where that has a price of its own: `{"processing": "batch"}`,
    `{"speed": "fast"}`, `{"service_tier": "flex"}`. The catalogue ignores values it does not know and answers with the
    standard price; here they raise.
    """

    def __init__(self) -> None:
        self._by_hand: dict[str, Tariff] = {}
        self._catalogue = _Catalogue(None)

    def cost(
        self, usage: Usage, model: str, *, at: datetime | None = None, context: Mapping[str, str] | None = None
    ) -> Decimal:
        """What a call cost, exactly.

        Args:
            usage: the call's tokens.
            model: the provider's name of the model, dated or not.
            at: when the call was made, with a time zone; `None` means now.
            context: how it was made, where that has its own price.

        Returns:
            USD.

        Raises:
            PriceUnknown: for the model, for a kind of token that was used, or for the context at that time.
            InvalidValue: `at` has no time zone.

        Examples:
            >>> Prices().cost(Usage(1_200, 300, cache_read_tokens=1_000), "claude-sonnet-5-5")
            Decimal('0.0035')
        """
        return self._tariff(model, at, context).for_size(usage.input_tokens).cost(model, usage)

    def worst_case(
        self,
        model: str,
        input_tokens: int,
        max_output_tokens: int,
        *,
        at: datetime | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Decimal:
        """The most that an ordinary request of this size can cost: what a reservation holds.

        All input at the plain price, all output up to its maximum, at the rates of that size. Cache reads make a call
        cheaper; *writing* a cache (1.25 times the input price at Anthropic, twice that price for an hour) is not ordinary,
        and neither are the server's own tools: such a call may overrun its hold. Near a size at which rates change, pass
        the upper end of an estimate.

        Args:
            model: the provider's name of the model.
            input_tokens: all of the prompt.
            max_output_tokens: what the request allows the model to write.
            at: when; `None` means now.
            context: how it will be made.

        Returns:
            USD.

        Raises:
            PriceUnknown: as for `cost`.

        Examples:
            >>> Prices().worst_case("claude-sonnet-5-5", 1_200, 800)
            Decimal('0.0104')
        """
        rates = self._tariff(model, at, context).for_size(input_tokens)
        prompt, written = tokens_of("input_tokens", input_tokens), tokens_of("max_output_tokens", max_output_tokens)
        # Where reasoning has a price of its own, nobody knows beforehand how much of the output it will be.
        return max(rates.total(model, (prompt, 0, 0, 0, *output)) for output in ((written, 0), (0, written)))

    def set_price(
        self,
        model: str,
        *,
        input_usd_per_mtok: Any,
        output_usd_per_mtok: Any,
        cache_read_usd_per_mtok: Any = None,
        cache_write_5m_usd_per_mtok: Any = None,
        cache_write_1h_usd_per_mtok: Any = None,
    ) -> None:
        """Say what a model costs: a local or private one, or instead of the catalogue; for calls of any date.

        Args:
            model: its name; capitals do not matter, as in the catalogue.
            input_usd_per_mtok: USD per million input tokens, read as exactly as money; 0 is allowed when it is said.
            output_usd_per_mtok: the same for output tokens, reasoning included.
            cache_read_usd_per_mtok: for input read from a cache; the input price where not given, as the next two.
            cache_write_5m_usd_per_mtok: for input written to a cache of five minutes.
            cache_write_1h_usd_per_mtok: for input written to a cache of an hour.

        Raises:
            InvalidValue: a price that is negative, not finite or no number.

        Examples:
            >>> prices = Prices()
            >>> prices.set_price("qwen-local", input_usd_per_mtok="0.2", output_usd_per_mtok=0.6)
            >>> prices.cost(Usage(1_000, 1_000), "qwen-local")
            Decimal('0.0008')
        """

        def usd(argument: str, value: Any) -> Decimal:
            with localcontext(_EXACT):
                return usd_of(pico_of(argument, value))

        plain = usd("input_usd_per_mtok", input_usd_per_mtok)
        output = usd("output_usd_per_mtok", output_usd_per_mtok)
        cached = {
            "cache_read_usd_per_mtok": cache_read_usd_per_mtok,
            "cache_write_5m_usd_per_mtok": cache_write_5m_usd_per_mtok,
            "cache_write_1h_usd_per_mtok": cache_write_1h_usd_per_mtok,
        }
        read, five, hour = (plain if value is None else usd(name, value) for name, value in cached.items())
        rates = Rates(plain, read, five, hour, output, reasoning=output)
        self._by_hand[_name(model)] = Tariff((), (rates,))

    def provenance(self, model: str) -> str:
        """Whose price it is: `genai-prices 0.2.3`, with the day of its last update if it was updated, or `set by hand`.

        Raises:
            PriceUnknown: it has none.
        """
        if _name(model) in self._by_hand:
            return "set by hand"
        snapshot = self._current().snapshot
        self._find(model)
        updated = f", updated {snapshot.timestamp.astimezone(UTC):%Y-%m-%d}" if snapshot.from_auto_update else ""
        return f"genai-prices {_version()}{updated}"

    def provider(self, model: str) -> str | None:
        """Who sells the model according to the catalogue: `anthropic`, `openai`, …; `None` where it does not know."""
        try:
            return str(self._find(model)[0].id)
        except PriceUnknown:
            return None

    def _tariff(self, model: str, at: datetime | None, context: Mapping[str, str] | None) -> Tariff:
        at = _aware(at)
        if (by_hand := self._by_hand.get(_name(model))) is not None:
            if context:
                raise PriceUnknown(model, f"set by hand, without a price for {_told(context)}")
            return by_hand
        tariffs = self._current().tariffs
        key = (model, at.date(), frozenset(context.items()) if context else None)
        if (tariff := tariffs.get(key)) is None:
            provider, info = self._find(model)
            with localcontext(_EXACT):
                tariff = _tariff_of(model, provider, info, at, context or {})
            if not _depends_on_hour(info):
                tariffs[key] = tariff
        return tariff

    def _current(self) -> _Catalogue:
        snapshot, catalogue = _get_snapshot()(), self._catalogue
        if catalogue.snapshot is not snapshot:  # genai-prices can replace its prices while we run
            self._catalogue = catalogue = _Catalogue(snapshot)
        return catalogue

    def _find(self, model: str) -> tuple[Provider, ModelInfo]:
        catalogue, name = self._current(), _name(model)
        if (reason := catalogue.misses.get(name)) is None:
            try:
                found: tuple[Provider, ModelInfo] = catalogue.snapshot.find_provider_model(name, None, None, None)
                return found
            except LookupError as unknown:  # kept, because each search goes through the whole catalogue
                reason = catalogue.misses[name] = str(unknown)
        raise PriceUnknown(model, reason)


def cost(usage: Any, *, model: str, at: datetime | None = None, context: Mapping[str, str] | None = None) -> Decimal:
    """What a call cost, exactly: `Prices.cost` for whatever `Usage.of` can read.

    Examples:
        >>> cost({"input_tokens": 200, "cache_read_input_tokens": 1_000, "output_tokens": 300}, model="claude-sonnet-5-5")
        Decimal('0.0035')
    """
    return prices().cost(Usage.of(usage), model, at=at, context=context)


@cache
def prices() -> Prices:
    """The prices of this process: the catalogue, and what `set_price` was told."""
    return Prices()


# --- reading the catalogue ---------------------------------------------------------------------------------------------


@cache
def _get_snapshot() -> Callable[[], DataSnapshot]:
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("genai-prices")


def _name(model: str) -> str:
    if not isinstance(model, str):
        raise InvalidType("model", f"{model!r} is {type(model).__name__}, not a string")
    return model.lower()


def _aware(at: datetime | None) -> datetime:
    if at is None:
        return datetime.now(UTC)
    if not isinstance(at, datetime):
        raise InvalidType("at", f"{at!r} is {type(at).__name__}, not a datetime")
    if at.utcoffset() is None:
        raise InvalidValue("at", f"{at} has no time zone; use datetime.now(timezone.utc) or .astimezone()")
    return at.astimezone(UTC)


def _tariff_of(model: str, provider: Provider, info: ModelInfo, at: datetime, context: Mapping[str, str]) -> Tariff:
    from genai_prices.types import TieredPrices

    _check_context(model, provider, info, at, context)
    price = info.get_prices(at, context)
    tiered = [value for value in vars(price).values() if isinstance(value, TieredPrices)]
    starts = sorted({tier.start for value in tiered for tier in value.tiers})
    sizes = (1, *(start + 1 for start in starts))
    tariff = Tariff(tuple(starts), tuple(_rates(price, size) for size in sizes))
    for size, rates in zip(sizes, tariff.rates, strict=True):
        if rates.input is None and rates.output is None:
            raise PriceUnknown(model, "the catalogue knows it but has no price per token; where it is free, say 0")
        probe = _probe(rates, size)
        asked = info.calc_price(_catalogued(probe), provider, genai_request_timestamp=at, price_context=context)
        if asked.total_price != rates.cost(model, probe):
            raise PriceUnknown(model, "genai-prices computes another amount than its rates come to")
    return tariff


def _rates(price: ModelPrice, size: int) -> Rates:
    from genai_prices.types import calc_unit_price

    def rate(*keys: str) -> Decimal | None:
        given = (value for key in keys if (value := getattr(price, key, None)) is not None)
        value = next(given, None)
        return None if value is None else calc_unit_price(value, 1, size, 1)

    # Without a price of its own the catalogue counts cached input as plain input. But where writing has a price, an hour
    # costs more than five minutes, and counting the one as the other would be too little without a word.
    hour_is_plain = rate("cache_write_mtok") is None
    return Rates(
        input=rate("input_mtok"),
        cache_read=rate("cache_read_mtok", "input_mtok"),
        cache_write_5m=rate("cache_write_5m_mtok", "cache_write_mtok", "input_mtok"),
        cache_write_1h=rate("cache_write_1h_mtok", *["input_mtok"] * hour_is_plain),
        output=rate("output_mtok"),
        reasoning=rate("output_reasoning_mtok", "output_mtok"),
        request=(rate("requests_kcount") or Decimal(0)) * 1_000,
    )


def _probe(rates: Rates, size: int) -> Usage:
    """A request of a size that uses every kind of token which has a price."""
    read, five, hour, output = (0 if rate is None else n for n, rate in zip((1, 2, 3, 9), rates[1:5], strict=True))
    whole = 0 if rates.input is None else max(size, 10)
    return Usage(max(whole, read + five + hour), output, read, five, hour, reasoning_tokens=min(4, output))


def _catalogued(usage: Usage) -> Any:
    import genai_prices

    return genai_prices.Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,  # must be said: it is not inferred from its two parts
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_tokens=usage.output_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
    )


def _check_context(model: str, provider: Provider, info: ModelInfo, at: datetime, context: Mapping[str, str]) -> None:
    # The catalogue ignores the variants of a model that it lends from another provider.
    own = any(info is each for each in provider.models)
    active = [v.when for v in info.price_variants or () if own and (v.constraint is None or v.constraint.active(at))]
    met = {item for when in active if when.items() <= context.items() for item in when.items()}
    if missing := dict(context.items() - met):
        raise PriceUnknown(model, f"none for {_told(missing)} on {at:%Y-%m-%d}")


def _depends_on_hour(info: ModelInfo) -> bool:
    from genai_prices.types import ModelPrice, TimeOfDateConstraint

    standard = [] if isinstance(info.prices, ModelPrice) else info.prices
    return any(isinstance(price.constraint, TimeOfDateConstraint) for price in (*standard, *(info.price_variants or ())))


def _told(context: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(context.items()))
