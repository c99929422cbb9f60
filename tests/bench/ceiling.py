"""The ceiling: the same decode and the same engine in a bare loop, without HTTP, without a queue. Nothing ever waits.

As many loops as there are cores: threads of one process that has the default engine, and processes of one thread each;
batches of 1, 4 and the engine's largest. The best of all these is what a service could reach at most. Beside it: one
image at a time, with the default engine and with all cores on one forward; and what decoding and the forward cost, each
alone, in milliseconds of a core.

Every engine lives in a process of its own (``python -m tests.bench.ceiling``), which waits for a line of JSON that says
what to do and answers with one.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

from tests.bench.scenarios import ROOT

CORES = os.cpu_count() or 1


class Worker:
    """A process with an engine. ``settings``: NAM_* above those of the environment."""

    def __init__(self, weights: Path, jpegs: list[Path], **settings: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.ceiling", *map(str, jpegs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "NAM_WEIGHTS": str(weights), **settings},
            cwd=ROOT,
            text=True,
        )

    def ask(self, **words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("an engine of the ceiling died; its words are above")
        found: dict[str, Any] = json.loads(line)
        return found

    def call(self, **words: Any) -> dict[str, Any]:
        self.ask(**words)
        return self.answer()

    def close(self) -> None:
        self.process.communicate()


class Ceiling:
    """The engines of one network, loaded once."""

    def __init__(self, weights: Path, jpegs: list[Path]) -> None:
        single = {"NAM_THREADS": "1", "NAM_LANES": "1"}
        self.default = Worker(weights, jpegs)
        self.wide = Worker(weights, jpegs, NAM_LANES="1", NAM_THREADS=str(CORES))
        self.singles = [Worker(weights, jpegs, **single) for _ in range(CORES)]
        cards = [worker.answer() for worker in (self.default, self.wide, *self.singles)]
        self.card = cards[0]
        self.batches = sorted({1, 4, self.card["max_batch"]})

    def round(self, seconds: float) -> dict[str, Any]:
        """One figure of each kind. ``loops``: by kind and batch, images a second and a core's milliseconds an image."""
        one = self.singles[0]
        loops = {f"threads, batch {b}": self._loop([self.default], b, seconds) for b in self.batches}
        loops |= {f"processes, batch {b}": self._loop(self.singles, b, seconds) for b in self.batches}
        return {
            "loops": loops,
            "alone_ms": {
                "default engine": self.default.call(do="alone", seconds=seconds)["p50_ms"],
                "all cores": self.wide.call(do="alone", seconds=seconds)["p50_ms"],
            },
            "decode_core_ms": one.call(do="decode", seconds=seconds / 4)["core_ms"],
            "forward_core_ms": {
                str(b): one.call(do="forward", batch=b, seconds=seconds / 4)["core_ms"] for b in self.batches
            },
        }

    def _loop(self, workers: list[Worker], batch: int, seconds: float) -> dict[str, float]:
        threads = self.card["lanes"] if workers == [self.default] else 1
        for worker in workers:
            worker.ask(do="loop", threads=threads, batch=batch, seconds=seconds)
        found = [worker.answer() for worker in workers]
        images = sum(f["images"] for f in found)
        return {
            "images_per_s": sum(f["images"] / f["wall_s"] for f in found),
            "core_ms": 1000 * sum(f["cpu_s"] for f in found) / images,
        }

    def close(self) -> None:
        for worker in (self.default, self.wide, *self.singles):
            worker.close()


class Bench:
    """In the worker: the engine and the bytes of the photos."""

    def __init__(self, jpegs: list[bytes]) -> None:
        from app.cli import load_engine
        from app.engine import Ask
        from app.images import decode
        from app.settings import Settings

        self.engine, self.ask, self.decode, self.jpegs = load_engine(Settings()), Ask, decode, jpegs
        self.asks = [self._decoded(jpeg) for jpeg in jpegs]

    def loop(self, threads: int, batch: int, seconds: float) -> dict[str, float]:
        """Decode a batch, run it, again: images, and the seconds and the core's seconds that they took."""
        cpu, started = time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            until = started + seconds
            images = sum(pool.map(lambda first: self._lane(first, batch, until), range(threads)))
        return {
            "images": images,
            "wall_s": time.perf_counter() - started,
            "cpu_s": time.process_time() - cpu,
        }

    def _lane(self, first: int, batch: int, until: float) -> int:
        done, jpegs = 0, self._in_turn(self.jpegs, first)
        while time.perf_counter() < until:
            done += len(self.engine([self._decoded(next(jpegs)) for _ in range(batch)]))
        return done

    def alone(self, seconds: float) -> dict[str, float]:
        times, jpegs = [], self._in_turn(self.jpegs, 0)
        until = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            self.engine([self._decoded(next(jpegs))])
            times.append(time.perf_counter() - started)
        return {"p50_ms": 1000 * statistics.median(times)}

    def decoding(self, seconds: float) -> dict[str, float]:
        jpegs = self._in_turn(self.jpegs, 0)
        return _core_ms(lambda: self._decoded(next(jpegs)), 1, seconds)

    def forward(self, batch: int, seconds: float) -> dict[str, float]:
        asks = self._in_turn(self.asks, 0)
        chosen = [next(asks) for _ in range(batch)]
        return _core_ms(lambda: self.engine(chosen), batch, seconds)

    def _decoded(self, jpeg: bytes) -> Any:
        card = self.engine.card
        return self.ask(self.decode(jpeg, size=card.size, crop=card.crop, max_pixels=10**8).pixels)

    def _in_turn(self, things: list[Any], first: int) -> Iterator[Any]:
        return cycle(things[first % len(things) :] + things[: first % len(things)])


def _core_ms(work: Callable[[], Any], images: int, seconds: float) -> dict[str, float]:
    cpu, done, until = time.process_time(), 0, time.perf_counter() + seconds
    while not done or time.perf_counter() < until:
        work()
        done += images
    return {"core_ms": 1000 * (time.process_time() - cpu) / done}


def main() -> None:
    bench = Bench([Path(name).read_bytes() for name in sys.argv[1:]])
    card = bench.engine.card
    engine = card.facts.get("engine")
    print(json.dumps({"lanes": card.lanes, "max_batch": card.max_batch, "engine": engine}), flush=True)
    do: dict[str, Callable[..., dict[str, float]]] = {
        "loop": bench.loop,
        "alone": bench.alone,
        "decode": bench.decoding,
        "forward": bench.forward,
    }
    for line in sys.stdin:
        words = json.loads(line)
        print(json.dumps(do[words.pop("do")](**words)), flush=True)


if __name__ == "__main__":
    main()
