"""A process of ours that answers questions over a socket, as its parent sees it. The other end is a module's ``main``
with a :class:`~app.messages.Stream`."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from app.messages import Messages, Part, message

Message = tuple[dict[str, Any], memoryview]

_END_S = 1.0  # what a process gets to end by itself once its socket is closed


class ChildProcess:
    """Started in the constructor, which raises OSError: ``python -m module SOCKET arguments...``. One question at a
    time."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._connection: _Connection | None = None
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None and (self._connection is None or not self._connection.lost)

    async def ask(self, head: dict[str, Any], parts: Sequence[Part] = ()) -> Message:
        """Raises ConnectionError where the process is gone, or goes. Given up, it cannot be asked again."""
        connection = await self._connected()
        connection.send(head, parts)
        return await connection.take()

    async def hear(self) -> Message:
        """What it says unasked, as :meth:`ask`."""
        return await (await self._connected()).take()

    async def _connected(self) -> "_Connection":
        if self._connection is None:
            loop = asyncio.get_running_loop()
            _, self._connection = await loop.create_unix_connection(_Connection, sock=self._socket)
        return self._connection

    def close(self) -> None:
        """It is to end. On the event loop, where it was asked anything."""
        if self._connection is not None:
            self._connection.close()
            return
        with suppress(OSError):  # it is gone
            self._socket.shutdown(socket.SHUT_RDWR)  # which wakes who reads from it; closing alone would not
        self._socket.close()

    def kill(self) -> None:
        """However stuck it is."""
        self._process.kill()
        self.close()

    def wait(self) -> str:
        """How it ended, in words; it is killed where it does not."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._messages = Messages()
        self._told: asyncio.Queue[Message | None] = asyncio.Queue()  # None: there is no more
        self._transport: asyncio.WriteTransport | None = None
        self.lost = False

    def send(self, head: dict[str, Any], parts: Sequence[Part]) -> None:
        if self._transport is None or self.lost:
            raise ConnectionResetError
        self._transport.writelines(message(head, parts))

    async def take(self) -> Message:
        try:
            told = await self._told.get()
        except asyncio.CancelledError:  # its answer will still come, and must not be taken for the next one's
            self.close()
            raise
        if told is None:
            self._told.put_nowait(None)
            raise ConnectionResetError
        return told

    def close(self) -> None:
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for told in self._messages.feed(data):
            self._told.put_nowait(told)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost, self._transport = True, None
        self._told.put_nowait(None)
