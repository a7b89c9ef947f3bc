"""Many calls at once, so that nothing that was paid is lost: not to a refusal, not to Ctrl-C, not to a crash.

Their reader may rely on this. Results stand in the order of the calls. What a call raised stands in its place. No more than
`concurrency` run at the same time, and a generator of calls is read no further. What a call returned is kept at once. When
`gather` returns or raises, every task that it made has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sized,
)
from inspect import isawaitable, iscoroutine
from itertools import count
from typing import Any, Generic, TypeVar

from .counter import at_least_one
from .errors import BudgetClosed, InvalidType, InvalidValue, NotCalled, Refused, told
from .handles import Budget
from .keyed import Keys, check_kinds
from .limits import path_of
from .money_bar import MoneyBar

T = TypeVar("T")
Call = Awaitable[T] | Callable[[], Awaitable[T]]
_END: Any = object()
_MISSING: Any = object()
_TURN = 1_000  # calls that are passed over before the loop may do something else


async def gather(
    *calls: Call[T] | Iterable[Call[T]] | AsyncIterable[Call[T]],
    budget: Budget | None = None,
    concurrency: int = 50,
    keys: Iterable[Any] | None = None,
    results: MutableMapping[Any, T] | None = None,
    stop_on: type[BaseException] | tuple[type[BaseException], ...] = (),
    progress: bool | None = None,
) -> list[T | BaseException]:
    """Make many calls at once; refusals and errors stand in their places, and nothing that was paid is lost.

    Args:
        calls: functions that take nothing and return something to await (`functools.partial(ask, row)`), or awaitables; or one
            list, generator or async generator of these, which is read as the calls go on. A function is called when its turn
            comes, so a million of them need little memory; tasks run already, whatever `concurrency` says.
        budget: whose money the bar shows. Calls reserve for themselves, and may do so in others. When it is closed, or one
            above it, no further call is started.
        concurrency: how many run at the same time.
        keys: one for each call, no two the same: by it the result is found in `results`.
        results: a dict, or anything like one, into which what a call returned is put under its key as soon as it is there. A
            call whose key is in it already is not made again: after a crash or Ctrl-C, the same line makes only those that
            are missing. Errors are not put there, so a refused call is tried again.
        stop_on: exceptions after which no further call is started. A call that does not fit is none of itself: a smaller one
            may fit, and room comes back as others use less than they hold.
        progress: whether to show a bar; by itself in a terminal or notebook, to who waits for more than a second.

    Returns:
        For each call what it returned, or the exception that it raised: `BudgetExceeded` where it was refused, `NotCalled`
        where it was not started any more.

    Raises:
        InvalidType: something among the calls is none; with its place. What runs by then ends first.
        InvalidValue: two keys are the same, there are more or less of them than calls, or `results` is without them.
        CancelledError, KeyboardInterrupt: calls in flight were cancelled, and have ended. What others returned is in `results`,
            or else in an attribute `results` of the exception, by place; in a notebook that is `sys.last_value.results`.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> ledger = tbl.connect(":memory:")
        >>> study = ledger.budget("study", usd="0.20")
        >>> async def ask(n):
        ...     async with study.reserve(usd="0.08") as call:
        ...         call.commit(usd="0.07")
        ...         return f"reply {n}"
        >>> replies = asyncio.run(tbl.gather(*(ask(n) for n in range(3)), budget=study))
        >>> [reply if isinstance(reply, str) else type(reply).__name__ for reply in replies]
        ['reply 0', 'reply 1', 'BudgetExceeded']
        >>> ledger.close()
    """
    planned = _Planned[T](calls)
    try:
        gathering = _Gathering(planned, budget, at_least_one("concurrency", concurrency), keys, results, stop_on, progress)
    except BaseException:
        await planned.drop()
        raise
    return await gathering.all()


class _Planned(Generic[T]):
    """The calls, one after the other, from wherever they come."""

    def __init__(self, calls: tuple[Any, ...]) -> None:
        source = calls[0] if len(calls) == 1 and not _is_call(calls[0]) else calls
        if isinstance(source, str | bytes | Mapping) or not isinstance(source, Iterable | AsyncIterable):
            raise InvalidType("calls[0]", _no_call(source))
        if isinstance(source, list | tuple):
            _check_all(source)
        self.total = len(source) if isinstance(source, Sized) else None
        self._later: AsyncIterator[Any] | None = aiter(source) if isinstance(source, AsyncIterable) else None
        self._now: Iterator[Any] = iter(()) if isinstance(source, AsyncIterable) else iter(source)

    async def next(self, place: int) -> Any:
        """The next call, or `_END`."""
        call = next(self._now, _END) if self._later is None else await anext(self._later, _END)
        if call is not _END and not _is_call(call):
            raise InvalidType(f"calls[{place}]", _no_call(call))
        return call

    async def drop(self) -> None:
        """Let go of those that were not started, as far as they exist."""
        if self._later is not None and hasattr(self._later, "aclose"):
            await self._later.aclose()  # else the loop would close it in a task that nobody waits for
        if self.total is not None:
            await _let_go(self._now)


class _Gathering(Generic[T]):
    """One `gather` on its way."""

    def __init__(
        self,
        planned: _Planned[T],
        budget: Budget | None,
        concurrency: int,
        keys: Iterable[Any] | None,
        results: MutableMapping[Any, T] | None,
        stop_on: Any,
        progress: bool | None,  # noqa: FBT001 - it is passed on
    ) -> None:
        self._planned, self._budget, self._stop_on = planned, budget, _exceptions(stop_on)
        self._keys = _keys_of(keys, planned.total, results)
        self._kept: MutableMapping[Any, Any] = {} if results is None else results
        self._room = asyncio.Semaphore(concurrency)
        self._replies: list[Any] = []
        self._unbegun: dict[int, Any] = {}  # calls whose tasks have not had their first turn
        self._stopped: BaseException | None = None
        self._broken: Exception | None = None
        total = planned.total if planned.total is not None or self._keys is None else len(self._keys)
        before = sum(key in self._kept for key in self._keys or ())
        self._meter = MoneyBar("calls", total, budget, progress, before)

    async def all(self) -> list[T | BaseException]:
        ticking = asyncio.create_task(self._meter.tick()) if self._meter.seen else None
        try:
            try:
                await self._run()
            finally:
                await _let_go(self._unbegun.values())
                await self._planned.drop()
                if ticking is not None:
                    ticking.cancel()
                    await asyncio.gather(ticking, return_exceptions=True)
            await self._meter.settle()
        except BaseException as error:
            self._attach(error)
            raise
        finally:
            self._meter.close()
        return self._replies

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    await self._start_all(tasks)
                except Exception as error:  # noqa: BLE001 - raised below: what is in flight is paid, and ends first
                    self._broken = error
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        if self._broken is not None:
            raise self._broken

    async def _start_all(self, tasks: asyncio.TaskGroup) -> None:
        for place in count():
            await self._room.acquire()  # before the next call is read, so that none is made that has to wait
            if self._broken is not None:
                return
            call = await self._planned.next(place)
            if call is _END:
                break
            self._replies.append(_MISSING)
            if (passed := self._passed_over(place, call)) is not _MISSING:
                await _let_go(() if asyncio.isfuture(call) else (call,))
                self._replies[place] = passed
                self._room.release()
                if place % _TURN == 0:
                    await asyncio.sleep(0)
            else:
                self._unbegun[place] = call
                tasks.create_task(self._make(place, call))
        if self._keys is not None and len(self._replies) < len(self._keys):
            raise InvalidValue("keys", f"there are {len(self._keys):,}, and {len(self._replies):,} calls")

    def _passed_over(self, place: int, call: Any) -> Any:
        """What stands in the place of a call that is not made; `_MISSING` for one that is."""
        if self._keys is not None:
            if place >= len(self._keys):
                _close(call)
                raise InvalidValue("keys", f"there are {len(self._keys):,}, and more calls")
            if (key := self._keys[place]) in self._kept:
                self._meter.skip()
                return self._kept[key]
        if self._stopped is not None and not asyncio.isfuture(call):  # a task runs already, and may be paid
            self._meter.ended("not called")
            skipped = NotCalled(f"{type(self._stopped).__name__}: {self._stopped}")
            skipped.__cause__ = self._stopped
            return skipped
        return _MISSING

    async def _make(self, place: int, call: Any) -> None:
        """Make one call in a task of its own, and keep what it returns before anything else can happen."""
        del self._unbegun[place]
        try:
            made = call if isawaitable(call) else call()
            if isawaitable(made):
                reply = await made
            else:
                reply = made  # a sync client's is paid as well
                raised = f"returned {type(made).__name__}, which cannot be awaited: use an async client, or asyncio.to_thread"
                self._broken = self._broken or InvalidType(f"calls[{place}]", raised)
        except asyncio.CancelledError as error:  # it was cancelled by itself, or all are
            self._fail(place, error)
            raise
        except Exception as error:  # noqa: BLE001 - it stands in its place
            self._fail(place, error)
        else:
            self._keep(place, reply)
        finally:
            self._room.release()

    def _keep(self, place: int, reply: Any) -> None:
        self._replies[place] = reply
        try:
            self._kept[place if self._keys is None else self._keys[place]] = reply
        except Exception as error:  # noqa: BLE001 - raised when the others have ended: nobody goes on paying for what is not kept
            self._broken = self._broken or error
        self._meter.ended()

    def _fail(self, place: int, error: BaseException) -> None:
        self._replies[place] = error
        if isinstance(error, self._stop_on) or self._is_final(error):
            self._stopped = self._stopped or error
        self._meter.ended("refused" if isinstance(error, Refused) else "failed")

    def _is_final(self, error: BaseException) -> bool:
        """Whether nothing can be reserved in the budget any more."""
        return isinstance(error, BudgetClosed) and self._budget is not None and error.budget in path_of(self._budget.name)

    def _attach(self, error: BaseException) -> None:
        """Hand on with an error what was paid before it."""
        vars(error)["results"] = self._kept
        by = "place" if self._keys is None else "key"
        error.add_note(f"tokenbudget: {len(self._kept):,} results are kept, by {by}, in this exception's `results`")


# --- what was given --------------------------------------------------------------------------------------------------------


def _is_call(value: Any) -> bool:
    return isawaitable(value) or callable(value)


def _no_call(value: Any) -> str:
    return f"is {type(value).__name__}, neither awaitable nor a function that takes nothing and returns an awaitable"


def _check_all(calls: list[Any] | tuple[Any, ...]) -> None:
    """Look at every call before the first one is made."""
    for place, call in enumerate(calls):
        if not _is_call(call):
            for each in calls:
                _close(each)
            raise InvalidType(f"calls[{place}]", _no_call(call))


def _close(call: Any) -> None:
    """Tell a coroutine that nobody will await it."""
    if iscoroutine(call):
        call.close()


async def _let_go(calls: Iterable[Any]) -> None:
    """Close coroutines that were never started, and cancel tasks and futures."""
    running = []
    for call in calls:
        _close(call)
        if asyncio.isfuture(call) and not call.done():
            call.cancel()
            running.append(call)
    if running:
        await asyncio.wait(running)


def _exceptions(stop_on: Any) -> tuple[type[BaseException], ...]:
    kinds = stop_on if isinstance(stop_on, tuple) else (stop_on,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise InvalidType("stop_on", f"{told(kind)} is no class of exceptions")
    return kinds


def _keys_of(keys: Iterable[Any] | None, total: int | None, results: Any) -> list[Any] | None:
    if results is not None and not isinstance(results, MutableMapping):
        raise InvalidType("results", f"is {type(results).__name__}; give a dict, or what can be written like one")
    if keys is None:
        if results is not None:
            raise InvalidValue("keys", "are needed beside results=: places say nothing when the calls are other ones next time")
        return None
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise InvalidType("keys", f"is {type(keys).__name__}, not a list with a key for each call")
    seen = Keys("keys")
    checked = [seen.add(place, key) for place, key in enumerate(keys)]
    if total is not None and total != len(checked):
        raise InvalidValue("keys", f"there are {len(checked):,}, and {total:,} calls")
    if checked and results:
        check_kinds("results", results, checked[0])
    return checked
