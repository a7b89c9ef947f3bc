"""What the provider knows from one request to the next, and which protocol answers which path.

A copy of it gives the answer that the next request would get, and changes nothing: ids follow from how many there were before.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests import anthropic_protocol, openai_protocol
from tests.answers import Answer, Asked, Reply, refused, tokens_of

MODELS = ("gpt-6", "gpt-6-mini", "text-embedding-3-small")


@dataclass(slots=True)
class Desk:
    """Ids and dates; no two providers give the same ids."""

    url: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    since: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    ids: int = 0

    def new_id(self, kind: str) -> str:
        """An id that nothing else has, of the same length as the others of its kind."""
        self.ids += 1
        return f"{kind}_{self.mark}{self.ids:012d}"

    @property
    def now(self) -> int:
        """When everything happens, in seconds since 1970."""
        return int(self.since.timestamp())

    def answer(self, asked: Asked, answer: Answer) -> Reply:
        """The right answer, as far as the test does not want it otherwise."""
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
        if path.startswith("/v1/models"):
            return openai_protocol.models(asked, MODELS, self.now)
        return refused(404, f"there is no {path}")
