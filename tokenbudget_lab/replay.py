"""A recorded trace of calls, sent against a budget: what would have happened under this cap?

Nothing is sent anywhere. Each recorded call reserves the most that it could have cost and commits what it used, in the order
of the trace. Its readers may rely on two things: a trace with a bad line is refused as a whole, with the line's number; and
whichever way a replay ends, it leaves nothing held.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .costs import Prices
from .errors import BudgetExceeded, InvalidValue, PriceUnknown, money
from .handles import Budget
from .ledger import Ledger
from .lines import csv_fields
from .render import escaped
from .reservation import Counted, Reservation
from .usage import Usage

DEFAULT_PARALLEL, DEFAULT_WAIT_S = 50, 60.0
MAX_PARALLEL = 10_000
_MOST_DIGITS = 15

Tell = Callable[[int, int, Decimal], None]


class TracedCall(NamedTuple):
    """One recorded call; `at` is in seconds after the first one, 0 where the trace's times were not read."""

    input_tokens: int
    output_tokens: int
    at: float = 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Replay:
    """What happened to a trace under a budget.

    Attributes:
        budget, ledger, model: whose cap, where it is kept, and whose prices.
        calls: recorded calls in the trace.
        made: calls that were reserved and committed.
        refused: calls that were not allowed.
        limit_usd: the cap; `None` where the budget has none in USD.
        committed_usd, left_usd: the budget afterwards, earlier runs included.
        cost_usd: what the calls of this run cost.
        held_usd: the sum of their holds.
        unused_usd: how much less than their holds the calls used.
        overruns: calls that used more than they had reserved.
        overrun_usd: how much more.
        uncapped_usd: what the whole trace costs.
        seconds: how long the replay took.
        interrupted: whether it was stopped before the end of the trace.
    """

    budget: str
    ledger: str
    model: str
    calls: int
    made: int
    refused: int
    limit_usd: Decimal | None
    committed_usd: Decimal
    left_usd: Decimal | None
    cost_usd: Decimal
    held_usd: Decimal
    unused_usd: Decimal
    overruns: int
    overrun_usd: Decimal
    uncapped_usd: Decimal
    seconds: float
    interrupted: bool = False

    @property
    def pairs_per_second(self) -> float:
        """How many calls a second were reserved and committed."""
        return self.made / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        parts = [f"{self.made:,} of {self.calls:,} calls made, {self.refused:,} refused", f"cost {money(self.cost_usd)}"]
        if self.limit_usd is not None and self.left_usd is not None:
            parts.append(f"{money(self.left_usd)} of {money(self.limit_usd)} left in {escaped(self.budget)}")
        parts.append(f"{money(self.unused_usd)} held and not used")
        if self.overruns:
            parts.append(f"{self.overruns:,} overruns, {money(self.overrun_usd)} above their holds")
        parts.append(f"{money(self.uncapped_usd)} without a cap")
        return f"Replay({' · '.join(parts)}{' · interrupted' if self.interrupted else ''})"


# --- reading a trace -----------------------------------------------------------------------------------------------------


def read_trace(path: str | Path, *, input_column: str, output_column: str, time_column: str | None = None) -> list[TracedCall]:
    """Read the calls of a CSV file with a header.

    Args:
        path: the file; UTF-8, with or without a BOM.
        input_column, output_column: the columns with the tokens of each call.
        time_column: the column that says when a call came, ISO 8601 (UTC where it names no zone) or in seconds.

    Raises:
        InvalidValue: no such file or column, a line that is cut, a number that is none; with the line's number.
    """
    path = Path(path)
    columns = [input_column, output_column, *([time_column] if time_column is not None else [])]
    try:
        with path.open("rb") as file:
            calls = list(_calls(file, path.name, columns))
    except OSError as error:
        raise InvalidValue("trace", f"{path} cannot be read ({error.strerror or error})") from error
    if not calls:
        raise InvalidValue("trace", f"{path} has no calls")
    first = calls[0].at
    return [call._replace(at=call.at - first) for call in calls] if first else calls


def _calls(file: BinaryIO, name: str, columns: Sequence[str]) -> Iterator[TracedCall]:
    for where, fields in csv_fields(file, name, columns):
        sent, written = (_tokens(where, columns[n], fields[n]) for n in (0, 1))
        yield TracedCall(sent, written, _instant(where, columns[2], fields[2]) if columns[2:] else 0.0)


def _tokens(where: str, column: str, text: str) -> int:
    digits = text.strip()
    if digits.startswith("-") and digits[1:].isdecimal():
        raise InvalidValue(where, f"{column} is {digits}; tokens cannot be negative")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _MOST_DIGITS):
        raise InvalidValue(where, f"{column} is {text[:40]!r}, not a whole number of tokens")
    return int(digits)


