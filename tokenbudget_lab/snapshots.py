"""A snapshot: the fold at one event, kept beside the ledger so that opening reads only what came after it.

It is a cache and never trusted over the events: it has a checksum, it counts only if the file has its event with its hash,
and `verify` replays everything from the first event and compares. What ended is not in it: that is looked up in the store.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from .accounts import Node
from .heads import replace_file
from .limits import Cap
from .place import read_file
from .state import State

VERSION = 3


def dump(state: State) -> bytes:
    """A fold as bytes: a line with their checksum, then JSON."""
    state.trim_early()
    told = {
        "version": VERSION,
        "seq": state.seq,
        "ts": state.ts,
        "head": state.head.hex(),
        "ledger": state.ledger_id,
        "recovered": state.recovered,
        "clock_accepted": state.clock_accepted,
        "forgotten_until": max(state.forgotten_until, state.ts),  # whatever ended until then is looked up
        "early": sorted(state.early),
        "budgets": [_budget(node) for node in state.nodes.values()],
        "open": list(state.open.values()),
    }
    body = json.dumps(told, separators=(",", ":")).encode()
    return sha256(body).hexdigest().encode() + b"\n" + body


def load(data: bytes) -> State:
    """The fold again.

    Raises:
        ValueError: it is not whole, or of another version.
    """
    checksum, _, body = data.partition(b"\n")
    if sha256(body).hexdigest().encode() != checksum:
        raise ValueError("its checksum is another")
    told = json.loads(body)
    if told["version"] != VERSION:
        raise ValueError(f"it is of version {told['version']}")
    state = State()
    state.seq, state.ts, state.head = told["seq"], told["ts"], bytes.fromhex(told["head"])
    state.ledger_id, state.recovered, state.clock_accepted = told["ledger"], told["recovered"], told["clock_accepted"]
    for budget in told["budgets"]:
        _add(state, **budget)
    for packed in told["open"]:
        state.enter_again(_tuples(packed))
    state.forgotten_until, state.early = told["forgotten_until"], set(told["early"])
    state.forgotten_keys = True  # what had ended is in the file only, whatever it was
    return state


def _budget(node: Node) -> dict[str, Any]:
    accounts = [
        [
            list(account.cap),
            [[start, list(totals.numbers()), sorted(totals.alerted)] for start, totals in account.by_start.items()],
        ]
        for account in node.accounts
    ]
    alerts = list(node.alerts)
    return {
        "name": node.name,
        "tz": node.tz,
        "anchor": node.anchor,
        "closed": node.closed,
        "alerts": alerts,
        "accounts": accounts,
    }


def _add(state: State, name: str, tz: str, anchor: int, closed: bool, alerts: list[float], accounts: list[Any]) -> None:  # noqa: FBT001 - as it stands in the file
    parent = name.rpartition("/")[0]
    node = state.nodes[name] = Node(name, state.nodes[parent] if parent else None, tz, anchor)
    node.set_caps(tuple(Cap(*cap) for cap, _ in accounts))
    node.alerts, node.closed = tuple(alerts), closed
    for (_, windows), account in zip(accounts, node.accounts, strict=True):
        for start, numbers, alerted in windows:
            totals = account.at(start)
            totals.restore(tuple(numbers))
            totals.alerted = {(resource, limit, threshold) for resource, limit, threshold in alerted}
    node.forget()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):  # the parts of a batch by their names
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def write(path: Path, state: State) -> None:
    """Put a snapshot in the place of the last one, in one step.

    Raises:
        OSError: there is room for none; the last one stays.
    """
    replace_file(path, lambda _: dump(state))


def read(path: Path) -> State | None:
    """The snapshot, where there is one that is whole."""
    try:
        return load(read_file(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
