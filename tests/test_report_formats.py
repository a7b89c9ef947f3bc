"""What users named is text in every format of a report, and in those for programs it is all there."""

from __future__ import annotations

import csv
import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from io import BytesIO, StringIO
from typing import Any

import polars as pl
import pytest
from markdown_it import MarkdownIt  # rich brings it

import tokenbudget_lab as tbl
from tests.test_reports import calls
from tokenbudget_lab.report_cells import clipped

HOSTILE = {
    "markup": "<script>alert(1)</script>",
    "an attribute": '" onmouseover="alert(1)',
    "a formula": '=HYPERLINK("http://e")',
    "plus": "+1",
    "minus": "-1",
    "at": "@x",
    "a tab": "\t=1+1",
    "a return": "\r=1+1",
    "a line feed": "\n=1+1",
    "a wide formula": "\uff1d1+1",
    "maths": "$x$ and $y$ and \\(z\\)",
    "a pipe": "a|b",
    "backticks": "`rm -rf`",
    "a newline": "one\n\n# two",
    "a link": "[a](http://e) ![b](http://e) www.e.org",
    "tex": "\\input{x}",
    "tex signs": "50% & a_b #1 ^2 ~ {}",
    "a row's end": "\\\\ [3pt] *",
    "emphasis": "*a* _b_ ~c~",
    "right to left": "\u202egnp.exe",
    "Hebrew": "שלום",
    "an emoji": "🎉",
    "NUL": "a\0b",
    "an escape": "\x1b[31mred",
    "an entity": "&lt;b&gt;",
    "long": "x" * 10_000,
}


class Seen(HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.rows: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "bdi":
            self.rows.append("")

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1] += data


@pytest.fixture(scope="module")
def told() -> tbl.Report:
    """A call for each hostile value: as a tag, and the column that they stand in is one too."""
    values = list(HOSTILE.values())
    frame = calls(len(values), model=values, cost_usd=[Decimal(n + 1) for n in range(len(values))])
    return tbl.report(
        frame.with_columns(pl.Series("=1|$x$<b>", values)), by=["=1|$x$<b>"], title="<b>$a$ | `b` \ud800 \\input{x}", where=None
    )


def test_a_page_has_only_elements_of_its_own(told: tbl.Report) -> None:
    """And shows each value as it is, or its invisible characters as escapes."""
    seen = Seen(told.html)
    assert not seen.elements & {"script", "b", "a", "img"}
    assert not {name for name in seen.attributes if name.startswith("on")}
    assert any(row.startswith("<script>alert(1)</script>") for row in seen.rows)
    assert any(row.startswith("\\u202egnp.exe") for row in seen.rows)
    assert any(row.startswith("a\\x00b") for row in seen.rows)
    for c in "\u202e\0\x1b":
        assert c not in told.html


def test_no_dollar_of_a_page_begins_maths(told: tbl.Report) -> None:
    """Each one and each backslash stands in an element of its own, and the page says that it is not to be typeset."""
    body = re.sub(r"<style>.*?</style>|<title>.*?</title>|<svg.*?</svg>", "", told.html, flags=re.DOTALL)
    assert "$" in body
    for sign in "$\\":
        assert body.count(sign) == body.count(f"<span>{sign}</span>")
    assert "mathjax_ignore" in told.html
    assert "mathjax_ignore" in told._repr_html_()


def test_no_dollar_of_markdown_begins_maths(told: tbl.Report) -> None:
    assert told.markdown.count("$") == told.markdown.count("<span>$</span>") > 0


def test_markdown_has_one_line_per_row_and_no_markup_of_others(told: tbl.Report) -> None:
    lines = told.markdown.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == len(HOSTILE) + 3
    assert {line.count("|") for line in table} == {11}
    for sign in ("<script", "\n# two", "http:", "www.", "<b>"):
        assert sign not in told.markdown
    assert not re.search(r"(?<!\\)[`*_\[\]]", told.markdown)


def test_markdown_reads_as_the_values_themselves(told: tbl.Report) -> None:
    """By a parser that takes HTML as HTML: each cell is its text, and there is no element but tables, texts and headings."""
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(told.markdown)
    seen = Seen(re.sub(r"<td[^>]*>", r"\g<0><bdi>", page))
    assert seen.elements <= {"h1", "p", "table", "thead", "tbody", "tr", "th", "td", "span", "bdi"}
    cells = {row.strip() for row in seen.rows}
    assert {clipped(value).strip() for value in HOSTILE.values()} <= cells


