"""The outbox: whoever answers never waits for a client, and what a client gets is whole and in order."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from tokenbudget_lab import outbox
from tokenbudget_lab.commands import ListBudgets
from tokenbudget_lab.outbox import Numbered, Outbox
from tokenbudget_lab.wire import unpack

WITHIN_S = 10.0


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    """A keeper's end of a connection, with the small buffer that Linux gives where nobody asked for more, and a client's."""
    keeper, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    client.settimeout(None)
    ours, theirs = Connection(keeper.detach()), Connection(client.detach())
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def box(ends: tuple[Connection, Connection]) -> Iterator[Outbox]:
    box = Outbox(ends[0], None)
    yield box
    box.close()


@pytest.fixture
def client(ends: tuple[Connection, Connection]) -> Connection:
    return ends[1]


def is_over_soon(work: threading.Thread) -> bool:
    work.start()
    work.join(WITHIN_S)
    return not work.is_alive()


def read_all(client: Connection) -> None:
    while client.poll(WITHIN_S):
        client.recv_bytes()


def test_a_client_that_does_not_read_holds_nobody_up(box: Outbox) -> None:
    """Less than a megabyte, which the socket does not take at once."""
    sending = threading.Thread(target=box.send, args=([bytes(900_000)],), daemon=True)
    assert is_over_soon(sending)


def test_a_slow_client_gets_every_message_whole_and_in_order(box: Outbox, client: Connection) -> None:
    """Small and large ones, sent faster than they are read."""
    sizes = [n * 7919 % 300_000 for n in range(60)]

    def send() -> None:
        for n, size in enumerate(sizes):
            box.send([bytes([n]) * size])

    assert is_over_soon(threading.Thread(target=send, daemon=True))
    for n, size in enumerate(sizes):
        assert client.poll(WITHIN_S)
        assert client.recv_bytes() == bytes([n]) * size


def test_a_client_that_leaves_too_much_unread_is_hung_up_on(
    box: Outbox, client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees the end, so that it can connect again; mute for ever, it would never know."""
    monkeypatch.setattr(outbox, "MAX_BACKLOG", 100_000)
    for _ in range(3):
        box.send([bytes(100_000)])
    assert box.closed
    with pytest.raises((EOFError, OSError)):
        read_all(client)


def test_without_a_thread_to_send_the_rest_the_client_is_hung_up_on(
    box: Outbox, client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    box.send([bytes(900_000)])
    assert box.closed
    with pytest.raises((EOFError, OSError)):
        client.recv_bytes()


def test_answers_come_in_as_many_messages_as_the_client_accepts(
    box: Outbox, client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too long even alone is an error with its length, and no message that is refused again and again.

    answer    1   40 bytes
    answer    2   2,000 bytes
    answer    3   40 bytes
    """
    monkeypatch.setattr(outbox, "MAX_MESSAGE", 1000)
    tickets = [Numbered(n, ListBudgets("id"), box) for n in (1, 2, 3)]
    for ticket, size in zip(tickets, (40, 2000, 40), strict=True):
        ticket.answer = ("x" * size,)
    box.deliver(list(tickets))
    messages = []
    while client.poll(0.2):
        messages.append(client.recv_bytes())
    assert max(map(len, messages)) <= 1000
    answers = {number: (ok, what) for message in messages for number, ok, what in unpack(message)}
    assert [answers[n][0] for n in (1, 2, 3)] == [True, False, True]
    assert "2,0" in str(answers[2][1])


def test_who_hung_up_is_gone(box: Outbox, client: Connection) -> None:
    assert not box.gone
    client.close()
    assert box.gone


def test_sending_to_who_hung_up_is_no_error(box: Outbox, client: Connection) -> None:
    client.close()
    box.send([b"x"])
    until = time.monotonic() + WITHIN_S
    while not box.closed and time.monotonic() < until:
        time.sleep(0.01)
    assert box.closed
