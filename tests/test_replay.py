"""A recorded trace against a budget: read strictly, capped exactly, nothing left held."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab.replay import Replay, TracedCall, read_trace, run

MODEL = "claude-sonnet-5-5"
AZURE = Path("shared", "data", "AzureLLMInferenceTrace_conv.csv")
TRACE = """when,in,out
2026-11-23 09:00:00,1000,100
2026-11-23 09:00:01.5,2000,200
2026-11-23 09:00:02,500,900
"""


@pytest.fixture
def ledger() -> Iterator[tbl.Ledger]:
    with tbl.connect(":memory:") as ledger:
        yield ledger


@pytest.fixture(scope="session")
def azure() -> Path:
    """The recorded trace, wherever it lies beside this repository; absent it is a failure in CI, and a skip elsewhere."""
    named = os.environ.get("TOKENBUDGET_TRACE")
    places = [Path(named)] if named else [parent / AZURE for parent in Path(__file__).resolve().parents]
    for place in places:
        if place.is_file():
            return place
    if os.environ.get("CI"):
        pytest.fail(f"{AZURE} lies nowhere beside the repository")
    pytest.skip(f"{AZURE} lies nowhere beside the repository")


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, time_column: str | None = None) -> list[TracedCall]:
    return read_trace(path, input_column="in", output_column="out", time_column=time_column)


def play(budget: tbl.Budget, calls: list[TracedCall], **how: Any) -> Replay:
    return run(budget, calls, model=MODEL, max_output_tokens=1000, **how)


# --- reading ---------------------------------------------------------------------------------------------------------------


def test_a_trace_is_read_in_its_order_with_its_times(tmp_path: Path) -> None:
    assert read(written(tmp_path, TRACE), "when") == [(1000, 100, 0.0), (2000, 200, 1.5), (500, 900, 2.0)]


@pytest.mark.parametrize(
    "text",
    [
        TRACE.encode("utf-8-sig"),
        TRACE.replace("\n", "\r\n").encode(),
        TRACE.rstrip().encode(),
        TRACE.replace("\n2026", "\n\n2026").encode(),
        TRACE.replace("1000", ' "1000"'.strip()).encode(),
    ],
    ids=["a BOM", "Windows line ends", "no last line end", "blank lines", "quotes"],
)
def test_harmless_forms_of_a_file_read_the_same(tmp_path: Path, text: bytes) -> None:
    assert [call[:2] for call in read(written(tmp_path, text))] == [(1000, 100), (2000, 200), (500, 900)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TRACE.replace("in,", "prompt,"), "line 1: has no column 'in'; it has when, prompt, out"),
        (TRACE.replace("when,", "in,"), "line 1: has 2 columns 'in'"),
        (TRACE.replace("2000", "many"), "line 3: in is 'many', not a whole number"),
        (TRACE.replace("2000", "20.5"), "line 3: in is '20.5', not a whole number"),
        (TRACE.replace("2000", ""), "line 3: in is '', not a whole number"),
        (TRACE.replace("2000", "1e3"), "line 3"),
        (TRACE.replace("2000", "٢٠"), "line 3"),
        (TRACE.replace("2000", "9" * 5000), "line 3"),
        (TRACE.replace(",900", ",-900"), "line 4: out is -900; tokens cannot be negative"),
        (TRACE.replace(",500,900\n", ",500"), "line 4: has 2 fields, and the header has 3; half a line?"),
        (TRACE.replace("2000", '"2000'), "is no CSV"),
        (TRACE.encode("utf-16"), "line 1: is not UTF-8"),
        (TRACE.encode().replace(b"2000", b"\xff"), "line 3: is not UTF-8"),
        ("when,in,out\n" + "x" * 1_000_001, "line 2: is longer than"),
        ("when,in,out\n", "has no calls"),
        ("", "has no column 'in'; it has nothing"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(tbl.InvalidValue) as caught:
        read(written(tmp_path, text))
    assert told in str(caught.value)


def test_a_time_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(tbl.InvalidValue, match="line 3: when is 'nan'"):
        read(written(tmp_path, TRACE.replace("2026-11-23 09:00:01.5", "nan")), "when")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(tbl.InvalidValue, match=r"nothing\.csv cannot be read"):
        read(tmp_path / "nothing.csv")


# --- running ---------------------------------------------------------------------------------------------------------------


def test_a_trace_that_fits_is_made_in_full(ledger: tbl.Ledger, tmp_path: Path) -> None:
    """Three calls, 3,500 tokens in at $2 and 1,200 out at $10 a million: $0.019."""
    report = play(ledger.budget("replay", usd=1), read(written(tmp_path, TRACE)))
    assert (report.made, report.refused, report.overruns) == (3, 0, 0)
    assert report.cost_usd == report.uncapped_usd == report.committed_usd == Decimal("0.019")
    assert report.unused_usd == report.held_usd - report.cost_usd == Decimal("0.018")


def test_a_cap_holds_and_the_second_run_spends_what_the_first_left(ledger: tbl.Ledger) -> None:
    """2,000 calls of $0.003 each, which hold $0.012, against $1."""
    budget, calls = ledger.budget("replay", usd=1), [TracedCall(1000, 100)] * 2000
    first = play(budget, calls, parallel=50)
    assert first.made + first.refused == 2000
    assert Decimal("0.98") < first.committed_usd <= 1
    second = play(budget, calls, parallel=50)
    assert first.cost_usd + second.cost_usd == second.committed_usd <= 1
    assert budget.balance.reserved_usd == 0


def test_calls_wait_while_calls_in_flight_could_make_room(ledger: tbl.Ledger) -> None:
    """Thirty calls that hold a third of the cap each and use a fiftieth of it: none is refused.

    limit     $0.03
    hold      $0.0102, use $0.0006
    """
    report = play(ledger.budget("replay", usd="0.03"), [TracedCall(100, 40)] * 30, parallel=30)
    assert (report.made, report.refused) == (30, 0)


def test_nobody_waits_for_room_that_never_comes(ledger: tbl.Ledger) -> None:
    """Each call uses all it holds; those that find nothing left are refused at once, not after their wait."""
    began = time.monotonic()
    report = play(ledger.budget("replay", usd="0.05"), [TracedCall(0, 1000)] * 100, parallel=20, wait=60)
    assert (report.made, report.refused) == (5, 95)
    assert time.monotonic() - began < 20


def test_more_output_than_allowed_is_an_overrun_and_listed_apart(ledger: tbl.Ledger) -> None:
    """One call writes 1,500 tokens where it had reserved 1,000: $0.005 above its hold."""
    report = play(ledger.budget("replay", usd=1), [TracedCall(1000, 1500), TracedCall(1000, 900)])
    assert (report.made, report.overruns, report.overrun_usd) == (2, 1, Decimal("0.005"))
    assert report.cost_usd == report.held_usd - report.unused_usd + report.overrun_usd


def test_a_trace_plays_at_its_own_pace_when_asked(ledger: tbl.Ledger) -> None:
    began = time.monotonic()
    play(ledger.budget("replay", usd=1), [TracedCall(1, 1, 0.0), TracedCall(1, 1, 6.0)], speed=20)
    assert 0.3 <= time.monotonic() - began < 6


def test_a_model_without_a_price_is_refused_before_anything_is_reserved(ledger: tbl.Ledger) -> None:
    budget = ledger.budget("replay", usd=1)
    with pytest.raises(tbl.PriceUnknown):
        run(budget, [TracedCall(1, 1)], model="no-such-model", max_output_tokens=10)
    assert budget.balance.committed_requests == 0


@pytest.mark.parametrize(
    ("name", "value"), [("parallel", 0), ("parallel", 2.5), ("speed", 0.0), ("speed", float("nan")), ("wait", -1.0)]
)
def test_numbers_that_mean_nothing_are_refused(ledger: tbl.Ledger, name: str, value: float) -> None:
    with pytest.raises(tbl.InvalidValue, match=name):
        play(ledger.budget("replay", usd=1), [TracedCall(1, 1)], **{name: value})


def test_a_closed_budget_ends_the_replay_with_one_error(ledger: tbl.Ledger) -> None:
    budget = ledger.budget("replay", usd=1)
    budget.close()
    with pytest.raises(tbl.BudgetClosed):
        play(budget, [TracedCall(1, 1)] * 100)


@pytest.mark.skipif(os.name == "nt", reason="a signal to oneself")
def test_an_interrupt_leaves_nothing_held_and_reports_what_was_made(ledger: tbl.Ledger) -> None:
    budget = ledger.budget("replay", usd=1000)

    def tell(made: int, refused: int, cost: Decimal) -> None:
        if made == 200:
            os.kill(os.getpid(), signal.SIGINT)

    report = play(budget, [TracedCall(1000, 100)] * 20_000, parallel=50, tell=tell)
    assert report.interrupted
    assert budget.balance.reserved_usd == 0
    assert 200 <= report.made == budget.balance.committed_requests < 20_000


def test_cancelling_while_calls_wait_leaves_nothing_held(ledger: tbl.Ledger) -> None:
    """Calls stand in line behind a hold that does not end; then all of it is interrupted."""
    budget = ledger.budget("replay", usd="0.03")
    blocker = budget.reserve_sync(usd="0.025")
    stop = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    stop.start()
    report = play(budget, [TracedCall(100, 40)] * 50, parallel=10)
    blocker.rollback().result()
    assert (report.made, report.interrupted) == (0, True)
    assert budget.balance.reserved_usd == 0


def test_a_replay_tells_itself_in_one_line(ledger: tbl.Ledger) -> None:
    report = play(ledger.budget("replay", usd=1), [TracedCall(1000, 1500)])
    assert repr(report) == (
        "Replay(1 of 1 calls made, 0 refused · cost $0.02 · $0.98 of $1.00 left in replay · $0.00 held and not used · "
        "1 overruns, $0.005 above their holds · $0.02 without a cap)"
    )


# --- the real trace ----------------------------------------------------------------------------------------------------------


def test_a_recorded_day_ends_within_its_cap(azure: Path, tmp_path: Path) -> None:
    """19,366 real calls, more than four times the cap, 50 at a time, twice."""
    calls = read_trace(azure, input_column="ContextTokens", output_column="GeneratedTokens")
    with tbl.connect(tmp_path / "replay.duckdb", embedded=True) as ledger:
        budget = ledger.budget("replay", usd=20)
        first = run(budget, calls, model=MODEL, max_output_tokens=1024, parallel=50)
        second = run(budget, calls, model=MODEL, max_output_tokens=1024, parallel=50)
        assert (first.calls, first.made + first.refused, first.overruns) == (19_366, 19_366, 0)
        assert first.uncapped_usd > 80
        assert Decimal("19.9") < first.committed_usd <= second.committed_usd <= 20
        assert first.cost_usd + second.cost_usd == second.committed_usd
        assert ledger.verify().open_reservations == 0
