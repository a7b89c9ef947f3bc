"""Many calls at once: order, bounds, refusals in their places, and nothing lost that was paid."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import textwrap
from collections import UserDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from decimal import Decimal
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import anthropic
import pytest

import tokenbudget_lab as tbl
from tests.conftest import also_on_postgres
from tests.provider import Provider, failed
from tokenbudget_lab import money_bar
from tokenbudget_lab import progress as progress_bars

STORE = "memory"


class Study:
    """A budget, and calls that reserve in it, ask nobody, and commit."""

    def __init__(self, ledger: tbl.Ledger, **limits: Any) -> None:
        self.budget = ledger.budget("study", **(limits or {"usd": 100}))
        self.asked: list[Any] = []
        self.now = self.most = 0
        self.go_on = asyncio.Event()

    async def ask(self, n: Any, *, usd: str = "0.10", waits: bool = False) -> str:
        async with self.budget.reserve(usd=usd) as call:
            self.asked.append(n)
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await (self.go_on.wait() if waits else asyncio.sleep(0))
            finally:
                self.now -= 1
            call.commit(usd=usd)
        return f"reply {n}"

    def calls(self, *numbers: Any, waits: bool = False) -> list[Callable[[], Awaitable[str]]]:
        return [partial(self.ask, n, waits=waits) for n in numbers]

    async def reached(self, n: int) -> None:
        """Until so many calls are in flight."""
        while self.now < n:  # noqa: ASYNC110 - what is waited for is the loop's turns
            await asyncio.sleep(0)


@pytest.fixture
def study(ledger: tbl.Ledger) -> Study:
    return Study(ledger)


async def value(n: Any) -> Any:
    return n


def kinds(replies: list[Any]) -> list[Any]:
    """Replies, and the names of exceptions."""
    return [type(reply).__name__ if isinstance(reply, BaseException) else reply for reply in replies]


# --- order and bounds ------------------------------------------------------------------------------------------------------


async def _later(calls: list[Any]) -> AsyncIterator[Any]:
    for call in calls:
        await asyncio.sleep(0)
        yield call


WAYS: dict[str, Callable[[Study], tuple[Any, ...]]] = {
    "functions": lambda study: tuple(study.calls(1, 2, 3)),
    "coroutines": lambda study: tuple(study.ask(n) for n in (1, 2, 3)),
    "a list of functions": lambda study: (study.calls(1, 2, 3),),
    "a list of coroutines": lambda study: ([study.ask(n) for n in (1, 2, 3)],),
    "a generator": lambda study: ((partial(study.ask, n) for n in (1, 2, 3)),),
    "a generator of coroutines": lambda study: ((study.ask(n) for n in (1, 2, 3)),),
    "an async generator": lambda study: (_later(study.calls(1, 2, 3)),),
    "tasks": lambda study: tuple(asyncio.ensure_future(study.ask(n)) for n in (1, 2, 3)),
    "some of each": lambda study: (study.ask(1), partial(study.ask, 2), asyncio.ensure_future(study.ask(3))),
}


@pytest.mark.parametrize("way", WAYS)
def test_replies_stand_in_the_order_of_the_calls(study: Study, way: str) -> None:
    async def story() -> list[Any]:
        return await tbl.gather(*WAYS[way](study), budget=study.budget)

    assert asyncio.run(story()) == ["reply 1", "reply 2", "reply 3"]
    assert study.budget.balance.committed_usd == Decimal("0.30")


def test_the_order_is_that_of_the_calls_and_not_of_their_ends() -> None:
    async def story() -> list[Any]:
        first = asyncio.Event()

        async def slow() -> str:
            await first.wait()
            return "slow"

        async def fast() -> str:
            first.set()
            return "fast"

        return await tbl.gather(slow, fast)

    assert asyncio.run(story()) == ["slow", "fast"]


@pytest.mark.parametrize("concurrency", [1, 7, 50])
def test_no_more_run_at_once_than_was_said(study: Study, concurrency: int) -> None:
    async def story() -> None:
        await tbl.gather(*study.calls(*range(60)), concurrency=concurrency)

    asyncio.run(story())
    assert study.most == concurrency


def test_a_generator_of_a_hundred_thousand_is_read_as_the_calls_go_on() -> None:
    """No more coroutines exist than may run, and no more tasks."""
    made, ended, most, tasks = 0, 0, 0, 0

    async def ask(n: int) -> int:
        nonlocal ended
        await asyncio.sleep(0)
        ended += 1
        return n

    def source() -> Iterator[Coroutine[Any, Any, int]]:
        nonlocal made, most, tasks
        for n in range(100_000):
            made += 1
            most = max(most, made - ended)
            if n % 1_000 == 0:
                tasks = max(tasks, len(asyncio.all_tasks()))
            yield ask(n)

    assert asyncio.run(tbl.gather(source(), concurrency=20)) == list(range(100_000))
    assert most <= 20
    assert tasks <= 22


@pytest.mark.parametrize(
    "none", [(), ([],), (iter(()),), (_later([]),)], ids=["nothing", "list", "generator", "async generator"]
)
def test_nothing_is_made_of_nothing(none: tuple[Any, ...]) -> None:
    assert asyncio.run(tbl.gather(*none)) == []


def test_a_future_is_a_call_too() -> None:
    async def story() -> list[Any]:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "answered")
        return await tbl.gather(future)

    assert asyncio.run(story()) == ["answered"]


def test_a_call_sees_its_callers_context_and_keeps_its_own() -> None:
    """What one call sets, the next one on the same slot does not see."""
    from contextvars import ContextVar

    seen: ContextVar[str] = ContextVar("seen", default="nothing")

    async def ask(n: int) -> str:
        before = seen.get()
        seen.set(f"of {n}")
        return before

    async def story() -> list[Any]:
        seen.set("the caller's")
        return await tbl.gather(*(partial(ask, n) for n in range(3)), concurrency=1)

    assert asyncio.run(story()) == ["the caller's"] * 3


# --- refusals and errors ---------------------------------------------------------------------------------------------------


@also_on_postgres
def test_a_refusal_stands_in_its_place_and_the_others_are_made(study: Study) -> None:
    """It is too large; what comes behind it is not.

    limit     $100
    reserve   1 $0.10   2 $1,000 refused   3 $0.10
    """

    async def story() -> list[Any]:
        return await tbl.gather(
            partial(study.ask, 1), partial(study.ask, 2, usd="1000"), partial(study.ask, 3), budget=study.budget
        )

    assert kinds(asyncio.run(story())) == ["reply 1", "BudgetExceeded", "reply 3"]
    assert study.asked == [1, 3]


def test_all_may_be_refused(ledger: tbl.Ledger) -> None:
    study = Study(ledger, usd="0.05")
    assert kinds(asyncio.run(tbl.gather(*study.calls(1, 2, 3), budget=study.budget))) == ["BudgetExceeded"] * 3


def test_as_many_are_made_as_the_budget_pays_for(ledger: tbl.Ledger) -> None:
    study = Study(ledger, usd=1)
    replies = asyncio.run(tbl.gather(*study.calls(*range(40)), budget=study.budget, concurrency=20))
    assert (kinds(replies).count("BudgetExceeded"), study.budget.balance.committed_usd) == (30, Decimal(1))


def test_any_exception_stands_in_its_place() -> None:
    """Those of coroutines, of functions that fail before they return one, and of a call that cancels itself."""

    async def broken() -> None:
        raise ZeroDivisionError

    def at_once() -> Awaitable[Any]:
        raise KeyError("at once")

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    async def story() -> list[Any]:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        return await tbl.gather(value(1), broken(), at_once, cancels_itself, task, value(2), concurrency=2)

    assert kinds(asyncio.run(story())) == [1, "ZeroDivisionError", "KeyError", "CancelledError", "CancelledError", 2]


def test_an_exception_that_is_returned_is_a_reply() -> None:
    results: dict[str, Any] = {}
    error = ValueError("a reply")
    assert asyncio.run(tbl.gather(value(error), keys=["a"], results=results)) == [error]
    assert results == {"a": error}


def test_after_the_budget_is_closed_no_further_call_is_started(study: Study) -> None:
    """Not even the functions are called: nothing can be reserved in it any more.

    reserve   1, committed
    close
    reserve   2  refused
    """
    called = []

    async def close_it() -> None:
        study.budget.close()

    def noted(n: int) -> Awaitable[str]:
        called.append(n)
        return study.ask(n)

    async def story() -> list[Any]:
        calls: list[Any] = [*study.calls(1), close_it, partial(noted, 2), partial(noted, 3), study.ask(4)]
        return await tbl.gather(*calls, budget=study.budget, concurrency=1)

    replies = asyncio.run(story())
    assert kinds(replies) == ["reply 1", None, "BudgetClosed", "NotCalled", "NotCalled"]
    assert called == [2]
    assert isinstance(replies[3], tbl.NotCalled)
    assert replies[3].after.startswith("BudgetClosed: study is closed")
    assert replies[3].__cause__ is replies[2]


@pytest.mark.parametrize(("closed", "goes_on"), [("lab", False), ("lab/a", False), ("lab/a/run", True), ("lab/b", True)])
def test_a_closed_budget_ends_it_where_it_is_the_one_given_or_above_it(
    ledger: tbl.Ledger,
    closed: str,
    goes_on: bool,  # noqa: FBT001 - a parameter
) -> None:
    for name in ("lab", "lab/a", "lab/a/run", "lab/b"):
        ledger.budget(name, usd=1)
    ledger.budget(closed).close()

    async def story() -> list[Any]:
        calls: list[Any] = [ledger.budget(closed).reserve(usd="0.10"), value(1)]
        return await tbl.gather(*calls, budget=ledger.budget("lab/a"), concurrency=1)

    assert kinds(asyncio.run(story())) == ["BudgetClosed", 1 if goes_on else "NotCalled"]


@pytest.mark.parametrize("given", [tbl.BudgetExceeded, (ValueError, tbl.BudgetExceeded), tbl.Refused, Exception])
def test_it_stops_at_what_it_was_told_to_stop_at(ledger: tbl.Ledger, given: Any) -> None:
    study = Study(ledger, usd="0.25")
    replies = asyncio.run(tbl.gather(*study.calls(*range(6)), stop_on=given, concurrency=1))
    assert kinds(replies) == ["reply 0", "reply 1", "BudgetExceeded", "NotCalled", "NotCalled", "NotCalled"]


def test_what_runs_when_it_stops_goes_on_to_its_end(study: Study) -> None:
    async def broken() -> None:
        study.go_on.set()
        raise ValueError

    async def story() -> list[Any]:
        return await tbl.gather(partial(study.ask, 1, waits=True), broken, value(3), stop_on=ValueError, concurrency=2)

    assert kinds(asyncio.run(story())) == ["reply 1", "ValueError", "NotCalled"]


def test_a_task_that_runs_already_is_waited_for_when_it_stops() -> None:
    """It may be paid."""

    async def broken() -> None:
        raise ValueError

    async def story() -> list[Any]:
        return await tbl.gather(broken, asyncio.ensure_future(value("paid")), stop_on=ValueError, concurrency=1)

    assert kinds(asyncio.run(story())) == ["ValueError", "paid"]


# --- broken off ------------------------------------------------------------------------------------------------------------


@also_on_postgres
def test_cancelled_half_way_what_has_finished_is_kept_and_nothing_is_held(study: Study) -> None:
    """Three are answered, two are in flight, five have not begun.

    commit    0 1 2
    reserve   3 4
    cancel
    """
    results: dict[int, str] = {}

    async def story() -> None:
        calls = [*study.calls(0, 1, 2), *study.calls(*range(3, 10), waits=True)]
        task = asyncio.create_task(tbl.gather(calls, keys=range(10), results=results, concurrency=2, budget=study.budget))
        await study.reached(2)
        while len(results) < 3:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        await study.reached(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as broken_off:
            await task
        assert broken_off.value.results is results  # type: ignore[attr-defined]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())
    assert results == {0: "reply 0", 1: "reply 1", 2: "reply 2"}
    assert (study.asked, study.now) == ([0, 1, 2, 3, 4], 0)
    assert (study.budget.balance.committed_usd, study.budget.balance.reserved_requests) == (Decimal("0.30"), 0)


def test_without_a_dict_the_exception_has_what_was_paid(study: Study) -> None:
    async def story() -> None:
        async with asyncio.timeout(0.05):
            await tbl.gather(*study.calls(0), *study.calls(1, waits=True), study.ask(2), concurrency=1)

    with pytest.raises(TimeoutError) as late:
        asyncio.run(story())
    assert late.value.__cause__ is not None
    assert late.value.__cause__.results == {0: "reply 0"}  # type: ignore[attr-defined]
    assert "1 results are kept, by place" in late.value.__cause__.__notes__[0]


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_coroutines_that_were_never_started_are_closed(study: Study, concurrency: int) -> None:
    """Whether they still wait, or have a task that had no turn; a warning would fail this test."""

    async def story() -> None:
        coroutines = [study.ask(n, waits=True) for n in range(5)]
        task = asyncio.create_task(tbl.gather(coroutines, concurrency=concurrency))
        await asyncio.sleep(0)  # it starts, and the tasks it makes have not
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    gc.collect()
    assert study.asked == []


def test_tasks_and_futures_that_were_given_are_cancelled_too(study: Study) -> None:
    async def story() -> None:
        tasks = [asyncio.create_task(study.ask(n, waits=True)) for n in range(3)]
        task = asyncio.create_task(tbl.gather(tasks, concurrency=1))
        await study.reached(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(each.cancelled() for each in tasks)

    asyncio.run(story())
    assert study.budget.balance.reserved_requests == 0


def test_in_a_task_group_its_end_is_the_ends_of_its_calls(study: Study) -> None:
    async def broken() -> None:
        await study.reached(2)
        raise ValueError

    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(tbl.gather(*study.calls(1, 2, waits=True), budget=study.budget))
            group.create_task(broken())

    with pytest.raises(ExceptionGroup):
        asyncio.run(story())
    assert (study.now, study.budget.balance.reserved_requests) == (0, 0)


class Stop(BaseException):
    """More than an exception."""


def test_more_than_an_exception_cancels_the_others_and_is_raised(study: Study) -> None:
    async def stop() -> None:
        await study.reached(2)
        raise Stop

    async def story() -> None:
        calls: list[Any] = [*study.calls(0), *study.calls(1, 2, waits=True), stop, study.ask(4)]
        with pytest.raises(Stop) as stopped:
            await tbl.gather(*calls, concurrency=3)
        assert stopped.value.results == {0: "reply 0"}  # type: ignore[attr-defined]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())
    assert (study.now, study.budget.balance.reserved_requests) == (0, 0)


def test_a_keyboard_interrupt_in_a_call_ends_them_all(study: Study) -> None:
    results: dict[str, str] = {}

    async def interrupted() -> str:
        await study.reached(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(
            tbl.gather(
                *study.calls(0),
                *study.calls(1, waits=True),
                interrupted,
                study.ask(3),
                keys=["a", "b", "c", "d"],
                results=results,
                concurrency=2,
            )
        )
    assert (results, study.now, study.budget.balance.reserved_requests) == ({"a": "reply 0"}, 0, 0)


def test_ctrl_c_leaves_what_was_paid_and_holds_nothing() -> None:
    code = """
        import asyncio, sys
        import tokenbudget_lab as tbl

        ledger = tbl.connect(":memory:")
        study, results = ledger.budget("study", usd=1), {}

        async def ask(n):
            async with study.reserve(usd="0.10") as call:
                if n > 2:
                    if len(results) == 3:
                        print("asked", flush=True)
                    await asyncio.sleep(60)
                call.commit(usd="0.10")
                return n

        try:
            asyncio.run(tbl.gather(*(lambda n=n: ask(n) for n in range(9)), keys=range(9), results=results, concurrency=1))
        except KeyboardInterrupt as error:
            print(results, study.balance.reserved_requests, ledger.verify().open_reservations, *error.__context__.__notes__)
    """
    environment = {"PYTHONPATH": str(Path(tbl.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert err == ""
    assert out.startswith("{0: 0, 1: 1, 2: 2} 0 0 tokenbudget: 3 results are kept, by key")


# --- again -----------------------------------------------------------------------------------------------------------------


@also_on_postgres
def test_after_a_crash_only_the_missing_calls_are_made(ledger: tbl.Ledger) -> None:
    """The refused ones are tried again, the paid ones are not.

    limit     $0.25
    commit    a b
    reserve   c d   refused
    limit     $1
    commit    c d
    """
    study = Study(ledger, usd="0.25")
    results: dict[str, str] = {}

    def run() -> list[Any]:
        return asyncio.run(tbl.gather(study.calls(*"abcd"), keys=list("abcd"), results=results, concurrency=1))

    assert kinds(run()) == ["reply a", "reply b", "BudgetExceeded", "BudgetExceeded"]
    assert list(results) == ["a", "b"]
    study.budget.set_limit(usd=1)
    assert run() == ["reply a", "reply b", "reply c", "reply d"]
    assert study.asked == ["a", "b", "c", "d"]


def test_coroutines_of_calls_that_were_made_before_are_closed(study: Study) -> None:
    results = {"a": "paid before"}
    replies = asyncio.run(tbl.gather(study.ask("a"), study.ask("b"), keys=["a", "b"], results=results))
    gc.collect()
    assert (replies, study.asked) == (["paid before", "reply b"], ["b"])


def test_keys_of_a_generator_go_with_its_calls(study: Study) -> None:
    results = {3: "paid before"}
    replies = asyncio.run(tbl.gather((partial(study.ask, n) for n in range(5)), keys=(n for n in range(5)), results=results))
    assert replies == ["reply 0", "reply 1", "reply 2", "paid before", "reply 4"]
    assert sorted(results) == [0, 1, 2, 3, 4]


def test_two_of_the_same_key_are_refused_before_anything_is_called(study: Study) -> None:
    with pytest.raises(tbl.InvalidValue, match=r"keys\[2\]: is 'a', as keys\[0\] is"):
        asyncio.run(tbl.gather(*(study.ask(n) for n in range(3)), keys=["a", "b", "a"]))
    gc.collect()
    assert study.asked == []


def test_a_key_that_cannot_be_hashed_is_named_by_its_place(study: Study) -> None:
    with pytest.raises(tbl.InvalidType, match=r"keys\[1\]: has a key of list, which cannot be hashed"):
        asyncio.run(tbl.gather(*study.calls(1, 2), keys=["a", ["b"]]))


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_key_that_would_not_be_found_again_is_refused(study: Study, missing: Any) -> None:
    with pytest.raises(tbl.InvalidValue, match=r"keys\[1\]: has no key"):
        asyncio.run(tbl.gather(*study.calls(1, 2), keys=["a", missing]))


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"]])
def test_there_is_a_key_for_each_call(study: Study, keys: list[str]) -> None:
    with pytest.raises(tbl.InvalidValue, match=rf"keys: there are {len(keys)}, and 2 calls"):
        asyncio.run(tbl.gather(*(study.ask(n) for n in range(2)), keys=keys))
    assert study.asked == []


@pytest.mark.parametrize(
    ("keys", "told"), [(["a"], "there are 1, and more calls"), (["a", "b", "c"], "there are 3, and 2 calls")]
)
def test_a_generator_of_another_length_than_its_keys_is_found_when_it_ends(study: Study, keys: list[str], told: str) -> None:
    """What is paid by then is in the exception."""
    with pytest.raises(tbl.InvalidValue, match=told) as wrong:
        asyncio.run(tbl.gather((study.ask(n) for n in range(2)), keys=keys))
    assert wrong.value.results == {key: f"reply {n}" for n, key in enumerate(keys[:2])}  # type: ignore[attr-defined]


def test_results_need_keys(study: Study) -> None:
    with pytest.raises(tbl.InvalidValue, match="keys: are needed beside results="):
        asyncio.run(tbl.gather(study.ask(1), results={}))


def test_results_that_were_read_from_json_are_told_from_those_with_numbers(study: Study) -> None:
    """Else not one would be found, and all be paid again."""
    with pytest.raises(tbl.InvalidType, match="its keys are texts, such as '1'; these here are int"):
        asyncio.run(tbl.gather(study.ask(1), keys=[1], results={"1": "paid before"}))


def test_results_that_cannot_be_kept_stop_it_and_are_not_lost(study: Study) -> None:
    """The disk is full: the others end, no other is started, and what came is in the exception."""

    class Full(UserDict[str, str]):
        def __setitem__(self, key: str, value: str) -> None:
            if key == "b":
                raise OSError("disk full")
            super().__setitem__(key, value)

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(
            tbl.gather(
                *(study.ask(n) for n in range(9)),
                keys=["a", "b", "c", "d", "e", "f", "g", "h", "i"],
                results=Full(),
                concurrency=2,
            )
        )
    gc.collect()
    assert study.asked in ([0, 1], [0, 1, 2])


# --- what is no call -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [5, "text", None, [1]])
def test_what_is_no_call_is_named_by_its_place_before_anything_is_called(study: Study, wrong: Any) -> None:
    with pytest.raises(tbl.InvalidType, match=r"calls\[1\]: is .*, neither awaitable nor a function"):
        asyncio.run(tbl.gather(study.ask(0), wrong, study.ask(2)))
    gc.collect()
    assert study.asked == []


@pytest.mark.parametrize("wrong", [5, "text", {"a": 1}, None])
def test_one_thing_that_is_no_call_is_named(wrong: Any) -> None:
    with pytest.raises(tbl.InvalidType, match=r"calls\[0\]"):
        asyncio.run(tbl.gather(wrong))


def test_a_generator_that_yields_no_call_lets_those_in_flight_end(study: Study) -> None:
    def source() -> Iterator[Any]:
        yield study.ask(0)
        yield study.ask(1)
        yield "no call"

    with pytest.raises(tbl.InvalidType, match=r"calls\[2\]: is str") as wrong:
        asyncio.run(tbl.gather(source()))
    assert wrong.value.results == {0: "reply 0", 1: "reply 1"}  # type: ignore[attr-defined]


def test_a_generator_that_fails_lets_those_in_flight_end(study: Study) -> None:
    async def source() -> AsyncIterator[Any]:
        yield study.ask(0)
        raise ConnectionError

    with pytest.raises(ConnectionError) as wrong:
        asyncio.run(tbl.gather(source()))
    assert wrong.value.results == {0: "reply 0"}  # type: ignore[attr-defined]


def test_an_async_generator_is_closed_when_it_is_read_no_further() -> None:
    closed = []

    async def source() -> AsyncIterator[Any]:
        try:
            yield value(1)
            yield "no call"
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    async def story() -> None:
        with pytest.raises(tbl.InvalidType):
            await tbl.gather(source())
        assert closed == [True]

    asyncio.run(story())


def test_a_function_that_returns_its_reply_itself_is_an_error_and_the_reply_is_kept() -> None:
    """A sync client's: it would block the loop, one call after the other."""
    results: dict[str, Any] = {}
    with pytest.raises(tbl.InvalidType, match=r"calls\[0\]: returned str, which cannot be awaited"):
        asyncio.run(tbl.gather(lambda: "paid", lambda: "not called", keys=["a", "b"], results=results, concurrency=1))  # type: ignore[arg-type,return-value]
    assert results == {"a": "paid"}


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("concurrency", 0),
        ("concurrency", -1),
        ("concurrency", True),
        ("concurrency", 1.5),
        ("concurrency", "5"),
        ("concurrency", None),
        ("budget", "study"),
        ("keys", "a"),
        ("keys", 5),
        ("results", [1]),
        ("stop_on", "BudgetExceeded"),
        ("stop_on", int),
        ("stop_on", ValueError("an instance")),
        ("progress", "yes"),
    ],
)
def test_an_argument_that_means_nothing_is_named_and_nothing_is_called(study: Study, argument: str, wrong: Any) -> None:
    kind = tbl.InvalidValue if wrong in (0, -1) and wrong is not True else tbl.InvalidType
    with pytest.raises(kind, match=argument):
        asyncio.run(tbl.gather(study.ask(1), **{argument: wrong}))
    gc.collect()
    assert study.asked == []


