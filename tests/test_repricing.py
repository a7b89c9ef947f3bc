"""The same calls on another model, another day, or as a batch; what has no price is null with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import tokenbudget_lab as tbl
from tests.test_reported import message
from tokenbudget_lab.commands import Commit, Reserve

NOVEMBER = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def ledger() -> Iterator[tbl.Ledger]:
    with tbl.connect(":memory:") as ledger:
        yield ledger


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    ledger.budget("lab", usd=100)
    return ledger.budget("lab/study", usd=100)


def costs(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Old and new, as numbers."""
    pairs = frame.select("cost_usd", "repriced_usd").rows()
    return [tuple(None if usd is None else usd.normalize() for usd in pair) for pair in pairs]


def test_the_same_calls_on_the_same_terms_cost_the_same(study: tbl.Budget) -> None:
    """Whatever was used, on whatever terms: repricing is recording again."""
    usage = tbl.Usage(150_000, 1_000, 20_000, 30_000, 40_000, 500, 2)
    for model, terms in (
        ("claude-haiku-5-5", {}),
        ("claude-opus-5-5", {"speed": "fast"}),
        ("claude-opus-5-5", {"batch": True}),
    ):
        study.record(usage, model=model, at=NOVEMBER, **terms).result()
    frame = tbl.reprice(study)
    assert frame["repriced_usd"].to_list() == frame["cost_usd"].to_list()
    assert None not in frame["repriced_usd"].to_list()
    assert frame["unpriced_reason"].null_count() == 3


def test_on_another_model(study: tbl.Budget) -> None:
    study.record(tbl.Usage(10_000, 1_000), model="claude-opus-5-5").result()
    study.record(tbl.Usage(200_000, 1_000), model="gpt-5").result()
    assert costs(tbl.reprice(study, model="claude-haiku-5-5")) == [
        (Decimal("0.06"), Decimal("0.0015")),
        (Decimal("0.26"), Decimal("0.1025")),
    ]
    assert costs(tbl.reprice(study, model={"gpt-5": "gpt-5-mini"})) == [
        (Decimal("0.06"), Decimal("0.06")),
        (Decimal("0.26"), Decimal("0.052")),
    ]


def test_as_a_batch_and_as_none(study: tbl.Budget) -> None:
    study.record(tbl.Usage(10_000, 1_000), model="claude-opus-5-5").result()
    study.record(tbl.Usage(10_000, 1_000), model="claude-opus-5-5", batch=True).result()
    assert [new for _, new in costs(tbl.reprice(study, batch=True))] == [Decimal("0.03")] * 2
    assert [new for _, new in costs(tbl.reprice(study, batch=False))] == [Decimal("0.06")] * 2
    assert [new for _, new in costs(tbl.reprice(study))] == [Decimal("0.06"), Decimal("0.03")]


def test_on_another_day(study: tbl.Budget) -> None:
    """gpt-5.6-sol became cheaper on 2026-08-21."""
    study.record(tbl.Usage(1_000, 1_000), model="gpt-5.6-sol", at=datetime(2026, 8, 20, tzinfo=UTC)).result()
    assert costs(tbl.reprice(study)) == [(Decimal("0.035"), Decimal("0.035"))]
    assert costs(tbl.reprice(study, at=NOVEMBER)) == [(Decimal("0.035"), Decimal("0.024"))]


