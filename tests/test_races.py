"""Races for the last cent: from threads, tasks and processes, each behind a barrier, again and again on fresh ledgers."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests import postgres
from tests.history import checked, recorded
from tests.soaking import Pace
from tokenbudget_lab import link
from tokenbudget_lab.commands import Reserve
from tokenbudget_lab.desk import Desk, Ticket
from tokenbudget_lab.place import place_of
from tokenbudget_lab.stores.memory import MemoryStore

HERE, CHILD = Path(__file__).parents[1], "tests.test_races"
SOON_S = 30.0  # what has not happened by then never will
KINDS = ["memory", "duckdb", "keeper", "postgres"]
everywhere = pytest.mark.parametrize("kind", KINDS)
for_long = [pytest.mark.soak, pytest.mark.timeout(3600)]
again = pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        *(("memory", 10), ("duckdb", 10), ("keeper", 3), ("postgres", 3)),
        *(pytest.param(kind, 200, marks=for_long) for kind in KINDS),
    ],
)


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepers of tests leave at once."""
    monkeypatch.setenv("TOKENBUDGET_KEEPER_LINGER_S", "0.2")


_numbers = itertools.count()


@contextmanager
def fresh(kind: str, folder: Path) -> Iterator[tbl.Ledger]:
    """A new ledger, which is verified when it ends, and agrees with all that was told; its keeper is gone afterwards."""
    place = place_of(folder / f"{next(_numbers)}.duckdb")
    if kind == "memory":
        opened = tbl.Ledger(store=MemoryStore())
    else:
        opened = tbl.connect(postgres.ledger() if kind == "postgres" else place.file, embedded=kind == "duckdb")
    with recorded(opened, told(place.file)) as ledger:
        yield ledger
        ledger.verify()
        checked(ledger, told(place.file))
    if kind == "keeper":
        link.stop(place)


def told(file: Path) -> Path:
    """Where a ledger's clients write down what they hear."""
    return file.with_suffix(".told")


def takes(lab: tbl.Budget) -> bool:
    """Ask for thirty cents, and keep them where they are granted."""
    try:
        lab.reserve_sync(usd="0.30")
    except tbl.BudgetExceeded:
        return False
    return True


def lets_go(held: tbl.Reservation) -> None:
    held.rollback().result()


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own, all from the same moment on."""
    barrier = threading.Barrier(len(work))

    def start(one: Callable[[], Any]) -> Any:
        barrier.wait(SOON_S)
        return one()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(start, work))


# --- twenty calls of thirty cents, and a dollar -----------------------------------------------------------------------------


@again
def test_three_of_twenty_threads_are_granted(kind: str, rounds: int, tmp_path: Path, pace: Pace) -> None:
    for _ in pace.some(range(rounds)):
        with fresh(kind, tmp_path) as ledger:
            lab = ledger.budget("lab", usd=1)
            answers = at_once(*[partial(takes, lab)] * 20)
            assert (answers.count(True), lab.balance.reserved_usd) == (3, Decimal("0.9"))


@again
def test_three_of_twenty_tasks_are_granted(kind: str, rounds: int, tmp_path: Path, pace: Pace) -> None:
    async def race(lab: tbl.Budget) -> int:
        start = asyncio.Event()

        async def take() -> object:
            await start.wait()
            return await lab.reserve(usd="0.30")

        tasks = [asyncio.create_task(take()) for _ in range(20)]
        await asyncio.sleep(0)  # each of them is at the barrier now
        start.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(a, tbl.Reservation | tbl.BudgetExceeded) for a in answers)
        return sum(isinstance(answer, tbl.Reservation) for answer in answers)

    for _ in pace.some(range(rounds)):
        with fresh(kind, tmp_path) as ledger:
            lab = ledger.budget("lab", usd=1)
            assert (asyncio.run(race(lab)), lab.balance.reserved_usd) == (3, Decimal("0.9"))


def run_as_child(path: str) -> None:
    """One of the processes: five threads, from the moment on at which a line comes."""
    with recorded(tbl.connect(path), told(Path(path))) as ledger:
        lab = ledger.budget("lab")
        start = threading.Barrier(6)

        def take() -> bool:
            start.wait(SOON_S)
            return takes(lab)

        with ThreadPoolExecutor(5) as pool:
            answers = [pool.submit(take) for _ in range(5)]
            print("ready", flush=True)  # noqa: T201 - this is how a child speaks
            sys.stdin.readline()
            start.wait(SOON_S)
            print(sum(answer.result() for answer in answers), flush=True)  # noqa: T201 - as above


@contextmanager
def children(path: Path, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ready and wait for a line."""
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen([sys.executable, "-W", "error", "-m", CHILD, str(path)], stdin=pipe, stdout=pipe, text=True, cwd=HERE)
        for _ in range(count)
    ]
    try:
        for child in started:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        yield started
    finally:
        for child in started:
            with suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=SOON_S)
            child.kill()
            child.communicate()


