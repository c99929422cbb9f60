"""The page for whoever comes: keyboard, phone, dark, Chinese, screen reader; and its pictures."""

import io
import os
import re
from pathlib import Path

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Process
from tests.e2e.visitor import Open, first_label, take_example, upload


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['html']}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def test_the_keyboard_alone_is_enough(visit: Open) -> None:
    page = visit()
    focus = page.locator(":focus")
    while focus.get_attribute("data-example") is None if focus.count() else True:
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#channels li")).to_have_count(8)
    while focus.get_attribute("role") != "tab":
        page.keyboard.press("Tab")
    page.keyboard.press("End")
    expect(page.get_by_role("tab", selected=True)).to_contain_text("layer4.1")
    page.keyboard.press("ArrowRight")
    expect(focus).to_contain_text("layer1.0")
    expect(page.locator("#block-title")).to_contain_text("layer1.0")
    page.keyboard.press("Tab")
    expect(focus).to_have_id("block")
    assert focus.evaluate("(element) => getComputedStyle(element).outlineStyle") == "solid"


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phones_width_needs_no_scrolling_sideways(locale: str, visit: Open) -> None:
    page = visit(locale=locale, viewport={"width": 360, "height": 740})
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    take_example(page, "officer")
    assert page.evaluate(width) == 360


def test_dark_is_dark_and_who_wants_no_motion_gets_none(visit: Open) -> None:
    page = visit(color_scheme="dark", reduced_motion="reduce")
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert max(red, green, blue) < 40
    page.evaluate("document.getElementById('answer').ariaBusy = 'true'")
    assert page.evaluate("getComputedStyle(document.getElementById('answer'), '::before').animationName") == "none"


def test_chinese_is_spoken_to_who_reads_it_and_english_is_one_click_away(visit: Open) -> None:
    page = take_example(visit(locale="zh-CN"))
    expect(first_label(page)).to_contain_text("浓缩咖啡")
    expect(page.locator("#effect-text")).to_contain_text("“浓缩咖啡”的得分")
    assert page.evaluate("document.documentElement.lang") == "zh"
    page.click("text=English")
    expect(first_label(page)).to_contain_text("espresso")
    expect(page.get_by_role("heading", name="Labels")).to_be_visible()
    assert page.url.endswith("/?lang=en")


@pytest.mark.parametrize(("asked", "title"), [("zh", "标签"), ("fr", "Labels"), ("toString", "Labels")])
def test_the_address_says_the_language(asked: str, title: str, visit: Open) -> None:
    page = visit(path=f"/?lang={asked}")
    expect(page.get_by_role("heading", name=title)).to_be_visible()


def test_who_has_no_javascript_is_told_that_the_page_needs_it(visit: Open) -> None:
    page = visit(java_script_enabled=False)
    expect(page.locator("noscript p")).to_have_text(["This page needs JavaScript.", "本页面需要 JavaScript。"])
    expect(page.locator("noscript p").first).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_axe_finds_nothing_serious(scheme: str, width: int, visit: Open) -> None:
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 800}, refused=True)
    assert serious(page) == []
    take_example(page)
    assert serious(page) == []
    upload(page, "notes.txt", b"no image")
    expect(page.get_by_role("alert")).to_be_visible()
    assert serious(page) == []


@pytest.mark.parametrize(
    ("name", "example", "options"),
    [
        ("light", "espresso", {}),
        ("dark", "cat", {"color_scheme": "dark"}),
        ("phone", "officer", {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2}),
        ("chinese", "espresso", {"locale": "zh-CN"}),
    ],
)
def test_screenshot(name: str, example: str, options: dict, visit: Open, tmp_path: Path) -> None:
    """Into $SCREENSHOTS, where it is set: ``make screenshots``."""
    page = take_example(visit(**options), example)
    page.screenshot(path=tmp_path / "page.png", full_page=name == "light")
    with Image.open(tmp_path / "page.png") as picture:
        target = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{name}.webp"
        picture.convert("RGB").save(target, quality=75)
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(4096)) > 256  # not a blank page
    assert target.stat().st_size < 150_000


@pytest.mark.parametrize("example", ["espresso", "cat"])
def test_screenshot_of_the_gallery(example: str, serving: Process, tmp_path: Path) -> None:
    """The picture that ``/attention`` answers, of four blocks; kept as the screenshots are."""
    photo = httpx2.get(f"{serving.url}/web/examples/{example}.jpg", timeout=60).content
    blocks = "&".join(f"block={name}" for name in ("layer1.1", "layer2.1", "layer3.0", "layer4.1"))
    url = f"{serving.url}/attention?format=png&method=product&effects=true&top_channels=0&{blocks}"
    answer = httpx2.post(url, content=photo, headers={"Content-Type": "image/jpeg"}, timeout=30)
    assert answer.headers["content-type"] == "image/png"
    target = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"gallery-{example}.webp"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.width == 848
        picture.convert("RGB").save(target, quality=80)
    assert target.stat().st_size < 60_000


def test_the_docs_work_under_the_pages_policy(visit: Open) -> None:
    page = visit(path="/docs")
    page.get_by_role("button", name="/model", exact=False).first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
