"""What else OpenAI's SDK can ask for: responses and embeddings are metered, what is free passes, all else is refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import tokenbudget_lab as tbl
from tests.provider import Answer, Provider
from tests.settling import priced, settled, usd
from tokenbudget_lab.endpoints import endpoint_at
from tokenbudget_lab.metering import holds_of

STORE = "memory"
MODEL, SMALL = "gpt-5-mini", "text-embedding-3-small"
CALL = {"type": "tool_use", "name": "price", "input": {"of": "tea"}}
TOOL: Any = {"type": "function", "name": "price", "parameters": {"type": "object", "properties": {}}, "strict": False}
# All that the SDK can post and that costs something, or may: by how its paths begin; batches have a way of their own.
REFUSED = (
    "/audio/", "/batches$", "/agents", "/vaults", "/chatkit/sessions$", "/realtime/", "/responses/compact$", "/threads/runs$",
    r"/threads/[^/]+/runs(?:/[^/]+/submit_tool_outputs)?$", "/completions$", "/containers", "/content_provenance_checks$",
    "/decisions$", "/evals", "/fine_tuning/", "/images/", "/live/sessions", "/skills", "/vector_stores", "/videos",
)  # fmt: skip


@pytest.fixture
def client(study: tbl.Budget, provider: Provider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(max_retries=0) as plain:
        yield tbl.instrument(plain, study)


def respond(client: Any, **more: Any) -> Any:
    return client.responses.create(**{"model": MODEL, "max_output_tokens": 64, "input": "What is a budget?", **more})


# --- responses --------------------------------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[dict[str, Any], Answer]] = {
    "as it comes": ({}, Answer()),
    "without a limit": ({"max_output_tokens": openai.omit}, Answer()),
    "instructions": ({"instructions": "Be brief."}, Answer(text="No.")),
    "tools": ({"tools": [TOOL]}, Answer(blocks=[CALL])),
    "messages": ({"input": [{"role": "user", "content": "Hi"}]}, Answer()),
    "cached input": ({}, Answer(usage={"input_tokens_details": {"cached_tokens": 1_000}})),
    "reasoning": ({"model": "o3"}, Answer(usage={"output_tokens_details": {"reasoning_tokens": 400}})),
    "flex": ({"service_tier": "flex"}, Answer()),
    "priority": ({"service_tier": "priority"}, Answer()),
    "cut short": ({}, Answer(stop_reason="max_output_tokens")),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("what", ANSWERS)
def test_a_response_costs_what_the_catalogue_says_of_what_the_provider_said(
    client: Any, log: Any, provider: Provider, what: str, *, streamed: bool
) -> None:
    more, answer = ANSWERS[what]
    provider.script(answer)
    reply = respond(client, stream=streamed, **more)
    if streamed:
        assert list(reply)
    committed = settled(log, 1)[0]
    assert (committed.basis, committed.response_id) == ("measured", provider.used[0].id)
    assert usd(committed) == priced(provider.used[0])


def test_the_helper_for_streamed_responses_is_measured(client: openai.OpenAI, log: Any) -> None:
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        reply = stream.get_final_response()
    assert reply.id == settled(log, 1)[0].response_id


def test_a_response_that_failed_after_all_is_not_free(client: Any, log: Any, provider: Provider) -> None:
    provider.script(Answer(stop_reason="failed"))
    assert respond(client).status == "failed"
    assert settled(log, 1)[0].basis == "unknown"


@pytest.mark.parametrize("forgotten", [False, True], ids=["of this process", "of another one"])
def test_what_a_response_follows_is_counted_by_what_the_ledger_knows_of_it(
    ledger: tbl.Ledger, client: Any, log: Any, provider: Provider, *, forgotten: bool
) -> None:
    """The model reads the earlier prompt and answer again."""
    provider.script(Answer(usage={"input_tokens": 5_000, "total_tokens": ...}))
    first = respond(client)
    settled(log, 1)
    if forgotten:
        holds_of(ledger)._replies.clear()
    respond(client, previous_response_id=first.id)
    held = [event.held_tokens for event in log.events if event.kind == "reserved"]
    assert held[1] - held[0] == first.usage.input_tokens + first.usage.output_tokens


@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
def test_a_conversation_goes_on_at_once(client: Any, log: Any, *, streamed: bool) -> None:
    """The ledger knows of a reply as soon as its reader does."""
    last: Any = openai.omit
    for _ in range(10):
        reply = respond(client, previous_response_id=last, stream=streamed)
        last = list(reply)[-1].response.id if streamed else reply.id
    assert [event.basis for event in settled(log, 10)] == ["measured"] * 10


def test_an_async_conversation_goes_on_too(study: tbl.Budget, log: Any, provider: Provider) -> None:
    async def talk() -> None:
        async with openai.AsyncOpenAI() as plain:
            client = tbl.instrument(plain, study)
            first = await respond(client)
            await respond(client, previous_response_id=first.id)

    asyncio.run(talk())
    assert [event.basis for event in settled(log, 2)] == ["measured"] * 2


def test_what_follows_a_response_that_nobody_knows_is_not_sent(client: Any, provider: Provider) -> None:
    with pytest.raises(tbl.CountFailed, match="send the messages"):
        respond(client, previous_response_id="resp_of_last_year")
    assert not provider.asked


@pytest.mark.parametrize("kept", [{"background": True}, {"conversation": "conv_1"}, {"prompt": {"id": "pmpt_1"}}])
def test_what_the_reply_does_not_say_or_the_request_does_not_show_is_not_sent(
    client: Any, provider: Provider, kept: dict[str, Any]
) -> None:
    with pytest.raises(tbl.InvalidValue, match=next(iter(kept))):
        respond(client, **kept)
    assert not provider.asked


def test_a_search_is_billed_apart_so_the_call_counts_as_it_was_held(client: Any, log: Any, provider: Provider) -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "tea"}}
    provider.script(Answer(fields={"output": [search]}))
    respond(client)
    committed, reserved = settled(log, 1)[0], log.last("reserved")
    assert (committed.usd, committed.input_tokens) == (reserved.held_usd, provider.used[0].usage["input_tokens"])
    assert "web_search_call is billed apart" in committed.detail


def test_a_tool_of_the_providers_that_nobody_can_count_is_not_sent(client: Any, provider: Provider) -> None:
    with pytest.raises(tbl.CountFailed, match="web_search"):
        respond(client, tools=[{"type": "web_search"}])
    assert not provider.asked


def test_an_async_response_is_measured(study: tbl.Budget, log: Any, provider: Provider) -> None:
    async def asked() -> Any:
        async with openai.AsyncOpenAI() as plain:
            return await respond(tbl.instrument(plain, study))

    assert asyncio.run(asked()).id == settled(log, 1)[0].response_id


# --- embeddings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [openai.omit, "float", "base64"], ids=["as usual", "floats", "base64"])
@pytest.mark.parametrize("given", ["tea", ["tea", "and", "cake"], [1, 2, 3], [[1, 2], [3]]], ids=str)
def test_embeddings_are_counted_as_they_are_given(client: Any, log: Any, provider: Provider, given: Any, packed: Any) -> None:
    reply = client.embeddings.create(model=SMALL, input=given, encoding_format=packed)
    assert len(reply.data) in (1, len(given))
    reserved, committed = log.last("reserved"), settled(log, 1)[0]
    assert (committed.basis, usd(committed)) == ("measured", priced(provider.used[0]))
    assert (committed.output_tokens, committed.provider, reserved.held_tokens) == (0, "openai", 1 if given == "tea" else 3)


def test_async_embeddings_are_measured(study: tbl.Budget, log: Any, provider: Provider) -> None:
    async def asked() -> Any:
        async with openai.AsyncOpenAI() as plain:
            return await tbl.instrument(plain, study).embeddings.create(model=SMALL, input="tea")

    assert asyncio.run(asked()).usage.prompt_tokens == settled(log, 1)[0].input_tokens


# --- what passes and what is refused ----------------------------------------------------------------------------------------


def test_what_costs_nothing_passes(client: openai.OpenAI, log: Any, provider: Provider) -> None:
    provider.script(*[Answer()] * 2, *[Answer(body={"id": "x", "results": []})] * 7)
    assert client.models.list().data
    assert client.responses.input_tokens.count(model=MODEL, input="Hi").input_tokens
    client.moderations.create(input="Hi")
    client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
    client.files.retrieve("file_1")
    client.files.delete("file_1")
    client.batches.cancel("batch_1")
    client.responses.cancel("resp_1")
    client.chat.completions.update("chat_1", metadata={"a": "b"})
    assert (log.kinds, len(provider.asked)) == (["budget_set"], 9)


COSTLY: list[Callable[[openai.OpenAI], Any]] = [
    lambda client: client.images.generate(prompt="a cat", model="gpt-image-1"),
    lambda client: client.audio.speech.create(input="Hi", model="tts-1", voice="alloy"),
    lambda client: client.audio.transcriptions.create(file=("a.wav", b"RIFF"), model="whisper-1"),
    lambda client: client.fine_tuning.jobs.create(model=MODEL, training_file="file_1"),
    lambda client: client.beta.threads.runs.create("thread_1", assistant_id="asst_1"),
    lambda client: client.beta.threads.create_and_run(assistant_id="asst_1"),
    lambda client: client.responses.compact(model=MODEL, input="Hi"),
    lambda client: client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Hi"),
    lambda client: client.batches.create(completion_window="24h", endpoint="/v1/images/edits", input_file_id="file_1"),
    lambda client: client.vector_stores.create(),
    lambda client: client.videos.create(prompt="a cat"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("call", COSTLY)
def test_what_costs_something_unknown_is_not_sent(client: openai.OpenAI, provider: Provider, call: Any) -> None:
    with pytest.raises(tbl.NotMetered, match="nothing was sent"):
        call(client)
    assert not provider.connections


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "a copy"])
@pytest.mark.parametrize("where", ["realtime", "responses", "beta.realtime"])
def test_what_would_go_past_the_http_client_is_refused(
    client: openai.OpenAI, provider: Provider, where: str, *, copied: bool
) -> None:
    resource: Any = tbl.tagged(client, item="q7").with_options(timeout=5) if copied else client
    for name in where.split("."):
        resource = getattr(resource, name)
    connecting = resource.connect() if where == "responses" else resource.connect(model="gpt-realtime")
    with pytest.raises(tbl.NotMetered, match="WebSocket"):
        connecting.enter()
    assert not provider.connections


def test_async_sockets_are_refused_too(study: tbl.Budget, provider: Provider) -> None:
    async def connected() -> None:
        async with openai.AsyncOpenAI() as plain:
            with pytest.raises(tbl.NotMetered, match="WebSocket"):
                await tbl.instrument(plain, study).realtime.connect(model="gpt-realtime").enter()

    asyncio.run(connected())
    assert not provider.connections


def posted() -> list[str]:
    """Every path that the SDK's source posts to."""
    found: set[str] = set()
    for path in Path(openai.__file__).parent.joinpath("resources").rglob("*.py"):
        source = path.read_text("utf-8")
        calls = re.findall(r"self\._(?:post|put|patch)\(", source)
        paths = re.findall(r'self\._(?:post|put|patch)\((?:\s*#.*)?\s*(?:path_template\(\s*)?f?"([^"?]*)', source)
        assert len(calls) == len(paths), path
        found.update(re.sub(r"\{\w+\}", "an_id", each) for each in paths)
    return sorted(found)


def test_everything_that_the_sdk_can_post_is_metered_or_free_or_known_to_be_refused() -> None:
    metered, free, refused = [], 0, 0
    for path in posted():
        costly = any(re.match(each, path) for each in REFUSED)
        try:
            endpoint = endpoint_at("POST", "https://api.openai.com", f"/v1{path}")
        except tbl.NotMetered:
            assert costly, f"{path}: decide whether it is metered, free or refused"
            refused += 1
        else:
            if endpoint is not None:
                metered.append(path)
            free += endpoint is None
    assert metered == ["/chat/completions", "/embeddings", "/responses"]
    assert (free > 50, refused > 50) == (True, True)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/imagen:predict", "/admin/v1/images/generations", "/v1/vector_stores/vs_1/files", "/organization/v1/images",
        "/v1/x/moderations", "/v1/threads/runs", "/v1beta/models/gemini-2.5-flash:batchGenerateContent", "/", "",
        "/v1/files/f_1/images", "/v1/embeddings/x", "/v1/messages/batches",
    ],
)  # fmt: skip
def test_a_free_word_in_a_path_opens_nothing(path: str) -> None:
    with pytest.raises(tbl.NotMetered):
        endpoint_at("POST", "https://api.openai.com", path)
