"""A way to a PostgreSQL server that is not to be relied on: it delays, and cuts connections, also in the midst of a message."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Verdict = int | None  # how many bytes still go through before the connection is cut; `None`: all of them, and no cut
Judge = Callable[[str, bytes], Verdict]
SOCKET = ".s.PGSQL.5432"


class Way:
    """Between clients and a server's socket.

    Args:
        folder: where clients look for the socket.
        to: the server's folder.
        judge: told of each piece, `to` or `from` the server, and says what becomes of it.
    """

    def __init__(self, folder: Path, to: Path, judge: Judge) -> None:
        self.folder, self._to, self.judge = folder, to, judge
        self.cuts = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        async with await asyncio.start_unix_server(self._connected, self.folder / SOCKET):
            self._ready.set()
            await self._end.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(self._to / SOCKET)
        pumps = {
            asyncio.ensure_future(self._pump("to", reader, to_server)),
            asyncio.ensure_future(self._pump("from", from_server, writer)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, to_server):
                end.close()
            for pump in pumps:
                pump.cancel()

    async def _pump(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(2**16):
                verdict = self.judge(way, piece)
                writer.write(piece if verdict is None else piece[:verdict])
                await writer.drain()
                if verdict is not None:
                    self.cuts += 1
                    return

    def close(self) -> None:
        """Cut whoever is still there."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        (self.folder / SOCKET).unlink(missing_ok=True)


@contextmanager
def way(folder: Path, to: Path, judge: Judge) -> Iterator[Way]:
    """For a while."""
    made = Way(folder, to, judge)
    try:
        yield made
    finally:
        made.close()


def by_chance(chance: random.Random, one_in: int) -> Judge:
    """Cut one piece in so many, anywhere in it."""

    def judge(_: str, piece: bytes) -> Verdict:
        return chance.randrange(len(piece) + 1) if chance.randrange(one_in) == 0 else None

    return judge


def at(word: bytes, way: str, verdict: Callable[[bytes], int], times: int = 1) -> Judge:
    """Cut what has a word in it, or the first answer to that."""
    left, asked = times, False

    def judge(direction: str, piece: bytes) -> Verdict:
        nonlocal left, asked
        asked = asked or (direction == "to" and word in piece)
        if left and asked and direction == way:
            left, asked = left - 1, False
            return verdict(piece)
        return None

    return judge
