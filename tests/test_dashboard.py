"""A dashboard says what a whole ledger came to, of when that is, and raises a limit once; whatever names say, they are text."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

import tokenbudget_lab as tbl
from tests.conftest import also_on_postgres
from tests.test_gauge import GRACE_S, HOSTILE, Page, until
from tokenbudget_lab import overseeing
from tokenbudget_lab.overseeing import Sight
from tokenbudget_lab.overview import Label, overview
from tokenbudget_lab.panels import MOST_BUDGETS, dashboard_html, own_limits, parts_of
from tokenbudget_lab.widgets.forms import Form
from tokenbudget_lab.widgets.raising import REASON, carry_out, planned

STORE = "memory"


@pytest.fixture
def ledger(where: str) -> Iterator[tbl.Ledger]:
    with tbl.connect(where) as ledger:
        yield ledger


@pytest.fixture
def study(ledger: tbl.Ledger) -> tbl.Budget:
    """$3.10 of $5 are committed, $0.80 are held for a model, $9 were refused."""
    study = ledger.budget("study", usd=5)
    study.record(usd="3.00", tokens=700, tags={"condition": "few-shot"}).result()
    study.record(usd="0.10", tokens=50, tags={"condition": "zero-shot"}).result()
    study.reserve_sync(usd="0.80", model="gpt-5")
    with pytest.raises(tbl.BudgetExceeded):
        study.reserve_sync(usd=9)
    return study


def seen(ledger: tbl.Ledger, by: Label | None = None) -> Sight:
    """A look at a ledger."""
    balances = tuple(ledger.budgets())
    return Sight(balances[0].at if balances else datetime.now(UTC), balances, overview(ledger, by))


def page(ledger: tbl.Ledger, by: Label | None = None) -> Page:
    """What a browser makes of it."""
    return Page(dashboard_html(seen(ledger, by), "spend.duckdb"))


# --- what it looks like --------------------------------------------------------------------------------------------------


@also_on_postgres
def test_it_tells_budgets_and_what_they_come_to(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    shown = page(ledger)
    (meter,) = shown.meters
    assert meter["aria-valuetext"] == "Budget study: $3.10 committed and $0.80 held, $1.10 of $5.00 left."
    assert "3.1000 USD spent · 2 calls · 1 in flight" in shown.text


@also_on_postgres
def test_it_tells_what_runs_and_what_was_refused(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    text = page(ledger).text
    assert all(said in text for said in ("gpt-5", "$0.8000", "$9.00 requested, $1.10 of $5.00 left"))


def test_it_tells_spend_by_the_label_that_was_chosen(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    by = [page(ledger, label).text for label in (None, Label("model", is_tag=False))]
    assert [("few-shot" in text, "Spend by condition" in text, "Spend by model" in text) for text in by] == [
        (True, True, False),
        (False, False, True),
    ]


def test_a_tag_named_as_a_column_is_the_tag(ledger: tbl.Ledger) -> None:
    ledger.budget("study", usd=5).record(usd=1, model="gpt-5", tags={"model": "mine", "tokens": "many"}).result()
    chosen = [seen(ledger, Label(name)).calls for name in ("model", "tokens")]
    assert [calls and calls.groups["label"].to_list() for calls in chosen] == [["mine"], ["many"]]


def test_a_cost_that_is_not_known_is_said_to_be_so(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", tokens=1000)
    study.record(tbl.Usage(input_tokens=10, output_tokens=1), model="nobody-knows-it").result()
    assert all(said in page(ledger).text for said in ("unknown USD spent", "1 without a known cost", "tokens per 5 seconds"))


def test_an_empty_ledger_says_that_there_is_nothing(ledger: tbl.Ledger) -> None:
    text = page(ledger).text
    assert all(said in text for said in ("No budgets yet", "No calls yet", "No call is running", "Nothing was refused"))


def test_spend_is_told_by_periods_that_fit_its_time(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    study.record(usd=1, at=datetime.now(UTC) - timedelta(days=2)).result()
    (picture,) = (attributes for _, attributes in page(ledger).elements if attributes.get("role") == "img")
    assert "USD per hour" in str(picture["aria-label"])


def test_of_many_budgets_those_in_use_are_shown_and_the_others_counted(ledger: tbl.Ledger) -> None:
    """40 of them under one; the last one has a call in flight, the one before is half spent."""
    ledger.budget("lab", usd=100)
    made = [ledger.budget(f"lab/b{n:02}", usd=1) for n in range(40)]
    made[-1].reserve_sync(usd="0.10")
    made[-2].record(usd="0.50").result()
    shown = page(ledger)
    names = [str(meter["aria-label"]) for meter in shown.meters]
    assert {"Limit of lab, USD", "Limit of lab/b39, USD", "Limit of lab/b38, USD"} < set(names)
    assert (len(names), f"and {41 - MOST_BUDGETS} more budgets" in shown.text) == (MOST_BUDGETS, True)


def test_of_many_labels_refusals_and_calls_the_rest_is_counted_and_summed(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", usd=100)
    for n in range(20):
        study.record(usd=1, tags={"item": f"i{n}"})
        study.reserve_sync(usd="0.10")
        with pytest.raises(tbl.BudgetExceeded):
            ledger.budget(f"study/{n}", usd=1).reserve_sync(usd=2)
    text = page(ledger).text
    assert all(said in text for said in ("and 12 more120", "and 14 more, younger", "and 15 before these"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_or_tag_is_text(ledger: tbl.Ledger, name: str) -> None:
    """Same elements and attributes as any other makes, and the name to be read."""
    shapes = []
    for said in ("plain", name):
        with tbl.connect(":memory:") as other:
            study = other.budget(said.replace("/", "|"), usd=1)
            study.record(usd="0.5", model=said, tags={said: said}).result()
            study.reserve_sync(usd="0.1", model=said)
            with pytest.raises(tbl.BudgetExceeded):
                study.reserve_sync(usd=9)
            shown = Page(dashboard_html(seen(other), said))
            assert said.replace("/", "|").replace("\u202e", "\\u202e") in shown.text
            shapes.append([(tag, set(attributes)) for tag, attributes in shown.elements if tag != "span"])
    assert shapes[0] == shapes[1]


def test_a_long_name_is_cut(ledger: tbl.Ledger) -> None:
    study = ledger.budget("x" * 200, usd=1)
    study.record(usd="0.5", tags={"arm": "y" * 250}, model="z" * 200).result()
    assert all(len(piece) < 100 for piece in page(ledger).pieces)


def test_no_piece_of_text_has_two_dollar_signs(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    assert all(len(piece) == 1 for piece in page(ledger).pieces if "$" in piece)


def test_it_refers_to_nothing_outside(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    html = dashboard_html(seen(ledger), "spend.duckdb")
    assert not any(word in html for word in ("http", "src=", "url(", "<style", "<script", "<link"))


def test_trouble_is_told_beside_what_was_read_last(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    balances = tuple(ledger.budgets())
    sight = Sight(balances[0].at, balances, trouble="The ledger has not answered for 3 s.")
    text = Page("".join(parts_of(sight, "spend.duckdb"))).text
    assert all(said in text for said in ("has not answered for 3 s", "was read", "$3.10"))


# --- how it moves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ledger_", "by"), [("study", None), (None, 5)])
def test_what_is_no_ledger_has_no_dashboard(ledger: tbl.Ledger, ledger_: object, by: object) -> None:
    with pytest.raises(tbl.InvalidType):
        tbl.dashboard(ledger if ledger_ is None else ledger_, by=by)  # type: ignore[arg-type]


def test_outside_of_notebooks_it_is_lines_of_text(
    ledger: tbl.Ledger, study: tbl.Budget, capsys: pytest.CaptureFixture[str]
) -> None:
    with tbl.dashboard(ledger) as dashboard:
        pass
    assert ("study  █" in repr(dashboard), capsys.readouterr().out) == (True, "")


def test_a_closed_dashboard_has_the_last_value(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    """Of the balances and of what is computed from the events."""
    with tbl.dashboard(ledger) as dashboard:
        study.record(usd="0.25").result()
    text = Page(dashboard._picture().html()).text
    assert ("$3.35" in text, "3.3500 USD spent · 3 calls" in text, f"As of {dashboard._sight.at:%Y-%m-%d}" in text) == (
        True,
        True,
        True,
    )


def test_closing_the_ledger_tells_it_the_last_value(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    dashboard = tbl.dashboard(ledger)
    study.record(usd="0.25").result()
    ledger.close()
    assert (dashboard.closed, "3.3500 USD spent" in Page(dashboard._picture().html()).text) == (True, True)


def test_its_threads_end_with_it(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    dashboards = [tbl.dashboard(ledger) for _ in range(20)]
    looking = [thread for thread in threading.enumerate() if thread.name == "tokenbudget-oversee"]
    for dashboard in dashboards:
        dashboard.close()
    until(lambda: not any(thread.is_alive() for thread in looking))
    assert (len(looking), ledger.before_close) == (40, [])


@pytest.mark.parametrize("store", ["keeper", "postgres"])
def test_what_another_process_spends_is_seen_within_a_second(where: str) -> None:
    """Two connections to one keeper or server, one of them another process, which says when it had its answer."""
    spend = "import sys, time, tokenbudget_lab as tbl\nwith tbl.connect(sys.argv[1]) as ledger:\n"
    spend += "    ledger.budget('study').record(usd='0.25').result()\n    print(time.time())"
    with tbl.connect(where) as ledger:
        ledger.budget("study", usd=1)
        with tbl.dashboard(ledger) as dashboard:
            done = subprocess.run([sys.executable, "-c", spend, where], capture_output=True, text=True, timeout=60, check=True)
            until(lambda: str(dashboard._sight.balances[0].committed_usd) == "0.25")
            assert dashboard._sight.at.timestamp() - float(done.stdout) < 1
            until(lambda: dashboard._sight.calls is not None and dashboard._sight.calls.total["calls"] == 1)


def test_a_ledger_that_goes_away_keeps_its_last_values_and_says_why(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    """The writer takes no more."""
    dashboard = tbl.dashboard(ledger)
    until(lambda: dashboard._sight.calls is not None)
    ledger.desk.close()
    until(lambda: bool(dashboard._sight.trouble))
    dashboard.close()
    text = Page(dashboard._picture().html()).text
    assert all(said in text for said in ("The ledger cannot be read", "$3.10", "3.1000 USD spent", "What is shown was read"))


def test_while_nothing_happens_balances_are_seldom_asked_for(ledger: tbl.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of hundreds of budgets that would be a good part of a core. What an even second finds, the next spend changes."""
    ledger.budget("quiet", usd=1)
    asked: list[object] = []
    balances = overseeing.Overseeing._balances

    def noted(self: overseeing.Overseeing, until: float) -> object:
        asked.append(until)
        return balances(self, until)

    monkeypatch.setattr(overseeing.Overseeing, "_balances", noted)
    with tbl.dashboard(ledger) as dashboard:
        until(lambda: dashboard._sight.calls is not None)
        time.sleep(1)
        assert len(asked) <= 2  # of ten that it looks; one each five seconds
        ledger.budget("quiet").record(usd="0.25").result()
        until(lambda: str(dashboard._sight.balances[0].committed_usd) == "0.25")


