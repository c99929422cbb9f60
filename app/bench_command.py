"""The command ``nam bench``: load on a server that runs already, ours or another, and what it bore."""

import argparse
import io
import json
import random
import statistics
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.flags import command, positive
from app.load import Plan, run
from app.load_report import Report
from app.processes import cpu_s, descent, stats

# Sides of the JPEGs made here: a thumbnail, a picture of a data set, a small photo.
_SIZES = ((320, 240), (500, 375), (1024, 768))

_ROWS = (
    ("requests", "requests", "{:,.0f}"),
    ("2xx, 1/s", "throughput_per_s", "{:,.1f}"),
    ("2xx in time, 1/s", "goodput_per_s", "{:,.1f}"),
    ("p50, ms", "p50_ms", "{:,.2f}"),
    ("p90, ms", "p90_ms", "{:,.2f}"),
    ("p99, ms", "p99_ms", "{:,.2f}"),
    ("p99.9, ms", "p999_ms", "{:,.2f}"),
    ("longest, ms", "max_ms", "{:,.2f}"),
    ("refused (503)", "refused", "{:,.0f}"),
    ("refused p50, ms", "refused_p50_ms", "{:,.2f}"),
    ("refused p99, ms", "refused_p99_ms", "{:,.2f}"),
    ("images a forward", "mean_batch", "{:.2f}"),
    ("bytes sent, a request", "sent_bytes", "{:,.0f}"),
    ("bytes received, a request", "received_bytes", "{:,.0f}"),
    ("client CPU, ms a request", "client_cpu_ms", "{:.3f}"),
    ("server CPU, ms an image", "server_cpu_ms", "{:.2f}"),
    ("server PSS, MiB", "server_pss_mb", "{:,.0f}"),
)


def add_bench_command(commands: Any) -> None:
    """Declare it."""
    added = command(commands, bench, "put load on a running server and say what it bore")
    add = added.add_argument
    add("--url", required=True, help="where the server is, as http://127.0.0.1:8000")
    add("--path", default="/predict", help="what is asked there; with a query, as /attention?maps=none")
    loop = added.add_mutually_exclusive_group()
    loop.add_argument("--concurrency", type=positive, default=32, help="callers, each waiting for its answer")
    loop.add_argument("--rate", type=float, default=0.0, help="arrivals a second instead, whether answers come or not")
    add("--seconds", type=float, default=10.0, help="how long")
    add("--requests", type=int, default=0, help="end after so many, if that is sooner")
    add("--warmup", type=float, default=1.0, help="seconds before that, which do not count")
    add("--repeat", type=positive, default=1, help="how often; then medians are told, with least and most")
    add("--deadline-ms", type=int, default=0, help="sent as X-Timeout-Ms; what comes later is not in time")
    add("--image", type=Path, nargs="+", default=[], metavar="FILE", help="sent in turn; else JPEGs made here")
    add("--content-type", default="image/jpeg", help="of the images")
    add("--key", default="", help="sent as a bearer token")
    add("--pid", type=positive, help="the server's process on this machine: its CPU time and memory are told too")
    add("--json", type=Path, metavar="OUT", help="also write every run to this file")
    add("--max-connections", type=positive, default=1024, help="with --rate; arrivals beyond them wait, and count so")
    add("--seed", type=int, default=0, help="of the arrivals")


