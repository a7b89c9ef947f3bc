"""Estimated tokens: how far they are off, that nothing breaks them, and what measured calls teach them."""

import asyncio
import base64
import json
import math
import struct
import sysconfig
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from timeit import repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.estimation_counts import Counter, o200k, o200k_encoding
from tests.paragraphs import PROSE
from tokenbudget_lab import EstimationTokenCounter
from tokenbudget_lab.counters.estimation import Estimate
from tokenbudget_lab.errors import CountFailed, InvalidType, InvalidValue
from tokenbudget_lab.images import size_of
from tokenbudget_lab.weighing import about, family, pairs

FAMILIES = {"gpt-6-mini": "o200k", "claude-sonnet-4-5": "claude-4.6", "claude-sonnet-5-5": "claude-4.7+"}


@pytest.fixture(scope="module")
def exact() -> Counter:
    return o200k()


def off(estimate: float, truth: int) -> float:
    return abs(estimate / truth - 1)


# --- how far it is off -----------------------------------------------------------------------------------------------------


def test_it_is_near_the_tokenizer_in_languages_it_is_given(exact: Counter) -> None:
    """Seventeen paragraphs of our own, of which no part was fitted; each has few tokens, so that one may be off more."""
    counter = EstimationTokenCounter("gpt-6-mini")
    errors = {language: off(counter.count_sync(text).tokens, exact(text)) for language, text in PROSE.items()}
    assert sum(errors.values()) / len(errors) < 0.10
    assert max(errors.values()) < 0.30


def test_it_is_near_the_tokenizer_on_code(exact: Counter) -> None:
    """Every twentieth module of Python's library."""
    counter = EstimationTokenCounter("gpt-6-mini")
    sources = [path.read_text("utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::20]]
    errors = [off(counter.count_sync(source).tokens, exact(source)) for source in sources if len(source) > 500]
    assert len(errors) > 5
    assert sum(errors) / len(errors) < 0.06


@pytest.mark.parametrize("name", FAMILIES.values())
def test_the_weights_say_how_far_they_are_off_on_texts_they_had_not_seen(name: str) -> None:
    held_out = about()["families"][name]["held_out"]
    assert held_out["other languages"] <= 0.10
    assert held_out["English"] <= 0.06
    assert held_out["code"] <= 0.06


def test_the_weights_say_what_they_were_fitted_on() -> None:
    said = about()["about"]
    assert {"script", "fitted_on", "references", "held_out", "margins"} <= set(said)
    assert "ctok" in said["references"]


def test_nine_in_ten_paragraphs_are_within_their_margin(exact: Counter) -> None:
    counter = EstimationTokenCounter("gpt-6-mini")
    counts = [(counter.count_sync(text), exact(text)) for text in PROSE.values()]
    assert sum(count.lower <= truth <= count.upper for count, truth in counts) >= 0.8 * len(counts)


def test_a_claude_of_the_new_kind_has_more_tokens_than_one_of_the_old() -> None:
    old, new = (EstimationTokenCounter(f"claude-{name}") for name in ("sonnet-4-5", "sonnet-5-5"))
    assert new.count_sync(PROSE["English"]).tokens > old.count_sync(PROSE["English"]).tokens


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("gpt-6-mini", "estimate (o200k)"),
        ("openai/o4-mini", "estimate (o200k)"),
        ("claude-3-opus-20240229", "estimate (claude-4.6)"),
        ("claude-opus-4-20250514", "estimate (claude-4.6)"),
        ("anthropic/claude-sonnet-4.5", "estimate (claude-4.6)"),
        ("claude-opus-4-6", "estimate (claude-4.6)"),
        ("claude-opus-4-7", "estimate (claude-4.7+)"),
        ("claude-sonnet-5-5", "estimate (claude-4.7+)"),
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", "estimate (claude-4.6)"),
        ("claude-next", "estimate (claude-4.7+)"),
        ("qwen-local", "estimate (o200k)"),
    ],
)
def test_the_model_s_name_says_which_tokenizer_it_has(model: str, method: str) -> None:
    count = EstimationTokenCounter(model).count_sync("What is a budget?")
    assert (count.method, count.exact) == (method, False)


def test_a_model_of_which_no_tokenizer_was_fitted_says_so_and_has_a_wide_margin() -> None:
    count = EstimationTokenCounter("qwen-local").count_sync(PROSE["English"])
    assert "assumed" in str(count.note)
    assert count.margin >= 0.3


# --- nothing breaks it -----------------------------------------------------------------------------------------------------

