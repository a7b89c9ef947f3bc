"""Counting tokens before a call is sent: what a counter is, and what it answers.

A count says how it was made and how far it may be off. No counter answers zero for what it does not know, none hides that it
fell back to another way, and none touches the network unless that is its way of counting.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import loops
from .errors import InvalidValue
from .usage import tokens_of

Content = str | Sequence[Mapping[str, Any]]  # a text, or messages as the provider's API takes them
Tools = Sequence[Mapping[str, Any]]
System = str | Sequence[Mapping[str, Any]]


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
