"""What may stand in the files of OpenAI's batches: what cannot be priced is not sent, what cannot be read is not free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

import tokenbudget_lab as tbl
from tests.conftest import Log
from tests.processes import said_before_killed
from tests.provider import Answer, Asked, Provider
from tests.test_openai_batches import BODIES, CHAT, MODEL, billed, lines, posted, read, sent
from tokenbudget_lab import link
from tokenbudget_lab.instruments import batch_requests
from tokenbudget_lab.instruments.openai_batches import order_of
from tokenbudget_lab.place import place_of

STORE = "memory"
ASKED = "What is a budget?"
GOOD = {"custom_id": "a", "method": "POST", "url": CHAT, "body": BODIES[CHAT]}


@pytest.fixture
def plain(provider: Provider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(max_retries=0) as client:
        yield client


@pytest.fixture
def client(study: tbl.Budget, plain: openai.OpenAI) -> openai.OpenAI:
    return tbl.instrument(plain, study)


# --- what goes in ------------------------------------------------------------------------------------------------------------


def one(**more: Any) -> bytes:
    """A file with one line, of which this is changed."""
    return json.dumps({name: value for name, value in {**GOOD, **more}.items() if value is not ...}).encode() + b"\n"


WRONG: dict[str, tuple[bytes, str]] = {
    "no line": (b"", "holds no request"),
    "blank lines": (b"\n \n", "holds no request"),
    "no JSON": (lines(2) + b"no json\n", "line 3"),
    "half a line": (lines(2)[:-20], "line 2"),
    "no object": (b"[]\n", "line 1"),
    "a key twice": (b'{"body": {}, "body": {}}\n', "twice"),
    "NaN": (b'{"custom_id": NaN}\n', "no number"),
    "nested too deep": (b"[" * 100_000 + b"\n", "too deep"),
    "no UTF-8": (b'{"custom_id": "\xff"}\n', "UTF-8"),
    "another endpoint": (one(url="/v1/responses"), "asks for"),
    "another method": (one(method="GET"), "asks for"),
    "no name": (one(custom_id=...), "custom_id"),
    "a name that is none": (one(custom_id=7), "custom_id"),
    "an empty name": (one(custom_id=""), "custom_id"),
    "a name that cannot be stored": (one(custom_id="a\0b"), "custom_id"),
    "a name that would be redacted": (one(custom_id="sk-abcdefghijklmnop"), "custom_id"),
    "an endless name": (one(custom_id="a" * 5_000), "custom_id"),
    "a name twice": (one() + lines(2) + one(), "line 4.*twice"),
    "no body": (one(body=...), "body"),
    "a body that is none": (one(body="x"), "body"),
    "no model": (one(body={"messages": []}), "line 1: model"),
    "minus one token": (one(body={**BODIES[CHAT], "max_completion_tokens": -1}), "line 1: max_completion_tokens"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_cannot_be_priced_is_named_and_not_sent(client: Any, provider: Provider, log: Log, what: str) -> None:
    """With the line, and without what was asked."""
    content, says = WRONG[what]
    with pytest.raises(tbl.InvalidValue, match=rf"(?s){says}.*(not sent|nothing was sent)") as caught:
        sent(client, content)
    assert (posted(provider), log.kinds) == (0, ["budget_set"])
    assert ASKED not in str(caught.value)


def test_what_cannot_be_counted_is_named_by_its_place(client: Any, provider: Provider, log: Log) -> None:
    picture = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]
    with pytest.raises(tbl.CountFailed, match="item 2"):
        sent(client, lines(2) + one(body={**BODIES[CHAT], "messages": picture}))
    assert (posted(provider), log.kinds) == (0, ["budget_set"])


def test_a_file_that_is_too_large_is_not_read_to_its_end(
    client: Any, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_requests, "_MOST_BYTES", 1_000)
    with pytest.raises(tbl.BatchUnread, match="larger"):
        sent(client, lines(50))
    assert posted(provider) == 0


@pytest.mark.parametrize("endpoint", ["/v1/images/generations", "/v1/moderations", "/v1/completions", None, 7])
def test_a_batch_of_what_has_no_price_here_is_refused(client: Any, provider: Provider, endpoint: Any) -> None:
    with pytest.raises(tbl.NotMetered, match="nothing was sent"):
        client.batches.create(input_file_id="file-1", endpoint=endpoint, completion_window="24h")
    assert not provider.asked


def test_a_batch_at_another_seller_is_refused() -> None:
    content = json.dumps({"input_file_id": "file-1", "endpoint": CHAT}).encode()
    assert order_of(content, "https://api.openai.com/v1/batches").file == "file-1"
    with pytest.raises(tbl.NotMetered, match="groq"):
        order_of(content, "https://api.groq.com/openai/v1/batches")


@pytest.mark.parametrize("encoded", [None, "gzip"])
@pytest.mark.parametrize("hooked", [False, True])
def test_files_are_read_however_they_come(
    ledger: tbl.Ledger, study: tbl.Budget, provider: Provider, encoded: str | None, *, hooked: bool
) -> None:
    """Compressed, or by a hook before."""
    provider.always(Answer(encoded=encoded))
    http = httpx2.Client(event_hooks={"response": [lambda response: response.read()]} if hooked else {})
    with openai.OpenAI(max_retries=0, http_client=http) as plain:
        client = tbl.instrument(plain, study)
        assert read(client, sent(client, lines(5)).id) == 5
    assert [(each.settled, each.state) for each in ledger.batches(ended=True)] == [(5, "committed")]


def test_any_http_client_may_send_a_batch(ledger: tbl.Ledger, study: tbl.Budget, plain: Any, provider: Provider) -> None:
    """Here httpx, with a key of its own and a query that goes along."""
    file = plain.files.create(file=("in.jsonl", lines(3)), purpose="batch").id
    with tbl.instrument(httpx.Client(base_url=provider.url, auth=("me", "secret"), params={"api": "1"}), study) as client:
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        name = client.post("/v1/batches", json=body).json()["id"]
        batch = client.get(f"/v1/batches/{name}").json()
        assert len(client.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()) == 3
    fetched, sent = provider.asked[1:3]
    assert (fetched.path, fetched.query) == (f"/v1/files/{file}/content", {"api": "1"})
    assert fetched.headers["authorization"] == sent.headers["authorization"]
    assert [(each.name, each.state) for each in ledger.batches(ended=True)] == [(name, "committed")]


# --- what comes out ----------------------------------------------------------------------------------------------------------


def line(item: Any, status: Any = 200, *, used: bool = True, **more: Any) -> dict[str, Any]:
    """A line of either file."""
    usage = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}
    body = {"id": f"chatcmpl-{item}", "object": "chat.completion", "model": MODEL, **({"usage": usage} if used else {})}
    return {"custom_id": item, "response": {"status_code": status, "body": body}, "error": None, **more}


def expired(item: str) -> dict[str, Any]:
    """A line of what was not run."""
    return {"custom_id": item, "response": None, "error": {"code": "batch_expired", "message": ASKED}}


USED = tbl.cost(tbl.Usage(1_000, 100), model=MODEL, batch=True)
TWO, THREE = [line("q0"), line("q1")], [line("q0"), line("q1"), line("q2")]
# What the provider says of a batch of three: its status, its files, how many it says are in which; what comes of that.
SAID: dict[str, tuple[str, Any, Any, tuple[int, int] | None, tuple[str, int]]] = {
    "all of them": ("completed", THREE, None, (3, 0), ("committed", 3)),
    "some failed": ("completed", TWO, [line("q2", 400, used=False)], (2, 1), ("committed", 2)),
    "some failed and are billed": ("completed", TWO, [line("q2", 500)], (2, 1), ("committed", 3)),
    "some are missing": ("completed", TWO, None, (2, 0), ("open", 2)),
    "some expired": ("expired", TWO, [expired("q2")], (2, 0), ("committed", 2)),
    "some were not run": ("cancelled", TWO, None, (2, 0), ("committed", 2)),
    "none was run": ("cancelled", None, None, (0, 0), ("committed", 0)),
    "some were run and are nowhere": ("cancelled", None, None, (1, 0), ("open", 0)),
    "some were run and are not there": ("expired", [line("q0")], [expired("q1")], (2, 0), ("open", 1)),
    "some failed and are not there": ("expired", [line("q0")], None, (1, 1), ("open", 1)),
    "no counts": ("expired", TWO, None, None, ("open", 2)),
    "not valid": ("failed", None, None, None, ("rolled_back", 0)),
    "not valid with counts": ("failed", None, None, (0, 0), ("rolled_back", 0)),
    "failed in its midst": ("failed", [line("q0")], None, (1, 0), ("committed", 1)),
    "failed and some are nowhere": ("failed", None, None, (1, 0), ("open", 0)),
    "at work": ("in_progress", None, None, (0, 0), ("open", 0)),
    "a word that nobody knows": ("resting", None, None, (0, 0), ("open", 0)),
    "a line that is none": ("completed", [*TWO, "x"], None, (3, 0), ("open", 2)),
    "a line that is none and not all run": ("expired", [*TWO, "x"], None, (2, 0), ("open", 2)),
    "a line without a name": ("completed", [*TWO, line(None)], None, (3, 0), ("open", 2)),
    "half a line": ("completed", [*TWO, line("q2")], None, (3, 0), ("open", 2)),
    "half a line and not all run": ("expired", [*TWO, line("q2")], None, (2, 0), ("open", 2)),
    "no line break at its end": ("completed", THREE, None, (3, 0), ("committed", 3)),
    "more is billed than was counted": ("expired", TWO, [line("q2", 500)], (2, 0), ("committed", 3)),
    "an error that is a sentence": (
        "completed",
        TWO,
        [line("q2", response=None, error={"code": ASKED})],
        (2, 1),
        ("committed", 2),
    ),
    "no usage": ("completed", [*TWO, line("q2", used=False)], None, (3, 0), ("counted", 2)),
    "no status": ("completed", [*TWO, line("q2", "200")], None, (3, 0), ("counted", 2)),
    "neither a response nor an error": ("completed", [*TWO, line("q2", response=None)], None, (3, 0), ("counted", 2)),
    "no usage beside an error": ("completed", [line("q0"), line("q1", used=False)], [expired("q2")], (2, 1), ("counted", 1)),
}


def says(provider: Provider, name: str, what: str) -> None:
    """Have the provider say that of a batch."""
    status, output, error, counts, _ = SAID[what]
    files = {"output": output, "error": error}
    batch = {
        "id": name, "object": "batch", "status": status, "endpoint": CHAT, "input_file_id": "in", "created_at": 1,
        "completion_window": "24h", **{f"{kind}_file_id": kind if said else None for kind, said in files.items()},
        "request_counts": counts and {"completed": counts[0], "failed": counts[1], "total": 3},
    }  # fmt: skip
    content = {kind: "".join(json.dumps(each) + "\n" for each in said or ()).encode() for kind, said in files.items()}
    content["output"] = content["output"][: {"half": -30, "no l": -1}.get(what[:4])]

    def reply(asked: Asked) -> Answer | None:
        if asked.path.endswith(f"/batches/{name}"):
            return Answer(body=batch)
        return next((Answer(body=content[kind]) for kind in files if asked.path == f"/v1/files/{kind}/content"), None)

    provider.reply = reply


@pytest.mark.parametrize("by", ["sync", "reading"])
@pytest.mark.parametrize("what", SAID)
def test_what_the_files_say_settles_and_what_they_do_not_say_is_not_free(
    ledger: tbl.Ledger, client: Any, study: tbl.Budget, provider: Provider, log: Log, what: str, by: str
) -> None:
    """Given back is only what was not billed; what cannot be told keeps the rest of the hold, or counts as it was held."""
    batch, (state, count) = sent(client, lines(3)), SAID[what][4]
    held = study.balance.reserved_usd
    says(provider, batch.id, what)
    for _ in range(2):
        if by == "sync":
            ledger.sync_batches(client)
        else:
            read(client, batch.id)
    (known,) = ledger.batches(ended=True)
    assert known.state == state
    balance = study.balance
    if state == "counted":
        assert balance.committed_usd == max(held or 0, count * USED)
    else:
        assert balance.committed_usd == count * USED
    assert (balance.reserved_requests > 0) == (state == "open")
    assert known.unknown == 0
    assert ASKED not in "".join(event.detail or "" for event in log.events)


def test_what_is_over_and_cannot_be_told_is_said(
    ledger: tbl.Ledger, client: Any, plain: Any, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """And ends by whoever knows better."""
    batch = sent(client, lines(3))
    says(provider, batch.id, "some are missing")
    ledger.sync_batches(plain)
    assert "finish(unknown=True)" in caplog.text
    ledger.batch(batch.id).finish(unknown=True).result()
    assert not ledger.batches()


def test_a_part_of_a_file_is_not_taken_for_it(ledger: tbl.Ledger, client: Any, provider: Provider) -> None:
    batch = client.batches.retrieve(sent(client, lines(3)).id)
    whole = provider.bytes_of(f"/v1/files/{batch.output_file_id}/content", method="GET")
    provider.script(Answer(status=206, body=whole[: len(whole) // 2]))
    client.files.content(batch.output_file_id, extra_headers={"range": "bytes=0-"})
    assert [(each.settled, each.state) for each in ledger.batches()] == [(0, "open")]


def test_a_file_that_broke_off_does_not_end_its_batch(ledger: tbl.Ledger, client: Any, provider: Provider) -> None:
    """Also where all its lines had come but for the last byte."""
    batch = client.batches.retrieve(sent(client, lines(3)).id)
    size = len(provider.bytes_of(f"/v1/files/{batch.output_file_id}/content", method="GET"))
    provider.script(Answer(cut_at=size - 1))
    with pytest.raises(openai.APIConnectionError):
        client.files.content(batch.output_file_id)
    assert [each.state for each in ledger.batches()] == ["open"]
    client.files.content(batch.output_file_id)
    assert [(each.settled, each.state) for each in ledger.batches(ended=True)] == [(3, "committed")]


def test_an_error_file_that_broke_off_does_not_end_its_batch(
    ledger: tbl.Ledger, client: Any, study: tbl.Budget, provider: Provider
) -> None:
    """All that was counted had come; what was billed besides had not."""
    batch = sent(client, lines(3))
    says(provider, batch.id, "more is billed than was counted")
    client.batches.retrieve(batch.id)
    client.files.content("output")
    provider.script(Answer(body=b" " * 100, cut_at=50, drop="cut"))
    with pytest.raises(openai.APIConnectionError):
        client.files.content("error")
    assert [(each.settled, each.state) for each in ledger.batches()] == [(2, "open")]
    client.files.content("error")
    assert study.balance.committed_usd == 3 * USED


def test_a_batch_that_was_given_back_takes_no_results_any_more(
    ledger: tbl.Ledger, client: Any, study: tbl.Budget, caplog: pytest.LogCaptureFixture
) -> None:
    batch = client.batches.retrieve(sent(client, lines(3)).id)
    ledger.batch(batch.id).rollback().result()
    assert client.files.content(batch.output_file_id).text.count("\n") == 3
    assert "rolled_back; its results count no more" in caplog.text
    assert study.balance.committed_requests == 0


def test_results_of_a_batch_that_was_ended_too_early_are_not_passed_over(
    ledger: tbl.Ledger, client: Any, study: tbl.Budget
) -> None:
    """Whoever said that all of it was settled is told with the next call that it was not."""
    batch = client.batches.retrieve(sent(client, lines(1)).id)
    ledger.batch(batch.id).finish().result()
    client.files.content(batch.output_file_id)
    assert study.balance.committed_requests == 0
    with pytest.raises(tbl.ReservationClosed):
        client.chat.completions.create(**BODIES[CHAT])


def test_looking_at_batches_needs_no_budget(ledger: tbl.Ledger, study: tbl.Budget, plain: Any) -> None:
    """Their files are known once one is in force."""
    client = tbl.instrument(plain)
    with study.use():
        batch = sent(client, lines(3))
    assert client.batches.retrieve(batch.id).status == "completed"
    with study.use():
        assert read(client, batch.id) == 3
    assert not ledger.batches()


# --- whoever dies ------------------------------------------------------------------------------------------------------------

CHILD = """
import os, sys
import openai
import tokenbudget_lab as tbl
from tests.test_openai_batches import lines, sent
ledger = tbl.connect(sys.argv[1])
client = tbl.instrument(openai.OpenAI(), ledger.budget("study", usd=100))
if sys.argv[2] == "create":
    print(sent(client, lines(int(sys.argv[3]))).id, flush=True)
