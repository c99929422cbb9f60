"""Several thousand pictures, good, odd, damaged and hostile, all made here and the same every time: ``cases``."""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from tests.hostile import bombs
from tests.hostile.kinds import kinds, photo
from tests.hostile.writers import encode, exif

PLACES = 64  # at which each file is cut off
FLIPS = 12  # times that some bits of each are turned

GOOD = frozenset({"ok"})
REFUSED = frozenset({"bad_request", "bad_image", "image_too_large", "body_too_large", "unsupported_media_type"})
EITHER = GOOD | REFUSED


@dataclass(frozen=True, slots=True)
class Case:
    """``answers``: what may come of it, ``ok`` or a refusal's code. ``twin``: a plain PNG whose label is the only one
    that it may be given; none where any is right."""

    name: str
    data: bytes
    answers: frozenset[str]
    twin: bytes | None = None
    media_type: str = "application/octet-stream"


def cases(seed: int = 0) -> Iterator[Case]:
    yield from _kinds(random.Random(seed))  # noqa: S311 - the same every time
    yield from _shapes()
    yield from _hostile()
    yield from _notes()
    yield from _media_types()


def _kinds(chance: random.Random) -> Iterator[Case]:
    for name, data, shown in kinds():
        twin = _plain(shown)
        yield Case(name, data, GOOD, twin)
        for place in range(PLACES):
            at = len(data) * place // PLACES
            yield Case(f"{name}, {at} bytes of it", data[:at], EITHER, twin)
        for number in range(FLIPS):
            yield Case(f"{name}, bits turned {number}", _turned(data, chance), EITHER)


def _plain(shown: Image.Image) -> bytes:
    return encode(shown.convert("RGB"), "PNG", compress_level=1)


def _turned(data: bytes, chance: random.Random) -> bytes:
    """Up to eight bits, one half of them where headers are."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(4, chance.choice((min(200, len(data)), len(data))))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def _shapes() -> Iterator[Case]:
    """Of one grey, so that every shape of it has the same label."""
    grey = (96, 96, 96)
    twin = _plain(Image.new("RGB", (64, 64), grey))
    for size in ((1, 1), (2, 1), (1, 3), (3, 3), (1, 16_383), (16_383, 1), (1, 65_500), (65_500, 1), (65_500, 2)):
        for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
            if max(size) <= 16_383 or format != "WEBP":
                options = {"lossless": True} if format == "WEBP" else {}
                data = encode(Image.new("RGB", size, grey), format, **options)
                yield Case(f"{format} {size[0]}x{size[1]}", data, GOOD, twin)
    for name, data in bombs.empty():
        yield Case(name, data, REFUSED)


def _hostile() -> Iterator[Case]:
    for name, data in bombs.huge():
        yield Case(name, data, REFUSED)
    for name, data in bombs.costly():
        yield Case(name, data, EITHER)
    for name, data, image in bombs.several_things():
        yield Case(name, data, GOOD if image else REFUSED, _plain(photo()) if image else None)
    for name, data in {"nothing": b"", "a byte": b"\xff", "zeros": bytes(1000), "text": b"hello" * 99}.items():
        yield Case(name, data, REFUSED)


def _notes() -> Iterator[Case]:
    """EXIF and profiles that are junk cost no more than themselves."""
    twin, chance = _plain(photo()), random.Random(1)  # noqa: S311
    whole = exif(1)
    notes = [whole[:length] for length in range(6, len(whole))]
    notes += [b"Exif\0\0" + chance.randbytes(length) for length in (1, 8, 99, 999, 60_000)]
    notes += [b"Exif\0\0" + head + chance.randbytes(999) for head in (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")]
    for format in ("JPEG", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {"quality": 92}
        for number, note in enumerate(notes):
            data = encode(photo(), format, exif=note, **options)
            # junk may say by chance that the picture lies on its side
            yield Case(f"{format} junk EXIF {number}", data, GOOD, twin if number < len(notes) - 2 else None)
        for length in (1, 99, 60_000, 200_000):
            data = encode(photo(), format, icc_profile=chance.randbytes(length), **options)
            yield Case(f"{format} junk profile {length}", data, GOOD, twin)


def _media_types() -> Iterator[Case]:
    """The first bytes decide what an image is; that it is one, the declared type does."""
    twin, jpeg = _plain(photo()), encode(photo(), "JPEG", quality=92)
    for told in (
        "image/png",
        "image/svg+xml",
        "image/jpeg; charset=utf-8",
        "image/x",
        "IMAGE/GIF",
        "application/Octet-Stream",
    ):
        yield Case(f"a jpeg as {told}", jpeg, GOOD, twin, told)
    for told in (
        "text/html",
        "application/pdf",
        "video/mp4",
        "multipart/mixed",
        "imagejpeg",
        "*/*",
        "x",
        ";",
        "\xe9/\xe9",
    ):
        yield Case(f"a jpeg as {told}", jpeg, REFUSED, media_type=told)
    for told in ("application/json", "multipart/form-data", "multipart/form-data; boundary=x"):
        yield Case(f"a jpeg as {told}", jpeg, frozenset({"bad_request"}), media_type=told)
    packed = zlib.compress(jpeg)
    yield Case("a packed jpeg", packed, REFUSED, media_type="image/jpeg")
