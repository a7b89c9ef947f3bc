"""Prompts, counted and priced before they are sent: what they will cost, how sure that is, and how many a budget pays for.

Nothing is sent to a model and nothing is held. What is not known is said: a model without a price has no cost, and where no
call was measured before, the answers are taken to be as long as they may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .choosing import counter_for
from .connection import Ledger
from .counter import Count, System, TokenCounter, Tools
from .errors import InvalidType, InvalidValue, PriceUnknown, money, shown, told
from .handles import Budget
from .lengths import Answers, answers_of
from .pricing import Prices, user_prices
from .prompts import count_of, prompts_of
from .rates import as_told
from .tally import Tally
from .terms import Terms, terms_of
from .usage import EXACT, Usage, pico_of_cost, tokens_of, usd_of

if TYPE_CHECKING:
    import polars as pl


_WIDE = 80  # characters of a model's name in a line


@dataclass(frozen=True, slots=True, repr=False)
class Estimate:
    """What prompts will cost, and how much of that a budget pays for.

    Attributes:
        model: whose prices.
        calls: how many prompts.
        input_tokens, output_tokens: the expected totals.
        input_tokens_lower, input_tokens_upper: with the counter's margins.
        output_tokens_lower, output_tokens_upper: with nine chances in ten, or up to what each call may write.
        cost_usd: the expected cost; `None` where the model has no price.
        cost_usd_lower, cost_usd_upper: the cost at these bounds.
        method: how the prompts were counted.
        exact: whether the provider would count the same.
        answers: where the output tokens come from.
        prices: whose prices, and of when.
        unpriced_reason: why there is no cost; `None` where there is one.
        budget: which budget was looked at.
        left: what it had left, in words.
        calls_that_fit: so many of the first calls it pays for, sent one after the other; `None` without a budget.
        calls_that_surely_fit: the same where every answer is as long as it may be.
        frame: a row per call: `input_tokens`, `input_tokens_upper`, `output_tokens`, `cost_usd` and `hold_usd`, what a
            reservation for it holds.
    """

    model: str
    calls: int
    input_tokens: int
    input_tokens_lower: int
    input_tokens_upper: int
    output_tokens: int
    output_tokens_lower: int
    output_tokens_upper: int
    cost_usd: Decimal | None
    cost_usd_lower: Decimal | None
    cost_usd_upper: Decimal | None
    method: str
    exact: bool
    answers: str
    prices: str
    unpriced_reason: str | None
    budget: str | None
    left: str | None
    calls_that_fit: int | None
    calls_that_surely_fit: int | None
    frame: pl.DataFrame = field(compare=False)

    @property
    def fits(self) -> bool | None:
        """Whether the budget pays for all of it, however long the answers are; `None` without a budget."""
        return None if self.calls_that_surely_fit is None else self.calls_that_surely_fit == self.calls

    def __repr__(self) -> str:
        sent = _between(f"{self.input_tokens:,}", f"{self.input_tokens_lower:,}", f"{self.input_tokens_upper:,}")
        written = _between(f"{self.output_tokens:,}", f"{self.output_tokens_lower:,}", f"{self.output_tokens_upper:,}")
        lines = [
            f"{self.calls:,} calls of {self.model if len(self.model) <= _WIDE else f'{self.model[: _WIDE - 1]}…'}",
            f"  input   {sent} tokens ({self.method})",
            f"  output  {written} tokens ({self.answers})",
            f"  cost    {self._cost()} ({self.prices})",
        ]
        if self.budget is not None:
            lines.append(f"  budget  {self.budget}: {self.left}; {self._fitting()}")
        return "\n".join(map(shown, lines))  # line by line: what a label says makes no line of its own

    def _cost(self) -> str:
        if self.cost_usd is None or self.cost_usd_lower is None or self.cost_usd_upper is None:
            return f"unknown: {self.unpriced_reason}"
        return _between(money(self.cost_usd), money(self.cost_usd_lower), money(self.cost_usd_upper))

    def _fitting(self) -> str:
        likely, surely = self.calls_that_fit or 0, self.calls_that_surely_fit or 0
        if surely == self.calls:
            return "all of it fits"
        if likely == self.calls:
            return f"all of it is expected to fit, and {surely:,} calls surely do"
        if not likely:
            return "no call fits"
        if likely == surely:
            return f"the first {surely:,} calls fit"
        return f"the first {likely:,} calls are expected to fit, {surely:,} surely"


def estimate(
    prompts: Any,
    *,
    model: str,
    max_output_tokens: int,
    prompt: str | pl.Expr | None = None,
    system: System | None = None,
    tools: Tools | None = None,
    label: str | Mapping[str, str] | None = None,
    budget: Budget | str | None = None,
    ledger: Ledger | None = None,
    counter: TokenCounter | None = None,
    batch: bool = False,
    tier: str | None = None,
    speed: str | None = None,
    at: datetime | None = None,
    progress: bool | Callable[[int, int | None], None] | None = None,
) -> Estimate:
    """Count and price prompts before they are sent.

    Args:
        prompts: texts or lists of messages, or a frame (Polars, pandas, Arrow) with a column of them; a text is sent as one
            message of the user.
        model: who will answer.
        max_output_tokens: the most that each call lets the model write.
        prompt: of a frame, the column with the prompts, or a Polars expression that makes them.
        system: the system prompt of every call.
        tools: the tools of every call.
        label: which earlier calls were of the same kind: their tag `label`, or tags and values. Their measured answers say
            how long the next ones will be. Where not given, those of the model in the budget do.
        budget: a budget, or its name in `ledger`: does all of it fit, and how much does?
        ledger: where the earlier calls are; the budget's where not given.
        counter: what counts; where not given `counter_for(model)`, whose estimates learn from the calls with the label.
        batch, tier, speed: on what terms the calls will be made, where they have prices of their own.
        at: when the calls will be made; `None` means now.
        progress: `True` for a bar, `False` for none; a bar where it takes a while, when not given.

    Returns:
        The totals, their bounds, and a frame with a row per call.

    Raises:
        InvalidValue: no prompts, no such column, a row without a prompt; a tier or speed that no price list knows.
        PriceUnknown: the budget limits USD, and the model has no price.
        CountFailed: a prompt cannot be counted.

    Examples:
        >>> plan = estimate(["Is this spam? Hello!"] * 3, model="gpt-4o", max_output_tokens=10, progress=False)
        >>> plan.calls, plan.output_tokens, plan.cost_usd
        (3, 30, Decimal('0.0003975'))

    References:
        The interval of a total of n answers after k measured ones is that of a prediction, n·mean ± t·s·√(n + n²/k): nine in
        ten where lengths are near normal; of few lengths with a long tail three in four, and those missed are mostly longer.
    """
    budget, ledger = _where(budget, ledger, label)
    longest = tokens_of("max_output_tokens", max_output_tokens)
    pricing = _Pricing(_prices(ledger), model, at, terms_of(batch=batch, tier=tier, speed=speed))
    if counter is not None and not isinstance(counter, TokenCounter):
        reason = f"is {type(counter).__name__}, and no TokenCounter; leave it out, or give what tbl.counter_for(model) gives"
        raise InvalidType("counter", reason)
    if counter is None:
        counter = counter_for(model, ledger=ledger, label=label if isinstance(label, str) else None)
    counts = _counted(prompts, prompt, counter, {"system": system, "tools": tools}, progress)
    answers = answers_of(ledger, model, label, budget, len(counts), longest)
    plan = _Plan(counts, answers, longest, pricing)
    if budget is None:
        return plan.told(None, None, None, None)
    balance = budget.balance
    if pricing.missing is not None and balance.left_usd is not None:
        raise pricing.missing
    left = (balance.left_usd, balance.left_tokens, balance.left_requests)
    words = ", ".join(str(limit) for limit in balance.limits) or "no limit"
    if balance.closed:
        return plan.told(budget.name, f"{words}, and it is closed", 0, 0)
    likely, surely = (plan.fitting(left, bounds) for bounds in (plan.expected(), plan.at_worst()))
    return plan.told(budget.name, words, likely, min(likely, surely))


# --- its parts ---------------------------------------------------------------------------------------------------------------


class _Pricing:
    """What calls of each size cost; asked once per size."""

    def __init__(self, prices: Prices, model: str, at: datetime | None, terms: Terms) -> None:
        self.prices, self.model = prices, model
        self._how: dict[str, Any] = {"at": at, "context": terms.context}
        self._known: dict[tuple[int, int], Decimal] = {}
        self._holds: dict[tuple[int, int, int], Decimal] = {}
        prices.must_be_words(terms)
        self.missing: PriceUnknown | None = None
        self.source = "no price is known"
        try:
            self.source = prices.quote(Usage(1, 1), model, **self._how).source
        except PriceUnknown as missing:
            self.missing = missing
        if terms.context is not None:
            self.source += f", {as_told(terms.context)}"

    def cost(self, sent: int, written: int) -> Decimal:
        """USD of one call."""
        size = (sent, written)
        if (cost := self._known.get(size)) is None:
            cost = self.prices.cost(Usage(sent, written), self.model, **self._how)
            cost = self._known[size] = usd_of(pico_of_cost(cost))  # rounded up, as the ledger counts it
        return cost

    def hold(self, count: Count, longest: int) -> Decimal:
        """USD that a reservation for one call holds."""
        size = (count.tokens, count.upper, longest)
        if (hold := self._holds.get(size)) is None:
            hold = self.prices.worst_quote(self.model, count, longest, **self._how).usd
            hold = self._holds[size] = usd_of(pico_of_cost(hold))
        return hold


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Input and output tokens of each call, made anew whenever they are read: of a million calls they would be long lists."""

    counts: Tally[Count]
    size: Callable[[Count], int]
    output_tokens: int

    @property
    def input_tokens(self) -> int:
        return sum(map(self.size, self.counts))

    def __iter__(self) -> Iterator[tuple[Count, int, int]]:
        """Each call's count, input and output: whole tokens that add up to the total, as a mean is no whole number."""
        calls, total = len(self.counts), self.output_tokens
        for n, count in enumerate(self.counts):
            yield count, self.size(count), (n + 1) * total // calls - n * total // calls


