"""The notebooks are what their sources say, and were run to their end; that they still run is seen by `make test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

read: Any = nbformat.read  # it has no types
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_source(source: Path) -> None:
    made, kept = jupytext.read(source), read(source.with_suffix(".ipynb"), 4)
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [(cell.cell_type, cell.source) for cell in made.cells]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_what_is_kept_of_a_notebook_came_without_an_error_and_says_no_machines_paths(source: Path) -> None:
    kept = read(source.with_suffix(".ipynb"), 4)
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert "widgets" not in kept.metadata
    assert "/tmp/" not in source.with_suffix(".ipynb").read_text(encoding="utf-8")  # noqa: S108 - looked for, not written to
