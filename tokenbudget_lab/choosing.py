"""Which counter counts for a model: others' first, then ours by the model's name, and an estimate where nobody knows it.

Another package brings a counter for its provider through an entry point of the group `tokenbudget_lab.counters`. The entry
point's name is the pattern of its models, so that only what fits is imported:

    [project.entry-points."tokenbudget_lab.counters"]
    "gemini-*" = "lab_gemini:GeminiTokenCounter"
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .counter import TokenCounter
from .errors import CountFailed, told
from .shapes import model_of

GROUP = "tokenbudget_lab.counters"
_OPENAI = re.compile(
    r"(?:ft:)?(?:gpt-?\d|gpt-oss|chatgpt-|codex-|o\d(?:$|-)|text-embedding-|text-davinci-|davinci|babbage|computer-use-)"
)
_CLOUDS = re.compile(r"-v\d+(?::\d+)?$")  # what Bedrock puts behind a name
_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")


def counter_for(
    model: str, *, client: Any = None, async_client: Any = None, ledger: Any = None, label: str | None = None
) -> TokenCounter:
    """The counter for a model.

    An OpenAI model is counted on this machine, or by the endpoint where a client is given. A Claude model is counted by the
    endpoint where there is a client or a key, with an estimate for when that does not answer, and is estimated without. Any
    other model is estimated, unless an entry point brings its counter.

    Args:
        model: as the API calls it; a provider before it (`openai/gpt-5`, `us.anthropic.claude-…`) is understood.
        client, async_client: the provider's, for counters that ask.
        ledger, label: what an estimate learns from: the ledger's measured calls with this tag `label`.

    Raises:
        InvalidType: a model that is no text.
        InvalidValue: an empty model.
        CountFailed: the entry point for this model could not be loaded, or made no counter.

    Examples:
        >>> counter_for("gpt-5-mini")
        OpenAITokenCounter('gpt-5-mini')
    """
    model, clients = model_of(model), {"client": client, "async_client": async_client}
    given = {name: each for name, each in clients.items() if each is not None}
    if point := _registered(model):
        return _made(point, model, given)
    return _maker(model)(model, given, {"ledger": ledger, "label": label})


def local_counter_for(model: str) -> TokenCounter:
    """The counter for a model that asks nobody: an entry point's, OpenAI's on this machine, else an estimate.

    Examples:
        >>> local_counter_for("claude-sonnet-5-5")
        EstimationTokenCounter('claude-sonnet-5-5')
    """
    if point := _registered(model):
        return _made(point, model, {})
    made = _openai if _maker(model) is _openai else _estimation
    return made(model, {}, {"ledger": None, "label": None})


def _maker(model: str) -> Callable[[str, dict[str, Any], dict[str, Any]], TokenCounter]:
    bare = model.rsplit("/", 1)[-1].lower()
    if "claude" in bare:
        return _claude
    return _openai if _OPENAI.match(bare) else _estimation


# --- ours ----------------------------------------------------------------------------------------------------------------


def _counter(home: str, name: str) -> Any:
    """A class of ours, imported when it is chosen."""
    return getattr(importlib.import_module(f".counters.{home}", __package__), name)


def _openai(model: str, given: dict[str, Any], known: dict[str, Any]) -> TokenCounter:  # noqa: ARG001 - it counts
    counter: TokenCounter = _counter("openai", "OpenAITokenCounter")(model.rsplit("/", 1)[-1], **given)
    return counter


def _claude(model: str, given: dict[str, Any], known: dict[str, Any]) -> TokenCounter:
    model = _CLOUDS.sub("", model[model.lower().index("claude") :]).replace("@", "-")
    estimate = _estimation(model, {}, known)
    if not given and not any(map(os.environ.get, _KEYS)):
        return estimate
    endpoint = _counter("claude", "ClaudeTokenCounter")(model, **given)
    counter: TokenCounter = _counter("fallback", "FallbackTokenCounter")(endpoint, estimate)
    return counter


def _estimation(model: str, given: dict[str, Any], known: dict[str, Any]) -> TokenCounter:  # noqa: ARG001 - nobody is asked
    counter: TokenCounter = _counter("estimation", "EstimationTokenCounter")(model, **known)
    return counter


# --- others' -------------------------------------------------------------------------------------------------------------


def _registered(model: str) -> EntryPoint | None:
    """The entry point whose pattern fits, the longest of them."""
    fitting = [each for each in entry_points(group=GROUP) if fnmatchcase(model.lower(), each.name.lower())]
    return max(fitting, key=lambda each: len(each.name), default=None)


def _made(point: EntryPoint, model: str, given: dict[str, Any]) -> TokenCounter:
    method = f"entry point {point.name!r} ({point.value})"
    try:
        counter = point.load()(model, **given)
    except CountFailed:
        raise
    except Exception as error:
        raise CountFailed(method, f"it could not be made ({type(error).__name__}: {error})") from error
    if not isinstance(counter, TokenCounter):
        raise CountFailed(method, f"it made {told(counter)}, which is no TokenCounter")
    return counter
