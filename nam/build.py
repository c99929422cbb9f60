"""ModelConfig -> model, and onto its device. A config is plain data: it travels in a weights file's card."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from nam.attention import NAM, Weighting
from nam.gated import Stem
from nam.mobilenet import MobileNetV2
from nam.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet
from nam.rivals import rival

Arch = Literal["resnet18", "resnet20", "resnet34", "resnet50", "resnet101", "mobilenetv2"]
Attention = Literal["none", "half", "nam", "nam-spatial", "nam-both", "se", "bam", "cbam"]
Model = ResNet | CifarResNet | MobileNetV2

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
    """What a network is. ``size``: the side of its square input in pixels; ``attention``: NAM, or one of
    :mod:`nam.rivals`; ``weighting`` and ``live_gradient`` as in :mod:`nam.attention`, where each deviation from the
    paper is said. ``resnet20`` has a stem of its own."""

    arch: Arch
    classes: int
    size: int
    attention: Attention = "nam"
    stem: Stem = "imagenet"
    weighting: Weighting = "sum-one"
    live_gradient: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Raises ValueError for what no network is."""
        if min(self.classes, self.size) < 1:
            raise ValueError("classes and size are at least 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std are three numbers each, and std above 0")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """The inverse of ``to_dict``; TypeError for a field that is unknown or missing."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


def build(config: ModelConfig) -> Model:
    """The network with fresh weights, in eval mode."""
    model = _plain(config)
    _attach(model, config)
    return model.eval()


def choose_device(asked: str = "auto") -> torch.device:
    """``auto``: CUDA where torch finds it, else the CPU; anything else as asked."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device here")
    if asked != "auto":
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(model: Model, device: torch.device) -> Model:
    """The network itself on ``device``, channels last: what convolutions are fastest with, on a CPU and on CUDA."""
    return model.to(device).to(memory_format=torch.channels_last)


def _plain(config: ModelConfig) -> Model:
    if config.arch == "resnet20":
        return CifarResNet(3, classes=config.classes, mean=config.mean, std=config.std)
    if config.arch == "mobilenetv2":
        return MobileNetV2(classes=config.classes, stem=config.stem, mean=config.mean, std=config.std)
    block, layers = _LAYERS[config.arch]
    return ResNet(block, layers, classes=config.classes, stem=config.stem, mean=config.mean, std=config.std)


def _attach(model: Model, config: ModelConfig) -> None:
    for (_, block), (height, width) in zip(model.blocks(), block_sizes(config), strict=True):
        block.attention = _attention(config, block.channels, height, width)


def _attention(config: ModelConfig, channels: int, height: int, width: int) -> nn.Module | None:
    match config.attention:
        case "none":
            return None
        case "half" | "se" | "bam" | "cbam" as kind:
            return rival(kind, channels)
        case kind:
            weighting, live_gradient = config.weighting, config.live_gradient
            return NAM(kind, channels, height, width, weighting=weighting, live_gradient=live_gradient)


@torch.no_grad()
def block_sizes(config: ModelConfig) -> list[tuple[int, int]]:
    """H and W of every block's output, first to last, asked of the plain network where nothing is computed."""
    with torch.device("meta"):
        model = _plain(config).eval()
        x, sizes = model.stem(model.normalize(torch.zeros(1, 3, config.size, config.size))), []
    for _, block in model.blocks():
        x = block(x)
        sizes.append((x.shape[2], x.shape[3]))
    return sizes
