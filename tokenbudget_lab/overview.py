"""What a ledger's calls come to at one moment: what runs, what was refused, and what was spent, over time and by one label.

All of it is computed from the events by the same analyses as a report. What is left out of it is counted, never dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import polars as pl

from .commands import GetHead
from .connection import Ledger
from .figures import length_between
from .frames import tag
from .spending import spend

MOST_RUNNING, MOST_REFUSED, MOST_GROUPS, MOST_LABELS = 6, 5, 8, 30
_COLUMNS = ("spent_at", "requests", "input_tokens", "output_tokens", "tokens", "cost_usd", "basis", "tags", "model", "budget")
_HELD = ("reserved_usd", "reserved_tokens", "reserved_requests")
_FINE = ((timedelta(minutes=5), "5s"), (timedelta(minutes=45), "1m"), (timedelta(hours=6), "10m"))


class Label(NamedTuple):
    """What spend can be told by: a tag, or a column of the calls that every call has."""

    name: str
    is_tag: bool = True


ALWAYS = (Label("model", is_tag=False), Label("budget", is_tag=False))


@dataclass(frozen=True, slots=True)
class Running:
    """A reservation that is open.

    Attributes:
        since: when it was granted (UTC).
        usd, tokens, requests: what it holds; `None` where it holds none of these.
    """

    budget: str
    model: str | None
    since: datetime
    usd: Any
    tokens: Any
    requests: Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """Reserves that did not fit; those of one minute for the same reason are one.

    Attributes:
        budget: which was asked.
        by: whose limit it was.
        requested: of its resource; `None` where only more of the same were counted.
        left, limit: of the same resource, when the first of them was refused.
        count: how many they are.
    """

    at: datetime
    budget: str
    by: str
    resource: str
    requested: Any
    left: Any
    limit: Any
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """What the calls of a ledger came to.

    Attributes:
        seq: the last event that is in it.
        running: the oldest open reservations, and `running_in_all` how many there are.
        refused: the newest refusals, and `refused_in_all` how many there are.
        every, periods: spend by periods of that length, as `spend` gives it.
        by, groups: spend by that label, the column `label`, as `spend` gives it.
        total: the sum of the whole, by name.
        labels: what else it can be told by.
    """

    seq: int
    running: tuple[Running, ...]
    running_in_all: int
    refused: tuple[Refusal, ...]
    refused_in_all: int
    every: str
    periods: pl.DataFrame
    by: Label
    groups: pl.DataFrame
    total: dict[str, Any]
    labels: tuple[Label, ...]


def overview(ledger: Ledger, by: Label | None = None) -> Overview:
    """Read it.

    Args:
        ledger: which.
        by: what to tell spend by; the tag that most calls have, where not given, or else the model.

    Raises:
        LedgerUnavailable: it cannot be read.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     receipt = ledger.budget("lab", usd=1).record(usd="0.25", tags={"arm": "b"})
        ...     overview(ledger).groups.select("label", "calls").rows()
        [('b', 1)]
    """
    seq = ledger.ask(GetHead(ledger.new_id()))[1]  # before the rest: what comes meanwhile is read again
    calls = ledger.calls().select(*_COLUMNS, "state", "reserved", *_HELD).collect()
    found = _labels(calls)
    by = by or found[0]
    spans = calls.filter(pl.col("requests").is_not_null())["spent_at"]
    first, last = (spans.min(), spans.max()) if spans.len() else (None, None)
    every = _every(first, last) or length_between(first, last)  # type: ignore[arg-type] # a column of moments has moments
    counted = calls.lazy().select(_COLUMNS)
    key = tag(by.name) if by.is_tag else pl.col(by.name)
    running = calls.filter(pl.col("state") == "open")
    refused, count = _refused(ledger)
    return Overview(
        seq,
        tuple(Running(*row) for row in running.head(MOST_RUNNING).select("budget", "model", "reserved", *_HELD).rows()),
        running.height,
        refused,
        count,
        every,
        spend(counted, every=every),
        by,
        spend(counted, key.alias("label")),
        spend(counted).row(0, named=True),
        found,
    )


def _every(first: Any, last: Any) -> str | None:
    """How long a period is, where all is of the last hours."""
    return None if first is None else next((every for most, every in _FINE if last - first <= most), None)


def _labels(calls: pl.DataFrame) -> tuple[Label, ...]:
    """The tags that calls have, most of them first, and what every call has."""
    names = calls.select(pl.col("tags").map.keys().explode().alias("name")).drop_nulls()
    most = names.group_by("name").len().sort(["len", "name"], descending=[True, False])
    return (*(Label(name) for name in most["name"].head(MOST_LABELS)), *ALWAYS)


def _refused(ledger: Ledger) -> tuple[tuple[Refusal, ...], int]:
    wanted = ("ts", "budget", "held_usd", "held_tokens", "requests", "detail")
    rows = ledger.events().filter(pl.col("kind") == "refused").select(wanted).collect()
    if not rows.height:
        return (), 0
    count = int(rows["detail"].str.json_path_match("$.count").cast(pl.Int64).sum())
    return tuple(_refusal(*row) for row in reversed(rows.tail(MOST_REFUSED).rows())), count


def _refusal(at: datetime, budget: str, usd: Any, tokens: Any, requests: Any, detail: str) -> Refusal:
    told = json.loads(detail)
    resource = told["resource"]
    requested = {"usd": usd, "tokens": tokens, "requests": requests}[resource]
    left, limit = (_amount(resource, told.get(name)) for name in ("left", "limit"))
    return Refusal(at, budget, told["by"], resource, requested, left, limit, told.get("count", 1))


def _amount(resource: str, text: str | None) -> Any:
    return None if text is None else Decimal(text) if resource == "usd" else int(text)
