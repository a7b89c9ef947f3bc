"""Messages between a keeper and its clients: msgpack of tuples, checked on arrival; never a pickle.

A client sends `[number, code, field …]` for each command, many in one message; the keeper answers `[number, ok, what]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, get_type_hints

from . import errors
from .commands import COMMANDS, Command

PROTOCOL_VERSION = 8
MAX_MESSAGE = 64 * 2**20
_CODES = {kind: code for code, kind in enumerate(COMMANDS)}
_DECIMAL, _BIG = 1, 2


@lru_cache(maxsize=1)
def _msgpack() -> Any:
    import msgpack

    return msgpack


def _default(value: Any) -> Any:
    """What MessagePack has no form for: money, and integers beyond 64 bits, such as millions of dollars in pico-dollars."""
    if isinstance(value, Decimal):
        return _msgpack().ExtType(_DECIMAL, str(value).encode())
    if isinstance(value, int):
        return _msgpack().ExtType(_BIG, value.to_bytes((value.bit_length() + 15) // 8, "big", signed=True))
    raise TypeError(f"{type(value).__name__} does not travel")


def _hook(code: int, data: bytes) -> Any:
    if code == _DECIMAL:
        return Decimal(data.decode())
    if code == _BIG:
        return int.from_bytes(data, "big", signed=True)
    raise ValueError(f"unknown extension {code}")


def pack(message: Any) -> bytes:
    """A message as bytes."""
    packed: bytes = _msgpack().packb(message, default=_default)
    return packed


def unpack(data: bytes) -> Any:
    """Bytes as a message: tuples, strings, integers, `Decimal`.

    Raises:
        ValueError: it is no message.
    """
    try:
        return _msgpack().unpackb(data, use_list=False, strict_map_key=True, ext_hook=_hook)
    except Exception as error:
        raise ValueError(f"no message of this protocol: {error}") from error


def to_wire(number: int, command: Command) -> tuple[Any, ...]:
    """One numbered command."""
    return (number, _CODES[type(command)], *command)


def from_wire(item: Sequence[Any]) -> tuple[int, Command]:
    """One numbered command, checked field by field: a negative amount would make room where there is none.

    Raises:
        ValueError: it is none.
    """
    if type(item) is not tuple or len(item) < 2:  # noqa: PLR2004 - a number and a code
        raise ValueError("no numbered command")
    number, code, *fields = item
    if type(number) is not int or type(code) is not int or not 0 <= code < len(COMMANDS):
        raise ValueError("no numbered command")
    kind = COMMANDS[code]
    checks = _checks(kind)
    if len(fields) != len(checks):
        raise ValueError(f"{kind.__name__} has {len(checks)} fields, not {len(fields)}")
    for check, field in zip(checks, fields, strict=True):
        if not check(field):
            raise ValueError(f"{kind.__name__} with a field that is not its type")
    return number, kind(*fields)


@lru_cache(maxsize=64)
def _checks(kind: type) -> tuple[Callable[[Any], bool], ...]:
    return tuple(_check(str(hint)) for hint in get_type_hints(kind).values())


def _check(hint: str) -> Callable[[Any], bool]:
    if hint == "<class 'str'>":
        return lambda v: type(v) is str
    if hint == "<class 'int'>":
        return lambda v: type(v) is int and v >= 0
    if hint == "str | None":
        return lambda v: v is None or type(v) is str
    if hint == "int | None":
        return lambda v: v is None or (type(v) is int and v >= 0)
    if hint.startswith("tuple[float"):
        return lambda v: type(v) is tuple and all(type(x) is float and x > 0 for x in v)
    if hint.startswith("tuple[tuple[str, str]"):
        return lambda v: type(v) is tuple and all(_is_tag(tag) for tag in v)
    if hint.startswith("tuple[tuple[str, int"):
        return lambda v: type(v) is tuple and all(_is_cap(cap) for cap in v)
    raise TypeError(f"no check for a field of type {hint}")


def _is_tag(tag: Any) -> bool:
    return type(tag) is tuple and [type(part) for part in tag] == [str, str]


def _is_cap(cap: Any) -> bool:
    return (
        type(cap) is tuple
        and len(cap) == 4  # noqa: PLR2004 - window, usd, tokens, requests
        and type(cap[0]) is str
        and all(v is None or (type(v) is int and v >= 0) for v in cap[1:])
    )


def error_to_wire(error: BaseException) -> tuple[str, tuple[Any, ...]]:
    """An error by its name and arguments."""
    if isinstance(error, errors.TokenBudgetError):
        return type(error).__name__, error.args
    return "LedgerUnavailable", (f"{type(error).__name__}: {error}",)


def error_from_wire(told: Sequence[Any]) -> errors.TokenBudgetError:
    """The error again; only errors of this package are ever made from a message."""
    name, args = told
    kind = getattr(errors, str(name), None)
    if isinstance(kind, type) and issubclass(kind, errors.TokenBudgetError):
        error: errors.TokenBudgetError = kind(*args)
        return error
    return errors.LedgerUnavailable(f"{name}{args}")
