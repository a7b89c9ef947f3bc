"""Bad inputs: a named error before anything is asked of a ledger, and nothing written."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Log
from tokenbudget_lab.errors import told
from tokenbudget_lab.usage import pico_of, tokens_of

STORE = "memory"  # no store is asked
NAN, INF = float("nan"), float("inf")


def name_of(value: Any) -> str:
    """A short name for a test's case."""
    return f"{type(value).__name__} {told(value, 24)}".encode("ascii", "replace").decode()


class Float64(float):
    """What `numpy.float64(5)` is to us: a `float`, and no index."""


# --- amounts ---------------------------------------------------------------------------------------------------------------


NO_TOKENS: list[Any] = [
    -1, True, False, 1.5, 5.0, NAN, INF, "12", "1e3", "0x10", Decimal("10.9"), Decimal(5), 2**53, 10**5000, b"5", [5],
    Float64(5),
]  # fmt: skip


@pytest.mark.parametrize("tokens", NO_TOKENS, ids=name_of)
def test_tokens_are_whole_numbers_below_2_to_the_53(ledger: tbl.Ledger, log: Log, tokens: Any) -> None:
    """Nothing is rounded, parsed or guessed, wherever it is given."""
    lab = ledger.budget("lab", tokens=1000)
    held, entry = lab.reserve_sync(tokens=5), lab.record(tokens=5).result()
    assert isinstance(entry, tbl.Counted)
    before = log.kinds
    for give in (
        lambda: ledger.budget("lap", tokens=tokens),
        lambda: lab.set_limit(tokens=tokens),
        lambda: lab.set_limit(requests=tokens),
        lambda: lab.reserve_sync(tokens=tokens),
        lambda: lab.reserve_sync(tokens=1, requests=tokens),
        lambda: lab.reserve_sync(model="m", input_tokens=tokens, max_output_tokens=1),
        lambda: lab.reserve_sync(model="m", input_tokens=1, max_output_tokens=tokens),
        lambda: held.commit(tokens=tokens),
        lambda: held.commit(tokens=1, requests=tokens),
        lambda: lab.record(tokens=tokens),
        lambda: lab.adjust(entry.reservation, tokens=tokens),
        lambda: tbl.Usage(tokens, 0),
        lambda: tbl.Limit(requests=tokens),
    ):
        with pytest.raises(tbl.InvalidValue):
            give()
    assert log.kinds == before


NO_DOLLARS: list[Any] = [
    -1, Decimal("-0.000000000001"), NAN, INF, -INF, "nan", "inf", Decimal("sNaN"), True, "much", "", "0x10", "$5",
    "1,5", b"5", [5], Fraction(1, 2), 10**15, "1e-13", 1e-13, "0." + "1" * 30, 10**5000, "9" * 1_000_000,
    "1e999999999", 5j,
]  # fmt: skip


@pytest.mark.parametrize("usd", NO_DOLLARS, ids=name_of)
def test_dollars_are_exact_and_not_negative(ledger: tbl.Ledger, log: Log, usd: Any) -> None:
    """To the millionth of a millionth, wherever they are given; the error is of a size to be read."""
    lab = ledger.budget("lab", usd=1000)
    held, entry = lab.reserve_sync(usd=5), lab.record(usd=5).result()
    assert isinstance(entry, tbl.Counted)
    before = log.kinds
    for give in (
        lambda: ledger.budget("lap", usd=usd),
        lambda: lab.set_limit(usd=usd),
        lambda: lab.reserve_sync(usd=usd),
        lambda: held.commit(usd=usd),
        lambda: lab.record(usd=usd),
        lambda: lab.adjust(entry.reservation, usd=usd),
        lambda: tbl.Limit(usd=usd),
    ):
        with pytest.raises(tbl.InvalidValue) as invalid:
            give()
        assert len(str(invalid.value)) < 250
    assert log.kinds == before


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (0.1, "0.1"),
        (1e-12, "0.000000000001"),
        (Float64(0.3), "0.3"),
        ("0.050", "0.05"),
        (Decimal("1.10"), "1.1"),
        ("123456789012345.000000000001", "123456789012345.000000000001"),
        (0.1 + 0.2, None),
        (0, "0"),
    ],
)
def test_a_float_is_the_number_that_it_prints(given: Any, exact: str | None) -> None:
    """And one with more than twelve decimals is a computed one: round it, knowing how."""
    if exact is None:
        with pytest.raises(tbl.InvalidValue, match="more than 12 decimals"):
            pico_of("usd", given)
    else:
        assert Decimal(pico_of("usd", given)) == Decimal(exact) * 10**12


