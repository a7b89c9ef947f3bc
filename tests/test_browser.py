"""What a researcher sees: gauges and cells under a budget in a real JupyterLab, in Chromium.

Cells and tests tell each other how far they are by files in the notebook's folder. Where there is no browser the tests are
skipped; in continuous integration (`CI`) they fail there. `TOKENBUDGET_SCREENSHOTS` names a folder for pictures.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.jupyterlab import GRACE_S, Lab, Tab, browser, chromium, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.environ.get("CI") and chromium() is None, reason="there is no Chromium: `make browser` says how"),
]
METER = "[role=meter]"
START = """
import asyncio, pathlib, time
import tokenbudget_lab as tbl

def until(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)

ledger = tbl.connect("{name}.duckdb")
lab = ledger.budget("lab", usd=20, window="month")
study = ledger.budget("lab/prompt-study", usd=5, alerts=(0.5, 0.8))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab."""
    with contextlib.ExitStack() as ends:
        yield Lab(tmp_path_factory.mktemp("lab"), ends)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    """A browser; of this module alone, since it keeps a loop running in this thread."""
    with browser() as started:
        yield started


@pytest.fixture
def opened(lab: Lab, chrome: Browser) -> Iterator[Callable[..., Tab]]:
    """How a notebook is written and opened; nothing outside was asked for, and nobody complained."""
    lab.outside.clear()
    lab.complaints.clear()
    with contextlib.ExitStack() as ends:

        def open_notebook(name: str, *cells: str, width: int = 1100, height: int = 800, written: bool = False) -> Tab:
            if not written:
                lab.write(f"{name}.ipynb", cells)
            context = chrome.new_context(viewport={"width": width, "height": height})
            ends.callback(context.close)
            return Tab(lab, context.new_page(), f"{name}.ipynb")

        yield open_notebook
    lab.stop_kernels()
    assert (lab.outside, lab.complaints) == ([], [])


def shot(page: Page | Locator, name: str) -> None:
    """A picture of what is there, where somebody wants it."""
    if folder := os.environ.get("TOKENBUDGET_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder, f"{name}.png"))


def says(page: Page, text: str) -> None:
    """Wait until the first meter says this."""
    shown = "text => document.querySelector('[role=meter]')?.ariaValueText.includes(text)"
    try:
        page.wait_for_function(shown, arg=text, timeout=GRACE_S * 1000)
    except BaseException:
        shot(page, "not_said")
        raise


def violations(page: Page, ours: str = ".tokenbudget") -> list[Any]:
    """What axe finds wrong with what is ours in the page."""
    from axe_playwright_python.sync_playwright import Axe

    found: list[Any] = Axe().run(page, context=ours).response["violations"]
    return found


MOVES = """
gauge = tbl.gauge(study)
for n in range(5):
    with study.reserve(usd="0.80") as call:
        until(f"held{n}")
        call.commit(usd="0.70")
    until(f"seen{n}")
"""


def test_a_gauge_moves_while_its_cell_blocks(lab: Lab, opened: Callable[..., Tab]) -> None:
    """Ten states, each of which the cell waits for the browser to have shown; then the exact last value, reloaded too."""
    tab = opened("moves", START.format(name="moves"), MOVES)
    tab.begin()
    states = set()
    for n in range(5):
        for committed, held, told in ((0.7 * n, 0.8, "held"), (0.7 * (n + 1), 0, "seen")):
            says(tab.page, f"${committed:.2f} committed and ${held:.2f} held")
            states.add(tab.page.locator(METER).first.get_attribute("aria-valuetext"))
            if n == 3 and held:
                shot(tab.page, "gauge_moving")
            (lab.folder / f"{told}{n}").touch()
    assert len(states) == 10
    tab.ready()
    says(tab.page, "Budget lab/prompt-study: $3.50 committed and $0.00 held, $1.50 of $5.00 left.")
    tab.command("docmanager:save")
    tab.page.reload()
    tab.ready()
    says(tab.page, "$3.50 committed")
    assert tab.page.locator("mjx-container").count() == 0
    shot(tab.page, "gauge_reloaded")


GOES_ON = """
import threading

def spend():
    until("reloaded")
    study.record(usd="1.25").result()

threading.Thread(target=spend).start()
gauge = tbl.gauge(study)
"""


def test_a_gauge_goes_on_moving_after_a_reload(lab: Lab, opened: Callable[..., Tab]) -> None:
    """Its cell has ended: while one blocks, a new page cannot ask the kernel for its widgets."""
    tab = opened("goes_on", START.format(name="goes_on"), GOES_ON)
    tab.run_all()
    says(tab.page, "$0.00 committed")
    tab.command("docmanager:save")
    tab.page.reload()
    says(tab.page, "$0.00 committed")
    (lab.folder / "reloaded").touch()
    says(tab.page, "$1.25 committed")


FROZEN = """
with tbl.gauge(study):
    study.record(usd="2.75").result()
    study.reserve_sync(usd="0.50")
