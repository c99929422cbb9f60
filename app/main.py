"""``create_app``: the wiring and nothing else. The table of contents of the service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware import Middleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from app import api, docs, errors, guards, oip, page
from app.board import Load
from app.middleware import Admission, Keys, RequestContext
from app.services import OpenLanes, Services, open_services
from app.settings import Settings


class State(TypedDict):
    services: Services


def create_app(settings: Settings, open_lanes: OpenLanes, load: Load | None = None) -> FastAPI:
    """The service. ``open_lanes``: where images are run, opened when it starts; ``load``: what admission counts."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with open_services(settings, open_lanes, load or Load()) as services:
            yield {"services": services}

    routes = [route.path for router in (api.router, oip.router, docs.router, page.router) for route in router.routes]  # type: ignore[attr-defined]
    app = FastAPI(
        title="NAM Serve",
        version=version("nam-serve"),
        summary="Image classification that explains itself.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestContext, routes=[*routes, "/openapi.json"]),
            Middleware(Keys, doors=settings.open_doors),
            Middleware(Admission, paths=(*api.WORK, *oip.WORK)),
        ],
        exception_handlers={
            errors.ServiceError: _service_error,
            RequestValidationError: _bad_parameter,
            HTTPException: _http_error,
        },
    )
    app.include_router(api.router)
    app.include_router(oip.router)
    app.include_router(docs.router)
    app.include_router(page.router)
    docs.mount_assets(app)
    if settings.keys:
        docs.tell_of_keys(app.openapi(), unlocked=Keys.HEALTH)
    return app


async def _service_error(request: Request, error: errors.ServiceError) -> Response:
    return guards.refusal(request.state.services, error, request.state.request_id, request.scope["path"])


async def _bad_parameter(request: Request, error: RequestValidationError) -> Response:
    """The first parameter that FastAPI refused, in our words: its name and what it must be."""
    first = error.errors()[0]
    return await _service_error(request, errors.BadParameter(f"{first['loc'][-1]}: {first['msg']}."))


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the router raises itself: no such path, no such method."""
    kinds = {404: errors.NotFound, 405: errors.MethodNotAllowed, 400: errors.BadRequest}
    kind = kinds.get(error.status_code, errors.InternalError)
    return await _service_error(request, kind(headers=error.headers or {}))
