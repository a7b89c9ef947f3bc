"""What is taken is kept exactly as it came: amounts, names, tags, keys."""

from __future__ import annotations

import asyncio
import decimal
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

import tokenbudget_lab as tbl
from tests.conftest import Home, Log
from tokenbudget_lab.checks import key_of, tags_of, text_of
from tokenbudget_lab.place import place_of
from tokenbudget_lab.stores import duckdb as duckdb_store
from tokenbudget_lab.stores.duckdb import DuckDBStore
from tokenbudget_lab.usage import MAX_TOKENS


class Int64:
    """What `numpy.int64(5)` is to us: no `int`, but an index."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


@pytest.mark.parametrize(
    "five", [5, Int64(5), pa.scalar(5), pa.array([5], pa.uint8())[0]], ids=["int", "index", "arrow", "uint8"]
)
def test_whole_numbers_of_other_libraries_are_what_they_are(ledger: tbl.Ledger, five: Any) -> None:
    lab = ledger.budget("lab", tokens=five, usd=five)
    held = lab.reserve_sync(tokens=five, usd=five)
    assert (held.tokens, type(held.tokens), held.usd, lab.balance.left_tokens) == (5, int, Decimal(5), 0)


def test_a_researchers_own_decimal_context_rounds_no_money(ledger: tbl.Ledger, home: Home) -> None:
    """Hers has six digits, and traps.

    limit     $1234.56789
    commit    $1000.000000000001
    """
    with decimal.localcontext(decimal.Context(prec=6, traps=[decimal.Inexact, decimal.Rounded])):
        lab = ledger.budget("lab", usd=Decimal("1234.56789"))
        with lab.reserve(usd="1000.000000000001") as call:
            call.commit(usd="1000.000000000001")
        again = home.reopen()
        left = again.budget("lab").balance.left_usd
        again.verify()
    assert left == Decimal("234.567889999999")


def test_sums_near_2_to_the_63_do_not_wrap(ledger: tbl.Ledger, home: Home) -> None:
    """Neither of tokens nor of pico-dollars.

    record    2⁵³ - 1 tokens, $900 trillion, 1,100 times
    """
    lab = ledger.budget("lab", limits=[])
    for receipt in [lab.record(tokens=MAX_TOKENS - 1, usd=9 * 10**14) for _ in range(1100)]:
        receipt.result()
    for balance in (lab.balance, home.reopen().budget("lab").balance):
        assert balance.committed_tokens == 1100 * (2**53 - 1) > 2**63
        assert balance.committed_usd == Decimal(9 * 10**14 * 1100)
    lab = home.ledger.budget("lab")
    lab.set_limit(tokens=1000)
    with pytest.raises(tbl.BudgetExceeded):
        lab.reserve_sync(tokens=1, usd=0)


def test_thirty_two_levels_are_allowed(ledger: tbl.Ledger) -> None:
    parts = ["a"] * 32
    for depth in range(1, 33):
        ledger.budget("/".join(parts[:depth]), tokens=depth)
    deepest = ledger.budget("/".join(parts))
    deepest.record(tokens=1).result()
    assert [balance.committed_tokens for balance in ledger.budgets()] == [1] * 32


def test_names_that_are_equal_in_unicode_are_one_budget(ledger: tbl.Ledger, log: Log) -> None:
    """An é is an é, composed or not."""
    composed, decomposed = "\u00e9tude", "e\u0301tude"
    assert ledger.budget(composed, usd=1) == ledger.budget(decomposed, usd=1) == ledger.budget(decomposed)
    assert [balance.budget for balance in ledger.budgets(decomposed)] == [composed]
    assert log.kinds == ["budget_set"]


@pytest.mark.parametrize("name", ["lab\u200bstudy", "lab\u202eydutsbal", "\ufeffla\u2066b", "l\u00ad\u00e1b"], ids=ascii)
def test_characters_that_nobody_sees_are_stored_and_shown_as_escapes(ledger: tbl.Ledger, name: str) -> None:
    """In reprs, in errors, in alerts; never raw."""
    lab = ledger.budget(name, usd=1, alerts=[0.5])
    held = lab.reserve_sync(usd="0.30")
    told: list[tbl.Alert] = []
    ledger.on_alert(told.append)
    lab.record(usd="0.60").result()
    with pytest.raises(tbl.BudgetExceeded) as exceeded:
        lab.reserve_sync(usd=1)
    with pytest.raises(tbl.BudgetDiffers) as differs:
        ledger.budget(name, usd=2)
    with pytest.raises(tbl.WouldDeadlock) as deadlock:
        lab.reserve_sync(usd="0.2", wait=10)
    lab.close()
    with pytest.raises(tbl.BudgetClosed) as closed:
        lab.reserve_sync(usd=1)
    with pytest.raises(tbl.UnknownBudget) as unknown:
        ledger.budget(name + "s")
    texts = [repr(lab), repr(lab.balance), repr(held), str(told[0])]
    texts += [str(error.value) for error in (exceeded, differs, deadlock, closed, unknown)]
    ledger.close()
    texts.append(repr(lab))
    assert all(text.isprintable() for text in texts)
    assert all("\\u" in text or "\\x" in text for text in texts)
    assert lab.name == name


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE events; --",
        "x' OR '1'='1",
        "%",
        "_",
        "\x1b[31mred",
        "=HYPERLINK()",
        "<script>",
        "$x$",
        "a\nb\tc",
        "",
        "é" * 127,
        "💸",
    ],
)
def test_tags_are_stored_verbatim(ledger: tbl.Ledger, home: Home, log: Log, text: str) -> None:
    """Whatever they would mean elsewhere; and a key matches only itself."""
    lab = ledger.budget("lab", tokens=1000)
    key = text or "key"
    held = lab.reserve_sync(tokens=1, tags={"note": text, f"n{text}": "1"}, key=key)
    lab = home.reopen().budget("lab")
    assert dict(log.last("reserved").tags) == {"note": text, f"n{text}": "1"}
    assert lab.reserve_sync(tokens=1, key=key).id == held.id
    assert lab.reserve_sync(tokens=1, key=key + "x").id != held.id


@pytest.mark.parametrize("tags", [{"key": "a", "value": "b"}, {"tags": "x"}, {}, {f"n{n}": "v" for n in range(32)}], ids=len)
def test_tags_have_any_names(ledger: tbl.Ledger, log: Log, tags: dict[str, str]) -> None:
    """DuckDB takes a dict of `key` and `value` for something else; alone and among others it is a map.

    reserve   1, alone; then three at once
    """
    lab = ledger.budget("lab", tokens=1000)
    lab.reserve_sync(tokens=1, tags=tags)

    async def three() -> None:
        await asyncio.gather(*(lab.reserve(tokens=1, tags=tags) for _ in range(3)))

    asyncio.run(three())
    assert [dict(event.tags) for event in log.events if event.kind == "reserved"] == [tags] * 4


def test_a_long_log_is_read_as_a_short_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By columns instead of rows: amounts, instants, windows, tags and keys of each kind of event."""
    store = DuckDBStore(place_of(tmp_path / "spend.duckdb"))
    with tbl.Ledger(store=store) as ledger:
        lab = ledger.budget("lab", limits=[tbl.Limit(usd=10**6), tbl.Limit(tokens=10**9, window="day")], tz="Europe/Berlin")
        with lab.reserve(usd="0.000000000001", tokens=5, tags={"key": "a", "value": "é"}, key="k") as call:
            call.commit(usd=900_000, tokens=7, response_id="msg_1")
        lab.record(usd="0.1", tokens=1).result()
        lab.adjust(call, tokens=9, reason="invoice").result()
        by_rows = list(store.load())
        monkeypatch.setattr(duckdb_store, "_FETCH", 1)
        assert list(store.load()) == by_rows
        assert list(store.load(3)) == by_rows[3:]
        ledger.verify()


