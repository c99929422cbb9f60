"""What Ray Serve costs, and what becomes of requests when a replica is killed: the plain process beside one replica and
two behind Ray's proxy, the same weights, JPEGs, callers and cores, in one run.

    python -m tests.bench.ray [--concurrency 1 8 32] [--rounds 4] [--seconds 2] [--kills 0] [--add]

Rounds of turns, as in tests/bench/http.py: a server is started, warmed, loaded and ended, another one first each time.
All have both cores in all, so two replicas show what the proxy costs, not what a second machine brings. ``--kills``: so
often one of two replicas is killed under load; callers send again what failed. ``--add``: to the rounds and kills that
tests/bench/results/ray.json has already. The summary is printed as Markdown.

``python -m tests.bench.ray serve REPLICAS PORT WEIGHTS`` is the server of a turn.
"""

import argparse
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from app.bench_command import ProcessTree
from tests.bench.http import machine, one_round
from tests.bench.scenarios import ROOT, SCENARIOS, jpegs
from tests.bench.servers import Running, Server, known, running
from tests.bench.tables import spread

OUT = ROOT / "tests" / "bench" / "results" / "ray.json"
CORES = os.cpu_count() or 1
FIGURES = ("throughput_per_s", "p50_ms", "p99_ms")
# Told to nobody; and not below the load generator in priority, which no deployment has beside it.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def behind_ray(replicas: int) -> Server:
    def command(port: int, weights: str) -> list[str]:
        words = [f"{name}={value}" for name, value in {"PYTHONPATH": str(ROOT), **ENVIRONMENT}.items()]
        return ["env", *words, sys.executable, "-m", "tests.bench.ray", "serve", str(replicas), str(port), weights]

    return Server(f"ray, {replicas} replica{'s' * (replicas > 1)}", command)


SERVERS = [known()["nam"], behind_ray(1), behind_ray(2)]


def serve(replicas: int, port: int, weights: str) -> None:
    """Until a signal; all cores in equal shares. A script, not ``serve run``: only ``ray.init`` can be told to stay on
    the loopback."""
    import ray
    from ray import serve

    from app.ray_serve import Arguments, build

    folder = Path(tempfile.gettempdir()) / "nam-ray"
    local = {"_node_ip_address": "127.0.0.1", "_temp_dir": str(folder), "include_dashboard": False}
    ray.init(num_cpus=CORES, object_store_memory=100 * 2**20, log_to_driver=False, **local)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(Arguments(replicas=replicas, cpus=CORES / replicas, weights=weights)))
    signal.pause()


def turn(server: Server, weights: Path, photos: list[Path], folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One server's figures by the number of callers."""
    with running(server, weights, photos, folder) as live:
        live.load("--concurrency", 8, "--seconds", 1, "--warmup", 0)
        words = ("--seconds", given.seconds, "--warmup", 0.5)
        return {str(count): live.load("--concurrency", count, *words) for count in given.concurrency}


def kills(weights: Path, photos: list[Path], folder: Path, times: int) -> dict[str, int]:
    """Requests of 8 callers while one of two replicas is killed and comes back, ``times`` times."""
    from tests.e2e.replicas import Callers

    with running(SERVERS[2], weights, photos, folder) as live:
        with Callers(live.url, 8) as callers:
            for _ in range(times):
                _kill_one(live)
        return {"kills": times, "answered": len(callers.models), "again": len(callers.again), "lost": len(callers.lost)}


def _kill_one(live: Running) -> None:
    """After a second, and wait until another one has taken its place, and a second more."""
    time.sleep(1)
    before = _replicas(live)
    os.kill(before[0], signal.SIGKILL)
    while before[0] in (now := _replicas(live)) or len(now) < len(before):
        time.sleep(0.1)
    time.sleep(1)


def _replicas(live: Running) -> list[int]:
    """As Ray names the processes of actors."""
    lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in ProcessTree(live.process.pid).pids()}
    return sorted(pid for pid, line in lines.items() if line.exists() and b"ray::ServeReplica" in line.read_bytes())


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """[median, least, most] of each figure; within a round, images/s over the plain process's, and p50 beyond its."""
    return {name: {count: _spreads(rounds, name, count) for count in counts} for name, counts in rounds[0].items()}


def _spreads(rounds: list[dict[str, Any]], name: str, count: str) -> dict[str, Any]:
    pairs = [(r[name][count], r["nam"][count]) for r in rounds]
    found = {figure: spread(ours[figure] for ours, _ in pairs) for figure in FIGURES}
    found["of_nam"] = spread(ours["throughput_per_s"] / plain["throughput_per_s"] for ours, plain in pairs)
    found["p50_added_ms"] = spread(ours["p50_ms"] - plain["p50_ms"] for ours, plain in pairs)
    return found


def markdown(told: dict[str, Any]) -> str:
    columns = {"throughput_per_s": 1, "of_nam": 3, "p50_ms": 2, "p50_added_ms": 2, "p99_ms": 1}
    lines = [
        "| server | callers | images/s | of the plain process | p50, ms | beyond its | p99, ms |",
        "|---" * 7 + "|",
    ]
    for name, counts in told["summary"].items():
        for count, row in counts.items():
            cells = ["{0:.{3}f} ({1:.{3}f}..{2:.{3}f})".format(*row[key], digits) for key, digits in columns.items()]
            lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{len(told['rounds'])} rounds; {json.dumps(told['kills'])}"])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Written down after every round."""
    told: dict[str, Any] = json.loads(OUT.read_text()) if given.add else {"rounds": [], "kills": {}}
    told["machine"], chosen = machine("ray"), SCENARIOS["default"]
    with tempfile.TemporaryDirectory() as scratch:
        folder, weights = Path(scratch), chosen.weights()
        photos = jpegs(chosen.size, folder)
        turns = {one.name: partial(turn, one, weights, photos, folder, given) for one in SERVERS}
        for _ in range(given.rounds):
            told["rounds"].append(one_round(len(told["rounds"]), "ray", turns))
            OUT.write_text(json.dumps(told, indent=1) + "\n")
        if given.kills:
            killed = kills(weights, photos, folder, given.kills)
            told["kills"] = {name: told["kills"].get(name, 0) + count for name, count in killed.items()}
    return {**told, "summary": summary(told["rounds"])}


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a figure")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--add", action="store_true")
    told = measure(parser.parse_args())
    OUT.write_text(json.dumps(told, indent=1) + "\n")
    print(markdown(told))


if __name__ == "__main__":
    main()
