"""Coroutines from sync code: from anywhere, in anybody's loop, with Ctrl-C, across forks, and at the end."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab import loops
from tokenbudget_lab.errors import WouldDeadlock

PACKAGE = Path(tbl.__file__).resolve().parent.parent


async def answer(value: Any = 42) -> Any:
    await asyncio.sleep(0)
    return value


def script(code: str, *, interrupt_after: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script; with Ctrl-C after it has said a line."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    head = "import asyncio, os, sys, threading, time\nfrom tokenbudget_lab import loops\n"
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", head + textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        if interrupt_after is not None:
            said = process.stdout.readline()
            assert said.strip() == interrupt_after
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, said + out, err)


# --- from anywhere ---------------------------------------------------------------------------------------------------------


def test_it_runs_in_a_script_in_a_thread_and_in_a_running_coroutine() -> None:
    async def inside() -> Any:
        return loops.run(answer())

    told: list[Any] = [loops.run(answer()), asyncio.run(inside())]
    thread = threading.Thread(target=lambda: told.append(loops.run(answer())))
    thread.start()
    thread.join()
    assert told == [42, 42, 42]


def test_many_threads_share_the_loop() -> None:
    told: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: told.append(loops.run(answer(n)))) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == list(range(50))


def test_an_error_is_the_callers() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loops.run(fail())


def test_a_coroutine_sees_the_callers_context() -> None:
    variable = contextvars.ContextVar("variable", default="none")

    async def look() -> str:
        return variable.get()

    token = variable.set("study")
    try:
        assert loops.run(look()) == "study"
    finally:
        variable.reset(token)


def test_on_the_private_loop_itself_it_would_wait_for_itself() -> None:
    async def inside() -> Any:
        return loops.run(answer())

    with pytest.raises(WouldDeadlock):
        loops.run(inside())


# --- Ctrl-C --------------------------------------------------------------------------------------------------------------

SLOW = """
    async def slow():
        try:
            print("waiting", flush=True)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            print("tidied up", flush=True)
"""


def test_ctrl_c_in_the_moment_after_the_start_cancels_the_coroutine_too() -> None:
    """The coroutine runs already, and nobody waits for it yet."""
    code = """
    loop = loops._private.get()
    send = loop.call_soon_threadsafe

    def interrupted(*args, **named):
        loop.call_soon_threadsafe = send
        send(*args, **named)
        time.sleep(0.3)
        raise KeyboardInterrupt

    loop.call_soon_threadsafe = interrupted
    try:
        loops.run(slow())
    except KeyboardInterrupt:
        print("interrupted")
    """
    done = script(SLOW + code)
    assert (done.stdout, done.stderr) == ("waiting\ntidied up\ninterrupted\n", "")


def test_ctrl_c_cancels_the_coroutine_and_waits_until_it_has_tidied_up() -> None:
    code = """
    try:
        loops.run(slow())
    except KeyboardInterrupt:
        print("interrupted", loops.run(asyncio.sleep(0, "and works again")))
    """
    done = script(SLOW + code, interrupt_after="waiting")
    assert (done.stdout, done.stderr) == ("waiting\ntidied up\ninterrupted and works again\n", "")


def test_ctrl_c_in_a_running_loop_cancels_the_coroutine_too() -> None:
    """`asyncio.run` turns the first Ctrl-C into a cancellation of its task, which is in the middle of a sync wait."""
    code = """
    async def main():
        loops.run(slow())
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted")
    """
    done = script(SLOW + code, interrupt_after="waiting")
    assert done.stdout == "waiting\ntidied up\ninterrupted\n"


def test_a_cancellation_that_comes_before_the_wait_begins_ends_it_too() -> None:
    """As when Ctrl-C comes while the coroutine is being started."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        errand = loops._Errand(asyncio.sleep(20))
        task.cancel()
        errand.result()

    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert time.monotonic() - began < 10


def test_a_coroutine_that_will_not_end_holds_an_interrupted_wait_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "TIDY_S", 0.1)
    there, let_go = threading.Event(), threading.Event()

    async def stubborn() -> None:
        there.set()
        while not let_go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    def interrupt() -> None:
        there.wait(10)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loops.run(stubborn())
    let_go.set()
    assert time.monotonic() - start < 5


# --- forks and ends --------------------------------------------------------------------------------------------------------


