"""A real Chromium for the tests of the desk and of the demo page, and Voila to serve the desk."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
NO_OUTPUT = {
    "no audio": "window.AudioContext = undefined",
    "no device": """AudioContext.prototype.resume = () => new Promise(() => {});
    Object.defineProperty(BaseAudioContext.prototype, "state", { get: () => "suspended" });""",
}
"""Scripts that take the sound output of a page away."""
WIDTHS = (DESKTOP, PHONE, {"width": 320, "height": 800})


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def required(found: object, what: str, install: str) -> None:
    """Skip without what a test needs, but fail where CI must have it."""
    if not found:
        message = f"{what} is missing: {install}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)


def violations(page) -> list[str]:
    """What axe-core finds wrong with a page: rules and the first place of each."""
    required(find_spec("axe_playwright_python"), "axe-core", "pip install axe-playwright-python")
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {rule['nodes'][0]['html'][:200]}" for rule in found]


def check_in_sight(page, message) -> None:
    """At every width a message is seen without scrolling, nothing is cut off, and axe-core finds nothing."""
    for viewport in WIDTHS:
        page.set_viewport_size(viewport)
        box = message.bounding_box()
        assert 0 <= box["y"] <= viewport["height"] - box["height"], (viewport, box)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], viewport
        assert violations(page) == []


@contextlib.contextmanager
def browser() -> Iterator:
    required(find_chromium(), "chromium", "apt install chromium")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        try:
            yield started
        finally:
            started.close()


class Watched:
    """A page of the browser that keeps what went to the console as an error, and where requests went."""

    def __init__(self, browser, viewport=None):
        self.context = browser.new_context(viewport=viewport or DESKTOP, accept_downloads=True)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.addresses: list[str] = []
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))

    @property
    def outside(self) -> list[str]:
        here = re.compile(r"(file|data|blob):|(https?|wss?)://(localhost|127\.0\.0\.1)[:/]")
        return [address for address in self.addresses if not here.match(address)]


@contextlib.contextmanager
def served(words: list[str], log: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """`lincae desk` with these words; yields its address, and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lincae", "desk", *words, "--no-browser", f"--port={port}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        until = time.monotonic() + 300
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            time.sleep(0.2)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(60)
