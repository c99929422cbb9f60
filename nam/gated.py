"""What the networks share: blocks with a module on their branch, and the walk from pixels to logits.

The module sits after the last batch norm of a block's branch, before the shortcut is added, in every block (the paper's
section 3). Gates are returned as values; there are no hooks. Pixels go in raw, 0 to 255: mean and std are part of the
model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        """The block's output and its gate, as :meth:`look` has them."""
        out, gate, _ = self.look(x, hold)
        return out, gate

    def look(self, x: Tensor, hold: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The block's output; its gate, fp32 (B, C, H, W); and what NAM passes on, the branch times the gate, of the
        gate's shape in the branch's dtype. Raises ValueError for a block without NAM.

        ``hold``: bool (B, 1) or (B, C); where true the channel's gate is replaced by its mean over that image's H x W.
        """
        if not isinstance(self.attention, NAM):
            raise ValueError("a block without NAM has no gate")
        branch = self.branch(x)
        gate = self.attention.gate(branch)
        if hold is not None:
            gate = torch.where(hold[:, :, None, None], gate.mean((2, 3), keepdim=True), gate)
        passed = branch * gate.to(branch.dtype)
        return self.join(x, passed), gate, passed


@dataclass(frozen=True)
class Seen:
    """What a forward passes on its way. ``logits``: (B, classes); ``gates``: of every block, fp32 (B, C, H, W);
    ``passed``: what each block's NAM passes on, of the gates' shapes; ``last``: what the head averages, 4-d too."""

    logits: Tensor
    gates: list[Tensor]
    passed: list[Tensor]
    last: Tensor


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

    def last(self, x: Tensor) -> Tensor:
        """The last block's output -> what is averaged over pixels, (B, C, H, W)."""
        return x

    def classify(self, last: Tensor) -> Tensor:
        """The average over pixels -> logits (B, classes), by ``linear``."""
        raise NotImplementedError

    @property
    def linear(self) -> nn.Linear:
        """The layer that makes logits."""
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        """The last block's output -> logits (B, classes)."""
        return self.classify(self.last(x))

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
        """Logits and gates, as :meth:`look` has them."""
        seen = self.look(pixels, hold)
        return seen.logits, seen.gates

    def look(self, pixels: Tensor, hold: Tensor | None = None, hold_channel: Tensor | None = None) -> Seen:
        """A forward that keeps what it sees. Raises ValueError for a network without NAM.

        ``hold``: int64 (B,), the index of the block whose gate is held at its mean, image by image; -1 holds none.
        ``hold_channel``: int64 (B,), the only channel of that block that is held; -1 (or none given) holds them all.
        """
        x, gates, passed = self.stem(self.normalize(pixels)), [], []
        for i, (_, block) in enumerate(self.blocks()):
            held = None if hold is None else (hold == i)[:, None]
            if held is not None and hold_channel is not None:
                held = held & _channels(hold_channel, block.channels)
            x, gate, onward = block.look(x, held)
            gates.append(gate)
            passed.append(onward)
        last = self.last(x)
        return Seen(self.classify(last), gates, passed, last)


def _channels(which: Tensor, count: int) -> Tensor:
    """int64 (B,) -> bool (B, count): the one channel, or all where it is -1."""
    return (which < 0)[:, None] | (which[:, None] == torch.arange(count, device=which.device))