def bench(arguments: argparse.Namespace) -> int:
    plan, reports = _plan(arguments), []
    print(_title(plan, arguments), flush=True)
    for i in range(arguments.repeat):
        server = ProcessTree(arguments.pid) if arguments.pid else None
        reports.append(run(replace(plan, seed=plan.seed + i), server))
    result = {"plan": _told(plan), **summary(reports)}
    print(_table(result))
    if arguments.json:
        runs = [report.to_dict() for report in reports]
        arguments.json.write_text(json.dumps({**result, "runs": runs}, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if any(report.p50_ms is not None for report in reports) else 1


def summary(reports: list[Report]) -> dict[str, Any]:
    """Of every figure the median, the least and the most over the runs that have it; of errors the sum by name."""
    runs = [report.to_dict() for report in reports]
    found = {name: [r[name] for r in runs if r[name] is not None] for _, name, _ in _ROWS}
    errors = {
        name: sum(r["errors"].get(name, 0) for r in runs) for name in sorted({n for r in runs for n in r["errors"]})
    }
    told: dict[str, Any] = {
        word: {name: of(values) if values else None for name, values in found.items()}
        for word, of in (("median", statistics.median), ("min", min), ("max", max))
    }
    return {**told, "errors": errors}


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        url=arguments.url.rstrip("/") + arguments.path,
        bodies=tuple(path.read_bytes() for path in arguments.image) or made_jpegs(),
        content_type=arguments.content_type,
        key=arguments.key,
        concurrency=arguments.concurrency,
        rate=arguments.rate,
        seconds=arguments.seconds,
        requests=arguments.requests,
        warmup_s=arguments.warmup,
        deadline_ms=arguments.deadline_ms,
        max_connections=arguments.max_connections,
        seed=arguments.seed,
    )


def made_jpegs() -> tuple[bytes, ...]:
    """Noise that falls off with frequency as that of photos does, the same every time, so that decoding costs what a
    photo's does: JPEGs of quality 90 in three sizes."""
    from PIL import Image

    dice, made = random.Random(0), []  # noqa: S311 - pictures are no secret
    for size in _SIZES:
        picture = Image.new("RGB", size, "gray")
        for octave in (64, 16, 4, 2):
            small = (size[0] // octave, size[1] // octave)
            noise = Image.frombytes("RGB", small, dice.randbytes(3 * small[0] * small[1]))
            picture = Image.blend(picture, noise.resize(size, Image.Resampling.BICUBIC), 0.35 if octave > 2 else 0.15)
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return tuple(made)


def _title(plan: Plan, arguments: argparse.Namespace) -> str:
    load = f"{plan.rate:g} arrivals a second" if plan.rate else f"{plan.concurrency} callers"
    sizes = ", ".join(f"{len(body) / 1000:.0f}" for body in plan.bodies)
    whose = "" if arguments.image else " made here (--image sends yours)"
    deadline = f", {plan.deadline_ms} ms each" if plan.deadline_ms else ""
    images = f"{len(plan.bodies)} images of {sizes} kB{whose}"
    return f"POST {plan.url}: {load}{deadline}, {plan.seconds:g} s x {arguments.repeat}, {images}"


def _told(plan: Plan) -> dict[str, Any]:
    """The plan without its secret and its bytes."""
    fields = {name: value for name, value in vars(plan).items() if name not in ("bodies", "key")}
    return {**fields, "body_bytes": [len(body) for body in plan.bodies]}


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'':26}{'median':>12}{'least':>12}{'most':>12}"]
    for title, name, form in _ROWS:
        values = [result[word][name] for word in ("median", "min", "max")]
        if values[0] is not None:
            lines.append(f"{title:26}" + "".join(f"{form.format(value):>12}" for value in values))
    lines += [f"error: {name}: {count:,}" for name, count in result["errors"].items()]
    return "\n".join(lines)


class ProcessTree:
    """A process, its descendants, and what else is of the session that it may lead, as Linux's /proc shows them: their
    CPU time, and the peak of their memory.

    Memory is looked at once a second by a thread of its own, beside the load: a look at gigabytes takes milliseconds.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_mb = 0.0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._members()

    def cpu_s(self) -> float:
        """User and system time so far, with that of children which ended and were waited for."""
        return cpu_s(self._members())

    def pss_mb(self) -> float:
        """Memory in MiB now; of a page that n processes share each has an n-th."""
        return sum(map(_pss_kb, self._members())) / 1024

    def pids(self) -> list[int]:
        return list(self._members())

    def watch(self) -> None:
        """Raises PermissionError for somebody else's process."""
        self._peak_mb = self.pss_mb()
        self._watcher.start()

    def peak_mb(self) -> float:
        self._ended.set()
        self._watcher.join()
        return max(self._peak_mb, self.pss_mb())

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            with suppress(ProcessLookupError):  # whoever asks next is told
                self._peak_mb = max(self._peak_mb, self.pss_mb())

    def _members(self) -> dict[int, list[str]]:
        """By process what its ``stat`` has after its name. Raises ProcessLookupError where the first is gone."""
        every = stats()
        if not (members := descent(self._pid, every)):
            raise ProcessLookupError(f"there is no process {self._pid} in /proc")
        return {pid: fields for pid, fields in every.items() if fields[3:4] == [str(self._pid)]} | members


def _pss_kb(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return 0
    _, _, rest = rollup.partition("\nPss:")
    return int(rest.split()[0]) if rest else 0
