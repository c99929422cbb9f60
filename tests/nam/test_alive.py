"""The measures of an attention, against what they are by definition."""

import math

import pytest
import torch
from torch import nn

from nam.alive import _with_permuted_weights, liveness
from nam.build import Model, ModelConfig, build
from nam.data import Split
from nam.fold import fold
from nam.maps import channel_weights
from tests.nam.test_attention import scrambled


def network() -> Model:
    """Random, and undecided: no class wins on all images, so that a small change of a gate changes some answers."""
    torch.manual_seed(0)
    model = scrambled(build(ModelConfig("resnet20", 4, 32, weighting="unit-mean")))
    with torch.no_grad():
        model.fc.bias -= model(noise(40)).mean(0)
    return model


def noise(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def split_of(model: Model, count: int = 40) -> Split:
    """Images that the network is right about, by definition: their labels are its answers."""
    with torch.inference_mode():
        return Split(noise(count), model(noise(count)).argmax(1), ["a", "b", "c", "d"])


def test_what_is_lost_is_counted_against_the_whole_network() -> None:
    model = network()
    split = split_of(model)
    measured = liveness(model, split, batch=16, progress=False)
    assert [line["block"] for line in measured] == list(channel_weights(model))
    for i, line in enumerate(measured):
        with torch.inference_mode():
            held, gates = model.forward_with_gates(split.pixels, torch.full((40,), i))
            _, free = model.forward_with_gates(split.pixels)
        assert line["top1_lost_held"] == pytest.approx(
            100 * (held.argmax(1) != split.labels).sum().item() / 40, abs=2.6
        )
        assert line["gate_std"] == pytest.approx(free[i].std((1, 2, 3), correction=0).mean().item(), abs=1e-3)
        assert gates[i].std((2, 3)).max() == 0
    assert max(line["top1_lost_held"] for line in measured) > 0


def test_uniform_weights_lose_nothing_when_they_change_places() -> None:
    model = network()
    for _, block in model.blocks():
        nn.init.ones_(block.attention.channel.bn.weight)
    for line in liveness(model, split_of(model), progress=False):
        assert line["max_weight"] == pytest.approx(1, abs=1e-3)
        assert line["weight_entropy"] == pytest.approx(1, abs=1e-4)
        assert line["top1_lost_permuted"] == 0


def test_the_entropy_is_of_the_shares() -> None:
    model = network()
    w = channel_weights(model)["layer3.2"]
    entropy = -sum(p * math.log(p) for p in w.tolist()) / math.log(64)
    assert liveness(model, split_of(model, 4), progress=False)[8]["weight_entropy"] == pytest.approx(entropy, abs=1e-4)


def test_permuted_weights_are_the_same_weights_in_other_places() -> None:
    """Against the gate's definition with w exchanged by hand."""
    model = network()
    w = channel_weights(model)["layer1.0"]
    changed = _with_permuted_weights(fold(model), "layer1.0", w, torch.Generator().manual_seed(3))
    order = torch.randperm(len(w), generator=torch.Generator().manual_seed(3))
    x = torch.randn(2, 16, 4, 4)
    with torch.inference_mode():
        bn = model.layer1[0].attention.channel.bn(x)
        expected = torch.sigmoid((w[order] * len(w))[:, None, None] * bn)
        torch.testing.assert_close(changed.layer1[0].attention.gate(x), expected, rtol=0, atol=1e-4)
