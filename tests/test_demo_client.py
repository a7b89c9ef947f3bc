"""The demo's provider, asked through the real SDK."""

import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anthropic
import pytest
from anthropic.types import Message, MessageParam

from tokenbudget_lab.demo import async_demo_client, demo_client, demo_study
from tokenbudget_lab.errors import InvalidValue
from tokenbudget_lab.usage import Usage

MODEL = "claude-sonnet-5-5"
ROOT = Path(__file__).parents[1]


def turn(text: str = "What is a budget?") -> list[MessageParam]:
    return [{"role": "user", "content": text}]


def ask(client: anthropic.Anthropic, text: str = "What is a budget?", max_tokens: int = 256) -> Message:
    return client.messages.create(model=MODEL, max_tokens=max_tokens, messages=turn(text))


def said(message: Message) -> tuple[str, str | None, int, int]:
    """All of a reply that must repeat."""
    (block,) = message.content
    assert block.type == "text"
    return block.text, message.stop_reason, message.usage.input_tokens, message.usage.output_tokens


def outcome(client: anthropic.Anthropic, text: str) -> str:
    try:
        ask(client, text)
    except anthropic.APIStatusError as error:
        return type(error).__name__
    return "answered"


@pytest.fixture(scope="module")
def client() -> anthropic.Anthropic:
    return demo_client(latency_s=(0, 0))


# --- replies ---------------------------------------------------------------------------------------------------------------


def test_a_reply_looks_like_the_providers(client: anthropic.Anthropic) -> None:
    reply = ask(client)
    usage = Usage.of(reply.usage)
    assert reply.id.startswith("msg_demo_")
    assert (reply.model, reply.role, reply.stop_reason) == (MODEL, "assistant", "end_turn")
    assert usage.input_tokens == 9  # 17 characters, and 4 for the message
    assert 1 <= usage.output_tokens <= 256


def test_the_same_question_gets_the_same_reply_under_another_id(client: anthropic.Anthropic) -> None:
    first, again = ask(client), ask(demo_client(latency_s=(0, 0.001)))
    assert said(first) == said(again)
    assert first.id != again.id


def test_another_question_and_another_seed_get_other_replies(client: anthropic.Anthropic) -> None:
    replies = [ask(client), ask(client, "What is a hold?"), ask(demo_client(latency_s=(0, 0), seed=1))]
    assert len({said(reply) for reply in replies}) == 3


def test_a_smaller_limit_only_cuts_the_reply_off(client: anthropic.Anthropic) -> None:
    whole, cut = said(ask(client)), said(ask(client, max_tokens=10))
    assert cut == (whole[0][:40], "max_tokens", whole[2], 10)


def test_thinking_step_by_step_costs_more_output(client: anthropic.Anthropic) -> None:
    output = {"few": 0, "many": 0}
    for number in range(10):
        output["few"] += ask(client, f"What is {number} + 1?", 4_096).usage.output_tokens
        output["many"] += ask(client, f"What is {number} + 1? Think step by step.", 4_096).usage.output_tokens
    assert output["many"] > 2 * output["few"]


def test_all_that_a_model_reads_is_input(client: anthropic.Anthropic) -> None:
    """System prompt, blocks and tools count: 400 characters more are 100 tokens more."""
    long = "x" * 400
    counted = client.messages.count_tokens(
        model=MODEL,
        system=[{"type": "text", "text": long, "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "What is a budget?"}]}],
        tools=[{"name": "look", "description": long[:390], "input_schema": {"type": "object"}}],
    )
    assert 9 + 100 + 98 <= counted.input_tokens <= 9 + 100 + 102


def test_counting_agrees_with_what_the_reply_reports(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=turn())
    assert counted.input_tokens == ask(client).usage.input_tokens


def test_the_beta_api_is_answered_too(client: anthropic.Anthropic) -> None:
    reply = client.beta.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "What is a budget?"}])
    assert reply.usage.input_tokens == 9


# --- streams ---------------------------------------------------------------------------------------------------------------


