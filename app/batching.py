"""Groups single items into calls. Knows neither images nor HTTP nor tensors: only items, results, deadlines, lanes.

Permit first, no timer: a lane that is free takes whatever is queued, up to `max_batch`, and leaves to other free lanes
their share. A lone item leaves at once; while the lanes are busy the queue grows, and with it the next batch.

All of it is on one event loop. What a lane does with a batch it does elsewhere: in a thread (`thread_lane.py`), in
another process. Durations are in seconds; instants are of `time.monotonic()`, which is also the event loop's clock.
"""

import asyncio
import itertools
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class BatcherError(Exception):
    """What a batcher itself has to say; an exception that a lane raises reaches its callers as it is."""


class QueueFull(BatcherError):
    """The queue has no free place; trying again makes sense after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full, try again in {retry_after_s:.3f} s")
        self.retry_after_s = retry_after_s


class Closed(BatcherError):
    """No work is taken: draining, closed, or the batcher failed."""


class DeadlineExceeded(BatcherError):
    """The caller's deadline passed while its item was queued or running."""


class WrongResultCount(BatcherError):
    """A lane answered with more or fewer results than it was given items."""


class RunFailed(BatcherError):
    """A lane raised what no future can carry (StopIteration, SystemExit, ...), which is its `__cause__`."""


@dataclass(frozen=True, slots=True)
class Served(Generic[Result]):
    """A result, how long its item was queued, how long its batch ran, how many items shared that batch, and the instant
    at which the item was queued."""

    result: Result
    queue_s: float
    run_s: float
    batch_size: int
    queued_at: float


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One call of `run`: `queue_s` is the wait of its oldest item, `depth` what was left in the queue when it ended."""

    lane: int
    size: int
    queue_s: float
    run_s: float
    depth: int
    error: Exception | None


@dataclass(slots=True, eq=False)
class _Waiter(Generic[Item, Result]):
    item: Item
    deadline: float
    queued_at: float
    future: asyncio.Future[Served[Result]]

    def fail(self, error: Exception) -> None:
        """Does nothing where the caller has its answer or is gone."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        self.fail(DeadlineExceeded("the deadline passed before there was a result"))


# What runs a batch: a list of items in, as many results out, in their order. One call at a time.
Lane = Callable[[list[Item]], Awaitable[Sequence[Result]]]


