"""What is in force here: the budget of `budget.use()`, the tags of `tbl.tags(...)`.

A block is its context's: the thread or task that entered it, and what that starts with `create_task` or `asyncio.to_thread`
while it is in it. It is nobody else's: a thread that inherits nothing, as those of Thread, of an executor and of
`run_in_executor`, has the budget that the process was given by a `use()` without `with`, or none, and no tags. Inner blocks
go before outer ones, and any block before the process's budget.

A generator shares its consumer's context: a block in it is also the consumer's until the generator leaves it, wherever that
is, or until the consumer leaves a block of its own around it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import FrameType, MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .checks import MAX_TAGS, labels_of
from .errors import InvalidValue, NotEntered, shown

if TYPE_CHECKING:
    from .handles import Budget

T = TypeVar("T")
DECIDED_S = 0.1  # a `use()` that is not entered within it is a statement: between `use()` and `with` nothing else happens
_GENERATORS = 0x20 | 0x200  # co_flags of generators and async generators


class UntaggedThread(UserWarning):
    """A thread calls without tags while a `with tbl.tags(...)` block, which it does not inherit, is open in another one."""


class _Block:
    """One entry into a block."""

    __slots__ = ("budget", "in_generator", "left", "tags", "thread", "token")

    def __init__(self, budget: Budget | None, tags: Mapping[str, str] | None, frame: FrameType) -> None:
        self.budget, self.tags = budget, tags  # one of both
        self.thread, self.in_generator = threading.get_ident(), bool(frame.f_code.co_flags & _GENERATORS)
        self.left = False  # in another context, so that its own does not know
        self.token: Token[_Here] | None = None


@dataclass(frozen=True, slots=True)
class _Here:
    """The open blocks of a context, outer ones first, and what they amount to."""

    blocks: tuple[_Block, ...]
    budget: Budget | None
    tags: Mapping[str, str]


def _amounting(blocks: tuple[_Block, ...]) -> _Here:
    budgets = [block.budget for block in blocks if block.budget is not None]
    tags = merged(*(block.tags for block in blocks))
    return _Here(blocks, budgets[-1] if budgets else None, MappingProxyType(tags))


def merged(*layers: Mapping[str, str] | None) -> dict[str, str]:
    """Tags from several places; for each name the last one that has it counts.

    Examples:
        >>> merged({"condition": "few-shot", "arm": "a"}, None, {"arm": "b"})
        {'condition': 'few-shot', 'arm': 'b'}
    """
    tags: dict[str, str] = {}
    for layer in layers:
        if layer:
            tags.update(layer)
    return tags


_nowhere = _amounting(())
_here: ContextVar[_Here] = ContextVar("tokenbudget_lab", default=_nowhere)
_unwarned: set[_Block] = set()  # open blocks of tags that no thread was warned about


def current_budget() -> Budget | None:
    """The budget in force here: of the innermost block, else the process's, else none.

    Examples:
        >>> import tokenbudget_lab as tbl
        >>> with tbl.connect(":memory:") as ledger, ledger.budget("study", usd=5).use():
        ...     current_budget().name
        'study'
    """
    budget = _look().budget
    return _of_process() if budget is None else budget


def block_budget() -> Budget | None:
    """The budget of the innermost block; none where no block has one."""
    return _look().budget


def current_tags() -> Mapping[str, str]:
    """The tags in force here, read-only: of all open blocks, the inner ones first.

    Warns:
        UntaggedThread: there are none, because this thread does not inherit the block that is open in another.
    """
    here = _look()
    if _unwarned and not here.tags:
        _warn_untagged(here)
    return here.tags


def _look() -> _Here:
    here = _here.get()
    for block in here.blocks:
        if block.left:
            return _amounting(tuple(block for block in here.blocks if not block.left))
    return here


def _warn_untagged(here: _Here) -> None:
    """Warn, once per block, where this thread has no block of tags, and inherited nothing that could have had one."""
    me, thread = threading.get_ident(), threading.current_thread()
    if thread is threading.main_thread() or any(block.tags is not None or block.thread != me for block in here.blocks):
        return
    elsewhere = [block for block in tuple(_unwarned) if block.thread != me]
    if not elsewhere:
        return
    _unwarned.difference_update(elsewhere)
    warnings.warn(
        f"a call in thread {shown(thread.name)!r} has no tags, and {_said_of(elsewhere[-1].tags)} is open in another thread: "
        "threads of Thread, of an executor or of run_in_executor inherit no block. Pass tags=…, or start the call with "
        "asyncio.to_thread(…) or contextvars.copy_context().run(…); `with tbl.tags():` around it says that none are meant.",
        UntaggedThread,
        stacklevel=3,
    )


def _said_of(tags: Mapping[str, str] | None) -> str:
    return f"tags({', '.join(f'{shown(name)}={value!r}' for name, value in (tags or {}).items())})"


# --- blocks --------------------------------------------------------------------------------------------------------------


class Scope(Generic[T]):
    """What can be entered, with `with` or `async with`: again, and inside itself, too."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def _entered(self, frame: FrameType) -> T:
        raise NotImplementedError

    def _open(self, block: _Block) -> _Here:
        here = _amounting((*_look().blocks, block))
        if len(here.tags) > MAX_TAGS:
            raise InvalidValue("tags", f"{len(here.tags)} tags would be in force; {MAX_TAGS} is the most")
        self._blocks.append(block)
        block.token = _here.set(here)
        return here

    def _close(self, *, everywhere: bool = True) -> None:
        if not self._blocks:
            raise NotEntered("this block was left more often than it was entered")
        inside = _here.get()
        block = next((block for block in reversed(inside.blocks) if block in self._blocks), self._blocks[-1])
        self._blocks.remove(block)
        _unwarned.discard(block)
        token, block.token = block.token, None
        try:
            if token is not None:
                _here.reset(token)  # only the context that entered the block can
        except ValueError:
            block.left = everywhere
        else:
            _here.set(_without(block, inside))

    def __enter__(self) -> T:
        return self._entered(sys._getframe(1))  # noqa: SLF001 - the interpreter's own way to ask who calls

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._close()

    def __aenter__(self) -> Coroutine[Any, Any, T]:
        return _at_once(self._entered(sys._getframe(1)))  # noqa: SLF001 - as above

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._close()


