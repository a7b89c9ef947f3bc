"""Batches through Anthropic's SDK: reserved as a whole, settled item by item, once, from wherever their results are read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import anthropic
import pytest

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Home, Log, also_on_postgres
from tests.processes import said_before_killed
from tests.provider import Answer, Provider, failed
from tokenbudget_lab import link
from tokenbudget_lab.place import place_of

STORES = ON_ONE_MACHINE

MODEL = "claude-haiku-5-5"


def requests(items: int, model: str = MODEL) -> list[Any]:
    """Items `q0`, `q1`, … of a batch."""
    return [
        {
            "custom_id": f"q{n}",
            "params": {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": f"What is {n}?"}]},
        }
        for n in range(items)
    ]


@pytest.fixture
def plain(provider: Provider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(max_retries=0) as client:
        yield client


def billed(provider: Provider) -> Decimal:
    """What the results cost, by what the server says that it used."""
    return sum(
        (tbl.cost(used.usage, model=used.model, batch=True) for used in provider.used if used.terms.get("batch")), Decimal(0)
    )


def test_a_batch_is_reserved_as_a_whole_at_batch_prices(ledger: tbl.Ledger, plain: Any, log: Log) -> None:
    study = ledger.budget("study", usd=1)
    client = tbl.instrument(plain, study, tags={"arm": "b"})
    sent = client.messages.batches.create(requests=requests(3))
    reserved = log.last("reserved")
    one = tbl.worst_case(MODEL, 100, 64, batch=True)
    assert Decimal(0) < Decimal(reserved.held_usd or 0) / 10**12 < 3 * one
    assert (reserved.requests, reserved.expires, dict(reserved.tags)) == (3, None, {"arm": "b"})
    assert log.last("sent").response_id == sent.id
    (known,) = ledger.batches()
    assert (known.name, known.items, known.settled, known.state) == (sent.id, 3, 0, "open")


def test_a_batch_that_does_not_fit_is_not_sent(ledger: tbl.Ledger, plain: Any, provider: Provider) -> None:
    client = tbl.instrument(plain, ledger.budget("poor", usd="0.0001"))
    with pytest.raises(tbl.BudgetExceeded):
        client.messages.batches.create(requests=requests(50))
    assert not provider.asked


def test_results_settle_while_they_are_read_and_the_rest_is_given_back(
    ledger: tbl.Ledger, plain: Any, provider: Provider, log: Log
) -> None:
    """Three are billed; one errored, one was cancelled, one expired: these are given back."""
    ends = {"q3": "errored", "q4": "canceled", "q5": "expired"}
    provider.reply = lambda asked: Answer(ends=ends.get(asked.custom_id or "", "succeeded")) if asked.custom_id else None
    study = ledger.budget("study", usd=1)
    client = tbl.instrument(plain, study)
    sent = client.messages.batches.create(requests=requests(6))
    assert len(list(client.messages.batches.results(sent.id))) == 6
    (known,) = ledger.batches(ended=True)
    assert (known.settled, known.state, known.cost_usd) == (6, "committed", billed(provider))
    assert (study.balance.committed_usd, study.balance.committed_requests) == (billed(provider), 3)
    assert study.balance.reserved_usd == 0
    assert not ledger.batches()
    assert log.kinds.count("part_committed") == 6


@also_on_postgres
def test_results_that_are_read_twice_count_once(ledger: tbl.Ledger, plain: Any, provider: Provider, log: Log) -> None:
    client = tbl.instrument(plain, ledger.budget("study", usd=1))
    sent = client.messages.batches.create(requests=requests(5))
    for _ in range(2):
        list(client.messages.batches.results(sent.id))
    ledger.sync_batches(client)
    assert log.kinds.count("part_committed") == 5
    assert ledger.budget("study").balance.committed_usd == billed(provider)


def test_half_of_the_results_settle_half_and_the_hold_stays(ledger: tbl.Ledger, plain: Any, log: Log) -> None:
    client = tbl.instrument(plain, ledger.budget("study", usd=1))
    sent = client.messages.batches.create(requests=requests(40))
    results = client.messages.batches.results(sent.id)
    next(iter(results))
    results.http_response.close()
    (known,) = ledger.batches()
    assert 1 <= known.settled <= 40
    ledger.sync_batches(client)
    assert log.kinds.count("part_committed") == 40
    assert not ledger.batches()


@pytest.mark.parametrize("ended", [True, False])
def test_another_process_settles_what_has_ended(
    home: Home,
    plain: Any,
    provider: Provider,
    ended: bool,  # noqa: FBT001 - a case
) -> None:
    """On Monday, with a client that is under no budget."""
    study = home.ledger.budget("study", usd=1)
    provider.batches_take(None)
    sent = tbl.instrument(plain, study).messages.batches.create(requests=requests(10))
    ledger = home.reopen()
    if ended:
        provider.finish(sent.id)
    (state,) = ledger.sync_batches(plain)
    assert (state.settled, state.state) == ((10, "committed") if ended else (0, "open"))
    balance = ledger.budget("study").balance
    assert balance.committed_usd == (billed(provider) if ended else 0)


def test_an_async_client_does_the_same(ledger: tbl.Ledger, provider: Provider) -> None:
    study = ledger.budget("study", usd=1)

    async def overnight() -> list[Any]:
        async with anthropic.AsyncAnthropic() as plain:
            client = tbl.instrument(plain, study)
            sent = await client.messages.batches.create(requests=requests(10))
            read = [each async for each in await client.messages.batches.results(sent.id)]
            assert len(read) == 10
            second = await client.messages.batches.create(requests=requests(7))
            assert second.id != sent.id
            settled: list[Any] = await ledger.sync_batches(plain)
            return settled

    (state,) = asyncio.run(overnight())
    assert (state.settled, state.state) == (7, "committed")
    assert study.balance.committed_usd == billed(provider)
    assert study.balance.reserved_usd == 0


def test_a_batch_with_a_model_that_has_no_price_is_refused_where_dollars_are_limited(
    ledger: tbl.Ledger, plain: Any, provider: Provider
) -> None:
    """Its other items have prices; what is unknown of one is unknown of all."""
    client = tbl.instrument(plain, ledger.budget("study", usd=1))
    both = [*requests(2), *({**each, "custom_id": f"s{n}"} for n, each in enumerate(requests(2, "llm-of-nobody")))]
    with pytest.raises((tbl.PriceUnknown, tbl.AmountMissing)):
        client.messages.batches.create(requests=both)
    assert not provider.asked


class Dearer(tbl.Prices):
    """What costs three times as much on another day."""

    def quote(self, *arguments: Any, **more: Any) -> Any:
        quote = super().quote(*arguments, **more)
        return quote._replace(usd=3 * quote.usd)


class Noting(tbl.Prices):
    """Notes for which instants it was asked."""

    asked: ClassVar[list[datetime | None]] = []

    def quote(self, *arguments: Any, **more: Any) -> Any:
        self.asked.append(more.get("at"))
        return super().quote(*arguments, **more)


def test_items_are_priced_by_the_day_on_which_their_batch_was_made(ledger: tbl.Ledger, plain: Any) -> None:
    client = tbl.instrument(plain, ledger.budget("study", usd=1))
    client.messages.batches.create(requests=requests(3))
    Noting.asked.clear()
    ledger.prices, (made,) = Noting(), [each.created for each in ledger.batches()]
    ledger.sync_batches(plain)
    assert [at for at in Noting.asked if at is not None] == [made] * 3


def test_what_is_settled_stays_so_when_it_is_read_again_at_other_prices(
    ledger: tbl.Ledger, plain: Any, provider: Provider, log: Log
) -> None:
    """The first half is read, then prices change, then all is read again: nothing of the half is asked or counted anew."""
    client = tbl.instrument(plain, ledger.budget("study", usd=1))
    sent = client.messages.batches.create(requests=requests(4))
    found = ledger.batch(sent.id)
    for line in (line for number, line in enumerate(plain.messages.batches.results(sent.id)) if number < 2):
        found.settle(line.custom_id, line.result.message).result()
    ledger.prices = Dearer()
    for _ in range(2):
        list(client.messages.batches.results(sent.id))
    ledger.sync_batches(plain)
    parts = [event for event in log.events if event.kind == "part_committed"]
    assert len(parts) == 4
    half = billed(provider) / 4
    assert [Decimal(event.usd or 0).scaleb(-12) for event in parts] == [half, half, 3 * half, 3 * half]


def test_a_batch_that_was_given_back_takes_no_results_any_more(
    ledger: tbl.Ledger, plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever said that it was never sent is told, and gets the results that she reads."""
    study = ledger.budget("study", usd=1)
    client = tbl.instrument(plain, study)
    sent = client.messages.batches.create(requests=requests(3))
    ledger.batch(sent.id).rollback().result()
    assert len(list(client.messages.batches.results(sent.id))) == 3
    assert "rolled_back; its results count no more" in caplog.text
    assert study.balance.committed_requests == 0


