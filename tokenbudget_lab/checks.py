"""What arguments must look like before anything is asked of a ledger."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

from .errors import InvalidType, InvalidValue, redacted, told
from .events import FIELDS, Tags

MAX_TAGS, MAX_TAG_BYTES, MAX_TEXT, MAX_FACTS = 32, 256, 1024, 16
MIN_TIMEOUT_S, MAX_TIMEOUT_S = 1.0, 48 * 3600.0
# The columns of `events` and of `calls`, beside which labels stand when calls are grouped by them.
COLUMN_NAMES = frozenset(FIELDS) | {
    "above", "cache_write_1h_tokens", "context", "cost_usd", "counted_by", "counted_input_tokens", "ended", "held_requests",
    "late", "latency_s", "max_output_tokens", "overrun", "priced_as", "prices", "reserved", "reserved_requests",
    "reserved_tokens", "reserved_usd", "sdk_attempt", "spent_at", "state", "web_searches",
}  # fmt: skip


def seconds(argument: str, value: Any, *, least: float = MIN_TIMEOUT_S, most: float = MAX_TIMEOUT_S) -> int:
    """A duration in microseconds.

    Args:
        argument: its name.
        value: seconds, or a timedelta.
        least, most: the range, in seconds.

    Raises:
        InvalidType: a string, a bool.
        InvalidValue: not finite, or out of range.

    Examples:
        >>> seconds("timeout", 90), seconds("timeout", timedelta(minutes=1))
        (90000000, 60000000)
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidType(argument, f"{told(value)} is {type(value).__name__}, not seconds or a timedelta")
    if not least <= value <= most:  # nor is nan
        raise InvalidValue(argument, f"{told(value)} s is not between {least:g} s and {most / 3600:g} h")
    return round(value * 1_000_000)


def text_of(argument: str, value: Any, *, most: int = MAX_TEXT) -> str | None:
    """A short text that can be stored: not empty, no NUL, no half surrogate pair; keys in it are redacted.

    Examples:
        >>> text_of("reason", "leaked sk-abcdefghijkl")
        'leaked [redacted]'
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidType(argument, f"{told(value)} is {type(value).__name__}, not a string")
    if not 0 < len(value) <= most:
        raise InvalidValue(argument, f"has {len(value)} characters, not 1 to {most}")
    if "\0" in value or _is_torn(value):
        raise InvalidValue(argument, "contains a NUL or half a surrogate pair")
    return redacted(value)


def key_of(value: Any) -> str | None:
    """An idempotency key: it is stored as it is, because two keys that are redacted to the same text would be one.

    Examples:
        >>> key_of("task-00000001")
        'task-00000001'
    """
    key = text_of("key", value)
    if key != value:
        raise InvalidValue("key", "looks like an API key or holds one, and keys are stored; use the row's id or a hash")
    return key


def _is_torn(text: str) -> bool:
    """Whether it has half a surrogate pair, which no file can keep."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def tags_of(tags: Mapping[str, str] | None) -> Tags:
    """Labels, sorted by name: at most 32, names and values strings of at most 256 bytes; keys in them are redacted.

    Raises:
        InvalidType: no mapping, or a value that is no string.
        InvalidValue: too many, too long, or not storable.

    Examples:
        >>> tags_of({"condition": "few-shot", "arm": "b"})
        (('arm', 'b'), ('condition', 'few-shot'))
    """
    if not tags:
        return ()
    if not isinstance(tags, Mapping):
        raise InvalidType("tags", f"{told(tags)} is {type(tags).__name__}, not a mapping")
    if len(tags) > MAX_TAGS:
        raise InvalidValue("tags", f"{len(tags)} tags are given; {MAX_TAGS} is the most")
    checked = {_tag("name", name): _tag(str(name), value) for name, value in tags.items()}
    if len(checked) < len(tags):
        raise InvalidValue("tags", "two names look like API keys, and would be the same when they are redacted")
    return tuple(sorted(checked.items()))


def labels_of(tags: Mapping[str, str] | None) -> Tags:
    """What `tags_of` gives, for tags that whole blocks or clients have: none may be named like a column of a frame.

    Raises:
        InvalidType, InvalidValue: as `tags_of`; a name out of `COLUMN_NAMES`.

    Examples:
        >>> labels_of({"model": "mine"})
        Traceback (most recent call last):
            ...
        tokenbudget_lab.errors.InvalidValue: tags['model']: is a column of ledger.events() or ledger.calls(); ...
    """
    checked = tags_of(tags)
    for name, _ in checked:
        if name in COLUMN_NAMES:
            raise InvalidValue(
                f"tags[{name!r}]", f"is a column of ledger.events() or ledger.calls(); name it otherwise, such as 'my_{name}'"
            )
    return checked


def _tag(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidType(f"tags[{name!r}]", f"{told(value)} is {type(value).__name__}, not a string")
    return _checked_tag(name, value)


@lru_cache(maxsize=4096)
def _checked_tag(name: str, value: str) -> str:
    text = text_of(f"tags[{name!r}]", value) if value else value
    if len((text or "").encode()) > MAX_TAG_BYTES:
        raise InvalidValue(f"tags[{name!r}]", f"is longer than {MAX_TAG_BYTES} bytes")
    return text or ""


def facts_of(facts: Mapping[str, str | float]) -> dict[str, str | float]:
    """What an event is to remember beside its columns: at most 16 short texts and finite numbers, by name; keys are redacted.

    Raises:
        InvalidType: no mapping, or a value that is neither a text nor a number.
        InvalidValue: too many, too long, or not finite.

    Examples:
        >>> facts_of({"latency_s": 1.2, "stop_reason": "end_turn"})
        {'latency_s': 1.2, 'stop_reason': 'end_turn'}
    """
    if not isinstance(facts, Mapping):
        raise InvalidType("facts", f"{told(facts)} is {type(facts).__name__}, not a mapping")
    if len(facts) > MAX_FACTS:
        raise InvalidValue("facts", f"{len(facts)} facts are given; {MAX_FACTS} is the most")
    return {_tag("name", name): _fact(name, value) for name, value in facts.items()}


def _fact(name: str, value: Any) -> str | float:
    if type(value) is str:
        return _checked_tag(name, value)
    if isinstance(value, str):
        return _tag(name, value)
    if isinstance(value, bool) or type(value) not in (int, float):
        raise InvalidType(f"facts[{name!r}]", f"{told(value)} is {type(value).__name__}, neither a text nor a number")
    if not -(2**53) < value < 2**53:
        raise InvalidValue(f"facts[{name!r}]", f"{told(value)} is not finite, or too large")
    number: float = value
    return number
