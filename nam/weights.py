"""Weights files: safetensors whose header carries the card. Strict both ways, and never a pickle.

Convolution and linear weights are stored in fp16, those converted in the dtype that they had; every batch-norm number
and bias in fp32. A loaded network is fp32.
"""

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nam.build import Model, ModelConfig, build
from nam.files import DEFAULT, WeightsError, verified


@dataclass(frozen=True)
class Label:
    """A class: its id in the data set, its English name, and its Chinese name where there is one."""

    id: str
    en: str
    zh: str = ""


@dataclass(frozen=True)
class Card:
    """What a weights file says of itself. ``crop``: the side of the evaluated square by the image's shorter side;
    ``notes``: what whoever reads the attention must know; ``sha256``: of the file, set by :func:`load`."""

    name: str
    config: ModelConfig
    labels: list[Label]
    crop: float = 1.0
    metrics: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    notes: list[str] = field(default_factory=list)
    sha256: str = ""

    @property
    def warm_start(self) -> bool:
        """Whether the attention is as ``nam convert`` made it, not trained: training writes a card of its own."""
        return self.recipe.get("converted", {}).get("kind") in ("torchvision", "plain")

    def to_json(self) -> str:
        return json.dumps({k: v for k, v in asdict(self).items() if k != "sha256"}, ensure_ascii=False, default=str)

    @classmethod
    def from_json(cls, text: str, sha256: str) -> "Card":
        fields = json.loads(text)
        config = ModelConfig.from_dict(fields.pop("config"))
        labels = [Label(**label) for label in fields.pop("labels")]
        return cls(config=config, labels=labels, sha256=sha256, **fields)


def save(path: Path, model: Model, card: Card, *, kernels: torch.dtype = torch.float16) -> None:
    """Write ``model`` and its card. ValueError where the card's labels do not fit its number of classes.

    ``kernels``: the dtype that convolution and linear weights are stored in.
    """
    if len(card.labels) != card.config.classes:
        raise ValueError(f"{len(card.labels)} labels for {card.config.classes} classes")
    tensors = {name: _stored(tensor, kernels) for name, tensor in model.state_dict().items()}
    try:
        save_file(tensors, path, metadata={"card": card.to_json()})
    except SafetensorError as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error


def load(path: str | Path = DEFAULT, sha256: str = "") -> tuple[Model, Card]:
    """The network, fp32 on the CPU in eval mode, and its card.

    ``path``: a file, or the name of shipped weights; ``sha256``: what the file must have, where it is given. Raises
    WeightsError for a file that is missing, another one, not safetensors, without a card, or whose tensors are not
    exactly those of the network that its card describes.
    """
    file, found = verified(path, sha256)
    try:
        with safe_open(file, framework="pt") as tensors:
            card = Card.from_json((tensors.metadata() or {})["card"], found)
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a dict
        model = build(card.config)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error
    except ImportError as error:
        raise WeightsError(f"{file} cannot be built here: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{file} carries no card that this version understands: {error!r}") from error
    if len(card.labels) != card.config.classes:
        raise WeightsError(f"{file} has {len(card.labels)} labels for {card.config.classes} classes")
    try:
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except RuntimeError as error:
        words = " ".join(str(error).split())  # torch's come in several lines
        raise WeightsError(f"{file} does not hold the network of its card: {words}") from error
    return model, card


def read_labels(path: Path) -> dict[str, Label]:
    """A table ``class_id<TAB>en<TAB>zh`` with a header line, as labels by class id; ``zh`` may be missing."""
    with path.open(encoding="utf-8", newline="") as lines:
        return {
            row["class_id"]: Label(row["class_id"], row["en"], row.get("zh") or "")
            for row in csv.DictReader(lines, delimiter="\t")
        }


def _stored(tensor: torch.Tensor, kernels: torch.dtype) -> torch.Tensor:
    """Kernels and matrices in their dtype; what has one dimension or none (batch norm, biases) as it is."""
    return tensor.detach().cpu().to(kernels if tensor.ndim > 1 else tensor.dtype).contiguous()