def test_a_forked_child_has_a_loop_of_its_own_and_the_parents_goes_on() -> None:
    code = """
    async def both():
        return "works"
    loops.run(both())
    if (child := os.fork()) == 0:
        print("child", loops.run(both()), flush=True)
        sys.exit()
    os.waitpid(child, 0)
    print("parent", loops.run(both()))
    """
    done = script(code)
    assert (done.stdout, done.stderr) == ("child works\nparent works\n", "")


def test_a_child_that_is_forked_while_the_loop_is_being_made_does_not_wait_for_it() -> None:
    code = """
    with loops._private._making:
        if (child := os.fork()) == 0:
            print("child", loops.run(asyncio.sleep(0, "works")), flush=True)
            os._exit(0)
    os.waitpid(child, 0)
    """
    assert script(code).stdout == "child works\n"


def test_what_still_runs_when_the_interpreter_leaves_is_cancelled_and_tidies_up() -> None:
    code = """
    threading.Thread(target=lambda: loops.run(slow()), daemon=True).start()
    time.sleep(0.5)
    """
    done = script(SLOW + code)
    assert (done.returncode, done.stdout) == (0, "waiting\ntidied up\n")
    assert "never awaited" not in done.stderr
    assert "destroyed" not in done.stderr


def test_at_the_end_of_the_interpreter_it_works_or_says_that_it_cannot() -> None:
    """Registered before the loop's own end, so it runs behind it."""
    code = """
    import atexit
    def last():
        try:
            print(loops.run(asyncio.sleep(0, "works")))
        except RuntimeError as error:
            print("works" if "shutdown" in str(error) else error)
    atexit._clear()
    atexit.register(last)
    atexit.register(loops._private.leave)
    loops.run(asyncio.sleep(0))
    """
    done = script(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "works\n", "")


# --- nested loops --------------------------------------------------------------------------------------------------------


def test_importing_the_package_changes_nothing_in_asyncio() -> None:
    done = script("""
    import tokenbudget_lab as tbl
    tbl.OpenAITokenCounter("gpt-4o").count_sync("hello")
    print(hasattr(asyncio, "_nest_patched"), "nest_asyncio2" in sys.modules)
    """)
    assert done.stdout == "False False\n"


def test_where_loops_may_be_nested_a_coroutine_runs_on_the_loop_that_it_belongs_to() -> None:
    done = script("""
    import tokenbudget_lab as tbl

    async def here():
        await asyncio.sleep(0.01)
        return asyncio.get_running_loop()

    async def main():
        before = loops.run(here()) is asyncio.get_running_loop()
        tbl.allow_nested_loops()
        print(before, loops.run(here()) is asyncio.get_running_loop())

    asyncio.run(main())
    """)
    assert (done.stdout, done.stderr) == ("False True\n", "")


@pytest.fixture
def old_one(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As nest_asyncio 1.6.0 leaves asyncio."""
    monkeypatch.setattr(asyncio, "_nest_patched", True, raising=False)
    monkeypatch.delattr(asyncio, "_nest_asyncio2", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    return monkeypatch


def test_the_old_nest_asyncio_is_left_as_it_is_where_it_works(old_one: pytest.MonkeyPatch) -> None:
    old_one.setattr(sys, "version_info", (3, 13, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tbl.allow_nested_loops()


@pytest.mark.parametrize(("python", "ipykernel", "told"), [((3, 14, 0), (6, 29), "3.14"), ((3, 13, 0), (7, 4), "Run All")])
def test_the_old_nest_asyncio_is_warned_about_where_it_fails(
    old_one: pytest.MonkeyPatch, python: tuple[int, ...], ipykernel: tuple[int, ...], told: str
) -> None:
    old_one.setattr(sys, "version_info", python)
    old_one.setitem(sys.modules, "ipykernel", types.SimpleNamespace(version_info=ipykernel))
    with pytest.warns(RuntimeWarning, match=told):
        tbl.allow_nested_loops()


def test_where_the_old_nest_asyncio_fails_its_loop_is_not_used(old_one: pytest.MonkeyPatch) -> None:
    old_one.setitem(sys.modules, "ipykernel", types.SimpleNamespace(version_info=(7, 4)))

    async def here() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        old_one.setattr(loop, "_nest_patched", True, raising=False)
        with pytest.warns(RuntimeWarning, match="Run All"):
            return loops.run(here()) is loop

    assert asyncio.run(main()) is False
