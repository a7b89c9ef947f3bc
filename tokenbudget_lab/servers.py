"""PostgreSQL servers: addresses without their passwords, connections, and what goes wrong there in our own words.

Nothing that a server or its client library says about an address is repeated: a mistyped one may have its password anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

from .errors import AccessDenied, ExtraMissing, InvalidValue, LedgerMissing, LedgerUnavailable, ServerUnreachable

if TYPE_CHECKING:
    import psycopg

SCHEMES = ("postgresql://", "postgres://")
DEFAULT_LEDGER = "default"
CONNECT_S = 4  # until an error is told
LOCK_S = 10  # for the head; who holds it idle is thrown out before that
IDLE_S = 5  # in the middle of a batch
STATEMENT_S = 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEYWORD = re.compile(r"[a-z_]{1,40}")
_AS_ONE = "this URL cannot be read: postgresql://user:password@host:port/database?ledger=name is one"
_SHOWN = ("host", "port", "dbname", "user")


class Server(NamedTuple):
    """Where a ledger is.

    Attributes:
        conninfo: what the client library connects with; it has the password.
        ledger: which of those in the database.
        where: the address for people, without secrets.
    """

    conninfo: str
    ledger: str
    where: str

    def __repr__(self) -> str:
        return f"Server({self.where!r})"


def is_url(where: object) -> bool:
    """Whether a ledger's address is a database's."""
    return isinstance(where, str) and where.startswith(SCHEMES)


def server_of(url: str) -> Server:
    """Read `postgresql://user@host/database?ledger=name`.

    Raises:
        InvalidValue: it cannot be read; without repeating it.
        ExtraMissing: psycopg is not installed.

    Examples:
        >>> server_of("postgresql://ann:secret@db.example.org/lab?ledger=grant-7").where
        'postgresql://ann@db.example.org/lab?ledger=grant-7'
    """
    conninfo = _driver().conninfo
    authority, slash, rest = re.fullmatch(r"[a-z]+://([^/?#]*)([/?#]?)(.*)", url, re.DOTALL).groups()  # type: ignore[union-attr] # `is_url` was asked
    if authority.count("@") > 1 or "@" in rest or slash == "#" or "#" in rest or "\0" in url:
        raise InvalidValue(
            "where", "this URL cannot be read: write @ / ? # % in a user's name or password as %40 %2F %3F %23 %25"
        )
    try:
        split = urlsplit(url)
    except ValueError:
        raise InvalidValue("where", _AS_ONE) from None
    pairs = [pair for pair in split.query.split("&") if pair]  # as they are: to libpq, `+` is no space
    given = [(unquote(name), unquote(value)) for name, _, value in (pair.partition("=") for pair in pairs)]
    ledger = next((value for name, value in reversed(given) if name == "ledger"), DEFAULT_LEDGER)
    if not _NAME.fullmatch(ledger):
        raise InvalidValue(
            "where", "a ledger's name has letters, digits, dots, dashes, and at most 63 of them: ?ledger=grant-7"
        )
    known = {option.keyword.decode() for option in _driver().pq.Conninfo.get_defaults()}
    for name, _ in given:
        if name != "ledger" and name not in known:
            said = f"no parameter {name!r}" if _KEYWORD.fullmatch(name) else "a parameter that nobody knows"
            raise InvalidValue("where", f"this URL cannot be read: {said}; ledger=, sslmode=, service= … are such")
    others = [pair for pair, (name, _) in zip(pairs, given, strict=True) if name != "ledger"]
    plain = urlunsplit(split._replace(query="&".join(others)))
    try:
        parts = conninfo.conninfo_to_dict(plain)
        [int(number) for key in ("port", "connect_timeout") for number in str(parts.get(key) or 0).split(",") if number]
    except (_driver().Error, ValueError):
        parts = None
    if parts is None:
        raise InvalidValue("where", _AS_ONE)
    defaults: dict[str, Any] = {"connect_timeout": CONNECT_S, "application_name": "tokenbudget"}
    if "," in str(parts.get("host", "")):
        defaults["target_session_attrs"] = "read-write"  # after a fail-over, the one that takes writes
    return Server(conninfo.make_conninfo(**{**defaults, **parts}), ledger, _shown(parts, ledger))


def _shown(parts: dict[str, Any], ledger: str) -> str:
    host, port, name, user = (str(parts.get(key) or "") for key in _SHOWN)
    at = ",".join(
        f"{h}:{p}" if p else h for h, p in zip(host.split(","), _as_many(port.split(","), host.count(",") + 1), strict=True)
    )
    socket = "/" in host
    query = {"host": host, **({"port": port} if port else {})} if socket else {}
    query |= {"service": str(parts["service"])} if parts.get("service") else {}
    query |= {"ledger": ledger} if ledger != DEFAULT_LEDGER else {}
    text = f"postgresql://{user + '@' if user else ''}{'' if socket else at}/{name}"
    return text + (f"?{urlencode(query, safe='/,', quote_via=quote)}" if query else "")


def _as_many(ports: list[str], count: int) -> list[str]:
    return ports if len(ports) == count else ports[:1] * count


def _driver() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as error:
        raise ExtraMissing("postgres", "psycopg") from error
    return psycopg


def connected(server: Server, *, hurried: bool = True) -> psycopg.Connection[Any]:
    """A connection whose every wait has an end.

    Args:
        server: where.
        hurried: for a batch, that others wait for; reading and making a ledger may take its time.

    Raises:
        ServerUnreachable: nobody answers.
        AccessDenied: not this user, or not with this password.
        LedgerMissing: no such database.
    """
    driver = _driver()
    failed: LedgerUnavailable | None = None
    try:
        con: psycopg.Connection[Any] = driver.connect(server.conninfo, autocommit=True, cursor_factory=driver.ClientCursor)
        with con.cursor() as cursor:
            cursor.execute(
                "select set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false),"
                " set_config('plan_cache_mode', 'force_generic_plan', false), set_config('jit', 'off', false),"
                " set_config('enable_seqscan', %s, false),"
                # A plan is made once, and never reads all of a table, whatever statistics said when that was nearly empty.
                " set_config('idle_in_transaction_session_timeout', %s, false), set_config('client_encoding', 'UTF8', false),"
                # Whatever a role's settings are: who has waited for the head sees what was written meanwhile, …
                " set_config('default_transaction_isolation', 'read committed', false),"
                # … and what is acknowledged is on the disk.
                " set_config('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'on'"
                " else current_setting('synchronous_commit') end, false)",
                (
                    f"{LOCK_S}s",
                    f"{STATEMENT_S}s" if hurried else "0",
                    "off" if hurried else "on",
                    f"{IDLE_S}s" if hurried else "0",
                ),
            )
        return con
    except driver.Error as error:
        failed = told(server.where, error, connecting=True)
    raise failed


def told(where: str, error: psycopg.Error, *, connecting: bool = False) -> LedgerUnavailable:
    """What a server's error means; without what it said about the address."""
    state, text = error.sqlstate or "", str(error)
    if state in ("28P01", "28000") or "password authentication failed" in text or "no password supplied" in text:
        return AccessDenied(
            where,
            "wrong user or password",
            "Give it in the URL, in PGPASSWORD, or in ~/.pgpass; libpq's other ways to authenticate work too",
        )
    if "pg_hba.conf" in text:
        return AccessDenied(where, "pg_hba.conf has no entry for this user, host and database", "Ask whoever runs the server")
    if "authentication failed" in text or ("role" in text and "does not exist" in text):
        return AccessDenied(where, "this user does not exist there, or may not log in", "Check the user's name in the URL")
    if state == "3D000" or ("database" in text and "does not exist" in text):
        return LedgerMissing(where, "the server has no database of that name, which `createdb` makes")
    if state in ("42501", "25006"):
        return AccessDenied(where, "this user may only read", "To spend, ask for `tokenbudget init --spend ROLE`")
    if state in ("3F000", "42P01"):
        return LedgerMissing(where, "the database has no schema `tokenbudget`")
    if connecting:
        return ServerUnreachable(where, _why(text))
    if state and not state.startswith(("08", "57")):
        return ServerUnreachable(where, f"it says {state}: {error.diag.message_primary}")
    return ServerUnreachable(where, f"the connection was lost ({state or type(error).__name__})")


def _why(text: str) -> str:
    reasons = {
        "timeout expired": f"no answer in {CONNECT_S} s",
        "Connection refused": "nobody listens there",
        "could not translate host name": "no such host",
        "failed to resolve host": "no such host",
        "Name or service not known": "no such host",
        "No such file or directory": "nobody listens on that socket",
        "starting up": "the server is starting",
        "shutting down": "the server is shutting down",
        "too many clients": "it has too many clients",
        "remaining connection slots": "it has too many clients",
        "SSL": "no TLS as sslmode= asks for it",
        "certificate": "its certificate is not trusted",
        "read-only": "no server of these takes writes",
    }
    return next((reason for sign, reason in reasons.items() if sign in text), "it broke off")


@contextmanager
def reading(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A connection for a while, in one transaction that sees one instant and changes nothing."""
    con = connected(server, hurried=False)
    try:
        con.execute("begin isolation level repeatable read read only")
        yield con
    finally:
        con.close()
