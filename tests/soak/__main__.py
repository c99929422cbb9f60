"""Mixed traffic for half an hour, a third of it hostile, every answer checked: nothing is lost, swapped, or grows.

    python -m tests.soak [--minutes 30] [--callers 64] [--out tests/bench/results/soak.json]

Starts ``nam serve`` with the settings of NAM_*. A tenth of the callers' turns end by leaving, in the middle of what
they send or are answered. Prints a table, writes the same as JSON; the exit code is 0 where all is as it must be.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.chaos.service import Service, running
from tests.soak.client import Caller, Lost, Reply, Request
from tests.soak.traffic import Shot, Traffic, learn
from tests.soak.watch import Watch

HOSTILE, LEAVING = 1 / 3, 1 / 10  # of all turns; who leaves counts as hostile
WARM_UP = 1 / 3  # of the time, which the slopes leave out
SAMPLE_S = 2.0
ENOUGH = 100_000 / 1800  # requests a second


class Soak:
    """``seen``: by kind and status; ``wrong``: what must not be, with an example of each."""

    def __init__(self, port: int, traffic: Traffic, seconds: float) -> None:
        self._port, self._traffic, self._until = port, traffic, time.monotonic() + seconds
        self._chance = random.Random(1)  # noqa: S311 - the same every time
        self.seen: Counter[tuple[str, int]] = Counter()
        self.wrong: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    async def caller(self) -> None:
        caller = Caller(self._port)
        while time.monotonic() < self._until:
            dice = self._chance.random()
            if dice < LEAVING:
                await self._leave(caller)
            else:
                await self._ask(caller, self._traffic.hostile() if dice < HOSTILE else self._traffic.good())
        caller.leave()

    async def _leave(self, caller: Caller) -> None:
        request, share = self._traffic.leaver(), self._chance.random()
        try:
            if self._chance.random() < 0.5:
                await caller.leave_while_sending(request, share)
            else:
                await caller.leave_while_answered(request, 0.2 * share)
        except OSError as error:
            self._note("no connection", repr(error))
        self.seen["left", 0] += 1

    async def _ask(self, caller: Caller, shot: Shot) -> None:
        try:
            reply = await caller.ask(shot.request)
        except Lost as error:
            self._note(f"lost: {shot.name}", str(error))
            return
        self.seen[shot.name, reply.status] += 1
        if reply.status in (503, 504) and not shot.patient:
            return
        if reply.status >= 500 or (reply.status != 200 and shot.name not in ("corpus", "bad request")):
            self._note(f"{reply.status}: {shot.name}", reply.body.decode(errors="replace")[:300])
        elif problem := _checked(shot, reply):
            self._note(f"wrong answer: {shot.name}", problem)

    def _note(self, kind: str, example: str) -> None:
        self.wrong[kind] += 1
        self.examples.setdefault(kind, example)


def _checked(shot: Shot, reply: Reply) -> str:
    try:
        return shot.check(reply)
    except Exception as error:
        return f"{error!r} of {reply.status} {reply.body[:200]!r}"


async def soak(service: Service, given: argparse.Namespace) -> dict[str, Any]:
    caller = Caller(service.port)
    card = json.loads((await caller.ask(Request("GET", "/model"))).body)
    known = await learn(caller, card["classes"])
    caller.leave()
    run = Soak(service.port, Traffic(known, card["name"]), 60 * given.minutes)
    watch = Watch(service.process.pid, service.port)
    began, looking = time.monotonic(), asyncio.create_task(watch.run(SAMPLE_S))
    async with asyncio.TaskGroup() as group:
        for _ in range(given.callers):
            group.create_task(run.caller())
    looking.cancel()
    return report(run, watch, time.monotonic() - began, card)


def report(run: Soak, watch: Watch, seconds: float, card: dict[str, Any]) -> dict[str, Any]:
    slopes = watch.slopes(WARM_UP)
    requests = sum(run.seen.values())
    told = {name: asdict(one) | {"flat": one.flat} for name, one in slopes.items()}
    return {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "nam-serve": version("nam-serve")},
        "engine": {name: card.get(name) for name in ("name", "engine", "device", "dtype")},
        "seconds": round(seconds, 1),
        "requests": requests,
        "requests_a_second": round(requests / seconds, 1),
        "by_kind_and_status": [[*key, count] for key, count in sorted(run.seen.items())],
        "wrong": dict(run.wrong),
        "examples": run.examples,
        "slopes": told,
        "samples": [{name: round(value, 1) for name, value in one.items()} for one in watch.samples[:: _step(watch)]],
        "passed": not run.wrong and all(one.flat for one in slopes.values()) and requests / seconds >= ENOUGH,
    }


def _step(watch: Watch) -> int:
    """So that some sixty are kept."""
    return max(1, len(watch.samples) // 60)


def table(told: dict[str, Any]) -> str:
    """Markdown, for tests/bench/RESULTS.md."""
    kinds = sorted({kind for kind, _, _ in told["by_kind_and_status"]})
    counts = {kind: {status: n for one, status, n in told["by_kind_and_status"] if one == kind} for kind in kinds}
    minutes, pace = told["seconds"] / 60, told["requests_a_second"]
    lines = [f"{told['requests']:,} requests in {minutes:.1f} minutes, {pace} a second."]
    lines += ["", "| what was asked | answers by status |", "|---|---|"]
    statuses = {kind: ", ".join(f"{status or 'none'}: {n:,}" for status, n in counts[kind].items()) for kind in kinds}
    lines += [f"| {kind} | {statuses[kind]} |" for kind in kinds]
    lines += ["", "| what is held | mean | growth in an hour | standard error | zero within noise |"]
    lines += ["|---|---|---|---|---|", *(_row(name, one) for name, one in told["slopes"].items())]
    wrong = ", ".join(f"{kind}: {n} ({told['examples'][kind]})" for kind, n in told["wrong"].items())
    return "\n".join([*lines, "", f"Lost, swapped, or answered as they must not be: {wrong or 'none'}."])


def _row(name: str, one: dict[str, Any]) -> str:
    flat = "yes" if one["flat"] else "no"
    return f"| {name} | {one['mean']:.1f} | {one['an_hour']:+.2f} | {one['error']:.2f} | {flat} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("tests/bench/results/soak.json"))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without ending the service
    settings = {"NAM_LOG_LEVEL": "warning"}
    settings |= {name: value for name, value in os.environ.items() if name.startswith("NAM_")}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), **settings) as service:
        told = asyncio.run(soak(service, given))
        told["exit_code"] = service.end(30)
    told["passed"] = told["passed"] and told["exit_code"] == 0
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(told, indent=1) + "\n")
    print(table(told))
    return 0 if told["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
