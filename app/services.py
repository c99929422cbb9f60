"""What is alive in a serving process, how it is born and dies, and the one way to reach it."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from app.batching import Batcher
from app.engine import Engine
from app.errors import ServiceError
from app.forward import Done, Forward, Job
from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger("nam.services")

# When the lifespan ends no request is left (server.py has waited for them): only a batch whose callers are gone.
LAST_BATCH_S = 1.0

LoadEngine = Callable[[Settings], Engine]


@dataclass
class Load:
    """What admission counts: requests for answers under way, bytes of bodies held, and whether new work is refused."""

    requests: int = 0
    body_bytes: int = 0
    draining: bool = False


@dataclass(frozen=True)
class Services:
    settings: Settings
    engine: Engine
    batcher: Batcher[Job, Done | ServiceError]
    decoders: ThreadPoolExecutor
    metrics: Metrics
    load: Load


@asynccontextmanager
async def open_services(settings: Settings, load_engine: LoadEngine, load: Load) -> AsyncIterator[Services]:
    """Born in nesting order, the engine loaded and warm before the batcher takes work; dies in the opposite one."""
    metrics = Metrics()
    with ThreadPoolExecutor(settings.decode_threads or os.cpu_count(), thread_name_prefix="decode") as decoders:
        engine = await asyncio.to_thread(load_engine, settings)
        batcher: Batcher[Job, Done | ServiceError] = Batcher(
            Forward(engine, settings.max_pixels, metrics.model.observe),
            max_batch=engine.card.max_batch,
            max_queue=settings.max_queue,
            lanes=engine.card.lanes,
            on_batch=metrics.on_batch,
        )
        await batcher.start()
        services = Services(settings, engine, batcher, decoders, metrics, load)
        _watch(services)
        logger.info("ready: %s, %s", engine.card.name, engine.card.facts.get("engine", "engine unnamed"))
        try:
            yield services
        finally:
            services.load.draining = True
            await batcher.close(LAST_BATCH_S)


def _watch(services: Services) -> None:
    """Gauges read what is alive at the moment they are asked, so that they cannot drift from it."""
    services.metrics.in_flight.set_function(lambda: services.load.requests)
    services.metrics.body_bytes.set_function(lambda: services.load.body_bytes)
    services.metrics.depth.set_function(lambda: services.batcher.depth)


def _of_request(request: Request) -> Services:
    return cast(Services, request.state.services)


Alive = Annotated[Services, Depends(_of_request)]
