"""Handles: how a reservation is asked for, entered, left, and lost."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import ON_ONE_MACHINE, Log, also_on_postgres

STORES = ON_ONE_MACHINE

# --- asked for -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["with", "async with", "await", "reserve_sync", "reserve_sync in a loop", "with in a loop"])
@also_on_postgres
def test_there_are_four_ways_to_the_same_reservation(ledger: tbl.Ledger, log: Log, way: str) -> None:
    """Each holds, and each can commit.

    reserve   300
    commit    100
    """
    lab = ledger.budget("lab", tokens=1000)

    def use(held: tbl.Reservation) -> tbl.Receipt[tbl.Counted]:
        assert (held.tokens, held.budget, held.state, lab.balance.reserved_tokens) == (300, "lab", "open", 300)
        return held.commit(tokens=100)

    def blocking() -> None:
        if way.startswith("with"):
            with lab.reserve(tokens=300) as held:
                use(held)
        else:
            use(lab.reserve_sync(tokens=300)).result()

    async def story() -> None:
        if way == "async with":
            async with lab.reserve(tokens=300) as held:
                use(held)
        elif way == "await":
            await use(await lab.reserve(tokens=300))
        else:
            blocking()

    if way in ("with", "reserve_sync"):
        blocking()
    else:
        asyncio.run(story())
    assert (lab.balance.committed_tokens, lab.balance.reserved_tokens) == (100, 0)
    assert log.kinds == ["budget_set", "reserved", "committed"]


def test_nothing_is_reserved_until_it_is_asked(ledger: tbl.Ledger, log: Log) -> None:
    """And touching it says what to do.

    reserve   300, not entered
    """
    asked = ledger.budget("lab", tokens=1000).reserve(tokens=300)
    for name in ("commit", "rollback", "id", "tokens", "state", "expires"):
        with pytest.raises(tbl.NotEntered, match=name):
            getattr(asked, name)
    assert repr(asked) == "<reserve(...), not asked yet: enter or await it>"
    assert log.kinds == ["budget_set"]
    with asked:
        assert repr(asked) == "<reserve(...), asked>"


@pytest.mark.parametrize("second", ["with", "async with", "await", "ask"])
def test_a_reserve_is_entered_once(ledger: tbl.Ledger, log: Log, second: str) -> None:
    """Also when it was refused.

    reserve   300, entered, entered again
    reserve   1001, refused, entered again
    """
    lab = ledger.budget("lab", tokens=1000)
    granted, refused = lab.reserve(tokens=300), lab.reserve(tokens=1001)
    with granted:
        pass
    with pytest.raises(tbl.BudgetExceeded), refused:
        pass

    async def again(asked: Any) -> None:
        if second == "async with":
            async with asked:
                pass
        elif second == "await":
            await asked
        elif second == "with":
            with asked:
                pass
        else:
            asked.ask()

    for asked in (granted, refused):
        with pytest.raises(tbl.NotEntered):
            asyncio.run(again(asked))
    assert log.kinds == ["budget_set", "reserved", "rolled_back", "refused"]


def test_a_reserve_that_is_never_entered_warns(ledger: tbl.Ledger, log: Log) -> None:
    """Somebody forgot `with` or `await`."""
    lab = ledger.budget("lab", tokens=1000)
    with pytest.warns(RuntimeWarning, match="never entered or awaited"):
        lab.reserve(tokens=300)
    assert log.kinds == ["budget_set"]


def test_a_reserve_says_what_it_holds(ledger: tbl.Ledger) -> None:
    held = ledger.budget("lab", limits=[]).reserve_sync(usd="0.30", tokens=5)
    assert held.expires is not None
    assert repr(held) == f"Reservation({held.id} on lab: usd=0.3, tokens=5, requests=1, expires {held.expires:%H:%M:%S} UTC)"


# --- left ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("what", "state"),
    [
        ({"tokens": 300}, "released"),
        ({"model": "m", "input_tokens": 200, "max_output_tokens": 100}, "counted"),
        ({"tokens": 300, "if_lost": "count"}, "counted"),
        ({"model": "m", "tokens": 300, "if_lost": "release"}, "released"),
    ],
)
@also_on_postgres
def test_a_block_that_is_left_by_an_error_has_lost_its_call(
    ledger: tbl.Ledger, log: Log, what: dict[str, Any], state: str, *, asynchronous: bool
) -> None:
    """Nobody knows whether it was billed: it ends as its expiry would end it, at once.

    reserve   300
    error
    """
    lab = ledger.budget("lab", tokens=1000)
    calls: list[tbl.Reservation] = []

    async def story() -> None:
        async with lab.reserve(**what) as call:
            calls.append(call)
            raise ConnectionError

    def blocking() -> None:
        with lab.reserve(**what) as call:
            calls.append(call)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(story()) if asynchronous else blocking()
    assert (calls[0].state, log.kinds) == (state, ["budget_set", "reserved", "expired"])
    assert lab.balance.committed_tokens == (300 if state == "counted" else 0)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_error_after_the_end_changes_nothing(ledger: tbl.Ledger, log: Log, end: str) -> None:
    """What was said of the call stands.

    reserve   300
    commit    100, or rollback
    error
    """
    lab = ledger.budget("lab", tokens=1000)

    def call() -> None:
        with lab.reserve(tokens=300, if_lost="count") as held:
            if end == "commit":
                held.commit(tokens=100)
            else:
                held.rollback()
            raise ConnectionError

    with pytest.raises(ConnectionError):
        call()
    assert lab.balance.committed_tokens == (100 if end == "commit" else 0)
    assert log.kinds[-1] == {"commit": "committed", "rollback": "rolled_back"}[end]


def test_a_task_that_is_cancelled_in_its_block_has_lost_its_call(ledger: tbl.Ledger) -> None:
    """The call may have reached the provider.

    reserve   300, count
    cancel
    """
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> None:
        entered = asyncio.Event()

        async def call() -> None:
            async with lab.reserve(tokens=300, if_lost="count"):
                entered.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(call())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert (lab.balance.committed_tokens, lab.balance.reserved_tokens) == (300, 0)


def test_what_ended_before_the_block_is_left_is_left_alone(ledger: tbl.Ledger, log: Log) -> None:
    """Somebody else ended it, by its id.

    reserve   300  key=row-7
    commit    100  through another handle
    leave
    """
    lab = ledger.budget("lab", tokens=1000)
    lab.reserve_sync(tokens=300, key="row-7").commit(tokens=100).result()
    with lab.reserve(tokens=300, key="row-7"):
        pass
    assert log.kinds == ["budget_set", "reserved", "committed"]


# --- lost ------------------------------------------------------------------------------------------------------------------


def test_garbage_collection_never_ends_a_reservation(ledger: tbl.Ledger) -> None:
    """It waits for its expiry, as the hold of a killed process does.

    reserve   300, forgotten
    """
    lab = ledger.budget("lab", tokens=1000)
    lab.reserve_sync(tokens=300)
    gc.collect()
    assert lab.balance.reserved_tokens == 300


def test_an_async_generator_that_is_closed_has_lost_its_call(ledger: tbl.Ledger, log: Log) -> None:
    """Closed in the middle, the stream's fate is unknown.

    reserve   300, count
    aclose
    """
    lab = ledger.budget("lab", tokens=1000)

    async def stream() -> AsyncIterator[int]:
        async with lab.reserve(tokens=300, if_lost="count"):
            yield 1
            yield 2

    async def story() -> None:
        async with aclosing(stream()) as chunks:  # type: ignore[type-var] # an async generator is closable
            async for _ in chunks:
                break

    asyncio.run(story())
    assert (lab.balance.committed_tokens, log.kinds) == (300, ["budget_set", "reserved", "expired"])


# --- of one ledger ------------------------------------------------------------------------------------------------------------


def test_handles_of_one_budget_are_equal_and_of_two_ledgers_are_not(ledger: tbl.Ledger) -> None:
    first = ledger.budget("lab", tokens=1000)
    again = ledger.budget("lab")
    with tbl.connect(":memory:") as other:
        elsewhere = other.budget("lab", tokens=1000)
        assert {first, again} == {first}
        assert first not in (elsewhere, ledger.budget("lap", tokens=1000), "lab")


def test_a_closed_ledger_says_so_in_each_verb(ledger: tbl.Ledger) -> None:
    """And closing again is nothing.

    reserve   300
    close
    """
    lab = ledger.budget("lab", tokens=1000)
    held = lab.reserve_sync(tokens=300)
    ledger.close()
    for verb in (
        lambda: ledger.budget("lab"),
        lambda: ledger.budget("new", usd=1),
        ledger.budgets,
        ledger.verify,
        lambda: lab.balance,
        lambda: lab.reserve_sync(tokens=1),
        lambda: asyncio.run(lab.reserve(tokens=1).__aenter__()),
        lambda: lab.record(tokens=1),
        lambda: lab.adjust(held, tokens=1),
        lambda: lab.set_limit(tokens=1),
        lab.close,
        lambda: held.commit(tokens=1),
        held.rollback,
        held.lose,
        lambda: held.extend_sync(60),
        lambda: held.state,
    ):
        with pytest.raises(tbl.LedgerClosed):
            verb()
    ledger.close()
    assert (ledger.closed, "closed" in repr(ledger), "is closed" in repr(lab)) == (True, True, True)


def test_leaving_a_block_after_the_ledger_was_closed_raises_that_or_notes_it(ledger: tbl.Ledger) -> None:
    """The hold waits for its expiry.

    reserve   300
    close
    leave, normally and by an error
    """
    lab = ledger.budget("lab", tokens=1000)
    calm, upset = lab.reserve(tokens=300), lab.reserve(tokens=300)
    calm.__enter__()
    upset.__enter__()
    ledger.close()
    with pytest.raises(tbl.LedgerClosed):
        calm.__exit__(None, None, None)
    error = ConnectionError()
    upset.__exit__(ConnectionError, error, None)
    assert "is closed" in error.__notes__[0]


# --- what is left of it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["async with", "with, committed", "with, left", "recorded"])
def test_an_ended_call_leaves_nothing_to_the_garbage_collector(ledger: tbl.Ledger, way: str) -> None:
    """Reservations, receipts and tickets know each other in one direction only; in a circle they would stay until it runs.

    reserve, commit   100 times
    """
    lab = ledger.budget("lab", tokens=100_000)

    async def story() -> None:
        for _ in range(100):
            async with lab.reserve(tokens=1) as call:
                call.commit(tokens=1)

    def blocking() -> None:
        for _ in range(100):
            if way == "recorded":
                lab.record(tokens=1).result()
                continue
            with lab.reserve(tokens=1) as call:
                if way == "with, committed":
                    call.commit(tokens=1)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(story()) if way == "async with" else blocking()
        left_over = gc.collect()
    finally:
        gc.enable()
    assert left_over < 100  # a loop and its first call leave a few of Python's own


def test_a_block_that_found_its_call_by_key_leaves_it_alone(ledger: tbl.Ledger) -> None:
    """Whoever reserved it may be in the middle of the call; only a commit or rollback that is said ends it.

    limit     100 tokens
    reserve   first 100, key=row-1
    reserve   second 100, key=row-1, and the block is left, by an error too
    reserve   third 100  refused
    commit    first 100
    """
    lab = ledger.budget("lab", tokens=100)
    with lab.reserve(tokens=100, key="row-1", if_lost="count") as first:
        with lab.reserve(tokens=100, key="row-1") as second:
            assert second.id == first.id
        with pytest.raises(KeyError), lab.reserve(tokens=100, key="row-1"):
            raise KeyError
        assert first.state == "open"
        with pytest.raises(tbl.BudgetExceeded):
            lab.reserve_sync(tokens=100)
        first.commit(tokens=90)
    assert lab.balance.committed_tokens == 90
