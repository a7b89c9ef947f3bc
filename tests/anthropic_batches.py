"""Anthropic's message batches as the provider of the tests keeps them: created, looked at until they end, and read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.answers import Asked, Line, Reply, failed, refused

ROOT = "/v1/messages/batches"
_ENDS = ("succeeded", "errored", "canceled", "expired")
_Answered = Callable[[Asked, str], Line]


@dataclass(slots=True)
class _Batch:
    said: dict[str, Any]
    lines: list[Asked]
    looks: int | None  # how many see it at work; without a number, all of them do
    results: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Batches:
    """The batches there are, oldest first."""

    since: datetime
    kept: dict[str, _Batch] = field(default_factory=dict)

    def answer(self, asked: Asked, line: _Answered, looks: int | None, new_id: Callable[[str], str], url: str) -> Reply:
        """The answer to any request about batches; `url` is the provider's."""
        if asked.path == ROOT:
            return self._create(asked, looks, new_id) if asked.method == "POST" else self._list(asked.query)
        id, _, what = asked.path.removeprefix(f"{ROOT}/").partition("/")
        batch = self.kept.get(id)
        if batch is None:
            return refused(404, f"there is no batch {id}")
        ended = batch.said["processing_status"] == "ended"
        if what == "cancel":
            if not ended:
                batch.said |= {"processing_status": "canceling", "cancel_initiated_at": self.since.isoformat()}
            return Reply(dict(batch.said))
        if what == "results":
            return Reply(events=batch.results, headers={"content-type": "application/x-jsonl"}) if ended else _not_yet()
        if asked.method == "DELETE":
            if not ended:
                return _not_yet()
            del self.kept[id]
            return Reply({"id": id, "type": "message_batch_deleted"})
        self._look(id, batch, line, url)
        return Reply(dict(batch.said))

    def finish(self, id: str, line: _Answered, ends: str, url: str) -> None:
        """End a batch: so ends every line of which nothing else is told."""
        batch = self.kept[id]
        results: list[dict[str, Any]] = [
            {"custom_id": each.custom_id, "result": _result(line(each, ends))} for each in batch.lines
        ]
        counts = Counter(each["result"]["type"] for each in results)
        batch.results = tuple(json.dumps(each).encode() + b"\n" for each in reversed(results))  # in whatever order
        batch.said |= {
            "processing_status": "ended",
            "ended_at": self.since.isoformat(),
            "request_counts": {"processing": 0, **{each: counts[each] for each in _ENDS}},
            "results_url": f"{url}{ROOT}/{id}/results",
        }

    def _look(self, id: str, batch: _Batch, line: _Answered, url: str) -> None:
        if batch.said["processing_status"] == "canceling":
            self.finish(id, line, "canceled", url)
        elif batch.said["processing_status"] == "in_progress" and batch.looks is not None:
            batch.looks -= 1
            if batch.looks < 0:
                self.finish(id, line, "succeeded", url)

    def _create(self, asked: Asked, looks: int | None, new_id: Callable[[str], str]) -> Reply:
        requests = asked.body.get("requests") or []
        ids = [each.get("custom_id") for each in requests]
        if not ids or None in ids or len(set(ids)) < len(ids):
            return refused(400, "requests: there must be some, each with a custom_id of its own")
        lines = [Asked("/v1/messages", asked.headers, each["params"], custom_id=each["custom_id"]) for each in requests]
        said: dict[str, Any] = {
            "id": new_id("msgbatch"),
            "type": "message_batch",
            "processing_status": "in_progress",
            "request_counts": {"processing": len(lines), **dict.fromkeys(_ENDS, 0)},
            "created_at": self.since.isoformat(),
            "expires_at": (self.since + timedelta(hours=24)).isoformat(),
            "ended_at": None,
            "cancel_initiated_at": None,
            "archived_at": None,
            "results_url": None,
        }
        self.kept[said["id"]] = _Batch(said, lines, looks)
        return Reply(dict(said))

    def _list(self, query: dict[str, str]) -> Reply:
        newest = list(reversed(self.kept))
        if "after_id" in query:
            newest = newest[newest.index(query["after_id"]) + 1 :]
        if "before_id" in query:
            newest = newest[: newest.index(query["before_id"])]
        page = newest[: int(query.get("limit", 20))]
        ends = {"first_id": page[0] if page else None, "last_id": page[-1] if page else None}
        return Reply({"data": [dict(self.kept[id].said) for id in page], "has_more": len(page) < len(newest), **ends})


def _not_yet() -> Reply:
    return refused(400, "the batch has not ended")


def _result(line: Line) -> dict[str, Any]:
    if line.ends == "succeeded":
        return {"type": "succeeded", "message": line.reply.body}
    if line.ends == "errored":
        body = line.reply.body if line.reply.status != 200 else failed(500).body
        return {"type": "errored", "error": {**body, "request_id": None}}
    return {"type": line.ends}
