"""A caller of HTTP/1.1 that can also leave: in the middle of what it sends, and of what it is answered."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

PATIENCE_S = 60.0
PIECE = 2**16


class Lost(Exception):
    """No whole answer came to what was sent whole."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def bytes(self) -> bytes:
        told = [("Host", "soak"), *self.headers, *([("Content-Length", str(len(self.body)))] if self.body else [])]
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in told), "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


class Caller:
    """One connection, made again where it has ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: Request | bytes) -> Reply:
        """Raises Lost."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await self._connected()
                sending = asyncio.create_task(_send(writer, request if isinstance(request, bytes) else request.bytes()))
                try:
                    reply = await _reply(reader)
                finally:
                    await _stop(sending)
        except (OSError, EOFError, TimeoutError) as error:
            self.leave()
            raise Lost(repr(error)) from error
        if reply.headers.get("connection") == "close" or sending.cancelled() or sending.exception() is not None:
            self.leave()
        return reply

    async def leave_while_sending(self, request: Request, share: float) -> None:
        _, writer = await self._connected()
        whole = request.bytes()
        writer.write(whole[: int(share * len(whole))])
        await asyncio.sleep(0)
        self.leave()

    async def leave_while_answered(self, request: Request, seconds: float) -> None:
        reader, writer = await self._connected()
        writer.write(request.bytes())
        try:
            async with asyncio.timeout(seconds):
                await reader.read(100)
        except (TimeoutError, OSError):
            pass
        self.leave()

    def leave(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self.leave()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self._reader, self._writer


async def _send(writer: asyncio.StreamWriter, whole: bytes) -> None:
    for start in range(0, len(whole), PIECE):
        writer.write(whole[start : start + PIECE])
        await writer.drain()


async def _stop(sending: "asyncio.Task[None]") -> None:
    """What was answered before all of it was sent need not be sent; what befell the sending, the answer has told."""
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def _reply(reader: asyncio.StreamReader) -> Reply:
    top, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return Reply(int(top.split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0))))
