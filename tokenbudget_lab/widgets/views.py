"""Where something moves in a notebook: as widgets while it moves, as plain HTML in the same place otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ..progress import has_widgets, in_notebook


class Moving(Protocol):
    """What moves while it is shown: a widget, and how it takes what is new.

    Attributes:
        root: the widget that is shown.
    """

    root: Any

    def show(self, parts: tuple[Any, ...]) -> None:
        """Show these parts."""
        ...


class OneText:
    """A single widget of HTML."""

    def __init__(self) -> None:
        import ipywidgets

        self.root = ipywidgets.HTML()

    def show(self, parts: tuple[Any, ...]) -> None:
        """Show the only part."""
        (self.root.value,) = parts


class View:
    """What is shown under one cell.

    Attributes:
        cell: which run of which cell.
    """

    def __init__(self, made: Callable[[], Moving], parts: tuple[Any, ...], html: str, text: str, *, live: bool) -> None:
        from IPython import display

        self.cell, self._made = this_cell(), made
        self._moving = self._begun(parts) if live else None
        self._shown, self._frozen = parts, not live
        show: Any = display.display  # its types say less than it takes
        self._handle = show(self._bundle(html, text), raw=True, display_id=True)

    def move(self, parts: tuple[Any, ...], html: str, text: str) -> None:
        """Show this, and more of it soon.

        Args:
            parts: for widgets; where they are what is shown, nothing is new.
            html: for where there are none.
            text: for where no HTML is shown.
        """
        if parts == self._shown:
            return
        self._shown, self._frozen = parts, False
        if self._moving is not None:
            self._moving.show(parts)
        else:
            self._moving = self._begun(parts)
            self._handle.update(self._bundle(html, text), raw=True)

    def freeze(self, parts: tuple[Any, ...], html: str, text: str) -> None:
        """Show this as plain HTML; what widgets were is gone without a trace."""
        if self._frozen and parts == self._shown:
            return
        moving, self._moving = self._moving, None
        self._shown, self._frozen = parts, True
        self._handle.update(self._bundle(html, text), raw=True)
        if moving is not None:  # only now, since a view without its model says that something is wrong
            for widget in _all_of(moving.root):
                widget.close()

    def _begun(self, parts: tuple[Any, ...]) -> Moving | None:
        """What moves, where there are widgets."""
        if not has_widgets():
            return None
        moving = self._made()
        moving.show(parts)
        return moving

    def _bundle(self, html: str, text: str) -> dict[str, Any]:
        if self._moving is None:
            return {"text/html": html, "text/plain": text}
        model = {"version_major": 2, "version_minor": 0, "model_id": self._moving.root.model_id}
        return {"application/vnd.jupyter.widget-view+json": model, "text/plain": text}


def _all_of(widget: Any) -> list[Any]:
    """A widget and all that is made with it."""
    inside = [part for child in getattr(widget, "children", ()) for part in _all_of(child)]
    return [widget, *inside, widget.layout, *([widget.style] if widget.has_trait("style") else [])]


def this_cell() -> tuple[Any, ...]:
    """Which run of which cell this is: the cell's id, where the front end tells one, and the number of the run."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    if shell is None:
        return (None, 0)
    parent = getattr(shell, "parent_header", None) or {}
    return ((parent.get("metadata") or {}).get("cellId"), shell.execution_count)


class Shows(Protocol):
    """What is shown in views."""

    views: list[View]

    def close(self) -> None:
        """It moves no more."""
        ...


def close_those_of_an_earlier_run(shown: Iterable[Shows]) -> None:
    """A cell that is run again has lost its outputs: nobody sees what it showed before."""
    if not in_notebook():
        return
    cell, run = this_cell()
    for one in list(shown):
        if cell is not None and any(view.cell[0] == cell and view.cell[1] != run for view in one.views):
            one.close()
