"""A ledger as HTML, in the parts that a dashboard moves one by one: pure functions, with the same four promises as `meters`.

However much a ledger has, a part has a bounded number of rows, and says how many it left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from html import escape
from typing import Any, NamedTuple

from .balance import Balance, LimitBalance
from .limits import path_of
from .meters import CARD, COMMITTED_BAR, FONT, LINE, QUIET, at, key_html, meter_html, text_html
from .overseeing import Sight
from .overview import MOST_GROUPS, Overview, Refusal, Running
from .render import amount, balance_text, left_text, of_limit
from .report_cells import MISSING, added, clipped, cost_text, digits_for, label_text, usd_text
from .report_chart import every_text, length_s

MOST_BUDGETS, MOST_PERIODS, MOST_NAME = 12, 60, 60
_INDENT_EM, _DEEPEST = 0.9, 6
_HEAD = "font-weight:600;margin:10px 0 4px"
_BOX = f"{FONT};white-space:normal;overflow-wrap:anywhere"
_TABLE = "width:100%;border-collapse:collapse;margin:0;font-size:13px;table-layout:auto;border:none"
_CELL = (
    f"text-align:{{side}};padding:3px 6px 3px 0;border:none;border-bottom:1px solid {LINE};vertical-align:top;background:none"
)
_ROW = "background:none"
_NUMBER = "font-variant-numeric:tabular-nums"


class Parts(NamedTuple):
    """A dashboard's parts, from its top to its end."""

    budgets: str
    over_time: str
    by: str
    calls: str


def parts_of(sight: Sight, where: str, *, final: bool = False) -> Parts:
    """A look at a ledger as the parts of a dashboard.

    Args:
        sight: what was seen.
        where: which ledger it is.
        final: whether it will not change any more here, so that it says of when it is.
    """
    calls = sight.calls
    waits = f'<div style="{QUIET}">reading …</div>' if not sight.trouble else ""
    over_time = _section("Spend over time", over_time_html(calls) if calls else waits)
    by = by_html(calls) if calls else ""
    if calls and final:  # else the choice stands there
        by = _section(f"Spend by {clipped(calls.by.name, MOST_NAME)}", by)
    below = (
        _section("Running now", running_html(calls, sight.at)) + _section("Last refusals", refused_html(calls)) if calls else ""
    )
    return Parts(
        _box(f"{_top(sight, where, final=final)}{budgets_html(sight.balances)}"), _box(over_time), _box(by), _box(below)
    )


def dashboard_html(sight: Sight, where: str) -> str:
    """A look at a ledger as HTML that needs nothing around it, and says of when it is."""
    top, *others = parts_of(sight, where, final=True)
    columns = "".join(f'<div style="flex:1 1 20em;min-width:0">{part}</div>' for part in others[:2])
    inside = f'{top}<div style="display:flex;flex-wrap:wrap;column-gap:28px">{columns}</div>{others[2]}'
    wide = CARD.replace("max-width:44em", "max-width:60em")
    return f'<div class="tokenbudget-dashboard mathjax_ignore tex2jax_ignore" style="{wide}">{inside}</div>'


def dashboard_text(sight: Sight, where: str) -> str:
    """The same as lines of text: a line for each budget."""
    shown, more = _chosen(sight.balances)
    lines = [f"Ledger {clipped(where, 200)}, as of {at(sight.at)}"]
    lines += [sight.trouble] if sight.trouble else []
    lines += [balance_text(balance) for balance in shown] or ["no budgets yet"]
    return "\n".join([*lines, *([f"… and {more:,} more"] if more else [])])


def _box(inside: str) -> str:
    return f'<div class="tokenbudget mathjax_ignore tex2jax_ignore" style="{_BOX}">{inside}</div>' if inside else ""


def _section(name: str, inside: str) -> str:
    return f'<div role="heading" aria-level="3" style="{_HEAD}">{text_html(name)}</div>{inside}'


def _quiet(text: str) -> str:
    return f'<div style="{QUIET};margin-top:3px">{text_html(text)}</div>'


# --- its head ------------------------------------------------------------------------------------------------------------


