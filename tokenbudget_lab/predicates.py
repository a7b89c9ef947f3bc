"""Polars' predicates as conditions: what can be said exactly is asked for, and the rest is left to Polars.

A predicate is read from Polars' own JSON form, which may be another one in another version. What is not known here is not
translated, so that nothing depends on it but how much is read.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .conditions import EARLIEST_US, LATEST_US, MOST_USD, Condition, is_small

if TYPE_CHECKING:
    import polars as pl

_COMPARISONS = {"Eq": "=", "NotEq": "!=", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">="}
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_CLOSED = {"Both": (">=", "<="), "Left": (">=", "<"), "Right": (">", "<="), "None": (">", "<")}
_JOINED = {"And": "all", "LogicalAnd": "all", "Or": "any", "LogicalOr": "any"}
_DECIMALS = 12


def condition_of(predicate: pl.Expr, schema: pl.Schema) -> Condition | None:
    """What of a predicate can be asked for: all rows for which it is true are among those, and perhaps others.

    Args:
        predicate: over the columns of the schema.
        schema: their types.

    Returns:
        `None` where nothing of it can.

    Examples:
        >>> import polars as pl
        >>> asked = (pl.col("kind") == "committed") & (pl.col("kind").str.len_chars() > 3)
        >>> condition_of(asked, pl.Schema({"kind": pl.String}))
        ('=', 'kind', 'committed')
    """
    import polars as pl

    try:
        tree = json.loads(predicate.meta.serialize(format="json"))
        said = [part for part in (_said(node, schema) for node in _parts(tree)) if part is not None]
    except (pl.exceptions.PolarsError, ValueError, TypeError, RecursionError, NotImplementedError):
        return None
    if not said:
        return None
    condition = said[0] if len(said) == 1 else _joined("all", said)
    return condition if condition is not None and is_small(condition) else None


def _parts(node: Any) -> list[Any]:
    """What must be true, each for itself."""
    match node:
        case {"BinaryExpr": {"left": left, "op": "And" | "LogicalAnd", "right": right}}:
            return [*_parts(left), *_parts(right)]
    return [node]


def _said(node: Any, schema: pl.Schema) -> Condition | None:
    """One condition that says exactly this, or `None`."""
    import polars as pl

    match node:
        case {"Column": str(name)} if schema.get(name) == pl.Boolean:
            return ("true", name)
        case {"BinaryExpr": {"left": left, "op": op, "right": right}} if op in _JOINED:
            return _joined(_JOINED[op], [_said(left, schema), _said(right, schema)])
        case {"BinaryExpr": {"left": left, "op": op, "right": right}} if op in _COMPARISONS:
            sign = _COMPARISONS[op]
            if "Literal" in left:
                left, right, sign = right, left, _TURNED.get(sign, sign)
            return _compared(sign, left, right, schema)
        case {"Function": {"input": list(given), "function": {"Boolean": what}}}:
            return _of_function(what, given, schema)
        case {"Function": {"input": [column, text], "function": {"StringExpr": "StartsWith"}}}:
            found = _compared("=", column, text, schema)
            return ("starts", *found[1:]) if found is not None and type(found[2]) is str else None
    return None


def _of_function(what: Any, given: list[Any], schema: pl.Schema) -> Condition | None:
    match what, given:
        case "IsNull", [{"Column": str(name)}] if name in schema:
            return ("null", name)
        case "IsNotNull", [{"Column": str(name)}] if name in schema:
            return ("not", ("null", name))
        case "Not", [node]:
            return _joined("not", [_said(node, schema)])
        case {"IsIn": {"nulls_equal": False}}, [{"Column": str(name)}, values] if name in schema:
            return _among(name, values, schema)
        case {"IsBetween": {"closed": str(closed)}}, [node, low, high] if closed in _CLOSED:
            above, below = _CLOSED[closed]
            return _joined("all", [_compared(above, node, low, schema), _compared(below, node, high, schema)])
    return None


def _joined(word: str, parts: Sequence[Condition | None]) -> Condition | None:
    """Joined flat: a long row of `or` is none the deeper for it."""
    flat: list[Condition] = []
    for part in parts:
        if part is None:
            return None
        flat += part[1:] if part[0] == word != "not" else [part]
    return (word, *flat)


def _compared(sign: str, node: Any, literal: Any, schema: pl.Schema) -> Condition | None:
    import polars as pl

    match node:
        case {"Column": str(name)} if name in schema:
            kind = schema[name]
        case {"Cast": {"expr": {"Column": str(name)}, "dtype": {"Literal": "Float64"}}} if schema.get(name) == pl.Int64:
            kind = pl.Float64()
        case {
            "Function": {
                "input": [{"Column": str(name)}],
                "function": {"TemporalExpr": {"ConvertTimeZone": {"inner": str(zone)}}},
            }
        } if isinstance(schema.get(name), pl.Datetime):
            kind = pl.Datetime("us", zone)  # the same instant, whatever it is shown as
        case _:
            return None
    values = _literal(literal)
    value = None if values is None or len(values) != 1 else _value(values, kind)
    return None if value is None else (sign, name, value)


def _among(name: str, literal: Any, schema: pl.Schema) -> Condition | None:
    """One of a list; a null in it is nobody's equal, and in SQL it would make what is not in the list unknown."""
    import polars as pl

    lists = _literal(literal)
    if lists is None or len(lists) != 1 or not isinstance(lists.dtype, pl.List) or lists.item() is None:
        return None
    known = lists.item().drop_nulls()
    values = [_value(known.slice(n, 1), schema[name]) for n in range(len(known))]
    return ("in", name, *values) if values and None not in values else None


def _literal(node: Any) -> pl.Series | None:
    """The value of a literal, as Polars reads it."""
    import polars as pl

    while "Alias" in node:
        node = node["Alias"][0]
    match node:
        case {"Literal": _} | {
            "Function": {
                "input": [{"Literal": _}],
                "function": {"TemporalExpr": {"ConvertTimeZone": _}},
            }  # Polars 2.0 leaves it
        }:
            pass
        case _:
            return None
    return pl.select(pl.Expr.deserialize(io.StringIO(json.dumps(node)), format="json")).to_series()


def _value(one: pl.Series, kind: pl.DataType) -> Any:
    """A value that a column of this type can be compared with in SQL with the same result, or `None`."""
    import polars as pl

    given = one.dtype
    if isinstance(given, pl.Datetime):
        if not isinstance(kind, pl.Datetime) or given.time_zone != kind.time_zone or given.time_unit == "ns":
            return None  # Polars compares no instants of different zones, and says so
        us = one.dt.epoch("us").item()
        return ("us", us) if us is not None and EARLIEST_US <= us <= LATEST_US else None
    value = one.item()
    if isinstance(kind, pl.String) and type(value) is str and "\0" not in value:
        return value
    if isinstance(kind, pl.Boolean) and type(value) is bool:
        return value
    if isinstance(kind, pl.Int64) and type(value) is int and -(2**63) <= value < 2**63:
        return value
    if isinstance(kind, pl.Float64) and isinstance(given, pl.Float64) and type(value) is float and math.isfinite(value):
        return value
    if isinstance(kind, pl.Decimal) and isinstance(given, pl.Decimal) and type(value) is Decimal:
        return value if given.scale <= _DECIMALS and abs(value) < MOST_USD else None
    return None
