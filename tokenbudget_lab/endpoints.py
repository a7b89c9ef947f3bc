"""Where calls are made that cost something: a small table of the ends of paths, and of those that cost nothing.

Whatever else is posted is refused: what cannot be priced is not taken for free. Only the end of a path counts, so that whatever
stands before it (`/v1`, `/openai/deployments/NAME`) is of no account, and a free word in the middle opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from .calls import Call, Endpoint
from .errors import NotMetered
from .protocols import google
from .protocols.anthropic import MESSAGES
from .protocols.openai import CHAT, EMBEDDINGS, RESPONSES, ChatStream, ResponseStream, response_report
from .replies import read_reply
from .reported import Reported
from .sellers import name_at, reading_at, seller_at

# Batches are priced by their input files, which the transport has read before it comes here.
_PAID: tuple[tuple[str, str, Endpoint], ...] = (
    ("/chat/completions", "chat", CHAT),
    ("/responses", "responses", RESPONSES),
    ("/embeddings", "embeddings", EMBEDDINGS),
    ("/v1/messages", "anthropic", MESSAGES),
)
_GOOGLE = re.compile(r"/models/([^/:]+):(generateContent|streamGenerateContent)$")
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")
# What a POST does without asking a model, and what ends something that costs; as paths behind the version.
_FREE_PATHS = (
    "moderations",
    "files",
    "uploads(?:/ID(?:/(?:parts|cancel|complete))?)?",
    "(?:responses/input_tokens|messages/count_tokens|tokenize|detokenize|oauth2?/token)",
    "(?:chat/completions|webhook_endpoints)/ID",
    "conversations(?:/ID(?:/items)?)?",
    "assistants(?:/ID)?",
    "threads(?:/(?!runs$)ID)?",
    "threads/ID/(?:messages(?:/ID)?|runs/ID)",
    "webhook_endpoints(?:/ID/(?:rotate_secret|test))?",
    "(?:batches|responses|messages/batches|fine_tuning/jobs|chatkit/sessions|agents/automations)/ID/(?:cancel|pause)",
    "(?:threads|evals|vector_stores)/ID/(?:runs|file_batches)/ID/cancel",
    "(?:realtime/calls|live/sessions)/ID/(?:hangup|reject)",
    "projects/ID/(?:groups|roles|users|service_accounts|api_keys)(?:/.+)?",
)
_FREE = re.compile(
    r"(?:^|/(?:v\d\w*|openai))/(?:" + "|".join(_FREE_PATHS).replace("ID", "[^/]+") + r")$|/v1/organization/|:countTokens$"
)
_PASSES = ("GET", "HEAD", "OPTIONS", "DELETE")
# These say what was used without being asked, and refuse a request that asks.
_SAY_IT_THEMSELVES = ("mistral",)


def endpoint_at(method: str, host: str, path: str) -> Endpoint | None:
    """Where a request goes; `None` where that costs nothing.

    Args:
        method: of HTTP.
        host: scheme and host, as in `https://api.groq.com`.
        path: without a query.

    Raises:
        NotMetered: it costs something, and nobody here knows what.

    Examples:
        >>> endpoint_at("POST", "https://api.groq.com", "/openai/v1/chat/completions").provider
        'groq'
        >>> endpoint_at("GET", "https://api.openai.com", "/v1/models") is None
        True
    """
    if method.upper() in _PASSES:
        return None
    path = path.rstrip("/")
    for end, flavor, endpoint in _PAID:
        if path.endswith(end):
            return _sold(endpoint, seller_at(host + path), flavor, path)
    asked = _GOOGLE.search(path)
    if asked is not None:
        name = name_at(google.PROVIDER, asked[1])
        return google.endpoint(name, partial(read_reply, provider="google"), stream=asked[2] != "generateContent")
    if _FREE.search(path):
        return None
    raise NotMetered(f"{method.upper()} {path[:200]}")


def _sold(endpoint: Endpoint, seller: str | None, flavor: str, path: str) -> Endpoint:
    """The same, as this seller does it."""
    deployment = _DEPLOYMENT.search(path)
    if seller is None and deployment is None:
        return endpoint
    call = partial(_call, endpoint.call, seller, deployment and deployment[1])
    sold = endpoint._replace(call=call, provider=seller or endpoint.provider)
    read = None if flavor == "anthropic" else reading_at(seller, flavor)
    if read is not None:
        sold = _read_by(sold, read, flavor)
    return sold._replace(asking=None) if seller in _SAY_IT_THEMSELVES else sold


def _read_by(endpoint: Endpoint, read: Callable[[Any], Reported], flavor: str) -> Endpoint:
    if flavor == "responses":
        read = partial(response_report, read=read)
        return endpoint._replace(read=read, stream=partial(ResponseStream, read))
    return endpoint._replace(read=read, stream=partial(ChatStream, read=read))


def _call(
    read: Callable[[Mapping[str, Any]], Call], seller: str | None, deployment: str | None, body: Mapping[str, Any]
) -> Call:
    """A call of a seller's; at Azure a request may leave out its model, which its path names."""
    call = read({"model": deployment, **body} if deployment is not None else body)
    return replace(call, provider=seller or call.provider, model=name_at(seller, call.model))
