"""Ten thousand in line: served as a line of three would be, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Iterable

import pytest

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Clock, also_on_postgres
from tokenbudget_lab.commands import Cancel, CloseBudget, GetHead, Reserve, Rollback, SetBudget, SetLimit
from tokenbudget_lab.decide import Decisions
from tokenbudget_lab.desk import DirectBox, Ticket
from tokenbudget_lab.errors import AmountMissing, BudgetClosed, BudgetExceeded
from tokenbudget_lab.ids import new_id
from tokenbudget_lab.line import Line, Waiter
from tokenbudget_lab.state import State
from tokenbudget_lab.writer import Writer

STORES = ON_ONE_MACHINE

MANY = 10_000
HOUR_US = 3_600_000_000
DAY_S = 86_400


def desk_of(ledger: tbl.Ledger) -> Writer:
    """The writer itself: what these tests say is said to it directly."""
    if not isinstance(ledger.desk, Writer):
        pytest.skip("a keeper's line is its writer's")
    return ledger.desk


def asks(budget: str, usd: int | None, tokens: int | None, *, key: str | None = None, wait_s: int = 30 * DAY_S) -> Reserve:
    return Reserve(new_id(), budget, usd, tokens, 1, 0, "release", key=key, wait=wait_s * 1_000_000)


def settle(writer: Writer, box: DirectBox) -> None:
    """Until everything handed in before is decided and told: the second is taken when those told with the first know."""
    for _ in range(2):
        last = Ticket(GetHead(new_id()), box)
        writer.submit(last)
        assert last.wait(60)


def stand(writer: Writer, commands: Iterable[Reserve], box: DirectBox) -> list[Ticket]:
    tickets = [Ticket(command, box) for command in commands]
    writer.submit_all(tickets)
    settle(writer, box)
    return tickets


class Naive:
    """A line that asks everybody, in order of arrival, whenever anything changes."""

    def __init__(self, limits: dict[str, tuple[int, int]]) -> None:
        self.limits = limits
        self.held = dict.fromkeys(limits, (0, 0))
        self.waiting: dict[str, Reserve] = {}

    def _path(self, budget: str) -> list[str]:
        return [name for name in self.limits if budget == name or budget.startswith(f"{name}/")]

    def _move(self, command: Reserve, by: int) -> None:
        for name in self._path(command.budget):
            usd, tokens = self.held[name]
            self.held[name] = (usd + by * (command.usd or 0), tokens + by * (command.tokens or 0))

    def fits(self, command: Reserve) -> bool:
        asked = (command.usd or 0, command.tokens or 0)
        return all(
            have + more <= limit
            for name in self._path(command.budget)
            for have, more, limit in zip(self.held[name], asked, self.limits[name], strict=True)
        )

    def admit(self) -> set[str]:
        """Who gets in now; those who never can are told, and leave."""
        granted: list[Reserve] = []
        for command in self.waiting.values():
            if self.fits(command):
                self._move(command, 1)
                granted.append(command)
        for command in granted:
            del self.waiting[command.id]
        for command in list(self.waiting.values()):
            limits = [self.limits[name] for name in self._path(command.budget)]
            if any((command.usd or 0) > usd or (command.tokens or 0) > tokens for usd, tokens in limits):
                del self.waiting[command.id]
        return {command.id for command in granted}

    def release(self, command: Reserve) -> None:
        self._move(command, -1)


@pytest.mark.parametrize("seed", range(3))
def test_the_line_serves_whom_a_line_would_that_asks_everybody(ledger: tbl.Ledger, seed: int) -> None:
    """In three budgets of two resources, by releases, raised and lowered limits, and waiters that leave.

    limit     lab, lab/a, lab/b
    reserve   600 of them, most wait, each asks something else
    then      250 times at random: a hold ends, a limit changes, somebody leaves
    """
    writer, chance, box = desk_of(ledger), random.Random(seed), DirectBox(None)
    limits = {"lab": (40_000, 60_000), "lab/a": (30_000, 30_000), "lab/b": (20_000, 50_000)}
    for name, (usd, tokens) in limits.items():
        ledger.budget(name, usd=f"{usd}e-12", tokens=tokens)
    naive = Naive(dict(limits))
    commands = [
        asks(
            chance.choice(list(limits)),
            chance.randint(1, 9_000),
            chance.choice([chance.randint(1, 20), chance.randint(1, 9_000)]),
        )
        for _ in range(600)
    ]
    tickets = {ticket.command.id: ticket for ticket in stand(writer, commands, box)}
    asked = {command.id: command for command in commands}
    holds: set[str] = set()
    for command in commands:
        naive.waiting[command.id] = command
        holds |= naive.admit()
    expected = set(holds)
    for _ in range(250):
        what = chance.random()
        if what < 0.7 and holds:
            ends = chance.choice(sorted(holds))
            holds.remove(ends)
            writer.submit(Ticket(Rollback(new_id(), ends), box))
            naive.release(asked[ends])
        elif what < 0.85:
            name = chance.choice(list(limits))
            naive.limits[name] = (chance.randint(5_000, 60_000), chance.randint(5_000, 60_000))
            usd, tokens = naive.limits[name]
            writer.submit(Ticket(SetLimit(new_id(), name, None, usd, tokens, None, None), box))
        else:
            leaves = chance.choice(sorted(naive.waiting))
            writer.submit(Ticket(Cancel(new_id(), leaves), box))
            del naive.waiting[leaves]
        settle(writer, box)
        granted = naive.admit()
        holds |= granted
        expected |= granted
        assert {id for id, ticket in tickets.items() if ticket.settled and ticket.error is None} == expected
        assert len(writer.line) == len(naive.waiting)
    seqs = [tickets[id].answer[1] for id in tickets if id in expected]
    assert len(set(seqs)) == len(seqs)


def test_a_raised_limit_lets_in_as_many_as_fit_in_order_of_arrival(ledger: tbl.Ledger) -> None:
    """And nobody else.

    limit     0 tokens per day
    reserve   10,000 × 1 token, wait
    set_limit 2,500
    """
    writer, box = desk_of(ledger), DirectBox(None)
    lab = ledger.budget("lab", tokens=1, window="day")
    lab.reserve_sync(tokens=1, timeout=DAY_S)
    tickets = stand(writer, (asks("lab", None, 1) for _ in range(MANY)), box)
    assert len(writer.line) == MANY
    lab.set_limit(tokens=2_501)
    assert [ticket.settled for ticket in tickets] == [True] * 2_500 + [False] * 7_500
    seqs = [ticket.answer[1] for ticket in tickets[:2_500]]
    assert seqs == sorted(seqs)


def test_each_midnight_lets_the_next_in(ledger: tbl.Ledger, clock: Clock) -> None:
    """A window's turn is an alarm of its own.

    limit     2,500 tokens per day
    reserve   12,500 × 1 token, 10,000 wait
    clock     four times on by a day
    """
    writer, box = desk_of(ledger), DirectBox(None)
    ledger.budget("lab", tokens=2_500, window="day")
    tickets = stand(writer, (asks("lab", None, 1) for _ in range(MANY + 2_500)), box)
    for day in range(1, 5):
        assert [ticket.settled for ticket in tickets] == [True] * (2_500 * day) + [False] * (12_500 - 2_500 * day)
        clock.advance(DAY_S)
        settle(writer, box)
    assert all(ticket.settled and ticket.error is None for ticket in tickets)
    assert not writer.line


@also_on_postgres
def test_a_large_one_at_the_head_starves_nobody_and_does_not_starve_when_all_is_free(ledger: tbl.Ledger) -> None:
    """Those behind it that fit are served; it is served as soon as it fits.

    limit     100 tokens
    reserve   60, 40
    reserve   100 waits, then 10,000 × 1
    rollback  40
    """
    writer, box = desk_of(ledger), DirectBox(None)
    lab = ledger.budget("lab", tokens=100)
    stays, leaves = lab.reserve_sync(tokens=60, timeout=DAY_S), lab.reserve_sync(tokens=40, timeout=DAY_S)
    [large] = stand(writer, [asks("lab", None, 100)], box)
    small = stand(writer, (asks("lab", None, 1) for _ in range(MANY)), box)
    leaves.rollback().result()
    served = [ticket for ticket in small if ticket.settled]
    assert served == small[:40]
    assert not large.settled
    for ticket in small[40:]:
        writer.submit(Ticket(Cancel(new_id(), ticket.command.id), box))
    for ticket in served:
        writer.submit(Ticket(Rollback(new_id(), ticket.command.id), box))
    stays.rollback().result()
    assert large.settled
    assert large.error is None


@also_on_postgres
def test_a_close_tells_all_of_the_subtree_and_nobody_else(ledger: tbl.Ledger) -> None:
    writer, box = desk_of(ledger), DirectBox(None)
    for name in ("lab", "lab/a", "lab/b"):
        ledger.budget(name, tokens=1)
    ledger.budget("lab").reserve_sync(tokens=1, timeout=DAY_S)
    a, b = (stand(writer, (asks(name, None, 1) for _ in range(MANY // 2)), box) for name in ("lab/a", "lab/b"))
    writer.submit(Ticket(CloseBudget(new_id(), "lab/a"), box))
    settle(writer, box)
    assert {type(ticket.error) for ticket in a} == {BudgetClosed}
    assert not any(ticket.settled for ticket in b)
    assert len(writer.line) == len(b)


def test_each_deadline_is_kept_and_the_line_is_empty_behind_the_last(ledger: tbl.Ledger, clock: Clock) -> None:
    """10,000 deadlines at random; at any moment those before it are told, those behind it wait."""
    writer, box, chance = desk_of(ledger), DirectBox(None), random.Random(3)
    ledger.budget("lab", tokens=1, window="month").reserve_sync(tokens=1, timeout=DAY_S)
    waits = [chance.randint(1, 10_000) for _ in range(MANY)]
    tickets = stand(writer, (asks("lab", None, 1, wait_s=wait) for wait in waits), box)
    for _ in range(4):
        clock.advance(2_500)
        settle(writer, box)
    assert {type(ticket.error) for ticket in tickets} == {BudgetExceeded}
    assert not writer.line


def test_who_left_or_hung_up_is_forgotten(ledger: tbl.Ledger) -> None:
    """Those who cancel at once; those whose client is gone at the latest when the line has doubled since."""
    writer, box, gone = desk_of(ledger), DirectBox(None), DirectBox(None)
    ledger.budget("lab", tokens=1).reserve_sync(tokens=1, timeout=DAY_S)
    tickets = stand(writer, (asks("lab", None, 1) for _ in range(MANY)), box)
    for ticket in tickets:
        writer.submit(Ticket(Cancel(new_id(), ticket.command.id), box))
    settle(writer, box)
    assert not writer.line
    weak = [weakref.ref(ticket.command) for ticket in tickets if hasattr(ticket.command, "__weakref__")]
    del tickets, ticket
    lost = [id(ticket) for ticket in stand(writer, (asks("lab", None, 1) for _ in range(MANY)), gone)]
    gone.closed = True
    stand(writer, (asks("lab", None, 1) for _ in range(2 * MANY + 3_000)), box)
    gc.collect()
    assert not any(ref() for ref in weak)
    assert not {id(ticket) for waiter in writer.line for ticket in waiter.tickets if ticket.box is gone} & set(lost)
    assert len(writer.line) == 2 * MANY + 3_000


def test_who_does_not_fit_is_not_asked() -> None:
    """Of ten thousand different sizes only those are decided that get an answer."""
    state = State()
    decisions = Decisions(state)
    decisions.create(new_id(), 1)
    decisions.decide(SetBudget(new_id(), "lab", (("", None, 100_000, None),), "UTC"), 1)
    decisions.decide(asks("lab", None, 90_000), 1)
    line, sizes = Line(), random.Random(5).sample(range(10_001, 90_000), MANY)
    error = BudgetExceeded("lab", "lab", "tokens", 1, 0, 100_000, 90_000, 1, None)
    for size in sizes:
        line.add(Waiter(asks("lab", None, size), [], HOUR_US, error), state.nodes["lab"])
    assert list(line.to_ask(state.nodes, 1)) == []
    few = [Waiter(asks("lab", None, size), [], HOUR_US, error) for size in (10_000, 20_000, 3)]
    for waiter in few:
        line.add(waiter, state.nodes["lab"])
    assert list(line.to_ask(state.nodes, 1)) == [few[0], few[2]]


def test_a_limit_on_what_a_waiter_does_not_give_is_told_to_it_and_to_nobody_else(ledger: tbl.Ledger) -> None:
    """What is unknown is never counted as zero.

    limit     lab $1
    reserve   $1; then $1, and $1 with 5 tokens, wait
    set_limit 100 tokens
    """
    writer, box = desk_of(ledger), DirectBox(None)
    lab = ledger.budget("lab", usd="1e-12")
    lab.reserve_sync(usd="1e-12", tokens=1)
    without, with_tokens = stand(writer, [asks("lab", 1, None), asks("lab", 1, 5)], box)
    lab.set_limit(tokens=100)
    assert isinstance(without.error, AmountMissing)
    assert not with_tokens.settled


def test_calls_without_a_price_send_away_who_waits_where_usd_come_to_be_limited(ledger: tbl.Ledger) -> None:
    """Nobody can tell then what is left.

    limit     lab 100 tokens
    record    40 tokens, without a cost
    reserve   60, then $1 and 60 tokens, which waits
    set_limit $5
    """
    writer, box = desk_of(ledger), DirectBox(None)
    lab = ledger.budget("lab", tokens=100)
    lab.record(tokens=40).result()
    lab.reserve_sync(tokens=60, timeout=DAY_S)
    [waits] = stand(writer, [asks("lab", 10**12, 60)], box)
    assert not waits.settled
    lab.set_limit(usd=5)
    assert isinstance(waits.error, tbl.CallsUnpriced)


def test_ten_thousand_tasks_share_a_hundred_places(ledger: tbl.Ledger) -> None:
    """Each holds for a moment; all get their turn, and never more than a hundred at once."""
    lab = ledger.budget("lab", requests=MANY, tokens=100)
    most = now = 0

    async def call() -> None:
        nonlocal most, now
        async with lab.reserve(tokens=1, wait=600) as held:
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1
            await held.commit(tokens=0)

    async def story() -> None:
        await asyncio.gather(*(call() for _ in range(MANY)))

    asyncio.run(story())
    assert most <= 100
    assert lab.balance.committed_requests == MANY
