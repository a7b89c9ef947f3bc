"""Which budget and which tags are in force where: blocks, threads, tasks, generators, the process, forked children."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import scopes
from tokenbudget_lab.checks import COLUMN_NAMES, labels_of
from tokenbudget_lab.scopes import current_budget, current_tags, merged

STORE = "memory"
T = TypeVar("T")


@pytest.fixture(autouse=True)
def nothing_in_force() -> Iterator[None]:
    """Nor is anything left in force, but what the process was given."""
    assert (current_budget(), dict(current_tags())) == (None, {})
    yield
    scopes._said = ()
    assert (current_budget(), dict(current_tags()), scopes._unwarned) == (None, {}, set())


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("study", tokens=1)


@pytest.fixture
def other(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("other", tokens=1)


@pytest.fixture
def third(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("third", tokens=1)


def in_thread(what: Callable[[], T]) -> T:
    """What a thread of its own finds; it inherits nothing."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(what).result()


def opening(*entered: Any) -> Iterator[tbl.Budget | None]:
    """A generator with blocks in it: what is in force there, twice."""
    with contextlib.ExitStack() as stack, entered[0]:
        for one in entered[1:]:
            stack.enter_context(one)
        yield current_budget()
        yield current_budget()


# --- blocks --------------------------------------------------------------------------------------------------------------


def test_a_block_goes_before_the_one_around_it_and_gives_way_to_it_again(study: tbl.Budget, other: tbl.Budget) -> None:
    told = []
    with study.use() as entered:
        told += [entered, current_budget()]
        with other.use():
            told.append(current_budget())
        told.append(current_budget())
    assert [*told, current_budget()] == [study, study, other, study, None]


def test_async_with_does_the_same(study: tbl.Budget, other: tbl.Budget) -> None:
    async def main() -> list[tbl.Budget | None]:
        async with study.use() as entered, tbl.tags(arm="a") as tags:
            async with other.use():
                await asyncio.sleep(0)
                inner = current_budget()
            return [entered, inner, current_budget() if tags == current_tags() == {"arm": "a"} else None]

    assert asyncio.run(main()) == [study, other, study]


def test_a_block_is_entered_inside_itself_and_again(study: tbl.Budget, other: tbl.Budget) -> None:
    use, told = study.use(), []
    for _ in range(2):
        with use, other.use():
            with use:
                told.append(current_budget())
            told.append(current_budget())
    assert told == [study, other, study, other]


def test_a_block_that_was_not_entered_cannot_be_left(study: tbl.Budget) -> None:
    with pytest.raises(tbl.NotEntered):
        study.use().__exit__(None, None, None)


def test_an_exception_leaves_the_block_and_passes(study: tbl.Budget, other: tbl.Budget) -> None:
    with study.use():
        with pytest.raises(ZeroDivisionError), other.use(), tbl.tags(arm="a"):
            raise ZeroDivisionError
        assert (current_budget(), dict(current_tags())) == (study, {})


def test_blocks_left_out_of_turn_end_and_nothing_else_does(study: tbl.Budget, other: tbl.Budget) -> None:
    """Neither the one that is left second, nor does that bring the first one back."""
    outer, inner = study.use(), other.use()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert current_budget() == other
    inner.__exit__(None, None, None)
    assert current_budget() is None


def test_tags_left_out_of_turn_end_alone() -> None:
    outer, inner = tbl.tags(a="1", b="1"), tbl.tags(b="2")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert current_tags() == {"b": "2"}
    inner.__exit__(None, None, None)


# --- threads -------------------------------------------------------------------------------------------------------------


def test_a_block_is_not_another_threads(study: tbl.Budget, other: tbl.Budget) -> None:
    """Which has the process's budget, or none."""
    with study.use():
        told = [in_thread(current_budget)]
        other.use()
        told += [in_thread(current_budget), current_budget()]
    assert told == [None, other, study]


def test_threads_have_blocks_of_their_own(ledger: tbl.Ledger) -> None:
    """All of them open at the same time."""
    budgets = [ledger.budget(f"b{n}", tokens=1) for n in range(20)]
    together = threading.Barrier(len(budgets))

    def look(budget: tbl.Budget) -> tuple[tbl.Budget | None, str]:
        with budget.use(), tbl.tags(n=budget.name):
            together.wait()
            told = current_budget(), current_tags()["n"]
            together.wait()
            return told

    with ThreadPoolExecutor(len(budgets)) as pool:
        assert list(pool.map(look, budgets)) == [(budget, budget.name) for budget in budgets]


