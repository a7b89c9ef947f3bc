"""Who spends: stands on every event, unless `TOKENBUDGET_ORIGIN=off`."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from .events import to_detail


@lru_cache(maxsize=1)
def origin() -> str | None:
    """This process as JSON: user, host, notebook and its kernel's number or script, git commit; `None` when switched off.

    Examples:
        >>> origin() is None or origin().startswith("{")
        True
    """
    if os.environ.get("TOKENBUDGET_ORIGIN", "").lower() in ("off", "0", "no", "false"):
        return None
    told = {"user": _user(), "host": socket.gethostname(), "notebook": _notebook(), "script": _script(), "commit": _commit()}
    told["kernel"] = _kernel()
    # Names of bytes that are not UTF-8 have half surrogate pairs, which no JSON function of SQL reads.
    return to_detail(**{name: value and value.encode(errors="replace").decode() for name, value in told.items()})


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a name for its user
        return None


def _notebook() -> str | None:
    name = os.environ.get("JPY_SESSION_NAME")
    return Path(name).name if name else None


def _kernel() -> str | None:
    """The number of a notebook's kernel, since notebooks may have one name, or none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return None if getattr(shell, "kernel", None) is None else str(os.getpid())


def _script() -> str | None:
    if "ipykernel" in sys.modules:
        return None
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else ""
    return name or None


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            timeout=2,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
