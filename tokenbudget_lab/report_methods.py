"""What a report says in sentences: one paragraph for a paper, and what its reader should know beside it.

They are plain text: each format escapes them as it does everything else. Amounts are in USD, without a sign for dollars.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import polars as pl

from .figures import Figures
from .report_cells import clipped, cost_text, digits_for, usd_text

_NAMED, _GAPS = 8, 5  # models and price lists, and what is missing; the others are counted
_PARTS = (
    ("estimated_usd", "is estimated"),
    ("unknown_usd", "is what was held for calls whose outcome is not known"),
)


def methods(figures: Figures) -> str:
    """Calls, models, dates, cost, how much of it is estimated or unknown, and whose prices: ready to paste into a paper."""
    sums = figures.sums
    if not sums["calls"]:
        return " ".join(("No calls were recorded.", *_scoped(figures), *_gaps(figures)))
    several = "" if sums["requests"] == sums["calls"] else f" ({sums['requests']:,} requests)"
    were = "was" if sums["calls"] == 1 else "were"
    made = f"{_counted(sums['calls'], 'call')}{several} to {_models(figures)} {were} made {_dates(figures)}"
    told = [
        f"{made}, {_tokens(figures)}, at {_cost(sums)}.",
        *_basis(sums),
        *_prices(figures),
        *_scoped(figures),
        *_gaps(figures),
    ]
    return " ".join(told)


def notes(figures: Figures) -> list[str]:
    """What is to be known beside the numbers: what is in flight, what has no price, what does not add up."""
    sums, found = figures.sums, []
    digits = digits_for(sums["cost_usd"])
    if figures.open_calls:
        holding = f", holding USD {usd_text(figures.held_usd, digits)}" if figures.held_usd else ""
        found.append(f"In flight: {_counted(figures.open_calls, 'call')}{holding}; what is held is not spent, and not counted.")
    if sums["unpriced_calls"]:
        found.append(
            f"Without a price: {_counted(sums['unpriced_calls'], 'call')}, in no amount; a cost with ≥ is that of the others."
        )
    unsaid = sums["cost_usd"] - sums["measured_usd"] - sums["estimated_usd"] - sums["unknown_usd"]
    if unsaid:
        found.append(f"Of the cost, USD {usd_text(unsaid, digits)} has no basis said, and is in none of the three columns.")
    if figures.untold_calls:
        found.append(f"Without token counts: {_counted(figures.untold_calls, 'call')}, in no number of tokens.")
    found += _same_names(figures)
    unsplit = sums["tokens"] - sums["input_tokens"] - sums["output_tokens"]
    if unsplit:
        found.append(f"{unsplit:,} tokens are counted that are not said to be input or output.")
    return found


def warnings(figures: Figures) -> list[str]:
    """What comes before all else: budgets that are over their limit, and calls that are missing."""
    return [*over_limit(figures), *_gaps(figures)]


def over_limit(figures: Figures) -> list[str]:
    """One sentence, or none."""
    several = figures.budgets["ledger"].n_unique() > 1
    over = figures.over.select("budget", "ledger").unique(maintain_order=True).rows()
    named = [f"{budget} in {ledger}" if several else budget for budget, ledger in over]
    return [f"Over the limit: {_listed(named, 160)}."] if named else []


def as_of(figures: Figures) -> str:
    """When the budgets were read, and that they are about more than the report."""
    at: datetime = figures.budgets["at"].max()  # type: ignore[assignment] # a column of instants
    return f"As of {at:%Y-%m-%d %H:%M} UTC, of all calls, not only those above."


# --- its parts ---------------------------------------------------------------------------------------------------------------


def _same_names(figures: Figures) -> list[str]:
    """Budgets of several ledgers that one row stands for, because they have the same name."""
    if "budget" not in figures.keys or "ledger" in figures.keys:
        return []
    owners = figures.budgets.select("ledger", "budget").unique().group_by("budget").len()
    shared = owners.filter(pl.col("len") > 1).sort("budget")["budget"].to_list()
    if not shared:
        return []
    return [f"One row stands for budgets of that name in several ledgers: {_listed(shared)}; by ledger they are told apart."]


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _models(figures: Figures) -> str:
    named = [name for name, _ in figures.models if name is not None]
    without = next((n for name, n in figures.models if name is None), 0)
    if not named:
        return "models that were not recorded"
    rest = f"; not recorded for {_counted(without, 'call')}" if without else ""
    return f"{_counted(len(named), 'model')} ({_listed(named)}{rest})"


def _listed(names: Sequence[str], most: int = 60) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(clipped(name, most) for name in names[:_NAMED]) + more


def _dates(figures: Figures) -> str:
    assert figures.first is not None  # noqa: S101 - there are calls
    assert figures.last is not None  # noqa: S101 - as above
    first, last = f"{figures.first:%Y-%m-%d}", f"{figures.last:%Y-%m-%d}"
    return f"on {first} ({figures.tz})" if first == last else f"from {first} to {last} ({figures.tz})"


def _tokens(figures: Figures) -> str:
    sums, untold = figures.sums, figures.untold_calls
    if untold == sums["calls"]:
        return "with tokens that were not recorded"
    inside, outside, whole = (sums[name] for name in ("input_tokens", "output_tokens", "tokens"))
    split = f"{_counted(inside, 'input token')} and {_counted(outside, 'output token')}"
    missing = f" ({_counted(untold, 'call')} did not say {'its' if untold == 1 else 'their'} own)" if untold else ""
    return f"using {split if whole == inside + outside else _counted(whole, 'token')}{missing}"


def _cost(sums: dict[str, Any]) -> str:
    if sums["unpriced_calls"] == sums["calls"]:
        return "a cost that is not known"
    cost = f"USD {usd_text(sums['cost_usd'], digits_for(sums['cost_usd']))}"
    if not sums["unpriced_calls"]:
        return f"a total cost of {cost}"
    return f"a cost of at least {cost}, not including {_counted(sums['unpriced_calls'], 'call')} without a known price"


def _basis(sums: dict[str, Any]) -> list[str]:
    cost = sums["cost_usd"]
    if not cost or sums["unpriced_calls"] == sums["calls"]:
        return []
    if sums["measured_usd"] == cost:
        return ["The amounts were computed from usage that the providers reported, or were given with the call."]
    digits = digits_for(cost)
    parts = [
        f"USD {cost_text(sums, digits, name)} ({_percent(sums[name], cost)}) {meaning}"
        for name, meaning in _PARTS
        if sums[name]
    ]
    unsaid = cost - sums["measured_usd"] - sums["estimated_usd"] - sums["unknown_usd"]
    if unsaid:
        parts.append(f"of USD {usd_text(unsaid, digits)} it is not recorded how it is known")
    return [f"Of this cost, {' and '.join(parts)}."]


def _percent(part: Decimal, whole: Decimal) -> str:
    share = 100 * part / whole
    return "< 0.1 %" if 0 < share < Decimal("0.1") else f"{share:.1f} %"


def _prices(figures: Figures) -> list[str]:
    named = [name for name, _ in figures.prices if name is not None]
    given = next((n for name, n in figures.prices if name is None), 0)
    told = [f"Prices: {_listed(named)}."] if named else []
    if given:
        told.append(f"The cost of {_counted(given, 'call')} was recorded as given, without a price list.")
    return told


def _scoped(figures: Figures) -> list[str]:
    """Where it is not about all calls: the scope, by its first word a sentence of its own."""
    return [] if figures.scope == "All calls." else [clipped(f"Included: {figures.scope[0].lower()}{figures.scope[1:]}", 400)]


def _gaps(figures: Figures) -> list[str]:
    told = [clipped(gap, 240) for gap in figures.gaps[:_GAPS]]
    more = len(figures.gaps) - len(told)
    return [*told, *([f"And {_counted(more, 'other gap')} like these."] if more else [])]
