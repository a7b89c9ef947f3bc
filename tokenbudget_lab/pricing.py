"""Usage, model and date → cost in USD: the catalogue's prices, and one's own.

Its readers may rely on three things: a cost is exact; it is the cost of a whole request, because rates may depend on its size;
and what has no price raises `PriceUnknown`, it is never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .checks import MAX_TEXT
from .costs import billed_as
from .errors import InvalidType, InvalidValue, PriceUnknown, told
from .own_prices import OwnPrice, on_day, own_price, prices_path, read_prices
from .rates import EXACT, Tariff, catalogue_version, depends_on_hour, read_tariff, snapshot_source, words_of
from .reported import Reported
from .terms import Quote, Terms, terms_of
from .usage import Usage, most_of, tokens_of

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, Provider


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """What was read from one state of the catalogue."""

    snapshot: Any
    source: str
    tariffs: dict[Any, Tariff] = field(default_factory=dict)
    misses: dict[str, str] = field(default_factory=dict)


class Prices:
    """The catalogue's prices, those of a `prices.toml`, and those set by hand; safe to share between threads.

    `context` says on what terms a request was made where they have prices of their own, in the catalogue's words:
    `{"processing": "batch"}`, `{"speed": "fast"}`, `{"service_tier": "flex"}` (`Terms(...).context` makes it). The catalogue
    ignores values it does not know and answers with the standard price; here they raise.

    Args:
        file: a `prices.toml`.

    Raises:
        InvalidValue: the file is none; with the key.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._by_hand: dict[str, OwnPrice] = {}
        self._from_file: dict[str, tuple[OwnPrice, ...]] = {} if file is None else read_prices(file)
        self._catalogue = _Catalogue(None, "")

    @classmethod
    def of_user(cls) -> Prices:
        """The catalogue, and the user's own `prices.toml` where she has one."""
        return cls(prices_path())

    def cost(
        self, usage: Usage, model: str, *, at: datetime | None = None, context: Mapping[str, str] | None = None
    ) -> Decimal:
        """What a call cost, exactly.

        Args:
            usage: the call's tokens.
            model: the provider's name of the model, dated or not.
            at: when the call was made, with a time zone; `None` means now.
            context: on what terms it was made.

        Returns:
            USD.

        Raises:
            PriceUnknown: for the model, for something that was used, or for the context at that time.
            InvalidValue: `at` has no time zone.

        Examples:
            >>> Prices().cost(Usage(1_200, 300, cache_read_tokens=1_000), "claude-sonnet-5-5")
            Decimal('0.0035')
        """
        return self._tariff(model, at, context).for_size(usage.input_tokens).cost(model, usage)

    def quote(self, usage: Usage, model: str, *, at: datetime | None = None, context: Mapping[str, str] | None = None) -> Quote:
        """What a call cost, and where that is from; takes and raises what `cost` does.

        Examples:
            >>> Prices().quote(Usage(150_000, 300), "claude-haiku-5-5").above
            100000
        """
        return self._tariff(model, at, context).quote(model, usage)

    def worst_case(
        self,
        model: str,
        input_tokens: Any,
        max_output_tokens: int,
        *,
        at: datetime | None = None,
        context: Mapping[str, str] | None = None,
        cache_write: Literal["5m", "1h"] | None = None,
    ) -> Decimal:
        """The most that a request of this size can cost: what a reservation holds.

        All input at the plain price, all output up to its maximum. Where rates change with the size, a `Count` is priced over
        its whole margin. Cache reads make a call cheaper; *writing* a cache does not (1.25 times the input price at Anthropic,
        twice that price for an hour): say so with `cache_write`. The server's own tools are not in it: such a call may overrun
        its hold.

        Args:
            model: the provider's name of the model.
            input_tokens: all of the prompt; an integer, or a `Count`, of which the upper end is priced.
            max_output_tokens: what the request allows the model to write.
            at: when; `None` means now.
            context: on what terms it will be made.
            cache_write: the prompt may be written to a cache that lives so long.

        Returns:
            USD.

        Raises:
            PriceUnknown: as for `cost`.

        Examples:
            >>> Prices().worst_case("claude-sonnet-5-5", 1_200, 800)
            Decimal('0.0104')
        """
        sized = (input_tokens, max_output_tokens)
        return self.worst_quote(model, *sized, at=at, context=context, cache_write=cache_write).usd

    def worst_quote(
        self,
        model: str,
        input_tokens: Any,
        max_output_tokens: int,
        *,
        at: datetime | None = None,
        context: Mapping[str, str] | None = None,
        cache_write: Literal["5m", "1h"] | None = None,
    ) -> Quote:
        """`worst_case`, and where it is from."""
        if cache_write not in (None, "5m", "1h"):
            raise InvalidValue("cache_write", f"{told(cache_write)} is neither '5m' nor '1h'")
        least, most = tokens_of("input_tokens", input_tokens), most_of("input_tokens", input_tokens)
        written = tokens_of("max_output_tokens", max_output_tokens)
        return self._tariff(model, at, context).worst(model, least, most, written, cache_write)

    def set_price(
        self,
        model: str,
        *,
        input_usd_per_mtok: Any,
        output_usd_per_mtok: Any,
        cache_read_usd_per_mtok: Any = None,
        cache_write_5m_usd_per_mtok: Any = None,
        cache_write_1h_usd_per_mtok: Any = None,
        batch_discount: Any = None,
    ) -> None:
        """Say what a model costs: a local or private one, or instead of the catalogue; for calls of any date.

        Args:
            model: its name; capitals do not matter, as in the catalogue.
            input_usd_per_mtok: USD per million input tokens, read as exactly as money; 0 is allowed when it is said.
            output_usd_per_mtok: the same for output tokens, reasoning included.
            cache_read_usd_per_mtok: for input read from a cache; the input price where not given, as the next two.
            cache_write_5m_usd_per_mtok: for input written to a cache of five minutes.
            cache_write_1h_usd_per_mtok: for input written to a cache of an hour.
            batch_discount: the part that a batch saves, 0.5 is half; without it a batch has no price.

        Raises:
            InvalidValue: a price that is negative, not finite or no number.

        Examples:
            >>> prices = Prices()
            >>> prices.set_price("qwen-local", input_usd_per_mtok="0.2", output_usd_per_mtok=0.6)
            >>> prices.cost(Usage(1_000, 1_000), "qwen-local")
            Decimal('0.0008')
        """
        said = {
            "input": input_usd_per_mtok,
            "output": output_usd_per_mtok,
            "cache_read": cache_read_usd_per_mtok,
            "cache_write_5m": cache_write_5m_usd_per_mtok,
            "cache_write_1h": cache_write_1h_usd_per_mtok,
            "batch_discount": batch_discount,
        }
        self._by_hand[_name(model)] = own_price("set by hand", model, said, suffix="_usd_per_mtok")

    def provenance(self, model: str) -> str:
        """Whose price it is now: `genai-prices 0.2.3`, with the day of its last update if it was updated, or one's own.

        Raises:
            PriceUnknown: it has none.
        """
        own = self._own(model, datetime.now(UTC))
        if own is not None:
            return own.tariff.source
        self._find(model)
        return self._current().source

    def has_own(self, model: str) -> bool:
        """Whether the user has said a price for this name, by hand or in `prices.toml`."""
        return self._own(model, datetime.now(UTC)) is not None

    def must_be_words(self, terms: Terms) -> None:
        """Refuse a tier or speed that no price of any model depends on: it is mistyped.

        Raises:
            InvalidValue: with those that there are.
        """
        for argument, key, word in (("tier", "service_tier", terms.tier), ("speed", "speed", terms.speed)):
            if word in (None, "standard"):
                continue
            known = words_of(self._current().snapshot).get(key, set())
            if word not in known:
                listed = ", ".join(sorted({"standard", *known} - {"default"}))
                raise InvalidValue(argument, f"{told(word)} has a price in no price list; known are {listed}")

    def provider(self, model: str) -> str | None:
        """Who sells the model according to the catalogue: `anthropic`, `openai`, …; `None` where it does not know."""
        try:
            return str(self._find(model)[0].id)
        except PriceUnknown:
            return None

    def _own(self, model: str, at: datetime) -> OwnPrice | None:
        name = _name(model)
        if not (self._by_hand or self._from_file):
            return None
        by_hand = self._by_hand.get(name)
        return by_hand if by_hand is not None else on_day(self._from_file.get(name, ()), at)

    def _tariff(self, model: str, at: datetime | None, context: Mapping[str, str] | None) -> Tariff:
        at = aware(at)
        if (own := self._own(model, at)) is not None:
            return own.for_context(model, context)
        catalogue = self._current()
        key = (model, at.date(), frozenset(context.items()) if context else None)
        if (tariff := catalogue.tariffs.get(key)) is None:
            provider, info = self._find(model)
            with localcontext(EXACT):
                tariff = read_tariff(model, provider, info, at, context or {}, catalogue.source)
            if not depends_on_hour(info):
                catalogue.tariffs[key] = tariff
        return tariff

    def _current(self) -> _Catalogue:
        snapshot, catalogue = snapshot_source()(), self._catalogue
        if catalogue.snapshot is not snapshot:  # genai-prices can replace its prices while we run
            updated = f", updated {snapshot.timestamp.astimezone(UTC):%Y-%m-%d}" if snapshot.from_auto_update else ""
            self._catalogue = catalogue = _Catalogue(snapshot, f"genai-prices {catalogue_version()}{updated}")
        return catalogue

    def _find(self, model: str) -> tuple[Provider, ModelInfo]:
        catalogue, name = self._current(), _name(model)
        if (reason := catalogue.misses.get(name)) is None:
            try:
                return _found(catalogue.snapshot, name)
            except LookupError:  # kept, because each search goes through the whole catalogue
                reason = f"genai-prices has no model {told(model, 60)}{_advice(catalogue.snapshot, name)}"
                catalogue.misses[name] = reason
        raise PriceUnknown(model, reason)


