"""The measures of an attention, against what they are by definition."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from nam.alive import Liveness, liveness, loss, shares, spread, verdict, with_permuted_weights
from nam.build import Model, ModelConfig, build
from nam.data import Split
from nam.fold import fold
from nam.maps import channel_weights
from tests.nam.test_attention import scrambled


def network(attention: str = "nam") -> Model:
    """Random, and undecided: no class wins on all images, so that a small change of a gate changes some answers."""
    torch.manual_seed(0)
    model = scrambled(build(ModelConfig("resnet20", 4, 16, attention, weighting="unit-mean")))
    with torch.no_grad():
        model.fc.bias -= model(noise(40)).mean(0)
    return model


def noise(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def split_of(model: Model, count: int = 40, wrong: int = 0) -> Split:
    """Images whose labels are the network's answers, but for the first ``wrong`` of them."""
    with torch.no_grad():
        labels = model(noise(count)).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 4
    return Split(noise(count), labels, ["a", "b", "c", "d"])


@torch.inference_mode()
def right(model: Model, split: Split, hold: int = -1) -> Tensor:
    """Which images a whole network is right about, with the gates of one block held: bool (N,)."""
    logits, _ = model.forward_with_gates(split.pixels, torch.full((len(split),), hold))
    return logits.argmax(1) == split.labels


@pytest.mark.parametrize("attention", ["nam", "nam-spatial", "nam-both"])
def test_what_is_lost_is_what_whole_networks_lose(attention: str) -> None:
    """The walk that runs only the rest of the network again, against full passes; in batches of unequal size."""
    model = network(attention)
    split, folded = split_of(model, wrong=16), fold(model)
    before, seen = right(folded, split), torch.zeros(2, 2)
    weights = [shares(block.attention.channel or block.attention.spatial) for _, block in model.blocks()]
    measured = liveness(model, split, batch=16, seed=3, progress=False)
    assert [line["block"] for line in measured] == list(channel_weights(model))
    for i, line in enumerate(measured):
        for k, after in enumerate((right(folded, split, i), right(permuted(folded, i, weights[i], 3), split))):
            turned = torch.stack([(before & ~after).sum(), (~before & after).sum()])
            lost, error = loss(turned, 40)
            keys = (("top1_lost_held", "held_error"), ("top1_lost_permuted", "permuted_error"))[k]
            assert [line[key] for key in keys] == [round(lost, 2), round(error, 3)]
            seen[k] += turned
    assert (seen > 0).all()


def permuted(folded: Model, i: int, w: Tensor, seed: int) -> Model:
    """The whole network with the i-th block's w in other places."""
    changed = copy.deepcopy(folded)
    name, block = list(changed.blocks())[i]
    changed.set_submodule(name, with_permuted_weights(block, w, torch.Generator().manual_seed(seed)))
    return changed


def test_gates_deviate_as_the_networks_do() -> None:
    model = network()
    with torch.inference_mode():
        gates = model.forward_with_gates(noise(40))[1]
    for gate, line in zip(gates, liveness(model, split_of(model), batch=16, progress=False), strict=True):
        assert line["gate_std"] == pytest.approx(gate.std((1, 2, 3), correction=0).mean().item(), abs=1e-3)


def test_the_error_is_that_of_paired_answers() -> None:
    """7 turn wrong, 3 right, 90 stay: the standard error of the mean of a hundred numbers -1, 0, 1."""
    moves = torch.tensor([1.0] * 7 + [-1.0] * 3 + [0.0] * 90, dtype=torch.float64)
    lost, error = loss(torch.tensor([7, 3]), 100)
    assert lost == pytest.approx(100 * moves.mean().item())
    assert error == pytest.approx(100 * moves.std(correction=0).item() / math.sqrt(100))
    assert loss(torch.tensor([0, 0]), 100) == (0, 0)


def test_uniform_weights_lose_nothing_when_they_change_places() -> None:
    model = network()
    for _, block in model.blocks():
        nn.init.ones_(block.attention.channel.bn.weight)
    for line in liveness(model, split_of(model), progress=False):
        assert line["max_weight"] == pytest.approx(1, abs=1e-3)
        assert line["weight_entropy"] == pytest.approx(1, abs=1e-4)
        assert (line["top1_lost_permuted"], line["permuted_error"]) == (0, 0)


