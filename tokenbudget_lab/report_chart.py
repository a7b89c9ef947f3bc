"""Spend over time as an inline SVG: a bar per period, in colours that the page around it says.

A bar stands where its time is, so that a pause is a gap. Each has a `<title>`, and a question mark above it where calls have no
price and are not in its height. Nothing in it is a link, a script or a reference.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from html import escape
from typing import Any

from .figures import Figures
from .report_cells import cost_text, digits_for, label_text

MOST_PERIODS = 120
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 220, 64, 12, 26, 30
_LABEL_FITS = 8  # characters left of the axis
_PLOT = _HEIGHT - _TOP - _BOTTOM
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "mo": 2_629_746, "q": 7_889_238, "y": 31_556_952}


def chart_svg(figures: Figures) -> str:
    """The newest periods that fit, as bars; empty where no call was made."""
    shown = figures.periods.tail(MOST_PERIODS).rows(named=True)
    if not shown:
        return ""
    top, step = _scale(max(float(row["cost_usd"]) for row in shown))
    first, last = shown[0]["period"], shown[-1]["period"]
    length = length_s(figures.every)
    whole = (last - first).total_seconds() + length
    digits = digits_for(figures.sums["cost_usd"])
    bars = "".join(_bar(row, figures, _place(row["period"], first, whole), length / whole, top, digits) for row in shown)
    label = escape(
        f"Spend per {every_text(figures.every)} in USD, from {label_text(first, figures.every)} to "
        f"{label_text(last, figures.every)} ({figures.tz}); the table below has the numbers."
    )
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="12">'
        f'<text class="quiet" x="0" y="14">USD per {escape(every_text(figures.every))}</text>'
        f"{_grid(top, step)}{bars}{_dates(shown, figures, first, whole, length)}</svg>"
    )


def every_text(every: str) -> str:
    """A length of time in words.

    Examples:
        >>> every_text("1d"), every_text("6h"), every_text("1mo")
        ('day', '6 hours', 'month')
    """
    number = every.rstrip("smhdwqyo")
    unit = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "q": "quarter", "y": "year"}
    name = unit[every[len(number) :]]
    return name if number == "1" else f"{number} {name}s"


# --- its parts ---------------------------------------------------------------------------------------------------------------


def length_s(every: str) -> float:
    """A length of time in seconds, about."""
    number = every.rstrip("smhdwqyo")
    return int(number) * _SECONDS[every[len(number) :]]


def _place(at: datetime, first: datetime, whole: float) -> float:
    return _LEFT + (at - first).total_seconds() / whole * (_WIDTH - _LEFT - _RIGHT)


def _bar(row: dict[str, Any], figures: Figures, x: float, share: float, top: float, digits: int) -> str:
    width = max(1.0, min(share * (_WIDTH - _LEFT - _RIGHT) * 0.86, 48.0))
    cost = float(row["cost_usd"])
    height = max(0.0, _PLOT * cost / top)
    if cost > 0:
        height = max(height, 1.0)  # what was spent is seen
    calls = f"{row['calls']:,} call{'' if row['calls'] == 1 else 's'}"
    unpriced = f", {row['unpriced_calls']:,} without a price" if row["unpriced_calls"] else ""
    title = escape(f"{label_text(row['period'], figures.every)}: USD {cost_text(row, digits)}, {calls}{unpriced}")
    y = _TOP + _PLOT - height
    mark = f'<text class="quiet" text-anchor="middle" x="{x + width / 2:.1f}" y="{y - 4:.1f}">?</text>' if unpriced else ""
    rect = f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    return f"<g><title>{title}</title>{rect}{mark}</g>"


def _scale(most: float) -> tuple[float, float]:
    """Where the axis ends, and the step of its lines: 1, 2 or 5 times a power of ten.

    Examples:
        >>> _scale(7.3), _scale(0)
        ((8.0, 2.0), (1.0, 1.0))
    """
    if most <= 0:
        return 1.0, 1.0
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(power * times for times in (1, 2, 5, 10) if power * times * 4 >= most)
    return step * math.ceil(most / step - 1e-9), step


def _grid(top: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step)))
    drawn = []
    for n in range(round(top / step) + 1):
        y = _TOP + _PLOT - _PLOT * n * step / top
        text = f"{n * step:,.{decimals}f}"
        text = text if len(text) <= _LABEL_FITS else f"{n * step:.3g}"
        drawn.append(
            f'<line class="{"axis" if n == 0 else "grid"}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="quiet" text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>'
        )
    return "".join(drawn)


def _dates(shown: list[dict[str, Any]], figures: Figures, first: datetime, whole: float, length: float) -> str:
    """The first and the last period, and those between that have room."""
    room, drawn, taken = 90.0, [], -1e9
    wide = min(length / whole * (_WIDTH - _LEFT - _RIGHT) * 0.43, 24.0)
    end = _place(shown[-1]["period"], first, whole) + wide
    for n, row in enumerate(shown):
        x = _place(row["period"], first, whole) + wide
        if n not in (0, len(shown) - 1) and (x - taken < room or end - x < room):
            continue
        if n and n == len(shown) - 1 and x - taken < room:
            continue
        taken = x
        text = escape(_date(row["period"], figures.every))
        anchor, at = ("end", _WIDTH - _RIGHT) if x > _WIDTH - 50 else ("middle", x)
        drawn.append(f'<text class="quiet" text-anchor="{anchor}" x="{at:.1f}" y="{_HEIGHT - 10}">{text}</text>')
    return "".join(drawn)


def _date(at: datetime, every: str) -> str:
    if length_s(every) < timedelta(days=1).total_seconds():
        return f"{at:%m-%d %H:%M}"
    return label_text(at, every)
