"""A gauge says what is so, of when it is so, and nothing else; whatever a budget is called, it is text."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from html.parser import HTMLParser

import pytest

import tokenbudget_lab as tbl
from tests.conftest import Clock, also_on_postgres
from tokenbudget_lab import watching
from tokenbudget_lab.ids import uuid7_source
from tokenbudget_lab.meters import Outlook, gauge_html
from tokenbudget_lab.stores.memory import MemoryStore

STORE = "memory"
GRACE_S = 20.0


class Page(HTMLParser):
    """What a browser would make of HTML: its elements, their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(self.pieces)

    @property
    def meters(self) -> list[dict[str, str | None]]:
        """The attributes of its meters."""
        return [attributes for _, attributes in self.elements if attributes.get("role") == "meter"]


@pytest.fixture
def ledger(where: str) -> Iterator[tbl.Ledger]:
    with tbl.connect(where) as ledger:
        yield ledger


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    """$3.10 of $5 are committed, $0.80 are held."""
    study = ledger.budget("study", usd=5, alerts=(0.5, 0.6, 0.9))
    study.record(usd="3.10").result()
    study.reserve_sync(usd="0.80")
    return study


def until(true: Callable[[], bool]) -> None:
    """Wait for something that comes about by itself."""
    deadline = time.monotonic() + GRACE_S
    while not true():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


# --- what it looks like --------------------------------------------------------------------------------------------------


@also_on_postgres
def test_a_meter_says_its_amounts_in_a_full_sentence(study: tbl.Budget) -> None:
    (meter,) = Page(gauge_html(study.balance)).meters
    assert meter["aria-valuetext"] == "Budget study: $3.10 committed and $0.80 held, $1.10 of $5.00 left."


def test_a_meter_has_a_name_and_stays_within_its_bounds(ledger: tbl.Ledger) -> None:
    """An overrun passes the limit, and the meter its end."""
    study = ledger.budget("study", tokens=100)
    study.record(tokens=250).result()
    (meter,) = Page(gauge_html(study.balance)).meters
    assert [meter[f"aria-{name}"] for name in ("label", "valuemin", "valuenow", "valuemax")] == [
        "Limit of study, tokens", "0", "100.0", "100",
    ]  # fmt: skip


