"""A dashboard in a real JupyterLab, in Chromium: it shows what is so, and raises a limit.

As `test_browser` does, it skips where there is no browser, fails there in continuous integration, and takes pictures where
`TOKENBUDGET_SCREENSHOTS` names a folder.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import tokenbudget_lab as tbl
from tests.jupyterlab import GRACE_S, Lab, Tab, wait_until
from tests.test_browser import START, chrome, lab, opened, pytestmark, shot, violations  # noqa: F401 - fixtures are asked for by their names

BOARD = ".tokenbudget-dashboard"
BOARDED = """
study.record(usd="3.50", tags={"condition": "few-shot"}).result()
held = study.reserve_sync(usd=1)
dashboard = tbl.dashboard(ledger)
"""
WAITS = """
async def call():
    async with study.reserve(usd="1.20", wait=120) as call:
        call.commit(usd="1.00")

waiting = asyncio.create_task(call())
await asyncio.sleep(0)
study.balance  # is answered behind what was handed in before it
pathlib.Path("in_line").touch()
await waiting
"""
FOCUSED = """name => {
    const at = document.activeElement;
    return (at.labels?.[0] ?? at).innerText.includes(name);
}"""


def says(tab: Tab, text: str) -> None:
    """Wait until the dashboard says this."""
    shown = f"text => document.querySelector('{BOARD}')?.innerText.includes(text)"
    try:
        tab.page.wait_for_function(shown, arg=text, timeout=GRACE_S * 1000)
    except BaseException:
        shot(tab.page, "dashboard_not_said")
        raise


def limits_set(lab: Lab, name: str) -> int:  # noqa: F811 - the fixture's value
    """How often the limit of a budget was set, since it was made."""
    with tbl.connect(lab.folder / name) as ledger:
        events = ledger.events().collect()
    return events.filter(kind="budget_set", budget="lab/prompt-study").height - 1


SHOWN = """
from datetime import UTC, datetime, timedelta
few, zero = ledger.budget("lab/prompt-study/few-shot", usd=3), ledger.budget("lab/prompt-study/zero-shot", usd=1)
hostile = ledger.budget("lab/<b>&$x$", usd="0.05")
embedded = ledger.budget("lab/embeddings", tokens=2_000_000, window="day")
for n in range(60):
    told = dict(model=("claude-sonnet-5-5", "gpt-5-mini")[n % 2], tags={"condition": ("few-shot", "zero-shot")[n % 3 == 2]})
    used = tbl.Usage(input_tokens=900 + 37 * (n * n % 29), output_tokens=120 + 11 * (n * n % 31))
    spent, at = f"{0.008 + 0.0013 * (n * n % 23):.4f}", datetime.now(UTC) - timedelta(minutes=42 - 0.7 * n)
    (zero if n % 3 == 2 else few).record(used, usd=spent, at=at, **told)
embedded.record(tokens=412_000, usd="0.0412", tags={"condition": "index"})
hostile.record(usd="0.06", tags={"condition": "<script>alert(1)</script>$x$"}).result()
for budget, usd, model in ((few, "0.12", "claude-sonnet-5-5"), (few, "0.15", "gpt-5-mini"), (zero, "0.08", "gpt-5-mini")):
    budget.reserve_sync(usd=usd, model=model)
for budget, usd in ((zero, "0.90"), (study, 8)):
    try:
        budget.reserve_sync(usd=usd)
    except tbl.BudgetExceeded:
        pass
