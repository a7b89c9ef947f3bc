"""What editors and type checkers see: an instrumented client has the type that it had. Checked by mypy with all else here."""

from __future__ import annotations

from typing import assert_type

import anthropic
import openai

import tokenbudget_lab as tbl


def sync_clients(budget: tbl.Budget) -> None:
    assert_type(tbl.instrument(anthropic.Anthropic(), budget), anthropic.Anthropic)
    assert_type(tbl.instrument(openai.OpenAI(), budget, tags={"arm": "b"}), openai.OpenAI)
    assert_type(tbl.tagged(anthropic.Anthropic(), item="q7"), anthropic.Anthropic)
    message = tbl.instrument(anthropic.Anthropic(), budget).messages.create(model="m", max_tokens=1, messages=[])
    assert_type(message, anthropic.types.Message)


async def async_clients(budget: tbl.Budget) -> None:
    assert_type(tbl.instrument(anthropic.AsyncAnthropic(), budget), anthropic.AsyncAnthropic)
    assert_type(tbl.instrument(openai.AsyncOpenAI(), budget), openai.AsyncOpenAI)


def test_an_instrumented_client_is_of_the_class_that_it_was() -> None:
    """What is asserted above, as the interpreter sees it."""
    with tbl.connect(":memory:") as ledger, anthropic.Anthropic(api_key="none") as plain:
        client = tbl.instrument(plain, ledger.budget("study", usd=1))
        assert type(client) is anthropic.Anthropic
        tbl.tagged(client, item="q7")
