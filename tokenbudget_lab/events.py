"""What a ledger remembers: one `Event` per step, never changed, chained by hashes.

An event's hash is SHA-256(hash of the event before ‖ its canonical bytes); the canonical bytes are the JSON array of all
fields but the hash, in order, without white space, in ASCII. Before the first event stands `GENESIS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Literal, NamedTuple

Kind = Literal[
    "created",
    "budget_set",
    "closed",
    "reserved",
    "extended",
    "sent",
    "committed",
    "part_committed",
    "rolled_back",
    "expired",
    "recorded",
    "adjusted",
    "refused",
    "alerted",
    "recovered",
    "clock_accepted",
]
Tags = tuple[tuple[str, str], ...]

GENESIS = bytes(32)
SCHEMA_VERSION = 1


class Event(NamedTuple):
    """One step of the ledger. Instants are Unix microseconds, money is pico-dollars; absent is `None`."""

    seq: int  # 1, 2, 3 … without gaps
    ts: int  # when the writer decided it; never goes backwards
    kind: str
    command: str  # id of the command that asked for it, or of the writer's own tick
    budget: str
    reservation: str | None = None  # the id of the reserve or record command that it belongs to
    key: str | None = None  # the caller's idempotency key; of a part, its name
    windows: tuple[int, ...] = ()  # starts of the windows it counts in, leaf to root, lifetimes left out
    held_usd: int | None = None  # what a reservation holds
    held_tokens: int | None = None
    usd: int | None = None  # what the limits count
    tokens: int | None = None
    requests: int | None = None  # held by a reservation, or counted
    basis: str | None = None  # measured, estimated, unknown
    input_tokens: int | None = None  # includes cache reads and writes
    output_tokens: int | None = None  # includes reasoning
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    expires: int | None = None
    provider: str | None = None
    model: str | None = None
    response_id: str | None = None
    origin: str | None = None  # JSON: who spent
    tags: Tags = ()
    detail: str | None = None  # JSON: what only this kind of event has
    hash: bytes = b""


FIELDS = Event._fields
_new = tuple.__new__
_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)  # an event holds no event


def _encoding() -> Callable[[Any], str]:
    """`_encoder.encode`, which makes the C encoder anew each time, with one that is made once where there is one."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return _encoder.encode
    chunks = make(None, _encoder.default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False)
    return lambda body: "".join(chunks(body, 0))


_encode = _encoding()


def canonical(body: tuple[Any, ...]) -> bytes:
    """The bytes that are hashed: all fields of an event but its hash.

    Examples:
        >>> canonical(Event(1, 0, "created", "id", "")[:-1])[:22]
        b'[1,0,"created","id",""'
    """
    return _encode(body).encode("ascii")


def chained(previous: bytes, body: tuple[Any, ...]) -> Event:
    """Close an event's body into the chain behind the hash of the event before it."""
    return _new(Event, (*body, sha256(previous + _encode(body).encode("ascii")).digest()))


def continues(event: Event, head: bytes) -> bool:
    """Whether an event is the one that was chained behind this hash."""
    return chained(head, event[:-1]).hash == event.hash


def to_detail(**values: Any) -> str:
    """The `detail` column: JSON with sorted keys, absent values left out."""
    return json.dumps({k: v for k, v in values.items() if v is not None}, sort_keys=True, separators=(",", ":"))


def from_detail(event: Event) -> dict[str, Any]:
    """Read the `detail` column."""
    return json.loads(event.detail) if event.detail else {}
