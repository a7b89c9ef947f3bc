"""Batches through OpenAI's SDK: priced by their input file before they are sent, settled item by item, once, by their files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final

import httpx2
import openai
import pytest
from genai_prices import Usage, calc_price

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Home, Log, also_on_postgres
from tests.provider import Answer, Provider, Used, failed

STORES = ON_ONE_MACHINE

MODEL, EMBEDDING = "gpt-5-mini", "text-embedding-3-small"
CHAT: Final = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "max_completion_tokens": 64, "messages": [{"role": "user", "content": "What is a budget?"}]},
    "/v1/responses": {"model": MODEL, "max_output_tokens": 64, "input": "What is a budget?"},
    "/v1/embeddings": {"model": EMBEDDING, "input": ["What is a budget?", "And a limit?"]},
}


def lines(items: int, endpoint: str = CHAT, **more: Any) -> bytes:
    """The input file with the items `q0`, `q1`, …."""
    body = {**BODIES[endpoint], **more}
    said = ({"custom_id": f"q{n}", "method": "POST", "url": endpoint, "body": body} for n in range(items))
    return b"".join(json.dumps(line).encode() + b"\n" for line in said)


def sent(client: Any, content: bytes, endpoint: str = CHAT) -> Any:
    """A batch of this file."""
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def read(client: Any, name: str) -> int:
    """Look at a batch, and read all that it has; how many lines that is."""
    batch = client.batches.retrieve(name)
    files = [file for file in (batch.output_file_id, batch.error_file_id) if file]
    return sum(len(client.files.content(file).text.splitlines()) for file in files)


@pytest.fixture
def plain(provider: Provider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def embeddings_have_a_batch_price(ledger: tbl.Ledger) -> None:
    """The catalogue has none."""
    ledger.set_price(EMBEDDING, input_usd_per_mtok="0.02", output_usd_per_mtok=0, batch_discount="0.5")


@pytest.fixture
def client(study: tbl.Budget, plain: openai.OpenAI) -> openai.OpenAI:
    return tbl.instrument(plain, study)


def billed(provider: Provider) -> Decimal:
    """What the results cost, by what the server says that they used and by the catalogue alone."""
    return sum((_price(used) for used in provider.used if used.terms.get("batch")), Decimal(0))


def _price(used: Used) -> Decimal:
    if used.model == EMBEDDING:
        return int(used.usage["prompt_tokens"]) * Decimal("0.01") / 10**6
    usage = Usage(
        input_tokens=used.usage.get("prompt_tokens", used.usage.get("input_tokens")),
        output_tokens=used.usage.get("completion_tokens", used.usage.get("output_tokens")),
    )
    price = calc_price(usage, used.model, provider_id="openai", price_context={"processing": "batch"})
    return Decimal(price.total_price)


def posted(provider: Provider) -> int:
    """How many batches reached the server."""
    return sum(asked.path == "/v1/batches" and asked.method == "POST" for asked in provider.asked)


# --- before it is sent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", BODIES)
def test_a_batch_is_reserved_as_a_whole_at_batch_prices(
    ledger: tbl.Ledger, plain: Any, provider: Provider, log: Log, endpoint: str
) -> None:
    """Its file is read with the key of its sender, and it is noted by the provider's id of it."""
    client = tbl.instrument(plain, ledger.budget("study", usd=1), tags={"arm": "b"})
    batch = sent(client, lines(3, endpoint), endpoint)
    reserved = log.last("reserved")
    one = tbl.worst_case(MODEL, 100, 64, batch=True)
    assert Decimal(0) < Decimal(reserved.held_usd or 0).scaleb(-12) < 3 * one
    assert (reserved.requests, reserved.expires, dict(reserved.tags)) == (3, None, {"arm": "b"})
    assert (reserved.provider, log.last("sent").response_id) == ("openai", batch.id)
    (known,) = ledger.batches()
    assert (known.name, known.items, known.settled, known.state) == (batch.id, 3, 0, "open")
    upload, fetched, posted = provider.asked
    assert [each.method for each in (upload, fetched, posted)] == ["POST", "GET", "POST"]
    assert fetched.headers["authorization"] == posted.headers["authorization"]


