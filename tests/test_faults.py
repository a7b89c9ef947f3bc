"""A disk that fails at any write or sync: named errors, nothing hangs, and what was acknowledged is there, once.

`faults.c` stands between a keeper and the kernel and makes one of its system calls fail. A small story of commands is told
while it does; it is told again for every call that the story makes, whichever they are, for every error and every duration.
It begins with nothing, or with a ledger whose checkpoint was cut short; it crosses checkpoints, or makes none.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.history import checked, recorded
from tests.soaking import Pace
from tokenbudget_lab import link
from tokenbudget_lab.commands import Adjust, Command, Commit, Lose, Record, Reserve, Rollback, SetBudget
from tokenbudget_lab.desk import DirectBox, Ticket
from tokenbudget_lab.errors import Refused
from tokenbudget_lab.heads import Heads
from tokenbudget_lab.ids import new_id
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.recovery import Checkpoint
from tokenbudget_lab.stores import duckdb as store_module
from tokenbudget_lab.stores.duckdb import MANY

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="faults are injected with LD_PRELOAD and /proc"),
]
PATIENCE_S = 25.0  # an answer that takes longer hangs; a link itself gives up earlier here
CONNECT_S = link.CONNECT_S
WITHOUT_KEEPER_S = 1.0  # how long a client looks for a keeper while the disk is broken
AHEAD_S = 120
USD = 10**12
BIG = 1_000 * USD
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "torn": errno.ENOSPC}
TORN = ("write", "pwrite", "writev", "pwritev", "copy_file_range", "sendfile")
DURATIONS = ("once", "a while", "to the end")


# --- the shim ----------------------------------------------------------------------------------------------------------------


class Control(ctypes.Structure):
    """`struct control` of faults.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("armed", "at", "error", "keeps", "torn", "broken", "fired", "count")),
        *((name, ctypes.c_int32) for name in ("reads", "early")),
        ("ahead", ctypes.c_int64),
        ("unsynced", ctypes.c_char * 64),
        ("calls", ctypes.c_char * 64 * 4096),
    )
    armed: int
    at: int
    error: int
    keeps: int
    torn: int
    broken: int
    fired: int
    count: int
    reads: int
    early: int
    ahead: int
    unsynced: bytes
    calls: Any

    @classmethod
    def at_path(cls, path: Path) -> Control:
        """The one that all processes of a run share."""
        with path.open("r+b") as file:
            return cls.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(cls)))

    @property
    def named(self) -> list[str]:
        """The calls that were numbered: `pwrite spend.duckdb.wal`."""
        return [call.value.decode() for call in self.calls[: self.count]]


@dataclass(frozen=True)
class Fault:
    """Call number `at` fails with an error; or it is torn, and the next write fails. Once, a while, or to the end."""

    at: int
    error: str
    duration: str
    reads: bool = False  # it is one of the calls that read

    def arm(self, control: Control) -> None:
        control.at, control.error = self.at, ERRORS[self.error]
        control.keeps, control.torn = self.duration != "once", self.error == "torn"
        control.armed, control.reads = self.at > 0, self.reads


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled shim; without a compiler a failure in CI, and a skip elsewhere."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("no C compiler to build faults.c with")
        pytest.skip("no C compiler to build faults.c with")
    built = tmp_path_factory.mktemp("shim") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True, timeout=60)
    return built


# --- the story ---------------------------------------------------------------------------------------------------------------


def reserve(usd: int, timeout_s: int = 3600) -> Reserve:
    return Reserve(new_id(), "lab", usd, None, None, timeout_s * 1_000_000, "release")


def commit(of: Reserve, usd: int) -> Commit:
    return Commit(new_id(), of.id, usd, None, None, "measured")


def record(usd: int) -> Record:
    return Record(new_id(), "lab", usd, None, None, "measured")


