"""Several counters, the best one first: the endpoint, else a local one, else an estimate.

A fall-back is announced, never silent: the count itself says who did not answer and why, and the first one of a kind is a
warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import warnings
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from ..counter import Content, Count, System, TokenCounter, Tools
from ..errors import CountFailed, EndpointUnreachable, InvalidType, InvalidValue

_KINDS = 10  # of fall-backs that are warned of; the notes name all


class FallbackTokenCounter(TokenCounter):
    """Counts with the first of its counters that can.

    Only what cannot be counted in one way is counted in the next one: wrong arguments, bugs and Ctrl-C end the count. The first
    counter is asked again each time. Only after it could not be reached it is left alone for some seconds, and those that wait
    for it wait no longer: not each of a hundred thousand waits for the same silence.

    Args:
        counters: the best one first.
        pause_s: how long a counter that cannot be reached is left alone, in seconds.
        clock: seconds that only grow.

    Raises:
        InvalidType: something that is no counter.
        InvalidValue: no counter at all, or a pause that is no length of time.

    Examples:
        >>> from tokenbudget_lab import ClaudeTokenCounter, demo_client
        >>> endpoint = ClaudeTokenCounter("claude-sonnet-5-5", client=demo_client(latency_s=(0, 0)))
        >>> print(FallbackTokenCounter(endpoint).count_sync("What is a budget?"))
        9 tokens (count_tokens)
    """

    def __init__(self, *counters: TokenCounter, pause_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        if not counters:
            raise InvalidValue("counters", "there is none; give the best one first")
        for counter in counters:
            if not isinstance(counter, TokenCounter):
                raise InvalidType("counters", f"{type(counter).__name__} is no TokenCounter")
        if not 0 <= pause_s < math.inf:
            raise InvalidValue("pause_s", f"{pause_s!r} is no number of seconds")
        self.counters = counters
        self._turns = [_Turn(counter, pause_s, clock) for counter in counters]
        self._announced: set[str] = set()

    def __repr__(self) -> str:
        return f"FallbackTokenCounter({', '.join(map(repr, self.counters))})"

    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        """How many input tokens it has, says the first counter that can tell; the count's note names those that could not.

        Raises:
            CountFailed: none of them can.
        """
        missed: list[CountFailed] = []
        for turn in self._turns:
            try:
                count = await turn.ask_async(lambda counter: counter.count(content, tools=tools, system=system))
            except CountFailed as failed:
                missed.append(failed)
            else:
                return self._answer(count, missed)
        raise _nobody(missed)

    def count_sync(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        """The same from sync code, each counter in its own way."""
        missed: list[CountFailed] = []
        for turn in self._turns:
            try:
                count = turn.ask(lambda counter: counter.count_sync(content, tools=tools, system=system))
            except CountFailed as failed:
                missed.append(failed)
            else:
                return self._answer(count, missed)
        raise _nobody(missed)

    def _answer(self, count: Count, missed: list[CountFailed]) -> Count:
        """The count, with who was asked before in its note; a warning where that is news."""
        if not missed:
            return count
        news = [said for each in missed if not isinstance(each, _LeftAlone) and (said := str(each)) not in self._announced]
        if news and len(self._announced) < _KINDS:
            self._announced.update(news)
            warnings.warn(f"tokens are counted by {count.method} instead: {'; '.join(news)}", stacklevel=3)
        return replace(count, note="; ".join([*map(str, missed), *([count.note] if count.note else [])]))


def _nobody(missed: list[CountFailed]) -> CountFailed:
    if len(missed) == 1:
        return missed[0]
    return CountFailed(" nor ".join(each.method for each in missed), "; ".join(map(str, missed)))


class _LeftAlone(CountFailed):
    """A counter that was not asked, or not waited for, since it could not be reached a moment ago."""


class _Turn:
    """One of the counters: who is asking it, and whether it is left alone."""

    def __init__(self, counter: TokenCounter, pause_s: float, clock: Callable[[], float]) -> None:
        self._counter, self._pause_s, self._clock = counter, pause_s, clock
        self._lost: EndpointUnreachable | None = None
        self._until = self._answered = -math.inf
        self._asking: set[asyncio.Task[Count]] = set()

    def ask(self, count: Callable[[TokenCounter], Count]) -> Count:
        """Count with it, unless it is left alone."""
        self._check()
        began = self._clock()
        try:
            answer = count(self._counter)
        except EndpointUnreachable as failed:
            self._lose(failed, began)
            raise
        self._answered = self._clock()
        return answer

    async def ask_async(self, count: Callable[[TokenCounter], Coroutine[Any, Any, Count]]) -> Count:
        """The same; who waits while it is lost by somebody else waits no longer."""
        self._check()
        began, task = self._clock(), asyncio.create_task(count(self._counter))
        self._asking.add(task)
        try:
            await asyncio.wait([task])
            if task.cancelled() and self._lost is not None:
                raise self._left_alone(self._lost)
            answer = task.result()
        except EndpointUnreachable as failed:
            self._lose(failed, began)
            raise
        finally:
            self._asking.discard(task)
            task.cancel()
        self._answered = self._clock()
        return answer

    def _check(self) -> None:
        if self._lost is not None and self._clock() < self._until:
            raise self._left_alone(self._lost)

    def _left_alone(self, lost: EndpointUnreachable) -> _LeftAlone:
        seconds = max(0.0, self._until - self._clock())
        return _LeftAlone(lost.method, f"{lost.reason} (found a moment ago; it is asked again in {seconds:.0f} s)")

    def _lose(self, failed: EndpointUnreachable, began: float) -> None:
        """Leave it alone, unless it has answered somebody since this count began: then it was one slow answer."""
        if self._pause_s == 0 or self._answered >= began:
            return
        self._lost, self._until = failed, self._clock() + self._pause_s
        for task in list(self._asking):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)
