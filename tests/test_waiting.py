"""Waiting: who stands in line, who is let in, who is sent away."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import FrameType
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, Log, in_line
from tokenbudget_lab.commands import Cancel, Reserve
from tokenbudget_lab.desk import DirectBox, Ticket

GRACE_S = 20.0


async def soon(task: asyncio.Task[Any]) -> Any:
    """What a task comes to, within a grace."""
    return await asyncio.wait_for(task, GRACE_S)


def until(true: Callable[[], bool]) -> None:
    """Look again and again, within a grace."""
    deadline = time.monotonic() + GRACE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def frames_of(thread: int) -> Iterator[FrameType]:
    """Where a thread is, innermost first."""
    frame: FrameType | None = sys._current_frames()[thread]
    while frame is not None:
        yield frame
        frame = frame.f_back


# --- the line --------------------------------------------------------------------------------------------------------------


def test_waiters_hold_nothing_and_are_granted_in_order_of_arrival(ledger: tbl.Ledger, log: Log) -> None:
    """Who comes first is served first.

    limit     1000 tokens
    reserve   a 600, b 400
    reserve   c 400, d 400, e 400  wait
    rollback  b                    c is granted
    rollback  a                    d is granted
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> None:
        a, b = await lab.reserve(tokens=600), await lab.reserve(tokens=400)
        c, d, e = [await in_line(lab, tokens=400, wait=60, key=name) for name in "cde"]
        assert lab.balance.reserved_tokens == 1000
        await b.rollback()
        await soon(c)
        assert [d.done(), e.done()] == [False, False]
        await a.rollback()
        await soon(d)
        assert lab.balance.reserved_tokens == 800
        assert not e.done()
        e.cancel()

    asyncio.run(story())
    assert [e.key for e in log.events if e.kind == "reserved"] == [None, None, "c", "d"]


def test_a_waiting_reserve_that_is_sent_again_is_answered_twice_the_same(ledger: tbl.Ledger, log: Log) -> None:
    """It keeps its place in the line and is granted once.

    limit     1000 tokens
    reserve   a  1000
    reserve   b  400  waits; the same command is sent again, and waits
    rollback  a
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=1000)
    command = Reserve(ledger.new_id(), "lab", None, 400, 1, 60_000_000, "release", wait=60_000_000)
    sent = [Ticket(command, DirectBox(None)) for _ in range(2)]
    for ticket in sent:
        ledger.desk.submit(ticket)
    held.rollback().result()
    assert all(ticket.wait(GRACE_S) for ticket in sent)
    assert sent[0].outcome() == sent[1].outcome()
    assert log.kinds.count("reserved") == 2


def test_one_client_that_leaves_the_line_takes_nobody_elses_place(ledger: tbl.Ledger, clock: Clock) -> None:
    """And is told that it was not granted.

    limit     1000 tokens
    reserve   a  1000
    reserve   b  400  waits for two clients; one cancels
    rollback  a
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=1000)
    command = Reserve(ledger.new_id(), "lab", None, 400, 1, 60_000_000, "release", wait=60_000_000)
    leaves, stays = Ticket(command, DirectBox(None)), Ticket(command, DirectBox(None))
    ledger.desk.submit(leaves)
    ledger.desk.submit(stays)
    ledger.desk.submit(Ticket(Cancel(ledger.new_id(), command.id), leaves.box))
    held.rollback().result()
    assert all(ticket.wait(GRACE_S) for ticket in (leaves, stays))
    assert isinstance(leaves.error, tbl.BudgetExceeded)
    assert stays.outcome()[0] == command.id


