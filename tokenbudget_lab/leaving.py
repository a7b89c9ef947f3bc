"""Questions that threads of others ask, ended before Python ends.

Polars asks for the next part of a frame in threads of its own, and for more than a query needs in the end. A thread that comes
out of DuckDB or a socket when Python has gone would abort the process.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from .errors import LedgerUnavailable

T = TypeVar("T")
_PATIENCE_S = 5.0
_leaving = threading.Event()
_asked: set[object] = set()
_ends: dict[object, Callable[[], None]] = {}


@contextmanager
def ending_by(end: Callable[[], None]) -> Iterator[None]:
    """While this lasts, what is asked can be ended so; it may be called more than once."""
    token = object()
    _ends[token] = end
    try:
        yield
    finally:
        _ends.pop(token, None)


def ended_in_time(parts: Iterator[T]) -> Iterator[T]:
    """The same parts, none of which is asked for when Python ends.

    Raises:
        LedgerUnavailable: Python is about to end; fewer parts than there are must not look like all.
    """
    while not _leaving.is_set():
        token = object()
        _asked.add(token)
        try:
            part = next(parts)
        except StopIteration:
            return
        finally:
            _asked.discard(token)
        yield part
    raise LedgerUnavailable("Python is about to end")


@atexit.register
def _leave() -> None:
    """End what is asked, and wait for it, not for ever."""
    _leaving.set()
    until = time.monotonic() + _PATIENCE_S
    some = bool(_asked)
    while _asked and time.monotonic() < until:
        for end in list(_ends.values()):
            with suppress(Exception):  # it has ended by itself meanwhile
                end()
        time.sleep(0.02)
    if some:
        time.sleep(0.2)  # those who asked come out of Python
