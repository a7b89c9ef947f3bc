"""Many things of which few are different, in little room: each different one once, and four bytes for each of them all."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T", bound=Hashable)


class Tally(Generic[T]):
    """Things in the order in which they were added.

    Examples:
        >>> tally = Tally()
        >>> tally.add(["spam", "ham", "spam"])
        >>> list(tally), tally.different, tally.numbers().to_list()
        (['spam', 'ham', 'spam'], ['spam', 'ham'], [0, 1, 0])
    """

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self._order = array("I")

    @property
    def different(self) -> list[T]:
        """Each of them once, in the order in which they first came."""
        return list(self._numbers)

    def add(self, things: Iterable[T]) -> None:
        """Add more."""
        numbers = self._numbers
        self._order.extend(numbers.setdefault(thing, len(numbers)) for thing in things)

    def numbers(self) -> pl.Series:
        """For each of them, which of the different ones it is; not copied, so nothing may be added later."""
        import polars as pl
        import pyarrow as pa

        kept = pa.Array.from_buffers(pa.uint32(), len(self._order), [None, pa.py_buffer(self._order)])
        return pl.Series(pl.from_arrow(kept))

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[T]:
        return map(self.different.__getitem__, self._order)
