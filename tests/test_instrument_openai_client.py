"""A client of OpenAI's SDK under a budget: its type, its connections, its hooks, and Azure's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import openai
import pytest

import tokenbudget_lab as tbl
from tests.provider import Answer, Provider, failed
from tests.settling import priced, settled, usd

STORE = "memory"
MODEL = "gpt-5-mini"
ASK: list[Any] = [{"role": "user", "content": "What is a budget?"}]
Plain = Callable[..., openai.OpenAI]


@pytest.fixture
def plain(provider: Provider) -> Iterator[Plain]:
    """Makes clients of the SDK, and closes them."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(openai.OpenAI(**{"max_retries": 0, **options}))


@pytest.fixture
def client(study: tbl.Budget, plain: Plain) -> openai.OpenAI:
    return tbl.instrument(plain(), study)


def ask(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "max_completion_tokens": 64, "messages": ASK, **more})


def usages(chunks: Any) -> list[Any]:
    """What a stream showed of usage."""
    return [chunk.usage for chunk in chunks if chunk.usage is not None]


def test_a_client_keeps_its_type_and_its_connections(study: tbl.Budget, plain: Plain, provider: Provider) -> None:
    before = plain()
    ask(before)
    under = tbl.instrument(before, study)
    ask(under)
    assert type(under) is openai.OpenAI
    assert provider.connections == 1


def test_the_one_it_was_made_from_may_be_collected(study: tbl.Budget, log: Any, provider: Provider) -> None:
    under = tbl.instrument(openai.OpenAI(max_retries=0), study)
    gc.collect()
    ask(under)
    assert settled(log, 1)[0].basis == "measured"
    under.close()


def test_connections_are_closed_when_that_is_asked_for_and_not_when_a_copy_is_collected(
    study: tbl.Budget, plain: Plain, provider: Provider
) -> None:
    """As with the SDK's own copies, which share them too."""
    before = plain()
    under = tbl.instrument(before, study)
    ask(tbl.tagged(under, item="q7"))
    del under
    gc.collect()
    assert not before.is_closed()
    again = tbl.instrument(before, study)
    again.models.list()
    again.with_options(timeout=5).close()
    assert before.is_closed()


def test_a_client_that_is_closed_holds_nothing(study: tbl.Budget, plain: Plain, log: Any) -> None:
    before = plain()
    under = tbl.instrument(before, study)
    before.close()
    with pytest.raises(RuntimeError, match="has been closed"):
        ask(under)
    assert "reserved" not in log.kinds


def test_instrumenting_again_replaces_the_budget(ledger: tbl.Ledger, client: Any, study: tbl.Budget) -> None:
    other = ledger.budget("other", usd=1)
    again = tbl.instrument(client, other)
    ask(again)
    assert (study.balance.committed_requests, other.balance.committed_requests) == (0, 1)
    client.models.list()


def test_a_client_that_was_never_called_warns(study: tbl.Budget, plain: Plain) -> None:
    gc.collect()
    with pytest.warns(RuntimeWarning, match="never called"):
        tbl.instrument(plain(), study)


def test_threads_label_their_calls_without_disturbing_each_other(client: Any, log: Any) -> None:
    threads = [threading.Thread(target=lambda n=n: ask(tbl.tagged(client, item=str(n)))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settled(log, 20)
    items = sorted(dict(event.tags)["item"] for event in log.events if event.kind == "reserved")
    assert items == sorted(map(str, range(20)))


def test_a_plain_client_cannot_be_tagged(plain: Plain) -> None:
    with pytest.raises(tbl.InvalidValue, match="under no budget"):
        tbl.tagged(plain(), item="q7")


@pytest.mark.parametrize("read", [True, False], ids=["reads", "looks"])
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "at once"])
def test_a_hook_of_the_users_sees_each_response_once(
    study: tbl.Budget, log: Any, provider: Provider, *, read: bool, streamed: bool
) -> None:
    seen: list[int] = []

    def hook(response: Any) -> None:
        seen.append(response.status_code)
        if read:
            response.read()

    with httpx2.Client(event_hooks={"response": [hook]}) as http, openai.OpenAI(http_client=http) as plain:
        reply = ask(tbl.instrument(plain, study), stream=streamed)
        if streamed:
            assert usages(reply) == []
    assert (seen, settled(log, 1)[0].basis) == ([200], "measured")


def test_a_hook_that_raises_for_an_error_gives_back_what_the_provider_refused(
    study: tbl.Budget, log: Any, provider: Provider
) -> None:
    provider.script(failed(400))

    def raises(response: Any) -> None:
        response.raise_for_status()

    with (
        httpx2.Client(event_hooks={"response": [raises]}) as http,
        openai.OpenAI(http_client=http, max_retries=0) as plain,
        pytest.raises(httpx2.HTTPStatusError),
    ):
        ask(tbl.instrument(plain, study))
    assert [event.kind for event in settled(log, 1)] == ["rolled_back"]


def test_the_sdk_on_the_older_httpx_is_the_same(study: tbl.Budget, log: Any, provider: Provider) -> None:
    with httpx.Client() as http, openai.OpenAI(http_client=http) as plain:  # type: ignore[arg-type] # it takes both
        assert usages(ask(tbl.instrument(plain, study), stream=True)) == []
    assert usd(settled(log, 1)[0]) == priced(provider.used[0])


def test_no_price_is_refused_and_says_what_to_do(client: Any, provider: Provider) -> None:
    with pytest.raises(tbl.PriceUnknown, match="set_price"):
        ask(client, model="gpt-of-the-lab")
    assert not provider.asked


# --- Azure -------------------------------------------------------------------------------------------------------------------


def azure(provider: Provider, *, asynchronous: bool = False, **more: Any) -> Any:
    kind = openai.AsyncAzureOpenAI if asynchronous else openai.AzureOpenAI
    return kind(azure_endpoint=provider.url, api_version="2025-01-01", api_key="k", max_retries=0, **more)


def test_azures_client_is_metered_by_the_model_of_its_deployment(study: tbl.Budget, log: Any, provider: Provider) -> None:
    body = provider.bytes_of("/v1/chat/completions", {"model": MODEL, "messages": ASK})
    provider.always(Answer(body=body))
    with azure(provider) as plain:
        under = tbl.instrument(plain, study)
        assert type(under) is openai.AzureOpenAI
        reply = ask(under)
    assert provider.asked[0].path == f"/openai/deployments/{MODEL}/chat/completions"
    assert (settled(log, 1)[0].model, settled(log, 1)[0].response_id) == (MODEL, reply.id)


def test_azures_async_client_is_metered_too(study: tbl.Budget, log: Any, provider: Provider) -> None:
    provider.always(Answer(body=provider.bytes_of("/v1/chat/completions", {"model": MODEL, "messages": ASK})))

    async def asked() -> Any:
        async with azure(provider, asynchronous=True, azure_deployment="gpt-4o") as plain:
            return await ask(tbl.instrument(plain, study))

    assert asyncio.run(asked()).id == settled(log, 1)[0].response_id
    assert provider.asked[0].path == "/openai/deployments/gpt-4o/chat/completions"
