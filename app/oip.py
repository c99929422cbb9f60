"""The Open Inference Protocol v2, which KServe's and Triton's clients speak: what /predict answers, as tensors.

https://github.com/kserve/open-inference-protocol. Of the extensions that the server's metadata names two are Triton's,
``binary_tensor_data`` and ``classification``, and one is ours, ``explain``: what /attention answers, as tensors.
The protocol knows no error of one image: the first that fails, by its place, fails the request.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from app import errors, guards
from app import oip_schemas as schemas
from app.engine import AttentionAsk, Block, BlockAttention, Card, Floats
from app.oip_tensors import HEADER, Array, Image, read, write
from app.schemas import problems
from app.services import Alive, Services
from app.serving import Served, in_pool, serve, timing_headers
from app.uploads import LONG, not_empty, refuse_encoding

EXTENSIONS = ["binary_tensor_data", "classification", "explain"]
PLATFORM = "nam_safetensors"  # a project and a format, as the specification has them

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"], generate_unique_id_function=lambda r: r.name)

# What admission stands in front of.
WORK = ("/v2/models/{name}/infer", "/v2/models/{name}/explain")

PROBABILITIES = "probabilities"
_BYTES_A_NUMBER = 4 + 13  # of a map, in memory as fp32 and as JSON, until the answer is read
# What explain tells of a block: of the checkpoint (C,); of n images (n,), and (n, H, W).
PARTS: dict[str, Callable[[Block, list[BlockAttention]], Floats]] = {
    "weights": lambda block, _: block.weights,
    "gates.mean": lambda _, looks: np.array([look.mean for look in looks], np.float32),
    "gates.std": lambda _, looks: np.array([look.std for look in looks], np.float32),
    "gates.min": lambda _, looks: np.array([look.minimum for look in looks], np.float32),
    "gates.max": lambda _, looks: np.array([look.maximum for look in looks], np.float32),
    "map": lambda _, looks: np.array([look.map for look in looks], np.float32),
}


async def _of_model(request: Request, services: Alive) -> Services:
    if request.path_params["name"] != services.engine.card.name:
        raise errors.NotFound(f"There is one model here, {services.engine.card.name}.")
    return services


OfModel = Annotated[Services, Depends(_of_model)]

_problems = partial(problems, told="A problem (RFC 9457), with `error`.")
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_OF_MODEL: dict[str, Any] = {"parameters": [_NAME]}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_WORK: dict[str, Any] = {
    "response_model": schemas.InferAnswer,
    "responses": {200: {"content": _BYTES}, **_problems(400, 401, 404, 408, 413, 415, 422, 500, 503, 504)},
    "openapi_extra": {
        "parameters": [_NAME, {"name": HEADER, "in": "header", "schema": {"type": "integer"}}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schemas.request_schema()}, **_BYTES},
        },
    },
}


@router.get("", response_model=schemas.ServerMetadata, responses=_problems(401))
async def server_metadata(request: Request) -> dict[str, Any]:
    """What the server is, and which extensions it has."""
    return {"name": "nam-serve", "version": request.app.version, "extensions": EXTENSIONS}


@router.get("/health/live", response_model=schemas.ServerLive)
async def server_live() -> dict[str, Any]:
    """The process lives."""
    return {"live": True}


@router.get("/health/ready", response_model=schemas.ServerReady, responses=_problems(503))
async def server_ready(services: Alive) -> dict[str, Any]:
    """As /readyz."""
    guards.check_ready(services)
    return {"ready": True}


@router.get(
    "/models/{name}", response_model=schemas.ModelMetadata, responses=_problems(401, 404), openapi_extra=_OF_MODEL
)
async def model_metadata(services: OfModel) -> dict[str, Any]:
    """The model's inputs, either of which a request has, and its output."""
    card = services.engine.card
    return {
        "name": card.name,
        "versions": [],
        "platform": PLATFORM,
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, card.size, card.size, 3]},
        ],
        "outputs": [{"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(card.labels)]}],
    }


@router.get(
    "/models/{name}/ready",
    response_model=schemas.ModelReady,
    responses=_problems(401, 404, 503),
    openapi_extra=_OF_MODEL,
)
async def model_ready(services: OfModel) -> dict[str, Any]:
    """As /readyz, of the one model."""
    guards.check_ready(services)
    return {"name": services.engine.card.name, "ready": True}


class _Output(NamedTuple):
    """What is asked of one output: as raw bytes or in the JSON, as so many labels or as numbers."""

    name: str
    binary: bool
    labels: int | None

    @classmethod
    def of(cls, asked: schemas.RequestedOutput, binary: bool) -> "_Output":
        """``binary``: where it does not say itself."""
        said = asked.parameters
        return cls(asked.name, binary if said.binary_data is None else said.binary_data, said.classification)


@router.post("/models/{name}/infer", **_WORK)
async def infer(request: Request, services: OfModel) -> Response:
    """Images, encoded (`image`) or as `pixels`; the probabilities of all classes, or the labels of the best."""
    card = services.engine.card
    asked, images = await _read(request, services)
    outputs = _outputs(asked, [PROBABILITIES], len(card.labels))
    served = await _serve(request, services, images, None)
    return await _answer(request, services, asked.id, card.notes if card.warm_start else (), outputs, served)


@router.post("/models/{name}/explain", **_WORK)
async def explain(request: Request, services: OfModel) -> Response:
    """The same, and of every block, as `layer1.0/map`: its channels' `weights`, which are the checkpoint's; of each
    image `gates.mean`, `gates.std`, `gates.min`, `gates.max` and `map`."""
    card = services.engine.card
    asked, images = await _read(request, services)
    of_blocks = [f"{block.name}/{part}" for block in card.blocks for part in PARTS]
    outputs = _outputs(asked, [PROBABILITIES, *of_blocks], len(card.labels))
    blocks = frozenset(output.name.rpartition("/")[0] for output in outputs if output.name != PROBABILITIES)
    numbers = sum(block.height * block.width for block in card.blocks if block.name in blocks)
    request.state.hold(_BYTES_A_NUMBER * len(images) * numbers)
    served = await _serve(request, services, images, AttentionAsk(blocks, top_channels=0))
    return await _answer(request, services, asked.id, card.notes, outputs, served)


async def _read(request: Request, services: Services) -> tuple[schemas.InferRequest, list[Image]]:
    refuse_encoding(request)
    body, header = not_empty(await request.body()), request.headers.get(HEADER)
    work = partial(read, body, header, services.engine.card.size, services.settings.max_images)
    return await in_pool(services, work, request.state.deadline) if len(body) > LONG else work()


def _outputs(asked: schemas.InferRequest, known: list[str], classes: int) -> list[_Output]:
    """What is asked for, or all that is known. Raises BadParameter."""
    binary = asked.parameters.binary_data_output
    every = asked.outputs or [schemas.RequestedOutput(name=name) for name in known]
    outputs = [_Output.of(output, binary) for output in every]
    names = {output.name for output in outputs}
    if not names <= set(known) or len(names) < len(outputs):
        raise errors.BadParameter(f"An output is asked for once, and is one of {', '.join(known)}.")
    if any(one.labels and (one.name != PROBABILITIES or one.labels > classes) for one in outputs):
        raise errors.BadParameter(f"classification is of {PROBABILITIES}, and at most {classes}.")
    return outputs


async def _serve(
    request: Request, services: Services, images: list[Image], attention: AttentionAsk | None
) -> list[Served]:
    """Each image on its own way, so that they share batches, with other requests' too. Raises what befell the first of
    those that failed."""
    classes, deadline = len(services.engine.card.labels), request.state.deadline
    ways = (serve(services, image, classes, deadline, attention) for image in images)
    outcomes = await asyncio.gather(*ways, return_exceptions=True)
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, errors.ServiceError) and outcome.status < 500:
            raise type(outcome)(f"image[{place}]: {outcome.detail}")
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Served)]


