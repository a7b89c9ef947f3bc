"""Alerts as a line under the cell whose call crossed a threshold, whichever thread made it, and whenever the answer came."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

from .ledger import Alert


class CellNotices:
    """The cells of this kernel."""

    def here(self) -> Any:
        """The cell that runs, or has started the thread or task that runs."""
        from IPython.core.getipython import get_ipython

        publisher = getattr(get_ipython(), "display_pub", None)
        return getattr(publisher, "parent_header", None)

    def show(self, alert: Alert, place: Any) -> None:
        """Put a line under it."""
        from IPython.core.getipython import get_ipython

        with suppress(Exception):  # a front end that is gone is no reason to lose an answer
            publisher: Any = get_ipython().display_pub  # type: ignore[union-attr] # a kernel's has a session
            line = importlib.import_module(".meters", __package__).alert_html(str(alert))  # by its name: it is above this file
            content = {"data": {"text/html": line, "text/plain": str(alert)}, "metadata": {}, "transient": {}}
            message = publisher.session.msg("display_data", content, parent=place)
            publisher.session.send(publisher.pub_socket, message, ident=publisher.topic)