HOSTILE = {
    "one letter": "a" * 1_000_000,
    "blanks": " " * 1_000_000,
    "line breaks": "\n" * 1_000_000,
    "NULs": "\0" * 1_000_000,
    "digits": "7" * 1_000_000,
    "halves of surrogate pairs": "\ud83d" * 1_000_000,
    "emoji": "😀" * 1_000_000,
    "combining marks": "e" + "\u0301" * 1_000_000,
    "the last character": "\U0010ffff" * 1_000_000,
    "quotes": "'\"" * 500_000,
    "everything": "".join(map(chr, range(0x110000))),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("model", FAMILIES)
def test_a_million_of_anything_takes_a_moment_and_has_a_sane_number_of_tokens(model: str, text: str) -> None:
    began = time.perf_counter()
    count = EstimationTokenCounter(model).count_sync(text)
    assert time.perf_counter() - began < 2
    assert len(text) / 200 < count.tokens <= 3 * len(text.encode("utf-8", "surrogatepass"))


@settings(deadline=None)
@given(st.text(st.characters()), st.sampled_from(sorted(FAMILIES)))
def test_any_text_is_counted(text: str, model: str) -> None:
    count = EstimationTokenCounter(model).count_sync(text)
    assert bool(text) <= count.tokens <= 12 + 4 * len(text.encode("utf-8", "surrogatepass"))
    assert math.isfinite(count.margin)


@given(st.binary(max_size=300))
def test_pairs_are_each_byte_s_kind_and_the_one_before(data: bytes) -> None:
    kinds = [pairs(bytes([byte]))[0] >> 4 for byte in data]
    assert list(pairs(data)) == [kind << 4 | before for kind, before in zip(kinds, [0, *kinds], strict=False)]


@given(st.text(min_size=1, max_size=200), st.integers(300, 900))
def test_a_long_text_weighs_as_its_repetitions_do(text: str, times: int) -> None:
    """The sums begin anew every 256 bytes, and every 65,536; neither changes what is summed."""
    table = family("o200k").letters
    data = text.encode("utf-8", "surrogatepass")
    assert table.sum(data * times) == pytest.approx(times * table.sum(data))


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("character", list('aceoxyzEUWY0179"():<>{}$`;éßя中한'))
def test_one_character_again_and_again_is_never_next_to_nothing(model: str, character: str) -> None:
    """A tokenizer makes 125 to 1,000 tokens of a thousand; linear weights may add up to anything, and then a rule holds."""
    count = EstimationTokenCounter(model).count_sync(character * 1_000)
    assert 100 < count.tokens < 3_000


def test_lines_that_are_drawn_have_few_tokens() -> None:
    assert EstimationTokenCounter("gpt-6-mini").count_sync(" " * 10_000).tokens < 1_000


def test_an_empty_text_has_no_tokens() -> None:
    assert EstimationTokenCounter("gpt-6-mini").count_sync("").tokens == 0


@pytest.mark.parametrize("content", [None, 5, b"text", 1.5, [1], ["text"], {"role": "user"}, [None]])
def test_what_is_neither_text_nor_messages_is_refused(content: Any) -> None:
    with pytest.raises(InvalidType):
        EstimationTokenCounter("gpt-6-mini").count_sync(content)


@pytest.mark.parametrize("model", ["", "  "])
def test_an_empty_model_is_refused(model: str) -> None:
    with pytest.raises(InvalidValue):
        EstimationTokenCounter(model)


@pytest.mark.parametrize(("model", "label"), [(None, None), (5, None), ("gpt-6-mini", 5), ("gpt-6-mini", b"x")])
def test_names_are_texts(model: Any, label: Any) -> None:
    with pytest.raises(InvalidType):
        EstimationTokenCounter(model, label=label)


def test_messages_without_an_end_are_refused() -> None:
    deep: Any = "text"
    for _ in range(100_000):
        deep = [deep]
    circle: dict[str, Any] = {"type": "tool_use"}
    circle["input"] = circle
    counter = EstimationTokenCounter("claude-sonnet-5-5")
    with pytest.raises(InvalidValue):
        counter.count_sync([{"role": "user", "content": deep}])
    with pytest.raises(InvalidValue):
        counter.count_sync([{"role": "user", "content": [circle]}])


# --- messages, tools, images -------------------------------------------------------------------------------------------------


def test_a_text_is_one_message_for_claude() -> None:
    counter = EstimationTokenCounter("claude-sonnet-5-5")
    assert counter.count_sync("Hello").tokens == counter.count_sync([{"role": "user", "content": "Hello"}]).tokens


def test_messages_of_openai_cost_what_its_cookbook_says() -> None:
    """Three for the reply, and for each message three and its role."""
    counter = EstimationTokenCounter("gpt-6-mini")
    said = counter.count_sync("What is a budget?").tokens
    assert counter.count_sync([{"role": "user", "content": "What is a budget?"}]).tokens == said + 3 + 4


def test_a_count_that_is_awaited_is_the_same() -> None:
    counter = EstimationTokenCounter("claude-sonnet-5-5")
    awaited = asyncio.run(counter.count(PROSE["French"], system="Be brief."))
    assert awaited == counter.count_sync(PROSE["French"], system="Be brief.")


def test_nothing_of_a_request_is_free() -> None:
    counter = EstimationTokenCounter("claude-sonnet-5-5")
    one: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "What is the weather?"}]}]
    calls = [
        *one,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "17 °C"}]}],
        },
    ]
    tool = {"name": "weather", "description": "Tells the weather of a city.", "input_schema": {"type": "object"}}
    plain = counter.count_sync(one)
    assert counter.count_sync(calls).tokens > plain.tokens + 30
    assert counter.count_sync(one, system="You are a meteorologist.").tokens > plain.tokens + 5
    with_tools = counter.count_sync(one, tools=[tool])
    assert with_tools.tokens > plain.tokens + 346
    assert with_tools.margin > plain.margin
    assert "tools" in str(with_tools.note)


