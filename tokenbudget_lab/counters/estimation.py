"""An estimate, where nothing can be asked and nothing is installed: in microseconds, with a margin, better after a few calls.

Its readers may rely on these: an estimate never calls itself exact; it is never zero for what it does not know; its time is
proportional to the text, whatever is in it; and only what a provider has measured teaches it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .. import images
from ..counter import Content, Count, System, TokenCounter, Tools
from ..errors import CountFailed, InvalidType, InvalidValue
from ..learning import ENOUGH, ESTIMATE, KEPT, LABEL, NOTHING, Learned, Pair, Sql, learned, pair, pairs_of
from ..shapes import calls_in, json_of, list_of, mapping_of, model_of, must_say_something, system_of, text_in, tools_of
from ..usage import Usage
from ..weighing import family

_CLAUDE = re.compile(r"claude[^0-9]*(\d{1,2})(?!\d)(?:[-.](\d{1,2})(?!\d))?", re.IGNORECASE)
_OPENAI = re.compile(r"(?:^|[/.:])(?:gpt|chatgpt|codex|o\d|text-|davinci)", re.IGNORECASE)
_GUESSED = 0.3  # margin of what was not fitted: tools, and makers of whom no tokenizer was
_TEXTS = {"text", "input_text", "output_text"}
_IMAGES = {"image", "image_url", "input_image"}
_UNSEEN = {"cache_control", "signature", "citations"}  # sent, and not read by the model as they are


class _Format(NamedTuple):
    """What a request costs beside its words, in tokens."""

    once: int
    message: int
    alone: int  # around a text that is not given as a message
    tools: int  # that tell the model that it has tools, when it has
    patch: int  # edge in pixels of an image's patches
    image: int  # the most that one costs


# Claude: the frame of one message is measured, its two parts and the words about tools are as the provider documents them.
_FORMATS = {
    "claude-4.6": _Format(3, 4, 7, 346, 28, 1_568),
    "claude-4.7": _Format(7, 4, 11, 346, 28, 4_784),  # this one model says more around a request
    "claude-4.7+": _Format(2, 4, 6, 346, 28, 4_784),
    "o200k": _Format(3, 4, 0, 8, 32, 1_536),
}


@dataclass(frozen=True, slots=True)
class Estimate(Count):
    """A count that was estimated; `unscaled` is what it was, in tokens, before anything learned was applied."""

    unscaled: int = 0


class EstimationTokenCounter(TokenCounter):
    """Estimates tokens by what kinds of characters a text has and how they follow each other; offline, without a vocabulary.

    Fitted for three families of tokenizers: OpenAI's o200k, Claude up to 4.6, Claude from 4.7 on. Other models are estimated as
    o200k, and the count says so. After five measured calls of a model and label it corrects its scale, and its margin is from
    its own errors; before that, nine in ten estimates of texts like those that were held out are within the margin.

    Args:
        model: as the API calls it.
        ledger: where to learn from, at once and whenever `learn_from` is called.
        label: what the calls have in common, such as a task or a template: the value of their tag `label`.

    Raises:
        InvalidType: a model or label that is no text, a ledger that is none.
        InvalidValue: an empty model or label.

    Examples:
        >>> counter = EstimationTokenCounter("claude-sonnet-5-5", label="few-shot")
        >>> count = counter.count_sync("What is a budget?")
        >>> count.exact, count.method
        (False, 'estimate (claude-4.7+)')
        >>> counter.learn([(100, 127), (200, 254), (50, 64), (300, 381), (90, 114)])
        >>> counter.learned.scale
        1.27
        >>> counter.tags(count)
        {'estimate': '...', 'label': 'few-shot'}
    """

    def __init__(self, model: str, *, ledger: Sql | None = None, label: str | None = None) -> None:
        self.model = model = model_of(model)
        self.label = None if label is None else _named("label", label)
        name, format_, self._note = _family_of(model)
        self._family, self._format = family(name), _FORMATS[format_]
        self._method = f"estimate ({name})"
        self._least = 0.0 if self._note is None else _GUESSED
        self._seen: tuple[Pair, ...] = ()
        self._read: tuple[Pair, ...] = ()
        self._learned = NOTHING
        if ledger is not None:
            self.learn_from(ledger)

    def __repr__(self) -> str:
        return f"EstimationTokenCounter({self.model!r}{'' if self.label is None else f', label={self.label!r}'})"

    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Estimate:
        """About how many input tokens a request with this content has.

        A text is one message for Claude, and only itself for others.

        Raises:
            InvalidType: it is neither text nor messages.
            CountFailed: it has a document or a file, of which nothing is known here.
        """
        return self.count_sync(content, tools=tools, system=system)

    def count_sync(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Estimate:
        """The same from sync code, at once."""
        if type(content) is str and tools is None and system is None:
            return self._estimate(self._family.tokens(content) + self._format.alone)
        request = _Request(self._format, self._family.tokens)
        try:
            request.add(content, tools, system)
        except RecursionError:
            raise InvalidValue("content", "it is nested too deep to be a request") from None
        return self._estimate(request.words + request.frame, request.guessed, request.images, request.notes)

    def _estimate(self, words: float, guessed: float = 0.0, images: int = 0, notes: Iterable[str] = ()) -> Estimate:
        """Scale it, and say how far it may be off."""
        raw, known = words + guessed + images, self._learned
        tokens = max(round(raw * known.scale), 1 if raw else 0)
        margin, note = known.margin, self._note
        if margin is None:
            margin = max(self._family.margin(raw), self._least)
            if guessed or images:
                margin = round((margin * words + _GUESSED * guessed) / (raw or 1), 3)
        else:
            note = self._learned_note
        if notes:
            note = "; ".join([*([note] if note else []), *notes])
        return Estimate(tokens, False, self._method, margin, note, round(raw))

    # --- learning ---

    @property
    def learned(self) -> Learned:
        """The scale, the margin, and how many calls they are from."""
        return self._learned

    def observe(self, estimated: Count | float, measured: Usage | int) -> None:
        """Learn from one call.

        Args:
            estimated: the count that this counter gave, or unscaled tokens.
            measured: what the provider said: its usage, or the input tokens, those of the cache included.

        Raises:
            InvalidType, InvalidValue: it is no number above 0.
        """
        self.learn([(estimated, measured)])

    def learn(self, pairs: Iterable[tuple[Count | float, Usage | int]]) -> None:
        """Learn from several calls; see `observe`."""
        new = [pair(_unscaled(estimated), _input(measured)) for estimated, measured in pairs]
        self._seen = (*self._seen, *new)[-KEPT:]
        self._update()

    def learn_from(self, ledger: Sql) -> int:
        """Learn from a ledger's measured calls of this model and label, instead of what was read there before.

        A call teaches if it was reserved with `tags=counter.tags(count)`, which keep the estimate. While there are fewer than
        five of those, the first five calls without such a tag teach too, by the `input_tokens` that were reserved for them; as
        these may have been more than the estimate, they can only raise it. A usage that is estimated or unknown never
        teaches.

        Returns:
            How many calls it has learned from.

        Raises:
            InvalidType: it is no ledger.
        """
        if not callable(getattr(ledger, "sql", None)):
            raise InvalidType("ledger", f"{type(ledger).__name__} is no ledger; connect(…) gives one")
        self._read = tuple(pairs_of(ledger, self.model, self.label))
        self._update()
        return len(self._read)

    def tags(self, count: Count) -> dict[str, str]:
        """The tags of a call from which this counter is to learn: the estimate, and the label.

        Args:
            count: what this counter said.

        Examples:
            >>> counter = EstimationTokenCounter("gpt-6-mini")
            >>> counter.tags(counter.count_sync("What is a budget?"))
            {'estimate': '...'}
        """
        tags = {ESTIMATE: str(round(_unscaled(count)))}
        return tags if self.label is None else tags | {LABEL: self.label}

    def _update(self) -> None:
        found = learned((*self._read, *self._seen), max(self._family.margin(1_000), self._least))
        if found.calls >= ENOUGH:
            self._learned_note = f"scale {found.scale:.3g} learned from {found.calls} calls"
        self._learned = found


@dataclass(slots=True)
class _Request:
    """The parts of a request, added up: words, which were fitted, frames, what is guessed, and images."""

    format: _Format
    tokens: Any
    words: float = 0.0
    frame: int = 0
    guessed: float = 0.0
    images: int = 0
    notes: dict[str, None] = field(default_factory=dict)

    def add(self, content: Content, tools: Tools | None, system: System | None) -> None:
        """Add all of it."""
        self.frame += self.format.once
        wanted = "give a text or a list of messages"
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else list_of("content", content, wanted)
        for message in (*system_of(system), *messages):
            self.message(mapping_of("content", message))
        if tools is not None:
            self.tools(tools_of(tools))

    def message(self, message: Mapping[str, Any]) -> None:
        """One message: its frame, its content, and what else it has, such as a name or calls of tools."""
        self.frame += self.format.message
        must_say_something(message)
        calls_in(message)  # that they are some; they count as they are sent
        self.part(message.get("content"))
        self.rest({name: value for name, value in message.items() if name not in {"role", "content"}})

    def part(self, part: Any) -> None:
        """A text, a block, or a list of them."""
        if isinstance(part, str):
            self.words += self.tokens(part)
        elif isinstance(part, Sequence) and not isinstance(part, (bytes, bytearray, memoryview)):
            for each in part:
                self.part(each if isinstance(each, str) else mapping_of("content", each))
        elif part is not None:
            self.block(mapping_of("content", part))

    def block(self, block: Mapping[str, Any]) -> None:
        """A block of content."""
        kind = text_in("content.type", block.get("type"))
        if kind in _TEXTS:
            self.words += self.tokens(text_in("content.text", block.get("text")))
        elif kind in _IMAGES:
            self.image(block)
        elif _is_data(block):
            raise CountFailed("estimate", f"nothing is known of what a {kind} holds; ask the provider's own count")
        else:
            self.rest({name: value for name, value in block.items() if name not in _UNSEEN | {"content"}})
            self.part(block.get("content"))

    def rest(self, values: Mapping[str, Any]) -> None:
        """What is sent as JSON."""
        if values:
            self.words += self.tokens(json_of("content", values))

    def image(self, block: Mapping[str, Any]) -> None:
        """An image, by its size where its data is at hand."""
        data = _data_of(block)
        size = None if data is None else images.size_of(data)
        self.images += images.tokens(size, self.format.patch, self.format.image)
        if size is None:
            self.notes["an image of unknown size is counted as the largest"] = None

    def tools(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Definitions of tools, by their JSON."""
        if tools:
            self.guessed += self.format.tools + sum(self.tokens(json_of("tools", tool)) for tool in tools)
            self.notes["tools are a guess by their JSON"] = None


