"""Claude: counts by the provider's own endpoint, `messages.count_tokens`, which is free of charge and exact.

Its readers may rely on these: a count is the endpoint's or an error, never a guess; what is being counted is asked for once,
and remembered by its hash only; a client is made once for sync code and once for each event loop, and left open nowhere.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ..answers import Answers
from ..clients import Clients, PerLoop
from ..counter import Content, Count, System, TokenCounter, Tools
from ..errors import CountFailed, EndpointUnreachable, InvalidType, InvalidValue, redacted, told
from ..shapes import model_of, tools_of

if TYPE_CHECKING:
    import anthropic

METHOD = "count_tokens"
TIMEOUT_S = 60.0  # for one attempt of a client of ours; the SDK's own ten minutes are meant for replies
_SAID = 300  # characters of what the API says that fit into an error


class ClaudeTokenCounter(TokenCounter):
    """Counts as the provider does, by asking it: exactly, with images, tools and documents.

    Retries are the SDK's own: it asks twice more where the API is busy, and waits as long as the API says.

    Args:
        model: as the API calls it; models count differently.
        client: an `anthropic.Anthropic` of your own, which serves async code too, from threads. Without one a client is made
            that reads `ANTHROPIC_API_KEY`; an attempt of it ends after 60 s.
        async_client: an `anthropic.AsyncAnthropic` of your own. It belongs to one event loop, so it serves that one only.
        concurrency: most requests at the same time: of all threads together, and of each event loop.
        cache_size: how many counts are remembered; no content is.

    Raises:
        InvalidType: a client of the wrong kind, a model that is no text.
        InvalidValue: an empty model, a concurrency below 1, a negative cache size.

    Examples:
        >>> from tokenbudget_lab import demo_client
        >>> counter = ClaudeTokenCounter("claude-sonnet-5-5", client=demo_client(latency_s=(0, 0)))
        >>> print(counter.count_sync("What is a budget?"))
        9 tokens (count_tokens)
        >>> counter.count_sync([{"role": "user", "content": "What is a budget?"}], system="Be brief.").tokens
        11
    """

    def __init__(
        self,
        model: str,
        *,
        client: anthropic.Anthropic | None = None,
        async_client: anthropic.AsyncAnthropic | None = None,
        concurrency: int = 16,
        cache_size: int = 100_000,
    ) -> None:
        self.model = model_of(model, "claude-sonnet-5-5")
        self.concurrency = _at_least(1, "concurrency", concurrency)
        self.cache_size = _at_least(0, "cache_size", cache_size)
        self._client = _of_kind("client", client, asynchronous=False)
        self._async_client = _of_kind("async_client", async_client, asynchronous=True)
        self._bound: asyncio.AbstractEventLoop | None = None  # the loop that the async client was first used in
        self._before_fork: list[Any] = []
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._answers = Answers(self.cache_size)
        self._clients: Clients[anthropic.Anthropic, anthropic.AsyncAnthropic] = Clients(_new_client, _new_async_client)
        self._gate = threading.BoundedSemaphore(self.concurrency)
        self._gates = PerLoop(lambda: asyncio.Semaphore(self.concurrency))

    def __repr__(self) -> str:
        return f"ClaudeTokenCounter({self.model!r})"

    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        """How many input tokens a request with this content has, says the endpoint.

        Raises:
            InvalidType: it is neither text nor messages.
            CountFailed: the endpoint did not count it: it says what happened and what to do.
            EndpointUnreachable: there is no connection, or no answer in time.
        """
        request, key = self._request(content, tools, system)
        ask = partial(self._ask_async, request)
        return _count(await (ask() if key is None else self._answers.once_async(key, ask)))

    def count_sync(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        """The same from sync code, in a running loop as well; Ctrl-C ends the request."""
        request, key = self._request(content, tools, system)
        if self._client is None and self._async_client is not None:
            return self._nested(content, tools, system)
        ask = partial(self._ask, request)
        return _count(ask() if key is None else self._answers.once(key, ask))

    def close(self) -> None:
        """Close the clients that were made here, not those that were given; a later count makes new ones."""
        self._clients.close()

    async def aclose(self) -> None:
        """The same, and wait until the running loop's client is closed."""
        await self._clients.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- asking ---

    def _request(self, content: Content, tools: Tools | None, system: System | None) -> tuple[dict[str, Any], bytes | None]:
        """What is sent, as it is now, and its hash; none where it is more than JSON, such as an open file."""
        self._check_process()
        try:
            request = {"model": self.model, "messages": _messages(content)}
            if tools is not None:
                request["tools"] = [_plain(tool) for tool in tools_of(tools)]
            if system is not None:
                request["system"] = _plain(system)
            return request, hashlib.sha256(json.dumps(request).encode()).digest()
        except InvalidType:
            raise
        except TypeError:
            return request, None
        except RecursionError:
            raise InvalidValue("content", "it is nested too deep to be a request") from None

    def _check_process(self) -> None:
        """Start anew in a forked child: on a connection that both have, one would read the other's answers."""
        if self._pid == os.getpid():
            return
        if self._client is not None or self._async_client is not None:
            reason = f"the client given belongs to process {self._pid}; make a client and a counter in this process"
            raise CountFailed(METHOD, reason)
        self._before_fork.append((self._clients, self._gates))  # to close them is the parent's business
        self._start()

    def _ask(self, request: dict[str, Any]) -> int:
        client = self._client or self._clients.sync()
        with self._gate:
            try:
                return _tokens_in(client.messages.count_tokens(**request))
            except Exception as error:
                failed = self._failed(error, client)
                if failed is None:
                    raise
                raise failed from error

    async def _ask_async(self, request: dict[str, Any]) -> int:
        async with self._gates.here():
            if self._client is not None and (self._async_client is None or not self._is_at_home()):
                return await _in_thread(partial(self._ask, request))
            if self._async_client is not None:
                return await self._ask_with(self._async_client_here(self._async_client), request)
            lease = await self._clients.here()
            return await self._ask_with(lease.client, request)

    async def _ask_with(self, client: anthropic.AsyncAnthropic, request: dict[str, Any]) -> int:
        try:
            return _tokens_in(await client.messages.count_tokens(**request))
        except Exception as error:
            failed = self._failed(error, client)
            if failed is None:
                raise
            raise failed from error

    def _is_at_home(self) -> bool:
        """Whether this is the loop of the async client that was given; the first one that asks is."""
        loop = asyncio.get_running_loop()
        self._bound = self._bound or loop
        return self._bound is loop

    def _async_client_here(self, client: anthropic.AsyncAnthropic) -> anthropic.AsyncAnthropic:
        if self._is_at_home():
            return client
        reason = (
            "the AsyncAnthropic given belongs to another event loop, where it was used first; make a counter in this loop, or "
            "give it an Anthropic as client=, or none at all"
        )
        raise CountFailed(METHOD, reason)

    def _nested(self, content: Content, tools: Tools | None, system: System | None) -> Count:
        """Use the async client from sync code in its own loop, which must have been made to allow that."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not None and hasattr(loop, "_nest_patched") and self._bound in (None, loop):
            return loop.run_until_complete(self.count(content, tools=tools, system=system))
        reason = (
            "only an AsyncAnthropic was given, which belongs to its event loop: use `await counter.count(…)`, give an "
            "Anthropic as client= beside it, or call tbl.allow_nested_loops() in a notebook"
        )
        raise CountFailed(METHOD, reason)

    # --- what went wrong ---

    def _failed(self, error: Exception, client: Any) -> CountFailed | None:
        """What to say of an error; `None` for one that is a bug, and is to be seen as it is."""
        import anthropic

        if isinstance(error, TypeError) and "authentication" in str(error):  # so says the SDK that it has no key
            self._clients.forget()  # the next client reads the environment anew
            return CountFailed(METHOD, "there is no API key, and nothing was sent; set ANTHROPIC_API_KEY, or give a client=")
        if isinstance(error, anthropic.APIStatusError):
            if error.status_code in (401, 403):
                self._clients.forget()
            return CountFailed(METHOD, _reason(error, self.model, (client.api_key, client.auth_token)))
        if isinstance(error, anthropic.APIConnectionError):
            return _unreachable(error, client)
        if isinstance(error, UnicodeEncodeError):
            return CountFailed(METHOD, "the text has half a surrogate pair in it, which no request can carry; repair it first")
        if isinstance(error, json.JSONDecodeError):
            return CountFailed(METHOD, _NO_COUNT)
        if isinstance(error, anthropic.AnthropicError):
            return CountFailed(METHOD, _without_secrets(str(error), (client.api_key, client.auth_token)))
        return None


_NO_COUNT = "what came back is no count; look at what stands between here and the API: a proxy, a login page, base_url"


def _reason(error: anthropic.APIStatusError, model: str, secrets: tuple[str | None, ...]) -> str:
    status = error.status_code
    if status in (401, 403):
        return f"the API refused the key ({status}); check ANTHROPIC_API_KEY, or the client's"
    if status == 429:  # noqa: PLR2004 - of HTTP
        return "the API's rate limit is reached (429), and the SDK's retries met it too; wait, or lower concurrency="
    if status >= 500:  # noqa: PLR2004 - of HTTP
        return f"the API is out of order or overloaded ({status}), and stayed so through the SDK's retries; ask again later"
    said = _without_secrets(str(getattr(error, "api_message", None) or "it does not say why"), secrets)
    if status == 404:  # noqa: PLR2004 - of HTTP
        return f"the API does not know {told(model)}, or does not count (404: {said}); check the model and base_url"
    return f"the API refused the request ({status}: {said}); it would refuse the call itself too"


def _unreachable(error: anthropic.APIConnectionError, client: Any) -> CountFailed:
    import anthropic

    if client.is_closed():
        return CountFailed(METHOD, "the client is closed; give an open one, or none")
    if isinstance(error, anthropic.APITimeoutError):
        return EndpointUnreachable(METHOD, "the API did not answer in time, nor on the SDK's retries; ask again later")
    why = type(error.__cause__ or error).__name__
    return EndpointUnreachable(METHOD, f"there is no connection to the API ({why}); check the network and base_url")


def _without_secrets(text: str, secrets: tuple[str | None, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, "[redacted]") if secret else text
    text = redacted(text)
    return text if len(text) <= _SAID else text[:_SAID] + "…"


# --- values ---


def _tokens_in(reply: Any) -> int:
    """The count in a reply. Zero is none: every request has tokens, so it comes from a stand-in that does not count."""
    tokens = getattr(reply, "input_tokens", None)
    if type(tokens) is not int or not 0 < tokens < 2**53:
        raise CountFailed(METHOD, _NO_COUNT)
    return tokens


def _count(tokens: int) -> Count:
    return Count(tokens, exact=True, method=METHOD)


def _messages(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray, memoryview)):
        raise InvalidType("content", f"{type(content).__name__} is neither a text nor a list of messages")
    for each in content:
        _check_message(each)
    return [_plain(each) for each in content]


def _check_message(message: Any) -> None:
    if not isinstance(message, Mapping):
        raise InvalidType("content", f"a message is a mapping with role and content, not {type(message).__name__}")


def _plain(value: Any) -> Any:
    """A copy, as the caller may change the original while it waits; blocks of replies become what the SDK sends of them."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "model_dump"):
        left_out = getattr(value, "__api_exclude__", None)
        return value.model_dump(mode="json", exclude_unset=True, exclude=left_out)
    return value