def test_a_reserve_of_nothing_at_all_is_an_error(ledger: tbl.Ledger, log: Log) -> None:
    """A zero may be said, but not only zeros."""
    lab = ledger.budget("lab", tokens=1000)
    nothing: Any
    for nothing in (
        {},
        {"tags": {"a": "b"}},
        {"tokens": 0, "requests": 0},
        {"tokens": 0, "usd": 0, "requests": 0},
        {"model": "m", "input_tokens": 1},
        {"model": "m", "max_output_tokens": 1},
        {"tokens": 1, "if_lost": "forget"},
    ):
        with pytest.raises(tbl.InvalidValue):
            lab.reserve_sync(**nothing)
    assert log.kinds == ["budget_set"]


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"input_tokens": 5},
        {"input_tokens": 5, "output_tokens": None},
        {"input_tokens": -5, "output_tokens": 5},
        {"input_tokens": True, "output_tokens": 5},
        {"input_tokens": 1.5, "output_tokens": 5},
        {"input_tokens": "5", "output_tokens": 5},
        {"input_tokens": 5, "output_tokens": "5"},
        {"input_tokens": 5, "output_tokens": 5, "cache_read_input_tokens": -5},
        {"input_tokens": 5, "output_tokens": 5, "cache_creation_input_tokens": "5"},
        {"input_tokens": 5, "output_tokens": 5, "cache_creation": {"ephemeral_1h_input_tokens": 1.5}},
        {"prompt_tokens": 5, "completion_tokens": "5"},
        {"prompt_tokens": 5, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}},
        "5 tokens",
        5,
    ],
)
def test_usage_that_cannot_be_read_is_never_zero(usage: Any) -> None:
    with pytest.raises(tbl.InvalidValue):
        tbl.Usage.of(usage)


@pytest.mark.parametrize(
    "parts",
    [
        {"cache_read_tokens": 11},
        {"cache_read_tokens": 5, "cache_write_5m_tokens": 3, "cache_write_1h_tokens": 3},
        {"reasoning_tokens": 11},
        {"cache_read_tokens": -1},
    ],
)
def test_a_part_is_not_larger_than_its_whole(parts: dict[str, int]) -> None:
    with pytest.raises(tbl.InvalidValue):
        tbl.Usage(10, 10, **parts)


# --- names -----------------------------------------------------------------------------------------------------------------


NO_NAMES: list[Any] = [
    "", "/", "a//b", "/a", "a/", ".", "..", "a/../b", "a/./b", " ", "a b", "a\tb", "a\nb", "a\xa0b", "a\u2028b",
    "a\0b", "a\x1b[31m", "a\x7f", "a\x85", "\ud800", "a\udfff", "x" * 513, "x" * 1_000_000, "/".join("a" * 33), b"lab",
    5, None, ["lab"],
]  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES, ids=name_of)
def test_a_name_that_is_none_is_an_error(ledger: tbl.Ledger, log: Log, name: Any) -> None:
    """Wherever one is given, and of a size to be read."""
    below: Any = 5 if name is None else name  # below None are all
    for ask in (
        lambda: ledger.budget(name),
        lambda: ledger.budget(name, usd=1),
        lambda: ledger.budgets(below),
    ):
        with pytest.raises(tbl.InvalidValue) as invalid:
            ask()
        assert str(invalid.value).isprintable()
        assert len(str(invalid.value)) < 700
    assert log.kinds == []


