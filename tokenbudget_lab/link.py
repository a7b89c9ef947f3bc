"""Being a keeper's client: find it, start it when there is none, send again what it did not answer.

Every command carries an id and is decided once, however often it is sent; that is what makes a killed keeper, a lost answer
and a cut connection harmless.
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from .commands import Reserve, Rollback
from .conditions import Condition
from .desk import Bell, Box, Ticket, wait_for_own
from .errors import (
    FileInUse,
    InvalidValue,
    KeeperUnreachable,
    LedgerClosed,
    LedgerDamaged,
    LedgerForked,
    LedgerUnavailable,
    TokenBudgetError,
)
from .events import Event
from .ids import new_id
from .keeper import hang_up, read_key
from .origin import origin
from .place import Place, out_of_files, warn_if_shared
from .rows import from_arrow, proved
from .wire import MAX_MESSAGE, PROTOCOL_VERSION, error_from_wire, pack, to_wire, unpack

log = logging.getLogger("tokenbudget_lab")
Hear = Callable[[dict[str, Any]], None]
CONNECT_S = 20.0
ANSWER_S = 30.0
STARTS = 5  # of keepers that end without a word, before it is said
EMBEDDED_S = 2.0  # how long an owner may look like one without a socket before it is taken for that
AT_ONCE = 2_000  # commands in one message
LAZY_S = 0.01  # how long what nobody waits for may wait for company

_links: weakref.WeakSet[Link] = weakref.WeakSet()


class Link:
    """Hands commands to a ledger's keeper and brings its answers back.

    Args:
        place: where the ledger lives.

    Raises:
        KeeperUnreachable: none answers and none can be started.
        LedgerBusy: another process owns the file without a keeper.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.where, self.origin = place, str(place.file), origin()
        self._pid = os.getpid()
        self._outbox: deque[Ticket] = deque()  # handed in, not yet numbered
        self._pending: dict[int, Ticket] = {}  # not yet answered
        self._sent_at: dict[int, float] = {}
        self._late: dict[int, Ticket] = {}
        self._wake, self._needed = Bell(), Bell()
        self._closing = self._gone = self._forked = False
        self.damage: LedgerDamaged | None = None
        warn_if_shared(place.file.parent)
        self._connection: Connection | None = connect(place, "commands", self._hear)
        self._threads = [
            threading.Thread(target=self._receive, name=f"tokenbudget answers {self.where}", daemon=True),
            threading.Thread(target=self._send, name=f"tokenbudget commands {self.where}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        _links.add(self)

    def submit(self, ticket: Ticket) -> None:
        """Hand in one command.

        One step in C and no lock: it may be called in a signal handler that cut into itself, and Ctrl-C may come anywhere.
        """
        if self._closing or self._forked:
            raise LedgerForked(self._pid) if self._forked else LedgerClosed(self.where)
        ticket.desk = self
        self._outbox.append(ticket)
        self._wake.ring()
        if self._gone:  # closed in between
            self._turn_away()

    def arrow(
        self,
        columns: Sequence[str] | None = None,
        upto: int | None = None,
        where: Condition | None = None,
        *,
        uuids: bool = False,
    ) -> Any:
        """The events as a `pyarrow.RecordBatchReader`, with all that was handed in before; over a connection of its own."""
        import pyarrow as pa

        wait_for_own(self)
        connection = connect(self.place, "rows", self._hear)
        connection.send_bytes(pack((None if columns is None else tuple(columns), upto, where, uuids)))
        return pa.ipc.open_stream(pa.PythonFile(_FromConnection(connection), mode="r"))

    def watch(self, bell: Bell) -> bool:  # noqa: ARG002 - a keeper on this machine is soon asked
        """Never: it is looked at."""
        return False

    def events(self, upto: int) -> Iterator[Event]:
        """The events up to a `seq`, in order."""
        return from_arrow(self.arrow(None, upto))

    def proved(self, upto: int) -> Iterator[tuple[Iterable[Event], bool]]:
        """The events up to a `seq`, in order, in batches, each with whether its hashes are known to continue the chain."""
        return proved(self.arrow(None, upto))

    # --- sending ---------------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Number what was handed in, and send all that waits in one message, again and again."""
        ready: list[tuple[int, Ticket]] = []
        number = 0
        while not (self._closing and not self._outbox):
            self._wake.wait(1.0)
            self._gather()
            for _ in range(len(self._outbox)):
                number += 1
                # Pending before it leaves the outbox: at each moment it is seen in one of them.
                self._pending[number] = self._outbox[0]
                ready.append((number, self._outbox.popleft()))
            ready = [(n, t) for n, t in ready if n in self._pending and n not in self._sent_at]
            connection = self._connection
            if connection is None:
                self._needed.ring()
                continue
            while ready and self._send_batch(connection, ready[:AT_ONCE]):
                del ready[:AT_ONCE]
            for n, _ in ready[:AT_ONCE]:  # they go to the next keeper; sent to it twice is decided once
                self._sent_at.pop(n, None)
            if ready and self._connection is not connection:  # and it is there already
                self._wake.ring()

    def _gather(self) -> None:
        """Let what nobody waits for wait for company: two commands in one message are one transaction of the keeper's."""
        deadline = time.monotonic() + LAZY_S
        while self._outbox and not self._closing and all(ticket.lazily for ticket in tuple(self._outbox)):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._wake.wait(left)

    def _send_batch(self, connection: Connection, batch: list[tuple[int, Ticket]]) -> bool:
        now = time.monotonic()
        for number, _ in batch:
            self._sent_at[number] = now
        try:
            connection.send_bytes(pack(tuple(to_wire(number, ticket.command) for number, ticket in batch)))
        except (OSError, ValueError):
            return False  # the receiving thread meets the same end, connects again, and sends all that is unanswered
        return True

    # --- receiving -------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        while not self._closing:
            connection = self._connection
            if connection is None:
                self._reconnect()
                continue
            try:
                if connection.poll(1.0):
                    self._answers(unpack(connection.recv_bytes(MAX_MESSAGE)))
                self._give_up_on_silence()
            except (OSError, EOFError, ValueError):
                self._connection = None
                hang_up(connection)  # and closed when nobody holds it: the sending thread may be about to write to it

    def _answers(self, answers: Sequence[Sequence[Any]]) -> None:
        boxes: dict[Box, list[Ticket]] = {}
        for number, ok, what in answers:
            ticket = self._pending.pop(number, None)
            self._sent_at.pop(number, None)
            if ticket is None:
                self._too_late(number, ok, what)
                continue
            if ok:
                ticket.answer = what
            else:
                ticket.error = error_from_wire(what)
            boxes.setdefault(ticket.box, []).append(ticket)
        for box, tickets in boxes.items():
            box.deliver(tickets)

    def _too_late(self, number: int, ok: bool, what: Any) -> None:  # noqa: FBT001 - as it stands in the message
        """A grant whose caller was told that nobody answers: it is given back."""
        ticket = self._late.pop(number, None)
        if ticket is not None and ok and isinstance(ticket.command, Reserve) and what[0] == ticket.command.id:
            with suppress(LedgerUnavailable):  # closing: then its expiry ends it
                self.submit(Ticket(Rollback(new_id(), what[0]), ticket.box))

    def _give_up_on_silence(self) -> None:
        """A keeper that was stopped answers nobody: say so, rather than block a notebook for ever."""
        oldest = min(list(self._sent_at.values()), default=None)
        if oldest is None or time.monotonic() - oldest < ANSWER_S:
            return
        now = time.monotonic()
        silent = [n for n, at in list(self._sent_at.items()) if now - at >= ANSWER_S + self._may_wait_s(n)]
        self._fail(silent, f"no answer within {ANSWER_S:g} s; what was asked may still be done")

    def _may_wait_s(self, number: int) -> float:
        """How long a command may stand in line: that is no silence."""
        ticket = self._pending.get(number)
        return 0.0 if ticket is None else getattr(ticket.command, "wait", 0) / 1e6

    def _fail(self, numbers: Sequence[int], reason: str) -> None:
        boxes: dict[Box, list[Ticket]] = {}
        for number in numbers:
            ticket = self._pending.pop(number, None)
            self._sent_at.pop(number, None)
            if ticket is not None:
                self._late[number] = ticket
                ticket.error = KeeperUnreachable(self.where, reason)
                boxes.setdefault(ticket.box, []).append(ticket)
        for box, tickets in boxes.items():
            box.deliver(tickets)

    def _reconnect(self) -> None:
        """When somebody needs it: find or start a keeper, and send again all that is unanswered."""
        if not self._pending:
            self._needed.wait(0.5)
            return
        try:
            connection = connect(self.place, "commands", self._hear)
        except (TokenBudgetError, OSError) as error:
            self._fail(list(self._pending), str(error))
            return
        unanswered = sorted(self._pending.copy().items())
        for start in range(0, len(unanswered), AT_ONCE):
            if not self._send_batch(connection, unanswered[start : start + AT_ONCE]):
                connection.close()
                return
        self._connection = connection
        self._wake.ring()

    def _hear(self, hello: dict[str, Any]) -> None:
        """What the keeper found when it opened the file: said here too, because nobody reads the keeper's log."""
        for text in hello["told"]:
            log.warning("%s", text)
        before, damage = self.damage, None if hello["damage"] is None else error_from_wire(hello["damage"])
        self.damage = damage if isinstance(damage, LedgerDamaged) else None
        if self.damage is not None and (before is None or before.args != self.damage.args):
            log.warning("%s", self.damage)

    # --- the end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for the answers to what was handed in, then hang up."""
        if self._forked or self._closing:
            return
        self._wake.ring()  # whoever was interrupted in `submit` may not have
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline and any(map(_is_owed, self._unanswered())):
            time.sleep(0.002)
        self._closing = True
        self._wake.ring()
        self._needed.ring()
        me = threading.current_thread()
        if self._connection is not None:
            hang_up(self._connection)
        for thread in self._threads:
            if thread is not me:
                thread.join()
        if self._connection is not None:
            self._connection.close()
        self._gone = True
        self._turn_away()

    def _unanswered(self) -> list[Ticket]:
        return [*self._outbox.copy(), *self._pending.copy().values()]

    def _turn_away(self) -> None:
        """Nobody sends these any more."""
        left = [ticket for number in list(self._pending) if (ticket := self._pending.pop(number, None)) is not None]
        with suppress(IndexError):
            while True:
                left.append(self._outbox.popleft())
        for ticket in left:
            ticket.error = LedgerClosed(self.where)
            ticket.box.deliver([ticket])

    def forked(self) -> None:
        """This is a forked child now: let go of the parent's socket without a word."""
        self._forked = True
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()


class _FromConnection(io.RawIOBase):
    """A file for Arrow to read from: the chunks that a keeper sends."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection, self._rest, self._ended = connection, b"", False

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        parts, missing = [], sys.maxsize if size is None or size < 0 else size
        while missing and (self._rest or self._more()):
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _more(self) -> bool:
        if self._ended:
            return False
        message = self._connection.recv_bytes(MAX_MESSAGE)
        if message[:1] == b"D":
            self._rest = message[1:]
            return True
        self._ended = True
        self._connection.close()
        if message[:1] == b"E":
            raise error_from_wire(unpack(message[1:]))
        return False

    def close(self) -> None:
        if not self.closed:
            self._connection.close()
        super().close()


def connect(place: Place, purpose: str, hear: Hear | None = None) -> Connection:
    """A connection to the ledger's keeper, which is started when there is none.

    Args:
        place: where the ledger lives.
        purpose: `commands` or `rows`.
        hear: is told what the keeper says of itself and the ledger.

    Raises:
        KeeperUnreachable: it does not come up in time.
        LedgerBusy: the owner is no keeper.
        TokenBudgetError: what the keeper said when it could not open the ledger.
    """
    if sys.platform == "win32":
        raise InvalidValue("where", "a keeper needs POSIX; on Windows connect with embedded=True")
    place.make_folder()
    deadline = time.monotonic() + CONNECT_S
    alone_since: float | None = None
    in_use_since: float | None = None
    pause, silent = 0.005, 0
    while True:
        connection = find(place, purpose, hear)
        if connection is not None:
            return connection
        try:
            started = _start_alone(place)
        except OSError as error:
            where = str(place.file)
            raise out_of_files(where, error) or KeeperUnreachable(where, f"it cannot be started ({error})") from error
        if "error" in started:
            said = error_from_wire((started["error"][0], tuple(started["error"][1])))
            in_use_since = in_use_since or time.monotonic()
            if not isinstance(said, FileInUse) or time.monotonic() - in_use_since > EMBEDDED_S:
                raise said  # else it may be a keeper that makes room, as its folder was removed
        silent += "silent" in started
        if silent == STARTS:
            raise KeeperUnreachable(str(place.file), f"it was started {silent} times and ended without a word; see {place.log}")
        if "busy" in started:
            role, now = place.read_owner().get("role"), time.monotonic()
            alone_since = (alone_since or now) if role not in ("keeper", "recovery") else None  # which are over soon
            if alone_since is not None and now - alone_since > EMBEDDED_S:
                raise place.busy("That process opened it with embedded=True; close it there.")
            if role == "recovery" and now > deadline:
                raise place.busy("")
        if time.monotonic() > deadline:
            raise KeeperUnreachable(str(place.file), f"none came up, or had room, within {CONNECT_S:g} s; see {place.log}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5 if "busy" in started else 0.05)  # one that has no room is asked less and less often


def find(place: Place, purpose: str, hear: Hear | None = None) -> Connection | None:
    """A connection to a keeper that is there, or `None`; takes what `connect` takes.

    Raises:
        VersionMismatch: it speaks another protocol.
    """
    address = place.read_owner().get("socket")
    if not address:
        return None
    try:
        key, connection = read_key(place), _dial(address)
    except OSError:
        return None
    try:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        connection.send_bytes(pack({"protocol": PROTOCOL_VERSION, "purpose": purpose, "origin": origin()}))
        ok, what = unpack(connection.recv_bytes(65_536))
        if purpose != "rows":  # whose reader looks before it reads, and may look for hours
            _be_patient(connection, 0)
    except BlockingIOError as error:
        connection.close()
        raise KeeperUnreachable(str(place.file), f"it does not answer within {CONNECT_S:g} s; it may be stopped") from error
    except (OSError, EOFError, ValueError, multiprocessing.AuthenticationError):
        connection.close()
        return None
    if not ok:
        connection.close()
        raise error_from_wire(what)
    if hear is not None:
        hear(what)
    return connection


def _dial(address: str) -> Connection:
    """Connect; whatever is not answered or taken within `CONNECT_S` fails, because a stopped process answers nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(CONNECT_S))
        made.connect(address)
        connection = Connection(made.detach())
    _be_patient(connection, CONNECT_S)
    return connection


def _be_patient(connection: Connection, seconds: float) -> None:
    """How long a read or write may block; 0 is for ever."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            same.setsockopt(socket.SOL_SOCKET, option, _timeval(seconds))


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


def _start_alone(place: Place) -> dict[str, Any]:
    """Start a keeper unless another process is just doing that: twenty kernels that lost theirs need one, not twenty."""
    import filelock

    lock = filelock.FileLock(
        place.folder / "starting", mode=0o600, preserve_lock_file=True, fallback_to_soft=False, blocking=False
    )
    try:
        with lock:
            return _start(place)
    except filelock.Timeout:
        return {}


def _start(place: Place) -> dict[str, Any]:
    """Start a keeper and wait for its first word: `ready`, `busy` (another one is), `error`; `silent` where it ends without."""
    package = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        with subprocess.Popen(  # noqa: S603 - this interpreter, this package
            [sys.executable, "-m", "tokenbudget_lab.keeper", str(place.file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        ) as process:
            return _first_word(process)
    finally:
        os.close(log)


def _first_word(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101 - it was asked for; tells the type checker
    ready, _, _ = select.select([process.stdout], [], [], CONNECT_S)
    line = process.stdout.readline() if ready else b""
    if ready and not line:
        return {"silent": True}
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def status(place: Place) -> dict[str, Any]:
    """What is known of a ledger's owner: `running`, and its pid, host, role and socket."""
    told = place.read_owner()
    connection = find(place, "status") if told.get("socket") else None
    if connection is not None:
        connection.close()
    return {"path": str(place.file), "running": connection is not None, **told}


def stop(place: Place, timeout_s: float = 10.0) -> bool:
    """Ask the keeper to leave; its clients start another one when they need it.

    Returns:
        Whether there was one, and it is gone.
    """
    connection = find(place, "stop") if place.read_owner().get("socket") else None
    if connection is None:
        return False
    connection.send_bytes(pack(("stop",)))
    deadline = time.monotonic() + timeout_s
    with suppress(OSError, EOFError):
        while time.monotonic() < deadline:
            if connection.poll(0.1):
                connection.recv_bytes(MAX_MESSAGE)
    connection.close()
    return time.monotonic() < deadline


def _is_owed(ticket: Ticket) -> bool:
    """Whether somebody still waits for this answer, and not in line."""
    return not ticket.abandoned and not getattr(ticket.command, "wait", 0)


def _after_fork_in_child() -> None:
    for link in list(_links):
        link.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
