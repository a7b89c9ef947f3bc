"""Blocks of budgets and tags, and the clients that are called in them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

import tokenbudget_lab as tbl
from tests.provider import Provider

STORE = "memory"
ASK: Any = {"model": "claude-sonnet-5-5", "max_tokens": 64, "messages": [{"role": "user", "content": "What is a budget?"}]}


@pytest.fixture
def plain(provider: Provider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(max_retries=0) as client:
        yield client


def calls(budget: tbl.Budget) -> int | None:
    return budget.balance.committed_requests


def test_a_client_without_a_budget_counts_in_that_of_the_block(ledger: tbl.Ledger, plain: anthropic.Anthropic) -> None:
    client, study = tbl.instrument(plain), ledger.budget("study", usd=1)
    with study.use():
        client.messages.create(**ASK)
    assert calls(study) == 1
    with pytest.raises(tbl.NoBudget):
        client.messages.create(**ASK)


def test_a_block_goes_before_the_budget_of_the_client(ledger: tbl.Ledger, plain: anthropic.Anthropic) -> None:
    """Whoever puts a block under a budget means all of it."""
    study, pilot = ledger.budget("study", usd=1), ledger.budget("pilot", usd=1)
    client = tbl.instrument(plain, study)
    with pilot.use():
        client.messages.create(**ASK)
    client.messages.create(**ASK)
    assert (calls(study), calls(pilot)) == (1, 1)


def test_the_budget_of_the_process_is_for_clients_that_have_none(ledger: tbl.Ledger, plain: anthropic.Anthropic) -> None:
    study, common = ledger.budget("study", usd=1), ledger.budget("common", usd=1)
    said = common.use()
    try:
        tbl.instrument(plain, study).messages.create(**ASK)
        tbl.instrument(plain).messages.create(**ASK)
    finally:
        said.end()
    assert (calls(study), calls(common)) == (1, 1)


def test_tags_of_the_client_the_block_and_the_call_add_up(ledger: tbl.Ledger, plain: anthropic.Anthropic, log: Any) -> None:
    """The nearer one wins where two have the same name."""
    client = tbl.instrument(plain, ledger.budget("study", usd=1), tags={"arm": "a", "of": "client", "who": "client"})
    with tbl.tags(arm="b", of="block"):
        tbl.tagged(client, arm="c").messages.create(**ASK)
    assert dict(log.last("reserved").tags) == {"arm": "c", "of": "block", "who": "client"}


def test_tasks_count_each_in_its_own_block(ledger: tbl.Ledger, provider: Provider) -> None:
    budgets = [ledger.budget(f"study-{n}", usd=1) for n in range(5)]

    async def one(client: anthropic.AsyncAnthropic, budget: tbl.Budget) -> None:
        with budget.use(), tbl.tags(arm=budget.name):
            await client.messages.create(**ASK)

    async def all_of_them() -> None:
        async with anthropic.AsyncAnthropic() as plain:
            client = tbl.instrument(plain)
            await asyncio.gather(*(one(client, budget) for budget in budgets for _ in range(4)))

    asyncio.run(all_of_them())
    assert [calls(budget) for budget in budgets] == [4] * 5


def test_tags_named_like_columns_are_refused(ledger: tbl.Ledger, plain: anthropic.Anthropic) -> None:
    client = tbl.instrument(plain, ledger.budget("study", usd=1))
    with pytest.raises(tbl.InvalidValue, match="model"):
        tbl.tagged(client, model="x")
    with pytest.raises(tbl.InvalidValue, match="usd"):
        tbl.instrument(plain, ledger.budget("study"), tags={"usd": "1"})
    client.messages.create(**ASK)
