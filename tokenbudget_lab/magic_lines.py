"""What stands behind `%%budget`: a name, limits and tags, read without running anything."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from .errors import InvalidValue, told

USAGE = "%%budget NAME [--usd 2] [--tokens 1000] [--requests 10] [--window day] [--tag name=value] [--ledger variable]"
OPTIONS = ("--usd", "--tokens", "--requests", "--window", "--tag", "--ledger")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a line asks for.

    Attributes:
        name: of the budget, or of a variable that has one.
        limits: as `ledger.budget` takes them.
        tags: for every call of the cell.
        ledger: the name of a variable with a ledger; the default ledger where there is none.
    """

    name: str
    limits: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    ledger: str | None = None


def asked(line: str) -> Asked:
    """Read a line.

    Raises:
        InvalidValue: it cannot be read; says what is wrong and how it is written.

    Examples:
        >>> asked("lab/study --usd 2 --tag condition=few-shot")
        Asked(name='lab/study', limits={'usd': '2'}, tags={'condition': 'few-shot'}, ledger=None)
    """
    try:
        words = shlex.split(line)
    except ValueError as error:  # a quote that is not closed
        raise InvalidValue("its line", f"{told(line)} cannot be read: {error}. Write {USAGE}") from error
    name: str | None = None
    limits: dict[str, Any] = {}
    tags: dict[str, str] = {}
    ledger: str | None = None
    given_before: set[str] = set()
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if name is not None:
                raise InvalidValue("its line", f"{told(word)} is a second name beside {told(name)}. Write {USAGE}")
            name = word
            continue
        option, given, value = word.partition("=")
        if option not in OPTIONS:
            near = get_close_matches(option, OPTIONS, 1)
            raise InvalidValue("its line", f"{told(option)} is no option{f'; {near[0]} is' if near else ''}. Write {USAGE}")
        if not given:
            if not words or words[0].startswith("--"):
                raise InvalidValue(option, f"has no value. Write {USAGE}")
            value = words.pop(0)
        if option != "--tag" and option in given_before:
            raise InvalidValue(option, f"is given twice. Write {USAGE}")
        given_before.add(option)
        if option == "--tag":
            key, is_pair, label = value.partition("=")
            if not is_pair or not key:
                raise InvalidValue("--tag", f"{told(value)} is no pair; write --tag condition=few-shot")
            if tags.setdefault(key, label) != label:
                raise InvalidValue(
                    "--tag", f"{told(key)} is given two values, {told(tags[key])} and {told(label)}; a tag has one"
                )
        elif option == "--ledger":
            ledger = value
        else:
            limits[option.removeprefix("--")] = value if option in ("--usd", "--window") else _whole(option, value)
    if name is None:
        raise InvalidValue("its line", f"names no budget. Write {USAGE}")
    if "window" in limits and len(limits) == 1:
        raise InvalidValue("--window", "needs a limit beside it: --usd, --tokens or --requests")
    return Asked(name, limits, tags, ledger)


def _whole(option: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise InvalidValue(option, f"{told(value)} is no whole number such as 1000")
    return int(value)
