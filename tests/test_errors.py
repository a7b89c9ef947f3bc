"""Errors: each carries its numbers, says them, and survives a process pool."""

from __future__ import annotations

import copy
import pickle
from decimal import Decimal

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import errors

# One of each, with the words and numbers that its text must have.
EXAMPLES: list[tuple[tbl.TokenBudgetError, list[str]]] = [
    (errors.TokenBudgetError("something"), ["something"]),
    (errors.InvalidValue("usd", "is negative"), ["usd", "is negative"]),
    (errors.InvalidType("tokens", "'12' is str"), ["tokens", "'12' is str"]),
    (errors.NotEntered("touched too early"), ["touched too early"]),
    (errors.NoBudget(), ["nothing was sent", "tbl.instrument(client, study)"]),
    (errors.NotMetered("POST /v1/complete"), ["POST /v1/complete", "nothing was sent", "budget.record(usd=…)"]),
    (errors.BatchUnread("file-1", "HTTP 404"), ["'file-1'", "HTTP 404", "was not sent", "Check input_file_id"]),
    (errors.NotCalled("BudgetClosed: lab is closed"), ["not called", "BudgetClosed: lab is closed"]),
    (errors.WouldDeadlock("holds itself"), ["holds itself"]),
    (errors.Refused("refused"), ["refused"]),
    (
        errors.BudgetExceeded("lab", "lab/a", "usd", Decimal("0.3"), Decimal("0.1"), Decimal(1), Decimal("0.6"), 2, "December"),
        ["lab/a", " in lab", "$0.30 requested", "$0.10 of $1.00 left", "$0.60 held by 2 calls", "resets December"],
    ),
    (
        errors.BudgetExceeded("lab", "lab", "tokens", 1500, -200, 10_000),
        ["1,500 tokens requested", "-200 of 10,000 tokens left"],
    ),
    (errors.BudgetExceeded("lab", "lab", "requests", 1, 0, 5, 5, 1), ["1 requests requested", "held by 1 call in flight"]),
    (errors.UnknownBudget("promt", ("prompt", "prompts")), ["'promt'", "did you mean prompt, prompts?"]),
    (errors.UnknownBudget("promt"), ["'promt'", "ledger.budget('promt', usd=5)"]),
    (errors.BudgetLost("lab", "5 tokens"), ["'lab' was lost", "5 tokens spent and not counted", "ledger.budget('lab', usd=…)"]),
    (errors.ParentMissing("lab"), ["'lab'", "create it first"]),
    (
        errors.BudgetDiffers("lab", "$5.00", "$6.00 per day (UTC)"),
        ["lab exists with $5.00, not $6.00 per day (UTC)", "set_limit"],
    ),
    (errors.BudgetClosed("lab"), ["lab is closed"]),
    (errors.WindowFixed("lab", "day", "month"), ["lab counts per day, not month"]),
    (errors.AmountMissing("lab", "tokens"), ["lab limits tokens", "tokens=…"]),
    (errors.PriceUnknown("qwen", "not in the catalogue"), ["'qwen'", "(not in the catalogue)", "set_price"]),
    (errors.PriceUnknown("qwen", "", "sent"), ["'qwen', so", "nothing was sent", "pass usd=…"]),
    (errors.EndpointUnreachable("count_tokens", "no connection"), ["count_tokens", "no connection"]),
    (errors.EncodingAltered("o200k_base", "/tables/o200k_base.tiktoken"), ["o200k_base", "/tables", "vendor-encodings"]),
    (errors.CountFailed("count_tokens", "no key", 17), ["of item 17", "count_tokens", "no key"]),
    (errors.CallsUnpriced("lab", 1), ["lab limits usd, and 1 call without", "ledger.budget('lab').adjust(call, usd=…)"]),
    (
        errors.ReservationClosed("id-1", "committed", "5 tokens", "6 tokens"),
        ["id-1 is committed with 5 tokens", "asked for 6 tokens"],
    ),
    (errors.UnknownReservation("id-1"), ["id-1"]),
    (errors.NotAdjustable("id-1", "open"), ["id-1 is open"]),
    (errors.IdConflict("row-7", "first 5 tokens, now 6"), ["'row-7'", "first 5 tokens, now 6"]),
    (errors.LedgerUnavailable("gone"), ["gone"]),
    (errors.LedgerClosed("/spend.duckdb"), ["/spend.duckdb is closed"]),
    (errors.LedgerForked(4711), ["4711"]),
    (
        errors.LedgerBusy("/spend.duckdb", 4711, "cluster-3", "Use PostgreSQL."),
        ["/spend.duckdb", "4711", "cluster-3", "Use PostgreSQL."],
    ),
    (errors.LedgerBusy("/spend.duckdb"), ["/spend.duckdb is held by another process"]),
    (errors.FileInUse("/spend.duckdb", 4711), ["/spend.duckdb", "4711", "tokenbudget backup"]),
    (errors.KeeperUnreachable("/spend.duckdb", "none came up"), ["/spend.duckdb", "none came up"]),
    (errors.VersionMismatch("schema", 1, 2), ["schema version 2 found", "speaks 1"]),
    (errors.NotALedger("/x", "it is empty"), ["/x is no ledger: it is empty"]),
    (errors.CountFailed("count_tokens", "no key"), ["count_tokens", "no key"]),
    (errors.EndpointUnreachable("count_tokens", "no connection"), ["count_tokens", "no connection"]),
    (errors.EncodingMissing("o200k_base", "/cache"), ["o200k_base", "/cache", "tokenbudget vendor-encodings"]),
    (errors.StoreFailed("disk full"), ["disk full", "nothing was acknowledged"]),
    (errors.ServerLost("postgresql://ann@db/lab", "no answer"), ["postgresql://ann@db/lab", "no answer", "Try again"]),
    (errors.ServerUnreachable("postgresql://ann@db/lab", "no such host"), ["postgresql://ann@db/lab", "no such host"]),
    (errors.LedgerMissing("postgresql://ann@db/lab", "no schema"), ["no schema", "init --ledger postgresql://ann@db/lab"]),
    (errors.AccessDenied("postgresql://ann@db/lab", "wrong password", "See ~/.pgpass"), ["wrong password", "See ~/.pgpass."]),
    (errors.LedgerCorrupt(7, "its hash does not fit"), ["event 7", "its hash does not fit"]),
    (
        errors.LedgerDamaged(7, "3 events are missing", "/spend.duckdb", 9, "/spend.duckdb.d/damaged-1"),
        ["/spend.duckdb is damaged from event 7", "3 events are missing", "up to 9", "damaged-1", "--accept-loss"],
    ),
    (errors.ClockJumped("/spend.duckdb", 7200.0), ["ahead by 7,200 s", "/spend.duckdb", "clock accept"]),
    (errors.ClockJumped("/spend.duckdb", -400.0), ["back by 400 s"]),
    (errors.ExportUnsound("/exports/lab", "a file is missing"), ["/exports/lab", "a file is missing", "another folder"]),
    (errors.QueryRefused("no SELECT"), ["no SELECT"]),
    (errors.ExtraMissing("charts", "altair"), ["charts need altair", 'pip install "tokenbudget_lab[charts]"']),
]
names = [f"{type(error).__name__}-{n}" for n, (error, _) in enumerate(EXAMPLES)]


