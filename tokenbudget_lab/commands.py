"""What a ledger can be asked. What each one does, exactly, stands in `docs/semantics.md`.

A command is a plain tuple of integers and strings, so that it travels to the keeper as it is. The first field is always its
id: sent twice, it is decided once and answered twice the same. Money is pico-dollars, durations are microseconds.
"""

from __future__ import annotations

from typing import NamedTuple

from .events import Tags


class SetBudget(NamedTuple):
    """Create a budget, or get it when it exists with the same limits."""

    id: str
    budget: str
    caps: tuple[tuple[str, int | None, int | None, int | None], ...]
    tz: str
    alerts: tuple[float, ...] = ()


class SetLimit(NamedTuple):
    """Change the limits of one window of a budget; `None` leaves a resource as it is.

    With `instead_of`, the limit that is to be replaced, nothing is changed where another one is in force by now.
    """

    id: str
    budget: str
    window: str | None  # None: the budget's only window, or its lifetime
    usd: int | None
    tokens: int | None
    requests: int | None
    reason: str | None = None
    instead_of: int | None = None  # of the one resource that is given


class CloseBudget(NamedTuple):
    """No new reservations below this budget, ever."""

    id: str
    budget: str


class Reserve(NamedTuple):
    """Hold resources in the budget and in all its ancestors, or nothing anywhere."""

    id: str
    budget: str
    usd: int | None
    tokens: int | None
    requests: int | None
    timeout: int
    if_lost: str  # count or release
    key: str | None = None
    wait: int = 0  # how long to stand in line
    provider: str | None = None
    model: str | None = None
    tags: Tags = ()
    detail: str | None = None


class Extend(NamedTuple):
    """Move a reservation's expiry to `timeout` from now; it never comes nearer."""

    id: str
    reservation: str
    timeout: int


class Commit(NamedTuple):
    """Record what the call used and end its reservation; with `part`, of one item of a batch."""

    id: str
    reservation: str
    usd: int | None
    tokens: int | None
    requests: int | None
    basis: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    response_id: str | None = None
    part: str | None = None
    detail: str | None = None
    budget: str | None = None  # its reservation's: where it counts if that was lost with a damaged file


class Rollback(NamedTuple):
    """Give a reservation back unused."""

    id: str
    reservation: str


class Lose(NamedTuple):
    """End a reservation whose call has an unknown fate, as its expiry would, but now."""

    id: str
    reservation: str


class Record(NamedTuple):
    """Count spend that had no reservation."""

    id: str
    budget: str
    usd: int | None
    tokens: int | None
    requests: int | None
    basis: str
    ts: int | None = None  # when it was spent; None: now
    provider: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    response_id: str | None = None
    key: str | None = None
    tags: Tags = ()
    detail: str | None = None


class Adjust(NamedTuple):
    """Set what a committed, recorded or counted entry used, in absolute amounts; `None` leaves a resource as it is."""

    id: str
    target: str
    usd: int | None
    tokens: int | None
    requests: int | None
    reason: str | None = None
    budget: str | None = None  # whose it must be, or of a budget below


class Cancel(NamedTuple):
    """Leave the line: the reserve of this id is not wanted any more."""

    id: str
    target: str


class GetBudget(NamedTuple):
    """A budget's definition."""

    id: str
    budget: str


class GetBalance(NamedTuple):
    """Committed, reserved and left, under every limit on the way up."""

    id: str
    budget: str


class ListBudgets(NamedTuple):
    """Balances of a budget's subtree, or of all, in order of their names: as many as one answer holds."""

    id: str
    below: str | None = None
    after: str | None = None  # go on behind this name


class GetEntry(NamedTuple):
    """What became of one reservation or record."""

    id: str
    target: str


class GetHead(NamedTuple):
    """The last event's `seq` and hash, and a digest of the balances that decisions are made from."""

    id: str


class AcceptClock(NamedTuple):
    """The clock of this machine is right: write again."""

    id: str


class CopyFile(NamedTuple):
    """A copy of the ledger's file and log, in a new folder beside it."""

    id: str


class Sent(NamedTuple):
    """What an open reservation was sent as: the provider's id of a batch, by which its results will be known."""

    id: str
    reservation: str
    name: str


COMMANDS: tuple[type, ...] = (
    SetBudget,
    SetLimit,
    CloseBudget,
    Reserve,
    Extend,
    Commit,
    Rollback,
    Lose,
    Record,
    Adjust,
    Cancel,
    GetBudget,
    GetBalance,
    ListBudgets,
    GetEntry,
    GetHead,
    AcceptClock,
    CopyFile,
    Sent,
)
Command = (
    SetBudget
    | SetLimit
    | CloseBudget
    | Reserve
    | Extend
    | Commit
    | Rollback
    | Lose
    | Record
    | Adjust
    | Cancel
    | GetBudget
    | GetBalance
    | ListBudgets
    | GetEntry
    | GetHead
    | AcceptClock
    | CopyFile
    | Sent
)
