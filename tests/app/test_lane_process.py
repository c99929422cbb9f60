"""One lane's process, from both ends: its loop in a thread with the fake engine, and its parent without one."""

import socket
import threading
from collections.abc import Iterator

import pytest

from app import lane_process, wire
from app.engine import EngineError, EngineFailed
from app.forward import Done, Forward, Job
from app.lane_process import LaneDied, ProcessLanes, Stream
from app.settings import Settings
from tests.fakes import CARD, FakeEngine, picture


class Lane(lane_process._Lane):
    """A lane whose process is a thread of this one."""

    engines: list[FakeEngine]

    def __init__(self, settings: Settings, number: int) -> None:
        ours, theirs = socket.socketpair()
        self._stream, self.engine = Stream(ours), FakeEngine()
        self.engines.append(self.engine)
        threading.Thread(target=self._live, args=(Stream(theirs),), daemon=True).start()

    def _live(self, stream: Stream) -> None:
        forward = Forward(self.engine, 10**6, lambda _: None)
        stream.send({"card": wire.put_card(CARD)})
        try:
            while self.engine.error is None or not isinstance(self.engine.error, SystemExit):
                lane_process._serve(stream, self.engine, forward)
        except EOFError:
            pass
        stream.close()

    def run(self, jobs, alone):
        if isinstance(self.engine.error, SystemExit):
            raise LaneDied("a lane's process ended with code 1")
        return super().run(jobs, alone)

    def close(self) -> None:
        self._stream.close()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeEngine]]:
    Lane.engines = []
    monkeypatch.setattr(lane_process, "_Lane", Lane)
    yield Lane.engines
    for engine in Lane.engines:
        engine.gate.set()


def opened(lanes: int = 2, seen: list[float] | None = None) -> ProcessLanes:
    return ProcessLanes(Settings(lanes=lanes), ([] if seen is None else seen).append)


def levels(outcomes: list) -> list[int]:
    return [25 * int(outcome.answer.indices[0]) for outcome in outcomes]


def test_a_batch_goes_there_and_comes_back_in_order(engines: list[FakeEngine]) -> None:
    seen: list[float] = []
    lanes = opened(seen=seen)
    outcomes = lanes([Job(picture(level), 1) for level in (200, 50, 100)])
    assert levels(outcomes) == [200, 50, 100]
    assert seen == [outcomes[0].model_s]
    assert (lanes.card.name, lanes.card.lanes) == ("fake", 2)
    lanes.close()


def test_a_bad_image_is_its_own_error(engines: list[FakeEngine]) -> None:
    lanes = opened()
    bad, good = lanes([Job(b"none", 1), Job(picture(), 1)])
    assert bad.code == "unsupported_media_type"
    assert isinstance(good, Done)
    lanes.close()


def test_whoever_comes_alone_gets_the_first_lane_and_is_told_so(engines: list[FakeEngine]) -> None:
    lanes = opened()
    lanes([Job(picture(), 1)])
    lanes([Job(picture(), 1)])
    assert [engine.batches for engine in engines] == [[1, 1], []]
    assert engines[0].crowded is False
    lanes.close()


def test_calls_side_by_side_have_a_lane_each_and_are_crowded(engines: list[FakeEngine]) -> None:
    lanes = opened()
    for engine in engines:
        engine.gate.clear()
    calls = [threading.Thread(target=lanes, args=([Job(picture(), 1)],)) for _ in range(2)]
    for call in calls:
        call.start()
    while [engine.batches for engine in engines] != [[1], [1]]:
        pass
    assert [engine.crowded for engine in engines] == [False, True]
    for engine in engines:
        engine.gate.set()
    for call in calls:
        call.join(10)
    lanes.close()


def test_an_engine_that_raises_fails_its_batch_and_lives_on(engines: list[FakeEngine]) -> None:
    lanes = opened(1)
    engines[0].error = RuntimeError("out of memory")
    with pytest.raises(EngineFailed):
        lanes([Job(picture(), 1)])
    assert levels(lanes([Job(picture(75), 1)])) == [75]
    assert len(engines) == 1
    lanes.close()


def test_a_lane_that_dies_fails_its_batch_and_is_started_again(engines: list[FakeEngine]) -> None:
    lanes = opened(1)
    engines[0].error = SystemExit(1)
    with pytest.raises(LaneDied):
        lanes([Job(picture(), 1)])
    assert len(engines) == 2
    assert levels(lanes([Job(picture(75), 1)])) == [75]
    lanes.close()


def test_a_lane_that_cannot_start_stops_the_start() -> None:
    with pytest.raises(EngineError, match="neither a weights file nor the name"):
        ProcessLanes(Settings(weights="no such weights", lanes=1), lambda _: None)


def test_large_messages_arrive_whole() -> None:
    one, other = map(Stream, socket.socketpair())
    parts = [bytes([i % 251]) * 100_003 for i in range(700)]  # more pieces and bytes than one call of the kernel takes
    sender = threading.Thread(target=one.send, args=({"n": len(parts)}, parts))
    sender.start()
    head, payload = other.take()
    sender.join(10)
    assert head == {"n": 700}
    assert bytes(payload) == b"".join(parts)
    one.close()
    with pytest.raises(EOFError):
        other.take()
    other.close()
