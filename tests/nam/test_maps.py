"""What is said of gates: weights, statistics, maps and effects, each against its definition."""

import pytest
import torch

from nam import maps
from nam.build import ModelConfig, build
from nam.fold import fold
from tests.nam.test_attention import scrambled
from tests.nam.test_mobilenet import lively


def test_channel_weights_sum_to_one_whatever_the_weighting() -> None:
    for weighting in ("sum-one", "unit-mean"):
        model = scrambled(build(ModelConfig("resnet20", 4, 32, weighting=weighting)))
        gamma = model.layer2[1].attention.channel.bn.weight.abs()
        weights = maps.channel_weights(model)
        assert list(weights) == [f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3)]
        torch.testing.assert_close(weights["layer2.1"], gamma / gamma.sum())


def test_spatial_gates_weigh_channels_alike_and_plain_blocks_have_none() -> None:
    spatial = maps.channel_weights(build(ModelConfig("resnet20", 4, 32, "nam-spatial")))
    assert torch.equal(spatial["layer1.0"], torch.full((16,), 1 / 16))
    for without in ("none", "half", "se", "bam", "cbam"):
        assert maps.channel_weights(build(ModelConfig("resnet20", 4, 32, without))) == {}


def test_the_summary_is_per_image() -> None:
    gate = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    w = torch.tensor([0.1, 0.2, 0.3, 0.4])
    summary = maps.summarize(gate, w)
    one = gate[1].double()
    expected = torch.stack([one.min(), one.max(), one.mean(), ((one - one.mean()) ** 2).mean().sqrt()])
    torch.testing.assert_close(summary.spread[1].double(), expected)
    torch.testing.assert_close(summary.channel_mean[1], gate[1].mean((1, 2)))
    torch.testing.assert_close(summary.map[1], sum(w[c] * gate[1, c] for c in range(4)))


def test_strongest_breaks_ties_by_index() -> None:
    assert maps.strongest(torch.tensor([0.1, 0.3, 0.3, 0.2])).tolist() == [1, 2, 3, 0]


def test_effects_are_differences_of_the_top_logit() -> None:
    model = fold(scrambled(build(ModelConfig("resnet20", 6, 32, weighting="unit-mean"))))
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        logits = model(pixels[None])[0]
        effects = maps.effects(model, pixels, logits.argmax())
        held, _ = model.forward_with_gates(pixels[None], torch.tensor([4]))
    assert effects.shape == (9,)
    assert effects[4].item() == pytest.approx((logits.max() - held[0, logits.argmax()]).item(), abs=1e-5)
    assert effects.abs().max() > 1e-3


def test_a_channels_effect_is_that_of_its_gate_alone_held() -> None:
    """Beside the network a block of which is written out: the branch, its gate with one channel replaced, the rest."""
    torch.manual_seed(0)
    model = lively(build(ModelConfig("resnet20", 6, 32, weighting="unit-mean")))
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        top = model(pixels[None])[0].argmax()
        blocks, x = [block for _, block in model.blocks()], model.stem(model.normalize(pixels[None]))
        for block in blocks[:4]:
            x = block(x)
        branch = blocks[4].branch(x)
        gate = blocks[4].attention.gate(branch)
        gate[:, 9] = gate[:, 9].mean()
        x = blocks[4].join(x, branch * gate)
        for block in blocks[5:]:
            x = block(x)
        expected = model(pixels[None])[0, top] - model.head(x)[0, top]
        (effect,) = maps.effects(model, pixels, top, torch.tensor([4]), torch.tensor([9]))
    assert effect.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(expected) > 1e-4


@pytest.mark.parametrize("config", [ModelConfig("resnet20", 6, 32), ModelConfig("mobilenetv2", 6, 32, stem="cifar")])
def test_the_class_map_adds_up_to_the_logit(config: ModelConfig) -> None:
    model = lively(build(config))
    with torch.inference_mode():
        seen = model.look(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
        ((block, map_),) = maps.class_activation(model, seen).items()
    top, best = seen.logits.max(1)
    assert block == len(seen.gates) - 1
    assert map_.shape == (4, *seen.gates[-1].shape[2:])
    torch.testing.assert_close(map_.mean((1, 2)) + model.linear.bias[best], top, rtol=1e-5, atol=1e-5)
    assert map_.std((1, 2)).min() > 1e-3


def test_the_activation_map_is_the_energy_of_what_each_gate_passes_on() -> None:
    model = scrambled(build(ModelConfig("resnet20", 6, 32)))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        drawn = maps.activation(model, model.look(pixels))
        first = model.layer1[0]
        attended = first.attention(first.branch(model.stem(model.normalize(pixels))))
    torch.testing.assert_close(drawn[0], sum(attended[:, c] ** 2 for c in range(16)).div(16).sqrt())
    assert [tuple(drawn[i].shape) for i in range(9)] == [(2, 32, 32)] * 3 + [(2, 16, 16)] * 3 + [(2, 8, 8)] * 3


def test_the_product_is_the_activation_where_the_last_block_speaks_for_the_label() -> None:
    model = lively(build(ModelConfig("resnet20", 6, 32)))
    with torch.inference_mode():
        seen = model.look(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
        drawn, energy, told = (
            maps.product(model, seen),
            maps.activation(model, seen),
            maps.class_activation(model, seen),
        )
    torch.testing.assert_close(drawn[8], energy[8] * told[8].clamp_min(0))
    assert drawn.keys() == energy.keys()
    # Eight by eight, read twice as fine: a quarter of the way from one centre to the next.
    read = told[8].clamp_min(0)
    between = 0.75 * (0.75 * read[:, 3, 3] + 0.25 * read[:, 3, 4]) + 0.25 * (
        0.75 * read[:, 4, 3] + 0.25 * read[:, 4, 4]
    )
    torch.testing.assert_close(drawn[5][:, 7, 7], energy[5][:, 7, 7] * between)


def test_missing_and_uniform_weights_are_said() -> None:
    assert maps.notes({}) == ["the network has no NAM: there are no gates to show"]
    assert maps.notes({"layer1.0": torch.tensor([0.2, 0.3, 0.5])}) == []
    (note,) = maps.notes({"layer1.0": torch.full((4,), 0.25), "layer2.0": torch.tensor([0.2, 0.8])})
    assert "layer1.0" in note
    assert "layer2.0" not in note
