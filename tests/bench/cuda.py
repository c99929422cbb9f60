"""The service on a CUDA device: the engine by batch beside the device's own ceiling, and HTTP end to end.

    python -m tests.bench.cuda [--device cuda] [--networks small large] [--seconds 3] [--concurrency 1 32 256 1024]

For ResNet-18-NAM at 64 px and ResNet-50-NAM at 224 px: images/s of the engine by batch, of one lane and of all its
lanes together, pixels in and answers out; the share of the multiply-adds that the device does in bf16 in one large
matrix product in the same run; and images/s, p50 and p99 of a real service under ``nam bench``, 55 kB JPEGs. A table
on stdout, and all of it in tests/bench/results/cuda.json. ``--device cpu`` is for trying the script.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.engine import Ask
from app.torch_engine import Device, TorchEngine
from nam import weights
from nam.evaluate import cost
from tests.bench.scenarios import ROOT, Scenario, jpegs
from tests.bench.servers import known, running

NETWORKS = {
    "small": Scenario(
        "ResNet-18-NAM, 64 px", {"arch": "resnet18", "stem": "cifar", "size": 64, "classes": 200}, (96, 96)
    ),
    "large": Scenario("ResNet-50-NAM, 224 px", {"arch": "resnet50", "size": 224, "classes": 1000}, (500, 375)),
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def peak_flops(device: Device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Floating-point operations a second of one large matrix product, the best of what fits into so many seconds."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        times.append(_timed(lambda: a @ b, device))
    return 2 * side**3 / min(times)


def engine_rates(engine: TorchEngine, seconds: float) -> dict[str, dict[str, float]]:
    """Images/s by batch: of one call after the other, and of as many side by side as there are lanes."""
    ask = Ask(np.random.default_rng(0).integers(0, 256, (3, engine.card.size, engine.card.size), dtype=np.uint8))
    batches = [batch for batch in BATCHES if batch <= engine.card.max_batch]
    return {
        str(batch): {
            "one lane": _rate(engine, [ask] * batch, 1, seconds),
            "all lanes": _rate(engine, [ask] * batch, engine.card.lanes, seconds),
        }
        for batch in batches
    }


def _rate(engine: TorchEngine, asks: list[Ask], callers: int, seconds: float) -> float:
    """Medians of slices, so that one slow moment does not count for all."""
    until = time.perf_counter() + seconds

    def call() -> list[float]:
        spans: list[float] = []
        while time.perf_counter() < until:
            started = time.perf_counter()
            engine(asks)
            spans.append(time.perf_counter() - started)
        return spans

    with ThreadPoolExecutor(callers) as pool:
        of_callers = [future.result() for future in [pool.submit(call) for _ in range(callers)]]
    return sum(len(asks) / statistics.median(spans) for spans in of_callers)


def http_rates(network: Scenario, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By callers: images/s, p50 and p99 in ms, images a forward."""
    os.environ |= {
        "NAM_ENGINE": "torch",
        "NAM_DEVICE": given.device,
        "NAM_MAX_REQUESTS": "4096",
        "NAM_MAX_QUEUE": "4096",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running(known()["nam"], network.weights(), jpegs((500, 375), folder), folder) as live:
            reports = {c: live.load("--concurrency", c, "--seconds", given.seconds) for c in given.concurrency}
    kept = ("throughput_per_s", "p50_ms", "p99_ms", "mean_batch", "refused")
    return {str(c): {name: report[name] for name in kept} for c, report in reports.items()}


def measure(network: Scenario, given: argparse.Namespace) -> dict[str, Any]:
    dtype = "bfloat16" if given.device == "cuda" else "float32"
    path = network.weights()
    flops = cost(weights.load(str(path))[0], network.model["size"])["flops"]
    engine = TorchEngine(str(path), device=given.device, dtype=dtype)
    rates = engine_rates(engine, given.seconds)
    peak = peak_flops(given.device, getattr(torch, dtype))
    best = max(rate for of_batch in rates.values() for rate in of_batch.values())
    del engine
    return {
        "told": network.told,
        "flops": flops,
        "engine": rates,
        "peak_flops": peak,
        "of_peak": best * flops / peak,
        "http": http_rates(network, given),
    }


def _timed(work: Any, device: Device) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _table(found: dict[str, Any]) -> str:
    share = f"At its best {100 * found['of_peak']:.1f} % of {found['peak_flops'] / 1e12:,.1f} TFLOP/s."
    lines = [
        f"### {found['told']}",
        "",
        share,
        "",
        "| batch | engine, one lane, images/s | all lanes |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {of['one lane']:,.0f} | {of['all lanes']:,.0f} |" for n, of in found["engine"].items()]
    lines += ["", "| callers | HTTP, images/s | p50, ms | p99, ms | batch |", "|---|---|---|---|---|"]
    for callers, told in found["http"].items():
        cells = (told["throughput_per_s"], told["p50_ms"], told["p99_ms"], told["mean_batch"] or 0)
        lines.append(f"| {callers} | " + " | ".join(f"{cell:,.1f}" for cell in cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of a figure")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32, 256, 1024])
    given = parser.parse_args()
    found = {name: measure(NETWORKS[name], given) for name in given.networks}
    device = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    told = {"device": device, "cores": os.cpu_count(), "torch": torch.__version__, "networks": found}
    (ROOT / f"tests/bench/results/{given.device}.json").write_text(json.dumps(told, indent=1))
    print("\n".join(_table(one) for one in found.values()))


if __name__ == "__main__":
    main()
