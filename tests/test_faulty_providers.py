"""Providers that die, stall and say nonsense, and callers who leave: nothing hangs, no hold is left, and nothing is free."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import Provider, failed
from tests.streams import CASES, ESTIMATED, MEASURED, UNKNOWN, Case, ends_of
from tokenbudget_lab import calls
from tokenbudget_lab.calls import Reading, Received, Whole
from tokenbudget_lab.metering import Meter
from tokenbudget_lab.pieces import Settlement, read_along

STORE = "memory"
ROLLED_BACK = ("rolled_back", None)
MESSAGE, CHAT, RESPONSE = CASES["a message"], CASES["a chat whose usage we ask for"], CASES["a response"]
PROTOCOLS = pytest.mark.parametrize("case", [MESSAGE, CHAT, RESPONSE], ids=["messages", "chat", "responses"])
STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
_IDS = re.compile(r"_[0-9a-f]{12}\d{12}")


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("study", usd=10**6)


def whole(case: Case) -> Case:
    """The same, not streamed."""
    return replace(case, body={**{name: case.body[name] for name in case.body if name != "stream_options"}, "stream": False})


def got(client: Any, case: Case) -> str:
    """What the caller gets: the events or the reply, or the kind of the error; but for what differs from one to the next."""
    try:
        reply = case.asked_of(client).create(**case.body)
        said = [each.to_dict(exclude_none=True, warnings=False) for each in (reply if case.body["stream"] else [reply])]
    except Exception as error:  # noqa: BLE001 - whatever it is, the plain SDK is to raise the same
        return type(error).__name__
    return _IDS.sub("_", json.dumps(said))


def ended(log: Any, study: tbl.Budget, calls: int = 1) -> list[tuple[str, str | None]]:
    """How the calls ended, when none is open any more."""
    until(lambda: not study.balance.calls_in_flight)
    ends = [(event.kind, event.basis) for event in ends_of(log).values()]
    assert len(ends) == calls
    assert study.balance.reserved_usd == study.balance.reserved_tokens == study.balance.reserved_requests == 0
    return ends


# --- usage that is none ------------------------------------------------------------------------------------------------------

NO_COUNTS = ["9007199254740992", "1e30", "1" + "0" * 40, "-1", "1.5", '"12"', "null", "[]", "{}", "true", "NaN"]
NO_USAGES = ["null", "[]", '"none"', "{}", "7", "[1]"]
COUNTS = {"/v1/messages": "output_tokens", "/v1/responses": "output_tokens", "/v1/chat/completions": "completion_tokens"}


def saying(name: str, value: str) -> Callable[[bytes], bytes]:
    """What makes a count of a reply another one."""
    return lambda data: re.sub(rf'"{name}": \d+'.encode(), f'"{name}": {value}'.encode(), data)


@PROTOCOLS
@STREAMED
def test_a_count_or_a_usage_that_is_none_is_unknown_and_changes_nothing_for_the_caller(
    study: tbl.Budget, log: Any, provider: Provider, case: Case, *, stream: bool
) -> None:
    case = case if stream else whole(case)
    changes = [saying(COUNTS[case.path], value) for value in NO_COUNTS] + [using(usage, stream=stream) for usage in NO_USAGES]
    with case.client() as plain:
        client = tbl.instrument(plain, study)
        for number, change in enumerate(changes, 1):
            spent = study.balance.committed_usd
            provider.always(replace(case.answer, through=change))
            assert without_usage(got(client, case)) == without_usage(got(plain, case)), number
            assert ended(log, study, number)[-1] in (UNKNOWN, ESTIMATED), number
            assert study.balance.committed_usd > spent


def using(usage: str, *, stream: bool) -> Callable[[bytes], bytes]:
    """What makes the usage of a reply another one."""
    return lambda data: b"\n\n".join(_with_usage(event, usage) for event in (data.split(b"\n\n") if stream else [data]))


def _with_usage(event: bytes, usage: str) -> bytes:
    """An event, or a reply, whose usage is another."""
    head, mark, data = event.rpartition(b"data: ") if b"data: " in event else (b"", b"", event)
    if not data.startswith(b"{"):
        return event

    def walked(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: json.loads(usage) if name == "usage" and each else walked(each) for name, each in value.items()}
        return value

    return head + mark + json.dumps(walked(json.loads(data))).encode()


# --- streams out of order ----------------------------------------------------------------------------------------------------

Events = list[bytes]


def twice(kind: bytes) -> Callable[[Events], Events]:
    return lambda events: [each for event in events for each in [event] * (2 if kind in event else 1)]


def without(kind: bytes) -> Callable[[Events], Events]:
    return lambda events: [event for event in events if kind not in event]


def before(new: bytes, kind: bytes) -> Callable[[Events], Events]:
    return lambda events: [each for event in events for each in ([new, event] if kind in event else [event])]


def other(old: bytes, new: bytes) -> Callable[[Events], Events]:
    return lambda events: [event.replace(old, new) for event in events]


def until_one_is_over(events: Events) -> Events:
    return events[: 1 + next(at for at, event in enumerate(events) if b'"finish_reason": "stop"' in event)]


START, DELTA, STOP = b'"message_start"', b'"message_delta"', b'"message_stop"'
_LESS = b'event: message_delta\ndata: {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}}'
_KIND = b'event: content_block_start\ndata: {"type": "content_block_start", "index": 0, "content_block": {"type": "hologram"}}'
_TELEPATHY = (
    b'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, "delta": {"type": "telepathy", "x": 1}}'
)
STRANGE: dict[str, tuple[Case, Callable[[Events], Events], set[tuple[str, str]]]] = {
    "begins twice": (MESSAGE, twice(START), {UNKNOWN}),
    "never begins": (MESSAGE, without(START), {UNKNOWN}),
    "begins last": (MESSAGE, lambda events: [*events[1:-1], events[0], events[-1]], {UNKNOWN, ESTIMATED}),
    "does not count": (MESSAGE, without(DELTA), {ESTIMATED}),
    "counts twice": (MESSAGE, twice(DELTA), {MEASURED}),
    "counts back": (MESSAGE, lambda events: [*events[:-1], _LESS, events[-1]], {UNKNOWN}),
    "counts in its end no output": (MESSAGE, other(b'"output_tokens"', b'"other_tokens"'), {UNKNOWN, ESTIMATED}),
    "counts nothing at its end": (
        MESSAGE,
        lambda events: [each.replace(b'"usage"', b'"used"') if DELTA in each else each for each in events],
        {ESTIMATED},
    ),
    "stops twice": (MESSAGE, twice(STOP), {UNKNOWN, MEASURED}),
    "goes on behind its end": (MESSAGE, lambda events: [*events, *events[2:4]], {UNKNOWN}),
    "is of a kind that is not known": (MESSAGE, before(b'event: aurora\ndata: {"type": "aurora"}', DELTA), {MEASURED}),
    "has a block that is not known, and stops": (MESSAGE, before(_KIND, DELTA), {MEASURED}),
    "has a block that is not known, and breaks": (MESSAGE, lambda events: [*events[:4], _KIND], {UNKNOWN}),
    "has a delta that is not known, and breaks": (MESSAGE, lambda events: [*events[:4], _TELEPATHY], {UNKNOWN}),
    "is no JSON": (MESSAGE, other(b'data: {"type": "message_delta"', b"data: {nonsense"), {ESTIMATED}),
    "is nested without an end": (MESSAGE, before(b"event: ping\ndata: " + b"[" * 10**5, DELTA), {MEASURED}),
    "is empty": (MESSAGE, lambda _: [], {UNKNOWN}),
    "is a chat that counts twice": (CHAT, twice(b'"choices": []'), {MEASURED}),
    "is a chat that counts all the way": (
        CHAT,
        other(b'"usage": null', b'"usage": {"prompt_tokens": 9, "completion_tokens": 4}'),
        {MEASURED},
    ),
    "is a chat that counts all the way, and breaks": (
        CHAT,
        lambda events: other(b'"usage": null', b'"usage": {"prompt_tokens": 9, "completion_tokens": 400}')(events)[:4],
        {ESTIMATED},
    ),
    "is a chat of two answers that counts all the way, and is over behind one of them": (
        CASES["a chat of two answers"],
        lambda events: other(b'"usage": null', b'"usage": {"prompt_tokens": 9, "completion_tokens": 4}')(
            until_one_is_over(events)
        ),
        {ESTIMATED},
    ),
    "is a chat that does not count": (CHAT, without(b'"choices": []'), {ESTIMATED}),
    "is a chat that is not done": (CHAT, without(b"[DONE]"), {MEASURED}),
    "is a chat of nothing": (CHAT, lambda _: [b"data: [DONE]"], {UNKNOWN}),
    "is a chat without choices": (CHAT, other(b'"choices": [{', b'"choices": 5, "chosen": [{'), {MEASURED, UNKNOWN}),
    "is a response that is not completed": (RESPONSE, without(b"response.completed"), {ESTIMATED}),
    "is a response that completes twice": (RESPONSE, twice(b"event: response.completed"), {MEASURED}),
    "is a response that never begins": (RESPONSE, without(b"response.created"), {MEASURED}),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_stream_has_a_named_outcome_and_is_the_same_to_the_caller(
    study: tbl.Budget, log: Any, provider: Provider, name: str
) -> None:
    case, change, outcomes = STRANGE[name]

    def changed(data: bytes) -> bytes:
        return b"".join(event + b"\n\n" for event in change(data.split(b"\n\n")[:-1]))

    provider.always(replace(case.answer, through=changed))
    with case.client() as plain:
        ours, theirs = got(tbl.instrument(plain, study), case), got(plain, case)
    assert without_usage(ours) == without_usage(theirs)
    assert ended(log, study)[0] in outcomes
    assert study.balance.committed_usd > 0


def test_what_a_broken_chat_has_said_of_its_output_is_the_least_that_counts(
    study: tbl.Budget, log: Any, provider: Provider
) -> None:
    name = "is a chat that counts all the way, and breaks"
    test_a_strange_stream_has_a_named_outcome_and_is_the_same_to_the_caller(study, log, provider, name)
    assert next(iter(ends_of(log).values())).output_tokens == 400


def without_usage(said: str) -> str:
    """A chat's events without the one that is hidden, where a server says it although nobody asked."""
    if not said.startswith("["):
        return said
    return json.dumps([{**each, "usage": None} for each in json.loads(said) if each.get("choices", True) != []])