# --- times -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timeout", [-1, 0, 0.999, NAN, INF, 10**12, 10**5000, 48 * 3600 + 1, True, "60", timedelta(0), Decimal(60)], ids=name_of
)
def test_a_timeout_is_between_a_second_and_two_days(ledger: tbl.Ledger, log: Log, timeout: Any) -> None:
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=1)
    for give in (
        lambda: lab.reserve_sync(tokens=1, timeout=timeout),
        lambda: held.extend_sync(timeout),
        lambda: held.extend(timeout),
        lambda: tbl.connect(":memory:", timeout=timeout),
    ):
        with pytest.raises(tbl.InvalidValue):
            give()
    assert log.kinds == ["budget_set", "reserved"]


@pytest.mark.parametrize("timeout", [1, 1.5, timedelta(seconds=90), 48 * 3600, timedelta(days=2)], ids=str)
def test_a_timeout_may_be_seconds_or_a_timedelta(ledger: tbl.Ledger, timeout: Any) -> None:
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=1, timeout=timeout)
    assert held.expires is not None
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    assert (held.expires - lab.balance.at).total_seconds() == pytest.approx(seconds, abs=30)


@pytest.mark.parametrize("wait", [-1, -0.1, NAN, INF, 10**12, "60", [1]])
def test_a_wait_is_at_most_two_days(ledger: tbl.Ledger, log: Log, wait: Any) -> None:
    lab = ledger.budget("lab", tokens=1000)
    with pytest.raises(tbl.InvalidValue):
        lab.reserve_sync(tokens=1, wait=wait)
    assert log.kinds == ["budget_set"]


