"""What a store must do: keep events, in order, durably. It decides nothing.

A store is owned by one writer. Reading for analysis (`arrow`) may happen from another thread at the same time and sees
whole appends only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from .events import Event


class Store(Protocol):
    """Where the events of one ledger are kept."""

    where: str
    """A path or URL without secrets, for people."""

    def load(self, after: int = 0) -> Iterator[Event]:
        """All events with a larger `seq`, in order.

        Raises:
            LedgerUnavailable: they cannot be read.
        """
        ...

    def append(self, events: Sequence[Event]) -> None:
        """Keep these events: all or none, and durable when this returns.

        Raises:
            StoreFailed: nothing may be acknowledged; whether they were kept is known after `reopen`.
        """
        ...

    def find(self, ids: Sequence[str], keys: Sequence[tuple[str, str]]) -> list[Event]:
        """All events of the entries with these ids or (budget, key) pairs, and of the commands with these ids, in order."""
        ...

    def arrow(self, columns: Sequence[str] | None = None, upto: int | None = None) -> Any:
        """The events as a `pyarrow.RecordBatchReader`, for analysis.

        Args:
            columns: names out of `rows.COLUMNS`; all of them where `None`.
            upto: the last `seq` to read.
        """
        ...

    def reopen(self) -> None:
        """Find out what is really kept after a failed append; afterwards `load` tells."""
        ...

    def close(self) -> None:
        """Let go of the events; the store cannot be used again."""
        ...
