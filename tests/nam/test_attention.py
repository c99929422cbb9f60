"""NAM against its equations, written out again here in float64, and against the traps of the reference code."""

import pytest
import torch
from torch import Tensor, nn

from nam.attention import NAM, ChannelNAM, SpatialNAM


def scrambled(module: nn.Module) -> nn.Module:
    """Batch norms with scales of either sign and statistics that are not the fresh ones, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm1d | nn.BatchNorm2d):
            bn.weight.data.uniform_(-1, 1, generator=generator)
            bn.bias.data.normal_(generator=generator)
            bn.running_mean.normal_(generator=generator)
            bn.running_var.uniform_(0.5, 2, generator=generator)
    return module.eval()


def features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def gate_by_the_paper(x: Tensor, bn: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Eq. 1 and 2 (or 3): sigmoid(w * (gamma (x - mu) / sqrt(var + eps) + beta)), w = |gamma| / sum |gamma|."""
    gamma, beta, mu, var = (t.double().view(shape) for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var))
    w = gamma.abs() / gamma.abs().sum()
    return 1 / (1 + torch.exp(-w * (gamma * (x.double() - mu) / torch.sqrt(var + bn.eps) + beta)))


def test_channel_gate_is_equation_2() -> None:
    module, x = scrambled(ChannelNAM(5)), features(2, 5, 3, 4)
    expected = gate_by_the_paper(x, module.bn, (1, 5, 1, 1))
    torch.testing.assert_close(module.gate(x).double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(module(x).double(), x * expected, rtol=0, atol=1e-6)


def test_spatial_gate_is_equation_3_with_one_scale_a_pixel() -> None:
    module, x = scrambled(SpatialNAM(3, 4)), features(2, 5, 3, 4)
    expected = gate_by_the_paper(x, module.bn, (1, 1, 3, 4))
    torch.testing.assert_close(module.gate(x).double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(module(x).double(), x * expected, rtol=0, atol=1e-6)


def test_both_is_the_channel_gate_and_then_the_spatial_one() -> None:
    module, x = scrambled(NAM("nam-both", 5, 3, 4)), features(2, 5, 3, 4)
    torch.testing.assert_close(module(x), module.spatial(module.channel(x)))
    torch.testing.assert_close(x * module.gate(x), module(x))


def test_weights_sum_to_one_and_unit_mean_weights_to_their_number() -> None:
    for weighting, total in (("sum-one", 1), ("unit-mean", 6)):
        weights = scrambled(ChannelNAM(6, weighting=weighting)).weights()
        assert weights.sum().item() == pytest.approx(total, abs=1e-5)
        assert (weights >= 0).all()


def test_unit_mean_gates_move_further() -> None:
    x = features(2, 64, 4, 4)
    spread = [ChannelNAM(64, weighting=w).eval().gate(x).std().item() for w in ("sum-one", "unit-mean")]
    assert spread[0] < 0.005
    assert spread[1] > 0.1


@pytest.mark.parametrize("weighting", ["sum-one", "unit-mean"])
@pytest.mark.parametrize("kind", ["nam", "nam-spatial"])
def test_all_zero_scales_give_a_gate_of_one_half(kind: str, weighting: str) -> None:
    module, x = NAM(kind, 4, 3, 3, weighting=weighting), features(2, 4, 3, 3)
    for bn in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        nn.init.zeros_(bn.weight)
    assert torch.equal(module.gate(x), torch.full_like(x, 0.5))


def test_by_default_gamma_learns_only_through_the_batch_norm() -> None:
    x, gradients = features(4, 3, 2, 2), {}
    for live in (False, True):
        module = scrambled(ChannelNAM(3, live_gradient=live))
        module.gate(x).sum().backward()
        gradients[live] = module.bn.weight.grad
    module = scrambled(ChannelNAM(3))
    constant = module.weights()[:, None, None]
    torch.sigmoid(constant * module.bn(x)).sum().backward()
    torch.testing.assert_close(gradients[False], module.bn.weight.grad)
    assert not torch.allclose(gradients[True], gradients[False])


def test_channel_mode_takes_any_size_and_spatial_mode_names_its_own() -> None:
    assert ChannelNAM(2)(features(1, 2, 7, 3)).shape == (1, 2, 7, 3)
    with pytest.raises(ValueError, match="built for 3x4 features and got 4x4"):
        SpatialNAM(3, 4)(features(1, 2, 4, 4))


def test_gates_are_fp32_whatever_the_features_are() -> None:
    for module in (ChannelNAM(4), SpatialNAM(2, 2)):
        x = features(2, 4, 2, 2).bfloat16()
        assert module.gate(x).dtype == torch.float32
        assert module(x).dtype == torch.bfloat16


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="weighting"):
        ChannelNAM(4, weighting="softmax")
    with pytest.raises(ValueError, match="kind"):
        NAM("nam-temporal", 4, 2, 2)
