"""The race for a dollar through Anthropic's own client, on a ledger that a keeper owns: three calls are sent, and no byte more.

budget    $1
call      $0.30, held and used
at once   20
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import pytest

import tokenbudget_lab as tbl
from tests.history import recorded
from tests.provider import Answer, Provider
from tests.soaking import Pace
from tests.test_races import HERE, SOON_S, at_once, for_long, fresh, short_linger, told  # noqa: F401 - a fixture

MODEL, MOST = "claude-sonnet-4-6", 19_996
ASK = [{"role": "user", "content": "Please write a very very long story 01."}]  # 20 tokens at most, as they are counted here
USED = {"input_tokens": 20, "output_tokens": MOST}
CALLS, PROCESSES = 20, 4
again = pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=for_long)])


@pytest.fixture
def busy(provider: Provider) -> Iterator[Provider]:
    """A provider that takes a while, so that nobody is answered before everybody has asked."""
    provider.always(Answer(after_s=0.3, text="Once upon a time …", usage=USED))
    yield provider
    assert sum(tbl.cost(used.usage, model=MODEL) for used in provider.used) == Decimal("0.3") * len(provider.used)


def under(client: Any, lab: tbl.Budget) -> Any:
    return tbl.instrument(client, lab, hold="worst", on_exceeded="raise")


def outcome(create: Any) -> str:
    try:
        create(model=MODEL, max_tokens=MOST, messages=ASK)
    except tbl.BudgetExceeded:
        return "refused"
    return "answered"


def agreed(lab: tbl.Budget, provider: Provider, answers: list[str], before: tuple[int, int]) -> None:
    """Three are answered and paid, seventeen are refused; no connection is opened for more than the three."""
    asked, connections = (len(provider.asked) - before[0], provider.connections - before[1])
    assert (sorted(answers), asked) == (["answered"] * 3 + ["refused"] * 17, 3)
    assert connections <= 3
    balance = lab.balance
    assert (balance.committed_usd, balance.reserved_usd, balance.committed_requests) == (Decimal("0.9"), Decimal(0), 3)


def so_far(provider: Provider) -> tuple[int, int]:
    return len(provider.asked), provider.connections


@again
def test_three_of_twenty_threads_are_sent(rounds: int, tmp_path: Path, busy: Provider, pace: Pace) -> None:
    for _ in pace.some(range(rounds)):
        with fresh("keeper", tmp_path) as ledger, anthropic.Anthropic() as plain:
            lab, before = ledger.budget("lab", usd=1), so_far(busy)
            answers = at_once(*[partial(outcome, under(plain, lab).messages.create)] * CALLS)
            agreed(lab, busy, answers, before)


@again
def test_three_of_twenty_tasks_are_sent(rounds: int, tmp_path: Path, busy: Provider, pace: Pace) -> None:
    async def race(lab: tbl.Budget) -> list[str]:
        async with anthropic.AsyncAnthropic() as plain:
            client = under(plain, lab)

            async def one() -> str:
                try:
                    await client.messages.create(model=MODEL, max_tokens=MOST, messages=ASK)
                except tbl.BudgetExceeded:
                    return "refused"
                return "answered"

            return await asyncio.gather(*(one() for _ in range(CALLS)))

    for _ in pace.some(range(rounds)):
        with fresh("keeper", tmp_path) as ledger:
            lab, before = ledger.budget("lab", usd=1), so_far(busy)
            agreed(lab, busy, asyncio.run(race(lab)), before)


def run_as_child(path: str) -> None:
    """One of the processes: its part of the calls from threads, when a line comes."""
    with recorded(tbl.connect(path), told(Path(path))) as ledger, anthropic.Anthropic() as plain:
        outcome(under(plain, ledger.budget("warm", usd=0)).messages.create)  # imports take longer than calls
        print("ready", flush=True)  # noqa: T201 - this is how a child speaks
        sys.stdin.readline()
        create = under(plain, ledger.budget("lab")).messages.create
        print(*at_once(*[partial(outcome, create)] * (CALLS // PROCESSES)), flush=True)  # noqa: T201 - as above


@pytest.mark.parametrize("rounds", [1, pytest.param(30, marks=for_long)])
def test_three_of_twenty_threads_in_four_processes_are_sent(rounds: int, tmp_path: Path, busy: Provider, pace: Pace) -> None:
    """The processes meet in one ledger file only."""
    for _ in pace.some(range(rounds)):
        with fresh("keeper", tmp_path) as ledger, ExitStack() as stack:
            lab, before, pipe = ledger.budget("lab", usd=1), so_far(busy), subprocess.PIPE
            command = [sys.executable, "-W", "error", "-m", "tests.test_races_through_sdks", str(ledger.desk.where)]
            four = [
                stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=HERE))
                for _ in range(PROCESSES)
            ]
            try:
                for child in four:
                    assert child.stdout is not None
                    assert child.stdout.readline() == "ready\n"
                for child in four:
                    assert child.stdin is not None
                    child.stdin.write("go\n")
                    child.stdin.flush()
                said = [child.communicate(timeout=SOON_S)[0] for child in four]
            finally:
                for child in four:
                    child.kill()
            agreed(lab, busy, " ".join(said).split(), before)


if __name__ == "__main__":
    run_as_child(sys.argv[1])
