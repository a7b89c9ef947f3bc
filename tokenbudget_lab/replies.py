"""Usage out of the replies of any provider that genai-prices knows: Google, Bedrock, Mistral, Groq and more.

Anthropic's and OpenAI's replies are read by the core (`Reported.of`), which needs no catalogue; the others have as many names
for a token as there are providers, and genai-prices keeps them. Counts are inclusive afterwards, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import InvalidType, InvalidValue, told
from .reported import Reported, response_id
from .terms import Terms, reported_terms
from .usage import Usage, reader

_OURS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_5m_tokens": "cache_write_5m_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "output_reasoning_tokens": "reasoning_tokens",
    "web_searches": "web_searches",
}
_PARTS = frozenset(
    {"cache_write_tokens", "cache_text_read_tokens", "input_text_tokens", "input_text_tool_tokens", "input_tool_tokens"}
    | {"output_text_tokens"}
)
_BY_CORE = {("anthropic", "default"), ("openai", "chat"), ("openai", "responses")}
_TRAFFIC = {"on_demand_flex": "flex", "on_demand_priority": "priority"}  # Vertex


def read_reply(reply: Any, *, provider: str, flavor: str = "default") -> Reported:
    """Read what a provider's reply reports.

    Args:
        reply: the body: a dict as JSON gives it, or an SDK's object (Pydantic).
        provider: the catalogue's name of who answered: `anthropic`, `openai`, `google`, `aws`, `mistral`, `groq`, …
        flavor: which of its APIs: `default`, `chat`, `responses`, `anthropic` (on Bedrock and Vertex), …

    Returns:
        Usage, terms and id; to be given to `commit`, `record` or `cost` as it is.

    Raises:
        InvalidValue: such a provider or flavor is not known, or the counts contradict each other.
        InvalidType: the reply reports no usage; unknown usage is never zero.

    Examples:
        >>> counts = {"promptTokenCount": 100, "candidatesTokenCount": 20, "thoughtsTokenCount": 30, "totalTokenCount": 150}
        >>> read_reply({"usageMetadata": counts}, provider="google").usage
        Usage(input_tokens=100, output_tokens=50, cache_read_tokens=0, cache_write_5m_tokens=0, cache_write_1h_tokens=0,
              reasoning_tokens=30, web_searches=0)
    """
    if flavor == "anthropic" or (provider, flavor) in _BY_CORE:
        return Reported.of(reply)
    body = reply if isinstance(reply, Mapping) else _dumped(reply)
    counts, apart = _extracted(body, provider, flavor)
    usage = _usage(counts)
    _must_agree(usage, body)
    unpriced = f"its {', '.join(apart).replace('_', ' ')} may have a price of their own, which is not computed here"
    get = reader(body)
    named = response_id(get("id"), get("responseId"))
    return Reported(usage, _terms(get), unpriced=unpriced if apart else None, response_id=named)


def _dumped(reply: Any) -> Mapping[str, Any]:
    dump = getattr(reply, "model_dump", None)
    if not callable(dump):
        raise InvalidType("reply", f"{type(reply).__name__} is neither a dict nor an SDK's object")
    dumped: Mapping[str, Any] = dump(mode="json", by_alias=True)
    return dumped


def _extracted(body: Mapping[str, Any], provider: str, flavor: str) -> tuple[dict[str, Any], list[str]]:
    """What the catalogue reads, by its own names, and what of it we neither count nor know to cost what text does."""
    from .rates import has_price, snapshot_source

    snapshot = snapshot_source()()
    try:
        seller = snapshot.find_provider(None, provider, None)
    except LookupError:
        known = ", ".join(each.id for each in snapshot.providers if each.extractors)
        raise InvalidValue("provider", f"{told(provider)} is not known; known are {known}") from None
    flavors = [each.api_flavor for each in seller.extractors or ()]
    if flavor not in flavors:
        known = ", ".join(map(repr, flavors)) or "none, so pass tbl.Usage(input, output)"
        raise InvalidValue("flavor", f"{told(flavor)} is not known of {seller.id}; known are {known}")
    try:
        named, usage = seller.extract_usage(body, api_flavor=flavor)
    except (ValueError, TypeError) as error:
        raise InvalidType("usage", f"cannot be read from this reply ({error}); unknown usage is not zero") from error
    counts = dict(usage._ordered_values())  # noqa: SLF001 - the only way to what was reported, and not inferred
    model = None if named is None else seller.find_model(named, all_providers=snapshot.providers)
    others = (key for key, count in counts.items() if count and key not in _OURS and key not in _PARTS)
    return counts, sorted(key for key in others if model is None or has_price(model, key))


def _usage(counts: dict[str, Any]) -> Usage:
    ours = {name: counts.get(theirs, 0) for theirs, name in _OURS.items()}
    both = ours["cache_write_5m_tokens"] + ours["cache_write_1h_tokens"]
    written = counts.get("cache_write_tokens", both)
    if not both:
        ours["cache_write_5m_tokens"] = written  # nobody says for how long
    elif written != both:
        raise InvalidValue(
            "usage", f"contradicts itself: {written} tokens written to the cache are not {both} by their lifetimes"
        )
    if "input_tokens" not in counts:
        raise InvalidType(
            "usage", f"says no input tokens ({', '.join(sorted(counts)) or 'nothing'}); unknown usage is not zero"
        )
    return Usage(**ours)


def _must_agree(usage: Usage, body: Mapping[str, Any]) -> None:
    """A total that the reply states is not more than ours: else something was billed that its reading leaves out."""
    get = reader(body)
    for path in (("usage", "total_tokens"), ("usageMetadata", "totalTokenCount"), ("usage", "totalTokens")):
        whole = get(*path)
        if whole is not None and not (type(whole) is int and whole <= usage.tokens):
            raise InvalidValue(
                "usage", f"contradicts itself: {usage.tokens} tokens were read, and {'.'.join(path)} is {told(whole)}"
            )


def _terms(get: Any) -> Terms:
    tier = (
        get("service_tier") or get("usage", "service_tier") or get("serviceTier", "type") or get("usageMetadata", "serviceTier")
    )
    traffic = get("usageMetadata", "trafficType")
    if tier is None and isinstance(traffic, str):
        tier = _TRAFFIC.get(traffic.lower(), traffic.lower())
    return reported_terms(tier.lower() if isinstance(tier, str) else tier, get("usage", "speed"))
