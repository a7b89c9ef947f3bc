"""A PostgreSQL server of the tests' own, in a temporary folder, and a database of its own for each test.

One server serves all processes of a run: the first one that needs it starts it, and the last one to leave stops it. It does
not wait for the disk (`fsync=off`): these tests kill clients, connections and backends, never the machine.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tokenbudget_lab import founding

USER = "postgres"
_numbers = itertools.count()
_SETTINGS = {
    "listen_addresses": "''", "fsync": "off", "full_page_writes": "off", "max_connections": "300", "shared_buffers": "64MB",
    "autovacuum_naptime": "10s", "log_min_messages": "fatal",
}  # fmt: skip


def binaries() -> Path | None:
    """Where Debian, or whoever, has put initdb and its kind: the newest."""
    on_path = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _as_user(*command: str | Path) -> None:
    """Run one of the server's programs, which refuse to be run by root."""
    as_root = ["runuser", "-u", USER, "--"] if os.getuid() == 0 else []
    done = subprocess.run([*as_root, *command], check=False, capture_output=True, text=True, cwd="/", timeout=60)
    assert done.returncode == 0, done.stderr or done.stdout


class Server:
    """A server in a folder, on a socket there and nowhere else."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        found = binaries()
        assert found is not None
        self.bin, self.folder = found, folder
        self.settings = {**_SETTINGS, **(settings or {})}

    def make(self) -> None:
        """A new cluster, with a template that has the schema and an empty ledger."""
        if os.getuid() == 0:
            shutil.chown(self.folder, USER, USER)
        self.folder.chmod(0o755)
        _as_user(self.bin / "initdb", "-D", self.folder / "data", "-U", USER, "--auth=trust", "-E", "UTF8", "--no-sync")
        self.start()
        self.create("tb_template", template="template0")
        founding.found(self.url("tb_template"))

    def start(self) -> None:
        """Until it answers."""
        told = " ".join(f"-c {name}={value}" for name, value in self.settings.items())
        options = f"-c unix_socket_directories={self.folder} {told}"
        log = self.folder / "log"
        _as_user(self.bin / "pg_ctl", "-D", self.folder / "data", "-w", "-t", "30", "-l", log, "-o", options, "start")

    def standby(self, folder: Path) -> Server:
        """Another server, in a new folder, that follows this one and takes no writes."""
        folder.mkdir()
        other = Server(folder, self.settings)
        if os.getuid() == 0:
            shutil.chown(folder, USER, USER)
        folder.chmod(0o755)
        _as_user(
            self.bin / "pg_basebackup", "-h", self.folder, "-U", USER, "-D", folder / "data", "-R", "-c", "fast", "--no-sync"
        )
        other.start()
        return other

    def promote(self) -> None:
        """Of a standby: from now on it takes writes."""
        _as_user(self.bin / "pg_ctl", "-D", self.folder / "data", "-w", "promote")

    def stop(self, mode: str = "immediate") -> None:
        """At once."""
        _as_user(self.bin / "pg_ctl", "-D", self.folder / "data", "-w", "-m", mode, "stop")

    def url(self, database: str, *, user: str = USER, ledger: str | None = None) -> str:
        """Of a ledger there."""
        return f"postgresql://{user}@/{database}?host={self.folder}" + (f"&ledger={ledger}" if ledger else "")

    def run(self, query: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """One statement as the superuser."""
        import psycopg  # an extra, which the tests of the built wheel do without

        with psycopg.connect(f"host={self.folder} user={USER} dbname={database}", autocommit=True) as con:
            cursor = con.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def create(self, name: str, template: str = "tb_template") -> str:
        """A database with an empty ledger."""
        self.run(f"create database {name} template {template}" + (" strategy file_copy" if template != "template0" else ""))
        return self.url(name)

    def drop(self, name: str) -> None:
        """A database and whoever still uses it."""
        self.run(f"drop database if exists {name} with (force)")


_mine: Server | None = None
_common: str | None = None


def shared_folder() -> Path:
    """One per run: of all its processes."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    return Path(tempfile.gettempdir()) / f"tokenbudget-pg-{run[:16]}"


def server() -> Server:
    """The run's server; started by who needs it first."""
    global _mine  # noqa: PLW0603 - one per process, by intent
    if _mine is not None:
        return _mine
    if binaries() is None:
        missing = "no PostgreSQL server: apt-get install postgresql"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    from filelock import FileLock

    folder = shared_folder()
    folder.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        made = Server(folder)
        if not (folder / "ready").exists():
            made.make()
            (folder / "ready").touch()
        (folder / f"user-{os.getpid()}").touch()
    _mine = made
    return made


def leave() -> None:
    """The last process of a run stops the server and removes its folder."""
    global _mine
    if _mine is None:
        return
    from filelock import FileLock

    left, _mine = _mine, None
    lock = left.folder.with_suffix(".lock")
    with FileLock(lock):
        (left.folder / f"user-{os.getpid()}").unlink(missing_ok=True)
        if any(left.folder.glob("user-*")):
            return
        left.stop()
        shutil.rmtree(left.folder, ignore_errors=True)
    lock.unlink(missing_ok=True)


@contextmanager
def database() -> Iterator[str]:
    """The URL of an empty ledger in a database of its own."""
    here, name = server(), f"t{os.getpid()}_{next(_numbers)}"
    url = here.create(name)
    try:
        yield url
    finally:
        here.drop(name)


def ledger() -> str:
    """The URL of an empty ledger, in a database that all tests of this process share."""
    global _common  # noqa: PLW0603 - one per process, by intent
    here, name = server(), f"t{os.getpid()}"
    if _common is None:
        _common = here.create(name)
    url = here.url(name, ledger=f"n{next(_numbers)}")
    founding.found(url)
    return url


def wait_until(what: Any, seconds: float = 10.0) -> None:
    """Look again and again until it is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)