def test_large_requests_get_no_promise(ledger: tbl.Ledger) -> None:
    """Those behind them that fit are let in.

    limit     1000 tokens
    reserve   a 600, b 400
    reserve   c 800, d 300  wait
    rollback  b             d is granted
    rollback  a             c still does not fit
    rollback  d             c is granted
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> None:
        a, b = await lab.reserve(tokens=600), await lab.reserve(tokens=400)
        c, d = [await in_line(lab, tokens=tokens, wait=60) for tokens in (800, 300)]
        await b.rollback()
        held = await soon(d)
        await a.rollback()
        assert not c.done()
        await held.rollback()
        await soon(c)

    asyncio.run(story())
    assert lab.balance.reserved_tokens == 800


@pytest.mark.parametrize("room", ["expiry", "window", "limit"])
def test_who_comes_now_does_not_overtake_the_line(ledger: tbl.Ledger, clock: Clock, room: str) -> None:
    """Whatever made the room.

    limit     1000 tokens per day
    reserve   a  1000 for 60 s
    reserve   b  1000  waits
    room      by expiry, by midnight, by a higher limit
    reserve   c  1000  refused
    """
    lab = ledger.budget("lab", tokens=1000, window="day")

    async def story() -> bool:
        a = await lab.reserve(tokens=1000, timeout=60 if room == "expiry" else 86_400)
        b = await in_line(lab, tokens=1000, wait=86_400)
        if room == "limit":
            ledger.budget("lab").set_limit(tokens=2000)
        else:
            clock.advance(60 if room == "expiry" else 43_200)
        with pytest.raises(tbl.BudgetExceeded):
            await lab.reserve(tokens=1000)
        assert a.id != (await soon(b)).id
        return True

    assert asyncio.run(story())


# --- let in ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback", "lose", "leave"])
def test_whatever_ends_a_hold_lets_a_waiter_in(ledger: tbl.Ledger, end: str) -> None:
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> None:
        async with lab.reserve(tokens=1000) as a:
            b = await in_line(lab, tokens=900, wait=60)
            if end == "commit":
                await a.commit(tokens=100)
            elif end != "leave":
                await getattr(a, end)()
        await soon(b)

    asyncio.run(story())
    assert lab.balance.reserved_tokens == 900


def test_a_raised_limit_lets_waiters_in(ledger: tbl.Ledger) -> None:
    """An ancestor's too.

    limit     lab $1, lab/study $5
    reserve   lab/study $1
    reserve   lab/study $1  waits for lab
    set_limit lab $2
    """
    lab, study = ledger.budget("lab", usd=1), ledger.budget("lab/study", usd=5)

    async def story() -> None:
        await study.reserve(usd=1)
        b = await in_line(study, usd=1, wait=60)
        lab.set_limit(usd=2)
        await soon(b)

    asyncio.run(story())
    assert lab.balance.reserved_usd == 2


def test_an_adjustment_lets_waiters_in(ledger: tbl.Ledger) -> None:
    """Less was spent than was thought.

    limit     1000 tokens per day
    record    800
    reserve   500  waits
    adjust    300
    """
    lab = ledger.budget("lab", tokens=1000, window="day")

    async def story() -> None:
        entry = await lab.record(tokens=800)
        assert isinstance(entry, tbl.Counted)
        b = await in_line(lab, tokens=500, wait=60)
        await lab.adjust(entry.reservation, tokens=300)
        await soon(b)

    asyncio.run(story())
    assert lab.balance.reserved_tokens == 500


def test_an_expiry_lets_a_waiter_in(ledger: tbl.Ledger, clock: Clock) -> None:
    """A hold that nobody ended.

    reserve   a  1000 for 60 s
    reserve   b  1000  waits
    after     60 s
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> str:
        await lab.reserve(tokens=1000, timeout=60)
        b = await in_line(lab, tokens=1000, wait=3600)
        clock.advance(60)
        assert lab.balance.at == clock.now  # any command makes the ledger look at the clock
        held: tbl.Reservation = await soon(b)
        return held.state

    assert asyncio.run(story()) == "open"


def test_a_windows_turn_lets_waiters_in(ledger: tbl.Ledger, clock: Clock) -> None:
    """Those that fit into the new one.

    limit     $1 per day, in Berlin
    record    $1
    reserve   a $0.60, b $0.60, c $0.40  wait
    at        midnight in Berlin: a and c
    at        the next midnight: b
    """
    lab = ledger.budget("lab", usd=1, window="day", tz="Europe/Berlin")
    lab.record(usd=1).result()

    async def story() -> None:
        a, b, c = [await in_line(lab, usd=usd, wait=86_400 * 2, timeout=86_400 * 2) for usd in ("0.60", "0.60", "0.40")]
        clock.set("2026-11-23 22:59")
        assert lab.balance.left_usd == 0
        assert [a.done(), b.done(), c.done()] == [False, False, False]
        clock.set("2026-11-23 23:00")
        assert lab.balance.at == clock.now
        await soon(a)
        await soon(c)
        assert not b.done()
        clock.set("2026-11-24 23:00")
        assert lab.balance.at == clock.now
        await soon(b)

    asyncio.run(story())
    assert lab.balance.reserved_usd == Decimal("0.6")


# --- sent away -----------------------------------------------------------------------------------------------------------


