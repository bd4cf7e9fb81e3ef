"""A headless Chromium, driven through chromedriver's WebDriver protocol (W3C), which is JSON over HTTP: no package is needed."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find() -> tuple[str, str] | None:
    """The browser and its driver on this machine; None where one of them is absent."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window. `run` executes script in the page and returns what it returns; `errors` are the console's."""

    def __init__(self, session: str):
        self.session = session

    def open(self, page: Path) -> None:
        _call("POST", f"{self.session}/url", {"url": page.resolve().as_uri()})

    def resize(self, width: int, height: int) -> None:
        """The size of the page's viewport, as a phone of this size has it."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.command("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, name: str) -> None:
        """ "light" or "dark", as the reader's system prefers it."""
        self.command("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]})

    def command(self, name: str, arguments: dict[str, Any]) -> Any:
        return _call("POST", f"{self.session}/goog/cdp/execute", {"cmd": name, "params": arguments})

    def run(self, script: str) -> Any:
        return _call("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def errors(self) -> list[str]:
        return [entry["message"] for entry in _call("POST", f"{self.session}/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """What the page loaded beside itself."""
        return self.run("return performance.getEntriesByType('resource').map(e => e.name)")

    def screenshot(self, whole: bool = False) -> bytes:
        """A PNG of what is shown, or of the whole page."""
        if whole:
            taken = self.command("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})["data"]
        else:
            taken = _call("GET", f"{self.session}/screenshot")
        return base64.b64decode(taken)

    def printed(self) -> bytes:
        """The page as a PDF."""
        return base64.b64decode(self.command("Page.printToPDF", {"printBackground": True})["data"])


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser that ends with the block. Needs `find()`."""
    found = find()
    assert found is not None
    browser, driver = found
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [driver, f"--port={port}", "--silent"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    server = f"http://127.0.0.1:{port}"
    session = None
    try:
        _wait(server, process)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": browser, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        opened = _call("POST", f"{server}/session", {"capabilities": {"alwaysMatch": wanted}})
        session = f"{server}/session/{opened['sessionId']}"
        yield Browser(session)
    finally:
        if session:
            _call("DELETE", session)
        process.terminate()
        process.wait(20)


def _wait(server: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert process.poll() is None, "chromedriver ended by itself"
        try:
            if _call("GET", f"{server}/status")["ready"]:
                return
        except urllib.error.URLError:
            time.sleep(0.05)
    raise AssertionError("chromedriver does not answer")


def _call(method: str, url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {json.load(error)['value']['message'].splitlines()[0]}") from None
