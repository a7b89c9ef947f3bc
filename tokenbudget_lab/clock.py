"""Whether the machine's clock can be believed: a clock that is moved ahead opens windows, and money, that are not due."""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_S = 3600.0  # against the time since the machine started
BEHIND_S = 300.0  # at a start, against the last event


def boot_ns() -> int:
    """Nanoseconds since the machine started, sleep included where the system tells."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()


class Watch:
    """Compares a clock with one that nobody sets.

    Args:
        clock_ns: Unix nanoseconds.
        boot_ns: nanoseconds since some start.
    """

    def __init__(self, clock_ns: Callable[[], int], boot_ns: Callable[[], int]) -> None:
        self._clock_ns, self._boot_ns = clock_ns, boot_ns
        self.accept()

    def accept(self) -> None:
        """The clock is right now."""
        self._start = self._clock_ns() - self._boot_ns()

    def jumped_s(self) -> float | None:
        """By how much the clock was moved, if by more than an hour; negative is back."""
        moved = (self._clock_ns() - self._boot_ns() - self._start) / 1e9
        return moved if abs(moved) > JUMP_S else None


def behind_s(clock: int, last: int, accepted: int | None) -> float | None:
    """How far a clock is behind the last event when a ledger is opened, if too far; negative seconds.

    Args:
        clock, last: Unix microseconds.
        accepted: what a clock said that was accepted as right before, if any: from there on it may be behind.
    """
    behind = (clock - last) / 1e6
    if behind > -BEHIND_S or (accepted is not None and (clock - accepted) / 1e6 > -BEHIND_S):
        return None
    return behind
