"""Callers who leave a call, cancelled or interrupted or forked: no hold is left, and nothing that was sent is free."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import linecache
import sys
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import Answer, Provider
from tests.soaking import Pace
from tests.streams import CASES, ends_of

STORE = "memory"
MESSAGE = CASES["a message"]
BODY = MESSAGE.body
PACKAGE = str(Path(tbl.__file__).parent)


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("study", usd=10**6)


def outcomes(log: Any, study: tbl.Budget) -> list[tuple[str, str | None]]:
    """How the calls ended, when none is open any more."""
    until(lambda: not study.balance.calls_in_flight)
    assert study.balance.reserved_usd == study.balance.reserved_tokens == study.balance.reserved_requests == 0
    return [(event.kind, event.basis) for event in ends_of(log).values()]


def ends_by_item(log: Any) -> dict[str, str]:
    """How the call with this label ended."""
    ends, items = ends_of(log), {}
    for event in log.events:
        if event.kind == "reserved":
            items[dict(event.tags)["item"]] = ends[event.reservation].kind
    return items


# --- interrupted --------------------------------------------------------------------------------------------------------------


class Interrupt:
    """Ctrl-C in this thread at the n-th line, or step, of ours that it runs."""

    def __init__(self, at: int, *, steps: bool = False) -> None:
        self._left, self._steps, self.came = at, steps, False

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        if self.came or not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_name == "__del__":
            return None
        frame.f_trace_opcodes = self._steps
        return self._within

    def _within(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0)  # a step may have no line
        if line.lstrip().startswith("with ") and "lock" in line:
            return self._within  # Python takes and releases a lock in one step, and looks for signals behind it
        if event == ("opcode" if self._steps else "line") and not self.came:
            self._left -= 1
            if self._left < 0:
                self.came = True
                raise KeyboardInterrupt
        return self._within


class Inside:
    """A provider inside this process, which knows what was sent to it."""

    def __init__(self, provider: Provider) -> None:
        self.sent = 0
        self._streamed = MESSAGE.bytes_of(provider)
        self._whole = provider.bytes_of(MESSAGE.path, {**BODY, "stream": False}, MESSAGE.answer)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.sent += 1
        if json.loads(request.content)["stream"]:
            data = self._streamed
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=iter([data[:900], data[900:]]))
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=iter([self._whole]))


def interrupted_call(client: Any, interrupt: Interrupt, *, stream: bool) -> BaseException | None:
    """One call that is interrupted."""
    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        reply = client.messages.create(**{**BODY, "stream": stream})
        if stream:
            list(reply)
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.settrace(before)
    return None


def interrupt_at(provider: Provider, study: tbl.Budget, log: Any, places: Iterator[int], *, stream: bool, steps: bool) -> int:
    """One call for each place at which it is interrupted, until one comes to its end; how many there were."""
    inside, sent = Inside(provider), dict[str, bool]()
    kept: list[BaseException | None] = []  # as a notebook keeps the last one, with all that its frames know
    http = httpx2.Client(transport=httpx2.MockTransport(inside))
    with anthropic.Anthropic(api_key="none", max_retries=0, http_client=http) as plain:
        client = tbl.instrument(plain, study, hold="worst")
        tbl.tagged(client, item="first").messages.create(**{**BODY, "stream": False})
        for at in places:
            before, interrupt = inside.sent, Interrupt(at, steps=steps)
            one = tbl.tagged(client, item=f"{steps} {at}")
            error = interrupted_call(one, interrupt, stream=stream)
            if not steps:  # at a step that returns a value Python looks for no signal, and nothing of ours could
                kept.append(error)
            del error
            sent[f"{steps} {at}"] = inside.sent > before
            if not interrupt.came:
                break
        gc.collect()
        outcomes(log, study)
        ends = ends_by_item(log)
        free = [item for item, was_sent in sent.items() if was_sent and ends.get(item) not in ("committed", "expired")]
        assert not free
        tbl.tagged(client, item="last").messages.create(**{**BODY, "stream": False})
        assert outcomes(log, study)[-1] == ("committed", "measured")
    return len(sent)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_interrupt_at_any_line_leaves_no_hold_and_nothing_that_was_sent_is_free(
    study: tbl.Budget, log: Any, provider: Provider, *, stream: bool
) -> None:
    done = interrupt_at(provider, study, log, iter(range(3, 10**6, 17)), stream=stream, steps=False)
    assert done > 15


@pytest.mark.soak
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_interrupt_at_any_step_leaves_no_hold_and_nothing_that_was_sent_is_free(
    study: tbl.Budget, log: Any, provider: Provider, pace: Pace, *, stream: bool
) -> None:
    assert interrupt_at(provider, study, log, iter(range(10**6)), stream=stream, steps=False) > 300
    pace.says(f"{interrupt_at(provider, study, log, iter(range(0, 10**6, 7)), stream=stream, steps=True)} steps of Python")


# --- cancelled ----------------------------------------------------------------------------------------------------------------


@types.coroutine
def cut_in(work: Coroutine[Any, Any, Any], at: int, *, late: bool) -> Generator[Any, Any, bool]:
    """Run it, and cancel it at its n-th wait: in place of it, or (`late`) when it is over. Whether it waited so often."""
    waits, cut, step = 0, False, partial(work.send, None)
    try:
        while True:
            waited = step()
            cuts, waits = waits == at, waits + 1
            cut, step = cut or cuts, partial(work.send, None)
            if not cuts or late:
                try:
                    yield waited
                except BaseException as error:  # noqa: BLE001 - the libraries inside cancel each other
                    step = partial(work.throw, error)
            if cuts:
                step = partial(work.throw, asyncio.CancelledError())
    except StopIteration:
        return cut
    except (asyncio.CancelledError, anthropic.APIConnectionError):
        return True


async def _read(client: Any, *, stream: bool) -> None:
    reply = await client.messages.create(**{**BODY, "stream": stream})
    if stream:
        async for _ in reply:
            pass


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
def test_a_task_cancelled_at_any_wait_leaves_no_hold_and_nothing_that_was_sent_is_free(
    study: tbl.Budget, log: Any, provider: Provider, *, stream: bool, late: bool
) -> None:
    provider.always(MESSAGE.answer)
    sent: dict[str, bool] = {}

    async def all_of_them() -> None:
        for at in range(200):
            async with anthropic.AsyncAnthropic(max_retries=0, timeout=10) as plain:
                client = tbl.tagged(tbl.instrument(plain, study, hold="worst"), item=str(at))
                before = len(provider.asked)
                cut = await cut_in(_read(client, stream=stream), at, late=late)
                sent[str(at)] = len(provider.asked) > before
                if not cut:
                    return

    asyncio.run(all_of_them())
    gc.collect()
    outcomes(log, study)
    ends = ends_by_item(log)
    assert len(sent) > 4
    assert not [item for item, was_sent in sent.items() if was_sent and ends.get(item) not in ("committed", "expired")]
    assert ends[str(len(sent) - 1)] == "committed"


def asynchronously(study: tbl.Budget, work: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
    """Run something with an async client under the budget."""

    async def run() -> None:
        async with anthropic.AsyncAnthropic(max_retries=0, timeout=10) as plain:
            await work(tbl.instrument(plain, study, hold="worst"))

    asyncio.run(run())


def test_a_sibling_that_fails_ends_the_other_calls_of_its_group(study: tbl.Budget, log: Any, provider: Provider) -> None:
    async def work(client: Any) -> None:
        with provider.holding(), contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(_read(client, stream=True))
                while provider.at_work < 5:  # noqa: ASYNC110 - the provider's threads have no event of this loop
                    await asyncio.sleep(0.01)
                raise LookupError

    asynchronously(study, work)
    assert outcomes(log, study) == [("expired", "unknown")] * 5


@pytest.mark.parametrize("way", ["break", "timeout", "left", "dropped", "client closed", "loop closed"])
def test_an_async_stream_that_is_left_is_settled_by_what_came(
    study: tbl.Budget, log: Any, provider: Provider, way: str
) -> None:
    data = MESSAGE.bytes_of(provider)
    provider.always(Answer(text=MESSAGE.answer.text, stall_at=data.index(b"event: content_block_stop")))
    kept: list[Any] = []

    async def work(client: Any) -> None:
        stream = await client.messages.create(**BODY)
        if way == "timeout":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    async for _ in stream:
                        pass
            return
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 5:
                break
        if way == "break":
            await stream.close()
        elif way == "client closed":
            await client.close()
            kept.append(stream)
        elif way != "dropped":
            kept.append(stream)

    asynchronously(study, work)
    kept.clear()
    gc.collect()
    assert outcomes(log, study) == [("committed", "estimated")]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_that_is_used_in_one_loop_after_the_other_holds_nothing(
    study: tbl.Budget, log: Any, provider: Provider
) -> None:
    """Its connection belongs to a loop that is closed: what was not sent is given back, and the SDK tries again."""
    client = tbl.instrument(anthropic.AsyncAnthropic(max_retries=2), study, hold="worst")
    for _ in range(3):
        with contextlib.suppress(anthropic.APIConnectionError):
            asyncio.run(_read(client, stream=False))
    del client
    gc.collect()
    counted = [end for end in outcomes(log, study) if end[0] != "rolled_back"]
    assert len(counted) == len(provider.asked)
