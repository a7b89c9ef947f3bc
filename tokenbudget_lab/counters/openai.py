"""OpenAI: counts on this machine, exactly and offline; tools and images by the provider's own endpoint, when asked for.

Its readers may rely on these: no count downloads a table or, without `endpoint=True`, touches the network; every text is
answered in bounded time; and what is estimated or assumed says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from .. import loops
from ..chat import UNSURE_OF_TOOLS, Request, as_flat, as_items, messages_of, request_of
from ..clients import Clients
from ..counter import Content, Count, Placed, System, TokenCounter, Tools, at_least_one, counting_bar, items
from ..encodings import NEWEST
from ..errors import CountFailed, EndpointUnreachable, InvalidType, redacted
from ..shapes import model_of, system_of
from ..tokenizers import Tally, checked_backend, tallies, tally
from ..usage import MAX_TOKENS

if TYPE_CHECKING:
    import openai

ENDPOINT = "responses.input_tokens"
TIMEOUT_S = 60.0  # of one attempt by a client of ours
_NO_COUNT = "what came back is no count; look at what stands between here and the API: a proxy, a login page, base_url"
_SAID = 300  # characters of what the API says that fit into an error
UNSURE_OF_ENCODING = 0.1  # how far another encoding may be from the newest one that is known
UNSURE_OF_CUTS = 0.01  # a text without any place to cut at, so it was cut every 32,768 characters; 0.004 at most was seen
_AT_ONCE, _CHARACTERS_AT_ONCE = 4_096, 4_000_000  # what one batch holds
_APART = 20_000  # characters of a text that is counted off the event loop


class OpenAITokenCounter(TokenCounter):
    """Counts as OpenAI's models do, with tiktoken's tables, on this machine.

    A text by itself is exact. So are messages of text for the chat models of which OpenAI has published what stands around a
    message (GPT-3.5, GPT-4, GPT-4o); for later ones, and for tools and images, the count is an estimate with a margin. A model
    that tiktoken does not know is counted in the newest encoding, and the note says that it is assumed.

    Args:
        model: as the API calls it; `openai/` before it is passed over.
        backend: `tiktoken`, or `toktok`, which is ten times as fast on much text and counts the same; `auto` takes what is
            there.
        endpoint: whether OpenAI's own endpoint counts, exactly, with tools, images and files. It needs the `openai` extra.
        client: an `openai.OpenAI` of your own for that; it means `endpoint=True`.
        async_client: an `openai.AsyncOpenAI` of your own; it belongs to one event loop, so it serves that one only.

    Raises:
        InvalidType: a model that is no text, a client of the wrong kind.
        InvalidValue: an empty model, an unknown backend.

    Examples:
        >>> counter = OpenAITokenCounter("gpt-4o")
        >>> print(counter.count_sync("What is a budget?"))
        5 tokens (tiktoken o200k_base)
        >>> counter.count_sync([{"role": "user", "content": "What is a budget?"}]).tokens
        12
        >>> [count.tokens for count in counter.count_many_sync(["one", "one two"])]
        [1, 2]
    """

    def __init__(
        self,
        model: str,
        *,
        backend: str = "auto",
        endpoint: bool = False,
        client: openai.OpenAI | None = None,
        async_client: openai.AsyncOpenAI | None = None,
    ) -> None:
        self.model = model_of(model).removeprefix("openai/")
        self.backend = checked_backend(backend)
        self.endpoint = endpoint or client is not None or async_client is not None
        self.encoding, self.assumed = _encoding_of(self.model)
        self.method = f"{'tiktoken' if self.backend == 'auto' else self.backend} {self.encoding}"
        self._client = _of_kind("client", client, asynchronous=False)
        self._async_client = _of_kind("async_client", async_client, asynchronous=True)
        self._bound: asyncio.AbstractEventLoop | None = None  # the loop that the async client was first used in
        self._clients: Clients[openai.OpenAI, openai.AsyncOpenAI] = Clients(_new_client, _new_async_client)

    def __repr__(self) -> str:
        return f"OpenAITokenCounter({self.model!r})"

    async def count(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        """How many input tokens a text or a request has.

        Raises:
            InvalidType: it is neither text nor messages.
            CountFailed: there is something in it that only the endpoint can count; or the endpoint did not.
            EncodingMissing: the encoding's table is not on this machine.
        """
        if self.endpoint:
            return await self._ask_async(self._question(content, tools, system))
        request = request_of(content, tools=tools, system=system, model=self.model)
        if sum(map(len, request.texts)) > _APART:
            return (await asyncio.to_thread(self._counted, [request]))[0]
        return self._counted([request])[0]

    def count_sync(self, content: Content, *, tools: Tools | None = None, system: System | None = None) -> Count:
        """The same from sync code: no loop is needed, and none is in the way."""
        if self.endpoint:
            return self._ask(self._question(content, tools, system))
        return self._counted([request_of(content, tools=tools, system=system, model=self.model)])[0]

    async def count_many(
        self,
        contents: Iterable[Content],
        *,
        tools: Tools | None = None,
        system: System | None = None,
        concurrency: int = 32,
        progress: bool | None = None,
    ) -> list[Count]:
        """Count many, thousands at once and off the event loop; the endpoint is asked for each, `concurrency` at a time."""
        if self.endpoint:
            return await super().count_many(contents, tools=tools, system=system, concurrency=concurrency, progress=progress)
        at_least_one("concurrency", concurrency)
        counts: list[Count] = []
        with counting_bar(contents, progress) as bar:
            for batch in self._batches(contents, tools, system):
                counts += await asyncio.to_thread(self._counted, batch)
                bar.update(len(batch))
        return counts

    def count_many_sync(
        self,
        contents: Iterable[Content],
        *,
        tools: Tools | None = None,
        system: System | None = None,
        concurrency: int = 32,
        progress: bool | None = None,
    ) -> list[Count]:
        """The same from sync code; Ctrl-C ends it between two batches."""
        if self.endpoint:
            return super().count_many_sync(contents, tools=tools, system=system, concurrency=concurrency, progress=progress)
        at_least_one("concurrency", concurrency)
        counts: list[Count] = []
        with counting_bar(contents, progress) as bar:
            for batch in self._batches(contents, tools, system):
                counts += self._counted(batch)
                bar.update(len(batch))
        return counts

    # --- on this machine ---

    def _batches(self, contents: Iterable[Content], tools: Tools | None, system: System | None) -> Iterator[list[Request]]:
        """Requests, as many at once as are worth it and no more, so that memory stays flat."""
        batch: list[Request] = []
        characters = 0
        plain = tools is None and system is None
        for index, content in enumerate(items(contents)):
            if plain and isinstance(content, str):
                batch.append(Request([content]))
            else:
                with Placed(index):
                    batch.append(request_of(content, tools=tools, system=system, model=self.model))
            characters += sum(map(len, batch[-1].texts))
            if len(batch) == _AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def _counted(self, requests: list[Request]) -> list[Count]:
        texts = [text for request in requests for text in request.counted]
        found = (
            [tally(texts[0], self.encoding, self.backend)] if len(texts) == 1 else tallies(texts, self.encoding, self.backend)
        )
        if len(texts) == len(requests) and all(request.plain for request in requests):
            return [self._plain(each) for each in found]
        ordered = iter(found)
        return [self._count(request, list(islice(ordered, len(request.counted)))) for request in requests]

    def _plain(self, found: Tally) -> Count:
        """The count of a text by itself."""
        if self.assumed or found.forced:
            return self._count(Request([""]), [found])
        return Count(found.tokens, exact=True, method=self.method)

    def _count(self, request: Request, found: list[Tally]) -> Count:
        """One count, from the tallies of its texts; what its parts may be off adds up."""
        tokens, slack = sum(each.tokens for each in found) + request.around + request.guessed, float(request.slack)
        slack += UNSURE_OF_TOOLS * sum(each.tokens for each in found[len(request.texts) :])
        notes = [f"assumed: tiktoken does not know {self.model}"] if self.assumed else []
        slack += UNSURE_OF_ENCODING * tokens if self.assumed else 0
        if any(each.forced for each in found):
            notes.append("a text was cut where its encoding may not cut it")
            slack += UNSURE_OF_CUTS * tokens
        notes += request.notes
        return Count(
            tokens,
            exact=not notes,
            method=self.method,
            margin=slack / tokens if tokens and notes else 0.0,
            note="; ".join(notes) or None,
        )

    # --- by the endpoint ---

    def _question(self, content: Content, tools: Tools | None, system: System | None) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self.model, "input": content}
        first = () if isinstance(system, str) else system_of(system)
        if first or not isinstance(content, str):
            asked["input"] = as_items((*first, *messages_of(content)))
        if isinstance(system, str):
            asked["instructions"] = system
        if tools is not None:
            asked["tools"] = as_flat(tools)
        return asked

    def _ask(self, asked: dict[str, Any]) -> Count:
        if self._client is None and self._async_client is not None:
            return loops.run(self._ask_async(asked))
        with _named_errors():
            client = self._client or self._clients.sync()
            return _answer(client.responses.input_tokens.count(**asked))

    async def _ask_async(self, asked: dict[str, Any]) -> Count:
        if self._async_client is None and self._client is not None:
            return await asyncio.to_thread(self._ask, asked)
        with _named_errors():
            if self._async_client is not None:
                self._bind()
                return _answer(await self._async_client.responses.input_tokens.count(**asked))
            lease = await self._clients.here()
            return _answer(await lease.client.responses.input_tokens.count(**asked))

    def _bind(self) -> None:
        """A client of the caller's own belongs to the loop in which it is used first."""
        loop = asyncio.get_running_loop()
        self._bound = self._bound or loop
        if self._bound is not loop:
            reason = (
                "the AsyncOpenAI that was given belongs to another event loop: use `await counter.count(…)` there, give an "
                "OpenAI as client= beside it, or call tbl.allow_nested_loops() in a notebook"
            )
            raise CountFailed(ENDPOINT, reason)

    def close(self) -> None:
        """Close the clients that were made here, not those that were given; a later count makes new ones."""
        self._clients.close()

    async def aclose(self) -> None:
        """The same, and wait until the running loop's client is closed."""
        await self._clients.aclose()


