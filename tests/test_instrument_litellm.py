"""LiteLLM under a budget: what stands in `litellm_calls.py`, run in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
def test_litellm_calls_pass_the_budget() -> None:
    """LiteLLM keeps clients open that nobody can close, which would fail whatever test runs beside them."""
    calls = Path(__file__).with_name("litellm_calls.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-showlocals", str(calls)]
    command += [
        part for kind in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning") for part in ("-W", f"ignore::{kind}")
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=calls.parents[1])
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 50