@pytest.mark.parametrize("rounds", [3, pytest.param(200, marks=for_long)])
def test_three_of_twenty_threads_in_four_processes_are_granted(rounds: int, tmp_path: Path, pace: Pace) -> None:
    for _ in pace.some(range(rounds)):
        with fresh("keeper", tmp_path) as ledger:
            lab = ledger.budget("lab", usd=1)
            with children(Path(ledger.desk.where), 4) as four:
                for child in four:
                    assert child.stdin is not None
                    child.stdin.write("go\n")
                    child.stdin.flush()
                answers = [int(child.stdout.readline()) for child in four if child.stdout is not None]
            assert (len(answers), sum(answers), lab.balance.reserved_usd) == (4, 3, Decimal("0.9"))


# --- the whole way up -------------------------------------------------------------------------------------------------------


@everywhere
def test_the_tightest_of_three_ancestors_decides_under_mixed_threads(kind: str, tmp_path: Path) -> None:
    """Twelve threads ask at three levels, for other amounts, and give half of it back; no level is ever overspent.

    lab               900 tokens
    lab/study         600 tokens, 40 requests
    lab/study/run     $1.00
    """
    with fresh(kind, tmp_path) as ledger:
        lab = ledger.budget("lab", tokens=900)
        study = ledger.budget("lab/study", tokens=600, requests=40)
        run = ledger.budget("lab/study/run", usd=1)
        over: list[object] = []

        def work(seed: int) -> int:
            chance, taken = random.Random(seed), 0
            for _ in range(40):
                budget = chance.choice([lab, study, run])
                with suppress(tbl.BudgetExceeded):
                    call = budget.reserve_sync(usd=Decimal(chance.randint(0, 9)) / 100, tokens=chance.randint(0, 60))
                    over.extend(limit for limit in run.balance.limits if limit.left < 0)
                    if chance.random() < 0.5:
                        call.rollback().result()
                    else:
                        call.commit(tokens=chance.randint(0, call.tokens or 0), usd=call.usd, requests=1).result()
                        taken += 1
            return taken

        committed = at_once(*[partial(work, seed) for seed in range(12)])
        assert over == []
        total = lab.balance
        assert (total.committed_requests, total.reserved_requests, total.reserved_tokens) == (sum(committed), 0, 0)
        assert total.committed_tokens >= study.balance.committed_tokens >= run.balance.committed_tokens
        assert min(limit.left for limit in run.balance.limits) >= 0
        with suppress(tbl.BudgetExceeded):
            for _ in range(1000):
                run.reserve_sync(usd="0.01", tokens=9)
        assert min(limit.left / limit.limit for limit in run.balance.limits) < 0.05


@everywhere
def test_four_hundred_of_a_thousand_tasks_are_admitted(kind: str, tmp_path: Path) -> None:
    async def call(lab: tbl.Budget) -> bool:
        try:
            held = await lab.reserve(usd="0.01", tokens=10)
        except tbl.BudgetExceeded:
            return False
        await held.commit(usd="0.01", tokens=10)
        return True

    async def all_of_them(lab: tbl.Budget) -> int:
        return (await asyncio.gather(*[call(lab) for _ in range(1000)])).count(True)

    with fresh(kind, tmp_path) as ledger:
        lab = ledger.budget("lab", usd=4)
        assert asyncio.run(all_of_them(lab)) == 400
        balance = lab.balance
        assert (balance.committed_usd, balance.reserved_usd, balance.committed_requests) == (Decimal(4), Decimal(0), 400)


# --- who waits --------------------------------------------------------------------------------------------------------------


