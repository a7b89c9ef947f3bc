"""LiteLLM under a budget: its functions, with an HTTP client of ours for each call.

LiteLLM's callbacks cannot do it: what one raises before a call is logged and passed over, and the call is sent. But a call
takes the client that it is to be sent by, and that one can refuse. Which kind of client depends on LiteLLM's provider, and one
of the wrong kind is passed over as well: so only those are let through with which it was tried, and all else is refused.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from functools import cache, partial
from types import ModuleType
from typing import Any

import httpx

from ..clients import Clients
from ..errors import InvalidValue, NotMetered, TokenBudgetError
from ..metering import Meter
from . import transport

# By which client LiteLLM sends to a provider: OpenAI's SDK, or an HTTP client as it is.
_BY_SDK = frozenset({"openai", "perplexity", "cerebras"})
_BY_HTTP = frozenset(
    {"anthropic", "gemini", "groq", "mistral", "deepseek", "xai", "together_ai", "openrouter", "hosted_vllm", "fireworks_ai"}
)
_METERED = {"completion": False, "acompletion": True, "embedding": False, "aembedding": True}
# What asks no model.
_FREE = frozenset(
    {"token_counter", "encode", "decode", "cost_per_token", "completion_cost", "get_llm_provider", "get_model_info",
     "get_max_tokens", "get_supported_openai_params", "supports_function_calling", "supports_vision", "register_model",
     "stream_chunk_builder", "validate_environment"}
)  # fmt: skip
_TAKES_OVER = ("client", "fallbacks", "context_window_fallback_dict", "model_list", "shared_session")


class _Connections:
    """An async HTTP client that is closed with its loop."""

    def __init__(self) -> None:
        self.client = httpx.AsyncClient(follow_redirects=True, timeout=600)

    async def close(self) -> None:
        """Close it."""
        await self.client.aclose()


def _opened() -> httpx.Client:
    return httpx.Client(follow_redirects=True, timeout=600)


class MeteredLiteLLM(ModuleType):
    """LiteLLM's module as its user sees it, with calls that count. The module itself is left as it is.

    Args:
        inner: the module.
        meter: the budget, tags and policy.
        clients: that send.
    """

    def __init__(self, inner: Any, meter: Meter, clients: Clients[httpx.Client, _Connections] | None = None) -> None:
        super().__init__(inner.__name__, inner.__doc__)
        self._inner, self._meter, self._around = inner, meter, set[str]()
        self._clients = clients or Clients(_opened, _Connections)

    def tagged(self, tags: Mapping[str, str]) -> MeteredLiteLLM:
        """The same with more tags."""
        return MeteredLiteLLM(self._inner, self._meter.tagged(tags), self._clients)

    def over(self, meter: Meter) -> MeteredLiteLLM:
        """The same module in another budget."""
        return MeteredLiteLLM(self._inner, meter)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _METERED:
            return partial(self._acall if _METERED[name] else self._call, name)
        value = getattr(self._inner, name)
        asks = inspect.isroutine(value) and name not in _FREE
        asks |= inspect.isclass(value) and hasattr(value, "completion")  # a Router, or one of its kind
        if asks:
            raise NotMetered(f"litellm.{name}")
        return value

    def _call(self, name: str, model: str, *args: Any, **more: Any) -> Any:
        meter, kind = self._ready(name, model, more)
        http = transport.instrument(self._clients.sync(), meter)
        try:
            answer = getattr(self._inner, name)(model, *args, **more, client=self._client(kind, http, model, more))
        except Exception as error:
            _raise_refusal(error)
            raise
        return self._checked(answer, meter, kind, more)

    async def _acall(self, name: str, model: str, *args: Any, **more: Any) -> Any:
        meter, kind = self._ready(name, model, more)
        lease = await self._clients.here()
        http = transport.instrument(lease.client.client, meter)
        try:
            answer = await getattr(self._inner, name)(model, *args, **more, client=self._client(kind, http, model, more))
        except Exception as error:
            _raise_refusal(error)
            raise
        return self._checked(answer, meter, kind, more)

    def _ready(self, name: str, model: str, more: Mapping[str, Any]) -> tuple[Meter, str]:
        """A meter for this call, and LiteLLM's name of whom it goes to.

        Raises:
            InvalidValue: it names what would go past the budget.
            NotMetered: it is not known by which client LiteLLM sends to this provider.
        """
        for taken in _TAKES_OVER:
            if more.get(taken) is not None:
                raise InvalidValue(taken, "would send calls past the budget; nothing was sent")
        meter = self._meter.tagged({})
        meter.used = False
        model = self._inner.model_alias_map.get(model, model)
        _, kind, _, _ = self._inner.get_llm_provider(model, more.get("custom_llm_provider"), more.get("api_base"))
        known = kind in _BY_SDK or (kind in _BY_HTTP and "embedding" not in name)
        if not known or kind in self._around or self._is_bridged(model):
            why = "by which client LiteLLM sends this is not known here"
            raise NotMetered(f"litellm.{name} of {model!r} ({kind})", why)
        return meter, str(kind)

    def _is_bridged(self, model: str) -> bool:
        """Whether LiteLLM asks for a response where a chat was asked for, and then by another client."""
        try:
            return "responses/" in model or self._inner.get_model_info(model).get("mode") == "responses"
        except Exception:  # noqa: BLE001 - LiteLLM raises a bare one for a model that it does not know
            return False

    def _client(self, kind: str, http: Any, model: str, more: Mapping[str, Any]) -> Any:
        """What LiteLLM takes to send by."""
        if kind in _BY_HTTP:
            from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

            if isinstance(http, httpx.Client):
                return HTTPHandler(client=http)
            handler = AsyncHTTPHandler()
            handler.client = http
            return handler
        import openai

        given = (more.get("custom_llm_provider"), more.get("api_base") or more.get("base_url"), more.get("api_key"))
        _, _, key, base = self._inner.get_llm_provider(model, *given)
        said = {"api_key": given[2] or key or self._inner.api_key, "base_url": given[1] or base or self._inner.api_base}
        kind_of = openai.OpenAI if isinstance(http, httpx.Client) else openai.AsyncOpenAI
        retries = more.get("max_retries")
        return kind_of(**said, http_client=http, max_retries=2 if retries is None else retries)

    def _checked(self, answer: Any, meter: Meter, kind: str, more: Mapping[str, Any]) -> Any:
        """An answer that came by no client of ours was not counted: whom it came from is not asked again."""
        check = partial(self._check, meter, kind, mocked=more.get("mock_response") is not None)
        if hasattr(answer, "__anext__"):  # it may be sent when it is first read
            kind_of_stream: Any = type(answer)
            answer.__class__ = _unwrapping(kind_of_stream)
            answer.tokenbudget_check = check
        else:
            check(answer)
        return answer

    def _check(self, meter: Meter, kind: str, answer: Any, *, mocked: bool) -> None:
        hidden = getattr(answer, "_hidden_params", None)
        cached = isinstance(hidden, Mapping) and hidden.get("cache_hit")
        if not (meter.used or cached or mocked):
            self._around.add(kind)
            warnings.warn(
                f"this version of LiteLLM sent a call to {kind} past the budget: it was not counted, and the next is refused",
                RuntimeWarning,
                stacklevel=5,
            )


@cache
def _unwrapping(kind: Any) -> Any:
    """A kind of LiteLLM's streams whose refusals are ours as they are."""

    def advance(self: Any) -> Any:
        try:
            piece = kind.__next__(self)
        except Exception as error:
            _raise_refusal(error)
            raise
        self.tokenbudget_check(piece)
        return piece

    async def advance_async(self: Any) -> Any:
        try:
            piece = await kind.__anext__(self)
        except Exception as error:
            _raise_refusal(error)
            raise
        self.tokenbudget_check(piece)
        return piece

    return type(kind.__name__, (kind,), {"__next__": advance, "__anext__": advance_async})


def instrument(client: Any, meter: Meter) -> MeteredLiteLLM:
    """LiteLLM's module with calls that count."""
    if isinstance(client, MeteredLiteLLM):
        return client.over(meter)
    return MeteredLiteLLM(client, meter)


def retagged(client: Any, tags: Mapping[str, str]) -> MeteredLiteLLM | None:
    """The same with more tags; `None` where it is under no budget."""
    return client.tagged(tags) if isinstance(client, MeteredLiteLLM) else None


def _raise_refusal(error: BaseException) -> None:
    """LiteLLM wraps what its clients raise in errors of its own, several deep; a refusal of ours is raised as it is."""
    for each in _behind(error):
        if isinstance(each, TokenBudgetError):
            raise each from None


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