def test_what_can_never_fit_is_refused_at_once(ledger: tbl.Ledger, log: Log) -> None:
    """Waiting would not help, not even for ever.

    limit     1000 tokens
    record    300
    reserve   701  refused, although it would wait
    """
    lab = ledger.budget("lab", tokens=1000)
    lab.record(tokens=300).result()
    with pytest.raises(tbl.BudgetExceeded):
        lab.reserve_sync(tokens=701, wait=3600)
    assert log.kinds[-1] == "refused"


def test_in_a_window_only_what_is_above_its_limit_can_never_fit(ledger: tbl.Ledger) -> None:
    """The next window is empty.

    limit     1000 tokens per day
    record    300
    reserve   1001  refused
    reserve   1000  waits
    """
    lab = ledger.budget("lab", tokens=1000, window="day")
    lab.record(tokens=300).result()
    with pytest.raises(tbl.BudgetExceeded):
        lab.reserve_sync(tokens=1001, wait=3600)

    async def story() -> None:
        waiter = await in_line(lab, tokens=1000, wait=3600)
        assert lab.balance.reserved_tokens == 0
        assert not waiter.done()
        waiter.cancel()

    asyncio.run(story())


def test_a_waiter_that_can_never_fit_any_more_is_told_at_once(ledger: tbl.Ledger) -> None:
    """Somebody else spent it.

    limit     1000 tokens
    reserve   a  600
    reserve   b  600  waits
    commit    a  500
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> None:
        a = await lab.reserve(tokens=600)
        b = await in_line(lab, tokens=600, wait=3600)
        await a.commit(tokens=500)
        with pytest.raises(tbl.BudgetExceeded) as refused:
            await soon(b)
        assert refused.value.left == 500

    asyncio.run(story())


def test_closing_sends_the_waiters_of_the_subtree_away(ledger: tbl.Ledger) -> None:
    """And only those.

    reserve   lab/a 1000, lab/b 1000
    reserve   lab/a 1000, lab/b 1000  wait
    close     lab/a
    """
    ledger.budget("lab", limits=[])
    a, b = (ledger.budget(name, tokens=1000) for name in ("lab/a", "lab/b"))

    async def story() -> None:
        for budget in (a, b):
            await budget.reserve(tokens=1000)
        in_a, in_b = [await in_line(budget, tokens=1000, wait=3600) for budget in (a, b)]
        a.close()
        with pytest.raises(tbl.BudgetClosed) as closed:
            await soon(in_a)
        assert closed.value.budget == "lab/a"
        assert not in_b.done()
        in_b.cancel()

    asyncio.run(story())


def test_closing_the_ledger_sends_everybody_away(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> None:
        await lab.reserve(tokens=1000)
        waiter = await in_line(lab, tokens=1000, wait=3600)
        ledger.close()
        with pytest.raises(tbl.LedgerClosed):
            await soon(waiter)

    asyncio.run(story())


def test_a_deadline_ends_the_waiting(ledger: tbl.Ledger, clock: Clock, log: Log) -> None:
    """With the refusal that waiting was to avoid, which is an event now.

    reserve   a  1000
    reserve   b  1000  waits for 30 s
    after     30 s
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> None:
        await lab.reserve(tokens=1000)
        b = await in_line(lab, tokens=1000, wait=30)
        clock.advance(29.999)
        assert lab.balance.calls_in_flight == 1
        assert not b.done()
        assert "refused" not in log.kinds
        clock.advance(0.001)
        assert lab.balance.calls_in_flight == 1
        with pytest.raises(tbl.BudgetExceeded):
            await soon(b)

    asyncio.run(story())
    assert log.kinds == ["budget_set", "reserved", "refused"]


def test_a_deadline_passes_by_itself() -> None:
    """Nobody needs to ask anything meanwhile.

    reserve   a  1000
    reserve   b  1000  waits for 50 ms, on the real clock
    """
    with tbl.connect(":memory:") as real:
        lab = real.budget("lab", tokens=1000)

        async def story() -> float:
            await lab.reserve(tokens=1000)
            before = time.monotonic()
            waiter = await in_line(lab, tokens=1000, wait=0.05)
            with pytest.raises(tbl.BudgetExceeded):
                await soon(waiter)
            return time.monotonic() - before

        assert 0.05 <= asyncio.run(story()) < GRACE_S


