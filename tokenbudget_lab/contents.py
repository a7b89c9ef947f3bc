"""What must stand in a command that came from elsewhere: the same as in one of our own clients.

A client that knows the key need not be ours. What it sends is refused before it meets the others' commands: one batch is
written in one transaction, and what cannot be written, or not be read again, would be everybody's trouble. Types were looked
at before, by `wire`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from .checks import MAX_TAG_BYTES, MAX_TAGS, MAX_TEXT, MAX_TIMEOUT_S
from .commands import Adjust, Command, Commit, Extend, Record, Reserve, Sent, SetBudget, SetLimit
from .errors import InvalidValue
from .events import Tags
from .limits import MAX_NAME, budget_name, must_be_code, zone
from .usage import MAX_TOKENS, MAX_USD, PICO

_is_id = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
# What our clients write about a call, so that it need not be parsed: sizes, and where the price is from, or fewer.
_is_usual = re.compile(
    r'\{(?:(?:"(?:above|input_tokens|max_output_tokens)":(?:0|[1-9]\d{0,16})|"(?:priced_as|prices)":"[^"\\\x00-\x1f\x7f]*")'
    r'(?:,(?=")|(?=\})))*\}'
).fullmatch
_MOST_USD = MAX_USD * PICO
_MOST_COUNT = 2 * MAX_TOKENS  # what goes in and what comes out
_LONGEST = int(MAX_TIMEOUT_S) * 1_000_000
_LATEST = 253_402_300_800_000_000  # the year 10000
_MOST_DETAIL = 4096
_BASES = frozenset({"measured", "estimated", "unknown"})
_OURS = frozenset({"budget", "late", "lost", "orphan", "overrun", "part", "reservation", "spent", "was"})  # said by the ledger


def must_be_sound(command: Command) -> None:
    """Refuse a command whose content none of our clients would send.

    Raises:
        InvalidValue: what is wrong with which of its fields.
    """
    if not _is_id(command.id):
        raise InvalidValue("id", "is no UUID")
    check = _CHECKS.get(type(command))
    if check is not None:
        check(command)
    else:
        _short(
            getattr(command, "budget", None),
            getattr(command, "below", None),
            getattr(command, "reservation", None),
            getattr(command, "target", None),
        )


def is_object(text: str) -> bool:
    """Whether it is a JSON object that DuckDB reads as well, and nothing beyond the standard."""
    try:
        told = json.loads(text, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(told, ensure_ascii=False).encode()  # half a surrogate pair does not
    except (ValueError, RecursionError):
        return False
    return type(told) is dict and "\0" not in text and "\\u0000" not in text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _reserve(c: Reserve) -> None:
    _amounts(c.usd, c.tokens, c.requests)
    if not (c.usd or c.tokens or c.requests):
        raise InvalidValue("reserve", "holds nothing: every amount is zero")
    if c.timeout > _LONGEST or c.wait > _LONGEST:
        raise InvalidValue("timeout", f"is more than {MAX_TIMEOUT_S / 3600:g} h")
    if c.if_lost not in ("count", "release"):
        raise InvalidValue("if_lost", "is neither 'count' nor 'release'")
    _short(c.budget)
    _texts(c.key, c.provider, c.model)
    if c.tags:
        _tags(c.tags)
    if c.detail is not None:
        _detail(c.detail)


def _commit(c: Commit) -> None:
    _amounts(c.usd, c.tokens, c.requests)
    _used(c)
    _short(c.budget, c.reservation)
    _texts(c.response_id, c.part)


def _record(c: Record) -> None:
    _amounts(c.usd, c.tokens, c.requests)
    _used(c)
    _short(c.budget)
    _texts(c.provider, c.model, c.response_id, c.key)
    if c.ts is not None and c.ts >= _LATEST:
        raise InvalidValue("at", "is beyond the year 9999")
    if c.tags:
        _tags(c.tags)


def _used(c: Commit | Record) -> None:
    if c.basis not in _BASES:
        raise InvalidValue("basis", "is not 'measured', 'estimated' or 'unknown'")
    for count in (c.input_tokens, c.output_tokens, c.cache_read_tokens, c.cache_write_tokens, c.reasoning_tokens):
        if count is not None and count >= _MOST_COUNT:
            raise InvalidValue("tokens", "are not in 0 … 2**53 - 1")
    if c.detail is not None:
        _detail(c.detail)


def _adjust(c: Adjust) -> None:
    _amounts(c.usd, c.tokens, c.requests)
    _short(c.budget, c.target)
    _texts(c.reason)


def _sent(c: Sent) -> None:
    _short(c.reservation)
    _texts(c.name)


def _extend(c: Extend) -> None:
    if c.timeout > _LONGEST:
        raise InvalidValue("timeout", f"is more than {MAX_TIMEOUT_S / 3600:g} h")
    _short(c.reservation)


def _set_limit(c: SetLimit) -> None:
    _amounts(c.usd, c.tokens, c.requests)
    if c.instead_of is not None and (c.usd, c.tokens, c.requests).count(None) != 2:  # noqa: PLR2004 - all but one
        raise InvalidValue("instead_of", "is of one resource, and needs the new limit of that one alone")
    _short(c.budget)
    _texts(c.reason)
    if c.window is not None:
        must_be_code(c.window)


def _set_budget(c: SetBudget) -> None:
    if budget_name(c.budget) != c.budget:
        raise InvalidValue("budget", "is not in Unicode's composed form (NFC)")
    zone(c.tz)
    windows = [cap[0] for cap in c.caps]
    if windows != sorted(set(windows)):
        raise InvalidValue("limits", "are not one for each window, in order")
    for window, *amounts in c.caps:
        must_be_code(window)
        _amounts(*amounts)
        if amounts == [None, None, None]:
            raise InvalidValue("limit", "limits nothing")
    if list(c.alerts) != sorted(set(c.alerts)) or any(alert > 10 for alert in c.alerts):  # noqa: PLR2004 - 1000 %
        raise InvalidValue("alerts", "are not fractions of a limit, in order")


_CHECKS: dict[type, Callable[[Any], None]] = {
    Reserve: _reserve,
    Commit: _commit,
    Record: _record,
    Adjust: _adjust,
    Extend: _extend,
    Sent: _sent,
    SetLimit: _set_limit,
    SetBudget: _set_budget,
}


def _amounts(usd: int | None, tokens: int | None, requests: int | None) -> None:
    if usd is not None and usd >= _MOST_USD:
        raise InvalidValue("usd", "is not in 0 … 10**15 USD")
    if (tokens is not None and tokens >= _MOST_COUNT) or (requests is not None and requests >= _MOST_COUNT):
        raise InvalidValue("tokens", "or requests are not in 0 … 2**53 - 1")


def _short(*names: str | None) -> None:
    """What is only looked up: never so long that looking takes time."""
    for name in names:
        if name is not None and len(name) > 2 * MAX_NAME:
            raise InvalidValue("name", f"has {len(name)} characters")


def _texts(*texts: str | None) -> None:
    for text in texts:
        if text is not None and (len(text) > MAX_TEXT or "\0" in text):
            raise InvalidValue("text", f"has more than {MAX_TEXT} characters, or contains a NUL")


def _tags(tags: Tags) -> None:
    before = None
    for name, value in tags:
        if (before is not None and name <= before) or _is_long(name) or _is_long(value):
            raise InvalidValue("tags", "are not in order, or not short texts")
        before = name
    if len(tags) > MAX_TAGS:
        raise InvalidValue("tags", f"{len(tags)} tags are given; {MAX_TAGS} is the most")


def _is_long(text: str) -> bool:
    return (len(text) > MAX_TAG_BYTES // 4 and len(text.encode()) > MAX_TAG_BYTES) or "\0" in text


def _detail(text: str) -> None:
    if _is_usual(text) and len(text) <= _MOST_DETAIL:
        return
    if len(text) > _MOST_DETAIL or not is_object(text) or not _OURS.isdisjoint(json.loads(text)):
        raise InvalidValue("detail", "is no JSON object of a call, or says what only the ledger says")
