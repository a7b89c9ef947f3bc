"""Receipts: what no limit refuses is submitted at once, and a failure is not lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Log
from tokenbudget_lab.stores.memory import MemoryStore


def a_failure(held: tbl.Reservation) -> tbl.Receipt[tbl.Counted]:
    """A commit that the ledger refuses, and that nobody has read."""
    held.rollback().result()
    receipt = held.commit(tokens=1)
    assert held.state == "rolled_back"  # asked later and answered, so the receipt is settled
    assert receipt.done
    return receipt


def test_a_receipt_can_be_asked_and_awaited_as_often_as_one_likes(ledger: tbl.Ledger) -> None:
    """In sync and in async code, in another loop too.

    record    300
    """
    receipt = ledger.budget("lab", tokens=1000).record(tokens=300)

    async def story() -> object:
        return await receipt

    assert receipt.result() == asyncio.run(story()) == asyncio.run(story()) == receipt.result(timeout_s=0)
    assert receipt.done


def test_what_is_submitted_in_a_loop_can_be_awaited_there(ledger: tbl.Ledger) -> None:
    lab = ledger.budget("lab", tokens=1000)

    async def story() -> int:
        receipts = [lab.record(tokens=1) for _ in range(100)]
        told = [await receipt for receipt in receipts]
        return sum(counted.tokens or 0 for counted in told)

    assert asyncio.run(story()) == lab.balance.committed_tokens == 100


def test_a_receipt_says_where_it_stands(ledger: tbl.Ledger) -> None:
    held = ledger.budget("lab", tokens=1000).reserve_sync(tokens=300)
    receipt = held.commit(tokens=200)
    receipt.result()
    assert "200" in repr(receipt)
    failed = held.commit(tokens=201)
    with pytest.raises(tbl.ReservationClosed):
        failed.result()
    assert "is committed" in repr(failed)


def test_asking_in_vain_for_a_while_is_a_timeout_and_the_command_stays_on_its_way() -> None:
    """The store is slow.

    record    300, which takes its time to be written
    """
    gate = threading.Event()

    class SlowStore(MemoryStore):
        def append(self, events: object) -> None:
            if self._events:
                assert gate.wait(20)
            super().append(events)  # type: ignore[arg-type] # passed on

    with tbl.Ledger(store=SlowStore()) as ledger:
        gate.set()
        lab = ledger.budget("lab", tokens=1000)
        gate.clear()
        receipt = lab.record(tokens=300)
        assert repr(receipt) == "Receipt(on its way)"
        with pytest.raises(TimeoutError):
            receipt.result(timeout_s=0.01)
        assert not receipt.done
        gate.set()
        receipt.result()
        assert lab.balance.committed_tokens == 300


def test_a_failure_that_nobody_read_is_raised_by_the_handles_next_verb(ledger: tbl.Ledger, log: Log) -> None:
    """Which does nothing then.

    rollback
    commit    1  fails, not read
    rollback  raises the commit's error
    rollback
    """
    held = ledger.budget("lab", tokens=1000).reserve_sync(tokens=300)
    a_failure(held)
    with pytest.raises(tbl.ReservationClosed, match="asked for 1 tokens"):
        held.rollback()
    assert held.rollback().result() == "rolled_back"
    assert log.kinds == ["budget_set", "reserved", "rolled_back"]


@pytest.mark.parametrize("verb", ["record", "adjust", "reserve"])
def test_a_budgets_failure_is_raised_by_its_next_verb_too(ledger: tbl.Ledger, log: Log, verb: str) -> None:
    """Which does nothing then.

    record    without the resource that is limited; fails, not read
    """
    lab = ledger.budget("lab", tokens=1000)
    entry = lab.record(tokens=10).result()
    assert isinstance(entry, tbl.Counted)
    lab.record(usd=1)
    before = log.kinds
    verbs: dict[str, Callable[[], object]] = {
        "record": lambda: lab.record(tokens=1),
        "adjust": lambda: lab.adjust(entry.reservation, tokens=1),
        "reserve": lambda: lab.reserve_sync(tokens=1),
    }
    with pytest.raises(tbl.AmountMissing):
        verbs[verb]()
    assert log.kinds == before
    lab.reserve_sync(tokens=1)


def test_another_handle_goes_on(ledger: tbl.Ledger) -> None:
    """A failure belongs to the handle that made it."""
    lab = ledger.budget("lab", tokens=1000)
    failed, other = lab.reserve_sync(tokens=300), lab.reserve_sync(tokens=300)
    receipt = a_failure(failed)
    other.commit(tokens=300).result()
    with pytest.raises(tbl.ReservationClosed):
        receipt.result()


def test_a_failure_that_nobody_read_is_raised_by_closing(ledger: tbl.Ledger) -> None:
    """And by nothing after that.

    commit    fails, not read
    close     raises
    close
    """
    a_failure(ledger.budget("lab", tokens=1000).reserve_sync(tokens=300))
    with pytest.raises(tbl.ReservationClosed):
        ledger.close()
    assert ledger.closed
    ledger.close()


def test_a_failure_that_was_read_is_raised_by_nothing_else(ledger: tbl.Ledger) -> None:
    held = ledger.budget("lab", tokens=1000).reserve_sync(tokens=300)
    receipt = a_failure(held)
    for _ in range(2):
        with pytest.raises(tbl.ReservationClosed):
            receipt.result()
    held.rollback().result()
    ledger.close()


def test_leaving_the_block_raises_what_failed_in_it(ledger: tbl.Ledger) -> None:
    """Beside an error of the block's own it is a note on that.

    commit    300
    commit    200  fails, not read
    leave
    """
    lab = ledger.budget("lab", tokens=1000)

    def use(call: tbl.Reservation) -> None:
        call.commit(tokens=300)
        call.commit(tokens=200)

    def blocking(error: Exception | None = None) -> None:
        with lab.reserve(tokens=300) as call:
            use(call)
            if error is not None:
                raise error

    async def asynchronous() -> None:
        async with lab.reserve(tokens=300) as call:
            use(call)

    with pytest.raises(tbl.ReservationClosed):
        blocking()
    with pytest.raises(tbl.ReservationClosed):
        asyncio.run(asynchronous())
    with pytest.raises(ZeroDivisionError) as own:
        blocking(ZeroDivisionError())
    assert "is committed with 300 tokens" in own.value.__notes__[0]


def test_a_receipt_says_what_was_counted(ledger: tbl.Ledger) -> None:
    """In dollars, tokens and calls; of a rollback, the state; of a failure, the error."""
    lab = ledger.budget("lab", usd=10)
    held, back = lab.reserve_sync(usd=1), lab.reserve_sync(usd=1)
    receipts: list[tbl.Receipt[Any]] = [held.commit(usd="0.25", tokens=7), back.rollback(), held.commit(usd="0.5")]
    for receipt in receipts[:2]:
        receipt.result()
    with pytest.raises(tbl.ReservationClosed):
        receipts[2].result()
    assert repr(receipts[0]).startswith("Receipt(usd=0.25, tokens=7, requests=1, measured, event ")
    assert repr(receipts[1]) == "Receipt(rolled_back)"
    assert repr(receipts[2]).startswith("Receipt(ReservationClosed: ")