def story() -> list[list[Command]]:
    """Batches of commands: single ones, several events of one, one that an alert and an expiry belong to, and a large one.

    One of them is refused. After half of them the clock goes ahead, and the hold of 4 expires.
    """
    a, b, c, d, e = (reserve(n * USD, timeout_s=60 if n == 4 else 3600) for n in (3, 2, 1, 4, 5))
    spent = record(10 * USD)
    return [
        [SetBudget(new_id(), "lab", (("", 100 * USD, None, None),), "UTC", (0.1,))],
        [a],
        [commit(a, 2 * USD)],
        [b, c, d],
        [commit(b, USD), Rollback(new_id(), c.id)],
        [spent],
        [Adjust(new_id(), spent.id, 9 * USD, None, None)],
        [reserve(BIG)],
        [e],
        [Lose(new_id(), e.id)],
        [record(USD // 100) for _ in range(2 * MANY)],
    ]


def torn(place: Place) -> None:
    """A checkpoint is cut short, and leaves a file that does not open."""
    cut_short(place)
    data = place.file.read_bytes()
    place.file.write_bytes(data[:12] + bytes(4096 - 12) + data[4096 : len(data) // 2])


def cut_short(place: Place) -> None:
    """The mark of a checkpoint is there, though the file is whole."""
    head = Heads(place.heads).read()
    assert head is not None
    Checkpoint(place).begin(head.seq)


@dataclass(frozen=True)
class Scene:
    """What is there when the story begins, and how often it makes a checkpoint.

    Attributes:
        told: so many batches before, without a fault.
        found: what happened to the file then.
        every: transactions from one checkpoint to the next.
    """

    told: int = 0
    found: Callable[[Place], None] | None = None
    every: int = 10_000


HALF = 8  # batches before the clock goes ahead
SCENES = {
    "new": Scene(),
    "checkpoints": Scene(HALF, None, 2),
    "cut short": Scene(HALF, cut_short, 2),
    "torn": Scene(HALF, torn, 2),
}
COMMITTED = 2 + 1 + 9 + 2 * MANY / 100
AFTER = len(story()) - HALF  # and after it
OWN = {"budget_set", "reserved", "committed", "rolled_back", "recorded", "adjusted"}  # kinds that only a command makes
Answers = dict[str, Any]


def asked(ledger: tbl.Ledger, batch: list[Command], answers: Answers, tries: int, control: Control | None = None) -> bool:
    """Hand in a batch, and what is not answered again, under its ids; whether all of it has an answer then."""
    left, box = batch, DirectBox(None)
    for _ in range(tries):
        tickets = [Ticket(command, box) for command in left]
        for ticket in tickets:
            ledger.desk.submit(ticket)
        for ticket in tickets:
            assert ticket.wait(PATIENCE_S), f"{ticket.command} hangs"
            assert isinstance(ticket.error, tbl.TokenBudgetError | None), f"{ticket.error!r} has no name"
            if ticket.error is None or isinstance(ticket.error, Refused):
                answers[ticket.command.id] = ticket.error or ticket.answer
        answered = [ticket.command.id in answers for ticket in tickets]
        left = [command for command in left if command.id not in answers]
        # The writer may have taken the first ones before the others came, and synced them.
        earlier_alone = answered == sorted(answered, reverse=True) and not all(answered)
        if control is not None and control.unsynced and not earlier_alone:
            control.early = True
        if not left:
            return True
    return False


def opened(open_ledger: Callable[[], tbl.Ledger], tries: int, control: Control) -> tbl.Ledger | tbl.TokenBudgetError:
    """The ledger, or the last error; a keeper that only takes its time, on a busy machine, is no attempt."""
    while True:
        try:
            return open_ledger()
        except tbl.TokenBudgetError as error:
            tries -= control.fired > 0
            if tries <= 0:
                return error


def tell(
    open_ledger: Callable[[], tbl.Ledger], batches: list[list[Command]], control: Control, duration: str, backup: Path | None
) -> Answers:
    """The story, under a fault; it goes on when that is over, and ends where it is not.

    `once`: what fails is sent again, at most twice. `a while`: it is sent again in vain, then the disk is repaired and it must
    be answered. `to the end`: with the first failure the ledger is closed. Where a path is given, the ledger is backed up to it
    behind the first batch.
    """
    answers: Answers = {}
    tries = {"once": 3, "a while": 2, "to the end": 1}[duration]
    ledger = opened(open_ledger, tries, control)
    if isinstance(ledger, tbl.TokenBudgetError) and duration == "a while":
        repair(control)
        ledger = open_ledger()
    if isinstance(ledger, tbl.TokenBudgetError):
        assert duration == "to the end", f"one fault, and three attempts to open it fail: {ledger}"
        return answers
    with ledger:
        for number, batch in enumerate(batches):
            control.ahead = AHEAD_S if number >= len(batches) - AFTER else 0
            if not asked(ledger, batch, answers, tries, control):
                assert duration != "once", "one fault, and it is not answered three times"
                if duration == "to the end":
                    break
                repair(control)
                assert asked(ledger, batch, answers, 1, control), "the disk works again, and still no answer"
            if number == 0 and backup is not None and not backed_up(ledger, backup, tries):
                assert duration != "once", "one fault, and three backups fail"
                if duration == "to the end":
                    break
                repair(control)
                assert backed_up(ledger, backup, 1), "the disk works again, and still no backup"
    return answers


def backed_up(ledger: tbl.Ledger, target: Path, tries: int) -> bool:
    """Whether there is a backup; one that failed has left nothing, or what could not be removed."""
    for _ in range(tries):
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        try:
            ledger.backup(target)
        except tbl.TokenBudgetError:
            pass
        else:
            return True
    return False


def repair(control: Control) -> None:
    """From now on all calls pass, and a keeper has its usual time to come up."""
    control.armed, link.CONNECT_S = False, CONNECT_S


# --- one run -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """A scene that is set: a folder, the story that its ledger is of, and what was answered so far."""

    scene: Scene
    folder: Path
    batches: list[list[Command]]
    answers: Answers

    @classmethod
    def made(cls, scene: Scene, folder: Path, patch: pytest.MonkeyPatch) -> Saved:
        """Tell the beginning of a story where nothing fails."""
        folder.mkdir()
        batches, answers = story(), Answers()
        if scene.told:
            place = place_of(folder / "spend.duckdb")
            with patch.context() as few, recorded(tbl.connect(place.file, embedded=True), told_of(place)) as ledger:
                few.setattr(store_module, "CHECKPOINT_TRANSACTIONS", scene.every)
                assert all(asked(ledger, batch, answers, 1) for batch in batches[: scene.told])
            if scene.found is not None:
                scene.found(place)
        return cls(scene, folder, batches, answers)


class Stage:
    """A process that has loaded all that an embedded ledger needs, with the shim; it forks one child for each story."""

    def __init__(self, shim: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(Path(tbl.__file__).parents[1])},
        )

    def tell(self, *told: Any) -> tuple[int, str, Answers]:
        """The exit code of a child, what it said on stderr, and its answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(told, self._process.stdin)
        self._process.stdin.flush()
        answered: tuple[int, str, Answers] = pickle.load(self._process.stdout)
        return answered

    def close(self) -> None:
        """Nothing more is told."""
        self._process.communicate(timeout=60)


def stage() -> None:
    """What a `Stage` does, until its input ends."""
    import duckdb  # noqa: F401 - loaded once, for all children
    import filelock  # noqa: F401
    import pyarrow as pa  # noqa: F401

    while True:
        try:
            told = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        with tempfile.TemporaryFile() as answers, tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                os.dup2(said.fileno(), 2)
                perform(answers, *told)
            deadline, ended, status = time.monotonic() + 60, 0, 0
            while not ended and time.monotonic() < deadline:
                ended, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.005)
            if not ended:
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
            answers.seek(0)
            said.seek(0)
            code = os.waitstatus_to_exitcode(status)
            pickle.dump((code, said.read().decode(), pickle.load(answers) if code == 0 else {}), sys.stdout.buffer)
            sys.stdout.buffer.flush()


def perform(
    answers: Any, environment: dict[str, str], file: Path, batches: list[list[Command]], duration: str, backup: Path | None
) -> None:
    """One story, in a forked child, to its end."""
    code = 1
    try:
        logging.getLogger("tokenbudget_lab").addHandler(logging.NullHandler())  # what else is told on stderr should not be
        os.environ.update(environment)
        store_module.CHECKPOINT_TRANSACTIONS = int(environment["TOKENBUDGET_CHECKPOINT_TRANSACTIONS"])
        ctypes.CDLL(None).faults_begin()
        control = Control.at_path(Path(environment["FAULTS_CONTROL"]))
        answered = tell(
            lambda: recorded(tbl.connect(file, embedded=True), told_of(place_of(file))), batches, control, duration, backup
        )
        pickle.dump(answered, answers)
        answers.flush()
        code = 0
    except BaseException:  # noqa: BLE001 - told to whoever asked
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


class Run:
    """One ledger under one fault, in a folder where nothing is, or what was saved."""

    def __init__(self, folder: Path, shim: Path, patch: pytest.MonkeyPatch, saved: Saved, stage: Stage) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved.folder, folder)
        self._saved, self._stage = saved, stage
        self.place, self.control_path = place_of(folder / "spend.duckdb"), folder / "control"
        self.control_path.write_bytes(bytes(ctypes.sizeof(Control)))
        self.control, self._patch = Control.at_path(self.control_path), patch
        self.backup = self.place.folder / "backup.duckdb" if saved.scene.told else None
        self.environment = {
            "LD_PRELOAD": str(shim),
            "FAULTS_LEDGER": str(self.place.file),
            "FAULTS_CONTROL": str(self.control_path),
            "TOKENBUDGET_KEEPER_LINGER_S": "0.5",
            "TOKENBUDGET_CHECKPOINT_TRANSACTIONS": str(saved.scene.every),
            "PYTHONFAULTHANDLER": "1",
        }

    def under(self, fault: Fault, *, embedded: bool = False) -> Run:
        """Tell the story under a fault, then prove that the ledger has survived it."""
        batches, told = self._saved.batches, self._saved.scene.told
        fault.arm(self.control)
        try:
            answers = (self._embedded if embedded else self._kept)(batches[told:], fault.duration)
        finally:
            self.control.armed = False
            left = self._ended()
        assert not left, f"processes {left} do not end"
        sound(self.place, batches, self._saved.answers | answers)
        for draft in self.place.folder.glob(".backup*"):  # what could not be removed
            draft.unlink()
        if self.backup is not None and self.backup.exists():
            self._is_whole_or_no_ledger(self.backup, batches, fault)
        assert not self.control.early, "answered after a sync that failed, and before one that did not"
        return self

    def _is_whole_or_no_ledger(self, backup: Path, batches: list[list[Command]], fault: Fault) -> None:
        """What is left of a backup that failed, and could not be removed either, nobody takes for a ledger."""
        commands = [command for batch in batches for command in batch]
        try:
            copy = tbl.connect(backup, embedded=True)
        except tbl.NotALedger:
            assert fault.duration == "to the end", "a backup that was made is no ledger"
            return
        with copy:
            assert set(self._saved.answers) - set(written(copy, commands)) <= refused(batches)
            copy.verify()

    def _kept(self, batches: list[list[Command]], duration: str) -> Answers:
        """Through a keeper: this process has no shim, it only hands it on to those that it starts."""
        with self._patch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setattr(link, "ANSWER_S", PATIENCE_S - 10)
            if duration != "once":
                patch.setattr(link, "CONNECT_S", WITHOUT_KEEPER_S)
            try:
                return tell(
                    lambda: recorded(tbl.connect(self.place.file), told_of(self.place)),
                    batches,
                    self.control,
                    duration,
                    self.backup,
                )
            finally:
                link.stop(self.place)

    def _embedded(self, batches: list[list[Command]], duration: str) -> Answers:
        code, said, answers = self._stage.tell(self.environment, self.place.file, batches, duration, self.backup)
        assert (code, said) == (0, ""), said
        return answers

    def _ended(self, within_s: float = 10.0) -> list[int]:
        """Wait until no process has this run's shim; kill, and return, those that stay."""
        deadline = time.monotonic() + within_s
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    def _processes(self) -> list[int]:
        mark, found = f"FAULTS_CONTROL={self.control_path}\0".encode(), []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in environment.read_bytes():
                    found.append(int(environment.parent.name))
        return found


def sound(place: Place, batches: list[list[Command]], answers: Answers) -> None:
    """The disk is whole again: exactly the acknowledged is there, the rest can be sent again, and the ledger goes on."""
    commands = [command for batch in batches for command in batch]
    too_large = refused(batches)
    assert {id for id, answer in answers.items() if isinstance(answer, Refused)} <= too_large
    with recorded(opened_again(place), told_of(place)) as ledger:
        kept = written(ledger, commands)
        assert set(kept.values()) <= {1}, "written twice"
        assert set(answers) - too_large <= set(kept), "acknowledged and lost"
        ledger.verify()

        again: Answers = {}
        assert all(asked(ledger, batch, again, 1) for batch in batches)
        assert written(ledger, commands) == {command.id: 1 for command in commands if command.id not in too_large}
        assert {id: told(again[id]) for id in answers} == {id: told(answers[id]) for id in answers}

        lab = ledger.budget("lab")
        assert float(lab.balance.committed_usd) == COMMITTED
        with lab.reserve(usd=1) as call:
            call.commit(usd="0.5")
        assert float(lab.balance.committed_usd) == COMMITTED + 0.5
        ledger.verify()
        checked(ledger, told_of(place))


def opened_again(place: Place) -> tbl.Ledger:
    """The ledger, when a keeper that was started last of all, and for nobody, has left."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return tbl.connect(place.file, embedded=True)
        except tbl.LedgerBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def told_of(place: Place) -> Path:
    """Where clients write down what they hear."""
    return place.file.with_name("told")


def refused(batches: list[list[Command]]) -> set[str]:
    """Commands of a story that no budget has room for."""
    return {command.id for batch in batches for command in batch if isinstance(command, Reserve) and command.usd == BIG}


def written(ledger: tbl.Ledger, commands: list[Command]) -> Counter[str]:
    """How many events each command has; refusals are notes, that may be lost."""
    ids = {command.id for command in commands}
    events = list(ledger.desk.events(10**9))
    assert OWN.isdisjoint(event.kind for event in events if event.command not in ids), "nobody asked for it"
    return Counter(event.command for event in events if event.command in ids and event.kind != "refused")


def told(answer: Any) -> Any:
    """What of an answer stays the same for ever: an id and a place in the ledger, or the kind of refusal."""
    return type(answer) if isinstance(answer, Refused) else answer[:2]


# --- the sweep ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """In which scene, through a keeper or not, and whether the calls that read fail, or those that write."""

    scene: str = "new"
    embedded: bool = False
    reads: bool = False

    def __str__(self) -> str:
        return f"{self.scene}{', embedded' * self.embedded}{', reading' * self.reads}"


class Bench:
    """Where runs are made."""

    def __init__(self, folder: Path, shim: Path) -> None:
        self.folder, self.shim, self.stage = folder, shim, Stage(shim)
        self._saved: dict[str, Saved] = {}
        self._calls: dict[Way, list[str]] = {}

    def saved(self, patch: pytest.MonkeyPatch, scene: str) -> Saved:
        """A scene, set once."""
        if scene not in self._saved:
            self._saved[scene] = Saved.made(SCENES[scene], self.folder / f"saved {scene}", patch)
        return self._saved[scene]

    def calls(self, patch: pytest.MonkeyPatch, way: Way) -> list[str]:
        """What the story calls when nothing fails."""
        if way not in self._calls:
            run = Run(self.folder / "whole", self.shim, patch, self.saved(patch, way.scene), self.stage)
            run.under(Fault(0, "EIO", "once", way.reads), embedded=way.embedded)
            self._calls[way] = run.control.named
        return self._calls[way]

    def last(self, patch: pytest.MonkeyPatch, call: str, way: Way) -> int:
        """The number of the last call that begins like this."""
        calls = self.calls(patch, way)
        return max(number for number, made in enumerate(calls, 1) if made.startswith(call))

    def run(self, patch: pytest.MonkeyPatch, fault: Fault, way: Way) -> tuple[bool, str | None]:
        """One run: whether the fault came, and what went wrong."""
        run = Run(self.folder / "faulty", self.shim, patch, self.saved(patch, way.scene), self.stage)
        wrong = None
        try:
            run.under(fault, embedded=way.embedded)
        except Exception as failed:  # noqa: BLE001 - told at the end, with all others
            named = run.control.named
            call = named[fault.at - 1] if fault.at <= len(named) else "never made"
            wrong = f"call {fault.at}, {call}: {type(failed).__name__}: {failed}"
            print(f"{way}: {fault}: {wrong}")  # noqa: T201 - the soak says what it did, when it does
        return run.control.fired > 0, wrong

    def sweep(
        self, patch: pytest.MonkeyPatch, pace: Pace, error: str, duration: str, most: int | None, *, shift: int = 0, way: Way
    ) -> list[str]:
        """One run for each call, or for some of them, evenly spread; all that went wrong and was not known to."""
        calls = self.calls(patch, way)
        total = len([call for call in calls if error != "torn" or call.split()[0] in TORN])
        runs = min(most or total, total)
        chosen = sorted({1 + (shift + n * total // runs) % total for n in range(runs)})
        ends = [self.run(patch, Fault(at, error, duration, way.reads), way) for at in pace.some(chosen)]
        wrong = [end for _, end in ends if end is not None]
        fired = sum(fired for fired, _ in ends)
        pace.says(f"{way}: {error}, {duration}: {fired} faults in {len(ends)} runs, of {total} calls; {len(wrong)} went wrong")
        return wrong


@pytest.fixture(scope="module")
def bench(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults"), shim)
    yield bench
    bench.stage.close()


EMBEDDED = Way(embedded=True)
few_or_all = pytest.mark.parametrize("calls", ["few", pytest.param("all", marks=pytest.mark.soak)])
VARIANTS = [(error, duration) for duration in DURATIONS for error in ERRORS]
LEDGERS = ["checkpoints", "cut short", "torn"]
# Of each scene every error and every duration once; all of their pairs are for the soak.
SCENES_AND_SOME: list[Any] = [
    (scene, error, DURATIONS[(row + column) % 3], "few")
    for row, scene in enumerate(SCENES)
    for column, error in enumerate(ERRORS)
]
SCENES_AND_ALL: list[Any] = [
    pytest.param(scene, *variant, "all", marks=pytest.mark.soak) for scene in LEDGERS for variant in VARIANTS
]


@few_or_all
@pytest.mark.parametrize(("error", "duration"), VARIANTS)
def test_a_keeper_whose_disk_fails_loses_nothing_and_decides_nothing_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, pace: Pace, error: str, duration: str, calls: str
) -> None:
    """Each write and each sync of a keeper fails, from its start until it has left.

    Its clients get a named error, or the right answer, within bounds. When the disk works again, each command that was
    acknowledged has its event, once; each that was not can be sent again; the ledger is sound and takes new calls.
    """
    shift = 7 * VARIANTS.index((error, duration))  # so that the few are others for each
    assert bench.sweep(monkeypatch, pace, error, duration, 1 if calls == "few" else None, shift=shift, way=Way()) == []


@few_or_all
@pytest.mark.parametrize(("error", "duration"), [("EIO", "once"), ("torn", "a while"), ("ENOSPC", "to the end")])
def test_an_embedded_ledger_whose_disk_fails_loses_nothing_either(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, pace: Pace, error: str, duration: str, calls: str
) -> None:
    """The same without a keeper; and the process, which is a researcher's notebook, lives on."""
    shift = 11 * VARIANTS.index((error, duration))
    assert bench.sweep(monkeypatch, pace, error, duration, 1 if calls == "few" else None, shift=shift, way=EMBEDDED) == []


@pytest.mark.parametrize(("scene", "error", "duration", "calls"), SCENES_AND_SOME + SCENES_AND_ALL)
@pytest.mark.timeout(3600)
def test_a_disk_that_fails_in_a_checkpoint_or_in_the_way_back_from_one_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, pace: Pace, scene: str, error: str, duration: str, calls: str
) -> None:
    """Each call of an opening, of checkpoints, snapshots, copies and a backup fails; the same is claimed.

    A ledger of eight batches is opened: as it was closed, or with the mark of a checkpoint that was cut short, its file torn or
    not. Three batches, a backup and checkpoints follow.
    """
    shift = 13 * VARIANTS.index((error, duration))
    way = Way(scene, embedded=True)
    assert bench.sweep(monkeypatch, pace, error, duration, 1 if calls == "few" else None, shift=shift, way=way) == []


@few_or_all
@pytest.mark.parametrize(("error", "duration"), [("EIO", "once"), ("torn", "a while"), ("ENOSPC", "to the end")])
@pytest.mark.timeout(3600)
def test_a_keeper_whose_disk_fails_in_a_checkpoint_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, pace: Pace, error: str, duration: str, calls: str
) -> None:
    """The same through a keeper."""
    shift = 17 * VARIANTS.index((error, duration))
    way = Way("checkpoints")
    assert bench.sweep(monkeypatch, pace, error, duration, 1 if calls == "few" else None, shift=shift, way=way) == []


@few_or_all
@pytest.mark.parametrize("duration", DURATIONS)
@pytest.mark.parametrize("scene", ["checkpoints", "torn"])
@pytest.mark.timeout(3600)
def test_a_disk_that_cannot_be_read_is_a_named_error_until_it_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, pace: Pace, scene: str, duration: str, calls: str
) -> None:
    """Each call that opens or reads one of a ledger's files fails; what is there stays there, whatever was read of it."""
    way = Way(scene, embedded=True, reads=True)
    assert bench.sweep(monkeypatch, pace, "EIO", duration, 1 if calls == "few" else None, shift=5, way=way) == []


