"""Streams that nobody reads to their end: dropped, closed, forked away, or open when the interpreter ends."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import Answer, Provider
from tests.streams import CASES, ends_of

STORE = "memory"
MESSAGE = CASES["a message"]
BODY = MESSAGE.body


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("study", usd=10**6)


def outcomes(log: Any, study: tbl.Budget) -> list[tuple[str, str | None]]:
    """How the calls ended, when none is open any more."""
    until(lambda: not study.balance.calls_in_flight)
    assert study.balance.reserved_usd == study.balance.reserved_tokens == study.balance.reserved_requests == 0
    return [(event.kind, event.basis) for event in ends_of(log).values()]


# --- dropped, closed ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(study: tbl.Budget, provider: Provider) -> Iterator[Any]:
    provider.always(MESSAGE.answer)
    with anthropic.Anthropic(max_retries=0, timeout=10) as plain:
        yield tbl.instrument(plain, study, hold="worst")


@pytest.mark.parametrize("way", ["broken out of", "closed", "dropped", "in a circle", "client closed"])
@pytest.mark.parametrize("events", [0, 1, 4])
def test_a_stream_that_is_left_is_settled_by_what_came(client: Any, study: tbl.Budget, log: Any, way: str, events: int) -> None:
    stream = client.messages.create(**BODY)
    for _ in range(events):
        next(iter(stream))
    if way == "closed":
        stream.close()
    elif way == "client closed":
        client.close()
    elif way == "in a circle":
        stream.itself = stream
    del stream
    gc.collect()
    assert outcomes(log, study)[0] in {("committed", "estimated"), ("expired", "unknown"), ("committed", "measured")}


def test_streams_dropped_by_many_threads_are_all_settled(client: Any, study: tbl.Budget, log: Any) -> None:
    def begin(number: int) -> None:
        stream = client.messages.create(**BODY)
        for _ in range(number % 4):
            next(iter(stream))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(40)))
    gc.collect()
    assert len(outcomes(log, study)) == 40


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_ledger_that_is_closed_during_a_stream_is_named(tmp_path: Path, provider: Provider, kind: str) -> None:
    """Not swallowed, and after every event has come to the caller."""
    provider.always(MESSAGE.answer)
    seen: list[str] = []
    ledger = tbl.connect(tmp_path / "spend.duckdb", embedded=True)
    study = ledger.budget("study", usd=1)

    async def work() -> None:
        async with anthropic.AsyncAnthropic(max_retries=0) as plain:
            async for event in await tbl.instrument(plain, study).messages.create(**BODY):
                seen.append(event.type)
                ledger.close()

    with anthropic.Anthropic(max_retries=0) as plain, pytest.raises(tbl.LedgerClosed):
        asyncio.run(work()) if kind == "async" else closing(tbl.instrument(plain, study), ledger, seen)
    assert seen[-1] == "message_stop"


def closing(client: Any, ledger: tbl.Ledger, seen: list[str]) -> None:
    """Read a stream whose ledger is closed meanwhile."""
    for event in client.messages.create(**BODY):
        seen.append(event.type)
        ledger.close()


def test_a_ledger_that_is_closed_does_not_hide_what_broke_the_stream(tmp_path: Path, provider: Provider) -> None:
    ledger = tbl.connect(tmp_path / "spend.duckdb", embedded=True)
    study = ledger.budget("study", usd=1)
    provider.always(Answer(text=MESSAGE.answer.text, cut_at=900, drop="close"))
    with anthropic.Anthropic(max_retries=0) as plain, pytest.raises(httpx2.RemoteProtocolError) as broken:
        closing(tbl.instrument(plain, study), ledger, [])
    assert "could not be settled" in broken.value.__notes__[0]


# --- processes ----------------------------------------------------------------------------------------------------------------


def run(program: str, *arguments: object) -> str:
    """Run a Python program to its end; what it printed."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::ResourceWarning",
            "-W",
            "ignore:This process:DeprecationWarning",
            "-c",
            textwrap.dedent(program),
        ]
        + [str(each) for each in arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


BEGIN = f"""
    import gc, os, random, signal, sys, threading, time
    import anthropic, tokenbudget_lab as tbl
    BODY = {BODY!r}
    ledger = tbl.connect(sys.argv[1], embedded=True) if sys.argv[1] != ":memory:" else tbl.connect(":memory:")
    study = ledger.budget("study", usd=1000)
    client = tbl.instrument(anthropic.Anthropic(max_retries=0, timeout=10), study, hold="worst")
"""


def test_an_interpreter_that_ends_with_an_open_stream_says_nothing_and_its_hold_ends_by_itself(
    tmp_path: Path, provider: Provider
) -> None:
    provider.always(MESSAGE.answer)
    path = tmp_path / "spend.duckdb"
    program = f"{BEGIN}\n    stream = client.messages.create(**BODY)\n    next(iter(stream))\n    print('begun')"
    assert run(program, path) == "begun\n"
    with tbl.connect(path, embedded=True) as ledger:
        balance = ledger.budget("study").balance
        assert balance.calls_in_flight + balance.committed_requests == 1


def test_a_child_that_is_forked_during_a_stream_settles_nothing(tmp_path: Path, provider: Provider) -> None:
    provider.always(MESSAGE.answer)
    program = f"""{BEGIN}
    stream = client.messages.create(**BODY)
    next(iter(stream))
    child = os.fork()
    if child == 0:
        del stream
        gc.collect()
        time.sleep(0.2)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    print([event.type for event in stream][-1], study.balance.committed_requests, study.balance.calls_in_flight)
    ledger.verify()
    ledger.close()
    """
    assert run(program, tmp_path / "spend.duckdb") == "message_stop 1 0\n"


def test_interrupts_at_random_moments_of_real_calls_leave_no_hold(provider: Provider) -> None:
    """Ctrl-C somewhere in a call; in the end nothing is open, each request that arrived was counted, and calls go on."""
    provider.always(MESSAGE.answer)
    program = f"""{BEGIN}
    chance, done, calls = random.Random(7), 0, 0
    client.messages.create(**{{**BODY, "stream": False}})
    def strike(after):
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGINT)
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline and calls < 100:
        calls += 1
        thread = threading.Thread(target=strike, args=(chance.random() * 0.03,))
        try:
            thread.start()
            while thread.is_alive():  # pydantic swallows what comes while it builds a serializer: then the next one strikes
                stream = client.messages.create(**{{**BODY, "stream": chance.random() < 0.7}})
                if hasattr(stream, "response"):
                    for _ in stream:
                        pass
        except KeyboardInterrupt:
            done += 1
        except anthropic.AnthropicError:
            pass
        finally:
            thread.join()
        stream = None
    gc.collect()
    deadline = time.monotonic() + 5
    while study.balance.calls_in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    client.messages.create(**{{**BODY, "stream": False}})
    ledger.verify()
    print(done, study.balance.calls_in_flight, study.balance.committed_requests)
    ledger.close()
    """
    done, in_flight, counted = map(int, run(program, ":memory:").split())
    assert done > 10
    assert in_flight == 0
    assert counted >= len(provider.asked)
