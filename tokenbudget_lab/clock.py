"""Whether the machine's clock can be believed: a clock that is moved ahead opens windows, and money, that are not due.

A clock is compared with one that nobody sets, the time since the machine started. What they differed by is kept beside the
ledger (a `Mark`), so that the next owner compares with the same, as long as the machine is not started again; and that writing
was stopped because the clock was ahead is kept until the clock is accepted, or right again.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

JUMP_S = 3600.0  # against the time since the machine started
BEHIND_S = 300.0  # at a start, against the last event
_SETTLED_NS = 1_000_000_000  # two clocks that go together differ by less, from one start of an owner to the next


def boot_ns() -> int:
    """Nanoseconds since the machine started, sleep included where the system tells.

    References:
        clock_gettime(2) of Linux: `CLOCK_BOOTTIME` also counts while the system is suspended. clock_gettime(3) of macOS:
        `CLOCK_MONOTONIC_RAW` goes on in sleep as `CLOCK_MONOTONIC` does, and no adjustment of time reaches it; what Python's
        `time.monotonic` takes there (`mach_absolute_time`) stands still in sleep.
    """
    if sys.platform == "darwin":
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()


def boot_id() -> str | None:
    """Which start of the machine `boot_ns` counts from; `None` where the system does not tell.

    A container may have a time since the start of its own (time_namespaces(7)), so that namespace is part of it.
    """
    if sys.platform == "darwin":
        text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
        with contextlib.suppress(OSError, AttributeError):
            if ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, ctypes.c_size_t(0)) == 0:
                return text.value.decode("ascii", "replace") or None
        return None
    with contextlib.suppress(OSError):
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        with contextlib.suppress(OSError):
            started += f" {Path('/proc/self/ns/time').readlink()}"
        return started
    return None


class Ahead(NamedTuple):
    """That a clock was found ahead, and writing stopped."""

    clock: int  # what it said then, Unix microseconds
    by_s: float


class Mark(NamedTuple):
    """What an owner of the ledger leaves to the next one about the machine's clock."""

    boot: str | None  # which start of the machine the next one is about
    offset: int  # the clock less the time since that start, nanoseconds, when it was believed
    ahead: Ahead | None = None  # while writing is stopped for it


class Watch:
    """Compares a clock with one that nobody sets.

    Args:
        clock_ns: Unix nanoseconds.
        boot_ns: nanoseconds since the machine started.
        boot: which start that was; `None` where nobody knows.
        kept: what was left by the owner before.
        keep: called with what is to be left to the next, seldom.
        last: the last event's instant, Unix microseconds; a clock that is behind it at a start is not believed.
        accepted: what a clock said that was accepted as right before, if any: from there on it may be behind.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int],
        boot_ns: Callable[[], int],
        *,
        boot: str | None = None,
        kept: Mark | None = None,
        keep: Callable[[Mark], None] = lambda _: None,
        last: int = 0,
        accepted: int | None = None,
    ) -> None:
        self._clock_ns, self._boot_ns, self._boot, self._keep = clock_ns, boot_ns, boot, keep
        self._last, self._accepted = last, accepted
        self._known = kept is not None and boot is not None and kept.boot == boot  # else this clock is all there is
        self._mark = (
            kept if kept is not None and self._known else Mark(boot, self._offset(), None if kept is None else kept.ahead)
        )
        self._doubted = True  # something beside the offset has to be right
        self._behind = True
        # Small steps are no jump, and must not add up to one over the weeks: each start begins from what it finds.
        if self.wrong_s() is None and (not self._known or abs(self._offset() - self._mark.offset) > _SETTLED_NS):
            self.accept()

    def _offset(self) -> int:
        return self._clock_ns() - self._boot_ns()

    def accept(self) -> None:
        """The clock is right now."""
        self._mark, self._known = Mark(self._boot, self._offset()), True
        self._behind = self._doubted = False
        self._keep(self._mark)

    def wrong_s(self) -> float | None:
        """By how much the clock is wrong, if more than an hour, or at a start five minutes behind; negative is back."""
        moved = (self._clock_ns() - self._boot_ns() - self._mark.offset) / 1e9
        if not self._doubted and -JUMP_S <= moved <= JUMP_S:
            return None
        return self._doubt(moved)

    def _doubt(self, moved: float) -> float | None:
        clock, ahead = self._clock_ns() // 1000, self._mark.ahead
        self._doubted = True
        if ahead is not None and not self._known:  # stopped before the machine was started again
            if clock >= ahead.clock - BEHIND_S * 1e6:
                return ahead.by_s
            self._mark = self._mark._replace(ahead=None)
        if self._behind:
            behind = behind_s(clock, self._last, self._accepted)
            if behind is not None:
                return behind
            self._behind = False
        if not self._known:  # its offset was taken while it was not believed
            self.accept()
            return None
        if abs(moved) > JUMP_S:
            if moved > 0 and ahead is None:
                self._mark = self._mark._replace(ahead=Ahead(clock, moved))
                self._keep(self._mark)
            return moved
        if ahead is not None:
            self._mark = self._mark._replace(ahead=None)
            self._keep(self._mark)
        self._doubted = False
        return None


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