def test_a_ledger_that_could_not_be_made_is_made_at_the_next_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB says nothing of a checkpoint that fails while it closes: the draft is then a file without tables."""
    at = bench.last(monkeypatch, "pwrite spend.duckdb.d/new.duckdb", Way())
    assert bench.run(monkeypatch, Fault(at, "EIO", "once"), Way()) == (True, None)


def test_an_owner_that_cannot_say_so_raises_a_named_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the first file that is written tells who owns the ledger."""
    at = bench.last(monkeypatch, "write spend.duckdb.d/owner", EMBEDDED)
    assert bench.run(monkeypatch, Fault(at, "ENOSPC", "once"), EMBEDDED) == (True, None)


def test_a_file_that_cannot_be_made_private_is_a_named_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its making, and behind the first append, when its log is there."""
    calls = bench.calls(monkeypatch, EMBEDDED)
    chmods = [at for at, call in enumerate(calls, 1) if call.startswith("chmod spend.duckdb") and not call.endswith(".d")]
    assert len(chmods) > 1
    for at in chmods:
        assert bench.run(monkeypatch, Fault(at, "EIO", "once"), EMBEDDED) == (True, None)


def test_what_was_never_synced_is_not_acknowledged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync fails, and so does cutting the log back: the events can be read, but a power cut would take them away."""
    at = bench.last(monkeypatch, "fdatasync spend.duckdb.wal", Way())
    ends = [bench.run(monkeypatch, Fault(at - n, "EIO", "a while"), Way()) for n in range(3)]  # calls come in batches
    assert (True, None) in ends
    assert {wrong for _, wrong in ends} == {None}


if __name__ == "__main__":
    stage()
