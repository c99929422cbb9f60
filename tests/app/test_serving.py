"""What is given up, or ends in an error, is let go of: the images of others come after it."""

import asyncio
import gc
import logging
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest

from app import errors
from app.serving import in_pool
from tests.app.test_protocol import listening
from tests.fakes import picture


class Image:
    """Something large."""


def test_what_is_given_up_while_it_waits_for_a_thread_is_not_held() -> None:
    image, busy = Image(), threading.Event()
    remembered = weakref.ref(image)

    async def scene(work: partial) -> None:
        with pytest.raises(errors.DeadlineExceeded):
            await in_pool(SimpleNamespace(threads=pool), work, time.monotonic() + 0.05)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(busy.wait, 10)
        work = partial(id, image)
        del image
        asyncio.run(scene(work))
        del work
        gc.collect()
        assert remembered() is None
        busy.set()


@contextmanager
def uncollected() -> Iterator[None]:
    """Nor logged: pytest keeps every line, and the error in it."""
    logging.disable()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("path", ["/predict", "/predict?top_k=5"])
@pytest.mark.parametrize("status", [422, 504], ids=["bad", "late"])
def test_bodies_without_an_answer_are_let_go_of_before_the_garbage_is_collected(path: str, status: int) -> None:
    """No error keeps what its traceback has seen: of bodies of 20 MB it would be hundreds of megabytes."""
    image = picture()[: 40 if status == 422 else None] + bytes(2**20)
    headers = {} if status == 422 else {"x-timeout-ms": "100"}
    with listening() as server, uncollected():
        server.engine.gate.clear()
        assert {server.post(image, path, **headers).status_code for _ in range(6)} == {status}
        assert tracemalloc.get_traced_memory()[0] < 3 * len(image)
