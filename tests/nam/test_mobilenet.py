"""MobileNetV2: torchvision's network without attention, and NAM in all of its 17 blocks, before the shortcut."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from nam import maps
from nam.build import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, build
from tests.nam.test_attention import features, scrambled

CHANNELS = [16] + 2 * [24] + 3 * [32] + 4 * [64] + 3 * [96] + 3 * [160] + [320]
# Of what each block gives for 32 px.
SIDES = {
    "imagenet": [16] + 2 * [8] + 3 * [4] + 7 * [2] + 4 * [1],
    "cifar": 3 * [32] + 3 * [16] + 7 * [8] + 4 * [4],
}


def pixels(size: int, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def lively(model: nn.Module) -> nn.Module:
    """Scrambled, but with the statistics of noise of 32 px: with others a signal dies on the way through 52 layers."""
    for module in scrambled(model).train().modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1
    with torch.no_grad():
        model(pixels(32, 8).float())
    return model.eval()


@pytest.mark.parametrize(
    ("attention", "added"),
    [
        ("none", 0),
        ("nam", 2 * sum(CHANNELS)),
        ("nam-spatial", 2 * sum(side**2 for side in SIDES["cifar"])),
        ("nam-both", 2 * sum(CHANNELS) + 2 * sum(side**2 for side in SIDES["cifar"])),
    ],
)
def test_parameter_counts_are_torchvisions_and_what_nam_adds(attention: str, added: int) -> None:
    with torch.device("meta"):
        model = build(ModelConfig("mobilenetv2", 1000, 32, attention, "cifar"))
    assert sum(p.numel() for p in model.parameters()) == 3_504_872 + added


def test_without_attention_it_is_torchvisions_network() -> None:
    torch.manual_seed(0)
    theirs = lively(torchvision.models.mobilenet_v2(num_classes=10))
    ours = build(ModelConfig("mobilenetv2", 10, 64, "none"))
    ours.load_state_dict(theirs.state_dict())
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        got, expected = ours(pixels(64)), theirs((pixels(64) / 255 - mean) / std)
    assert expected.std() > 1e-2
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_with_nam_it_keeps_torchvisions_names() -> None:
    theirs = set(torchvision.models.mobilenet_v2().state_dict())
    ours = set(build(ModelConfig("mobilenetv2", 10, 32)).state_dict())
    assert theirs < ours
    assert {name.rsplit(".", 4)[0] for name in ours - theirs} == {f"features.{i}" for i in range(1, 18)}


@pytest.mark.parametrize(("attention", "stem"), [("nam", "imagenet"), ("nam-spatial", "cifar"), ("nam-both", "cifar")])
def test_all_seventeen_blocks_have_their_gate(attention: str, stem: str) -> None:
    model = lively(build(ModelConfig("mobilenetv2", 7, 32, attention, stem, "unit-mean")))
    with torch.inference_mode():
        logits, gates = model.forward_with_gates(pixels(32, 2))
        torch.testing.assert_close(logits, model(pixels(32, 2)))
    assert [name for name, _ in model.blocks()] == [f"features.{i}" for i in range(1, 18)]
    assert [gate.shape[1] for gate in gates] == [block.channels for _, block in model.blocks()] == CHANNELS
    assert all(gate.dtype == torch.float32 and gate.std() > 0 for gate in gates)
    assert [gate.shape[2] for gate in gates] == SIDES[stem]


def test_the_attention_comes_before_the_shortcut_is_added() -> None:
    model = scrambled(build(ModelConfig("mobilenetv2", 7, 32)))
    for i, shortcut in ((2, False), (3, True)):
        block = model.features[i]
        x = features(2, block.conv[0][0].in_channels, 6, 6)
        with torch.inference_mode():
            attended = block.attention(block.conv(x))
            torch.testing.assert_close(block(x), x + attended if shortcut else attended)


@pytest.mark.parametrize(("size", "stem"), [(33, "imagenet"), (75, "imagenet"), (33, "cifar")])
def test_spatial_mode_fits_the_size_it_is_built_for_and_no_other(size: int, stem: str) -> None:
    model = build(ModelConfig("mobilenetv2", 5, size, "nam-both", stem))
    with torch.inference_mode():
        assert model(pixels(size)).shape == (1, 5)
        with pytest.raises(ValueError, match="one input size only"):
            model(pixels(size + 32))


def test_channel_mode_takes_any_input_size() -> None:
    model = build(ModelConfig("mobilenetv2", 5, 64))
    with torch.inference_mode():
        for size in (33, 64, 97):
            assert model(pixels(size)).shape == (1, 5)


def test_weights_and_effects_are_of_every_block() -> None:
    model = lively(build(ModelConfig("mobilenetv2", 6, 32, stem="cifar", weighting="unit-mean")))
    gamma = model.features[5].attention.channel.bn.weight.abs()
    torch.testing.assert_close(maps.channel_weights(model)["features.5"], gamma / gamma.sum())
    with torch.inference_mode():
        top = model(pixels(32))[0].argmax()
        held, _ = model.forward_with_gates(pixels(32), torch.tensor([4]))
        effects = maps.effects(model, pixels(32)[0], top)
    assert effects.shape == (17,)
    assert effects[4].item() == pytest.approx((model(pixels(32))[0, top] - held[0, top]).item(), abs=1e-5)
    assert effects.abs().min() > 1e-5
