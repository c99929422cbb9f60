"""What HTTP costs: the service beside the bare in-process loop, same decode, same engine, in one run.

    python -m tests.bench.http [--seconds 5] [--rounds 7] [--out tests/bench/results/http.json]

A real ``nam serve`` process with its defaults (or what ``NAM_*`` says), one 500x375 JPEG, keep-alive connections from
this process on the same cores. Interleaved rounds of: the loop one image at a time, HTTP at concurrency 1, the loop at
full throughput (a thread a lane, largest batches), HTTP at concurrency 32. Medians over the rounds, and
the median of the ratios within each round. Ends with one JSON line.
"""

import argparse
import asyncio
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import uvloop
from PIL import Image
from skimage import data

from app.engine import Ask, Engine
from app.images import decode
from app.settings import Settings
from tests.e2e.conftest import Process, start

CROWD = 32


def photo() -> bytes:
    """scikit-image's ``coffee`` (CC0, Rachel Michetti) at 500x375, quality 90."""
    out = io.BytesIO()
    Image.fromarray(data.coffee()).resize((500, 375)).save(out, "JPEG", quality=90)
    return out.getvalue()


def loop_of_one(engine: Engine, jpeg: bytes, seconds: float) -> list[float]:
    """Seconds of each decode and forward, one image after the other."""
    times, until = [], time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        engine([Ask(_pixels(engine, jpeg))])
        times.append(time.perf_counter() - started)
    return times


def loop_of_many(engine: Engine, jpeg: bytes, seconds: float) -> float:
    """Images a second of a thread a lane, each decoding a largest batch and then running it: nothing ever waits."""
    until = time.perf_counter() + seconds
    with ThreadPoolExecutor(engine.card.lanes) as pool:
        started = time.perf_counter()
        done = sum(pool.map(lambda _: _lane(engine, jpeg, until), range(engine.card.lanes)))
        return done / (time.perf_counter() - started)


def _lane(engine: Engine, jpeg: bytes, until: float) -> int:
    done = 0
    while time.perf_counter() < until:
        done += len(engine([Ask(_pixels(engine, jpeg)) for _ in range(engine.card.max_batch)]))
    return done


def _pixels(engine: Engine, jpeg: bytes) -> Any:
    return decode(jpeg, size=engine.card.size, crop=engine.card.crop, max_pixels=10**8).pixels


async def http(url: str, jpeg: bytes, callers: int, seconds: float) -> list[float]:
    """Seconds of each request of ``callers`` closed loops, each on a connection of its own."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(_caller(url, jpeg, until, times) for _ in range(callers)))
    return times


async def _caller(url: str, jpeg: bytes, until: float, times: list[float]) -> None:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    request = head.encode() + jpeg
    reader, writer = await asyncio.open_connection(host, port)
    while (started := time.perf_counter()) < until:
        writer.write(request)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 200"):
            raise RuntimeError(answer.decode())
        await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
        times.append(time.perf_counter() - started)
    writer.close()


def one_round(engine: Engine, serving: Process, jpeg: bytes, seconds: float) -> dict[str, float]:
    run: Callable[..., list[float]] = lambda callers: uvloop.run(http(serving.url, jpeg, callers, seconds))  # noqa: E731
    loop_one, http_one = loop_of_one(engine, jpeg, seconds), run(1)
    loop_many, http_many = loop_of_many(engine, jpeg, seconds), run(CROWD)
    return {
        "loop p50 ms": 1000 * statistics.median(loop_one),
        "http p50 ms, c=1": 1000 * statistics.median(http_one),
        "loop img/s": loop_many,
        "http img/s, c=32": len(http_many) / seconds,
        "http p50 ms, c=32": 1000 * statistics.median(http_many),
        "http p99 ms, c=32": 1000 * statistics.quantiles(http_many, n=100)[98],
    }


def summary(rounds: list[dict[str, float]], serving: Process, jpeg: bytes, seconds: float) -> dict[str, Any]:
    ratios = [r["http img/s, c=32"] / r["loop img/s"] for r in rounds]
    added = [r["http p50 ms, c=1"] - r["loop p50 ms"] for r in rounds]
    return {
        "median": {name: round(statistics.median(r[name] for r in rounds), 2) for name in rounds[0]},
        "http / loop, img/s": [round(v, 3) for v in (min(ratios), statistics.median(ratios), max(ratios))],
        "p50 added at c=1, ms": [round(v, 2) for v in (min(added), statistics.median(added), max(added))],
        "server PSS MB": _pss_mb(serving.process.pid),
        "settings": {name: value for name, value in os.environ.items() if name.startswith("NAM_")},
        "rounds": len(rounds),
        "seconds a figure": seconds,
        "jpeg": f"500x375, {len(jpeg)} bytes",
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _pss_mb(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("Pss:")[1].split()[0]) // 1024


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("tests/bench/results/http.json"))
    arguments = parser.parse_args()
    from app.cli import load_engine

    jpeg, engine = photo(), load_engine(Settings())
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: value for name, value in os.environ.items() if name.startswith("NAM_")}
        serving = start(Path(folder), NAM_LOG_LEVEL="warning", **chosen)
        one_round(engine, serving, jpeg, 1.0)  # warm-up
        rounds = []
        for i in range(arguments.rounds):
            rounds.append(one_round(engine, serving, jpeg, arguments.seconds))
            print(i + 1, {name: round(value, 2) for name, value in rounds[-1].items()}, file=sys.stderr)
        result = summary(rounds, serving, jpeg, arguments.seconds)
        serving.process.terminate()
        serving.process.wait()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
