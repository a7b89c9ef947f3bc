"""Which tests run one after the other in one process: those that share what is slow to start, or want the machine.

The marks of pytest-xdist say this too, but say it in vain where pytest's node ids are no texts any more (since 9.2).
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import pytest

TOGETHER = {
    "browser": ("test_browser*", "test_notebook_pages"),  # a JupyterLab for each file
    "kernels": ("test_*kernels", "test_magics"),  # kernels for each file
    "demo": ("test_demo_study",),  # one demo for all of them, and one per store
    "keeper": ("test_keeper", "test_kills", "test_faults", "test_cli_watch"),  # each of them starts processes
    "races": ("test_races*",),  # they want the machine for themselves
}


def group_of(nodeid: str) -> str:
    """The group of a test, or the test itself.

    Examples:
        >>> group_of("tests/test_gauge_kernels.py::test_it[a]"), group_of("tests/test_ids.py::test_it")
        ('kernels', 'tests/test_ids.py::test_it')
    """
    file = nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
    return next((group for group, names in TOGETHER.items() if any(fnmatch(file, name) for name in names)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups first, largest first; then whatever stands alone fills the gaps."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped] # has no types

    class Grouped(LoadScopeScheduling):  # type: ignore[misc] # has no types
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Grouped(config, log)
