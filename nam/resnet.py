"""ResNet with NAM at the end of every block, on torchvision's ResNet and with its parameter names.

The module sits after a block's last batch norm, before ``+ identity`` and the last ReLU, in every block of every stage
(the paper's section 3). Gates are returned as values; there are no hooks. Pixels go in raw, 0 to 255: mean and std are
part of the model.

* ``ResNet``: 18, 34, 50, 101 with the ``imagenet`` stem (7x7 stride 2, max pool) or the ``cifar`` stem (3x3, no pool).
* ``CifarResNet``: the three-stage ResNet-20 of He et al. 2015, section 4.2, for 32 px.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet as tv

from nam.attention import NAM

Stem = Literal["imagenet", "cifar"]


class _Gated(nn.Module):
    """A residual block with an ``attention`` module (or none) on its branch."""

    attention: NAM | None
    conv1: nn.Conv2d
    conv2: nn.Conv2d
    bn1: nn.Module
    bn2: nn.Module
    relu: nn.Module
    downsample: nn.Sequential | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attention = None

    @property
    def channels(self) -> int:
        """C of the block's output."""
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        """The block up to and including its last batch norm."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        return self._join(x, branch if self.attention is None else self.attention(branch))

    def forward_with_gate(self, x: Tensor, hold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The block's output and its gate, fp32 (B, C, H, W).

        ``hold``: bool (B,); where true the gate is replaced, channel by channel, by its mean over that image's H x W.
        """
        branch = self.branch(x)
        if self.attention is None:
            raise ValueError("a block without attention has no gate")
        gate = self.attention.gate(branch)
        if hold is not None:
            gate = torch.where(hold[:, None, None, None], gate.mean((2, 3), keepdim=True), gate)
        return self._join(x, branch * gate.to(branch.dtype)), gate

    def _join(self, x: Tensor, branch: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        joined: Tensor = self.relu(branch + identity)
        return joined


class BasicBlock(_Gated, tv.BasicBlock):
    @property
    def channels(self) -> int:
        return self.conv2.out_channels

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        branch: Tensor = self.bn2(self.conv2(x))
        return branch


class Bottleneck(_Gated, tv.Bottleneck):
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


class _GatedNetwork(nn.Module):
    """The walk that both networks share: normalise, stem, blocks, head."""

    mean: Tensor
    std: Tensor
    conv1: nn.Conv2d
    bn1: nn.Module
    relu: nn.Module
    avgpool: nn.Module
    fc: nn.Linear

    def _keep_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        # Not persistent: the card carries them, a state dict of torchvision does not.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def stages(self) -> Iterator[tuple[str, nn.Sequential]]:
        """The stages by name, first to last."""
        for name, stage in self.named_children():
            if isinstance(stage, nn.Sequential):
                yield name, stage

    def blocks(self) -> Iterator[tuple[str, _Gated]]:
        """The residual blocks by name (``layer1.0`` …), first to last."""
        for name, stage in self.stages():
            for i, block in enumerate(stage):
                if isinstance(block, _Gated):
                    yield f"{name}.{i}", block

    def normalize(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) of 0 to 255, uint8 or floating, -> the same shape in the weights' dtype, mean 0 and std 1."""
        return ((pixels - self.mean) / self.std).to(self.conv1.weight.dtype)

    def head(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), RGB, 0 to 255 -> logits (B, classes)."""
        x = self.stem(self.normalize(pixels))
        for _, stage in self.stages():
            x = stage(x)
        return self.head(x)

    def forward_with_gates(self, pixels: Tensor, hold: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, classes) and every block's gate, fp32 (B, C, H, W), first block to last.

        ``hold``: int64 (B,), the index of the block whose gate is held at its mean, image by image; -1 holds none.
        """
        x, gates = self.stem(self.normalize(pixels)), []
        for i, (_, block) in enumerate(self.blocks()):
            x, gate = block.forward_with_gate(x, None if hold is None else hold == i)
            gates.append(gate)
        return self.head(x), gates


class ResNet(_GatedNetwork, tv.ResNet):
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
        self._keep_normalization(mean, std)

    def stem(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return x


class CifarResNet(_GatedNetwork):
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
        self._keep_normalization(mean, std)

    def stem(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return x


def _stage(width_in: int, width: int, stride: int, depth: int) -> nn.Sequential:
    downsample = None
    if stride != 1:
        downsample = nn.Sequential(tv.conv1x1(width_in, width, stride), nn.BatchNorm2d(width))
    first = BasicBlock(width_in, width, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(depth - 1)))
