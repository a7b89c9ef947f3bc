"""OpenAI's batches: an uploaded file of requests goes in, a file of results and one of errors come out.

A batch is priced by the lines of its input file before it is sent. Which file belongs to which batch is learned whenever the
provider says how a batch is doing. A batch is over when each of its items was seen in a file, or when both files were read to
their end and the provider says that it ran no others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any, NamedTuple

from ..batching import Batch, BatchState, batches
from ..calls import Call
from ..checks import key_of
from ..errors import InvalidType, InvalidValue, NoBudget, NotMetered, told
from ..lines import json_objects
from ..metering import Meter
from ..protocols.openai import CHAT, EMBEDDINGS, PROVIDER, RESPONSES, response_report
from ..reservation import Counted, Receipt
from ..sellers import seller_at
from .batches import MOST_LINE, Results, Settling, log, now, open_at, state_of

_ENDPOINTS = {"/v1/chat/completions": CHAT, "/v1/responses": RESPONSES, "/v1/embeddings": EMBEDDINGS}
_NOT_SENT = "the batch cannot be priced, and was not sent"
_FILE = re.compile(r"[\w-][\w.-]{0,255}", re.ASCII)  # nothing that would lead to another path
_WORD = re.compile(r"[\w.-]{1,64}", re.ASCII)  # a sentence of the provider's may quote the prompt
_PARTIAL = frozenset({"failed", "expired", "cancelled"})  # some items may never have been run
_ENDED = _PARTIAL | {"completed"}


# --- what a batch asks for -----------------------------------------------------------------------------------------------


class Order(NamedTuple):
    """A batch that is to be created.

    Attributes:
        file: the id of its input file.
        endpoint: where each of its lines is to go.
    """

    file: str
    endpoint: str


def order_of(content: bytes, url: str) -> Order:
    """What a request to create a batch asks for.

    Raises:
        InvalidValue: it names no file.
        NotMetered: its provider or its endpoint is none of which the prices are known here.
    """
    seller = seller_at(url)
    if seller not in (None, PROVIDER):
        raise NotMetered(f"a batch at {seller}")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    file = body.get("input_file_id") if isinstance(body, Mapping) else None
    if not isinstance(file, str) or not _FILE.fullmatch(file):
        raise InvalidValue("input_file_id", f"{told(file)} is no id of a file; {_NOT_SENT}")
    endpoint = body.get("endpoint")
    if not isinstance(endpoint, str) or endpoint not in _ENDPOINTS:
        raise NotMetered(f"a batch of {told(endpoint)}", f"batches are metered of {', '.join(_ENDPOINTS)}")
    return Order(file, endpoint)


def calls_of(order: Order, content: bytes) -> Iterator[Call]:
    """The calls in an input file, one after the other.

    Raises:
        InvalidValue: a line that is no such request, one whose name another has, or no line at all.
    """
    name, names = f"input file {order.file}", set[str]()
    lines = json_objects(BytesIO(content), name, MOST_LINE)
    while True:
        try:
            where, line = next(lines, (name, None))
        except InvalidValue as error:
            raise type(error)(error.argument, f"{error.reason}; {_NOT_SENT}") from None
        if line is None:
            break
        yield _call(order, where, line, names)
    if not names:
        raise InvalidValue(name, f"holds no request; {_NOT_SENT}")


def _call(order: Order, where: str, line: Mapping[str, Any], names: set[str]) -> Call:
    item, body = line.get("custom_id"), line.get("body")
    if not isinstance(item, str):
        raise InvalidType(where, f"custom_id: {told(item)} is no name of an item; {_NOT_SENT}")
    try:
        key_of(item)  # by it, as it is, the item settles
    except InvalidValue as error:
        raise type(error)(where, f"custom_id: {error.reason}; {_NOT_SENT}") from None
    if item in names:
        raise InvalidValue(
            where, f"the custom_id {told(item)} stands in the file twice, and by it an item settles; {_NOT_SENT}"
        )
    names.add(item)
    if line.get("method") != "POST" or line.get("url") != order.endpoint:
        asked = f"{line.get('method')} {line.get('url')}"
        raise InvalidValue(where, f"asks for {told(asked)}, and the batch is one of POST {order.endpoint}; {_NOT_SENT}")
    if not isinstance(body, Mapping):
        raise InvalidType(where, f"its body is {type(body).__name__}, no request; {_NOT_SENT}")
    try:
        return _ENDPOINTS[order.endpoint].call(body)
    except InvalidValue as error:
        raise type(error)(f"{where}: {error.argument}", error.reason) from None


# --- what its files say ----------------------------------------------------------------------------------------------------


def settle(found: Batch, item: str, line: Mapping[str, Any]) -> Receipt[Counted]:
    """Settle an item by its line of either file: whatever says what it used is counted, also where it failed.

    Raises:
        InvalidValue: what it used cannot be told.
    """
    response, error = line.get("response"), line.get("error")
    if isinstance(response, Mapping):
        status, body = response.get("status_code"), response.get("body")
        if type(status) is not int:
            raise InvalidType("status_code", f"{told(status)} is no status")
        if 200 <= status < 300 or (isinstance(body, Mapping) and body.get("usage") is not None):  # noqa: PLR2004 - HTTP's
            return found.settle(item, response_report(body))
        return found.not_billed(item, f"HTTP {status}")
    if response is None and isinstance(error, Mapping):
        code = error.get("code")
        return found.not_billed(item, code if isinstance(code, str) and _WORD.fullmatch(code) else "error")
    raise InvalidType("response", f"{told(response)} is neither a response nor an error")


class Told(NamedTuple):
    """What the provider says of a batch.

    Attributes:
        name: its id.
        output, error: its files; `None` where it has none, or not yet.
        completed, failed: how many items are in which; `None` where that is not said.
    """

    name: str
    status: str
    output: str | None
    error: str | None
    completed: int | None
    failed: int | None

    @property
    def files(self) -> tuple[str, ...]:
        """The files there are."""
        return tuple(each for each in (self.output, self.error) if each is not None)


def told_of(body: Any) -> Told | None:
    """What a batch as JSON says; `None` where it is none."""
    said = _mapping(body)
    counts = _mapping(said.get("request_counts"))
    name, status = said.get("id"), said.get("status")
    if not isinstance(name, str) or not isinstance(status, str):
        return None
    output, error = (said.get(each) or None for each in ("output_file_id", "error_file_id"))
    if not isinstance(output, str | None) or not isinstance(error, str | None):
        return None
    completed, failed = (each if type(each) is int else None for each in (counts.get("completed"), counts.get("failed")))
    if status == "failed":  # nothing is run of what is not valid, and then nothing need be counted
        completed, failed = completed or 0, failed or 0
    return Told(name, status, output, error, completed, failed)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


class Files:
    """The files of a batch, and what was read of them so far.

    Args:
        said: what the provider said of the batch last.
        items: how many it has.
    """

    def __init__(self, said: Told, items: int) -> None:
        self.said, self._items = said, items
        self._read: dict[str, Settling] = {}

    def were_read(self, file: str, settling: Settling) -> None:
        """One of them was read to its end."""
        self._read[file] = settling

    def finish(self, found: Batch) -> Receipt[Any] | None:
        """End the batch, where nothing more can come of it."""
        names = set[str]().union(*(each.names | each.before for each in self._read.values()))
        unknown = any(each.unknown for each in self._read.values())
        if len(names) < self._items and (unknown or not self._has_run_no_more(names)):
            return None
        if self.said.status == "failed" and not names:
            return found.rollback()
        return found.finish(unknown=unknown)

    def _has_run_no_more(self, names: set[str]) -> bool:
        """Whether what is in neither file was never run: all that the provider counts was seen, and it goes on with nothing."""
        said = self.said
        if said.status not in _PARTIAL or said.completed is None or said.failed is None:
            return False
        if any(file not in self._read for file in said.files):
            return False
        good = self._read[said.output].names if said.output else ()
        return len(good) >= said.completed and len(names) >= said.completed + said.failed


# --- through an instrumented client ------------------------------------------------------------------------------------------


def note(meter: Meter, body: Any) -> None:
    """Remember which files are whose, of batches that the ledger has open; end those of which no item was run."""
    listed = body.get("data") if isinstance(body, Mapping) else None
    found = [told_of(each) for each in (listed if isinstance(listed, list) else [body])]
    ended = [each for each in found if each is not None and (each.files or each.status in _PARTIAL)]
    if not ended:
        return
    try:
        ledger: Any = meter.ledger()
    except NoBudget:  # whoever looks only asks for nothing that costs; the batch stays held
        return
    known = {each.name: each for each in batches(ledger)}
    for each in ended:
        state = known.get(each.name)
        if state is None:
            continue
        at_hand = (meter.files[file] for file in each.files if file in meter.files)
        files: Files = next(at_hand, None) or Files(each, state.items)
        files.said = each
        receipt = files.finish(state.of(ledger))
        if receipt is not None:
            meter.take(receipt)
        else:
            meter.files.update(dict.fromkeys(each.files, files))


def open_results(meter: Meter, file: str) -> Results | None:
    """What reads a file of results; `None` where it is no batch's, or is not to count."""
    files: Files | None = meter.files.get(file)
    state = None if files is None else state_of(meter, files.said.name)
    if files is None or state is None or state.state != "open":
        return None
    ledger: Any = meter.ledger()
    settling = Settling(state.of(ledger), settle)

    def finish() -> Receipt[Any] | None:
        files.were_read(file, settling)
        receipt = files.finish(settling.batch)
        if receipt is not None:
            for each in files.said.files:
                meter.files.pop(each, None)
        return receipt

    return Results(settling, meter, finish)


