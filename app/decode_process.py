"""A decoder: a process that makes pictures of encoded images, one at a time, and may die of one of them.

``python -m app.decode_process SOCKET OPTIONS``; its parent is :mod:`app.decoders`. What a decoder in C does to it, it
does to nobody else: it has no key and no engine, a bound on its memory and on the time of an image, and of all
processes of a machine that is out of memory it is the one to go.
"""

import logging
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from app import logs
from app.errors import BadImage, InternalError, ServiceError
from app.images import decode
from app.messages import Part, Stream

logger = logging.getLogger("nam.decode")


def main() -> int:
    """Says that it is there, then answers images until its socket is closed."""
    stream, options = Stream(socket.socket(fileno=int(sys.argv[1]))), orjson.loads(sys.argv[2])
    logs.configure(*options.pop("log"))
    bound(options.pop("memory"))
    seconds = options.pop("seconds")
    with suppress(EOFError, ConnectionError):  # the parent is gone
        stream.send({})
        while True:
            serve(stream, seconds, options)
    return 0


def bound(memory: int) -> None:
    """So many bytes beyond what it has now; more are a MemoryError. No core is dumped: somebody's picture is in it."""
    limit = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]) + memory
    if (hard := resource.getrlimit(resource.RLIMIT_AS)[1]) != resource.RLIM_INFINITY:
        limit = min(limit, hard)  # nobody may raise that: the service may have been started with less
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def serve(stream: Stream, seconds: float, options: dict[str, Any]) -> None:
    """One image. It ends the process where it takes longer, though nobody be left to kill it."""
    head, image = stream.take()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    told, parts = answer(image, **head, **options)
    signal.setitimer(signal.ITIMER_REAL, 0)
    stream.send(told, parts)


def answer(image: memoryview, **options: Any) -> tuple[dict[str, Any], list[Part]]:
    """What a message says of its picture, or of what is wrong with it."""
    started = time.monotonic()
    try:
        picture = decode(image, **options)
    except ServiceError as error:
        return {"refused": [error.code, error.detail]}, []
    except MemoryError:
        return {"refused": [BadImage.code, "Decoding the image takes more memory than any of its size should."]}, []
    except Exception:
        logger.exception("an image of %d bytes was not decoded", len(image))
        return {"refused": [InternalError.code, None]}, []
    facts = [picture.format, picture.width, picture.height, time.monotonic() - started, started]
    return {"picture": facts}, [picture.pixels.data.cast("B")]


if __name__ == "__main__":
    sys.exit(main())
