"""The batcher's promises, one test each. The engine doubles numbers and can be held at a gate, so nothing is timed."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest

from app.batching import (
    Batcher,
    BatchRecord,
    Closed,
    DeadlineExceeded,
    QueueFull,
    RunFailed,
    Served,
    WrongResultCount,
)
from app.thread_lane import ThreadLane

Answer = asyncio.Future[Served[int]]


class Engine:
    """Doubles each number; remembers its batches and threads; waits inside a call while its gate is shut."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.threads.append(threading.current_thread().name)
        self.gate.wait(60)
        return [2 * item for item in items]

    @contextmanager
    def held(self) -> Iterator[None]:
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


class Collapse(BaseException):
    """Not an Exception: nothing is expected to handle it."""


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Runs one scene; one that hangs is cancelled by a thread after 60 s, even where the loop's clock stands still."""

    async def watched() -> None:
        task = asyncio.create_task(scene)
        watchdog = threading.Timer(60, asyncio.get_running_loop().call_soon_threadsafe, [task.cancel])
        watchdog.start()
        try:
            await task
        finally:
            watchdog.cancel()
            watchdog.join()

    asyncio.run(watched())


@asynccontextmanager
async def opened(
    run: Callable[[list[int]], list[int]],
    max_batch: int = 4,
    max_queue: int = 8,
    lanes: int = 1,
    on_batch: Callable[[BatchRecord], None] | None = None,
    cost: Callable[[int], int] = lambda _: 1,
) -> AsyncIterator[Batcher[int, int]]:
    threads = [ThreadLane(run, f"lane-{number}") for number in range(lanes)]
    batcher = Batcher(threads, max_batch=max_batch, max_queue=max_queue, on_batch=on_batch, cost=cost)
    try:
        yield batcher
    finally:
        await batcher.close(grace_s=5)
        for thread in threads:
            thread.close()


def far() -> float:
    return time.monotonic() + 60


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def send(batcher: Batcher[int, int], *items: int) -> list[Answer]:
    return [batcher.submit(item, far()) for item in items]


async def occupy(batcher: Batcher[int, int], item: int = 0) -> Answer:
    """Sends one item and returns once a lane has it."""
    before = batcher.in_flight
    (task,) = send(batcher, item)
    await until(lambda: batcher.in_flight == before + 1)
    return task


async def line_up(batcher: Batcher[int, int], *items: int) -> list[Answer]:
    """Sends items behind a busy engine and returns once they are queued."""
    before = batcher.depth
    tasks = send(batcher, *items)
    await until(lambda: batcher.depth == before + len(items))
    return tasks


async def results(tasks: list[Answer]) -> list[int]:
    return [served.result for served in await asyncio.gather(*tasks)]


def test_waiters_share_a_call_and_keep_their_order() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            assert await results(send(batcher, 3, 1, 2)) == [6, 2, 4]
        assert engine.batches == [[3, 1, 2]]

    play(scene())


@pytest.mark.parametrize("items", [[1], [1, 2, 3, 4]], ids=["a lone item", "a full batch"])
def test_nothing_waits_for_a_timer(items: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            with monkeypatch.context() as patch:
                now = time.monotonic()
                patch.setattr(asyncio.get_running_loop(), "time", lambda: now)  # no timer fires any more
                await asyncio.gather(*send(batcher, *items))
        assert engine.batches == [items]

    play(scene())


def test_a_busy_engine_makes_larger_batches() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            with engine.held():
                tasks = [await occupy(batcher), *await line_up(batcher, 1), *await line_up(batcher, 2)]
            assert [served.batch_size for served in await asyncio.gather(*tasks)] == [1, 2, 2]
        assert engine.batches == [[0], [1, 2]]

    play(scene())


def test_a_batch_never_exceeds_its_maximum() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine, max_batch=2) as batcher:
            assert await results(send(batcher, 1, 2, 3, 4, 5)) == [2, 4, 6, 8, 10]
        assert engine.batches == [[1, 2], [3, 4], [5]]

    play(scene())


def test_a_full_queue_refuses() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine, max_queue=2) as batcher:
            with engine.held():
                tasks = [await occupy(batcher), *await line_up(batcher, 1, 2)]
                assert batcher.depth == batcher.capacity == 2
                with pytest.raises(QueueFull) as refusal:
                    await batcher.submit(3, far())
            assert await results(tasks) == [0, 2, 4]
        assert refusal.value.retry_after_s == 1.0  # nothing is known before the first batch

    play(scene())