NO_ZONES: list[Any] = [
    "", "Mars/Olympus", "Europe", "../../etc/passwd", "/etc/localtime", "UTC\0", "\ud800", None, 5, b"UTC", ["UTC"],
    "x" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("tz", NO_ZONES, ids=name_of)
def test_a_time_zone_exists(ledger: tbl.Ledger, log: Log, tz: Any) -> None:
    with pytest.raises(tbl.InvalidValue):
        ledger.budget("lab", usd=1, window="day", tz=tz)
    assert log.kinds == []


NO_WINDOWS: list[Any] = [
    "", "hour", "Day", 3600, timedelta(0), timedelta(seconds=-1), timedelta(milliseconds=1500), timedelta(days=40_000),
    ["day"], "3600s",
]  # fmt: skip


@pytest.mark.parametrize("window", NO_WINDOWS, ids=str)
def test_a_window_is_one_of_four(ledger: tbl.Ledger, log: Log, window: Any) -> None:
    """None, a day, a week, a month, or a length of whole seconds: that makes five."""
    for give in (
        lambda: ledger.budget("lab", usd=1, window=window),
        lambda: tbl.Limit(usd=1, window=window),
        lambda: tbl.Budget(ledger, "lab").set_limit(usd=1, window=window),
    ):
        with pytest.raises(tbl.InvalidValue):
            give()
    assert log.kinds == []


def test_limits_that_contradict_each_other_are_an_error(ledger: tbl.Ledger, log: Log) -> None:
    wrong: Any
    for wrong in (
        {"limits": [tbl.Limit(usd=1), tbl.Limit(usd=2)]},
        {"limits": [tbl.Limit(usd=1)], "usd": 2},
        {"limits": [5]},
        {"window": "day"},
        {"alerts": [0.5]},
        {"usd": 1, "alerts": [0]},
        {"usd": 1, "alerts": [-0.5]},
        {"usd": 1, "alerts": [NAN]},
        {"usd": 1, "alerts": [11]},
        {"usd": 1, "alerts": ["half"]},
        {"usd": 1, "alerts": [True]},
    ):
        with pytest.raises(tbl.InvalidValue):
            ledger.budget("lab", **wrong)
    with pytest.raises(tbl.InvalidValue):
        tbl.Limit(window="day")
    assert log.kinds == []


# --- texts -----------------------------------------------------------------------------------------------------------------


NO_TAGS: list[Any] = [
    {str(n): "x" for n in range(33)}, {str(n): "x" for n in range(10_000)}, {"a": "x" * 257}, {"a": "é" * 129},
    {"a": "x" * 1_000_000}, {"x" * 257: "a"}, {"a": 5}, {"a": None}, {5: "a"}, {"a": "\0"}, {"a": "\ud800"},
    {"a\0": "b"}, {"": "b", "sk-" + "a" * 20: "1", "sk-" + "b" * 20: "2"}, "a=b", [("a", "b")], 5,
]  # fmt: skip


@pytest.mark.parametrize("tags", NO_TAGS, ids=name_of)
def test_tags_are_few_short_and_texts(ledger: tbl.Ledger, log: Log, tags: Any) -> None:
    lab = ledger.budget("lab", tokens=1000)
    for give in (lambda: lab.reserve_sync(tokens=1, tags=tags), lambda: lab.record(tokens=1, tags=tags)):
        with pytest.raises(tbl.InvalidValue) as invalid:
            give()
        assert len(str(invalid.value)) < 700
    assert log.kinds == ["budget_set"]


@pytest.mark.parametrize("text", ["", "x" * 1025, "a\0b", "\ud800", 5, b"a", ["a"]], ids=name_of)
def test_keys_models_reasons_and_response_ids_are_short_texts(ledger: tbl.Ledger, log: Log, text: Any) -> None:
    lab = ledger.budget("lab", tokens=1000)
    held, entry = lab.reserve_sync(tokens=1), lab.record(tokens=1).result()
    assert isinstance(entry, tbl.Counted)
    before = log.kinds
    for give in (
        lambda: lab.reserve_sync(tokens=1, key=text),
        lambda: lab.reserve_sync(tokens=1, model=text),
        lambda: lab.record(tokens=1, key=text),
        lambda: lab.record(tokens=1, model=text),
        lambda: lab.record(tokens=1, response_id=text),
        lambda: held.commit(tokens=1, response_id=text),
        lambda: lab.adjust(entry.reservation, tokens=2, reason=text),
        lambda: lab.set_limit(tokens=2, reason=text),
    ):
        with pytest.raises(tbl.InvalidValue):
            give()
    assert log.kinds == before


SECRETS = [
    "sk-ant-api03-abcdefgh1234",
    "sk-proj-ABCDEFGH12345678",
    "Bearer abc.def.ghi",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghijklmnop1234",
    "hf_abcdefghijklmnop1234",
    "AIzaSyA1234567890abcdefghij",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_an_api_key_is_no_idempotency_key(ledger: tbl.Ledger, log: Log, secret: str) -> None:
    """Redacted, two of them would be one, and two calls one hold."""
    lab = ledger.budget("lab", tokens=1000)
    for give in (lambda: lab.reserve_sync(tokens=1, key=secret), lambda: lab.record(tokens=1, key=f"row {secret}")):
        with pytest.raises(tbl.InvalidValue) as invalid:
            give()
        assert secret not in str(invalid.value)
    assert log.kinds == ["budget_set"]


@pytest.mark.parametrize(
    ("check", "value"), [(tokens_of, 10**5000), (pico_of, 10**5000), (tokens_of, "x" * 10**6)], ids=["int", "usd", "text"]
)
def test_an_error_about_a_huge_value_is_small(check: Any, value: Any) -> None:
    with pytest.raises(tbl.InvalidValue) as invalid:
        check("amount", value)
    assert len(str(invalid.value)) < 250
