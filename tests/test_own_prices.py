"""Prices of one's own, in a `prices.toml`: read exactly, dated, and a mistake in it is named."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab.own_prices import prices_path, read_prices

NOVEMBER = datetime(2026, 11, 20, 12, tzinfo=UTC)
USAGE = tbl.Usage(1_000, 1_000)
BATCH = {"processing": "batch"}
FILE = """
[models."Qwen-Local"]
input = 0.2
output = 0.6
batch_discount = 0.5

[models."free/laptop"]
input = 0
output = 0

[[models.house-model]]
input = 3
output = "4.5"

[[models.house-model]]
from = 2026-10-01
input = 1
output = 4
cache_read = 0.1
cache_write_5m = 1.25
cache_write_1h = 2

[models.claude-sonnet-5-5]      # a contract, from October on
from = 2026-10-01
input = 1.5
output = 8
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "prices.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def prices(tmp_path: Path) -> tbl.Prices:
    return tbl.Prices(written(tmp_path, FILE))


# --- what it says ------------------------------------------------------------------------------------------------------------


def test_a_price_is_read_as_it_is_written(prices: tbl.Prices) -> None:
    """0.2 is a fifth, not what a computer makes of it."""
    assert prices.cost(tbl.Usage(1, 0), "qwen-local") == Decimal("0.0000002")
    assert prices.cost(USAGE, "QWEN-LOCAL") == Decimal("0.0008")
    assert prices.cost(USAGE, "free/laptop") == 0


def test_each_kind_of_token_has_its_price_or_that_of_input(prices: tbl.Prices) -> None:
    assert prices.cost(tbl.Usage(10_000, 0, 4_000, 3_000, 2_000), "house-model", at=NOVEMBER) == Decimal("0.00915")
    assert prices.cost(tbl.Usage(10_000, 0, 4_000, 3_000, 2_000), "qwen-local", at=NOVEMBER) == Decimal("0.002")


def test_a_price_holds_from_its_day_on(prices: tbl.Prices) -> None:
    days = [datetime(2026, 9, 30, 23, 59, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC)]
    assert [prices.cost(USAGE, "house-model", at=day) for day in days] == [Decimal("0.0075"), Decimal("0.005")]


def test_before_its_first_day_the_catalogue_holds_or_nothing(prices: tbl.Prices, tmp_path: Path) -> None:
    early = datetime(2026, 9, 1, tzinfo=UTC)
    assert prices.cost(USAGE, "claude-sonnet-5-5", at=early) == tbl.Prices().cost(USAGE, "claude-sonnet-5-5", at=early)
    assert prices.cost(USAGE, "claude-sonnet-5-5", at=NOVEMBER) == Decimal("0.0095")
    later = tbl.Prices(written(tmp_path, "[models.mine]\nfrom = 2026-10-01\ninput = 1\noutput = 1"))
    with pytest.raises(tbl.PriceUnknown):
        later.cost(USAGE, "mine", at=early)


def test_a_batch_has_a_price_where_it_was_said(prices: tbl.Prices) -> None:
    assert prices.cost(USAGE, "qwen-local", context=BATCH) == Decimal("0.0004")
    for model, context in (("house-model", BATCH), ("qwen-local", {"service_tier": "flex"}), ("claude-sonnet-5-5", BATCH)):
        with pytest.raises(tbl.PriceUnknown, match=r"prices\.toml"):
            prices.cost(USAGE, model, at=NOVEMBER, context=context)


def test_set_by_hand_comes_before_the_file(prices: tbl.Prices) -> None:
    prices.set_price("qwen-local", input_usd_per_mtok=1, output_usd_per_mtok=1, batch_discount="0.25")
    assert prices.cost(USAGE, "qwen-local") == Decimal("0.002")
    assert prices.cost(USAGE, "qwen-local", context=BATCH) == Decimal("0.0015")


def test_its_prices_say_which_state_of_it_they_are_from(prices: tbl.Prices) -> None:
    digest = hashlib.sha256(FILE.encode()).hexdigest()[:8]
    quote = prices.quote(USAGE, "qwen-local")
    assert (quote.source, quote.priced_as, quote.above) == (f"prices.toml {digest}", "Qwen-Local", None)
    assert prices.provenance("qwen-local") == f"prices.toml {digest}"


