"""The network as it is served: labels, and everything that is said of its gates, as one function of tensors."""

import torch
from torch import Tensor, nn

from nam import maps
from nam.build import Model
from nam.fold import fold

PARTS = ("spread", "channel_mean", "map", "gates")


class Outputs(nn.Module):
    """The folded network (:func:`nam.fold.fold`). ``names``: of the blocks with NAM.

    Returns probabilities and logits, fp32 (B, classes), and of every block with NAM what
    :func:`nam.maps.summarize` says, spread (B, 4), channel means (B, C), map (B, H, W), and the gates (B, C, H, W).
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        shares = maps.channel_weights(model)
        self.names = list(shares)
        self.network = fold(model, dtype)
        self.shares = nn.ParameterList([nn.Parameter(share, requires_grad=False) for share in shares.values()])

    def forward(self, pixels: Tensor, hold: Tensor | None = None) -> tuple[Tensor, ...]:
        """pixels: uint8 (B, 3, S, S); ``hold``: as :meth:`nam.gated.GatedNetwork.forward_with_gates` has it."""
        if not self.names:
            return self.plain(pixels)
        logits, gates = self.network.forward_with_gates(pixels, hold)
        outputs = _labels(logits)
        for gate, share in zip(gates, self.shares, strict=True):
            seen = maps.summarize(gate, share)
            outputs += (seen.spread, seen.channel_mean, seen.map, gate)
        return outputs

    def plain(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Probabilities and logits alone."""
        return _labels(self.network(pixels))

    def output_names(self) -> list[str]:
        """Of what ``forward`` returns, in its order."""
        return ["probabilities", "logits", *(f"{part}.{name}" for name in self.names for part in PARTS)]


def _labels(logits: Tensor) -> tuple[Tensor, ...]:
    logits = logits.float()
    return logits.softmax(1), logits
