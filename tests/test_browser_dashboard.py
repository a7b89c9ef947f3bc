"""A dashboard in a real JupyterLab, in Chromium: it shows what is so, and raises a limit.

As `test_browser` does, it skips where there is no browser, fails there in continuous integration, and takes pictures where
`TOKENBUDGET_SCREENSHOTS` names a folder.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.jupyterlab import GRACE_S, Lab, Tab, wait_until
from tests.test_browser import chrome, lab, opened, pytestmark, shot, violations  # noqa: F401 - fixtures are asked for by name
