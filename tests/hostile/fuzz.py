"""Coverage-guided fuzzing of what reads strangers' bytes: ``python -m tests.hostile.fuzz TARGET [libFuzzer flags]``.

atheris sees the branches of Python code, ours and PIL's, and nothing within the compiled codecs, which it only feeds.
A finding is a file in runs/fuzz; it becomes a test that makes it by code.
"""

import asyncio
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["app.images", "app.jpeg", "app.limits", "app.oip_tensors", "app.uploads", "PIL"]
):
    from app import images, oip_tensors, uploads
from starlette.requests import Request

from app.errors import ServiceError
from tests.hostile.attempts import attempts
from tests.hostile.bombs import costly, empty, huge
from tests.hostile.kinds import kinds

FINDINGS = Path("runs/fuzz")
SIDE, MOST = 8, 1_000_000


def decode(data: bytes) -> None:
    """A picture of the right form, or a refusal."""
    images.is_quick(data)
    try:
        picture = images.decode(data, size=SIDE, crop=0.875, max_pixels=MOST)
    except ServiceError:
        return
    assert picture.pixels.shape == (3, SIDE, SIDE)
    assert 0 < picture.width * picture.height <= MOST


def tensors(data: bytes) -> None:
    """Requests of the Open Inference Protocol; the first two bytes tell where the JSON ends."""
    length, body = int.from_bytes(data[:2], "big"), data[2:]
    try:
        _, found = oip_tensors.read(body, str(length) if length else None, SIDE, 4)
    except ServiceError:
        return
    assert 0 < len(found) <= 4


def bodies(data: bytes) -> None:
    """Raw, multipart and JSON, by the first byte; a media type's parameters are up to the first line's end."""
    kind, rest = data[:1], data[1:]
    head, _, body = rest.partition(b"\n")
    media_type = {b"f": b"multipart/form-data; boundary=" + head, b"j": b"application/json"}.get(kind, head)

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    for read in (uploads.read_image, lambda request: uploads.read_images(request, 4)):
        request = Request({"type": "http", "app": None, "headers": [(b"content-type", media_type)]}, receive)
        try:
            asyncio.run(read(request))
        except ServiceError:
            continue


TARGETS: dict[str, Callable[[bytes], None]] = {"decode": decode, "tensors": tensors, "bodies": bodies}


def seeds(target: str) -> Iterator[bytes]:
    if target == "decode":
        yield from (data for _, data, _ in kinds())
        yield from (data for few in (huge, empty, costly) for _, data in few() if len(data) < 2**14)
        return
    family = {"tensors": "tensors", "bodies": "forms"}[target]
    for attempt in attempts():
        sent = b"".join(piece for piece in attempt.pieces if isinstance(piece, bytes))
        body = sent.partition(b"\r\n\r\n")[2]
        if attempt.name.startswith(family) and len(body) < 2**14:
            yield (b"\0\0" if target == "tensors" else b"fx\n") + body
    if target == "bodies":
        yield b'j\n{"image": "aGVsbG8="}'
        yield b'j\n{"images": ["aGVsbG8=", 1]}'


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """As libFuzzer would; a PNG's checksums are put right again, or nothing behind them would ever be reached."""
    changed = atheris.Mutate(data, most)
    return _summed(changed)[:most] if changed.startswith(b"\x89PNG\r\n\x1a\n") and seed % 8 else changed


def _summed(png: bytes) -> bytes:
    fixed, at = bytearray(png), 8
    while at + 12 <= len(fixed) and (end := at + 8 + int.from_bytes(fixed[at : at + 4], "big")) + 4 <= len(fixed):
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def main() -> None:
    target, flags = sys.argv[1], sys.argv[2:]
    FINDINGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(target)):
            (Path(folder) / f"{number:04}").write_bytes(seed)
        own = [f"-artifact_prefix={FINDINGS}/{target}-", "-timeout=15", "-rss_limit_mb=2048", "-max_len=32768", folder]
        atheris.Setup([sys.argv[0], *flags, *own], TARGETS[target], custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
