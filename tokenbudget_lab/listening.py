"""Being called by other machines: a connection that listens for what was freed there, while somebody waits here.

A call may be lost, and some databases have none: who waits looks again by itself now and then.
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

RENEW_S = 30.0  # how often the database is told that somebody still waits
LEAVE_S = 60.0  # after the last one was seen
log = logging.getLogger("tokenbudget_lab")


class Listener:
    """Listens in a thread of its own, from the first wait on, and for a minute after the last.

    Args:
        server, number: which ledger, and its number in the database.
        ring: called when something was freed elsewhere.
    """

    def __init__(self, server: Server, number: int, ring: Callable[[], None]) -> None:
        self._server, self._number, self._ring, self._me = server, number, ring, new_id()
        self._until = time.monotonic() + LEAVE_S
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"tokenbudget listens at {server.where}", daemon=True)
        self._thread.start()

    @property
    def channel(self) -> str:
        """Where it is called."""
        return f"tokenbudget_{self._number}"

    def needed(self) -> bool:
        """Somebody waits; says whether it still listens."""
        self._until = time.monotonic() + LEAVE_S
        return self._thread.is_alive()

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
                        con.execute("select tokenbudget.wait_here(%s, %s)", (self._number, self._me))
                        renewed = time.monotonic()
                    for _ in con.notifies(timeout=RENEW_S, stop_after=1):
                        self._ring()
                con.execute("delete from tokenbudget.waiting where process = %s", (self._me,))
        except (LedgerUnavailable, psycopg.Error) as error:
            with suppress(Exception):  # at the interpreter's end nobody hears it
                log.debug("%s: does not listen (%s); who waits looks by itself", self._server.where, type(error).__name__)
