"""A balance as HTML: pure functions, shared by the widgets and by what a notebook shows of a budget.

Their readers may rely on four things: what a user named is text and never markup; no `$` is taken for mathematics; nothing
is said by colour alone, nor by what a notebook without trust loses; and the page around it decides what is light and dark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape

from .balance import Balance, LimitBalance
from .limits import window_text
from .render import COMMITTED, HELD, OVER, amount, escaped, left_text, of_limit, sentence

_LEAST_SHARE = 0.02  # of a window, before which a pace says nothing
LINE = "rgba(128,128,128,.55)"
# A notebook without trust loses the patterns, and keeps the colours.
_STRIPES = "background-image:repeating-linear-gradient"
FILLS = {
    "committed": f"background-color:{COMMITTED}",
    "held": f"background-color:{HELD};{_STRIPES}(135deg,transparent 0 4px,rgba(255,255,255,.55) 4px 6px)",
    "over": f"background-color:{OVER};{_STRIPES}(45deg,transparent 0 3px,rgba(0,0,0,.55) 3px 5px)",
    "left": "background-color:rgba(128,128,128,.22)",
}
COMMITTED_BAR = FILLS["committed"]
FONT = "font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:13px;line-height:1.5"
CARD = (
    f"box-sizing:border-box;max-width:44em;margin:2px 0;padding:8px 14px 10px;border:1px solid {LINE};border-radius:8px;"
    f"{FONT};white-space:normal;overflow-wrap:anywhere"
)
_ROW = "display:flex;flex-wrap:wrap;align-items:baseline;column-gap:16px"
QUIET, _RULED = "font-size:12px;opacity:.85", f"margin-top:8px;padding-top:6px;border-top:1px solid {LINE}"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of a budget beside its balance.

    Attributes:
        alerts: the fractions of its own limits that it tells about.
        runs_out: when what is left of its tightest limit will be used up at the recent rate; `None` where that is not known.
        trouble: why the balance is not a newer one.
        final: whether it will not change any more here, so that it says of when it is.
    """

    alerts: tuple[float, ...] = ()
    runs_out: datetime | None = None
    trouble: str = ""
    final: bool = False


NOTHING_KNOWN = Outlook()


# --- sentences -----------------------------------------------------------------------------------------------------------


def told(balance: Balance, outlook: Outlook = NOTHING_KNOWN) -> str:
    """A budget in full sentences: all that the picture says.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     told(ledger.budget("study", usd=5).balance)
        'Budget study: $0.00 committed and $0.00 held, $5.00 of $5.00 left.'
    """
    windows = (_window_told(limit, balance.at) for limit in balance.limits if limit.ends is not None)
    besides = (f"{text[0].upper()}{text[1:]}" for text in _besides(balance, outlook))
    return " ".join([sentence(balance), *(f"{text}." for text in (*windows, *besides))])


def at(moment: datetime) -> str:
    """A moment, to the second.

    Examples:
        >>> from datetime import UTC
        >>> at(datetime(2026, 11, 28, 14, 2, tzinfo=UTC))
        '2026-11-28 14:02:00 UTC'
    """
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def pace_of(limit: LimitBalance, now: datetime) -> float | None:
    """What is committed relative to an even spending of its window; `None` without one, and at its very beginning.

    Examples:
        >>> from datetime import UTC
        >>> day = datetime(2026, 11, 28, tzinfo=UTC)
        >>> pace_of(LimitBalance("lab", "tokens", "day", 100, 75, 0, day + timedelta(days=1), day), day + timedelta(hours=12))
        1.5
    """
    if limit.begins is None or limit.ends is None or not limit.limit:
        return None
    share = (now - limit.begins) / (limit.ends - limit.begins)
    return None if share < _LEAST_SHARE else float(limit.committed) / float(limit.limit) / min(share, 1.0)


def in_time(span: timedelta) -> str:
    """A length of time, about.

    Examples:
        >>> in_time(timedelta(seconds=20)), in_time(timedelta(minutes=95)), in_time(timedelta(days=3))
        ('less than a minute', 'about 2 hours', 'about 3 days')
    """
    for unit, length in (("day", timedelta(days=1)), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1))):
        number = round(span / length)
        if number >= 1 and span >= length:
            return f"about {number:,} {unit}{'' if number == 1 else 's'}"
    return "less than a minute"


