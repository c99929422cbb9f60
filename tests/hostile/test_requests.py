"""Every attempt on a real port: what is answered is the contract's, in time, and costs bounded memory."""

import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from app.errors import ERRORS
from tests.e2e.conftest import start
from tests.hostile.attempts import attempts
from tests.hostile.conftest import Target
from tests.hostile.messages import GONE, Attempt, jpeg, request

LONGEST_S = 30.0  # the deadline of a request, NAM_TIMEOUT_MS
CODES = {error.code: error.status for error in ERRORS}


@dataclass
class Heard:
    attempt: Attempt
    statuses: list[int] = field(default_factory=list)
    problems: list[tuple[int, str, bytes]] = field(default_factory=list)  # status, media type, body
    seconds: float = 0.0

    def take(self, head: bytes, body: bytes) -> None:
        status = int(head[9:12])
        self.statuses.append(status)
        if status >= 400:
            lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self.problems.append((status, lines[b"content-type"].decode(), body))


def make(port: int, attempt: Attempt) -> Heard:
    heard, started = Heard(attempt), time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST_S) as connection:
        try:
            for piece in attempt.pieces:
                if isinstance(piece, bytes):
                    connection.sendall(piece)
                else:
                    time.sleep(piece)
            if attempt.ends:
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # the answer came before all was sent
            pass
        _listen(connection, heard)
    heard.seconds = time.monotonic() - started
    return heard


def _listen(connection: socket.socket, heard: Heard) -> None:
    data = b""
    while len(heard.statuses) < len(heard.attempt.answers):
        head, found, rest = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0] or 0) if found else 0
        if found and len(rest) >= length:
            heard.take(head, rest[:length])
            data = rest[length:]
            continue
        try:
            more = connection.recv(2**16)
        except ConnectionResetError:
            more = b""
        if not more:
            heard.statuses.append(GONE)
            return
        data += more


@dataclass(frozen=True)
class Siege:
    heard: list[Heard]
    peak_kb: int
    pids: tuple[list[int], list[int]]
    alive: int


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    running = start(tmp_path_factory.mktemp("siege"), NAM_BODY_IDLE_MS="3000", NAM_LOG_LEVEL="warning")
    target = Target(running)
    make(target.port, Attempt("good", [request(jpeg())], [{200}]))
    pids, before = target.pids, target.resident_kb()
    target.forget_peaks()
    with ThreadPoolExecutor(16) as pool:
        heard = list(pool.map(lambda attempt: make(target.port, attempt), attempts()))
    peak = target.peak_kb() - before
    last = make(target.port, Attempt("good", [request(jpeg())], [{200}]))
    yield Siege(heard, peak, (pids, target.pids), last.statuses[0])
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log.read_text()


def test_every_attempt_has_an_answer_that_it_may_have(siege: Siege) -> None:
    print(Counter(status for heard in siege.heard for status in heard.statuses))
    wrong = [
        (heard.attempt.name, heard.statuses)
        for heard in siege.heard
        if len(heard.statuses) < len(heard.attempt.answers)
        or any(status not in may for status, may in zip(heard.statuses, heard.attempt.answers, strict=True))
    ]
    assert not wrong, wrong


def test_every_refusal_has_the_contracts_shape(siege: Siege) -> None:
    for heard in siege.heard:
        for status, media_type, body in heard.problems:
            assert media_type == "application/problem+json", heard.attempt.name
            assert CODES[json.loads(body)["code"]] == status


def test_every_answer_comes_in_time(siege: Siege) -> None:
    slowest = max(siege.heard, key=lambda heard: heard.seconds)
    print(f"{slowest.attempt.name}: {slowest.seconds:.1f} s")
    assert slowest.seconds < LONGEST_S, slowest.attempt.name


def test_memory_is_bounded(siege: Siege) -> None:
    """16 bodies of 20 MB at a time, and what JSON makes of some."""
    print(f"peak {siege.peak_kb / 1024:.0f} MB")
    assert siege.peak_kb < 1_500_000


def test_nobody_died_and_a_good_request_is_answered(siege: Siege) -> None:
    before, after = siege.pids
    assert set(before) <= set(after)  # decoders are started when they are needed
    assert siege.alive == 200
