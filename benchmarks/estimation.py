"""Measure the estimate of tokens: how far it is off on texts that were not fitted, how fast it is, and the memory of a plan.

    python benchmarks/estimation.py [--fetch-ctok] [/ /tmp/unpacked …]

The texts are the held-out documents of `data/estimation_texts.py`, as far as they are installed below the folders given. o200k
is always judged; Claude where `ctok` can be imported. `--fetch-ctok` installs it into a temporary folder for this run, with
pip from PyPI: it asks for Python 3.12, and runs on 3.11 as well.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from timeit import repeat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package beside this file, installed or not

from data.estimation_counts import COUNTERS, o200k, o200k_encoding
from data.estimation_texts import CODE, ENGLISH, MADE, Text, texts
from tokenbudget_lab.counters.estimation import EstimationTokenCounter
from tokenbudget_lab.learning import ENOUGH, Pair, learned
from tokenbudget_lab.weighing import Family, family

MODELS = {"o200k": "gpt-6-mini", "claude-4.6": "claude-sonnet-4-5", "claude-4.7+": "claude-sonnet-5-5"}
RATIO = {"claude-4.6": 1.23, "claude-4.7+": 1.53}  # a usual rule for Claude: OpenAI's count times a constant
COMMON = 12  # held-out pieces of a language that is judged
BATCHES = 20  # per group
SHORT = "We asked forty students to read the same short story twice, once in the morning and once late at night. Most of them "
SHORTS = {
    "English": (SHORT * 2)[:200],
    "code": (Path(random.__file__).read_text("utf-8"))[9_000:9_200],
    "Russian": ("Каждую весну река выходила из берегов и заливала нижние улицы города. " * 3)[:200],
}


def mean_errors(estimates: Sequence[float], truth: Sequence[int], pieces: Sequence[Text]) -> dict[str, float]:
    """Mean absolute relative error: of English, code, the made-up texts, and the mean of the other languages."""
    by_group: dict[str, list[float]] = defaultdict(list)
    for estimate, count, piece in zip(estimates, truth, pieces, strict=True):
        by_group[piece.group].append(abs(estimate / count - 1))
    means = {group: statistics.mean(errors) for group, errors in by_group.items()}
    own = (ENGLISH, CODE, MADE)
    languages = [mean for group, mean in means.items() if group not in own and len(by_group[group]) >= COMMON]
    return {"languages": statistics.mean(languages or [math.nan]), **{group: means.get(group, math.nan) for group in own}}


def batch_error(
    estimates: Sequence[float], truth: Sequence[int], pieces: Sequence[Text], of: Family
) -> tuple[float, float, float]:
    """After five calls of a group (a language, code …): error of all others' sum, of one of them, and what margins cover."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for estimate, count, piece in zip(estimates, truth, pieces, strict=True):
        groups[f"{piece.group} {piece.source}"].append(Pair(estimate, count))
    chance, sums, singles, covered = random.Random(1), [], [], []
    for pairs in groups.values():
        for _ in range(BATCHES if len(pairs) >= 30 else 0):
            chance.shuffle(pairs)
            found, rest = learned(pairs[:ENOUGH], of.margin(1_000)), pairs[ENOUGH:]
            total = sum(one.estimated for one in rest) * found.scale
            sums.append(abs(total / sum(one.measured for one in rest) - 1))
            singles += [abs(one.estimated * found.scale / one.measured - 1) for one in rest]
            covered += [abs(one.measured / one.estimated / found.scale - 1) <= (found.margin or 0) for one in rest]
    return statistics.mean(sums or [math.nan]), statistics.mean(singles or [math.nan]), statistics.mean(covered or [math.nan])


def judge(name: str, count: Callable[[str], int], pieces: Sequence[Text], plain: Sequence[int]) -> None:
    """Print the errors of one family beside those of the usual rules."""
    of = family(name)
    truth = [count(piece.text) for piece in pieces]
    estimates = [of.tokens(piece.text) for piece in pieces]
    print(f"\n{name}: mean absolute error on held-out pieces   {'languages':>10}{ENGLISH:>10}{CODE:>10}{MADE:>10}")
    rules = {
        "this estimate": estimates,
        "characters / 4": [len(piece.text) / 4 for piece in pieces],
    }
    if name in RATIO:
        rules[f"o200k × {RATIO[name]:g}"] = [number * RATIO[name] for number in plain]
    for rule, values in rules.items():
        errors = mean_errors(values, truth, pieces)
        print(f"  {rule:<48}{''.join(f'{error:>10.1%}' for error in errors.values())}")
    batch, single, covered = batch_error(estimates, truth, pieces, of)
    print(
        f"  after {ENOUGH} calls of a group: a whole batch {batch:.1%}, a single call {single:.1%}; margins cover {covered:.0%}"
    )


