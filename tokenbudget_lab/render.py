"""A balance as text or SVG: pure functions, shared by the command line, the demo and whoever shows a budget.

Their readers may rely on two things: what a user named is shown and never interpreted (no markup, no control characters), and
nothing is said by colour alone.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from html import escape
from typing import TYPE_CHECKING, Any

from .balance import Balance, LimitBalance
from .errors import money
from .limits import window_text
from .usage import EXACT

if TYPE_CHECKING:
    from rich.text import Text

COMMITTED, HELD, OVER = "#0072B2", "#B37400", "#D55E00"
BLOCKS, ASCII = "█▒!·", "#=!."  # committed, held, over, left
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks that have no width although their category does not say so.
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")
_CENTS_FROM = 1  # USD; below that limit, cents are too coarse to see a budget move


# --- text ----------------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    r"""Make control, bidirectional and zero-width characters visible; all others stay.

    Examples:
        >>> print(escaped("lab\x1b[31m/\u202estudy"))
        lab\x1b[31m/\u202estudy
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(c) if unicodedata.category(c) in _INVISIBLE or c in _BLANKS else c for c in text)


def _visible(c: str) -> str:
    code = ord(c)
    if c in "\n\r\t":
        return repr(c)[1:-1]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004 - as Python writes them


def amount(value: Any, resource: str = "usd", *, scale: Any = None, rounding: str = ROUND_HALF_EVEN) -> str:
    """An amount as people read it; USD to four decimals where the `scale` (a limit, a total) is less than a dollar.

    Examples:
        >>> amount(0.0312, scale=0.05), amount(3.1, scale=5), amount(1200, "tokens")
        ('$0.0312', '$3.10', '1,200 tokens')
    """
    if resource != "usd":
        return f"{value:,} {resource}"
    if scale is not None and 0 < scale < _CENTS_FROM:
        digits = Decimal(str(value)).copy_abs().quantize(Decimal("0.0001"), rounding=rounding, context=EXACT)
        return f"{'-' if value < 0 else ''}${digits}"
    return money(str(value), rounding=rounding)


@dataclass(frozen=True, slots=True)
class Segments:
    """A bar's parts in whole cells; together they are its width."""

    committed: int
    held: int
    over: int
    left: int


def segments(limit: LimitBalance, width: int) -> Segments:
    """Share a bar of `width` cells; over the limit, the bar is as long as what was used and the excess is its end.

    Examples:
        >>> segments(LimitBalance("lab", "tokens", "", 100, 50, 25, None), 20)
        Segments(committed=10, held=5, over=0, left=5)
    """
    used = limit.committed + limit.reserved
    whole = max(limit.limit, used)
    if not whole:
        return Segments(0, 0, 0, width)
    ends = (min(limit.committed, limit.limit), min(used, limit.limit), used)
    committed, held, over = (round(width * end / whole) for end in ends)
    return Segments(committed, held - committed, over - held, width - over)


def bar(limit: LimitBalance, width: int = 24, glyphs: str = BLOCKS) -> str:
    """One limit as a bar of characters: committed, held, over, left.

    Examples:
        >>> bar(LimitBalance("lab", "tokens", "", 100, 50, 25, None), 20)
        '██████████▒▒▒▒▒·····'
    """
    parts = segments(limit, width)
    return "".join(n * glyph for n, glyph in zip((parts.committed, parts.held, parts.over, parts.left), glyphs, strict=True))


def colored_bar(limit: LimitBalance, width: int = 24, glyphs: str = BLOCKS) -> Text:
    """The same bar for rich consoles, in colours beside its shapes."""
    from rich.text import Text

    parts = segments(limit, width)
    cells = zip((parts.committed, parts.held, parts.over, parts.left), glyphs, (COMMITTED, HELD, OVER, "dim"), strict=True)
    return Text.assemble(*((n * glyph, color) for n, glyph, color in cells))


def tightest(balance: Balance) -> LimitBalance | None:
    """The limit that decides, over all resources and ancestors; `None` without any."""
    return max(balance.limits, key=lambda limit: limit.used_fraction, default=None)


def of_limit(limit: LimitBalance, value: Any) -> str:
    """An amount of a limit's resource, as exact as the limit is small."""
    return amount(value, limit.resource, scale=limit.limit)


def left_of(limit: LimitBalance) -> str:
    """What a limit leaves, rounded down: an amount that is shown is an amount that fits.

    Examples:
        >>> left_of(LimitBalance("lab", "usd", "", Decimal(5), Decimal("0.0005"), Decimal(0), None))
        '$4.99'
    """
    return amount(limit.left, limit.resource, scale=limit.limit, rounding=ROUND_FLOOR)


def left_text(limit: LimitBalance) -> str:
    """What one limit leaves, or by how much it is passed.

    Examples:
        >>> left_text(LimitBalance("lab", "tokens", "day", 100, 50, 75, None))
        '25 tokens over 100 tokens per day'
    """
    per = f" per {window_text(limit.window)}" if limit.window else ""
    of = of_limit(limit, limit.limit) + per
    if limit.left < 0:
        return f"{of_limit(limit, -limit.left)} over {of}"
    left = left_of(limit)
    return f"{left.removesuffix(f' {limit.resource}')} of {of} left"


