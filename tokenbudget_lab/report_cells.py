"""The cells of a report's tables as people read them, before any format's own escaping.

A cell of text has no control, bidirectional or zero-width characters left, and no more than `MOST_TEXT` characters. An amount
is rounded; one that is not zero never reads as zero, and one that is not known, or not fully, says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any, NamedTuple

import polars as pl

from .figures import Figures
from .limits import window_text
from .render import escaped
from .spending import SUMS
from .usage import EXACT

MOST_TEXT = 80
MISSING = "–"
NUMBERS = ("calls", "input_tokens", "output_tokens", "tokens", "cost_usd", "measured_usd", "estimated_usd", "unknown_usd")
HEADS = {
    "calls": "Calls",
    "requests": "Requests",
    "input_tokens": "Input tokens",
    "output_tokens": "Output tokens",
    "tokens": "Tokens",
    "cost_usd": "Cost (USD)",
    "measured_usd": "Measured (USD)",
    "estimated_usd": "Estimated (USD)",
    "unknown_usd": "Unknown (USD)",
    "unpriced_calls": "Calls without a price",
}
BUDGET_HEADS = ("Budget", "Limit", "Per", "Committed", "Held", "Left", "Resets (UTC)")
_DIGITS = ((Decimal(10), 2), (Decimal("0.1"), 4))


class Line(NamedTuple):
    """A row of the table: its labels, and its numbers in the order of `columns`."""

    labels: tuple[str, ...]
    numbers: tuple[str, ...]


def clipped(text: Any, most: int = MOST_TEXT) -> str:
    r"""A text that can be shown, and never more than so many characters of it.

    Examples:
        >>> clipped("a\u202eb"), clipped("x" * 99, 5)
        ('a\\u202eb', 'xxxx…')
    """
    text = escaped(str(text)[: most + 1])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def label_text(value: Any, every: str | None = None) -> str:
    """A label's value.

    Args:
        value: out of the table.
        every: how long a period is, for its beginning.

    Examples:
        >>> label_text(None), label_text(""), label_text(datetime(2026, 11, 1), "1d")
        ('–', '""', '2026-11-01')
    """
    if value is None:
        return MISSING
    if isinstance(value, datetime):
        if every is not None and every.endswith(("d", "w", "o", "q", "y")):
            return f"{value:%Y-%m-%d}"
        return value.isoformat(" ", "minutes" if not value.second else "seconds")  # with its offset: some hours come twice
    return '""' if value == "" else clipped(f"{value:f}" if isinstance(value, Decimal) else value)


def digits_for(total: Decimal) -> int:
    """Decimals for all amounts of a report, by its total.

    Examples:
        >>> digits_for(Decimal(12)), digits_for(Decimal("0.5")), digits_for(Decimal(0))
        (2, 4, 6)
    """
    return next((digits for least, digits in _DIGITS if abs(total) >= least), 6)


def usd_text(value: Decimal, digits: int, rounding: str = ROUND_HALF_EVEN) -> str:
    """An amount with so many decimals, without a sign for dollars, which notebooks would typeset.

    Examples:
        >>> usd_text(Decimal("1234.5"), 2), usd_text(Decimal("0.0001"), 2), usd_text(Decimal(0), 2)
        ('1,234.50', '< 0.01', '0')
    """
    if not value:
        return "0"
    step = Decimal(1).scaleb(-digits)
    rounded = value.quantize(step, rounding=rounding, context=EXACT)
    if not rounded:
        return f"< {step}" if value > 0 else f"> -{step}"
    return f"{rounded:,f}"


def cost_text(sums: Mapping[str, Any], digits: int, name: str = "cost_usd") -> str:
    """A cost, and whether it is all of it: `≥` where some calls have no price, `unknown` where none has.

    Examples:
        >>> cost_text({"calls": 3, "unpriced_calls": 1, "cost_usd": Decimal("0.5")}, 2)
        '≥ 0.50'
        >>> cost_text({"calls": 3, "unpriced_calls": 3, "cost_usd": Decimal(0)}, 2)
        'unknown'
    """
    if sums["calls"] and sums["unpriced_calls"] == sums["calls"]:
        return "unknown" if name == "cost_usd" else MISSING
    text = usd_text(sums[name], digits)
    return f"≥ {text}" if name == "cost_usd" and sums["unpriced_calls"] else text


def columns(figures: Figures, *, brief: bool = False) -> tuple[str, ...]:
    """The sums that are shown; requests only where a call stands for several.

    Args:
        figures: of what report.
        brief: without the parts of the cost where all of it is measured, and without what is in no row: for narrow tables.
    """
    sums = figures.sums
    names = [name for name in SUMS if name in NUMBERS or name == "unpriced_calls"]
    if sums["requests"] != sums["calls"]:
        names.insert(1, "requests")
    if brief:
        names.remove("tokens")
        told = [name for name in (*NUMBERS[-2:], "unpriced_calls") if (figures.table[name] != 0).any()]
        parts = ["measured_usd", *told] if sums["measured_usd"] != sums["cost_usd"] else told
        names = [name for name in names if name not in (*NUMBERS[-3:], "unpriced_calls") or name in parts]
    return tuple(names)


def numbers(figures: Figures, sums: Mapping[str, Any], names: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Sums as text, in the order of `columns`, or of these."""
    digits = digits_for(figures.sums["cost_usd"])
    shown = columns(figures) if names is None else names
    return tuple(cost_text(sums, digits, name) if name.endswith("_usd") else f"{sums[name]:,}" for name in shown)


