"""Limits, their windows, and the names of budgets.

A window is named by a code that also stands in the events: `""` (none), `day`, `week`, `month`, or `3600s`.
Windows start and end at local midnights of the budget's time zone; a timedelta's windows follow one another from the
budget's creation. Instants are Unix microseconds.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .errors import InvalidType, InvalidValue, money, redacted, told
from .usage import pico_of, tokens_of, usd_of

Window = Literal["day", "week", "month"] | timedelta | None
RESOURCES = ("usd", "tokens", "requests")
MAX_DEPTH = 32
MAX_NAME = 512
MAX_WINDOW_S = 36_525 * 86_400  # 100 years
FOREVER = 2**62  # later than any instant a window ends at


class Cap(NamedTuple):
    """One window's limits inside the core; `None` means that the resource is not limited there."""

    window: str
    usd: int | None  # pico-dollars
    tokens: int | None
    requests: int | None


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that may be used, in all or per window.

    Args:
        usd: US dollars (`int`, `Decimal` or `str`; a float is read as the number it prints).
        tokens: input and output together.
        requests: calls.
        window: `None` (in all), `"day"`, `"week"` (from Monday), `"month"`, or a `timedelta` of a second or more.

    Raises:
        InvalidValue: no resource at all, a negative amount, an unknown window.

    Examples:
        >>> Limit(usd=20, window="day")
        Limit(usd=Decimal('20'), window='day')
    """

    usd: Any = None
    tokens: int | None = None
    requests: int | None = None
    window: Window = None

    def __post_init__(self) -> None:
        if self.usd is not None:
            object.__setattr__(self, "usd", usd_of(pico_of("usd", self.usd)))
        for name in ("tokens", "requests"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tokens_of(name, getattr(self, name)))
        if self.usd is None and self.tokens is None and self.requests is None:
            raise InvalidValue("limit", "limits nothing: give usd=…, tokens=… or requests=…")
        window_code(self.window)

    def __repr__(self) -> str:
        given = ((n, getattr(self, n)) for n in ("usd", "tokens", "requests", "window"))
        return f"Limit({', '.join(f'{n}={v!r}' for n, v in given if v is not None)})"

    def cap(self) -> Cap:
        """This limit in the core's integers."""
        usd = None if self.usd is None else pico_of("usd", self.usd)
        return Cap(window_code(self.window), usd, self.tokens, self.requests)


def caps_of(limits: Iterable[Limit]) -> tuple[Cap, ...]:
    """Fold limits into one cap per window, the lifetime first.

    Raises:
        InvalidValue: the same resource is limited twice in the same window.
    """
    caps: dict[str, Cap] = {}
    for limit in limits:
        if not isinstance(limit, Limit):
            raise InvalidType("limits", f"{limit!r} is no tbl.Limit")
        new = limit.cap()
        old = caps.get(new.window)
        if old is None:
            caps[new.window] = new
            continue
        if any(a is not None and b is not None for a, b in zip(old[1:], new[1:], strict=True)):
            raise InvalidValue("limits", f"the same resource is limited twice per {new.window or 'lifetime'}")
        caps[new.window] = Cap(new.window, *(b if a is None else a for a, b in zip(old[1:], new[1:], strict=True)))
    return tuple(sorted(caps.values()))


def describe(caps: Iterable[Cap], tz: str = "UTC") -> str:
    """Limits as people say them.

    Examples:
        >>> describe(caps_of([Limit(usd=150), Limit(tokens=1000, window="day")]))
        '$150.00; 1,000 tokens per day (UTC)'
    """
    parts = []
    for cap in caps:
        amounts = [money(usd_of(cap.usd))] if cap.usd is not None else []
        amounts += [f"{cap.tokens:,} tokens"] if cap.tokens is not None else []
        amounts += [f"{cap.requests:,} requests"] if cap.requests is not None else []
        per = f" per {window_text(cap.window)} ({tz})" if cap.window else ""
        parts.append(f"{', '.join(amounts)}{per}")
    return "; ".join(parts) or "no limit"


def window_code(window: Window) -> str:
    """The code of a window, as events carry it.

    Raises:
        InvalidValue: no such window, or a timedelta under a second or over 100 years.

    Examples:
        >>> window_code(None), window_code("day"), window_code(timedelta(hours=1))
        ('', 'day', '3600s')
    """
    if window is None:
        return ""
    if isinstance(window, timedelta):
        seconds = window.total_seconds()
        if not 1 <= seconds <= MAX_WINDOW_S or window.microseconds:
            raise InvalidValue("window", f"{window} is not a whole number of seconds between 1 s and 100 years")
        return f"{int(seconds)}s"
    if window not in ("day", "week", "month"):
        raise InvalidValue("window", f"{window!r} is not None, 'day', 'week', 'month' or a timedelta")
    return str(window)


def must_be_code(code: str) -> None:
    """Check a window's code where it comes from elsewhere.

    Raises:
        InvalidValue: `window_code` gives none like it.
    """
    if code not in ("", "day", "week", "month"):
        seconds = int(code[:-1]) if code[-1:] == "s" and code[:-1].isascii() and code[:-1].isdigit() and len(code) < 12 else 0  # noqa: PLR2004 - 100 years have ten digits
        if not 1 <= seconds <= MAX_WINDOW_S or code != f"{seconds}s":
            raise InvalidValue("window", f"{told(code)} is no window's code")


