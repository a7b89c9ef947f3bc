"""Bars: how far something is, for whoever waits; none where nobody would see it.

In a notebook a bar is a widget where ipywidgets is installed, and else a line of text; in a terminal a line of text.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Self
from weakref import WeakSet

from .errors import InvalidType, told

SHOWN_AFTER_S = 1.0  # a bar for less would only flicker
PATIENCE_S = 0.5  # how long a bar waits for another one that is being drawn


class Bar:
    """A bar, or none.

    Attributes:
        seen: whether there is one.
    """

    def __init__(self, drawn: Any = None) -> None:
        self._drawn, self.seen = drawn, drawn is not None

    def update(self, n: int) -> None:
        """So many more are done."""
        self._draw(lambda drawn: drawn.update(n))

    def skip(self, n: int) -> None:
        """So many were done before, and tell nothing of the pace."""
        if self._drawn is not None:
            self._drawn.n += n
            self._drawn.initial += n
            self._drawn.last_print_n += n

    def say(self, text: str) -> None:
        """A text behind the bar, from when it is next drawn."""
        if self._drawn is not None:
            self._drawn.set_postfix_str(text, refresh=False)

    def close(self, line: str = "") -> None:
        """It moves no more.

        Args:
            line: what stands in its place in a notebook that has widgets, and stays true when that is opened without a kernel.
        """
        self._draw(lambda drawn: drawn.leave_line(line) if hasattr(drawn, "leave_line") else drawn.close())

    def _draw(self, draw: Callable[[Any], object]) -> None:
        if self._drawn is not None:
            try:
                draw(self._drawn)
            except Exception:  # noqa: BLE001 - a pipe that is closed, a front end that is gone: no reason to lose what is counted
                self._drawn.disable = True  # else it would try once more when it is collected
                self._drawn = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bar_for(what: str, total: int | None, progress: bool | None, *, layout: str | None = None, leave: bool = False) -> Bar:  # noqa: FBT001 - it is passed on
    """A bar for as many as there are, which a wait of a second brings up.

    Args:
        what: its name.
        total: how many there are, where that is known.
        progress: whether to show it; by itself it is shown in a terminal or notebook.
        layout: what stands on it, as tqdm's `bar_format`.
        leave: whether it stays when all is done.
    """
    if progress not in (None, True, False):
        raise InvalidType("progress", f"{told(progress)} is not True, False or None")
    notebook = in_notebook()
    if progress is False or (progress is None and not notebook and not sys.stderr.isatty()):
        return Bar()
    after, widgets = 0 if progress else SHOWN_AFTER_S, notebook and has_widgets()
    drawn = _drawn_by("notebook" if widgets else "std")
    bar = drawn(total=total, desc=what, bar_format=layout, delay=after, leave=leave, miniters=0, **_OURS if widgets else {})
    if widgets and progress:
        bar.come_up()
    return Bar(bar)


_OURS = {"display": False}  # it is shown in a place that can be written to again


class _Turn:
    """Whose turn it is to draw. tqdm's own lock may be left taken for ever: by Ctrl-C while it is taken, or a killed child.

    Nobody waits here for longer than a moment, since a bar that is drawn over another one is no harm.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, *_: Any, **__: Any) -> bool:
        """Take it, from one who does not come back too."""
        if not self._lock.acquire(timeout=PATIENCE_S):
            self._lock = threading.RLock()
            self._lock.acquire()
        return True

    def release(self) -> None:
        """Let go of it, where nobody else has taken it meanwhile."""
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@cache
def _drawn_by(module: str) -> Any:
    """The bar of tqdm for a terminal (`std`) or a notebook, with a lock of ours, and without the thread for its pace."""
    kind = importlib.import_module(f"tqdm.{module}").tqdm
    kinds = (_InCell, kind) if module == "notebook" else (kind,)
    return type(kind.__name__, kinds, {"_lock": _Turn(), "_instances": WeakSet(), "monitor_interval": 0})


class _InCell:
    """What a bar of widgets does beside tqdm's: it becomes a line of text in the end, and leaves no widget behind."""

    handle: Any = None

    def display(self: Any, *given: Any, check_delay: bool = True, **named: Any) -> None:
        super().display(*given, check_delay=False, **named)  # type: ignore[misc] # tqdm's
        if check_delay and self.delay > 0 and not self.displayed:
            self.come_up()

    def come_up(self: Any) -> None:
        """Show it."""
        from IPython import display

        show: Any = display.display  # its types say less than it takes
        self.displayed, self.handle = True, show(self.container, display_id=True)

    def leave_line(self: Any, line: str) -> None:
        """End it."""
        self.close()
        if self.handle is not None:
            self.handle.update({"text/plain": line}, raw=True)
        close_widgets(self.container)


def close_widgets(widget: Any) -> None:
    """Close a widget and all that is made with it."""
    for child in getattr(widget, "children", ()):
        close_widgets(child)
    for part in (widget, widget.layout, *([widget.style] if widget.has_trait("style") else [])):
        part.close()


def in_notebook() -> bool:
    """Whether this is a notebook's kernel."""
    if "ipykernel" not in sys.modules:
        return False
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def has_widgets() -> bool:
    """Whether ipywidgets is installed."""
    try:
        return importlib.util.find_spec("ipywidgets") is not None
    except ValueError:  # somebody has put something else in its place
        return False
