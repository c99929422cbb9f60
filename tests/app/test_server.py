"""The end of a process, piece by piece; tests/chaos/test_drain.py has the whole of it."""

import asyncio
import errno
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import uvicorn

from app.board import Load
from app.server import DrainingServer, _drop_newcomers

# Its heap, once one large block was freed, after others came and went, a small one behind each that stays.
_SERVED = """
import os
from app import server
from app.processes import usage
from app.settings import Settings

def use_memory(*_):
    before = usage(os.getpid()).resident_bytes
    bytes(30 * 2**20)
    kept = []
    for size in range(2**20, 3 * 2**20, 2**14):
        blocks = [bytes(size) for _ in range(10)]
        kept.append(blocks[0][:1000])
        del blocks
    print(usage(os.getpid()).resident_bytes - before)
    raise SystemExit(0)

server.create_app = use_memory
server.serve(Settings(), None)
"""


def test_where_no_file_is_left_the_listener_closes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", full)
    server = DrainingServer(uvicorn.Config("app.main:none"), Load(), 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.servers = [SimpleNamespace(sockets=[listener], close=listener.close)]
        server._bar_newcomers()
        asyncio.run(server._close())
        assert listener.fileno() == -1


def test_who_has_begun_to_connect_is_let_in_and_nobody_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)  # half a handshake until something is sent
        listener.settimeout(10)
        with socket.create_connection(listener.getsockname()) as caller:
            _drop_newcomers(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(listener.getsockname(), timeout=0.2)
            caller.sendall(b"request")
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(10)
                assert accepted.recv(7) == b"request"


@pytest.mark.parametrize(("connections", "ticks"), [(0, 2), (1, 12)])
def test_an_open_connection_is_waited_for_though_the_process_was_held_up(connections: int, ticks: int) -> None:
    """By the number of looks at it, whatever the clock says; and nobody waits for connections that are not there."""
    server = DrainingServer(uvicorn.Config("app.main:none"), Load(), 1.0)
    server.servers = []
    server.server_state.connections = {object() for _ in range(connections)}  # type: ignore[arg-type]

    async def looks() -> int:
        for count in range(1, 100):
            await server._drain()
            if server.should_exit:
                return count
        return 0

    assert asyncio.run(looks()) == ticks


def test_what_large_blocks_took_goes_back() -> None:
    """30 MB stayed where glibc was left to itself."""
    told = subprocess.run([sys.executable, "-c", _SERVED], capture_output=True, text=True, check=True, timeout=120)
    assert int(told.stdout) < 4 * 2**20
