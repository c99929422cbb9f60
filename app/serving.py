"""One image's way through the service: decoded, queued, answered. What can be the caller's fault fails before the
forward; what fails in it is ours."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from app import batching, errors
from app.engine import AttentionAsk
from app.forward import Decoded, Done, Job, Outcome
from app.images import is_quick
from app.services import Services
from app.trace import Trace, of_request

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """An image's outcome, the seconds that it was queued, and how many images shared its batch."""

    done: Done
    queue_s: float
    batch_size: int


async def serve(
    services: Services, image: bytes | Decoded, top_k: int, deadline: float, attention: AttentionAsk | None = None
) -> Served:
    """Raises a ServiceError; ``deadline`` is an instant of the event loop's clock."""
    trace = of_request.get()
    try:
        return finished(services, await begin(services, image, top_k, deadline, attention, trace), trace)
    except batching.BatcherError as error:
        raise refused(services, error) from None


def begin(
    services: Services,
    image: bytes | Decoded,
    top_k: int,
    deadline: float,
    attention: AttentionAsk | None = None,
    trace: Trace | None = None,
) -> asyncio.Future[batching.Served[Outcome]]:
    """The image on its way; for what the future has, :func:`finished`. Raises a BatcherError at once, or it has one:
    for that, :func:`refused`."""
    parent = "" if trace is None else trace.parent
    if attention is None and services.looks is not None:
        attention = services.looks.next()
    if isinstance(image, Decoded) or (services.engine.card.lanes_decode and is_quick(image)):
        return services.batcher.submit(Job(image, top_k, attention, parent), deadline)
    return asyncio.ensure_future(_decoded_first(services, image, top_k, deadline, attention, parent))


def finished(services: Services, served: batching.Served[Outcome], trace: Trace | None = None) -> Served:
    """Raises the ServiceError that the image itself is."""
    done = served.result
    if isinstance(done, errors.ServiceError):
        raise done
    services.metrics.on_image(done.decode_s, served.queue_s, ((look.name, look.std) for look in done.answer.blocks))
    if trace is not None:
        trace.add(served)
    return Served(done, served.queue_s, served.batch_size)


def refused(services: Services, error: batching.BatcherError) -> Exception:
    """What a caller is told of it."""
    match error:
        case batching.DeadlineExceeded():
            return errors.DeadlineExceeded()
        case batching.QueueFull():
            return errors.Overloaded(headers={"Retry-After": str(max(1, round(error.retry_after_s)))})
        case batching.Closed():
            return errors.Draining() if services.load.draining else errors.NotReady()
        case _:
            return error


async def _decoded_first(
    services: Services, image: bytes, top_k: int, deadline: float, attention: AttentionAsk | None, parent: str
) -> batching.Served[Outcome]:
    decoded = await services.decoders.decode(image, services.engine.card.size, deadline)
    return await services.batcher.submit(Job(decoded, top_k, attention, parent), deadline)


async def in_pool(services: Services, work: Callable[[], T], deadline: float) -> T:
    """In a thread of the pool: what is ours, never a decoder. Raises DeadlineExceeded."""
    held = [work]  # given up while it waits for a thread, it must not keep what it is about
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.get_running_loop().run_in_executor(services.threads, lambda: held.pop()())
    except TimeoutError:
        raise errors.DeadlineExceeded from None
    finally:
        held.clear()


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