def test_to_thread_and_a_copied_context_inherit_and_run_in_executor_does_not(study: tbl.Budget) -> None:
    async def main() -> list[tbl.Budget | None]:
        with study.use():
            copied = contextvars.copy_context()
            loop = asyncio.get_running_loop()
            return [
                await asyncio.to_thread(current_budget),
                await loop.run_in_executor(None, copied.run, current_budget),
                await loop.run_in_executor(None, current_budget),
            ]

    assert asyncio.run(main()) == [study, study, None]


# --- tasks ---------------------------------------------------------------------------------------------------------------


def test_fifty_tasks_have_each_its_own_block(ledger: tbl.Ledger) -> None:
    budgets = [ledger.budget(f"b{n}", tokens=1) for n in range(50)]

    async def look(budget: tbl.Budget) -> list[Any]:
        told: list[Any] = []
        for _ in range(3):
            async with budget.use(), tbl.tags(n=budget.name):
                await asyncio.sleep(0)
                told += [current_budget(), current_tags()["n"]]
            await asyncio.sleep(0)
            told.append(current_budget())
        return told

    async def main() -> list[list[Any]]:
        return await asyncio.gather(*map(look, budgets))

    assert asyncio.run(main()) == [[budget, budget.name, None] * 3 for budget in budgets]


def test_a_task_keeps_the_block_that_it_was_created_in_when_that_is_left(study: tbl.Budget, other: tbl.Budget) -> None:
    """And what it enters and leaves itself is nobody else's."""

    async def look(there: asyncio.Event, go_on: asyncio.Event) -> list[tbl.Budget | None]:
        with other.use():
            there.set()
            await go_on.wait()
        return [current_budget()]

    async def main() -> list[tbl.Budget | None]:
        there, go_on = asyncio.Event(), asyncio.Event()
        with study.use():
            task = asyncio.create_task(look(there, go_on))
            await there.wait()
            before = current_budget()
        go_on.set()
        return [before, current_budget(), *await task]

    assert asyncio.run(main()) == [study, None, study]


def test_one_block_can_be_open_in_many_tasks_and_threads(study: tbl.Budget) -> None:
    use = study.use()

    async def look(n: int) -> tuple[tbl.Budget | None, tbl.Budget | None]:
        with use:
            for _ in range(n):
                await asyncio.sleep(0)
            inside = current_budget()
        return inside, current_budget()

    async def main() -> list[tuple[tbl.Budget | None, tbl.Budget | None]]:
        return await asyncio.gather(*map(look, (3, 1, 2)), asyncio.to_thread(lambda: asyncio.run(look(2))))

    assert asyncio.run(main()) == [(study, None)] * 4


# --- generators ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("close", [lambda g: contextvars.copy_context().run(g.close), lambda g: in_thread(g.close)])
def test_a_generator_may_be_closed_in_another_context(study: tbl.Budget, close: Callable[[Iterator[Any]], None]) -> None:
    """Where its block cannot be taken back, and is over all the same."""
    generator = opening(study.use(), tbl.tags(arm="a"))
    assert (next(generator), dict(current_tags())) == (study, {"arm": "a"})
    close(generator)
    assert (current_budget(), dict(current_tags())) == (None, {})
    with tbl.tags(b="1"):
        assert (current_budget(), dict(current_tags())) == (None, {"b": "1"})


def test_the_block_of_an_open_generator_ends_with_the_block_around_it(study: tbl.Budget, other: tbl.Budget) -> None:
    """And does not come back when the generator is closed at last."""
    with study.use():
        generator = opening(other.use())
        assert next(generator) == other
    told = [current_budget()]
    generator.close()  # type: ignore[attr-defined] # a generator has it
    assert [*told, current_budget()] == [None, None]


def test_a_generator_that_ends_leaves_anothers_block_alone(study: tbl.Budget, other: tbl.Budget) -> None:
    first, second = opening(study.use()), opening(other.use())
    told = [next(first), next(second)]
    list(first)
    told += list(second)
    assert told == [study, other, other]


