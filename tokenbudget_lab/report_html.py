"""A report as one HTML file that asks for nothing: no script, no link, no font, no picture from elsewhere.

Whatever the data, it stays under 200 kB: rows are written while there is room, and the others are counted and summed in one.
What users named is text and nothing else: it is no markup, and no maths for a notebook that typesets dollars.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from html import escape
from typing import TypeVar

from .figures import Figures
from .report_cells import (
    BUDGET_HEADS,
    HEADS,
    Line,
    added,
    budget_lines,
    clipped,
    columns,
    cost_text,
    digits_for,
    label_text,
    lines,
    numbers,
    rest,
)
from .report_chart import MOST_PERIODS, chart_svg, every_text
from .report_methods import as_of, methods, notes, warnings

MOST_ROWS, MOST_BUDGETS, MOST_LEDGERS = 500, 100, 10
MOST_BYTES, _BUDGET_BYTES = 195_000, 20_000
_FRAME = 4_000  # bytes of a table around its rows, its caption and the row for those left out included
_ON_ONE_LINE = 24  # characters of a label
T = TypeVar("T")
_MATHS = str.maketrans({"$": "<span>$</span>", "\\": "<span>\\</span>"})
_STYLE = """
.tbl-report{--ink:#1f2328;--quiet:#57606a;--paper:#fff;--line:#d0d7de;--bar:#0072B2;--warn:#a33b00;--band:#f6f8fa;
color:var(--ink);background:var(--paper);font:15px/1.5 system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;
max-width:72rem;margin:0 auto;padding:1.5rem}
@media (prefers-color-scheme:dark){.tbl-report{--ink:#e6edf3;--quiet:#9da7b3;--paper:#0d1117;--line:#3d444d;--bar:#56B4E9;
--warn:#ff9a5c;--band:#161b22}}
.tbl-report h1{font-size:1.6rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
.tbl-report h2{font-size:1.15rem;margin:2rem 0 .5rem}
.tbl-report p{margin:.5rem 0;overflow-wrap:anywhere}
.tbl-report .quiet{color:var(--quiet);fill:var(--quiet)}
.tbl-report .warn{border-left:4px solid var(--warn);padding:.25rem .75rem}
.tbl-report .over{color:var(--warn);font-weight:600}
.tbl-report .wide{overflow-x:auto}
.tbl-report table{border-collapse:collapse;width:100%;font-size:.875rem}
.tbl-report caption{text-align:left;color:var(--quiet);padding:.25rem 0}
.tbl-report th,.tbl-report td{padding:.3rem .5rem;border-bottom:1px solid var(--line);vertical-align:top;text-align:left}
.tbl-report td{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.tbl-report td.t{text-align:left;white-space:normal}
.tbl-report thead th{border-bottom:2px solid var(--quiet);vertical-align:bottom}
.tbl-report tbody th{font-weight:400;overflow-wrap:anywhere;min-width:6rem}
.tbl-report th.s{white-space:nowrap}
.tbl-report tfoot th,.tbl-report tfoot td{font-weight:600;border-top:2px solid var(--quiet)}
.tbl-report tr.more{background:var(--band);font-style:italic}
.tbl-report th.n{text-align:right}
.tbl-report figure{margin:0}
.tbl-report svg{display:block;width:100%;min-width:34rem;max-width:56rem;height:auto}
.tbl-report dl{display:flex;flex-wrap:wrap;gap:.5rem 2.5rem;margin:1rem 0}
.tbl-report dl div{display:flex;flex-direction:column-reverse}
.tbl-report dt{color:var(--quiet);font-size:.875rem}
.tbl-report dd{margin:0;font-size:1.5rem;font-weight:600;line-height:1.2;font-variant-numeric:tabular-nums}
.tbl-report .bar{fill:var(--bar)}
.tbl-report .grid{stroke:var(--line)}
.tbl-report .axis{stroke:var(--quiet)}
@media print{.tbl-report{--ink:#000;--quiet:#444;--paper:#fff;--line:#bbb;--bar:#0072B2;--warn:#8a3200;--band:#f3f3f3;
max-width:none;padding:0;font-size:10pt;print-color-adjust:exact}
.tbl-report svg{min-width:0}.tbl-report th.s{white-space:normal}
.tbl-report table{font-size:8pt}.tbl-report th,.tbl-report td{padding:.2rem .3rem}.tbl-report .wide{overflow:visible}
.tbl-report tr,.tbl-report figure{break-inside:avoid}.tbl-report thead{display:table-header-group}
.tbl-report tfoot{display:table-row-group}.tbl-report h2{break-after:avoid}.tbl-report details{display:none}}
"""
_PAGE_STYLE = "html{color-scheme:light dark}body{margin:0}@media (prefers-color-scheme:dark){body{background:#0d1117}}"


def page(figures: Figures) -> str:
    """The whole report as a page of its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(clipped(figures.title, 200))}</title>\n<style>{_PAGE_STYLE}</style>\n</head>\n<body>\n"
        f"{fragment(figures, 'main')}\n</body>\n</html>\n"
    )


def _policy() -> str:
    """What a browser may do with the page: apply these two styles, known by their hashes, and nothing else."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" for style in (_PAGE_STYLE, _STYLE))
    return f"default-src 'none'; style-src {hashes}; base-uri 'none'; form-action 'none'"


def fragment(figures: Figures, element: str = "div", most_rows: int = MOST_ROWS) -> str:
    """The report as a part of another page, such as a notebook's, whose style it leaves alone."""
    warned = "".join(f'<p class="warn">{_p(warning)}</p>' for warning in warnings(figures))
    noted = "".join(f"<li>{_p(note)}</li>" for note in notes(figures))
    before = (
        f'<{element} class="tbl-report mathjax_ignore tex2jax_ignore"><style>{_STYLE}</style>'
        f"<h1>{_p(clipped(figures.title, 200))}</h1>"
        f'<p class="quiet">{_p(clipped(figures.scope, 400))}{_ledgers(figures)}</p>'
        f"{warned}{_key_figures(figures)}<p>{_p(methods(figures))}</p>"
        f"{f'<ul>{noted}</ul>' if noted else ''}"
        f"{_chart(figures)}"
    )
    behind = (
        f"{_budgets(figures)}"
        '<p class="quiet">Amounts are rounded for reading. The CSV, JSON and Parquet files of this report are exact.</p>'
        f"</{element}>"
    )
    return before + _table(figures, most_rows, MOST_BYTES - len((before + behind).encode())) + behind


# --- its parts ---------------------------------------------------------------------------------------------------------------


def _p(text: str) -> str:
    """A text that may have any characters, as text; `$` and the backslash in elements of their own, which typesets nothing."""
    return escape(text).translate(_MATHS)


def _key_figures(figures: Figures) -> str:
    """What one wants to know first: what it came to, and of how many calls."""
    sums = figures.sums
    told = [("USD", cost_text(sums, digits_for(sums["cost_usd"]))), ("calls", f"{sums['calls']:,}")]
    told += [("tokens", f"{sums['tokens']:,}")] if figures.untold_calls < sums["calls"] else []
    told += [("calls without a price", f"{sums['unpriced_calls']:,}")] if sums["unpriced_calls"] else []
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in told)}</dl>"


