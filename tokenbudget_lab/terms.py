"""On what terms a call is made, where they have prices of their own: as one of a batch, in a service tier, at a speed.

Providers have one word for one thing in several places: Anthropic reports `batch` as a service tier, price lists know it as a
way of processing. Here each thing has one name, and what nobody has said is `None`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from .errors import InvalidType, InvalidValue, told

_STANDARD = frozenset({"standard", "default", "on_demand"})  # Anthropic, OpenAI, Groq: what is paid without asking for more
_MOST_TEXT = 64


class Terms(NamedTuple):
    """How a call was made, or is to be made.

    Attributes:
        batch: as one of a batch.
        tier: the service tier: `flex`, `priority`, …; `standard` where that was said.
        speed: `fast`; `standard` where that was said.
    """

    batch: bool | None = None
    tier: str | None = None
    speed: str | None = None

    @property
    def context(self) -> Mapping[str, str] | None:
        """The same in the words of price lists; `None` for the standard price.

        Examples:
            >>> Terms(batch=True, tier="standard").context
            {'processing': 'batch'}
        """
        if self is UNSAID or (not self.batch and self.tier in (None, "standard") and self.speed in (None, "standard")):
            return None
        told = (
            ("processing", "batch" if self.batch else None),
            ("service_tier", self.tier),
            ("speed", self.speed),
        )
        return {key: value for key, value in told if value not in (None, "standard")}

    def corrected(self, reported: Terms) -> Terms:
        """These, where the provider reported nothing else.

        Examples:
            >>> Terms(tier="priority").corrected(Terms(tier="standard")).context is None
            True
        """
        if reported is UNSAID:  # nearly always
            return self
        return Terms(
            self.batch if reported.batch is None else reported.batch, reported.tier or self.tier, reported.speed or self.speed
        )


UNSAID = Terms()


class Quote(NamedTuple):
    """A cost and where it is from.

    Attributes:
        usd: the cost.
        source: whose price list, and which state of it.
        priced_as: the list's name of the model.
        above: the rates hold for requests of more input tokens than this; `None` where they do not depend on the size.
    """

    usd: Decimal
    source: str
    priced_as: str | None = None
    above: int | None = None


def terms_of(*, batch: Any = False, tier: Any = None, speed: Any = None) -> Terms:
    """Check the terms that a caller gives; `tier="batch"` is a batch.

    Raises:
        InvalidType: `batch` is no bool, or another is no string.
        InvalidValue: an empty or an endless one.

    Examples:
        >>> terms_of(tier="batch")
        Terms(batch=True, tier=None, speed=None)
    """
    if not batch and tier is None and speed is None and (batch is False or batch is None):
        return UNSAID
    if type(batch) is not bool and batch is not None:
        raise InvalidType("batch", f"{told(batch)} is {type(batch).__name__}, not True or False")
    tier, speed = _word("tier", tier), _word("speed", speed)
    if tier == "batch":
        return Terms(batch=True, tier=None, speed=speed)
    return Terms(batch or None, tier, speed)


def reported_terms(tier: Any, speed: Any) -> Terms:
    """The terms that a provider reports with a reply; what it says of no tier that is known is kept, and has no price.

    `standard` is Anthropic's, and says that it was no batch; OpenAI's `default` stands in the replies of its batches too.

    Examples:
        >>> reported_terms("batch", "standard")
        Terms(batch=True, tier=None, speed='standard')
    """
    if tier is None and speed is None:
        return UNSAID
    name, speed = _said(tier), _said(speed)
    if name == "batch":
        return Terms(batch=True, tier=None, speed=speed)
    return Terms(False if tier == "standard" else None, name, speed)


def _word(argument: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidType(argument, f"{told(value)} is {type(value).__name__}, not a string")
    if not 0 < len(value) <= _MOST_TEXT or not value.isprintable():
        raise InvalidValue(argument, f"{told(value)} is no name of a {argument}, such as 'priority' or 'fast'")
    return "standard" if value in _STANDARD else value


def _said(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else type(value).__name__
    return "standard" if text in _STANDARD else text[:_MOST_TEXT]