def test_an_overrun_is_said_in_words(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", tokens=100)
    study.record(tokens=250).result()
    assert "150 tokens over 100 tokens" in Page(gauge_html(study.balance)).text


@pytest.mark.parametrize("limit", [0, 1])
def test_a_limit_of_nothing_has_a_gauge(ledger: tbl.Ledger, limit: int) -> None:
    assert f"{limit} of {limit} tokens left" in Page(gauge_html(ledger.budget("study", tokens=limit).balance)).text


def test_a_limit_further_up_has_a_meter_of_its_own(ledger: tbl.Ledger) -> None:
    ledger.budget("lab", usd=2, tokens=100)
    page = Page(gauge_html(ledger.budget("lab/study", usd=1).balance))
    assert [meter["aria-label"] for meter in page.meters] == [
        "Limit of lab/study, USD", "Limit of lab, USD", "Limit of lab, tokens",
    ]  # fmt: skip


def test_a_budget_without_a_limit_says_so(ledger: tbl.Ledger) -> None:
    assert "$0.00 committed, $0.00 held, no limit" in Page(gauge_html(ledger.budget("study", limits=[]).balance)).text


def test_of_the_alerts_that_were_reached_the_highest_is_told(study: tbl.Budget) -> None:
    text = Page(gauge_html(study.balance, Outlook(alerts=(0.5, 0.6, 0.9)))).text
    assert ("Alert: 60% of $5.00 is spent" in text, text.count("Alert")) == (True, 1)


def test_calls_without_a_price_are_said_not_to_be_in_the_amount(ledger: tbl.Ledger) -> None:
    """What is unknown is never shown as zero."""
    study = ledger.budget("study", tokens=1000)
    study.record(tbl.Usage(input_tokens=10, output_tokens=1), model="nobody-knows-it").result()
    assert "1 without a known cost, not in the amount" in Page(gauge_html(study.balance)).text


def test_a_window_tells_its_end_and_its_pace() -> None:
    """At noon half of the day is over; three quarters are spent."""
    clock = Clock()
    with tbl.Ledger(store=MemoryStore(), clock_ns=clock.now_ns, ids=uuid7_source(clock.now_ns)) as ledger:
        study = ledger.budget("study", tokens=100, window="day")
        study.record(tokens=75).result()
        text = Page(gauge_html(study.balance)).text
    assert "per day, until 2026-11-24 00:00 UTC · pace 1.5 (1 is even)" in text


def test_every_part_of_a_bar_has_a_colour_that_a_notebook_without_trust_keeps(ledger: tbl.Ledger) -> None:
    """JupyterLab takes gradients out of what it does not trust; a part without a colour would look like what is left."""
    study = ledger.budget("study", usd=5)
    study.reserve_sync(usd=2)
    study.record(usd=6).result()
    styles = [attributes.get("style") or "" for _, attributes in Page(gauge_html(study.balance)).elements]
    painted = [style for style in styles if "gradient" in style]
    assert painted
    assert all("background-color:#" in style.partition("gradient")[0] for style in painted)


def test_when_it_runs_out_is_said_from_the_balances_moment(study: tbl.Budget) -> None:
    balance = study.balance
    text = Page(gauge_html(balance, Outlook(runs_out=balance.at + timedelta(minutes=4)))).text
    assert "at this rate used up in about 4 minutes" in text


def test_a_final_gauge_says_of_when_it_is(study: tbl.Budget) -> None:
    balance = study.balance
    said = f"As of {balance.at:%Y-%m-%d %H:%M:%S} UTC. Budget study: $3.10 committed and $0.80 held, $1.10 of $5.00 left."
    assert said in Page(gauge_html(balance, Outlook(final=True))).text


def test_a_ledger_that_does_not_answer_is_shown_as_such_and_not_as_zero(study: tbl.Budget) -> None:
    text = Page(gauge_html(study.balance, Outlook(trouble="The ledger has not answered for 3 s."))).text
    assert all(said in text for said in ("has not answered for 3 s", "was read", "$3.10 committed"))


HOSTILE = [
    "<script>alert(1)</script>",
    "<img|onerror=alert(1)>",
    '"onmouseover="alert(1)',
    "{{7*7}}",
    "${x}",
    "$x$",
    "[a](http:e)",
    "</div></div>",
    "a\u202eb",
    "'--><!--",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text(ledger: tbl.Ledger, name: str) -> None:
    """Same elements and attributes as any other name makes, and the name to be read."""
    plain, named = ledger.budget("plain", usd=1), ledger.budget(name.replace("/", "|"), usd=1)
    usual, hostile = (Page(gauge_html(budget.balance, Outlook(final=True))) for budget in (plain, named))
    shape = [[(tag, set(attributes)) for tag, attributes in page.elements if tag != "span"] for page in (usual, hostile)]
    assert shape[0] == shape[1]
    assert named.name.replace("\u202e", "\\u202e") in hostile.text


def test_no_piece_of_text_has_two_dollar_signs(study: tbl.Budget) -> None:
    """MathJax typesets what stands between two of them in one piece."""
    html = gauge_html(study.balance, Outlook(alerts=(0.5,), final=True, trouble=""))
    assert max(piece.count("$") for piece in Page(html).pieces) == 1
    assert all(len(piece) == 1 for piece in Page(html).pieces if "$" in piece)


def test_a_gauge_refers_to_nothing_outside(study: tbl.Budget) -> None:
    html = gauge_html(study.balance, Outlook(final=True))
    assert not any(word in html for word in ("http", "src=", "url(", "<style", "<script", "<link"))


def test_a_budget_in_a_notebook_is_a_gauge_of_this_moment(study: tbl.Budget) -> None:
    shown = study._repr_html_()
    assert shown is not None
    assert "As of" in Page(shown).text


def test_a_budget_whose_ledger_is_closed_leaves_it_to_its_text(study: tbl.Budget) -> None:
    study.ledger.close()
    assert study._repr_html_() is None
    assert "no balance" in repr(study)


# --- how it moves --------------------------------------------------------------------------------------------------------


def test_what_is_no_budget_has_no_gauge() -> None:
    with pytest.raises(tbl.InvalidType, match=r"give what ledger\.budget"):
        tbl.gauge("study")  # type: ignore[arg-type]


def test_outside_of_notebooks_a_gauge_is_its_line_of_text(study: tbl.Budget, capsys: pytest.CaptureFixture[str]) -> None:
    with tbl.gauge(study) as gauge:
        study.record(usd="0.10").result()
        assert "$3.20 committed" in repr(gauge)
    assert capsys.readouterr().out == ""


def test_a_closed_gauge_has_the_last_value(study: tbl.Budget) -> None:
    """It looks once more when it is closed, whatever it saw before."""
    with tbl.gauge(study) as gauge:
        study.record(usd="0.25").result()
    assert gauge.balance.committed_usd == study.balance.committed_usd


def test_closing_the_ledger_tells_the_gauge_the_last_value(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    gauge = tbl.gauge(study)
    study.record(usd="0.25").result()
    ledger.close()
    assert (gauge.closed, str(gauge.balance.committed_usd), gauge._outlook.trouble) == (True, "3.35", "")


def test_the_thread_that_looks_ends_with_the_last_gauge(study: tbl.Budget) -> None:
    gauges = [tbl.gauge(study) for _ in range(100)]
    looking = [thread for thread in threading.enumerate() if thread.name == "tokenbudget-watch"]
    for gauge in gauges:
        gauge.close()
    until(lambda: not any(thread.is_alive() for thread in looking))
    assert (len(looking), study.ledger.before_close) == (1, [])


@also_on_postgres
def test_a_gauge_after_the_last_one_was_closed_is_looked_for_again(study: tbl.Budget) -> None:
    tbl.gauge(study).close()
    with tbl.gauge(study) as gauge:
        study.record(usd="0.25").result()
        until(lambda: str(gauge.balance.committed_usd) == "3.35")


@pytest.mark.parametrize("store", ["keeper", "postgres"])
def test_what_another_process_spends_is_seen_within_a_second(where: str) -> None:
    """Two connections to one keeper or server, one of them another process, which says when it had its answer."""
    spend = "import sys, time, tokenbudget_lab as tbl\nwith tbl.connect(sys.argv[1]) as ledger:\n"
    spend += "    ledger.budget('study').record(usd='0.25').result()\n    print(time.time())"
    with tbl.connect(where) as ledger, tbl.gauge(ledger.budget("study", usd=1)) as gauge:
        done = subprocess.run([sys.executable, "-c", spend, where], capture_output=True, text=True, timeout=60, check=True)
        until(lambda: str(gauge.balance.committed_usd) == "0.25")
        assert gauge.balance.at.timestamp() - float(done.stdout) < 1


@also_on_postgres
def test_a_budget_that_cannot_be_read_any_more_keeps_its_last_value_and_says_why(study: tbl.Budget) -> None:
    """Its ledger goes away under it: the writer takes no more."""
    gauge = tbl.gauge(study)
    study.ledger.desk.close()
    until(lambda: bool(gauge._outlook.trouble))
    gauge.close()
    text = Page(gauge._picture(final=gauge.closed).html()).text
    assert all(said in text for said in ("The ledger cannot be read", "$3.10 committed", "What is shown was read"))


def test_a_ledger_that_is_silent_is_said_to_be_so(study: tbl.Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer takes longer than patience lasts."""
    monkeypatch.setattr(watching, "PATIENCE_S", 0.2)
    inside, go_on = threading.Event(), threading.Event()
    store = study.ledger.desk.store  # type: ignore[attr-defined] # a writer has one
    append = store.append

    def blocked(*given: object, **named: object) -> object:
        inside.set()
        go_on.wait(GRACE_S)
        return append(*given, **named)

    with tbl.gauge(study) as gauge:
        monkeypatch.setattr(store, "append", blocked)  # a disk that hangs
        receipt = study.record(usd="0.25")
        inside.wait(GRACE_S)
        until(lambda: "has not answered" in gauge._outlook.trouble)
        shown = Page(gauge._picture(final=gauge.closed).html()).text
        go_on.set()
        receipt.result()
        until(lambda: not gauge._outlook.trouble)
    assert "$3.10 committed" in shown
    assert str(gauge.balance.committed_usd) == "3.35"
