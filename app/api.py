"""The endpoints, a few lines each: read the body, decode, submit, answer. What can be the caller's fault fails before
``submit``; what fails in it is ours."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from app import errors, schemas
from app.engine import AttentionAsk, Card
from app.guards import check_ready
from app.render import FORMS, PHOTOS, ask_for, render
from app.services import Alive, Services
from app.serving import Served, in_pool, serve, timing_headers
from app.uploads import read_image, read_images

logger = logging.getLogger("nam.api")

# An operation's name in the OpenAPI document, and so in generated clients, is its function's.
router = APIRouter(generate_unique_id_function=lambda route: route.name)

# What admission stands in front of.
WORK = ("/predict", "/predict/batch", "/attention")

TopK = Annotated[int, Query(ge=1, description="How many labels, 1 to the number of classes.")]
# Channels that one request may have held, a forward each.
_MOST_HELD = 256
# Numbers in the maps of one answer: 32 MB as fp32, some 80 MB as JSON. Every gate of a ResNet-50 at 224 px is 5.5e6.
_MOST_NUMBERS = 2**23
# Bytes that each of them takes in memory, as fp32 and as it is written, until the answer is read.
_BYTES_A_NUMBER = {"json": 4 + 13, "npz": 4 + 4, "png": 4}

Lang = Annotated[schemas.Language | None, Query(description="The labels' language; else Accept-Language.")]


def _body(*, several: bool) -> dict[str, Any]:
    """The three ways to send images, for the OpenAPI document: bodies are read by ``uploads.py``, not by FastAPI."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    text: dict[str, Any] = {"type": "string", "contentEncoding": "base64"}
    if several:
        file, text = {"type": "array", "items": file}, {"type": "array", "items": text}
    name = "images" if several else "image"
    content = {
        "multipart/form-data": {"schema": _object("file", file)},
        "application/json": {"schema": _object(name, text)},
    }
    if not several:
        content["image/*"] = content["application/octet-stream"] = {"schema": file}
    return {"requestBody": {"required": True, "content": content}}


def _object(name: str, member: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: member}}


_WORK_PROBLEMS = schemas.problems(400, 401, 406, 408, 413, 415, 422, 500, 503, 504)


@router.post(
    "/predict", response_model=schemas.PredictAnswer, responses=_WORK_PROBLEMS, openapi_extra=_body(several=False)
)
async def predict(request: Request, services: Alive, top_k: TopK = 5, lang: Lang = None) -> Response:
    """The k best labels of one image."""
    k = _top_k(request, services, top_k)
    served = await serve(services, await read_image(request), k, request.state.deadline)
    answer = schemas.predict_answer(services.engine.card, served.done, _language(request, lang))
    return _answer(answer, [served])


@router.post(
    "/predict/batch", response_model=schemas.BatchAnswer, responses=_WORK_PROBLEMS, openapi_extra=_body(several=True)
)
async def predict_batch(request: Request, services: Alive, top_k: TopK = 5, lang: Lang = None) -> Response:
    """The k best labels of several images, in order; a bad image is an error in its own place."""
    k, language = _top_k(request, services, top_k), _language(request, lang)
    images = await read_images(request, services.settings.max_images)
    outcomes = await asyncio.gather(*(_serve_or_error(request, services, image, k) for image in images))
    results = [_result(services.engine.card, outcome, language, request) for outcome in outcomes]
    return _answer(
        {"model": services.engine.card.name, "results": results}, [o for o in outcomes if isinstance(o, Served)]
    )


_BYTES = {"schema": {"type": "string", "format": "binary"}}
_FORMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {media_type: _BYTES for form, media_type in FORMS.items() if form != "json"}}
}