# --- content types, sizes ----------------------------------------------------------------------------------------------------


@PROTOCOLS
@STREAMED
def test_a_wrong_content_type_is_read_for_what_it_is(
    study: tbl.Budget, log: Any, provider: Provider, case: Case, *, stream: bool
) -> None:
    case, kinds = case if stream else whole(case), ["text/plain", "application/octet-stream", "", "text/html; charset=utf-8"]
    with case.client() as plain:
        client = tbl.instrument(plain, study)
        for number, kind in enumerate(kinds, 1):
            provider.always(replace(case.answer, headers={"content-type": kind}))
            assert without_usage(got(client, case)) == without_usage(got(plain, case))
            assert ended(log, study, number)[-1] == MEASURED


def test_an_endless_event_and_an_endless_stream_end_the_reading_and_not_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written until then is not forgotten."""
    monkeypatch.setattr("tokenbudget_lab.sse.MOST_BYTES", 2_000)
    monkeypatch.setattr("tokenbudget_lab.protocols.anthropic.MOST_KEPT", 2_000)
    monkeypatch.setattr("tokenbudget_lab.protocols.openai.MOST_KEPT", 2_000)
    delta = b'event: content_block_delta\ndata: {"delta": {"type": "text_delta", "text": "word "}}\n\n'
    for case, each in (
        (MESSAGE, delta),
        (CHAT, b'data: {"model": "gpt-4o", "choices": [{"delta": {"content": "word "}}]}\n\n'),
        (RESPONSE, b'event: response.output_text.delta\ndata: {"delta": "word "}\n\n'),
    ):
        for end in (b"data: " + b"x" * 3_000, each * 100):
            reading = case.reading()
            assert reading.feed(each * 10) + reading.feed(end) + reading.feed(each) + reading.rest() == each * 10 + end + each
            told = reading.received(ended=False)
            assert told.unseen
            assert told.text.count("word") >= 10


def test_a_body_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MOST_BYTES", 10_000)
    reading = Whole()
    for _ in range(300):
        assert reading.feed(b"{" * 1_000) == b"{" * 1_000
    assert len(reading._body) <= 10_000
    assert reading.received(ended=True).unseen


class Breaking(Reading):
    """A reading of somebody else's that breaks."""

    def __init__(self, at: str) -> None:
        self.at = at

    def feed(self, chunk: bytes) -> bytes:
        if self.at == "feed":
            raise AttributeError(chunk)
        return chunk

    def received(self, *, ended: bool) -> Received:
        raise RecursionError(ended)


