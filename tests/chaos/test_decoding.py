"""Images that hurt who decodes them, and lanes that end or are stuck, under load on a real process: the service stays
ready, nobody else notices, and a good request then gets its answer."""

import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from app.processes import stats
from tests.chaos.faulty_decoder import CRASH, GROW, HANG
from tests.chaos.service import Service, running, until

FAULTY_DECODERS = (sys.executable, "-m", "tests.chaos.faulty_decoder", "serve")
DECODE_S = 3.0


def encoded(form: str, pixels: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


# By form: a decoder's, a lane's. CC0, from scikit-image's wheel.
PHOTOS = {form: [encoded(form, pixels) for pixels in (data.chelsea(), data.coffee())] for form in ("PNG", "JPEG")}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("decoding")
    with running(folder, FAULTY_DECODERS, NAM_DECODERS="2", NAM_DECODE_TIMEOUT_MS=f"{1e3 * DECODE_S:.0f}") as one:
        yield one
        assert one.end() == 0


def label(service: Service, image: bytes) -> int | str:
    answer = service.ask(image).json()
    return answer.get("code") or answer["predictions"][0]["index"]


def metric(service: Service, name: str) -> float:
    lines = httpx2.get(service.url + "/metrics", timeout=60).text.splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).split()[1])


def processes(service: Service, module: str) -> list[int]:
    """Those of its children that run the module, the oldest first, whose number need not be the lowest."""
    children = {pid: int(told[19]) for pid, told in stats().items() if int(told[1]) == service.process.pid}
    return sorted((pid for pid in children if module in command(pid)), key=children.__getitem__)


def command(pid: int) -> str:
    """Nothing of a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def started(pid: int) -> bool:
    """Whether a decoder is about to take images: it has made itself the first to go. Else it may start for longer than
    it may decode."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
    return False


def state(pid: int) -> str:
    """As in proc(5); nothing of a process that is gone."""
    return next(iter(stats().get(pid, ())), "")


def own_kb(pid: int) -> int:
    """Memory that no file backs: what others map besides has no part in it."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("Anonymous:")).split()[1])


def under_load(service: Service, images: list[bytes], harm: object) -> set[tuple[int, int | str]]:
    """What each of these images was answered while ``harm()`` ran, by its place; the service is ready all along."""
    over, seen = [], set()

    def call(place: int) -> None:
        while not over:
            seen.add((place % len(images), label(service, images[place % len(images)])))

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(call, place) for place in range(8)]
        try:
            until(lambda: len(seen) >= len(images))
            harm()  # type: ignore[operator]
            assert service.ready() == 200
            time.sleep(0.3)
        finally:
            over.append(True)
    for one in calls:
        one.result()
    return seen


def test_what_crashes_or_holds_up_a_decoder_in_c_is_that_images_422_alone(service: Service) -> None:
    images = [*PHOTOS["PNG"], *PHOTOS["JPEG"]]
    alone = {(place, label(service, image)) for place, image in enumerate(images)}
    lost = metric(service, "nam_decoder_restarts_total")

    def harm() -> None:
        bad = [images[0] + fault for fault in (CRASH, HANG, CRASH, GROW)]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda image: label(service, image), bad)) == ["bad_image"] * 4

    assert under_load(service, images, harm) == alone
    assert metric(service, "nam_decoder_restarts_total") - lost == 5  # two for a crash, one for who was stuck
    assert {(place, label(service, image)) for place, image in enumerate(images)} == alone


def test_decoders_that_are_killed_or_stopped_cost_nobody_else_an_answer(service: Service) -> None:
    images = PHOTOS["PNG"]
    alone = {(place, label(service, image)) for place, image in enumerate(images)}

    def harm() -> None:
        os.kill(processes(service, "faulty_decoder")[0], signal.SIGKILL)
        until(lambda: list(map(started, processes(service, "faulty_decoder"))) == [True] * 2)
        stopped = processes(service, "faulty_decoder")[0]
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: stopped not in processes(service, "faulty_decoder"))

    seen = under_load(service, images, harm)
    assert alone <= seen
    assert {told for _, told in seen - alone} <= {"bad_image"}  # whoever was in the one that was stopped
    assert {(place, label(service, image)) for place, image in enumerate(images)} == alone


def test_large_images_leave_nothing_behind(service: Service) -> None:
    large = encoded("PNG", np.tile(data.coffee(), (2, 2, 1)))  # 1200 x 800

    def held() -> list[int]:
        """Of the service and its decoders, after so many images; kB."""
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: service.ask(large).status_code, range(100))) == {200}
        return [own_kb(pid) for pid in (service.process.pid, *processes(service, "faulty_decoder"))]

    before, after = held(), held()
    print(f"own memory before and after: {before}, {after} kB")
    assert len(before) == 3
    assert max(b - a for a, b in zip(before, after, strict=True)) < 12_000  # a hundred pictures decoded have 384,000


def test_a_decoder_that_is_stuck_does_not_outlive_a_service_that_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, FAULTY_DECODERS, NAM_DECODE_TIMEOUT_MS="3000") as one:
        image = PHOTOS["PNG"][0]
        assert one.ask(image).status_code == 200
        (pid,) = processes(one, "faulty_decoder")
        with ThreadPoolExecutor(1) as pool, suppress(httpx2.TransportError):
            call = pool.submit(one.ask, image + HANG)
            until(lambda: state(pid) == "R")
            one.process.kill()
            call.result()
    until(lambda: state(pid) in ("", "Z"), 30)


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("lanes"), NAM_LANES="2", NAM_TIMEOUT_MS="6000") as one:
        yield one
        assert one.end() == 0


def test_a_lane_that_is_killed_costs_nobody_an_answer(lanes: Service) -> None:
    alone = {(place, label(lanes, image)) for place, image in enumerate(PHOTOS["JPEG"])}
    restarts = metric(lanes, "nam_lane_restarts_total")

    def harm() -> None:
        os.kill(processes(lanes, "lane_process")[0], signal.SIGKILL)
        until(lambda: metric(lanes, "nam_lane_restarts_total") == restarts + 1)

    assert under_load(lanes, PHOTOS["JPEG"], harm) == alone
    until(lambda: len(processes(lanes, "lane_process")) == 2)


def test_a_lane_that_is_stuck_holds_up_its_batch_alone_and_is_replaced(lanes: Service) -> None:
    alone = {(place, label(lanes, image)) for place, image in enumerate(PHOTOS["JPEG"])}
    restarts = metric(lanes, "nam_lane_restarts_total")

    def harm() -> None:
        os.kill(processes(lanes, "lane_process")[0], signal.SIGSTOP)
        until(lambda: metric(lanes, "nam_lane_restarts_total") == restarts + 1)

    seen = under_load(lanes, PHOTOS["JPEG"], harm)
    assert alone <= seen
    assert {told for _, told in seen - alone} <= {"deadline_exceeded"}
    assert {(place, label(lanes, image)) for place, image in enumerate(PHOTOS["JPEG"])} == alone
