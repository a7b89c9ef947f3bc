"""A real JupyterLab and a real browser, which see nothing of the user's and reach nothing but each other."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import tokenbudget_lab as tbl

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

GRACE_S = 30.0
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# What JupyterLab itself complains of, whatever is shown in it.
_NOT_OURS = (
    "favicon",
    "Failed to load resource: the server responded with a status of 404",
    "WebSocket",
    "Could not determine jupyterlab build status",
)


def chromium() -> str | None:
    """The browser of this machine."""
    return next((found for name in CHROMIUM if (found := shutil.which(name))), None)


def wait_until(true: Any, what: str) -> None:
    """Wait for something that comes about by itself."""
    deadline = time.monotonic() + GRACE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Lab:
    """JupyterLab on one folder, with what pages asked for and complained of."""

    def __init__(self, folder: Path, ends: contextlib.ExitStack) -> None:
        self.folder, self.token = folder / "work", secrets.token_hex(8)
        self.folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        home = {
            name: str(folder / name.lower())
            for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "HOME")
        }
        settings = folder / "jupyter_config_dir/lab/user-settings/@jupyterlab/apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        given = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY_"))}
        path = os.pathsep.join((str(Path(tbl.__file__).parents[1]), str(Path(__file__).parents[1])))
        environment = {**given, **home, "PYTHONPATH": path, "TOKENBUDGET_KEEPER_LINGER_S": "0.5"}
        self.log = ends.enter_context((folder / "jupyterlab.log").open("w+"))
        server = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={self.port}", "--allow-root",
                "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.folder}",
                "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True",
            ],
            env=environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        ends.callback(self._stop, server)
        wait_until(lambda: self._answers(server), "JupyterLab does not come up")
        self.outside: list[str] = []
        self.complaints: list[str] = []

    def _answers(self, server: subprocess.Popen[bytes]) -> bool:
        self.log.seek(0)
        assert server.poll() is None, self.log.read()
        with contextlib.suppress(OSError, urllib.error.URLError):
            self._asked("GET", "api")
            return True
        return False

    def _asked(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f"{self.address}/{path}?token={self.token}", method=method)  # noqa: S310 - our own
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - as above
            found: bytes = answer.read()
            return found

    def stop_kernels(self) -> None:
        """Stop what the notebooks of a test have started."""
        for kernel in json.loads(self._asked("GET", "api/kernels")):
            self._asked("DELETE", f"api/kernels/{kernel['id']}")

    @staticmethod
    def _stop(server: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    def write(self, name: str, cells: Sequence[str]) -> None:
        """Put a notebook into the folder."""
        made: list[dict[str, Any]] = [
            {"cell_type": "code", "id": f"cell{n}", "metadata": {}, "source": code, "outputs": [], "execution_count": None}
            for n, code in enumerate(cells)
        ]
        spec = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
        notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": spec, "cells": made}
        (self.folder / name).write_text(json.dumps(notebook))

    def saved(self, name: str) -> dict[str, Any]:
        """A notebook as it is on the disk."""
        notebook: dict[str, Any] = json.loads((self.folder / name).read_text())
        return notebook


class Tab:
    """One notebook in the browser."""

    def __init__(self, lab: Lab, page: Page, name: str) -> None:
        self.lab, self.page, self.name = lab, page, name
        page.on("console", lambda message: self._complain(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._complain(str(error)))
        page.route("**/*", self._only_here)
        self.open()

    def _complain(self, text: str) -> None:
        if not any(known in text for known in _NOT_OURS):
            self.lab.complaints.append(text)

    def _only_here(self, route: Any) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
            route.continue_()
        else:
            self.lab.outside.append(route.request.url)
            route.abort()

    def open(self) -> None:
        """Open the notebook in a workspace of its own, and wait until it has a kernel."""
        workspace = secrets.token_hex(4)
        self.page.goto(f"{self.lab.address}/lab/workspaces/{workspace}/tree/{self.name}?token={self.lab.token}")
        self.ready()

    def ready(self) -> None:
        """Wait until the notebook is there and its kernel idle."""
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=GRACE_S * 1000)
        self.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=GRACE_S * 1000)

    def command(self, name: str, **given: Any) -> None:
        """Do what a menu does, to the end."""
        self.page.evaluate("([name, given]) => window.jupyterapp.commands.execute(name, given).then(() => null)", [name, given])

    def begin(self) -> None:
        """Run all cells, and do not wait for them."""
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")

    def run_all(self) -> None:
        """Run all cells to their end."""
        self.command("notebook:run-all-cells")

    def theme(self, name: str) -> None:
        """Change to `JupyterLab Light` or `JupyterLab Dark`."""
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_selector(f"body[data-jp-theme-name='{name}']", state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Chromium without a head, which resolves no name but its own machine's."""
    from playwright.sync_api import sync_playwright

    args = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=args)
        try:
            yield started
        finally:
            started.close()