# --- from another notebook, on Monday ------------------------------------------------------------------------------------


def sync_batches(ledger: Any, client: Any) -> Any:
    """Settle all open batches that have ended, by a client that is under no budget."""
    import openai

    if isinstance(client, openai.AsyncOpenAI):
        return _sync_async(ledger, client)
    open_ones = open_at(ledger, PROVIDER)
    for state in open_ones:
        found, files = state.of(ledger), _ended(client.batches.retrieve(state.name), state)
        if files is None:
            continue
        for file in files.said.files:
            settling = Settling(found, settle)
            with client.files.with_streaming_response.content(file) as response:
                for chunk in response.iter_bytes():
                    settling.feed(chunk)
                    settling.check(all_of_them=False)
            settling.end()
            settling.check()
            files.were_read(file, settling)
        receipt = _last(files, found, state)
        if receipt is not None:
            receipt.result()
    return now(ledger, open_ones)


async def _sync_async(ledger: Any, client: Any) -> Any:
    open_ones = open_at(ledger, PROVIDER)
    for state in open_ones:
        found, files = state.of(ledger), _ended(await client.batches.retrieve(state.name), state)
        if files is None:
            continue
        for file in files.said.files:
            settling = Settling(found, settle)
            async with client.files.with_streaming_response.content(file) as response:
                async for chunk in response.iter_bytes():
                    settling.feed(chunk)
                    await settling.check_async(all_of_them=False)
            settling.end()
            await settling.check_async()
            files.were_read(file, settling)
        receipt = _last(files, found, state)
        if receipt is not None:
            await receipt
    return now(ledger, open_ones)


def _ended(said: Any, state: BatchState) -> Files | None:
    """The files of a batch that has ended."""
    told = told_of(said.model_dump(mode="json", warnings=False))
    return None if told is None or told.status not in _ENDED else Files(told, state.items)


def _last(files: Files, found: Batch, state: BatchState) -> Receipt[Any] | None:
    """End a batch whose files were read; where something of it cannot be told, its hold stays, and that is said."""
    receipt = files.finish(found)
    if receipt is None:
        log.warning(
            "%s; it is over (%s), and of some items no file says what became of them: their hold stays. "
            "ledger.batch(id).finish(unknown=True) counts it",
            state,
            files.said.status,
        )
    return receipt