def test_an_async_generator_that_is_left_open_is_over_when_the_loop_closes_it(study: tbl.Budget, other: tbl.Budget) -> None:
    """In a task of the loop's, whose context is another one."""

    async def answers() -> AsyncIterator[int]:
        async with other.use(), tbl.tags(arm="a"):
            yield 1
            yield 2

    async def main() -> list[Any]:
        async for _ in answers():
            break
        gc.collect()
        for _ in range(3):
            await asyncio.sleep(0)
        told = [current_budget(), dict(current_tags())]
        async with study.use():
            async for _ in answers():
                break
        return [*told, current_budget(), *await asyncio.gather(asyncio.to_thread(current_budget))]

    assert asyncio.run(main()) == [None, {}, None, None]


def test_a_context_manager_out_of_a_generator_opens_blocks(study: tbl.Budget) -> None:
    @contextlib.contextmanager
    def condition(name: str) -> Iterator[None]:
        with study.use(), tbl.tags(condition=name):
            yield

    with condition("few-shot"):
        assert (current_budget(), dict(current_tags())) == (study, {"condition": "few-shot"})


# --- the process ---------------------------------------------------------------------------------------------------------


def test_use_without_with_gives_the_process_a_budget_until_it_is_ended(study: tbl.Budget) -> None:
    """In every thread, from at once."""
    use = study.use()
    told = [in_thread(current_budget), current_budget(), in_thread(current_budget)]
    use.end()
    use.end()
    assert [*told, current_budget()] == [study, study, study, None]


def test_the_last_use_counts_and_ending_it_does_not_bring_an_earlier_one_back(study: tbl.Budget, other: tbl.Budget) -> None:
    """As where cells are run again; the end of one that was replaced ends nothing."""
    uses = [study.use(), other.use(), study.use(), other.use()]
    told = [current_budget()]
    uses[1].end()
    told.append(current_budget())
    uses[3].end()
    assert [*told, current_budget()] == [other, other, None]


def test_what_is_said_again_and_again_is_not_kept(study: tbl.Budget, other: tbl.Budget) -> None:
    for _ in range(100):
        study.use()
        with other.use():
            pass
    assert len(scopes._said) == 1


def test_a_block_goes_before_the_process_and_leaves_it_as_it_was(study: tbl.Budget, other: tbl.Budget) -> None:
    study.use()
    with other.use():
        told = [current_budget(), in_thread(current_budget)]
    assert [*told, current_budget()] == [other, study, study]


def test_a_use_that_is_entered_later_is_a_block_from_then_on(study: tbl.Budget, other: tbl.Budget) -> None:
    other.use()
    use = study.use()
    told = [current_budget()]
    with use:
        told += [current_budget(), in_thread(current_budget)]
    assert [*told, current_budget()] == [study, study, other, other]