# --- models --------------------------------------------------------------------------------------------------------------


def _encoding_of(model: str) -> tuple[str, bool]:
    """The encoding of a model, and whether it is assumed."""
    from tiktoken.model import encoding_name_for_model

    try:
        return encoding_name_for_model(model), False
    except KeyError:
        return NEWEST, True


# --- the endpoint ------------------------------------------------------------------------------------------------------------


def _of_kind(name: str, client: Any, *, asynchronous: bool) -> Any:
    """A client that was given, if it is of the kind that its argument wants."""
    if client is None:
        return None
    count = getattr(getattr(getattr(client, "responses", None), "input_tokens", None), "count", None)
    if count is None or inspect.iscoroutinefunction(count) is not asynchronous:
        wanted = "AsyncOpenAI" if asynchronous else "OpenAI"
        raise InvalidType(name, f"it takes an openai.{wanted}, not {type(client).__name__}")
    return client


def _new_client() -> openai.OpenAI:
    import openai

    return openai.OpenAI(timeout=TIMEOUT_S)


def _new_async_client() -> openai.AsyncOpenAI:
    import openai

    # Not the SDK's own wrapper: when it is collected it closes itself in whatever loop runs then.
    return openai.AsyncOpenAI(timeout=TIMEOUT_S, http_client=openai.DefaultAsyncHttpxClient())


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """What the SDK raises, as an error of ours: what happened and what to do."""
    try:
        yield
    except ImportError:
        reason = "the package openai is not installed: pip install 'tokenbudget-lab[openai]'"
        raise CountFailed(ENDPOINT, reason) from None
    except UnicodeEncodeError:
        reason = "the text has half a surrogate pair in it, which no request can carry; repair it first"
        raise CountFailed(ENDPOINT, reason) from None
    except json.JSONDecodeError:
        raise CountFailed(ENDPOINT, _NO_COUNT) from None
    except Exception as error:
        import openai

        if not isinstance(error, openai.OpenAIError):
            raise
        raise _failed(error, openai) from error


def _failed(error: Exception, openai: Any) -> CountFailed:
    if isinstance(error, openai.APITimeoutError):
        return EndpointUnreachable(ENDPOINT, "the API did not answer in time, nor on the SDK's retries; ask again later")
    if isinstance(error, openai.APIConnectionError):
        why = type(error.__cause__ or error).__name__
        return EndpointUnreachable(ENDPOINT, f"there is no connection to the API ({why}); check the network and base_url")
    said = redacted(str(error))
    return CountFailed(ENDPOINT, said if len(said) <= _SAID else f"{said[:_SAID]}…")


def _answer(reply: Any) -> Count:
    """The count in a reply. Zero is none: every request has tokens, so it comes from a stand-in that does not count."""
    tokens = getattr(reply, "input_tokens", None)
    if type(tokens) is not int or not 0 < tokens <= MAX_TOKENS:
        raise CountFailed(ENDPOINT, _NO_COUNT)
    return Count(tokens, exact=True, method=ENDPOINT)
