"""Counting many with a counter that can only count one at a time, as those of other packages are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

from tokenbudget_lab import counter as counting
from tokenbudget_lab import progress as bars
from tokenbudget_lab.counter import Content, Count, System, TokenCounter, Tools
from tokenbudget_lab.errors import CountFailed, EndpointUnreachable, InvalidType, InvalidValue


class Careful(TokenCounter):
    """Counts characters, and how many are counted at the same time."""

    def __init__(self) -> None:
        self.now = self.most = self.cancelled = 0

    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        if not isinstance(content, str):
            raise InvalidType("content", "no text")
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(60 if content == "slow" else 0.001)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
        if content == "bad":
            raise EndpointUnreachable("endpoint", "no connection")
        return Count(len(content), exact=True, method="characters")


def tokens(counts: list[Count]) -> list[int]:
    return [count.tokens for count in counts]


@pytest.mark.parametrize(
    "contents", [["a", "bb", "ccc"], ("a", "bb", "ccc"), iter(["a", "bb", "ccc"]), pl.Series(["a", "bb", "ccc"])]
)
def test_counts_come_in_the_order_of_what_is_counted(contents: Any) -> None:
    assert tokens(Careful().count_many_sync(contents)) == [1, 2, 3]


def test_no_more_are_counted_at_once_than_was_said() -> None:
    counter = Careful()
    asyncio.run(counter.count_many(["x"] * 50, concurrency=7))
    assert counter.most == 7


def test_what_is_counted_is_read_as_the_counting_goes_on() -> None:
    """So a generator of a million is never in memory at once."""
    counter, ahead = Careful(), []

    def source() -> Iterator[str]:
        for n in range(100):
            ahead.append(n)
            yield "x" * n
            assert counter.now <= 4

    assert tokens(counter.count_many_sync(source(), concurrency=4)) == ahead


def test_one_that_fails_is_named_and_the_others_are_cancelled() -> None:
    counter = Careful()
    with pytest.raises(EndpointUnreachable, match="item 2") as failed:
        counter.count_many_sync(["slow", "slow", "bad", "slow"])
    assert (failed.value.index, failed.value.reason) == (2, "no connection")
    assert (counter.now, counter.cancelled) == (0, 3)


def test_a_cancelled_wait_cancels_what_is_being_counted() -> None:
    counter = Careful()

    async def wait_a_little() -> None:
        async with asyncio.timeout(0.05):
            await counter.count_many(["slow"] * 5)

    with pytest.raises(TimeoutError):
        asyncio.run(wait_a_little())
    assert (counter.now, counter.cancelled) == (0, 5)


def test_a_null_is_named_by_its_place() -> None:
    with pytest.raises(InvalidType, match=r"contents\[1\]"):
        Careful().count_many_sync(pl.Series(["a", None]))


@pytest.mark.parametrize("contents", ["one text", b"bytes", {"role": "user"}, None, 5])
def test_one_text_is_not_many(contents: Any) -> None:
    with pytest.raises(InvalidType, match="contents"):
        Careful().count_many_sync(contents)


def test_a_concurrency_of_none_is_refused() -> None:
    with pytest.raises(InvalidValue, match="concurrency"):
        Careful().count_many_sync(["a"], concurrency=0)


def test_nothing_is_counted_for_nothing() -> None:
    assert Careful().count_many_sync([]) == []


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_a_bar_is_shown_where_it_is_wanted(progress: bool | None, shown: bool, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: FBT001 - a parameter
    """None wants one in a terminal or notebook, and this is neither."""
    Careful().count_many_sync(["a"] * 3, progress=progress)
    assert ("counting" in capsys.readouterr().err) is shown


def test_in_a_terminal_a_bar_comes_up_by_itself_when_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    Careful().count_many_sync(["a"] * 3)
    assert "counting" not in capsys.readouterr().err
    monkeypatch.setattr(bars, "SHOWN_AFTER_S", 0.0001)
    Careful().count_many_sync(["a"] * 300, concurrency=1)
    assert "counting" in capsys.readouterr().err


def test_an_error_of_one_keeps_its_kind() -> None:
    error = CountFailed("x", "y", 3)
    with pytest.raises(CountFailed) as failed, counting.Placed(5):
        raise error
    assert (failed.value.index, failed.value.__cause__) == (5, error)
