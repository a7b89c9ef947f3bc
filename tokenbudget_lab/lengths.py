"""How long answers will be, told by those that were measured: for as many calls of one kind as are planned.

Its readers may rely on two things: no answer is taken to be longer than it may be, and where too few are known all are taken to
be as long as that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from .connection import Ledger
from .handles import Budget

ENOUGH = 5  # measured answers, from which on their lengths say more than the longest that is allowed
_WIDE = 120  # characters of a label or tags that are told
_Z = 1.645  # of the normal distribution: nine in ten lie within


@dataclass(frozen=True, slots=True)
class Answers:
    """How long answers are expected to be, in tokens for one call.

    Attributes:
        mean: the expected length.
        lower, upper: where nine in ten totals, divided by the number of calls, are expected.
        known: what that was learned from.
    """

    mean: float
    lower: float
    upper: float
    known: str


def answers_of(
    ledger: Ledger | None,
    model: str,
    label: str | Mapping[str, str] | None,
    budget: Budget | None,
    calls: int,
    longest: int,
) -> Answers:
    """What measured answers of this kind say of the next ones; no answer is longer than it may be."""
    if ledger is None or (label is None and budget is None):
        return Answers(longest, 0, longest, "as long as allowed; no measured calls to learn from")
    what = (
        f"label {label}" if isinstance(label, str) else f"{dict(label)}" if label else f"budget {budget.name if budget else ''}"
    )
    what = what if len(what) <= _WIDE else f"{what[: _WIDE - 1]}…"
    lengths = [min(length, longest) for length in measured(ledger, model, label, budget)]
    if len(lengths) < ENOUGH:
        return Answers(longest, 0, longest, f"as long as allowed; {len(lengths) or 'no'} measured calls of {what}")
    return answers_like(lengths, calls, longest, what)


def answers_like(lengths: Sequence[int], calls: int, longest: int, what: str) -> Answers:
    """The prediction for so many calls, from the lengths of some that were measured."""
    known, mean = len(lengths), fmean(lengths)
    spread = max(stdev(lengths), mean / known)  # a few equal ones are not all that there are
    around = t_of(known) * spread * math.sqrt(1 / calls + 1 / known)
    return Answers(mean, max(0.0, mean - around), min(longest, mean + around), f"as {known:,} measured calls of {what}")


def t_of(known: int) -> float:
    """Student's t for nine in ten, two-sided, of so many values (2 or more), to first order in 1 / (known - 1).

    Examples:
        >>> round(t_of(12), 2)
        1.78
    """
    return _Z * (1 + (_Z**2 + 1) / (4 * (known - 1)))


def measured(
    ledger: Ledger, model: str, label: str | Mapping[str, str] | None = None, budget: Budget | None = None
) -> list[int]:
    """Output tokens of the measured calls of a model, with these tags or in this budget and below it."""
    import polars as pl

    from .frames import tag

    tags = {"label": label} if isinstance(label, str) else dict(label or {})
    chosen = (pl.col("model") == model) & (pl.col("basis") == "measured") & pl.col("output_tokens").is_not_null()
    chosen &= pl.col("requests") == 1  # of several the longest is not known
    for name, value in tags.items():
        chosen &= tag(name) == value
    if budget is not None and not tags:
        chosen &= (pl.col("budget") == budget.name) | pl.col("budget").str.starts_with(f"{budget.name}/")
    wanted = ["model", "basis", "output_tokens", "requests", "budget", "tags"]
    found: list[int] = ledger.calls().select(wanted).filter(chosen).select("output_tokens").collect().to_series().to_list()
    return found
