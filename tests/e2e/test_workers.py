"""The processes of a service: real ones, and what happens to the rest when one of them ends."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from app.cores import usable_cores
from tests.e2e.conftest import Process, start

JPEG = {"content-type": "image/jpeg"}


def family(pid: int) -> dict[int, str]:
    """The processes that a process has started, and theirs, with their command lines."""
    parents = {int(path.name): int(stat[1]) for path in Path("/proc").glob("[0-9]*") if (stat := facts(int(path.name)))}
    found: list[int] = []
    while more := [one for one, parent in parents.items() if parent in (pid, *found) and one not in found]:
        found += more
    return {one: command(one) for one in found}


def facts(pid: int) -> list[str]:
    """State, parent, and so on; nothing of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def members(serving: Process, part: str) -> list[int]:
    return [pid for pid, args in family(serving.process.pid).items() if part in args]


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def gone(pids: list[int]) -> bool:
    return all(facts(pid)[:1] in ([], ["Z"]) for pid in pids)


def ask(serving: Process, image: bytes, **headers: str) -> httpx2.Response:
    return httpx2.post(serving.url + "/predict", content=image, headers=JPEG | headers, timeout=60)


def steady(serving: Process, image: bytes) -> bool:
    try:
        return ask(serving, image).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
def two(tmp_path: Path) -> Process:
    running = start(tmp_path, NAM_WORKERS="2", NAM_MAX_REQUESTS="64")
    yield running
    running.process.kill()
    running.process.wait()


def test_several_processes_are_one_service(two: Process, serving: Process, photos: dict[str, Path]) -> None:
    images = {name: path.read_bytes() for name, path in photos.items()}
    alone = {name: ask(serving, image).json() for name, image in images.items()}
    order = list(images) * 12
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: ask(two, images[name]), order))
    for name, answer in zip(order, answers, strict=True):
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["index"] == alone[name]["predictions"][0]["index"]
    assert len(members(two, "workers http")) == 2
    counted = [
        line
        for line in httpx2.get(two.url + "/metrics", timeout=60).text.splitlines()
        if line.startswith('nam_requests_total{route="/predict",status="200"}')
    ]
    assert [float(line.rsplit(" ", 1)[1]) for line in counted] == [len(order)]
    two.process.send_signal(signal.SIGTERM)
    everyone = list(family(two.process.pid))
    assert two.process.wait(60) == 0, two.log.read_text()
    until(lambda: gone(everyone))


def test_an_http_process_that_dies_is_started_again(two: Process, photos: dict[str, Path]) -> None:
    image = photos["espresso"].read_bytes()
    before = members(two, "workers http")
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(set(members(two, "workers http")) - set(before)) == 1)
    until(lambda: steady(two, image))


def test_without_its_engine_the_service_ends_with_a_code(two: Process) -> None:
    everyone = list(family(two.process.pid))
    os.kill(members(two, "workers engine")[0], signal.SIGKILL)
    assert two.process.wait(60) == 1
    until(lambda: gone(everyone))


def test_nobody_outlives_a_supervisor_that_is_killed(two: Process) -> None:
    everyone = list(family(two.process.pid))
    two.process.kill()
    until(lambda: gone(everyone))


def test_lanes_that_are_killed_are_started_again_and_nobody_loses_an_answer(
    tmp_path: Path, photos: dict[str, Path]
) -> None:
    running, image = start(tmp_path), photos["espresso"].read_bytes()
    lanes = members(running, "lane_process")
    assert len(lanes) == usable_cores()
    for pid in lanes:
        os.kill(pid, signal.SIGKILL)
    assert [ask(running, image).status_code for _ in range(2 * len(lanes) + 2)] == [200] * (2 * len(lanes) + 2)
    assert httpx2.get(running.url + "/readyz", timeout=60).status_code == 200
    again = members(running, "lane_process")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log.read_text()
    until(lambda: gone(again))


def test_weights_that_do_not_load_are_one_line_and_code_2(tmp_path: Path) -> None:
    from tests.e2e.conftest import NAM

    for workers in ("1", "2"):
        environment = os.environ | {"NAM_WORKERS": workers, "NAM_PORT": "0", "NAM_LOG_LEVEL": "error"}
        done = subprocess.run(
            [NAM, "serve", "--weights", "nowhere"], capture_output=True, text=True, timeout=300, env=environment
        )
        assert done.returncode == 2
        assert "nam: nowhere is neither a weights file nor the name of shipped weights" in done.stderr
