"""The comparison of what clients were told with what stands in the ledger: it notices each kind of lie."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock
from tests.history import Asked, Lies, check, checked, read, recorded
from tests.processes import until
from tokenbudget_lab import commands as ask
from tokenbudget_lab.desk import DirectBox, Ticket
from tokenbudget_lab.errors import BudgetExceeded, StoreFailed
from tokenbudget_lab.events import Event, chained
from tokenbudget_lab.stores.memory import MemoryStore


class Day(NamedTuple):
    """Events, and what was told of them."""

    events: list[Event]
    asked: list[Asked]

    def of(self, kind: type, nth: int = 0) -> int:
        """Which command is the nth of its kind."""
        return [n for n, each in enumerate(self.asked) if type(each.command) is kind][nth]

    def the(self, kind: str, nth: int = 0) -> int:
        """Which event is the nth of its kind."""
        return [n for n, event in enumerate(self.events) if event.kind == kind][nth]

    def tell(self, n: int, **changed: Any) -> Day:
        """The same day, but something else was told about a command."""
        return Day(self.events, [each._replace(**changed) if n == m else each for m, each in enumerate(self.asked)])

    def answer(self, n: int, field: int, value: Any) -> Day:
        """The same day, but a field of an answer is another."""
        first = self.asked[n].answer
        return self.tell(n, answer=(*first[:field], value, *first[field + 1 :]))

    def write(self, events: Sequence[Event]) -> Day:
        """The same was told, but other events are there; they have the numbers and hashes of their places."""
        written: list[Event] = []
        for seq, event in enumerate(events, 1):
            written.append(chained(written[-1].hash if written else bytes(32), (seq, *event[1:-1])))
        return Day(written, self.asked)

    def change(self, n: int, **changed: Any) -> Day:
        """An event says something else."""
        return self.write([event._replace(**changed) if n == m else event for m, event in enumerate(self.events)])


@pytest.fixture
def day(tmp_path: Path) -> Day:
    """A day of one client, with every kind of answer.

    lab          100 tokens, told at half of it
    reserve   a  40, commit 30 (told twice)
    reserve   b  90, refused
    record       20: 50 are spent
    reserve   c  10, rolled back;  d 10, lost;  e 10, expires, committed late
    read         balance, entry, head, after each of them
    adjust       the record to 25
    """
    clock = Clock()
    with recorded(tbl.Ledger(store=MemoryStore(), clock_ns=clock.now_ns), tmp_path) as ledger:
        lab = ledger.budget("lab", tokens=100, alerts=(0.5,))
        a = lab.reserve_sync(tokens=40, requests=1)
        commit = ask.Commit(ledger.new_id(), a.id, None, 30, None, "measured")
        for _ in range(2):
            ledger.ask(commit)
        with pytest.raises(tbl.BudgetExceeded):
            lab.reserve_sync(tokens=90)
        assert lab.balance.committed_tokens == 30
        spent = lab.record(tokens=20).result()
        assert lab.balance.committed_tokens == 50
        lab.reserve_sync(tokens=10, key="c").rollback().result()
        lab.reserve_sync(tokens=10, key="c")
        lab.reserve_sync(tokens=10, if_lost="count").lose().result()
        e = lab.reserve_sync(tokens=10, timeout=60)
        e.extend_sync(120)
        clock.advance(121)
        assert e.state == "released"
        e.commit(tokens=10).result()
        with pytest.raises(tbl.ReservationClosed):
            e.rollback().result()
        lab.adjust(spent.reservation, tokens=25).result()
        lab.set_limit(tokens=200)
        assert len(ledger.budgets()) == 1
        with pytest.raises(tbl.UnknownBudget):
            ledger.budget("nobody")
        ledger.budget("lab").close()
        with pytest.raises(tbl.BudgetClosed):
            lab.reserve_sync(tokens=1)
        ledger.verify()
        events = list(ledger.desk.events(10**9))
    return Day(events, read(tmp_path))


def test_what_happened_is_no_lie(day: Day) -> None:
    told = check(*day)
    assert (told.refused, told.unknown) == (4, 0)


def swapped(day: Day, a: int, b: int) -> Day:
    events = list(day.events)
    events[a], events[b] = events[b]._replace(ts=events[a].ts), events[a]._replace(ts=events[b].ts)
    return day.write(events)


def exceeded(day: Day, **changed: Any) -> Day:
    """The refusal has another number."""
    n = next(n for n, each in enumerate(day.asked) if isinstance(each.error, BudgetExceeded))
    names = ("budget", "asked_by", "resource", "requested", "left", "limit", "reserved", "calls_in_flight")
    args = [changed.get(name, getattr(day.asked[n].error, name)) for name in names]
    return day.tell(n, error=BudgetExceeded(*args))


def balances_swapped(day: Day) -> Day:
    """The first reader saw the newer state, and the second one, who asked later, the older."""
    one, two = day.of(ask.GetBalance, 0), day.of(ask.GetBalance, 1)
    answers = [day.asked[n].answer for n in (one, two)]
    return day.tell(one, answer=answers[1]).tell(two, answer=answers[0])


LIES: dict[str, tuple[Callable[[Day], Day], str]] = {
    "the last event is lost": (lambda day: day.write(day.events[:-1]), "not there"),
    "an event in the middle is lost": (lambda day: day.write([e for e in day.events if e.kind != "recorded"]), "never so"),
    "an event stands twice": (
        lambda day: day.write([*day.events, day.events[day.the("adjusted")]._replace(ts=day.events[-1].ts)]),
        "twice",
    ),
    "nobody asked": (
        lambda day: day.change(day.the("recorded"), command="00000000-0000-7000-8000-000000000000"),
        "nobody asked",
    ),
    "asked for something else": (
        lambda day: day.change(day.the("recorded"), command=day.asked[day.of(ask.Adjust)].command.id),
        "asked for something else",
    ),
    "counts more than was told": (lambda day: day.change(day.the("recorded"), tokens=21), "never so"),
    "counts more than was asked": (
        lambda day: day.change(day.the("recorded"), tokens=21).answer(day.of(ask.Record), 4, 21),
        "not what was asked",
    ),
    "holds less than was asked": (lambda day: day.change(day.the("reserved"), held_tokens=1), "not what was asked"),
    "another event than was told": (lambda day: day.answer(day.of(ask.Record), 1, 2), "never so"),
    "two answers to one id": (lambda day: day.answer(day.of(ask.Commit, 1), 4, 29), "never so"),
    "no alert where one was crossed": (
        lambda day: day.answer(day.of(ask.Record), 9, (("lab", "tokens", 0.9, 90, 100),)),
        "never so",
    ),
    "refused where there was room": (lambda day: exceeded(day, requested=69), "never so"),
    "refused with numbers that never were": (lambda day: exceeded(day, left=69), "never so"),
    "refused, and yet it stands there": (
        lambda day: day.tell(day.of(ask.Record), error=BudgetExceeded("lab", "lab", "tokens", 99, 70, 100), answer=()),
        "refused, and yet",
    ),
    "a hold that was not there": (lambda day: day.answer(day.of(ask.Reserve), 4, "committed"), "never so"),
    "a balance that never was": (lambda day: day.answer(day.of(ask.GetBalance), 4, ()), "never so"),
    "reads go back": (balances_swapped, "never so"),
    "a read of what was asked for later": (
        lambda day: day.tell(day.of(ask.GetBalance, 0), answer=day.asked[day.of(ask.GetBalance, 1)].answer),
        "never so",
    ),
    "a read behind what was known": (
        lambda day: day.tell(day.of(ask.GetBalance, 1), answer=day.asked[day.of(ask.GetBalance, 0)].answer),
        "never so",
    ),
    "a head that never was": (lambda day: day.answer(day.of(ask.GetHead), 2, bytes(32)), "never so"),
    "an entry that was not so": (lambda day: day.answer(day.of(ask.GetEntry), 2, "counted"), "never so"),
    "an extension that is longer": (lambda day: day.answer(day.of(ask.Extend), 3, 1), "never so"),
    "a rollback that was none": (lambda day: day.answer(day.of(ask.Rollback), 1, "released"), "never so"),
    "an unknown budget that is known": (
        lambda day: day.tell(day.of(ask.ListBudgets), answer=(), error=tbl.UnknownBudget("lab")),
        "never so",
    ),
    "a limit that was never set": (lambda day: day.answer(day.of(ask.SetLimit), 1, ()), "never so"),
    "granted over a limit": (
        lambda day: day.change(day.the("budget_set"), detail=day.events[day.the("budget_set")].detail.replace("100", "39")),  # type: ignore[union-attr] # it has one
        "over a limit",
    ),
    "expires before its time": (
        lambda day: day.change(day.the("extended"), expires=day.events[day.the("extended")].expires + 60_000_000),  # type: ignore[operator] # it has one
        "before its time",
    ),
    "open behind its time": (
        lambda day: day.write([e for e in day.events if e.kind != "expired" or e.command in {a.command.id for a in day.asked}]),
        "its time was over",
    ),
    "against the order in which it was asked": (
        lambda day: swapped(day, day.the("reserved", 1), day.the("reserved", 2)),
        "was known to be there",
    ),
    "a gap": (lambda day: Day(day.events[:5] + day.events[6:], day.asked), "no replay"),
}


@pytest.mark.parametrize(("lie", "said"), LIES.values(), ids=LIES)
def test_each_lie_is_noticed(day: Day, lie: Callable[[Day], Day], said: str) -> None:
    with pytest.raises(Lies, match=said):
        check(*lie(day))


def test_what_was_not_answered_may_be_done_or_not(day: Day) -> None:
    """A client that was killed does not know: both is right, and so it is behind a failing store."""
    last = max(n for n, each in enumerate(day.asked) if each.command.id in {event.command for event in day.events})
    rest = [each for n, each in enumerate(day.asked) if n <= last]
    for unanswered in ({"told": None, "answer": ()}, {"answer": (), "error": StoreFailed("full")}):
        silent = Day(day.events, rest).tell(last, **unanswered)
        check(*silent)
        check(*silent.write(day.events[:-1]))


def test_commands_that_were_on_their_way_together_may_stand_in_any_order(tmp_path: Path) -> None:
    """Two records whose times overlap; one behind the other's answer would be a lie."""
    with recorded(tbl.Ledger(store=MemoryStore()), tmp_path) as ledger:
        lab = ledger.budget("lab", tokens=100)
        lab.record(tokens=1).result()
        lab.record(tokens=2).result()
        day = Day(list(ledger.desk.events(10**9)), read(tmp_path))
    one, two = day.of(ask.Record, 0), day.of(ask.Record, 1)
    other = swapped(day, day.the("recorded", 0), day.the("recorded", 1))
    answers = {
        n: (day.asked[n].answer[0], day.asked[m].answer[1], day.asked[m].answer[2], *day.asked[n].answer[3:])
        for n, m in ((one, two), (two, one))
    }
    other = other.tell(one, answer=answers[one]).tell(two, answer=answers[two])
    with pytest.raises(Lies, match="was known to be there"):
        check(*other)
    check(*other.tell(two, sent=day.asked[one].sent))


