"""What the README says runs, as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def blocks() -> list[str]:
    return (
        re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        if README.exists()
        else []
    )


@pytest.mark.parametrize("block", blocks())
def test_a_code_block_runs_as_printed_and_again(block: str, tmp_path: Path) -> None:
    """Twice, in fresh processes without a key: the second run finds what the first one spent, if it spent."""
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "TOKENBUDGET_LEDGER": str(tmp_path / "ledger.duckdb")}
    env = {**{name: value for name, value in os.environ.items() if "API_KEY" not in name}, **home}
    command = [sys.executable, "-W", "error", "-c", block]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path, check=False) for _ in "12"
    )
    news = f"tokenbudget: new default ledger {tmp_path / 'ledger.duckdb'}\n"
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, news, 0, "")
    assert "$5.00 left" in first.stdout
    assert (first.stdout != second.stdout) == ("commit" in block or ".create(" in block)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    place = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", place.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (place.parent / target).exists(), target
