"""What a store must do: keep events, in order, durably. It decides nothing.

A store is owned by one writer, or shared by several. Reading for analysis (`arrow`) may happen from another thread at the
same time and sees whole appends only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from .clock import Mark
from .conditions import Condition
from .errors import LedgerDamaged
from .events import Event
from .state import State


class Loss(NamedTuple):
    """What was given up of a damaged ledger.

    Attributes:
        seq: the first event that was missing or not the one that was acknowledged.
        acknowledged: the last event that was.
        reason: what was found.
        copy: the name of the folder with the file and its log as they were found.
    """

    seq: int
    acknowledged: int
    reason: str
    copy: str


class Store(Protocol):
    """Where the events of one ledger are kept."""

    shared: bool
    """Whether others write to it as well; what such a store does beside this stands in `sharing`."""
    where: str
    """A path or URL without secrets, for people."""
    damage: LedgerDamaged | None
    """Why it can only be read."""
    loss: Loss | None
    """What was given up and does not yet stand in the log; the next append writes that."""

    def load(self, after: int = 0) -> Iterator[Event]:
        """All events with a larger `seq`, in order.

        Raises:
            LedgerUnavailable: they cannot be read.
        """
        ...

    def proved(self, upto: int) -> Iterator[tuple[Iterable[Event], bool]]:
        """The events up to a `seq`, in order, in batches, each with whether its hashes are known to continue the chain.

        Where it is not known it may still do so.
        """
        ...

    def snapshot(self) -> State | None:
        """A fold of the first events, kept to begin with; `None`: begin with the first."""
        ...

    def append(self, events: Sequence[Event]) -> None:
        """Keep these events: all or none, and durable when this returns.

        Raises:
            StoreFailed: nothing may be acknowledged; whether they were kept is known after `reopen`.
        """
        ...

    def is_disturbed(self) -> bool:
        """Whether somebody else has changed what is kept, so that it has to be reopened before the next decision."""
        ...

    def find(self, ids: Sequence[str], keys: Sequence[tuple[str, str]]) -> list[Event]:
        """All events of the entries with these ids or (budget, key) pairs, and of the commands with these ids, in order."""
        ...

    def clock_mark(self) -> Mark | None:
        """What was kept last about the machine's clock."""
        ...

    def keep_clock_mark(self, mark: Mark) -> None:
        """Keep this about the machine's clock for the next owner; seldom, and never on the way of a call.

        Raises:
            StoreFailed: it is not sure to be kept.
        """
        ...

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,
    ) -> Any:
        """The events as a `pyarrow.RecordBatchReader`, for analysis.

        Args:
            columns: names out of `rows.COLUMNS`; all of them where `None`.
            upto: the last `seq` to read.
            where: which of those; all of them where `None`.
            uuids: ids may come as Arrow's UUIDs, which DuckDB reads faster; else they are texts.
        """
        ...

    def tend(self, state: State) -> None:
        """What is due now and then, called when everybody has an answer.

        Args:
            state: the fold of all events.

        Raises:
            StoreFailed: it has to be reopened.
        """
        ...

    def copy(self) -> str:
        """Copy what is kept; returns where the copy is.

        Raises:
            InvalidValue: there is no file to copy.
            StoreFailed: it could not be copied.
        """
        ...

    def reopen(self) -> None:
        """Find out what is really kept after a failed append; afterwards `load` tells."""
        ...

    def close(self, state: State | None = None) -> None:
        """Let go of the events; the store cannot be used again.

        Args:
            state: the fold of all events, where it is known to be: what a snapshot can be made from.
        """
        ...