# --- the bar ---------------------------------------------------------------------------------------------------------------


def test_a_bar_tells_what_is_spent_and_left_and_how_much_it_will_be(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(money_bar, "LOOK_S", 0.001)
    study.budget.record(usd=2).result()

    async def ask(n: int) -> str:
        await asyncio.sleep(0.15)
        return await study.ask(n, usd="1000" if n == 1 else "10")

    asyncio.run(tbl.gather(*(partial(ask, n) for n in range(4)), budget=study.budget, concurrency=1, progress=True))
    shown = capsys.readouterr().err
    assert "study:  50%" in shown
    assert "2/4 [" in shown
    assert "$10.00 spent, $88.00 left, ~$40.00 in all" in shown
    assert "$30.00 spent, $68.00 left, ~$40.00 in all, 1 refused]" in shown.splitlines()[-1]
    assert "4/4" in shown.splitlines()[-1]


def test_what_was_done_before_is_on_the_bar_and_not_in_its_pace(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    results = {0: "paid", 1: "paid"}
    asyncio.run(tbl.gather(study.calls(*range(4)), keys=range(4), results=results, budget=study.budget, progress=True))
    last = capsys.readouterr().err.splitlines()[-1]
    assert "4/4" in last
    assert "$0.2000 spent, $99.80 left]" in last


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_a_bar_is_shown_where_it_is_wanted(
    study: Study,
    progress: bool | None,  # noqa: FBT001 - a parameter
    shown: bool,  # noqa: FBT001 - a parameter
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None wants one in a terminal or notebook, and this is neither."""
    monkeypatch.setattr(progress_bars, "SHOWN_AFTER_S", 0)
    asyncio.run(tbl.gather(*study.calls(1, 2), budget=study.budget, progress=progress))
    assert ("study" in capsys.readouterr().err) is shown


class Full(StringIO):
    """A file on a disk that is full from some time on."""

    broken = False

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError("disk full")
        return super().write(text)


def test_a_bar_that_cannot_be_drawn_loses_no_reply(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Full()
    monkeypatch.setattr("sys.stderr", file)

    async def break_it() -> str:
        file.broken = True
        await asyncio.sleep(0.11)  # until the bar would be drawn again
        return "broken"

    replies = asyncio.run(tbl.gather(break_it, *study.calls(1, 2), concurrency=1, progress=True))
    assert replies == ["broken", "reply 1", "reply 2"]


def test_the_ledger_is_not_asked_where_there_is_no_bar(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_soon(command: Any) -> Any:
        raise AssertionError(command)

    monkeypatch.setattr(study.budget.ledger, "ask_soon", ask_soon)
    assert asyncio.run(tbl.gather(*study.calls(1), budget=study.budget)) == ["reply 1"]


@pytest.mark.parametrize("progress", [True, False])
def test_no_task_stays_behind(study: Study, progress: bool) -> None:  # noqa: FBT001 - a parameter
    async def story() -> None:
        await tbl.gather(*study.calls(*range(20)), budget=study.budget, progress=progress)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


# --- a real client ---------------------------------------------------------------------------------------------------------


def test_calls_of_a_real_client_are_paid_kept_and_refused(provider: Provider) -> None:
    """Through the SDK and a server: one fails inside, and counts as unknown; those that do not fit are not sent.

    limit     8 calls at their worst case
    """
    model = "claude-haiku-5-5"
    provider.script(failed(500))
    with tbl.connect(":memory:") as ledger:
        worst = tbl.worst_case(model, input_tokens=50, max_output_tokens=100)
        study = ledger.budget("study", usd=100, requests=8)
        results: dict[int, anthropic.types.Message] = {}

        async def ask(client: anthropic.AsyncAnthropic, n: int) -> anthropic.types.Message:
            async with study.reserve(model=model, input_tokens=50, max_output_tokens=100) as call:
                ask: list[anthropic.types.MessageParam] = [{"role": "user", "content": f"question {n}"}]
                reply = await client.messages.create(model=model, max_tokens=100, messages=ask)
                call.commit(reply)
            return reply

        async def story() -> list[anthropic.types.Message | BaseException]:
            async with anthropic.AsyncAnthropic(max_retries=0) as client:
                return await tbl.gather(
                    (partial(ask, client, n) for n in range(12)), keys=range(12), results=results, budget=study, concurrency=4
                )

        replies = asyncio.run(story())
        refused = [reply for reply in replies if isinstance(reply, tbl.BudgetExceeded)]
        assert (len(refused), len(results), len(provider.asked)) == (4, 7, 8)
        assert sum(isinstance(reply, anthropic.InternalServerError) for reply in replies) == 1
        assert all(results[n] is reply for n, reply in enumerate(replies) if isinstance(reply, anthropic.types.Message))
        assert (study.balance.committed_requests, study.balance.reserved_requests) == (8, 0)
        assert study.balance.committed_usd > worst  # the one whose fate is unknown counts as it was held
        assert provider.most_at_work <= 4