async def _at_once(value: T) -> T:
    return value


def _without(block: _Block, here: _Here) -> _Here:
    """A context after a block of its own was left: what generators left open inside it is left too, and nothing else."""
    if block not in here.blocks:
        return here
    place = here.blocks.index(block)
    inner = [other for other in here.blocks[place + 1 :] if block.in_generator or not other.in_generator]
    return _amounting((*here.blocks[:place], *inner))


class Tagging(Scope[Mapping[str, str]]):
    """Tags for a block; `tbl.tags(...)` makes it."""

    __slots__ = ("tags", "was_entered")

    def __init__(self, tags: Mapping[str, str]) -> None:
        super().__init__()
        self.tags, self.was_entered = MappingProxyType(dict(tags)), False

    def _entered(self, frame: FrameType) -> Mapping[str, str]:
        self.was_entered = True
        block = _Block(None, self.tags, frame)
        here = self._open(block)
        if self.tags:
            _unwarned.add(block)
        return here.tags

    def __repr__(self) -> str:
        return f"<{_said_of(self.tags)}: {'in force in its block' if self._blocks else 'not in force, enter it'}>"

    def __del__(self, warn: Any = warnings.warn) -> None:
        if not getattr(self, "was_entered", True):  # interrupted while it was made, it has none
            text = f"{_said_of(self.tags)} was never entered, so nothing is tagged: write `with tbl.tags(…):`"
            warn(text, RuntimeWarning, source=self, stacklevel=2)


def tags(**labels: str) -> Tagging:
    """Tags for all calls of a block: `with tbl.tags(condition="few-shot"):`, or `async with`.

    They reach the tasks that the block creates and `asyncio.to_thread`, and no other threads; see `UntaggedThread`.

    Args:
        labels: names and values, 256 bytes each; with those of the blocks around it 32 at most. A name that an outer block has
            too gets the inner value.

    Raises:
        InvalidType: a value that is no string.
        InvalidValue: too many, too long, not storable, or named like a column of `ledger.events()` or `ledger.calls()`.

    Examples:
        >>> with tags(condition="few-shot", arm="a"), tags(arm="b"):
        ...     dict(current_tags())
        {'arm': 'b', 'condition': 'few-shot'}
    """
    return Tagging(dict(labels_of(labels)))


