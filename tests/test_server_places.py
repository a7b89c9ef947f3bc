"""Addresses of databases that lead nowhere, and users who may not: each a named error within five seconds, and no password."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from importlib import resources
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

import tokenbudget_lab as tbl
from tests import postgres
from tokenbudget_lab import founding
from tokenbudget_lab.cli.entry import app
from tokenbudget_lab.servers import server_of
from tokenbudget_lab.stores.postgres import PostgresStore

SECRET = "hunter2%2Fx"
SOON_S = 5.0


def refused(url: str, kind: type[tbl.TokenBudgetError]) -> str:
    """What is said when it is opened; soon, and without the password, wherever one may look."""
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        tbl.connect(url).close()
    assert time.monotonic() - began < SOON_S
    seen: BaseException | None = caught.value
    while seen is not None:
        for text in (str(seen), repr(seen), repr(seen.args)):
            assert "hunter2" not in text
        seen = seen.__cause__ or seen.__context__
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


TYPOS = [
    f"postgresql://ann:{SECRET}@db:54x2/lab",
    f"postgresql://ann:{SECRET}@db/lab?sslmod=require",
    f"postgresql://ann:{SECRET}@db/lab?ledger=a/b",
    f"postgresql://ann:{SECRET}@db/lab?ledger=",
    "postgresql://ann:hunter2/x@db/lab",
    "postgresql://ann:hunter2@x@db/lab",
    "postgresql://ann:hunter2?x@db/lab",
    "postgresql://ann:hunter2#x@db/lab",
    "postgresql://ann:hunter2%zz@db/lab",
    f"postgresql://ann:{SECRET}@[::1/lab",
    f"postgresql://ann:{SECRET}@db/la\0b",
    f"postgresql://ann:{SECRET}@db/lab?connect_timeout=hunter2",
]


@pytest.mark.parametrize("url", TYPOS, ids=ascii)
def test_a_url_that_cannot_be_read_is_an_error_that_does_not_repeat_it(url: str) -> None:
    assert "hunter2" not in refused(url, tbl.InvalidValue)


def test_a_host_that_does_not_exist_and_a_port_where_nobody_listens() -> None:
    assert "no such host" in refused(f"postgresql://ann:{SECRET}@no-such-host.invalid/lab", tbl.ServerUnreachable)
    assert "nobody listens" in refused(f"postgresql://ann:{SECRET}@127.0.0.1:1/lab", tbl.ServerUnreachable)


def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "no answer in 4 s" in refused(f"postgresql://ann:{SECRET}@127.0.0.1:{port}/lab", tbl.ServerUnreachable)


@pytest.fixture
def database() -> Iterator[str]:
    with postgres.database() as url:
        yield url


def name_of(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def test_what_is_not_there_is_missing_and_never_made(database: str) -> None:
    """A database, a schema, a ledger: a mistyped address must not be a fresh budget."""
    server = postgres.server()
    assert "no database of that name" in refused(server.url("no-such-database"), tbl.LedgerMissing)
    said = refused(database + "&ledger=mistyped", tbl.LedgerMissing)
    assert "'mistyped'" in said
    assert f"tokenbudget init --ledger '{database}&ledger=mistyped'" in said
    server.run("drop schema tokenbudget cascade", name_of(database))
    assert "no schema" in refused(database, tbl.LedgerMissing)
    server.run("create schema tokenbudget; create table tokenbudget.meta (x text)", name_of(database))
    with pytest.raises(tbl.LedgerUnavailable):
        tbl.connect(database)


def test_a_newer_schema_is_left_alone(database: str) -> None:
    postgres.server().run("update tokenbudget.meta set schema = 99", name_of(database))
    assert "schema version 99 found" in refused(database, tbl.VersionMismatch)
    with pytest.raises(tbl.VersionMismatch):
        founding.found(database)


@pytest.fixture
def role(database: str) -> Iterator[Callable[[str], str]]:
    """Makes a role, and gives the database's URL with that."""
    server, made = postgres.server(), []

    def make(name: str) -> str:
        name = f"{name}_{os.getpid()}"
        server.run(f"create role {name} login password 'hunter2/x'")
        made.append(name)
        return database.replace("postgres@", f"{name}:{SECRET}@")

    yield make
    for name in made:
        for drop in (f"drop owned by {name}", f"drop role {name}"):
            server.run(drop, name_of(database))


