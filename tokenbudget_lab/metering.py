"""A client's calls in a budget: what is held for each, and with which tags. Shared by all instruments.

Its reader may rely on two things: nothing is granted whose input was not counted, and no word of a request outlives its
counting here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

from .attempts import Attempt, BatchAttempt
from .calls import Call
from .checks import labels_of, tags_of
from .choosing import local_counter_for
from .commands import Reserve
from .counter import Count, Placed, TokenCounter
from .errors import CountFailed, InvalidType, InvalidValue, NoBudget, told
from .events import to_detail
from .handles import Budget
from .holding import USUAL_MOST, Held, Holds
from .ledger import Ledger
from .reservation import Reserving
from .scopes import block_budget, current_budget, current_tags

EXPIRES_AFTER_S = 3_600.0  # a hold that nobody settles; a call that takes longer is counted late, and rightly
OnExceeded = Literal["wait", "raise"]
Hold = Literal["auto", "worst"]

_holds: WeakKeyDictionary[Ledger, Holds] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Policy:
    """How a client's calls are held.

    Attributes:
        hold: `auto` or `worst`.
        wait_s: how long a call stands in line; 0 where a refusal is raised at once.
        counter: counts the input; the model's own local one where it is `None`.
    """

    hold: Hold = "auto"
    wait_s: float = 600.0
    counter: TokenCounter | None = None


def policy_of(*, hold: Any, on_exceeded: Any, wait: Any, counter: Any) -> Policy:
    """Check how calls are to be held.

    Raises:
        InvalidValue: a word that is none of those that are known, or a wait that is no duration.
        InvalidType: a counter that is none.
    """
    if hold not in ("auto", "worst"):
        raise InvalidValue("hold", f"{told(hold)} is neither 'auto' nor 'worst'")
    if on_exceeded not in ("wait", "raise"):
        raise InvalidValue("on_exceeded", f"{told(on_exceeded)} is neither 'wait' nor 'raise'")
    if isinstance(wait, bool) or not isinstance(wait, int | float):
        raise InvalidType("wait", f"{told(wait)} is {type(wait).__name__}, not seconds")
    if not 0 <= wait <= 48 * 3600:
        raise InvalidValue("wait", f"{told(wait)} s is not between 0 s and 48 h")
    if counter is not None and not isinstance(counter, TokenCounter):
        raise InvalidType("counter", f"{told(counter)} is {type(counter).__name__}, no TokenCounter")
    return Policy(hold, float(wait) if on_exceeded == "wait" else 0.0, counter)


class Meter:
    """Opens calls in a budget.

    Args:
        budget: where they count; `None`: in that of the block they are made in.
        tags: of every call.
        policy: how they are held.
        item_tags: of this call only; what is learned of answers does not depend on them.

    Attributes:
        used: a request went through it.
        files: what the files are that a batch's results stand in, by their ids, once the provider has said so.
    """

    __slots__ = ("__weakref__", "_counters", "_pending", "budget", "files", "item_tags", "policy", "tags", "used")

    def __init__(
        self,
        budget: Budget | None,
        tags: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        item_tags: Mapping[str, str] | None = None,
    ) -> None:
        if budget is not None and not isinstance(budget, Budget):
            raise InvalidType("budget", f"{told(budget)} is {type(budget).__name__}, not a budget; make one: tbl.budget(…)")
        self.budget, self.policy = budget, policy or Policy()
        self.tags, self.item_tags = dict(labels_of(tags)), dict(labels_of(item_tags))
        self.used = False
        self.files: dict[str, Any] = {}
        self._counters: dict[str, TokenCounter] = {}
        self._pending: deque[Any] = deque()  # receipts, and what can be read as they can

    def warn_unused(self, source: object, warn: Any = warnings.warn) -> None:
        """Warn that what was put under the budget was never called; `source` is what is being collected."""
        if not self.used and not sys.is_finalizing():
            warn(
                "an instrumented client was never called. tbl.instrument(client, …) returns a new client; the one that you "
                "gave it is under no budget",
                RuntimeWarning,
                source=source,
                stacklevel=3,
            )

    def tagged(self, tags: Mapping[str, str]) -> Meter:
        """The same with more tags."""
        self.used = True
        meter = Meter(self.budget, self.tags, self.policy, {**self.item_tags, **tags})
        meter._counters, meter._pending, meter.files, meter.used = self._counters, self._pending, self.files, True
        return meter

    # --- opening -----------------------------------------------------------------------------------------------------------

    def attempt(self, call: Call, *, retries: int = 0) -> Attempt:
        """Count a call, and be ready to ask for it.

        Raises:
            NoBudget: there is none in which it could count.
            CountFailed: its input cannot be counted.
        """
        budget, tags = self._scope()
        holds = holds_of(budget.ledger)
        if self.policy.hold == "auto" and not holds.is_known(call.model, tags):
            holds.read(call.model, tags)
        counter = self.policy.counter or self._local(call.model)
        parts = [counter.count_sync(content, **more) for content, more in _counted_parts(call)]
        return self._ready(call, _sum(parts, call.known_tokens + _followed(call, budget.ledger)), budget, tags, retries)

    async def attempt_async(self, call: Call, *, retries: int = 0) -> Attempt:
        """The same in async code."""
        budget, tags = self._scope()
        holds = holds_of(budget.ledger)
        if self.policy.hold == "auto" and not holds.is_known(call.model, tags):
            await asyncio.to_thread(holds.read, call.model, tags)
        if self.policy.counter is None:  # a local one, which asks nobody
            local = self._local(call.model)
            parts = [local.count_sync(content, **more) for content, more in _counted_parts(call)]
        else:
            parts = [await self.policy.counter.count(content, **more) for content, more in _counted_parts(call)]
        followed = await asyncio.to_thread(_followed, call, budget.ledger) if call.follows is not None else 0
        return self._ready(call, _sum(parts, call.known_tokens + followed), budget, tags, retries)

    def ledger(self) -> Ledger:
        """The ledger that its calls count in here.

        Raises:
            NoBudget: there is none.
        """
        return self._scope()[0].ledger

    def take(self, *receipts: Any) -> None:
        """Read these with the next call."""
        self._pending.extend(receipts)

    # --- batches -----------------------------------------------------------------------------------------------------------

    def batch(self, calls: Iterable[Call]) -> BatchAttempt:
        """Count all calls of a batch, and be ready to ask for the whole of it.

        Args:
            calls: at least one; each is forgotten before the next is taken.

        Raises:
            NoBudget, CountFailed: as for one call.
        """
        budget, tags = self._scope()
        ledger, holds = budget.ledger, holds_of(budget.ledger)
        picos: list[int | None] = []
        models: dict[str, str] = {}
        tokens = inputs = outputs = 0
        for call in calls:
            counter = self.policy.counter or self._local(call.model)
            with Placed(len(picos)):
                parts = [counter.count_sync(content, **more) for content, more in _counted_parts(call)]
            counted = _sum(parts, call.known_tokens + _followed(call, ledger))
            if self.policy.hold == "auto" and not holds.is_known(call.model, tags):
                holds.read(call.model, tags)
            written = self._held(call, holds, tags).tokens * call.answers
            pico, detail = ledger.worst_case(
                call.model, counted.upper, written, call.terms._replace(batch=True), call.cache_write
            )
            picos.append(pico)
            models.setdefault(call.model, call.provider)
            tokens, inputs, outputs = tokens + counted.upper + written, inputs + counted.upper, outputs + written
        model, *others = models
        told = {**json.loads(detail), "input_tokens": inputs, "max_output_tokens": outputs, "batch": {"items": len(picos)}}
        if others:
            told.pop("priced_as", None)
        command = Reserve(
            ledger.new_id(), budget.name, None if None in picos else sum(pico or 0 for pico in picos), tokens, len(picos), 0,
            "count", None, round(self.policy.wait_s * 1_000_000), models[model], None if others else model,
            tags_of({**tags, **self.item_tags}), to_detail(**told),
        )  # fmt: skip
        return BatchAttempt(budget, command, self._pending.append)

    def _scope(self) -> tuple[Budget, dict[str, str]]:
        """Where a call counts now (a block goes before the client, the client before the process), and its tags."""
        self._tell()
        budget = block_budget() or self.budget or current_budget()
        if budget is None:
            raise NoBudget
        tags = current_tags()
        return budget, {**self.tags, **tags} if tags else self.tags

    def _local(self, model: str) -> TokenCounter:
        counter = self._counters.get(model)
        if counter is None:
            counter = self._counters[model] = local_counter_for(model)
        return counter

    def _ready(self, call: Call, counted: Count, budget: Budget, tags: dict[str, str], retries: int) -> Attempt:
        reserving, holds = self._reserving(call, counted, budget, tags, retries), holds_of(budget.ledger)
        learn = partial(holds.learn, call.model, tags)
        return Attempt(call, reserving, counted, handed_in=self._pending.append, learn=learn, remember=holds.remember)

    def _reserving(self, call: Call, counted: Count, budget: Budget, tags: Mapping[str, str], retries: int) -> Reserving:
        held = self._held(call, holds_of(budget.ledger), tags)
        facts: dict[str, str | float] = {"hold": held.how, "counted_by": counted.method[:120]}
        if call.most_output_tokens is None:
            facts["no_maximum"] = "8192 output tokens taken"
        if retries:
            facts["attempt"] = retries + 1
        arguments = (
            None, None, None, call.model, counted, held.tokens * call.answers, call.terms, EXPIRES_AFTER_S,
            self.policy.wait_s, None, {**tags, **self.item_tags}, "count", call.cache_write,
        )  # fmt: skip
        return Reserving(budget, arguments, facts, warns=False)  # Ctrl-C may come before it is asked

    def _held(self, call: Call, holds: Holds, tags: Mapping[str, str]) -> Held:
        """What is held for one answer of a call."""
        most = USUAL_MOST if call.most_output_tokens is None else call.most_output_tokens
        return holds.auto(call.model, tags, most) if self.policy.hold == "auto" and most else Held(most, "worst")

    def _tell(self) -> None:
        """Raise what went wrong with calls that were settled before, and tell of their alerts."""
        pending = self._pending
        while pending and pending[0].done:
            try:
                receipt = pending.popleft()
            except IndexError:  # another thread was faster
                return
            receipt.result()


def holds_of(ledger: Ledger) -> Holds:
    """What a ledger teaches of the lengths of answers."""
    holds = _holds.get(ledger)
    return _holds.setdefault(ledger, Holds(ledger)) if holds is None else holds


# --- counting ----------------------------------------------------------------------------------------------------------------


def _counted_parts(call: Call) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The parts of a call's input, as counters take them."""
    if call.content or call.system or call.tools:
        yield call.content or [], {"tools": call.tools, "system": call.system}
    for text in call.beside:
        yield text, {}


def _sum(parts: list[Count], known: int) -> Count:
    if len(parts) == 1 and not known:
        return parts[0]
    tokens, upper = sum(part.tokens for part in parts) + known, sum(part.upper for part in parts) + known
    exact = all(part.exact for part in parts)
    margin = 0.0 if exact or not tokens else (upper - tokens) / tokens
    return Count(tokens, exact=exact, method=parts[0].method if parts else "given as tokens", margin=margin)


def _followed(call: Call, ledger: Ledger) -> int:
    """Tokens of an earlier reply and its request, which the model reads again; the ledger knows them by the reply's id.

    Raises:
        CountFailed: it does not.
    """
    if call.follows is None:
        return 0
    if (known := holds_of(ledger).of_reply(call.follows)) is not None:
        return known
    found = ledger.sql(  # type: ignore[attr-defined] # a ledger with frames
        "select sum(tokens) as tokens from calls where response_id = $id", id=call.follows
    )
    tokens = found["tokens"][0] if found.height else None
    if tokens is None:
        reason = f"this ledger has no reply {told(call.follows)}, so what the model reads again is not known; send the messages"
        raise CountFailed("previous_response_id", reason)
    return int(tokens)