def _instant(where: str, column: str, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        pass  # then it may be seconds; what is neither raises below
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InvalidValue(where, f"{column} is {text[:40]!r}, neither an ISO 8601 time nor seconds")
    return seconds


# --- running it ----------------------------------------------------------------------------------------------------------


def run(
    budget: Budget,
    calls: Sequence[TracedCall],
    *,
    model: str,
    max_output_tokens: int,
    parallel: int = DEFAULT_PARALLEL,
    speed: float | None = None,
    wait: float = DEFAULT_WAIT_S,
    tell: Tell | None = None,
) -> Replay:
    """Send a trace against a budget, and block until its end.

    Args:
        budget: whose limits decide.
        calls: the trace.
        model: whose prices the calls pay.
        max_output_tokens: what each call would have allowed the model to write; a call that wrote more is an overrun.
        parallel: how many calls are in flight at most.
        speed: play the trace's times so many times faster than they were; as fast as possible where not given.
        wait: seconds that a call stands in line while calls in flight could make room for it.
        tell: called after each call with how many were made and refused, and what they cost so far.

    Raises:
        PriceUnknown: the model has no price.
        InvalidValue: a number that means nothing here.
    """
    if type(parallel) is not int or not 1 <= parallel <= MAX_PARALLEL:
        raise InvalidValue("parallel", f"{parallel!r} is not a number of calls from 1 to {MAX_PARALLEL:,}")
    if speed is not None and not 0 < speed < math.inf:
        raise InvalidValue("speed", f"{speed!r} is not a factor above 0")
    prices = check_price(budget.ledger, model)
    sizes = Counter((call.input_tokens, call.output_tokens) for call in calls)
    uncapped = sum((n * prices.cost(Usage(*size), model) for size, n in sizes.items()), Decimal(0))
    player = _Player(budget, model, max_output_tokens, speed, wait, tell)
    began, interrupted = time.perf_counter(), False
    try:
        asyncio.run(player.play(calls, parallel))
    except KeyboardInterrupt:
        interrupted = True
    return player.told(len(calls), uncapped, time.perf_counter() - began, interrupted=interrupted)


def check_price(ledger: Ledger, model: str) -> Prices:
    """The ledger's prices, once it is known that they know the model.

    Raises:
        PriceUnknown: they do not.
    """
    if ledger.prices is None:
        raise PriceUnknown(model, "this ledger has no price list")
    ledger.prices.worst_quote(model, 1, 1)
    return ledger.prices


class _Player:
    """Plays a trace and adds up what happens."""

    def __init__(
        self, budget: Budget, model: str, max_output_tokens: int, speed: float | None, wait: float, tell: Tell | None
    ) -> None:
        self.budget, self.model, self.max_output_tokens = budget, model, max_output_tokens
        self.speed, self.wait, self.tell = speed, wait, tell
        self.made = self.refused = self.overruns = 0
        self.cost = self.held = self.unused = self.overrun = Decimal(0)

    async def play(self, calls: Iterable[TracedCall], parallel: int) -> None:
        """Send every call, `parallel` at a time, begun in their order."""
        line, began = iter(calls), time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(parallel):
                    group.create_task(self._work(line, began))
        except* Exception as failed:  # noqa: BLE001 - what went wrong first tells all
            raise _first(failed) from None

    async def _work(self, line: Iterator[TracedCall], began: float) -> None:
        for call in line:
            if self.speed is not None:
                await asyncio.sleep(began + call.at / self.speed - time.monotonic())
            await self._send(call)
            if self.tell is not None:
                self.tell(self.made, self.refused, self.cost)

    async def _send(self, call: TracedCall) -> None:
        try:
            held = await self.budget.reserve(
                model=self.model, input_tokens=call.input_tokens, max_output_tokens=self.max_output_tokens, wait=self.wait
            )
        except BudgetExceeded:
            self.refused += 1
            return
        # Committed in the same step of the loop, so that no interrupt finds a hold without its commit.
        receipt = held.commit(Usage(call.input_tokens, call.output_tokens))
        try:
            await receipt
        finally:  # an interrupted call is on its way to the ledger, and counts here too
            counted = receipt.result()
            if isinstance(counted, Counted):
                self._add(held, counted)

    def _add(self, held: Reservation, counted: Counted) -> None:
        hold, used = held.usd or Decimal(0), counted.usd or Decimal(0)
        self.made += 1
        self.cost += used
        self.held += hold
        self.unused += max(hold - used, Decimal(0))
        self.overrun += max(used - hold, Decimal(0))
        self.overruns += counted.overrun

    def told(self, calls: int, uncapped: Decimal, seconds: float, *, interrupted: bool) -> Replay:
        """All of it as a value."""
        after = self.budget.balance
        return Replay(
            budget=self.budget.name,
            ledger=self.budget.ledger.desk.where,
            model=self.model,
            calls=calls,
            made=self.made,
            refused=self.refused,
            limit_usd=after.limit_usd,
            committed_usd=after.committed_usd,
            left_usd=after.left_usd,
            cost_usd=self.cost,
            held_usd=self.held,
            unused_usd=self.unused,
            overruns=self.overruns,
            overrun_usd=self.overrun,
            uncapped_usd=uncapped,
            seconds=seconds,
            interrupted=interrupted,
        )


def _first(failed: BaseExceptionGroup[Exception]) -> Exception:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else failed  # type: ignore[return-value] # a group of exceptions holds exceptions