def test_a_tex_table_has_a_cell_for_each_value_and_no_command_of_others(told: tbl.Report) -> None:
    """Every row has as many cells as columns, braces are balanced, and nothing is active that is not ours."""
    tex = told.tex
    body = tex[tex.index("\\toprule") : tex.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert "\\shortstack[r]{Input\\\\tokens}" in rows[0]  # in two lines, as ten such columns are wider than a page
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", tex)
    assert columns is not None
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns[1]) - 1}
    assert len(rows) == len(HOSTILE) + 2
    bare = re.sub(r"\\[{}$&#%_\\]", " ", tex)
    assert bare.count("{") == bare.count("}")
    assert "$" not in bare
    assert re.findall(r"(?m)^[^%\n]+%", bare) == []
    assert set(re.findall(r"\\([a-zA-Z]+)", bare)) <= {
        *("providecommand", "tblchar", "ifdefined", "directlua", "else", "XeTeXversion", "texttt", "fi", "begin", "end"),
        *("centering", "small", "caption", "toprule", "midrule", "bottomrule", "par", "medskip", "footnotesize", "usepackage"),
        *("textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar", "textasciigrave"),
        *("ldots", "textendash", "ensuremath", "geq", "char", "shortstack"),
    }
    for row in rows:
        assert not row.strip().startswith(("[", "*"))
    assert "\\tblchar{U+1F389}{🎉}" in tex


def test_twins_are_no_dash_and_no_quotation_mark_in_tex() -> None:
    assert "a-{}-b" in tbl.report(calls(1, model=["a--b"])).tex
    assert "a,{},b" in tbl.report(calls(1, model=["a,,b"])).tex  # a low quotation mark in T1


def test_csv_has_no_formula_and_exact_numbers(told: tbl.Report) -> None:
    """A text that a spreadsheet would compute has an apostrophe in front; all else is as it was."""
    rows = list(csv.reader(StringIO(told.csv, newline="")))
    assert rows[0][0] == "'=1|$x$<b>"
    for row in rows:
        assert row[0].lstrip(" \t\r\n\0")[:1] not in ("=", "+", "-", "@", "\uff1d")
    values = {row[0].removeprefix("'") for row in rows[1:]}
    assert values == set(HOSTILE.values())
    assert sum(Decimal(row[rows[0].index("cost_usd")]) for row in rows[1:]) == told.total["cost_usd"].item()


def test_names_that_are_one_when_they_are_guarded_are_two_columns_of_csv() -> None:
    frame = calls(1).with_columns(pl.lit("a").alias("=x"), pl.lit("b").alias("'=x"))
    assert tbl.report(frame, by=["=x", "'=x"]).csv.startswith('"\'=x","\'=x",')


def test_a_negative_number_stays_a_number_in_csv() -> None:
    """And an amount is written in full, without a power of ten."""
    told = tbl.report(calls(2, cost_usd=[Decimal("-0.5"), Decimal("0.000000000001")], model=["a", "b"]))
    assert ",-0.500000000000," in told.csv
    assert ",0.000000000001," in told.csv
    assert "'-" not in told.csv


def test_a_missing_label_is_not_an_empty_one_in_csv() -> None:
    assert {line.partition(",")[0] for line in tbl.report(calls(2, model=["", None])).csv.splitlines()[1:]} == {"", '""'}


def test_json_has_every_text_in_full_and_amounts_as_strings(told: tbl.Report) -> None:
    document = json.loads(told.json)
    assert (document["schema"], document["schema_version"]) == ("tokenbudget_lab.report", 1)
    assert {row["=1|$x$<b>"] for row in document["rows"]} == set(HOSTILE.values())
    assert sum(Decimal(row["cost_usd"]) for row in document["rows"]) == Decimal(document["total"]["cost_usd"])
    assert told.json.isascii()


def test_parquet_has_every_text_in_full_and_types(told: tbl.Report) -> None:
    read = pl.read_parquet(BytesIO(told.parquet))
    assert read.equals(told.table)
    assert read.schema["cost_usd"] == pl.Decimal(38, 12)


def test_what_people_read_is_cut_and_says_so(told: tbl.Report) -> None:
    """Ten thousand characters are eighty, in a table for a paper forty, the last of them an ellipsis."""
    for text, most, end in ((told.html, 79, "…"), (told.markdown, 79, "…"), (told.tex, 39, "\\ldots{}")):
        assert "x" * most + end in text
        assert "x" * 80 not in text


def test_a_terminal_sees_no_escape(told: tbl.Report) -> None:
    assert "\x1b" not in repr(told)
    assert "\u202e" not in repr(told)


def test_a_repr_is_short() -> None:
    """However many rows there are; and it has the total and the methods."""
    told = tbl.report(calls(1000, model=[f"m{n}" for n in range(1000)]))
    assert len(repr(told).splitlines()) < 25
    assert "… and 990 more" in repr(told)
    assert "1,000 calls to 1,000 models (m0, " in repr(told)


@pytest.mark.parametrize("name", ["html", "markdown", "tex", "json", "csv"])
def test_a_report_says_the_same_each_time(told: tbl.Report, name: str) -> None:
    assert getattr(told, name) == getattr(told, name)


def test_a_duration_or_a_number_may_be_a_label() -> None:
    told = tbl.report(calls(2), by=[pl.col("spent_at").dt.hour().alias("hour"), (pl.col("tokens") > 10).alias("long")])
    rows: list[dict[str, Any]] = json.loads(told.json)["rows"]
    assert {(row["hour"], row["long"]) for row in rows} == {(0, True), (1, True)}
    assert told.csv.splitlines()[1].startswith(('0,"true",', '1,"true",'))
