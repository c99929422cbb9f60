"""What a service costs: ours, and others, beside the bare in-process loop: same decode, same engine, in one run.

    python -m tests.bench.http [--scenarios r224 default tiny] [--servers nam ...] [--concurrency 1 8 32 64]
                               [--rounds 7] [--seconds 3] [--name http] [--mixed] [--no-overload]

Rounds of turns: the ceiling's (ceiling.py) and each server's (servers.py), in an order that moves on from round to
round. A server's turn: start it, load it with so many callers, ours on /attention too, then with arrivals at three
times what it has just borne, with a deadline; kill it. The load runs on the same cores. Ours takes its settings from
NAM_*, as the ceiling does. All rounds and their summary go to tests/bench/results/NAME.json; the summary is printed as
Markdown: medians, least and most, ratios and differences within a round.

A short look: --scenarios default --rounds 1 --seconds 1 --concurrency 1 32
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.bench.ceiling import Ceiling
from tests.bench.scenarios import ROOT, SCENARIOS, jpegs
from tests.bench.servers import Running, Server, known, running
from tests.bench.tables import markdown, summary

WARMUP_S = 0.5
OVERLOAD = 3.0  # times what it bears
PACKAGES = ("torch", "openvino", "pillow", "fastapi", "starlette", "uvicorn", "uvloop", "httptools")


def scenario(name: str, servers: list[Server], given: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one network, and their summary."""
    chosen = SCENARIOS[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder, weights = Path(scratch), chosen.weights()
        photos = jpegs(chosen.size, folder, mixed=given.mixed)
        sizes = {photo.name: photo.stat().st_size for photo in photos}
        ceiling = Ceiling(weights, photos)
        try:
            ceiling.round(0.2)  # warm-up
            turns: dict[str, Callable[[], dict[str, Any]]] = {"ceiling": partial(ceiling.round, given.seconds)}
            for server in servers:
                turns[server.name] = partial(turn, server, weights, photos, folder, given)
            rounds = [one_round(i, name, turns) for i in range(given.rounds)]
        finally:
            ceiling.close()
    told = {"told": chosen.told, "engine": ceiling.card, "jpegs": sizes}
    return {**told, "summary": summary(rounds), "rounds": rounds}


def one_round(number: int, name: str, turns: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    """Every turn once, another one first than the time before."""
    names = list(turns)
    first = number % len(names)
    found = {}
    for turn_of in names[first:] + names[:first]:
        found[turn_of] = turns[turn_of]()
        print(f"{name}, round {number + 1}: {turn_of}", file=sys.stderr)
    return found


def turn(server: Server, weights: Path, photos: list[Path], folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One server's figures. ``callers``: by their number; ``attention``: the same on /attention, ours alone."""
    with running(server, weights, photos, folder) as live:
        live.load("--concurrency", 8, "--seconds", 1, "--warmup", 0)  # warm-up of whatever there is to warm
        callers = {str(c): _closed(live, c, given.seconds) for c in given.concurrency}
        found: dict[str, Any] = {"ready_s": live.ready_s, "callers": callers}
        if server.name == "nam":
            chosen = {min(given.concurrency), min(max(given.concurrency), 32)}
            found["attention"] = {str(c): _closed(live, c, given.seconds, "/attention") for c in sorted(chosen)}
        if given.overload:
            found["overload"] = _overload(live, callers, given)
        return found


def _closed(live: Running, callers: int, seconds: float, path: str = "") -> dict[str, Any]:
    return live.load("--concurrency", callers, "--seconds", seconds, "--warmup", WARMUP_S, path=path)


def _overload(live: Running, callers: dict[str, dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    peak = max(report["throughput_per_s"] for report in callers.values())
    rate = max(1.0, OVERLOAD * peak)
    options = ("--rate", rate, "--deadline-ms", given.deadline_ms, "--seconds", given.seconds, "--warmup", 2)
    return {"peak_per_s": peak, "rate": rate, "deadline_ms": given.deadline_ms, **live.load(*options)}


def machine(*packages: str) -> dict[str, Any]:
    """Cores, processor, versions; also those of ``packages``."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    versions = {"python": platform.python_version(), **{name: _version(name) for name in (*PACKAGES, *packages)}}
    return {
        "cores": os.cpu_count(),
        "processor": processor or platform.machine(),
        "versions": {name: told for name, told in versions.items() if told},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _settings() -> dict[str, str]:
    """What NAM_* says; of a path its last part."""
    return {name: Path(value).name for name, value in os.environ.items() if name.startswith("NAM_")}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS), metavar="NAME")
    add("--servers", nargs="+", choices=list(known()), default=["nam"], metavar="NAME", help=", ".join(known()))
    add("--concurrency", nargs="+", type=int, default=[1, 8, 32, 64], metavar="CALLERS")
    add("--rounds", type=int, default=7)
    add("--seconds", type=float, default=3.0, help="of a figure")
    add("--deadline-ms", type=int, default=1000, help="of the overload's requests")
    add("--overload", action=argparse.BooleanOptionalAction, default=True)
    add("--mixed", action="store_true", help="JPEGs of four sizes instead of the network's own")
    add("--name", default="http", help="of the file in tests/bench/results")
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    servers = [known()[name] for name in given.servers]
    words = {name: value for name, value in vars(given).items() if name != "name"}
    result = {"machine": machine(), "settings": _settings(), "arguments": words, "scenarios": {}}
    out = ROOT / "tests" / "bench" / "results" / f"{given.name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in given.scenarios:
        result["scenarios"][name] = scenario(name, servers, given)
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
