"""A provider's clients: one for sync code, and one for each running event loop, made when they are needed.

An async client belongs to the loop that it was first used in: in another one it fails, or hides behind a retry that it failed.
So every loop has its own, and it is closed with its loop. Its readers may rely on that: nothing is left open, and nobody warns.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class SyncClient(Protocol):
    """What every provider's client can do."""

    def close(self) -> None:
        """Close its connections."""


class AsyncClient(Protocol):
    """The same for async code."""

    async def close(self) -> None:
        """Close its connections."""


S = TypeVar("S", bound=SyncClient)
A = TypeVar("A", bound=AsyncClient)


class PerLoop(Generic[T]):
    """One of a kind for each running loop; those whose loop is closed are let go of.

    Not a `WeakKeyDictionary`: what is made for a loop refers to it, so the loop, its key, would live for ever.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: dict[asyncio.AbstractEventLoop, T] = {}

    def __len__(self) -> int:
        return len(self._made)

    def here(self) -> T:
        """That of the running loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._made:
                ended = [self._made.pop(other) for other in list(self._made) if other.is_closed()]
                self._made[loop] = self._make()
                del ended  # after the new one is there, whatever their end may do
            return self._made[loop]

    def take(self) -> T | None:
        """Let go of the running loop's, and hand it over."""
        with self._lock:
            return self._made.pop(asyncio.get_running_loop(), None)

    def forget(self) -> None:
        """Let go of all of them."""
        with self._lock:
            made, self._made = self._made, {}
        del made  # outside of the lock


class Lease(Generic[A]):
    """An async client that is open for as long as its loop runs, and somebody holds the lease.

    What keeps it open is an async generator that stands still: asyncio closes those before it closes a loop, and when
    nobody refers to them. It outlives the lease by a moment: collected together with its connections it would come too late.
    """

    def __init__(self, client: A) -> None:
        self.client = client
        self._holder, self._started = _open(client), False
        weakref.finalize(self, _let_go, self._holder).atexit = False  # the end of the process closes what is open

    async def start(self) -> None:
        """Enter the generator, so that the loop knows of it."""
        if not self._started:
            self._started = True
            await anext(self._holder)

    async def end(self) -> None:
        """Close the client."""
        await self._holder.aclose()


async def _open(client: AsyncClient) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await client.close()


def _let_go(_holder: AsyncGenerator[None, None]) -> None:
    """Nobody refers to it from now on: asyncio closes it, on its loop."""


class Clients(Generic[S, A]):
    """One sync client, and one async client for each running loop.

    Args:
        make: makes the sync client.
        make_async: makes an async client.
    """

    def __init__(self, make: Callable[[], S], make_async: Callable[[], A]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._sync: S | None = None
        self._leases: PerLoop[Lease[A]] = PerLoop(lambda: Lease(make_async()))

    def sync(self) -> S:
        """The client for sync code, of all threads."""
        with self._lock:
            if self._sync is None:
                self._sync = self._make()
            return self._sync

    async def here(self) -> Lease[A]:
        """The client of the running loop; to be held while it is used."""
        lease = self._leases.here()
        await lease.start()
        return lease

    def forget(self) -> None:
        """Make new ones for whoever asks next; the old are closed when their last user has gone."""
        with self._lock:
            self._sync = None
        self._leases.forget()

    def close(self) -> None:
        """Close the sync client now, the others on their loops."""
        with self._lock:
            client, self._sync = self._sync, None
        self._leases.forget()
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the sync client and this loop's now, the others on their loops."""
        lease = self._leases.take()
        self.close()
        if lease is not None:
            await lease.end()
