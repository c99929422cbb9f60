"""The folded network is the same function: within 1e-5 in probability, gates included."""

import pytest
import torch
from torch import nn

from nam.build import ModelConfig, build
from nam.fold import fold
from tests.nam.test_attention import scrambled
from tests.nam.test_mobilenet import lively


def pixels(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("attention", ["none", "nam", "nam-spatial", "nam-both"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet20", "resnet50", "mobilenetv2"])
@pytest.mark.parametrize("weighting", ["sum-one", "unit-mean"])
def test_folding_changes_nothing(arch: str, attention: str, weighting: str) -> None:
    torch.manual_seed(0)
    model = lively(build(ModelConfig(arch, 10, 32, attention, "cifar", weighting)))
    folded = fold(model)
    with torch.inference_mode():
        expected, got = model(pixels(32)).softmax(1), folded(pixels(32)).softmax(1)
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["half", "se", "bam", "cbam"])
@pytest.mark.parametrize("arch", ["resnet20", "mobilenetv2"])
def test_a_network_with_a_rival_folds_too(arch: str, attention: str) -> None:
    torch.manual_seed(0)
    model = lively(build(ModelConfig(arch, 10, 32, attention, "cifar")))
    folded, rough = fold(model), fold(model, torch.bfloat16)
    with torch.inference_mode():
        expected, got, near = (m(pixels(32)).float().softmax(1) for m in (model, folded, rough))
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(near, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("arch", ["resnet20", "mobilenetv2"])
def test_folded_gates_are_the_networks(arch: str) -> None:
    """Of the same features: over 17 blocks fp32's roundings would add up."""
    torch.manual_seed(0)
    model = lively(build(ModelConfig(arch, 10, 32, "nam-both", "cifar", "unit-mean")))
    with torch.inference_mode():
        x = model.stem(model.normalize(pixels(32)))
        for (_, block), (_, folded) in zip(model.blocks(), fold(model).blocks(), strict=True):
            branch = block.branch(x)
            torch.testing.assert_close(folded.attention.gate(branch), block.attention.gate(branch), rtol=0, atol=1e-5)
            x = block(x)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "mobilenetv2"])
def test_no_batch_norm_is_left_and_the_original_is_whole(arch: str) -> None:
    model = scrambled(build(ModelConfig(arch, 10, 64)))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    folded = fold(model)
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in folded.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_in_bf16_the_gates_argument_stays_fp32() -> None:
    model = scrambled(build(ModelConfig("resnet20", 10, 32, weighting="unit-mean")))
    folded = fold(model, torch.bfloat16)
    with torch.inference_mode():
        logits, gates = folded.forward_with_gates(pixels(32))
        _, exact = model.forward_with_gates(pixels(32))
    assert logits.dtype == torch.bfloat16
    assert all(gate.dtype == torch.float32 for gate in gates)
    steps = len(gates[0].unique())
    assert steps > 2000  # bf16 has 128 values from one half to one, and as many in every halving below
    assert gates[0].std().item() == pytest.approx(exact[0].std().item(), rel=0.01)