class Batcher(Generic[Item, Result]):
    """Callers await what `submit` gives; lanes see lists of 1 to `max_batch` items, oldest first, and answer in the
    same order. `on_batch` is called after every batch, failed ones too, and should be quick. `cost`: how many ordinary
    items an item is worth; a batch is worth `max_batch` at most, or is one item that is worth more.
    """

    def __init__(
        self,
        lanes: Sequence[Lane[Item, Result]],
        *,
        max_batch: int,
        max_queue: int,
        on_batch: Callable[[BatchRecord], None] | None = None,
        cost: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        if min(max_batch, max_queue, len(lanes)) < 1:
            raise ValueError("max_batch, max_queue and the number of lanes are at least 1")
        self._lanes = tuple(lanes)
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._cost = cost
        self._queue: OrderedDict[_Waiter[Item, Result], None] = OrderedDict()  # can be left from the middle
        self._running: dict[int, list[_Waiter[Item, Result]]] = {}  # by the number of the lane
        self._calls: set[asyncio.Task[None]] = set()
        self._closed_because: str | None = None
        self._drained = asyncio.Event()  # nothing is queued and nothing is under way, while no work is taken
        self._recent_run_s = 0.0
        self._recent_item_s = 0.0
        self._dispatching = False  # that lanes will take their shares at the end of this round of the event loop

    @property
    def capacity(self) -> int:
        """How many items may be queued."""
        return self._max_queue

    @property
    def depth(self) -> int:
        """How many items are queued."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """How many items the lanes are running."""
        return sum(map(len, self._running.values()))

    @property
    def healthy(self) -> bool:
        """Whether work is taken: False from `close` on, and once the batcher itself has failed."""
        return self._closed_because is None

    @property
    def expected_wait_s(self) -> float:
        """An estimate for an item queued now, from the recent duration of a batch; 0.0 before the first batch."""
        batches_ahead = math.ceil((self.depth + self.in_flight) / self._max_batch)
        return batches_ahead * self._recent_run_s / len(self._lanes)

    @property
    def item_s(self) -> float:
        """Seconds from one item to the next while all lanes are busy, of late; 0.0 before the first batch."""
        return self._recent_item_s / len(self._lanes)

    def submit(self, item: Item, deadline: float) -> asyncio.Future[Served[Result]]:
        """Queues `item`. The future has its result or what befell its batch, at `deadline`, a finite instant,
        DeadlineExceeded.

        Raises QueueFull or Closed at once. A caller that cancels the future, or is out of time, gives its place in the
        queue back.
        """
        self._refuse_if_closed_or_full()
        loop = asyncio.get_running_loop()
        waiter: _Waiter[Item, Result] = _Waiter(item, deadline, time.monotonic(), loop.create_future())
        waiter.future.add_done_callback(partial(self._leave, waiter, loop.call_at(deadline, waiter.expire)))
        self._queue[waiter] = None
        if not self._dispatching:  # callers of one round of the event loop share a batch
            self._dispatching = True
            loop.call_soon(self._dispatch)
        return waiter.future

    def fail(self, reason: str) -> None:
        """No more work is taken, and what is queued fails with Closed; what is under way may still end well."""
        self._closed_because = reason
        self._fail_queued(Closed(reason))
        self._see_whether_drained()

    async def close(self, grace_s: float) -> None:
        """Refuses new work, serves what is queued for at most `grace_s`, then fails the rest with Closed.

        A call of a lane that outlasts the grace is left alone; what it returns is dropped.
        """
        self._closed_because = self._closed_because or "draining"
        self._see_whether_drained()
        try:
            async with asyncio.timeout(grace_s):
                await self._drained.wait()
        except TimeoutError:
            pass
        finally:
            self._closed_because = "closed"
            self._fail_queued(Closed("closed"), *self._running.values())
            for call in self._calls:
                call.cancel()
            if self._calls:
                await asyncio.wait(self._calls)

    def _refuse_if_closed_or_full(self) -> None:
        if self._closed_because is not None:
            raise Closed(self._closed_because)
        if self.depth >= self._max_queue:
            raise QueueFull(self.expected_wait_s or 1.0)

    def _leave(self, waiter: _Waiter[Item, Result], timer: asyncio.TimerHandle, _: asyncio.Future[Any]) -> None:
        timer.cancel()
        if self._queue.pop(waiter, waiter) is None:
            self._see_whether_drained()

    def _see_whether_drained(self) -> None:
        if self._closed_because is not None and not self._queue and not self._running:
            self._drained.set()

    def _fail_queued(self, error: Exception, *batches: list[_Waiter[Item, Result]]) -> None:
        """Fails what is queued, and these batches."""
        waiters = [*self._queue, *itertools.chain.from_iterable(batches)]
        self._queue.clear()
        _fail(waiters, error)

    def _dispatch(self) -> None:
        """Gives what is queued to the lanes that are free, the first of them first."""
        self._dispatching = False
        free = [number for number in range(len(self._lanes)) if number not in self._running]
        for place, number in enumerate(free):
            if not (batch := self._take(among=len(free) - place)):
                return
            self._running[number] = batch
            call = asyncio.ensure_future(self._run(number, batch))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _take(self, among: int) -> list[_Waiter[Item, Result]]:
        """The oldest items, the share of one of so many lanes and `max_batch` at most, without those whose caller is
        gone or out of time."""
        share = min(self._max_batch, math.ceil(len(self._queue) / among))
        batch: list[_Waiter[Item, Result]] = []
        now, worth = time.monotonic(), 0
        while self._queue and len(batch) < share:
            waiter = next(iter(self._queue))
            if waiter.deadline > now and not waiter.future.done():
                worth += self._cost(waiter.item)
                if batch and worth > self._max_batch:
                    break
                batch.append(waiter)
            del self._queue[waiter]
        return batch

    async def _run(self, number: int, batch: list[_Waiter[Item, Result]]) -> None:
        """One call of one lane. The next one begins before these callers have their answers: it has waited longer."""
        started_at = time.monotonic()
        results, error = await _results(self._lanes[number], [waiter.item for waiter in batch])
        run_s = time.monotonic() - started_at
        del self._running[number]
        depth = len(self._queue)
        self._dispatch()
        if error is None:
            _deliver(batch, results, started_at, run_s)
            self._learn(run_s, sum(self._cost(waiter.item) for waiter in batch))
        else:  # how long a lane was stuck says nothing of the pace
            _fail(batch, error)
        self._record(BatchRecord(number, len(batch), started_at - batch[0].queued_at, run_s, depth, error))
        del batch, error  # the error's traceback holds this frame

    def _ended(self, call: asyncio.Task[None]) -> None:
        """What is under way in other lanes may still end well; but one that ends so ends the batcher."""
        self._calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            logger.critical("the batcher failed, no more work is taken", exc_info=error)
            self.fail("the batcher failed")
        self._see_whether_drained()

    def _learn(self, run_s: float, worth: int) -> None:
        item_s = run_s / worth
        self._recent_run_s = 0.8 * (self._recent_run_s or run_s) + 0.2 * run_s
        self._recent_item_s = 0.8 * (self._recent_item_s or item_s) + 0.2 * item_s

    def _record(self, record: BatchRecord) -> None:
        try:
            if self._on_batch is not None:
                self._on_batch(record)
        except Exception:
            logger.exception("on_batch failed")


def _deliver(batch: list[_Waiter[Item, Result]], results: Sequence[Result], started_at: float, run_s: float) -> None:
    for waiter, result in zip(batch, results, strict=True):
        if not waiter.future.done():
            queued_at = waiter.queued_at
            waiter.future.set_result(Served(result, started_at - queued_at, run_s, len(batch), queued_at))


def _fail(waiters: Iterable[_Waiter[Any, Any]], error: Exception) -> None:
    for waiter in waiters:
        waiter.fail(error)


async def _results(
    lane: Lane[Item, Result], items: list[Item]
) -> tuple[Sequence[Result], None] | tuple[tuple[()], Exception]:
    """What the lane answers, or what it raises, so that nothing that it does can end more than its batch."""
    expected = len(items)
    try:
        results = await lane(items)
        if len(results) != expected:
            raise WrongResultCount(f"{len(results)} results for {expected} items")
    except BaseException as error:
        return (), carriable(error)
    return results, None


def carriable(error: BaseException) -> Exception:
    """`error` itself where a future can carry it to its callers without ending their tasks or the event loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    carried = RunFailed(f"run raised {type(error).__name__}")
    carried.__cause__ = error
    return carried