def test_a_stream_says_what_the_reply_says(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=256, messages=turn()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said(final) == said(ask(client))
    assert text == said(ask(client))[0]


def test_a_stream_starts_with_a_placeholder_and_ends_with_the_whole_usage(client: anthropic.Anthropic) -> None:
    whole = ask(client, max_tokens=20).usage
    with client.messages.create(model=MODEL, max_tokens=20, messages=turn(), stream=True) as stream:
        events = list(stream)
    kinds = [event.type for event in events if event.type != "content_block_delta"]
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    started = next(event.message.usage for event in events if event.type == "message_start")
    ended = next(event.usage for event in events if event.type == "message_delta")
    assert (started.input_tokens, started.output_tokens) == (9, 1)
    assert (ended.input_tokens, ended.output_tokens) == (whole.input_tokens, whole.output_tokens) == (9, 20)


def test_a_stream_that_is_left_harms_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    client = demo_client(latency_s=(0.3, 0.3))
    for _ in range(3):
        with client.messages.create(model=MODEL, max_tokens=256, messages=turn(), stream=True) as stream:
            assert next(iter(stream)).type == "message_start"
    assert ask(client).usage.input_tokens == 9
    assert capfd.readouterr() == ("", "")


# --- many at once ----------------------------------------------------------------------------------------------------------


def test_calls_wait_for_their_latency_side_by_side() -> None:
    """20 calls of a fifth of a second take much less than four seconds."""
    client = demo_client(latency_s=(0.2, 0.2))
    ask(client)
    started = time.monotonic()
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda number: ask(client, f"What is {number}?"), range(20)))
    assert 0.2 <= time.monotonic() - started < 2


def test_an_async_client_works_in_one_loop_after_the_other() -> None:
    """In a script, each `asyncio.run` is a loop of its own; the client needs no closing between them."""
    client = async_demo_client(latency_s=(0, 0.01))

    async def replies() -> list[tuple[str, str | None, int, int]]:
        calls = (client.messages.create(model=MODEL, max_tokens=64, messages=turn(f"What is {n}?")) for n in range(50))
        return [said(reply) for reply in await asyncio.gather(*calls)]

    first, again = asyncio.run(replies()), asyncio.run(replies())
    assert first == again
    assert first[7] == said(ask(demo_client(latency_s=(0, 0)), "What is 7?", 64))


# --- failures --------------------------------------------------------------------------------------------------------------


def test_failures_are_the_three_that_a_provider_has_and_repeat() -> None:
    """Which calls fail, and how, follows from seed and question: not from the order, nor from the thread."""
    client = demo_client(latency_s=(0, 0), failure_rate=0.4).with_options(max_retries=0)
    questions = [f"What is {number}?" for number in range(100)]
    first = [outcome(client, question) for question in questions]
    with ThreadPoolExecutor(8) as threads:
        again = list(threads.map(lambda question: outcome(client, question), reversed(questions)))
    assert again[::-1] == first
    counted = Counter(first)
    assert counted.keys() == {"answered", "RateLimitError", "InternalServerError", "OverloadedError"}
    assert 40 <= counted["answered"] <= 80


def test_no_failures_unless_they_are_asked_for() -> None:
    never = demo_client(latency_s=(0, 0)).with_options(max_retries=0)
    always = demo_client(latency_s=(0, 0), failure_rate=1).with_options(max_retries=0)
    assert {outcome(never, str(number)) for number in range(50)} == {"answered"}
    assert "answered" not in {outcome(always, str(number)) for number in range(50)}


def test_a_failure_has_the_protocols_form() -> None:
    client = demo_client(latency_s=(0, 0), failure_rate=1).with_options(max_retries=0)
    failures = {}
    for number in range(30):
        with pytest.raises(anthropic.APIStatusError) as failed:
            ask(client, str(number))
        failures[failed.value.status_code] = failed.value
    assert {status: error.body["error"]["type"] for status, error in failures.items()} == {  # type: ignore[index]
        429: "rate_limit_error",
        500: "api_error",
        529: "overloaded_error",
    }
    assert failures[429].response.headers["retry-after"] == "1"
    assert all(str(error.request_id).startswith("req_demo_") for error in failures.values())


