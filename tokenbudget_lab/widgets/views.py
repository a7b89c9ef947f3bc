"""Where something moves in a notebook: as widgets while it moves, as plain HTML in the same place otherwise."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar
from weakref import WeakSet

from ..progress import close_widgets, has_widgets, in_notebook


class Moving(Protocol):
    """What moves while it is shown: a widget, and how it takes what is new.

    Attributes:
        root: the widget that is shown.
        busy: whether whoever sees it is in the midst of something.
    """

    root: Any

    @property
    def busy(self) -> bool:
        """Whether it has to stay."""
        ...

    def show(self, parts: tuple[Any, ...]) -> None:
        """Show these parts."""
        ...


class Picture(NamedTuple):
    """What is shown at a moment.

    Attributes:
        parts: for widgets; where they are what is shown, nothing is new.
        html: makes what stands where there are no widgets.
        text: makes what stands where no HTML is shown.
    """

    parts: tuple[Any, ...]
    html: Callable[[], str]
    text: Callable[[], str]


class OneText:
    """A single widget of HTML."""

    busy = False

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

    def __init__(self, made: Callable[[], Moving], picture: Picture, *, live: bool) -> None:
        from IPython import display

        self.cell, self._made = this_cell(), made
        self._moving = self._begun(picture.parts) if live else None
        self._shown, self._frozen = picture.parts, not live
        show: Any = display.display  # its types say less than it takes
        self._handle = show(self._bundle(picture), raw=True, display_id=True)

    @property
    def busy(self) -> bool:
        """Whether whoever sees it is in the midst of something."""
        return self._moving is not None and self._moving.busy

    def move(self, picture: Picture) -> None:
        """Show this, and more of it soon."""
        if picture.parts == self._shown:
            return
        self._shown, self._frozen = picture.parts, False
        if self._moving is not None:
            self._moving.show(picture.parts)
        else:
            self._moving = self._begun(picture.parts)
            self._handle.update(self._bundle(picture), raw=True)

    def freeze(self, picture: Picture) -> None:
        """Show this as plain HTML; what widgets were is gone without a trace."""
        if self._frozen and picture.parts == self._shown:
            return
        moving, self._moving = self._moving, None
        self._shown, self._frozen = picture.parts, True
        self._handle.update(self._bundle(picture), raw=True)
        if moving is not None:  # only now, since a view without its model says that something is wrong
            close_widgets(moving.root)

    def _begun(self, parts: tuple[Any, ...]) -> Moving | None:
        """What moves, where there are widgets."""
        if not has_widgets():
            return None
        moving = self._made()
        moving.show(parts)
        return moving

    def _bundle(self, picture: Picture) -> dict[str, Any]:
        text = picture.text()
        if self._moving is None:
            return {"text/html": picture.html(), "text/plain": text}
        model = {"version_major": 2, "version_minor": 0, "model_id": self._moving.root.model_id}
        return {"application/vnd.jupyter.widget-view+json": model, "text/plain": text}


def this_cell() -> tuple[Any, ...]:
    """Which run of which cell this is: the cell's id, where the front end tells one, and the number of the run."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    if shell is None:
        return (None, 0)
    parent = getattr(shell, "parent_header", None) or {}
    return ((parent.get("metadata") or {}).get("cellId"), shell.execution_count)


class News(Protocol):
    """What somebody who looks is told.

    Attributes:
        last: whether nothing more will be told.
    """

    @property
    def last(self) -> bool:
        """Whether nothing more will be told."""
        ...


N = TypeVar("N", bound=News)


def close_those_of_an_earlier_run(shown: Iterable[Live[Any]]) -> None:
    """A cell that is run again has lost its outputs: nobody sees what it showed before."""
    if not in_notebook():
        return
    cell, run = this_cell()
    for one in list(shown):
        if cell is not None and any(view.cell[0] == cell and view.cell[1] != run for view in one.views):
            one.close()


class Live(ABC, Generic[N]):
    """What is shown under cells and moves, until `close`, the end of its `with` block, or of its ledger.

    Args:
        everyone: all of its kind that are open.

    Attributes:
        views: the cells that it is shown under.
        closed: whether it moves no more.
    """

    def __init__(self, everyone: WeakSet[Any]) -> None:
        self.views: list[View] = []
        self.closed, self._everyone = False, everyone
        self._drawing = threading.RLock()
        self._moved_at = time.monotonic()

    # --- what each kind says of itself ---

    @abstractmethod
    def _take(self, news: N) -> bool:
        """Remember what was seen; whether something has moved."""

    @abstractmethod
    def _still_s(self) -> float:
        """How long nothing may move, after which it is plain HTML until something does."""

    @abstractmethod
    def _runs(self) -> bool:
        """Whether calls are in flight, so that it may move at any moment."""

    @abstractmethod
    def _picture(self, *, final: bool) -> Picture:
        """What is to be shown now."""

    @abstractmethod
    def _made(self) -> Moving:
        """New widgets for it."""

    @abstractmethod
    def _end(self) -> N:
        """Look for a last time, and no more."""

    # --- what all do ---

    def _opened(self) -> None:
        """It is there; others that the same cell has shown before are not seen any more."""
        close_those_of_an_earlier_run(self._everyone)
        self._everyone.add(self)

    def show(self) -> Self:
        """Show it under this cell; once in each."""
        with self._drawing:
            if in_notebook() and all(view.cell != this_cell() for view in self.views):
                self.views.append(View(self._made, self._picture(final=self.closed), live=not self.closed))
        return self

    def close(self) -> None:
        """Look for a last time, and stay as plain HTML that says of when it is."""
        if not self.closed:
            self._finish(self._end())

    def _see(self, news: N) -> None:
        """Take the news; called by the thread that looks, or by whoever closes the ledger."""
        if news.last:
            self._finish(news)
            return
        with self._drawing, suppress(Exception):  # a front end that is gone is no reason to look no more
            if not self.closed:
                if self._take(news):
                    self._moved_at = time.monotonic()
                self._draw()

    def _draw(self) -> None:
        still = time.monotonic() - self._moved_at > self._still_s() and not self._runs()
        picture = self._picture(final=still)
        for view in self.views:
            (view.freeze if still and not view.busy else view.move)(picture)

    def _finish(self, news: N) -> None:
        with self._drawing:
            if self.closed:
                return
            self.closed = True
            self._everyone.discard(self)
            self._take(news)
            picture = self._picture(final=True)
            for view in self.views:
                with suppress(Exception):  # as above
                    view.freeze(picture)

    def _ipython_display_(self) -> None:
        if in_notebook():
            self.show()
        else:
            print(repr(self))  # noqa: T201 - what IPython does with a repr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
