"""What the provider knows from one request to the next, and which protocol answers which path.

A copy of it gives the answer that the next request would get, and changes nothing: ids follow from how many there were before.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests import anthropic_batches, anthropic_protocol, openai_batches, openai_protocol
from tests.answers import Answer, Asked, Line, Reply, Used, failed, refused, tokens_of

MODELS = ("gpt-6", "gpt-6-mini", "text-embedding-3-small")

Told = Callable[[Asked], Answer | None]


@dataclass(slots=True)
class Desk:
    """Ids, dates, files and batches; no two providers give the same ids.

    Args:
        looks: how many see a batch at work before it ends; with `None`, all of them do.
        billed: what the lines of batches used, as the batches end.
    """

    url: str
    looks: int | None = 0
    billed: list[Used] = field(default_factory=list)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    since: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    ids: int = 0
    message_batches: anthropic_batches.Batches = field(init=False)
    files: openai_batches.Files = field(init=False)
    batches: openai_batches.Batches = field(init=False)

    def __post_init__(self) -> None:
        self.message_batches = anthropic_batches.Batches(self.since)
        self.files = openai_batches.Files(self.now)
        self.batches = openai_batches.Batches(self.files)

    def new_id(self, kind: str) -> str:
        """An id that nothing else has, of the same length as the others of its kind."""
        self.ids += 1
        return f"{kind}_{self.mark}{self.ids:012d}"

    @property
    def now(self) -> int:
        """When everything happens, in seconds since 1970."""
        return int(self.since.timestamp())

    def answer(self, asked: Asked, answer: Answer, told: Told) -> Reply:
        """What is said to a request; `told` is asked about each line of a batch that ends with it."""
        if answer.body is not None:
            return Reply(answer.body, status=answer.status)
        if answer.status != 200:
            return Reply(failed(answer.status).body, status=answer.status)
        path = asked.path
        line = self._line(told)
        if path.startswith(anthropic_batches.ROOT):
            return self.message_batches.answer(asked, line, self.looks, self.new_id, self.url)
        if path.startswith("/v1/batches"):
            return self.batches.answer(asked, line, self.looks, self.new_id)
        if path.startswith("/v1/files"):
            return self.files.answer(asked, self.new_id)
        if path.startswith("/v1/models"):
            return openai_protocol.models(asked, MODELS, self.now)
        return self._right(asked, answer)

    def finish(self, batch_id: str, ends: str, told: Told) -> None:
        """End a batch of either protocol now."""
        if batch_id in self.message_batches.kept:
            self.message_batches.finish(batch_id, self._line(told), ends, self.url)
        else:
            self.batches.finish(batch_id, self._line(told), ends, self.new_id)

    def _line(self, told: Told) -> Callable[[Asked, str], Line]:
        def answered(asked: Asked, ends: str) -> Line:
            answer = told(asked) or Answer()
            ends = answer.ends or (ends if answer.status == 200 else "errored")
            reply = self.answer(asked, answer, told) if ends in ("succeeded", "errored") else Reply()
            if reply.status != 200:
                return Line("errored", reply)
            if ends == "succeeded" and reply.used is not None:
                self.billed.append(reply.used)
            return Line(ends, reply)

        return answered

    def _right(self, asked: Asked, answer: Answer) -> Reply:
        path = asked.path
        if path == "/v1/messages":
            return anthropic_protocol.messages(asked, answer, self.new_id)
        if path == "/v1/messages/count_tokens":
            return Reply({"input_tokens": tokens_of(asked.body)})
        if path == "/v1/responses/input_tokens":
            return Reply({"object": "response.input_tokens", "input_tokens": tokens_of(asked.body)})
        if path == "/v1/chat/completions":
            return openai_protocol.chat(asked, answer, self.new_id, self.now)
        if path == "/v1/responses":
            return openai_protocol.responses(asked, answer, self.new_id, self.now)
        if path == "/v1/embeddings":
            return openai_protocol.embeddings(asked, answer)
        return refused(404, f"there is no {path}")
