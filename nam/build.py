"""ModelConfig -> model, and onto its device. A config is plain data: it travels in a weights file's card."""

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

import torch

from nam.attention import NAM, Kind, Weighting
from nam.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet, Stem

Arch = Literal["resnet18", "resnet20", "resnet34", "resnet50", "resnet101"]
Attention = Literal["none", "nam", "nam-spatial", "nam-both"]
Model = ResNet | CifarResNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)

_LAYERS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}


@dataclass(frozen=True)
class ModelConfig:
    """What a network is. ``size``: the side of its square input in pixels; ``weighting`` and ``live_gradient`` as in
    :mod:`nam.attention`, where each deviation from the paper is said. ``resnet20`` has a stem of its own."""

    arch: Arch
    classes: int
    size: int
    attention: Attention = "nam"
    stem: Stem = "imagenet"
    weighting: Weighting = "sum-one"
    live_gradient: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The inverse of ``to_dict``; TypeError for a field that is unknown or missing."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


def build(config: ModelConfig) -> Model:
    """The network with fresh weights, in eval mode."""
    model = _plain(config)
    if config.attention != "none":
        _attach(model, config, config.attention)
    return model.eval()


def choose_device(asked: str = "auto") -> torch.device:
    """``auto``: CUDA where torch finds it, else the CPU; anything else as asked."""
    if asked != "auto":
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(model: Model, device: torch.device) -> Model:
    """The network itself on ``device``, channels last: what convolutions are fastest with, on a CPU and on CUDA."""
    return model.to(device).to(memory_format=torch.channels_last)


def _plain(config: ModelConfig) -> Model:
    if config.arch == "resnet20":
        return CifarResNet(3, classes=config.classes, mean=config.mean, std=config.std)
    block, layers = _LAYERS[config.arch]
    return ResNet(block, layers, classes=config.classes, stem=config.stem, mean=config.mean, std=config.std)


def _attach(model: Model, config: ModelConfig, kind: Kind) -> None:
    side = config.size if config.stem == "cifar" or config.arch == "resnet20" else _half(_half(config.size))
    stages = groupby(model.blocks(), key=lambda named: named[0].partition(".")[0])
    for i, (_, blocks) in enumerate(stages):
        side = _half(side) if i else side
        for _, block in blocks:
            block.attention = NAM(
                kind,
                block.channels,
                side,
                side,
                weighting=config.weighting,
                live_gradient=config.live_gradient,
            )


def _half(side: int) -> int:
    """The side after a convolution or pool of stride 2 with "same" padding."""
    return (side + 1) // 2
