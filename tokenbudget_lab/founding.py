"""Making a ledger in a PostgreSQL database: its schema, once, and who may do what there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from .errors import InvalidValue, LedgerUnavailable, VersionMismatch
from .servers import connected, server_of, told
from .stores.postgres import SCHEMA

# What makes each version of the schema out of the one before; a newer one is never changed by an older package.
VERSIONS = {1: "postgres.sql", 2: "postgres_2.sql"}
_READ = """
    grant usage on schema tokenbudget to {role};
    grant select on all tables in schema tokenbudget to {role};
    grant execute on all functions in schema tokenbudget to {role};
"""
_SPEND = """
    grant insert on tokenbudget.log to {role};
    grant insert, update, delete on tokenbudget.budgets_now, tokenbudget.totals to {role};
    grant insert, update, delete on tokenbudget.in_flight, tokenbudget.waiting, tokenbudget.watching to {role};
    grant update on tokenbudget.heads to {role};
"""


def found(url: str, *, read: Sequence[str] = (), spend: Sequence[str] = ()) -> tuple[str, bool]:
    """Make the schema, or bring it up to date, and the ledger where there is none; say who may use it.

    Args:
        url: of the ledger; its user must be allowed to make a schema.
        read, spend: roles that may look, and that may spend as well.

    Returns:
        Where the ledger is, without secrets, and whether it was made now.

    Raises:
        InvalidValue: the database does not keep text in UTF-8.
        VersionMismatch: a newer package made the schema.
        LedgerUnavailable: no such server, database or right.
    """
    import psycopg
    from psycopg import sql

    server = server_of(url)
    failed: LedgerUnavailable
    con = connected(server, hurried=False)
    try:
        with con, con.transaction():
            con.execute("select pg_advisory_xact_lock(hashtext('tokenbudget'))")  # two of us at the same time
            _must_be_utf8(con.info.parameter_status("server_encoding"))
            is_new = con.execute("select to_regclass('tokenbudget.meta')").fetchall() == [(None,)]
            have = 0 if is_new else con.execute("select schema from tokenbudget.meta").fetchall()[0][0]
            if have > SCHEMA:
                raise VersionMismatch("schema", SCHEMA, have)
            for version in range(have + 1, SCHEMA + 1):
                con.execute(files("tokenbudget_lab.stores").joinpath(VERSIONS[version]).read_text().encode())
            con.execute("delete from tokenbudget.meta")
            con.execute("insert into tokenbudget.meta values (%s)", (SCHEMA,))
            made = con.execute(
                "insert into tokenbudget.heads (name) values (%s) on conflict (name) do nothing returning ledger",
                (server.ledger,),
            ).fetchall()
            for role, rights in [*((r, _READ) for r in read), *((s, _READ + _SPEND) for s in spend)]:
                con.execute(sql.SQL(rights).format(role=sql.Identifier(role)))
        return server.where, bool(made)
    except psycopg.errors.UndefinedObject:
        failed_role = ", ".join([*read, *spend])
        raise InvalidValue("role", f"the server does not know all of {failed_role}; CREATE ROLE makes one") from None
    except psycopg.Error as error:
        failed = told(server.where, error)
    raise failed


def _must_be_utf8(encoding: str | None) -> None:
    if encoding != "UTF8":
        raise InvalidValue("where", f"the database keeps text in {encoding}, which has not all letters; make one in UTF8")
