"""The demo provider's message batches: answered a moment after they are sent, item by item as a call would be.

They are kept in memory, for as long as the process lives.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

Reply = Callable[[dict[str, Any]], dict[str, Any]]
_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


@dataclass(slots=True)
class _Batch:
    requests: list[Any]
    created: datetime
    ready: float
    id: str = field(default_factory=lambda: f"msgbatch_demo_{uuid.uuid4().hex[:24]}")
    results: list[dict[str, Any]] | None = None


class DemoBatches:
    """Batches of one demo server.

    Args:
        reply: answers one request.
    """

    def __init__(self, reply: Reply) -> None:
        self._reply, self._lock = reply, threading.Lock()
        self._batches: dict[str, _Batch] = {}

    def create(self, body: Any, after_s: float) -> dict[str, Any] | None:
        """Take a batch, to be answered after some seconds; `None` where it is none."""
        requests = body.get("requests") if isinstance(body, dict) else None
        if not isinstance(requests, list) or not requests:
            return None
        batch = _Batch(requests, datetime.now(UTC), time.monotonic() + after_s)
        with self._lock:
            self._batches[batch.id] = batch
        return self._told(batch, "")

    def find(self, id: str, url: str) -> dict[str, Any] | None:
        """How far a batch is."""
        with self._lock:
            batch = self._batches.get(id)
        return None if batch is None else self._told(batch, url)

    def results(self, id: str) -> list[dict[str, Any]] | None:
        """The results of a batch that has ended."""
        with self._lock:
            batch = self._batches.get(id)
            if batch is None or time.monotonic() < batch.ready:
                return None
            if batch.results is None:
                batch.results = [self._result(each) for each in batch.requests]
            return batch.results

    def _result(self, request: Any) -> dict[str, Any]:
        message = self._reply(request["params"])
        message["usage"]["service_tier"] = "batch"
        return {"custom_id": request["custom_id"], "result": {"type": "succeeded", "message": message}}

    @staticmethod
    def _told(batch: _Batch, url: str) -> dict[str, Any]:
        ended = time.monotonic() >= batch.ready
        counts = dict.fromkeys(_COUNTS, 0) | {"succeeded" if ended else "processing": len(batch.requests)}
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "created_at": batch.created.isoformat(),
            "expires_at": (batch.created + timedelta(days=1)).isoformat(),
            "ended_at": datetime.now(UTC).isoformat() if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{url}/v1/messages/batches/{batch.id}/results" if ended else None,
        }