def _window_told(limit: LimitBalance, now: datetime) -> str:
    pace = pace_of(limit, now)
    paced = "" if pace is None else f", at a pace of {pace:.1f} (1 is even)"
    return f"The {window_text(limit.window)} of {escaped(limit.budget)} ends {limit.ends:%Y-%m-%d %H:%M} UTC{paced}"


def _window(limit: LimitBalance, now: datetime) -> str:
    """Which window a limit counts in, until when, and how fast it is spent; empty without one."""
    if limit.ends is None:
        return ""
    pace = pace_of(limit, now)
    paced = "" if pace is None else f" · pace {pace:.1f} (1 is even)"
    return f"per {window_text(limit.window)}, until {limit.ends:%Y-%m-%d %H:%M} UTC{paced}"


def _besides(balance: Balance, outlook: Outlook) -> list[str]:
    """What is to be said beside the amounts."""
    said = []
    if calls := balance.calls_in_flight:
        said.append(f"{calls:,} call{'' if calls == 1 else 's'} in flight")
    if balance.unpriced_calls:
        said.append(f"{balance.unpriced_calls:,} without a known cost, not in the amount")
    if outlook.runs_out is not None and not outlook.final:
        said.append(f"at this rate used up in {in_time(outlook.runs_out - balance.at)}")
    if balance.closed:
        said.append("closed, takes no new calls")
    return said


def crossed(balance: Balance, alerts: tuple[float, ...]) -> list[str]:
    """Of each of its own limits the highest alert that what is committed has reached, as a text.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     study = ledger.budget("study", tokens=100)
        ...     receipt = study.record(tokens=85).result()
        ...     crossed(study.balance, (0.5, 0.8, 1.0))
        ['80% of 100 tokens is spent']
    """
    found = []
    for limit in (limit for limit in balance.limits if limit.budget == balance.budget and limit.limit):
        reached = [alert for alert in alerts if float(limit.committed) >= alert * float(limit.limit)]
        if reached:
            per = f" per {window_text(limit.window)}" if limit.window else ""
            found.append(f"{max(reached):.0%} of {of_limit(limit, limit.limit)}{per} is spent")
    return found


# --- HTML ----------------------------------------------------------------------------------------------------------------


def gauge_html(balance: Balance, outlook: Outlook = NOTHING_KNOWN) -> str:
    """A budget as HTML that needs nothing around it: a meter for each limit on its way up, and its amounts in words.

    Args:
        balance: what to show.
        outlook: what is known beside it.
    """
    own = [limit for limit in balance.limits if limit.budget == balance.budget]
    others = [limit for limit in balance.limits if limit.budget != balance.budget]
    inside = "".join(_limit(limit, balance, outlook.alerts) for limit in (*own, *others))
    if not inside:
        inside = _block(f"{amount(balance.committed_usd)} committed, {amount(balance.reserved_usd)} held, no limit")
    besides = _besides(balance, outlook)
    if besides and not (outlook.final and not outlook.trouble):
        inside += _block(" · ".join(besides))
    for said in crossed(balance, outlook.alerts):
        inside += _block(f"▲ Alert: {said}", "font-weight:600")
    if outlook.trouble:
        inside += _block(f"✕ {outlook.trouble}", "font-weight:600")
        inside += _block(f"What is shown was read {at(balance.at)}; what has happened since is not known here.")
    elif outlook.final:
        inside += _block(f"As of {at(balance.at)}. {told(balance, outlook)}", f"{QUIET};{_RULED}")
    name = f'<div style="font-weight:600;font-size:14px">{text_html(escaped(balance.budget))}</div>'
    return f'<div class="tokenbudget mathjax_ignore tex2jax_ignore" style="{CARD}">{name}{inside}</div>'


