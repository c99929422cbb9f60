"""What NAM is compared with, at its place in the block: after the last batch norm of the branch, before ``+ identity``.

* ``se``: squeeze and excitation, Hu et al. 2018, arXiv 1709.01507; timm's ``SEModule``.
* ``cbam``: Woo et al. 2018, arXiv 1807.06521; timm's ``CbamModule``.
* ``bam``: Park et al. 2018, arXiv 1807.06514; :class:`BAM`, as timm has none. Its authors put it between stages; here
  it stands where the others stand.
* ``half``: the control, :class:`Half`.

All three networks in the gate are narrower by 16, and their width is rounded as timm's SE rounds it. None of the four
has NAM's gates, so none can be shown as an attention.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Rival = Literal["half", "se", "bam", "cbam"]

# timm's default for SE; it would give CBAM one channel where a block has 16.
_DIVISOR = 8


def rival(kind: Rival, channels: int) -> nn.Module:
    """The module for features (B, ``channels``, H, W), any H and W, with fresh weights. ``se`` and ``cbam`` need timm:
    ImportError where it is missing."""
    if kind not in get_args(Rival):
        raise ValueError(f"kind must be one of {get_args(Rival)}, not {kind!r}")
    if kind == "half":
        return Half()
    return BAM(channels) if kind == "bam" else _of_timm(kind, channels)


class Half(nn.Module):
    """Multiplies by one half and learns nothing: what a NAM gate does that never moves from where it starts."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


class BAM(nn.Module):
    """Bottleneck attention: ``x * (1 + sigmoid(M_c(x) + M_s(x)))`` for x (B, ``channels``, H, W).

    M_c (B, C, 1, 1): the mean over H x W through two layers. M_s (B, 1, H, W): two 3x3 convolutions of dilation 4
    between 1x1 ones. Batch norm and ReLU follow every layer but a branch's last, as in the authors' code; their paper
    puts one batch norm at each branch's end. The sum is the paper's; their code multiplies the two.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = reduced(channels)
        self.channel = nn.Sequential(
            nn.Linear(channels, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, channels),
        )
        self.spatial = nn.Sequential(
            *_layer(channels, width, 1),
            *_layer(width, width, 3),
            *_layer(width, width, 3),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        argument = self.channel(x.mean((2, 3)))[:, :, None, None] + self.spatial(x)
        return x * (1 + torch.sigmoid(argument))


def reduced(channels: int) -> int:
    """The width in the gate: ``channels`` / 16, to the nearest multiple of 8, at least 8."""
    return max(_DIVISOR, int(channels / 16 + _DIVISOR / 2) // _DIVISOR * _DIVISOR)


def _layer(width_in: int, width: int, kernel: int) -> list[nn.Module]:
    """A convolution, its batch norm and ReLU; a 3x3 one has dilation 4. H and W stay."""
    dilation = 1 if kernel == 1 else 4
    padding = kernel // 2 * dilation
    convolution = nn.Conv2d(width_in, width, kernel, padding=padding, dilation=dilation, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _of_timm(kind: Literal["se", "cbam"], channels: int) -> nn.Module:
    try:
        from timm.layers.cbam import CbamModule
        from timm.layers.squeeze_excite import SEModule
    except ImportError as error:
        raise ImportError(f'attention {kind!r} needs timm: pip install "nam-serve[train]"') from error
    module: nn.Module = (SEModule if kind == "se" else CbamModule)(channels, rd_divisor=_DIVISOR)
    return module
