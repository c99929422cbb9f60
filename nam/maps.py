"""Gates -> what can be said of them: channel weights, statistics, maps, effects. Numbers only; nothing is drawn."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nam.attention import NAM, ChannelNAM
from nam.build import Model
from nam.gated import Seen

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


def activation(model: Model, seen: Seen) -> dict[int, Tensor]:
    """Of every block the energy that its NAM passes on: the root mean square over channels of gate times branch."""
    return {i: passed.float().square().mean(1).sqrt() for i, passed in enumerate(seen.passed)}


def class_activation(model: Model, seen: Seen) -> dict[int, Tensor]:
    """Of the last block what each pixel says for the best label: the mean over pixels, plus the bias, is its logit.

    Zhou et al. 2016, arXiv 1512.04150, equation 2, of the features that the network averages.
    """
    weights = model.linear.weight[seen.logits.argmax(1)].float()
    # No matrix product, as in :func:`summarize`.
    return {len(seen.gates) - 1: (seen.last.float() * weights[:, :, None, None]).sum(1)}


def product(model: Model, seen: Seen) -> dict[int, Tensor]:
    """Of every block, where it is active and the last block speaks for the best label: its activation, times the class
    activation map, clipped at 0 and read at the block's size (bilinear)."""
    (told,) = class_activation(model, seen).values()
    speaks = told.clamp_min(0)[:, None]
    return {
        i: energy * F.interpolate(speaks, energy.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        for i, energy in activation(model, seen).items()
    }


# Further kinds of map, from what a forward computes anyway: block by index, fp32 (B, H, W); not every block has each.
METHODS: dict[str, Callable[[Model, Seen], dict[int, Tensor]]] = {
    "activation": activation,
    "class": class_activation,
    "product": product,
}


def effects(
    model: Model, pixels: Tensor, top: Tensor, hold: Tensor | None = None, hold_channel: Tensor | None = None
) -> Tensor:
    """What gates do for one image's answer, fp32 (n,): the logit of the class ``top``, minus the same with a gate
    replaced, channel by channel, by its mean over the image's H x W. pixels: (3, S, S); top: int64 ().

    ``hold``, ``hold_channel``: int64 (n,), as :meth:`nam.gated.GatedNetwork.look` has them; none: each block in turn,
    whole. One batch of n + 1.
    """
    if hold is None:
        hold = torch.arange(sum(1 for _ in model.blocks()), device=pixels.device)
    if hold_channel is None:
        hold_channel = torch.full_like(hold, -1)
    none = hold.new_tensor([-1])
    images = pixels.expand(len(hold) + 1, -1, -1, -1)
    logits = model.look(images, torch.cat([none, hold]), torch.cat([none, hold_channel])).logits
    of_top = logits.float()[:, top]
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
