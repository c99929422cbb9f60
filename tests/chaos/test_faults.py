"""What fails under way, on a real process: it costs what it must and no more, and a good request then gets its answer,
of this process or of the next one."""

import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.chaos import faulty
from tests.chaos.service import FAULTY, NAM, ROOT, Service, launch, running, until
from tests.fakes import picture


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("faults"), FAULTY) as one:
        yield one
        assert one.end() == 0


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path, FAULTY) as one:
        yield one


def label(service: Service, level: int) -> int:
    answer = service.ask(picture(level))
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]["index"]


def good(service: Service) -> bool:
    return label(service, 75) == 3


def batch(service: Service, *levels: int) -> list[int | str]:
    """Of each image its label or its error's code."""
    files = [("file", picture(level)) for level in levels]
    results = httpx2.post(service.url + "/predict/batch", files=files, timeout=30).json()["results"]
    return [one["error"]["code"] if "error" in one else one["predictions"][0]["index"] for one in results]


def test_an_engine_error_is_the_end_of_one_batch(service: Service) -> None:
    answer = service.ask(picture(faulty.ERROR))
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "CUDNN" not in answer.text
    assert "CUDNN" in service.log.read_text()
    assert good(service)


def test_a_batch_that_does_not_fit_is_split_and_all_are_answered(service: Service) -> None:
    assert batch(service, 25, 50, faulty.CROWD, 75, 100) == [1, 2, 9, 3, 4]
    assert good(service)


def test_an_image_that_does_not_fit_alone_may_come_again_and_its_neighbours_are_answered(service: Service) -> None:
    assert batch(service, 25, faulty.NO_MEMORY, 50) == [1, "overloaded", 2]
    answer = service.ask(picture(faulty.NO_MEMORY))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert good(service)


@pytest.mark.parametrize(("level", "status"), [(faulty.LOST, 500), (faulty.BUG, 200)], ids=["device", "batcher"])
def test_without_a_device_or_a_batcher_it_turns_red_and_ends_with_its_code(
    doomed: Service, level: int, status: int
) -> None:
    """``slow`` has sent half of its body, so that the process waits for it."""
    image = picture(100)
    released, told = threading.Event(), list[httpx2.Response]()

    def pieces() -> Iterator[bytes]:
        yield image[:20]
        released.wait(60)
        yield image[20:]

    slow = threading.Thread(target=lambda: told.append(doomed.ask(pieces())))  # type: ignore[arg-type]
    slow.start()
    until(lambda: "nam_requests_in_flight 1.0" in httpx2.get(doomed.url + "/metrics", timeout=60).text)
    assert doomed.ask(picture(level)).status_code == status
    until(lambda: doomed.ready() == 503)
    refused = doomed.ask(image)
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    released.set()
    slow.join()
    assert (told[0].status_code, told[0].json()["code"]) == (503, "not_ready")
    assert doomed.process.wait(60) == 70
    with running(doomed.log.parent, FAULTY, port=doomed.port) as again:
        assert good(again)


def test_a_killed_service_that_is_started_again_loses_no_request_of_callers_that_retry(tmp_path: Path) -> None:
    answered: list[int] = []

    def insist(number: int) -> None:
        while True:
            with suppress(httpx2.TransportError):
                answered.append(label(one, 25 * (number % 10)) == number % 10)
                return
            threading.Event().wait(0.05)

    with running(tmp_path, FAULTY) as one, ThreadPoolExecutor(8) as callers:
        for number in range(150):
            callers.submit(insist, number)
        until(lambda: len(answered) > 50)
        one.process.kill()
        one.process.wait()
        with running(tmp_path, FAULTY, port=one.port):
            callers.shutdown()
    assert answered == [True] * 150


def test_a_full_disk_for_the_log_stops_nobody(tmp_path: Path) -> None:
    with running(tmp_path, FAULTY, log=Path("/dev/full"), NAM_LOG_LEVEL="debug") as one:
        assert [label(one, 25 * number) for number in range(10)] == list(range(10))
        assert service_errors_are_told(one)
        assert one.end() == 0


def service_errors_are_told(service: Service) -> bool:
    return service.ask(picture(faulty.ERROR)).status_code == 500 and good(service)


def test_a_full_disk_for_the_cache_stops_the_start_in_words(tmp_path: Path) -> None:
    """No file may grow beyond 1 MB, and the graph has 20."""
    one = launch(tmp_path, NAM, limits={resource.RLIMIT_FSIZE: 2**20}, NAM_CACHE_DIR=str(tmp_path / "cache"))
    assert one.process.wait(300) == 2
    last = one.log.read_text().splitlines()[-1]
    assert last.startswith(f"nam: no graph could be written to NAM_CACHE_DIR={tmp_path / 'cache'}")


def test_few_file_descriptors_mean_few_connections_and_no_end(tmp_path: Path) -> None:
    with running(tmp_path, FAULTY, limits={resource.RLIMIT_NOFILE: 96}, NAM_BODY_IDLE_MS="4000") as one:
        crowd = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(200)]
        before = seconds_of(one)
        threading.Event().wait(2)
        assert seconds_of(one) - before < 0.6  # it does not spin
        until(lambda: one.ready() == 200)  # those that say nothing are cut
        assert good(one)
        for connection in crowd:
            connection.close()
        assert one.end() == 0


def seconds_of(service: Service) -> float:
    """CPU time of the process."""
    user, system = Path(f"/proc/{service.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / 100


def test_no_duration_is_taken_from_a_clock_that_can_jump() -> None:
    """Spans say when they were, so that they must look at it."""
    sources = {path.name: path.read_text() for path in (ROOT / "app").glob("*.py")}
    clocks = ("time.time(", "time.time_ns(", "datetime.now", "utcnow")
    assert {name for name, source in sources.items() if any(clock in source for clock in clocks)} <= {"spans.py"}
