"""OpenAI's files and batches as the provider of the tests keeps them: a batch reads an uploaded file and writes two others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.answers import Asked, Line, Reply, failed, refused

_ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings")
_Answered = Callable[[Asked, str], Line]
_NewId = Callable[[str], str]
_OPEN = {"validating": "in_progress", "in_progress": "in_progress"}
_NOT_RUN = {
    "expired": {"code": "batch_expired", "message": "This request could not be executed before the completion window expired."},
    "canceled": {"code": "batch_cancelled", "message": "This request was not executed: the batch was cancelled."},
}


@dataclass(slots=True)
class _Batch:
    said: dict[str, Any]
    lines: list[Asked]
    looks: int | None  # how many see it at work; without a number, all of them do


@dataclass(slots=True)
class Files:
    """The files there are, oldest first, and what they hold."""

    now: int
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)

    def answer(self, asked: Asked, new_id: _NewId) -> Reply:
        """The answer to any request about files."""
        if asked.path == "/v1/files" and asked.method == "POST":
            name, content = asked.body["file"]
            return Reply(self.add(new_id("file"), name, asked.body["purpose"], content))
        if asked.path == "/v1/files":
            return _page(self.kept.values(), asked.query)
        id, _, what = asked.path.removeprefix("/v1/files/").partition("/")
        if id not in self.kept:
            return refused(404, f"there is no file {id}")
        if what == "content":
            return Reply(self.content[id], headers={"content-type": "application/octet-stream"})
        if asked.method == "DELETE":
            del self.kept[id], self.content[id]
            return Reply({"id": id, "object": "file", "deleted": True})
        return Reply(self.kept[id])

    def add(self, id: str, name: str, purpose: str, content: bytes) -> dict[str, Any]:
        """Keep a file, and say what it is."""
        said = {"id": id, "object": "file", "bytes": len(content), "created_at": self.now, "filename": name}
        self.kept[id] = {**said, "purpose": purpose, "status": "processed", "expires_at": None, "status_details": None}
        self.content[id] = content
        return self.kept[id]


@dataclass(slots=True)
class Batches:
    """The batches there are, oldest first."""

    files: Files
    kept: dict[str, _Batch] = field(default_factory=dict)

    def answer(self, asked: Asked, line: _Answered, looks: int | None, new_id: _NewId) -> Reply:
        """The answer to any request about batches."""
        if asked.path == "/v1/batches":
            if asked.method == "POST":
                return self._create(asked, looks, new_id)
            return _page((batch.said for batch in self.kept.values()), asked.query)
        id, _, what = asked.path.removeprefix("/v1/batches/").partition("/")
        batch = self.kept.get(id)
        if batch is None:
            return refused(404, f"there is no batch {id}")
        if what == "cancel":
            if batch.said["status"] in _OPEN:
                batch.said |= {"status": "cancelling", "cancelling_at": self.files.now}
        else:
            self._look(id, batch, line, new_id)
        return Reply(dict(batch.said))

    def finish(self, id: str, line: _Answered, ends: str, new_id: _NewId) -> None:
        """End a batch: so ends every line of which nothing else is told."""
        batch = self.kept[id]
        lines = [(each, line(each, ends)) for each in batch.lines]
        good: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        for each, told in reversed(lines):  # in whatever order
            (good if told.ends == "succeeded" else bad).append(_written(each, told, new_id))
        status = {"canceled": "cancelled", "expired": "expired"}.get(ends, "completed")
        if any(told.ends == "expired" for _, told in lines):
            status = "expired"
        batch.said |= {
            "status": status,
            "output_file_id": self._write(good, "output", new_id),
            "error_file_id": self._write(bad, "error", new_id),
            "request_counts": {"total": len(lines), "completed": len(good), "failed": len(bad)},
            "finalizing_at": self.files.now,
            f"{status}_at": self.files.now,
        }

    def _look(self, id: str, batch: _Batch, line: _Answered, new_id: _NewId) -> None:
        if batch.said["status"] == "cancelling":
            self.finish(id, line, "canceled", new_id)
        elif batch.said["status"] in _OPEN and batch.looks is not None:
            batch.looks -= 1
            if batch.looks < 0:
                self.finish(id, line, "succeeded", new_id)
                return
        batch.said["status"] = _OPEN.get(batch.said["status"], batch.said["status"])

    def _write(self, lines: list[dict[str, Any]], kind: str, new_id: _NewId) -> str | None:
        if not lines:
            return None
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        id: str = self.files.add(new_id("file"), f"batch_{kind}.jsonl", "batch_output", content)["id"]
        return id

    def _create(self, asked: Asked, looks: int | None, new_id: _NewId) -> Reply:
        body = asked.body
        if body.get("input_file_id") not in self.files.content or body.get("endpoint") not in _ENDPOINTS:
            return refused(400, "input_file_id or endpoint: there is no such thing")
        lines, errors = _read(self.files.content[body["input_file_id"]], body["endpoint"], asked.headers)
        said = {
            "id": new_id("batch"),
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": body.get("completion_window"),
            "status": "failed" if errors else "validating",
            "errors": {"object": "list", "data": errors} if errors else None,
            "metadata": body.get("metadata"),
            "created_at": self.files.now,
            "expires_at": self.files.now + 86_400,
            "request_counts": {"total": 0 if errors else len(lines), "completed": 0, "failed": 0},
            "output_file_id": None,
            "error_file_id": None,
        }
        self.kept[said["id"]] = _Batch(said, lines, looks)
        return Reply(dict(said))


def _read(content: bytes, endpoint: str, headers: dict[str, str]) -> tuple[list[Asked], list[dict[str, Any]]]:
    """The requests in a file, and what is wrong with it."""
    lines: list[Asked] = []
    errors = []
    ids = set()
    for number, text in enumerate(content.splitlines(), start=1):
        try:
            said = json.loads(text)
            line = Asked(said["url"], headers, said["body"], custom_id=said["custom_id"])
        except (ValueError, KeyError, TypeError):
            errors.append({"code": "invalid_json_line", "line": number, "message": "This line is no request.", "param": None})
            continue
        if line.path != endpoint or line.custom_id in ids:
            errors.append({"code": "invalid_request", "line": number, "message": "Another url, or an id twice.", "param": None})
        ids.add(line.custom_id)
        lines.append(line)
    if not lines and not errors:
        errors.append({"code": "empty_file", "line": None, "message": "The input file is empty.", "param": None})
    return lines, errors


def _written(asked: Asked, line: Line, new_id: _NewId) -> dict[str, Any]:
    """One line of the output or error file."""
    said = {"id": new_id("batch_req"), "custom_id": asked.custom_id}
    if line.ends in _NOT_RUN:
        return {**said, "response": None, "error": _NOT_RUN[line.ends]}
    reply = line.reply
    if line.ends == "errored" and reply.status == 200:
        reply = Reply(failed(500).body, status=500)
    body = reply.body if line.ends == "succeeded" else {"error": reply.body["error"]}
    return {**said, "response": {"status_code": reply.status, "request_id": new_id("req"), "body": body}, "error": None}


def _page(said: Iterable[dict[str, Any]], query: dict[str, str]) -> Reply:
    newest = list(said)[::-1]
    if "after" in query:
        newest = newest[[each["id"] for each in newest].index(query["after"]) + 1 :]
    page = newest[: int(query.get("limit", 20))]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return Reply({"object": "list", "data": [dict(each) for each in page], "has_more": len(page) < len(newest), **ends})
