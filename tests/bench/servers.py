"""The servers that are measured: each a real process on a free port, started for its turn and killed after it, so that
an idle one costs the others nothing; and the load on them, ``nam bench`` in a process of its own."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.bench_command import ProcessTree
from tests.bench.scenarios import ROOT

NAM = Path(sys.executable).parent / "nam"
PATIENCE_S = 180.0  # for the first answer
LEAVING_S = 15.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Server:
    """How one is started and asked. ``command``: from a port and a weights file."""

    name: str
    command: Callable[[int, str], list[str]]
    path: str = "/predict"
    content_type: str = "image/jpeg"


@dataclass
class Running:
    """One that answers. ``ready_s``: from its start to its first answer."""

    server: Server
    process: subprocess.Popen[bytes]
    url: str
    jpegs: list[Path]
    folder: Path
    ready_s: float

    def load(self, *options: object, path: str = "") -> dict[str, Any]:
        """The report of one ``nam bench``."""
        out = self.folder / "load.json"
        words = {
            "--url": self.url,
            "--path": path or self.server.path,
            "--content-type": self.server.content_type,
            "--pid": self.process.pid,
            "--json": out,
        }
        flags = [str(word) for pair in words.items() for word in pair]
        done = subprocess.run(
            [NAM, "bench", *flags, *map(str, options), "--image", *self.jpegs], capture_output=True, text=True
        )
        if done.returncode not in (0, 1):  # 1: nothing but refusals and errors, which the report names
            raise RuntimeError(f"{self.server.name}: {done.stderr.strip()}")
        report: dict[str, Any] = json.loads(out.read_text())["runs"][0]
        return report


def known() -> dict[str, Server]:
    """Ours, and the peers where there are any."""
    servers = {
        "nam": Server("nam", lambda port, weights: [str(NAM), "serve", "--port", str(port), "--weights", weights])
    }
    if (ROOT / "tests/bench/peers/table.py").exists():
        from tests.bench.peers.table import PEERS

        servers |= {name: Server(name, peer.command, peer.path, peer.content_type) for name, peer in PEERS.items()}
    return servers


@contextmanager
def running(server: Server, weights: Path, jpegs: list[Path], folder: Path) -> Iterator[Running]:
    """The server from its first answer on; its whole session is gone afterwards."""
    port, started = _free_port(), time.monotonic()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            server.command(port, str(weights)),
            stdout=log,
            stderr=log,
            env={"NAM_LOG_LEVEL": "warning", **os.environ},
            cwd=folder,
            start_new_session=True,
        )
    try:
        _await_answer(server, process, port, jpegs[0], folder / "server.log")
        ready_s = time.monotonic() - started
        yield Running(server, process, f"http://127.0.0.1:{port}", jpegs, folder, ready_s)
    finally:
        _stop(process)


def _await_answer(server: Server, process: subprocess.Popen[bytes], port: int, jpeg: Path, log: Path) -> None:
    """Until a photo is answered with 200: before that a port may be closed, or say 404 or 503."""
    deadline = time.monotonic() + PATIENCE_S
    while _status(server, port, jpeg) != 200:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{server.name} did not start: {log.read_text()[-4000:]}")
        time.sleep(0.02)


def _status(server: Server, port: int, jpeg: Path) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("POST", server.path, jpeg.read_bytes(), {"Content-Type": server.content_type})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the group, then SIGKILL to whatever is left of its session and descendants."""
    members: list[int] = []
    with suppress(ProcessLookupError):
        members = ProcessTree(process.pid).pids()
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + LEAVING_S
    while (process.poll() is None or any(map(_lives, members))) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in filter(_lives, members):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _lives(pid: int) -> bool:
    """Whether there is such a process, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] not in ("Z", "X")
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
