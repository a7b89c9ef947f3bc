"""The numbers that decisions are made from: totals per budget and window.

A charge on `lab/study` counts in the totals of `lab/study` and of `lab`, for each of their windows. Totals hang on their
window's start and are never thrown away, so what a reservation of yesterday ends with is counted yesterday.
"""

from __future__ import annotations

from collections.abc import Callable

from .limits import FOREVER, Cap, window_bounds


class Totals:
    """Sums of one budget in one window. Money is pico-dollars."""

    __slots__ = (
        "account",
        "alerted",
        "committed_requests",
        "committed_tokens",
        "committed_usd",
        "open_count",
        "reserved_requests",
        "reserved_tokens",
        "reserved_usd",
        "start",
        "unpriced_count",
    )

    def __init__(self, account: Account, start: int) -> None:
        self.account, self.start = account, start
        self.committed_usd = self.committed_tokens = self.committed_requests = 0
        self.reserved_usd = self.reserved_tokens = self.reserved_requests = 0
        self.open_count = 0  # reservations that are open
        self.unpriced_count = 0  # committed calls whose cost is not known
        self.alerted: set[tuple[str, int, float]] = set()  # resource, limit, threshold

    def numbers(self) -> tuple[int, ...]:
        """All sums, in a fixed order."""
        return (
            self.committed_usd,
            self.committed_tokens,
            self.committed_requests,
            self.reserved_usd,
            self.reserved_tokens,
            self.reserved_requests,
            self.open_count,
            self.unpriced_count,
        )

    def restore(self, numbers: tuple[int, ...]) -> None:
        """Take all sums over, in the order of `numbers`."""
        (
            self.committed_usd, self.committed_tokens, self.committed_requests,
            self.reserved_usd, self.reserved_tokens, self.reserved_requests, self.open_count, self.unpriced_count,
        ) = numbers  # fmt: skip


Load = Callable[[Totals], None]


class Account:
    """One budget's totals for one kind of window, and the limits that hold in each.

    Attributes:
        load: fills totals that are not here yet, where they are kept elsewhere; else they begin with zero.
    """

    __slots__ = ("by_start", "cap", "load", "node")

    def __init__(self, node: Node, cap: Cap, load: Load | None = None) -> None:
        self.node, self.cap, self.load = node, cap, load
        self.by_start: dict[int, Totals] = {}

    def at(self, start: int) -> Totals:
        """The totals of the window that starts then."""
        totals = self.by_start.get(start)
        if totals is None:
            totals = Totals(self, start)
            if self.load is not None:
                self.load(totals)
            self.by_start[start] = totals
        return totals


# Totals to check, with their limits in usd, tokens and requests.
Check = tuple[Totals, int | None, int | None, int | None]


class Node:
    """A budget in the tree: its limits, its accounts, and the accounts on its way up."""

    __slots__ = (
        "_checks",
        "_current",
        "_open_windows",
        "_since",
        "_slots",
        "_until",
        "_windows",
        "accounts",
        "alerting",
        "alerts",
        "anchor",
        "closed",
        "name",
        "path",
        "tz",
    )

    def __init__(self, name: str, parent: Node | None, tz: str, anchor: int, load: Load | None = None) -> None:
        self.name, self.tz, self.anchor = name, tz, anchor
        self.path: tuple[Node, ...] = (self, *(parent.path if parent else ()))
        self.accounts: list[Account] = [Account(self, Cap("", None, None, None), load)]
        self.alerts: tuple[float, ...] = ()
        self.closed = False
        self.forget()

    def forget(self) -> None:
        """Drop what was computed from limits, windows and alerts; they changed."""
        self.alerting = any(node.alerts for node in self.path)
        self._since = self._until = 0  # while which the windows are the current ones
        self._open_windows: tuple[int, ...] = ()
        self._current: tuple[Totals, ...] = ()
        self._checks: tuple[Check, ...] = ()
        self._windows: tuple[int, ...] | None = None  # which `slots` was last asked for
        self._slots: tuple[Totals, ...] = ()

    @property
    def caps(self) -> tuple[Cap, ...]:
        """The budget's own limits, one per window, the lifetime first."""
        return tuple(a.cap for a in self.accounts if any(v is not None for v in a.cap[1:]))

    def set_caps(self, caps: tuple[Cap, ...]) -> None:
        """Put these limits in force; the kinds of window stay as they were made."""
        for cap in caps:
            account = self.account(cap.window)
            if account is None:
                self.accounts.append(Account(self, cap, self.accounts[0].load))
            else:
                account.cap = cap

    def account(self, window: str) -> Account | None:
        """The account of a kind of window."""
        return next((a for a in self.accounts if a.cap.window == window), None)

    def current(self, ts: int) -> tuple[Totals, ...]:
        """The totals on the whole path that an instant counts in."""
        if not self._since <= ts < self._until:  # also where a clock that was ahead, while nothing was written, is put right
            windows, self._until = self.windows_at(ts)
            self._since, self._open_windows, self._current = max(windows, default=0), windows, self.slots(windows)
            limited = (t for t in self._current if any(v is not None for v in t.account.cap[1:]))
            self._checks = tuple((t, *t.account.cap[1:]) for t in limited)
        return self._current

    def checks(self, ts: int) -> tuple[Check, ...]:
        """The current totals that have a limit, each with its limits."""
        self.current(ts)
        return self._checks

    def open_windows(self, ts: int) -> tuple[int, ...]:
        """Starts of the current windows on the path, lifetimes left out: what an event carries."""
        self.current(ts)
        return self._open_windows

    def window_end(self) -> int:
        """When the first of the current windows on the path ends."""
        return self._until

    def windows_at(self, ts: int) -> tuple[tuple[int, ...], int]:
        """Starts of the windows on the path that contain an instant, and the first end."""
        starts, until = [], FOREVER
        for node in self.path:
            for account in node.accounts[1:]:
                start, end = window_bounds(account.cap.window, node.tz, node.anchor, ts)
                starts.append(start)
                until = min(until, end)
        return tuple(starts), until

    def slots(self, windows: tuple[int, ...]) -> tuple[Totals, ...]:
        """The totals on the path for these window starts."""
        if windows == self._windows:
            return self._slots
        starts = iter(windows)
        slots = [account.at(next(starts) if account.cap.window else 0) for node in self.path for account in node.accounts]
        self._windows, self._slots = windows, tuple(slots)
        return self._slots
