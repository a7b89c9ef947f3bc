"""A disk that fails at any write or sync: named errors, nothing hangs, and what was acknowledged is there, once.

`faults.c` stands between a keeper and the kernel and makes one of its system calls fail. A small story of commands is told
while it does; it is told again for every call that the story makes, whichever they are, for every error and every duration.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.history import checked, recorded
from tokenbudget_lab import link
from tokenbudget_lab.commands import Adjust, Command, Commit, Lose, Record, Reserve, Rollback, SetBudget
from tokenbudget_lab.desk import DirectBox, Ticket
from tokenbudget_lab.errors import Refused
from tokenbudget_lab.ids import new_id
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.stores.duckdb import MANY

pytestmark = [
    pytest.mark.xdist_group("keeper"),  # one after the other: each of them starts processes
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
        *((name, ctypes.c_int32) for name in ("armed", "at", "error", "keeps", "torn", "broken", "fired", "count", "early")),
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

    def arm(self, control: Control) -> None:
        control.at, control.error = self.at, ERRORS[self.error]
        control.keeps, control.torn = self.duration != "once", self.error == "torn"
        control.armed = self.at > 0


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


COMMITTED = 2 + 1 + 9 + 2 * MANY / 100
HALF = 8  # batches before the clock goes ahead
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
        left = [command for command in left if command.id not in answers]
        if control is not None and control.unsynced and len(left) < len(tickets):
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


def tell(open_ledger: Callable[[], tbl.Ledger], batches: list[list[Command]], control: Control, duration: str) -> Answers:
    """The story, under a fault; it goes on when that is over, and ends where it is not.

    `once`: what fails is sent again, at most twice. `a while`: it is sent again in vain, then the disk is repaired and it must
    be answered. `to the end`: with the first failure the ledger is closed.
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
            control.ahead = AHEAD_S if number >= HALF else 0
            if not asked(ledger, batch, answers, tries, control):
                assert duration != "once", "one fault, and it is not answered three times"
                if duration == "to the end":
                    break
                repair(control)
                assert asked(ledger, batch, answers, 1, control), "the disk works again, and still no answer"
    return answers


def repair(control: Control) -> None:
    """From now on all calls pass, and a keeper has its usual time to come up."""
    control.armed, link.CONNECT_S = False, CONNECT_S


# --- one run -----------------------------------------------------------------------------------------------------------------


class Run:
    """One ledger under one fault."""

    def __init__(self, folder: Path, shim: Path, patch: pytest.MonkeyPatch) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.place, self.control_path = place_of(folder / "spend.duckdb"), folder / "control"
        self.control_path.write_bytes(bytes(ctypes.sizeof(Control)))
        self.control, self._patch = Control.at_path(self.control_path), patch
        self.environment = {
            "LD_PRELOAD": str(shim),
            "FAULTS_LEDGER": str(self.place.file),
            "FAULTS_CONTROL": str(self.control_path),
            "TOKENBUDGET_KEEPER_LINGER_S": "0.5",
            "PYTHONFAULTHANDLER": "1",
        }

    def under(self, fault: Fault, *, embedded: bool = False) -> Run:
        """Tell the story under a fault, then prove that the ledger has survived it."""
        batches = story()
        fault.arm(self.control)
        try:
            answers = (self._embedded if embedded else self._kept)(batches, fault.duration)
        finally:
            self.control.armed = False
            left = self._ended()
        assert not left, f"processes {left} do not end"
        sound(self.place, batches, answers)
        assert not self.control.early, "answered after a sync that failed, and before one that did not"
        return self

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
                    lambda: recorded(tbl.connect(self.place.file), told_of(self.place)), batches, self.control, duration
                )
            finally:
                link.stop(self.place)

    def _embedded(self, batches: list[list[Command]], duration: str) -> Answers:
        told = subprocess.run(
            [sys.executable, "-m", "tests.test_faults", self.place.file, self.control_path, duration],
            cwd=Path(__file__).parents[1],
            input=pickle.dumps(batches),
            capture_output=True,
            env={**os.environ, **self.environment, "PYTHONPATH": str(Path(tbl.__file__).parents[1])},
            check=False,
            timeout=60,
        )
        assert (told.returncode, told.stderr) == (0, b""), told.stderr.decode()
        answers: Answers = pickle.loads(told.stdout)
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
    refused = {command.id for command in commands if isinstance(command, Reserve) and command.usd == BIG}
    assert {id for id, answer in answers.items() if isinstance(answer, Refused)} <= refused
    with recorded(tbl.connect(place.file, embedded=True), told_of(place)) as ledger:
        kept = written(ledger, commands)
        assert set(kept.values()) <= {1}, "written twice"
        assert set(answers) - refused <= set(kept), "acknowledged and lost"
        ledger.verify()

        again: Answers = {}
        assert all(asked(ledger, batch, again, 1) for batch in batches)
        assert written(ledger, commands) == {command.id: 1 for command in commands if command.id not in refused}
        assert {id: told(again[id]) for id in answers} == {id: told(answers[id]) for id in answers}

        lab = ledger.budget("lab")
        assert float(lab.balance.committed_usd) == COMMITTED
        with lab.reserve(usd=1) as call:
            call.commit(usd="0.5")
        assert float(lab.balance.committed_usd) == COMMITTED + 0.5
        ledger.verify()
        checked(ledger, told_of(place))


