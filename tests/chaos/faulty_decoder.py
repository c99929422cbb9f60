"""A decoder that images can hurt, by what follows their end: it crashes in C, is stuck there, takes memory, or answers
nonsense. And the service around it, ``python -m tests.chaos.faulty_decoder serve``."""

import ctypes
import itertools
import sys
from collections import deque
from dataclasses import replace
from typing import Any

from app import decode_process, decoders
from app.child_process import ChildProcess
from app.images import Picture, decode

CRASH, HANG, GROW, LIE = b"crash", b"hang", b"grow", b"lie"


class Faulty(ChildProcess):
    """Stands where a decoder's process does."""

    def __init__(self, module: str, *arguments: str, **options: Any) -> None:
        super().__init__(__spec__.name, *arguments, **options)


def hurt(image: memoryview, **options: Any) -> Picture:
    data = bytes(image)
    if data.endswith(CRASH):
        ctypes.string_at(0)
    if data.endswith(HANG):
        deque(itertools.repeat(None), maxlen=0)  # no signal that Python handles gets through
    if data.endswith(GROW):
        bytearray(2**40)
    picture = decode(image, **options)
    return replace(picture, pixels=picture.pixels[:, 1:].copy()) if data.endswith(LIE) else picture


def main() -> int:
    if sys.argv[1] != "serve":
        decode_process.decode = hurt  # type: ignore[assignment]
        return decode_process.main()
    from app.cli import main as nam

    decoders.ChildProcess = Faulty  # type: ignore[misc]
    return nam(["serve"])


if __name__ == "__main__":
    sys.exit(main())