def all_errors() -> set[type[tbl.TokenBudgetError]]:
    return {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TokenBudgetError)}


def test_every_error_has_an_example_here_and_can_be_imported_from_the_top() -> None:
    assert {type(error) for error, _ in EXAMPLES} == all_errors()
    assert {getattr(tbl, kind.__name__) for kind in all_errors()} == all_errors()


@pytest.mark.parametrize(("error", "words"), EXAMPLES, ids=names)
def test_an_error_says_its_numbers(error: tbl.TokenBudgetError, words: list[str]) -> None:
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(("error", "words"), EXAMPLES, ids=names)
def test_an_error_survives_pickling(error: tbl.TokenBudgetError, words: list[str]) -> None:
    """With its class, its attributes, its text, and the notes on it; and it can be made again of its arguments."""
    assert str(type(error)(*error.args)) == str(error)
    error = copy.copy(error)
    error.add_note("beside it")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert (type(again), again.args, vars(again), str(again)) == (type(error), error.args, vars(error), str(error))


@pytest.mark.parametrize(("error", "words"), EXAMPLES, ids=names)
def test_nothing_in_an_error_acts_on_a_terminal(error: tbl.TokenBudgetError, words: list[str]) -> None:
    """Each text in it is shown escaped."""
    for hostile in ("\x1b[31m", "\u202e", "\u200b", "\n", "\x00", "\x85", "\ud800"):
        again = type(error)(*(value + hostile if isinstance(value, str) else value for value in error.args))
        assert str(again).isprintable()
        assert hostile not in str(again)


def test_an_error_can_be_caught_as_what_it_also_is() -> None:
    """By people who know Python and not us."""
    assert issubclass(tbl.InvalidValue, ValueError)
    assert issubclass(tbl.InvalidType, TypeError)
    assert issubclass(tbl.UnknownBudget, LookupError)
    assert issubclass(tbl.PriceUnknown, LookupError)
    assert all(issubclass(kind, tbl.TokenBudgetError) for kind in all_errors())
