"""The page, in a real browser, against a real process with the shipped weights."""

import base64
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from app.errors import ERRORS
from tests.e2e.conftest import Process, start

Open = Callable[..., Page]
EXAMPLES = Path(__file__).parent.parent.parent / "app" / "web" / "examples"
PLAIN = Path(__file__).parent.parent / "golden" / "resnet20-plain-cifar100.safetensors"
JPEG = {"content-type": "image/jpeg"}
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
SEND = """([kind, data, name, type]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    const options = { bubbles: true, cancelable: true };
    const event = kind === "paste"
        ? new ClipboardEvent(kind, { ...options, clipboardData: transfer })
        : new DragEvent(kind, { ...options, dataTransfer: transfer });
    document.getElementById("drop").dispatchEvent(event);
}"""


def take_example(page: Page, name: str = "espresso") -> Page:
    """Choose an example and wait until all of it has come, the channels too."""
    page.click(f"[data-example='{name}.jpg']")
    expect(page.locator("#channels li")).to_have_count(8)
    return page


def upload(page: Page, name: str, content: bytes, media_type: str = "image/jpeg") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": media_type, "buffer": content})


def send(page: Page, kind: str, photo: Path) -> None:
    """A paste or a drop, as the browser would report it."""
    page.evaluate(SEND, [kind, base64.b64encode(photo.read_bytes()).decode(), photo.name, "image/jpeg"])


def first_label(page: Page) -> Locator:
    return page.locator("#labels li").first


def asked(serving: Process, query: str, name: str = "espresso") -> dict:
    """What the service says itself of an example."""
    return httpx2.post(
        f"{serving.url}/attention?{query}", content=(EXAMPLES / f"{name}.jpg").read_bytes(), headers=JPEG
    ).json()


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def milliseconds(page: Page) -> list[int]:
    return [int(found) for found in re.findall(r"(\d+) ms", page.inner_text("#status"))]


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['html']}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def test_one_click_on_an_example_shows_labels_and_attention_within_a_second(visit: Open) -> None:
    page = take_example(visit())
    expect(page.locator("#labels li")).to_have_count(5)
    expect(first_label(page)).to_contain_text(re.compile(r"espresso\s*n07920052\s*9\d\.\d %"))
    assert page.locator("#strip [role=tab] strong").all_inner_texts() == BLOCKS
    labels_ms, attention_ms = milliseconds(page)
    assert labels_ms < 1000
    assert labels_ms <= attention_ms


def test_a_chosen_file_is_labelled(visit: Open, photos: dict[str, Path]) -> None:
    page = visit()
    with page.expect_file_chooser() as chooser:
        page.click("text=Choose a photo")
    chooser.value.set_files(photos["espresso"])
    expect(first_label(page)).to_contain_text("espresso")
    expect(page.locator("#facts")).to_contain_text("JPEG, 600 × 400 pixels")
    expect(page.locator("#curl")).to_contain_text("@'espresso.jpg'")


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_photo_can_be_pasted_and_dropped(kind: str, visit: Open, photos: dict[str, Path]) -> None:
    page = visit()
    send(page, kind, photos["cat"])
    expect(page.locator("#facts")).to_contain_text("JPEG, 451 × 300 pixels")
    expect(page.locator("#strip [role=tab]")).to_have_count(8)
    expect(page.get_by_role("img", name="The photo cat.jpg")).to_be_visible()


def test_a_block_that_is_clicked_shows_the_services_own_numbers(visit: Open, serving: Process) -> None:
    page = take_example(visit())
    page.get_by_role("radio", name="NAM (paper)").check(force=True)
    page.get_by_role("tab", name="layer1.0").click()
    (block,) = asked(serving, "block=layer1.0&effects=true")["blocks"]
    values = [value for row in block["map"] for value in row]
    expect(page.get_by_role("tab", selected=True)).to_contain_text("layer1.0")
    expect(page.get_by_role("tabpanel", name="layer1.0: 64 channels, 16 × 16")).to_be_visible()
    expect(page.locator("#low")).to_have_text(f"{min(values):.3f}")
    expect(page.locator("#high")).to_have_text(f"{max(values):.3f}")
    expect(page.locator("#effect-value")).to_have_text(signed(block["effect"]))
    expect(page.locator("#gates")).to_contain_text(f"{block['gates']['std']:.3f}")
    expect(page.locator("#weights-text")).to_contain_text(f"The line is {1 / 64:.4f}")


