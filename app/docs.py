"""``/docs``: Swagger UI over our own OpenAPI document. We serve its assets; its script is a file, not inline."""

from importlib import resources
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

# The wheel that carries Swagger UI's files; nothing else of it is used.
_ASSETS = Path(str(resources.files("fastapi_offline"))) / "static"
_WEB = Path(__file__).parent / "web"
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> FileResponse:
    """The page that tries every endpoint."""
    return FileResponse(_WEB / "docs.html", headers={"Content-Security-Policy": _POLICY})


def mount_assets(app: FastAPI) -> None:
    app.mount("/docs/assets", StaticFiles(directory=_ASSETS))
    app.mount("/docs/web", StaticFiles(directory=_WEB))
