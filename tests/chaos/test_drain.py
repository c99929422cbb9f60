"""SIGTERM under load, many callers on kept connections: what was sent is answered, and whole. ``DRAINS``: how often."""

import http.client
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.service import FAULTY, JPEG, NAM, Service, photo, running, until
from tests.fakes import picture

CALLERS = 16
RUNS = range(int(os.environ.get("DRAINS", "1")))


class Caller(threading.Thread):
    """Asks again and again until its connection is refused. ``seen``: an answer's status, or how there was none:
    ``reset`` after the request was sent, ``half`` an answer, ``refused`` before anything was."""

    def __init__(self, service: Service, image: bytes, path: str, seen: Counter[int | str]) -> None:
        super().__init__(daemon=True)
        self._port, self._image, self._path, self._seen = service.port, image, path, seen

    def run(self) -> None:
        kept = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while (told := self._ask(kept)) != "refused":
            self._seen[told] += 1
            if told == 503:
                threading.Event().wait(0.02)
        self._seen["refused"] += 1

    def _ask(self, kept: http.client.HTTPConnection) -> int | str:
        try:
            if kept.sock is None:
                kept.connect()
        except OSError:
            return "refused"
        try:
            kept.request("POST", self._path, self._image, dict(JPEG))
            answer = kept.getresponse()
        except (OSError, http.client.HTTPException):
            kept.close()
            return "reset"
        try:
            answer.read()
        except (OSError, http.client.HTTPException):
            return "half"
        return answer.status


def drained(service: Service, images: list[bytes], paths: list[str]) -> Counter[int | str]:
    """What the callers saw of a service that was ended under their load."""
    seen: Counter[int | str] = Counter()
    callers = [Caller(service, images[i % len(images)], paths[i % len(paths)], seen) for i in range(CALLERS)]
    for caller in callers:
        caller.start()
    until(lambda: seen[200] > 5 * CALLERS)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0, service.log.read_text()
    for caller in callers:
        caller.join(60)
    return seen


def check(seen: Counter[int | str]) -> None:
    assert seen[503] > 0
    assert seen["refused"] == CALLERS
    assert set(seen) == {200, 503, "refused"}


@pytest.mark.parametrize("run", RUNS)
def test_who_has_sent_is_answered(tmp_path: Path, run: int) -> None:
    with running(tmp_path, FAULTY, NAM_LANES="1") as service:
        check(drained(service, [picture(100)], ["/predict", "/attention"]))


@pytest.mark.parametrize("run", RUNS)
def test_who_has_sent_to_several_processes_is_answered(tmp_path: Path, run: int) -> None:
    with running(tmp_path, NAM, NAM_WORKERS="2") as service:
        check(drained(service, [photo(seed) for seed in range(4)], ["/predict", "/attention?maps=none"]))
