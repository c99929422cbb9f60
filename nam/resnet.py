"""ResNet with NAM at the end of every block, on torchvision's ResNet and with its parameter names.

The module sits after a block's last batch norm, before ``+ identity`` and the last ReLU, in every block of every stage.

* ``ResNet``: 18, 34, 50, 101 with the ``imagenet`` stem (7x7 stride 2, max pool) or the ``cifar`` stem (3x3, no pool).
* ``CifarResNet``: the three-stage ResNet-20 of He et al. 2015, section 4.2, for 32 px.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import resnet as tv

from nam.gated import Convolution, GatedBlock, GatedNetwork, Stem


class _Residual(GatedBlock):
    """What both kinds of block share."""

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    bn1: nn.Module
    bn2: nn.Module
    relu: nn.Module
    downsample: nn.Sequential | None

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        joined: Tensor = self.relu(branch + identity)
        return joined

    def convolutions(self) -> Iterator[Convolution]:
        for i in (1, 2, 3):
            if hasattr(self, f"conv{i}"):
                yield self, f"conv{i}", f"bn{i}"
        if self.downsample is not None:
            yield self.downsample, "0", "1"


class BasicBlock(_Residual, tv.BasicBlock):
    @property
    def channels(self) -> int:
        return self.conv2.out_channels

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        branch: Tensor = self.bn2(self.conv2(x))
        return branch


class Bottleneck(_Residual, tv.Bottleneck):
    conv3: nn.Conv2d
    bn3: nn.Module

    @property
    def channels(self) -> int:
        return self.conv3.out_channels

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        branch: Tensor = self.bn3(self.conv3(x))
        return branch


class _Staged(GatedNetwork):
    """What both networks share: stages of blocks between the first convolution and the linear layer."""

    conv1: nn.Conv2d
    bn1: nn.Module
    relu: nn.Module
    avgpool: nn.Module
    fc: nn.Linear

    def blocks(self) -> Iterator[tuple[str, GatedBlock]]:
        """The residual blocks by name (``layer1.0`` …), first to last."""
        for name, stage in self.named_children():
            if isinstance(stage, nn.Sequential):
                for i, block in enumerate(stage):
                    if isinstance(block, GatedBlock):
                        yield f"{name}.{i}", block

    def convolutions(self) -> Iterator[Convolution]:
        yield self, "conv1", "bn1"
        yield from super().convolutions()

    def classify(self, last: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(self.avgpool(last), 1))
        return logits

    @property
    def linear(self) -> nn.Linear:
        return self.fc


class ResNet(_Staged, tv.ResNet):
    """torchvision's ResNet with gated blocks. ``layers``: the number of blocks in each of the four stages."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: list[int],
        *,
        classes: int,
        stem: Stem,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(block, layers, num_classes=classes)
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        self.keep_normalization(mean, std)

    def stem(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return x


class CifarResNet(_Staged):
    """The three-stage network of widths 16, 32, 64 for 32 px images; ``depth`` blocks a stage, 3 for ResNet-20."""

    def __init__(self, depth: int, *, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, 1, depth)
        self.layer2 = _stage(16, 32, 2, depth)
        self.layer3 = _stage(32, 64, 2, depth)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.keep_normalization(mean, std)

    def stem(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return x


def _stage(width_in: int, width: int, stride: int, depth: int) -> nn.Sequential:
    downsample = None
    if stride != 1:
        downsample = nn.Sequential(tv.conv1x1(width_in, width, stride), nn.BatchNorm2d(width))
    first = BasicBlock(width_in, width, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(depth - 1)))
