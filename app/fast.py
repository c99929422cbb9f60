"""The usual request, ``POST /predict`` with the image as its body and nothing asked besides, answered without the
framework: its router, parameters and request object take longer than all else that the event loop does for it.

The answer is the endpoint's of ``api.py``, byte by byte but for the timings; a test holds the two together.
"""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import schemas
from app.services import Services
from app.serving import serve, timing_headers
from app.uploads import not_empty

PATH = "/predict"
_TOP_K = 5
# Whoever sends one of these asks for more than the usual.
_ASKING = frozenset({b"accept-language", b"content-encoding"})


class Front:
    """The usual request goes the short way, through ``guards``, every other to the application, which has the same
    guards: who may ask, how much, and until when, is decided for both alike."""

    def __init__(self, app: ASGIApp, guards: Sequence[Middleware]) -> None:
        self.app = app
        self.short: ASGIApp = _predict
        for guard in reversed(guards):
            self.short = guard.cls(self.short, *guard.args, **guard.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        usual = scope["type"] == "http" and scope["path"] == PATH and _is_usual(scope)
        await (self.short if usual else self.app)(scope, receive, send)


def _is_usual(scope: Scope) -> bool:
    if scope["method"] != "POST" or scope["query_string"]:
        return False
    for name, value in scope["headers"]:
        if name in _ASKING or (name == b"content-type" and not _is_raw(value)):
            return False
    return True


def _is_raw(media_type: bytes) -> bool:
    return media_type.startswith(b"image/") or media_type == b"application/octet-stream"


async def _predict(scope: Scope, receive: Receive, send: Send) -> None:
    state = scope["state"]
    services: Services = state["services"]
    card = services.engine.card
    image = not_empty(await _body(receive))
    served = await serve(services, image, min(_TOP_K, len(card.labels)), state["deadline"])
    body = schemas.to_json(schemas.predict_answer(card, served.done, "en"))
    headers = [
        (b"vary", b"Accept-Language"),
        *((name.lower().encode(), value.encode()) for name, value in timing_headers([served]).items()),
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"application/json"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    """The whole body, without a copy where it comes in one piece. Raises ClientDisconnect."""
    message = _checked(await receive())
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    pieces = [body]
    while message.get("more_body", False):
        message = _checked(await receive())
        pieces.append(message.get("body", b""))
    return b"".join(pieces)


def _checked(message: Message) -> Message:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message
