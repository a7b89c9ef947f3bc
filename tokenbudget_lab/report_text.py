"""A report as text for people: Markdown, a booktabs table for TeX, and a table for the terminal.

What users named is text in each of them: it ends no cell, begins no markup, no link, no maths and no command.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from .figures import Figures
from .report_cells import BUDGET_HEADS, HEADS, Line, budget_lines, clipped, columns, lines, numbers, rest
from .report_methods import as_of, methods, notes, warnings

if TYPE_CHECKING:
    from rich.table import Table

MOST_MARKDOWN, MOST_TEX, MOST_BUDGETS = 500, 40, 100
_NARROW_TEX = 40  # characters of a name in a table for a paper
_NARROW = 24  # characters of a name that is not folded
# Entities are text for every reader of Markdown, and `<span>` keeps a notebook from typesetting what stands in it.
_ENTITIES = {each: f"&#{ord(each)};" for each in "|~^@"} | {each: escape(each) for each in "&<>"}
_SPANS = {"$": "<span>$</span>", "\\": "<span>\\\\</span>"}
_MARKDOWN = str.maketrans({each: f"\\{each}" for each in "`*_[]{}"} | _ENTITIES | _SPANS)
_AT_START = re.compile(r"^([-+#=])")  # a list, a heading
_LINKS = re.compile(r":(?=\S)|(?<=www)\.")  # what GitHub makes links and pictures of
_TEX_NAMES = {
    "\\": "textbackslash", "^": "textasciicircum", "~": "textasciitilde", "<": "textless", ">": "textgreater",
    "|": "textbar", "`": "textasciigrave", "…": "ldots", "–": "textendash",
}  # fmt: skip
_TEX = str.maketrans(
    {each: f"\\{each}" for each in "{}$&#%_"}
    | {each: f"\\{name}{{}}" for each, name in _TEX_NAMES.items()}
    | {"≥": r"\ensuremath{\geq}", "≤": r"\ensuremath{\leq}", '"': r"{\char34}"}
    | {each: f"{{{each}}}" for each in "[]*"}  # behind the end of a row these would be its options
)
_TWINS = re.compile(r"([-',])(?=\1)")  # TeX makes one sign of two of them
# Letters that any TeX knows; others are shown by those that know all of Unicode, and by their numbers elsewhere.
_FOREIGN = re.compile("[^\x00-\x7fÀ-ÏÑ-ÖØ-Ýß-ïñ-öø-ýÿ–…≥≤]+")
_TEX_CHAR = r"\providecommand{\tblchar}[2]{\ifdefined\directlua#2\else\ifdefined\XeTeXversion#2\else\texttt{#1}\fi\fi}"


def markdown(figures: Figures) -> str:
    """A title, the methods, and tables as GitHub writes them."""
    told = [f"# {_md(clipped(figures.title, 200))}", _md(methods(figures))]
    told += [f"**{_md(warning)}**" for warning in warnings(figures)]
    told += ["\n".join(f"- {_md(note)}" for note in notes(figures))] if notes(figures) else []
    told += [_pipes(*_cells(figures, MOST_MARKDOWN), len(figures.keys) or 1)]
    if figures.budgets.height:
        heads = (("Ledger",) if len(figures.ledgers) > 1 else ()) + BUDGET_HEADS
        told += ["## Budgets", as_of(figures)]
        told += [_pipes(heads, budget_lines(figures, MOST_BUDGETS), len(heads))]
        left = figures.budgets.height - MOST_BUDGETS
        told += [f"… and {left:,} more"] if left > 0 else []
    told += ["Amounts are rounded for reading. The CSV, JSON and Parquet files of this report are exact."]
    return "\n\n".join(told) + "\n"


def tex(figures: Figures) -> str:
    r"""A `table` with its caption, and the methods below it; it needs `\usepackage{booktabs}`."""
    heads, rows = _cells(figures, MOST_TEX, brief=True)
    labels = len(figures.keys) or 1
    narrow = [tuple(clipped(cell, _NARROW_TEX) for cell in row) for row in rows]
    body = [f"    {' & '.join(map(_tex, row))} \\\\" for row in narrow]
    titles = [_tex(head) if n < labels else _stacked(head) for n, head in enumerate(heads)]
    end = ["    \\midrule", body.pop()]
    return "\n".join(
        (
            r"% Needs \usepackage{booktabs}.",
            _TEX_CHAR,
            r"\begin{table}",
            r"  \centering\small",
            f"  \\caption{{{_tex(clipped(figures.title, 200))}}}",
            f"  \\begin{{tabular}}{{{'l' * labels}{'r' * (len(heads) - labels)}}}",
            r"    \toprule",
            f"    {' & '.join(titles)} \\\\",
            r"    \midrule",
            *body,
            *end,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"  \par\medskip",
            f"  {{\\footnotesize {_tex(' '.join((methods(figures), *notes(figures))))}\\par}}",
            r"\end{table}",
            "",
        )
    )


def table(figures: Figures, most: int) -> Table:
    """The table for a terminal or a repr."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heads, rows = _cells(figures, most, brief=True)
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for n, head in enumerate(heads):
        left = n < (len(figures.keys) or 1)
        short = left and all(len(row[n]) <= _NARROW for row in rows)
        made.add_column(Text(head), justify="left" if left else "right", overflow="fold", no_wrap=short)
    for n, row in enumerate(rows):
        made.add_row(*map(Text, row), end_section=n == len(rows) - 2)
    return made


