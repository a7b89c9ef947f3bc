"""A batch of calls as one reservation: held as a whole before it is sent, settled item by item, whenever and wherever that is.

Its hold has no expiry: it ends when every item is settled, or when somebody gives it back. An item is a part of the reservation
under its own name, so it counts once, however often its result is read. What was not billed is a part that used nothing; what
nobody can tell is no part, and takes what is left of the hold with it in the end, as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .checks import text_of
from .commands import Commit, Lose, Rollback, Sent
from .errors import UnknownReservation, shown
from .reported import Reported
from .reservation import Counted, Receipt, counts_of, with_facts
from .terms import Terms

if TYPE_CHECKING:
    from .connection import Ledger

BATCH = Terms(batch=True)
_LISTED = """
with batches as (
    select reservation, budget, provider, model, ts, held_usd, ((detail -> 'batch') ->> 'items')::bigint as items
    from events where kind = 'reserved' and (detail -> 'batch') is not null
),
later as (
    select reservation,
           arg_max(response_id, seq) filter (kind = 'sent') as name,
           count(*) filter (kind = 'part_committed') as settled,
           count(*) filter (kind = 'part_committed' and (usd is null or basis <> 'measured')) as unknown
    from events where reservation in (select reservation from batches) group by reservation
)
select b.*, l.name, l.settled, l.unknown, c.state, c.cost_usd
from batches b join later l using (reservation) join calls c using (reservation)
where $name is null or l.name = $name or b.reservation::varchar = $name
order by b.ts
"""
_SETTLED = "select key from events where kind = 'part_committed' and reservation = $reservation::uuid"


@dataclass(frozen=True, slots=True)
class BatchState:
    """What a ledger knows of a batch.

    Attributes:
        reservation: its id in the ledger.
        name: the provider's id of it; `None` where the answer to its sending was lost, or has not come.
        model: of all its items; `None` where they have several.
        items, settled: how many it has, and how many of them count already.
        unknown: how many of those have no cost.
        held_usd: what was held for it; `None` where USD were not.
        cost_usd: what counts for it now.
        state: `open`, `committed`, `rolled_back` or `counted`.
    """

    reservation: str
    budget: str
    provider: str | None
    name: str | None
    model: str | None
    items: int
    settled: int
    unknown: int
    held_usd: Decimal | None
    cost_usd: Decimal | None
    created: datetime
    state: str

    def of(self, ledger: Ledger) -> Batch:
        """The batch itself, to settle it."""
        return Batch(ledger, self.reservation, self.budget, self.model, self.created)

    def __str__(self) -> str:
        name = "its id at the provider is not known" if self.name is None else shown(self.name)
        cost = "" if self.cost_usd is None else f", ${self.cost_usd:,.4f}"
        held = "" if self.held_usd is None or self.state != "open" else f" of ${self.held_usd:,.4f} held"
        return f"{shown(self.budget)}: batch {name}, {self.settled:,} of {self.items:,} settled{cost}{held}, {self.state}"


class Batch:
    """A batch that is in a ledger; from any process.

    Args:
        ledger: which one.
        reservation: the batch's id in it.
        budget: where it counts.
        model: of its items, where they do not say theirs.
        at: when it was made: its items are priced by that day, whenever they are settled; now where not given.
    """

    def __init__(self, ledger: Ledger, reservation: str, budget: str, model: str | None, at: datetime | None = None) -> None:
        self.ledger, self.reservation, self.budget, self.model, self.at = ledger, reservation, budget, model, at

    def sent_as(self, name: str) -> Receipt[str]:
        """Note the provider's id of it, by which its results will be known."""
        return self._submit(Sent(self.ledger.new_id(), self.reservation, text_of("name", name) or ""))

    def settle(self, item: str, reply: Any, facts: Mapping[str, str | float] | None = None) -> Receipt[Counted]:
        """Count what an item used; the same item again counts nothing more.

        Args:
            item: its name, such as its `custom_id`.
            reply: the provider's whole reply to it, or its usage.
            facts: what else its event is to remember.

        Raises:
            InvalidType: nothing can be read of what it used.

        Raises (when the receipt is read):
            ReservationClosed: it was settled with other amounts before, or the batch has ended.
        """
        used = Reported.of(reply)
        pico, detail = self.ledger.cost(used, self.model or used.model, BATCH, self.at)
        return self._part(item, used, pico, with_facts(detail, facts))

    def not_billed(self, item: str, outcome: str) -> Receipt[Counted]:
        """Settle an item that the provider does not bill: it errored, was cancelled, or expired."""
        return self._part(item, None, 0, with_facts(None, {"outcome": outcome}))

    def settled_items(self) -> set[str]:
        """The names of the items that count already."""
        found = self.ledger.sql(_SETTLED, reservation=self.reservation)
        return set(found["key"].to_list())

    def finish(self, *, unknown: bool = False) -> Receipt[Any]:
        """End it: every item has been settled, and the rest of the hold is given back.

        Args:
            unknown: what some items used is not known: then the rest of the hold counts, as unknown.
        """
        if unknown:
            return self._submit(Lose(self.ledger.new_id(), self.reservation))
        return self._submit(Commit(self.ledger.new_id(), self.reservation, 0, 0, 0, "measured", budget=self.budget))

    def rollback(self) -> Receipt[str]:
        """Give all of its hold back: it was never sent."""
        return self._submit(Rollback(self.ledger.new_id(), self.reservation))

    def _part(self, item: str, used: Reported | None, pico: int | None, detail: str | None) -> Receipt[Counted]:
        tokens = 0 if used is None else used.tokens
        command = Commit(
            self.ledger.new_id(), self.reservation, pico, tokens, 0 if used is None else 1, "measured", *counts_of(used),
            None if used is None else used.response_id, text_of("item", item), detail, self.budget,
        )  # fmt: skip
        return self._submit(command)

    def _submit(self, command: Any) -> Receipt[Any]:
        return self.ledger.submit(command, self.reservation)

    def __repr__(self) -> str:
        return f"Batch({self.reservation} on {shown(self.budget)})"


def batches(ledger: Ledger, name: str | None = None, *, ended: bool = False) -> list[BatchState]:
    """The batches of a ledger, the oldest first.

    Args:
        ledger: which one.
        name: only that of this id, the provider's or the ledger's.
        ended: those that have ended, too.
    """
    rows = ledger.sql(_LISTED, name=name).to_dicts()
    found = [_state(row) for row in rows]
    return [each for each in found if ended or each.state == "open"]


def batch(ledger: Ledger, name: str) -> Batch:
    """A batch by its id, the provider's or the ledger's.

    Raises:
        UnknownReservation: it is not in this ledger.
    """
    found = batches(ledger, name, ended=True)
    if not found:
        raise UnknownReservation(name)
    return found[-1].of(ledger)


def _state(row: Mapping[str, Any]) -> BatchState:
    return BatchState(
        str(row["reservation"]), row["budget"], row["provider"], row["name"], row["model"], row["items"], row["settled"],
        row["unknown"], row["held_usd"], row["cost_usd"], row["ts"], row["state"],
    )  # fmt: skip
