"""Accuracy, calibration and cost, each against a count made another way."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nam.build import ModelConfig, build
from nam.data import Split
from nam.evaluate import calibration_gaps, cost, evaluate


class Says(nn.Module):
    """Answers with the logits it was given, image by image: the image's first pixel is its number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logits[pixels[:, 0, 0, 0].long()]


def numbered(labels: list[int], classes: int) -> Split:
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    return Split(pixels, torch.tensor(labels), [str(c) for c in range(classes)])


def test_the_calibration_error_by_hand() -> None:
    """0.9 twice, once wrong: |1 - 0.9 - 0.9|. 0.59, right, and 0.55, wrong, are both in (8/15, 9/15] and cancel:
    |1 - 0.59 - 0.55|. Of four images."""
    sure = torch.tensor([0.9, 0.9, 0.59, 0.55])
    logits = torch.stack([sure, 1 - sure], 1).log()
    measured = evaluate(Says(logits), numbered([0, 1, 0, 1], 2), progress=False)
    assert measured == {"top1": 50.0, "top5": 100.0, "ece": round(100 * (0.8 + 0.14) / 4, 2), "images": 4}


def test_the_calibration_error_by_its_definition() -> None:
    """Guo et al. 2017, eq. 3 and 5, in numpy, bin by bin; in batches that do not divide the split."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (250, 7)).astype(np.float32), rng.integers(0, 7, 250)
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            expected += inside.sum() / 250 * abs(right[inside].mean() - confidence[inside].mean())
    best = np.argsort(-logits, 1)[:, :5]
    measured = evaluate(Says(torch.from_numpy(logits)), numbered(labels.tolist(), 7), batch=64, progress=False)
    assert measured["ece"] == pytest.approx(100 * expected, abs=0.006)
    assert measured["top1"] == pytest.approx(100 * right.mean(), abs=0.006)
    assert measured["top5"] == pytest.approx(100 * (best == labels[:, None]).any(1).mean(), abs=0.006)


def test_bins_are_closed_above() -> None:
    edges = torch.tensor([0.0, 1 / 15, 2 / 15, 2 / 15 + 1e-9, 1.0], dtype=torch.float64)
    gaps = calibration_gaps(edges, torch.zeros(5, dtype=torch.bool))
    assert gaps.dtype == torch.float64
    assert (-gaps).tolist() == pytest.approx([1 / 15, 2 / 15, 2 / 15, *[0] * 11, 1])


def test_evaluating_leaves_the_mode_as_it_was() -> None:
    model = build(ModelConfig("resnet20", 4, 32)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, Split(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2).long(), ["a"] * 4))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def convolution(channels_in: int, channels: int, kernel: int, side: int) -> int:
    """Its operations, counted by hand: a multiply and an add for each weight at each pixel of the output."""
    return 2 * channels_in * channels * kernel**2 * side**2


def test_flops_of_resnet18_at_224_px() -> None:
    """He et al. 2015, table 1, say 1.8e9 multiply-adds; here is the sum over its layers."""
    expected = convolution(3, 64, 7, 112) + 4 * convolution(64, 64, 3, 56) + 2 * 512 * 1000
    for width, side in ((128, 28), (256, 14), (512, 7)):
        expected += convolution(width // 2, width, 3, side) + 3 * convolution(width, width, 3, side)
        expected += convolution(width // 2, width, 1, side)
    assert expected == 2 * 1_814_073_344
    for attention in ("none", "nam"):
        assert cost(build(ModelConfig("resnet18", 1000, 224, attention)), 224)["flops"] == expected


def test_parameters_are_those_of_the_reference() -> None:
    """Instantiated from the reference code, 100 classes: plain, and with NAM's two numbers a channel."""
    counts = {"none": 11_220_132, "nam": 11_223_972, "nam-both": 11_229_412}
    for attention, expected in counts.items():
        assert cost(build(ModelConfig("resnet18", 100, 32, attention, "cifar")), 32)["params"] == expected
