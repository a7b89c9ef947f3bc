"""A bar is no reason to wait: not for another bar, and not for one that nobody will go on with."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tqdm.std import tqdm

from tokenbudget_lab import progress
from tokenbudget_lab.progress import bar_for


def draw() -> None:
    with bar_for("counting", 2, progress=True) as bar:
        bar.update(2)


def draws_in_time() -> bool:
    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_a_bar_does_not_wait_for_the_lock_of_tqdm(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while it is taken leaves it taken for ever, and so does a killed child that had it."""
    lock: Any = tqdm  # its methods have no types
    with lock.get_lock():
        assert draws_in_time()
    assert "counting" in capsys.readouterr().err


def test_a_bar_does_not_wait_for_one_that_was_left_in_the_midst_of_being_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    lock: Any = progress._drawn_by("std")._lock
    taker = threading.Thread(target=lock.acquire)
    taker.start()
    taker.join()  # and nobody will give it back
    assert draws_in_time()
    assert "counting" in capsys.readouterr().err
    assert draws_in_time()


def test_who_lost_the_turn_gives_back_nothing_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.01)
    turn, taken, given_back = progress._Turn(), threading.Event(), threading.Event()

    def slow() -> None:
        turn.acquire()
        taken.set()
        given_back.wait(10)
        turn.release()

    thread = threading.Thread(target=slow)
    thread.start()
    taken.wait(10)
    with turn:
        given_back.set()
        thread.join()
    assert turn.acquire()
