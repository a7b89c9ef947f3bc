"""The notebooks are what their sources say, and were run to their end; that they still run is seen by `make test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("*.py"))


def read(notebook: Path) -> Any:
    """What is kept."""
    import nbformat  # takes three seconds, of every process that collects the tests

    return nbformat.read(notebook, 4)  # type: ignore[no-untyped-call] # it has no types


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_source(source: Path) -> None:
    import jupytext  # it imports nbformat

    made, kept = jupytext.read(source), read(source.with_suffix(".ipynb"))
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [(cell.cell_type, cell.source) for cell in made.cells]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_what_is_kept_of_a_notebook_came_without_an_error_and_says_no_machines_paths(source: Path) -> None:
    kept = read(source.with_suffix(".ipynb"))
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert "widgets" not in kept.metadata
    assert not [output for cell in code for output in cell.outputs if any("widget" in kind for kind in output.get("data", ()))]
    assert "/tmp/" not in source.with_suffix(".ipynb").read_text(encoding="utf-8")  # noqa: S108 - looked for, not written to
