"""``nam serve --workers N``: N processes that speak HTTP, one that runs the engine, this one, which keeps them alive.

    supervisor --- engine (row 0 of the board): the one queue, the lanes
              \\--- http 1 ... http N: each its own listener on the same port; the kernel deals connections out

What the processes of a service share lies in a folder of its own: the engine's socket, the board of what admission
counts, and the files that metrics are counted into. A process that loses its supervisor ends.

An HTTP process that dies is started anew; without the engine there is no service: the supervisor ends with code 1, or
with the engine's own, server.FAILED, where it has ended itself.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType

import uvloop
from prometheus_client.multiprocess import mark_process_dead

from app import logs
from app.board import Load, make_board
from app.engine import EngineError
from app.lane_process import open_run
from app.metrics import Metrics
from app.remote import EngineServer, RemoteBatcher
from app.server import FAILED, serve
from app.services import Described, Lanes, OpenLanes, lanes_here
from app.settings import Settings

logger = logging.getLogger("nam.workers")

TICK_S = 0.05
PAUSE_S = 1.0  # before a process that has died is started again


def supervise(settings: Settings) -> int:
    """Serve until a signal; the exit code. 2: the engine could not start, and has said why."""
    with tempfile.TemporaryDirectory(prefix="nam-") as folder, _reserved(settings) as port:
        return _Supervisor(settings, Path(folder), port).run()


class _Supervisor:
    def __init__(self, settings: Settings, folder: Path, port: int) -> None:
        self._folder, self._count, self._stopping = folder, settings.workers, False
        (folder / "metrics").mkdir()
        make_board(folder / "board", 1 + self._count)
        self._settings = settings
        self._of_all = {"NAM_PORT": str(port), "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}
        self._http: dict[int, subprocess.Popen[bytes]] = {}

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        engine = self._start("engine", 0)
        try:
            if code := self._await_engine(engine):
                return code
            for row in range(1, 1 + self._count):
                self._start_http(row)
            while self._http and engine.poll() is None:
                time.sleep(TICK_S)
                self._look_after()
            if engine.poll() is None:
                return 0 if self._stopping else 1
            return FAILED if engine.returncode == FAILED else 1
        finally:
            for process in (*self._http.values(), engine):
                process.terminate()
            for process in (*self._http.values(), engine):
                process.wait()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """The HTTP processes drain; a second signal ends their grace."""
        self._stopping = True
        for process in self._http.values():
            process.terminate()

    def _await_engine(self, engine: subprocess.Popen[bytes]) -> int:
        while not (self._folder / "engine").exists():
            if self._stopping or engine.poll() is not None:
                return engine.returncode or 0
            time.sleep(TICK_S)
        return 0

    def _look_after(self) -> None:
        for row, process in list(self._http.items()):
            if process.poll() is None:
                continue
            del self._http[row]
            mark_process_dead(process.pid, str(self._folder / "metrics"))  # type: ignore[no-untyped-call]
            if not self._stopping:
                logger.error("http %d ended with code %s and is started again", row, process.returncode)
                time.sleep(PAUSE_S)
                self._start_http(row)

    def _start_http(self, row: int) -> None:
        self._http[row] = self._start("http", row)
        if self._stopping:  # the signal came between: it has ended the others, and would never end this one
            self._http[row].terminate()

    def _start(self, part: str, row: int) -> subprocess.Popen[bytes]:
        """In a session of its own, so that Ctrl-C reaches the supervisor alone; its stdin ends with the supervisor."""
        command = [sys.executable, "-m", "app.workers", part, str(row), str(self._folder)]
        environment = self._settings.environment(keys=part == "http") | self._of_all
        return subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, env=environment, start_new_session=True
        )


class _reserved:
    """The port, held without listening, so that the processes of the service alone can share it."""

    def __init__(self, settings: Settings) -> None:
        self._socket = listener(settings)

    def __enter__(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def listener(settings: Settings) -> socket.socket:
    """Bound, not listening yet, to a port that other processes of this user may share. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(address)
    return bound


def lanes_there(folder: Path) -> OpenLanes:
    """The engine's process, over its socket."""

    @asynccontextmanager
    async def open_lanes(settings: Settings, metrics: Metrics, load: Load) -> AsyncIterator[tuple[Described, Lanes]]:
        _end_with_supervisor()
        batcher = await RemoteBatcher.connect(folder / "engine")
        try:
            yield batcher, batcher
        finally:
            batcher.close()

    return open_lanes


def _end_with_supervisor() -> None:
    """SIGTERM where the other end of stdin closes: the supervisor is gone, however it went."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(sys.stdin)
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(sys.stdin, end)


async def _run_engine(settings: Settings, folder: Path) -> int:
    """Answers HTTP processes until SIGTERM, or until the supervisor is gone; FAILED where the batcher fails first."""
    load = Load(folder / "board", 0)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    _end_with_supervisor()
    async with lanes_here(open_run)(settings, Metrics(load), load) as (engine, batcher):
        # Under another name until it listens: where it is, it answers.
        server = await loop.create_unix_server(lambda: EngineServer(batcher, engine.card), folder / "engine.new")
        os.rename(folder / "engine.new", folder / "engine")
        while batcher.healthy and not over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), TICK_S)
        server.close()
        return 0 if over.is_set() else FAILED


def _run_http(settings: Settings, folder: Path, row: int) -> None:
    serve(settings, lanes_there(folder), Load(folder / "board", row), listener(settings))


def main() -> int:
    """One process of a service, as its supervisor starts it: ``python -m app.workers engine|http ROW FOLDER``."""
    part, row, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format)
    try:
        if part == "engine":
            return uvloop.run(_run_engine(settings, folder))
        _run_http(settings, folder, row)
    except EngineError as error:
        print(f"nam: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
