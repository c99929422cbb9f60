"""``/docs``: Swagger UI over our own OpenAPI document. We serve its assets; its script is a file, not inline."""

from importlib import resources
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

# The wheel that carries Swagger UI's files; nothing else of it is used.
_ASSETS = Path(str(resources.files("fastapi_offline"))) / "static"
_WEB = Path(__file__).parent / "web"
_PAGE = (_WEB / "docs.html").read_text(encoding="utf-8")
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The page that tries every endpoint."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


def mount_assets(app: FastAPI) -> None:
    app.mount("/docs/assets", StaticFiles(directory=_ASSETS))
    app.mount("/docs/web", StaticFiles(directory=_WEB))
