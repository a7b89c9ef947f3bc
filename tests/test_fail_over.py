"""A server that dies, takes too long, or takes a decision back: another one takes over, or an error says so; never both."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

import tokenbudget_lab as tbl
from tests import postgres
from tests.test_shared_ledgers import spent, worker
from tokenbudget_lab import servers
from tokenbudget_lab.servers import server_of
from tokenbudget_lab.sharing import Asked
from tokenbudget_lab.stores.postgres import PostgresStore


@pytest.fixture
def database() -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def url() -> str:
    return postgres.ledger()


def run(url: str, query: str) -> None:
    postgres.server().run(query, url.partition("@/")[2].partition("?")[0])


# --- several hosts -----------------------------------------------------------------------------------------------------------


def test_the_first_host_of_an_address_may_be_dead(url: str) -> None:
    """Spending, reading and proving find the second one."""
    with tbl.connect(url.replace("host=", "host=/nobody/is/here,")) as ledger:
        lab = ledger.budget("lab", tokens=100)
        lab.record(tokens=1).result()
        assert (lab.balance.committed_tokens, ledger.verify().events, ledger.events().collect().height) == (1, 3, 3)
        assert "/nobody/is/here,/" in ledger.desk.where


@pytest.fixture
def pair() -> Iterator[tuple[postgres.Server, postgres.Server]]:
    """A server, and another that follows it and has all that was acknowledged."""
    postgres.server()  # there is PostgreSQL at all
    folder = Path("/tmp") / f"tb-pair-{os.getpid()}"  # noqa: S108 - a path that is short enough for a socket
    folder.mkdir()
    (folder / "a").mkdir()
    first = postgres.Server(folder / "a", {"max_connections": "20"})
    running = []
    try:
        first.make()
        running.append(first)
        second = first.standby(folder / "b")
        running.append(second)
        first.run("alter system set synchronous_standby_names = '*'")
        first.run("select pg_reload_conf()")
        yield first, second
    finally:
        for server in running:
            if (server.folder / "data" / "postmaster.pid").exists():
                server.stop()
        shutil.rmtree(folder)


def test_when_a_server_dies_in_use_the_other_one_goes_on(pair: tuple[postgres.Server, postgres.Server]) -> None:
    """The standby stands first in the address: it takes no writes until it is promoted.

    record    1
    record    2, the server is dead; another one is promoted
    """
    first, second = pair
    address = first.url("tb_template").replace(f"host={first.folder}", f"host={second.folder},{first.folder}")
    with tbl.connect(address) as ledger:
        lab = ledger.budget("lab", tokens=100)
        lab.record(tokens=1).result()
        first.stop()
        receipt = lab.record(tokens=2)
        second.promote()
        receipt.result()
        assert lab.balance.committed_tokens == 3
        assert ledger.verify().events == 4
        assert ledger.events().collect().height == 4


# --- too slow ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def held_up(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[tbl.Ledger, psycopg.Connection]]:
    """A ledger with 100 tokens, and who keeps one of its tables from being written; statements have a third of a second."""
    monkeypatch.setattr(servers, "STATEMENT_S", 0.3)
    with tbl.connect(database) as ledger, psycopg.connect(server_of(database).conninfo) as other:
        ledger.budget("lab", tokens=100)
        other.execute("lock table tokenbudget.totals in exclusive mode")
        yield ledger, other


def test_what_ran_into_the_statement_timeout_is_decided_once_when_there_is_time(
    held_up: tuple[tbl.Ledger, psycopg.Connection], caplog: pytest.LogCaptureFixture
) -> None:
    """The server breaks off in the midst of a batch; the next attempt comes through."""
    ledger, other = held_up
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(1) as pool:
        taken = pool.submit(ledger.budget("lab").reserve_sync, tokens=60)
        postgres.wait_until(lambda: "57014" in caplog.text)
        other.rollback()
        taken.result().commit(tokens=60).result()
    kinds = [event.kind for event in ledger.desk.events(ledger.verify().events)]
    assert kinds == ["created", "budget_set", "reserved", "committed"]


def test_what_always_runs_into_the_statement_timeout_is_an_error_and_nothing_is_decided(
    held_up: tuple[tbl.Ledger, psycopg.Connection],
) -> None:
    ledger, other = held_up
    lab = ledger.budget("lab")
    with pytest.raises(tbl.ServerLost, match="57014"):
        lab.reserve_sync(tokens=60)
    other.rollback()
    lab.reserve_sync(tokens=100)
    assert ledger.verify().open_reservations == 1


# --- serialization failures --------------------------------------------------------------------------------------------------

AGAIN = """
    create sequence public.tries;
    create function public.fail() returns trigger language plpgsql as $$ begin
        if nextval('public.tries') <= {times} then
            raise exception 'restart transaction' using errcode = 'serialization_failure';
        end if;
        return null;
    end $$;
    create constraint trigger fail after insert on tokenbudget.log {when} for each row execute function public.fail();
