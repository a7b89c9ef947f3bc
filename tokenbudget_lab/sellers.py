"""Who sells a model: known by the address that a call is sent to, and how its calls are then named and its replies read.

The same model has several sellers, and each its own price. The catalogue knows their addresses; a call to one of them bears its
name (`groq/llama-3.3-70b-versatile`), unless the model's name alone says who it is. Of an address that nobody knows, such as a
server of one's own, the model's name is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

from .rates import snapshot_source
from .replies import read_reply
from .reported import Reported

_LIKE_OPENAI = ("openai", "azure")  # whose replies the core reads


@lru_cache(1_024)
def seller_at(url: str) -> str | None:
    """The catalogue's name of who takes calls at an address; `None` where it knows nobody.

    Examples:
        >>> seller_at("https://api.groq.com/openai/v1/chat/completions"), seller_at("http://127.0.0.1:8000/v1")
        ('groq', None)
    """
    try:
        return str(snapshot_source()().find_provider(None, None, url).id)
    except LookupError:
        return None


@lru_cache(1_024)
def name_at(seller: str | None, model: str) -> str:
    """What a seller's model is called here: its name, and where that is anybody's or somebody else's, the seller before it.

    Examples:
        >>> (
        ...     name_at("groq", "llama-3.3-70b-versatile"),
        ...     name_at("mistral", "mistral-large-latest"),
        ...     name_at("azure", "gpt-5-mini"),
        ... )
        ('groq/llama-3.3-70b-versatile', 'mistral-large-latest', 'azure/gpt-5-mini')
    """
    if seller is None or seller == "openai":
        return model
    try:
        found, _ = snapshot_source()().find_provider_model(model.lower(), None, None, None)
    except LookupError:
        return f"{seller}/{model}"
    return model if found.id == seller else f"{seller}/{model}"


@cache
def reading_at(seller: str | None, flavor: str) -> Callable[[Any], Reported] | None:
    """What reads this seller's replies, where it has a way of its own to say what was used; `None` where it is OpenAI's."""
    if seller is None or seller in _LIKE_OPENAI:
        return None
    known = [each.api_flavor for each in snapshot_source()().find_provider(None, seller, None).extractors or ()]
    chosen = next((each for each in (flavor, "default") if each in known), None)
    return None if chosen is None else partial(read_reply, provider=seller, flavor=chosen)
