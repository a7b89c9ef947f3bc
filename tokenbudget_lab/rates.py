"""Rates: what a model's tokens cost at one time and on one kind of terms, and how they are read from the catalogue.

No price is kept here. Each reading is checked against the catalogue's own arithmetic before it is used; what the catalogue
would pass over without a word (a context that it does not know, two contexts of which only one would count) raises.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import PriceUnknown
from .terms import Quote
from .usage import Usage

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, Provider

_MILLION = Decimal(1_000_000)
EXACT = Context(prec=100)  # The caller may have set a decimal context that rounds; money is computed in ours.
_KINDS = ("input", "cache read", "cache write 5m", "cache write 1h", "output", "reasoning", "web search")


class Rates(NamedTuple):
    """USD per million tokens of each kind (searches, requests); `None` where nobody has said a price."""

    input: Decimal | None
    cache_read: Decimal | None
    cache_write_5m: Decimal | None
    cache_write_1h: Decimal | None
    output: Decimal | None
    reasoning: Decimal | None
    search: Decimal | None = None
    request: Decimal = Decimal(0)

    def cost(self, model: str, usage: Usage) -> Decimal:
        """The exact cost of one request; `PriceUnknown` where it used something that has no price."""
        read, five, hour = usage.cache_read_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens
        plain, thought = usage.input_tokens - read - five - hour, usage.reasoning_tokens
        return self.total(model, (plain, read, five, hour, usage.output_tokens - thought, thought, usage.web_searches))

    def total(self, model: str, counts: tuple[int, ...]) -> Decimal:
        """The exact cost of so much of each kind, in the order of the fields; nothing is counted in two kinds."""
        total = self.request
        for kind, count in enumerate(counts):
            if count:
                rate = self[kind]
                if rate is None:
                    what = "es" if _KINDS[kind] == "web search" else " tokens"
                    raise PriceUnknown(model, f"its price list has none for its {_KINDS[kind]}{what}")
                total = EXACT.fma(rate, count, total)
        return EXACT.divide(total, _MILLION)

    def times(self, factor: Decimal) -> Rates:
        """All of them at a part of the price."""
        return Rates._make(None if rate is None else EXACT.multiply(rate, factor) for rate in self)


@dataclass(frozen=True, slots=True)
class Tariff:
    """A model's rates at one time: `rates[n]` holds for requests of more than `starts[n - 1]` input tokens.

    Attributes:
        source: whose price list it is from.
        priced_as: that list's name of the model.
    """

    starts: tuple[int, ...]
    rates: tuple[Rates, ...]
    source: str = ""
    priced_as: str | None = None

    def for_size(self, input_tokens: int) -> Rates:
        """The rates of a request of this many input tokens; all its tokens pay them."""
        return self.rates[bisect_left(self.starts, input_tokens)]

    def quote(self, model: str, usage: Usage) -> Quote:
        """What one request costs."""
        step = bisect_left(self.starts, usage.input_tokens)
        return Quote(self.rates[step].cost(model, usage), self.source, self.priced_as, self._above(step))

    def worst(self, model: str, least: int, most: int, written: int, cache_write: str | None) -> Quote:
        """The most that a request of `least` to `most` input tokens can cost; no size in between costs more."""
        found: list[Quote] = []
        for step in range(bisect_left(self.starts, least), bisect_left(self.starts, most) + 1):
            rates = self.rates[step]
            largest = min(most, self.starts[step]) if step < len(self.starts) else most
            # Where reasoning has a price of its own, nobody knows beforehand how much of the output it will be.
            for output in ((written, 0), (0, written)):
                usd = rates.total(model, (*_prompt(largest, cache_write), *output))
                found.append(Quote(usd, self.source, self.priced_as, self._above(step)))
        return max(found, key=lambda quote: quote.usd)

    def _above(self, step: int) -> int | None:
        return None if not self.starts else self.starts[step - 1] if step else 0


def _prompt(tokens: int, cache_write: str | None) -> tuple[int, int, int, int]:
    return (0, 0, tokens, 0) if cache_write == "5m" else (0, 0, 0, tokens) if cache_write == "1h" else (tokens, 0, 0, 0)


# --- reading the catalogue ---------------------------------------------------------------------------------------------


@cache
def snapshot_source() -> Callable[[], DataSnapshot]:
    """What gives the catalogue of now; it may be replaced while we run."""
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot


@cache
def catalogue_version() -> str:
    """The catalogue's version: its snapshot says no date of its own."""
    from importlib.metadata import version

    return version("genai-prices")


