"""The keeper: the one process that owns a DuckDB ledger, started on demand and gone shortly after its last client.

User code never runs in it. It holds the ledger's lock from before opening until after closing, and serves a local socket;
each connection proves, in a thread of its own and within two seconds, that it can read the ledger's key. It leaves in this
order: stop accepting, answer, close the file, remove the socket, unlock. Killed, it is started again by whoever needs it.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import secrets
import signal
import socket
import stat
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands import Reserve
from .contents import is_object, must_be_sound
from .desk import Ticket
from .errors import InvalidValue, LedgerBusy, LedgerUnavailable, NotALedger, StoreFailed, TokenBudgetError, VersionMismatch
from .events import SCHEMA_VERSION
from .outbox import Numbered, Outbox
from .place import Place, place_of
from .wire import MAX_MESSAGE, PROTOCOL_VERSION, error_to_wire, from_wire, pack, unpack
from .writer import Writer

if TYPE_CHECKING:
    from .stores.duckdb import DuckDBStore

log = logging.getLogger("tokenbudget_lab")
HANDSHAKE_S = 2.0
MAX_CONNECTIONS = 512  # fewer where the system allows fewer files
MAX_SOCKET_PATH = 100  # the kernel's limit is 108, 104 on macOS
OWN_FILES = 32  # file descriptors that the keeper needs for itself
SEND_BUFFER = 4 * 2**20  # bytes, where the system gives as much
PAUSE_S = 0.1  # where nobody can be let in for now
CHUNK = 2**20


def linger_s() -> float:
    """How long it stays without a client: `TOKENBUDGET_KEEPER_LINGER_S`, else 3 seconds."""
    try:
        return max(0.0, float(os.environ.get("TOKENBUDGET_KEEPER_LINGER_S", "3")))
    except ValueError:
        return 3.0


class Keeper:
    """Serves one ledger.

    Args:
        place: where the ledger lives.

    Raises:
        LedgerBusy: another process owns it.
        NotALedger: the file is something else.
    """

    def __init__(self, place: Place) -> None:
        from .stores.duckdb import DuckDBStore

        self.place = place
        self.store: DuckDBStore = DuckDBStore(place, role="keeper")
        self.key = _make_key(place)
        self.writer = Writer(self.store)
        self._connections: set[Connection] = set()
        self._room = _room()
        self._seen = time.monotonic()
        self._leaving = threading.Event()
        self.address = self._address()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.address)
        Path(self.address).chmod(0o600)
        self._socket.listen(128)
        self._socket.settimeout(0.25)
        place.write_owner(role="keeper", socket=self.address, protocol=PROTOCOL_VERSION)

    def _address(self) -> str:
        """A new random name each start, so that nobody meets the socket of a keeper that is gone."""
        name = f"k{secrets.token_hex(4)}"
        path = str(self.place.folder / name)
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            import platformdirs

            folder = Path(platformdirs.user_runtime_dir("tokenbudget_lab", appauthor=False))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.lstat()
            if status.st_uid != os.getuid() or status.st_mode & 0o077:
                raise NotALedger(self.store.where, f"the runtime folder {folder} is open to others")
            path = str(folder / name)
        return path

    def serve(self) -> None:
        """Accept clients until nobody needs the ledger any more."""
        patience = linger_s()
        while not self._leaving.is_set() and self._can_be_found():
            try:
                accepted, _ = self._socket.accept()
            except TimeoutError:
                if not self._connections and time.monotonic() - self._seen > patience:
                    break
            except OSError as error:  # no file descriptor is left; whoever is here already is served, and who comes waits
                log.warning("%s: nobody can be let in (%s)", self.store.where, error)
                time.sleep(PAUSE_S)
            else:
                self._seen = time.monotonic()
                self._let_in(accepted)
        self.leave()

    def _can_be_found(self) -> bool:
        """Whether lock and socket are where others look for them; a keeper whose folder was removed makes room for another."""
        return self.store.owns_lock() and os.path.exists(self.address)  # noqa: PTH110 - for each client

    def _let_in(self, accepted: socket.socket) -> None:
        if len(self._connections) >= self._room:
            accepted.close()
            return
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        connection = Connection(accepted.detach())
        self._connections.add(connection)
        try:
            threading.Thread(target=self._attend, args=(connection,), name="tokenbudget client", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            log.warning("%s: nobody can be let in (%s)", self.store.where, error)
            self._connections.discard(connection)
            connection.close()
            time.sleep(PAUSE_S)

    def stop(self, *_: Any) -> None:
        """Leave as soon as the accept loop looks."""
        self._leaving.set()

    def leave(self) -> None:
        """Stop accepting, answer, close the file, remove the socket, unlock."""
        self._socket.close()
        self.writer.close()  # answers what was handed in, closes the file, unlocks
        with suppress(FileNotFoundError):
            Path(self.address).unlink()
        for connection in list(self._connections):
            hang_up(connection)

    # --- one client ----------------------------------------------------------------------------------------------------

    def _attend(self, connection: Connection) -> None:
        try:
            hello = self._greet(connection)
            if hello is not None:
                if hello.get("purpose") == "rows":
                    self._serve_rows(connection)
                else:
                    self._serve_commands(connection, hello.get("origin"))
        except (OSError, EOFError, ValueError, RuntimeError):
            pass  # hung up, not of this protocol, or no thread is left: closed below, the others do not notice
        finally:
            self._seen = time.monotonic()
            self._connections.discard(connection)
            connection.close()

    def _greet(self, connection: Connection) -> dict[str, Any] | None:
        """Let in who knows the key and speaks this protocol; two seconds for all of it."""
        import multiprocessing

        late = threading.Timer(HANDSHAKE_S, hang_up, [connection])
        late.daemon = True
        late.start()
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
            hello = unpack(connection.recv_bytes(65_536))
        except multiprocessing.AuthenticationError:
            return None
        finally:
            late.cancel()
        if not isinstance(hello, dict) or hello.get("protocol") != PROTOCOL_VERSION:
            theirs = hello.get("protocol") if isinstance(hello, dict) else 0
            connection.send_bytes(pack((False, error_to_wire(VersionMismatch("protocol", int(theirs or 0), PROTOCOL_VERSION)))))
            return None
        connection.send_bytes(pack((True, self._hello(hello))))
        return hello

    def _hello(self, theirs: dict[str, Any]) -> dict[str, Any]:
        """Who this is, and what its clients have to know of the ledger: an owner in their own process would say the same."""
        damage, told = self.store.damage, []
        if theirs.get("purpose") == "commands":  # once, to the first that comes
            told, self.store.told = self.store.told, []
        return {
            "pid": os.getpid(),
            "protocol": PROTOCOL_VERSION,
            "schema": SCHEMA_VERSION,
            "damage": None if damage is None else error_to_wire(damage),
            "told": told,
        }

    def _serve_commands(self, connection: Connection, origin: Any) -> None:
        told = isinstance(origin, str) and len(origin) < 4096 and is_object(origin)  # noqa: PLR2004 - a line about a process
        outbox = Outbox(connection, origin if told else None)
        try:
            while True:
                message = unpack(connection.recv_bytes(MAX_MESSAGE))
                if message == ("stop",):
                    self.stop()
                    continue
                tickets = _sound(message, outbox)
                if outbox.gone:  # read late, by a keeper that was stopped: nobody would end what is held for nobody
                    tickets = [ticket for ticket in tickets if not isinstance(ticket.command, Reserve)]
                self.writer.submit_all(tickets)
        except TokenBudgetError:
            pass  # leaving: the client elects another keeper and sends again
        finally:
            outbox.close()

    def _serve_rows(self, connection: Connection) -> None:
        while True:
            columns, upto, where, uuids = unpack(connection.recv_bytes(65_536))
            try:
                reader = self.writer.arrow(columns, upto, where, uuids=bool(uuids))
                _send_stream(connection, reader)
            except (OSError, EOFError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the client is told and not left waiting
                connection.send_bytes(b"E" + pack(error_to_wire(error)))


def _sound(message: Any, outbox: Outbox) -> list[Ticket]:
    """The commands of a message; what is in none of ours is refused here, and is in nobody's way."""
    tickets: list[Ticket] = []
    if type(message) is not tuple:
        raise ValueError("no message of commands")
    for item in message:
        ticket = Numbered(*from_wire(item), outbox)
        try:
            must_be_sound(ticket.command)
        except InvalidValue as error:
            ticket.error = error
            outbox.deliver([ticket])
        else:
            tickets.append(ticket)
    return tickets


