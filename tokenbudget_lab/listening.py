"""Being called by other machines: a connection that listens for what was done there, while somebody here waits or watches.

A call may be lost, and some databases have none: who waits or watches looks again by itself now and then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from .errors import LedgerUnavailable
from .ids import new_id
from .servers import Server, connected

RENEW_S = 30.0  # how often the database is told that somebody is still here
LEAVE_S = 60.0  # after the last one was seen
log = logging.getLogger("tokenbudget_lab")


class Listener:
    """Listens in a thread of its own, from the first who needs it on, and for a minute after the last.

    Args:
        server, number: which ledger, and its number in the database.
        ring: called when something was done elsewhere.
        watches: whether it is called for whatever was done, at most once a second, and not only when something was freed.

    Attributes:
        called: whether it is called, and nothing has to be looked at meanwhile.
    """

    def __init__(self, server: Server, number: int, ring: Callable[[], None], *, watches: bool = False) -> None:
        self._server, self._number, self._ring, self._me = server, number, ring, new_id()
        self.channel = f"tokenbudget_{number}{'_changed' if watches else ''}"
        self._here = b"select tokenbudget." + (b"watch" if watches else b"wait") + b"_here(%s, %s)"
        self._leave = b"delete from tokenbudget." + (b"watching" if watches else b"waiting") + b" where process = %s"
        self._began = time.monotonic()
        self._until = self._began + LEAVE_S
        self.called = self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"tokenbudget listens at {server.where}", daemon=True)
        self._thread.start()

    def needed(self) -> bool:
        """Somebody is here; says whether it still listens."""
        self._until = time.monotonic() + LEAVE_S
        return self._thread.is_alive()

    def is_young(self) -> bool:
        """Whether it was begun lately: what has failed is not tried again at once."""
        return time.monotonic() - self._began < LEAVE_S

    def close(self) -> None:
        """Stop at the next call."""
        self._closed = True

    def join(self) -> None:
        """Until it has let go of its connection."""
        self._thread.join(5.0)

    def _run(self) -> None:
        import psycopg

        try:
            with connected(self._server, hurried=False) as con:
                con.execute(f"listen {self.channel}".encode())
                renewed = -RENEW_S
                while not self._closed and time.monotonic() < self._until:
                    if time.monotonic() - renewed >= RENEW_S:
                        con.execute(self._here, (self._number, self._me))
                        renewed = time.monotonic()
                    if not self.called:
                        self.called = True
                        self._ring()  # for what was done before
                    for _ in con.notifies(timeout=RENEW_S, stop_after=1):
                        self._ring()
                self.called = False
                con.execute(self._leave, (self._me,))
        except (LedgerUnavailable, psycopg.Error) as error:
            with suppress(Exception):  # at the interpreter's end nobody hears it
                log.debug("%s: does not listen (%s); who waits looks by itself", self._server.where, type(error).__name__)
        finally:
            self.called = False
