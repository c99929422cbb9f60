"""Decoding in processes: what an image does to one, and to nobody else."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import decoders
from app.decoders import Decoders
from app.errors import BadImage, DeadlineExceeded, Draining, ImageTooLarge, InternalError, UnsupportedMediaType
from app.forward import Decoded, timed_decode
from app.settings import Settings
from tests.chaos.faulty_decoder import CRASH, GROW, HANG, LIE, Faulty
from tests.fakes import CARD, picture

GOOD = picture(100)


class Pool:
    """``losses``: how often one was lost."""

    def __init__(self, **settings: int) -> None:
        self.losses = 0
        self.decoders = Decoders(Settings(**{"decoders": 2} | settings), CARD, self._count)

    def _count(self) -> None:
        self.losses += 1

    async def decode(self, image: bytes = GOOD, seconds: float = 120, size: int = 8) -> Decoded:
        return await self.decoders.decode(image, size, time.monotonic() + seconds)

    @property
    def pids(self) -> list[int]:
        return sorted(one._process.pid for one in self.decoders._all)


@asynccontextmanager
async def opened(**settings: int) -> AsyncIterator[Pool]:
    pool = Pool(**settings)
    try:
        yield pool
    finally:
        pids = pool.pids
        await pool.decoders.close()
        assert not [pid for pid in pids if f"{pid}" in os.listdir("/proc")]


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Four minutes are what a scene gets that hangs; its processes start as fast as the machine lets them."""
    asyncio.run(asyncio.wait_for(scene, 240))


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "ChildProcess", Faulty)


def test_the_picture_is_the_one_that_decoding_here_gives() -> None:
    photo = (Path(__file__).parents[1] / "golden" / "photo.jpg").read_bytes()

    async def scene() -> None:
        async with opened() as pool:
            before = time.monotonic()
            there = await pool.decode(photo, size=64)
            here = timed_decode(photo, size=64, crop=CARD.crop, max_pixels=10**8)
            assert np.array_equal(there.picture.pixels, here.picture.pixels)
            assert there.picture.pixels.shape == (3, 64, 64)
            facts = [(one.format, one.width, one.height) for one in (there.picture, here.picture)]
            assert facts[0] == facts[1]
            assert 0 < there.decode_s < time.monotonic() - before
            assert before < there.decode_at < time.monotonic()

    play(scene())


@pytest.mark.parametrize(
    ("image", "error"),
    [(b"none", UnsupportedMediaType), (GOOD[:40], BadImage), (picture(size=(1001, 1000)), ImageTooLarge)],
    ids=["unknown", "damaged", "large"],
)
def test_a_bad_image_is_refused_and_costs_no_decoder(image: bytes, error: type[Exception]) -> None:
    async def scene() -> None:
        async with opened(max_pixels=10**6) as pool:
            with pytest.raises(error) as here:
                timed_decode(image, size=8, crop=1.0, max_pixels=10**6)
            with pytest.raises(error) as there:
                await pool.decode(image)
            assert there.value.detail == here.value.detail
            await pool.decode()
            assert (len(pool.pids), pool.losses) == (1, 0)

    play(scene())


def test_nobody_is_started_before_an_image_comes_and_no_more_than_there_are_places() -> None:
    async def scene() -> None:
        async with opened() as pool:
            assert pool.pids == []
            await pool.decode()
            assert len(pool.pids) == 1
            await asyncio.gather(*(pool.decode() for _ in range(20)))
            assert len(pool.pids) == 2

    play(scene())


@pytest.mark.usefixtures("faulty")
def test_whoever_crashes_two_decoders_is_refused_and_its_neighbours_are_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        async with opened() as pool:
            levels = [25 * n for n in range(10)]
            bad = asyncio.ensure_future(pool.decode(GOOD + CRASH))
            good = await asyncio.gather(*(pool.decode(picture(level)) for level in levels))
            assert [one.picture.pixels.mean() for one in good] == levels
            with pytest.raises(BadImage, match="ended the decoder"):
                await bad
            assert pool.losses == 2
            assert caplog.text.count("a decoder ended by SIGSEGV over an image of") == 2

    play(scene())


@pytest.mark.usefixtures("faulty")
def test_a_decoder_that_answers_nonsense_is_done_with() -> None:
    async def scene() -> None:
        async with opened() as pool:
            with pytest.raises(BadImage):
                await pool.decode(GOOD + LIE)
            assert (pool.pids, pool.losses) == ([], 2)
            await pool.decode()

    play(scene())


def test_whoever_was_in_a_decoder_that_somebody_killed_gets_another() -> None:
    async def scene() -> None:
        async with opened() as pool:
            await pool.decode()
            os.kill(pool.pids[0], signal.SIGSTOP)
            decoding = asyncio.ensure_future(pool.decode())
            await asyncio.sleep(0.05)
            os.kill(pool.pids[0], signal.SIGKILL)
            assert (await decoding).picture.pixels.mean() == 100
            assert pool.losses == 1

    play(scene())


@pytest.mark.usefixtures("faulty")
def test_whoever_is_stuck_in_c_is_killed_and_waited_for_no_longer() -> None:
    async def scene() -> None:
        async with opened(decoders=1, decode_timeout_ms=2000) as pool:
            await pool.decode()
            started = time.monotonic()
            bad, good = asyncio.ensure_future(pool.decode(GOOD + HANG)), asyncio.ensure_future(pool.decode())
            with pytest.raises(BadImage, match="longer than 2 s"):
                await bad
            assert (await good).picture.pixels.mean() == 100
            assert 2 < time.monotonic() - started < 60
            assert pool.losses == 1

    play(scene())