def test_no_thread_sees_a_block_between_use_and_with(study: tbl.Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for what becomes of it."""
    monkeypatch.setattr(scopes, "DECIDED_S", 30.0)  # however slow this machine is
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        for _ in range(20):
            use = study.use()
            seen = pool.submit(current_budget)
            threading.Event().wait(0.002)
            with use:
                assert seen.result() is None


def test_no_thread_ever_sees_the_blocks_of_others(ledger: tbl.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the interpreter switches between them.

    two threads   enter and leave blocks of their own
    a third       gives the process a budget, and sees no other
    """
    monkeypatch.setattr(scopes, "DECIDED_S", 30.0)  # however slow this machine is
    blocks, common = [ledger.budget(f"b{n}", tokens=1) for n in range(2)], ledger.budget("common", tokens=1)
    seen: set[tbl.Budget | None] = set()
    said, ended = threading.Event(), threading.Event()

    def enter(budget: tbl.Budget) -> None:
        for _ in range(1000):
            with budget.use():
                pass

    def look() -> None:
        common.use()
        said.set()
        while not ended.is_set():
            seen.add(current_budget())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as pool:
            looking = pool.submit(look)
            said.wait()
            list(pool.map(enter, blocks))
            ended.set()
            looking.result()
    finally:
        sys.setswitchinterval(interval)
    assert seen == {common}


def test_the_repr_says_what_is_in_force(study: tbl.Budget, other: tbl.Budget) -> None:
    use = study.use()
    told = [repr(use)]
    with use:
        told.append(repr(use))
    told.append(repr(use))
    use, last = study.use(), other.use()
    told.append(repr(use))
    last.end()
    assert told == [
        "<use of study: in force in this process, where no block has another; .end() ends it>",
        "<use of study: in force in its block>",
        "<use of study: not in force>",
        "<use of study: replaced by other>",
    ]


# --- tags ----------------------------------------------------------------------------------------------------------------


def test_inner_tags_are_added_and_go_before_outer_ones() -> None:
    with tbl.tags(condition="few-shot", arm="a"):
        with tbl.tags(arm="b", item="7") as tags:
            assert tags == current_tags() == {"condition": "few-shot", "arm": "b", "item": "7"}
        assert current_tags() == {"condition": "few-shot", "arm": "a"}


def test_tags_and_budgets_do_not_take_each_others_place(study: tbl.Budget, other: tbl.Budget) -> None:
    study.use()
    with tbl.tags(arm="a"):
        told = [current_budget()]
        with other.use():
            told.append(current_budget() if current_tags() == {"arm": "a"} else None)
    assert told == [study, other]


def test_tags_in_force_cannot_be_changed() -> None:
    with tbl.tags(arm="a") as tags, pytest.raises(TypeError):
        cast("dict[str, str]", tags)["arm"] = "b"


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({"n": 7}, tbl.InvalidType),
        ({"n": "x" * 257}, tbl.InvalidValue),
        ({"x" * 257: "n"}, tbl.InvalidValue),
        ({"n": "\0"}, tbl.InvalidValue),
        ({f"n{n}": "" for n in range(33)}, tbl.InvalidValue),
    ],
)
def test_wrong_tags_are_refused_before_the_block(labels: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        tbl.tags(**labels)


def test_more_tags_than_a_call_can_have_are_refused_where_the_block_begins() -> None:
    """The block around it goes on."""
    with tbl.tags(**{f"n{n}": "" for n in range(32)}):
        with pytest.raises(tbl.InvalidValue, match="33 tags would be in force; 32"), tbl.tags(one_more=""):
            pass
        assert len(current_tags()) == 32


def test_keys_in_tags_are_redacted() -> None:
    with tbl.tags(header="Bearer abcdefghijkl"):
        assert current_tags() == {"header": "[redacted]"}


@pytest.mark.parametrize("name", ["budget", "model", "usd", "tokens", "cost_usd", "state", "tags", "key"])
def test_tags_named_like_a_column_are_refused(name: str) -> None:
    with pytest.raises(tbl.InvalidValue, match=rf"tags\['{name}'\]: is a column .* such as 'my_{name}'"):
        tbl.tags(**{name: "x"})


def test_the_names_that_tags_cannot_have_are_the_columns_of_events_and_calls(ledger: tbl.Ledger) -> None:
    columns = {*ledger.events().collect_schema().names(), *ledger.calls().collect_schema().names()}
    assert columns == COLUMN_NAMES


def test_the_labels_of_estimates_are_no_columns() -> None:
    assert labels_of({"label": "few-shot", "estimate": "12"}) == (("estimate", "12"), ("label", "few-shot"))


def test_of_merged_tags_the_last_counts() -> None:
    assert merged(None, {"a": "1", "b": "1"}, {}, {"b": "2"}) == {"a": "1", "b": "2"}


def test_tags_that_are_never_entered_are_warned_about() -> None:
    with pytest.warns(RuntimeWarning, match=r"tags\(arm='a'\) was never entered, so nothing is tagged"):
        tbl.tags(arm="a")


def test_the_repr_of_tags_says_whether_they_are_in_force() -> None:
    tags = tbl.tags(arm="a")
    told = [repr(tags)]
    with tags:
        told.append(repr(tags))
    assert told == ["<tags(arm='a'): not in force, enter it>", "<tags(arm='a'): in force in its block>"]


# --- threads without tags ----------------------------------------------------------------------------------------------------


def test_a_thread_that_calls_untagged_while_a_block_is_open_is_warned_about_once() -> None:
    """Where it calls, and with what to do; the next block is another."""

    def call() -> Any:
        return current_tags()

    for arm in "ab":
        with tbl.tags(arm=arm):
            with pytest.warns(
                tbl.UntaggedThread, match=rf"tags\(arm='{arm}'\) is open.*tags=….*to_thread.*copy_context"
            ) as told:
                in_thread(call)
            assert (len(told), told[0].filename) == (1, __file__)
            assert in_thread(call) == {}
    assert in_thread(call) == {}


def test_a_thread_with_a_budget_of_its_own_is_warned_about_too(study: tbl.Budget) -> None:
    def call() -> None:
        with study.use():
            current_tags()

    with tbl.tags(arm="a"), pytest.warns(tbl.UntaggedThread):
        in_thread(call)


async def beside_tags(look: Callable[[], Awaitable[T]]) -> T:
    """What is found while another task of this thread has tags."""
    there, go_on = asyncio.Event(), asyncio.Event()

    async def tagged() -> None:
        with tbl.tags(arm="a"):
            there.set()
            await go_on.wait()

    task = asyncio.create_task(tagged())
    await there.wait()
    try:
        return await look()
    finally:
        go_on.set()
        await task


def test_no_thread_is_warned_about_that_inherits(study: tbl.Budget) -> None:
    """Tags, or a block without tags: then whoever started it has none."""

    async def without_tags() -> Any:
        with study.use():
            return await asyncio.to_thread(current_tags)

    with tbl.tags(arm="a"):
        told = [in_thread(partial(contextvars.copy_context().run, current_tags))]
    assert [*told, asyncio.run(beside_tags(without_tags))] == [{"arm": "a"}, {}]


def test_no_thread_is_warned_about_that_says_that_it_means_none() -> None:
    def call() -> Any:
        with tbl.tags():
            return current_tags()

    with tbl.tags(arm="a"):
        assert in_thread(call) == {}


def test_no_task_is_warned_about_beside_the_tags_of_another() -> None:
    """Nor in a thread of its own."""

    async def look() -> Any:
        return current_tags()

    assert [asyncio.run(beside_tags(look)), in_thread(lambda: asyncio.run(beside_tags(look)))] == [{}, {}]


def test_the_main_thread_is_not_warned_about() -> None:
    """It inherits from nobody, and tags in the threads that it started are their own."""
    together = threading.Barrier(2)

    def elsewhere() -> None:
        with tbl.tags(arm="a"):
            together.wait()
            together.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(elsewhere)
        together.wait()
        told = current_tags()
        together.wait()
    assert told == {}


# --- forked children -------------------------------------------------------------------------------------------------------

FORKING = """
    import os, threading
    import tokenbudget_lab as tbl
    from tokenbudget_lab import scopes
    from tokenbudget_lab.scopes import current_budget, current_tags

    ledger = tbl.connect(":memory:")
    study, other, third = (ledger.budget(name, tokens=1) for name in ("study", "other", "third"))
    there, go_on = threading.Event(), threading.Event()

    def elsewhere():
        with tbl.tags(arm="theirs"):
            with scopes._saying:
                use = other.use()  # is about to be entered, and its thread is not in the child
                there.set()
                go_on.wait()
            with use:
                pass

    scopes.DECIDED_S = 30.0  # however slow this machine is
    study.use()
    thread = threading.Thread(target=elsewhere)
    with third.use(), tbl.tags(arm="ours"):
        thread.start()
        there.wait()
        pid = os.fork()
        if pid == 0:
            scopes.DECIDED_S = 0.0
            told = [current_budget().name, dict(current_tags())]
            threads = threading.Thread(target=lambda: told.append(current_budget().name))
            threads.start()
            threads.join(30)
            with study.use():
                told.append(current_budget().name)
            print(*told, len(scopes._unwarned), flush=True)
            os._exit(0)
    go_on.set()
    thread.join()
    os.waitpid(pid, 0)
    print(current_budget().name, dict(current_tags()))
    ledger.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_what_the_thread_that_forked_has_and_nothing_of_others() -> None:
    """The blocks around the fork, the process's budget in its threads; not what another thread was about to enter."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", textwrap.dedent(FORKING)],
        env={**os.environ, "PYTHONPATH": str(Path(tbl.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("third {'arm': 'ours'} study study 1\nstudy {}\n", "")