else:
    file = client.batches.retrieve(sys.argv[3]).output_file_id
    with client.files.with_streaming_response.content(file) as response:
        for n, _ in enumerate(response.iter_lines()):
            if n == int(sys.argv[4]):
                print("half", flush=True)
                sys.stdin.read()
os.kill(os.getpid(), 9)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("items", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_every_item_settles_once_though_processes_die(tmp_path: Path, provider: Provider, items: int) -> None:
    """One process sends the batch and is killed; one reads half of the results and is killed; then it is settled twice.

    One in ten had failed: these are given back.
    """
    provider.reply = lambda asked: Answer(status=400) if (asked.custom_id or "").endswith("7") else None
    path, good = tmp_path / "spend.duckdb", items * 9 // 10
    name = said_before_killed(CHILD, path, "create", items)
    assert name.startswith("batch")
    assert said_before_killed(CHILD, path, "read", name, items // 2) == "half"
    with tbl.connect(path) as ledger, openai.OpenAI() as plain:
        (before,) = ledger.batches()
        assert before.name == name
        for _ in range(2):
            ledger.sync_batches(plain)
        (after,) = ledger.batches(ended=True)
        balance = ledger.budget("study").balance
        assert (after.settled, after.state, after.cost_usd) == (items, "committed", billed(provider))
        assert (balance.committed_usd, balance.committed_requests) == (billed(provider), good)
        assert not balance.reserved_usd
        found = ledger.sql("select count(*) as n, count(distinct key) as names from events where kind = 'part_committed'")
        assert found.rows() == [(items, items)]
        ledger.verify()
    link.stop(place_of(path))
