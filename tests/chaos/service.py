"""A real service to do harm to: ``nam serve`` with the shipped weights, or one whose engine fails when told to."""

import io
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx2
from PIL import Image

from tests.fakes import free_port

NAM = (str(Path(sys.executable).parent / "nam"), "serve")
FAULTY = (sys.executable, "-m", "tests.chaos.faulty")  # the engine of tests/fakes.py, and faults by grey level
ROOT = Path(__file__).parents[2]
JPEG = {"content-type": "image/jpeg"}


@dataclass
class Service:
    """A process that serves: where, what it logs to, itself."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, image: bytes, path: str = "/predict", **headers: str) -> httpx2.Response:
        return httpx2.post(self.url + path, content=image, headers=JPEG | headers, timeout=30)

    def ready(self) -> int:
        """The status of /readyz; 0 where nobody answers."""
        try:
            return httpx2.get(self.url + "/readyz", timeout=20).status_code
        except httpx2.TransportError:
            return 0

    def end(self, seconds: float = 60) -> int:
        """As an orchestrator ends it; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def launch(
    folder: Path,
    command: tuple[str, ...] = NAM,
    *,
    port: int = 0,
    log: Path | None = None,
    limits: dict[int, int] | None = None,
    **settings: str,
) -> Service:
    """Started, not awaited. ``limits``: of resources, by their numbers in :mod:`resource`."""
    port = port or free_port()
    log = log or folder / f"{port}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NAM_")}
    environment |= {"NAM_PORT": str(port)} | settings

    def limited() -> None:
        for number, most in (limits or {}).items():
            resource.setrlimit(number, (most, most))

    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=ROOT, preexec_fn=limited)
    return Service(port, log, process)


@contextmanager
def running(folder: Path, command: tuple[str, ...] = NAM, **options: object) -> Iterator[Service]:
    """Ready; killed at the end, if it still lives."""
    service = launch(folder, command, **options)  # type: ignore[arg-type]
    try:
        until(lambda: service.process.poll() is not None or service.ready() == 200, 240)
        assert service.process.poll() is None, service.log.read_text()
        yield service
    finally:
        service.process.kill()
        service.process.wait()


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


@cache
def _examples() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((ROOT / "app/web/examples").glob("*.jpg"))]


def photo(seed: int, side: int = 96) -> bytes:
    """A JPEG unlike any other seed's: some part of one of the page's photos, its colours exchanged."""
    dice = random.Random(seed)  # noqa: S311 - the same every time
    whole = dice.choice(_examples())
    part = int(dice.uniform(0.25, 1) * min(whole.size))
    left, top = (dice.randint(0, length - part) for length in whole.size)
    bands = dice.sample(whole.crop((left, top, left + part, top + part)).resize((side, side)).split(), 3)
    out = io.BytesIO()
    Image.merge("RGB", bands).save(out, "JPEG", quality=90)
    return out.getvalue()