def _top(sight: Sight, where: str, *, final: bool) -> str:
    """Which ledger it is, what it came to in all, and why there is nothing newer."""
    said = [f"{sum(each.calls_in_flight for each in _tops(sight.balances)):,} in flight"]
    if sight.calls is not None:
        total = sight.calls.total
        said.insert(0, f"{total['calls']:,} call{'' if total['calls'] == 1 else 's'}")
        said.insert(0, f"{cost_text(total, digits_for(total['cost_usd']))} USD spent")
    html = (
        '<div style="display:flex;flex-wrap:wrap;justify-content:space-between;column-gap:20px;align-items:baseline">'
        f'<div role="heading" aria-level="2" style="font-weight:600;font-size:15px">{text_html(_file(where))}</div>'
        f'<div style="{_NUMBER}">{text_html(" · ".join(said))}</div></div>'
    )
    if sight.trouble:
        html += f'<div style="font-weight:600;margin-top:4px">{text_html(f"✕ {clipped(sight.trouble, 400)}")}</div>'
        html += _quiet(f"What is shown was read {at(sight.at)}; what has happened since is not known here.")
    elif final:
        html += _quiet(f"As of {at(sight.at)}.")
    if sight.unread:
        html += _quiet(f"The balances are newer than what is told of calls: {clipped(sight.unread, 200)}")
    return html


def _file(where: str) -> str:
    """A ledger's name without its folders; the notebook's reader knows those."""
    return f"Ledger {clipped(where.replace(chr(92), '/').rpartition('/')[2] or where, MOST_NAME)}"


def _tops(balances: Iterable[Balance]) -> list[Balance]:
    """Budgets that are part of no other one."""
    return [balance for balance in balances if "/" not in balance.budget]


# --- budgets -------------------------------------------------------------------------------------------------------------


def budgets_html(balances: Sequence[Balance]) -> str:
    """The tree of budgets: for each limit of its own a meter, and its amounts."""
    if not balances:
        return _quiet("No budgets yet.")
    shown, more = _chosen(balances)
    keys = (("committed", "committed"), ("held", "held"), ("over", "over the limit"), ("left", "left"))
    legend = "".join(key_html(*key) for key in keys)
    rows = "".join(_budget(balance) for balance in shown)
    rest = _quiet(f"… and {more:,} more budget{'' if more == 1 else 's'}, less used than these") if more else ""
    return (
        f'<div style="display:flex;flex-wrap:wrap;column-gap:16px;{QUIET};margin:6px 0 2px">{legend}</div>'
        f'<div role="list" aria-label="Budgets">{rows}</div>{rest}'
    )


def _chosen(balances: Sequence[Balance]) -> tuple[list[Balance], int]:
    """The budgets that are shown, in their order, and how many are not: those in use and the fullest, with what they are in."""
    if len(balances) <= MOST_BUDGETS:
        return list(balances), 0
    ranked = sorted(
        balances, key=lambda each: (not each.calls_in_flight, -max((x.used_fraction for x in _own(each)), default=0))
    )
    names: set[str] = set()
    for balance in ranked:
        path = names.union(path_of(balance.budget))
        if len(path) <= MOST_BUDGETS:
            names = path
    shown = [balance for balance in balances if balance.budget in names]
    return shown, len(balances) - len(shown)


def own_limits(balances: Iterable[Balance]) -> tuple[LimitBalance, ...]:
    """The limits of budgets, each of them once; those of closed ones cannot be changed."""
    return tuple(limit for balance in balances if not balance.closed for limit in _own(balance))


def _own(balance: Balance) -> list[LimitBalance]:
    return [limit for limit in balance.limits if limit.budget == balance.budget]


def _budget(balance: Balance) -> str:
    parent, slash, leaf = clipped(balance.budget, MOST_NAME).rpartition("/")
    depth = min(balance.budget.count("/"), _DEEPEST)
    besides = [f"{balance.calls_in_flight:,} in flight"] if balance.calls_in_flight else []
    besides += [f"{balance.unpriced_calls:,} without a known cost, not in the amount"] if balance.unpriced_calls else []
    besides += ["closed"] if balance.closed else []
    beside = text_html(" · ".join(besides))
    name = f'<span style="opacity:.85">{text_html(parent + slash)}</span><span style="font-weight:600">{text_html(leaf)}</span>'
    limits = "".join(_limit(limit) for limit in _own(balance)) or _unlimited(balance)
    return (
        '<div role="listitem" style="display:flex;flex-wrap:wrap;align-items:center;column-gap:16px;'
        f'padding:3px 0;border-top:1px solid {LINE}">'
        f'<div style="flex:2 1 15em;min-width:0;padding-left:{depth * _INDENT_EM:.1f}em;box-sizing:border-box">'
        f'<bdi>{name}</bdi> <span style="{QUIET};margin-left:6px">{beside}</span></div>'
        f'<div style="flex:3 1 26em;min-width:0">{limits}</div></div>'
    )


