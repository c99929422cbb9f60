"""What is said of gates: weights, statistics, maps and effects, each against its definition."""

import pytest
import torch

from nam import maps
from nam.build import ModelConfig, build
from nam.fold import fold
from tests.nam.test_attention import scrambled


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


def test_missing_and_uniform_weights_are_said() -> None:
    assert maps.notes({}) == ["the network has no NAM: there are no gates to show"]
    assert maps.notes({"layer1.0": torch.tensor([0.2, 0.3, 0.5])}) == []
    (note,) = maps.notes({"layer1.0": torch.full((4,), 0.25), "layer2.0": torch.tensor([0.2, 0.8])})
    assert "layer1.0" in note
    assert "layer2.0" not in note