@router.post(
    "/attention",
    response_model=schemas.AttentionAnswer,
    responses=_FORMS | _WORK_PROBLEMS,
    openapi_extra=_body(several=False),
)
async def attention(
    request: Request,
    services: Alive,
    top_k: TopK = 5,
    lang: Lang = None,
    block: Annotated[list[str] | None, Query(description="Blocks to answer with, by name; default all.")] = None,
    top_channels: Annotated[int, Query(ge=0, le=2**16, description="How many of the strongest channels.")] = 8,
    maps: Annotated[
        Literal["none", "top", "all"], Query(description="Which maps to answer with; npz has all.")
    ] = "top",
    effects: Annotated[
        bool, Query(description="Each block's effect on the top class; costs a forward for each.")
    ] = False,
    channel_effects: Annotated[
        bool, Query(description="The effect of each of the strongest channels; costs a forward for each.")
    ] = False,
    method: Annotated[list[str] | None, Query(description="Further kinds of map; GET /model lists them.")] = None,
    format: Annotated[str | None, Query(description="`json`, `png` or `npz`; beats Accept.")] = None,
) -> Response:
    """One image's labels and, block by block, its NAM gates: weights, statistics, maps.

    As JSON; as a picture, whose labels are English with their class ids whatever `lang` is; or as NumPy's arrays, every
    channel's map among them, named as in the JSON: `predictions.probability`, `layer1.0/gates.mean`,
    `layer1.0/channel_maps`, `layer1.0/top_channels.weight`.
    """
    card, form, k = services.engine.card, _form(request, format), _top_k(request, services, top_k)
    chosen = frozenset(_known("method", card.methods, method))
    ask = AttentionAsk(_blocks(card, block), top_channels, maps, effects, channel_effects, chosen)
    request.state.hold(_BYTES_A_NUMBER[form] * _numbers(card, ask, form))
    image, deadline = await read_image(request), request.state.deadline
    served = await serve(services, image, k, deadline, ask_for(form, ask))
    photo = (await services.decoders.decode(image, side, deadline)).picture if (side := PHOTOS.get(form)) else None
    work = partial(render, form, card, served.done, photo, _language(request, lang))
    pieces = await in_pool(services, work, deadline)
    headers = {"Vary": "Accept, Accept-Language", "Content-Length": str(sum(map(len, pieces)))}
    return StreamingResponse(_each(pieces), 200, headers | timing_headers([served]), FORMS[form])


