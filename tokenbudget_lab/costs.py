"""What a call costs a ledger, and what its event remembers of that: whose price, on what terms, at which size.

A price list is passed in (`Prices`); what it does not know is no cost, and never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

from .errors import PriceUnknown
from .events import to_detail
from .reported import Reported
from .terms import Quote, Terms
from .usage import Usage, pico_of_cost

MOST_BESIDE, MOST_NAME, MOST_ANSWERED, MOST_REASON = 10, 30, 120, 200  # an event's detail is short, whatever a provider writes


class Prices(Protocol):
    """What turns usage into money."""

    def cost(
        self, usage: Usage, model: str, *, at: datetime | None = None, context: Mapping[str, str] | None = None
    ) -> Decimal:
        """USD of a call; `PriceUnknown` where there is no price."""
        ...

    def quote(self, usage: Usage, model: str, *, at: datetime | None = None, context: Mapping[str, str] | None = None) -> Quote:
        """USD of a call, and where that is from."""
        ...

    def worst_quote(
        self,
        model: str,
        input_tokens: Any,
        max_output_tokens: int,
        *,
        context: Mapping[str, str] | None = None,
        cache_write: Literal["5m", "1h"] | None = None,
    ) -> Quote:
        """The most USD that a call of this size can cost, and where that is from."""
        ...

    def provider(self, model: str) -> str | None:
        """Who sells the model."""
        ...


def cost_of(
    prices: Prices | None, used: Reported, model: str | None, terms: Terms, at: datetime | None
) -> tuple[int | None, str | None]:
    """Pico-dollars of a call, and for its event's `detail` where they are from; no dollars where there is no price."""
    context = terms.corrected(used.terms).context
    if prices is None or model is None:
        return None, _detail(None, context, used)
    billed = billed_as(prices, model, used.model)
    answered = None if billed == model else billed
    try:
        used.must_be_priced(billed)
        quote = prices.quote(used.usage, billed, at=at, context=context)
        if used.factor == 1 and not used.beside:  # nearly always
            return pico_of_cost(quote.usd), _detail(quote, context, used, answered=answered)
        pico = 0
        for name, each in used.requests:
            pico += pico_of_cost(used.cost_of(each, partial(prices.cost, model=name or billed, at=at, context=context)))
    except PriceUnknown as error:
        return None, _detail(None, context, used, error.reason, answered)
    return pico, _detail(quote, context, used, answered=answered)


def billed_as(prices: Prices, model: str, answered: str | None) -> str:
    """The model whose price holds: the one that answered, unless the user has said a price for the one that was asked.

    A price that the user has said holds for a name of her own, of which a provider reports the model behind it. A dated name of
    the model that was asked, which no list has, is that model.

    Examples:
        >>> from tokenbudget_lab.pricing import Prices
        >>> billed_as(Prices(), "gpt-4o", "gpt-4o-2024-05-13"), billed_as(Prices(), "gpt-4o", "gpt-4o-2031-01-01-preview")
        ('gpt-4o-2024-05-13', 'gpt-4o')
    """
    if answered is None or answered == model or model.endswith(f"/{answered}") or getattr(prices, "has_own", _never)(model):
        return model
    seller, slash, _ = model.partition("/")
    if slash and not answered.startswith(f"{seller}/"):
        answered = f"{seller}/{answered}"  # who sells it does not say so in a reply
    if answered.startswith(f"{model}-"):
        try:
            prices.quote(Usage(0, 0), answered)
        except PriceUnknown:
            return model
    return answered


def _never(_model: str) -> bool:
    """Of a price list that knows nothing of a user's own prices."""
    return False


def hold_for(
    prices: Prices | None,
    model: str,
    input_tokens: int,
    max_output_tokens: int,
    terms: Terms,
    cache_write: Literal["5m", "1h"] | None = None,
) -> tuple[int | None, str]:
    """Pico-dollars that a call of this size can cost at most, and what the hold was made from."""
    made: dict[str, Any] = {"input_tokens": input_tokens, "max_output_tokens": max_output_tokens, "context": terms.context}
    if prices is None:
        return None, to_detail(**made)
    try:
        # Named only where it is said: whoever brings prices of her own need not know of it.
        more: dict[str, Any] = {} if cache_write is None else {"cache_write": cache_write}
        quote = prices.worst_quote(model, input_tokens, max_output_tokens, context=terms.context, **more)
        made |= more
    except PriceUnknown:
        return None, to_detail(**made)
    return pico_of_cost(quote.usd), to_detail(**made, **_provenance(quote))


def why_unpriced(prices: Prices | None, model: str, context: Mapping[str, str] | None) -> str:
    """Why a model has no price."""
    if prices is None:
        return "this ledger has no price list"
    try:
        prices.cost(Usage(1, 1), model, context=context)
    except PriceUnknown as error:
        return error.reason
    return ""


def _provenance(quote: Quote) -> dict[str, Any]:
    return {"prices": quote.source, "priced_as": quote.priced_as, "above": quote.above}


@lru_cache(maxsize=1024)
def _usual(source: str, priced_as: str | None, above: int | None) -> str:
    return to_detail(prices=source, priced_as=priced_as, above=above)


def _detail(
    quote: Quote | None,
    context: Mapping[str, str] | None,
    used: Reported,
    unpriced: str | None = None,
    answered: str | None = None,
) -> str | None:
    """What an event remembers of how its cost came about, and what of the usage has no column; `None` for nothing."""
    usage = used.usage
    if (
        quote is not None
        and not (context or used.beside or usage.cache_write_1h_tokens or usage.web_searches or answered)
        and (used.factor == 1)
    ):
        return _usual(*quote[1:])  # the same few texts again and again
    told: dict[str, Any] = {} if quote is None else _provenance(quote)
    if usage.cache_write_1h_tokens or usage.web_searches:
        told |= {"cache_write_1h_tokens": usage.cache_write_1h_tokens or None, "web_searches": usage.web_searches or None}
    if used.beside:
        told["beside"] = [
            (name and name[:MOST_NAME], each.input_tokens, each.output_tokens) for name, each in used.beside[:MOST_BESIDE]
        ]
    if used.factor != 1:
        told["factor"] = str(used.factor)
    if answered:
        told["answered_by"] = answered[:MOST_ANSWERED]
    if context or unpriced:
        told |= {"context": context, "unpriced": None if unpriced is None else unpriced[:MOST_REASON]}
    return to_detail(**told) if told else None
