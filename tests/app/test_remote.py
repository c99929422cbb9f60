"""The queue in another process: to its callers as if it were here. Both ends run in this one, over a real socket."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.batching import Batcher, Closed, DeadlineExceeded, QueueFull
from app.engine import AttentionAsk, EngineFailed
from app.errors import UnsupportedMediaType
from app.forward import Forward, Job
from app.remote import EngineServer, RemoteBatcher
from tests.fakes import CARD, FakeEngine, picture


class Both:
    """The HTTP process's end, and what stands behind the other."""

    def __init__(self, remote: RemoteBatcher, engine: FakeEngine, batcher: Batcher, server: asyncio.Server) -> None:
        self.remote, self.engine, self.batcher, self.server = remote, engine, batcher, server

    def send(self, level: int = 100, seconds: float = 60.0, **asked: Any) -> asyncio.Future:
        job = Job(picture(level), 1, **asked)
        return self.remote.submit(job, time.monotonic() + seconds)


@asynccontextmanager
async def opened(folder: Path, max_queue: int = 8) -> AsyncIterator[Both]:
    engine = FakeEngine()
    forward = Forward(engine, 10**6, lambda _: None)
    batcher = Batcher(forward.lanes(), max_batch=4, max_queue=max_queue)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: EngineServer(batcher, CARD), folder / "engine")
    remote = await RemoteBatcher.connect(folder / "engine")
    try:
        yield Both(remote, engine, batcher, server)
    finally:
        engine.gate.set()
        remote.close()
        await batcher.close(5)
        await forward.close()
        server.close()


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 120))


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_it_introduces_itself_with_the_engines_card(tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened(tmp_path) as both:
            assert both.remote.card.name == CARD.name
            assert both.remote.card.labels == CARD.labels
            assert both.remote.healthy

    play(scene())


def test_a_hundred_callers_get_their_own_answers(tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened(tmp_path, max_queue=200) as both:
            levels = [25 * (i % 10) for i in range(100)]
            served = await asyncio.gather(*(both.send(level) for level in levels))
            assert [int(one.result.answer.indices[0]) for one in served] == [level // 25 for level in levels]
            assert max(both.engine.batches) == 4

    play(scene())


def test_an_attention_comes_through_with_its_arrays(tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened(tmp_path) as both:
            served = await both.send(attention=AttentionAsk(frozenset({"layer1.0"}), 2, "all"))
            (block,) = served.result.answer.blocks
            assert (block.name, block.map.shape, block.channel_maps.shape) == ("layer1.0", (4, 4), (4, 4, 4))

    play(scene())


def test_what_befalls_a_job_there_befalls_its_caller_here(tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened(tmp_path, max_queue=1) as both:
            none = await both.remote.submit(Job(b"none", 1), time.monotonic() + 9)
            assert isinstance(none.result, UnsupportedMediaType)
            both.engine.error = RuntimeError("out of memory")
            with pytest.raises(EngineFailed):
                await both.send()
            both.engine.gate.clear()
            busy = both.send()
            await until(lambda: both.batcher.in_flight == 1)
            queued = both.send()
            await until(lambda: both.batcher.depth == 1)
            with pytest.raises(QueueFull):
                await both.send()
            both.engine.gate.set()
            await asyncio.gather(busy, queued)

    play(scene())


def test_a_deadline_ends_the_wait_and_the_work(tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened(tmp_path) as both:
            both.engine.gate.clear()
            busy = both.send()
            await until(lambda: both.batcher.in_flight == 1)
            with pytest.raises(DeadlineExceeded):
                await both.send(seconds=0.05)
            await until(lambda: both.batcher.depth == 0)
            both.engine.gate.set()
            await busy
            assert both.engine.batches == [1]

    play(scene())


def test_an_abandoned_job_never_reaches_the_engine(tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened(tmp_path) as both:
            both.engine.gate.clear()
            busy = both.send()
            await until(lambda: both.batcher.in_flight == 1)
            gone = both.send()
            await until(lambda: both.batcher.depth == 1)
            gone.cancel()
            await until(lambda: both.batcher.depth == 0)
            both.engine.gate.set()
            await busy
            assert both.engine.batches == [1]

    play(scene())


def test_an_http_process_that_dies_leaves_no_work_behind(tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened(tmp_path) as both:
            both.engine.gate.clear()
            busy, queued = both.send(), both.send()
            await until(lambda: both.batcher.in_flight + both.batcher.depth == 2)
            both.remote.close()
            answers = await asyncio.gather(busy, queued, return_exceptions=True)
            assert [type(answer) for answer in answers] == [Closed, Closed]
            await until(lambda: both.batcher.depth == 0)

    play(scene())


def test_without_the_engines_process_nothing_is_taken(tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened(tmp_path) as both:
            both.remote.close()
            await until(lambda: not both.remote.healthy)
            with pytest.raises(Closed):
                await both.send()
        with pytest.raises(FileNotFoundError):
            await RemoteBatcher.connect(tmp_path / "no engine")

    play(scene())


def test_a_batcher_that_takes_nothing_says_so(tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened(tmp_path) as both:
            await both.batcher.close(5)
            with pytest.raises(Closed):
                await both.send()

    play(scene())
