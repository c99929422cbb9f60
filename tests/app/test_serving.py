"""Work in the pool: what is given up before its thread began is let go of."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest

from app import errors
from app.serving import in_pool


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