def test_a_cancelled_waiter_leaves_the_line_and_leaks_nothing(ledger: tbl.Ledger, log: Log) -> None:
    """Who comes after it is granted instead.

    reserve   a  1000
    reserve   b  1000, c 1000  wait
    cancel    b
    rollback  a
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> None:
        a = await lab.reserve(tokens=1000)
        b, c = [await in_line(lab, tokens=1000, wait=3600, key=name) for name in "bc"]
        b.cancel()
        with pytest.raises(asyncio.CancelledError):
            await b
        await a.rollback()
        await soon(c)

    asyncio.run(story())
    assert [e.key for e in log.events if e.kind == "reserved"] == [None, "c"]
    assert (lab.balance.reserved_tokens, lab.balance.calls_in_flight) == (1000, 1)


def test_a_grant_that_comes_after_the_cancelling_is_given_back(ledger: tbl.Ledger) -> None:
    """However the two cross, nothing stays held.

    reserve   50 times, cancelled at once
    """
    lab = ledger.budget("lab", tokens=1000)

    async def take(wait: float) -> tbl.Reservation:
        return await lab.reserve(tokens=1000, wait=wait)

    async def story() -> None:
        for n in range(50):
            task = asyncio.create_task(take(3600 if n % 2 else 0))
            await asyncio.sleep(0)
            if n % 3 == 0:
                assert lab.balance.limit_tokens == 1000  # the grant is there before the cancelling
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        held = await take(10)
        await held.rollback()

    asyncio.run(story())
    assert (lab.balance.reserved_tokens, lab.balance.calls_in_flight) == (0, 0)


def test_a_cancelled_repeat_gives_back_nothing_that_another_call_holds(ledger: tbl.Ledger) -> None:
    """The key's reservation belongs to the call in flight.

    reserve   300  key=row-7
    reserve   300  key=row-7, cancelled
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> str:
        first = await lab.reserve(tokens=300, key="row-7")
        again = await in_line(lab, tokens=300, key="row-7")
        again.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again
        return first.state

    assert asyncio.run(story()) == "open"


# --- in threads ----------------------------------------------------------------------------------------------------------


def test_a_thread_waits_for_another_thread(ledger: tbl.Ledger) -> None:
    """A blocking wait ends with the grant.

    reserve   a  1000  in this thread
    reserve   b  1000  in another, waits
    rollback  a
    """
    lab = ledger.budget("lab", tokens=1000)
    a = lab.reserve_sync(tokens=1000)
    granted: list[tbl.Reservation] = []
    other = threading.Thread(target=lambda: granted.append(lab.reserve_sync(tokens=900, wait=GRACE_S)))
    other.start()
    a.rollback().result()
    other.join(GRACE_S)
    assert ([held.tokens for held in granted], lab.balance.reserved_tokens) == ([900], 900)


def test_a_wait_for_ones_own_reservation_is_an_error(ledger: tbl.Ledger) -> None:
    """It would never end: this thread holds what it waits for.

    limit     lab 1000 tokens
    reserve   lab/a 800
    reserve   lab/b 300, waiting  refused
    reserve   lab/b 200, waiting  fits
    rollback  lab/a
    """
    ledger.budget("lab", tokens=1000)
    a, b = (ledger.budget(name, limits=[]) for name in ("lab/a", "lab/b"))
    held = a.reserve_sync(tokens=800, timeout=86_400)
    with pytest.raises(tbl.WouldDeadlock, match=held.id):
        b.reserve_sync(tokens=300, wait=3600)
    small = b.reserve_sync(tokens=200, wait=3600)
    held.rollback().result()
    small.rollback().result()
    assert b.reserve_sync(tokens=300, wait=3600).tokens == 300


