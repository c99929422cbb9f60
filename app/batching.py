"""Groups single items into calls. Knows neither images nor HTTP nor tensors: only items, results, deadlines, threads.

Permit first, no timer: each lane (one task and one thread) waits until its thread is free, then takes whatever is
queued, up to `max_batch`. A lone item leaves at once; while the engine is busy the queue grows, and with it the next
batch.

Everything here runs on one event loop, except `run`, which is called in the lanes' threads.
Durations are in seconds; instants are of `time.monotonic()`, which is also the event loop's clock.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class BatcherError(Exception):
    """What a batcher itself has to say; an exception raised by `run` reaches its callers as it is."""


class QueueFull(BatcherError):
    """The queue has no free place; trying again makes sense after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full, try again in {retry_after_s:.3f} s")
        self.retry_after_s = retry_after_s


class Closed(BatcherError):
    """No work is taken: not started, draining, closed, or a lane died."""


class DeadlineExceeded(BatcherError):
    """The caller's deadline passed while its item was queued or running."""


class WrongResultCount(BatcherError):
    """`run` answered with more or fewer results than it was given items."""


class RunFailed(BatcherError):
    """`run` raised what no future can carry (StopIteration, SystemExit, ...), which is its `__cause__`."""


@dataclass(frozen=True, slots=True)
class Served(Generic[Result]):
    """A result, how long its item was queued, how long its batch ran, and how many items shared that batch."""

    result: Result
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One call of `run`: `queue_s` is the wait of its oldest item, `depth` what was left in the queue when it ended."""

    lane: str
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


@dataclass(slots=True)
class _Outcome(Generic[Result]):
    """What one call of `run` gave: as many results as items, or an error that a future can carry."""

    results: list[Result]
    error: Exception | None
    started_at: float
    run_s: float


class Batcher(Generic[Item, Result]):
    """Callers await `submit`; `run` sees lists of 1 to `max_batch` items, oldest first, and answers in the same order.

    Each lane calls `run` in a thread of its own, one call at a time, so a device can be owned by that thread.
    `on_batch` is called on the event loop after every batch, failed ones too, and should be quick.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch: int,
        max_queue: int,
        lanes: int = 1,
        on_batch: Callable[[BatchRecord], None] | None = None,
        name: str = "lane",
    ) -> None:
        if min(max_batch, max_queue, lanes) < 1:
            raise ValueError("max_batch, max_queue and lanes are at least 1")
        self._run = run
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._names = [f"{name}-{number}" for number in range(lanes)]
        self._threads: list[ThreadPoolExecutor] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: OrderedDict[_Waiter[Item, Result], None] = OrderedDict()  # can be left from the middle
        self._wake = asyncio.Event()  # set: something is queued, or the lanes are to end
        self._closed_because: str | None = "not started"
        self._in_flight = 0
        self._recent_run_s = 0.0

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
        """How many items the lanes have taken and not yet answered."""
        return self._in_flight

    @property
    def healthy(self) -> bool:
        """Whether work is taken: False before `start`, from `close` on, and once any lane has died."""
        return self._closed_because is None

    @property
    def expected_wait_s(self) -> float:
        """An estimate for an item queued now, from the recent duration of a batch; 0.0 before the first batch."""
        batches_ahead = math.ceil((self.depth + self.in_flight) / self._max_batch)
        return batches_ahead * self._recent_run_s / len(self._names)

    async def start(self) -> None:
        """Opens the lanes on the running event loop. A batcher starts once."""
        if self._tasks:
            raise RuntimeError("this batcher was started before")
        self._closed_because = None
        for name in self._names:
            thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
            task = asyncio.create_task(self._lane(name, thread), name=name)
            task.add_done_callback(self._lane_ended)
            self._threads.append(thread)
            self._tasks.append(task)

    async def submit(self, item: Item, deadline: float) -> Served[Result]:
        """Queues `item` and waits for its result until `deadline`, a finite instant.

        Raises QueueFull or Closed at once, DeadlineExceeded at the deadline, otherwise what befell the item's batch.
        A caller that is cancelled or out of time gives its place in the queue back.
        """
        self._refuse_if_closed_or_full()
        loop = asyncio.get_running_loop()
        waiter = _Waiter[Item, Result](item, deadline, time.monotonic(), loop.create_future())
        timer = loop.call_at(deadline, waiter.fail, DeadlineExceeded("the deadline passed before there was a result"))
        self._queue[waiter] = None
        self._wake.set()
        try:
            return await waiter.future
        finally:
            timer.cancel()
            self._queue.pop(waiter, None)
            del waiter  # an exception's traceback holds this frame, which must not hold the exception

    async def close(self, grace_s: float) -> None:
        """Refuses new work, serves what is queued for at most `grace_s`, then fails the rest with Closed.

        A call of `run` that outlasts the grace is left alone in its thread; what it returns is dropped.
        """
        self._refuse_from_now("draining")
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=grace_s)
        finally:
            self._stop_lanes()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stop_lanes(self) -> None:
        self._refuse_from_now("closed")
        self._fail(self._queue, Closed("closed"))
        for task in self._tasks:
            task.cancel()
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)

    def _refuse_if_closed_or_full(self) -> None:
        if self._closed_because is not None:
            raise Closed(self._closed_because)
        if self.depth >= self._max_queue:
            raise QueueFull(self.expected_wait_s or 1.0)

    def _refuse_from_now(self, reason: str) -> None:
        self._closed_because = reason
        self._wake.set()

    async def _lane(self, name: str, thread: ThreadPoolExecutor) -> None:
        while await self._serve_next(name, thread):
            pass

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None and not self.healthy:
            return  # as close() asked
        logger.critical("%s died, no more work is taken", task.get_name(), exc_info=error)
        self._refuse_from_now("a lane died")
        self._fail(self._queue, Closed("a lane died"))

    async def _serve_next(self, name: str, thread: ThreadPoolExecutor) -> bool:
        """Serves one batch; False once nothing is left to do. Its locals end with it: an idle lane holds no items."""
        batch = await self._next_batch()
        if not batch:
            return False
        outcome = await self._call(thread, batch)
        self._deliver(batch, outcome)
        self._record(name, batch, outcome)
        outcome.error = None  # its traceback holds the thread's frames, and they this outcome and the items
        return True

    async def _next_batch(self) -> list[_Waiter[Item, Result]]:
        """Waits for work; empty once work is refused and none is left."""
        while True:
            batch = self._take()
            if batch or not self.healthy:
                return batch
            self._wake.clear()
            await self._wake.wait()

    def _take(self) -> list[_Waiter[Item, Result]]:
        """Takes the oldest items, up to `max_batch`, and drops those whose caller is gone or out of time."""
        batch: list[_Waiter[Item, Result]] = []
        now = time.monotonic()
        while self._queue and len(batch) < self._max_batch:
            waiter, _ = self._queue.popitem(last=False)
            if waiter.deadline > now and not waiter.future.done():
                batch.append(waiter)
        return batch

    async def _call(self, thread: ThreadPoolExecutor, batch: list[_Waiter[Item, Result]]) -> _Outcome[Result]:
        items = [waiter.item for waiter in batch]
        self._in_flight += len(batch)
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, _call_and_time, self._run, items)
        except BaseException:  # the lane was cancelled or has lost its thread: nobody else will answer these callers
            self._fail(batch, Closed(self._closed_because or "a lane died"))
            raise
        finally:
            self._in_flight -= len(batch)

    def _deliver(self, batch: list[_Waiter[Item, Result]], outcome: _Outcome[Result]) -> None:
        if outcome.error is not None:
            self._fail(batch, outcome.error)
            return
        for waiter, result in zip(batch, outcome.results, strict=True):
            if not waiter.future.done():
                queue_s = outcome.started_at - waiter.queued_at
                waiter.future.set_result(Served(result, queue_s, outcome.run_s, len(batch)))

    def _fail(self, waiters: Iterable[_Waiter[Item, Result]], error: Exception) -> None:
        for waiter in waiters:
            waiter.fail(error)

    def _record(self, name: str, batch: list[_Waiter[Item, Result]], outcome: _Outcome[Result]) -> None:
        self._recent_run_s = 0.8 * (self._recent_run_s or outcome.run_s) + 0.2 * outcome.run_s
        if self._on_batch is None:
            return
        queue_s = outcome.started_at - batch[0].queued_at
        try:
            self._on_batch(BatchRecord(name, len(batch), queue_s, outcome.run_s, self.depth, outcome.error))
        except Exception:
            logger.exception("on_batch failed")


def _call_and_time(run: Callable[[list[Item]], Sequence[Result]], items: list[Item]) -> _Outcome[Result]:
    """In the lane's thread. Returns also what `run` raises, so that nothing `run` does can end the lane."""
    expected = len(items)
    started_at = time.monotonic()
    try:
        results = list(run(items))
        if len(results) != expected:
            raise WrongResultCount(f"{len(results)} results for {expected} items")
    except BaseException as error:
        return _Outcome([], _carriable(error), started_at, time.monotonic() - started_at)
    return _Outcome(results, None, started_at, time.monotonic() - started_at)


def _carriable(error: BaseException) -> Exception:
    """`error` itself where a future can carry it to its callers without ending their tasks or the event loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    carried = RunFailed(f"run raised {type(error).__name__}")
    carried.__cause__ = error
    return carried
