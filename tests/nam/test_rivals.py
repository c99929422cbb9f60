"""The comparators: each against its definition or its parameter count, in the place that NAM has in the block."""

import ast
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nam import rivals, weights
from nam.build import Attention, ModelConfig, build
from nam.files import WeightsError
from nam.rivals import BAM, Half, reduced, rival
from tests.nam.test_attention import features, scrambled
from tests.nam.test_mobilenet import lively

RIVALS = get_args(rivals.Rival)


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("arch", ["resnet18", "resnet20", "resnet50", "mobilenetv2"])
@pytest.mark.parametrize("attention", get_args(Attention))
def test_every_attention_learns_in_every_network(arch: str, attention: str) -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(arch, 5, 32, attention)).train()
    F.cross_entropy(model(images(4)), torch.arange(4)).backward()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(model))
    for name, block in model.blocks():
        assert (block.attention is None) == (attention == "none")
        found = gradients(block.attention or nn.Identity())
        assert bool(found) == (attention not in ("none", "half")), name
        assert not found or any(gradient.any() for gradient in found), name


@pytest.mark.parametrize(
    ("arch", "attention"),
    [("resnet20", kind) for kind in get_args(Attention) if kind != "none"]
    + [("mobilenetv2", "nam"), ("mobilenetv2", "se")],
)
def test_every_single_attention_matters(arch: str, attention: str) -> None:
    torch.manual_seed(0)
    model = lively(build(ModelConfig(arch, 5, 32, attention, "cifar")))
    with torch.inference_mode():
        whole = model(images(2))
        for name, block in model.blocks():
            module, block.attention = block.attention, None
            assert (model(images(2)) - whole).abs().max() > 1e-3 * whole.std(), name
            block.attention = module


@pytest.mark.parametrize("arch", ["resnet20", "mobilenetv2"])
def test_half_is_a_nam_that_never_moves(arch: str) -> None:
    inert = lively(build(ModelConfig(arch, 5, 32, "nam", "cifar")))
    for _, block in inert.blocks():
        nn.init.zeros_(block.attention.channel.bn.weight)
    half = build(ModelConfig(arch, 5, 32, "half", "cifar"))
    half.load_state_dict({name: t for name, t in inert.state_dict().items() if "attention" not in name})
    with torch.inference_mode():
        assert torch.equal(half(images(2)), inert(images(2)))


def test_half_is_exactly_half() -> None:
    x = features(2, 3, 4, 4)
    assert torch.equal(Half()(x), x / 2)
    assert Half()(x.bfloat16()).dtype == torch.bfloat16
    assert not list(Half().parameters())


@pytest.mark.parametrize(("channels", "width"), [(16, 8), (64, 8), (192, 16), (320, 24), (2048, 128)])
def test_parameter_counts(channels: int, width: int) -> None:
    """SE: two 1x1 layers with bias. CBAM: the same without, and 7x7 from two maps to one with its batch norm."""
    norm, c, r = 2 * width, channels, width
    expected = {
        "half": 0,
        "se": 2 * c * r + r + c,
        "cbam": 2 * c * r + 2 * 49 + 2,
        "bam": (c * r + norm + r * c + c) + (c * r + norm) + 2 * (9 * r * r + norm) + (r + 1),
    }
    assert reduced(channels) == width
    with torch.device("meta"):
        counts = {kind: sum(p.numel() for p in rival(kind, channels).parameters()) for kind in RIVALS}
    assert counts == expected


def test_se_is_its_definition() -> None:
    torch.manual_seed(0)
    se, x = rival("se", 16), features(2, 16, 5, 3)
    squeezed = se.fc2(se.fc1(x.mean((2, 3), keepdim=True)).relu())
    torch.testing.assert_close(se(x), x * torch.sigmoid(squeezed))


def test_cbam_is_channels_and_then_pixels() -> None:
    torch.manual_seed(0)
    cbam, x = scrambled(rival("cbam", 16)), features(2, 16, 5, 3)
    pooled = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    mean, most = (cbam.channel.fc2(cbam.channel.fc1(p).relu()) for p in pooled)
    expected = x * torch.sigmoid(mean + most)
    maps = torch.cat([expected.mean(1, keepdim=True), expected.amax(1, keepdim=True)], 1)
    torch.testing.assert_close(cbam(x), expected * torch.sigmoid(cbam.spatial.conv(maps)))


def test_bam_is_its_definition() -> None:
    """Park et al. 2018, eq. 1 and 2: x + x * sigmoid(M_c + M_s), M_c one number a channel and M_s one a pixel."""
    torch.manual_seed(0)
    bam, x = scrambled(BAM(32)).double(), features(2, 32, 11, 9).double()

    def norm(x: Tensor, bn: nn.Module) -> Tensor:
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias).relu()

    into, bn, _, out = bam.channel
    of_channels = norm(x.mean((2, 3)) @ into.weight.T, bn) @ out.weight.T + out.bias
    reduce, bn0, _, first, bn1, _, second, bn2, _, last = bam.spatial
    of_pixels = norm(F.conv2d(x, reduce.weight), bn0)
    of_pixels = norm(F.conv2d(of_pixels, first.weight, padding=4, dilation=4), bn1)
    of_pixels = norm(F.conv2d(of_pixels, second.weight, padding=4, dilation=4), bn2)
    of_pixels = F.conv2d(of_pixels, last.weight, last.bias)
    assert (of_channels.shape, of_pixels.shape) == ((2, 32), (2, 1, 11, 9))
    expected = x + x * torch.sigmoid(of_channels[:, :, None, None] + of_pixels)
    torch.testing.assert_close(bam(x), expected)


@pytest.mark.parametrize("attention", RIVALS)
def test_a_rival_predicts_and_has_no_gates(attention: str) -> None:
    model = build(ModelConfig("resnet20", 5, 32, attention))
    with torch.inference_mode():
        assert model(images(1)).shape == (1, 5)
        with pytest.raises(ValueError, match="without NAM has no gate"):
            model.forward_with_gates(images(1))


def test_the_narrow_width_is_the_one_that_timm_gives_se() -> None:
    from timm.layers import make_divisible

    for channels in range(8, 2049, 8):
        assert reduced(channels) == make_divisible(channels / 16, 8, round_limit=0)


@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_without_timm_it_says_what_to_install(attention: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config, labels = ModelConfig("resnet20", 1, 32, attention), [weights.Label("a", "a")]
    weights.save(tmp_path / "w.safetensors", build(config), weights.Card("w", config, labels))
    for name in ("timm", "timm.layers", "timm.layers.cbam", "timm.layers.squeeze_excite"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'needs timm: pip install "nam-serve\[train\]"'):
        build(config)
    with pytest.raises(WeightsError, match=r"nam-serve\[train\]"):
        weights.load(tmp_path / "w.safetensors")
    x = features(2, 16, 2, 2)
    assert rival("bam", 16)(x).shape == rival("half", 16)(x).shape == x.shape


def test_timm_is_not_imported_before_it_is_needed() -> None:
    """A name that is imported where the file begins is imported by whoever serves."""
    for node in ast.parse(Path(rivals.__file__).read_text(encoding="utf-8")).body:
        assert not isinstance(node, ast.Import | ast.ImportFrom) or "timm" not in ast.unparse(node)


def test_an_unknown_rival_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        rival("nam", 8)
