"""Groups single items into calls. Knows neither images nor HTTP nor tensors: only items, results, deadlines, threads.

Permit first, no timer: each lane, a thread, takes whatever is queued when it is free, up to `max_batch`, and leaves to
other idle lanes their share. A lone item leaves at once; while the engine is busy the queue grows, and with it the next
batch. A lane that has ended a batch takes the next one itself: it need not wait for the event loop's turn.

Callers and answers are on one event loop; `run` and the taking are in the lanes' threads, under one lock.
Durations are in seconds; instants are of `time.monotonic()`, which is also the event loop's clock.
"""

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

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

    Each lane is a thread that calls `run`, one call at a time, so a device can be owned by it. `on_batch` is called on
    the event loop after every batch, failed ones too, and should be quick.
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: list[asyncio.Event] = []  # of each lane, set on the event loop
        self._closed_because: str | None = "not started"
        self._recent_run_s = 0.0
        self._recent_item_s = 0.0
        self._telling = False  # that lanes will be woken at the end of this round of the event loop
        # What the lanes' threads and the event loop share, changed under the condition's lock.
        self._work = threading.Condition()
        self._queue: OrderedDict[_Waiter[Item, Result], None] = OrderedDict()  # can be left from the middle
        self._running: dict[str, list[_Waiter[Item, Result]]] = {}
        self._idle = 0
        self._ending = False

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
        """Whether work is taken: False before `start`, from `close` on, and once any lane has died."""
        return self._closed_because is None

    @property
    def expected_wait_s(self) -> float:
        """An estimate for an item queued now, from the recent duration of a batch; 0.0 before the first batch."""
        batches_ahead = math.ceil((self.depth + self.in_flight) / self._max_batch)
        return batches_ahead * self._recent_run_s / len(self._names)

    @property
    def item_s(self) -> float:
        """Seconds from one item to the next while all lanes are busy, of late; 0.0 before the first batch."""
        return self._recent_item_s / len(self._names)

    async def start(self) -> None:
        """Opens the lanes, which answer on the running event loop. A batcher starts once."""
        if self._loop is not None:
            raise RuntimeError("this batcher was started before")
        self._loop = asyncio.get_running_loop()
        try:
            for name in self._names:
                ended = asyncio.Event()
                # Daemons: a call of `run` that never returns must not keep the process from ending.
                threading.Thread(target=self._lane, args=(name, ended), name=name, daemon=True).start()
                self._ended.append(ended)
        except RuntimeError:  # no more threads: those that there are end
            self._refuse_from_now("closed")
            raise
        self._closed_because = None

    async def submit(self, item: Item, deadline: float) -> Served[Result]:
        """Queues `item` and waits for its result until `deadline`, a finite instant.

        Raises QueueFull or Closed at once, DeadlineExceeded at the deadline, otherwise what befell the item's batch.
        A caller that is cancelled or out of time gives its place in the queue back.
        """
        self._refuse_if_closed_or_full()
        loop = asyncio.get_running_loop()
        waiter: _Waiter[Item, Result] = _Waiter(item, deadline, time.monotonic(), loop.create_future())
        timer = loop.call_at(deadline, waiter.fail, DeadlineExceeded("the deadline passed before there was a result"))
        with self._work:
            self._queue[waiter] = None
        if not self._telling:
            self._telling = True
            loop.call_soon(self._tell_lanes)
        try:
            return await waiter.future
        finally:
            timer.cancel()
            with self._work:
                self._queue.pop(waiter, None)
            del waiter  # an exception's traceback holds this frame, which must not hold the exception

    async def close(self, grace_s: float) -> None:
        """Refuses new work, serves what is queued for at most `grace_s`, then fails the rest with Closed.

        A call of `run` that outlasts the grace is left alone in its thread; what it returns is dropped.
        """
        self._refuse_from_now("draining")
        try:
            if self._ended:
                await asyncio.wait([asyncio.ensure_future(ended.wait()) for ended in self._ended], timeout=grace_s)
        finally:
            self._refuse_from_now("closed")
            self._fail_all(Closed("closed"))

    def _refuse_if_closed_or_full(self) -> None:
        if self._closed_because is not None:
            raise Closed(self._closed_because)
        if self.depth >= self._max_queue:
            raise QueueFull(self.expected_wait_s or 1.0)

    def _refuse_from_now(self, reason: str) -> None:
        self._closed_because = reason
        with self._work:
            self._ending = True
            self._work.notify_all()

    def _tell_lanes(self) -> None:
        """Once a round of the event loop: callers of one round share a batch."""
        self._telling = False
        with self._work:
            self._work.notify(len(self._queue))

    def _fail_all(self, error: Exception) -> None:
        """Fails what is queued and what is under way."""
        with self._work:
            waiters = [*self._queue, *itertools.chain.from_iterable(self._running.values())]
            self._queue.clear()
            self._running.clear()
        self._fail(waiters, error)

    def _fail(self, waiters: Iterable[_Waiter[Item, Result]], error: Exception) -> None:
        for waiter in waiters:
            waiter.fail(error)

    # In the lanes' threads.

    def _lane(self, name: str, ended: asyncio.Event) -> None:
        error: BaseException | None = None
        try:
            while self._serve_next(name):
                pass
        except BaseException as fault:
            error = fault
        self._on_loop(self._lane_ended, name, ended, error)

    def _serve_next(self, name: str) -> bool:
        """Serves one batch; False once nothing is left to do. Its locals end with it: an idle lane holds no items."""
        batch = self._next_batch(name)
        if not batch:
            return False
        outcome = _call_and_time(self._run, [waiter.item for waiter in batch])
        self._on_loop(self._finish, name, batch, outcome, self.depth)
        del batch, outcome  # an error's traceback holds this frame too
        return True

    def _next_batch(self, name: str) -> list[_Waiter[Item, Result]]:
        """Waits for work; empty once work is refused and none is left."""
        with self._work:
            self._running.pop(name, None)
            while True:
                if batch := self._take():
                    self._running[name] = batch
                    return batch
                if self._ending:
                    return []
                self._idle += 1
                self._work.wait()
                self._idle -= 1

    def _take(self) -> list[_Waiter[Item, Result]]:
        """Takes the oldest items, this lane's share of them and `max_batch` at most, and drops those whose caller is
        gone or out of time."""
        share = min(self._max_batch, math.ceil(len(self._queue) / (1 + self._idle)))
        batch: list[_Waiter[Item, Result]] = []
        now = time.monotonic()
        while self._queue and len(batch) < share:
            waiter, _ = self._queue.popitem(last=False)
            if waiter.deadline > now and not waiter.future.done():
                batch.append(waiter)
        return batch

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            cast(asyncio.AbstractEventLoop, self._loop).call_soon_threadsafe(call, *arguments)

    # Back on the event loop.

    def _lane_ended(self, name: str, ended: asyncio.Event, error: BaseException | None) -> None:
        ended.set()
        with self._work:
            held = self._running.pop(name, [])
        if error is not None:
            self._fail(held, Closed("a lane died"))
            self._die(name, error)

    def _die(self, name: str, error: BaseException) -> None:
        """What is under way in other lanes may still end well."""
        logger.critical("%s died, no more work is taken", name, exc_info=error)
        self._refuse_from_now("a lane died")
        with self._work:
            queued = list(self._queue)
            self._queue.clear()
        self._fail(queued, Closed("a lane died"))

    def _finish(self, name: str, batch: list[_Waiter[Item, Result]], outcome: _Outcome[Result], depth: int) -> None:
        self._deliver(batch, outcome)
        try:
            self._record(name, batch, outcome, depth)
        except BaseException as error:
            self._die(name, error)
        outcome.error = None  # its traceback holds the thread's frames, and they this outcome and the items

    def _deliver(self, batch: list[_Waiter[Item, Result]], outcome: _Outcome[Result]) -> None:
        if outcome.error is not None:
            self._fail(batch, outcome.error)
            return
        for waiter, result in zip(batch, outcome.results, strict=True):
            if not waiter.future.done():
                queue_s = outcome.started_at - waiter.queued_at
                waiter.future.set_result(Served(result, queue_s, outcome.run_s, len(batch)))

    def _record(self, name: str, batch: list[_Waiter[Item, Result]], outcome: _Outcome[Result], depth: int) -> None:
        item_s = outcome.run_s / len(batch)
        self._recent_run_s = 0.8 * (self._recent_run_s or outcome.run_s) + 0.2 * outcome.run_s
        self._recent_item_s = 0.8 * (self._recent_item_s or item_s) + 0.2 * item_s
        if self._on_batch is None:
            return
        queue_s = outcome.started_at - batch[0].queued_at
        try:
            self._on_batch(BatchRecord(name, len(batch), queue_s, outcome.run_s, depth, outcome.error))
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