def _advice(snapshot: DataSnapshot, name: str) -> str:
    """What to say of `openai/gpt-4o`: it is not priced as `gpt-4o`, as a seller of the same name may ask more or less."""
    seller, _, bare = name.partition("/")
    try:
        sold, plain = (snapshot.find_provider_model(bare, None, each, None) for each in (seller, None))
    except LookupError:
        return ""
    return f"; where {sold[0].id} itself is asked, call it {told(bare, 60)}" if sold == plain else ""


def cost(
    usage: Any,
    *,
    model: str,
    at: datetime | None = None,
    batch: bool = False,
    tier: str | None = None,
    speed: str | None = None,
    prices: Prices | None = None,
) -> Decimal:
    """What a call cost, exactly, in USD.

    Args:
        usage: a `Usage`, what a provider's SDK reports, or a whole reply; what that says of its tier, speed and model counts.
        model: the provider's name of the model, dated or not.
        at: when the call was made, with a time zone; `None` means now.
        batch: whether it was one of a batch.
        tier: its service tier: `flex`, `priority`, …; `batch` is a batch.
        speed: `fast` where it was.
        prices: whose; the catalogue's and the user's own where not given.

    Returns:
        USD.

    Raises:
        PriceUnknown: for the model, for something that was used, or for these terms at that time.
        InvalidValue: the usage contradicts itself, or `at` has no time zone.

    Examples:
        >>> cost({"input_tokens": 200, "cache_read_input_tokens": 1_000, "output_tokens": 300}, model="claude-sonnet-5-5")
        Decimal('0.0035')
        >>> cost(Usage(1_200, 300), model="claude-sonnet-5-5", batch=True)
        Decimal('0.0027')
    """
    reported = Reported.of(usage)
    context = terms_of(batch=batch, tier=tier, speed=speed).corrected(reported.terms).context
    chosen = user_prices() if prices is None else prices
    model = billed_as(chosen, model, reported.model)
    reported.must_be_priced(model)
    costs = [
        reported.cost_of(each, partial(chosen.cost, model=name or model, at=at, context=context))
        for name, each in reported.requests
    ]
    with localcontext(EXACT):
        return sum(costs, Decimal(0))


