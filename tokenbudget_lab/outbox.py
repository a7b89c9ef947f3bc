"""Answers on their way to one client. The writer's thread hands them in and never waits for a client to read.

What the client's socket takes at once is sent at once; the rest is sent by a thread of its own, in the same order and without a
gap in any message. Who leaves too much unread, or cannot be sent to, is hung up on: it connects again and sends again what was
not answered.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from .desk import Ticket
from .errors import LedgerUnavailable
from .wire import MAX_MESSAGE, error_to_wire, pack

MAX_BACKLOG = 256 * 2**20  # bytes that a client left unread when more answers come
AT_ONCE = 2**20  # bytes that the writer's thread sends before it leaves the rest to another


class Numbered(Ticket):
    """A command of a client, with the number that the client gave it."""

    __slots__ = ("number",)

    def __init__(self, number: int, command: Any, box: Outbox) -> None:
        super().__init__(command, box)
        self.number = number


class Outbox:
    """Answers for one connection.

    Args:
        connection: the client's; whoever made it closes it, after this.
        origin: JSON about the client.
    """

    def __init__(self, connection: Connection, origin: str | None) -> None:
        self.origin = origin
        self.closed, self.sends_again = False, True
        # The connection's own file descriptor, for what a Connection cannot do; used under the lock, and not closed here.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=connection.fileno())
        self._backlog: deque[memoryview] = deque()  # its first may be the rest of a message
        self._size = 0
        self._draining = False
        self._lock = threading.Lock()

    def deliver(self, tickets: list[Ticket]) -> None:
        """Send a batch of answers."""
        self.send(
            _messages(
                [
                    (t.number, False, error_to_wire(t.error)) if t.error is not None else (t.number, True, t.answer)
                    for t in tickets
                    if isinstance(t, Numbered)
                ]
            )
        )

    def send(self, messages: Sequence[bytes]) -> None:
        """Send what the client takes now, and leave the rest to a thread."""
        with self._lock:
            if self._size > MAX_BACKLOG:
                self._hang_up()
            if self.closed:
                return
            for message in messages:
                frame = struct.pack("!i", len(message)) + message  # as Connection.recv_bytes reads it
                self._backlog.append(memoryview(frame))
                self._size += len(frame)
            if not self._draining and not self._push():
                self._drain_aside()

    @property
    def gone(self) -> bool:
        """Whether the client has hung up, though there may be commands of it that were not read yet."""
        with self._lock:
            return self.closed or bool(_poll(self._socket, 0, 0))

    def _push(self) -> bool:
        """Send as much as can be sent without waiting; whether nothing is left to send."""
        most = AT_ONCE
        while self._backlog and most > 0:
            frame = self._backlog[0]
            try:
                sent = self._socket.send(frame[:most], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:  # the client is gone
                self._hang_up()
                return True
            most -= sent
            self._size -= sent
            if sent == len(frame):
                self._backlog.popleft()
            else:
                self._backlog[0] = frame[sent:]
        return not self._backlog

    def _drain_aside(self) -> None:
        self._draining = True
        try:
            threading.Thread(target=self._drain, name="tokenbudget slow client", daemon=True).start()
        except RuntimeError:  # the system has no thread left
            self._hang_up()

    def _drain(self) -> None:
        while True:
            with self._lock:
                if self.closed or self._push():
                    self._draining = False
                    return
            _poll(self._socket, select.POLLOUT, 1000)

    def _hang_up(self) -> None:
        """The client sees the end of its connection, and so does the thread that reads from it."""
        self.closed = True
        self._backlog.clear()
        self._size = 0
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody reads here any more."""
        with self._lock:
            self.closed = True
            self._backlog.clear()
            self._size = 0
            self._socket.detach()


def _poll(of: socket.socket, events: int, timeout_ms: int) -> int:
    """What of these events, or of its end, a socket shows; 0 is nothing."""
    if of.fileno() < 0:
        return select.POLLNVAL
    poll = select.poll()  # unlike select.select it takes a file descriptor above 1023
    poll.register(of.fileno(), events)
    return next((shown for _, shown in poll.poll(timeout_ms)), 0)


def _messages(answers: Sequence[tuple[int, bool, Any]]) -> list[bytes]:
    """Answers in as many messages as it takes for a client to accept each; what is too long by itself is an error."""
    message = pack(tuple(answers))
    if len(message) <= MAX_MESSAGE:
        return [message]
    if len(answers) > 1:
        half = len(answers) // 2
        return _messages(answers[:half]) + _messages(answers[half:])
    error = LedgerUnavailable(
        f"the answer has {len(message):,} bytes, and {MAX_MESSAGE:,} is the most that a keeper sends; ask for less at once"
    )
    return [pack(((answers[0][0], False, error_to_wire(error)),))]