def test_a_batch_that_the_provider_refused_is_given_back(ledger: tbl.Ledger, plain: Any, provider: Provider) -> None:
    study = ledger.budget("study", usd=1)
    provider.script(failed(429))
    with pytest.raises(anthropic.RateLimitError):
        tbl.instrument(plain, study).messages.batches.create(requests=requests(3))
    assert study.balance.reserved_usd == 0


def test_a_batch_of_which_a_gateway_gave_up_the_answer_stays_held(ledger: tbl.Ledger, plain: Any, provider: Provider) -> None:
    """The provider may have taken it, and will bill it."""
    study = ledger.budget("study", usd=1)
    provider.script(failed(504))
    with pytest.raises(anthropic.APIStatusError):
        tbl.instrument(plain, study).messages.batches.create(requests=requests(3))
    assert study.balance.reserved_requests == 3
    assert [each.name for each in ledger.batches()] == [None]


@also_on_postgres
def test_a_batch_whose_answer_was_lost_stays_held_until_somebody_says_what_became_of_it(
    ledger: tbl.Ledger, plain: Any, provider: Provider
) -> None:
    study = ledger.budget("study", usd=1)
    provider.script(Answer(drop="hang up"))
    with pytest.raises(anthropic.APIConnectionError):
        tbl.instrument(plain, study).messages.batches.create(requests=requests(3))
    (lost,) = ledger.batches()
    assert (lost.name, lost.state) == (None, "open")
    assert "not known" in str(lost)
    assert study.balance.reserved_requests == 3
    ledger.batch(lost.reservation).rollback().result()
    assert study.balance.reserved_requests == 0


