"""Plain FastAPI: ``uvicorn --factory tests.bench.peers.fastapi_server:threads``, or ``:inline``, or ``:tutorial``.

The body is the JPEG itself. The ready-made Response spares FastAPI's validation and encoding of a dict.
"""

import threading
from typing import Annotated

from fastapi import Body, FastAPI, Request, Response

from tests.bench.peers.work import Content, Ours, Tutorial, to_json

Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]


def threads() -> FastAPI:
    """A ``def`` endpoint, which FastAPI runs in a pool of threads: decodes in parallel, the engine by turns."""
    app, ours, turn = FastAPI(), Ours(), threading.Lock()

    @app.post("/predict")
    def predict(jpeg: Jpeg) -> Response:
        pixels = ours.decode(jpeg)
        with turn:
            (content,) = ours.classify([pixels])
        return Response(to_json(content), media_type="application/json")

    return app


def inline() -> FastAPI:
    """An ``async def`` endpoint that computes on the event loop: one request at a time a process, no thread between."""
    app, ours = FastAPI(), Ours()

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        (content,) = ours.classify([ours.decode(await request.body())])
        return Response(to_json(content), media_type="application/json")

    return app


def tutorial() -> FastAPI:
    """The usual tutorial: ``async def``, PIL, transforms and forward in it, a dict out."""
    app, classifier = FastAPI(), Tutorial()

    @app.post("/predict")
    async def predict(jpeg: Jpeg) -> Content:
        (content,) = classifier.classify([classifier.transform(jpeg)])
        return content

    return app
