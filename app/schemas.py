"""Answers as JSON: what the contract calls each thing. The models document and check; the builders write."""

from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict

from app.engine import Block, BlockAttention, Card
from app.forward import Done

Language = Literal["en", "zh"]


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageFacts(_Exact):
    """The image as it was understood; width and height in pixels, after its EXIF orientation."""

    format: str
    width: int
    height: int


class Prediction(_Exact):
    """One label; ``probability`` is a softmax over all classes."""

    rank: int
    index: int
    class_id: str
    label: str
    probability: float


class PredictAnswer(_Exact):
    """``notes``: of a warm start, which says so in every answer."""

    model: str
    image: ImageFacts
    predictions: list[Prediction]
    notes: list[str] = []


class Problem(_Exact):
    """RFC 9457 ``application/problem+json``. ``error``: ``detail`` once more, below /v2 alone, as that protocol has."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    error: str | None = None


class BatchError(_Exact):
    error: Problem


class BatchAnswer(_Exact):
    model: str
    results: list[PredictAnswer | BatchError]


class Gates(_Exact):
    """This image's gates over all channels and pixels, in (0, 1); ``std`` of the whole population."""

    min: float
    max: float
    mean: float
    std: float
    channel_mean: list[float]


class ChannelMap(_Exact):
    """One channel: its weight, its gate's mean, its gate, H x W (null without maps), and its effect: the block's, were
    this channel's gate alone held (null unless asked for)."""

    channel: int
    weight: float
    gate_mean: float
    map: list[list[float]] | None
    effect: float | None


class BlockAnswer(_Exact):
    """One block. ``weights``: |gamma_c| / sum |gamma|; ``map``: sum over c of w_c * gate_c, H x W (null without maps);
    ``effect``: the top class's logit, minus the same with this block's gate held at its mean over the image, channel by
    channel (null unless asked for); ``channel_maps``: every channel's gate, C x H x W, with ``maps=all`` only;
    ``map_activation``, ``map_class`` and ``map_product``, H x W, with ``method`` only: the energy of what NAM passes
    on, the root mean square over channels of gate times feature; of the last block, what each pixel says for the
    top class, whose logit is the mean over pixels plus a constant; the one times the other, where that is positive."""

    name: str
    channels: int
    height: int
    width: int
    weights: list[float]
    gates: Gates
    map: list[list[float]] | None
    effect: float | None
    top_channels: list[ChannelMap]
    channel_maps: list[list[list[float]]] | None = None
    map_activation: list[list[float]] | None = None
    map_class: list[list[float]] | None = None
    map_product: list[list[float]] | None = None


class AttentionAnswer(PredictAnswer):
    blocks: list[BlockAnswer]
    notes: list[str]


class BlockWeights(_Exact):
    name: str
    channels: int
    weights: list[float]


class WeightsAnswer(_Exact):
    model: str
    sha256: str
    blocks: list[BlockWeights]
    notes: list[str]


class ModelAnswer(BaseModel):
    """The model card; the engine adds its own facts."""

    name: str
    classes: int
    input: dict[str, Any]
    blocks: list[dict[str, Any]]
    labels: list[dict[str, str]]
    sha256: str
    methods: list[str]
    metrics: dict[str, Any]
    device: str
    dtype: str
    engine: str
    reason: str


class Health(_Exact):
    status: str


def problems(*statuses: int, told: str = "A problem (RFC 9457).") -> dict[int | str, dict[str, Any]]:
    """Of an operation, for the OpenAPI document; by one name, so that generated clients have one class for all."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": told, "content": content} for status in statuses}


def to_json(content: dict[str, Any]) -> bytes:
    """An answer as bytes; arrays of fp32 are written as the shortest numbers that are them again."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def predict_answer(card: Card, done: Done, language: Language) -> dict[str, Any]:
    picture, answer = done.picture, done.answer
    ranked = zip(answer.indices.tolist(), answer.probabilities.tolist(), strict=True)
    content = {
        "model": card.name,
        "image": {"format": picture.format, "width": picture.width, "height": picture.height},
        "predictions": [
            {
                "rank": rank,
                "index": index,
                "class_id": card.labels[index].id,
                "label": getattr(card.labels[index], language),
                "probability": probability,
            }
            for rank, (index, probability) in enumerate(ranked, start=1)
        ],
    }
    return content | {"notes": list(card.notes)} if card.warm_start else content


def attention_answer(card: Card, done: Done, language: Language) -> dict[str, Any]:
    shapes = {block.name: block for block in card.blocks}
    return {
        **predict_answer(card, done, language),
        "notes": list(card.notes),
        "blocks": [_block_answer(shapes[block.name], block) for block in done.answer.blocks],
    }


def _block_answer(shape: Block, seen: BlockAttention) -> dict[str, Any]:
    answer = {
        "name": seen.name,
        "channels": shape.channels,
        "height": shape.height,
        "width": shape.width,
        "weights": shape.weights,
        "gates": {
            "min": seen.minimum,
            "max": seen.maximum,
            "mean": seen.mean,
            "std": seen.std,
            "channel_mean": seen.channel_mean,
        },
        "map": seen.map,
        "effect": seen.effect,
        "top_channels": [
            {
                "channel": channel,
                "weight": shape.weights[channel],
                "gate_mean": seen.channel_mean[channel],
                "map": None if seen.top_maps is None else seen.top_maps[i],
                "effect": None if seen.top_effects is None else seen.top_effects[i],
            }
            for i, channel in enumerate(seen.top)
        ],
    }
    further = {f"map_{method}": map_ for method, map_ in seen.methods.items()}
    every = {} if seen.channel_maps is None else {"channel_maps": seen.channel_maps}
    return {**answer, **further, **every}


def weights_answer(card: Card) -> dict[str, Any]:
    return {
        "model": card.name,
        "sha256": card.sha256,
        "blocks": [{"name": b.name, "channels": b.channels, "weights": b.weights} for b in card.blocks],
        "notes": list(card.notes),
    }


def model_answer(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "classes": len(card.labels),
        "input": {"size": card.size, "crop": card.crop, "layout": "RGB, 0 to 255, the centred square"},
        "blocks": [{"name": b.name, "channels": b.channels, "height": b.height, "width": b.width} for b in card.blocks],
        "labels": [{"class_id": label.id, "en": label.en, "zh": label.zh} for label in card.labels],
        "sha256": card.sha256,
        "max_batch": card.max_batch,
        "lanes": card.lanes,
        "methods": list(card.methods),
        "notes": list(card.notes),
        **card.facts,
    }
