"""Prompts, completions and keys: none of them is in any byte of a ledger, in a log line, or in what our objects show."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

import tokenbudget_lab as tbl
from tests.provider import Answer, Provider, failed
from tests.streams import CLAUDE, SEEN
from tokenbudget_lab import link
from tokenbudget_lab.calls import Received
from tokenbudget_lab.metering import Meter
from tokenbudget_lab.place import place_of
from tokenbudget_lab.protocols.anthropic import MESSAGES
from tokenbudget_lab.sse import Frames

# Each is a word of its own, so that half of one is found too.
PROMPT, SYSTEM, TOOL, SAID, THOUGHT, CALLED, KEY = (
    "Quizzaciously-prompted", "Zygomorphic-system", "Xylographic-tool", "Wherewithal-said", "Vicissitude-thought",
    "Ultracrepidarian-called", "plain-looking-key-0815",
)  # fmt: skip
SECRETS = (PROMPT, SYSTEM, TOOL, SAID, THOUGHT, CALLED, KEY, "sk-ant-REDACTED")
TOOLS = [{"name": "look", "description": TOOL, "input_schema": {"type": "object", "properties": {TOOL: {"type": "string"}}}}]
ASK: Any = [{"role": "user", "content": f"{PROMPT} {PROMPT}?"}]
MESSAGE: dict[str, Any] = {"model": CLAUDE, "max_tokens": 90, "messages": ASK, "system": SYSTEM, "tools": TOOLS}
CHAT: dict[str, Any] = {
    "model": SEEN,
    "messages": [{"role": "system", "content": SYSTEM}, *ASK],
    "tools": [{"type": "function", "function": {"name": "look", "description": TOOL, "parameters": {"type": "object"}}}],
}
RESPONSE: dict[str, Any] = {"model": SEEN, "input": PROMPT, "instructions": SYSTEM}
BLOCKS: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": THOUGHT * 3},
    {"type": "text", "text": f"{SAID}, {SAID}."},
    {"type": "tool_use", "name": "look", "input": {"where": CALLED}},
]
ANSWERS: list[Answer] = [
    Answer(blocks=BLOCKS),
    Answer(blocks=BLOCKS, usage={"output_tokens": 10**6, "completion_tokens": 10**6}),
    Answer(blocks=BLOCKS, cut_at=1_500),
    Answer(blocks=BLOCKS, cut_at=700, drop="close"),
    Answer(blocks=BLOCKS, drop="hang up"),
    Answer(blocks=BLOCKS, fields={"stop_reason": f"You asked {PROMPT}", "id": f"{PROMPT}: {SAID}"}),
    Answer(blocks=BLOCKS, through=lambda data: data.replace(b'"type"', b'"type"' + PROMPT.encode())),
    Answer(
        blocks=BLOCKS, headers={"content-type": "text/html", "request-id": f"{PROMPT} {SAID}", "x-request-id": f"of {PROMPT}"}
    ),
    failed(400, f"messages.0: `{PROMPT}` is not allowed with {SYSTEM}; key {KEY}"),
    failed(429, PROMPT),
    failed(500, PROMPT),
    failed(502, PROMPT),
    Answer(502, body=f"<html>{PROMPT}</html>".encode()),
]


def clients() -> Iterator[Any]:
    """Clients of both SDKs, with a key that no pattern would know."""
    with anthropic.Anthropic(api_key=KEY, max_retries=0) as claude, openai.OpenAI(api_key=KEY, max_retries=0) as gpt:
        yield claude
        yield gpt


def ask_all(study: tbl.Budget, provider: Provider) -> list[str]:
    """Calls of every kind; what is shown of their errors, and of what we made."""
    shown: list[str] = []
    for plain in clients():
        claude = isinstance(plain, anthropic.Anthropic)
        client: Any = tbl.instrument(plain, study, tags={"condition": "a"}, on_exceeded="raise")
        shown.append(repr(getattr(client, "middleware", "")))
        kinds = [(client.messages, MESSAGE)] if claude else [(client.chat.completions, CHAT), (client.responses, RESPONSE)]
        for resource, body in kinds:
            for answer in ANSWERS:
                for stream in (True, False):
                    provider.always(answer)
                    with contextlib.suppress(anthropic.AnthropicError, openai.OpenAIError, ValueError, httpx2.HTTPError):
                        reply = resource.create(**body, stream=stream)
                        if stream:
                            list(reply)
        provider.always(Answer(blocks=BLOCKS))
        for wrong in _wrong(claude=claude):
            try:
                kinds[0][0].create(**{**kinds[0][1], "timeout": 10, **wrong})
            except tbl.TokenBudgetError as error:
                shown += [str(error), repr(error), repr(error.args)]
            except (anthropic.AnthropicError, openai.OpenAIError):
                pass
    return shown


def _wrong(*, claude: bool) -> list[dict[str, Any]]:
    """What cannot be counted, or is refused: none of it is to be quoted."""
    odd: list[Any] = [
        [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": PROMPT}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": PROMPT, "format": "wav"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": [PROMPT]}]}],
        [{"role": "user", "content": {"parts": PROMPT}}],
        [PROMPT],
    ]
    most = "max_tokens" if claude else "max_completion_tokens"
    return [{"messages": each} for each in odd] + [{most: 10**12}, {"tools": [{"name": PROMPT, "input_schema": PROMPT}]}]


def spellings(secret: str) -> list[bytes]:
    """How a secret may stand in a file: as text, as UTF-16, and in base64 wherever it begins."""
    plain = secret.encode()
    coded = [base64.b64encode(b"\0" * before + plain)[4 if before else 0 : -4] for before in range(3)]
    return [
        plain,
        plain[: len(plain) // 2],
        secret.encode("utf-16-le"),
        plain.hex().encode(),
        *(each for each in coded if each),
    ]


def found_in(data: bytes) -> list[str]:
    return [secret for secret in SECRETS if any(spelling in data for spelling in spellings(secret))]


def must_hold_no_secret(folder: Path, ledger: tbl.Ledger) -> int:
    """Search what can be asked of a ledger, and every byte of its files; how many files there were."""
    for frame in (ledger.events(), ledger.calls()):
        assert not found_in(json.dumps(frame.collect().to_dicts(), default=str).encode())
    files = [each for each in folder.rglob("*") if each.is_file()]
    for each in files:
        assert not found_in(each.read_bytes()), each
    return len(files)


@pytest.mark.parametrize("kept", ["memory", "embedded", "keeper"])
def test_no_byte_of_a_ledger_is_of_a_prompt_a_completion_or_a_key(
    tmp_path: Path, provider: Provider, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setenv("TOKENBUDGET_KEEPER_LINGER_S", "0.1")
    caplog.set_level(logging.DEBUG, "tokenbudget_lab")
    path = tmp_path / "spend.duckdb"
    ledger = tbl.connect(":memory:") if kept == "memory" else tbl.connect(path, embedded=kept == "embedded")
    with ledger, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        study = ledger.budget("study", usd=10**6, alerts=(0.000001,))
        shown = ask_all(study, provider)
        asyncio.run(_ask_async(study, provider))
        assert study.balance.committed_requests > 50
        assert not study.balance.calls_in_flight
        assert must_hold_no_secret(tmp_path, ledger) == (0 if kept == "memory" else len(list(_files(tmp_path))))
        assert "msg_" in json.dumps(ledger.calls().collect().to_dicts(), default=str)  # what is to be there is found
    said = [record.getMessage() + str(record.args) + str(record.exc_text) for record in caplog.records if _is_ours(record)]
    shown += said + [str(each.message) for each in warned if "tokenbudget" in each.filename]
    assert not found_in("\n".join(shown).encode())
    if kept != "memory":  # closed, it is written anew, and compressed: so its columns are read as well
        if kept == "keeper":
            link.stop(place_of(path))
        with tbl.connect(path, embedded=True) as again:
            assert must_hold_no_secret(tmp_path, again) > 2


def _files(folder: Path) -> Iterator[Path]:
    return (each for each in folder.rglob("*") if each.is_file())


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith("tokenbudget_lab")


async def _ask_async(study: tbl.Budget, provider: Provider) -> None:
    """One that is read, one that is cancelled, one that breaks."""
    async with anthropic.AsyncAnthropic(api_key=KEY, max_retries=0) as plain:
        client = tbl.instrument(plain, study)
        for answer in (ANSWERS[0], ANSWERS[2], Answer(blocks=BLOCKS, stall_at=1_400)):
            provider.always(answer)
            with contextlib.suppress(TimeoutError, anthropic.AnthropicError, httpx2.HTTPError, ValueError):
                async with asyncio.timeout(1):
                    async for _ in await client.messages.create(**MESSAGE, stream=True):
                        pass


def test_a_search_would_find_what_is_there(tmp_path: Path) -> None:
    """The search itself, on a ledger that was given a secret as a tag."""
    with tbl.connect(tmp_path / "spend.duckdb", embedded=True) as ledger:
        ledger.budget("study", usd=1).record(usd="0.1", tags={"item": PROMPT}).result()
        with pytest.raises(AssertionError):
            must_hold_no_secret(tmp_path, ledger)
    assert any(found_in(each.read_bytes()) for each in _files(tmp_path))


def test_what_we_made_shows_no_word_of_a_call(provider: Provider) -> None:
    """As it stands in a traceback that shows the values of names."""
    with tbl.connect(":memory:") as ledger, anthropic.Anthropic(api_key=KEY) as plain:
        study = ledger.budget("study", usd=1)
        meter, call = Meter(study), MESSAGES.call(MESSAGE)
        attempt, stream = meter.attempt(call), MESSAGES.stream()
        attempt.ask()
        data = provider.bytes_of("/v1/messages", {**MESSAGE, "stream": True}, ANSWERS[0])
        frames = list(Frames().feed(f"data: {SAID}\n\n".encode()))
        stream.feed(data)
        client = tbl.instrument(plain, study)
        things = [meter, call, attempt, attempt.call, attempt.reading, stream, frames, frames[0], study, ledger, MESSAGES]
        things += [stream.received(ended=False), Received(text=SAID), client.middleware, client, attempt._reserving]
        assert not found_in("\n".join(map(repr, things)).encode())
        assert not found_in("\n".join(map(str, things)).encode())
        attempt.refused()
        client.messages.count_tokens(model=CLAUDE, messages=ASK)


def test_the_error_of_a_refusal_quotes_nothing(provider: Provider) -> None:
    """Nor does its traceback, but for the lines of the caller's own program."""
    with tbl.connect(":memory:") as ledger, anthropic.Anthropic(api_key=KEY) as plain:
        client: Any = tbl.instrument(plain, ledger.budget("study", usd="0.000001"))
        with pytest.raises(tbl.BudgetExceeded) as refused:
            client.messages.create(**MESSAGE)
    told = "".join(traceback.format_exception(refused.value)) + repr(refused.value) + str(refused.value.args)
    assert not found_in(told.encode())