def _room() -> int:
    """How many clients there are file descriptors for, of all that the system lets this process have."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OWN_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MAX_CONNECTIONS
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OWN_FILES)


def _send_stream(connection: Connection, reader: Any) -> None:
    import pyarrow as pa

    sink = _ToConnection(connection)
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), reader.schema) as stream:
        for batch in reader:
            stream.write_batch(batch)
    sink.flush()
    connection.send_bytes(b".")


class _ToConnection:
    """A file for Arrow to write to; sends in chunks."""

    closed = False

    def __init__(self, connection: Connection) -> None:
        self._connection, self._parts, self._size = connection, [b"D"], 0

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._size += len(data)
        if self._size >= CHUNK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        if self._size:
            self._connection.send_bytes(b"".join(self._parts))
        self._parts, self._size = [b"D"], 0

    def close(self) -> None:
        self.flush()


def hang_up(connection: Connection) -> None:
    """End a connection from another thread than the one that closes it: whoever reads it sees its end. Takes no descriptor."""
    with suppress(OSError, ValueError):
        same = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=connection.fileno())
        try:
            same.shutdown(socket.SHUT_RDWR)
        finally:
            same.detach()


def read_key(place: Place) -> bytes:
    """The ledger's key.

    Raises:
        FileNotFoundError: no keeper was ever here.
        NotALedger: it belongs to somebody else, or others can read it.
    """
    handle = os.open(place.key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe is not waited for
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise NotALedger(str(place.file), f"the key {place.key} is not this user's alone")
        return file.read(64)


def _make_key(place: Place) -> bytes:
    """The key, made when there is none; called by the owner of the lock only."""
    with suppress(FileNotFoundError):
        key = read_key(place)
        if len(key) >= 32:  # noqa: PLR2004 - 256 bits
            return key
        place.key.unlink()
    handle = os.open(place.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
    return read_key(place)


def _say(told: dict[str, Any]) -> None:
    """One line for whoever started this process."""
    with suppress(OSError):
        os.write(1, json.dumps(told).encode() + b"\n")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


def _named(path: str, error: BaseException) -> TokenBudgetError:
    if isinstance(error, TokenBudgetError):
        return error
    if isinstance(error, OSError):
        return StoreFailed(str(error))
    traceback.print_exception(error)  # into its log
    return LedgerUnavailable(f"the keeper of {path} cannot start: {type(error).__name__}: {error}; its log tells more.")


def main(argv: list[str]) -> int:
    """Run a keeper for one path; the process that was started returns at once, its child serves.

    Args:
        argv: the ledger's path.
    """
    if os.fork():
        os._exit(0)
    os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        keeper = Keeper(place_of(argv[0]))
    except LedgerBusy as error:
        _say({"busy": [error.pid, error.host]})
        return 3
    except BaseException as error:  # noqa: BLE001 - whatever it is, it would be the same at the next start
        name, args = error_to_wire(_named(argv[0], error))
        _say({"error": [name, [a if isinstance(a, int) else str(a) for a in args]]})
        return 1
    signal.signal(signal.SIGTERM, keeper.stop)
    # What is there now stays; the writer's events are not cyclic, so the collector would walk them for nothing.
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)
    _say({"ready": os.getpid()})
    keeper.serve()
    # All is closed; the interpreter's own way down would only have DuckDB's bindings complain in the log.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