def plain(figures: Figures, most: int = 10, width: int = 120) -> str:
    """The title, a short table and the methods: what a report's repr says."""
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=width, markup=False, emoji=False, highlight=False, color_system=None)
    console.print(clipped(figures.title, 200), table(figures, most), methods(figures), sep="\n\n")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


# --- its parts ---------------------------------------------------------------------------------------------------------------


def _cells(figures: Figures, most: int, *, brief: bool = False) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows, `… and N more` among them where rows are left out, and the total as the last."""
    labels = tuple(clipped(name.capitalize(), 60) for name in figures.keys) or ("",)
    names = columns(figures, brief=brief)
    heads = (*labels, *(HEADS[name] for name in names))
    shown = lines(figures, most, names) if figures.keys else []
    more = rest(figures, most, names)
    shown += [] if more is None else [more]
    shown.append(Line(("Total",), numbers(figures, figures.sums, names)))
    return heads, [(*line.labels, *[""] * (len(labels) - len(line.labels)), *line.numbers) for line in shown]


def _pipes(heads: tuple[str, ...], rows: list[tuple[str, ...]], labels: int) -> str:
    rule = ["---" if n < labels else "---:" for n in range(len(heads))]
    texts = [tuple(map(_md, heads)), tuple(rule), *(tuple(map(_md, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in texts)


def _md(text: str) -> str:
    return _AT_START.sub(r"\\\1", _LINKS.sub(lambda found: f"&#{ord(found[0])};", text.translate(_MARKDOWN)))


def _stacked(head: str) -> str:
    """A number's head in two lines, as many of them would be wider than a page."""
    first, space, last = head.partition(" without ") if " without " in head else head.rpartition(" ")
    return f"\\shortstack[r]{{{_tex(first + space.rstrip())}\\\\{_tex(last)}}}" if space else _tex(head)


def _tex(text: str) -> str:
    parts, end = [], 0
    for found in _FOREIGN.finditer(text):
        codes = " ".join(f"U+{ord(c):04X}" for c in found[0])
        parts += [text[end : found.start()].translate(_TEX), f"\\tblchar{{{codes}}}{{{found[0]}}}"]
        end = found.end()
    return _TWINS.sub(r"\1{}", "".join((*parts, text[end:].translate(_TEX))))
