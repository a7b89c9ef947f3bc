"""Counting tokens before a call is sent: what a counter is, and what it answers.

A count says how it was made and how far it may be off. No counter answers zero for what it does not know, none hides that it
fell back to another way, and none touches the network unless that is its way of counting.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from . import loops
from .errors import CountFailed, InvalidType, InvalidValue, told
from .progress import Bar, bar_for
from .usage import tokens_of

Content = str | Sequence[Mapping[str, Any]]  # a text, or messages as the provider's API takes them
Tools = Sequence[Mapping[str, Any]]
System = str | Sequence[Mapping[str, Any]]
_OF_ALL = ("tools", "system")  # what is wrong in these is wrong with each content


@dataclass(frozen=True, slots=True)
class Count:
    """How many tokens something has.

    Args:
        tokens: the count, or the best estimate.
        exact: whether the provider would count the same.
        method: how it was counted: `tiktoken o200k_base`, `count_tokens`, `estimate`, …
        margin: how far the true number may be off, as a part of `tokens`: 0.1 is ten per cent; 0 where it is exact.
        note: what else is to be known: that an encoding was assumed, or which counter did not answer, and why.

    Raises:
        InvalidValue: a negative count or margin; an exact count with a margin.

    Examples:
        >>> count = Count(1_000, exact=False, method="estimate", margin=0.08)
        >>> count.upper, int(count)
        (1080, 1000)
    """

    tokens: int
    exact: bool
    method: str
    margin: float = 0.0
    note: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tokens_of("tokens", self.tokens))
        if not 0 <= self.margin < math.inf or (self.exact and self.margin):
            raise InvalidValue("margin", f"{self.margin!r} is not a part of the count, or the count is exact")

    @property
    def upper(self) -> int:
        """The count with its margin: what to reserve for."""
        return self.tokens + math.ceil(round(self.tokens * self.margin, 6))  # 0.07 × 100 is 7.000000000000001

    @property
    def lower(self) -> int:
        """The count less its margin."""
        return max(0, self.tokens - math.ceil(round(self.tokens * self.margin, 6)))

    def __index__(self) -> int:
        return self.tokens

    def __str__(self) -> str:
        said = "" if self.exact else f" ± {self.margin:.0%}" if self.margin else " or so"
        return f"{self.tokens:,} tokens{said} ({self.method}{f'; {self.note}' if self.note else ''})"


class TokenCounter(ABC):
    """Counts tokens as one provider, or one family of models, does.

    `count` is asked with `await`, `count_sync` anywhere: in a script, a thread, a notebook's cell, also where a loop runs.
    """

    @abstractmethod
    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        """How many input tokens a request with this content has.

        Args:
            content: a text, or messages as the provider's API takes them.
            tools: tool definitions as the provider's API takes them.
            system: the system prompt, where it is not among the messages.

        Raises:
            InvalidType: it is neither text nor messages.
            CountFailed: it cannot be counted in this way.
        """

    def count_sync(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        """The same from sync code; Ctrl-C cancels it."""
        return loops.run(self.count(content, tools=tools, system=system))

    async def count_many(
        self,
        contents: Iterable[Content],
        *,
        tools: Tools | None = None,
        system: System | None = None,
        concurrency: int = 32,
        progress: bool | None = None,
    ) -> list[Count]:
        """Count many, each as `count` does, in the order in which they are given.

        Args:
            contents: texts or messages: a list, a column of a Polars frame, or anything that yields them; it is read as the
                counting goes on.
            tools, system: for each of them.
            concurrency: how many are counted at the same time.
            progress: whether to show a bar; by itself one is shown, in a terminal or notebook, to who waits for more than a
                second.

        Raises:
            InvalidType: one of them is neither text nor messages, such as a null of a column; it is named by its place.
            CountFailed: one of them cannot be counted; its `index` says which. Nothing is left out and nothing guessed; what is
                still being counted is cancelled.
        """
        counts: dict[int, Count] = {}
        source = enumerate(items(contents))

        async def work(bar: Bar) -> None:
            for index, content in source:
                with Placed(index):
                    counts[index] = await self.count(content, tools=tools, system=system)
                bar.update(1)

        with counting_bar(contents, progress) as bar:
            tasks = [asyncio.create_task(work(bar)) for _ in range(at_least_one("concurrency", concurrency))]
            try:
                await asyncio.gather(*tasks)
            finally:
                await _ended(tasks)
        return [counts[index] for index in range(len(counts))]

    def count_many_sync(
        self,
        contents: Iterable[Content],
        *,
        tools: Tools | None = None,
        system: System | None = None,
        concurrency: int = 32,
        progress: bool | None = None,
    ) -> list[Count]:
        """The same from sync code; Ctrl-C cancels what is still being counted."""
        many = self.count_many(contents, tools=tools, system=system, concurrency=concurrency, progress=progress)
        return loops.run(many)


# --- many -----------------------------------------------------------------------------------------------------------------


class Placed:
    """A block that counts one of many: what is raised in it names the place."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CountFailed):
            raise type(error)(error.method, error.reason, self._index) from error
        if isinstance(error, InvalidValue) and not error.argument.startswith(_OF_ALL):
            within = error.argument.removeprefix("content")
            where = within if within.startswith((".", "[")) or not within else f", {within}"
            raise type(error)(f"contents[{self._index}]{where}", error.reason) from error


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until each has tidied up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def items(contents: Iterable[Content]) -> Iterator[Content]:
    """What is to be counted, one after the other.

    Raises:
        InvalidType: it is one text, or one thing that holds none; one of the items is `None`.
    """
    if isinstance(contents, str | bytes | Mapping) or not isinstance(contents, Iterable):
        raise InvalidType("contents", f"{told(contents)} is {type(contents).__name__}, not a list of texts or a column of them")
    return iter(contents)


def size_of(contents: object) -> int | None:
    """How many there are, where that is said before they are read; whoever says nonsense has not said it."""
    try:
        return len(contents) if isinstance(contents, Sized) else None
    except Exception:  # noqa: BLE001 - somebody else's code, asked for a bar only
        return None


def counting_bar(contents: object, progress: bool | None) -> Bar:  # noqa: FBT001 - it is passed on
    """A bar for as many as there are."""
    return bar_for("counting", size_of(contents), progress)


def at_least_one(name: str, value: int) -> int:
    """A number of things that is 1 or more."""
    if (checked := tokens_of(name, value)) < 1:
        raise InvalidValue(name, f"{value} is less than 1")
    return checked
