"""Streams cut at every byte: nothing crashes, nothing is called measured that was not, and nothing received goes uncounted."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any

import anthropic
import httpx2
import openai
import pytest

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import Answer, Provider
from tests.soaking import Pace
from tests.streams import CASES, ESTIMATED, UNKNOWN, Case, ends_of
from tokenbudget_lab import sse
from tokenbudget_lab.choosing import local_counter_for
from tokenbudget_lab.events import Event
from tokenbudget_lab.metering import Meter
from tokenbudget_lab.pieces import Settlement, read_along
from tokenbudget_lab.usage import Usage, pico_of_cost

STORE = "memory"
CLIENT_ERRORS = (anthropic.AnthropicError, openai.OpenAIError, httpx2.HTTPError, json.JSONDecodeError)
SAID = {name: case for name, case in CASES.items() if case.says}  # to the others we say that they are to
ASKED = pytest.mark.parametrize("case", SAID.values(), ids=list(SAID))
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("study", usd=10**6)


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    """Bytes in pieces that end there."""
    return [data[begin:end] for begin, end in itertools.pairwise(sorted({0, len(data), *at}))]


def pieces_of(data: bytes, how: str) -> list[bytes]:
    """The bytes of a stream as a connection may hand them over."""
    if how == "in one":
        return [data]
    if how == "byte by byte":
        return cut(data, range(len(data)))
    if how == "behind each line":
        return cut(data, [at + 1 for at, byte in enumerate(data) if byte == 10])
    chance = random.Random(how)
    return cut(data, [chance.randrange(len(data) + 1) for _ in range(len(data) // 20)])


def tokens_of(text: str, model: str) -> int:
    """The tokens of a text, as a counter of its own counts them."""
    return local_counter_for(model).count_sync(text).tokens if text else 0


# --- the readings, at every byte ---------------------------------------------------------------------------------------------


@EVERY
def test_a_reading_says_the_same_of_every_beginning_however_it_came(provider: Provider, case: Case) -> None:
    """Fed byte by byte, and each beginning in one piece: what has come is the same, and all of what was written is in it."""
    data = case.bytes_of(provider)
    along, written = case.reading(), cache(lambda events: case.written(b"".join(whole_events[:events])))
    whole_events = [each + b"\n\n" for each in data.split(b"\n\n")[:-1]]
    for at in range(len(data) + 1):
        along.feed(data[at - 1 : at] if at else b"")
        once, ended = case.reading(), at % 2 == 1 or at == len(data)
        once.feed(data[:at])
        told = along.received(ended=ended)
        assert told == once.received(ended=ended), at
        assert (told.reported is not None) == (case.says and case.is_all(data[:at], ended=ended)), at
        if told.reported is None:
            assert is_in(written(data.count(b"\n\n", 0, at)), told.text), at


def is_in(written: str, told: str) -> bool:
    """Whether each letter that was written is there, in order; names and other answers may stand between."""
    letters = iter(told)
    return all(letter in letters for letter in written)


@EVERY
@pytest.mark.parametrize("how", ["in one", "byte by byte", "behind each line", "by chance", "by another"])
def test_the_caller_sees_every_byte_however_they_came(provider: Provider, case: Case, how: str) -> None:
    """But for a usage that only we asked for."""
    data, reading = case.bytes_of(provider), case.reading()
    seen = b"".join([*map(reading.feed, pieces_of(data, how)), reading.rest()])
    hidden = [] if case.reads is None else [each for each in data.split(b"\n\n") if b'"choices": []' in each]
    assert len(hidden) == (case.reads is not None)
    assert seen == data.replace(b"".join(each + b"\n\n" for each in hidden), b"")
    assert (reading.received(ended=True).reported is not None) == case.says


@EVERY
def test_the_caller_sees_every_byte_of_an_event_that_is_too_long_to_be_read(
    provider: Provider, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MOST_BYTES", 100)
    data, reading = case.bytes_of(provider), case.reading()
    seen = b"".join([*(reading.feed(each) for each in pieces_of(data, "byte by byte")), reading.rest()])
    assert seen == data
    told = reading.received(ended=True)
    assert told.reported is None
    assert told.unseen


# --- the same as without us ---------------------------------------------------------------------------------------------------

FRAMINGS = [*itertools.product(("length", "chunked", "close"), (None, "gzip"))]
_IDS = re.compile(rb"_[0-9a-f]{12}\d{12}")


def raw(client: Any, case: Case) -> tuple[bytes, list[tuple[str, str]]]:
    """The bytes of a reply as the SDK's user may read them, and its headers; but for what differs from reply to reply.

    A chat that is asked for its usage says `null` until it does; the SDK reads the same out of that and out of nothing.
    """
    with case.asked_of(client).with_streaming_response.create(**case.body) as response:
        data = b"".join(response.iter_bytes())
        headers = [each for each in response.headers.items() if each[0] not in ("date", "content-encoding", "content-length")]
    return _IDS.sub(b"_", data).replace(b', "usage": null', b""), sorted(headers)


@ASKED
def test_the_caller_sees_the_bytes_and_the_events_that_it_would_see_without_us(
    study: tbl.Budget, provider: Provider, case: Case
) -> None:
    whole = {**case.body, "stream": False}
    whole.pop("stream_options", None)
    for framing, encoded in FRAMINGS:
        provider.always(replace(case.answer, framing=framing, encoded=encoded))
        with case.client() as plain:
            ours = tbl.instrument(plain, study)
            for asked in (case, replace(case, body=whole)):
                assert raw(ours, asked) == raw(plain, asked), (framing, encoded)
            assert events_of(ours, case) == events_of(plain, case)


def events_of(client: Any, case: Case) -> list[bytes]:
    """The events of a stream as the SDK parses them."""
    events = [event.to_dict(exclude_none=True) for event in case.asked_of(client).create(**case.body)]
    return [_IDS.sub(b"_", json.dumps(event).encode()) for event in events]


# --- with a hold, settled -----------------------------------------------------------------------------------------------------

WAYS = ("ends", "breaks", "is left", "is dropped")


def settle(meter: Meter, case: Case, pieces: Sequence[bytes], way: str) -> str:
    """One call whose stream ends after these pieces, in one of the ways in which streams end; its reservation."""
    attempt = meter.attempt(case.endpoint.call(case.body))
    attempt.ask()
    reservation = attempt._held.id
    settlement = Settlement(attempt, case.reading())
    if way == "ends":
        list(read_along(iter(pieces), settlement))
    elif way == "breaks":
        with pytest.raises(httpx2.ReadError):
            list(read_along(broken_off(pieces), settlement))
    else:
        for piece in pieces:
            settlement.feed(piece)
        if way == "is left":
            settlement.end(ended=False)  # what closing it comes to; dropped, a collection does it
    return reservation


def broken_off(source: Sequence[bytes]) -> Iterator[bytes]:
    yield from source
    raise httpx2.ReadError("reset")


def check(event: Event, ledger: tbl.Ledger, case: Case, came: bytes, *, ended: bool) -> None:
    """What the event that ended a call says of it, against what a reading of the test's own says."""
    assert (event.kind, event.basis) in case.outcomes(came, ended=ended)
    must_cover(event, ledger, case, case.written(came))


