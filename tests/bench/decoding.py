"""Decoding in processes beside decoding in threads, as the service did before: images/s and the time of a lone one.

``python -m tests.bench.decoding``; prints a table. Rounds are interleaved.
"""

import argparse
import asyncio
import io
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import uvloop
from PIL import Image
from skimage import data

from app.cores import usable_cores
from app.decoders import Decoders
from app.forward import Decoded, timed_decode
from app.settings import Settings
from tests.fakes import CARD

Decode = Callable[[bytes], Awaitable[Decoded]]
SIZE = 64


def _images() -> dict[str, bytes]:
    """CC0, from scikit-image's wheel; larger ones are tiled of it."""
    cup = data.coffee()
    small = np.asarray(Image.fromarray(cup).resize((500, 375)))
    return {
        "JPEG, 500x375": _encoded(small, "JPEG"),
        "PNG, 1800x1200": _encoded(np.tile(cup, (3, 3, 1)), "PNG"),
        "JPEG, 4200x2800": _encoded(np.tile(cup, (7, 7, 1)), "JPEG"),
    }


def _encoded(pixels: np.ndarray, form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **({"quality": 90} if form == "JPEG" else {}))
    return out.getvalue()


async def _rate(decode: Decode, image: bytes, callers: int, seconds: float) -> tuple[float, float]:
    """Images/s, and the median of one's milliseconds."""
    took: list[float] = []
    until = time.monotonic() + seconds

    async def call() -> None:
        while (started := time.monotonic()) < until:
            await decode(image)
            took.append(time.monotonic() - started)

    started = time.monotonic()
    await asyncio.gather(*(call() for _ in range(callers)))
    return len(took) / (time.monotonic() - started), 1e3 * statistics.median(took)


def _pss_mb(decoders: Decoders) -> list[float]:
    rows = [Path(f"/proc/{one._process.pid}/smaps_rollup").read_text().splitlines() for one in decoders._all]
    return [int(next(row for row in of if row.startswith("Pss:")).split()[1]) / 1024 for of in rows]


async def measure(rounds: int, seconds: float) -> None:
    decoders, loop = Decoders(Settings(), CARD), asyncio.get_running_loop()
    work = partial(timed_decode, size=SIZE, crop=1.0, max_pixels=10**8)
    with ThreadPoolExecutor(usable_cores()) as pool:
        ways: dict[str, Decode] = {
            "threads": lambda image: loop.run_in_executor(pool, work, image),
            "processes": lambda image: decoders.decode(image, SIZE, loop.time() + 60),
        }
        print("| image | callers | threads, images/s | processes | ratio | threads, p50 ms | processes |")
        print("|---|---|---|---|---|---|---|")
        for name, image in _images().items():
            for callers in (1, 8, 32) if len(image) < 10**6 else (1, 8):
                for decode in ways.values():
                    await _rate(decode, image, callers, 0.3)
                told = [[await _rate(way, image, callers, seconds) for way in ways.values()] for _ in range(rounds)]
                threads, processes = zip(*told, strict=True)
                ratios = [p[0] / t[0] for t, p in told]
                cells = [_said([t[0] for t in threads], 1), _said([p[0] for p in processes], 1), _said(ratios, 2)]
                cells += [_said([t[1] for t in threads], 2), _said([p[1] for p in processes], 2)]
                print(f"| {name}, {len(image) // 1000} kB | {callers} | {' | '.join(cells)} |", flush=True)
    print(f"\nPSS of a decoder: {', '.join(f'{mb:.0f}' for mb in _pss_mb(decoders))} MB; start:", end=" ")
    print(f"{await _start_ms():.0f} ms to the first picture")
    await decoders.close()


async def _start_ms() -> float:
    image, took = _images()["JPEG, 500x375"], []
    for _ in range(5):
        decoders = Decoders(Settings(), CARD)
        took.append((await _rate(lambda image, fresh=decoders: fresh.decode(image, SIZE, 1e9), image, 1, 0.001))[1])  # type: ignore[misc]
        await decoders.close()
    return statistics.median(took)


def _said(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    given = parser.parse_args()
    uvloop.run(measure(given.rounds, given.seconds))


if __name__ == "__main__":
    main()
