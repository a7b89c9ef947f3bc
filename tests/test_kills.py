"""Keepers and clients are killed in the middle of work, of checkpoints, of the copies behind them, and of recoveries.

A few clients with two threads each do a bit of everything. A round kills the keeper, often a client too, sometimes the next
keeper while it opens the file; those who are left go on, and who was killed is started again. What all of them were told is
compared with the ledger in the end (`history.py`).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import tokenbudget_lab as tbl
from tests.history import checked, recorded
from tests.processes import is_gone, owner_pid, until
from tests.soaking import Pace
from tokenbudget_lab import link
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.recovery import Checkpoint

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="who owns a ledger is looked up in /proc"),
]
HERE = Path(__file__).parents[1]
THREADS = 2
EXPIRY_S = 2  # of every hold of a worker
ROUNDS = 25  # of one ledger
MOMENTS = ("at work", "copy", "checkpoint", "snapshot", "recovery")
OFTEN = (10, 25, 50)  # transactions from one checkpoint to the next


@dataclass
class Figures:
    """What a run has seen."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)  # in the middle of what keepers were killed
    waited: list[float] = field(default_factory=list)  # seconds until all who were left had gone on
    answered: int = 0
    events: int = 0
    restored: int = 0  # files that were not whole

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds: {self.kills['keeper']} keepers and {self.kills['client']} clients killed, "
            f"{', '.join(f'{count} in the {what}' for what, count in sorted(self.hits.items()))}; "
            f"{self.hits['checkpoint'] + self.hits['recovery']} starts found a checkpoint that was cut short; "
            f"{self.restored} torn files restored; {self.answered} answers and {self.events} events agree; those who were left "
            f"went on after {statistics.median(self.waited):.2f} s in the middle and {max(self.waited):.2f} s at most"
        )


@dataclass
class Worker:
    """A client, and the file that grows by a point with each verb that it was answered."""

    process: subprocess.Popen[bytes]
    points: Path

    @property
    def done(self) -> int:
        """How many verbs."""
        return self.points.stat().st_size if self.points.exists() else 0

    def has_more_than(self, done: int) -> bool:
        """Whether it has gone on; who has ended by itself never will."""
        assert self.process.poll() is None, "a client has given up"
        return self.done > done


