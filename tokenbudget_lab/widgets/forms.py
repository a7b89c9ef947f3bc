"""A dashboard's widgets: its parts as HTML, a choice of what spend is told by, and the form that raises a limit."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets

from ..balance import LimitBalance
from ..errors import InvalidValue, Refused, TokenBudgetError
from ..ledger import Ledger
from ..meters import LINE, text_html
from ..overview import Label
from ..panels import Parts
from ..report_cells import clipped
from .raising import Raise, carry_out, named, planned, same

MOST_CHOICES = 100
_BEHIND_S = 2.0  # a press overtakes what was typed before it, while the kernel is busy
_WIDE = "60em"
_RULED: dict[str, Any] = {"border_top": f"1px solid {LINE}", "margin": "6px 0 0", "padding": "6px 0 2px", "overflow": "visible"}


def fullest(limits: tuple[LimitBalance, ...]) -> tuple[LimitBalance, ...]:
    """As many limits as can be chosen from, in their order; of more than that, those of which most is used."""
    if len(limits) <= MOST_CHOICES:
        return limits
    ranked = sorted(range(len(limits)), key=lambda n: (-limits[n].used_fraction, n))
    return tuple(limits[n] for n in sorted(ranked[:MOST_CHOICES]))


class Form:
    """A limit is chosen, a new one typed, and what would be done is said; only then can it be confirmed.

    Args:
        ledger: whose limits.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._limits = ledger, tuple[LimitBalance, ...]()
        self._plan: Raise | None = None
        self._deciding, self._offering, self._refused_at = threading.Lock(), False, -math.inf
        narrow, field = {"description_width": "initial"}, ipywidgets.Layout(flex="2 1 17em", width="auto", min_width="0")
        self.which = ipywidgets.Dropdown(description="Raise limit of", style=narrow, layout=field)
        self.typed = ipywidgets.Text(
            description="New limit", style=narrow, layout=ipywidgets.Layout(flex="1 1 9em", width="auto")
        )
        self.ask = ipywidgets.Button(description="Raise …", layout=ipywidgets.Layout(width="auto"))
        self.said = ipywidgets.HTML()
        self.yes = ipywidgets.Button(description="Confirm", icon="check", layout=ipywidgets.Layout(width="auto"))
        self.no = ipywidgets.Button(description="Cancel", layout=ipywidgets.Layout(width="auto"))
        self._confirming = ipywidgets.HBox([self.yes, self.no], layout=ipywidgets.Layout(display="none"))
        asking = ipywidgets.HBox(
            [self.which, self.typed, self.ask], layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        )
        self.root = ipywidgets.VBox([asking, self.said, self._confirming], layout=ipywidgets.Layout(**_RULED))
        self._say("")  # whoever listens for news of it has to find it there
        for field in (self.which, self.typed):
            field.observe(self._changed, "value")
        self.ask.on_click(lambda _: self._prepare())
        self.typed.on_msg(lambda _, said, __: self._prepare() if said.get("event") == "submit" else None)  # by Enter
        self.yes.on_click(lambda _: self._confirm())
        self.no.on_click(lambda _: self._end("Nothing was changed."))

    def show(self, limits: tuple[LimitBalance, ...]) -> None:
        """Offer these limits."""
        before, self._limits = self._limits, fullest(limits)
        more = len(limits) - len(self._limits)
        self.which.description = f"Raise limit of (the {MOST_CHOICES} fullest)" if more else "Raise limit of"
        if len(before) == len(self._limits) and all(map(same, before, self._limits)):
            return
        chosen = None if self.which.index is None else before[self.which.index]
        kept = [n for n, limit in enumerate(self._limits) if chosen is not None and same(limit, chosen)]
        self._offering = bool(kept)  # then the same stands in the form as before
        try:
            self.which.options = [(clipped(named(limit)), n) for n, limit in enumerate(self._limits)]
            if self._limits:
                self.which.index = next(iter(kept), 0)
        finally:
            self._offering = False

    def _prepare(self) -> None:
        """The first step: say what would be done."""
        if self.which.value is None:
            return
        try:
            plan = planned(self._ledger, self._limits[self.which.value], self.typed.value)
        except TokenBudgetError as error:
            self._end(f"✕ {error}")
            self._refused_at = time.monotonic()
            return
        with self._deciding:
            self._plan, self._refused_at = plan, -math.inf
        self._say(f"{plan} This is written to the ledger.")
        self.yes.description = f"Confirm: raise to {plan.to}"
        self._confirming.layout.display = "flex"

    def _changed(self, change: Any) -> None:
        """Something else stands in the form than what would be confirmed, or than what was refused just now."""
        if self._offering:
            return
        if self.busy:
            self._end("Something else stands in the form now: raise it anew.")
        elif change.owner is self.typed and time.monotonic() - self._refused_at < _BEHIND_S:
            self._prepare()

    @property
    def busy(self) -> bool:
        """Whether something waits to be confirmed."""
        return self._plan is not None

    def _confirm(self) -> None:
        """The second step; a press that comes behind another one finds nothing to do."""
        with self._deciding:
            plan, self._plan = self._plan, None
        if plan is None:
            return
        try:
            said = carry_out(self._ledger, plan)
        except (Refused, InvalidValue) as error:
            said = f"✕ Nothing was changed: {error}"
        except TokenBudgetError as error:
            said = f"✕ It is not sure whether the limit was raised: {error}"
        self.typed.value = ""
        self._end(said)

    def _end(self, said: str) -> None:
        with self._deciding:
            self._plan = None
        self._confirming.layout.display = "none"
        self._say(said)

    def _say(self, text: str) -> None:
        self.said.value = f'<div role="status" style="line-height:1.5;white-space:normal">{text_html(clipped(text, 400))}</div>'


