"""A report as data for programs: CSV, JSON and Parquet, with every row, every text in full and amounts exact.

Only CSV changes anything: a spreadsheet takes a text that begins like a formula for one, and so it gets an apostrophe in front.
"""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any

import polars as pl

from .errors import shown
from .figures import Figures
from .report_methods import methods, notes

SCHEMA_VERSION = 1
# What spreadsheets read as a formula, the wide forms of East Asia included, with or without space in front.
_FORMULA = r"^[\s\x00]*[=+\-@＝＋－＠]|^[\t\r\n]"  # noqa: RUF001 - they are meant


def csv(figures: Figures) -> str:
    """The table with its columns as in `spend`; text is quoted and holds no formula, numbers are bare and exact."""
    table = figures.table
    texts = [_guarded(pl.col(name).cast(pl.String)) for name, kind in table.schema.items() if not _is_bare(kind)]
    # A head of its own: two names may be one when they are guarded, which no frame allows.
    head = pl.DataFrame({str(n): [name] for n, name in enumerate(table.columns)}).select(_guarded(pl.all()))
    parts = (head, table.with_columns(texts))
    return "".join(part.write_csv(include_header=False, quote_style="non_numeric") for part in parts)


def _guarded(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.contains(_FORMULA)).then(text.str.replace("^", "'")).otherwise(text).name.keep()


def document(figures: Figures) -> dict[str, Any]:
    """The report as JSON has it: amounts are strings of exact decimals, instants ISO 8601 with their offset."""
    return {
        "schema": "tokenbudget_lab.report",
        "schema_version": SCHEMA_VERSION,
        "title": figures.title,
        "scope": figures.scope,
        "methods": methods(figures),
        "notes": notes(figures),
        "gaps": list(figures.gaps),
        "ledgers": list(figures.ledgers),
        "tz": figures.tz,
        "first_call": plain(figures.first),
        "last_call": plain(figures.last),
        "labels": list(figures.keys),
        "rows": _rows(figures.table),
        "total": _rows(figures.total)[0],
        "every": figures.every,
        "periods": _rows(figures.periods),
        "budgets": _rows(figures.budgets),
        "models": [{"model": name, "calls": n} for name, n in figures.models],
        "prices": [{"prices": name, "calls": n} for name, n in figures.prices],
        "in_flight": {"calls": figures.open_calls, "held_usd": plain(figures.held_usd)},
    }


def as_json(figures: Figures) -> str:
    """The document as text, in ASCII."""
    parts = (f" {json.dumps(name)}: {_lines(value)}" for name, value in document(figures).items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(value: Any) -> str:
    """A value as JSON, a list with one element per line: as legible as with an indent, and written many times as fast."""
    if not isinstance(value, list) or not value:
        return json.dumps(value, allow_nan=False)
    return "[\n  " + ",\n  ".join(json.dumps(each, allow_nan=False) for each in value) + "\n ]"


def parquet(figures: Figures) -> bytes:
    """The table with its types; title, scope and methods stand in the file's metadata."""
    out = BytesIO()
    told = {"title": figures.title, "scope": figures.scope, "methods": methods(figures), "gaps": "\n".join(figures.gaps)}
    figures.table.write_parquet(out, metadata={f"tokenbudget_lab.{name}": shown(text) for name, text in told.items()})
    return out.getvalue()


def plain(value: Any) -> Any:
    """A value as JSON has it.

    Examples:
        >>> plain(Decimal("0.000013500000")), plain(Decimal(100))
        ('0.0000135', '100')
    """
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta) or (isinstance(value, float) and value - value != 0):
        return str(value)
    return value


def _is_bare(kind: pl.DataType) -> bool:
    """Numbers stand as they are; so do moments, which are none of a user's words."""
    return kind.is_numeric() or kind.is_temporal() or kind == pl.Boolean


def _rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame; amounts become text column by column, as one by one a million of them would take a minute."""
    amounts = [name for name, kind in frame.schema.items() if kind == pl.Decimal]
    texts = (pl.col(name).cast(pl.String) for name in amounts)
    short = (text.str.replace(r"(\.\d*?)0+$", "$1").str.strip_suffix(".") for text in texts)
    others = [name for name, kind in frame.schema.items() if kind.is_temporal() or kind.is_float() or kind.is_nested()]
    found = frame.with_columns(short).to_dicts()
    for name in others:
        for row in found:
            row[name] = plain(row[name])
    return found
