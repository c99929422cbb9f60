"""What a service holds, looked at again and again, and whether it grows."""

import asyncio
import math
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.bench_command import ProcessTree, _pss_kb
from tests.soak.client import Caller, Lost, Request

# By a word of their command lines, the first that fits.
PARTS = {"app.lane_process": "pss_mb, lanes", "app.decode_process": "pss_mb, decoders", "": "pss_mb, the rest"}
BLOCKS = 20  # neighbouring samples are alike: the errors are those of so many means


@dataclass(frozen=True, slots=True)
class Slope:
    """Of one figure: its mean, its growth in an hour, that growth's standard error, and its growth over the samples as
    a share of the mean. ``flat``: zero within three standard errors, or below a hundredth of the mean."""

    mean: float
    an_hour: float
    error: float
    share: float

    @property
    def flat(self) -> bool:
        return abs(self.an_hour) <= 3 * self.error or abs(self.share) < 0.01


class Watch:
    """``samples``: seconds since the start, and by name pss_mb, files, threads, processes, device_mb."""

    def __init__(self, pid: int, port: int) -> None:
        self._tree, self._caller, self._began = ProcessTree(pid), Caller(port), time.monotonic()
        self.samples: list[dict[str, float]] = []

    async def run(self, every_s: float) -> None:
        while True:
            with suppress(ProcessLookupError, Lost):
                seen = await asyncio.to_thread(self._look)
                if (device_mb := await self._device_mb()) is not None:
                    seen["device_mb"] = device_mb
                self.samples.append(seen)
            await asyncio.sleep(every_s)

    def slopes(self, after: float) -> dict[str, Slope]:
        """Of all but the first ``after`` of the time."""
        kept = [one for one in self.samples if one["at"] >= after * self.samples[-1]["at"]]
        at = [one["at"] / 3600 for one in kept]
        return {name: slope(at, [one[name] for one in kept]) for name in kept[0] if name != "at"}

    def _look(self) -> dict[str, float]:
        pids = self._tree.pids()
        by_part: dict[str, float] = dict.fromkeys(PARTS.values(), 0.0)
        for pid in pids:
            by_part[_part(pid)] += _pss_kb(pid) / 1024
        return {
            "at": time.monotonic() - self._began,
            "pss_mb": sum(by_part.values()),
            **by_part,
            "files": sum(_count(pid, "fd") for pid in pids),
            "threads": sum(_count(pid, "task") for pid in pids),
            "processes": len(pids),
        }

    async def _device_mb(self) -> float | None:
        """What the service says that CUDA holds for it."""
        text = (await self._caller.ask(Request("GET", "/metrics"))).body.decode()
        told = [line for line in text.splitlines() if line.startswith("nam_device_memory_bytes") and "reserved" in line]
        return float(told[0].rpartition(" ")[2]) / 2**20 if told else None


def _part(pid: int) -> str:
    try:
        told = Path("/proc", str(pid), "cmdline").read_text()
    except OSError:  # it ended
        told = ""
    return next(part for word, part in PARTS.items() if word in told)


def _count(pid: int, folder: str) -> int:
    try:
        return len(os.listdir(Path("/proc", str(pid), folder)))
    except OSError:  # it ended
        return 0


def slope(at: Iterable[float], values: Iterable[float]) -> Slope:
    """Least squares over the means of blocks."""
    whole = [np.array(list(one)) for one in (at, values)]
    blocks = min(BLOCKS, len(whole[0]))
    x, y = (np.array([part.mean() for part in np.array_split(one, blocks)]) for one in whole)
    centred = x - x.mean()
    growth = float(centred @ y / (centred @ centred))
    left = y - y.mean() - growth * centred
    error = math.sqrt(float(left @ left) / (len(x) - 2) / float(centred @ centred))
    mean = float(y.mean())
    return Slope(mean, growth, error, growth * float(x[-1] - x[0]) / mean if mean else 0.0)