def test_a_ledger_that_is_silent_is_said_to_be_so(
    ledger: tbl.Ledger, study: tbl.Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer takes longer than patience lasts; when it comes, all is as it is again."""
    monkeypatch.setattr(overseeing, "PATIENCE_S", 0.2)
    inside, go_on = threading.Event(), threading.Event()
    store = ledger.desk.store  # type: ignore[attr-defined] # a writer has one
    append = store.append

    def blocked(*given: object, **named: object) -> object:
        inside.set()
        go_on.wait(GRACE_S)
        return append(*given, **named)

    with tbl.dashboard(ledger) as dashboard:
        monkeypatch.setattr(store, "append", blocked)  # a disk that hangs
        receipt = study.record(usd="0.25")
        inside.wait(GRACE_S)
        until(lambda: "has not answered" in dashboard._sight.trouble)
        shown = Page(dashboard._picture().html()).text
        go_on.set()
        receipt.result()
        until(lambda: not dashboard._sight.trouble)
    assert ("$3.10" in shown, str(dashboard._sight.balances[0].committed_usd)) == (True, "3.35")


def test_balances_of_more_than_one_answer_are_all_seen(ledger: tbl.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenbudget_lab.decide.PAGE", 4)
    made = {ledger.budget(f"b{n}", usd=1).name for n in range(9)}
    with tbl.dashboard(ledger) as dashboard:
        ledger.budget("b0").record(usd="0.25").result()
        until(lambda: str(dashboard._sight.balances[0].committed_usd) == "0.25")
        assert {balance.budget for balance in dashboard._sight.balances} == made


def test_calls_that_could_not_be_read_are_not_shown_as_new(
    ledger: tbl.Ledger, study: tbl.Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The balances go on, and the page says which of both is older, also when it is closed."""

    def full(*_: object) -> None:
        raise OSError("the disk is full")

    with tbl.dashboard(ledger) as dashboard:
        until(lambda: dashboard._sight.calls is not None)
        monkeypatch.setattr("tokenbudget_lab.overseeing.overview", full)
        study.record(usd="0.25").result()
        until(lambda: bool(dashboard._sight.unread))
    text = Page(dashboard._picture().html()).text
    assert all(said in text for said in ("newer than what is told of calls", "the disk is full", "$3.35 ·"))


# --- raising a limit -----------------------------------------------------------------------------------------------------


def limits_set(ledger: tbl.Ledger) -> list[str]:
    """The events that set the limits of a budget, behind the one that made it."""
    events = ledger.events().collect()
    return [row["detail"] for row in events.iter_rows(named=True) if row["kind"] == "budget_set"][1:]


@also_on_postgres
def test_a_limit_is_raised_by_an_event_that_says_where(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    (limit,) = own_limits(ledger.budgets())
    plan = planned(ledger, limit, " $8.50 ")
    assert (str(plan), limits_set(ledger)) == ("Raise study, USD from $5.00 to $8.50?", [])
    said = carry_out(ledger, plan)
    (event,) = limits_set(ledger)
    assert (said, str(study.balance.limit_usd), REASON in event) == ("✓ The limit of study, USD is $8.50 now.", "8.5", True)


def test_a_plan_that_is_carried_out_twice_raises_once(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    """Also where both were sent before either was answered: the command has one id."""
    (limit,) = own_limits(ledger.budgets())
    plan = planned(ledger, limit, "8")
    carry_out(ledger, plan)
    study.set_limit(usd=6)
    ledger.ask(plan.command)
    assert "Nothing was changed" in carry_out(ledger, plan)
    assert [len(limits_set(ledger)), study.balance.limit_usd] == [2, 6]


def test_a_limit_that_was_changed_meanwhile_is_left_as_it_is(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    """Else what was confirmed as a raise would lower it."""
    (limit,) = own_limits(ledger.budgets())
    plan = planned(ledger, limit, "8")
    study.set_limit(usd=20)
    assert carry_out(ledger, plan) == "✕ Nothing was changed: the limit of study, USD is $20.00 by now."
    assert study.balance.limit_usd == 20


def test_a_limit_that_is_changed_in_the_last_moment_is_left_as_it_is(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    """Whether it is still what was seen is decided by who changes it, and not looked up before."""
    (limit,) = own_limits(ledger.budgets())
    plans = [planned(ledger, limit, typed) for typed in ("50", "7")]
    tickets = [ledger.ask_soon(plan.command) for plan in plans]
    assert all(ticket.wait(GRACE_S) for ticket in tickets)
    assert (str(study.balance.limit_usd), len(limits_set(ledger))) == ("50", 1)


@pytest.mark.parametrize("typed", ["", "abc", "5", "4.99", "-6", "nan", "inf", "1e3x", "1,5", "6 7", "0x10", "1" * 30])
def test_what_is_no_higher_amount_is_refused(ledger: tbl.Ledger, study: tbl.Budget, typed: str) -> None:
    (limit,) = own_limits(ledger.budgets())
    with pytest.raises(tbl.InvalidValue):
        planned(ledger, limit, typed)


@pytest.mark.parametrize("typed", ["5000.5", "1e6", "10_000", "-1", "1" * 30, "²"])
def test_tokens_are_whole_numbers(ledger: tbl.Ledger, typed: str) -> None:
    ledger.budget("study", tokens=100)
    (limit,) = own_limits(ledger.budgets())
    with pytest.raises(tbl.InvalidValue):
        planned(ledger, limit, typed)


@pytest.mark.parametrize(
    ("typed", "said"), [("1,500", "$1,500.00"), ("5.129", "$5.129"), ("5.000001", "$5.000001"), ("1e2", "$100.00")]
)
def test_what_is_confirmed_is_exact(ledger: tbl.Ledger, study: tbl.Budget, typed: str, said: str) -> None:
    (limit,) = own_limits(ledger.budgets())
    assert planned(ledger, limit, typed).to == said


def test_of_several_windows_the_one_that_was_meant_is_raised(ledger: tbl.Ledger) -> None:
    study = ledger.budget("study", limits=[tbl.Limit(usd=150), tbl.Limit(usd=20, tokens=1000, window="day")])
    limit = next(each for each in own_limits(ledger.budgets()) if (each.resource, each.window) == ("usd", "day"))
    carry_out(ledger, planned(ledger, limit, "25"))
    now = {(each.resource, each.window): each.limit for each in study.balance.limits}
    assert now == {("usd", ""): 150, ("usd", "day"): 25, ("tokens", "day"): 1000}


@pytest.fixture
def form(ledger: tbl.Ledger, study: tbl.Budget) -> Form:
    """The form of a dashboard, with a new limit typed."""
    form = Form(ledger)
    form.show(own_limits(ledger.budgets()))
    form.typed.value = "8"
    return form


def test_the_form_raises_a_limit_in_two_steps(ledger: tbl.Ledger, form: Form) -> None:
    form.ask.click()
    assert ("from <span>$</span>5.00 to <span>$</span>8.00?" in form.said.value, limits_set(ledger)) == (True, [])
    form.yes.click()
    assert ("is <span>$</span>8.00 now" in form.said.value, len(limits_set(ledger))) == (True, 1)


def test_enter_behind_the_new_limit_is_the_first_step(ledger: tbl.Ledger, form: Form) -> None:
    form.typed._handle_custom_msg({"event": "submit"}, [])  # as the page sends it
    assert ("to <span>$</span>8.00?" in form.said.value, limits_set(ledger)) == (True, [])


def test_of_very_many_limits_the_fullest_can_be_chosen(ledger: tbl.Ledger, form: Form) -> None:
    """And the form says that these are not all."""
    for number in range(120):
        ledger.budget(f"of{number:03}", tokens=1000).record(tokens=number + 1).result()
    form.show(own_limits(ledger.budgets()))
    offered = [text for text, _ in form.which.options]
    assert (len(offered), offered[0], offered[-1]) == (100, "of021, tokens", "study, USD")
    assert "the 100 fullest" in form.which.description


def test_a_control_that_is_pressed_twice_does_nothing_twice(ledger: tbl.Ledger, form: Form) -> None:
    """What it said of the first press stays."""
    for button in (form.ask, form.ask, form.yes, form.yes):
        button.click()
    assert ("is <span>$</span>8.00 now" in form.said.value, len(limits_set(ledger))) == (True, 1)


def test_a_press_while_the_first_one_is_carried_out_does_nothing(
    ledger: tbl.Ledger, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes its time; what is said in the end is of the first press."""
    inside, go_on = threading.Event(), threading.Event()
    store = ledger.desk.store  # type: ignore[attr-defined] # a writer has one
    append = store.append

    def slow(*given: object, **named: object) -> object:
        inside.set()
        go_on.wait(GRACE_S)
        return append(*given, **named)

    form.ask.click()
    monkeypatch.setattr(store, "append", slow)
    presses = [threading.Thread(target=form.yes.click) for _ in range(2)]
    presses[0].start()
    assert inside.wait(GRACE_S)
    presses[1].start()
    until(lambda: not presses[1].is_alive())
    go_on.set()
    presses[0].join()
    assert ("is <span>$</span>8.00 now" in form.said.value, len(limits_set(ledger))) == (True, 1)


def test_nothing_is_raised_without_the_first_step_or_after_it_was_taken_back(ledger: tbl.Ledger, form: Form) -> None:
    for button in (form.yes, form.ask, form.no, form.yes):
        button.click()
    assert ("Nothing was changed" in form.said.value, limits_set(ledger)) == (True, [])


def test_a_typing_error_after_the_first_step_takes_it_back(ledger: tbl.Ledger, form: Form) -> None:
    form.ask.click()
    form.typed.value = "eight"
    form.ask.click()
    form.yes.click()
    assert ("✕" in form.said.value, limits_set(ledger)) == (True, [])


def test_a_press_that_overtakes_what_was_typed_before_it_is_of_all_of_it(
    ledger: tbl.Ledger, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a kernel is busy, the page holds the last digits back, and not the press; later ones are another matter."""
    form.typed.value = "3"
    form.ask.click()
    assert ("✕" in form.said.value, form.busy) == (True, False)
    form.typed.value = "30"
    assert ("to <span>$</span>30.00?" in form.said.value, form.busy, limits_set(ledger)) == (True, True, [])
    form.no.click()
    form.typed.value = "3"
    form.ask.click()
    monkeypatch.setattr("tokenbudget_lab.widgets.forms._BEHIND_S", 0.0)
    form.typed.value = "30"
    assert ("✕" in form.said.value, form.busy) == (True, False)


def test_what_is_confirmed_is_what_stands_in_the_form(ledger: tbl.Ledger, form: Form) -> None:
    """Another amount, or another limit, takes the first step back; another budget that somebody makes does not."""
    form.ask.click()
    form.typed.value = "80"
    form.yes.click()
    assert (limits_set(ledger), form.busy) == ([], False)
    form.ask.click()
    ledger.budget("another", usd=1)
    form.show(own_limits(ledger.budgets()))
    assert form.busy
    form.which.index = 0
    form.yes.click()
    assert not [detail for detail in limits_set(ledger) if REASON in detail]


def test_a_budget_that_was_closed_meanwhile_is_surely_not_changed(study: tbl.Budget, form: Form) -> None:
    form.ask.click()
    study.close()
    form.yes.click()
    assert "✕ Nothing was changed" in form.said.value


def test_a_ledger_that_is_gone_is_said_where_the_limit_was_to_be_raised(ledger: tbl.Ledger, form: Form) -> None:
    form.ask.click()
    ledger.desk.close()
    form.yes.click()
    assert "It is not sure whether the limit was raised" in form.said.value


def test_the_limit_that_was_chosen_stays_chosen_when_others_come(ledger: tbl.Ledger, form: Form) -> None:
    ledger.budget("another", usd=1)
    form.show(own_limits(ledger.budgets()))
    assert (form.which.label, len(form.which.options)) == ("study, USD", 2)


def test_a_closed_budget_offers_no_limit(ledger: tbl.Ledger, study: tbl.Budget) -> None:
    study.close()
    assert own_limits(ledger.budgets()) == ()
