"""Counts that were asked for: each one once, and remembered under the hash of what was counted, never with its text.

Whoever wants what somebody is asking for waits for that answer. Whoever gives up, by a cancellation or Ctrl-C, takes nobody
along: one of those who wait asks in its place. Threads wait for threads, and tasks for tasks of their own loop only; so nobody
waits for a loop that it keeps from running.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from .errors import CountFailed

_Where = asyncio.AbstractEventLoop | None  # the loop of those who wait for each other; `None` for threads


class Answers:
    """The last answers, and the questions that are being asked.

    Args:
        size: how many answers are remembered; 0 remembers none.

    Examples:
        >>> answers = Answers(10)
        >>> answers.once(b"hash of a prompt", lambda: 12), answers.once(b"hash of a prompt", lambda: 99)
        (12, 12)
    """

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        self._asking: dict[tuple[_Where, bytes], Any] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def once(self, key: bytes, ask: Callable[[], int]) -> int:
        """The answer: remembered, of another thread that is asking, or asked for."""
        while True:
            mine: Future[int | CountFailed] = Future()
            tokens: int | CountFailed | None = None
            try:
                found = self._begin(None, key, mine)
                if found is mine:
                    tokens = ask()
            except CountFailed as failed:
                tokens = failed
                raise
            finally:
                self._end(None, key, mine, tokens)
            if tokens is not None or isinstance(found, int):
                return _given(found if tokens is None else tokens)
            with contextlib.suppress(CancelledError):
                return _given(found.result())

    async def once_async(self, key: bytes, ask: Callable[[], Awaitable[int]]) -> int:
        """The same among the tasks of a loop."""
        loop = asyncio.get_running_loop()
        while True:
            mine: asyncio.Future[int | CountFailed] = loop.create_future()
            tokens: int | CountFailed | None = None
            try:
                found = self._begin(loop, key, mine)
                if found is mine:
                    tokens = await ask()
            except CountFailed as failed:
                tokens = failed
                raise
            finally:
                self._end(loop, key, mine, tokens)
            if tokens is not None or isinstance(found, int):
                return _given(found if tokens is None else tokens)
            await asyncio.wait([found])  # which leaves it alone when this task is cancelled
            if not found.cancelled():
                return _given(found.result())

    def _begin(self, where: _Where, key: bytes, mine: Any) -> Any:
        """What is known, else who is asking, else `mine`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            return self._asking.setdefault((where, key), mine)

    def _end(self, where: _Where, key: bytes, mine: Any, tokens: int | CountFailed | None) -> None:
        """Remember the answer, and tell those who wait; without one they ask for themselves."""
        with self._lock:
            if isinstance(tokens, int):
                self._kept[key] = tokens
                if len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            if self._asking.get((where, key)) is mine:
                del self._asking[where, key]
        if tokens is None:
            mine.cancel()
        else:
            mine.set_result(tokens)


def _given(tokens: int | CountFailed) -> int:
    """An answer of somebody else; an error is raised anew, as a traceback belongs to one thread."""
    if isinstance(tokens, CountFailed):
        raise copy.copy(tokens) from tokens.__cause__
    return tokens