def _limit(limit: LimitBalance, balance: Balance, alerts: tuple[float, ...]) -> str:
    own, left = limit.budget == balance.budget, left_text(limit)
    keys = [("committed", f"{of_limit(limit, limit.committed)} committed"), ("held", f"{of_limit(limit, limit.reserved)} held")]
    keys.append(("over" if limit.left < 0 else "left", left))
    over = " · ".join(filter(None, ("" if own else f"in {escaped(limit.budget)}", _window(limit, balance.at))))
    caption = f'<div style="{QUIET};margin-top:6px">{text_html(over)}</div>' if over else ""
    meter = meter_html(limit, balance.budget, alerts if own else ())
    return f'{caption}{meter}<div style="{_ROW}">{"".join(key_html(*key) for key in keys)}</div>'


def meter_html(limit: LimitBalance, budget: str, alerts: tuple[float, ...] = (), style: str = "margin:6px 0 4px") -> str:
    """One limit as a bar, which says in a sentence what it shows.

    Args:
        limit: which.
        budget: whose balance it is part of.
        alerts: fractions of it that are marked.
        style: where it stands in its surroundings.
    """
    amounts = f"{of_limit(limit, limit.committed)} committed and {of_limit(limit, limit.reserved)} held, {left_text(limit)}"
    said = f"Budget {escaped(budget)}: {'' if limit.budget == budget else f'in {escaped(limit.budget)} '}{amounts}."
    used = min(100.0, 100 * limit.used_fraction)
    return (
        f'<div role="meter" aria-label="{escape(_name(limit))}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{used:.1f}" aria-valuetext="{escape(said)}" style="position:relative;display:flex;height:12px;'
        f'{style};border:1px solid {LINE};border-radius:4px;overflow:hidden;{FILLS["left"]}">'
        f"{_parts(limit)}{_marks(limit, alerts)}</div>"
    )


def _name(limit: LimitBalance) -> str:
    """A meter's name: whose, of what, per which window."""
    unit = "USD" if limit.resource == "usd" else limit.resource
    return f"Limit of {escaped(limit.budget)}, {unit}" + (f" per {window_text(limit.window)}" if limit.window else "")


def _parts(limit: LimitBalance) -> str:
    """The bar's parts; over the limit, the bar is as long as what was used and the excess is its end."""
    committed, used, most = float(limit.committed), float(limit.committed + limit.reserved), float(limit.limit)
    whole = max(most, used) or 1.0
    ends = (min(committed, most), min(used, most), used)
    drawn, before = "", 0.0
    for part, end in zip(("committed", "held", "over"), ends, strict=True):
        if end > before:
            drawn += f'<span style="width:{100 * (end - before) / whole:.2f}%;{FILLS[part]}"></span>'
        before = max(before, end)
    return drawn


def _marks(limit: LimitBalance, alerts: tuple[float, ...]) -> str:
    """A thin line where each alert is told, as long as the bar's end is the limit."""
    style = "position:absolute;top:0;bottom:0;width:0;border-left:1px dashed currentColor;opacity:.7"
    inside = [alert for alert in alerts if 0 < alert < 1] if limit.left >= 0 else []
    return "".join(f'<span style="{style};left:{100 * alert:.1f}%"></span>' for alert in inside)


def key_html(part: str, text: str) -> str:
    """What a part of a bar stands for."""
    swatch = (
        f"display:inline-block;width:10px;height:10px;margin-right:6px;border-radius:2px;border:1px solid {LINE};{FILLS[part]}"
    )
    return f'<span><span style="{swatch}"></span>{text_html(text)}</span>'


def alert_html(text: str) -> str:
    """An alert as a line under a cell."""
    return (
        f'<div class="tokenbudget mathjax_ignore tex2jax_ignore" style="{FONT};font-weight:600">{text_html(f"▲ {text}")}</div>'
    )


def _block(text: str, style: str = "") -> str:
    return f'<div style="margin-top:4px;{style}">{text_html(text)}</div>'


def text_html(text: str) -> str:
    """Text as HTML in which no two dollar signs stand in one piece, which notebooks would typeset."""
    return re.sub(r"\$", "<span>$</span>", escape(text))