@dataclass(frozen=True, slots=True)
class _Plan:
    counts: Tally[Count]
    answers: Answers
    longest: int
    pricing: _Pricing

    def expected(self) -> _Bounds:
        return _Bounds(self.counts, attrgetter("tokens"), round(len(self.counts) * self.answers.mean))

    def at_most(self) -> _Bounds:
        return _Bounds(self.counts, attrgetter("upper"), math.ceil(len(self.counts) * self.answers.upper))

    def at_least(self) -> _Bounds:
        return _Bounds(self.counts, attrgetter("lower"), math.floor(len(self.counts) * self.answers.lower))

    def at_worst(self) -> _Bounds:
        return _Bounds(self.counts, attrgetter("upper"), self.longest * len(self.counts))

    def cost(self, bounds: _Bounds) -> Decimal | None:
        """USD of all calls."""
        if self.pricing.missing is not None:
            return None
        with localcontext(EXACT):
            return sum((self.pricing.cost(sent, written) for _, sent, written in bounds), Decimal(0))

    def fitting(self, left: tuple[Any, ...], bounds: _Bounds) -> int:
        """How many of the first calls are admitted, one after the other: each has to have room for its hold."""
        usd, tokens, requests = left
        with localcontext(EXACT):
            for n, (count, sent, written) in enumerate(bounds):
                if requests is not None and requests < n + 1:
                    return n
                if tokens is not None:
                    if tokens < count.upper + self.longest:
                        return n
                    tokens -= sent + written
                if usd is not None:
                    if usd < self.pricing.hold(count, self.longest):
                        return n
                    usd -= self.pricing.cost(sent, written)
        return len(self.counts)

    def told(self, budget: str | None, left: str | None, likely: int | None, surely: int | None) -> Estimate:
        """All of it as a value."""
        expected, most, least = self.expected(), self.at_most(), self.at_least()
        return Estimate(
            model=self.pricing.model,
            calls=len(self.counts),
            input_tokens=expected.input_tokens,
            input_tokens_lower=least.input_tokens,
            input_tokens_upper=most.input_tokens,
            output_tokens=expected.output_tokens,
            output_tokens_lower=least.output_tokens,
            output_tokens_upper=most.output_tokens,
            cost_usd=self.cost(expected),
            cost_usd_lower=self.cost(least),
            cost_usd_upper=self.cost(most),
            method=_methods(self.counts),
            exact=all(count.exact for count in self.counts.different),
            answers=self.answers.known,
            prices=self.pricing.source,
            unpriced_reason=None if self.pricing.missing is None else self.pricing.missing.reason,
            budget=budget,
            left=left,
            calls_that_fit=likely,
            calls_that_surely_fit=surely,
            frame=self._frame(expected),
        )

    def _frame(self, expected: _Bounds) -> pl.DataFrame:
        import polars as pl

        calls: Tally[tuple[Count, int, int]] = Tally()
        calls.add(expected)
        usd, known = pl.Decimal(38, 12), self.pricing.missing is None
        different = calls.different
        table = pl.DataFrame(
            {
                "input_tokens": pl.Series([sent for _, sent, _ in different], dtype=pl.Int64),
                "input_tokens_upper": pl.Series([count.upper for count, _, _ in different], dtype=pl.Int64),
                "output_tokens": pl.Series([written for _, _, written in different], dtype=pl.Int64),
                "cost_usd": pl.Series([self.pricing.cost(*size) if known else None for _, *size in different], dtype=usd),
                "hold_usd": pl.Series(
                    [self.pricing.hold(count, self.longest) if known else None for count, _, _ in different], dtype=usd
                ),
            }
        )
        return table[calls.numbers()]


