"""The body of a request -> the encoded images in it, by media type: raw bytes, multipart, or base64 in JSON."""

import asyncio
import base64
import binascii
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from app.errors import BadRequest, TooManyImages, UnsupportedMediaType

T = TypeVar("T")

_RAW = "application/octet-stream"
_JSON = "application/json"
_FORM = "multipart/form-data"
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1")  # Python would remember every other that is asked for
_MAX_FIELDS = 16  # that are no files; none is used, a browser's form may have some

# Values in JSON that is not of tensors, where 32 images are some: 20 MB of nothing but lists would be half a gigabyte,
# and hold the interpreter for a second.
MOST_VALUES = 100_000
# JSON larger than this is parsed in a thread: 20 MB would hold the event loop for a tenth of a second and more.
LONG = 2**16


async def read_image(request: Request) -> bytes:
    """The one image of a request. Raises BadRequest, TooManyImages, UnsupportedMediaType."""
    media_type = _media_type(request)
    if media_type.startswith("image/") or media_type == _RAW:
        return not_empty(await request.body())
    if media_type == _FORM:
        return not_empty((await _parts(request, 1))[0])
    if media_type == _JSON:
        return await _aside(await request.body(), lambda body: from_base64(_member(body, "image")))
    raise UnsupportedMediaType(f"Send the image as image/* or {_RAW}, or in {_FORM} or {_JSON}; not as {media_type}.")


async def read_images(request: Request, most: int) -> list[bytes | BadRequest]:
    """The images of a request, one at least and ``most`` at most; one that is no base64 is its own error."""
    media_type = _media_type(request)
    if media_type == _FORM:
        return list(await _parts(request, most))
    if media_type != _JSON:
        raise UnsupportedMediaType(f"Send several images in {_FORM} or {_JSON}; not as {media_type}.")
    return await _aside(await request.body(), lambda body: _list(body, most))


def _media_type(request: Request) -> str:
    """The declared type without its parameters; raw bytes where there is none (RFC 9110, section 8.3)."""
    refuse_encoding(request)
    return request.headers.get("content-type", _RAW).partition(";")[0].strip().lower()


def refuse_encoding(request: Request) -> None:
    """Raises UnsupportedMediaType."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Bodies are accepted without a Content-Encoding.")


async def _parts(request: Request, most: int) -> list[bytes]:
    """The bytes of the parts named ``file``, in order; none for one that is empty or no file: it keeps its place."""
    _, told = parse_options_header(request.headers["content-type"])
    if told.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise BadRequest("The names of a form's parts are in UTF-8.")
    try:
        async with request.form(max_files=most, max_fields=_MAX_FIELDS) as form:
            parts = form.getlist("file")
            if all(isinstance(part, str) for part in parts):
                raise BadRequest('The form has no file in a part named "file".')
            return [b"" if isinstance(part, str) else await part.read() for part in parts]
    except HTTPException as error:
        if str(error.detail).startswith("Too many files"):
            raise TooManyImages(f"At most {most} images are accepted in this request.") from error
        raise BadRequest("The multipart body could not be read.") from error


async def _aside(body: bytes, parse: Callable[[bytes], T]) -> T:
    return await asyncio.to_thread(parse, body) if len(body) > LONG else parse(body)


def _list(body: bytes, most: int) -> list[bytes | BadRequest]:
    images = _member(body, "images")
    if not isinstance(images, list) or not images:
        raise BadRequest('"images" is a list of base64 strings, one at least.')
    if len(images) > most:
        raise TooManyImages(f"At most {most} images a request are accepted, not {len(images)}.")
    return [_base64_or_error(image) for image in images]


def _member(body: bytes, name: str) -> Any:
    try:
        return parsed(not_empty(body))[name]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise BadRequest(f'The body is not a JSON object with a member "{name}".') from error


def parsed(body: bytes, most: int = MOST_VALUES) -> Any:
    """JSON of at most so many values, by its commas and brackets: base64 and numbers have none.

    Raises BadRequest where there may be more, orjson.JSONDecodeError.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > most:
        raise BadRequest(f"The JSON has more than {most} commas and brackets.")
    return orjson.loads(body)


def from_base64(text: Any) -> bytes:
    """An image. Raises BadRequest."""
    try:
        return not_empty(base64.b64decode(text, validate=True))
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadRequest("The image is not a string of standard base64.") from error


def _base64_or_error(text: Any) -> bytes | BadRequest:
    try:
        return from_base64(text)
    except BadRequest as error:
        return error


def not_empty(body: bytes) -> bytes:
    """The same bytes. Raises BadRequest where there are none."""
    if not body:
        raise BadRequest("The body, or the image in it, is empty.")
    return body