def _at_least(least: int, name: str, value: Any) -> int:
    if type(value) is not int:
        raise InvalidType(name, f"{value!r} is no whole number")
    if value < least:
        raise InvalidValue(name, f"{value} is less than {least}")
    return value


def _of_kind(name: str, client: Any, *, asynchronous: bool) -> Any:
    """A client that was given, if it is of the kind that its argument wants."""
    if client is None:
        return None
    count_tokens = getattr(getattr(client, "messages", None), METHOD, None)
    if count_tokens is None or inspect.iscoroutinefunction(count_tokens) is not asynchronous:
        wanted = "AsyncAnthropic" if asynchronous else "Anthropic"
        raise InvalidType(name, f"it takes an anthropic.{wanted}, not {type(client).__name__}")
    return client


def _new_client() -> anthropic.Anthropic:
    import anthropic

    return anthropic.Anthropic(timeout=anthropic.Timeout(TIMEOUT_S, connect=5.0))


def _new_async_client() -> anthropic.AsyncAnthropic:
    import anthropic

    # Not the SDK's own wrapper: when it is collected it closes itself in whatever loop runs then.
    return anthropic.AsyncAnthropic(
        timeout=anthropic.Timeout(TIMEOUT_S, connect=5.0), http_client=anthropic.DefaultAsyncHttpxClient()
    )


async def _in_thread(work: Callable[[], int]) -> int:
    """Wait for a thread. One that nobody waits for any more keeps neither the loop nor the process from ending."""
    done: Future[int] = Future()
    run = contextvars.copy_context().run

    def fulfil() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(run(work))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=fulfil, name="tokenbudget count", daemon=True).start()
    return await asyncio.wrap_future(done)
