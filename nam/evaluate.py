"""What a network reaches on a split, and what it costs: a card's figures, and ``nam evaluate``'s."""

from typing import TypedDict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nam.data import Split

# Bins of the expected calibration error, as in Guo et al.'s tables.
BINS = 15


class Accuracy(TypedDict):
    """``top1`` and ``top5`` in per cent of ``images``; ``ece``: the expected calibration error, in points."""

    top1: float
    top5: float
    ece: float
    images: int


class Cost(TypedDict):
    """``params``: numbers that training moves; ``flops``: of one image's forward."""

    params: int
    flops: int


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, *, batch: int = 100, progress: bool = True) -> Accuracy:
    """``model`` over every image of ``split``, once, on the model's device, in its eval mode."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    hits, gaps = torch.zeros(2, dtype=torch.int64), torch.zeros(BINS, dtype=torch.float64)
    steps = range(0, len(split), batch)
    for start in tqdm(steps, desc="evaluating", unit="batch", disable=not progress):
        labels = split.labels[start : start + batch]
        probabilities = model(split.pixels[start : start + batch].to(device)).float().softmax(1)
        top = probabilities.topk(min(5, len(split.classes)))
        right = top.indices.cpu() == labels[:, None]
        hits += torch.stack([right[:, 0].sum(), right.sum()])
        gaps += calibration_gaps(top.values[:, 0].cpu(), right[:, 0])
    model.train(was_training)
    top1, top5, ece = (100 * torch.cat([hits, gaps.abs().sum()[None]]) / len(split)).tolist()
    return {"top1": round(top1, 2), "top5": round(top5, 2), "ece": round(ece, 2), "images": len(split)}


def calibration_gaps(confidence: Tensor, right: Tensor) -> Tensor:
    """How far being right and the confidence in it part, bin by bin: fp64 (15,), the sum over a bin's images of
    (right - confidence). confidence: (B,), the first answer's probability; right: bool (B,).

    Over n images the absolute sums, added and divided by n, are the expected calibration error of Guo et al. 2017
    (https://arxiv.org/abs/1706.04599), eq. 3 and 5: |B_m|/n * |acc(B_m) - conf(B_m)| over the bins ((m-1)/15, m/15].
    """
    confidence = confidence.double()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    return torch.bincount(bins, right.double() - confidence, BINS)


@torch.inference_mode()
def cost(model: nn.Module, size: int) -> Cost:
    """Of a network as trained, not folded, at ``size`` x ``size`` pixels; a multiply and an add are two operations.

    Counted are convolutions and matrix products. Not counted is what goes element by element: batch norms, activations,
    sums, means, pools and gates. So NAM counts nothing, and of SE, BAM and CBAM only their layers do.
    """
    # Two seconds that nothing else needs.
    from torch.utils.flop_counter import FlopCounterMode

    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        model(pixels)
    return {"params": sum(p.numel() for p in model.parameters()), "flops": counter.get_total_flops()}