def test_an_older_schema_is_brought_up_to_date_by_init_and_keeps_rights_and_ledgers(
    database: str, role: Callable[[str], str]
) -> None:
    """As the first version made it, with a role that may spend there."""
    spender = role("spender_of_old")
    server, name = postgres.server(), name_of(database)
    server.run("drop schema tokenbudget cascade", name)
    first = resources.files("tokenbudget_lab.stores").joinpath("postgres.sql").read_text()
    server.run(first, name)
    server.run("insert into tokenbudget.meta values (1)", name)
    server.run(f"insert into tokenbudget.heads (name) values ('{server_of(database).ledger}')", name)  # noqa: S608 - our own
    given = founding._READ + founding._SPEND.replace(", tokenbudget.watching", "")
    server.run(given.format(role=f"spender_of_old_{os.getpid()}"), name)
    assert "tokenbudget init" in refused(database, tbl.VersionMismatch)
    assert founding.found(database) == (server_of(database).where, False)
    with tbl.connect(database) as ledger, tbl.connect(spender) as theirs:
        study = ledger.budget("study", usd=1)
        with tbl.gauge(study):
            postgres.wait_until(lambda: server.run("select 1 from tokenbudget.watching", name))
            theirs.budget("study").record(usd="0.25").result()
        assert (str(study.balance.committed_usd), ledger.verify().events) == ("0.25", 3)


def test_a_role_that_may_read_reads_and_does_not_spend(role: Callable[[str], str], database: str) -> None:
    reader = role("auditor")
    with tbl.connect(database) as ledger:
        lab = ledger.budget("lab", usd=1)
        lab.record(usd="0.25").result()
        lab.reserve_sync(usd="0.25", timeout=1)
    founding.found(database, read=[server_of(reader).where.partition("//")[2].partition("@")[0]])
    time.sleep(1.1)  # a hold is due, which only who may spend can end
    with tbl.connect(reader) as ledger:
        lab = ledger.budget("lab")
        assert (lab.balance.committed_usd, lab.balance.reserved_usd) == (Decimal("0.25"), Decimal("0.25"))
        assert ledger.calls().collect().height == 2
        assert ledger.verify().events == 4
        began = time.monotonic()
        with pytest.raises(tbl.AccessDenied, match=r"may only read.*--spend") as denied:
            lab.reserve_sync(usd="0.1")
        assert time.monotonic() - began < SOON_S
        assert "hunter2" not in str(denied.value)


