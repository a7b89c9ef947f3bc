"""What a call used, and what a reservation holds.

Inside the core money is an integer number of pico-dollars (1 USD = 10**12), so that sums are exact; `Decimal` at the edge.
Absent is `None`, never 0.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NamedTuple

from .errors import InvalidType, InvalidValue, told

PICO = 10**12
Money = Decimal | float | str  # USD as people write it; an int is fine, a float is read as the number it prints
MAX_TOKENS = 2**53  # larger integers do not survive JSON in other languages
MAX_USD = 10**15
_EXPONENT = Decimal("1E-12")
EXACT = Context(prec=60)  # a researcher's own decimal context must not round her money


class Amount(NamedTuple):
    """Resources of one reservation or one use; a resource that was not given is `None`."""

    usd: int | None = None  # pico-dollars
    tokens: int | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one call, normalised: inclusive counts, as OpenTelemetry defines them.

    Args:
        input_tokens: all input tokens, cache reads and cache writes included.
        output_tokens: all output tokens, reasoning included.
        cache_read_tokens: input tokens read from the provider's cache.
        cache_write_5m_tokens: input tokens written to a cache that lives five minutes.
        cache_write_1h_tokens: input tokens written to a cache that lives an hour.
        reasoning_tokens: output tokens spent on thinking.
        web_searches: searches that the provider made and bills beside the tokens.

    Raises:
        InvalidValue: a negative count, a part larger than its whole.

    Examples:
        >>> Usage(1_200, 300, cache_read_tokens=1_000).tokens
        1500
    """

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    web_searches: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            object.__setattr__(self, name, tokens_of(name, getattr(self, name)))
        if self.cache_read_tokens + self.cache_write_tokens > self.input_tokens:
            raise InvalidValue("input_tokens", "is less than the cache reads and writes that it includes")
        if self.reasoning_tokens > self.output_tokens:
            raise InvalidValue("output_tokens", "is less than the reasoning tokens that it includes")

    @property
    def tokens(self) -> int:
        """Input and output together: what a limit in tokens counts."""
        return self.input_tokens + self.output_tokens

    @property
    def cache_write_tokens(self) -> int:
        """Cache writes of both lifetimes."""
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @classmethod
    def of(cls, reported: Any) -> Usage:
        """Normalise what a provider reported: an SDK's usage object, its JSON as a dict, or a `Usage`.

        Args:
            reported: usage of Anthropic messages, OpenAI responses or OpenAI chat completions.

        Raises:
            InvalidType: it is none of these; unknown usage is never read as zero.
            InvalidValue: its counts contradict each other.

        Examples:
            >>> used = Usage.of({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 90})
            >>> used.input_tokens, used.cache_read_tokens
            (100, 90)

        References:
            https://opentelemetry.io/docs/specs/semconv/gen-ai/ (inclusive counts)
        """
        if isinstance(reported, cls):
            return reported
        get = reader(reported)
        if get("prompt_tokens") is not None:
            return cls._openai(get, "prompt_tokens", "completion_tokens")
        if get("input_tokens") is None or get("output_tokens") is None:
            raise InvalidType(
                "usage", f"cannot read token counts from {type(reported).__name__}; pass tbl.Usage(input, output)"
            )
        if get("input_tokens_details") is not None or get("output_tokens_details", "reasoning_tokens") is not None:
            return cls._openai(get, "input_tokens", "output_tokens")
        if get("total_tokens") is not None:  # a compatible server's, without details
            return cls._openai(get, "input_tokens", "output_tokens")
        return cls._anthropic(get)

    @classmethod
    def _openai(cls, get: Any, prompt: str, completion: str) -> Usage:
        sent, whole = tokens_of(prompt, get(prompt)), get("total_tokens")
        thought = tokens_of("reasoning_tokens", get(f"{completion}_details", "reasoning_tokens") or 0)
        written = get(completion)
        if written is None:
            if whole != sent:  # embeddings write nothing, and their total says so
                raise InvalidType("usage", f"says no {completion}; unknown usage is not zero")
            written = 0
        written = tokens_of(completion, written)
        if whole is not None and whole != sent + written:
            if not thought or whole != sent + written + thought:
                raise InvalidValue(
                    "usage",
                    f"contradicts itself: {prompt} {sent} and {completion} {written} are not total_tokens {told(whole)}; "
                    "read the reply with tbl.read_reply(reply, provider=…)",
                )
            written += thought  # xAI's: reasoning stands beside the completion there
        return cls(
            sent,
            written,
            cache_read_tokens=get(f"{prompt}_details", "cached_tokens") or 0,
            cache_write_5m_tokens=get(f"{prompt}_details", "cache_write_tokens") or 0,  # at the price of a short one
            reasoning_tokens=thought,
        )

    @classmethod
    def _anthropic(cls, get: Any) -> Usage:
        read, written = _count(get, "cache_read_input_tokens"), _count(get, "cache_creation_input_tokens")
        five = hour = 0
        if get("cache_creation") is None:  # then nobody says for how long, and five minutes is what is not asked for
            five = written
        else:
            hour = _count(get, "cache_creation", "ephemeral_1h_input_tokens")
            five = _count(get, "cache_creation", "ephemeral_5m_input_tokens")
            if get("cache_creation_input_tokens") is not None and written != five + hour:
                raise InvalidValue(
                    "usage",
                    f"contradicts itself: {written} tokens written to the cache are not {five} for 5 m and {hour} for 1 h",
                )
        return cls(
            tokens_of("input_tokens", get("input_tokens")) + read + five + hour,
            get("output_tokens"),
            cache_read_tokens=read,
            cache_write_5m_tokens=five,
            cache_write_1h_tokens=hour,
            reasoning_tokens=get("output_tokens_details", "thinking_tokens") or 0,
            web_searches=_count(get, "server_tool_use", "web_search_requests"),
        )


