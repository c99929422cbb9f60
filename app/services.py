"""What is alive in a serving process, how it is born and dies, and the one way to reach it."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Protocol, cast

from fastapi import Depends, Request

from app.batching import Batcher, BatchRecord, Served
from app.board import Load
from app.engine import Card
from app.forward import Job, Outcome, Run
from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger("nam.services")

# When the lifespan ends no request is left (server.py has waited for them): only a batch whose callers are gone.
LAST_BATCH_S = 1.0

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
    decoders: ThreadPoolExecutor
    metrics: Metrics
    load: Load


@asynccontextmanager
async def open_services(settings: Settings, open_lanes: OpenLanes, load: Load) -> AsyncIterator[Services]:
    """Born in nesting order, the engine loaded and warm before work is taken; dies in the opposite one."""
    metrics = Metrics(load)
    with ThreadPoolExecutor(settings.decode_threads or os.cpu_count(), thread_name_prefix="decode") as decoders:
        async with open_lanes(settings, metrics, load) as (engine, lanes):
            services = Services(settings, engine, lanes, decoders, metrics, load)
            logger.info("ready: %s, %s", engine.card.name, engine.card.facts.get("engine", "engine unnamed"))
            try:
                yield services
            finally:
                load.draining = True


def lanes_here(open_run: OpenRun) -> OpenLanes:
    """The queue in this process, and what ``open_run`` opens behind it."""

    @asynccontextmanager
    async def open_lanes(settings: Settings, metrics: Metrics, load: Load) -> AsyncIterator[tuple[Described, Lanes]]:
        run = await asyncio.to_thread(open_run, settings, metrics.model.observe)
        logger.info("serving because: %s", run.card.facts.get("reason", "nothing is known"))

        def on_batch(record: BatchRecord) -> None:
            metrics.on_batch(record)
            load.image_s, load.depth = batcher.item_s, batcher.depth

        batcher: Batcher[Job, Outcome] = Batcher(
            run.lanes(),
            max_batch=run.card.max_batch,
            max_queue=settings.max_queue,
            on_batch=on_batch,
            cost=attrgetter("forwards"),
        )
        load.read_depth = lambda: batcher.depth
        try:
            yield run, batcher
        finally:
            await batcher.close(LAST_BATCH_S)
            await run.close()

    return open_lanes


def _of_request(request: Request) -> Services:
    return cast(Services, request.state.services)


Alive = Annotated[Services, Depends(_of_request)]
