"""How much to hold for an answer whose length nobody knows: the longest that is allowed, or what the ledger's own calls teach.

Holding `max_tokens` for every call blocks a budget with calls that use a tenth of it. So once twenty answers of a model and
these tags were measured, the length that 99 in 100 of them stay under is held: never more than is allowed, and what turns out
longer is recorded as an overrun, as the money is gone.
"""

from __future__ import annotations

import math
import threading
from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .ledger import Ledger

ENOUGH = 20  # measured answers, from which on their lengths are held
USUAL_MOST = 8_192  # where a request names no maximum
_SHARE = 0.99
_KEPT = 1_000  # of the newest lengths; prompts change
_REPLIES = 10_000  # of the newest, whose tokens are known without asking the ledger
_Key = tuple[str, frozenset[tuple[str, str]]]


class Held(NamedTuple):
    """Output tokens to be held for one answer, and why so many: `worst`, or `auto: …`."""

    tokens: int
    how: str


class Lengths:
    """The lengths of measured answers, the newest thousand; and the one that 99 in 100 stay under."""

    def __init__(self, known: Sequence[int] = ()) -> None:
        self._newest = deque(known[-_KEPT:], _KEPT)
        self._sorted = sorted(self._newest)

    def add(self, tokens: int) -> None:
        """One more was measured."""
        if len(self._newest) == _KEPT:
            self._sorted.remove(self._newest[0])
        self._newest.append(tokens)
        insort(self._sorted, tokens)

    def most(self) -> int | None:
        """What 99 in 100 stay under, and the next one too; `None` while too few are known.

        Examples:
            >>> Lengths(range(1, 20)).most(), Lengths(range(1, 201)).most()
            (None, 199)
        """
        known = len(self._sorted)
        if known < ENOUGH:
            return None
        return self._sorted[min(known, math.ceil(_SHARE * (known + 1))) - 1]

    def __len__(self) -> int:
        return len(self._sorted)


class Holds:
    """What a ledger's calls teach, by model and tags; read from the ledger once, and learned on from this process's own calls.

    Args:
        ledger: whose calls.
    """

    def __init__(self, ledger: Ledger) -> None:
        # Reentrant: a collection in the midst of learning may end a stream, which teaches something too.
        self._ledger, self._lock, self._reading = ledger, threading.RLock(), threading.Lock()
        self._known: dict[_Key, Lengths] = {}
        self._replies: dict[str, int] = {}

    def is_known(self, model: str, tags: Mapping[str, str]) -> bool:
        """Whether the ledger was read for these; reading it takes a moment."""
        return (model, frozenset(tags.items())) in self._known

    def read(self, model: str, tags: Mapping[str, str]) -> None:
        """Read the ledger's measured calls of a model with these tags."""
        from .lengths import measured

        key = (model, frozenset(tags.items()))
        with self._reading:  # two hundred calls that begin at once read it once
            if key not in self._known:
                lengths = Lengths(measured(self._ledger, model, tags))  # type: ignore[arg-type] # a ledger with frames
                with self._lock:
                    self._known[key] = lengths

    def learn(self, model: str, tags: Mapping[str, str], tokens: int) -> None:
        """One more answer was measured."""
        with self._lock:
            lengths = self._known.get((model, frozenset(tags.items())))
            if lengths is not None:
                lengths.add(tokens)

    def remember(self, response_id: str, tokens: int) -> None:
        """What a reply and its request came to; a later call may have the model read them again."""
        with self._lock:
            self._replies[response_id] = tokens
            if len(self._replies) > _REPLIES:
                del self._replies[next(iter(self._replies))]

    def of_reply(self, response_id: str) -> int | None:
        """The same of one of the newest of this process; asking the ledger takes a moment."""
        with self._lock:
            return self._replies.get(response_id)

    def auto(self, model: str, tags: Mapping[str, str], most: int) -> Held:
        """What to hold for an answer of at most so many tokens."""
        with self._lock:
            lengths = self._known.get((model, frozenset(tags.items())))
            learned = None if lengths is None else lengths.most()
            known = 0 if lengths is None else len(lengths)
        if learned is None or learned >= most:
            return Held(most, "worst")
        return Held(max(learned, 1), f"auto: 99% of {known:,} answers")
