"""Coroutines from sync code: a loop of our own in a thread, so that it works in a cell, in a callback, anywhere.

Whoever waits is not in a loop's way, and a wait that ends by Ctrl-C cancels what it waited for, and stays until that has tidied
up. A coroutine that must run on the loop that is running here (a client belongs to the loop that it was used on) needs
`allow_nested_loops()`; nothing in asyncio is changed without it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import sys
import threading
import warnings
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

from .errors import WouldDeadlock

T = TypeVar("T")
LOOK_S = 0.1  # how often a wait in a task looks whether that is cancelled
TIDY_S = 5.0  # how long an interrupted coroutine may take to tidy up
_KERNEL_THAT_DROPS = 7  # major version of ipykernel


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, and wait for it: on the private loop, or on the running one where loops may be nested.

    Args:
        coroutine: it sees the caller's context variables. It must not be bound to another loop, as a client is that was
            used there.

    Raises:
        WouldDeadlock: called on the private loop itself.
        KeyboardInterrupt: after the coroutine was cancelled and has ended, or had 5 s for it.
        CancelledError: the same, where the task that waits was cancelled, as Ctrl-C does under `asyncio.run`.

    Examples:
        >>> run(asyncio.sleep(0, "done"))
        'done'
    """
    here = _running()
    if here is not None and here is _private.loop:
        coroutine.close()
        raise WouldDeadlock("a coroutine on this loop would wait for the loop itself: use `await` here")
    if here is not None and _nests(here):
        return _run_here(here, coroutine)
    return _Errand(coroutine).result()


def _run_here(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop that is running, and may be nested."""
    task = loop.create_task(coroutine)
    try:
        return loop.run_until_complete(task)
    except BaseException:
        if not task.done():  # it was this wait that was broken off
            task.cancel()
            with contextlib.suppress(BaseException):
                loop.run_until_complete(asyncio.wait([task], timeout=TIDY_S))
        raise


class _Errand(Generic[T]):
    """A coroutine on its way through the private loop."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine, self._ended = coroutine, Future[T]()
        self._task: asyncio.Task[T] | None = None
        # Before it starts: Ctrl-C may come as soon as it does.
        self._waiting = None if _running() is None else asyncio.current_task()
        self._before = self._waiting.cancelling() if self._waiting else 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def result(self) -> T:
        try:
            self._send()
            return self._waited_for()
        except BaseException:
            if self._loop is not None and not self._ended.done():  # it was this wait that was broken off, or the sending
                self._loop.call_soon_threadsafe(self._cancel)
                self._tidy()
            raise

    def _send(self) -> None:
        try:
            self._loop = _private.get()
            self._loop.call_soon_threadsafe(self._start, context=contextvars.copy_context())
        except RuntimeError:  # the interpreter is leaving
            self._coroutine.close()
            self._ended.cancel()
            raise

    def _waited_for(self) -> T:
        """The result, unless the task that waits is cancelled: so Ctrl-C arrives under `asyncio.run`, whose loop waits here."""
        while not wait([self._ended], LOOK_S).done:  # and woken each time, a thread sees an interrupt that woke nobody
            if self._waiting and self._waiting.cancelling() > self._before:
                raise asyncio.CancelledError
        return self._ended.result()

    def _tidy(self) -> None:
        with contextlib.suppress(BaseException):  # its own end, or a second Ctrl-C: the first one is raised
            self._ended.exception(TIDY_S)

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:  # calls of a loop come in order: it was never sent
            self._coroutine.close()
            self._ended.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._ended.cancel()
        elif (error := task.exception()) is not None:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(task.result())


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _PrivateLoop:
    """A loop that turns in a thread of its own, made when it is first asked for."""

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._left_to_parent: list[asyncio.AbstractEventLoop] = []

    def get(self) -> asyncio.AbstractEventLoop:
        with self._making:
            if self.loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_turn, args=(loop,), name="tokenbudget coroutines", daemon=True)
                self._thread.start()
                self.loop = loop
            return self.loop

    def leave(self) -> None:
        """The interpreter is leaving, and would stop the thread anywhere."""
        with self._making:
            loop, thread, self.loop = self.loop, self._thread, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(TIDY_S)

    def forget(self) -> None:
        """A forked child has the loop, and not its thread; closing it would take the parent's files off the shared epoll."""
        self._making = threading.Lock()
        if self.loop is not None:
            self._left_to_parent.append(self.loop)
        self.loop = self._thread = None


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """The private loop's life; what is still running when it is stopped is cancelled, so that it tidies up."""
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=TIDY_S))
    finally:
        loop.close()


_private = _PrivateLoop()
atexit.register(_private.leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_private.forget)


# --- nested loops --------------------------------------------------------------------------------------------------------


def allow_nested_loops() -> None:
    """Let sync code in a notebook's cell run a coroutine on the loop that is running there.

    It is needed for one thing: a client of your own that belongs to the notebook's loop. It changes asyncio for the whole
    process, through `nest_asyncio2`, the maintained successor of `nest_asyncio`; where the latter is active already it is left
    as it is, and warned about where it is known to fail.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> tbl.allow_nested_loops()  # doctest: +SKIP
        >>> counter.count_sync("on the client of this notebook")  # doctest: +SKIP
    """
    if _by_the_old_one():
        _warn_of_the_old_one()
        return
    import nest_asyncio2

    loop = _running()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it asks for a current loop where there is none
        nest_asyncio2.apply(loop)


def _nests(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether coroutines may be run on a loop that is running: it was patched for it, by us or by its user."""
    if not hasattr(loop, "_nest_patched"):
        return False
    if _by_the_old_one() and _fails_here():
        _warn_of_the_old_one()
        return False
    return True


def _by_the_old_one() -> bool:
    return hasattr(asyncio, "_nest_patched") and not hasattr(asyncio, "_nest_asyncio2")


def _fails_here() -> str | None:
    """What nest_asyncio 1.6.0 breaks in this process."""
    if sys.version_info >= (3, 14):
        return "on Python 3.14 and newer it breaks asyncio.timeout and TaskGroup"
    kernel = sys.modules.get("ipykernel")
    if kernel is not None and kernel.version_info[0] >= _KERNEL_THAT_DROPS:
        return "with ipykernel 7 and newer it drops the queued cells of `Run All` without a word"
    return None


def _warn_of_the_old_one() -> None:
    if fails := _fails_here():
        advice = "take its `nest_asyncio.apply()` out, restart, and call tbl.allow_nested_loops() instead"
        warnings.warn(f"nest_asyncio is active: {fails}; {advice}", RuntimeWarning, stacklevel=4)