"""
WHEN = {"at once": "", "at the commit": "deferrable initially deferred"}


@pytest.mark.parametrize("when", WHEN)
def test_after_a_serialization_failure_a_batch_is_decided_anew(when: str, database: str) -> None:
    """As engines have them that speak the protocol: two of them, then it goes through.

    limit     100 tokens
    reserve   60, fails twice
    reserve   60, refused
    """
    with tbl.connect(database) as ledger:
        lab = ledger.budget("lab", tokens=100)
        run(database, AGAIN.format(times=2, when=WHEN[when]))
        lab.reserve_sync(tokens=60)
        with pytest.raises(tbl.BudgetExceeded):
            lab.reserve_sync(tokens=60)
        kinds = [event.kind for event in ledger.desk.events(ledger.verify().events)]
    assert kinds == ["created", "budget_set", "reserved", "refused"]


@pytest.mark.parametrize("when", WHEN)
def test_serialization_failures_without_end_are_an_error_and_nothing_is_decided(when: str, database: str) -> None:
    with tbl.connect(database) as ledger:
        lab = ledger.budget("lab", tokens=100)
        run(database, AGAIN.format(times=1000, when=WHEN[when]))
        with pytest.raises(tbl.ServerLost, match="40001"):
            lab.reserve_sync(tokens=60)
        run(database, "drop trigger fail on tokenbudget.log")
        lab.reserve_sync(tokens=100)
        assert ledger.verify().open_reservations == 1


@pytest.fixture(params=["repeatable read", "serializable"])
def set_so(request: pytest.FixtureRequest, url: str) -> str:
    """The address of a ledger for somebody whose transactions are, unless told otherwise, of this isolation level."""
    level = str(request.param).replace(" ", "\\ ")
    other = f"{url}&options={quote(f'-c default_transaction_isolation={level}')}"
    with psycopg.connect(server_of(other).conninfo) as con:
        assert con.execute("show default_transaction_isolation").fetchall() == [(request.param,)]
    return other


def test_a_roles_isolation_level_changes_no_decision(set_so: str, tmp_path: Path) -> None:
    """Two processes against one budget.

    limit     lab 60 tokens, lab/study 1000
    reserve   1, commit 1, from 2 processes with 10 tasks each, 5 times
    """
    with tbl.connect(set_so) as ledger:
        ledger.budget("lab", tokens=60)
        ledger.budget("lab/study", tokens=1000)
    files = [tmp_path / str(n) for n in range(2)]
    workers = [worker(set_so, 10, 5, file) for file in files]
    assert [one.wait(60) for one in workers] == [0, 0]
    told = [line.split() for file in files for line in file.read_text().splitlines()]
    assert spent(set_so, told, 60) == (60, 0)
    assert not any(line[0] == "unavailable" for line in told)


def test_whatever_a_roles_isolation_level_is_who_waited_for_the_head_goes_on_with_what_was_written(set_so: str) -> None:
    """And does not have to begin anew, which each of many would have to whenever another one has written."""
    store = PostgresStore(set_so, patience_s=0)
    with psycopg.connect(server_of(set_so).conninfo) as other, ThreadPoolExecutor(1) as pool:
        other.execute("update tokenbudget.heads set ts = 1000 where name = %s", (server_of(set_so).ledger,))
        loaded = pool.submit(store.begin, Asked(True, [], [], [], [], everything=False, since=-1))
        postgres.wait_until(lambda: postgres.server().run("select 1 from pg_locks where not granted"))
        other.commit()
        assert loaded.result().ts == 1000
    store.release()
    store.close()