class Board:
    """All of a dashboard's widgets.

    Args:
        ledger: which ledger it is of.
        choose: called with what spend is to be told by.
    """

    def __init__(self, ledger: Ledger, choose: Callable[[Label], None]) -> None:
        self._choose, self._labels, self._offering = choose, tuple[Label, ...](), False
        self._html = [ipywidgets.HTML(layout=ipywidgets.Layout(margin="0")) for _ in Parts._fields]
        self._form = Form(ledger)
        self._by = ipywidgets.Dropdown(
            description="Spend by",
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="auto", max_width="20em"),
        )
        self._by.observe(self._chosen, "value")
        budgets, over_time, by, calls = self._html
        half = {"flex": "1 1 20em", "min_width": "0", "overflow": "visible"}
        left = ipywidgets.VBox([over_time], layout=ipywidgets.Layout(**half))
        right = ipywidgets.VBox([self._by, by], layout=ipywidgets.Layout(**half, margin="0"))
        spend = ipywidgets.HBox([left, right], layout=ipywidgets.Layout(flex_flow="row wrap", grid_gap="0 28px", **_RULED))
        self.root = ipywidgets.VBox(
            [budgets, self._form.root, spend, calls],
            layout=ipywidgets.Layout(border=f"1px solid {LINE}", padding="8px 14px 12px", max_width=_WIDE, overflow="visible"),
        )
        self.root.add_class("tokenbudget-dashboard")

    @property
    def busy(self) -> bool:
        """Whether something waits to be confirmed."""
        return self._form.busy

    def show(self, parts: tuple[Any, ...]) -> None:
        """Show these parts; the last of them are the choices."""
        *texts, choices = parts
        for widget, text in zip(self._html, texts, strict=True):
            widget.value = text
        self._form.show(choices.limits)
        if choices.labels != self._labels:
            self._labels, self._offering = choices.labels, True
            try:
                self._by.options = [(_label_text(label, choices.labels), n) for n, label in enumerate(choices.labels)]
                self._by.index = choices.labels.index(choices.by) if choices.by in choices.labels else None
            finally:
                self._offering = False

    def _chosen(self, change: Any) -> None:
        if change["new"] is not None and not self._offering:  # it is she who chooses
            self._choose(self._labels[change["new"]])


def _label_text(label: Label, others: tuple[Label, ...]) -> str:
    """A label's name, and what it is where two have the same."""
    double = sum(other.name == label.name for other in others) > 1
    return clipped(label.name, 60) + (" (tag)" if double and label.is_tag else "")
