"""Tensors of the Open Inference Protocol v2 in the bodies of requests and answers: in the JSON, or behind it.

https://github.com/kserve/open-inference-protocol, and its binary tensor data extension: raw bytes follow the JSON,
whose length a header tells, in the tensors' order; little endian, row by row; an element of BYTES is its length, four
bytes, and itself.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.errors import BadParameter, BadRequest, TooManyImages
from app.forward import Decoded
from app.images import Picture
from app.oip_schemas import InferRequest, RequestInput, infer_request
from app.uploads import MOST_VALUES, from_base64, parsed

HEADER = "Inference-Header-Content-Length"
_JSON, _RAW = "application/json", "application/octet-stream"

Array = NDArray[Any]
Image = bytes | Decoded  # encoded, or as pixels


def read(body: bytes, json_length: str | None, size: int, most: int) -> tuple[InferRequest, list[Image]]:
    """What is asked, and of which images, one at least and ``most`` at most; ``size``: the side of pixels.

    Raises BadRequest for what is no such request, BadParameter for another tensor than the model's, TooManyImages.
    """
    length = _json_length(json_length, len(body))
    asked = infer_request(_json_of(body[:length], MOST_VALUES + most * size * size * 4))
    (tensor,) = asked.inputs
    raw = memoryview(body)[length:]
    if len(raw) != (tensor.parameters.binary_data_size or 0):
        raise BadRequest(f"Behind the JSON are {len(raw)} bytes, not what binary_data_size says.")
    return asked, _images(tensor, None if tensor.parameters.binary_data_size is None else raw, size, most)


def write(head: dict[str, Any], outputs: Sequence[tuple[str, Array, bool]]) -> tuple[bytes, dict[str, str]]:
    """The body of an answer and the headers that tell what it is. ``outputs``: name, values, FP32 or strings, and
    whether they are to be behind the JSON."""
    told: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, values, binary in outputs:
        tensor = {"name": name, "datatype": "FP32" if values.dtype == np.float32 else "BYTES", "shape": values.shape}
        if binary:
            parts.append(_raw(values))
            told.append({**tensor, "parameters": {"binary_data_size": len(parts[-1])}})
        else:  # tensor by tensor: the interpreter's lock is held for the time of one
            told.append({**tensor, "data": orjson.Fragment(_json(values))})
    text = orjson.dumps({**head, "outputs": told})
    if not parts:
        return text, {"Content-Type": _JSON}
    return b"".join([text, *parts]), {"Content-Type": _RAW, HEADER: str(len(text))}


def _json_length(sent: str | None, whole: int) -> int:
    if sent is None:
        return whole
    if not (sent.isascii() and sent.isdigit() and len(sent) < 19 and int(sent) <= whole):
        raise BadRequest(f"{HEADER} is the number of bytes of the JSON, which the body begins with.")
    return int(sent)


def _json_of(text: bytes, values: int) -> Any:
    try:
        return parsed(text, values)
    except orjson.JSONDecodeError:
        raise BadRequest(f"The body is no JSON; where more follows the JSON, {HEADER} tells its length.") from None


def _images(tensor: RequestInput, raw: memoryview | None, size: int, most: int) -> list[Image]:
    match tensor.name:
        case "image":
            count = _count(tensor, "BYTES", [], most)
            return list(_elements(raw, count) if raw is not None else _base64(tensor.data, count))
        case "pixels":
            count = _count(tensor, "UINT8", [size, size, 3], most)
            return list(_pictures(raw if raw is not None else _numbers(tensor.data, len(tensor.shape)), count, size))
    raise BadParameter('The input is one of "image" and "pixels".')


def _count(tensor: RequestInput, datatype: str, of_one: list[int], most: int) -> int:
    """How many images the tensor holds, by its shape."""
    if tensor.datatype != datatype or tensor.shape[1:] != of_one or not tensor.shape or tensor.shape[0] < 1:
        wanted = ", ".join(map(str, ["n", *of_one]))
        raise BadParameter(f"{tensor.name} is {datatype} of shape [{wanted}], n at least 1.")
    if tensor.shape[0] > most:
        raise TooManyImages(f"At most {most} images a request are accepted, not {tensor.shape[0]}.")
    return tensor.shape[0]


def _elements(raw: memoryview, count: int) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    for _ in range(count):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        found.append(bytes(raw[start:at]))
    if at != len(raw):
        raise BadParameter(f"image: its bytes are not {count} elements, each behind its length in four bytes.")
    return found


def _base64(data: Any, count: int) -> list[bytes]:
    if not isinstance(data, list) or len(data) != count:
        raise BadParameter(f"image: its data are not the {count} strings of base64 that its shape tells of.")
    return [_from_base64(text, place) for place, text in enumerate(data)]


def _from_base64(text: Any, place: int) -> bytes:
    try:
        return from_base64(text)
    except BadRequest as error:
        raise BadRequest(f"image[{place}]: {error.detail}") from None


def _numbers(data: Any, levels: int) -> bytes:
    """Flat, or nested as deep as the shape."""
    try:
        for _ in range(levels - 1):
            if isinstance(data[0], list):
                data = list(itertools.chain.from_iterable(data))
        return bytes(data) if isinstance(data, list) else b""
    except (TypeError, ValueError, IndexError, KeyError):
        raise BadParameter("pixels: its data are whole numbers from 0 to 255.") from None


def _pictures(data: bytes | memoryview, count: int, size: int) -> list[Decoded]:
    """From (n, S, S, 3) to (3, S, S) each; nothing was decoded."""
    shape = (count, size, size, 3)
    if len(data) != math.prod(shape):
        raise BadParameter(f"pixels: its data are {len(data)} numbers, its shape tells of {math.prod(shape)}.")
    images = np.frombuffer(data, np.uint8).reshape(shape)
    return [Decoded(Picture(image.transpose(2, 0, 1).copy(), "pixels", size, size), 0.0) for image in images]


def _raw(values: Array) -> bytes:
    if values.dtype == np.float32:
        return values.astype("<f4").tobytes()
    elements = [element.encode() for element in values.ravel()]
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def _json(values: Array) -> bytes:
    flat = values.ravel()
    return orjson.dumps(flat if flat.dtype == np.float32 else flat.tolist(), option=orjson.OPT_SERIALIZE_NUMPY)
