"""Prices of one's own: for local and private models, set in code or written in a `prices.toml`.

    [models.qwen-local]
    input = 0.2                # USD per million tokens
    output = 0.6
    batch_discount = 0.5       # half off in a batch; without it a batch has no price

    [[models.house-model]]     # as often as its price changed
    from = 2026-10-01          # from this day on (UTC)
    input = 1
    output = "4.5"
    cache_read = 0.1           # as input where not given, as the next two
    cache_write_5m = 1.25
    cache_write_1h = 2

Numbers are read as they are written. What the file says comes before the catalogue; a mistake in it is an error with the key.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InvalidType, InvalidValue, PriceUnknown, told
from .rates import EXACT, Rates, Tariff, as_told
from .usage import pico_of, usd_of

_RATES = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_KEYS = frozenset({*_RATES, "batch_discount", "from"})
_MOST_BYTES = 1_000_000
_BATCH = {"processing": "batch"}


class OwnPrice(NamedTuple):
    """What a model costs from one day on; `None` for any day."""

    since: date | None
    tariff: Tariff
    batch: Tariff | None

    def for_context(self, model: str, context: Mapping[str, str] | None) -> Tariff:
        """The tariff of a context; nothing but a batch can have a price of its own here."""
        if not context:
            return self.tariff
        if self.batch is not None and dict(context) == _BATCH:
            return self.batch
        raise PriceUnknown(model, f"{self.tariff.source}, without a price for {as_told(context)}")


def own_price(
    source: str, model: str, prices: Mapping[str, Any], *, since: date | None = None, where: str = "", suffix: str = ""
) -> OwnPrice:
    """Read what somebody says that a model costs.

    Args:
        source: who says so.
        model: its name.
        prices: USD per million tokens by kind, and `batch_discount`; `None` is as good as absent.
        since: the first day.
        where, suffix: what stands before and behind a key in an error.

    Raises:
        InvalidValue: a price that is negative, not finite or no number; a discount that is not in 0 … 1.
    """

    def usd(key: str) -> Decimal | None:
        value = prices.get(key)
        with localcontext(EXACT):
            return None if value is None else usd_of(pico_of(f"{where}{key}{suffix}", value))

    plain, output, read, five, hour = map(usd, _RATES)
    for key, given in (("input", plain), ("output", output)):
        if given is None:
            raise InvalidValue(f"{where}{key}{suffix}", "is missing: USD per million tokens (0 is allowed, when it is said)")
    read, five, hour = (plain if rate is None else rate for rate in (read, five, hour))
    rates = Rates(plain, read, five, hour, output, reasoning=output)
    discount = prices.get("batch_discount")
    batch = None if discount is None else (rates.times(1 - _part(f"{where}batch_discount", discount)),)
    return OwnPrice(since, Tariff((), (rates,), source, model), None if batch is None else Tariff((), batch, source, model))


def on_day(entries: Iterable[OwnPrice], at: datetime) -> OwnPrice | None:
    """The newest entry that holds at a time (UTC)."""
    held = [entry for entry in entries if entry.since is None or entry.since <= at.date()]
    return max(held, key=lambda entry: entry.since or date.min, default=None)


def prices_path() -> Path | None:
    """The user's `prices.toml`: `TOKENBUDGET_PRICES`, else the one in her config folder; `None` where there is none.

    `TOKENBUDGET_PRICES=off` leaves it out. A relative path is refused: a cost must not depend on the working folder.
    """
    named = os.environ.get("TOKENBUDGET_PRICES")
    if named == "off":
        return None
    if named:
        path = Path(named).expanduser()
        if not path.is_absolute():
            raise InvalidValue("TOKENBUDGET_PRICES", f"{named!r} is relative, and a cost must not depend on the working folder")
        return path
    import platformdirs

    path = Path(platformdirs.user_config_dir("tokenbudget_lab", appauthor=False), "prices.toml")
    return path if path.exists() else None


def read_prices(path: Path) -> dict[str, tuple[OwnPrice, ...]]:
    """Read a `prices.toml`.

    Args:
        path: the file.

    Returns:
        What each model costs, by its name in small letters.

    Raises:
        InvalidValue: the file cannot be read, is no TOML, or says something that is no price; with the key.
    """
    if path.exists() and not path.is_file():
        raise InvalidValue(str(path), "is no regular file")
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise InvalidValue(str(path), f"is longer than {_MOST_BYTES:,} bytes; is it a price list?")
        content = tomllib.loads(raw.decode("utf-8"), parse_float=Decimal)
    except OSError as error:
        raise InvalidValue(str(path), f"cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(str(path), f"is no TOML ({error})") from error
    if unknown := content.keys() - {"models"}:
        raise InvalidValue(f"{path}, {min(unknown)}", "is not known here; prices stand below [models.NAME]")
    source = f"{path.name} {hashlib.sha256(raw).hexdigest()[:8]}"
    found: dict[str, tuple[OwnPrice, ...]] = {}
    for model, told_ in _table(f"{path}, models", content.get("models", {})).items():
        where = f"{path}, models.{model}"
        if model.lower() in found or not model:
            raise InvalidValue(where, "is there twice (capitals do not matter)" if model else "has no name")
        found[model.lower()] = _entries(source, where, model, told_)
    return found


def _entries(source: str, where: str, model: str, told_: Any) -> tuple[OwnPrice, ...]:
    tables = told_ if isinstance(told_, list) else [told_]
    entries = tuple(_entry(source, where, model, table) for table in tables)
    days = [entry.since for entry in entries]
    if len(set(days)) < len(days) or not days:
        raise InvalidValue(f"{where}.from", "is the same day twice; one price holds at a time" if days else "has no prices")
    return entries


def _entry(source: str, where: str, model: str, table: Any) -> OwnPrice:
    table = _table(where, table)
    if unknown := table.keys() - _KEYS:
        raise InvalidValue(f"{where}.{min(unknown)}", f"is not known here; known are {', '.join(sorted(_KEYS))}")
    since = table.get("from")
    if since is not None and type(since) is not date:
        raise InvalidType(f"{where}.from", f"{told(since)} is no day, such as 2026-10-01")
    return own_price(source, model, table, since=since, where=f"{where}.")


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidType(where, f"{told(value)} is {type(value).__name__}, not a table of prices")
    return value


def _part(argument: str, value: Any) -> Decimal:
    part = usd_of(pico_of(argument, value))
    if part > 1:
        raise InvalidValue(argument, f"{told(value)} is not in 0 … 1; 0.5 is half off")
    return part
