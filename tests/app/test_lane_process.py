"""One lane's process, from both ends: its loop in a thread with the fake engine, and its parent without one."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

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
        (self._socket, theirs), self._connection, self._process = socket.socketpair(), None, self
        self.engine = FakeEngine()
        self.engines.append(self.engine)
        threading.Thread(target=self._live, args=(theirs,), daemon=True).start()

    def _live(self, end: socket.socket) -> None:
        """``engine.error`` SystemExit: the process ends while it has a batch."""
        stream = Stream(end)
        forward = Forward(self.engine, 10**6, lambda _: None)
        stream.send({"card": wire.put_card(CARD)})
        with end, suppress(EOFError, OSError, SystemExit):
            while True:
                lane_process._serve(stream, self.engine, forward)

    returncode = 1

    def wait(self) -> None:
        """A thread ends with its socket."""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeEngine]]:
    Lane.engines = []
    monkeypatch.setattr(lane_process, "_Lane", Lane)
    yield Lane.engines
    for engine in Lane.engines:
        engine.gate.set()


@asynccontextmanager
async def opened(count: int = 2, seen: list[float] | None = None) -> AsyncIterator[ProcessLanes]:
    run = await asyncio.to_thread(ProcessLanes, Settings(lanes=count), ([] if seen is None else seen).append)
    try:
        yield run
    finally:
        await run.close()


def levels(outcomes: list) -> list[int]:
    return [25 * int(outcome.answer.indices[0]) for outcome in outcomes]


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 10))


def test_a_batch_goes_there_and_comes_back_in_order(engines: list[FakeEngine]) -> None:
    seen: list[float] = []

    async def scene() -> None:
        async with opened(seen=seen) as run:
            outcomes = await run.lanes()[1]([Job(picture(level), 1) for level in (200, 50, 100)])
            assert levels(outcomes) == [200, 50, 100]
            assert seen == [outcomes[0].model_s]
            assert (run.card.name, run.card.lanes, len(run.lanes())) == ("fake", 2, 2)

    play(scene())


def test_a_bad_image_is_its_own_error(engines: list[FakeEngine]) -> None:
    async def scene() -> None:
        async with opened() as run:
            bad, good = await run.lanes()[0]([Job(b"none", 1), Job(picture(), 1)])
            assert bad.code == "unsupported_media_type"
            assert isinstance(good, Done)

    play(scene())


def test_a_lane_is_told_whether_it_is_alone(engines: list[FakeEngine]) -> None:
    async def scene() -> None:
        async with opened() as run:
            for engine in engines:
                engine.gate.clear()
            calls = [asyncio.ensure_future(lane([Job(picture(), 1)])) for lane in run.lanes()]
            while [engine.batches for engine in engines] != [[1], [1]]:
                await asyncio.sleep(0.001)
            assert [engine.crowded for engine in engines] == [False, True]
            for engine in engines:
                engine.gate.set()
            await asyncio.gather(*calls)
            await run.lanes()[1]([Job(picture(), 1)])
            assert engines[1].crowded is False

    play(scene())


def test_an_engine_that_raises_fails_its_batch_and_lives_on(engines: list[FakeEngine]) -> None:
    async def scene() -> None:
        async with opened(1) as run:
            (lane,) = run.lanes()
            engines[0].error = RuntimeError("out of memory")
            with pytest.raises(EngineFailed):
                await lane([Job(picture(), 1)])
            assert levels(await lane([Job(picture(75), 1)])) == [75]
        assert len(engines) == 1

    play(scene())


def test_a_lane_that_dies_fails_its_batch_and_is_started_again(engines: list[FakeEngine]) -> None:
    async def scene() -> None:
        async with opened(1) as run:
            (lane,) = run.lanes()
            engines[0].error = SystemExit(1)
            with pytest.raises(LaneDied, match="code 1"):
                await lane([Job(picture(), 1)])
            assert len(engines) == 2
            assert levels(await lane([Job(picture(75), 1)])) == [75]

    play(scene())


def test_a_call_given_up_does_not_answer_the_next_one(engines: list[FakeEngine]) -> None:
    async def scene() -> None:
        async with opened(1) as run:
            (lane,) = run.lanes()
            engines[0].gate.clear()
            call = asyncio.ensure_future(lane([Job(picture(200), 1)]))
            while not engines[0].batches:
                await asyncio.sleep(0.001)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            engines[0].gate.set()
            with pytest.raises(LaneDied):
                await lane([Job(picture(50), 1)])
            assert levels(await lane([Job(picture(75), 1)])) == [75]

    play(scene())


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