def test_a_batch_that_does_not_fit_is_not_sent(ledger: tbl.Ledger, plain: Any, provider: Provider) -> None:
    client = tbl.instrument(plain, ledger.budget("poor", usd="0.0001"))
    with pytest.raises(tbl.BudgetExceeded):
        sent(client, lines(50))
    assert posted(provider) == 0


def test_what_a_batch_follows_is_held_too(client: Any, plain: Any, study: tbl.Budget, log: Log, provider: Provider) -> None:
    """The model reads the earlier prompt and answer again, for each item."""
    provider.script(Answer(usage={"input_tokens": 5_000, "total_tokens": ...}))
    first = client.responses.create(model=MODEL, input="Hi", max_output_tokens=64)
    endpoint = "/v1/responses"
    sent(client, lines(2, endpoint), endpoint)
    alone = log.last("reserved").held_tokens or 0
    sent(client, lines(2, endpoint, previous_response_id=first.id), endpoint)
    more = (log.last("reserved").held_tokens or 0) - alone
    assert more == 2 * (first.usage.input_tokens + first.usage.output_tokens)


def test_several_models_are_priced_by_each(
    ledger: tbl.Ledger, client: Any, study: tbl.Budget, provider: Provider, log: Log
) -> None:
    dear = lines(2, model="gpt-5").replace(b'"q', b'"dear')
    batch = sent(client, lines(2) + dear)
    held = Decimal(log.last("reserved").held_usd or 0)
    assert log.last("reserved").model is None
    assert read(client, batch.id) == 4
    assert study.balance.committed_usd == billed(provider) > 0
    sent(client, lines(4))
    assert held > Decimal(log.last("reserved").held_usd or 0)


def test_a_model_without_a_price_is_refused_where_dollars_are_limited(client: Any, provider: Provider) -> None:
    with pytest.raises((tbl.PriceUnknown, tbl.AmountMissing)):
        sent(client, lines(2) + lines(1, model="llm-of-nobody").replace(b'"q', b'"s'))
    assert posted(provider) == 0


@pytest.mark.parametrize("status", [404, 401, 503])
def test_a_file_that_cannot_be_read_is_named_and_its_batch_is_not_sent(
    client: Any, provider: Provider, log: Log, status: int
) -> None:
    provider.reply = lambda asked: Answer(status=status) if asked.path.endswith("/content") else None
    with pytest.raises(tbl.BatchUnread, match=rf"HTTP {status}.*not sent"):
        sent(client, lines(2))
    assert (posted(provider), log.kinds) == (0, ["budget_set"])


@pytest.mark.parametrize("drop", ["hang up", "cut"])
def test_a_file_whose_reading_broke_off_holds_nothing(client: Any, provider: Provider, log: Log, drop: str) -> None:
    provider.reply = lambda asked: Answer(drop=drop) if asked.path.endswith("/content") else None
    with pytest.raises(openai.APIConnectionError):
        sent(client, lines(2))
    assert (posted(provider), log.kinds) == (0, ["budget_set"])


@pytest.mark.parametrize("file", ["../models", "a/b", "", "x?y=1", 7])
def test_what_is_no_id_of_a_file_is_not_asked_for(client: Any, provider: Provider, file: Any) -> None:
    with pytest.raises(tbl.InvalidValue, match="input_file_id"):
        client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
    assert not provider.asked


# --- its answer --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "held"), [(failed(429), 0), (failed(400), 0), (failed(504), 3), (failed(502), 3)])
def test_a_refused_batch_is_given_back_and_one_of_a_gateway_stays_held(
    ledger: tbl.Ledger, client: Any, study: tbl.Budget, provider: Provider, answer: Answer, held: int
) -> None:
    provider.script(Answer(), Answer(), answer)
    with pytest.raises(openai.APIStatusError):
        sent(client, lines(3))
    assert study.balance.reserved_requests == held
    assert [each.name for each in ledger.batches()] == [None] * bool(held)