def balance_text(balance: Balance, width: int = 24, glyphs: str = BLOCKS) -> str:
    """A budget in one line: its name, a bar of its tightest limit, and the numbers.

    Args:
        balance: what to show.
        width: of the bar, in cells.
        glyphs: what stands for committed, held, over and left; `ASCII` where nothing else can be shown.
    """
    limit, name = tightest(balance), escaped(balance.budget)
    if limit is None:
        return f"{name}  {_unlimited(balance)}"
    where = "" if limit.budget == balance.budget else f"in {escaped(limit.budget)}: "
    parts = (f"{of_limit(limit, limit.committed)} committed", f"{of_limit(limit, limit.reserved)} held", left_text(limit))
    text = f"{name}  {bar(limit, width, glyphs)}  {where}{' · '.join(parts)}"
    return text if glyphs == BLOCKS else text.replace("·", "-")


def _unlimited(balance: Balance) -> str:
    return f"{amount(balance.committed_usd)} committed, {amount(balance.reserved_usd)} held, no limit"


def sentence(balance: Balance) -> str:
    """A budget in one full sentence, for those who cannot see a bar."""
    name = escaped(balance.budget)
    if not balance.limits:
        return f"Budget {name}: {_unlimited(balance)}."
    told = (
        ("" if limit.budget == balance.budget else f"in {escaped(limit.budget)} ")
        + f"{of_limit(limit, limit.committed)} committed and {of_limit(limit, limit.reserved)} held, {left_text(limit)}"
        for limit in balance.limits
    )
    return f"Budget {name}: {'; '.join(told)}."


# --- SVG -----------------------------------------------------------------------------------------------------------------

_WIDTH, _MARGIN, _HEAD, _ROW, _BAR = 440, 16, 36, 66, 14
_FONT = "font-family=\"system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif\""
_INK, _QUIET, _PAPER, _LINE = "#1f2328", "#57606a", "#ffffff", "#8c959f"
_NAME_FITS, _LABEL_FITS = 44, 26


def gauge_svg(balance: Balance) -> str:
    """A budget as a self-contained SVG: a bar for each limit on its way up, on a card that reads on light and dark pages."""
    rows = balance.limits
    height = _HEAD + max(1, len(rows)) * _ROW
    label = escape(sentence(balance))
    calls = balance.calls_in_flight
    flight = f"{calls} call{'s' if calls != 1 else ''} in flight" if calls else "closed" if balance.closed else ""
    drawn = (_limit_svg(limit, _HEAD + n * _ROW, balance.budget) for n, limit in enumerate(rows))
    inside = "".join(drawn) or _text(_MARGIN, _HEAD + 22, _unlimited(balance))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" '
        f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" {_FONT} font-size="12">'
        f"<title>{label}</title>{_PATTERNS}"
        f'<rect x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8" fill="{_PAPER}" stroke="{_LINE}"/>'
        f"{_text(_MARGIN, 23, _short(balance.budget, _NAME_FITS), size=14, weight=600)}"
        f"{_text(_WIDTH - _MARGIN, 23, flight, ink=_QUIET, anchor='end')}"
        f"{inside}</svg>"
    )


# Held is hatched and over is crossed: the parts differ without their colours. Every gauge of a page may share these.
_PATTERNS = (
    '<defs><pattern id="tbl-held" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    f'<rect width="6" height="6" fill="{HELD}"/><rect width="2" height="6" fill="{_PAPER}" fill-opacity="0.55"/></pattern>'
    '<pattern id="tbl-over" width="8" height="8" patternUnits="userSpaceOnUse">'
    f'<rect width="8" height="8" fill="{OVER}"/><path d="M0 0l8 8M8 0l-8 8" stroke="{_PAPER}" stroke-width="1.2"/>'
    "</pattern></defs>"
)


def _limit_svg(limit: LimitBalance, top: int, budget: str) -> str:
    whole, x, y = _WIDTH - 2 * _MARGIN, _MARGIN, top + 20
    parts = segments(limit, whole)
    where = "" if limit.budget == budget else f" in {_short(limit.budget, _LABEL_FITS)}"
    drawn = [_text(x, top + 12, left_text(limit) + where), _rect(x, y, whole, "#eaeef2")]
    for width, fill in ((parts.committed, COMMITTED), (parts.held, "url(#tbl-held)"), (parts.over, "url(#tbl-over)")):
        drawn.append(_rect(x, y, width, fill) if width else "")
        x += width
    frame = f'<rect x="{_MARGIN}" y="{y}" width="{whole}" height="{_BAR}" fill="none" stroke="{_LINE}"/>'
    below = y + _BAR + 16
    committed = _key(_MARGIN, below, COMMITTED, f"{of_limit(limit, limit.committed)} committed")
    held = _key(_WIDTH // 2, below, "url(#tbl-held)", f"{of_limit(limit, limit.reserved)} held")
    return "".join((*drawn, frame, committed, held))


def _rect(x: int, y: int, width: int, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{_BAR}" fill="{fill}"/>'


def _key(x: int, baseline: int, fill: str, text: str) -> str:
    box = f'<rect x="{x}" y="{baseline - 9}" width="10" height="10" fill="{fill}"/>'
    return box + _text(x + 15, baseline, text, ink=_QUIET)


def _text(x: int, y: int, text: str, *, ink: str = _INK, anchor: str = "start", size: int = 12, weight: int = 400) -> str:
    style = f'fill="{ink}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>' if text else ""


def _short(name: str, fits: int) -> str:
    """A name cut in its middle, because its end tells most."""
    name = escaped(name)
    return name if len(name) <= fits else f"{name[: fits // 3]}…{name[fits // 3 + 1 - fits :]}"