def test_a_refusal_estimates_when_to_come_back() -> None:
    records: list[BatchRecord] = []

    async def scene() -> None:
        engine = Engine()
        async with opened(engine, max_batch=1, max_queue=2, on_batch=records.append) as batcher:
            await batcher.submit(0, far())
            with engine.held():
                tasks = [await occupy(batcher), *await line_up(batcher, 1, 2)]
                with pytest.raises(QueueFull) as refusal:
                    await batcher.submit(3, far())
            await asyncio.gather(*tasks)
        assert refusal.value.retry_after_s == pytest.approx(3 * records[0].run_s)  # one running, two queued

    play(scene())


def test_expired_work_never_reaches_the_engine() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(1, time.monotonic())
            with engine.held():
                busy = await occupy(batcher)
                with pytest.raises(DeadlineExceeded):
                    await batcher.submit(2, time.monotonic() + 0.01)
            await busy
        assert engine.batches == [[0]]

    play(scene())


def test_abandoned_work_never_reaches_the_engine() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            (gone,) = send(batcher, 1)
            assert batcher.depth == 1
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            await batcher.submit(2, far())
        assert engine.batches == [[2]]

    play(scene())


def test_abandoned_and_expired_work_gives_its_place_back() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine, max_queue=1) as batcher:
            with engine.held():
                busy = await occupy(batcher)
                (gone,) = await line_up(batcher, 1)
                gone.cancel()
                await asyncio.wait([gone])
                with pytest.raises(DeadlineExceeded):
                    await batcher.submit(2, time.monotonic() + 0.01)
                tasks = [busy, *await line_up(batcher, 3)]
            assert await results(tasks) == [0, 6]

    play(scene())


def test_a_cancelled_caller_harms_no_neighbour() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            with engine.held():
                gone, neighbour = send(batcher, 1, 2)
                await until(lambda: batcher.in_flight == 2)
                gone.cancel()
                await asyncio.wait([gone])
            assert await results([neighbour]) == [4]
            assert (await batcher.submit(3, far())).result == 6

    play(scene())


def test_a_cancelled_caller_harms_no_neighbour_when_their_batch_fails_either() -> None:
    engine = Engine()

    async def scene() -> None:
        async with opened(lambda items: engine(items)[1:]) as batcher:
            with engine.held():
                gone, neighbour = send(batcher, 1, 2)
                await until(lambda: batcher.in_flight == 2)
                gone.cancel()
                await asyncio.wait([gone])
            with pytest.raises(WrongResultCount):
                await neighbour
            assert batcher.healthy

    play(scene())


def test_an_engine_error_reaches_exactly_its_batch() -> None:
    fault = RuntimeError("out of memory")

    def run(items: list[int]) -> list[int]:
        if 13 in items:
            raise fault
        return items

    async def scene() -> None:
        async with opened(run, max_batch=2) as batcher:
            answers = await asyncio.gather(*send(batcher, 1, 2, 13, 3, 4), return_exceptions=True)
            assert [answer is fault for answer in answers] == [False, False, True, True, False]
            assert batcher.healthy
            assert (await batcher.submit(5, far())).result == 5

    play(scene())