def must_cover(event: Event, ledger: tbl.Ledger, case: Case, received: str) -> None:
    """No less is counted than what was received, but where the provider says so."""
    model = case.body["model"]
    used = Usage(0, 0 if event.basis == "measured" else tokens_of(received, model))
    assert ledger.prices is not None
    assert (event.usd or 0) >= max(1, pico_of_cost(ledger.prices.cost(used, model)))
    assert (event.tokens or 0) >= used.output_tokens


def settle_all(ledger: tbl.Ledger, log: Any, study: tbl.Budget, case: Case, cuts: Sequence[tuple[bytes, str]]) -> None:
    """One call for each of the beginnings; the ways in which the pieces come take turns."""
    meter, hows = Meter(study), itertools.cycle(["in one", "behind each line", "by chance"])
    calls = [(settle(meter, case, pieces_of(came, next(hows)), way), came, way) for came, way in cuts]
    until(lambda: not study.balance.calls_in_flight)
    balance, ends = study.balance, ends_of(log)
    assert (balance.reserved_usd, balance.reserved_tokens, balance.reserved_requests) == (Decimal(), 0, 0)
    for reservation, came, way in calls:
        check(ends[reservation], ledger, case, came, ended=way == "ends")


@EVERY
def test_a_stream_that_leaves_off_is_settled_by_what_came(
    ledger: tbl.Ledger, log: Any, study: tbl.Budget, provider: Provider, case: Case
) -> None:
    data, ways = case.bytes_of(provider), itertools.cycle(WAYS)
    ends = [*range(3, len(data), 97), len(data) - 1, len(data)]
    settle_all(ledger, log, study, case, [(data[:end], next(ways)) for end in ends])


