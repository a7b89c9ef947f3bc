"""Claude's counter in processes of their own: Ctrl-C, scripts that close nothing, nested loops, and forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import anthropic
import pytest

import tokenbudget_lab as tbl
from tests.processes import until
from tests.provider import OVERHEAD, Provider

ROOT = Path(__file__).resolve().parents[1]

INTERRUPTED = {
    "sync": "counter.count_sync('first')",
    "sync in a running loop": "asyncio.new_event_loop().run_until_complete(blocking())",
    "coroutine on the private loop": "loops.run(counter.count('first'))",
    "async": "asyncio.run(counter.count('first'))",
    "async over threads": "asyncio.run(with_own.count('first'))",
}
SCRIPT = """
    import asyncio, time
    import anthropic, tokenbudget_lab as tbl
    from tokenbudget_lab import loops

    counter = tbl.ClaudeTokenCounter("claude-sonnet-5-5")
    with_own = tbl.ClaudeTokenCounter("claude-sonnet-5-5", client=anthropic.Anthropic())
    async def blocking():
        return counter.count_sync("first")

    try:
        {line}
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    input()
    print(counter.count_sync("second one").tokens, asyncio.run(counter.count("third")).tokens)
"""


@pytest.mark.parametrize("line", INTERRUPTED.values(), ids=INTERRUPTED)
def test_ctrl_c_ends_the_request_and_the_next_count_works(provider: Provider, line: str) -> None:
    """In a script; a request in a thread of its own ends by itself, and is not waited for."""
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT).format(line=line)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env) as process:
        try:
            with provider.holding():
                until(lambda: provider.at_work == 1, within_s=60)
                process.send_signal(signal.SIGINT)
                assert process.stdout is not None
                assert process.stdout.readline() == "interrupted\n"
                if "with_own" not in line:
                    until(lambda: provider.hung_up == 1)
            out, err = process.communicate("\n", timeout=30)
        finally:
            process.kill()
    assert (out, process.returncode) == (f"{10 + OVERHEAD} {5 + OVERHEAD}\n", 0)
    assert err == ""


@pytest.mark.parametrize("end", ["loop.close()", "pass"])
def test_a_script_that_closes_nothing_ends_without_a_word(provider: Provider, end: str) -> None:
    """Clients of a private loop, of sync code, and of a loop that was left open, or closed by hand as asyncio asks for."""
    script = f"""
        import asyncio
        import tokenbudget_lab as tbl
        from tokenbudget_lab import loops
        counter = tbl.ClaudeTokenCounter("claude-sonnet-5-5")
        loop = asyncio.new_event_loop()
        print(counter.count_sync("1").tokens, loops.run(counter.count("22")).tokens)
        print(loop.run_until_complete(counter.count("333")).tokens)
        loop.run_until_complete(loop.shutdown_asyncgens()) if {end != "pass"} else None
        {end}
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    noise = [line for line in ended.stderr.splitlines() if "Executing <" not in line]  # that a loop was slow, in dev mode
    assert (ended.stdout, noise) == ("8 9\n10\n", [])


def test_an_async_client_works_from_sync_code_where_loops_may_be_nested(provider: Provider) -> None:
    """In a process of its own: what allows it changes asyncio for good."""
    script = """
        import asyncio, anthropic, nest_asyncio2
        import tokenbudget_lab as tbl

        async def main():
            nest_asyncio2.apply()
            async with anthropic.AsyncAnthropic() as client:
                counter = tbl.ClaudeTokenCounter("claude-sonnet-5-5", async_client=client)
                print((await counter.count("a")).tokens, counter.count_sync("bb").tokens)

        asyncio.run(main())
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr) == (f"{1 + OVERHEAD} {2 + OVERHEAD}\n", "")


def test_a_forked_child_has_connections_of_its_own(provider: Provider) -> None:
    """On a shared one, each could read the other's answers. A client of one's own is refused there."""
    counter = tbl.ClaudeTokenCounter("claude-sonnet-5-5")
    counter.count_sync("in the parent")
    with anthropic.Anthropic() as client:
        with_own = tbl.ClaudeTokenCounter("claude-sonnet-5-5", client=client)
        counter._gate.acquire()  # as a thread of the parent that is not in the child might have done
        if (pid := os.fork()) == 0:
            code = 1
            try:
                with pytest.raises(tbl.CountFailed, match="belongs to process"):
                    with_own.count_sync("a")
                code = 0 if counter.count_sync("child").tokens == 5 + OVERHEAD else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        counter._gate.release()
    assert provider.connections == 2
    assert counter.count_sync("in the parent again").tokens == 19 + OVERHEAD