@pytest.mark.parametrize(
    "fault", [StopIteration(), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr
)
def test_an_error_no_future_can_carry_arrives_as_run_failed(fault: BaseException) -> None:
    def run(items: list[int]) -> list[int]:
        if 13 in items:
            raise fault
        return items

    async def scene() -> None:
        async with opened(run) as batcher:
            with pytest.raises(RunFailed) as failure:
                await batcher.submit(13, far())
            assert failure.value.__cause__ is fault
            assert (await batcher.submit(1, far())).result == 1

    play(scene())


@pytest.mark.parametrize("answer", [[], [1], [1, 2, 3]], ids=len)
def test_a_wrong_result_count_is_an_error(answer: list[int]) -> None:
    async def scene() -> None:
        async with opened(lambda _: answer) as batcher:
            answers = await asyncio.gather(*send(batcher, 1, 2), return_exceptions=True)
            assert [type(error) for error in answers] == [WrongResultCount, WrongResultCount]
            assert batcher.healthy

    play(scene())


def test_results_are_counted_against_the_items_sent_even_if_the_engine_eats_its_list() -> None:
    async def scene() -> None:
        async with opened(lambda items: [items.pop(), items.pop()]) as batcher:
            assert await results(send(batcher, 1, 2)) == [2, 1]

    play(scene())


def test_a_deadline_that_passes_while_running_ends_that_caller_only() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            with engine.held():
                hasty = batcher.submit(1, time.monotonic() + 0.04)
                (patient,) = send(batcher, 2)
                await until(lambda: batcher.in_flight > 0)
                with pytest.raises(DeadlineExceeded):
                    await hasty
                assert not patient.done()
            assert await results([patient]) == [4]

    play(scene())


def test_close_drains_then_refuses() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            with engine.held():
                tasks = [await occupy(batcher), *await line_up(batcher, 1, 2)]
                closing = asyncio.create_task(batcher.close(grace_s=5))
                await asyncio.sleep(0)
                with pytest.raises(Closed, match="draining"):
                    await batcher.submit(3, far())
            await closing
            assert all(task.done() for task in tasks)
            assert await results(tasks) == [0, 2, 4]
            with pytest.raises(Closed, match="closed"):
                await batcher.submit(4, far())
        assert not batcher.healthy

    play(scene())


def test_close_is_bounded_when_the_engine_is_stuck() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            with engine.held():
                tasks = [await occupy(batcher), *await line_up(batcher, 1)]
                await until(lambda: engine.batches == [[0]])  # its thread is stuck in it
                await batcher.close(grace_s=0.01)
                assert batcher.in_flight == 0
                answers = await asyncio.gather(*tasks, return_exceptions=True)
                assert [type(answer) for answer in answers] == [Closed, Closed]
        assert engine.batches == [[0]]

    play(scene())


def test_close_that_is_cancelled_still_ends_the_lanes() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            with engine.held():
                busy = await occupy(batcher)
                closing = asyncio.create_task(batcher.close(grace_s=60))
                await asyncio.sleep(0)
                closing.cancel()
                with pytest.raises(Closed):
                    await busy

    play(scene())


def test_closing_ends_the_threads() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            await batcher.submit(1, far())
            assert engine.threads[0] in {thread.name for thread in threading.enumerate()}
        await until(lambda: engine.threads[0] not in {thread.name for thread in threading.enumerate()})

    play(scene())


def test_two_lanes_run_at_once_each_in_its_own_thread() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine, lanes=2) as batcher:
            with engine.held():
                tasks = [await occupy(batcher, 1), await occupy(batcher, 2)]
                await until(lambda: len(engine.threads) == 2)
            assert await results(tasks) == [2, 4]
        assert len(set(engine.threads)) == 2

    play(scene())


def test_idle_lanes_share_what_is_queued() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine, max_batch=8, lanes=2) as batcher:
            with engine.held():
                tasks = send(batcher, 1, 2, 3, 4)
                await until(lambda: batcher.in_flight == 4)
            assert await results(tasks) == [2, 4, 6, 8]
        assert sorted(engine.batches) == [[1, 2], [3, 4]]

    play(scene())


def test_one_lane_keeps_to_one_thread() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine, max_batch=1) as batcher:
            await asyncio.gather(*send(batcher, 1, 2, 3))
        assert len(engine.threads) == 3
        assert len(set(engine.threads)) == 1

    play(scene())


def test_if_the_batcher_fails_waiters_fail_and_healthy_turns_false() -> None:
    first, later = Engine(), Engine()

    def run(items: list[int]) -> list[int]:
        return (first if items == [1] else later)(items)

    def collapse(_: BatchRecord) -> None:
        raise Collapse

    async def scene() -> None:
        async with opened(run, max_batch=1, on_batch=collapse) as batcher:
            with later.held():
                with first.held():
                    tasks = [await occupy(batcher, 1), *await line_up(batcher, 2, 3)]
                await until(lambda: not batcher.healthy)
                queued = await asyncio.gather(tasks[2], return_exceptions=True)
            assert [type(answer) for answer in queued] == [Closed]
            assert await results(tasks[:2]) == [2, 4]  # what was under way ends well
            with pytest.raises(Closed, match="failed"):
                await batcher.submit(4, far())

    play(scene())


def test_a_batcher_that_is_told_to_fail_fails_what_is_queued() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine) as batcher:
            with engine.held():
                tasks = [await occupy(batcher, 1), *await line_up(batcher, 2)]
                batcher.fail("the device is lost")
                with pytest.raises(Closed, match="the device is lost"):
                    await tasks[1]
            assert await results(tasks[:1]) == [2]
            assert not batcher.healthy
            with pytest.raises(Closed, match="the device is lost"):
                await batcher.submit(3, far())

    play(scene())


def test_the_next_batch_begins_before_the_last_one_is_answered() -> None:
    async def scene() -> None:
        engine, answered = Engine(), asyncio.Event()
        async with opened(engine, max_batch=1) as batcher:
            with engine.held():
                first, second = await occupy(batcher, 1), *await line_up(batcher, 2)
                first.add_done_callback(lambda _: answered.set())
            await answered.wait()
            assert batcher.depth == 0
            assert await results([first, second]) == [2, 4]

    play(scene())


def test_a_lane_whose_answer_nobody_waits_for_takes_the_next_batch() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine, max_batch=1) as batcher:
            with engine.held():
                gone = await occupy(batcher, 1)
                gone.cancel()
            assert (await batcher.submit(2, far())).result == 4
        assert engine.batches == [[1], [2]]

    play(scene())