def _count(get: Any, *names: str) -> int:
    """A count that may be left out."""
    value = get(*names)
    return tokens_of(".".join(names), value) if value else 0


def reader(reported: Any) -> Any:
    """What reads a value out of an SDK's object or of its JSON, by a path of names; `None` where it is not there."""

    def get(*names: str) -> Any:
        value = reported
        for name in names:
            if type(value) is dict or isinstance(value, Mapping):  # the first is nearly always so, and is found out sooner
                value = value.get(name)
            elif value is None:
                return None
            else:
                value = getattr(value, name, None)
        return value

    return get


def tokens_of(argument: str, value: Any) -> int:
    """Check a count: an integer (numpy's too) in 0 ≤ n < 2**53.

    Raises:
        InvalidType: a bool, a float, a string: nothing is rounded or guessed.
        InvalidValue: negative or too large.

    Examples:
        >>> tokens_of("tokens", 12)
        12
    """
    if type(value) is not int:
        if isinstance(value, bool) or not hasattr(type(value), "__index__"):
            raise InvalidType(argument, f"{told(value)} is {type(value).__name__}, not an integer")
        value = operator.index(value)
    if not 0 <= value < MAX_TOKENS:
        raise InvalidValue(argument, f"{told(value)} is not in 0 … 2**53 - 1")
    return int(value)


def most_of(argument: str, value: Any) -> int:
    """The same of an estimate that knows its upper end (a `Count`): that end.

    Examples:
        >>> most_of("input_tokens", 1_200)
        1200
    """
    if type(value) is int:
        return tokens_of(argument, value)
    upper = getattr(value, "upper", None)
    return tokens_of(argument, upper if type(upper) is int else value)


def pico_of(argument: str, value: Any) -> int:
    """Read USD exactly, as pico-dollars. A float is read as the number it prints (0.1 is 0.1).

    Raises:
        InvalidType: a bool, or no number at all.
        InvalidValue: negative, not finite, more than 12 decimals, 10**15 or more.

    Examples:
        >>> pico_of("usd", "0.05"), pico_of("usd", 0.1), pico_of("usd", 5)
        (50000000000, 100000000000, 5000000000000)
    """
    if type(value) is str or type(value) is float:  # the same few amounts again and again
        return _pico_of(argument, value)
    return _pico_of.__wrapped__(argument, value)


@lru_cache(maxsize=1024, typed=True)
def _pico_of(argument: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        if hasattr(type(value), "__index__") and not isinstance(value, bool):
            value = operator.index(value)
        else:
            raise InvalidType(argument, f"{told(value)} is {type(value).__name__}; give USD as int, Decimal or str")
    try:
        exact = Decimal(repr(float(value)) if isinstance(value, float) else value)
    except (InvalidOperation, ValueError):
        raise InvalidValue(argument, f"{told(value)} is no amount in USD") from None
    if not exact.is_finite() or exact < 0 or exact >= MAX_USD:
        raise InvalidValue(argument, f"{told(value)} is not in 0 … 10**15 USD")
    try:
        scaled = exact.scaleb(12, EXACT)
        pico = int(scaled)
    except (InvalidOperation, ValueError, OverflowError):
        raise InvalidValue(argument, f"{told(value)} has too many digits") from None
    if pico != scaled or usd_of(pico) != exact:
        raise InvalidValue(
            argument, f"{told(value)} has more than 12 decimals; a millionth of a millionth of a dollar is the smallest unit"
        )
    return pico


def pico_of_cost(cost: Decimal) -> int:
    """A computed cost in pico-dollars, rounded up: never less than what was spent."""
    return int(cost.quantize(_EXPONENT, ROUND_CEILING, EXACT).scaleb(12, EXACT))


def usd_of(pico: int) -> Decimal:
    """Pico-dollars as exact USD.

    Examples:
        >>> usd_of(300_000_000_000)
        Decimal('0.3')
    """
    whole, part = divmod(pico, PICO)
    return Decimal(whole) if not part else Decimal(pico).scaleb(-12, EXACT).normalize(EXACT)
