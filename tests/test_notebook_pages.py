"""A notebook as a page of HTML: what it printed and drew is there without a kernel, and without a network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.jupyterlab import browser, chromium
from tests.test_notebooks import SOURCES, read

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [
    pytest.mark.skipif(not os.environ.get("CI") and chromium() is None, reason="there is no Chromium: `make browser` says how"),
]


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    """A browser; of this module alone, since it keeps a loop running in this thread."""
    with browser() as started:
        yield started


def _texts(kept: Any) -> list[str]:
    """The longest line of everything that was printed."""
    printed = [
        output.text
        for cell in kept.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    ]
    return [max(text.splitlines(), key=len).strip() for text in printed]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_that_shows_its_content_offline(source: Path, chrome: Browser, tmp_path: Path) -> None:
    """What `jupyter nbconvert --to html` writes: texts, tables and pictures are in the file, and seen with the network off."""
    from nbconvert import HTMLExporter

    kept = read(source.with_suffix(".ipynb"))
    page, _ = HTMLExporter().from_notebook_node(kept)  # type: ignore[no-untyped-call] # it has no types
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    context = chrome.new_context(offline=True)
    try:
        shown = context.new_page()
        shown.goto((tmp_path / "page.html").as_uri(), wait_until="domcontentloaded")
        text = " ".join(shown.inner_text("body").split())
        for line in _texts(kept):
            assert " ".join(line.split()) in text
        rich = [output for cell in kept.cells if cell.cell_type == "code" for output in cell.outputs if "data" in output]
        drawn = [each for each in rich if "text/html" in each.data or "image/svg+xml" in each.data]
        outputs = shown.locator(".jp-RenderedHTMLCommon.jp-OutputArea-output, .jp-RenderedSVG.jp-OutputArea-output")
        seen = [
            box for box in (each.bounding_box() for each in outputs.all()) if box and box["height"] > 0 and box["width"] > 0
        ]
        assert len(seen) >= len(drawn) > 0
        pictures = shown.locator(".jp-OutputArea-output img").all()
        assert all(each.get_attribute("src", timeout=1_000).startswith("data:") for each in pictures)  # type: ignore[union-attr]
    finally:
        context.close()