def test_a_map_is_drawn_in_rectangles_of_one_colour_and_its_bar_lightens_upwards(visit: Open) -> None:
    page = take_example(visit())
    page.get_by_role("tab", name="layer4.1").click()
    page.fill("#opacity", "100")
    colours = page.evaluate("""() => {
        const { data } = document.getElementById("over").getContext("2d").getImageData(0, 0, 448, 448);
        return new Set(new Uint32Array(data.buffer)).size;
    }""")
    bar = page.evaluate("""() => {
        const { data } = document.getElementById("bar").getContext("2d").getImageData(0, 0, 1, 256);
        return [[...data.slice(0, 3)], [...data.slice(-4, -1)]];
    }""")
    assert 2 <= colours <= 4  # the block is 2 x 2
    assert bar == [[250, 245, 160], [13, 8, 60]]  # the ends of nam/figure.py's ramp


def test_the_effect_of_each_strongest_channel_is_measured_when_its_block_is_opened(
    visit: Open, serving: Process
) -> None:
    page = take_example(visit())
    with page.expect_request(lambda request: "block=layer2.1" in request.url):
        page.get_by_role("tab", name="layer2.1").click()
    (block,) = asked(serving, "block=layer2.1&effects=true&channel_effects=true")["blocks"]
    for item, channel in zip(page.locator("#channels li").all(), block["top_channels"], strict=True):
        expect(item).to_contain_text(f"channel {channel['channel']}")
        expect(item).to_contain_text(f"effect {signed(channel['effect'])}")


def test_the_page_opens_on_the_most_faithful_kind_and_the_papers_map_is_one_click_away(
    visit: Open, serving: Process
) -> None:
    page = take_example(visit())
    kinds = page.locator("#kinds input")
    methods = httpx2.get(serving.url + "/model").json()["methods"]
    assert {kind.get_attribute("value") for kind in kinds.all()} == {"gate", *methods}
    expect(page.locator("#kind-text")).to_contain_text(f"opens on “{page.inner_text('#kinds input:checked + span')}”")
    page.get_by_role("radio", name="NAM (paper)").check(force=True)
    expect(page.locator("#map-text")).to_contain_text("NAM (paper), from 0.")
    page.get_by_role("radio", name="Class", exact=True).check(force=True)
    expect(page.get_by_role("tab", selected=True)).to_contain_text("layer4.1")


def test_a_file_that_is_no_image_is_refused_in_words_and_the_next_photo_is_answered(visit: Open) -> None:
    page = visit(refused=True)
    upload(page, "notes.txt", b"no image", "text/plain")
    expect(page.get_by_role("alert")).to_contain_text("This is not an image that the service reads.")
    expect(page.locator("#again")).to_be_hidden()
    take_example(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_truncated_photo_is_refused_in_words_and_in_chinese(visit: Open, photos: dict[str, Path]) -> None:
    page = visit(refused=True)
    upload(page, "cat.jpg", photos["cat"].read_bytes()[:9000])
    expect(page.get_by_role("alert")).to_contain_text("The image is damaged or incomplete.")
    expect(page.get_by_role("alert")).to_contain_text("422. The image begins as JPEG")
    page.click("text=中文")
    expect(page.get_by_role("alert")).to_contain_text("图像损坏或不完整。")


def test_both_languages_have_all_words_and_a_sentence_for_every_error_of_the_contract(visit: Open) -> None:
    words = visit().evaluate("""async () => {
        const { LANGUAGES } = await import("/web/words.js");
        return Object.values(LANGUAGES).map((words) => [Object.keys(words).sort(), words.errors]);
    }""")
    (keys, errors), (chinese_keys, chinese_errors) = words
    assert keys == chinese_keys
    assert set(errors) == set(chinese_errors) == {error.code for error in ERRORS} | {"network", "unknown"}
    assert all(errors.values())
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in chinese_errors.values())


def test_a_service_that_cannot_be_reached_is_said_so_and_asked_again(visit: Open) -> None:
    page = visit(refused=True)
    page.context.set_offline(True)
    page.click("[data-example='cat.jpg']")
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached.")
    page.context.set_offline(False)
    page.click("text=Try again")
    expect(page.locator("#labels li")).to_have_count(5)


def test_channels_that_do_not_come_are_said_so_and_asked_for_again(visit: Open) -> None:
    page = take_example(visit(refused=True))
    page.context.set_offline(True)
    page.get_by_role("tab", name="layer1.1").click()
    expect(page.get_by_role("alert")).to_be_in_viewport()
    expect(page.locator("#channel-status")).to_be_empty()
    page.context.set_offline(False)
    page.click("text=Try again")
    expect(page.locator("#channel-status")).to_contain_text("Measured live")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_what_says_nothing_is_said_to(visit: Open) -> None:
    page = visit()

    def still(route: Route) -> None:
        answer = route.fetch().json()
        for block in answer["blocks"]:
            block["gates"]["std"], block["weights"] = 0.0012, [1 / 64] * 64
        route.fulfill(json=answer)

    page.route("**/attention?*", still)
    take_example(page)
    expect(page.locator("#still")).to_contain_text(
        "This block hardly modulates: its gates' standard deviation is 0.0012."
    )
    expect(page.locator("#weights-text")).to_contain_text("they rank nothing")


