"""Compare our prices with a second list: `python benchmarks/prices.py`; needs PyPI, or `--list` with the file.

The second list is LiteLLM's, out of its wheel, read in a temporary folder and never kept. Each rate is asked of `tbl.cost` as
a user would, so that what is compared is a cost. A difference is known, with its reason, or it fails the run: two lists that
agree are worth more than one, and where they do not, somebody has to look at the provider's page.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package beside this file, installed or not

from rich.console import Console
from rich.table import Table

from tokenbudget_lab.errors import PriceUnknown
from tokenbudget_lab.pricing import Prices
from tokenbudget_lab.terms import Terms
from tokenbudget_lab.usage import Usage

LIST = "litellm/model_prices_and_context_window_backup.json"
SELLERS = {"anthropic": "", "openai": "", "gemini": "gemini/", "mistral": "mistral/", "xai": "xai/", "deepseek": "deepseek/"}
MODES = ("chat", "responses")
TERMS = {"": Terms(), "_batches": Terms(batch=True), "_flex": Terms(tier="flex"), "_priority": Terms(tier="priority")}
NAMES = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cache read": "cache_read_input_token_cost",
    "cache write 5m": "cache_creation_input_token_cost",
    "cache write 1h": "cache_creation_input_token_cost_above_1hr",
}
# model, terms, kind (patterns) → why the two lists differ.
KNOWN: dict[tuple[str, str, str], str] = {
    ("deepseek-*", "standard", "cache write 5m"): "the second list's 0: DeepSeek bills a write as plain input, once",
    ("deepseek-chat", "standard", "*"): "the catalogue keeps V3's price and its cheaper night; the second list has V3.2's",
    ("deepseek-reasoner", "standard", "*"): "the catalogue keeps R1's price; the second list has V3.2's",
    (
        "deepseek-v3.2",
        "standard",
        "*",
    ): "$0.2288 here, $0.28 there; neither says where that is from: look it up before you use it",
    ("mistral-*-latest", "standard", "*"): "an alias that moves: the catalogue has an older model behind it",
    ("magistral-*-latest", "standard", "*"): "as above",
    ("mistral-medium", "standard", "*"): "the name is Medium 3.1 in the catalogue, and Medium 3.5 in the second list",
    ("open-mistral-nemo", "standard", "*"): "$0.15 here, $0.30 there; neither says since when: look it up before you use it",
    ("codestral-latest", "standard", "cache read"): "no price for cached input in the catalogue, so it pays what input does",
    ("devstral-small-latest", "standard", "cache read"): "as above",
    ("mistral-tiny", "standard", "cache read"): "as above",
    ("pixtral-large-latest", "standard", "cache read"): "as above",
    ("gemini-2.5-pro-preview-tts", "standard", "cache read"): "as above",
    ("gpt-4o-search-preview*", "standard", "cache read"): "as above",
    (
        "gemini-3.5-flash-lite",
        "batches",
        "cache read",
    ): "Google's page has $0.02 for a batch, the catalogue says; the second list halves",
    (
        "gpt-5.5-pro*",
        "batches",
        "*",
    ): "OpenAI's batch table has base rates only, the catalogue says; the second list has a step",
    ("gpt-5.6-cyber", "standard", "*"): "OpenAI's page has no long-context rates for it, the catalogue says",
    ("grok-code-fast*", "standard", "*"): "xAI serves another model under this name by now, says the second list: look it up",
}


class Rate(NamedTuple):
    """USD per million tokens of one kind, on one kind of terms, for requests above a size."""

    model: str
    terms: str
    kind: str
    above: int
    usd: Decimal


def their_rates(listed: dict[str, Any]) -> Iterator[Rate]:
    """What the second list says of the models that text is asked of."""
    for name, model in listed.items():
        prefix = SELLERS.get(model.get("litellm_provider"))
        if prefix is None or model.get("mode") not in MODES or not name.startswith(prefix) or name.startswith("ft:"):
            continue
        for kind, key in NAMES.items():
            for suffix in TERMS:
                for field, value in model.items():
                    above = re.fullmatch(rf"{key}(?:_above_(\d+)k_tokens)?{suffix}", field)
                    if above is not None and isinstance(value, Decimal | int):
                        usd = Decimal(value) * 1_000_000
                        yield Rate(name.removeprefix(prefix), suffix, kind, int(above[1] or 0) * 1_000, usd)


def our_rate(prices: Prices, rate: Rate, at: datetime) -> Decimal:
    """The same out of what a request costs."""

    def cost(**usage: int) -> Decimal:
        counts = {"input_tokens": size, "output_tokens": 0, **usage}
        return prices.cost(Usage(**counts), rate.model, at=at, context=TERMS[rate.terms].context)

    size = (rate.above or 999) + 1
    if rate.kind == "output":
        return (cost(output_tokens=1_000) - cost()) * 1_000
    part = {} if rate.kind == "input" else {f"{rate.kind.replace(' ', '_')}_tokens": size}
    return cost(**part) * 1_000_000 / size


def known(rate: Rate) -> str | None:
    """Why the lists differ here, where that is known."""
    for (model, terms, kind), why in KNOWN.items():
        if fnmatch(rate.model, model) and fnmatch(rate.terms.strip("_") or "standard", terms) and fnmatch(rate.kind, kind):
            return why
    return None


def read_list(path: Path | None) -> tuple[str, dict[str, Any]]:
    """The second list and its version, downloaded where no file is named."""
    if path is not None:
        return path.name, json.loads(path.read_text("utf-8"), parse_float=Decimal)
    with tempfile.TemporaryDirectory() as folder:
        asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "litellm"]
        subprocess.run(asked, check=True, timeout=600)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            return " ".join(wheel.name.split("-")[:2]), json.loads(archive.read(LIST), parse_float=Decimal)


def main() -> int:
    """Compare, and fail on a difference that is not known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--list", type=Path, help="LiteLLM's price list, where it is here already")
    parser.add_argument("--all", action="store_true", help="show what is refused here too")
    arguments = parser.parse_args()
    version, listed = read_list(arguments.list)
    prices, at, console = Prices(), datetime.now(UTC).replace(hour=9), Console()  # the second list has the hours' highest price
    agreed, refused, differences = Counter[str](), Counter[str](), list[tuple[Rate, Decimal, str | None]]()
    for rate in their_rates(listed):
        terms = rate.terms.strip("_") or "standard"
        try:
            ours = our_rate(prices, rate, at)
        except PriceUnknown as error:
            refused[terms] += 1
            if arguments.all:
                console.print(f"refused: {rate.model} {terms} {rate.kind}: {error.reason}", highlight=False, markup=False)
            continue
        if ours == rate.usd:
            agreed[terms] += 1
        else:
            differences.append((rate, ours, known(rate)))
    table = Table(
        "model", "terms", "kind", "above", f"genai-prices, {at:%Y-%m-%d}", version, "why", title="USD per million tokens"
    )
    for rate, ours, why in sorted(differences, key=lambda each: (each[2] is not None, each[0])):
        shown = (rate.model, rate.terms.strip("_"), rate.kind, f"{rate.above:,}", f"{ours:f}", f"{rate.usd.normalize():f}")
        table.add_row(*shown, why or "[bold red]not known[/]")
    console.print(table)
    unlisted = sum(why is None for *_, why in differences)
    for terms in agreed:
        console.print(f"{terms:>9}: {agreed[terms]:,} rates agree, {refused[terms]:,} have no price here")
    console.print(f"{len(differences):,} differ, {unlisted:,} of them without a known reason")
    return 1 if unlisted or not agreed else 0


if __name__ == "__main__":
    sys.exit(main())
