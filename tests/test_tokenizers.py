"""Texts of every kind: the same count as tiktoken's, or one that says how far it may be off; and within a second."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.languages import LANGUAGES
from tokenbudget_lab import encodings, tokenizers
from tokenbudget_lab.counters.openai import UNSURE_OF_CUTS, OpenAITokenCounter
from tokenbudget_lab.errors import CountFailed
from tokenbudget_lab.tokenizers import Tally, repaired, tallies, tally

MILLION = 1_000_000
CHANCE = random.Random(7)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Each a million characters long, or nearly so.
MONSTERS: dict[str, Callable[[], str]] = {
    "one letter": lambda: "a" * MILLION,
    "carets": lambda: "^" * MILLION,
    "spaces": lambda: " " * MILLION,
    "tabs": lambda: "\t" * MILLION,
    "newlines": lambda: "\n" * MILLION,
    "all blanks": lambda: " \n\t" * (MILLION // 3),
    "spaces, then a word": lambda: " " * (MILLION - 1) + "x",
    "random letters": lambda: "".join(CHANCE.choices(LETTERS + LETTERS.upper(), k=MILLION)),
    "random small letters": lambda: "".join(CHANCE.choices(LETTERS, k=MILLION)),
    "Chinese": lambda: "".join(chr(CHANCE.randrange(0x4E00, 0x9FFF)) for _ in range(MILLION)),
    "emoji": lambda: "😀👨‍👩‍👧" * (MILLION // 6),
    "marks": lambda: ("Z" + "\u0301\u0323\u0334" * 5) * (MILLION // 16),
    "NULs": lambda: "\0" * MILLION,
    "lone surrogates": lambda: "\ud800" * MILLION,
    "surrogate pairs": lambda: "\ud83d\ude00" * (MILLION // 2),
    "special tokens": lambda: "<|endoftext|>" * (MILLION // 13),
    "digits": lambda: "1" * MILLION,
}


def by_tiktoken(text: str, name: str = "o200k_base") -> int:
    return len(encodings.encoding(name).encode(text, disallowed_special=()))


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Tables are loaded once, and no text is to blame for that."""
    for name in ("o200k_base", "cl100k_base", "o200k_harmony"):
        tallies(["warm", "up"], name)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4"])
@pytest.mark.parametrize("make", MONSTERS.values(), ids=MONSTERS)
def test_a_million_of_anything_is_counted_exactly_within_a_second(make: Callable[[], str], model: str) -> None:
    """CPU time, as the machine has others to serve; against tiktoken's count, piece by piece where it must be."""
    text = make()
    start = time.process_time()
    count = OpenAITokenCounter(model, backend="toktok").count_sync(text)
    took = time.process_time() - start
    reference = OpenAITokenCounter(model, backend="tiktoken").count_sync(text)
    assert count.exact
    assert reference.lower <= count.tokens <= reference.upper
    assert took < 1


@pytest.mark.parametrize("make", MONSTERS.values(), ids=MONSTERS)
def test_without_toktok_the_count_says_that_it_is_an_estimate_and_how_far_it_may_be_off(make: Callable[[], str]) -> None:
    text = make()
    truth = tallies([text], "o200k_base", "toktok")[0].tokens
    start = time.process_time()
    count = OpenAITokenCounter("gpt-4o", backend="tiktoken").count_sync(text)
    took = time.process_time() - start
    assert not count.exact
    assert count.margin == pytest.approx(UNSURE_OF_CUTS)
    assert count.lower <= truth <= count.upper
    assert took < 1


def test_what_tiktokens_expressions_give_up_on_is_cut_where_it_was_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million spaces make tiktoken give up, when they are handed to it at once."""
    monkeypatch.setattr(tokenizers, "PIECE", 2 * MILLION)
    with pytest.raises(ValueError, match=r"(?i)regex"):
        by_tiktoken(" " * MILLION)
    found = tally(" " * MILLION, "o200k_base", "tiktoken")
    assert found.forced > 0
    assert found.tokens == pytest.approx(7_813, abs=16)


WORDS = st.sampled_from(
    [*LANGUAGES.values(), "It's", "XMLHttp", " ", "  ", "\n", "\r\n", ".\n", "/", "12345", "'s", "<|endoftext|>", "。", "\t"]
)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(WORDS, min_size=1, max_size=30).map("".join), st.sampled_from(["o200k_base", "cl100k_base"]), st.integers(20, 200)
)
def test_a_text_that_is_cut_where_it_may_be_cut_has_the_same_count(text: str, name: str, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "PIECE", piece)
        pieces = list(tokenizers._pieces(text))
        found = tally(text, name, "tiktoken")
    assert "".join(part for part, _ in pieces) == text
    assert found.forced or found.tokens == by_tiktoken(text, name)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.text(st.characters(), max_size=60), max_size=20),
    st.sampled_from(["o200k_base", "cl100k_base", "o200k_harmony"]),
)
def test_toktok_counts_any_text_as_tiktoken_does(texts: list[str], name: str) -> None:
    assert tallies(texts, name, "toktok") == [Tally(by_tiktoken(text, name)) for text in texts]


@pytest.mark.parametrize("backend", ["tiktoken", "toktok"])
def test_counting_leaves_the_callers_texts_as_small_as_they_were(backend: tokenizers.Backend) -> None:
    """Python keeps the UTF-8 of a text beside it once somebody asked; of a data set that would be as much memory again."""
    texts = [f"naïve 日本 {'façade ' * n}" for n in range(1, 5)]
    before = [sys.getsizeof(text) for text in texts]

    tallies(texts, "o200k_base", backend)

    assert [sys.getsizeof(text) for text in texts] == before


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base"])
def test_every_character_there_is_is_counted_as_tiktoken_counts_it(name: str) -> None:
    """Between others that show whether it was taken for a letter; also those that toktok knows and tiktoken does not."""
    step = 1 if name == "o200k_base" else 3
    characters = [chr(code) for code in range(0, 0x110000, step) if not 0xE000 <= code < 0xF900 and code < 0x34000]
    texts = [f"{character}'s{character}\n \n" for character in characters]
    assert [found.tokens for found in tallies(texts, name, "toktok")] == [by_tiktoken(text, name) for text in texts]


@settings(deadline=None)  # the machine may be busy
@given(st.text(st.sampled_from("a\ud800\udc00\udbff\udfff😀"), max_size=12))
def test_surrogates_are_repaired_as_tiktoken_repairs_them(text: str) -> None:
    assert repaired(text) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_a_toktok_that_counts_differently_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("toktok.batch_count", lambda texts, name: [1] * len(texts))
    tokenizers._fast.cache_clear()
    try:
        assert tallies(["one two three"], "o200k_base") == [Tally(3)]
        assert "counts o200k_base differently" in caplog.text
        with pytest.raises(CountFailed, match="differently"):
            tally("one two three", "o200k_base", "toktok")
    finally:
        tokenizers._fast.cache_clear()
