"""Putting a client under a budget: `instrument`, and `tagged` for its calls' labels.

Another package brings the way into its SDK through an entry point of the group `tokenbudget_lab.instruments`. The entry point's
name is the top package of the clients that it takes, so that only what fits is imported:

    [project.entry-points."tokenbudget_lab.instruments"]
    "lab_gemini" = "lab_gemini.budgets"          # a module with `instrument(client, meter)` and `retagged(client, tags)`
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar, cast

from .counter import TokenCounter
from .errors import InvalidType, InvalidValue, told
from .handles import Budget
from .metering import Meter, policy_of

GROUP = "tokenbudget_lab.instruments"
C = TypeVar("C")
_OURS = {"anthropic": "anthropic", "openai": "openai", "httpx": "transport", "httpx2": "transport", "litellm": "litellm"}


class _Way(Protocol):
    """What a module of an instrument has."""

    def instrument(self, client: Any, meter: Meter) -> Any:
        """A client of the same type whose calls count."""

    def retagged(self, client: Any, tags: Mapping[str, str]) -> Any:
        """The same client with more tags; `None` where it is under no budget."""


def instrument(
    client: C,
    budget: Budget | None = None,
    *,
    tags: Mapping[str, str] | None = None,
    hold: Literal["auto", "worst"] = "auto",
    on_exceeded: Literal["wait", "raise"] = "wait",
    wait: float = 600.0,
    counter: TokenCounter | None = None,
) -> C:
    """Put a client under a budget: a new client of the same type, with the same connections. The one given stays as it is.

    Every HTTP attempt is reserved before it is sent and committed with what the provider reports, streams included. Nothing is
    patched, and no prompt, completion or key is kept.

    Args:
        client: of Anthropic's or OpenAI's SDK, sync or async; an `httpx2` or `httpx` client; or the module `litellm`. One that
            is under a budget already comes under this one instead.
        budget: where its calls count; where not given, in that of the block that they are made in (`with study.use():`).
        tags: labels of every call.
        hold: `auto`: for the answer, what 99 in 100 of the ledger's own calls of this model and tags stay under, once it knows
            20; `worst`: always the longest that the call allows. 8,192 tokens where it names no maximum.
        on_exceeded: `wait` in line while calls in flight, or a new window, could make room; or `raise` at once. What can never
            fit is refused at once.
        wait: how long to stand in line at most, in seconds.
        counter: counts the input; the model's local one where not given, which asks nobody.

    Raises:
        InvalidType: a client that is not known, or a budget that is none.
        BudgetExceeded (of its calls): it does not fit; nothing was sent.
        PriceUnknown (of its calls): a limit in USD, and no price for the model.
        CountFailed (of its calls): the input has parts that cannot be counted locally, such as a file.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     study = ledger.budget("study", usd=1)
        ...     client = tbl.instrument(tbl.demo_client(latency_s=(0, 0)), study, tags={"condition": "zero-shot"})
        ...     ask = [{"role": "user", "content": "What is a budget?"}]
        ...     reply = client.messages.create(model="claude-sonnet-5-5", max_tokens=64, messages=ask)
        ...     study.balance.committed_requests
        1
    """
    meter = Meter(budget, tags, policy_of(hold=hold, on_exceeded=on_exceeded, wait=wait, counter=counter))
    return cast("C", _way(client).instrument(client, meter))


def middleware(budget: Budget, *, tags: Mapping[str, str] | None, **policy: Any) -> Any:
    """What `Budget.middleware` gives."""
    ways: Any = importlib.import_module(".instruments.anthropic", __package__)
    return ways.BudgetMiddleware(Meter(budget, tags, policy_of(**policy)))


def sync_batches(ledger: Any, client: Any) -> Any:
    """What `Ledger.sync_batches` does."""
    way: Any = _way(client)
    if not hasattr(way, "sync_batches"):
        raise InvalidType("client", f"{type(client).__name__} has no batches that are known here")
    return way.sync_batches(ledger, client)


def tagged(client: C, **tags: str) -> C:
    """The same client with more labels on its calls: cheap enough for one per call, and safe in threads.

    Args:
        client: an instrumented one.
        tags: labels beside those it has; one of the same name is replaced.

    Raises:
        InvalidValue: the client is under no budget.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger:
        ...     client = tbl.instrument(tbl.demo_client(latency_s=(0, 0)), ledger.budget("study", usd=1))
        ...     ask = [{"role": "user", "content": "What is a budget?"}]
        ...     reply = tbl.tagged(client, item="q7").messages.create(model="claude-sonnet-5-5", max_tokens=9, messages=ask)
        ...     ledger.calls().collect()["tags"].to_list()
        [{'item': 'q7'}]
    """
    made = _way(client).retagged(client, tags)
    if made is None:
        raise InvalidValue("client", f"{type(client).__name__} is under no budget; tbl.instrument(client, budget) makes one")
    return cast("C", made)


def _way(client: Any) -> _Way:
    """The module that knows this client: by the package of its class, or of one that it inherits from.

    Raises:
        InvalidType: nobody knows it.
    """
    homes = [client.__name__] if isinstance(client, ModuleType) else [each.__module__ for each in type(client).__mro__]
    way = _way_for(tuple(dict.fromkeys(home.partition(".")[0] for home in homes)))
    if way is None:
        reason = (
            f"{told(client)} is {type(client).__name__}, which is not known here; give a client of Anthropic's or OpenAI's "
            "SDK, or pass the SDK an httpx client that is under the budget"
        )
        raise InvalidType("client", reason)
    return way


@cache
def _way_for(packages: tuple[str, ...]) -> _Way | None:
    """Others' ways first; kept, since looking through what is installed takes 15 ms, and a label is to take a tenth of one."""
    for package in packages:
        for point in entry_points(group=GROUP, name=package):
            return cast("_Way", point.load())
    for package in packages:
        if package in _OURS:
            return cast("_Way", importlib.import_module(f".instruments.{_OURS[package]}", __package__))
    return None