SECRETS = [
    "sk-ant-api03-abcdefgh1234",
    "sk-proj-ABCDEFGH12345678",
    "Bearer abc.def.ghi",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghijklmnop1234",
    "hf_abcdefghijklmnop1234",
    "AIzaSyA1234567890abcdefghij",
    "bearer abcdef1234567890",
    "BEARER abcdef1234567890",
    "github_pat_11ABCDEFG0123456789_abcdefghijk",
    "ASIAIOSFODNN7EXAMPLE",
    "xoxb-123-456-abcdef",
    "https://me:secret@host",
    "gsk_abcdefghijklmnop1234",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_an_api_key_is_written_nowhere(ledger: tbl.Ledger, log: Log, secret: str) -> None:
    """It is redacted before it is hashed and stored."""
    lab = ledger.budget("lab", tokens=1000)
    with lab.reserve(tokens=1, tags={"header": f"auth: {secret}!", secret: "1"}, model=f"m {secret}") as call:
        call.commit(tokens=1, response_id=f"id {secret}")
    lab.adjust(call, tokens=2, reason=f"({secret})").result()
    assert not any(secret in str(event) for event in log.events)
    (name,) = dict(log.last("reserved").tags).keys() - {"header"}
    assert "[redacted]" in name


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_an_api_key_is_no_name_and_no_key_and_is_not_said_again(
    ledger: tbl.Ledger, log: Log, secret: str
) -> None:
    """A budget's name is stored and shown everywhere; an error is printed in a notebook that others read."""
    lab = ledger.budget("lab", usd=1)
    wrong: list[Callable[[], object]] = [
        lambda: ledger.budget(secret, usd=1),
        lambda: ledger.budget(f"lab/{secret}", usd=1),
        lambda: lab.record(usd=1, key=secret),
        lambda: lab.reserve_sync(usd=secret),
        lambda: lab.reserve_sync(tokens=cast("int", secret)),
        lambda: lab.reserve_sync(usd=1, timeout=cast("float", secret)),
        lambda: lab.reserve_sync(usd=1, tags={"a": cast("str", [secret])}),
        lambda: lab.reserve_sync(usd=1, tags={secret: "x" * 300}),
        lambda: ledger.budget("x", usd=1, tz=secret),
        lambda: ledger.budget("x", usd=1, window=secret),
        lambda: lab.adjust(secret, usd=1).result(),
    ]
    for try_it in wrong:
        with pytest.raises(tbl.TokenBudgetError) as refused:
            try_it()
        assert secret not in str(refused.value)
    assert log.kinds == ["budget_set"]


@pytest.mark.parametrize(
    "text",
    [
        "task-00000001",
        "risk-assessment-7",
        "desk-lamp-12345678",
        "disk-usage",
        "skill",
        "mask-abcdefghij",
        "sk-learn-baseline",
        "the bearer of this certificate",
        "https://host:8080/a@b",
        "https://host/u:p@x",
        "xox-1",
        "EURASIA2026",
    ],
)
def test_ordinary_words_are_no_api_keys(text: str) -> None:
    """`task-00000001` and `task-00000002` are two keys."""
    assert key_of(text) == text_of("model", text) == text
    assert tags_of({text: text}) == ((text, text),)