# --- mistakes ----------------------------------------------------------------------------------------------------------------

ONE = "input = 1\noutput = 1\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[models.a]\ninput = 1", r"models\.a\.output"),
        ("[models.a]\noutput = 1", r"models\.a\.input"),
        (f"[models.a]\n{ONE}cache_raed = 1", r"models\.a\.cache_raed"),
        (f"[model.a]\n{ONE}", r"model: is not known"),
        ("[models.a]\ninput = -1\noutput = 1", r"models\.a\.input"),
        ("[models.a]\ninput = nan\noutput = 1", r"models\.a\.input"),
        ("[models.a]\ninput = inf\noutput = 1", r"models\.a\.input"),
        ("[models.a]\ninput = true\noutput = 1", r"models\.a\.input"),
        ("[models.a]\ninput = 'cheap'\noutput = 1", r"models\.a\.input"),
        ("[models.a]\ninput = [1]\noutput = 1", r"models\.a\.input"),
        ("[models.a]\ninput = 0.0000000000001\noutput = 1", r"models\.a\.input"),
        (f"[models.a]\n{ONE}batch_discount = 50", r"models\.a\.batch_discount"),
        (f"[models.a]\n{ONE}batch_discount = -0.5", r"models\.a\.batch_discount"),
        (f"[models.a]\n{ONE}from = '2026-10-01'", r"models\.a\.from"),
        (f"[models.a]\n{ONE}from = 2026-10-01T12:00:00", r"models\.a\.from"),
        (f"[[models.a]]\n{ONE}[[models.a]]\n{ONE}", r"models\.a\.from"),
        (f"[models.a]\n{ONE}[models.A]\n{ONE}", r"models\.A.*twice"),
        (f"[models.'']\n{ONE}", r"no name"),
        ("models = 1", r"models"),
        ("[models]\na = 1", r"models\.a"),
        ("[models]\na = []", r"models\.a"),
        ("[models.a\n", r"no TOML .*line 1"),
        (f"[models.a]\n{ONE}input = 2", r"no TOML"),
        (b"\xff\xfe", r"no TOML"),
        (b"#" * 1_000_001, r"longer than"),
        ("a = " + "[" * 100_000, r"no TOML"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, text: str | bytes, key: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(tbl.InvalidValue, match=key) as wrong:
        tbl.Prices(path)
    assert str(path) in str(wrong.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A pipe, too, which would be waited for without end."""
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "pipe.toml"):
        with pytest.raises(tbl.InvalidValue, match=r"cannot be read|no regular file"):
            read_prices(path)


# --- where it is -------------------------------------------------------------------------------------------------------------


def test_the_file_of_the_environment_is_the_ledgers_and_the_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENBUDGET_PRICES", str(written(tmp_path, FILE)))
    with tbl.connect(":memory:") as ledger:
        told = ledger.budget("lab", usd=1).record(USAGE, model="qwen-local").result()
    assert told.usd == tbl.cost(USAGE, model="qwen-local", prices=tbl.Prices.of_user()) == Decimal("0.0008")


def test_a_bad_file_stops_the_connection_and_not_the_hundredth_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENBUDGET_PRICES", str(written(tmp_path, "[models.a]\ninput = 1")))
    with pytest.raises(tbl.InvalidValue, match=r"models\.a\.output"):
        tbl.connect(":memory:")


def test_the_file_lies_in_the_users_config_folder_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENBUDGET_PRICES", raising=False)
    monkeypatch.setattr("platformdirs.user_config_dir", lambda *_, **__: str(tmp_path))
    assert prices_path() is None
    assert written(tmp_path, FILE) == prices_path()
    monkeypatch.setenv("TOKENBUDGET_PRICES", "off")
    assert prices_path() is None
    monkeypatch.setenv("TOKENBUDGET_PRICES", "prices.toml")
    with pytest.raises(tbl.InvalidValue, match="relative"):
        prices_path()
    monkeypatch.setenv("TOKENBUDGET_PRICES", str(tmp_path / "gone.toml"))
    with pytest.raises(tbl.InvalidValue, match="cannot be read"):
        tbl.Prices.of_user()