def test_what_cannot_be_priced_is_null_with_its_reason(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    """No row is left out, and none becomes free."""
    size: dict[str, Any] = {"model": "claude-sonnet-5-5", "input_tokens": 10, "max_output_tokens": 10}
    study.record(usd=1).result()
    study.record(tbl.Usage(10, 10), usd=1).result()
    study.record(tbl.Usage(10, 10), model="my-own", usd=1).result()
    study.reserve_sync(**size)
    study.reserve_sync(**size).rollback().result()
    study.reserve_sync(**size).lose().result()
    adjusted = study.record(tbl.Usage(10, 10), model="claude-sonnet-5-5").result()
    study.adjust(adjusted.reservation, tokens=30).result()
    compaction = {"type": "compaction", "input_tokens": 90, "output_tokens": 1}
    study.record(message(iterations=[compaction]), model="claude-sonnet-5-5").result()
    study.record(tbl.Usage(10, 10), model="claude-sonnet-5-5", tier="standard").result()
    frame = tbl.reprice(ledger, tier="priority")
    assert frame["repriced_usd"].to_list() == [None] * 9
    reasons = frame["unpriced_reason"].to_list()
    said = ["counts", "model=", "my-own", "open", "rolled_back", "counts", "adjusted", "beside", "service_tier=priority"]
    assert [word in reason for word, reason in zip(said, reasons, strict=True)] == [True] * 9


def test_several_requests_in_one_row_are_priced_where_size_does_not_matter(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    """A batch of two parts: 60,000 tokens each are not 120,000 in one."""
    for model in ("claude-haiku-5-5", "claude-sonnet-5-5"):
        command = Reserve(ledger.new_id(), "lab/study", 10**12, None, 2, 0, "count", model=model)
        batch = tbl.Reservation(ledger, command, ledger.ask(command))
        for part in ("a", "b"):
            ledger.ask(Commit(ledger.new_id(), batch.id, 10**9, 60_000, 1, "measured", 60_000, 0, part=part))
        batch.commit(usd=0, tokens=0, requests=0).result()
    frame = tbl.reprice(study)
    assert costs(frame) == [(Decimal("0.002"), None), (Decimal("0.002"), Decimal("0.24"))]
    assert "2 requests in one row" in frame["unpriced_reason"][0]


def test_a_ledgers_own_prices_are_used_and_others_can_be_given(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    ledger.set_price("qwen-local", input_usd_per_mtok=1, output_usd_per_mtok=1)
    study.record(tbl.Usage(1_000, 1_000), model="claude-sonnet-5-5").result()
    frame = tbl.reprice(ledger, model="qwen-local")
    assert frame.select("repriced_usd", "repriced_model", "repriced_by").row(0) == (
        Decimal("0.002"),
        "qwen-local",
        "set by hand",
    )
    assert tbl.reprice(ledger, model="qwen-local", prices=tbl.Prices())["repriced_usd"].to_list() == [None]


def test_a_budget_is_itself_and_all_below_it(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    lab, other = ledger.budget("lab"), ledger.budget("lab2", usd=1)
    for budget in (lab, study, other):
        budget.record(tbl.Usage(1, 1), model="claude-sonnet-5-5").result()
    assert [tbl.reprice(what).height for what in (lab, study, other, ledger)] == [2, 1, 1, 3]


def test_frames_lazy_or_not_are_taken_and_keep_their_columns(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    study.record(tbl.Usage(1_000, 1_000), model="claude-sonnet-5-5", tags={"arm": "b"}).result()
    lazy = ledger.calls().filter(pl.col("state") == "recorded").with_columns(tbl.tag("arm"))
    assert tbl.reprice(lazy).equals(tbl.reprice(lazy.collect()))
    assert tbl.reprice(lazy).columns == [
        *lazy.collect_schema().names(), "repriced_usd", "repriced_model", "repriced_by", "unpriced_reason"
    ]  # fmt: skip
    none = tbl.reprice(lazy.filter(pl.lit(False)))
    assert (none.height, none.schema["repriced_usd"]) == (0, pl.Decimal(38, 12))


def test_a_list_is_priced_by_the_prices_of_each_ledger(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    """One knows a price of its own for a model that the catalogue does not have; a frame has the catalogue's."""
    ledger.set_price("qwen-local", input_usd_per_mtok=1, output_usd_per_mtok=1)
    study.record(tbl.Usage(500_000, 500_000), model="claude-sonnet-5-5").result()
    with tbl.connect(":memory:") as other:
        other.set_price("qwen-local", input_usd_per_mtok=3, output_usd_per_mtok=3)
        other.budget("lab", limits=[]).record(tbl.Usage(500_000, 500_000), model="claude-sonnet-5-5").result()
        frame = ledger.calls().collect().to_pandas()
        found = tbl.reprice([study, ledger, other, frame], model="qwen-local")
    assert found["repriced_usd"].to_list() == [Decimal(1), Decimal(3), None]
    assert found["ledger"].null_count() == 1


def test_calls_to_reprice_are_chosen_as_for_other_analyses(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    for arm in ("a", "b"):
        study.record(tbl.Usage(1_000, 1_000), model="claude-sonnet-5-5", tags={"arm": arm}).result()
    assert tbl.reprice(study, where={"arm": "b"}).height == 1
    assert tbl.reprice(study, until="2020-01-01").height == 0


@pytest.mark.parametrize(
    ("what", "how", "wrong"),
    [
        (7, {}, "calls"),
        (pl.DataFrame({"model": ["x"]}), {}, "spent_at"),
        (pl.DataFrame({"model": ["x"], "spent_at": [NOVEMBER]}), {}, "input_tokens"),
        (None, {"at": datetime(2026, 11, 20)}, "at"),  # noqa: DTZ001 - it has none
        (None, {"batch": "yes"}, "batch"),
        (None, {"tier": 7}, "tier"),
    ],
)
def test_what_means_nothing_is_refused(study: tbl.Budget, what: Any, how: dict[str, Any], wrong: str) -> None:
    with pytest.raises(tbl.InvalidValue, match=wrong):
        tbl.reprice(study if what is None else what, **how)
