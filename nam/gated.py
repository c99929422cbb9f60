"""What the networks share: blocks with a module on their branch, and the walk from pixels to logits.

The module sits after the last batch norm of a block's branch, before the shortcut is added, in every block (the paper's
section 3). Gates are returned as values; there are no hooks. Pixels go in raw, 0 to 255: mean and std are part of the
model.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nam.attention import NAM

Stem = Literal["imagenet", "cifar"]

# A module, the name of a convolution in it, and the name of the batch norm that follows the convolution.
Convolution = tuple[nn.Module, str, str]


class GatedBlock(nn.Module):
    """A block with an ``attention`` module (or none) on its branch: NAM or one of its rivals."""

    attention: nn.Module | None

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

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        """The block's output, of its input and of its branch behind the attention; of the branch's shape."""
        raise NotImplementedError

    def convolutions(self) -> Iterator[Convolution]:
        """Every convolution that a batch norm follows, but those of the attention."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        return self.join(x, branch if self.attention is None else self.attention(branch))

    def forward_with_gate(self, x: Tensor, hold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The block's output and its gate, fp32 (B, C, H, W). Raises ValueError for a block without NAM.

        ``hold``: bool (B,); where true the gate is replaced, channel by channel, by its mean over that image's H x W.
        """
        if not isinstance(self.attention, NAM):
            raise ValueError("a block without NAM has no gate")
        branch = self.branch(x)
        gate = self.attention.gate(branch)
        if hold is not None:
            gate = torch.where(hold[:, None, None, None], gate.mean((2, 3), keepdim=True), gate)
        return self.join(x, branch * gate.to(branch.dtype)), gate


class GatedNetwork(nn.Module):
    """The walk: normalise, stem, blocks, head."""

    mean: Tensor
    std: Tensor

    def keep_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """``mean`` and ``std`` of red, green and blue, of pixels from 0 to 1."""
        # Not persistent: the card carries them, a state dict of torchvision does not.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def stem(self, x: Tensor) -> Tensor:
        """What comes before the blocks."""
        raise NotImplementedError

    def blocks(self) -> Iterator[tuple[str, GatedBlock]]:
        """The blocks by name, first to last."""
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        """The last block's output -> logits (B, classes)."""
        raise NotImplementedError

    def convolutions(self) -> Iterator[Convolution]:
        """Every convolution that a batch norm follows, but those of an attention."""
        for _, block in self.blocks():
            yield from block.convolutions()

    def normalize(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) of 0 to 255, uint8 or floating, -> the same shape in the weights' dtype, mean 0 and std 1."""
        return ((pixels - self.mean) / self.std).to(next(self.parameters()).dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), RGB, 0 to 255 -> logits (B, classes)."""
        x = self.stem(self.normalize(pixels))
        for _, block in self.blocks():
            x = block(x)
        return self.head(x)

    def forward_with_gates(self, pixels: Tensor, hold: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, classes) and every block's gate, fp32 (B, C, H, W), first block to last.

        ``hold``: int64 (B,), the index of the block whose gate is held at its mean, image by image; -1 holds none.
        Raises ValueError for a network without NAM.
        """
        x, gates = self.stem(self.normalize(pixels)), []
        for i, (_, block) in enumerate(self.blocks()):
            x, gate = block.forward_with_gate(x, None if hold is None else hold == i)
            gates.append(gate)
        return self.head(x), gates
