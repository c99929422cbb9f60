"""MobileNetV2 with NAM at the end of every block, on torchvision's MobileNetV2 and with its parameter names.

Sandler et al. 2018, arXiv 1801.04381; the paper's second network. The module sits after the linear projection and its
batch norm, before the shortcut is added, in all 17 inverted residuals, those without a shortcut included.
"""

from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn
from torchvision.models import mobilenetv2 as tv

from nam.gated import Convolution, GatedBlock, GatedNetwork, Stem

# Of each stage: expansion, channels, blocks, stride (the first block's); table 2 of the paper.
_STAGES = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


class InvertedResidual(GatedBlock, tv.InvertedResidual):
    conv: nn.Sequential
    out_channels: int
    use_res_connect: bool

    @property
    def channels(self) -> int:
        return self.out_channels

    def branch(self, x: Tensor) -> Tensor:
        branch: Tensor = self.conv(x)
        return branch

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch if self.use_res_connect else branch

    def convolutions(self) -> Iterator[Convolution]:
        for layer in self.conv:
            if isinstance(layer, nn.Sequential):
                yield layer, "0", "1"
        yield self.conv, str(len(self.conv) - 2), str(len(self.conv) - 1)


class MobileNetV2(GatedNetwork, tv.MobileNetV2):
    """torchvision's MobileNetV2 with gated blocks, ``features.1`` to ``features.17``.

    ``stem``: ``imagenet`` has torchvision's strides, 32 in all. ``cifar`` suits 32 px, which end at 4x4: the first
    convolution and the first stage that downsamples have stride 1, 8 in all.
    """

    features: nn.Sequential
    classifier: nn.Sequential

    def __init__(self, *, classes: int, stem: Stem, mean: Sequence[float], std: Sequence[float]) -> None:
        stages = [list(stage) for stage in _STAGES]
        if stem == "cifar":
            stages[1][3] = 1
        super().__init__(classes, inverted_residual_setting=stages, block=InvertedResidual)
        if stem == "cifar":
            cast(nn.Conv2d, self.features.get_submodule("0.0")).stride = (1, 1)
        self.keep_normalization(mean, std)

    def stem(self, x: Tensor) -> Tensor:
        x = self.features[0](x)
        return x

    def blocks(self) -> Iterator[tuple[str, GatedBlock]]:
        """The inverted residuals by name (``features.1`` …), first to last."""
        for i, block in enumerate(self.features):
            if isinstance(block, GatedBlock):
                yield f"features.{i}", block

    def convolutions(self) -> Iterator[Convolution]:
        yield self.features[0], "0", "1"
        yield from super().convolutions()
        yield self.features[-1], "0", "1"

    def last(self, x: Tensor) -> Tensor:
        wide: Tensor = self.features[-1](x)
        return wide

    def classify(self, last: Tensor) -> Tensor:
        logits: Tensor = self.classifier(last.mean((2, 3)))
        return logits

    @property
    def linear(self) -> nn.Linear:
        return cast(nn.Linear, self.classifier[-1])