async def _answer(
    request: Request,
    services: Services,
    id_: str | None,
    notes: Sequence[str],
    outputs: list[_Output],
    served: list[Served],
) -> Response:
    """Written in the pool: maps of many images take a while."""
    card = services.engine.card
    said = {"id": id_, "parameters": {"notes": "; ".join(notes)} if notes else None}
    head = {"model_name": card.name, **{name: value for name, value in said.items() if value is not None}}
    work = partial(_written, card, head, outputs, served)
    body, headers = await in_pool(services, work, request.state.deadline)
    return Response(body, headers=headers | timing_headers(served))


def _written(
    card: Card, head: dict[str, Any], outputs: list[_Output], served: list[Served]
) -> tuple[bytes, dict[str, str]]:
    return write(head, [(output.name, _tensor(card, output, served), output.binary) for output in outputs])


def _tensor(card: Card, output: _Output, served: list[Served]) -> Array:
    if output.labels is not None:
        return np.array([_labels(card, one, output.labels) for one in served], object)
    if output.name == PROBABILITIES:
        return _probabilities(card, served)
    name, _, part = output.name.rpartition("/")
    block = next(block for block in card.blocks if block.name == name)
    return PARTS[part](block, [look for one in served for look in one.done.answer.blocks if look.name == name])


def _probabilities(card: Card, served: list[Served]) -> Floats:
    """Of all classes, in their order: (n, K)."""
    table = np.empty((len(served), len(card.labels)), np.float32)
    for row, one in zip(table, served, strict=True):
        row[one.done.answer.indices] = one.done.answer.probabilities
    return table


def _labels(card: Card, served: Served, count: int) -> list[str]:
    """``probability:index:label``, best first."""
    answer = served.done.answer
    best = zip(answer.indices[:count].tolist(), answer.probabilities[:count], strict=True)
    return [f"{probability!s}:{index}:{card.labels[index].en}" for index, probability in best]
