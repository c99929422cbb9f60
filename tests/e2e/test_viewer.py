"""The page's attention viewer in a real browser, its numbers held to the service's own."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Route, expect

from tests.e2e.conftest import Process, start
from tests.e2e.visitor import Open, asked, signed, take_example

PLAIN = Path(__file__).parent.parent / "golden" / "resnet20-plain-cifar100.safetensors"


def test_a_block_that_is_clicked_shows_the_services_own_numbers(visit: Open, serving: Process) -> None:
    page = take_example(visit())
    page.get_by_role("radio", name="NAM (paper)").check(force=True)
    page.get_by_role("tab", name="layer1.0").click()
    (block,) = asked(serving.url, "block=layer1.0&effects=true")["blocks"]
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
    expect(page.locator("#channels li")).to_have_count(8)
    (block,) = asked(serving.url, "block=layer2.1&effects=true&channel_effects=true")["blocks"]
    for item, channel in zip(page.locator("#channels li").all(), block["top_channels"], strict=True):
        expect(item).to_contain_text(f"channel {channel['channel']}")
        expect(item).to_contain_text(f"effect {signed(channel['effect'])}")


def test_channels_that_do_not_come_are_said_so_and_asked_for_again(visit: Open) -> None:
    page = take_example(visit(refused=True))
    page.context.set_offline(True)
    page.get_by_role("tab", name="layer1.1").click()
    expect(page.get_by_role("alert")).to_be_in_viewport()
    expect(page.locator("#channel-status")).to_be_empty()
    expect(page.locator("#channels li")).to_have_count(0)
    page.context.set_offline(False)
    page.click("text=Try again")
    expect(page.locator("#channel-status")).to_contain_text("Measured live")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_page_opens_on_the_most_faithful_kind_and_the_papers_map_is_one_click_away(
    visit: Open, serving: Process
) -> None:
    page = take_example(visit())
    kinds = page.locator("#kinds input")
    methods = httpx2.get(serving.url + "/model", timeout=60).json()["methods"]
    assert {kind.get_attribute("value") for kind in kinds.all()} == {"gate", *methods}
    expect(page.locator("#kind-text")).to_contain_text(f"opens on “{page.inner_text('#kinds input:checked + span')}”")
    page.get_by_role("radio", name="NAM (paper)").check(force=True)
    expect(page.locator("#map-text")).to_contain_text("NAM (paper), from 0.")
    page.get_by_role("radio", name="Class", exact=True).check(force=True)
    expect(page.get_by_role("tab", selected=True)).to_contain_text("layer4.1")


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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A network without NAM."""
    running = start(tmp_path_factory.mktemp("plain"), NAM_WEIGHTS=str(PLAIN))
    yield running
    running.process.terminate()
    running.process.wait(60)


def test_a_network_without_gates_is_labelled_and_says_so(visit: Open, plain: Process) -> None:
    page = visit(origin=plain.url)
    page.click("[data-example='cat.jpg']")
    expect(page.locator("#labels li")).to_have_count(5)
    expect(page.locator("#notes")).to_contain_text("there are no gates to show")
    expect(page.locator("#strip")).to_be_hidden()
    expect(page.locator("#block")).to_be_hidden()


def test_the_command_answers_what_is_shown(visit: Open) -> None:
    page = take_example(visit())
    page.get_by_role("tab", name="layer3.1").click()
    expect(page.locator("#curl")).to_contain_text("layer3.1")
    done = subprocess.run(["sh", "-ec", page.inner_text("#curl")], capture_output=True, text=True, timeout=300)
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


def test_a_file_bears_the_name_of_the_block_that_it_was_asked_of(visit: Open) -> None:
    page, held = take_example(visit()), []
    page.route(lambda url: "format=json" in url, lambda route: held.append(route))
    with page.expect_request(lambda request: "format=json" in request.url):
        page.get_by_role("button", name="JSON").click()
    page.get_by_role("tab", name="layer1.0").click()
    expect(page.locator("#channel-status")).to_contain_text("Measured live")
    with page.expect_download() as download:
        held[0].continue_()
    (block,) = json.loads(download.value.path().read_bytes())["blocks"]
    assert download.value.suggested_filename == f"espresso-{block['name']}.json"
    assert block["name"] != "layer1.0"


def test_a_file_that_does_not_come_leaves_the_measuring_under_way(visit: Open) -> None:
    page, held = take_example(visit(refused=True)), []
    page.route("**/attention?*", lambda route: held.append(route))
    page.route(lambda url: "format=json" in url, lambda route: route.abort())
    page.get_by_role("tab", name="layer1.1").click()
    page.get_by_role("button", name="JSON").click()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator("#take-status")).to_be_empty()
    expect(page.locator("#channel-status")).to_have_text("Holding each channel at its mean…")
    expect(page.locator("#channels")).to_have_attribute("aria-busy", "true")
    held[0].continue_()
    expect(page.locator("#channels li")).to_have_count(8)