def told_of(place: Place) -> Path:
    """Where clients write down what they hear."""
    return place.file.with_name("told")


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


class Bench:
    """Where runs are made."""

    def __init__(self, folder: Path, shim: Path) -> None:
        self.folder, self.shim = folder, shim
        self._calls: dict[bool, list[str]] = {}

    def calls(self, patch: pytest.MonkeyPatch, *, embedded: bool = False) -> list[str]:
        """What the story calls when nothing fails."""
        if embedded not in self._calls:
            run = Run(self.folder / "whole", self.shim, patch)
            run.under(Fault(0, "EIO", "once"), embedded=embedded)
            self._calls[embedded] = run.control.named
        return self._calls[embedded]

    def last(self, patch: pytest.MonkeyPatch, call: str, *, embedded: bool = False) -> int:
        """The number of the last call that begins like this."""
        calls = self.calls(patch, embedded=embedded)
        return max(number for number, made in enumerate(calls, 1) if made.startswith(call))

    def run(self, patch: pytest.MonkeyPatch, fault: Fault, *, embedded: bool = False) -> tuple[bool, str | None]:
        """One run: whether the fault came, and what went wrong."""
        run = Run(self.folder / "faulty", self.shim, patch)
        wrong = None
        try:
            run.under(fault, embedded=embedded)
        except Exception as failed:  # noqa: BLE001 - told at the end, with all others
            named = run.control.named
            call = named[fault.at - 1] if fault.at <= len(named) else "never made"
            wrong = f"call {fault.at}, {call}: {type(failed).__name__}: {failed}"
        return run.control.fired > 0, wrong

    def sweep(
        self, patch: pytest.MonkeyPatch, error: str, duration: str, most: int | None, *, shift: int = 0, embedded: bool = False
    ) -> list[str]:
        """One run for each call, or for some of them, evenly spread; all that went wrong and was not known to."""
        calls = self.calls(patch, embedded=embedded)
        total = len([call for call in calls if error != "torn" or call.split()[0] in TORN])
        runs = min(most or total, total)
        chosen = sorted({1 + (shift + n * total // runs) % total for n in range(runs)})
        ends = [self.run(patch, Fault(at, error, duration), embedded=embedded) for at in chosen]
        wrong = [end for _, end in ends if end is not None]
        where, fired = " embedded" if embedded else "", sum(fired for fired, _ in ends)
        print(f"{error}, {duration}{where}: {fired} faults in {len(chosen)} runs, of {total} calls; {len(wrong)} went wrong")  # noqa: T201 - the soak says what it did
        return wrong


@pytest.fixture(scope="module")
def bench(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"), shim)


FEW = {"once": 2, "a while": 1, "to the end": 1}
few_or_all = pytest.mark.parametrize("calls", ["few", pytest.param("all", marks=pytest.mark.soak)])
VARIANTS = [(error, duration) for duration in DURATIONS for error in ERRORS]


@few_or_all
@pytest.mark.parametrize(("error", "duration"), VARIANTS)
def test_a_keeper_whose_disk_fails_loses_nothing_and_decides_nothing_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: str, duration: str, calls: str
) -> None:
    """Each write and each sync of a keeper fails, from its start until it has left.

    Its clients get a named error, or the right answer, within bounds. When the disk works again, each command that was
    acknowledged has its event, once; each that was not can be sent again; the ledger is sound and takes new calls.
    """
    shift = 7 * VARIANTS.index((error, duration))  # so that the few are others for each
    assert bench.sweep(monkeypatch, error, duration, FEW[duration] if calls == "few" else None, shift=shift) == []


@few_or_all
@pytest.mark.parametrize(("error", "duration"), [("EIO", "once"), ("torn", "a while"), ("ENOSPC", "to the end")])
def test_an_embedded_ledger_whose_disk_fails_loses_nothing_either(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: str, duration: str, calls: str
) -> None:
    """The same without a keeper; and the process, which is a researcher's notebook, lives on."""
    shift = 11 * VARIANTS.index((error, duration))
    assert bench.sweep(monkeypatch, error, duration, 1 if calls == "few" else None, shift=shift, embedded=True) == []


def test_a_ledger_that_could_not_be_made_is_made_at_the_next_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB says nothing of a checkpoint that fails while it closes: the draft is then a file without tables."""
    at = bench.last(monkeypatch, "pwrite spend.duckdb.d/new.duckdb")
    assert bench.run(monkeypatch, Fault(at, "EIO", "once")) == (True, None)


def test_an_owner_that_cannot_say_so_raises_a_named_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the first file that is written tells who owns the ledger."""
    at = bench.last(monkeypatch, "write spend.duckdb.d/owner", embedded=True)
    assert bench.run(monkeypatch, Fault(at, "ENOSPC", "once"), embedded=True) == (True, None)


def test_what_was_never_synced_is_not_acknowledged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync fails, and so does cutting the log back: the events can be read, but a power cut would take them away."""
    at = bench.last(monkeypatch, "fdatasync spend.duckdb.wal")
    assert bench.run(monkeypatch, Fault(at, "EIO", "a while")) == (True, None)


if __name__ == "__main__":
    path, control_path, duration = sys.argv[1:]
    answers = tell(
        lambda: recorded(tbl.connect(path, embedded=True), told_of(place_of(path))),
        pickle.load(sys.stdin.buffer),
        Control.at_path(Path(control_path)),
        duration,
    )
    sys.stdout.buffer.write(pickle.dumps(answers))