@pytest.mark.parametrize(
    ("attention", "part"), [("nam", "channel"), ("nam-spatial", "spatial"), ("nam-both", "channel")]
)
def test_the_weights_are_the_channels_or_else_the_pixels(attention: str, part: str) -> None:
    model = network(attention)
    scales = getattr(model.layer3[2].attention, part).bn.weight.abs().tolist()
    w = [scale / sum(scales) for scale in scales]
    line = liveness(model, split_of(model, 4), progress=False)[8]
    assert line["weights_of"] == {"channel": "channels", "spatial": "pixels"}[part]
    assert line["max_weight"] == pytest.approx(max(w) * len(w), abs=1e-3)
    assert line["weight_entropy"] == pytest.approx(-sum(p * math.log(p) for p in w) / math.log(len(w)), abs=1e-4)


def test_one_weight_alone_has_an_entropy() -> None:
    """ResNet-18 at 16 px ends at 1 x 1 pixels."""
    model = scrambled(build(ModelConfig("resnet18", 4, 16, "nam-spatial")))
    line = liveness(model, split_of(model, 2), progress=False)[7]
    assert (line["max_weight"], line["weight_entropy"], line["top1_lost_permuted"]) == (1, 1, 0)


@pytest.mark.parametrize("attention", ["none", "half", "bam"])
def test_where_there_is_no_nam_there_is_nothing_to_measure(attention: str) -> None:
    model = build(ModelConfig("resnet20", 4, 16, attention))
    assert liveness(model, split_of(model, 2), progress=False) == []
    assert verdict([]) == []


@pytest.mark.parametrize(
    ("attention", "part"), [("nam", "channel"), ("nam-spatial", "spatial"), ("nam-both", "channel")]
)
def test_permuted_weights_are_the_same_weights_in_other_places(attention: str, part: str) -> None:
    """Against the gate's definition with w exchanged by hand; of two gates the other stays."""
    block, folded = network(attention).layer3[0], fold(network(attention)).layer3[0]
    gate = getattr(block.attention, part)
    w = shares(gate)
    changed = with_permuted_weights(folded, w, torch.Generator().manual_seed(3))
    order = torch.randperm(len(w), generator=torch.Generator().manual_seed(3))
    gate.weights = lambda: w[order] * len(w)
    x = torch.randn(2, 64, 4, 4)
    with torch.inference_mode():
        expected, before = block.attention.gate(x), folded.attention.gate(x)
        torch.testing.assert_close(changed.attention.gate(x), expected, rtol=0, atol=1e-4)
        assert (before - expected).abs().max() > 0.1


def line(held: tuple[float, float], permuted: tuple[float, float], of: str = "channels") -> Liveness:
    keys = ("top1_lost_held", "held_error", "top1_lost_permuted", "permuted_error")
    return {"weights_of": of, **dict(zip(keys, (*held, *permuted), strict=True))}


LOSES, DOES_NOT, GAINS = (0.9, 0.4), (0.8, 0.4), (-2.0, 0.4)


def test_the_verdict_counts_the_blocks_that_say_something() -> None:
    assert verdict([line(LOSES, LOSES)] * 2) == []
    assert verdict([line(DOES_NOT, GAINS)] * 8) == [
        "gates: held at their mean no block loses top-1 beyond twice its standard error: the maps say nothing",
        "channel weights: permuted among the channels no block loses top-1 beyond twice its standard error: "
        "the ranking of channels says nothing",
    ]
    assert verdict([line(LOSES, DOES_NOT, "pixels"), line(LOSES, LOSES, "pixels")]) == [
        "pixel weights: permuted among the pixels, top-1 falls beyond twice its standard error in 1 of 2 blocks"
    ]


def test_the_spread_of_a_training_log_is_that_of_the_measures() -> None:
    """And the network is left in the mode it was in."""
    model = network().train()
    split = split_of(network(), 20)
    found = spread(model, split.pixels)
    assert model.training
    for line in liveness(model.eval(), split, progress=False):
        assert found[line["block"]] == pytest.approx((line["gate_std"], line["max_weight"]), abs=2e-4)
    assert spread(build(ModelConfig("resnet20", 4, 32, "none")), split.pixels) == {}
