"""Write the README's pictures, docs/demo.svg and docs/gauge.svg: the closing screen of a real demo run, and a budget's gauge.

python docs/make_pictures.py
"""

# ruff: noqa: INP001 - a script

import dataclasses
import io
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

import tokenbudget_lab as tbl
from tokenbudget_lab import render, study

HERE = Path(__file__).parent
COLUMNS = 86
# Colours that keep the blue of what is committed apart from the amber of what is held, on a light ground.
LIGHT = TerminalTheme(
    (255, 255, 255),
    (31, 35, 40),
    [(0, 0, 0), (207, 34, 46), (17, 99, 41), (77, 45, 0), (5, 80, 174), (130, 80, 223), (27, 124, 131), (110, 119, 129)],
)
# Rich's own template, without fonts from the network and without a window's buttons.
TEMPLATE = """<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="TITLE" viewBox="0 0 {width} {height}">
<title>TITLE</title>
<style>
.{unique_id}-matrix {{ font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs>{lines}</defs>
<rect fill="#ffffff" stroke="#8c959f" x="0.5" y="0.5" width="99.9%" height="99.8%" rx="8"/>
<g transform="translate(14, 16)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def run_demo(path: str) -> tuple[study.Study, list[tbl.Balance]]:
    """Run the demo unseen; how it ended, and how its budgets stood in the middle."""
    middle: list[tbl.Balance] = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(study.run, Console(file=io.StringIO()), path)
        while not running.done():
            time.sleep(0.05)
            if Path(path).exists():
                with tbl.connect(path) as ledger:
                    middle = _picked(middle, ledger.budgets())
        return running.result(), middle


def _picked(before: list[tbl.Balance], now: list[tbl.Balance]) -> list[tbl.Balance]:
    """The moment with the most in flight, once a third is spent."""
    if not now or now[0].committed_usd < study.CAP_USD / 3:
        return before
    return now if not before or now[0].reserved_usd > before[0].reserved_usd else before


def draw_demo() -> None:
    """Draw the demo; its ledger's path is shortened."""
    with tempfile.TemporaryDirectory() as folder:
        report, middle = run_demo(str(Path(folder) / "demo.duckdb"))
    out = Console(record=True, file=io.StringIO(), width=COLUMNS, markup=False, highlight=False)
    out.print("$ tokenbudget demo\n\n… in the middle of it:\n", style="bold")
    out.print(study.bars(middle, out))
    out.print("\n… and at the end:\n", style="bold")
    study.show_closing(out, dataclasses.replace(report, ledger="demo.duckdb"))
    title = f"tokenbudget demo: {len(report.conditions)} conditions with their budgets, costs and refusals"
    out.save_svg(
        str(HERE / "demo.svg"),
        theme=LIGHT,
        code_format=TEMPLATE.replace("TITLE", title),
        font_aspect_ratio=0.602,
        unique_id="demo",
    )


def draw_gauge() -> None:
    """A budget with calls in flight."""
    with tbl.connect(":memory:") as ledger:
        ledger.budget("lab", usd=2000, window="month")
        budget = ledger.budget("lab/prompt-study", usd=5)
        budget.record(usd="3.10").result()
        held = budget.reserve_sync(usd="0.80")
        (HERE / "gauge.svg").write_text(render.gauge_svg(budget.balance) + "\n", encoding="utf-8")
        held.rollback().result()


if __name__ == "__main__":
    draw_demo()
    draw_gauge()
