"""Coroutines from sync code: a loop of our own in a thread, so that it works in a cell, in a callback, anywhere.

Whoever waits is not in a loop's way, and a wait that ends by Ctrl-C cancels what it waited for.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from .errors import WouldDeadlock

T = TypeVar("T")
_making = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_pid = 0


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on the private loop, and wait for it.

    Args:
        coroutine: it must not be bound to another loop, as a client is that was used there.

    Raises:
        WouldDeadlock: called on the private loop itself.
        KeyboardInterrupt: after the coroutine was cancelled, and has ended.

    Examples:
        >>> run(asyncio.sleep(0, "done"))
        'done'
    """
    loop = _own_loop()
    if _running() is loop:
        coroutine.close()
        raise WouldDeadlock("a coroutine on this loop would wait for the loop itself: use `await` here")
    task: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return task.result()
    except BaseException:
        if not task.done():
            task.cancel()
        raise


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _own_loop() -> asyncio.AbstractEventLoop:
    global _loop, _pid
    with _making:
        if _loop is None or _pid != os.getpid():  # a forked child has the loop, and not its thread
            _loop, _pid = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="tokenbudget coroutines", daemon=True).start()
        return _loop
