"""Events in this process's memory: for tests and examples, gone with the process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from ..clock import Mark
from ..conditions import Condition
from ..errors import InvalidValue, LedgerDamaged
from ..events import Event
from ..rows import COLUMNS, only, to_arrow
from ..state import State
from ..store import Loss


class MemoryStore:
    """A list of events.

    Examples:
        >>> MemoryStore().where
        ':memory:'
    """

    shared = False
    where = ":memory:"
    damage: LedgerDamaged | None = None
    loss: Loss | None = None

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._clock: Mark | None = None

    def load(self, after: int = 0) -> Iterator[Event]:
        """All events with a larger `seq`, in order."""
        return islice(self._events, after, None)

    def proved(self, upto: int) -> Iterator[tuple[Iterable[Event], bool]]:
        """The events up to a `seq`, none of them proved."""
        return iter([(self._events[:upto], False)])

    def snapshot(self) -> State | None:
        """None: what is in memory is short."""
        return None

    def append(self, events: Sequence[Event]) -> None:
        """Keep these events."""
        self._events.extend(events)

    def is_disturbed(self) -> bool:
        """Never."""
        return False

    def find(self, ids: Sequence[str], keys: Sequence[tuple[str, str]]) -> list[Event]:
        """All events of these entries and commands, in order."""
        wanted, named = set(ids), set(keys)
        entries = {
            e.reservation for e in self._events if e.command in wanted or (e.key is not None and (e.budget, e.key) in named)
        }
        return [e for e in self._events if e.command in wanted or (e.reservation and e.reservation in wanted | entries)]

    def clock_mark(self) -> Mark | None:
        """What was kept last about the machine's clock."""
        return self._clock

    def keep_clock_mark(self, mark: Mark) -> None:
        """Keep this about the machine's clock."""
        self._clock = mark

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,  # noqa: ARG002 - they are texts here
    ) -> Any:
        """The events as a `pyarrow.RecordBatchReader`."""
        if where is None:
            return to_arrow(self._events[:upto], columns)
        return only(to_arrow(self._events[:upto]), COLUMNS if columns is None else columns, where)

    def tend(self, state: State) -> None:
        """Memory needs no care."""

    def copy(self) -> str:
        """There is no file."""
        raise InvalidValue("backup", "a ledger in memory has no file to copy")

    def reopen(self) -> None:
        """Memory forgets nothing while it lasts."""

    def close(self, state: State | None = None) -> None:
        """Nothing is held open; the events stay readable for whoever passed the store in."""
