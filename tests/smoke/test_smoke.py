"""The least that an installed package must do. It runs against the source, the built wheel and the oldest dependencies."""

import subprocess
import sysconfig
from decimal import Decimal
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import tokenbudget_lab as tbl


def test_the_package_knows_its_version() -> None:
    assert tbl.__version__ == version("tokenbudget-lab")


def test_the_package_says_that_it_is_typed() -> None:
    assert files(tbl).joinpath("py.typed").is_file()


def test_the_command_is_installed_and_tells_its_version() -> None:
    command = Path(sysconfig.get_path("scripts"), "tokenbudget")
    answer = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert tbl.__version__ in answer.stdout


def test_a_call_is_reserved_and_committed_in_memory() -> None:
    """What was used counts, not what was held.

    limit     $1.00
    reserve   $0.30
    commit    $0.10
    """
    ledger = tbl.connect(":memory:")
    budget = ledger.budget("lab", usd=1)
    with budget.reserve(usd="0.30") as call:
        call.commit(usd="0.10")
    assert budget.balance.committed_usd == Decimal("0.1")
    assert budget.balance.reserved_usd == 0
    ledger.close()


def test_a_file_ledger_keeps_what_was_spent(tmp_path: Path) -> None:
    """What one connection committed, the next one finds.

    commit    $0.10
    close
    connect   again
    """
    with tbl.connect(tmp_path / "spend.duckdb") as ledger, ledger.budget("lab", usd=1).reserve(usd="0.30") as call:
        call.commit(usd="0.10")
    with tbl.connect(tmp_path / "spend.duckdb") as ledger:
        assert ledger.budget("lab").balance.committed_usd == Decimal("0.1")


def test_the_demo_finds_its_calls() -> None:
    """The data that the demo needs is in what was installed."""
    from tokenbudget_lab.demo import demo_study

    assert len(demo_study()) == 60
