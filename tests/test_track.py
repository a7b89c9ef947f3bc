"""Rows one after the other: what is gone through, what is left out, and what the bar says."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import money_bar, tracking

STORE = "memory"
ROWS = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": 3, "text": "c"}]


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    return ledger.budget("study", usd=100)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is asked at every row."""
    monkeypatch.setattr(money_bar, "LOOK_S", 0.0)


class Shown:
    """What was written to stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._text = capsys, ""

    @property
    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text

    @property
    def last(self) -> str:
        """What stays on the screen."""
        return self.text.replace("\r", "\n").splitlines()[-1].rstrip()


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    return Shown(capsys)


def pay(study: tbl.Budget, usd: Any = 10) -> None:
    with study.reserve(usd=usd) as call:
        call.commit(usd=usd)


async def later(rows: Any) -> AsyncIterator[Any]:
    for row in rows:
        await asyncio.sleep(0)
        yield row


def taken(tracked: Any, way: str) -> list[Any]:
    """All rows, by a loop of either kind."""
    if way == "for":
        return list(tracked)

    async def story() -> list[Any]:
        return [row async for row in tracked]

    return asyncio.run(story())


class Pandas:
    """What of a pandas frame is used."""

    columns = ("id", "text")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return 3

    def itertuples(self, *, index: bool, name: str | None) -> Iterator[tuple[int, str]]:
        assert (index, name) == (False, None)
        return iter([(1, "a"), (2, "b"), (3, "c")])


# --- rows ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["for", "async for"])
@pytest.mark.parametrize("rows", [ROWS, tuple(ROWS), pl.DataFrame(ROWS), Pandas()], ids=["list", "tuple", "polars", "pandas"])
def test_rows_are_gone_through_in_their_order(rows: Any, way: str) -> None:
    """Those of a frame are dicts by column."""
    assert taken(tbl.track(rows), way) == ROWS


@pytest.mark.parametrize("way", ["for", "async for"])
def test_a_generator_is_read_row_by_row(way: str) -> None:
    read = []

    def source() -> Iterator[int]:
        for n in range(3):
            read.append(n)
            yield n

    tracked = tbl.track(source())
    assert read == []
    assert taken(tracked, way) == [0, 1, 2]


def test_rows_that_come_asynchronously_want_async_for() -> None:
    assert taken(tbl.track(later(ROWS)), "async for") == ROWS
    with pytest.raises(tbl.InvalidType, match="write `async for`"):
        list(tbl.track(later(ROWS)))


@pytest.mark.parametrize("wrong", ["text", b"bytes", {"id": 1}, 5, None, pl.DataFrame(ROWS).lazy()])
def test_what_has_no_rows_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(tbl.InvalidType, match="rows: is "):
        tbl.track(wrong)


def test_no_rows_are_no_rows(study: tbl.Budget) -> None:
    assert list(tbl.track([], study, key="id", done=[1])) == []


def test_they_can_be_gone_through_twice() -> None:
    tracked = tbl.track(ROWS, key="id", done=[1])
    assert list(tracked) == list(tracked) == ROWS[1:]


# --- keys ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    id: int


Named = namedtuple("Named", "id")  # noqa: PYI024 - as CSV readers make them
connection = sqlite3.connect(":memory:")
connection.row_factory = sqlite3.Row
HAVING = {
    "dicts": ROWS,
    "a polars frame": pl.DataFrame(ROWS),
    "a pandas frame": Pandas(),
    "objects": [Row(1), Row(2), Row(3)],
    "named tuples": [Named(1), Named(2), Named(3)],
    "rows of sqlite": connection.execute("select 1 as id union select 2 union select 3").fetchall(),
    "a generator": (row for row in ROWS),
}
connection.close()


@pytest.mark.parametrize("rows", HAVING.values(), ids=HAVING)
def test_rows_that_were_done_before_are_left_out(rows: Any) -> None:
    left = list(tbl.track(rows, key="id", done=[1, 3]))
    assert [tracking._value(0, row, "id") for row in left] == [2]


@pytest.mark.parametrize("way", ["for", "async for"])
@pytest.mark.parametrize("kind", [list, set, iter, dict.fromkeys, pl.Series])
def test_done_is_anything_that_has_keys(kind: Callable[[list[int]], Any], way: str) -> None:
    assert taken(tbl.track(ROWS, key="id", done=kind([1, 3])), way) == [ROWS[1]]


def test_a_key_may_be_a_place_or_computed() -> None:
    assert list(tbl.track([("a", 1), ("b", 2)], key=1, done=[1])) == [("b", 2)]
    assert list(tbl.track(ROWS, key=lambda row: (row["id"], row["text"]), done=[(1, "a"), (2, "b")])) == ROWS[2:]


def test_after_a_refusal_the_same_loop_goes_on_where_it_was(ledger: tbl.Ledger) -> None:
    """What is paid is not paid again.

    limit     $25
    commit    1 2
    reserve   3   refused
    limit     $100
    commit    3
    """
    study = ledger.budget("small", usd=25)
    replies: dict[int, str] = {}

    def loop() -> None:
        for row in tbl.track(ROWS, study, key="id", done=replies):
            pay(study)
            replies[int(str(row["id"]))] = "reply"

    with pytest.raises(tbl.BudgetExceeded):
        loop()
    assert list(replies) == [1, 2]
    study.set_limit(usd=100)
    loop()
    assert (list(replies), study.balance.committed_requests) == ([1, 2, 3], 3)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "b"}, r"rows\[1\], dict, has no 'id'; it has text"),
        ({}, r"rows\[1\], dict, has no 'id'; it has nothing"),
        (SimpleNamespace(text="b"), r"rows\[1\], SimpleNamespace, has no 'id'"),
        (5, r"rows\[1\], int, has no 'id'"),
        ({"id": None}, r"rows\[1\]: has no key, but None"),
        ({"id": float("nan")}, r"rows\[1\]: has no key, but nan"),
        ({"id": 1}, r"rows\[1\]: is 1, as rows\[0\] is"),
        ({"id": [2]}, r"rows\[1\]: has a key of list, which cannot be hashed"),
    ],
)
def test_a_row_without_a_key_of_its_own_is_found_before_the_first_row(row: Any, told: str) -> None:
    with pytest.raises(tbl.InvalidValue, match=told):
        tbl.track([ROWS[0], row], key="id")


@pytest.mark.parametrize("way", ["for", "async for"])
def test_of_a_generator_it_is_found_when_it_comes(way: str) -> None:
    with pytest.raises(tbl.InvalidValue, match=r"rows\[1\]: is 1, as rows\[0\] is"):
        taken(tbl.track((row for row in [ROWS[0], ROWS[0]]), key="id"), way)


@pytest.mark.parametrize("frame", [pl.DataFrame(ROWS), Pandas()])
def test_a_frame_without_the_column_says_which_it_has(frame: Any) -> None:
    with pytest.raises(tbl.InvalidValue, match="has no 'item'; it has id, text"):
        tbl.track(frame, key="item")


def test_a_method_is_no_column() -> None:
    """`items` is one of every dict's methods."""
    with pytest.raises(tbl.InvalidValue, match="has no 'items'; it has id, text"):
        tbl.track(ROWS, key="items")


