"""Whether a network's attention says anything: how far its weights and gates differ, and what is lost without them.

Two experiments, block by block, on a whole split: every gate is held, channel by channel, at its mean over the image
(then it cannot say where); the weights w change places among the channels (then they cannot say which), or among the
pixels where the gate is spatial alone. Where nothing is lost, the attention says nothing.
"""

import copy
import math
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nam.attention import NAM, ChannelNAM, SpatialNAM
from nam.build import Model
from nam.data import Split
from nam.fold import FoldedGate, fold


class Liveness(TypedDict):
    """One block. ``weights_of``: what w ranks; ``max_weight``: max(w) times their number, 1 where w is uniform;
    ``weight_entropy``: of w, over its maximum; ``gate_std``: of the gates over channels and pixels, the mean over
    images; ``top1_lost_held`` and ``top1_lost_permuted``: points of top-1 that the two experiments cost, negative where
    they gain, and their standard errors."""

    block: str
    weights_of: Literal["channels", "pixels"]
    max_weight: float
    weight_entropy: float
    gate_std: float
    top1_lost_held: float
    held_error: float
    top1_lost_permuted: float
    permuted_error: float


@torch.inference_mode()
def liveness(model: Model, split: Split, *, batch: int = 100, seed: int = 0, progress: bool = True) -> list[Liveness]:
    """Measure every block with NAM of a network in eval mode, first to last; none where the attention is another's or
    there is none. ``seed``: of the permutations."""
    gates = {name: _ranking(block.attention) for name, block in model.blocks() if isinstance(block.attention, NAM)}
    if not gates:
        return []
    folded = fold(model)
    permuted = {
        name: with_permuted_weights(block, shares(gates[name]), torch.Generator().manual_seed(seed))
        for name, block in folded.blocks()
        if name in gates
    }
    turned, stds = _measure(folded, permuted, split, batch, progress)
    return [_of_block(name, gates[name], turned[i], float(stds[i]), len(split)) for i, name in enumerate(gates)]


@torch.inference_mode()
def spread(model: Model, pixels: Tensor) -> dict[str, tuple[float, float]]:
    """How far the attention has come to differ, block by block: the gates' standard deviation over channels and pixels,
    the mean over images, and max(w) times the number of weights. pixels: (B, 3, S, S); {} for a network without NAM."""
    gates = {name: _ranking(block.attention) for name, block in model.blocks() if isinstance(block.attention, NAM)}
    if not gates:
        return {}
    was_training, sums = model.training, torch.zeros(len(gates))
    model.eval()
    for part in pixels.split(32):
        _, values = model.forward_with_gates(part.to(next(model.parameters()).device))
        sums += torch.stack([value.std((1, 2, 3), correction=0).sum() for value in values]).cpu()
    model.train(was_training)
    stds = (sums / len(pixels)).tolist()
    peaks = [float(w.max()) * len(w) for w in map(shares, gates.values())]
    return {name: (round(std, 5), round(peak, 4)) for name, std, peak in zip(gates, stds, peaks, strict=True)}


def loss(turned: Tensor, images: int) -> tuple[float, float]:
    """Points of top-1 lost, and their standard error. turned: int64 (2,), how many answers turn wrong, and right.

    The images are the same before and after, so only these count, as in McNemar's test (1947): each image moves top-1
    by -1, 0 or 1, and the error is that of the mean of such numbers.
    """
    wrong, right = turned.tolist()
    difference = wrong - right
    return 100 * difference / images, 100 * math.sqrt(wrong + right - difference**2 / images) / images


def verdict(measures: list[Liveness]) -> list[str]:
    """What a card must say of gates and weights that say nothing: no sentence where they do in every block.

    One block in 44 that says nothing loses twice the standard error by chance, so of eight one, in one run of six.
    """
    if not measures:
        return []
    ranked = measures[0]["weights_of"]
    held = sum(m["top1_lost_held"] > 2 * m["held_error"] for m in measures)
    permuted = sum(m["top1_lost_permuted"] > 2 * m["permuted_error"] for m in measures)
    return [
        *_sentence("gates: held at their mean", "the maps say nothing", held, len(measures)),
        *_sentence(
            f"{ranked[:-1]} weights: permuted among the {ranked}",
            f"the ranking of {ranked} says nothing",
            permuted,
            len(measures),
        ),
    ]


