"""The end of a process, piece by piece; tests/chaos/test_drain.py has the whole of it."""

import asyncio
import errno
import os
import socket
from types import SimpleNamespace

import pytest
import uvicorn

from app.board import Load
from app.server import DrainingServer


def test_where_no_file_is_left_the_listener_closes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", full)
    server = DrainingServer(uvicorn.Config("app.main:none"), Load(), 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(server._close(SimpleNamespace(sockets=[listener], close=listener.close)))
        assert listener.fileno() == -1
