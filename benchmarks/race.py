"""Race for a dollar, through real SDKs, beside packages from PyPI: `python benchmarks/race.py`; `make bench` runs it too.

A budget of $1, and twenty calls at once that cost $0.30 each: three fit. A provider on this machine speaks Anthropic's and
OpenAI's protocols and answers no call before all twenty have come to it or were refused, so all are in flight together. What
reached it is counted there, and priced by what it says that it used: no package is asked what it thinks that it spent.

Every peer gets an environment of its own, made with uv from PyPI and kept in the cache folder; its way is documented where
`racers.py` says. One that cannot be installed is printed as such. `--only NAME …` takes some of them, `--offline` ours alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package beside this file, installed or not

from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table
from rich.text import Text

import tokenbudget_lab as tbl
from benchmarks.racers import CALL_USD, CALLS, INPUT_TOKENS, NOT_RACED, OUTPUT_TOKENS, RACERS, WAYS, Racer
from tests.provider import Answer, Asked, Provider
from tokenbudget_lab.encodings import URL, vendor

ROOT = Path(__file__).resolve().parent.parent
FIT = 3
ANSWERS_AFTER_S = 0.3
ALL_THERE_S = 10.0  # how long the provider waits for calls that neither came nor were refused, such as those behind a lock
GIVES_UP_S = 120.0
PATHS = ("/v1/messages", "/v1/chat/completions")
USAGE = {
    "/v1/messages": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS},
    "/v1/chat/completions": {"prompt_tokens": 24, "completion_tokens": 29_997, "total_tokens": 30_021},
}


@dataclass(frozen=True, slots=True)
class Result:
    """How a race ended.

    Attributes:
        how: they were called.
        reached: requests that came to the provider.
        usd: what they cost there.
        connections: that were opened to it.
        refused: calls that were refused for want of budget.
        failed: what else became of calls, or of a process.
    """

    how: str
    reached: int
    usd: Decimal
    connections: int
    refused: int
    failed: tuple[str, ...]

    @property
    def held(self) -> bool:
        """Whether it is as it should be: three were sent, and of the others not a byte."""
        refused = 1 if self.how == "in turn" else CALLS - FIT
        return self.connections <= FIT and (self.reached, self.refused, self.failed) == (FIT, refused, ())


class Runner:
    """A process that races, and what it says of each call."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: str, errors: IO[bytes]) -> None:
        self.ended: list[str] = []
        self.ready = threading.Event()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=pipe, stdout=pipe, stderr=errors, text=True
        )
        self._listens = threading.Thread(target=self._listen, daemon=True)
        self._listens.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "ready\n":
                self.ready.set()
            elif line.startswith("ended "):
                self.ended.append(line.removeprefix("ended ").strip())
        self.ready.set()  # it went away without

    def go(self) -> None:
        """Let it start."""
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def end(self) -> int:
        """Wait for its end; its exit code."""
        try:
            self._process.wait(GIVES_UP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listens.join(GIVES_UP_S)
        return self._process.returncode


# --- a race ------------------------------------------------------------------------------------------------------------------


def answer_of(asked: Asked) -> Answer:
    """As long as the call allows, and as dear."""
    return Answer(after_s=ANSWERS_AFTER_S, text="Once upon a time …", usage=USAGE.get(asked.path, {}))


def race(name: str, racer: Racer, how: str, python: Path, cache: Path) -> Result:
    """Run it, and look at what the provider saw."""
    provider = Provider()
    provider.reply = answer_of
    try:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder, (Path(folder) / "errors").open("w+b") as errors:
            count = CALLS if how == "processes" else 1
            environment = surroundings(provider, folder, None if racer.install else ROOT, tables(cache))
            script = [str(python), str(ROOT / "benchmarks/racing.py"), name, how, folder]
            runners = [Runner([*script, f"{number}"], environment, folder, errors) for number in range(count)]
            run(provider, runners, together=how != "in turn")
            failed = [said for runner in runners for said in runner.ended if said.startswith("failed")]
            codes = [runner.end() for runner in runners]
            if any(codes):
                errors.seek(0)
                failed.append(errors.read().decode(errors="replace").strip().rpartition("\n")[2] or "a process went away")
            refused = sum(runner.ended.count("refused") for runner in runners)
        came = [asked for asked in provider.asked if asked.path in PATHS]
        usd = sum((tbl.cost(used.usage, model=used.model) for used in provider.used), Decimal(0))
        return Result(how, len(came), usd, provider.connections, refused, tuple(failed))
    finally:
        provider.close()


def run(provider: Provider, runners: Sequence[Runner], *, together: bool) -> None:
    """Start them; where the calls are made together, nobody is answered before each of them has come, or ended."""
    for runner in runners:
        runner.ready.wait(GIVES_UP_S)
    with provider.holding() if together else nullcontext():
        for runner in runners:
            runner.go()
        until = time.monotonic() + (ALL_THERE_S if together else 0)
        while len(provider.asked) + sum(len(runner.ended) for runner in runners) < CALLS and time.monotonic() < until:
            time.sleep(0.02)
    for runner in runners:
        runner.end()


def surroundings(provider: Provider, folder: str, source: Path | None, tables: Path) -> dict[str, str]:
    """The environment of a runner: a home of its own, and the provider where both SDKs look for one."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": folder,
        "ANTHROPIC_API_KEY": "test-key",
        "ANTHROPIC_BASE_URL": provider.url,
        "OPENAI_API_KEY": "test-key",
        "OPENAI_BASE_URL": f"{provider.url}/v1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TIKTOKEN_CACHE_DIR": str(tables),
        **({} if source is None else {"PYTHONPATH": str(source), "TOKENBUDGET_KEEPER_LINGER_S": "0.2"}),
    }


def tables(cache: Path) -> Path:
    """The rank tables of OpenAI's encodings, where a peer's tiktoken finds them without a download."""
    folder = cache / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for table in ("o200k_base", "cl100k_base"):
        file = folder / hashlib.sha1(f"{URL}{table}.tiktoken".encode(), usedforsecurity=False).hexdigest()
        if not file.exists():
            file.write_bytes(vendor(table).path.read_bytes())
    return folder


# --- environments ------------------------------------------------------------------------------------------------------------


def environment(racer: Racer, cache: Path) -> Path:
    """The Python of this racer's own environment, made where it is not there.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
        FileNotFoundError: there is no uv.
    """
    if not racer.install:
        return Path(sys.executable)
    place = cache / racer.install[0].replace("==", "-")
    python, done = place / "bin/python", place / "installed"
    if not done.exists() or done.read_text() != " ".join(racer.install):
        beside = Path(sys.executable).with_name("uv")
        uv = str(beside) if beside.exists() else shutil.which("uv")
        if uv is None:
            raise FileNotFoundError("there is no uv here")
        for command in (
            ["venv", "--clear", "--python", sys.executable, str(place)],
            ["pip", "install", "--python", str(python)],
        ):
            more = racer.install if command[0] == "pip" else ()
            subprocess.run([uv, *command, "--quiet", *more], check=True, capture_output=True, text=True, timeout=600)
        done.write_text(" ".join(racer.install))
    return python


def why_not(error: Exception) -> str:
    """Why a peer is not here, in a line."""
    said = (error.stderr or "").strip() if isinstance(error, subprocess.CalledProcessError) else f"{error}"
    return "cannot be installed, which needs PyPI: " + " ".join(said.split())[:160]


# --- for people --------------------------------------------------------------------------------------------------------------


def cell(result: Result | None) -> Text:
    """Requests and dollars; red where the cap was passed."""
    if result is None:
        return Text("–", "dim")
    shown = Text(f"{result.reached} · ${result.usd:.2f}", "green" if result.usd <= 1 else "bold red")
    if result.failed:
        shown = Text("not raced", "yellow") if not result.reached else shown.append(" *", "yellow")
    return shown


_NOTES = (
    "Requests that reached the provider, and what they cost there, of $1.00; three calls fit. In turn: until one is refused. "
    "Threads and tasks share one client, processes one file; –: by its documents, the package does not share a budget so. Of "
    "ours, not a byte was sent for a refused call, as only the three that were sent opened a connection. Where each way is "
    "documented:"
)


def raced(name: str, racer: Racer, cache: Path, saying: Callable[[str], object]) -> list[Result | None] | str:
    """How each of its races ended; or why there was none."""
    try:
        python = environment(racer, cache)
    except (OSError, subprocess.SubprocessError) as error:
        return why_not(error)
    results: list[Result | None] = []
    for how in WAYS:
        saying(f"{name}: {how}")
        results.append(race(name, racer, how, python, cache) if how in racer.hows else None)
    return results


def show(console: Console, found: dict[str, list[Result | None] | str]) -> None:
    """Print the table, and what has to be said of it."""
    ways = (WAYS[0], *(f"20 {how}" for how in WAYS[1:]))
    table = Table("", "version", *ways, title="Twenty calls of $0.30, and $1", title_justify="left")
    notes = [f"{name}: {why}" for name, why in NOT_RACED.items()]
    for name, results in found.items():
        install = RACERS[name].install
        version = install[0].partition("==")[2] if install else tbl.__version__
        if isinstance(results, str):
            table.add_row(name, version, *[Text("not here", "yellow")] * len(WAYS))
            notes.append(f"{name}: {results}")
        else:
            table.add_row(name, version, *map(cell, results))
            notes += [f"{name} *: {len(each.failed)} {each.failed[0][:200]}" for each in results if each and each.failed]
    sources = [f"{name}: {RACERS[name].source}" for name in found if RACERS[name].install]
    console.print(table)
    console.print(Text("\n".join(notes), "yellow"))
    console.print(Text("\n".join((_NOTES, *sources)), "dim"))


def main() -> int:
    """Race, print, and fail where ours is not three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", default=list(RACERS), choices=RACERS, metavar="NAME", help="names of racers")
    parser.add_argument("--offline", action="store_true", help="ours alone")
    parser.add_argument("--cache", type=Path, default=user_cache_path("tokenbudget_lab") / "bench", help="for environments")
    arguments = parser.parse_args()
    check_prices()
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    names = [name for name in arguments.only if not (arguments.offline and RACERS[name].install)]
    with console.status("") if console.is_terminal else nullcontext() as status:
        saying = status.update if status is not None else bool
        found = {name: raced(name, RACERS[name], arguments.cache, saying) for name in names}
    show(console, found)
    wrong = [
        f"{name}: {each}"
        for name, results in found.items()
        if not RACERS[name].install and not isinstance(results, str)
        for each in results
        if each is not None and not each.held
    ]
    console.print(Text("\n".join(wrong), "bold red"), end="")
    return 1 if wrong else 0


def check_prices() -> None:
    """Each call costs what is said, to the last digit."""
    for model in {racer.model for racer in RACERS.values()}:
        path = "/v1/chat/completions" if model.startswith("gpt") else "/v1/messages"
        assert tbl.cost(USAGE[path], model=model) == Decimal(str(CALL_USD)), model


if __name__ == "__main__":
    sys.exit(main())