def test_a_grant_that_nobody_waits_for_any_more_is_given_back_in_the_history_too(tmp_path: Path) -> None:
    """The desk hands its rollback in by itself."""
    with recorded(tbl.Ledger(store=MemoryStore()), tmp_path) as ledger:
        lab = ledger.budget("lab", tokens=100)
        command = ask.Reserve(ledger.new_id(), "lab", None, 60, 1, 10**9, "release")
        ticket = Ticket(command, DirectBox(None))
        ledger.desk.submit(ticket)
        ticket.abandon()
        assert ticket.wait(10)
        until(lambda: lab.balance.reserved_tokens == 0)
        checked(ledger, tmp_path)
    assert ask.Rollback in [type(each.command) for each in read(tmp_path)]


def test_who_asks_again_while_in_line_is_told_what_the_first_asking_met(tmp_path: Path) -> None:
    """Both tickets of one wait get one answer; its numbers are older than the second ticket, and that is no lie.

    limit    100 tokens, 60 are held
    wait     for 50, a minute
    record   10
    wait     again, under the same id
    time     is over: 40 were left
    """
    clock = Clock()
    with recorded(tbl.Ledger(store=MemoryStore(), clock_ns=clock.now_ns), tmp_path) as ledger:
        lab = ledger.budget("lab", tokens=100)
        lab.reserve_sync(tokens=60)
        command = ask.Reserve(ledger.new_id(), "lab", None, 50, 1, 600 * 10**6, "release", wait=60 * 10**6)
        one, two = Ticket(command, DirectBox(None)), Ticket(command, DirectBox(None))
        ledger.desk.submit(one)
        lab.record(tokens=10).result()
        ledger.desk.submit(two)
        assert lab.balance.left_tokens == 30  # asked behind it: it stands in line now
        clock.advance(61)
        assert lab.balance.left_tokens == 30
        assert (one.wait(10), two.wait(10)) == (True, True)
        assert isinstance(two.error, BudgetExceeded)
        assert two.error.left == 40
        checked(ledger, tmp_path)


KILLED = """if True:
    import os, pathlib, sys
    import tokenbudget_lab as tbl
    from tests.history import recorded
    lab = recorded(tbl.connect(sys.argv[1], embedded=True), pathlib.Path(sys.argv[2])).budget("lab", usd=1)
    lab.record(usd="0.25").result()
    os.kill(os.getpid(), 9)
"""


def test_a_history_survives_its_client(tmp_path: Path) -> None:
    """Killed right behind an answer: all that was told is in the file, and half a frame at its end does not count."""
    here = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "spend.duckdb", tmp_path / "told"], cwd=here, check=False, timeout=60
    )
    (file,) = (tmp_path / "told").iterdir()
    with file.open("ab") as torn:
        torn.write(file.read_bytes()[:40])
    with recorded(tbl.connect(tmp_path / "spend.duckdb", embedded=True), tmp_path / "told") as ledger:
        assert ledger.budget("lab").balance.committed_usd == Decimal("0.25")
        told = checked(ledger, tmp_path / "told")
    assert (told.clients_asked, told.unknown) == (4, 0)
