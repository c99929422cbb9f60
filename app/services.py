"""What is alive in a serving process, how it is born and dies, and the one way to reach it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Protocol, cast

from fastapi import Depends, Request

from app.batching import Batcher, BatchRecord, Served
from app.board import Load
from app.cores import usable_cores
from app.decoders import Decoders
from app.engine import AttentionAsk, Card, DeviceLost
from app.forward import Job, Outcome, Run
from app.metrics import Metrics
from app.settings import Settings
from app.tracing import open_traces

if TYPE_CHECKING:
    from app.spans import Spans

logger = logging.getLogger("nam.services")

# When the lifespan ends no request is left (server.py has waited for them): only a batch whose callers are gone.
LAST_BATCH_S = 1.0
MEMORY_EVERY_S = 5.0  # that the device is asked for its memory

OpenRun = Callable[[Settings, Callable[[float], None]], Run]


class Lanes(Protocol):
    """Where jobs are queued and run: a Batcher in this process, or the way to the one in another."""

    @property
    def healthy(self) -> bool: ...

    def submit(self, job: Job, deadline: float) -> asyncio.Future[Served[Outcome]]: ...


class Described(Protocol):
    """What knows the card of the engine that serves."""

    @property
    def card(self) -> Card: ...


OpenLanes = Callable[[Settings, Metrics, Load], AbstractAsyncContextManager[tuple[Described, Lanes]]]


@dataclass(frozen=True)
class Services:
    settings: Settings
    engine: Described
    batcher: Lanes
    decoders: Decoders
    threads: ThreadPoolExecutor
    metrics: Metrics
    load: Load
    looks: "Looks | None" = None
    traces: "Spans | None" = None


class Looks:
    """Of every so many images that were asked for labels alone, one whose gates are looked at too: for the metrics,
    which else know the gates of those images alone whose attention was asked for. It is a call of its own beside its
    neighbours'."""

    def __init__(self, card: Card, every: int) -> None:
        self._ask = AttentionAsk(frozenset(block.name for block in card.blocks), top_channels=0, maps="none")
        self._every, self._count = every, 0

    def next(self) -> AttentionAsk | None:
        self._count += 1
        return None if self._count % self._every else self._ask


@asynccontextmanager
async def open_services(settings: Settings, open_lanes: OpenLanes, load: Load) -> AsyncIterator[Services]:
    """Born in nesting order, the engine loaded and warm before work is taken; dies in the opposite one."""
    metrics, traces = Metrics(load), open_traces()
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="pool") as threads:
        async with open_lanes(settings, metrics, load) as (engine, lanes):
            decoders = Decoders(settings, engine.card, metrics.decoder_restarts.inc)
            looks = Looks(engine.card, settings.gate_sample) if settings.gate_sample and engine.card.blocks else None
            services = Services(settings, engine, lanes, decoders, threads, metrics, load, looks, traces)
            metrics.describe(_facts(engine.card), _limits(settings), lambda: lanes.healthy and not load.draining)
            logger.info("ready: %s, %s", engine.card.name, engine.card.facts.get("engine", "engine unnamed"))
            try:
                yield services
            finally:
                load.draining = True
                await decoders.close()
                if traces is not None:
                    await asyncio.to_thread(traces.close)


def _facts(card: Card) -> dict[str, str]:
    """What ``nam_build_info`` says."""
    engine, _, engine_version = str(card.facts.get("engine", "")).partition(" ")
    ours = {"version": version("nam-serve"), "model": card.name, "weights_sha256": card.sha256}
    told = {name: str(card.facts.get(name, "")) for name in ("device", "dtype")}
    return ours | told | {"engine": engine, "engine_version": engine_version}


def _limits(settings: Settings) -> dict[str, int]:
    return {"queue": settings.max_queue, "requests": settings.max_requests}


def lanes_here(open_run: OpenRun) -> OpenLanes:
    """The queue in this process, and what ``open_run`` opens behind it."""

    @asynccontextmanager
    async def open_lanes(settings: Settings, metrics: Metrics, load: Load) -> AsyncIterator[tuple[Described, Lanes]]:
        run = await asyncio.to_thread(open_run, settings, metrics.model.observe)
        watch, traces = asyncio.create_task(_watch_memory(run, metrics)), open_traces(batches=True)
        lanes = run.lanes(metrics.lane_restarts.inc, lambda reason: batcher.fail(reason))
        logger.info("serving because: %s", run.card.facts.get("reason", "nothing is known"))

        def on_batch(record: BatchRecord) -> None:
            metrics.on_batch(record)
            load.image_s, load.depth = batcher.item_s, batcher.depth
            if isinstance(record.error, DeviceLost):
                logger.critical("no more work is taken", exc_info=record.error)
                batcher.fail("the device is lost")

        batcher: Batcher[Job, Outcome] = Batcher(
            lanes if traces is None else [traces.traced(lane) for lane in lanes],
            max_batch=run.card.max_batch,
            max_queue=settings.max_queue,
            on_batch=on_batch,
            cost=attrgetter("forwards"),
        )
        load.read_depth = lambda: batcher.depth
        try:
            yield run, batcher
        finally:
            watch.cancel()
            await batcher.close(LAST_BATCH_S)
            await run.close()
            if traces is not None:
                await asyncio.to_thread(traces.close)

    return open_lanes


async def _watch_memory(run: Run, metrics: Metrics) -> None:
    """Ends at once where the engine has no device with memory of its own, and where the device is lost."""
    with suppress(RuntimeError):
        while memory := run.memory():
            metrics.on_memory(memory)
            await asyncio.sleep(MEMORY_EVERY_S)


async def _of_request(request: Request) -> Services:
    """Not a plain function: those FastAPI runs in a thread."""
    return cast(Services, request.state.services)


Alive = Annotated[Services, Depends(_of_request)]
