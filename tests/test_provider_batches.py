"""The batches of the tests' provider, of both protocols, through both SDKs: created, waited for, cancelled, read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest

from tests.provider import Answer, Asked, Provider

CLAUDE, GPT = "claude-sonnet-5-5", "gpt-6-mini"
ASK: Any = [{"role": "user", "content": "How much?"}]
PARAMS: Any = {"model": CLAUDE, "max_tokens": 50, "messages": ASK}
TOLD = {
    "cached": Answer(usage={"cache_read_input_tokens": 9}),
    "errored": Answer(status=400),
    "canceled": Answer(ends="canceled"),
    "expired": Answer(ends="expired"),
}
ITEMS = ("usual", *TOLD)
REQUESTS: Any = [{"custom_id": item, "params": PARAMS} for item in ITEMS]
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {"model": GPT, "messages": ASK},
    "/v1/responses": {"model": GPT, "input": "How much?"},
    "/v1/embeddings": {"model": "text-embedding-3-small", "input": "How much?"},
}


def by_item(asked: Asked) -> Answer | None:
    """The lines of a batch are told apart by their ids."""
    return TOLD.get(asked.custom_id or "")


def lines(endpoint: str, *items: str) -> bytes:
    """The input file of a batch."""
    said = [{"custom_id": item, "method": "POST", "url": endpoint, "body": BODIES[endpoint]} for item in items]
    return b"".join(json.dumps(line).encode() + b"\n" for line in said)


def test_each_line_of_a_message_batch_ends_as_told(provider: Provider) -> None:
    """Two succeeded: these are what was used, at the batch's terms."""
    provider.reply = by_item
    provider.batches_take(looks=1)
    with anthropic.Anthropic() as client:
        batches = client.messages.batches
        batch = batches.create(requests=REQUESTS)
        assert (batch.processing_status, batch.request_counts.processing) == ("in_progress", 5)
        assert batches.retrieve(batch.id).processing_status == "in_progress"
        assert not provider.used
        ended = batches.retrieve(batch.id)
        counts = ended.request_counts
        assert (counts.succeeded, counts.errored, counts.canceled, counts.expired, counts.processing) == (2, 1, 1, 1, 0)
        results: Any = {line.custom_id: line.result for line in batches.results(batch.id)}
        assert results["cached"].message.usage.cache_read_input_tokens == 9
        assert results["usual"].message.usage.service_tier == "batch"
        assert results["errored"].error.error.type == "invalid_request_error"
        assert [results[item].type for item in ITEMS] == ["succeeded", "succeeded", "errored", "canceled", "expired"]
        assert [(used.id, used.terms["batch"]) for used in provider.used] == [("usual", True), ("cached", True)]
        assert batches.delete(batch.id).id == batch.id
        with pytest.raises(anthropic.NotFoundError):
            batches.retrieve(batch.id)


def test_a_cancelled_message_batch_bills_what_had_succeeded(provider: Provider) -> None:
    provider.reply = lambda asked: Answer(ends="succeeded") if asked.custom_id == "usual" else None
    provider.batches_take(looks=None)

    async def cancelled() -> list[Any]:
        async with anthropic.AsyncAnthropic() as client:
            batches = client.beta.messages.batches
            batch = await batches.create(requests=REQUESTS)
            assert (await batches.retrieve(batch.id)).processing_status == "in_progress"
            assert (await batches.cancel(batch.id)).processing_status == "canceling"
            assert (await batches.retrieve(batch.id)).processing_status == "ended"
            return [line async for line in await batches.results(batch.id)]

    ends = {line.custom_id: line.result.type for line in asyncio.run(cancelled())}
    assert ends == {"usual": "succeeded", **dict.fromkeys(TOLD, "canceled")}
    assert [used.id for used in provider.used] == ["usual"]