def _sentence(experiment: str, conclusion: str, losing: int, blocks: int) -> list[str]:
    if losing == blocks:
        return []
    if losing == 0:
        return [f"{experiment} no block loses top-1 beyond twice its standard error: {conclusion}"]
    return [f"{experiment}, top-1 falls beyond twice its standard error in {losing} of {blocks} blocks"]


def _of_block(name: str, gate: ChannelNAM | SpatialNAM, turned: Tensor, std: float, images: int) -> Liveness:
    w = shares(gate)
    (held, held_error), (permuted, permuted_error) = (loss(by, images) for by in turned)
    return {
        "block": name,
        "weights_of": "channels" if isinstance(gate, ChannelNAM) else "pixels",
        "max_weight": round(float(w.max()) * len(w), 4),
        "weight_entropy": round(_entropy(w), 5),
        "gate_std": round(std, 4),
        "top1_lost_held": round(held, 2),
        "held_error": round(held_error, 3),
        "top1_lost_permuted": round(permuted, 2),
        "permuted_error": round(permuted_error, 3),
    }


def _ranking(attention: NAM) -> ChannelNAM | SpatialNAM:
    """The gate whose weights are measured: the channels' where there is one."""
    gate = attention.channel or attention.spatial
    if not isinstance(gate, ChannelNAM | SpatialNAM):
        raise ValueError("a folded network has no weights to measure")
    return gate


def shares(gate: ChannelNAM | SpatialNAM) -> Tensor:
    """w, fp32 (C,) or (H*W,) on the CPU, sum 1 whatever the weighting it was trained with."""
    w = gate.weights().cpu()
    return w / w.sum().clamp_min(1e-12)


def _entropy(w: Tensor) -> float:
    """Of w, over its maximum log n; 1 where there is one weight alone."""
    return float(-(w * w.clamp_min(1e-12).log()).sum()) / math.log(len(w)) if len(w) > 1 else 1.0


def _measure(
    model: Model, permuted: dict[str, nn.Module], split: Split, batch: int, progress: bool
) -> tuple[Tensor, Tensor]:
    """Of every block: int64 (blocks, 2, 2), the answers that turn wrong and right when its gate is held and when its
    weights are permuted; and (blocks,), its gates' deviation, the mean over images."""
    turned, stds = torch.zeros(len(permuted), 2, 2, dtype=torch.int64), torch.zeros(len(permuted))
    device = next(model.parameters()).device
    steps = range(0, len(split), batch)
    for start in tqdm(steps, desc="measuring attention", unit="batch", disable=not progress):
        labels = split.labels[start : start + batch]
        answers, deviations = _walk(model, permuted, split.pixels[start : start + batch].to(device))
        right = answers == labels
        before, after = right[-1], right[:-1]
        turned += torch.stack([(before & ~after).sum(1), (~before & after).sum(1)], 1).view(turned.shape)
        stds += deviations
    return turned, stds / len(split)


def _walk(model: Model, permuted: dict[str, nn.Module], pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The answers int64 (2 * blocks + 1, B), each block's held and permuted, the whole network's last; the gates'
    deviations (blocks,), summed over images. Nothing before a changed block changes, so only the rest runs again."""
    blocks, answers, stds = list(model.blocks()), [], []
    x, every = model.stem(model.normalize(pixels)), torch.ones(len(pixels), 1, dtype=torch.bool, device=pixels.device)

    def answer(x: Tensor, start: int) -> Tensor:
        for _, block in blocks[start:]:
            x = block(x)
        return model.head(x).argmax(1)

    for i, (name, block) in enumerate(blocks):
        if name not in permuted:
            x = block(x)
            continue
        answers += [answer(block.forward_with_gate(x, every)[0], i + 1), answer(permuted[name](x), i + 1)]
        x, gate = block.forward_with_gate(x)
        stds.append(gate.std((1, 2, 3), correction=0).sum())
    return torch.stack([*answers, answer(x, len(blocks))]).cpu(), torch.stack(stds).cpu()


def with_permuted_weights(block: nn.Module, w: Tensor, generator: torch.Generator) -> nn.Module:
    """A copy of a folded block with its w in other places: w is a factor of both numbers of a folded gate. Where w is 0
    the gate stays one half."""
    changed = copy.deepcopy(block)
    # Of two gates the first is the channels'.
    gate = next(module for module in changed.modules() if isinstance(module, FoldedGate))
    ratio = (w[torch.randperm(len(w), generator=generator)] / w.clamp_min(1e-12)).to(gate.a.device).view_as(gate.a)
    gate.a *= ratio
    gate.b *= ratio
    return changed
