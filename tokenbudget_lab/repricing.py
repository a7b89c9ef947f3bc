"""The same study on another model, on another day, or as a batch: what its calls would have cost.

Token counts stay as they were recorded. Another model may cut the same text into more or fewer tokens and answer at another
length, so a cost on another model is that of the same counts. What cannot be priced is null with a reason, never zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import polars as pl

from .connection import Ledger
from .errors import InvalidValue, PriceUnknown
from .handles import Budget
from .pricing import aware, user_prices
from .sources import Moment, Source, Where, calls_of, place_of_source
from .terms import Quote, Terms, terms_of
from .usage import Usage, pico_of_cost, usd_of

if TYPE_CHECKING:
    from .costs import Prices

_ALIKE = (
    *("state", "model", "spent_at", "context", "requests", "tokens", "input_tokens", "output_tokens", "cache_read_tokens"),
    *("cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens", "web_searches"),
)
_ADDED: dict[str, Any] = {
    "repriced_usd": pl.Decimal(38, 12),
    "repriced_model": pl.String,
    "repriced_by": pl.String,
    "unpriced_reason": pl.String,
}


def reprice(
    calls: Source | Any,
    *,
    model: str | Mapping[str, str] | None = None,
    at: datetime | None = None,
    batch: bool | None = None,
    tier: str | None = None,
    speed: str | None = None,
    prices: Prices | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    month: str | None = None,
    tz: str | None = None,
    where: Where | None = None,
) -> pl.DataFrame:
    """What calls would have cost on another model, at another time, or on other terms.

    Args:
        calls: a ledger, a budget (with all below it), an export, a frame of `ledger.calls()`, or a list of these.
        model: the model to price them on, or which one for which; each call's own where not given.
        at: whose day's prices, with a time zone; each call's own day where not given.
        batch: as a batch, or not; as each call was made where not given, like the next two.
        tier: a service tier; `standard` for none.
        speed: a speed; `standard` for the usual one.
        prices: whose; where not given those of the ledger, of a list each one's, else the catalogue's and the user's own.
        since, until, month, tz, where: which calls, see `calls_of`.

    Returns:
        The rows of `calls`, of a list with the column `ledger`, and behind their columns `repriced_usd` (Decimal, USD),
        `repriced_model`, `repriced_by` (whose prices) and `unpriced_reason`: why there is no new cost; null where there is one.

    Raises:
        InvalidType: these are no calls.
        InvalidValue: a column is missing, or `at` has no time zone.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     lab = ledger.budget("lab", usd=1)
        ...     receipt = lab.record(tbl.Usage(10_000, 1_000), model="claude-opus-5-5")
        ...     frame = reprice(lab, model="claude-haiku-5-5")
        ...     frame.select("cost_usd", "repriced_usd").row(0)
        (Decimal('0.060000000000'), Decimal('0.001500000000'))
    """
    at, terms = None if at is None else aware(at), terms_of(batch=batch, tier=tier, speed=speed)
    repriced = []
    for sources, own in _by_prices(calls):
        chosen = prices if prices is not None else own if own is not None else user_prices()
        frame = calls_of(sources, since=since, until=until, month=month, tz=tz, where=where)
        if not isinstance(calls, list | tuple) and not _has_ledger(calls):
            frame = frame.drop("ledger")
        repriced.append(_repriced(frame.collect(), _Pricer(chosen, model, at, batch, terms)))
    return repriced[0] if len(repriced) == 1 else pl.concat(repriced, how="diagonal")


def prices_of(source: Any) -> Prices | None:
    """The prices that a ledger has, or a budget's ledger; `None` of anything else."""
    ledger = source.ledger if isinstance(source, Budget) else source
    return ledger.prices if isinstance(ledger, Ledger) else None


def _has_ledger(calls: Any) -> bool:
    return "ledger" in (calls.collect_schema() if isinstance(calls, pl.LazyFrame) else getattr(calls, "columns", ()))