@pytest.mark.parametrize(("ids", "done"), [([1, 2], ["1", "2"]), (["1", "2"], [1, 2])])
def test_texts_are_told_from_numbers(ids: list[Any], done: list[Any]) -> None:
    """Ids that went through JSON or CSV would match no row, and every row would be paid again."""
    with pytest.raises(tbl.InvalidType, match=r"done: its keys are .* none would be found"):
        tbl.track([{"id": each} for each in ids], key="id", done=done)


def test_one_text_is_not_many_keys() -> None:
    """Nor are its letters."""
    with pytest.raises(tbl.InvalidType, match="done: is str"):
        tbl.track([{"id": "a"}], key="id", done="abc")


def test_done_needs_a_key() -> None:
    with pytest.raises(tbl.InvalidValue, match="key: is needed beside done="):
        tbl.track(ROWS, done=[1])


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [("key", 1.5), ("key", True), ("key", ["id"]), ("done", "abc"), ("done", 5), ("done", [[1]]), ("budget", "study")],
)
def test_an_argument_that_means_nothing_is_named(argument: str, wrong: Any) -> None:
    with pytest.raises(tbl.InvalidType, match=argument):
        list(tbl.track(ROWS, **{"key": "id", argument: wrong}))


# --- the bar ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["for", "async for"])
def test_the_bar_tells_what_is_spent_and_left_and_how_much_it_will_be(
    study: tbl.Budget,
    often: None,
    shown: Shown,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """What was spent before is not this loop's.

    commit    $2, before
    commit    $10 for each of four rows
    """
    study.record(usd=2).result()
    tracked: Any = tbl.track(range(4), study, progress=True)

    async def story() -> None:
        async for _ in tracked:
            pay(study)
            await asyncio.sleep(0.11)  # the bar is drawn ten times a second

    if way == "for":
        for _ in tracked:
            pay(study)
            asyncio.run(asyncio.sleep(0.11))
    else:
        asyncio.run(story())
    assert "study:  50%" in shown.text
    assert "~$40.00 in all" in shown.text
    assert "4/4" in shown.last
    assert shown.last.endswith("$40.00 spent, $58.00 left]")


def test_a_loop_that_is_left_by_a_refusal_leaves_a_line_that_tells_how_far_it_came(ledger: tbl.Ledger, shown: Shown) -> None:
    study = ledger.budget("small", usd=25)

    def loop() -> None:
        for _ in tbl.track(range(10), study, progress=True):
            pay(study)

    with pytest.raises(tbl.BudgetExceeded):
        loop()
    last = shown.last
    assert "small:  20%" in last
    assert "2/10" in last
    assert last.endswith("$20.00 spent, $5.00 left, ~$100.00 in all]")


def test_an_async_loop_that_is_left_closes_its_bar(study: tbl.Budget, shown: Shown) -> None:
    async def story() -> None:
        async for row in tbl.track(later(range(10)), study, progress=True):
            if row == 2:
                break
        gc.collect()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(story())
    assert shown.text.endswith("\n")


def test_rows_that_are_left_out_are_on_the_bar_and_not_in_its_pace(study: tbl.Budget, often: None, shown: Shown) -> None:
    """Two of four are to be paid, and that is known before the last is passed over.

    done      2 4
    commit    $10 for 1, then left
    """
    rows = [*ROWS, {"id": 4, "text": "d"}]
    for row in tbl.track(rows, study, key="id", done=[2, 4], progress=True):
        if row["id"] == 3:
            break
        pay(study)
    last = shown.last
    assert "2/4" in last
    assert last.endswith("$10.00 spent, $90.00 left, ~$20.00 in all]")


@pytest.mark.parametrize(
    ("limits", "used", "told"),
    [
        ({"tokens": 1_000}, {"tokens": 100}, "200 tokens spent, 800 tokens left]"),
        ({"requests": 10}, {"requests": 1}, "2 requests spent, 8 requests left]"),
        ({"limits": []}, {"usd": 3}, "$6.00 spent]"),
        ({"limits": []}, {"tokens": 5}, "$0.00 spent, 2 without a price]"),
        ({"usd": 10, "window": "day"}, {"usd": 2}, "$4.00 spent, $6.00 left]"),
        ({"usd": 3}, {"usd": 2}, "$4.00 spent, $1.00 over]"),
    ],
)
def test_the_bar_tells_of_what_is_limited(
    ledger: tbl.Ledger, shown: Shown, limits: dict[str, Any], used: dict[str, Any], told: str
) -> None:
    """What has no price is said, and is not nothing."""
    study = ledger.budget("study", **limits)
    for _ in tbl.track(range(2), study, progress=True):
        study.record(**used)
    assert shown.last.endswith(told)


def test_the_limit_of_an_ancestor_counts_where_it_leaves_less(ledger: tbl.Ledger, shown: Shown) -> None:
    ledger.budget("lab", usd=5)
    list(tbl.track(range(2), ledger.budget("lab/study", usd=50), progress=True))
    assert "$5.00 left in lab]" in shown.last


def test_without_a_budget_it_is_a_plain_bar(shown: Shown) -> None:
    list(tbl.track(ROWS, progress=True))
    last = shown.last
    assert last.startswith("rows: 100%")
    assert "3/3" in last
    assert "$" not in last


def test_there_is_no_bar_where_nobody_would_see_it(study: tbl.Budget, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenbudget_lab.progress.SHOWN_AFTER_S", 0)
    list(tbl.track(ROWS, study))
    assert shown.text == ""


def test_in_a_terminal_a_bar_comes_up_by_itself_when_it_takes_long(
    study: tbl.Budget, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    list(tbl.track(ROWS, study))
    assert shown.text == ""
    monkeypatch.setattr("tokenbudget_lab.progress.SHOWN_AFTER_S", 0.05)
    for _ in tbl.track(ROWS, study):
        asyncio.run(asyncio.sleep(0.11))
    assert "study: 100%" in shown.text


def test_the_ledger_is_asked_twice_a_second_at_most(study: tbl.Budget, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick rows: once when it begins, once when it ends, and once for each half second."""
    asked = []
    ask_soon = study.ledger.ask_soon

    def noted(command: Any) -> Any:
        asked.append(command)
        return ask_soon(command)

    monkeypatch.setattr(study.ledger, "ask_soon", noted)
    monkeypatch.setattr(money_bar, "LOOK_S", 3600.0)
    for _ in tbl.track(range(20), study, progress=True):
        pay(study, "0.01")
    assert len(asked) == 2


def test_what_is_spent_before_the_first_answer_is_read_counts(study: tbl.Budget, shown: Shown) -> None:
    """The first answer is of the time when the bar was made, however late it is read."""
    bar = money_bar.MoneyBar("rows", 1, study, progress=True)
    study.record(usd=3).result()
    bar.settle_sync()
    assert "$3.00 spent" in shown.last


def test_a_ledger_that_does_not_answer_stops_no_loop(shown: Shown, often: None) -> None:
    ledger = tbl.connect(":memory:")
    study = ledger.budget("study", usd=1)
    ledger.close()
    assert list(tbl.track([1, 2], study, progress=True)) == [1, 2]


def test_money_that_others_spend_in_the_budget_is_shown_too(study: tbl.Budget, shown: Shown) -> None:
    """The bar tells of the budget."""
    for _ in tbl.track(range(1), study, progress=True):
        study.record(usd=Decimal("7.50"), tags={"by": "another notebook"}).result()
    assert "$7.50 spent, $92.50 left]" in shown.last


def test_the_money_fits_into_eighty_columns(ledger: tbl.Ledger, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a budget's path the end is shown."""
    monkeypatch.setenv("COLUMNS", "80")
    ledger.budget("lab", usd=2000)
    study = ledger.budget("lab/prompt-study", usd=500)
    for row in tbl.track(range(1_000), study, progress=True):
        if row == 10:
            break
        study.record(usd="0.40")
    assert shown.last.startswith("prompt-study:   1%|")
    assert shown.last.endswith("$4.00 spent, $496.00 left, ~$400.00 in all]")
