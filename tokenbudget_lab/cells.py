"""What the cells of a notebook spent: the calls that this process reserved while a cell ran, whatever thread or task made them.

A call belongs to the cell in which it was reserved, also when it ends later. Who reserved it is told by the events' origin:
what other notebooks spend in the same budget meanwhile is not this cell's. What is not known is said to be so, and never
counted as nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any

from .errors import LedgerUnavailable, TokenBudgetError
from .render import amount, escaped, left_text, tightest
from .usage import EXACT

if TYPE_CHECKING:
    from .connection import Ledger
    from .handles import Budget

_COUNTED = ("committed", "counted", "recorded")


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent.

    Attributes:
        calls: how many count.
        tokens: theirs, without those of `untold`.
        untold: calls that did not say their tokens.
        cost_usd: theirs, without those of `unpriced`; `None` where none of them has a known cost.
        unpriced: calls without a known cost.
        unknown_usd: of the cost, what may have been billed: calls with an unknown fate, counted as they were held.
        open: calls that have not ended yet.
        refused: calls that did not fit, and were not made.
    """

    calls: int = 0
    tokens: int = 0
    untold: int = 0
    cost_usd: Decimal | None = None
    unpriced: int = 0
    unknown_usd: Decimal = Decimal(0)
    open: int = 0
    refused: int = 0

    def __str__(self) -> str:
        if not self.calls and not self.open and not self.refused:
            return "no calls"
        said = [f"{self.calls:,} call{'' if self.calls == 1 else 's'}"]
        if self.calls:
            without = f" ({self.untold:,} did not say)" if self.untold else ""
            said.append("tokens unknown" if self.untold == self.calls else f"{self.tokens:,} tokens{without}")
            said.append("cost unknown" if self.cost_usd is None else amount(self.cost_usd, scale=self.cost_usd))
        if self.cost_usd is not None and self.unpriced:
            said.append(f"{self.unpriced:,} of them without a known cost, not in it")
        if self.unknown_usd:
            said.append(f"{amount(self.unknown_usd, scale=self.unknown_usd)} of it unknown, counted as held")
        if self.open:
            said.append(f"{self.open:,} not ended yet")
        if self.refused:
            said.append(f"{self.refused:,} refused")
        return ", ".join(said)

    @property
    def anything(self) -> bool:
        """Whether there was a call."""
        return bool(self.calls or self.open or self.refused)


@dataclass(slots=True)
class Ran:
    """A run of a cell.

    Attributes:
        number: as the notebook shows it: `[7]`.
        began, ended: from when until when (UTC); `None` while it runs.
        budget: the one it was put under.
    """

    number: int
    began: datetime
    ended: datetime | None = None
    budget: Budget | None = None


def now() -> datetime:
    """This moment (UTC), by the clock of this machine, as the ledger's writer has it."""
    return datetime.now(UTC)


def spent_by(ledgers: Sequence[Ledger], cells: Sequence[Ran], *, below: str | None = None) -> list[Spent]:
    """What each cell spent in these ledgers.

    Args:
        ledgers: where to look.
        cells: runs of cells, in their order.
        below: only in this budget and below it.
    """
    if not cells:
        return []
    found: list[list[tuple[Any, ...]]] = [[] for _ in cells]
    for ledger in ledgers:
        try:
            rows = _rows(ledger, cells[0].began, below)
        except TokenBudgetError:
            raise
        except Exception as error:
            raise LedgerUnavailable(f"{ledger.desk.where} cannot be read: {error}") from error
        for row in rows:
            place = next((n for n in reversed(range(len(cells))) if cells[n].began <= row[0]), 0)
            ended = cells[place].ended
            if ended is None or row[0] <= ended:
                found[place].append(row)
    return [_summed(rows) for rows in found]


def _rows(ledger: Ledger, since: datetime, below: str | None) -> list[tuple[Any, ...]]:
    """This process's calls since then: when, state, tokens, cost, basis, input tokens; then those that were refused."""
    import polars as pl

    def mine(frame: pl.LazyFrame, moment: str) -> pl.LazyFrame:
        origin = ledger.desk.origin
        same = pl.col("origin").is_null() if origin is None else pl.col("origin") == origin
        frame = frame.filter(pl.col(moment) >= since, same)
        if below is None:
            return frame
        return frame.filter((pl.col("budget") == below) | pl.col("budget").str.starts_with(f"{below}/"))

    wanted = ("reserved", "state", "tokens", "cost_usd", "basis", "input_tokens")
    calls = mine(ledger.calls(), "reserved").select(wanted).collect().rows()
    refused = mine(ledger.events().filter(pl.col("kind") == "refused"), "ts").select("ts", "kind").collect().rows()
    return [*calls, *((moment, kind, None, None, None, None) for moment, kind in refused)]


def _summed(rows: Sequence[tuple[Any, ...]]) -> Spent:
    counted = [row for row in rows if row[1] in _COUNTED]
    costs = [row[3] for row in counted if row[3] is not None]
    with localcontext(EXACT):
        return Spent(
            calls=len(counted),
            tokens=sum(row[2] or 0 for row in counted),
            untold=sum(not row[2] and row[5] is None for row in counted),
            cost_usd=sum(costs, Decimal(0)) if costs or not counted else None,
            unpriced=len(counted) - len(costs),
            unknown_usd=sum((row[3] for row in counted if row[4] == "unknown" and row[3] is not None), Decimal(0)),
            open=sum(row[1] == "open" for row in rows),
            refused=sum(row[1] == "refused" for row in rows),
        )


def line(budget: Budget, cell: Ran) -> str:
    """What a cell that was put under a budget spent in it, and what is left, in one line."""
    name = escaped(budget.name)
    try:
        balance = budget.balance
        (spent,) = spent_by([budget.ledger], [cell], below=budget.name)  # type: ignore[list-item] # what connect gives
    except TokenBudgetError as error:
        return f"{name}: what this cell spent is not known: {error}"
    limit = tightest(balance)
    if limit is None:
        return f"{name}: {spent} in this cell"
    where = "" if limit.budget == budget.name else f" in {escaped(limit.budget)}"
    return f"{name}: {spent} in this cell · {left_text(limit)}{where}"