def test_an_error_in_on_batch_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fault(_: BatchRecord) -> None:
        raise ValueError("a broken metric")

    async def scene() -> None:
        async with opened(Engine(), on_batch=fault) as batcher:
            assert (await batcher.submit(1, far())).result == 2
            assert (await batcher.submit(2, far())).result == 4
            assert batcher.healthy

    play(scene())
    assert [record.message for record in caplog.records] == ["on_batch failed"] * 2


def test_timings_are_those_of_the_queue_and_of_the_run() -> None:
    engine, spans = Engine(), list[float]()

    def run(items: list[int]) -> list[int]:
        started = time.monotonic()
        answer = engine(items)
        time.sleep(0.01)
        spans.append(time.monotonic() - started)
        return answer

    async def scene() -> None:
        async with opened(run) as batcher:
            with engine.held():
                busy = await occupy(batcher)
                before = time.monotonic()
                (task,) = await line_up(batcher, 1)
                after = time.monotonic()
                await asyncio.sleep(0.01)
                released = time.monotonic()
            served = await task
            total = time.monotonic() - before
            assert (await busy).run_s >= spans[0]
            assert served.run_s >= spans[1]
            assert served.queue_s >= released - after
            assert served.queue_s + served.run_s <= total

    play(scene())


def test_an_idle_lane_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        loop, steps = asyncio.get_running_loop(), list[object]()
        call_soon = loop.call_soon

        def counted(*args: Any, **kwargs: Any) -> asyncio.Handle:
            steps.append(args)
            return call_soon(*args, **kwargs)

        async with opened(Engine()) as batcher:
            await batcher.submit(1, far())
            with monkeypatch.context() as patch:
                patch.setattr(loop, "call_soon", counted)
                await asyncio.sleep(0.02)
        assert len(steps) < 10  # those of the lane going idle and of the sleep

    play(scene())


def test_every_batch_is_recorded_failed_ones_too() -> None:
    fault, records = RuntimeError("out of memory"), list[BatchRecord]()

    def run(items: list[int]) -> list[int]:
        if 13 in items:
            raise fault
        return items

    async def scene() -> None:
        async with opened(run, max_batch=2, on_batch=records.append) as batcher:
            await asyncio.gather(*send(batcher, 1, 2, 13), return_exceptions=True)

    play(scene())
    assert [(r.lane, r.size, r.depth, r.error) for r in records] == [(0, 2, 1, None), (0, 1, 0, fault)]
    assert all(r.queue_s >= 0 and r.run_s >= 0 for r in records)


def test_nothing_is_kept_alive_by_the_batcher() -> None:
    class Picture:
        pass

    def run(items: list[Picture]) -> list[int]:
        raise RuntimeError("out of memory")

    async def scene() -> None:
        lane = ThreadLane(run, "lane")
        batcher = Batcher([lane], max_batch=2, max_queue=2)
        picture = Picture()
        remembered = weakref.ref(picture)
        with suppress(RuntimeError):
            await batcher.submit(picture, far())
        del picture
        await until(lambda: remembered() is None)  # the thread lets go a moment after it has answered
        await batcher.close(grace_s=5)
        lane.close()

    gc.disable()
    try:
        play(scene())
    finally:
        gc.enable()


def test_what_costs_more_rides_with_fewer() -> None:
    async def scene() -> None:
        engine = Engine()
        async with opened(engine, max_batch=4, cost=lambda item: item) as batcher:
            assert await results(send(batcher, 1, 1, 2, 9, 1, 3, 1)) == [2, 2, 4, 18, 2, 6, 2]
        assert engine.batches == [[1, 1, 2], [9], [1, 3], [1]]

    play(scene())


def test_the_pace_is_that_of_an_ordinary_item() -> None:
    records: list[BatchRecord] = []

    async def scene() -> None:
        async with opened(Engine(), max_batch=1, on_batch=records.append, cost=lambda item: item) as batcher:
            await batcher.submit(50, far())
            assert batcher.item_s == pytest.approx(records[0].run_s / 50)

    play(scene())


def test_a_batch_that_failed_says_nothing_of_the_pace() -> None:
    def run(items: list[int]) -> list[int]:
        if 13 in items:
            raise RuntimeError("it was stuck")
        return items

    async def scene() -> None:
        async with opened(run) as batcher:
            await batcher.submit(1, far())
            before = batcher.item_s
            with pytest.raises(RuntimeError):
                await batcher.submit(13, far())
            assert batcher.item_s == before > 0

    play(scene())


async def nothing(items: list[int]) -> list[int]:
    return items


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_queue": 0}, {"lanes": []}], ids=str)
def test_sizes_are_at_least_one(wrong: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"lanes": [nothing], "max_batch": 1, "max_queue": 1} | wrong
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(**sizes)