def test_a_role_that_may_spend_spends_and_changes_no_event(role: Callable[[str], str], database: str) -> None:
    spender = role("student")
    founding.found(database, spend=[server_of(spender).where.partition("//")[2].partition("@")[0]])
    with tbl.connect(spender) as ledger:
        ledger.budget("lab", usd=1).record(usd="0.25").result()
        assert ledger.verify().events == 3
    with psycopg.connect(server_of(spender).conninfo, autocommit=True) as con:
        for change in ("update tokenbudget.log set usd = 0", "delete from tokenbudget.log", "truncate tokenbudget.log"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                con.execute(change)


CHANGES = ["update tokenbudget.log set usd = 0", "delete from tokenbudget.log", "truncate tokenbudget.log"]


@pytest.mark.parametrize("change", CHANGES)
def test_not_even_the_owner_changes_an_event(change: str, database: str) -> None:
    with tbl.connect(database), pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        postgres.server().run(change, name_of(database))


@pytest.mark.parametrize("events", [20, 2_500])
def test_an_event_that_was_changed_is_found_by_verify(events: int, database: str) -> None:
    """By who may do it, with the triggers off; in a short log and in a long one, which are read in different ways."""
    server, name = postgres.server(), name_of(database)
    with tbl.connect(database) as ledger:
        lab = ledger.budget("lab", tokens=10_000)
        for receipt in [lab.record(tokens=1) for _ in range(events)]:
            receipt.result()
        assert ledger.verify().events == events + 2
        server.run("alter table tokenbudget.log disable trigger all", name)
        server.run("update tokenbudget.log set tokens = 2 where seq = 11", name)
        with pytest.raises(tbl.LedgerCorrupt, match="event 11"):
            ledger.verify()


@pytest.mark.parametrize("events", [20, 2_500])
@pytest.mark.parametrize("seq", ["0", "-5", "seq + 1"])
def test_an_event_that_was_added_outside_the_order_is_found_by_verify(events: int, seq: str, database: str) -> None:
    """A role that spends may add rows to the log: whoever reads its events would take one for spent, and no fold has it."""
    with tbl.connect(database) as ledger:
        lab = ledger.budget("lab", tokens=10_000)
        for receipt in [lab.record(tokens=1) for _ in range(events)]:
            receipt.result()
        forged = f"""
            insert into tokenbudget.log
            select (jsonb_populate_record(l, jsonb_build_object('seq', {seq}, 'command', gen_random_uuid(), 'tokens', 777))).*
            from tokenbudget.log l where seq = {events + 2}
        """  # noqa: S608 - values of our own
        postgres.server().run(forged, name_of(database))
        assert 777 in ledger.events().collect()["tokens"]
        with pytest.raises(tbl.LedgerCorrupt, match=f"event (0|-5|{events + 3}) does not fit"):
            ledger.verify()


def test_a_session_that_may_only_read_is_told_at_once(database: str) -> None:
    """A server that stands by for another says the same, and is waited for."""
    url = f"{database}&options=-c%20default_transaction_read_only%3Don"
    with tbl.connect(database) as ledger:
        ledger.budget("lab", usd=1)
    began = time.monotonic()
    with pytest.raises(tbl.AccessDenied, match="may only read"), tbl.connect(url) as reader:
        reader.budget("lab").record(usd="0.25").result()
    assert time.monotonic() - began < 5


def test_rows_that_are_not_what_the_log_amounts_to_are_found_by_verify(database: str) -> None:
    """Somebody with the rights has made room in a budget."""
    with tbl.connect(database) as ledger:
        ledger.budget("lab", usd=1).record(usd="0.25").result()
        postgres.server().run("update tokenbudget.totals set numbers[1] = 0", name_of(database))
        with pytest.raises(tbl.LedgerCorrupt, match="other balances"):
            ledger.verify()


def test_a_wrong_password_is_said_to_be_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The run's server asks for none; so this one is told to."""
    server = postgres.server()
    hba = server.folder / "data" / "pg_hba.conf"
    before = hba.read_text()
    server.run("create role careful login password 'right'")
    try:
        hba.write_text(f"local all careful scram-sha-256\n{before}")
        server.run("select pg_reload_conf()")
        url = server.url("tb_template").replace("postgres@", f"careful:{SECRET}@")
        postgres.wait_until(lambda: isinstance(_error(url), tbl.AccessDenied))
        assert "wrong user or password" in refused(url, tbl.AccessDenied)
        assert "PGPASSWORD" in refused(url.replace(f":{SECRET}", ""), tbl.AccessDenied)
    finally:
        hba.write_text(before)
        server.run("select pg_reload_conf()")
        server.run("drop role careful")


def _error(url: str) -> Exception | None:
    try:
        tbl.connect(url).close()
    except tbl.TokenBudgetError as error:
        return error
    return None


def test_a_server_put_back_behind_what_was_acknowledged_is_noticed(database: str) -> None:
    """A copy of an hour ago, or another server that had not heard."""
    server, name = postgres.server(), name_of(database)
    with tbl.connect(database) as ledger:
        lab = ledger.budget("lab", usd=1)
        lab.record(usd="0.25").result()
        server.run("alter table tokenbudget.log disable trigger all", name)
        server.run("delete from tokenbudget.log where seq = 3", name)
        server.run("update tokenbudget.heads set seq = 2, hash = (select hash from tokenbudget.log where seq = 2)", name)
        with pytest.raises(tbl.LedgerCorrupt, match="acknowledged"):
            lab.record(usd="0.25").result()


def test_the_password_is_nowhere(database: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    """In no repr, log, event or table."""
    url = database.replace("postgres@", f"postgres:{SECRET}@")
    with caplog.at_level(logging.DEBUG), tbl.connect(url) as ledger:
        ledger.budget("lab", usd=1).record(usd="0.25").result()
        store: Any = ledger.desk.store  # type: ignore[attr-defined] # a writer's
        told = [repr(ledger), ledger.desk.where, repr(store._server), str(ledger.events().collect().to_dicts()), caplog.text]
        kill = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname = '{}'"
        postgres.server().run(kill.format(name_of(database)))
        ledger.budget("lab").record(usd="0.25").result()
    assert "hunter2" not in "".join((*told, caplog.text))


def test_init_makes_a_ledger_once_and_the_other_commands_use_it(database: str) -> None:
    """All of the command line with a URL, and with it in the environment."""
    url = f"{database}&ledger=grant-7"
    runner = CliRunner()

    def run(*arguments: str, code: int = 0, **environment: str) -> str:
        done = runner.invoke(app, arguments, env={"TOKENBUDGET_PRICES": "off", **environment})
        assert done.exit_code == code, done.output
        return done.output

    assert "tokenbudget init" in run("status", "--ledger", url, code=3)
    assert "made ledger" in run("init", url)
    assert "is there already" in run("init", "--ledger", url)
    run("budget", "create", "lab", "--usd", "5", "--ledger", url)
    with tbl.connect(url) as ledger:
        ledger.budget("lab").record(usd="0.25").result()
    assert "$0.25" in run("status", TOKENBUDGET_LEDGER=url)
    assert "sound" in run("verify", url)
    assert "0.25" in run("sql", "select sum(usd) from events", "--ledger", url)
    assert "0.25" in run("report", url)
    assert "is no file" in run("keeper", "status", url, code=2)


def test_without_psycopg_it_is_said_what_to_install() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "import tokenbudget_lab as tbl\n"
        "try: tbl.connect('postgresql://ann@db/lab')\n"
        "except tbl.ExtraMissing as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "tokenbudget_lab[postgres]" in said


def test_a_forked_child_leaves_the_connection_to_its_parent(database: str) -> None:
    program = (
        "import os, sys, tokenbudget_lab as tbl\n"
        "ledger = tbl.connect(sys.argv[1]); lab = ledger.budget('lab', usd=1)\n"
        "if os.fork() == 0:\n"
        "    try: lab.record(usd='0.1')\n"
        "    except tbl.LedgerForked: print('forked', flush=True)\n"
        "    sys.exit()\n"
        "os.wait(); lab.record(usd='0.1').result(); print(lab.balance.committed_usd); ledger.close()"
    )
    done = subprocess.run([sys.executable, "-c", program, database], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["forked", "0.1"], done.stderr


def test_the_store_takes_its_time_from_the_server(database: str) -> None:
    """A machine whose clock is ten years ahead opens no window that is not due."""
    program = (
        "import sys, time, tokenbudget_lab as tbl\n"
        "now = time.time_ns; time.time_ns = lambda: now() + 10 * 365 * 86400 * 10**9\n"
        "with tbl.connect(sys.argv[1]) as ledger: ledger.budget('lab', usd=1, window='day').record(usd='0.1').result()"
    )
    subprocess.run([sys.executable, "-c", program, database], check=True, capture_output=True, text=True)
    with tbl.connect(database) as ledger:
        assert ledger.budget("lab").balance.committed_usd == Decimal("0.1")


def test_a_store_is_opened_by_hand_as_well(database: str) -> None:
    with tbl.Ledger(store=PostgresStore(database)) as ledger:
        assert ledger.verify().events == 1