def _by_prices(calls: Any) -> list[tuple[list[Any], Prices | None]]:
    """The sources that are priced by one list: each ledger with its budgets, and all else together."""
    groups: dict[Any, list[Any]] = {}
    for each in calls if isinstance(calls, list | tuple) else [calls]:
        owner = each.ledger if isinstance(each, Budget) else each
        groups.setdefault(place_of_source(owner) if isinstance(owner, Ledger) else None, []).append(each)
    return [(sources, prices_of(sources[0])) for sources in groups.values()] or [([], None)]


def _repriced(frame: pl.DataFrame, pricer: _Pricer) -> pl.DataFrame:
    missing = [name for name in _ALIKE if name not in frame.columns]
    if missing:
        raise InvalidValue("calls", f"lacks {', '.join(missing)}; select columns after repricing")
    known: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    rows = frame.select(_ALIKE).rows()
    for row in rows:
        if row not in known:
            known[row] = pricer.priced(dict(zip(_ALIKE, row, strict=True)))
    columns = zip(*(known[row] for row in rows), strict=True) if rows else [()] * len(_ADDED)
    added = [
        pl.Series(name, values, dtype=kind, strict=True) for (name, kind), values in zip(_ADDED.items(), columns, strict=True)
    ]
    return frame.with_columns(added)


class _Pricer:
    """Prices one kind of call after the other."""

    def __init__(
        self,
        prices: Prices,
        model: str | Mapping[str, str] | None,
        at: datetime | None,
        batch: bool | None,  # noqa: FBT001 - handed on
        terms: Terms,
    ) -> None:
        self.prices, self.model, self.at, self.batch, self.terms = prices, model, at, batch, terms

    def priced(self, call: dict[str, Any]) -> tuple[Decimal | None, str | None, str | None, str | None]:
        """A call's new cost, model and source; or no cost, and the reason."""
        was = call["model"]
        model = self.model if isinstance(self.model, str) else (self.model or {}).get(was, was)
        reason = _unusable(call) or ("its model is not known; name one with model=" if model is None else None)
        if reason is not None or model is None:
            return None, model, None, reason
        try:
            quote = self.prices.quote(
                _usage(call), model, at=self.at or call["spent_at"], context=self._context(call["context"])
            )
        except PriceUnknown as unknown:
            return None, model, None, unknown.reason
        if call["requests"] != 1 and self._depends_on_request(quote, model, call):
            return None, model, None, f"it is {call['requests']} requests in one row, and each has a price of its own"
        return _rounded(quote.usd), model, quote.source, None

    def _context(self, was: str | None) -> Mapping[str, str] | None:
        old = json.loads(was) if was is not None else {}
        known = Terms("processing" in old or None, old.get("service_tier"), old.get("speed"))
        terms = known.corrected(self.terms)
        return (terms._replace(batch=False) if self.batch is False else terms).context

    def _depends_on_request(self, quote: Quote, model: str, call: dict[str, Any]) -> bool:
        """Whether the tokens of several requests may not be priced as one: their rates depend on its size, or it has a fee."""
        if quote.above is not None:
            return True
        at, context = self.at or call["spent_at"], self._context(call["context"])
        return bool(self.prices.quote(Usage(0, 0), model, at=at, context=context).usd)


def _unusable(call: dict[str, Any]) -> str | None:
    """Why a call has no counts to price; `None` where it has."""
    state = call["state"]
    if state in ("rolled_back", "released"):
        return f"{state}: nothing was used"
    if state == "open":
        return "open: what it will have used is not known yet"
    if call["input_tokens"] is None or call["output_tokens"] is None:
        return "its token counts are not known"
    if call["input_tokens"] + call["output_tokens"] != call["tokens"]:
        return "its tokens are not those of its requests: they were adjusted, or more was billed beside them"
    return None


def _usage(call: dict[str, Any]) -> Usage:
    written, hour = call["cache_write_tokens"] or 0, call["cache_write_1h_tokens"] or 0
    counts = (call["input_tokens"], call["output_tokens"], call["cache_read_tokens"] or 0, written - hour, hour)
    return Usage(*counts, reasoning_tokens=call["reasoning_tokens"] or 0, web_searches=call["web_searches"] or 0)


def _rounded(usd: Decimal) -> Decimal:
    return usd_of(pico_of_cost(usd))
