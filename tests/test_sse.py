"""Events out of a stream's bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenbudget_lab import sse
from tokenbudget_lab.protocols.openai import ChatStream
from tokenbudget_lab.sse import Frames

STREAM = b'event: start\ndata: {"a": 1}\n\n: a comment\n\ndata: one\ndata: two\n\nevent: stop\r\ndata:last\r\n\r\n'


def frames_of(*chunks: bytes) -> list[tuple[bytes, bytes]]:
    frames = Frames()
    return [(frame.event, frame.data) for chunk in chunks for frame in frames.feed(chunk)]


def test_a_frame_has_its_name_and_its_lines_of_data() -> None:
    assert frames_of(STREAM) == [(b"start", b'{"a": 1}'), (b"", b""), (b"", b"one\ntwo"), (b"stop", b"last")]


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=20), ends=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_frames_are_the_same_however_the_bytes_are_cut(cuts: list[int], ends: bytes) -> None:
    r"""Cut anywhere, also between a `\\r` and its `\\n`; a last lone `\\r` waits for what follows."""
    stream = STREAM.replace(b"\r\n", b"\n").replace(b"\n", ends) + b"x"
    at = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    pieces = [stream[start:end] for start, end in itertools.pairwise(at)]
    assert frames_of(*pieces) == frames_of(STREAM)


def test_one_byte_at_a_time_gives_the_same_frames() -> None:
    assert frames_of(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == frames_of(STREAM)


def test_what_did_not_come_to_its_end_is_no_frame() -> None:
    frames = Frames()
    assert [*frames.feed(STREAM[:-1])][-1].data == b"one\ntwo"
    assert frames.rest.startswith(b"event: stop")


def test_all_bytes_of_the_frames_are_those_that_came() -> None:
    frames = Frames()
    assert b"".join(frame.raw for frame in frames.feed(STREAM)) + frames.rest == STREAM


def test_an_endless_event_ends_the_reading_and_not_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MOST_BYTES", 1_000)
    frames = Frames()
    for _ in range(100):
        assert not [*frames.feed(b"x" * 100)]
    assert frames.garbled
    assert frames.rest == b""
    assert not [*frames.feed(b"data: 1\n\n")]


def test_an_event_that_never_ends_is_shown_although_it_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who is to be spared the last chunk still sees every byte of what cannot be read."""
    monkeypatch.setattr(sse, "MOST_BYTES", 64)
    stream = ChatStream(hidden=True)
    pieces = [b'data: {"choices": []}\n\n', b"data: " + b"x" * 50, b"x" * 50, b"x\n\n", b"data: [DONE]\n\n"]
    seen = b"".join(map(stream.feed, pieces)) + stream.rest()
    assert seen == b"".join(pieces)
    assert stream.received(ended=True).unseen
