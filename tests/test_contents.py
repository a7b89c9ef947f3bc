"""Contents: a client that knows the key and is none of ours cannot harm the others, now or when the ledger is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import link
from tokenbudget_lab.commands import (
    Adjust,
    CloseBudget,
    Command,
    Commit,
    CopyFile,
    Extend,
    GetBudget,
    ListBudgets,
    Record,
    Reserve,
    Rollback,
    Sent,
    SetBudget,
    SetLimit,
)
from tokenbudget_lab.contents import is_object, must_be_sound
from tokenbudget_lab.ids import new_id
from tokenbudget_lab.place import Place, place_of
from tokenbudget_lab.wire import pack, to_wire, unpack

HOUR_US = 3_600_000_000
GOOD: list[Command] = [
    SetBudget("", "lab/étude", (("", 1, None, None), ("3600s", None, 5, None), ("day", 1, 1, 1)), "Europe/Berlin", (0.5, 1.0)),
    SetBudget("", "x", (), "UTC"),
    SetLimit("", "lab", "day", 1, None, None, "why"),
    Reserve("", "lab", 10**27 - 1, 2**53, 1, 48 * HOUR_US, "count", "row-1", 0, "p", "m", (("a", ""), ("b", "é" * 128)), "{}"),
    Reserve("", "lab", None, None, 1, 0, "release"),
    Extend("", "no id", HOUR_US),
    Sent("", "no id", "msgbatch_1"),
    Commit("", "r", 1, 1, 1, "unknown", 1, 1, 1, 1, 1, "msg_1", "row-1", '{"prices":"genai-prices é"}', "lab"),
    Record("", "lab", 1, None, 1, "estimated", 0, "p", "m", response_id="r", key="k", tags=(("a", "b"),)),
    Adjust("", "r", 0, None, None, "why", "lab"),
]
BY_KIND = {type(command): command for command in reversed(GOOD)}
BAD: list[tuple[type, dict[str, Any]]] = [
    (SetBudget, {"budget": "evil \x1b"}),
    (SetBudget, {"budget": "../x"}),
    (SetBudget, {"budget": "e\u0301tude"}),
    (SetBudget, {"tz": "No/Zone"}),
    (SetBudget, {"tz": "../../etc/passwd"}),
    (SetBudget, {"caps": (("", None, None, None),)}),
    (SetBudget, {"caps": (("day", 1, None, None), ("", 1, None, None))}),
    (SetBudget, {"caps": (("day", 1, None, None), ("day", None, 1, None))}),
    (SetBudget, {"caps": (("", 10**27, None, None),)}),
    (SetBudget, {"alerts": (0.5, 11.0)}),
    (SetBudget, {"alerts": (0.8, 0.5)}),
    *((SetBudget, {"caps": ((code, 1, None, None),)}) for code in ("fortnight", "0s", "-1s", "1.5s", "01s", "9" * 30 + "s")),
    (SetLimit, {"window": "fortnight"}),
    (SetLimit, {"usd": 10**27}),
    (SetLimit, {"reason": "\0"}),
    (Reserve, {"usd": 10**40}),
    (Reserve, {"tokens": 2**63}),
    (Reserve, {"requests": 2**63}),
    (Reserve, {"usd": None, "tokens": 0, "requests": 0}),
    (Reserve, {"timeout": 10**20}),
    (Reserve, {"wait": 10**20}),
    (Reserve, {"if_lost": "keep"}),
    (Reserve, {"budget": "x" * 10_000}),
    (Reserve, {"key": "a\0b"}),
    (Reserve, {"model": "m" * 2000}),
    (Reserve, {"tags": (("b", ""), ("a", ""))}),
    (Reserve, {"tags": (("a", ""), ("a", ""))}),
    (Reserve, {"tags": (("a", "x" * 257),)}),
    (Reserve, {"tags": (("a", "\0"),)}),
    (Reserve, {"tags": tuple((f"{n:02}", "") for n in range(33))}),
    *((Reserve, {"detail": text}) for text in ("{", "[]", "NaN", '{"a":NaN}', '{"a":"\\ud800"}', "[" * 4000, '{"late":true}')),
    (Extend, {"timeout": 10**20}),
    (Sent, {"name": "x" * 10_000}),
    (Sent, {"name": "a\0b"}),
    (Commit, {"basis": "guessed"}),
    (Commit, {"usd": 10**40}),
    (Commit, {"input_tokens": 2**63}),
    (Commit, {"part": "a\0b"}),
    (Commit, {"detail": '{"was":[1,2,3,4]}'}),
    (Commit, {"budget": "a/" * 5000}),
    (Record, {"usd": 10**40}),
    (Record, {"ts": 10**18}),
    (Record, {"detail": '{"orphan":true}'}),
    (Adjust, {"usd": 10**40}),
    (Adjust, {"target": "x" * 10_000}),
]  # fmt: skip


def without_id(command: Command) -> Command:
    """With an id of our own, as a client makes it."""
    return command._replace(id=new_id())


@pytest.mark.parametrize("command", GOOD, ids=lambda command: type(command).__name__)
def test_what_our_clients_send_is_sound(command: Command) -> None:
    must_be_sound(without_id(command))


@pytest.mark.parametrize(
    ("kind", "wrong"), BAD, ids=lambda value: value.__name__ if isinstance(value, type) else str(value)[:40]
)
def test_what_none_of_our_clients_would_send_is_refused(kind: type, wrong: dict[str, Any]) -> None:
    """The same bounds as those of the public verbs, or of the file."""
    with pytest.raises(tbl.InvalidValue):
        must_be_sound(without_id(BY_KIND[kind]._replace(**wrong)))


@pytest.mark.parametrize("id", ["", "row-7", "../../x", "019A9A2B-0000-7000-8000-000000000000", "0" * 36])
def test_an_id_is_a_uuid(id: str) -> None:
    """It is a column of the file, and names a folder when a copy is made."""
    for command in (Rollback(id, new_id()), CopyFile(id), GetBudget(id, "lab"), CloseBudget(id, "lab")):
        with pytest.raises(tbl.InvalidValue, match="id"):
            must_be_sound(command)


def test_origin_is_a_json_object_or_left_out() -> None:
    """It is read in SQL for ever after."""
    told = ['{"user":"me"}', '{"a":"\\ud83d\\ude00"}', '{"a":"\\ud800"}', '{"a":"\\u0000"}', "{", "[]", "{}{}"]
    assert [is_object(text) for text in told] == [True, True, False, False, False, False, False]


# --- through a keeper -------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    where = place_of(tmp_path / "spend.duckdb")
    yield where
    link.stop(where)


@pytest.fixture
def send(place: Place) -> Iterator[Callable[[Command], Any]]:
    """A client that is none of ours, and what it is answered."""
    with tbl.connect(place.file) as ledger:
        ledger.budget("lab", tokens=1000)
    connection: Connection = link.connect(place, "commands")

    def send(command: Command) -> Any:
        connection.send_bytes(pack((to_wire(97, command),)))
        return unpack(connection.recv_bytes())[0]

    yield send
    connection.close()


def test_such_a_client_is_told_and_the_others_go_on(place: Place, send: Callable[[Command], Any]) -> None:
    """Its budget would have broken every listing, and its record the batch that it came with.

    budget    a name with an escape, per fortnight, in no zone  refused
    record    10**28 USD  refused
    adjust    something that is not there: told so, as anybody
    record    1
    """
    budget = SetBudget(new_id(), "evil \x1b", (("fortnight", 1, None, None),), "No/Zone", (0.5,))
    record = Record(new_id(), "lab", 10**40, None, 1, "measured")
    assert [send(command)[1:2] + send(command)[2][:1] for command in (budget, record)] == [(False, "InvalidValue")] * 2
    assert send(Adjust(new_id(), "\x1b[31mx", None, 1, None))[2][0] == "UnknownReservation"
    assert send(ListBudgets(new_id()))[1]
    with tbl.connect(place.file) as ledger:
        ledger.budget("lab").record(tokens=1).result()
        assert [balance.budget for balance in ledger.budgets()] == ["lab"]
        ledger.verify()
