"""Who visits the page with a browser, and what visitors do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from playwright.sync_api import Locator, Page, expect

Open = Callable[..., Page]
EXAMPLES = Path(__file__).parent.parent.parent / "app" / "web" / "examples"


@dataclass
class Visit:
    """A visitor's page, and what the browser said of it. ``refused``: answers that are errors are part of the test."""

    page: Page
    refused: bool = False
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"pageerror: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def check(self, origin: str) -> None:
        """Nothing in the console, nothing asked of anybody else."""
        refusal = "error: Failed to load resource" if self.refused else "nothing"
        assert [line for line in self.said if not line.startswith(refusal)] == []
        assert [url for url in self.asked if not url.startswith((origin + "/", f"blob:{origin}/"))] == []


def take_example(page: Page, name: str = "espresso") -> Page:
    """Choose an example and wait until all of it has come, the channels too."""
    page.click(f"[data-example='{name}.jpg']")
    expect(page.locator("#channels li")).to_have_count(8)
    return page


def upload(page: Page, name: str, content: bytes, media_type: str = "image/jpeg") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": media_type, "buffer": content})


def first_label(page: Page) -> Locator:
    return page.locator("#labels li").first


def asked(url: str, query: str, name: str = "espresso") -> dict:
    """What the service says itself of an example."""
    return httpx2.post(
        f"{url}/attention?{query}",
        content=(EXAMPLES / f"{name}.jpg").read_bytes(),
        headers={"content-type": "image/jpeg"},
        timeout=60,
    ).json()


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
