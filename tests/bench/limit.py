"""Where one HTTP process stops: the whole service around an engine that answers at once, 8 KB bodies, nothing decoded.

    python -m tests.bench.limit [--seconds 5] [--rounds 7]

One JSON line: requests/s at 32 callers with the load generator on the same cores, the server's CPU milliseconds a
request, and from them requests/s a core; medians, least and most.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from app import logs
from app.batching import Lane
from app.engine import Answer, Card, Label
from app.forward import Done, Job, Outcome
from app.images import Picture
from app.server import serve
from app.services import lanes_here
from app.settings import Settings
from tests.bench.scenarios import ROOT
from tests.bench.servers import Server, running

LABELS = tuple(Label(f"n{i:08}", f"thing {i}", f"东西{i}") for i in range(100))
CARD = Card("nothing", LABELS, 32, 1.0, (), "0" * 64, max_batch=16, lanes=2, lanes_decode=True)
PICTURE = Picture(np.zeros((3, 32, 32), np.uint8), "JPEG", 96, 96)
ANSWER = Answer(np.arange(5), np.full(5, 0.2, np.float32))


class Nothing:
    """Answers at once."""

    card = CARD

    def lanes(self, on_restart: Callable[[], None], on_end: Callable[[str], None]) -> list[Lane[Job, Outcome]]:
        return [self._answer] * CARD.lanes

    def memory(self) -> dict[str, int]:
        return {}

    async def close(self) -> None:
        """There is nothing to close."""

    async def _answer(self, jobs: Sequence[Job]) -> list[Done]:
        return [Done(PICTURE, ANSWER, 0.0, 0.0) for _ in jobs]


def body(folder: Path) -> Path:
    """A JPEG of 8 KB."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    quality = next(q for q in range(1, 100) if len(_jpeg(noise, q)) >= 8000)
    (folder / "8kb.jpg").write_bytes(_jpeg(noise, quality))
    return folder / "8kb.jpg"


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def _command(port: int, weights: str) -> list[str]:
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.bench.limit", "serve", str(port)]


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        logs.configure("warning")
        serve(Settings(port=int(sys.argv[2])), lanes_here(lambda settings, on_forward: Nothing()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    server = Server("nothing", _command)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with running(server, Path("none"), [body(folder)], folder) as live:
            runs = [live.load("--concurrency", 32, "--seconds", given.seconds) for _ in range(given.rounds)]
    rates = {"requests/s": [r["throughput_per_s"] for r in runs], "core-ms": [r["server_cpu_ms"] for r in runs]}
    rates["requests/s a core"] = [1000 / ms for ms in rates["core-ms"]]
    told = {name: [round(f(v), 3) for f in (min, statistics.median, max)] for name, v in rates.items()}
    print(json.dumps(told | {"rounds": given.rounds, "seconds": given.seconds}))


if __name__ == "__main__":
    main()