def _limit(limit: LimitBalance) -> str:
    amounts = f"{of_limit(limit, limit.committed)} · {of_limit(limit, limit.reserved)} held · {left_text(limit)}"
    return (
        '<div style="display:flex;flex-wrap:wrap;align-items:center;column-gap:12px">'
        f"{meter_html(limit, limit.budget, style='flex:1 1 7em;margin:3px 0')}"
        f'<div style="flex:3 1 21em;{_NUMBER}">{text_html(amounts)}</div></div>'
    )


def _unlimited(balance: Balance) -> str:
    said = f"{amount(balance.committed_usd)} · {amount(balance.reserved_usd)} held · no limit of its own"
    return f"<div>{text_html(said)}</div>"


# --- spend ---------------------------------------------------------------------------------------------------------------


def over_time_html(calls: Overview) -> str:
    """A bar for each of the newest periods, where its time is; of tokens, where no cost is known."""
    shown = calls.periods.tail(MOST_PERIODS)
    if not shown.height:
        return _quiet("No calls yet.")
    name = "cost_usd" if calls.total["cost_usd"] else "tokens"
    rows, length = shown.rows(named=True), length_s(calls.every)
    first, last = rows[0]["period"], rows[-1]["period"]
    whole = (last - first).total_seconds() + length
    most = max(rows, key=lambda row: float(row[name]))
    top = float(most[name]) or 1.0
    bars = "".join(
        f'<div style="position:absolute;bottom:0;left:{100 * (row["period"] - first).total_seconds() / whole:.2f}%;'
        f"width:{max(0.4, 92 * length / whole):.2f}%;max-width:28px;min-width:2px;height:{100 * float(row[name]) / top:.1f}%;"
        f'{COMMITTED_BAR}"></div>'
        for row in rows
    )
    every, highest = every_text(calls.every), f"{_amount(most, name, calls)} at {_when(most['period'], calls.every)}"
    unit = "USD" if name == "cost_usd" else "tokens"
    lacking = calls.total["unpriced_calls"] if name == "cost_usd" else 0
    unpriced = f", {lacking:,} call{'' if lacking == 1 else 's'} without a known cost left out" if lacking else ""
    begins, ends = _when(first, calls.every), _when(last, calls.every)
    said = f"{unit} per {every}, from {begins} to {ends} UTC; the most is {highest}{unpriced}"
    return (
        f'<div style="{QUIET}">{text_html(f"{unit} per {every}, the most {highest}{unpriced}")}</div>'
        f'<div role="img" aria-label="{escape(said)}" style="position:relative;height:76px;margin-top:6px;'
        f'border-bottom:1px solid {LINE}">{bars}</div>'
        f'<div style="display:flex;justify-content:space-between;{QUIET}"><span>{begins}</span>'
        f"<span>{ends} UTC</span></div>"
    )


def _when(moment: datetime, every: str) -> str:
    """A period's beginning, as exactly as it is long."""
    return (
        f"{moment:%H:%M:%S}"
        if every.endswith("s")
        else f"{moment:%H:%M}"
        if every.endswith("m")
        else f"{moment:%m-%d %H:%M}"
        if every.endswith("h")
        else f"{moment:%Y-%m-%d}"
    )


def _amount(sums: dict[str, Any], name: str, calls: Overview) -> str:
    return usd_text(sums[name], digits_for(calls.total[name])) if name == "cost_usd" else f"{sums[name]:,}"


def by_html(calls: Overview) -> str:
    """A row for each of the labels that cost most; the others are summed in one."""
    groups, more = calls.groups.head(MOST_GROUPS), calls.groups.slice(MOST_GROUPS)
    if not groups.height:
        return _quiet("No calls yet.")
    digits = digits_for(calls.total["cost_usd"])
    top = max(float(value) for value in groups["cost_usd"]) or 1.0
    rows = [
        (_labelled(label_text(row["label"]), float(row["cost_usd"]) / top), *_sums(row, digits))
        for row in groups.iter_rows(named=True)
    ]
    if more.height:
        rows.append((text_html(f"… and {more.height:,} more"), *_sums(added(more.drop("label")), digits)))
    return _table(f"Spend by {clipped(calls.by.name, MOST_NAME)}", (calls.by.name, "Calls", "Tokens", "USD"), rows, 3)