@pytest.mark.parametrize("drop", ["hang up", "cut"])
def test_a_batch_whose_answer_was_lost_stays_held(
    ledger: tbl.Ledger, client: Any, study: tbl.Budget, provider: Provider, drop: str
) -> None:
    """Until somebody says what became of it."""
    provider.script(Answer(), Answer(), Answer(drop=drop))
    with pytest.raises(openai.APIConnectionError):
        sent(client, lines(3))
    assert study.balance.reserved_requests == 3
    (lost,) = ledger.batches()
    ledger.batch(lost.reservation).rollback().result()
    assert study.balance.reserved_requests == 0


@pytest.mark.parametrize("body", [{"id": 7}, {"object": "batch"}, {"id": ""}])
def test_an_answer_without_an_id_leaves_the_hold(client: Any, study: tbl.Budget, provider: Provider, body: Any) -> None:
    provider.script(Answer(), Answer(), Answer(body=body))
    sent(client, lines(3))
    assert study.balance.reserved_requests == 3


def test_each_try_of_the_sdk_is_a_batch_of_its_own(ledger: tbl.Ledger, study: tbl.Budget, provider: Provider, log: Log) -> None:
    """The first was refused, and given back; the second stays."""
    provider.script(Answer(), Answer(), failed(503))
    with openai.OpenAI(max_retries=1) as plain:
        batch = sent(tbl.instrument(plain, study), lines(3))
    assert log.kinds.count("reserved") == 2
    assert study.balance.reserved_requests == 3
    assert [each.name for each in ledger.batches()] == [batch.id]


def test_a_server_that_is_not_there_holds_nothing(study: tbl.Budget, provider: Provider) -> None:
    provider.close()
    with openai.OpenAI(max_retries=0) as plain, pytest.raises(openai.APIConnectionError):
        tbl.instrument(plain, study).batches.create(input_file_id="f", endpoint=CHAT, completion_window="24h")
    assert study.balance.reserved_requests == 0


def answering(answers: Callable[[httpx2.Request], httpx2.Response], **more: Any) -> openai.OpenAI:
    """A client whose files are read, and whose batches are answered so."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=lines(3)) if request.method == "GET" else answers(request)

    return openai.OpenAI(max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(answer), **more))


@pytest.mark.parametrize(("error", "held"), [(httpx2.ConnectError, 0), (httpx2.PoolTimeout, 0), (httpx2.ReadTimeout, 3)])
def test_what_was_never_sent_is_given_back(study: tbl.Budget, provider: Provider, error: Any, held: int) -> None:
    """Whether the provider has a batch whose answer took too long, nobody knows."""

    def fail(request: httpx2.Request) -> httpx2.Response:
        raise error("no", request=request)

    with answering(fail) as plain, pytest.raises(openai.APIConnectionError):
        tbl.instrument(plain, study).batches.create(input_file_id="f", endpoint=CHAT, completion_window="24h")
    assert study.balance.reserved_requests == held


@pytest.mark.parametrize(("status", "held"), [(429, 0), (504, 3)])
def test_an_answer_that_a_hook_makes_an_error_of_says_its_status(
    study: tbl.Budget, provider: Provider, status: int, held: int
) -> None:
    hooks = {"response": [httpx2.Response.raise_for_status]}
    with answering(lambda _: httpx2.Response(status), event_hooks=hooks) as plain, pytest.raises(httpx2.HTTPStatusError):
        tbl.instrument(plain, study).batches.create(input_file_id="f", endpoint=CHAT, completion_window="24h")
    assert study.balance.reserved_requests == held


# --- its results -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", BODIES)
def test_results_settle_as_their_files_are_read(
    ledger: tbl.Ledger, client: Any, study: tbl.Budget, provider: Provider, log: Log, endpoint: str
) -> None:
    """Three are billed; one failed, one was cancelled, one expired: these are given back. Read twice, they count once."""
    ends = {"q3": "errored", "q4": "canceled", "q5": "expired"}
    provider.reply = lambda asked: Answer(ends=ends.get(asked.custom_id or "", "succeeded")) if asked.custom_id else None
    batch = sent(client, lines(6, endpoint), endpoint)
    for _ in range(2):
        assert read(client, batch.id) == 6
    (known,) = ledger.batches(ended=True)
    assert (known.settled, known.state, known.cost_usd) == (6, "committed", billed(provider))
    balance = study.balance
    assert (balance.committed_usd, balance.committed_requests, balance.reserved_requests) == (billed(provider), 3, 0)
    assert log.kinds.count("part_committed") == 6
    assert billed(provider) > 0


def test_listing_says_whose_the_files_are_too(ledger: tbl.Ledger, client: Any, plain: Any, provider: Provider) -> None:
    """And another label on the client changes nothing of that."""
    sent(client, lines(4))
    plain.batches.retrieve(next(iter(client.batches.list())).id)
    (batch,) = client.batches.list()
    tbl.tagged(client, item="x").files.content(batch.output_file_id)
    (known,) = ledger.batches(ended=True)
    assert (known.settled, known.state) == (4, "committed")


def test_a_file_that_is_nobodys_is_read_as_it_is(client: Any, plain: Any, provider: Provider, log: Log) -> None:
    """A batch that was sent past the budget, and a file that is none of a batch's."""
    batch = sent(plain, lines(3))
    assert read(client, batch.id) == 3
    assert client.files.content(batch.input_file_id).content == lines(3)
    assert log.kinds == ["budget_set"]


