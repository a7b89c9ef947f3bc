"""One behaviour suite for every store.

A test that asks for `ledger` runs once per store. A test that also asks for `clock` decides what time it is, and runs with the
stores that a clock can be passed to. Whatever a test did, its ledger is verified when it ends.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests import postgres
from tests.grouping import pytest_xdist_make_scheduler  # noqa: F401 - pytest finds it here
from tests.provider import provider  # noqa: F401 - a fixture
from tests.soaking import pace, pytest_addoption, pytest_collection_modifyitems, pytest_runtest_setup, pytest_terminal_summary  # noqa: F401 - pytest finds them here
from tokenbudget_lab import link
from tokenbudget_lab.events import Event
from tokenbudget_lab.ids import uuid7_source
from tokenbudget_lab.place import place_of
from tokenbudget_lab.store import Store
from tokenbudget_lab.stores.duckdb import DuckDBStore
from tokenbudget_lab.stores.memory import MemoryStore
from tokenbudget_lab.stores.postgres import PostgresStore

WITH_A_CLOCK = ("memory", "duckdb", "postgres")
ON_ONE_MACHINE = ("memory", "duckdb")
# For a test of a module that names its stores: what it claims is tried with a server's address too.
also_on_postgres = pytest.mark.also_on("postgres")
# For its doctests, of which it has none, LiteLLM would be imported; it is run by its name.
collect_ignore = ["litellm_calls.py"]


def pytest_configure(config: pytest.Config) -> None:
    """One seed for all processes of a run: `TOKENBUDGET_SEED`, else any; and no prices but the catalogue's."""
    os.environ.setdefault("TOKENBUDGET_SEED", str(random.randrange(10**9)))
    config.addinivalue_line("markers", "also_on(store): runs with this store too, though its module does not name it")
    os.environ["TOKENBUDGET_PRICES"] = "off"  # the prices of whoever runs the tests are none of theirs


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whoever needed a PostgreSQL server lets go of it."""
    postgres.leave()


def pytest_report_header(config: pytest.Config) -> str:
    """How to have the same chances again."""
    return f"TOKENBUDGET_SEED={os.environ['TOKENBUDGET_SEED']}"


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self._ns = 0
        self.set("2026-11-23 12:00")

    def now_ns(self) -> int:
        """Unix nanoseconds."""
        return self._ns

    @property
    def now(self) -> datetime:
        """The same as an aware datetime."""
        return datetime.fromtimestamp(self._ns / 1e9, UTC)

    def advance(self, seconds: float) -> None:
        """Let time pass, or go back."""
        self._ns += round(seconds * 1_000_000_000)

    def set(self, moment: str) -> None:
        """Go to a moment, written in UTC: `2026-11-23 12:00`."""
        self._ns = int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


class Home:
    """Where one test's ledger lives; it can be opened again after it was closed."""

    def __init__(self, store: str, folder: Path, clock: Clock) -> None:
        self.store, self.path, self.clock = store, folder / "spend.duckdb", clock
        self._memory = MemoryStore()
        self.url = postgres.ledger() if store == "postgres" else None
        self.ledger = self._open()

    def _open(self) -> tbl.Ledger:
        if self.store == "keeper":
            return tbl.connect(self.path)
        store: Store
        if self.url is not None:
            store = PostgresStore(self.url, clock_ns=self.clock.now_ns)
        else:
            store = self._memory if self.store == "memory" else DuckDBStore(place_of(self.path))
        return tbl.Ledger(store=store, clock_ns=self.clock.now_ns, ids=uuid7_source(self.clock.now_ns))

    def reopen(self) -> tbl.Ledger:
        """Close the ledger and open it again from what its store kept."""
        self.ledger.close()
        self.ledger = self._open()
        return self.ledger

    def finish(self) -> None:
        """Prove that replaying every event gives the balances in force."""
        if self.ledger.closed:
            self.ledger = self._open()
        try:
            self.ledger.verify()
        finally:
            self.ledger.close()
            if self.store == "keeper":
                link.stop(place_of(self.path))


class Log:
    """The events of a test's ledger."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @property
    def events(self) -> list[Event]:
        """All of them, without the first one, that created the ledger."""
        ledger = self._home.ledger
        return list(ledger.desk.events(ledger.verify().events))[1:]

    @property
    def kinds(self) -> list[str]:
        """What happened, in order."""
        return [event.kind for event in self.events]

    def last(self, kind: str) -> Event:
        """The last event of a kind."""
        return next(event for event in reversed(self.events) if event.kind == kind)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a ledger once per store.

    A keeper is a process that takes its time to start. Every test may run with one, but does so only in the soak; the promises
    of `test_behaviour.py` are always kept through a keeper too. A module whose claims are none of a store's names one `STORE`;
    one that comes to a store only by what others have tried on each names its `STORES`, and a few of its tests are marked
    `also_on_postgres`. A test that is parametrised by `store` itself has those.
    """
    if "store" not in metafunc.fixturenames or any(
        mark.args[0] == "store" for mark in metafunc.definition.iter_markers("parametrize")
    ):
        return
    one = getattr(metafunc.module, "STORE", None)
    stores: list[Any] = [one] if one else list(getattr(metafunc.module, "STORES", WITH_A_CLOCK))
    stores += [mark.args[0] for mark in metafunc.definition.iter_markers("also_on")]
    if "clock" not in metafunc.fixturenames and not one:
        always = metafunc.module.__name__.endswith("test_behaviour")
        stores.append(pytest.param("keeper", marks=() if always else pytest.mark.soak))
    metafunc.parametrize("store", stores)


@pytest.fixture
def where(store: str, tmp_path: Path) -> Iterator[str]:
    """The address of an empty ledger, as anybody would write it; all but `memory` are open to other processes."""
    if store != "keeper":
        yield postgres.ledger() if store == "postgres" else ":memory:"
        return
    yield str(tmp_path / "spend.duckdb")
    link.stop(place_of(tmp_path / "spend.duckdb"))


@pytest.fixture
def clock(home: Home) -> Clock:
    return home.clock


@pytest.fixture
def home(store: str, tmp_path: Path) -> Iterator[Home]:
    home = Home(store, tmp_path, Clock())
    yield home
    home.finish()


@pytest.fixture
def ledger(home: Home) -> tbl.Ledger:
    return home.ledger


@pytest.fixture
def log(home: Home) -> Log:
    return Log(home)


async def in_line(budget: tbl.Budget, **what: Any) -> asyncio.Task[tbl.Reservation]:
    """Reserve in a task of its own, and go on when the ledger has decided: it is granted, refused, or stands in line."""

    async def take() -> tbl.Reservation:
        return await budget.reserve(**what)

    task = asyncio.create_task(take())
    await asyncio.sleep(0)  # the task runs up to its first wait, which is behind the handing in
    assert budget.balance.budget == budget.name  # and what is handed in later is answered later
    return task


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    """A budget of one dollar in the test's ledger."""
    return ledger.budget("study", usd=1)
