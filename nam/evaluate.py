"""Accuracy of a network on a split: what a card's figures are."""

from typing import TypedDict

import torch
from torch import nn
from tqdm import tqdm

from nam.data import Split


class Accuracy(TypedDict):
    """``top1`` and ``top5`` in per cent of ``images``."""

    top1: float
    top5: float
    images: int


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, *, batch: int = 100, progress: bool = True) -> Accuracy:
    """Top-1 and top-5 of ``model`` over every image of ``split``, on the model's device, in its eval mode."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    hits = torch.zeros(2, dtype=torch.int64)
    steps = range(0, len(split), batch)
    for start in tqdm(steps, desc="evaluating", unit="batch", disable=not progress):
        labels = split.labels[start : start + batch]
        top = model(split.pixels[start : start + batch].to(device)).topk(min(5, len(split.classes))).indices.cpu()
        right = top == labels[:, None]
        hits += torch.stack([right[:, 0].sum(), right.sum()])
    model.train(was_training)
    top1, top5 = (100 * hits / len(split)).tolist()
    return {"top1": round(top1, 2), "top5": round(top5, 2), "images": len(split)}