def _where(
    budget: Budget | str | None, ledger: Ledger | None, label: str | Mapping[str, str] | None
) -> tuple[Budget | None, Ledger | None]:
    if label is not None and not (label and isinstance(label, str | Mapping)):
        raise InvalidType(
            "label", f"{told(label)} is neither a text nor tags and their values, such as {{'condition': 'few-shot'}}"
        )
    if isinstance(label, Mapping) and not all(isinstance(part, str) for tag in label.items() for part in tag):
        raise InvalidType("label", f"{told(dict(label))} has tags or values that are no texts")
    if ledger is not None and not isinstance(ledger, Ledger):
        raise InvalidType("ledger", f"{told(ledger)} is {type(ledger).__name__}; give what tbl.connect gave")
    if isinstance(budget, Budget):
        return budget, ledger or budget.ledger  # type: ignore[return-value] # whichever ledger made it has frames
    if budget is not None and not isinstance(budget, str):
        raise InvalidType("budget", f"is {type(budget).__name__}, neither a budget nor the name of one")
    if budget is not None and ledger is None:
        raise InvalidValue("budget", f"{told(budget)} is a name; say in which ledger it is, with ledger=")
    if label is not None and ledger is None:
        raise InvalidValue("label", "says which earlier calls to look at; say where they are, with ledger= or budget=")
    return (ledger.budget(budget) if budget is not None and ledger is not None else None), ledger


def _prices(ledger: Ledger | None) -> Prices:
    return ledger.prices if ledger is not None and isinstance(ledger.prices, Prices) else user_prices()


def _counted(prompts: Any, column: Any, counter: TokenCounter, how: dict[str, Any], progress: Any) -> Tally[Count]:
    counts: Tally[Count] = Tally()
    total = count_of(prompts)
    for part in prompts_of(prompts, column):
        requests = [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in part]
        counts.add(counter.count_many_sync(requests, progress=False if callable(progress) else progress, **how))
        if callable(progress):
            progress(len(counts), total)
    if not counts:
        raise InvalidValue("prompts", "there are none")
    return counts


def _methods(counts: Tally[Count]) -> str:
    found = dict.fromkeys(f"{count.method}{f'; {count.note}' if count.note else ''}" for count in counts.different)
    said = list(found)
    return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")  # noqa: PLR2004 - a line's worth


def _between(middle: str, lower: str, upper: str) -> str:
    return middle if lower == upper else f"{middle} ({lower} … {upper})"