def worst_case(
    model: str,
    input_tokens: Any,
    max_output_tokens: int,
    *,
    at: datetime | None = None,
    batch: bool = False,
    tier: str | None = None,
    speed: str | None = None,
    cache_write: Literal["5m", "1h"] | None = None,
    prices: Prices | None = None,
) -> Decimal:
    """The most that a request of this size can cost, in USD: `Prices.worst_case`, on terms that are said as in `cost`.

    Examples:
        >>> worst_case("claude-sonnet-5-5", 1_200, 800), worst_case("claude-sonnet-5-5", 1_200, 800, batch=True)
        (Decimal('0.0104'), Decimal('0.0052'))
    """
    context = terms_of(batch=batch, tier=tier, speed=speed).context
    chosen = user_prices() if prices is None else prices
    return chosen.worst_case(model, input_tokens, max_output_tokens, at=at, context=context, cache_write=cache_write)


@cache
def user_prices() -> Prices:
    """The prices of this process: the catalogue, and the user's `prices.toml`."""
    return Prices.of_user()


def _found(snapshot: Any, name: str) -> tuple[Provider, ModelInfo]:
    """A model by its name, or by that of a seller before it (`groq/llama-3.3-70b-versatile`); else `LookupError`."""
    try:
        return cast("tuple[Provider, ModelInfo]", snapshot.find_provider_model(name, None, None, None))
    except LookupError:
        seller, _, model = name.partition("/")
        if name.startswith("text-embedding-"):  # the catalogue's pattern of OpenAI's models leaves these out
            seller, model = "openai", name
        with suppress(LookupError):
            if model and not _is_known_alone(snapshot, model, seller):
                return cast("tuple[Provider, ModelInfo]", snapshot.find_provider_model(model, None, seller, None))
        raise


