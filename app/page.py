"""``/``: the page, and the files that it loads, all ours. They are read once, at start, and hold no secret: a page that
asks for a key must itself load without one.

``headers`` is what every page of this service answers with; ``/docs`` shares it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app import errors

_WEB = Path(__file__).parent / "web"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


@dataclass(frozen=True)
class _File:
    """A file as it is answered. ``etag``: of its bytes, so that all processes agree and a new release is seen."""

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path, media_type: str) -> "_File":
        body = path.read_bytes()
        return cls(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    def answer(self, request: Request, headers: dict[str, str]) -> Response:
        headers = {**headers, "ETag": self.etag, "Cache-Control": "no-cache"}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.media_type)


def headers(images: str = "'self'") -> dict[str, str]:
    """What a page may do: load our own files and ask our own endpoints, nothing else, in nobody's frame. ``images``:
    where its pictures may come from."""
    return {
        "Content-Security-Policy": "; ".join(
            f"{what} {where}" for what, where in {**_POLICY, "img-src": images}.items()
        ),
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
    }


_PAGE = _File.read(_WEB / "index.html", "text/html; charset=utf-8")
_FILES = {
    path.relative_to(_WEB).as_posix(): _File.read(path, _TYPES[path.suffix])
    for path in _WEB.rglob("*")
    if path.suffix in _TYPES
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """A photo in, its labels and its attention to look at."""
    return _PAGE.answer(request, headers())


@router.get("/web/{name:path}")
async def file(request: Request, name: str) -> Response:
    """What the page loads: scripts, styles, example photos."""
    if name not in _FILES:
        raise errors.NotFound
    return _FILES[name].answer(request, {})
