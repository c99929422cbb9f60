"""One lane's process, from both ends: its loop in a thread with the fake engine, and its parent without one."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app import lane_process, wire
from app.engine import Answer, Ask, Card, EngineError, EngineFailed
from app.errors import BadImage, InternalError
from app.forward import Decoded, Done, Forward, Job, timed_decode
from app.lane_process import ProcessLanes
from app.messages import Stream
from app.settings import Settings
from tests.fakes import CARD, FakeDecoders, FakeEngine, picture

ROOT = Path(__file__).parents[2]


class Engine(FakeEngine):
    """``poison``: a picture of this level ends the process."""

    poison: float | None = None

    def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
        answers = super().__call__(asks)
        if any(ask.pixels.mean() == self.poison for ask in asks):
            raise SystemExit(1)
        return answers


class Lane(lane_process._Lane):
    """A lane whose process is a thread of this one."""

    engines: list[Engine]

    def __init__(self, settings: Settings, number: int) -> None:
        (self._socket, self._end), self._connection, self._process = socket.socketpair(), None, self
        self.ended: int | None = None
        self.engine = Engine()
        self.engines.append(self.engine)
        threading.Thread(target=self._live, args=(self._end,), daemon=True).start()

    def _live(self, end: socket.socket) -> None:
        stream = Stream(end)
        forward = Forward(self.engine, 10**6, lambda _: None)
        with end, suppress(EOFError, OSError, SystemExit):  # it may be killed before it has said its card
            stream.send({"card": wire.put_card(CARD)})
            while True:
                lane_process._serve(stream, self.engine, forward)

    def poll(self) -> int | None:
        return self.ended

    def kill(self) -> None:
        """A thread ends with its socket."""
        self.close()

    def wait(self) -> str:
        return "with code 1"


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    Lane.engines, Engine.poison = [], None
    monkeypatch.setattr(lane_process, "_Lane", Lane)
    yield Lane.engines
    for engine in Lane.engines:
        engine.gate.set()


@asynccontextmanager
async def opened(count: int = 2, seen: list[float] | None = None, **settings: int) -> AsyncIterator[ProcessLanes]:
    told = Settings(lanes=count, **settings)
    run = await asyncio.to_thread(ProcessLanes, told, ([] if seen is None else seen).append)
    try:
        yield run
    finally:
        await run.close()


def levels(outcomes: list) -> list[int]:
    return [25 * int(outcome.answer.indices[0]) for outcome in outcomes]


def play(scene: Coroutine[Any, Any, None]) -> None:
    """A minute is what a scene gets that hangs, not what one takes."""
    asyncio.run(asyncio.wait_for(scene, 60))


def test_a_batch_goes_there_and_comes_back_in_order(engines: list[FakeEngine]) -> None:
    seen: list[float] = []

    async def scene() -> None:
        async with opened(seen=seen) as run:
            outcomes = await run.lanes()[1]([Job(picture(level), 1) for level in (200, 50, 100)])
            assert levels(outcomes) == [200, 50, 100]
            assert seen == [outcomes[0].model_s]
            assert (run.card.name, run.card.lanes, len(run.lanes())) == ("fake", 2, 2)
            assert run.card.lanes_decode

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
            engines[0].gate.set()
            await calls[0]
            engines[1].gate.set()
            await calls[1]
            await run.lanes()[1]([Job(picture(), 1)])
            assert ([engine.batches for engine in engines], engines[0].crowded) == ([[1, 1], [1]], False)

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


def test_whoever_ends_a_lane_fails_alone_and_its_neighbours_wait_for_no_restart(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts: list[str] = []
    start = threading.Event()

    async def scene() -> None:
        async with opened(3) as run:
            lane = run.lanes(lambda: restarts.append("lane"))[0]
            monkeypatch.setattr(Lane, "card", lambda self: start.wait(120))  # as long as it takes to start one
            Engine.poison = 200
            outcomes = await lane([Job(picture(level), 1) for level in (50, 200, 100)])
            start.set()
            assert isinstance(outcomes[1], InternalError)
            assert levels(outcomes[::2]) == [50, 100]
            assert len(restarts) == 2  # of the lane that they shared, and of the one that it was tried in alone

    play(scene())


def test_bytes_that_end_a_lane_are_decoded_elsewhere_the_second_time(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = picture(200)

    async def refused(self: FakeDecoders, image: bytes, size: int, deadline: float) -> Decoded:
        if image == bad:
            raise BadImage
        return timed_decode(image, size=size, **self.options)

    monkeypatch.setattr(FakeDecoders, "decode", refused)
    restarts: list[str] = []

    async def scene() -> None:
        async with opened(2) as run:
            Engine.poison = 200
            outcomes = await run.lanes(lambda: restarts.append("lane"))[0]([Job(bad, 1), Job(picture(50), 1)])
            assert isinstance(outcomes[0], BadImage)
            assert levels(outcomes[1:]) == [50]
            assert len(restarts) == 1  # of the lane that both were in

    play(scene())


def test_a_lone_lane_that_dies_is_started_again_and_its_batch_with_it(engines: list[Engine]) -> None:
    async def scene() -> None:
        async with opened(1) as run:
            (lane,) = run.lanes()
            engines[0].error = SystemExit(1)
            assert levels(await lane([Job(picture(75), 1)])) == [75]
            assert len(engines) == 2

    play(scene())


def test_a_lane_that_died_while_it_was_idle_gets_no_batch(engines: list[Engine]) -> None:
    async def scene() -> None:
        async with opened(2) as run:
            run._lanes[0].ended = -9
            assert levels(await run.lanes()[0]([Job(picture(75), 1)])) == [75]
            while len(engines) < 3:
                await asyncio.sleep(0.001)
            assert [engine.batches for engine in engines] == [[], [1], []]

    play(scene())


def test_a_lane_that_is_stuck_while_it_starts_again_is_started_once_more(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_process, "START_S", 0.1)
    monkeypatch.setattr(lane_process, "PAUSE_S", 0.01)

    async def scene() -> None:
        async with opened(1) as run:
            (lane,) = run.lanes()
            stuck = iter([0.3])
            monkeypatch.setattr(Lane, "card", lambda self: time.sleep(next(stuck, 0)))
            engines[0].error = SystemExit(1)
            call = asyncio.ensure_future(lane([Job(picture(75), 1)]))
            while len(engines) < 3:
                await asyncio.sleep(0.01)
            call.cancel()

    play(scene())


@pytest.mark.parametrize("others", [0, 1], ids=["none lives", "another lives"])
def test_where_no_lane_can_be_started_again_the_service_has_failed(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    monkeypatch.setattr(lane_process, "PAUSE_S", 0.01)

    def refuse(lane: Lane) -> Card:
        raise EngineError("the graph is damaged")

    async def scene() -> None:
        ended: list[str] = []
        async with opened(1 + others) as run:
            lane = run.lanes(on_end=ended.append)[0]
            monkeypatch.setattr(Lane, "card", refuse)
            engines[0].error = SystemExit(1)
            call = asyncio.ensure_future(lane([Job(picture(75), 1)]))
            while len(engines) < 6 + others:
                await asyncio.sleep(0.001)
            assert bool(ended) == (not others)
            call.cancel()

    play(scene())


def test_a_lane_that_is_stuck_once_its_callers_are_gone_is_killed(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_process, "STUCK_S", 0.5)

    async def scene() -> None:
        async with opened(1, timeout_ms=500) as run:
            (lane,) = run.lanes()
            engines[0].gate.clear()
            with pytest.raises(TimeoutError):
                await lane([Job(picture(200), 1)])
            assert levels(await lane([Job(picture(75), 1)])) == [75]
            assert len(engines) == 2

    play(scene())


def test_a_call_given_up_does_not_answer_the_next_one(engines: list[Engine]) -> None:
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
            assert levels(await lane([Job(picture(75), 1)])) == [75]

    play(scene())


def test_a_lane_that_decodes_for_too_long_ends_itself() -> None:
    code = """if True:
        from app import forward, lane_process
        from tests.fakes import FakeEngine, picture
        lane_process.DECODE_S = 0.05
        forward.decode = lambda *_, **__: [None for _ in iter(int, 1)]
        lane_process._Forward(FakeEngine(), 10**6, lambda _: None)([forward.Job(picture(), 1)])"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGPROF


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