def _is_known_alone(snapshot: Any, model: str, seller: str) -> bool:
    """Whether a model's name says by itself who sells it: with its maker before it, it is somebody else's name of a variant."""
    try:
        return bool(snapshot.find_provider(model, None, None).id == snapshot.find_provider(None, seller, None).id)
    except LookupError:
        return False


def _name(model: str) -> str:
    if not isinstance(model, str):
        raise InvalidType("model", f"{told(model)} is {type(model).__name__}, not a string")
    if len(model) > MAX_TEXT:
        raise InvalidValue("model", f"has {len(model):,} characters, and a name has {MAX_TEXT:,} at most")
    return model.lower()


def aware(at: datetime | None) -> datetime:
    """A time in UTC; now where none is given.

    Raises:
        InvalidType: no datetime.
        InvalidValue: it has no time zone, or is so near the years 1 and 9999 that it is no time in UTC.
    """
    if at is None:
        return datetime.now(UTC)
    if not isinstance(at, datetime):
        raise InvalidType("at", f"{told(at)} is {type(at).__name__}, not a datetime")
    try:
        if at.utcoffset() is not None:
            return at.astimezone(UTC)
    except (OverflowError, ValueError):
        raise InvalidValue("at", f"{at.isoformat()} is outside the years 1 to 9999 in UTC; give the day of the calls") from None
    raise InvalidValue("at", f"{at} has no time zone; use datetime.now(timezone.utc) or .astimezone()")
