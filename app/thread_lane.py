"""A lane of a Batcher in a thread of its own: what owns a device, and releases the interpreter while it works."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic

from app.batching import Item, Result, carriable


class ThreadLane(Generic[Item, Result]):
    """A lane that calls `run` in a thread of its own, so that a device can be owned by it.

    The thread is a daemon: a call that never returns must not keep the process from ending.
    """

    def __init__(self, run: Callable[[list[Item]], Sequence[Result]], name: str) -> None:
        self._run = run
        self._calls: queue.SimpleQueue[tuple[list[Item], asyncio.Future[Sequence[Result]]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def __call__(self, items: list[Item]) -> asyncio.Future[Sequence[Result]]:
        future: asyncio.Future[Sequence[Result]] = asyncio.get_running_loop().create_future()
        self._calls.put((items, future))
        return future

    def close(self) -> None:
        """The thread ends after what it was given."""
        self._calls.put(None)

    def _serve(self) -> None:
        while self._serve_next():
            pass

    def _serve_next(self) -> bool:
        """Its locals end with it: an idle lane holds no items."""
        if (call := self._calls.get()) is None:
            return False
        items, future = call
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            future.get_loop().call_soon_threadsafe(_settle, future, *_outcome(self._run, items))
        del call, items, future  # an error's traceback holds this frame, and the future the error
        return True


def _outcome(
    run: Callable[[list[Item]], Sequence[Result]], items: list[Item]
) -> tuple[Sequence[Result], Exception | None]:
    """Returns also what `run` raises, so that nothing it does can end the lane."""
    try:
        return run(items), None
    except BaseException as error:
        return (), carriable(error)


def _settle(future: asyncio.Future[Sequence[Result]], results: Sequence[Result], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(results)
    else:
        future.set_exception(error)