# --- the process's budget ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """That `use()` was called, and not entered so far."""

    budget: Budget
    thread: int
    at: float

    def is_statement(self) -> bool:
        return self.thread == threading.get_ident() or time.monotonic() - self.at > DECIDED_S


_said: tuple[_Said, ...] = ()  # the last one is the process's
_saying = threading.RLock()  # a signal handler may say it too


def _of_process() -> Budget | None:
    """The budget of the last `use()` that is no block; another thread's that may become one yet is waited for."""
    while _said:
        last = _said[-1:]
        if last and last[0].is_statement():
            return last[0].budget
        time.sleep(0.0005)
    return None


def _change(*new: _Said, without: _Said | None = None, and_before: bool = False) -> None:
    global _said  # noqa: PLW0603 - there is one process
    with _saying:
        said = _said
        if without in said:
            place = said.index(without)
            said = (() if and_before else said[:place]) + said[place + 1 :]
        if new:  # a statement takes the place of those before it, once it is known to be one
            statements = [place for place, one in enumerate(said) if one.is_statement()]
            said = said[statements[-1] :] if statements else said
        _said = (*said, *new)


class Use(Scope["Budget"]):
    """A budget in force: for a block, or for the process until `end()`; `budget.use()` makes it.

    Attributes:
        budget: which one.
    """

    __slots__ = ("_said", "budget")

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget
        self._said = _Said(budget, threading.get_ident(), time.monotonic())
        _change(self._said)

    def end(self) -> None:
        """Leave the process without a budget, unless another `use()` has taken this one's place; no block is ended."""
        _change(without=self._said, and_before=True)

    def take_back(self) -> None:
        """As if it had never been said: the statement before it is in force again, unless another has taken its place."""
        _change(without=self._said)

    def _entered(self, frame: FrameType) -> Budget:
        _change(without=self._said)
        self._open(_Block(self.budget, None, frame))
        return self.budget

    def __repr__(self) -> str:
        if self._blocks:
            where = "in force in its block"
        elif self._said in _said:
            where = "in force in this process, where no block has another; .end() ends it"
            where = where if self._said is _said[-1] else f"replaced by {shown(_said[-1].budget.name)}"
        else:
            where = "not in force"
        return f"<use of {shown(self.budget.name)}: {where}>"


class Cell:
    """A budget and tags for one cell of a notebook, begun in it and ended behind it, maybe in another context.

    The cell's own context has them, with the tasks that it creates and `asyncio.to_thread`, for as long as those last: what a
    cell leaves running stays under its budget. Threads that inherit nothing have the budget as the process's, until it ends.
    """

    __slots__ = ("_blocks", "_said")

    def __init__(self, budget: Budget, tags: Mapping[str, str]) -> None:
        self._blocks: list[Scope[Any]] = []
        labels, frame = dict(labels_of(tags)), sys._getframe()  # noqa: SLF001 - no generator's
        if labels:
            self._enter(Tagging(labels), frame)
        self._enter(Use(budget), frame)
        self._said = Use(budget)  # behind the block, whose own statement is gone

    def _enter(self, scope: Scope[Any], frame: FrameType) -> None:
        scope._entered(frame)  # noqa: SLF001 - entered here as by `with`, and left elsewhere
        self._blocks.append(scope)

    def end(self) -> None:
        """It is over; the process has the budget that it had before."""
        self._said.take_back()
        while self._blocks:
            self._blocks.pop()._close(everywhere=False)  # noqa: SLF001 - as above


def _after_fork_in_child() -> None:
    """A child has the thread that forked, with its blocks; what other threads were about to enter or had open is theirs."""
    global _said, _saying  # noqa: PLW0603 - as above
    _saying = threading.RLock()
    _said = tuple(one for one in _said if one.is_statement())
    _unwarned.intersection_update(_look().blocks)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
