"""What a provider reports of a call: its usage, the terms it was served on, and what else it billed.

Whatever stands in a report and has a price of its own that is not known here makes the whole call unpriced: it is recorded,
because the money is gone, and its cost is said to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from typing import Any

from .errors import InvalidType, PriceUnknown
from .terms import UNSAID, Terms, reported_terms
from .usage import EXACT, Usage, reader

_DETAILS = ("prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details")
_PLAIN = ("prompt_tokens_details", "image_tokens")  # what a model that answers in text sees costs what it reads
_MODES = ("audio_tokens", "image_tokens", "video_tokens")
_ID = re.compile(r"\S{1,256}")
# Where Claude answered, and what that costs: https://platform.claude.com/docs/en/manage-claude/data-residency
_REGIONS = {"global": Decimal(1), "not_available": Decimal(1), "us": Decimal("1.1")}
_UNFINISHED = frozenset({"in_progress", "queued", "cancelled", "failed"})


@dataclass(frozen=True, slots=True)
class Reported:
    """A call as its provider reports it.

    Attributes:
        usage: the tokens of the request itself.
        terms: batch, tier and speed, as far as they were said.
        beside: requests that were billed with it and are not in its totals: each one's model (`None`: the same) and usage.
        unpriced: why it has no cost, although its model has a price; `None` where it has one.
        finished: whether the reply came to its end; the counts of a broken stream are placeholders.
        response_id: the provider's id of the reply.
        model: which model answered, as a whole reply says.
        factor: what the price of its tokens is to be multiplied by, for the region that answered.

    Examples:
        >>> reply = {"id": "msg_1", "usage": {"input_tokens": 10, "output_tokens": 5, "service_tier": "batch"}}
        >>> reported = Reported.of(reply)
        >>> reported.usage.tokens, reported.terms.batch, reported.response_id
        (15, True, 'msg_1')
    """

    usage: Usage
    terms: Terms = UNSAID
    beside: tuple[tuple[str | None, Usage], ...] = ()
    unpriced: str | None = None
    finished: bool = True
    response_id: str | None = None
    model: str | None = None
    factor: Decimal = Decimal(1)

    @property
    def requests(self) -> Iterable[tuple[str | None, Usage]]:
        """All that was billed: rates depend on the size of each request, so they are not added up."""
        return ((None, self.usage), *self.beside)

    @property
    def tokens(self) -> int:
        """All tokens: what a limit in tokens counts."""
        return sum(usage.tokens for _, usage in self.requests)

    def cost_of(self, usage: Usage, price: Callable[[Usage], Decimal]) -> Decimal:
        """USD of one of its requests: tokens at the price of the region, searches at the price that they have everywhere."""
        if self.factor == 1:
            return price(usage)
        tokens, searches = replace(usage, web_searches=0), Usage(0, 0, web_searches=usage.web_searches)
        with localcontext(EXACT):
            return self.factor * price(tokens) + (price(searches) if usage.web_searches else 0)

    def must_be_priced(self, model: str) -> None:
        """Refuse to price what has no price here.

        Raises:
            PriceUnknown: with the reason.
        """
        if self.unpriced is not None:
            raise PriceUnknown(model, self.unpriced)

    @classmethod
    def of(cls, reported: Any) -> Reported:
        """Read a report: a `Usage`, an SDK's usage object or whole reply, or the JSON of either.

        Raises:
            InvalidType: there is no usage in it.
            InvalidValue: its counts contradict each other.
        """
        if isinstance(reported, Usage):
            return cls(reported)
        if isinstance(reported, cls):
            return reported
        get = reader(reported)
        inner = get("usage")
        if inner is None and (get("stop_reason") or get("choices") or get("object")) is not None:
            raise InvalidType("usage", f"the {type(reported).__name__} reports none; a stream has to be asked for it")
        usage = reported if inner is None else inner
        part = reader(usage)
        tier = part("service_tier") if inner is None or part("service_tier") is not None else get("service_tier")
        return cls(
            Usage.of(usage),
            reported_terms(tier, part("speed")),
            tuple(_beside(part("iterations"))),
            _unpriced(part),
            finished=inner is None or _is_finished(get),
            response_id=None if inner is None else response_id(get("id")),
            model=None if inner is None else response_id(get("model")),
            factor=_REGIONS.get(str(part("inference_geo") or "global"), Decimal(1)),
        )


def response_id(*given: Any) -> str | None:
    """The first of several that can be an id or a model's name; some say none, and a sentence may quote what was asked."""
    return next((each for each in given if isinstance(each, str) and _ID.fullmatch(each) and each.isprintable()), None)


def _beside(iterations: Any) -> Iterable[tuple[str | None, Usage]]:
    """What Anthropic's beta API bills and leaves out of its totals: compactions, and the advice of other models."""
    for each in iterations or ():
        get = reader(each)
        if get("type") in ("compaction", "advisor_message"):
            yield get("model"), Usage.of(each)


def _unpriced(part: Any) -> str | None:
    if (region := part("inference_geo")) and str(region) not in _REGIONS:
        return f"it was answered in the region {str(region)[:64]!r}, and what that costs is not known here"
    for details in _DETAILS:
        if part(details) is None:
            continue
        for mode in _MODES:
            if part(details, mode) and (details, mode) != _PLAIN:
                return f"its {mode.replace('_', ' ')} have a price of their own, which is not computed here"
    for each in part("iterations") or ():
        kind = reader(each)("type")
        if kind not in ("message", "compaction", "advisor_message"):
            return f"a part of it is of the kind {str(kind)[:64]!r}, and how that is billed is not known here"
    return None


def _is_finished(get: Any) -> bool:
    if get("status") in _UNFINISHED:
        return False
    if get("type") == "message":
        return get("stop_reason") is not None
    choices = get("choices")
    if not choices:
        return True
    return all(_finish(choice) is not None for choice in choices)


def _finish(choice: Any) -> Any:
    return choice.get("finish_reason") if isinstance(choice, Mapping) else getattr(choice, "finish_reason", None)