@router.get("/attention/weights", response_model=schemas.WeightsAnswer, responses=schemas.problems(401))
async def attention_weights(request: Request, services: Alive) -> Response:
    """The checkpoint's channel weights of every block; no image is needed. Cacheable: the ETag is the file's hash."""
    card = services.engine.card
    headers = {"ETag": f'"{card.sha256}"', "Cache-Control": "no-cache"}
    if _matches(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return _json(schemas.weights_answer(card), headers)


@router.get("/model", response_model=schemas.ModelAnswer, responses=schemas.problems(401))
async def model(services: Alive) -> Response:
    """The model card: what is served, from which file, on which device, and why."""
    return _json(schemas.model_answer(services.engine.card))


@router.get("/healthz", response_model=schemas.Health)
async def healthz() -> Response:
    """The process lives."""
    return _json({"status": "ok"})


@router.get("/readyz", response_model=schemas.Health, responses=schemas.problems(503))
async def readyz(services: Alive) -> Response:
    """Warm, not draining, and the engine's lanes live."""
    check_ready(services)
    return _json({"status": "ready"})


@router.get(
    "/metrics", responses={**schemas.problems(401), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
def metrics(services: Alive) -> Response:
    """Prometheus's text format."""  # in a thread: it reads files where there are several processes
    return Response(services.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _serve_or_error(
    request: Request, services: Services, image: bytes | errors.ServiceError, top_k: int
) -> Served | errors.ServiceError:
    if isinstance(image, errors.ServiceError):
        return image
    try:
        return await serve(services, image, top_k, request.state.deadline)
    except errors.ServiceError as error:
        return error
    except Exception:
        logger.exception("request %s: an image failed", request.state.request_id)
        return errors.InternalError()


def _result(
    card: Card, outcome: Served | errors.ServiceError, language: schemas.Language, request: Request
) -> dict[str, Any]:
    if isinstance(outcome, errors.ServiceError):
        return {"error": errors.problem(outcome, request.state.request_id)}
    return schemas.predict_answer(card, outcome.done, language)


def _answer(content: dict[str, Any], served: list[Served]) -> Response:
    return _json(content, {"Vary": "Accept-Language", **timing_headers(served)})


def _json(content: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(schemas.to_json(content), 200, headers, "application/json")


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _top_k(request: Request, services: Services, top_k: int) -> int:
    """Raises BadParameter where more are asked for than there are; the default gives way to a small model."""
    classes = len(services.engine.card.labels)
    if top_k > classes and "top_k" in request.query_params:
        raise errors.BadParameter(f"top_k is at most {classes}, the number of classes.")
    return min(top_k, classes)


def _blocks(card: Card, asked: list[str] | None) -> frozenset[str]:
    known = [block.name for block in card.blocks]
    return frozenset(_known("block", known, asked) or known)


def _known(name: str, known: Sequence[str], asked: list[str] | None) -> list[str]:
    """What was asked for. Raises BadParameter where some of it is not known."""
    if not set(asked or ()) <= set(known):
        raise errors.BadParameter(
            f"{name} is one of {', '.join(known)}." if known else "The network has no NAM blocks."
        )
    return asked or []


def _numbers(card: Card, ask: AttentionAsk, form: str) -> int:
    """How many the maps are. Raises BadParameter for what cannot be, or would take too long."""
    if form == "png" and ask.maps == "none":
        raise errors.BadParameter("A picture shows maps: maps is top or all, or format is another.")
    blocks = [block for block in card.blocks if block.name in ask.blocks]
    channels = sum(min(ask.top_channels, block.channels) for block in blocks)
    if ask.channel_effects and channels > _MOST_HELD:
        raise errors.BadParameter(
            f"channel_effects takes a forward for each channel, here {channels}; at most {_MOST_HELD}: "
            "ask for fewer top_channels, or name blocks."
        )
    every, top = ask.maps == "all" or form == "npz", ask.maps != "none"
    numbers = sum(b.height * b.width * (every * b.channels + top * min(ask.top_channels, b.channels)) for b in blocks)
    if numbers > _MOST_NUMBERS:
        raise errors.BadParameter(f"The maps are {numbers} numbers; at most {_MOST_NUMBERS}: name blocks.")
    return numbers


def _form(request: Request, asked: str | None) -> str:
    """The query's, else the best that Accept allows, its most specific range deciding. Raises NotAcceptable."""
    ranges = dict(_weighted(request, "accept")) or {"*/*": 1.0}

    def quality(form: str) -> float:
        names = (FORMS[form], FORMS[form].partition("/")[0] + "/*", "*/*")
        return next((ranges[name] for name in names if name in ranges), 0.0)

    best = asked or max(FORMS, key=quality)
    if best not in FORMS or (not asked and quality(best) <= 0):
        told = ", ".join(f"{media_type} (format={form})" for form, media_type in FORMS.items())
        raise errors.NotAcceptable(f"The attention is answered as {told}.", headers={"Vary": "Accept"})
    return best


def _language(request: Request, asked: schemas.Language | None) -> schemas.Language:
    """The query's language, else the best of Accept-Language that there is, else English."""
    if asked is not None:
        return asked
    tags = [(quality, tag[:2]) for tag, quality in _weighted(request, "accept-language") if quality > 0]
    known = [(quality, tag) for quality, tag in tags if tag in ("en", "zh")]
    return "zh" if known and max(known, key=lambda pair: pair[0])[1] == "zh" else "en"


def _weighted(request: Request, header: str) -> list[tuple[str, float]]:
    """The members of a header such as Accept with their qualities, 1 unless said (RFC 9110, section 12.4.2)."""
    members = [part for line in request.headers.getlist(header) for part in line.lower().split(",") if part.strip()]
    return [(part.partition(";")[0].strip(), _quality(part)) for part in members]


def _quality(part: str) -> float:
    _, _, value = part.replace(" ", "").partition(";q=")
    try:
        return float(value) if value else 1.0
    except ValueError:
        return 0.0


def _matches(if_none_match: str, etag: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return bool(tags & {etag, "*"})
