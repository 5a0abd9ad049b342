"""Chromium without a head, driven through chromedriver's own protocol (W3C WebDriver)."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOUND = bool(shutil.which("chromium") and shutil.which("chromedriver"))
_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]


@dataclass
class Browser:
    """One window."""

    address: str

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Load a page as wide as this, light or dark, and wait until its plots are there."""
        self.cdp("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": scheme},
        ])  # fmt: skip
        self.size(width, 900)
        self._post("url", {"url": page.resolve().as_uri()})
        for _ in range(300):
            if self.run("return document.documentElement.dataset.drawn !== undefined"):
                return
            time.sleep(0.1)
        raise AssertionError(f"the plots of {page.name} were not drawn: {self.log()}")

    def size(self, width: int, height: int) -> None:
        """Make the window of this size, in CSS pixels."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def run(self, script: str) -> Any:
        """What JavaScript returns."""
        return self._post("execute/sync", {"script": script, "args": []})

    def cdp(self, command: str, **params: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._post("goog/cdp/execute", {"cmd": command, "params": params})

    def log(self, kind: str = "browser") -> list[Any]:
        """The console, or what the network was asked for (`performance`), since the last call."""
        found: list[Any] = self._post("se/log", {"type": kind})
        return found

    def picture(self) -> bytes:
        """The whole page as PNG."""
        found = self.cdp("Page.captureScreenshot", captureBeyondViewport=True, clip={
            "x": 0, "y": 0, "scale": 1,
            "width": self.run("return innerWidth"),
            "height": self.run("return document.documentElement.scrollHeight"),
        })  # fmt: skip
        return base64.b64decode(found["data"])

    def _post(self, command: str, body: dict[str, Any]) -> Any:
        return _ask(f"{self.address}/{command}", body)


def _ask(address: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
    data = None if body is None else json.dumps(body).encode()
    ask = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(ask, timeout=120) as answer:
        return json.load(answer)["value"]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A window with a profile of its own; its process ends with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    root = f"http://127.0.0.1:{port}"
    try:
        _until_ready(root)
        options = {
            "binary": shutil.which("chromium"), "args": [*_FLAGS, f"--user-data-dir={profile}"],
        }  # fmt: skip
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = _ask(f"{root}/session", {"capabilities": {"alwaysMatch": wanted}})
        address = f"{root}/session/{session['sessionId']}"
        try:
            yield Browser(address)
        finally:
            _ask(address, None, "DELETE")
    finally:
        driver.terminate()
        driver.wait()


def _until_ready(root: str) -> None:
    for _ in range(100):
        try:
            if _ask(f"{root}/status", None, "GET")["ready"]:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("chromedriver does not answer")