"""
CLOSED = "with tbl.dashboard(ledger):\n    study.record(usd='0.25').result()"


def test_it_raises_a_limit_and_a_waiting_reserve_goes_through(
    lab: Lab,  # noqa: F811 - as above
    opened: Callable[..., Tab],  # noqa: F811 - as above
) -> None:
    """The reserve waits in another notebook; the control is pressed twice, and raises once; a reload changes nothing."""
    tab = opened("raises", START.format(name="raises"), BOARDED)
    tab.run_all()
    says(tab, "$3.50 · $1.00 held · $0.50 of $5.00 left")
    other = opened("waits", START.format(name="raises"), WAITS)
    other.begin()
    wait_until((lab.folder / "in_line").exists, "no call waits")
    tab.page.get_by_role("combobox", name="Raise limit of").select_option("lab/prompt-study, USD")
    tab.page.get_by_role("textbox", name="New limit").fill("8")
    tab.page.get_by_role("button", name="Raise …").click()
    tab.page.get_by_role("button", name="Confirm: raise to $8.00").dblclick()
    says(tab, "The limit of lab/prompt-study, USD is $8.00 now.")
    says(tab, "$4.50 · $1.00 held · $2.50 of $8.00 left")
    other.ready()
    assert limits_set(lab, "raises.duckdb") == 1
    tab.command("docmanager:save")
    tab.page.reload()
    tab.ready()
    says(tab, "$4.50 · $1.00 held · $2.50 of $8.00 left")
    shot(tab.page, "dashboard_reloaded")


@pytest.mark.parametrize(
    ("theme", "width"), [("Light", 1100), ("Dark", 420), pytest.param("Dark", 1100, marks=pytest.mark.soak)]
)
def test_it_is_accessible_in_both_themes(opened: Callable[..., Tab], theme: str, width: int) -> None:  # noqa: F811 - as above
    """One that moves, with its question whether to raise a limit, and one that is closed; in whose names nothing is done."""
    name = f"board_{theme}_{width}"
    tab = opened(name, START.format(name=name), SHOWN, "dashboard = tbl.dashboard(ledger)", CLOSED, width=width, height=1400)
    tab.command("application:toggle-left-area")  # on a narrow page it would leave no room
    tab.run_all()
    tab.theme(f"JupyterLab {theme}")
    says(tab, "Last refusals")
    wait_until(lambda: tab.page.locator(BOARD).count() == 2, "the dashboards are not there")
    tab.page.get_by_role("combobox", name="Raise limit of").select_option("lab/prompt-study, USD")
    tab.page.get_by_role("textbox", name="New limit").fill("8")
    tab.page.get_by_role("button", name="Raise …").click()
    tab.page.get_by_role("button", name="Confirm: raise to $8.00").wait_for()
    for board, place in ((tab.page.locator(BOARD).first, "moving"), (tab.page.locator(BOARD).last, "closed")):
        board.scroll_into_view_if_needed()
        shot(board, f"dashboard_{name}_{place}")
    assert [(found["id"], found["nodes"][0]["html"]) for found in violations(tab.page, BOARD)] == []
    assert tab.page.locator("mjx-container").count() == 0
    assert tab.page.locator(f"{BOARD} script, {BOARD} b").count() == 0


def test_every_control_is_reached_by_the_keyboard(opened: Callable[..., Tab]) -> None:  # noqa: F811 - as above
    """From the first one on, each by a step, so that a limit is raised without a mouse."""
    tab = opened("keyboard", START.format(name="keyboard"), "dashboard = tbl.dashboard(ledger)")
    tab.run_all()
    says(tab, "Last refusals")
    tab.page.get_by_role("combobox", name="Raise limit of").focus()
    for keys, behind in (((), "Raise limit of"), (("Tab",), "New limit"), (("3", "0", "Tab"), "Raise …")):
        for key in keys:
            tab.page.keyboard.press(key)
        tab.page.wait_for_function(FOCUSED, arg=behind)
    tab.page.keyboard.press("Space")
    tab.page.get_by_role("button", name="Confirm: raise to $30.00").wait_for()
    tab.page.keyboard.press("Tab")
    tab.page.wait_for_function(FOCUSED, arg="Confirm")
    tab.page.keyboard.press("Space")
    says(tab, "The limit of lab, USD per month is $30.00 now.")


@pytest.mark.soak
def test_what_is_typed_while_the_kernel_is_busy_is_read_to_its_last_digit(opened: Callable[..., Tab]) -> None:  # noqa: F811 - as above
    """The page holds digits back until the kernel has answered, and the press behind them not."""
    busy = "import time; print('now busy', flush=True); time.sleep(6)"
    tab = opened("busy", START.format(name="busy"), "dashboard = tbl.dashboard(ledger)", busy)
    tab.begin()
    tab.page.locator(".jp-OutputArea-output", has_text="now busy").wait_for()
    tab.page.get_by_role("textbox", name="New limit").focus()
    for key in ("3", "0", "Tab", "Space"):
        tab.page.keyboard.press(key)
    tab.page.get_by_role("button", name="Confirm: raise to $30.00").wait_for()


def test_a_saved_dashboard_is_true_where_no_kernel_runs(lab: Lab, opened: Callable[..., Tab]) -> None:  # noqa: F811 - as above
    """Reopened with its kernel gone; also as from somebody else, when a notebook without trust loses what is not plain."""
    first = opened("kept", START.format(name="kept"), SHOWN, CLOSED)
    first.run_all()
    first.command("docmanager:save")
    first.command("kernelmenu:shutdown")
    first.page.close()
    text = (lab.folder / "kept.ipynb").read_text()
    (lab.folder / "kept_untrusted.ipynb").write_text(text.replace("import asyncio", "import sys, asyncio"))
    for name in ("kept", "kept_untrusted"):
        tab = opened(name, written=True, height=1400)
        shown = tab.page.locator(".jp-OutputArea").last
        shown.scroll_into_view_if_needed()
        shot(shown, f"dashboard_{name}")
        text = shown.inner_text()
        assert all(said in text for said in ("As of 20", "$0.35 held", "$8.00 requested", "few-shot", "gpt-5-mini")), text
        assert "Error displaying widget" not in text
        assert tab.page.locator("mjx-container").count() == 0


def test_it_shows_what_another_notebook_spends(lab: Lab, opened: Callable[..., Tab]) -> None:  # noqa: F811 - as above
    """Spend and its label, while the first notebook's cell blocks."""
    one = opened("shows", START.format(name="shows"), "dashboard = tbl.dashboard(ledger)\nuntil('end_of_shows')")
    one.begin()
    says(one, "No calls yet")
    two = opened("spends", START.format(name="shows"), "study.record(usd='1.25', tags={'condition': 'few-shot'}).result()")
    two.run_all()
    says(one, "$1.25 · $0.00 held")
    says(one, "few-shot")
    (lab.folder / "end_of_shows").touch()
    one.ready()