def test_a_network_without_gates_is_labelled_and_says_so(visit: Open, plain: Process) -> None:
    page = visit(origin=plain.url)
    page.click("[data-example='cat.jpg']")
    expect(page.locator("#labels li")).to_have_count(5)
    expect(page.locator("#notes")).to_contain_text("there are no gates to show")
    expect(page.locator("#strip")).to_be_hidden()
    expect(page.locator("#block")).to_be_hidden()


def test_a_later_photo_takes_the_place_of_one_under_way(visit: Open) -> None:
    page, held = visit(), []
    page.route("**/predict?*", lambda route: held.append(route), times=1)
    page.click("[data-example='cat.jpg']")
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#status")).to_have_text("Asking for the labels…")
    with page.expect_event("requestfailed", lambda request: "predict" in request.url) as failed:
        take_example(page, "espresso")
    assert failed.value.failure == "net::ERR_ABORTED"
    expect(first_label(page)).to_contain_text("espresso")
    expect(page.get_by_role("alert")).to_be_hidden()


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


def test_the_address_says_the_language(visit: Open) -> None:
    page = visit(path="/?lang=zh")
    expect(page.get_by_role("heading", name="标签")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_axe_finds_nothing_serious(scheme: str, width: int, visit: Open) -> None:
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 800}, refused=True)
    assert serious(page) == []
    take_example(page)
    assert serious(page) == []
    upload(page, "notes.txt", b"no image")
    expect(page.get_by_role("alert")).to_be_visible()
    assert serious(page) == []


def test_an_image_that_the_browser_cannot_show_is_answered(visit: Open, tmp_path: Path) -> None:
    Image.open(EXAMPLES / "espresso.jpg").save(tmp_path / "cup.tiff")
    page = visit()
    upload(page, "cup.tiff", (tmp_path / "cup.tiff").read_bytes(), "image/tiff")
    expect(first_label(page)).to_contain_text("espresso")
    expect(page.locator("#facts")).to_contain_text("TIFF")
    expect(page.get_by_text("This browser cannot show")).to_be_visible()
    expect(page.locator("#channels li")).to_have_count(8)


def test_the_command_answers_what_is_shown(visit: Open) -> None:
    page = take_example(visit())
    page.get_by_role("tab", name="layer3.1").click()
    expect(page.locator("#curl")).to_contain_text("layer3.1")
    done = subprocess.run(["sh", "-ec", page.inner_text("#curl")], capture_output=True, text=True, timeout=60)
    (block,) = json.loads(done.stdout)["blocks"]
    assert block["name"] == "layer3.1"
    expect(page.locator("#effect-value")).to_have_text(signed(block["effect"]))
    assert all(channel["effect"] is not None for channel in block["top_channels"])


def test_the_command_can_be_copied(visit: Open) -> None:
    page = take_example(visit(permissions=["clipboard-read", "clipboard-write"]))
    page.click("text=Copy")
    expect(page.locator("#take-status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#curl")


@pytest.mark.parametrize(("form", "begins"), [("JSON", b'{"model"'), ("PNG", b"\x89PNG"), ("npz", b"PK")])
def test_what_is_shown_can_be_taken_along(form: str, begins: bytes, visit: Open) -> None:
    page = take_example(visit())
    with page.expect_download() as download:
        page.get_by_role("button", name=form).click()
    block = page.get_by_role("tab", selected=True).locator("strong").inner_text()
    assert download.value.suggested_filename == f"espresso-{block}.{form.lower()}"
    assert download.value.path().read_bytes().startswith(begins)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A network without NAM."""
    running = start(tmp_path_factory.mktemp("plain"), NAM_WEIGHTS=str(PLAIN))
    yield running
    running.process.terminate()
    running.process.wait(20)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    running = start(tmp_path_factory.mktemp("locked"), NAM_API_KEYS="one,two")
    yield running
    running.process.terminate()
    running.process.wait(20)


def test_a_key_is_asked_for_and_kept_for_this_tab_alone(visit: Open, locked: Process) -> None:
    page = visit(origin=locked.url, refused=True)
    for key, text in (("wrong", "This key was not accepted."), ("two", "")):
        page.fill("#key-text", key)
        page.keyboard.press("Enter")
        expect(page.locator("#problem-text")).to_contain_text(text)
    expect(page.locator("#key")).to_be_hidden()
    take_example(page)
    kept = page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]")
    assert kept == [1, 0, ""]
    expect(page.locator("#curl")).to_contain_text('-H "Authorization: Bearer $NAM_KEY"')


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
