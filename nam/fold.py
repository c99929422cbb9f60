"""The same function for inference: batch norms go into their convolutions, NAM becomes ``x * sigmoid(a x + b)``.

At inference a batch norm is affine, so the gate's argument ``w * BN(x)`` is affine too, channel by channel (or pixel by
pixel): ``a = w * gamma / sqrt(var + eps)``, ``b = w * (beta - gamma * mean / sqrt(var + eps))``. NAM's rivals stay as
they are.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nam.attention import NAM, ChannelNAM, Gate, SpatialNAM
from nam.build import Model


class FoldedGate(Gate):
    """``sigmoid(a x + b)`` in fp32 whatever x is; ``a`` and ``b``: fp32 (C, 1, 1) or (1, H, W)."""

    a: Tensor
    b: Tensor

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(torch.addcmul(self.b, x.float(), self.a))


def fold(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """A folded copy of a network in eval mode, with the same forwards; the network itself stays as it is.

    ``dtype``: of convolutions and linear layers, and so of the activations; gates stay fp32. In fp32 the probabilities
    are within 1e-5 of the network's.
    """
    folded = copy.deepcopy(model)
    for owner, convolution, norm in list(folded.convolutions()):
        _fuse(owner, convolution, norm)
    for _, block in folded.blocks():
        if isinstance(block.attention, NAM):
            _fold_gates(block.attention)
    for module in folded.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return folded.requires_grad_(False)


def _fuse(owner: nn.Module, convolution: str, norm: str) -> None:
    fused = fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm))
    setattr(owner, convolution, fused)
    setattr(owner, norm, nn.Identity())


def _fold_gates(attention: NAM) -> None:
    if isinstance(attention.channel, ChannelNAM):
        a, b = _affine(attention.channel)
        attention.channel = FoldedGate(a[:, None, None], b[:, None, None])
    if isinstance(attention.spatial, SpatialNAM):
        shape, (a, b) = (1, *attention.spatial.size), _affine(attention.spatial)
        attention.spatial = FoldedGate(a.view(shape), b.view(shape))


@torch.no_grad()
def _affine(gate: ChannelNAM | SpatialNAM) -> tuple[Tensor, Tensor]:
    bn, w = gate.bn, gate.weights()
    mean, variance = bn.running_mean, bn.running_var
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    slope = bn.weight * torch.rsqrt(variance + bn.eps)
    return w * slope, w * (bn.bias - slope * mean)
