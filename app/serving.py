"""One image's way through the service: decoded, queued, answered. What can be the caller's fault fails before the
forward; what fails in it is ours."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from app import batching, errors
from app.engine import AttentionAsk
from app.forward import Decoded, Done, Job, timed_decode
from app.images import is_quick
from app.services import Services

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """An image's outcome, the seconds that it was queued, and how many images shared its batch."""

    done: Done
    queue_s: float
    batch_size: int


async def serve(
    services: Services, image: bytes, top_k: int, deadline: float, attention: AttentionAsk | None = None
) -> Served:
    """Raises a ServiceError; ``deadline`` is an instant of the event loop's clock."""
    quick = services.engine.card.lanes_decode and is_quick(image)
    job = Job(image if quick else await _decoded(services, image, deadline), top_k, attention)
    try:
        served = await services.batcher.submit(job, deadline)
    except batching.DeadlineExceeded:
        raise errors.DeadlineExceeded from None
    except batching.QueueFull as full:
        raise errors.Overloaded(headers={"Retry-After": str(max(1, round(full.retry_after_s)))}) from None
    except batching.Closed:
        raise (errors.Draining if services.load.draining else errors.NotReady) from None
    if isinstance(served.result, errors.ServiceError):
        raise served.result
    services.metrics.decode.observe(served.result.decode_s)
    return Served(served.result, served.queue_s, served.batch_size)


async def _decoded(services: Services, image: bytes, deadline: float) -> Decoded:
    card, settings = services.engine.card, services.settings
    work = partial(timed_decode, image, size=card.size, crop=card.crop, max_pixels=settings.max_pixels)
    return await in_pool(services, work, deadline)


async def in_pool(services: Services, work: Callable[[], T], deadline: float) -> T:
    """In a thread of the pool. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.get_running_loop().run_in_executor(services.decoders, work)
    except TimeoutError:
        raise errors.DeadlineExceeded from None


def timing_headers(served: list[Served]) -> dict[str, str]:
    """``Server-Timing`` and ``X-Batch-Size``, of several images the largest of each."""
    if not served:
        return {}
    decode = max(one.done.decode_s for one in served)
    queue = max(one.queue_s for one in served)
    model = max(one.done.model_s for one in served)
    return {
        "Server-Timing": f"decode;dur={1e3 * decode:.2f}, queue;dur={1e3 * queue:.2f}, model;dur={1e3 * model:.2f}",
        "X-Batch-Size": str(max(one.batch_size for one in served)),
    }
