"""``/docs``: Swagger UI over our own OpenAPI document. We serve its assets; its script is a file, not inline."""

from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from app.page import headers

# The wheel that carries Swagger UI's files; nothing else of it is used.
_ASSETS = Path(str(resources.files("fastapi_offline"))) / "static"
_PAGE = (Path(__file__).parent / "web" / "docs.html").read_text(encoding="utf-8")
_IMAGES = "'self' data:"  # Swagger UI's style sheet carries its icons

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The page that tries every endpoint."""
    return HTMLResponse(_PAGE, headers=headers(_IMAGES))


def mount_assets(app: FastAPI) -> None:
    app.mount("/docs/assets", StaticFiles(directory=_ASSETS))


def tell_of_keys(document: dict[str, Any], *, unlocked: Collection[str]) -> None:
    """In the OpenAPI document: every path but these wants a key, for which Swagger UI's *Authorize* then asks."""
    scheme = {"type": "http", "scheme": "bearer", "description": "One of the service's keys."}
    document["components"]["securitySchemes"] = {"key": scheme}
    document["security"] = [{"key": []}]
    for operation in (operation for path in unlocked for operation in document["paths"][path].values()):
        operation["security"] = []