def speed() -> None:
    """Print how long 200 characters take, beside tiktoken's two calls, which take turns with it."""
    encoding, counter = o200k_encoding(), EstimationTokenCounter("gpt-6-mini")
    print("\n200 characters, µs                  estimate   tiktoken encode   encode_ordinary")
    for name, text in SHORTS.items():
        calls: list[Callable[[], object]] = [
            lambda text=text: counter.count_sync(text),  # type: ignore[misc]
            lambda text=text: encoding.encode(text, disallowed_special=()),  # type: ignore[misc]
            lambda text=text: encoding.encode_ordinary(text),  # type: ignore[misc]
        ]
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(40):
            for call, taken in zip(calls, times, strict=True):
                taken.extend(repeat(call, number=500, repeat=1))
        ours, *theirs = (min(each) / 500 * 1e6 for each in times)
        print(f"  {name:<32}{ours:>10.1f}" + "".join(f"{other:>11.1f} (× {other / ours:.1f})" for other in theirs))


PLANNED = (20_000, 100_000)  # prompts
PLAN = """
import sys
from pathlib import Path
import tokenbudget_lab as tbl
from tokenbudget_lab.prompts import read_prompts

model, path, source = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
tbl.estimate(["a"], model=model, max_output_tokens=100, progress=False)  # imports, and the encoding's table
read = read_prompts(path) if source == "a file" else [*read_prompts(path)]

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = peak()
plan = tbl.estimate(read, model=model, max_output_tokens=100, progress=False)
print(plan.calls, (peak() - before) / 1024)
"""


def memory() -> None:
    """Print the peak of a plan's memory, beside that of its prompts, for two numbers of prompts of 200 characters."""
    if not Path("/proc/self/clear_refs").exists():
        print("\nthe memory of tbl.estimate: not measured, Linux only")
        return
    import polars as pl

    print(
        "\ntbl.estimate, prompts of 200 characters, MB   "
        + "".join(f"{number:>12,}" for number in PLANNED)
        + "    bytes a prompt"
    )
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
        paths = [Path(folder, f"{number}.parquet") for number in PLANNED]
        for path, number in zip(paths, PLANNED, strict=True):
            text = (SHORT * 2)[:192]
            pl.DataFrame({"prompt": [f"{n:>8}{text}" for n in range(number)]}).write_parquet(path)
        for model in ("gpt-6-mini", "claude-sonnet-5-5"):
            for source in ("a file", "a list"):
                peaks = [_peak(model, path, source) for path in paths]
                each = (peaks[1] - peaks[0]) * 2**20 / (PLANNED[1] - PLANNED[0])
                print(f"  {model + ', from ' + source:<44}" + "".join(f"{peak:>12.1f}" for peak in peaks) + f"{each:>18.0f}")


def _peak(model: str, path: Path, source: str) -> float:
    """How many MB the process grew by, at most: the median of three."""
    command = [sys.executable, "-c", PLAN, model, str(path), source]
    told = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1] for _ in range(3)]
    return statistics.median(map(float, told))


def fetch_ctok(folder: str) -> None:
    """Install ctok, and the regex package that it needs, where only this run finds them."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
    for what in (["regex"], ["--no-deps", "--ignore-requires-python", "ctok==1.3.0"]):
        subprocess.run([*pip, *what], check=False, timeout=300)
    sys.path.append(folder)


def main() -> None:
    """Judge each family, then measure."""
    parser = argparse.ArgumentParser(description="How far the estimate of tokens is off, and how fast it is.")
    parser.add_argument("--fetch-ctok", action="store_true", help="install the reference for Claude into a temporary folder")
    parser.add_argument("roots", nargs="*", type=Path, default=[Path("/")], help="folders that look like / (default: /)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-ctok-") as folder:
        if args.fetch_ctok:
            fetch_ctok(folder)
        run(args.roots)


def run(roots: Sequence[Path]) -> None:
    """Judge what is below these folders, then measure."""
    pieces = [piece for piece in texts(roots) if piece.held_out]
    if not pieces:
        sys.exit("no text was found below these folders")
    languages = sum(n >= COMMON for n in Counter(piece.group for piece in pieces).values()) - 3
    print(f"Python {platform.python_version()}; {len(pieces):,} held-out pieces, {languages} languages with {COMMON} or more")
    count = o200k()
    plain = [count(piece.text) for piece in pieces]
    for name in MODELS:
        try:
            judge(name, COUNTERS[name](), pieces, plain)
        except ImportError as error:
            print(f"\n{name}: not judged, as {error.name} is not here; see tokenbudget_lab/data/estimation.json")
    speed()
    memory()


if __name__ == "__main__":
    main()
