"""Counting in notebooks: real Jupyter kernels, cells with and without `await`, queued, interrupted, and with nested loops.

`make oldest` runs this file with the oldest ipykernel, the rest of `make test` with the newest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_kernels import Notebook, kernels, until  # noqa: F401 - a fixture is asked for by its name

OPEN = """
    import asyncio, http.server, os, pathlib, threading, time
    import tokenbudget_lab as tbl
    from tokenbudget_lab.counter import Count, TokenCounter

    os.chdir({folder!r})
    asked = []

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            pathlib.Path("asked").touch()
            time.sleep(0.05 if "quick" in self.path else 3)
            with __import__("contextlib").suppress(OSError):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"7")
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    class Foreign(TokenCounter):
        "Another package's counter: async only, over HTTP."
        ended = []
        async def count(self, content, *, tools=None, system=None):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.server_port)
            try:
                writer.write(f"GET /{{content}} HTTP/1.0\\r\\n\\r\\n".encode())
                reply = await reader.read()
                self.ended.append("answered")
                return Count(int(reply.split()[-1]), exact=True, method="foreign")
            except asyncio.CancelledError:
                self.ended.append("cancelled")
                raise
            finally:
                writer.close()

    local, foreign = tbl.OpenAITokenCounter("gpt-4o"), Foreign()
"""


@pytest.fixture
def notebook(kernels: list[Notebook], tmp_path: Path) -> Iterator[Notebook]:  # noqa: F811 - the fixture itself
    """A kernel with two counters: one that counts here, and one that is async only and asks a slow server."""
    one = kernels[0]
    one.ready()
    one.run(OPEN.format(folder=str(tmp_path)))
    one.cells.clear()
    yield one
    with contextlib.suppress(AssertionError):
        one.run("server.shutdown()")
    one.manager.restart_kernel(now=True)


@pytest.mark.parametrize("counter", ["local", "foreign"])
def test_every_way_of_counting_works_in_a_cell(notebook: Notebook, counter: str) -> None:
    """A plain cell, one with `await`, in a coroutine, in a thread, and many at once."""
    content = "one two three four five six seven" if counter == "local" else "quick"
    told = notebook.run(f"""
        print({counter}.count_sync({content!r}).tokens)
        print((await {counter}.count({content!r})).tokens)
        async def inside():
            return {counter}.count_sync({content!r}).tokens
        print(await inside())
        print(await asyncio.to_thread(lambda: {counter}.count_sync({content!r}).tokens))
        print(*[count.tokens for count in {counter}.count_many_sync([{content!r}] * 2, progress=False)])
        print(*[count.tokens for count in await {counter}.count_many([{content!r}] * 2, progress=False)])
    """)
    assert told == "7\n7\n7\n7\n7 7\n7 7\n"


@pytest.mark.parametrize("first", ["pass", "tbl.allow_nested_loops()"], ids=["plain", "nested loops"])
def test_the_queued_cells_of_run_all_are_all_run(notebook: Notebook, first: str) -> None:
    """Handed in at once, as `Run All` does; each counts in another way."""
    notebook.run(first)
    ways = ["foreign.count_sync('quick')", "(await foreign.count('quick'))", "local.count_sync('quick')"]
    cells = [notebook.send(f"print({n}, {ways[n % 3]}.exact)", stop_on_error=True) for n in range(9)]
    assert [notebook.end_of(cell).output for cell in cells] == [f"{n} True\n" for n in range(9)]


@pytest.mark.parametrize("first", ["pass", "tbl.allow_nested_loops()"], ids=["plain", "nested loops"])
def test_an_interrupted_count_is_cancelled_and_the_next_cell_works(notebook: Notebook, tmp_path: Path, first: str) -> None:
    """The request is broken off, not left to run behind the next cell."""
    notebook.run(first)
    interrupted = notebook.send("foreign.count_sync('slow')")
    until((tmp_path / "asked").exists)
    notebook.manager.interrupt_kernel()
    assert notebook.end_of(interrupted).error == "KeyboardInterrupt"
    assert notebook.run("print(*foreign.ended, foreign.count_sync('quick').tokens)") == "cancelled 7\n"


def test_a_client_of_the_notebooks_own_loop_counts_from_sync_code_where_loops_may_be_nested(notebook: Notebook) -> None:
    told = notebook.run("""
        home = asyncio.get_running_loop()
        class Bound(TokenCounter):
            async def count(self, content, *, tools=None, system=None):
                await asyncio.sleep(0.01)
                return Count(1, exact=asyncio.get_running_loop() is home, method="bound")
        print(Bound().count_sync("x").exact)
        tbl.allow_nested_loops()
        print(Bound().count_sync("x").exact)
    """)
    assert told == "False\nTrue\n"
