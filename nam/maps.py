"""Gates -> what can be said of them: channel weights, statistics, maps, effects. Numbers only; nothing is drawn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nam.attention import NAM, ChannelNAM
from nam.build import Model

# Below this, max(w) * C says that every channel weighs the same: the weights carry no information.
UNIFORM = 1.01


@dataclass(frozen=True)
class GateSummary:
    """A block's gates, image by image, fp32. ``spread``: (B, 4), the minimum, maximum, mean and standard deviation (of
    the whole population) over channels and pixels; ``channel_mean``: (B, C); ``map``: (B, H, W), the weighted sum."""

    spread: Tensor
    channel_mean: Tensor
    map: Tensor


def channel_weights(model: Model) -> dict[str, Tensor]:
    """``w_c = |gamma_c| / sum |gamma|`` of every block with NAM: fp32 (C,), sum 1 whatever the weighting it was trained
    with (eq. 2). A block whose gate is spatial alone weighs all channels alike; one without NAM has no entry."""
    return {
        name: _weights(block.attention, block.channels)
        for name, block in model.blocks()
        if isinstance(block.attention, NAM)
    }


def summarize(gate: Tensor, weights: Tensor) -> GateSummary:
    """gate: fp32 (B, C, H, W); weights: fp32 (C,), sum 1. The map: ``sum_c w_c * gate_c``, within the gates' range."""
    std, mean = torch.std_mean(gate, (1, 2, 3), correction=0)
    spread = torch.stack([gate.amin((1, 2, 3)), gate.amax((1, 2, 3)), mean, std], 1)
    # Not a matrix product: engines that compute in bf16 would round what goes into one.
    weighted = gate * weights[:, None, None]
    return GateSummary(spread, gate.mean((2, 3)), weighted.sum(1))


def strongest(weights: Tensor) -> Tensor:
    """Channel indices by falling weight, ties by index: int64 (C,)."""
    return weights.argsort(descending=True, stable=True)


def effects(model: Model, pixels: Tensor, top: Tensor) -> Tensor:
    """What each block's gate does for one image's answer: fp32 (blocks,).

    The logit of the class ``top``, minus the same with that block's gate replaced, channel by channel, by its mean over
    the image's H x W. pixels: (3, S, S); top: int64 (). One forward of a batch of one more than there are blocks.
    """
    count = sum(1 for _ in model.blocks())
    hold = torch.arange(-1, count, device=pixels.device)
    logits, _ = model.forward_with_gates(pixels.expand(count + 1, -1, -1, -1), hold)
    of_top = logits.float().gather(1, top.expand(count + 1, 1))[:, 0]
    return of_top[0] - of_top[1:]


def notes(weights: dict[str, Tensor]) -> list[str]:
    """What whoever reads the weights must know: that there are none, or the blocks where they are uniform."""
    if not weights:
        return ["the network has no NAM: there are no gates to show"]
    uniform = [name for name, w in weights.items() if float(w.max()) * len(w) < UNIFORM]
    if not uniform:
        return []
    return [f"uniform channel weights in {', '.join(uniform)}: max(w) * C is below {UNIFORM}, so they rank nothing"]


@torch.no_grad()
def _weights(attention: NAM, channels: int) -> Tensor:
    if not isinstance(attention.channel, ChannelNAM):
        return torch.full((channels,), 1 / channels)
    shares = attention.channel.weights().cpu()
    return shares / shares.sum().clamp_min(1e-12)