def window_text(code: str) -> str:
    """A window as people say it.

    Examples:
        >>> window_text("day"), window_text("43200s"), window_text("604800s"), window_text("90s")
        ('day', '12 h', '7 d', '90 s')
    """
    if not code.endswith("s"):
        return code
    seconds = int(code[:-1])
    size, unit = next(
        (size, unit) for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")) if seconds % size == 0
    )
    return f"{seconds // size} {unit}"


def zone(tz: str) -> ZoneInfo:
    """The time zone of an IANA name.

    Raises:
        InvalidValue: there is none.
    """
    try:
        return _zone(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise InvalidValue("tz", f"{tz!r} is no time zone; use an IANA name such as 'Europe/Berlin'") from None


@lru_cache(maxsize=64)
def _zone(tz: str) -> ZoneInfo:
    return ZoneInfo(tz)


def window_bounds(code: str, tz: str, anchor_us: int, at_us: int) -> tuple[int, int]:
    """The window that contains an instant: start (in it) and end (no longer in it), Unix microseconds.

    Args:
        code: the window's code.
        tz: the zone whose midnights count, for day, week and month.
        anchor_us: where the first timedelta window started.
        at_us: the instant.

    Examples:
        >>> window_bounds("3600s", "UTC", 0, 5_000_000_000)
        (3600000000, 7200000000)
    """
    if not code:
        return 0, FOREVER
    if code.endswith("s"):
        length = int(code[:-1]) * 1_000_000
        start = anchor_us + (at_us - anchor_us) // length * length
        return start, start + length
    local = datetime.fromtimestamp(at_us // 1_000_000, UTC).astimezone(zone(tz))
    first = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0, tzinfo=None)
    if code == "week":
        first -= timedelta(days=first.weekday())
    elif code == "month":
        first = first.replace(day=1)
    start, end = _instant(first, tz), _instant(_next(code, first), tz)
    # Where a clock change skips or repeats midnight, the instant itself decides on which side it falls.
    return (start, end) if at_us < end else (end, _instant(_next(code, _next(code, first)), tz))


def _next(code: str, first: datetime) -> datetime:
    if code == "month":
        return first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return first + timedelta(days=7 if code == "week" else 1)


def _instant(naive: datetime, tz: str) -> int:
    return int(naive.replace(tzinfo=zone(tz)).timestamp()) * 1_000_000


def budget_name(name: Any) -> str:
    """Check a budget's path and bring it to Unicode's composed form (NFC).

    Raises:
        InvalidType: not a string.
        InvalidValue: empty, an empty part, `.` or `..`, white space or control characters, more than 32 parts
            or 512 characters, or what looks like an API key.

    Examples:
        >>> budget_name("lab/prompt-study")
        'lab/prompt-study'
    """
    if not isinstance(name, str):
        raise InvalidType("budget", f"{told(name)} is {type(name).__name__}, not a string")
    if not 0 < len(name) <= MAX_NAME:
        raise InvalidValue("budget", f"a name has 1 to {MAX_NAME} characters, not {len(name)}")
    if name.encode(errors="replace").decode() != name:
        raise InvalidValue("budget", "contains half a surrogate pair")
    if redacted(name) != name:
        raise InvalidValue("budget", "looks like an API key or holds one, and names are stored and shown; choose another name")
    normal: str = unicodedata.normalize("NFC", name)
    parts = normal.split("/")
    if len(parts) > MAX_DEPTH:
        raise InvalidValue("budget", f"is {len(parts)} levels deep; {MAX_DEPTH} is the most")
    for part in parts:
        if part in ("", ".", ".."):
            raise InvalidValue("budget", f"{name!r} has an empty part, '.' or '..'; write it like 'lab/study/run-7'")
        if any(c.isspace() or unicodedata.category(c) == "Cc" for c in part):
            raise InvalidValue("budget", f"{name!r} has white space or control characters; use '-' or '_'")
    return normal


def path_of(name: str) -> tuple[str, ...]:
    """A budget and its ancestors, itself first.

    Examples:
        >>> path_of("lab/study/run")
        ('lab/study/run', 'lab/study', 'lab')
    """
    parts = name.split("/")
    return tuple("/".join(parts[:n]) for n in range(len(parts), 0, -1))


def micros(moment: datetime) -> int:
    """An aware datetime as Unix microseconds.

    Raises:
        InvalidValue: it has no time zone, or lies outside 1970 … 9999.
    """
    if not isinstance(moment, datetime):
        raise InvalidType("at", f"{moment!r} is {type(moment).__name__}, not a datetime")
    if moment.tzinfo is None:
        raise InvalidValue("at", f"{moment} has no time zone; use datetime.now(timezone.utc) or .astimezone()")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    if delta < timedelta(0):
        raise InvalidValue("at", f"{moment} is before 1970")
    return delta // timedelta(microseconds=1)


def instant(us: int) -> datetime:
    """Unix microseconds as an aware datetime in UTC.

    Examples:
        >>> instant(0).isoformat()
        '1970-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(us // 1_000_000, UTC) + timedelta(microseconds=us % 1_000_000)


def left_of(limit: int | None, committed: int, reserved: int) -> int | None:
    """What a limit can still promise; negative after an overrun."""
    return None if limit is None else limit - committed - reserved


def decimal_or_int(resource: str, amount: int) -> Decimal | int:
    """An amount at the edge: `Decimal` for USD, an integer for counts."""
    return usd_of(amount) if resource == "usd" else amount