@pytest.mark.parametrize("at", ["feed", "received"])
def test_a_reading_that_breaks_harms_nobody(study: tbl.Budget, log: Any, at: str) -> None:
    attempt = Meter(study).attempt(MESSAGE.endpoint.call(MESSAGE.body))
    attempt.ask()
    assert list(read_along(iter([b"a", b"b"]), Settlement(attempt, Breaking(at)))) == [b"a", b"b"]
    assert ended(log, study) == [UNKNOWN]


def test_what_a_provider_calls_its_reply_and_its_end_cannot_keep_a_hold_open(
    study: tbl.Budget, log: Any, provider: Provider
) -> None:
    """Ids and reasons that no ledger would store."""
    odd: list[Any] = ["x" * 5_000, "a\0b", "\ud800", "", 5, None, ["a"], {"a": 1}, "Here is your prompt: SECRET"]
    with MESSAGE.client() as plain:
        client = tbl.instrument(plain, study)
        for number, name in enumerate(odd, 1):
            fields = {"id": name, "stop_reason": name}
            provider.script(replace(MESSAGE.answer, fields=fields, cut_at=900 + len(json.dumps(name)), drop="close"))
            got(client, MESSAGE)
            assert ended(log, study, 2 * number - 1)[-1] == ESTIMATED
            provider.script(replace(MESSAGE.answer, fields=fields))
            got(client, whole(MESSAGE))
            ended(log, study, 2 * number)
    assert "SECRET" not in str([event.detail for event in ends_of(log).values()])


# --- a server that fails at each step ----------------------------------------------------------------------------------------


@PROTOCOLS
@STREAMED
@pytest.mark.parametrize("status", [400, 401, 404, 408, 409, 413, 429, 500, 503, 529])
def test_what_the_provider_refused_is_given_back_and_the_caller_gets_its_error(
    study: tbl.Budget, log: Any, provider: Provider, case: Case, status: int, *, stream: bool
) -> None:
    case = case if stream else whole(case)
    provider.always(failed(status))
    with case.client() as plain:
        assert got(tbl.instrument(plain, study), case) == got(plain, case)
    assert ended(log, study) == [ROLLED_BACK]


@PROTOCOLS
@pytest.mark.parametrize("after", [0, 2, 5])
def test_a_stream_that_says_an_error_is_settled_by_what_came(
    study: tbl.Budget, log: Any, provider: Provider, case: Case, after: int
) -> None:
    provider.always(replace(case.answer, error_after=after))
    with case.client() as plain:
        assert got(tbl.instrument(plain, study), case) == got(plain, case)
    assert ended(log, study)[0] in (UNKNOWN, ESTIMATED)