def lines(figures: Figures, most: int, names: tuple[str, ...] | None = None) -> list[Line]:
    """The first rows of the table."""
    return [
        Line(
            tuple(label_text(row[name], figures.every if name == "period" else None) for name in figures.keys),
            numbers(figures, row, names),
        )
        for row in figures.table.head(most).iter_rows(named=True)
    ]


def rest(figures: Figures, shown: int, names: tuple[str, ...] | None = None) -> Line | None:
    """`… and N more` and the sum of these, for the rows of the table behind those that are shown; `None` without any."""
    left = figures.table.height - shown
    return Line((f"… and {left:,} more",), numbers(figures, added(figures.table.tail(left)), names)) if left > 0 else None


def added(frame: pl.DataFrame) -> dict[str, Any]:
    """The sums over rows of `spend`."""
    return frame.select(pl.col(SUMS).sum()).row(0, named=True)


def budget_lines(figures: Figures, most: int) -> list[tuple[str, ...]]:
    """The cells of `BUDGET_HEADS`, a ledger in front where there are several; those over their limit first."""
    several = len(figures.ledgers) > 1
    urgent = figures.budgets.sort(pl.col("left") < 0, descending=True, nulls_last=True, maintain_order=True)
    return [
        ((clipped(row["ledger"]),) if several else ()) + _budget_cells(row) for row in urgent.head(most).iter_rows(named=True)
    ]


def _budget_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    unit = "USD" if row["resource"] == "usd" else row["resource"]
    lower = "≥ " if unit == "USD" and row["unpriced_calls"] else ""
    digits = 2 if row["limit"] is None or row["limit"] >= 1 else 4

    def text(value: Decimal | None, rounding: str = ROUND_HALF_EVEN) -> str:
        return MISSING if value is None else usd_text(value, digits, rounding) if unit == "USD" else f"{int(value):,}"

    if row["left"] is not None and row["left"] < 0:
        left = f"{text(-row['left'])} over"
    else:  # rounded down: an amount that is shown is an amount that fits, unless calls without a price have used it up
        left = ("≤ " if lower and row["left"] is not None else "") + text(row["left"], ROUND_FLOOR)
    return (
        clipped(row["budget"]) + (" (closed)" if row["closed"] else ""),
        "none of its own" if row["limit"] is None else f"{text(row['limit'])} {unit}",
        window_text(row["window"]) if row["window"] else "",
        lower + text(row["committed"]),
        text(row["held"]),
        left,
        "" if row["resets"] is None else f"{row['resets']:%Y-%m-%d %H:%M}",
    )