"""


def test_a_saved_gauge_is_a_true_sentence_where_no_kernel_runs(lab: Lab, opened: Callable[..., Tab]) -> None:
    """Reopened with its kernel gone, in a page that has run none of it; the alert that was crossed is a line beside it."""
    first = opened("frozen", START.format(name="frozen"), FROZEN)
    first.run_all()
    first.command("docmanager:save")
    first.command("kernelmenu:shutdown")
    outputs = lab.saved("frozen.ipynb")["cells"][1]["outputs"]
    assert [sorted(output["data"]) for output in outputs if "data" in output] == [["text/html", "text/plain"]] * 2
    first.page.close()
    text = (lab.folder / "frozen.ipynb").read_text()
    (lab.folder / "untrusted.ipynb").write_text(text.replace("import asyncio", "import sys, asyncio"))  # as from somebody else
    for name in ("frozen", "untrusted"):
        tab = opened(name, written=True)
        text = tab.page.locator(".jp-OutputArea").last.inner_text()
        shot(tab.page, f"gauge_{name}")
        assert "Budget lab/prompt-study: $2.75 committed and $0.50 held, $1.75 of $5.00 left" in text
        assert "Error displaying widget" not in text
        assert tab.page.locator("mjx-container").count() == 0


LOADED = START + "%load_ext tokenbudget_lab"
UNDER = """
%%budget study --tag condition=few-shot
from tokenbudget_lab.scopes import current_budget, current_tags
for n in range(3):
    await asyncio.sleep(0)
    current_budget().record(usd="0.25", tokens=700, tags=current_tags()).result()
"""


def test_a_cell_with_await_is_under_its_budget(opened: Callable[..., Tab]) -> None:
    tab = opened("under", LOADED.format(name="under"), UNDER.strip(), "%budget cells", "study")
    tab.run_all()
    text = tab.page.locator(".jp-Notebook").inner_text()
    shot(tab.page, "budget_cell")
    assert "lab/prompt-study: 3 calls, 2,100 tokens, $0.7500 in this cell · $4.25 of $5.00 left" in text
    assert tab.page.locator("mjx-container").count() == 0


GONE = """
try:
    for n in tbl.track(range(50), study, progress=True):
        with study.reserve(usd=2) as call:
            call.commit(usd="1.50")
except tbl.BudgetExceeded:
    pass
"""


def test_a_bar_whose_budget_is_gone_is_one_line_that_stays(lab: Lab, opened: Callable[..., Tab]) -> None:
    """Beside the alerts of the same cell; in a notebook that was saved and reopened without its kernel too."""
    first = opened("gone", START.format(name="gone"), GONE)
    first.run_all()
    first.command("docmanager:save")
    first.command("kernelmenu:shutdown")
    first.page.close()
    tab = opened("gone", written=True)
    text = tab.page.locator(".jp-OutputArea").last.inner_text()
    shot(tab.page, "bar_gone")
    told = ("50% of $5.00 is spent ($3.00)", "lab/prompt-study: 3 of 50 rows done, $4.50 spent, $0.50 left")
    assert [text.count(line) for line in told] == [1, 1], text
    assert "widget" not in text.lower()
    assert tab.page.locator("mjx-container").count() == 0


SHOWN = """
old = ledger.budget("lab/<b>&$x$", usd=1)
old.record(usd="1.50").result()
study.record(usd="4.10").result()
study.reserve_sync(usd="0.40")
tbl.gauge(study), tbl.gauge(old), tbl.gauge(ledger.budget("lab/tokens", tokens=1000, window="day"))
study
"""


@pytest.mark.parametrize(
    ("theme", "width"),
    [
        ("Light", 1100),
        ("Dark", 420),
        pytest.param("Light", 420, marks=pytest.mark.soak),
        pytest.param("Dark", 1100, marks=pytest.mark.soak),
    ],
)
def test_gauges_are_accessible_in_both_themes(opened: Callable[..., Tab], theme: str, width: int) -> None:
    """Moving ones and one that stands still, over their limit and under it, with an alert; on wide and narrow pages."""
    name = f"shown_{theme}_{width}"
    tab = opened(name, START.format(name=name), SHOWN, width=width)
    tab.command("application:toggle-left-area")  # on a narrow page it would leave no room
    tab.run_all()
    tab.theme(f"JupyterLab {theme}")
    wait_until(lambda: tab.page.locator(".tokenbudget").count() == 5, "the gauges and the alert are not there")
    tab.page.locator(".tokenbudget").last.scroll_into_view_if_needed()
    shot(tab.page, name)
    tab.page.locator(".tokenbudget").first.scroll_into_view_if_needed()
    shot(tab.page, f"{name}_top")
    assert [(found["id"], found["nodes"][0]["html"]) for found in violations(tab.page)] == []
    assert tab.page.locator("mjx-container").count() == 0


def test_two_notebooks_on_one_file_see_each_others_spend(lab: Lab, opened: Callable[..., Tab]) -> None:
    """The second one spends while the first one's cell blocks."""
    one = opened("one", START.format(name="both"), "gauge = tbl.gauge(study)\nuntil('end_of_one')")
    one.begin()
    says(one.page, "$0.00 committed")
    two = opened("two", START.format(name="both"), "study.record(usd='1.25').result()")
    two.run_all()
    says(one.page, "$1.25 committed")
    (lab.folder / "end_of_one").touch()
    one.ready()
