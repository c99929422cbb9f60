"""The sparsity term moves the gradient of each gamma and lambda by exactly p * sign, compiled or not."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from nam import train as training
from nam.build import ModelConfig, build
from nam.penalty import scales, sparsity
from tests.nam.test_train import ALONE, config, folder

__all__ = ["folder"]

P = 0.25


def gradients(run: training.Run, penalty: float) -> list[torch.Tensor]:
    """Of every gamma and lambda, of one fixed batch."""
    run.config = dataclasses.replace(run.config, penalty=penalty)
    run.model.zero_grad()
    images = (torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 255).to(run.device)
    labels = (torch.arange(8) % 2).to(run.device)
    run.loss(images, labels, torch.empty(0, dtype=torch.int64), 1.0).backward()
    return [s.grad.clone() for s in scales(run.model)]


def signed_run(folder: Path, **changes: object) -> training.Run:
    """A network with both gates, some of its scales negative and one of them zero."""
    model = ModelConfig("resnet20", 2, 16, attention="nam-both", weighting="unit-mean")
    run = training.Run(config(folder, model=model, **changes), ALONE)
    with torch.no_grad():
        for s in scales(run.model):
            s.copy_(torch.linspace(-1, 1.5, len(s)))
            s[3] = 0
    return run


@pytest.mark.parametrize("compiled", [False, True])
def test_each_scales_gradient_moves_by_p_times_its_sign(folder: Path, compiled: bool) -> None:
    run = signed_run(folder, compile=compiled)
    without, with_penalty = gradients(run, 0.0), gradients(run, P)
    assert len(without) == 18
    for scale, before, after in zip(scales(run.model), without, with_penalty, strict=True):
        torch.testing.assert_close(after - before, P * scale.detach().sign(), rtol=0, atol=1e-5)


def test_the_term_is_the_sum_of_absolute_scales_and_of_nothing_else() -> None:
    model = build(ModelConfig("resnet20", 2, 16, attention="nam-both"))
    with torch.no_grad():
        for i, s in enumerate(scales(model)):
            nn.init.constant_(s, -i)
    expected = sum(i * len(s) for i, s in enumerate(scales(model)))
    assert sparsity(model).item() == expected


def test_a_network_without_nam_has_nothing_to_penalise() -> None:
    with pytest.raises(ValueError, match="needs a network with NAM"):
        sparsity(build(ModelConfig("resnet20", 2, 16, attention="none")))


def test_a_trained_penalty_makes_the_scales_smaller(folder: Path) -> None:
    ends = []
    for penalty in (0.0, 0.01):
        run = training.Run(config(folder, out=folder.parent / str(penalty), penalty=penalty), ALONE)
        run.epoch(0)
        run.epoch(1)
        ends.append(sparsity(run.model).item())
    assert ends[1] < ends[0] - 1
