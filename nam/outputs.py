"""The network as it is served: labels, and everything that is said of its gates, as one function of tensors."""

import torch
from torch import Tensor, nn

from nam import maps
from nam.build import Model
from nam.fold import fold


class Outputs(nn.Module):
    """The folded network (:func:`nam.fold.fold`). ``names``: of the blocks with NAM.

    What it says has names: ``probabilities`` and ``logits``, fp32 (B, classes); of every block with NAM, as in
    ``map.layer1.0``, what :func:`nam.maps.summarize` says, ``spread`` (B, 4), ``channel_mean`` (B, C) and ``map``
    (B, H, W), and ``gates`` (B, C, H, W); and :data:`nam.maps.METHODS`, as in ``map_activation.layer1.0``.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        shares = maps.channel_weights(model)
        self.names = list(shares)
        self.network = fold(model, dtype)
        self.shares = nn.ParameterList([nn.Parameter(share, requires_grad=False) for share in shares.values()])

    def forward(
        self, pixels: Tensor, hold: Tensor | None = None, hold_channel: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """All there is, for an export. pixels: uint8 (B, 3, S, S); the others as :meth:`nam.gated.GatedNetwork.look`
        has them."""
        return tuple(self.look(pixels, hold, hold_channel, methods=True).values())

    def look(
        self,
        pixels: Tensor,
        hold: Tensor | None = None,
        hold_channel: Tensor | None = None,
        *,
        methods: bool = False,
    ) -> dict[str, Tensor]:
        """By name, without the further maps unless ``methods``."""
        if not self.names:
            return self.plain(pixels)
        seen = self.network.look(pixels, hold, hold_channel)
        said = _labels(seen.logits)
        for name, gate, share in zip(self.names, seen.gates, self.shares, strict=True):
            summary = maps.summarize(gate, share)
            said |= {f"spread.{name}": summary.spread, f"channel_mean.{name}": summary.channel_mean}
            said |= {f"map.{name}": summary.map, f"gates.{name}": gate}
        for method, drawn in maps.METHODS.items() if methods else ():
            said |= {f"map_{method}.{self.names[i]}": map_ for i, map_ in drawn(self.network, seen).items()}
        return said

    def plain(self, pixels: Tensor) -> dict[str, Tensor]:
        """Probabilities and logits alone."""
        return _labels(self.network(pixels))


def _labels(logits: Tensor) -> dict[str, Tensor]:
    logits = logits.float()
    return {"probabilities": logits.softmax(1), "logits": logits}