class Crew:
    """Clients of one ledger, who are killed and replaced."""

    def __init__(self, place: Place, told: Path, clients: int, chance: random.Random, figures: Figures) -> None:
        self.place, self.told, self.clients, self.chance, self.figures = place, told, clients, chance, figures
        self.checkpoint, self.workers = Checkpoint(place), list[Worker]()
        self.snapshot_draft = place.snapshot.with_name(place.snapshot.name + ".tmp")
        self._hired = 0
        with recorded(tbl.connect(place.file), told) as ledger:
            ledger.budget("lab", usd=10**6, alerts=(0.00001, 0.0001))
            ledger.budget("lab/tight", usd=1)
        self.hire()
        until(lambda: all(worker.done for worker in self.workers), 60)

    def hire(self) -> None:
        """Fill the places that are free."""
        while len(self.workers) < self.clients:
            points = self.told / f"{self._hired}.points"
            arguments = [str(self.place.file), str(self.told), str(points), str(self.chance.random())]
            process = subprocess.Popen([sys.executable, "-m", "tests.kill_worker", *arguments], cwd=HERE)
            self.workers.append(Worker(process, points))
            self._hired += 1

    def fire(self, worker: Worker) -> None:
        """`kill -9`; whoever has ended before that has failed."""
        assert worker.process.poll() is None, "a client has given up"
        worker.process.kill()
        worker.process.wait()
        self.workers.remove(worker)

    # --- a round ---------------------------------------------------------------------------------------------------------

    def round(self, moment: str) -> None:
        """Kill, see the others go on, and replace who is gone."""
        self.figures.rounds += 1
        client = self.chance.choice(["before it", "behind it", "not at all"])
        if client == "before it":
            self.kill_a_client()
        self.wait_for(moment)
        self.kill_the_keeper()
        if moment == "recovery":
            for _ in range(self.chance.choice([1, 1, 2])):
                self.kill_the_next_keeper()
        if client == "behind it":
            self.kill_a_client()
        left = [(worker, worker.done) for worker in self.workers if worker.done]
        # An answer may be on its way to each thread: with one point more somebody was answered by the next keeper.
        self.figures.waited.append(until(lambda: all(worker.has_more_than(done + THREADS) for worker, done in left), 30))
        self.hire()

    def kill_a_client(self) -> None:
        self.fire(self.chance.choice(self.workers))
        self.figures.kills["client"] += 1

    def wait_for(self, moment: str) -> None:
        """Until the keeper is in the middle of something, and then a bit."""
        if moment == "at work":
            time.sleep(self.chance.uniform(0, 0.3))
        elif moment == "copy":
            until(self.is_copying, 30, 0.0002)
            time.sleep(self.chance.uniform(0, 0.006))
        elif moment == "snapshot":
            until(self.snapshot_draft.exists, 30, 0)
        else:
            until(lambda: self.checkpoint.interrupted, 30, 0.0002)
            time.sleep(self.chance.uniform(0, 0.002))

    def is_copying(self) -> bool:
        """Whether the copy before a checkpoint is being made."""
        return any(self.place.folder.glob("before.draft-*"))

    def kill_the_keeper(self) -> None:
        """And see what it was doing, before another one is up."""
        pid = owner_pid(self.place)
        os.kill(pid, signal.SIGKILL)
        until(lambda: is_gone(pid), look_s=0.0002)
        self.figures.kills["keeper"] += 1
        opening, marked = "socket" not in self.place.read_owner(), self.checkpoint.interrupted
        copying, snapping = self.is_copying(), self.snapshot_draft.exists()
        if owner_pid(self.place) != pid:
            return
        doing = ("recovery" if opening else "checkpoint") if marked else "opening" if opening else "copy" if copying else None
        doing = doing or ("snapshot" if snapping else "rest of the work")
        self.figures.hits[doing] += 1

    def kill_the_next_keeper(self) -> None:
        """While it opens the file."""
        last = owner_pid(self.place)
        until(lambda: owner_pid(self.place) != last, 30, 0.0005)
        time.sleep(self.chance.uniform(0, 0.06))
        self.kill_the_keeper()

    # --- the end ---------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """All clients are killed, and their holds end; what was told is what is there, and the file opens for whoever comes."""
        for worker in list(self.workers):
            self.fire(worker)
        with recorded(tbl.connect(self.place.file), self.told) as ledger:
            until(lambda: ledger.budget("lab").balance.calls_in_flight == 0, EXPIRY_S + 2)
            ledger.verify()
            told = checked(ledger, self.told)
        link.stop(self.place)
        with tbl.connect(self.place.file, embedded=True) as ledger:
            assert ledger.verify().events == told.events
        assert not list(self.place.folder.glob("damaged-*"))
        self.figures.restored += len(list(self.place.folder.glob("broken-*")))
        self.figures.answered += told.answered
        self.figures.events += told.events

    def abandon(self) -> None:
        """Leave no process behind, whatever has happened."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()
        link.stop(self.place)


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where ledgers are: a disk, and memory, where nothing waits for a sync and kills tear files apart."""
    if request.param == "disk":
        yield tmp_path
        return
    shared = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    if not any(line.split()[1:3] == [str(shared), "tmpfs"] for line in Path("/proc/mounts").read_text().splitlines()):
        why = f"there is no tmpfs at {shared}"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    made = Path(tempfile.mkdtemp(prefix="tokenbudget-", dir=shared))
    yield made
    shutil.rmtree(made)


FEW = pytest.param(3, 3, id="few")
MANY = pytest.param(150, 4, id="many", marks=[pytest.mark.soak, pytest.mark.timeout(3600)])


@pytest.mark.parametrize(("rounds", "clients"), [FEW, MANY])
def test_killed_keepers_and_clients_lose_nothing_and_decide_nothing_twice(
    folder: Path, rounds: int, clients: int, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was acknowledged is there, once, and as it was told; what was not is there once, or not at all.

    The file opens after each kill, and is sound. Holds of killed clients end by their expiry. Those who are left go on within
    two seconds, as a rule.
    """
    figures, chance = Figures(), pace.chance
    monkeypatch.setenv("TOKENBUDGET_KEEPER_LINGER_S", "0.5")
    for first in pace.some(range(0, rounds, ROUNDS)):
        number = first // ROUNDS
        monkeypatch.setenv("TOKENBUDGET_CHECKPOINT_TRANSACTIONS", str(OFTEN[number % len(OFTEN)]))
        home = folder / f"ledger-{number}"
        home.mkdir()
        crew = Crew(place_of(home / "spend.duckdb"), home / "told", clients, chance, figures)
        moments = [MOMENTS[n % len(MOMENTS)] for n in range(ROUNDS)]
        chance.shuffle(moments)
        try:
            for moment in moments[: rounds - first]:
                crew.round(moment)
            crew.end()
        finally:
            crew.abandon()
    pace.says(str(figures))
    assert statistics.median(figures.waited) < 2
    if figures.rounds > ROUNDS:
        assert min(figures.hits[what] for what in ("copy", "checkpoint", "recovery")) > figures.rounds // 20