@pytest.mark.usefixtures("faulty")
def test_what_nobody_waits_for_is_decoded_no_longer_than_a_start_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "GRACE_S", 2.0)

    async def scene() -> None:
        async with opened(decoders=1) as pool:
            await pool.decode()
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await pool.decode(GOOD + HANG, seconds=0.1)
            assert pool.losses == 0  # who gave up has not waited for the end of it
            await pool.decode()
            assert time.monotonic() - started < 60
            assert pool.losses == 1

    play(scene())


def test_who_leaves_takes_no_decoder_along_and_its_answer_is_nobody_elses() -> None:
    async def scene() -> None:
        async with opened(decoders=1) as pool:
            await pool.decode()
            (pid,) = pool.pids
            os.kill(pid, signal.SIGSTOP)
            gone = asyncio.ensure_future(pool.decode(picture(200)))
            await asyncio.sleep(0.05)
            gone.cancel()
            next_ = asyncio.ensure_future(pool.decode(picture(50)))
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGCONT)
            assert (await next_).picture.pixels.mean() == 50
            assert (pool.pids, pool.losses) == ([pid], 0)

    play(scene())


@pytest.mark.usefixtures("faulty")
def test_memory_beyond_any_image_is_that_images_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(image: bytes, *, fits: bool) -> None:
        async with opened() as pool:
            if fits:
                await pool.decode(image)
            else:
                with pytest.raises(BadImage):
                    await pool.decode(image)
            await pool.decode()
            assert (len(pool.pids), pool.losses) == (1, 0)

    play(scene(GOOD + GROW, fits=False))
    large = picture(size=(6000, 4000), mode="RGBA")  # 8 bytes a pixel, 192 MB
    play(scene(large, fits=True))
    monkeypatch.setattr(decoders, "PIXEL_BYTES", 1)  # 64 MB, and what is beside
    play(scene(large, fits=False))


def test_a_decoder_knows_no_key_and_leaves_no_core_and_is_the_first_to_go() -> None:
    async def scene() -> None:
        async with opened() as pool:
            await pool.decode()
            proc = Path(f"/proc/{pool.pids[0]}")
            assert b"sesame" not in (proc / "environ").read_bytes()
            limits = " ".join((proc / "limits").read_text().split())
            assert "Max core file size 0 0 " in limits
            assert (proc / "oom_score_adj").read_text() == "1000\n"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAM_API_KEYS", "sesame")
        play(scene())


def test_a_decoder_that_cannot_be_started_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.child_process.sys.executable", "/nowhere/python")

    async def scene() -> None:
        async with opened() as pool:
            with pytest.raises(InternalError):
                await pool.decode()
            monkeypatch.undo()
            await pool.decode()

    play(scene())


def test_a_decoder_that_is_stuck_while_it_starts_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "START_S", 0.1)
    monkeypatch.setattr("app.child_process.ChildProcess.hear", lambda self: asyncio.sleep(10))

    async def scene() -> None:
        async with opened(decoders=1) as pool:
            with pytest.raises(InternalError):
                await pool.decode()
            assert (pool.pids, pool.losses) == ([], 1)
            monkeypatch.undo()
            await pool.decode()

    play(scene())


def test_several_http_processes_share_the_services_number_of_decoders() -> None:
    async def scene() -> None:
        async with opened(decoders=4, workers=2) as pool:
            await asyncio.gather(*(pool.decode() for _ in range(20)))
            assert len(pool.pids) == 2

    play(scene())


def test_who_waits_for_a_place_while_all_are_closed_starts_no_other() -> None:
    async def scene() -> None:
        async with opened(decoders=1) as pool:
            calls = [asyncio.create_task(pool.decode()) for _ in range(3)]
            await asyncio.sleep(0.05)  # the first one's decoder is being started
            pids = pool.pids
            await pool.decoders.close()
            first, *others = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(first, asyncio.CancelledError)
            assert [type(error) for error in others] == [Draining, Draining]
            assert pool.pids == pids

    play(scene())


def test_a_service_that_may_have_less_memory_than_a_decoder_bounds_it_by_that() -> None:
    """In a process of its own, and no superuser's, who may raise any limit."""
    script = """
import os, resource
from app import decode_process
if os.getuid() == 0: os.setuid(65534)
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
decode_process.bound(2**40)
print(*resource.getrlimit(resource.RLIMIT_AS))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.split() == [str(2**31)] * 2


@pytest.mark.parametrize("seconds", [10, 0], ids=["refused", "late"])
def test_an_image_without_an_answer_is_let_go_of_before_the_garbage_is_collected(seconds: float) -> None:
    """Garbage is counted in objects: thirty images of 20 MB are not much of it."""
    image = GOOD[:20] + bytes(1000)

    async def scene() -> None:
        async with opened() as pool:
            before = sys.getrefcount(image)
            for _ in range(3):
                ended, _ = await asyncio.wait([asyncio.ensure_future(pool.decode(image, seconds))])
                assert isinstance(ended.pop().exception(), BadImage | DeadlineExceeded)
            while pool.decoders._work:
                await asyncio.sleep(0.01)
            assert sys.getrefcount(image) == before

    gc.disable()
    try:
        play(scene())
    finally:
        gc.enable()
