"""One real process with the shipped weights, two photos of classes that they know, and a real browser."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from skimage import data

from tests.e2e.visitor import Open, Visit
from tests.fakes import free_port

NAM = Path(sys.executable).parent / "nam"
PATIENCE_MS = 30_000  # with what a page must come to show, however slow the machine
expect.set_options(timeout=PATIENCE_MS)


@dataclass
class Process:
    """A serving process: its address and the process itself."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def start(folder: Path, **settings: str) -> Process:
    """``nam serve`` on a free port, ready to answer."""
    port = free_port()
    log = folder / f"serve-{port}.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NAM_")} | settings
    with log.open("wb") as out:
        process = subprocess.Popen([NAM, "serve", "--port", str(port)], stdout=out, stderr=out, env=environment)
    serving = Process(f"http://127.0.0.1:{port}", process, log)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(serving.url + "/readyz", timeout=20).status_code == 200:
                return serving
        except httpx2.TransportError:
            time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the service did not start: {log.read_text()}")


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    running = start(tmp_path_factory.mktemp("serve"))
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log.read_text()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cat and a cup of espresso, full size, as JPEG. scikit-image's wheel carries both, CC0 by their photographers:
    ``chelsea`` by Stefan van der Walt, ``coffee`` by Rachel Michetti."""
    folder = tmp_path_factory.mktemp("photos")
    found = {"cat": data.chelsea(), "espresso": data.coffee()}
    for name, pixels in found.items():
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=92)
    return {name: folder / f"{name}.jpg" for name in found}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, for one module's tests: Playwright keeps an event loop running in this thread, which
    tests that run their own would trip over."""
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    assert found, "the tests of the page need chromium"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found)


@pytest.fixture
def visit(browser: Browser, serving: Process) -> Iterator[Open]:
    """From a context's options to the page, open; what the browser said of it is checked at the end."""
    visits: list[tuple[Visit, str]] = []

    def opened(origin: str = serving.url, path: str = "/", refused: bool = False, **options: Any) -> Page:
        context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(PATIENCE_MS)
        visits.append((Visit(context.new_page(), refused), origin))
        page = visits[-1][0].page
        page.goto(origin + path)
        return page

    yield opened
    for visit, origin in visits:
        visit.check(origin)
        visit.page.context.close()