def read_tariff(
    model: str, provider: Provider, info: ModelInfo, at: datetime, context: Mapping[str, str], source: str
) -> Tariff:
    """A model's tariff at one time, in one context.

    Raises:
        PriceUnknown: it has none, or the catalogue would compute something else from it.
    """
    from genai_prices.types import TieredPrices

    _check_context(model, provider, info, at, context)
    price = info.get_prices(at, context)
    tiered = [value for value in vars(price).values() if isinstance(value, TieredPrices)]
    starts = sorted({tier.start for value in tiered for tier in value.tiers})
    sizes = (1, *(start + 1 for start in starts))
    rates = tuple(_rates(price, size) for size in sizes)
    tariff = Tariff(tuple(starts), rates, source, f"{provider.id}/{info.id}")
    for size, each in zip(sizes, rates, strict=True):
        if each.input is None and each.output is None:
            raise PriceUnknown(model, "the catalogue knows it but has no price per token; where it is free, say 0")
        probe = _probe(each, size)
        asked = info.calc_price(_catalogued(probe), provider, genai_request_timestamp=at, price_context=context)
        if asked.total_price != each.cost(model, probe):
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
        search=None if (searched := rate("web_searches_kcount")) is None else searched * 1_000,
        request=(rate("requests_kcount") or Decimal(0)) * 1_000,
    )


def _probe(rates: Rates, size: int) -> Usage:
    """A request of a size that uses every kind of token which has a price."""
    read, five, hour, output = (0 if rate is None else n for n, rate in zip((1, 2, 3, 9), rates[1:5], strict=True))
    whole = 0 if rates.input is None else max(size, 10)
    searches = 0 if rates.search is None else 2
    return Usage(max(whole, read + five + hour), output, read, five, hour, min(4, output), searches)


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
        web_searches=usage.web_searches,
    )


def _check_context(model: str, provider: Provider, info: ModelInfo, at: datetime, context: Mapping[str, str]) -> None:
    # The catalogue ignores the variants of a model that it lends from another provider.
    own = any(info is each for each in provider.models)
    active = [v.when for v in info.price_variants or () if own and (v.constraint is None or v.constraint.active(at))]
    met = {item for when in active if when.items() <= context.items() for item in when.items()}
    if missing := dict(context.items() - met):
        raise PriceUnknown(model, f"none for {as_told(missing)} on {at:%Y-%m-%d}")
    if len(context) > 1 and not any(when == context for when in active):  # the catalogue would take one of them
        raise PriceUnknown(model, f"none for {as_told(context)} together on {at:%Y-%m-%d}")


def words_of(snapshot: DataSnapshot) -> Mapping[str, set[str]]:
    """The terms that prices of this catalogue depend on, and their values: `{"service_tier": {"flex", …}, …}`."""
    words: dict[str, set[str]] = {}
    variants = (each for provider in snapshot.providers for model in provider.models for each in model.price_variants or ())
    for key, value in (item for variant in variants for item in variant.when.items()):
        words.setdefault(key, set()).add(value)
    return words


def depends_on_hour(info: ModelInfo) -> bool:
    """Whether its price changes within a day."""
    from genai_prices.types import ModelPrice, TimeOfDateConstraint

    standard = [] if isinstance(info.prices, ModelPrice) else info.prices
    return any(isinstance(price.constraint, TimeOfDateConstraint) for price in (*standard, *(info.price_variants or ())))


def has_price(info: ModelInfo, kind: str) -> bool:
    """Whether a kind of token (`input_audio_tokens`), or what is no token, has a price of its own, in any of its prices."""
    from genai_prices.types import ModelPrice

    standard = [info.prices] if isinstance(info.prices, ModelPrice) else [each.prices for each in info.prices]
    key = kind.removesuffix("_tokens") + "_mtok"
    known = [*standard, *(variant.prices for variant in info.price_variants or ())]
    return not kind.endswith("_tokens") or any(vars(price).get(key) is not None for price in known)


def as_told(context: Mapping[str, str]) -> str:
    """A context in an error."""
    return ", ".join(f"{key}={value}" for key, value in sorted(context.items()))
