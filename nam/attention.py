"""Normalization-based Attention Module (NAM).

Liu, Shao, Teng, Hoffmann, "NAM: Normalization-based Attention Module", NeurIPS 2021 workshop (ImageNet PPF),
https://arxiv.org/abs/2111.12419. Both gates multiply their input, element by element: ``out = x * M(x)``.

* :class:`ChannelNAM`, eq. 2: ``M_c = sigmoid(W_gamma * BN(x))``, ``w_c = |gamma_c| / sum_j |gamma_j|``.
* :class:`SpatialNAM`, eq. 3: the same along pixels, ``M_s = sigmoid(W_lambda * BN_s(x))``, one scale lambda a pixel.
* :class:`NAM`: one of them, or the channel gate first and the spatial gate on its result.

The paper writes ``gamma_i / sum gamma_j``; its released code takes absolute values, and so does this. That code also
detaches the weights: gamma learns through BN alone. That is the default; two options deviate from it, each by name.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Weighting = Literal["sum-one", "unit-mean"]
Kind = Literal["nam", "nam-spatial", "nam-both"]

# Keeps 0/0 away when every scale is zero; far below what an fp32 sum of trained scales can resolve.
_TINY = 1e-12


class Gate(nn.Module):
    """Multiplies its input, element by element, by a gate that the input decides."""

    def gate(self, x: Tensor) -> Tensor:
        """The gate of x (B, C, H, W): fp32, of x's shape, between 0 and 1."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).to(x.dtype)


class _NormalizationGate(Gate):
    """What both gates share: a batch norm whose scales say how much each channel (or pixel) weighs.

    ``weighting="sum-one"`` is the paper's, ``w = |s| / sum |s|``. ``"unit-mean"`` deviates, ``w = n |s| / sum |s|``:
    as published each weight is about 1/n, so the gate stays within thousandths of one half and says nothing.
    ``live_gradient=True`` is a deviation too: the scales also learn through the weights.
    """

    bn: nn.BatchNorm1d | nn.BatchNorm2d

    def __init__(self, *, weighting: Weighting, live_gradient: bool) -> None:
        super().__init__()
        if weighting not in get_args(Weighting):
            raise ValueError(f"weighting must be one of {get_args(Weighting)}, not {weighting!r}")
        self.weighting = weighting
        self.live_gradient = live_gradient

    def weights(self) -> Tensor:
        """The weights w, fp32 of shape (n,); they sum to 1, or to n under ``unit-mean``. All scales zero: all zero."""
        scales = self.bn.weight.float().abs()
        if not self.live_gradient:
            scales = scales.detach()
        shares = scales / (scales.sum() + _TINY)
        return shares * len(shares) if self.weighting == "unit-mean" else shares


class ChannelNAM(_NormalizationGate):
    """Channel attention (eq. 2) for inputs of shape (B, ``channels``, H, W), any H and W."""

    def __init__(self, channels: int, *, weighting: Weighting = "sum-one", live_gradient: bool = False) -> None:
        super().__init__(weighting=weighting, live_gradient=live_gradient)
        self.bn = nn.BatchNorm2d(channels)

    def gate(self, x: Tensor) -> Tensor:
        """M_c(x). The sigmoid is fp32 whatever x is; the batch norm rounds to x's dtype (the folded gate does not)."""
        return torch.sigmoid(self.weights()[:, None, None] * self.bn(x).float())


class SpatialNAM(_NormalizationGate):
    """Spatial attention (eq. 3, "pixel normalization") for inputs of shape (B, C, ``height``, ``width``).

    One scale lambda a pixel: a batch norm over the H*W pixels of the (B, H*W, C) view. It ties the network to one size.
    """

    def __init__(
        self, height: int, width: int, *, weighting: Weighting = "sum-one", live_gradient: bool = False
    ) -> None:
        super().__init__(weighting=weighting, live_gradient=live_gradient)
        self.size = (height, width)
        self.bn = nn.BatchNorm1d(height * width)

    def gate(self, x: Tensor) -> Tensor:
        """M_s(x). Raises ValueError for another H or W than the module was built for."""
        height, width = x.shape[-2:]
        if (height, width) != self.size:
            raise ValueError(
                f"spatial NAM was built for {self.size[0]}x{self.size[1]} features and got {height}x{width}: "
                "it has one scale a pixel, so the network takes one input size only"
            )
        pixels = x.flatten(2).transpose(1, 2)
        argument = self.weights()[:, None] * self.bn(pixels).float()
        return torch.sigmoid(argument).transpose(1, 2).reshape(x.shape)


class NAM(Gate):
    """The module at the end of a block: channel attention, spatial attention, or the one and then the other."""

    def __init__(
        self,
        kind: Kind,
        channels: int,
        height: int,
        width: int,
        *,
        weighting: Weighting = "sum-one",
        live_gradient: bool = False,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, not {kind!r}")
        self.channel: Gate | None = None
        self.spatial: Gate | None = None
        if kind != "nam-spatial":
            self.channel = ChannelNAM(channels, weighting=weighting, live_gradient=live_gradient)
        if kind != "nam":
            self.spatial = SpatialNAM(height, width, weighting=weighting, live_gradient=live_gradient)

    def gate(self, x: Tensor) -> Tensor:
        """What ``forward`` multiplies x by: M_c(x), M_s(x), or M_c(x) * M_s(x * M_c(x))."""
        gate = torch.ones((), device=x.device) if self.channel is None else self.channel.gate(x)
        if self.spatial is None:
            return gate
        return gate * self.spatial.gate(x * gate.to(x.dtype))
