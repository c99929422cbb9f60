"""How uvicorn is run: on SIGTERM or SIGINT the port stays open while accepted requests finish, then exit 0.

uvicorn would close its listener first and end by the signal. Here the first signal turns /readyz red and refuses new
work with 503; the process ends when nothing is under way or the grace is over; a second signal ends the grace.
"""

import logging
import socket
import time
from types import FrameType

import uvicorn

from app.board import Load
from app.main import create_app
from app.protocol import Protocol
from app.services import OpenLanes
from app.settings import Settings

logger = logging.getLogger("nam.server")


class DrainingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, load: Load, drain_s: float) -> None:
        super().__init__(config)
        self._load = load
        self._drain_s = drain_s
        self._drained_by = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._load.draining:
            self._drained_by = 0.0
            return
        logger.info("draining: %d requests under way", self._load.requests)
        self._load.draining = True
        self._drained_by = time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second by uvicorn; true ends the process."""
        if self._load.draining and (not self._load.requests or time.monotonic() > self._drained_by):
            self.should_exit = True
        return await super().on_tick(counter)


def serve(
    settings: Settings, open_lanes: OpenLanes, load: Load | None = None, listener: socket.socket | None = None
) -> None:
    """Serve until a signal, on ``listener`` where it is given. Raises SystemExit where the service cannot start."""
    load = load or Load()
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
