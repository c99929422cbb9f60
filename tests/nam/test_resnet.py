"""The networks: parameter counts of nam.md's table (instantiated from the reference code), shapes, gates, goldens."""

import json
from pathlib import Path

import pytest
import torch

from nam.build import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, build
from tests.golden.make import golden_model, golden_pixels

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize(
    ("arch", "attention", "count"),
    [
        ("resnet18", "none", 11_220_132),
        ("resnet18", "nam", 11_223_972),
        ("resnet18", "nam-both", 11_229_412),
        ("resnet50", "none", 23_705_252),
        ("resnet50", "nam", 23_735_460),
        ("resnet50", "nam-both", 23_744_516),
    ],
)
def test_parameter_counts_are_the_references(arch: str, attention: str, count: int) -> None:
    with torch.device("meta"):
        model = build(ModelConfig(arch, 100, 32, attention, "cifar"))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_without_attention_it_is_torchvisions_network(arch: str) -> None:
    import torchvision

    torch.manual_seed(0)
    ours, theirs = build(ModelConfig(arch, 10, 64, "none")), torchvision.models.get_model(arch, num_classes=10).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        got, expected = ours(pixels), theirs((pixels / 255 - mean) / std)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("arch", ["resnet18", "resnet20", "resnet50"])
@pytest.mark.parametrize("attention", ["nam", "nam-spatial", "nam-both"])
def test_every_block_has_its_gate_and_uses_it(arch: str, attention: str) -> None:
    model = build(ModelConfig(arch, 7, 32, attention, "cifar", "unit-mean"))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        logits, gates = model.forward_with_gates(pixels)
        torch.testing.assert_close(logits, model(pixels))
        assert len(gates) == len(list(model.blocks()))
        for (_, block), gate in zip(model.blocks(), gates, strict=True):
            assert gate.shape[1] == block.channels
            assert gate.dtype == torch.float32
            assert 0 <= gate.min() < gate.max() <= 1  # sigmoid rounds to its ends in fp32
        for _, block in model.blocks():
            block.attention = None
        assert not torch.allclose(model(pixels), logits, atol=1e-3)


def test_channel_mode_takes_any_input_size() -> None:
    model = build(ModelConfig("resnet18", 5, 64))
    with torch.inference_mode():
        for size in (33, 64, 97):
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 5)


def test_spatial_mode_refuses_another_size_in_words() -> None:
    model = build(ModelConfig("resnet18", 5, 64, "nam-spatial"))
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
        with pytest.raises(ValueError, match="one input size only"):
            model(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize("size", [32, 33, 64, 75])
def test_spatial_mode_fits_the_size_it_is_built_for(size: int) -> None:
    for config in (ModelConfig("resnet18", 5, size, "nam-both"), ModelConfig("resnet20", 5, size, "nam-both", "cifar")):
        with torch.inference_mode():
            assert build(config)(torch.zeros(1, 3, size, size)).shape == (1, 5)


def test_holding_a_gate_at_its_mean_touches_that_block_and_image_alone() -> None:
    model = build(ModelConfig("resnet20", 7, 32, "nam", weighting="unit-mean"))
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(3, -1, -1, -1)
    with torch.inference_mode():
        plain, _ = model.forward_with_gates(pixels)
        held, gates = model.forward_with_gates(pixels, torch.tensor([-1, 4, 8]))
    torch.testing.assert_close(held[0], plain[0], rtol=0, atol=1e-6)
    assert not torch.allclose(held[1], plain[1], atol=1e-5)
    assert gates[4][1].std((1, 2)).max() == 0
    assert gates[4][0].std((1, 2)).max() > 0
    torch.testing.assert_close(gates[4][1].mean((1, 2)), gates[4][0].mean((1, 2)), rtol=0, atol=1e-6)


def test_golden_logits_and_gates() -> None:
    golden = json.loads((GOLDEN / "resnet20-nam.json").read_text())
    with torch.inference_mode():
        logits, gates = golden_model().forward_with_gates(golden_pixels())
    torch.testing.assert_close(logits, torch.tensor(golden["logits"]), rtol=1e-4, atol=1e-4)
    means = torch.stack([gate.mean((1, 2, 3)) for gate in gates], 1)
    torch.testing.assert_close(means, torch.tensor(golden["gate_means"]), rtol=0, atol=1e-5)
