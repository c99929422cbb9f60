"""Whether a network's attention says anything: how far its weights and gates differ, and what is lost without them.

Two experiments, block by block, on a whole split: every gate is held, channel by channel, at its mean over the image
(then it cannot say where); the channel weights w change places among the channels (then they cannot say which). Where
nothing is lost, the attention says nothing.
"""

import copy
from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor
from tqdm import tqdm

from nam.attention import NAM
from nam.build import Model
from nam.data import Split
from nam.fold import FoldedGate, fold
from nam.maps import channel_weights


class Liveness(TypedDict):
    """One block. ``max_weight``: max(w) * C, 1 where w is uniform; ``weight_entropy``: of w, over its maximum log C;
    ``gate_std``: of the gates over channels and pixels, the mean over images; ``top1_lost_held`` and
    ``top1_lost_permuted``: points of top-1 that the two experiments cost, negative where they gain."""

    block: str
    max_weight: float
    weight_entropy: float
    gate_std: float
    top1_lost_held: float
    top1_lost_permuted: float


@torch.inference_mode()
def liveness(model: Model, split: Split, *, batch: int = 200, seed: int = 0, progress: bool = True) -> list[Liveness]:
    """Measure every block with attention of a network in eval mode; ``seed``: of the permutations."""
    folded = fold(model)
    weights = channel_weights(model)
    whole, stds = _top1(folded, split, batch), _gate_stds(folded, split, batch)
    found: list[Liveness] = []
    for i, (name, w) in enumerate(tqdm(weights.items(), desc="blocks", unit="block", disable=not progress)):
        permuted = _with_permuted_weights(folded, name, w, torch.Generator().manual_seed(seed))
        entropy = -(w * w.clamp_min(1e-12).log()).sum() / torch.tensor(float(len(w))).log()
        found.append(
            {
                "block": name,
                "max_weight": round(float(w.max()) * len(w), 4),
                "weight_entropy": round(float(entropy), 5),
                "gate_std": round(float(stds[i]), 4),
                "top1_lost_held": round(whole - _top1(folded, split, batch, hold=i), 2),
                "top1_lost_permuted": round(whole - _top1(permuted, split, batch), 2),
            }
        )
    return found


def _gate_stds(model: Model, split: Split, batch: int) -> Tensor:
    """Each block's gate deviation, the mean over images: (blocks,)."""
    stds = torch.zeros(sum(1 for _ in model.blocks()))
    for pixels, _ in _batches(model, split, batch):
        gates = model.forward_with_gates(pixels)[1]
        stds += torch.stack([gate.std((1, 2, 3), correction=0).sum() for gate in gates]).cpu()
    return stds / len(split)


def _top1(model: Model, split: Split, batch: int, hold: int = -1) -> float:
    """Top-1 in per cent, with the gates of block ``hold`` at their means (-1: of none)."""
    hits = 0
    for pixels, labels in _batches(model, split, batch):
        held = torch.full((len(pixels),), hold, device=pixels.device)
        hits += int((model.forward_with_gates(pixels, held)[0].argmax(1) == labels).sum())
    return 100 * hits / len(split)


def _batches(model: Model, split: Split, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    for pixels, labels in zip(split.pixels.split(batch), split.labels.split(batch), strict=True):
        yield pixels.to(device), labels.to(device)


def _with_permuted_weights(folded: Model, name: str, w: Tensor, generator: torch.Generator) -> Model:
    """The network with one block's w in other places: w is a factor of both numbers of a folded gate."""
    changed = copy.deepcopy(folded)
    attention = dict(changed.blocks())[name].attention
    if isinstance(attention, NAM) and isinstance(attention.channel, FoldedGate):
        ratio = (w[torch.randperm(len(w), generator=generator)] / w.clamp_min(1e-12))[:, None, None]
        attention.channel.a *= ratio.to(attention.channel.a.device)
        attention.channel.b *= ratio.to(attention.channel.b.device)
    return changed
