"""What a running service promises beside speed: memory that stays, an attention that costs little, a storm of it that
leaves the labels' latency alone.

    python -m tests.bench.promises [--scenario default] [--seconds 4] [--rounds 5] [--requests 50000]

One JSON line: PSS in MB after every tenth of the requests; milliseconds of the engine an image, of /predict and of
/attention, at 1 and 32 callers (from /metrics); and p99 of eight callers of /predict beside 24 others, of /predict or
of /attention, interleaved, with the median of the paired ratios.
"""

import argparse
import json
import statistics
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from app.bench_command import ProcessTree
from tests.bench.scenarios import SCENARIOS, jpegs
from tests.bench.servers import Running, known, running


def device_ms(live: Running, path: str, callers: int, seconds: float) -> float:
    """Milliseconds of the engine an image while ``callers`` ask ``path``."""
    before = _engine(live)
    live.load("--concurrency", callers, "--seconds", seconds, path=path)
    after = _engine(live)
    return 1000 * (after[0] - before[0]) / (after[1] - before[1])


def _engine(live: Running) -> tuple[float, float]:
    """Seconds of forwards so far, and their images."""
    with urllib.request.urlopen(live.url + "/metrics") as answer:  # noqa: S310 - our own process
        lines = [line.split() for line in answer.read().decode().splitlines() if not line.startswith("#")]
    told = {name: float(value) for name, value in lines}
    return told["nam_model_seconds_sum"], told["nam_batch_size_sum"]


def beside(live: Running, other: str, seconds: float, folder: Path) -> float:
    """p99 in ms of eight callers of /predict while 24 others ask ``other``."""
    crowd = Running(live.server, live.process, live.url, live.jpegs, folder, live.ready_s)
    with ThreadPoolExecutor(1) as pool:
        storm = pool.submit(crowd.load, "--concurrency", 24, "--seconds", seconds + 1, path=other)
        seen = live.load("--concurrency", 8, "--seconds", seconds, path="/predict")
        storm.result()
    return float(seen["p99_ms"])


def storms(live: Running, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rounds = [
        [beside(live, path, given.seconds, folder) for path in ("/predict", "/attention")] for _ in range(given.rounds)
    ]
    ratios = [attention / predict for predict, attention in rounds]
    return {"p99 ms": rounds, "ratio": [round(f(ratios), 3) for f in (min, statistics.median, max)]}


def memory(live: Running, requests: int) -> list[float]:
    found = []
    for _ in range(10):
        live.load("--concurrency", 32, "--requests", requests // 10, "--seconds", 600)
        found.append(round(ProcessTree(live.process.pid).pss_mb(), 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="default")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=50_000)
    given = parser.parse_args()
    chosen = SCENARIOS[given.scenario]
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as other:
        folder = Path(scratch)
        with running(known()["nam"], chosen.weights(), jpegs(chosen.size, folder, mixed=False), folder) as live:
            found: dict[str, Any] = {"scenario": given.scenario}
            for callers in (1, 32):
                told = {path: device_ms(live, path, callers, given.seconds) for path in ("/predict", "/attention")}
                found[f"engine ms an image, {callers} callers"] = {path: round(ms, 3) for path, ms in told.items()}
            found["storm"] = storms(live, given, Path(other))
            found["PSS MB"] = memory(live, given.requests) if given.requests else []
    print(json.dumps(found))


if __name__ == "__main__":
    main()
