"""Which counter counts for which model."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import choosing
from tokenbudget_lab.counter import Content, Count, System, TokenCounter, Tools
from tokenbudget_lab.errors import CountFailed, InvalidType, InvalidValue


class Characters(TokenCounter):
    """Somebody else's counter."""

    def __init__(self, model: str, **given: Any) -> None:
        self.model, self.given = model, given

    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        return Count(len(content), exact=True, method="characters")


def broken(model: str) -> TokenCounter:
    raise OSError("no licence")


def nothing(model: str) -> str:
    return model


@pytest.fixture
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pip install` of other packages would have brought."""
    points = [
        EntryPoint(name, f"tests.test_choosing:{what}", choosing.GROUP)
        for name, what in [
            ("gemini-*", "Characters"),
            ("gpt-4o-my-*", "Characters"),
            ("broken-*", "broken"),
            ("odd", "nothing"),
            ("gone", "gone"),
        ]
    ]
    monkeypatch.setattr(choosing, "entry_points", lambda group: EntryPoints(points))


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-5-mini", "o200k_base"),
        ("openai/gpt-4", "cl100k_base"),
        ("o3", "o200k_base"),
        ("gpt-oss-120b", "o200k_harmony"),
        ("gpt-6-pro", "o200k_base"),
    ],
)
def test_openai_models_are_counted_here(model: str, encoding: str) -> None:
    counter = tbl.counter_for(model)
    assert isinstance(counter, tbl.OpenAITokenCounter)
    assert (counter.encoding, counter.endpoint) == (encoding, False)


@pytest.mark.usefixtures("_plugins")
@pytest.mark.parametrize("model", ["gemini-3-pro", "GEMINI-3-pro", "gpt-4o-my-tune"])
def test_another_package_brings_a_counter_for_its_models(model: str) -> None:
    counter = tbl.counter_for(model, client="theirs")
    assert isinstance(counter, Characters)
    assert counter.given == {"client": "theirs"}


@pytest.mark.usefixtures("_plugins")
@pytest.mark.parametrize("model", ["broken-1", "odd", "gone"])
def test_a_counter_that_cannot_be_made_is_an_error_that_names_its_entry_point(model: str) -> None:
    with pytest.raises(CountFailed, match="entry point"):
        tbl.counter_for(model)


@pytest.mark.parametrize(("model", "error"), [("", InvalidValue), (" ", InvalidValue), (None, InvalidType)])
def test_what_is_no_model_is_refused(model: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        tbl.counter_for(model)


@pytest.mark.parametrize(
    ("model", "maker"),
    [
        ("claude-sonnet-5-5", "_claude"),
        ("us.anthropic.claude-sonnet-5-5-v1:0", "_claude"),
        ("anthropic/claude-opus-5-5", "_claude"),
        ("chatgpt-4o-latest", "_openai"),
        ("ft:gpt-4o:lab::1", "_openai"),
        ("qwen-3", "_estimation"),
        ("mistral-o3-like", "_estimation"),
    ],
)
def test_a_models_name_says_whose_it_is(model: str, maker: str) -> None:
    assert choosing._maker(model) is getattr(choosing, maker)


def test_a_claude_model_is_estimated_without_a_key_and_asked_for_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key the estimate is what it falls back to."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(tbl.counter_for("claude-sonnet-5-5"), tbl.EstimationTokenCounter)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    assert isinstance(tbl.counter_for("claude-sonnet-5-5"), tbl.FallbackTokenCounter)


def test_a_client_that_is_given_is_asked() -> None:
    counter = tbl.counter_for("claude-sonnet-5-5", client=tbl.demo_client(latency_s=(0, 0)))
    count = counter.count_sync("What is a budget?")
    assert (count.tokens, count.exact, count.method, count.note) == (9, True, "count_tokens", None)


def test_an_estimate_learns_from_the_ledger_that_is_given() -> None:
    """Five calls of the label, each half as long again as it was estimated."""
    with tbl.connect(":memory:") as ledger:
        lab = ledger.budget("lab", limits=[])
        counter = tbl.EstimationTokenCounter("qwen-3", label="few-shot")
        for n in range(5):
            estimated = counter.count_sync("a review of a restaurant " * (n + 5))
            with lab.reserve(model="qwen-3", input_tokens=estimated, max_output_tokens=1, tags=counter.tags(estimated)) as call:
                call.commit(tbl.Usage(round(estimated.tokens * 1.5), 1))
        text = "a review of a hotel " * 20
        learned = tbl.counter_for("qwen-3", ledger=ledger, label="few-shot").count_sync(text)
        assert learned.tokens == pytest.approx(counter.count_sync(text).tokens * 1.5, rel=0.05)