def test_a_loop_that_holds_does_not_block_itself_either(ledger: tbl.Ledger) -> None:
    """Its other tasks could not end what they hold. Awaiting is fine.

    reserve   a  1000  awaited
    reserve   b  1000  blocking, in the same loop  refused
    reserve   b  1000  awaited
    rollback  a
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> None:
        a = await lab.reserve(tokens=1000, timeout=86_400)
        with pytest.raises(tbl.WouldDeadlock):
            lab.reserve_sync(tokens=1000, wait=3600)
        b = await in_line(lab, tokens=1000, wait=3600)
        await a.rollback()
        await soon(b)

    asyncio.run(story())


def test_a_wait_elsewhere_is_no_deadlock(ledger: tbl.Ledger, log: Log) -> None:
    """What this thread holds is in another path.

    reserve   lap 1000
    reserve   lab 1000  in another thread
    reserve   lab 1000  waits
    """
    lab, lap = ledger.budget("lab", tokens=1000), ledger.budget("lap", tokens=1000)
    lap.reserve_sync(tokens=1000)
    elsewhere: list[tbl.Reservation] = []
    thread = threading.Thread(target=lambda: elsewhere.append(lab.reserve_sync(tokens=1000)))
    thread.start()
    thread.join()
    main = threading.get_ident()

    def give_back() -> None:
        until(lambda: any(frame.f_code is Ticket.wait.__code__ for frame in frames_of(main)))
        elsewhere[0].rollback()

    other = threading.Thread(target=give_back)
    other.start()
    assert lab.reserve_sync(tokens=1000, wait=GRACE_S).tokens == 1000
    other.join()


def test_an_interrupt_inside_a_blocking_wait_leaves_nothing_held(ledger: tbl.Ledger) -> None:
    """Ctrl-C in a cell that waits.

    reserve   a  1000  in another thread
    reserve   b  1000  waits, interrupted
    rollback  a
    reserve   c  1000
    """
    lab = ledger.budget("lab", tokens=1000)
    elsewhere: list[tbl.Reservation] = []
    thread = threading.Thread(target=lambda: elsewhere.append(lab.reserve_sync(tokens=1000)))
    thread.start()
    thread.join()
    main = threading.get_ident()

    def interrupt() -> None:
        until(lambda: any(frame.f_code is Ticket.wait.__code__ for frame in frames_of(main)))
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        lab.reserve_sync(tokens=1000, wait=GRACE_S)
    interrupter.join()
    elsewhere[0].rollback().result()
    assert (lab.balance.reserved_tokens, lab.balance.calls_in_flight) == (0, 0)
    assert lab.reserve_sync(tokens=1000).tokens == 1000


def test_an_interrupt_that_does_not_wake_the_thread_is_seen_all_the_same(ledger: tbl.Ledger) -> None:
    """A signal that comes while Python is about to put a thread to sleep, or that another thread takes, ends no sleep."""
    lab = ledger.budget("lab", tokens=1000)
    elsewhere = threading.Thread(target=lambda: lab.reserve_sync(tokens=1000))
    elsewhere.start()
    elsewhere.join()
    main = threading.get_ident()

    def interrupt() -> None:
        until(lambda: any(frame.f_code is Ticket.wait.__code__ for frame in frames_of(main)))
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        lab.reserve_sync(tokens=1000, wait=GRACE_S)
    interrupter.join()
    assert lab.balance.calls_in_flight == 1


# --- whose room it is --------------------------------------------------------------------------------------------------------


def test_a_wait_for_somebody_elses_room_is_no_deadlock(ledger: tbl.Ledger) -> None:
    """Though the thread holds something under the same ancestor, where there is room.

    limit     lab/x 100, lab/y 100
    reserve   lab/y 100 by another thread, which gives it back
    reserve   lab/x 100, then lab/y 100  waits, and is granted
    """
    ledger.budget("lab", limits=[])
    x, y = ledger.budget("lab/x", tokens=100), ledger.budget("lab/y", tokens=100)
    held: list[tbl.Reservation] = []
    other = threading.Thread(target=lambda: held.append(y.reserve_sync(tokens=100)))
    other.start()
    other.join()
    back = threading.Timer(0.2, held[0].rollback)
    with x.reserve(tokens=100):
        back.start()
        y.reserve_sync(tokens=100, wait=30).rollback().result()
    back.join()


def test_a_waiting_key_gets_the_call_that_has_it_though_its_size_was_refused(ledger: tbl.Ledger) -> None:
    """In the same round, behind one of the same size that does not fit.

    limit     100 tokens
    reserve   60
    reserve   b 60 key=k, a 60, c 60 key=k  wait
    rollback  the first
    """
    lab = ledger.budget("lab", tokens=100)

    async def story() -> None:
        first = await lab.reserve(tokens=60)
        b, a, c = [await in_line(lab, tokens=60, wait=60, key=key) for key in ("k", None, "k")]
        await first.rollback()
        assert (await soon(b)).id == (await soon(c)).id
        assert not a.done()
        a.cancel()

    asyncio.run(story())


def test_a_clock_that_is_put_back_makes_nobody_wait_longer(ledger: tbl.Ledger, clock: Clock) -> None:
    """The time in line is what passes, whatever the clock says.

    reserve   100 of 100
    reserve   100  waits for 60 s
    clock     back 30 min, on 61 s
    """
    lab = ledger.budget("lab", tokens=100)

    async def story() -> None:
        await lab.reserve(tokens=100, timeout=3600)
        waits = await in_line(lab, tokens=100, wait=60)
        clock.advance(-1800)
        assert lab.balance.reserved_tokens == 100
        assert not waits.done()
        clock.advance(61)
        assert lab.balance.reserved_tokens == 100
        with pytest.raises(tbl.BudgetExceeded):
            await soon(waits)

    asyncio.run(story())
