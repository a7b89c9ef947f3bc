"""The one thing that a dashboard changes: a limit is raised, in two steps, and by an event in the ledger.

The first step reads what was typed and says what would be done. The second one does it, with a command whose id was made by the
first: pressed twice, or answered late, it is decided once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..balance import LimitBalance
from ..commands import SetLimit
from ..errors import InvalidValue, money
from ..ledger import Ledger
from ..limits import Cap, window_text
from ..render import escaped, of_limit
from ..usage import EXACT, pico_of, tokens_of, usd_of

REASON = "raised in the dashboard"
_CENT = 10**10  # pico-dollars
_GROUPED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")  # any other comma may be somebody's decimal point


@dataclass(frozen=True, slots=True)
class Raise:
    """A limit that is to be raised.

    Attributes:
        limit: as it was when that was planned.
        command: what raises it.
    """

    limit: LimitBalance
    command: SetLimit

    @property
    def to(self) -> str:
        """The new limit, exactly."""
        asked = getattr(self.command, self.limit.resource)
        if self.limit.resource != "usd":
            return f"{asked:,} {self.limit.resource}"
        return money(usd_of(asked)) if asked % _CENT == 0 else f"${usd_of(asked).normalize(EXACT):,f}"

    def __str__(self) -> str:
        return f"Raise {named(self.limit)} from {of_limit(self.limit, self.limit.limit)} to {self.to}?"


def named(limit: LimitBalance) -> str:
    """Which limit it is: whose, of what, per which window."""
    unit = "USD" if limit.resource == "usd" else limit.resource
    return f"{escaped(limit.budget)}, {unit}" + (f" per {window_text(limit.window)}" if limit.window else "")


def same(one: LimitBalance, other: LimitBalance) -> bool:
    """Whether both are the same limit, whatever it is now."""
    return (one.budget, one.resource, one.window) == (other.budget, other.resource, other.window)


def planned(ledger: Ledger, limit: LimitBalance, typed: str) -> Raise:
    """Read what was typed; nothing is changed.

    Args:
        ledger: whose limit it is.
        limit: which.
        typed: the new one, in its unit.

    Raises:
        InvalidValue: it is no amount, or not more than the limit.
    """
    text = typed.strip().removeprefix("$").strip()
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    if limit.resource == "usd":
        amount = pico_of("The new limit", text) if text else None
        before = pico_of("limit", limit.limit)
    else:
        amount = tokens_of("The new limit", int(text)) if text.isascii() and text.isdigit() else None
        before = limit.limit
    if amount is None:
        raise InvalidValue("The new limit", "is no amount: type a number")
    if amount <= before:
        raise InvalidValue("The new limit", f"is not more than {of_limit(limit, limit.limit)}; here limits are only raised")
    given: dict[str, Any] = {"usd": None, "tokens": None, "requests": None, limit.resource: amount}
    return Raise(limit, SetLimit(ledger.new_id(), limit.budget, limit.window, **given, reason=REASON, instead_of=before))


def carry_out(ledger: Ledger, plan: Raise) -> str:
    """Raise a limit, unless it is another one by now; what came of it, as a sentence.

    Raises:
        TokenBudgetError: why that could not be done.
    """
    caps = {cap[0]: Cap(*cap) for cap in ledger.ask(plan.command)[1]}
    now = getattr(caps[plan.command.window or ""], plan.limit.resource)
    if now == getattr(plan.command, plan.limit.resource):
        return f"✓ The limit of {named(plan.limit)} is {plan.to} now."
    there = of_limit(plan.limit, usd_of(now) if plan.limit.resource == "usd" else now)
    return f"✕ Nothing was changed: the limit of {named(plan.limit)} is {there} by now."