def test_a_retry_is_a_new_draw() -> None:
    """The SDK retries as always, and what failed first may be answered then."""
    client = demo_client(latency_s=(0, 0), failure_rate=0.4)
    once = client.with_options(max_retries=0)
    busy = [text for text in map(str, range(60)) if outcome(once, text) == "RateLimitError"][:5]
    assert "answered" in {outcome(client.with_options(max_retries=1), text) for text in busy}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": None}, "model: Field required"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens: must be"),
        ({"max_tokens": "many"}, "max_tokens: must be"),
        ({"messages": None}, "messages: Field required"),
        ({"messages": []}, "messages: at least one"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_the_protocols_form(
    client: anthropic.Anthropic, body: dict[str, object], message: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=message) as refused:
        client.messages.create(model=MODEL, max_tokens=9, messages=turn("x"), extra_body=body)
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


def test_what_the_demo_does_not_know_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="the demo answers"):
        client.models.list()


# --- the server ------------------------------------------------------------------------------------------------------------


def test_clients_of_equal_settings_share_a_server_on_the_loopback_interface() -> None:
    one, same, other = demo_client(), async_demo_client(), demo_client(seed=7)
    assert one.base_url == same.base_url != other.base_url
    assert {one.base_url.host, other.base_url.host} == {"127.0.0.1"}


def test_no_proxy_and_no_key_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy", "ANTHROPIC_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a real one")
    client, in_async = demo_client(latency_s=(0, 0)), async_demo_client(latency_s=(0, 0))
    assert (client.api_key, in_async.api_key) == ("demo", "demo")
    assert outcome(client.with_options(max_retries=0), "x") == "answered"
    asyncio.run(in_async.messages.create(model=MODEL, max_tokens=9, messages=turn("x")))


def test_a_client_that_was_copied_and_forgotten_leaves_its_copy_working() -> None:
    assert ask(demo_client(latency_s=(0, 0)).with_options(max_retries=0)).usage.input_tokens == 9


SCRIPT = """
import asyncio, os, sys
from tokenbudget_lab.demo import async_demo_client, demo_client

def call(client):
    return client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}])
"""


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", SCRIPT + textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_a_process_ends_cleanly_with_clients_open() -> None:
    """Nothing was closed by hand, and Python's warnings are errors."""
    ended = run(
        """
        client, other = demo_client(latency_s=(0, 0)), async_demo_client(latency_s=(0, 0))
        call(client)
        asyncio.run(call(other))
        stream = client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}], stream=True)
        next(iter(stream))
        """,
        "-W",
        "error",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_server_of_its_own_and_can_leave() -> None:
    ended = run(
        """
        call(demo_client(latency_s=(0, 0)))
        url = demo_client(latency_s=(0, 0)).base_url
        if (child := os.fork()) == 0:
            client = demo_client(latency_s=(0, 0))
            call(client)
            sys.exit(client.base_url == url)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("latency", [(-1, 0), (0.2, 0.1), (0, float("inf")), (float("nan"), 1)])
def test_an_impossible_latency_is_refused(latency: tuple[float, float]) -> None:
    with pytest.raises(InvalidValue, match="latency_s"):
        demo_client(latency_s=latency)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_an_impossible_failure_rate_is_refused(rate: float) -> None:
    with pytest.raises(InvalidValue, match="failure_rate"):
        async_demo_client(failure_rate=rate)


# --- the study -------------------------------------------------------------------------------------------------------------


def test_the_study_asks_twenty_questions_in_three_ways() -> None:
    study = demo_study()
    assert Counter(item.condition for item in study) == {"zero-shot": 20, "few-shot": 20, "chain-of-thought": 20}
    assert len({(item.item, item.condition) for item in study}) == len({item.prompt for item in study}) == 60
    assert all(item.prompt.isascii() and item.max_tokens > 0 and item.model == MODEL for item in study)


def test_the_study_is_what_its_script_writes(tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "data" / "make_demo_study.py", tmp_path)
    subprocess.run([sys.executable, script], check=True)
    assert (tmp_path / "demo_study.csv").read_bytes() == (ROOT / "data" / "demo_study.csv").read_bytes()