@everywhere
def test_waiters_are_served_in_order_of_arrival_whoever_lets_go(kind: str, tmp_path: Path) -> None:
    """Fifty stand in line for four places; threads give places back in any order."""
    order: list[int] = []

    async def story(ledger: tbl.Ledger) -> None:
        lab = ledger.budget("lab", requests=4)
        holds = [await lab.reserve(requests=1) for _ in range(4)]
        free: asyncio.Queue[tbl.Reservation] = asyncio.Queue()

        async def stand(n: int) -> None:
            held = await lab.reserve(requests=1, wait=SOON_S * 4, key=f"{n}")
            order.append(n)
            free.put_nowait(held)

        line = []
        for n in range(50):
            line.append(asyncio.create_task(stand(n)))
            await asyncio.sleep(0)  # it has handed in its command, so the next one stands behind it
        random.Random(7).shuffle(holds)
        for hold in holds:
            await asyncio.to_thread(lets_go, hold)
        for _ in range(50):
            held = await asyncio.wait_for(free.get(), SOON_S)
            await asyncio.to_thread(lets_go, held)
        await asyncio.wait_for(asyncio.gather(*line), SOON_S)
        assert lab.balance.reserved_requests == 0

    with fresh(kind, tmp_path) as ledger:
        asyncio.run(story(ledger))
        kept = [event.key for event in ledger.desk.events(ledger.verify().events) if event.kind == "reserved"]
    assert kept == [None] * 4 + [f"{n}" for n in range(50)]
    assert sorted(order) == list(range(50))


@everywhere
@pytest.mark.parametrize("seed", range(4))
def test_cancelled_tasks_leak_nothing(kind: str, seed: int, tmp_path: Path) -> None:
    """Two hundred tasks, cancelled at any moment of their reserve, of their wait, or while they hold."""
    chance = random.Random(seed)

    async def call(lab: tbl.Budget) -> None:
        async with lab.reserve(tokens=chance.randint(1, 30), wait=chance.choice([0, 0, SOON_S]), timeout=3600) as held:
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
            await held.rollback()

    async def story(lab: tbl.Budget) -> None:
        tasks: set[asyncio.Task[None]] = set()
        for _ in range(200):
            tasks.add(asyncio.create_task(call(lab)))
            for _ in range(chance.randint(0, 4)):
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                chance.choice(sorted(tasks, key=lambda task: task.get_name())).cancel()
        for task in tasks:
            if chance.random() < 0.3:
                task.cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON_S)
        kinds = {type(end) for end in done if end is not None}
        assert kinds <= {asyncio.CancelledError, tbl.BudgetExceeded}
        assert asyncio.CancelledError in kinds

    with fresh(kind, tmp_path) as ledger:
        lab = ledger.budget("lab", tokens=100)
        asyncio.run(story(lab))
        balance = lab.balance  # asked behind everything that was handed in
        assert (balance.reserved_tokens, balance.reserved_requests, balance.calls_in_flight) == (0, 0, 0)
        assert lab.reserve_sync(tokens=100).tokens == 100


class Interrupting:
    """A desk which lets a Ctrl-C come the moment a reserve was handed in."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self.where, self.origin = desk, desk.where, desk.origin
        self.armed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._desk, name)

    def submit(self, ticket: Ticket) -> None:
        self._desk.submit(ticket)
        if self.armed and isinstance(ticket.command, Reserve):
            self.armed = False
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize("wait", [0, SOON_S])
@pytest.mark.parametrize("kind", ["memory", "duckdb"])
def test_an_interrupt_right_behind_the_handing_in_leaks_nothing(kind: str, wait: float, tmp_path: Path) -> None:
    """Ctrl-C comes while the command is on its way, before anybody waits for its answer."""
    with fresh(kind, tmp_path) as ledger:
        lab = ledger.budget("lab", tokens=100)
        desk = Interrupting(ledger.desk)
        ledger.desk = desk
        for _ in range(20):
            desk.armed = True
            with pytest.raises(KeyboardInterrupt):
                lab.reserve_sync(tokens=60, wait=wait, timeout=3600)
        # A grant that comes after its caller is gone is given back behind it; who waits for the room gets it.
        assert lab.reserve_sync(tokens=100, wait=SOON_S).tokens == 100
        assert (lab.balance.reserved_tokens, lab.balance.calls_in_flight) == (100, 1)


if __name__ == "__main__":
    run_as_child(sys.argv[1])