def test_message_batches_are_listed_in_pages(provider: Provider) -> None:
    with anthropic.Anthropic() as client:
        made = [client.messages.batches.create(requests=REQUESTS).id for _ in range(5)]
        assert [batch.id for batch in client.messages.batches.list(limit=2)] == made[::-1]


def test_results_are_cut_like_any_other_answer(provider: Provider) -> None:
    with anthropic.Anthropic(max_retries=0) as client:
        batch = client.messages.batches.create(requests=REQUESTS)
        provider.finish(batch.id)
        size = len(provider.bytes_of(f"/v1/messages/batches/{batch.id}/results", method="GET"))
        provider.script(Answer(), Answer(cut_at=size - 1))
        came: list[Any] = []
        with pytest.raises(Exception, match=r"reset|closed|read|peer"):
            came.extend(client.messages.batches.results(batch.id))
    assert [used.id for used in provider.used] == list(ITEMS)


@pytest.mark.parametrize("endpoint", BODIES)
def test_each_line_of_an_openai_batch_ends_as_told(provider: Provider, endpoint: Any) -> None:
    """What succeeded is in one file, the rest in the other; the batch expired, as one of its lines did."""
    told = {**TOLD, "cached": Answer()}
    provider.reply = lambda asked: told.get(asked.custom_id or "")
    provider.batches_take(looks=1)
    with openai.OpenAI() as client:
        file = client.files.create(file=("in.jsonl", lines(endpoint, *ITEMS)), purpose="batch")
        assert client.files.content(file.id).content == lines(endpoint, *ITEMS)
        batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
        assert (batch.status, client.batches.retrieve(batch.id).status) == ("validating", "in_progress")
        ended = client.batches.retrieve(batch.id)
        assert ended.status == "expired"
        assert ended.request_counts is not None
        assert ended.output_file_id is not None
        assert ended.error_file_id is not None
        assert (ended.request_counts.completed, ended.request_counts.failed, ended.request_counts.total) == (2, 3, 5)
        good = [json.loads(line) for line in client.files.content(ended.output_file_id).iter_lines()]
        bad = {line["custom_id"]: line for line in map(json.loads, client.files.content(ended.error_file_id).iter_lines())}
    assert {line["custom_id"]: line["response"]["body"]["usage"] for line in good} == {
        used.id: used.usage for used in provider.used
    }
    assert [(used.id, used.path, used.terms["batch"]) for used in provider.used] == [
        ("usual", endpoint, True),
        ("cached", endpoint, True),
    ]
    assert bad["errored"]["response"]["status_code"] == 400
    assert [bad[item]["error"]["code"] for item in ("canceled", "expired")] == ["batch_cancelled", "batch_expired"]


def test_an_openai_batch_is_cancelled_and_listed(provider: Provider) -> None:
    provider.batches_take(looks=None)

    async def cancelled() -> Any:
        async with openai.AsyncOpenAI() as client:
            file = await client.files.create(file=lines("/v1/responses", *ITEMS), purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
            other = await client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
            assert (await client.batches.cancel(batch.id)).status == "cancelling"
            assert [each.id async for each in client.batches.list(limit=1)] == [other.id, batch.id]
            await client.files.delete(file.id)
            assert file.id not in [each.id async for each in await client.files.list()]
            return await client.batches.retrieve(batch.id)

    batch = asyncio.run(cancelled())
    assert (batch.status, batch.output_file_id, batch.request_counts.failed) == ("cancelled", None, 5)
    assert not provider.used


@pytest.mark.parametrize("content", [b"", b"{}\n", b"no json\n", lines("/v1/responses", "same", "same")])
def test_an_openai_batch_of_a_file_that_is_none_fails(provider: Provider, content: bytes) -> None:
    with openai.OpenAI() as client:
        file = client.files.create(file=content or b"\n"[:0], purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
        assert batch.errors is not None
        assert (client.batches.retrieve(batch.id).status, bool(batch.errors.data)) == ("failed", True)