@pytest.mark.soak
@EVERY
def test_a_stream_cut_at_every_byte_is_settled_by_what_came(
    ledger: tbl.Ledger, log: Any, study: tbl.Budget, provider: Provider, case: Case, pace: Pace
) -> None:
    data = case.bytes_of(provider)
    for end in pace.some([*range(0, len(data), 50)]):
        cuts = [data[:at] for at in range(end, min(end + 50, len(data) + 1))]
        settle_all(ledger, log, study, case, [(came, way) for came in cuts for way in WAYS])


# --- through the SDKs, over a connection -------------------------------------------------------------------------------------

Way = tuple[str, str, str | None]
SENT: list[Way] = [*itertools.product(("cut", "close", "end"), ("length", "chunked", "close"), (None, "gzip"))]


def call(client: Any, case: Case) -> str:
    """What the caller received of the model's words."""
    events: list[dict[str, Any]] = []
    with contextlib.suppress(*CLIENT_ERRORS):
        events.extend(event.to_dict() for event in case.asked_of(client).create(**case.body))
    return case.written_in(events)


def came(case: Case, provider: Provider, answer: Answer) -> bytes:
    """As much of the stream as is sent."""
    sent = replace(case, answer=answer).bytes_of(provider)[: answer.cut_at]
    return zlib.decompressobj(31).decompress(sent) if answer.encoded else sent


def allowed(case: Case, data: bytes, answer: Answer) -> set[tuple[str, str]]:
    """How the call may end."""
    ended = answer.drop == "end" or answer.drop == answer.framing == "close"
    outcomes = case.outcomes(data, ended=ended)
    if answer.encoded:  # where what is compressed is not whole, its end is none
        outcomes |= case.outcomes(data, ended=False)
    if answer.drop == "cut":  # a reset takes with it what was not read yet
        outcomes |= {ESTIMATED, UNKNOWN}
    return outcomes


def send(ledger: tbl.Ledger, log: Any, study: tbl.Budget, provider: Provider, case: Case, answers: Sequence[Answer]) -> None:
    """One call through the real SDK for each answer."""
    ends, before = ends_of(log), len(provider.asked)
    with tbl.instrument(case.client(), study, hold="worst") as client:  # what is learned of other cuts is no part of this
        for answer in answers:
            data = came(case, provider, answer)
            provider.script(answer)
            received = call(client, case)
            assert not study.balance.calls_in_flight, answer
            (event,) = (each for name, each in ends_of(log).items() if name not in ends)
            ends[event.reservation or ""] = event
            assert (event.kind, event.basis) in allowed(case, data, answer), answer
            must_cover(event, ledger, case, received)
    assert len(provider.asked) == before + len(answers)
    assert study.balance.reserved_usd == 0


def answers_of(case: Case, provider: Provider, at: Sequence[int], ways: Sequence[Way]) -> list[Answer]:
    """The answer, left off at these bytes in these ways, which take turns."""
    size = len(case.bytes_of(provider))
    told = zip(at, itertools.cycle(ways), strict=False)
    return [
        replace(case.answer, cut_at=min(end, size), drop=drop, framing=framing, encoded=encoded)
        for end, (drop, framing, encoded) in told
    ]


@ASKED
def test_a_stream_that_leaves_off_is_settled_through_the_sdk(
    ledger: tbl.Ledger, log: Any, study: tbl.Budget, provider: Provider, case: Case
) -> None:
    size = len(case.bytes_of(provider))
    send(ledger, log, study, provider, case, answers_of(case, provider, [*range(0, size, size // 17), size], SENT))


@pytest.mark.soak
@ASKED
def test_a_stream_cut_at_every_byte_is_settled_through_the_sdk(
    ledger: tbl.Ledger, log: Any, study: tbl.Budget, provider: Provider, case: Case, pace: Pace
) -> None:
    size = len(case.bytes_of(provider))
    for begin in pace.some([*range(0, size + 1, 50)]):
        ways = pace.chance.sample(SENT, len(SENT))
        send(ledger, log, study, provider, case, answers_of(case, provider, range(begin, min(begin + 50, size + 1)), ways))