def _ledgers(figures: Figures) -> str:
    if not figures.ledgers:
        return ""
    named = ", ".join(_p(clipped(name, 100)) for name in figures.ledgers[:MOST_LEDGERS])
    more = len(figures.ledgers) - MOST_LEDGERS
    return f" Ledger{'s' if len(figures.ledgers) > 1 else ''}: {named}{f' … and {more:,} more' if more > 0 else ''}."


def _table(figures: Figures, most_rows: int, room: int) -> str:
    heads = "".join(f'<th scope="col">{_p(clipped(name.capitalize(), 60))}</th>' for name in figures.keys)
    heads = heads or '<th scope="col"></th>'
    heads += _heads(columns(figures))
    span = max(1, len(figures.keys))
    total = _row(Line(("Total",), numbers(figures, figures.sums)), span)
    rows = _fitting(lines(figures, most_rows), _row, room - len((heads + total).encode()) - _FRAME)
    more = rest(figures, len(rows))
    cut = f"; the first {len(rows):,} of {figures.table.height:,} rows, the others are summed in one" if more else ""
    if more:
        rows.append(_row(more, span, "more"))
    return (
        f"<h2>Spend</h2><div {_region('Spend')}><table>"
        f"<caption>{_p(clipped(figures.title, 200))}, in USD{cut}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows) if figures.keys else ''}</tbody><tfoot>{total}</tfoot></table></div>"
    )


