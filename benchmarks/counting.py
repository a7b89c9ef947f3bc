"""Measure counting beside tiktoken, on this machine, now: `python benchmarks/counting.py`; `make bench` runs it too.

A rate by itself says more about the machine than about the counter, so what counts is the ratio to tiktoken, called in a plain
loop on the same texts moments before. Rounds are interleaved and every figure is the median. That the counts are the same is
checked as well.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package beside this file, installed or not

import polars as pl
from rich.console import Console
from rich.table import Table

import tokenbudget_lab as tbl
from tokenbudget_lab import OpenAITokenCounter
from tokenbudget_lab.encodings import encoding

ROUNDS = 9
MODEL = "gpt-4o"
Texts = Sequence[str]


@dataclass(frozen=True, slots=True)
class Line:
    """One way of counting: a name, what it does with the texts, and the ratio to tiktoken that is promised."""

    name: str
    count: Callable[[Texts], list[int]]
    promised: float | None = None
    exact: bool = True


def by_tiktoken(texts: Texts) -> list[int]:
    """What everybody writes."""
    encode = encoding("o200k_base").encode
    return [len(encode(text, disallowed_special=())) for text in texts]


def by_counter(backend: str) -> Callable[[Texts], list[int]]:
    """Ours, many at once."""
    counter = OpenAITokenCounter(MODEL, backend=backend)
    return lambda texts: [count.tokens for count in counter.count_many_sync(texts, progress=False)]


LINES = (
    Line("tiktoken, in a loop", by_tiktoken),
    Line("count_many, tiktoken", by_counter("tiktoken")),
    Line("count_many, toktok", by_counter("toktok"), promised=8),
)


def bulk(megabytes: float) -> Texts:
    """Documents of some kilobytes: Python's own library, over and over."""
    paths = sorted(Path(statistics.__file__).parent.glob("*.py"))
    texts = [path.read_text(errors="replace") for path in paths]
    texts = [text[start : start + 8_000] for text in texts for start in range(0, len(text), 8_000)]
    most, size = round(megabytes * 1e6), 0
    chosen: list[str] = []
    while size < most:
        chosen.append(texts[len(chosen) % len(texts)])
        size += len(chosen[-1])
    return chosen


def short(count: int) -> Texts:
    """Prompts of about two hundred characters."""
    return [text[:200] for text in bulk(count * 8_000 / 1e6)][:count]


def measure(lines: Sequence[Line], texts: Texts) -> dict[str, float]:
    """The median time of each line (s), all of them in turn."""
    took: dict[str, list[float]] = {line.name: [] for line in lines}
    truth = by_tiktoken(texts)
    for line in lines:  # loads what it needs
        assert not line.exact or line.count(texts) == truth, line.name
    for _ in range(ROUNDS):
        for line in lines:
            start = time.perf_counter()
            line.count(texts)
            took[line.name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in took.items()}


def estimated(count: int, kind: str = "frame") -> dict[str, float]:
    """`tbl.estimate` of so many prompts of two hundred characters: seconds, MB that the process grew by, MB of its result."""
    frame = pl.DataFrame({"prompt": list(short(5_000)) * (count // 5_000)})
    tbl.estimate(frame.head(1_000), model=MODEL, max_output_tokens=200, progress=False)  # what is imported and read once
    prompts = frame if kind == "frame" else [f"naïve {prompt}" for prompt in frame["prompt"]]  # each a text of its own
    before, start = memory("VmRSS"), time.perf_counter()
    plan = tbl.estimate(prompts, model=MODEL, max_output_tokens=200, progress=False)
    took = time.perf_counter() - start
    assert plan.calls == count
    return {"s": took, "MB": max(0.0, memory("VmHWM") - before), "result": plan.frame.estimated_size("mb")}


def memory(what: str) -> float:
    """Of this process, in MB: `VmRSS` now, `VmHWM` at most since this was last asked for `VmRSS`."""
    if what == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Print a table for each kind of text, and how long an estimate takes."""
    out = Console()
    estimated(10_000)  # from here on no memory is claimed for the first time
    for kind, count in product(("frame", "list"), (20_000, 100_000, 500_000)):
        found = estimated(count, kind)
        promised = " (promised: under 5)" if count == 100_000 else ""
        out.print(
            f"estimate of {count:,} prompts of 200 characters, a {kind}: {found['s']:.1f} s{promised}, "
            f"{found['MB']:.0f} MB more, {found['result']:.0f} of them the result"
        )
    for title, texts in (("bulk text", bulk(3)), ("short prompts", short(5_000))):
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        took = measure(LINES, texts)
        table = Table(
            "way", "MB/s", "µs a text", "times tiktoken", "promised", title=f"{title}: {len(texts):,}, {megabytes:.1f} MB"
        )
        for line in LINES:
            seconds, ratio = took[line.name], took[LINES[0].name] / took[line.name]
            promised = f"{line.promised:g}" if line.promised and title == "bulk text" else ""
            each = f"{seconds / len(texts) * 1e6:.1f}"
            table.add_row(line.name, f"{megabytes / seconds:.0f}", each, f"{ratio:.1f}", promised)
        out.print(table)


if __name__ == "__main__":
    main()