def test_a_result_that_cannot_be_read_takes_the_rest_of_the_hold_along(
    ledger: tbl.Ledger, plain: Any, provider: Provider
) -> None:
    """What it used is not known, so what is left of the hold counts, as unknown."""
    provider.reply = lambda asked: Answer(fields={"usage": ...}) if asked.custom_id == "q1" else None
    study = ledger.budget("study", usd=1)
    client = tbl.instrument(plain, study)
    sent = client.messages.batches.create(requests=requests(3))
    held = study.balance.reserved_usd
    list(client.messages.batches.results(sent.id))
    (known,) = ledger.batches(ended=True)
    assert known.state == "counted"
    assert study.balance.committed_usd == held
    assert study.balance.reserved_usd == 0


def test_a_batch_of_several_models_is_priced_by_each(ledger: tbl.Ledger, plain: Any, provider: Provider) -> None:
    study = ledger.budget("study", usd=1)
    client = tbl.instrument(plain, study)
    both = [*requests(2), *({**each, "custom_id": f"s{n}"} for n, each in enumerate(requests(2, "claude-sonnet-5-5")))]
    sent = client.messages.batches.create(requests=both)
    list(client.messages.batches.results(sent.id))
    assert study.balance.committed_usd == billed(provider) > 0


@pytest.mark.parametrize(
    "wrong", [[], [{"custom_id": "a"}], [{"custom_id": "a", "params": {"max_tokens": 5, "messages": []}}], "x"]
)
def test_what_is_no_batch_is_named_and_not_sent(ledger: tbl.Ledger, plain: Any, provider: Provider, wrong: Any) -> None:
    client = tbl.instrument(plain, ledger.budget("study", usd=1))
    with pytest.raises(tbl.InvalidType, match="not sent"):
        client.messages.batches.create(requests=wrong)
    assert not provider.asked


def test_results_of_a_batch_that_is_not_in_the_ledger_are_read_as_they_are(
    ledger: tbl.Ledger, plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sent = plain.messages.batches.create(requests=requests(3))
    client = tbl.instrument(plain, ledger.budget("study", usd=1))
    assert len(list(client.messages.batches.results(sent.id))) == 3
    assert "does not know that batch" in caplog.text


def test_an_unknown_batch_is_named(ledger: tbl.Ledger) -> None:
    with pytest.raises(tbl.UnknownReservation, match="msgbatch_none"):
        ledger.batch("msgbatch_none")


CHILD = """
import os, sys
import anthropic
import tokenbudget_lab as tbl
from tests.test_batches import requests
ledger = tbl.connect(sys.argv[1])
client = tbl.instrument(anthropic.Anthropic(), ledger.budget("study", usd=100))
if sys.argv[2] == "create":
    print(client.messages.batches.create(requests=requests(int(sys.argv[3]))).id, flush=True)
else:
    for n, _ in enumerate(client.messages.batches.results(sys.argv[3])):
        if n == int(sys.argv[4]):
            print("half", flush=True)
            sys.stdin.read()
os.kill(os.getpid(), 9)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("items", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_every_item_settles_once_though_processes_die(tmp_path: Path, provider: Provider, items: int) -> None:
    """One process sends the batch and is killed; one reads half of the results and is killed; then it is settled twice."""
    path = tmp_path / "spend.duckdb"
    name = said_before_killed(CHILD, path, "create", items)
    assert name.startswith("msgbatch")
    assert said_before_killed(CHILD, path, "read", name, items // 2) == "half"
    with tbl.connect(path) as ledger, anthropic.Anthropic() as plain:
        (before,) = ledger.batches()
        assert before.name == name
        for _ in range(2):
            ledger.sync_batches(plain)
        (after,) = ledger.batches(ended=True)
        balance = ledger.budget("study").balance
        assert (after.settled, after.state, after.cost_usd) == (items, "committed", billed(provider))
        assert (balance.committed_usd, balance.committed_requests) == (billed(provider), items)
        assert not balance.reserved_usd
        found = ledger.sql("select count(*) as n, count(distinct key) as names from events where kind = 'part_committed'")
        assert found.rows() == [(items, items)]
        ledger.verify()
    link.stop(place_of(path))
