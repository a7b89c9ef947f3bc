"""Origin: who spent stands on every event, in JSON that can always be read again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab.origin import origin


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """Each test looks at this process again."""
    origin.cache_clear()
    yield
    origin.cache_clear()


def test_names_that_are_not_utf8_can_still_be_read_in_sql(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    r"""A file's name may be any bytes, and what stands in the log stands there for ever.

    script    caf\xe9.py, run by caf\xe9
    """
    monkeypatch.setattr(sys, "argv", ["/home/me/caf\udce9.py"])
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setenv("LOGNAME", "caf\udce9")
    with tbl.connect(tmp_path / "spend.duckdb", embedded=True) as ledger:
        ledger.budget("lab", usd=1)
        told = ledger.sql("select distinct origin->>'script' as script, origin->>'user' as user from events")
        assert told.rows() == [("caf?.py", "caf?")]
        ledger.verify()


def test_it_is_left_out_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENBUDGET_ORIGIN", "off")
    assert origin() is None


def test_it_names_who_runs_what_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py"])
    monkeypatch.setenv("LOGNAME", "étude")
    told = json.loads(origin() or "{}")
    assert (told["user"], set(told) <= {"user", "host", "script", "commit"}) == ("étude", True)