@also_on_postgres
def test_half_of_the_results_settle_half_and_the_hold_stays(ledger: tbl.Ledger, client: Any, log: Log) -> None:
    batch = client.batches.retrieve(sent(client, lines(400)).id)
    with client.files.with_streaming_response.content(batch.output_file_id) as response:
        next(response.iter_bytes(20_000))
    (known,) = ledger.batches()
    assert 1 <= known.settled < 400
    ledger.sync_batches(client)
    assert log.kinds.count("part_committed") == 400
    assert not ledger.batches()


def test_one_of_two_files_does_not_end_a_batch(ledger: tbl.Ledger, client: Any, provider: Provider) -> None:
    provider.reply = lambda asked: Answer(status=400) if asked.custom_id == "q1" else None
    batch = client.batches.retrieve(sent(client, lines(3)).id)
    client.files.content(batch.output_file_id)
    assert [(each.settled, each.state) for each in ledger.batches()] == [(2, "open")]
    client.files.content(batch.error_file_id)
    assert [(each.settled, each.state) for each in ledger.batches(ended=True)] == [(3, "committed")]


def test_an_async_client_does_the_same(ledger: tbl.Ledger, study: tbl.Budget, provider: Provider) -> None:
    async def overnight() -> list[Any]:
        async with openai.AsyncOpenAI() as plain:
            client = tbl.instrument(plain, study)
            file = await client.files.create(file=("in.jsonl", lines(7)), purpose="batch")
            order: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
            first = await client.batches.retrieve((await client.batches.create(**order)).id)
            assert (await client.files.content(first.output_file_id or "")).text.count("\n") == 7
            (known,) = ledger.batches(ended=True)
            assert (known.settled, known.state) == (7, "committed")
            await client.batches.create(**order)
            settled: list[Any] = await ledger.sync_batches(plain)
            with pytest.raises(tbl.BatchUnread):
                await client.batches.create(**{**order, "input_file_id": "file-none"})
            with pytest.raises(tbl.BudgetExceeded):
                await tbl.instrument(plain, ledger.budget("poor", usd="0.00001")).batches.create(**order)
            return settled

    (state,) = asyncio.run(overnight())
    assert (state.settled, state.state) == (7, "committed")
    assert (study.balance.committed_usd, study.balance.reserved_requests) == (billed(provider), 0)
    assert posted(provider) == 2


@pytest.mark.parametrize("ended", [True, False])
def test_another_process_settles_what_has_ended(
    home: Home, plain: Any, provider: Provider, caplog: pytest.LogCaptureFixture, *, ended: bool
) -> None:
    """On Monday, with a client that is under no budget."""
    study = home.ledger.budget("study", usd=1)
    provider.batches_take(None)
    batch = sent(tbl.instrument(plain, study), lines(10))
    ledger = home.reopen()
    if ended:
        provider.finish(batch.id)
    (state,) = ledger.sync_batches(plain)
    assert (state.settled, state.state) == ((10, "committed") if ended else (0, "open"))
    assert ledger.budget("study").balance.committed_usd == (billed(provider) if ended else 0)
    assert "it is over" not in caplog.text