def png(width: int, height: int) -> bytes:
    head = struct.pack(">II", width, height) + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))


def jpeg(width: int, height: int, before: int = 40) -> bytes:
    note = b"\xff\xe1" + struct.pack(">H", before + 2) + b"x" * before
    return b"\xff\xd8" + note + b"\xff\xff\xc2" + struct.pack(">HBHH", 17, 8, height, width) + b"\x03" + b"\0" * 9


def webp(width: int, height: int) -> bytes:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + sizes


def image(data: bytes) -> list[dict[str, Any]]:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}
    return [{"role": "user", "content": [{"type": "image", "source": source}]}]


@pytest.mark.parametrize("make", [png, jpeg, webp])
@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("claude-sonnet-4-5", (280, 57), 30),  # 10 × 3 patches of 28 pixels
        ("claude-sonnet-4-5", (4_000, 3_000), 1_568),
        ("claude-sonnet-5-5", (1_000, 1_000), 1_296),  # 36 × 36
        ("claude-sonnet-5-5", (4_000, 3_000), 4_784),
    ],
)
def test_an_image_costs_its_patches(make: Callable[[int, int], bytes], model: str, size: tuple[int, int], tokens: int) -> None:
    counter = EstimationTokenCounter(model)
    assert (
        counter.count_sync(image(make(*size))).tokens == tokens + counter.count_sync([{"role": "user", "content": ""}]).tokens
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", png(5, 5)[:20], png(0, 5), jpeg(9, 9)[:50], b"\xff\xd8\xff\xe0\0\0", b"\xff\xd8" + b"\xff" * 70_000],
)
def test_an_image_whose_size_cannot_be_read_is_the_largest(data: bytes) -> None:
    count = EstimationTokenCounter("claude-sonnet-5-5").count_sync(image(data))
    assert count.tokens >= 4_784
    assert "unknown size" in str(count.note)


@given(st.text() | st.binary().map(lambda raw: base64.b64encode(b"\xff\xd8\xff" + raw).decode()))
def test_reading_a_size_never_fails(data: str) -> None:
    size = size_of(data)
    assert size is None or min(size) > 0


def test_images_by_url_are_the_largest_and_data_urls_are_read() -> None:
    counter = EstimationTokenCounter("gpt-6-mini")
    url = "data:image/png;base64," + base64.b64encode(png(64, 64)).decode()
    near: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    far: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.org/a.png"}]}
    ]
    assert (counter.count_sync(near).tokens, counter.count_sync(far).tokens) == (7 + 4, 7 + 1_536)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "input_file", "file_id": "file_1"},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    ],
)
def test_a_document_that_cannot_be_read_is_not_guessed(block: dict[str, Any]) -> None:
    with pytest.raises(CountFailed):
        EstimationTokenCounter("claude-sonnet-5-5").count_sync([{"role": "user", "content": [block]}])


# --- speed -------------------------------------------------------------------------------------------------------------------


def test_a_short_text_is_estimated_faster_than_tiktoken_counts_it() -> None:
    """Three times is what it is made for (`benchmarks/estimation.py`); here anything else may be running, so one and a half."""
    text = (PROSE["English"] * 2)[:200]
    counter = EstimationTokenCounter("gpt-6-mini")
    encoding = o200k_encoding()
    ours = min(repeat(lambda: counter.count_sync(text), number=500, repeat=7))
    theirs = min(repeat(lambda: encoding.encode(text, disallowed_special=()), number=500, repeat=7))
    assert ours < theirs / 1.5


def test_a_counter_keeps_nothing_of_what_it_counts() -> None:
    counter = EstimationTokenCounter("gpt-6-mini", label="few-shot")
    secret = "the-only-such-word"
    counter.observe(counter.count_sync(secret), 7)
    assert secret not in repr(vars(counter))
    assert isinstance(counter.count_sync(secret), Estimate)


def test_the_weights_are_small() -> None:
    assert len(json.dumps(about())) < 20_000
