"""What rows are asked for, as plain tuples that travel: to a store, to a keeper, to an export; and as SQL.

A condition is one of

    ("all", condition, …)   ("any", condition, …)   ("not", condition)
    ("true", column)        ("null", column)        ("starts", column, text)
    ("in", column, value, …)
    ("=", column, value), and so with != < <= > >=

and means what it means in SQL: a row for which it is neither true nor false is not asked for. A value is a text, a Boolean, an
integer, a finite float, a `Decimal` of at most twelve decimals, or an instant, `("us", microseconds)`. Its readers may rely on
this: whoever sent a condition, only names that were allowed stand in the SQL, and each value is a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any

from .errors import InvalidValue, told

Condition = tuple[Any, ...]

COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")
EARLIEST_US, LATEST_US = -62_135_596_800_000_000, 253_402_300_799_999_999  # of the years 1 to 9999
MOST_USD = Decimal(10) ** 26  # from here on it is no DECIMAL(38, 12)
_DEPTH = 40
_SMALL = 15_000  # characters; a keeper reads no request of more than 64 kB


def is_small(condition: Condition) -> bool:
    """Whether it is short and flat enough to travel."""
    return _depth(condition) < _DEPTH and len(repr(condition)) <= _SMALL


def _depth(condition: Condition) -> int:
    return 1 + max(map(_depth, condition[1:])) if condition[0] in ("all", "any", "not") else 1


def columns_of(condition: Condition) -> set[str]:
    """The columns that it looks at.

    Examples:
        >>> sorted(columns_of(("all", ("=", "kind", "x"), ("not", ("null", "key")))))
        ['key', 'kind']
    """
    if condition[0] in ("all", "any", "not"):
        return {name for each in condition[1:] for name in columns_of(each)}
    return {condition[1]}


def to_sql(condition: Condition, columns: Collection[str]) -> tuple[str, dict[str, Any]]:
    """A condition as DuckDB's SQL, with its parameters.

    Args:
        condition: from anybody.
        columns: the names that may stand in it.

    Raises:
        InvalidValue: it is no condition, or names another column.

    Examples:
        >>> to_sql(("all", ("=", "kind", "x' or 1"), ("null", "key")), ["kind", "key"])
        ('("kind"::varchar = $p0 and "key" is null)', {'p0': "x' or 1"})
    """
    given: dict[str, Any] = {}

    def parameter(value: Any) -> str:
        name = f"p{len(given)}"
        given[name] = value
        return f"${name}"

    return _sql(condition, columns, parameter, _DEPTH), given


def _sql(condition: Condition, columns: Collection[str], parameter: Callable[[Any], str], depth: int) -> str:
    if type(condition) is not tuple or len(condition) < 2 or not depth:  # noqa: PLR2004 - a word and what it is about
        raise InvalidValue("where", f"{told(condition)} is no condition")
    word, *rest = condition
    if word in ("all", "any"):
        joint = " and " if word == "all" else " or "
        return f"({joint.join(_sql(each, columns, parameter, depth - 1) for each in rest)})"
    if word == "not" and len(rest) == 1:
        return f"(not {_sql(rest[0], columns, parameter, depth - 1)})"
    column, *values = rest
    if type(column) is not str or column not in columns:
        raise InvalidValue("where", f"{told(column)} is no column that can be asked for")
    name = f'"{column}"'
    if word == "null" and not values:
        return f"{name} is null"
    if word == "true" and not values:
        return name
    if word == "starts" and len(values) == 1 and type(values[0]) is str:
        return f"starts_with({name}::varchar, {parameter(values[0])})"
    if word == "in" and values:
        sides = [_sides(name, value, parameter) for value in values]
        if len({left for left, _ in sides}) == 1:
            return f"{sides[0][0]} in ({', '.join(right for _, right in sides)})"
    if word in COMPARISONS and len(values) == 1:
        left, right = _sides(name, values[0], parameter)
        return f"{left} {word} {right}"
    raise InvalidValue("where", f"{told(condition)} is no condition")


def _sides(name: str, value: Any, parameter: Callable[[Any], str]) -> tuple[str, str]:
    """Column and value, made comparable: ids are compared as the texts that they are shown as."""
    match value:
        case str():
            return f"{name}::varchar", parameter(value)
        case bool() | int():
            return name, parameter(value)
        case float() if math.isfinite(value):
            return f"{name}::double", parameter(value)
        case Decimal() if value.is_finite() and abs(value) < MOST_USD:
            return name, f"{parameter(value)}::decimal(38, 12)"
        case ("us", int(us)) if EARLIEST_US <= us <= LATEST_US:
            return name, f"make_timestamp({parameter(us)})"
    raise InvalidValue("where", f"{told(value)} is no value to compare with")
