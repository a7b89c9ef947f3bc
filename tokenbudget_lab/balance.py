"""What a budget has committed, holds, and can still promise: a value, read at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_FLOOR, Decimal, localcontext
from typing import Any

from .errors import money, shown
from .limits import FOREVER, RESOURCES, decimal_or_int, instant, window_text
from .usage import EXACT


@dataclass(frozen=True, slots=True)
class LimitBalance:
    """One limit on the way up from a budget.

    Attributes:
        budget: whose limit it is.
        resource: `usd`, `tokens` or `requests`.
        window: `""` (in all), `day`, `week`, `month`, or a length such as `3600s`.
        limit, committed, reserved: amounts of that resource; USD as `Decimal`.
        ends: when the window ends (UTC); `None` without a window.
        begins: when it began (UTC); `None` without a window.
    """

    budget: str
    resource: str
    window: str
    limit: Any
    committed: Any
    reserved: Any
    ends: datetime | None
    begins: datetime | None = None

    @property
    def left(self) -> Any:
        """Limit - committed - reserved; negative after an overrun."""
        with localcontext(EXACT):
            return self.limit - self.committed - self.reserved

    @property
    def used_fraction(self) -> float:
        """Committed and reserved as a fraction of the limit; 1 for a limit of zero."""
        with localcontext(EXACT):
            return float((self.committed + self.reserved) / self.limit) if self.limit else 1.0

    def __str__(self) -> str:
        per = f" per {window_text(self.window)}" if self.window else ""
        if self.resource == "usd":
            return f"{money(self.left, rounding=ROUND_FLOOR)} of {money(self.limit)}{per} left"
        return f"{self.left:,} of {self.limit:,} {self.resource}{per} left"


@dataclass(frozen=True, slots=True, repr=False)
class Balance:
    """A budget at one moment.

    `limit_…`, `committed_…` and `reserved_…` are the budget's own: under its tightest limit of that resource, or since its
    creation where it has none. `left_…` looks at every limit on the way up; `None` where nothing limits the resource.

    Attributes:
        budget: its name.
        at: when this was read (UTC).
        calls_in_flight: open reservations in it and below it.
        unpriced_calls: committed calls whose cost is not known, and so not in `committed_usd`.
        left_by: whose limit is the tightest, over all resources; `None` without any limit.
        window_ends: when the window of that limit ends (UTC); `None` without a window.
        limits: every limit on the way up.
        closed: whether it or an ancestor is closed.
    """

    budget: str
    at: datetime
    limit_usd: Decimal | None
    committed_usd: Decimal
    reserved_usd: Decimal
    left_usd: Decimal | None
    limit_tokens: int | None
    committed_tokens: int
    reserved_tokens: int
    left_tokens: int | None
    limit_requests: int | None
    committed_requests: int
    reserved_requests: int
    left_requests: int | None
    calls_in_flight: int
    unpriced_calls: int
    left_by: str | None
    window_ends: datetime | None
    limits: tuple[LimitBalance, ...] = field(default=())
    closed: bool = False

    def __repr__(self) -> str:
        spent = f"{money(self.committed_usd)} committed, {money(self.reserved_usd)} reserved"
        if self.limit_usd is None and (self.limit_tokens is not None or not self.committed_usd):
            spent = f"{self.committed_tokens:,} tokens committed, {self.reserved_tokens:,} reserved"
        parts = [f"{self.budget}: {spent}"]
        parts += [str(limit) + ("" if limit.budget == self.budget else f" in {limit.budget}") for limit in self.limits]
        if self.left_by is None:
            parts.append("no limit")
        if self.calls_in_flight:
            parts.append(f"{self.calls_in_flight} in flight")
        if self.unpriced_calls and (self.committed_usd or self.left_usd is not None):
            parts.append(f"{self.unpriced_calls} without a price")
        if self.window_ends is not None:
            parts.append(f"resets {self.window_ends:%Y-%m-%d %H:%M} UTC")
        if self.closed:
            parts.append("closed")
        return shown(" · ".join(parts))


def balance_of(answer: Sequence[Any]) -> Balance:
    """Read a ledger's answer: name, instant, closed, zone, and a row per account on the way up."""
    name, ts, closed, _zone, rows = answer
    limits = tuple(limit for row in rows for limit in _limits(row))
    tightest = max(limits, key=lambda limit: limit.used_fraction, default=None)
    numbers: dict[str, Any] = {}
    for n, resource in enumerate(RESOURCES):
        own = max(
            (limit for limit in limits if limit.budget == name and limit.resource == resource),
            key=lambda limit: limit.used_fraction,
            default=None,
        )
        lifetime = next(row for row in rows if row[0] == name and not row[1])
        numbers[f"limit_{resource}"] = own.limit if own else None
        numbers[f"committed_{resource}"] = own.committed if own else decimal_or_int(resource, lifetime[7 + n])
        numbers[f"reserved_{resource}"] = own.reserved if own else decimal_or_int(resource, lifetime[10 + n])
        numbers[f"left_{resource}"] = min((limit.left for limit in limits if limit.resource == resource), default=None)
    lifetime = next(row for row in rows if row[0] == name and not row[1])
    return Balance(
        budget=name,
        at=instant(ts),
        calls_in_flight=lifetime[13],
        unpriced_calls=lifetime[14],
        left_by=tightest.budget if tightest else None,
        window_ends=tightest.ends if tightest else None,
        limits=limits,
        closed=closed,
        **numbers,
    )


def spent_of(answer: Sequence[Any], resource: str) -> Any:
    """What a budget has committed since its creation, across all its windows, out of a ledger's answer."""
    name, *_, rows = answer
    lifetime = next(row for row in rows if row[0] == name and not row[1])
    return decimal_or_int(resource, lifetime[7 + RESOURCES.index(resource)])


def _limits(row: Sequence[Any]) -> list[LimitBalance]:
    name, window, *caps = row[:5]
    begins, ends = (None, None) if row[6] >= FOREVER else (instant(row[5]), instant(row[6]))
    found = []
    for n, (resource, cap) in enumerate(zip(RESOURCES, caps, strict=True)):
        if cap is not None:
            limit, committed, reserved = (decimal_or_int(resource, v) for v in (cap, row[7 + n], row[10 + n]))
            found.append(LimitBalance(name, resource, window, limit, committed, reserved, ends, begins))
    return found