def _family_of(model: str) -> tuple[str, str, str | None]:
    """Name of the family, of the format, and what is to be said of it."""
    if "claude" in model.lower():
        found = _CLAUDE.search(model)
        if found is None:
            return "claude-4.7+", "claude-4.7+", "a Claude of unknown version is counted as the newest"
        version = (int(found[1]), int(found[2] or 0))
        if version < (4, 7):
            return "claude-4.6", "claude-4.6", None
        return "claude-4.7+", "claude-4.7" if version == (4, 7) else "claude-4.7+", None
    return "o200k", "o200k", None if _OPENAI.search(model) else "o200k assumed: no tokenizer of this model was fitted"


def _named(argument: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidType(argument, f"{type(value).__name__} is no text")
    if not value.strip():
        raise InvalidValue(argument, "it is empty")
    return value


def _unscaled(estimated: Any) -> float:
    if isinstance(estimated, Estimate):
        return estimated.unscaled
    return estimated.tokens if isinstance(estimated, Count) else estimated


def _input(measured: Any) -> Any:
    return measured.input_tokens if isinstance(measured, Usage) else measured


def _is_data(block: Mapping[str, Any]) -> bool:
    """Whether it holds or names a file: text as a source is text."""
    source = block.get("source")
    held = isinstance(source, Mapping) and source.get("type") in {"base64", "url", "file"}
    return held or block.get("type") in {"file", "input_file", "input_audio", "container_upload"}


def _data_of(block: Mapping[str, Any]) -> str | None:
    """An image's base64, as Anthropic's or OpenAI's blocks hold it."""
    source, url = block.get("source"), block.get("image_url")
    if isinstance(source, Mapping) and source.get("type") == "base64":
        data = source.get("data")
        return data if isinstance(data, str) else None
    if isinstance(url, Mapping):
        url = url.get("url")
    if isinstance(url, str) and url.startswith("data:"):
        return url.partition(",")[2]
    return None
