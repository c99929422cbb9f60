"""How uvicorn is run: on SIGTERM or SIGINT the port stays open while accepted requests finish, then exit 0.

uvicorn would close its listener first and end by the signal. Here the first signal turns /readyz red and refuses new
work with 503; from then on every answer is the last one of its connection. When nothing is under way any more, or the
grace is over, the listener closes; who then sends on an open connection, having heard of nothing, is still answered for
a moment. That moment is told in ticks, between which what has come is read: a process that was held up ends no sooner.
A second signal ends the grace.

A batcher that takes no work although nobody drains it has failed, or has lost its device: /readyz is red, what is under
way is answered, and the process ends with FAILED, for whatever supervises it to start it again.
"""

import asyncio
import ctypes
import logging
import math
import os
import resource
import socket
import struct
import time
from contextlib import suppress
from types import FrameType

import uvicorn

from app.board import Load
from app.main import create_app
from app.protocol import Protocol
from app.services import OpenLanes, Services
from app.settings import Settings

logger = logging.getLogger("nam.server")


# The exit code: the engine failed under way. sysexits.h calls it EX_SOFTWARE.
FAILED = 70
# How many ticks, of 0.1 s at least, connections are answered from the one on that lets nobody begin to connect; their
# callers may have sent already.
_LAST_TICKS = 12
# Blocks from this size on go back to the system when they are freed; mallopt(3).
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 2**17
# File descriptors besides those of connections: a lane's, a log's; and one for every large part of a form.
_OTHER_FILES, _PART_BYTES = 64, 2**20
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# BPF: load the flags, byte 13 of the segment; is SYN among them? drop it; else pass it whole.
_NO_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


class DrainingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, load: Load, drain_s: float) -> None:
        super().__init__(config)
        self._load = load
        self._drain_s = drain_s
        self._drained_by = math.inf
        self._last_ticks = 0
        self.failed = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._load.draining:
            self._drained_by = 0.0
            return
        logger.info("draining: %d requests under way", self._load.requests)
        self._load.draining = True
        self._drained_by = time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second by uvicorn; true ends the process."""
        if self._load.draining or self._has_failed():
            await self._drain()
        return await super().on_tick(counter)

    def _has_failed(self) -> bool:
        services: Services = self.lifespan.state["services"]
        if not self.failed and not services.batcher.healthy:
            logger.critical("the engine failed: this process ends with code %d", FAILED)
            self.failed = True
            self._drained_by = time.monotonic() + self._drain_s
        return self.failed

    async def _drain(self) -> None:
        for connection in self.server_state.connections:
            if isinstance(connection, Protocol) and connection.cycle is not None:
                connection.cycle.keep_alive = False
        if not self._last_ticks and self._load.requests and time.monotonic() <= self._drained_by:
            return
        self._last_ticks += 1
        if self._last_ticks == 1:
            self._bar_newcomers()
        elif self._last_ticks == 2:
            await self._close()
        if self._last_ticks > 1 and (self._last_ticks >= _LAST_TICKS or not self.server_state.connections):
            self.should_exit = True

    def _bar_newcomers(self) -> None:
        """A tick before the listeners close: who has begun to connect is through by then."""
        for listener in self._listeners():
            with listener:
                _drop_newcomers(listener)

    async def _close(self) -> None:
        """Without those who wait to be accepted, the kernel would reset their connections."""
        listeners = self._listeners()
        for server in self.servers:
            server.close()
        for listener in listeners:
            with listener, suppress(OSError):  # none waits any more, or none can be taken
                listener.setblocking(False)
                while True:
                    connection, _ = listener.accept()
                    await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _listeners(self) -> list[socket.socket]:
        """Of our own, which close without the servers; none where no file is left: nobody more can be accepted."""
        with suppress(OSError):
            return [socket.socket(fileno=os.dup(one.fileno())) for server in self.servers for one in server.sockets]
        return []

    def _protocol(self) -> Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)


def serve(
    settings: Settings, open_lanes: OpenLanes, load: Load | None = None, listener: socket.socket | None = None
) -> None:
    """Serve until a signal, on ``listener`` where it is given. Raises SystemExit where the service cannot start, and
    where it failed under way."""
    _give_memory_back()
    load, settings = load or Load(), _within_files(settings)
    config = uvicorn.Config(
        create_app(settings, open_lanes, load),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=1,  # the grace is over by then
    )
    server = DrainingServer(config, load, settings.drain_ms / 1000)
    server.run(sockets=None if listener is None else [listener])
    if server.failed:
        raise SystemExit(FAILED)


def _give_memory_back() -> None:
    """glibc, once a large block is freed, puts those as large, up to 32 MB, into a heap that seldom shrinks: bodies and
    answers of all sizes would leave it full of holes. A size that is told stays. Other allocators have no such call."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _drop_newcomers(listener: socket.socket) -> None:
    """No handshake begins any more, so that nobody comes between the last who is accepted and the end: who tries is
    refused at the next try. Handshakes that have begun go on, which may have sent a request behind them. As Linux has
    it, a filter of segments; elsewhere it is refused."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in _NO_SYN))
    with suppress(OSError):
        filter_ = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


def _within_files(settings: Settings) -> Settings:
    """With as many connections as this process may have files, whose number is raised first where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = _OTHER_FILES + settings.max_inflight_bytes // _PART_BYTES
    wanted = settings.max_connections + others
    files = max(soft, min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if files >= wanted:
        return settings
    most = max(files - others, files // 2)
    logger.warning("%d connections at most: this process may have only %d files open", most, files)
    return settings.model_copy(update={"max_connections": most})