def _region(name: str) -> str:
    """What scrolls sideways in a narrow window; whoever has no mouse gets there with the tab key."""
    return f'class="wide" role="region" tabindex="0" aria-label="{name}"'


def _heads(names: Sequence[str]) -> str:
    return "".join(f'<th scope="col" class="n">{HEADS[name]}</th>' for name in names)


def _row(line: Line, span: int = 1, kind: str = "") -> str:
    spanned = f' colspan="{span}"' if span > 1 else ""
    labels = "".join(f'<th scope="row"{spanned}{_short(label)}><bdi>{_p(label)}</bdi></th>' for label in line.labels)
    cells = "".join(f"<td>{_p(number)}</td>" for number in line.numbers)
    return f"<tr{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{labels}{cells}</tr>"


def _short(label: str) -> str:
    """What marks a label that stands on one line where there is room to scroll."""
    return ' class="s"' if len(label) <= _ON_ONE_LINE else ""


def _fitting(lines: Iterable[T], row: Callable[[T], str], room: int) -> list[str]:
    """As many rows as there is room for, in bytes."""
    fitting: list[str] = []
    for line in lines:
        drawn = row(line)
        room -= len(drawn.encode())
        if room < 0:
            break
        fitting.append(drawn)
    return fitting


def _chart(figures: Figures) -> str:
    drawn = chart_svg(figures)
    if not drawn:
        return ""
    newest = figures.periods.tail(MOST_PERIODS)
    older = figures.periods.head(figures.periods.height - newest.height)
    every = every_text(figures.every)
    rows = [
        _row(Line((label_text(row["period"], figures.every),), numbers(figures, row))) for row in newest.iter_rows(named=True)
    ]
    told = f"Spend per {every}, in USD ({_p(figures.tz)})."
    if older.height:
        rows.insert(0, _row(Line((f"… and {older.height:,} earlier",), numbers(figures, added(older))), 1, "more"))
        told += f" The last {newest.height:,} periods with calls; {older.height:,} earlier ones are summed in the table."
    return (
        f"<h2>Spend over time</h2><figure><div {_region('Chart')}>{drawn}</div>"
        f'<figcaption class="quiet">{told}</figcaption></figure>'
        f"<details><summary>Numbers of the chart</summary><div {_region('Numbers of the chart')}><table>"
        f"<caption>{told}</caption>"
        f'<thead><tr><th scope="col">Period</th>{_heads(columns(figures))}</tr></thead><tbody>{"".join(rows)}</tbody>'
        "</table></div></details>"
    )


def _budgets(figures: Figures) -> str:
    if not figures.budgets.height:
        return ""
    heads = (("Ledger",) if len(figures.ledgers) > 1 else ()) + BUDGET_HEADS
    first = len(heads) - len(BUDGET_HEADS)
    numeric = {first + BUDGET_HEADS.index(name) for name in ("Limit", "Committed", "Held", "Left")}

    def row(cells: tuple[str, ...]) -> str:
        kinds = (
            "" if n in numeric and not cell.endswith(" over") else f' class="{"over" if n in numeric else "t"}"'
            for n, cell in enumerate(cells)
        )
        drawn = (
            f'<th scope="row"><bdi>{_p(cell)}</bdi></th>' if n <= first else f"<td{kind}>{_p(cell)}</td>"
            for n, (cell, kind) in enumerate(zip(cells, kinds, strict=True))
        )
        return f"<tr>{''.join(drawn)}</tr>"

    rows = _fitting(budget_lines(figures, MOST_BUDGETS), row, _BUDGET_BYTES)
    left, over = figures.budgets.height - len(rows), figures.over.height
    more = f'<tr class="more"><td class="t" colspan="{len(heads)}">… and {left:,} more</td></tr>' if left else ""
    told = as_of(figures)
    told += f' <span class="over">{over:,} over the limit.</span>' if over else ""
    named = "".join(f'<th scope="col"{" class=n" if n in numeric else ""}>{name}</th>' for n, name in enumerate(heads))
    return (
        f"<h2>Budgets</h2><div {_region('Budgets')}><table><caption>{told}</caption><thead><tr>{named}</tr></thead>"
        f"<tbody>{''.join(rows)}{more}</tbody></table></div>"
    )