def _sums(sums: dict[str, Any], digits: int) -> tuple[str, str, str]:
    return f"{sums['calls']:,}", f"{sums['tokens']:,}", cost_text(sums, digits)


def _labelled(label: str, share: float) -> str:
    bar = (
        f'<div style="height:4px;margin-top:2px;width:{max(0.5, 100 * share):.1f}%;{COMMITTED_BAR}"></div>' if share > 0 else ""
    )
    return f"<bdi>{text_html(clipped(label, MOST_NAME))}</bdi>{bar}"


# --- calls ---------------------------------------------------------------------------------------------------------------


def running_html(calls: Overview, now: datetime) -> str:
    """The oldest calls that have not ended: for how long they run, and what they hold."""
    if not calls.running_in_all:
        return _quiet("No call is running.")
    rows = [
        (_whole(age(now - each.since)), *map(text_html, (_short(each.budget), _short(each.model), _held(each))))
        for each in calls.running
    ]
    more = calls.running_in_all - len(rows)
    rest = _quiet(f"… and {more:,} more, younger than these") if more > 0 else ""
    return _table("Running now", ("For", "Budget", "Model", "Held"), rows, 1) + rest


def age(span: timedelta) -> str:
    """For how long something runs.

    Examples:
        >>> age(timedelta(seconds=42.7)), age(timedelta(minutes=3, seconds=5)), age(timedelta(hours=2, minutes=5))
        ('42 s', '3 min 5 s', '2 h 5 min')
    """
    seconds = max(0, int(span.total_seconds()))
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours:,} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _whole(text: str) -> str:
    """A text that stays on one line."""
    return f'<span style="white-space:nowrap">{text_html(text)}</span>'


def _short(name: str | None) -> str:
    return MISSING if name is None else clipped(name, MOST_NAME)


def _held(each: Running) -> str:
    held = [] if each.usd is None else [amount(each.usd, scale=each.usd)]
    held += [] if each.tokens is None else [f"{each.tokens:,} tokens"]
    return " · ".join(held) or (MISSING if each.requests is None else f"{each.requests:,} requests")


def refused_html(calls: Overview) -> str:
    """The newest reserves that did not fit, and why."""
    if not calls.refused:
        return _quiet("Nothing was refused.")
    rows = [(_whole(f"{each.at:%H:%M:%S}"), *map(text_html, (_short(each.budget), _why(each)))) for each in calls.refused]
    more = calls.refused_in_all - sum(each.count for each in calls.refused)
    rest = _quiet(f"… and {more:,} before these") if more > 0 else ""
    return _table("Last refusals", ("At (UTC)", "Budget", "Why"), rows, 0) + rest


def _why(each: Refusal) -> str:
    where = "" if each.by == each.budget else f" in {clipped(each.by, MOST_NAME)}"
    if each.requested is None or each.left is None:
        return f"{each.count:,} more for the same reason{where}"
    asked = amount(each.requested, each.resource, scale=each.limit)
    left = amount(each.left, each.resource, scale=each.limit)
    return f"{asked} requested, {left} of {amount(each.limit, each.resource, scale=each.limit)} left{where}"


# --- tables --------------------------------------------------------------------------------------------------------------


def _table(name: str, heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table, of which so many last columns are numbers."""
    texts = len(heads) - numbers

    def cell(tag: str, n: int, inside: str, more: str = "") -> str:
        style = _CELL.format(side="right" if n >= texts else "left") + (f";{_NUMBER};white-space:nowrap" if n >= texts else "")
        return f'<{tag}{more} style="{style}">{inside}</{tag}>'

    head = "".join(
        cell("th", n, f'<span style="{QUIET};white-space:nowrap">{text_html(clipped(text, MOST_NAME))}</span>', ' scope="col"')
        for n, text in enumerate(heads)
    )
    body = "".join(f'<tr style="{_ROW}">{"".join(cell("td", n, inside) for n, inside in enumerate(row))}</tr>' for row in rows)
    return (
        f'<table aria-label="{escape(name)}" style="{_TABLE}"><thead style="border:none"><tr style="{_ROW}">{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
