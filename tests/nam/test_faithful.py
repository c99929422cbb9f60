"""Faithfulness on networks whose answers are known to rest on one patch, or on one channel."""

from collections.abc import Iterator

import pytest
import torch
from pytorch_grad_cam import GradCAM, HiResCAM
from torch import Tensor, nn
from torch.nn import functional as F

from nam import channel_order
from nam.attention import NAM
from nam.build import Model, ModelConfig, build
from nam.data import Split
from nam.deletion import scores
from nam.explain import every_map, gradient_maps
from nam.faithful import controls, faithfulness, joined, map_curves, map_scores
from nam.fold import fold
from nam.gated import Convolution, GatedBlock, GatedNetwork
from nam.maps import METHODS, channel_weights
from tests.nam.test_alive import network, noise, split_of

SIDE, CHANNELS, SPEAKS = 32, 12, 5


class Passes(GatedBlock):
    """What comes in, through NAM."""

    channels = CHANNELS

    def branch(self, x: Tensor) -> Tensor:
        return x

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        return branch

    def convolutions(self) -> Iterator[Convolution]:
        return iter(())


class SeesRed(GatedNetwork):
    """Twelve channels, of which one reads what is red beyond one half, and the others as much of green; the first label
    says how much red there is, the second that there is little."""

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.keep_normalization((0, 0, 0), (1, 1, 1))
        self.only, self.linear_layer = Passes(), nn.Linear(CHANNELS, 2)
        self.only.attention = NAM("nam", CHANNELS, SIDE, SIDE, weighting="unit-mean")
        self.only.attention.channel.bn.weight.data = scales
        self.linear_layer.weight.data = torch.zeros(2, CHANNELS)
        self.linear_layer.weight.data[0, SPEAKS] = 400.0
        self.linear_layer.bias.data = torch.tensor([0.0, 1.0])
        self.eval()

    def stem(self, x: Tensor) -> Tensor:
        colours = torch.ones(CHANNELS, dtype=torch.int64)
        colours[SPEAKS] = 0
        return F.relu(x - 0.5)[:, colours]

    def blocks(self) -> Iterator[tuple[str, GatedBlock]]:
        yield "only", self.only

    @property
    def linear(self) -> nn.Linear:
        return self.linear_layer

    def classify(self, last: Tensor) -> Tensor:
        return self.linear_layer(last.mean((2, 3)))


def patches(count: int) -> tuple[Tensor, Tensor]:
    """Grey images with a red and a green patch of 8 x 8 pixels; and where the red one is, a map of 4 x 4."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.stack([torch.randperm(16, generator=generator)[:2] for _ in range(count)])
    red, green = (F.one_hot(cells[:, i], 16).view(count, 4, 4).float() for i in (0, 1))
    pixels = torch.full((count, 3, SIDE, SIDE), 75.0)
    pixels[:, 0] += 180 * F.interpolate(red[:, None], SIDE)[:, 0]
    pixels[:, 1] += 180 * F.interpolate(green[:, None], SIDE)[:, 0]
    return pixels, red


@pytest.mark.parametrize("fill", ["blur", "colour"])
def test_a_map_that_points_at_the_evidence_beats_random_ones_and_the_centre(fill: str) -> None:
    model, (pixels, red) = fold(SeesRed(torch.ones(CHANNELS))), patches(40)
    maps = {("right", "only"): red, ("wrong", "only"): -red, ("gradcam", "only"): torch.rand(40, 4, 4)}
    maps |= controls({4}, pixels, torch.Generator().manual_seed(0))
    with torch.no_grad():
        curves = dict(map_curves(model, maps, pixels, fill))
    rows = {row["method"]: row for row in map_scores(curves, {key: len(map_[0]) for key, map_ in maps.items()}, fill)}
    for control in ("over_random", "over_centre", "over_gradcam"):
        assert rows["right"][control] > 5 * rows["right"][f"{control}_error"] > 0
        assert rows["wrong"][control] < 0
    assert rows["right"]["deletion"][1] < 0.8 < 0.95 < rows["right"]["deletion"][0]


def test_a_score_over_a_control_is_paired() -> None:
    """Three images; curves that are 0 but for one number each, 6 times the score."""
    generator = torch.Generator().manual_seed(0)
    curves = {key: torch.zeros(2, 7, 3) for key in (("map", "a"), ("random", "4x4"), ("centre", ""), ("gradcam", "a"))}
    for curve in curves.values():
        curve[1, 3] = 6 * torch.rand(3, generator=generator)
    row = map_scores(curves, dict.fromkeys(curves, 4), "blur")[0]
    values = {key: curve[1, 3] / 6 for key, curve in curves.items()}
    assert row["score"] == pytest.approx(values["map", "a"].mean().item(), abs=1e-4)
    for name, key in (("random", ("random", "4x4")), ("centre", ("centre", "")), ("gradcam", ("gradcam", "a"))):
        difference = values["map", "a"] - values[key]
        assert row[f"over_{name}"] == pytest.approx(difference.mean().item(), abs=1e-4)
        assert row[f"over_{name}_error"] == pytest.approx((difference.std() / 3**0.5).item(), abs=1e-4)


def test_grad_cam_is_compared_with_where_it_is_best() -> None:
    curves = {("gradcam", "a"): torch.zeros(2, 7, 2), ("gradcam", "b"): torch.zeros(2, 7, 2)}
    curves |= {("random", "4x4"): torch.zeros(2, 7, 2), ("centre", ""): torch.zeros(2, 7, 2)}
    curves["gradcam", "b"][1, 3] = 6
    rows = map_scores(curves, dict.fromkeys(curves, 4), "blur")
    assert {row["gradcam_block"] for row in rows} == {"b"}
    assert [row["over_gradcam"] for row in rows] == [-1, 0, -1, -1]


def test_the_channel_that_carries_the_answer_goes_first_where_the_weights_say_so() -> None:
    """Its scale is the largest, or the smallest: the order by weight beats random ones, or loses to them."""
    generator = torch.Generator().manual_seed(0)
    pixels = patches(20)[0]
    pixels[::2] = pixels[::2].flip(1)  # half without red
    for scale, sign in ((3.0, 1), (0.01, -1)):
        scales = torch.rand(CHANNELS, generator=generator) + 0.5
        scales[SPEAKS] = scale
        model = SeesRed(scales)
        rows = {row["order"]: row for row in channels_of(model, pixels, generator)}
        for order in ("weight", "slope"):
            assert sign * rows[order]["over_random"] > 0
        assert sign * rows["weight"]["score"] > sign * 0.1


def channels_of(model: GatedNetwork, pixels: Tensor, generator: torch.Generator) -> list[channel_order.ChannelScore]:
    folded = fold(model)
    orders = channel_order.orders(folded, channel_weights(model), generator)
    with torch.no_grad():
        means = channel_order.means_passed(folded, pixels.split(7))
        parts = [dict(channel_order.channel_curves(folded, orders, means, part)) for part in pixels.split(7)]
    return channel_order.channel_scores(joined(parts))


def test_a_channel_that_has_gone_says_the_same_of_every_image() -> None:
    """With every channel gone, the end of a curve is the answer to the mean of what NAM passes on."""
    model, pixels = fold(SeesRed(torch.ones(CHANNELS))), patches(6)[0]
    with torch.no_grad():
        passed = model.look(pixels).passed[0]
        expected = model.classify(passed.mean((0, 2, 3))[None, :, None, None]).softmax(1)[0]
        means = channel_order.means_passed(model, pixels.split(4))
        order = {"only": {"weight": torch.arange(12.0)}}
        curves = dict(channel_order.channel_curves(model, order, means, pixels))["weight", "only"]
    assert curves[0, -1].tolist() == pytest.approx([expected[0].item()] * 6, abs=1e-5)


def test_the_rest_of_the_network_is_the_network() -> None:
    """Curves that begin with nothing gone begin with the probability of the whole network, whatever the block."""
    model = network()
    folded, pixels = fold(model), noise(4)
    with torch.no_grad():
        expected = model(pixels).softmax(1).amax(1).tolist()
        orders = channel_order.orders(folded, channel_weights(model), torch.Generator())
        means = channel_order.means_passed(folded, [pixels])
        for (order, _), curves in channel_order.channel_curves(folded, orders, means, pixels):
            assert curves[0, 0].tolist() == pytest.approx(expected, abs=1e-4), order


def test_the_slope_is_the_folded_gates_and_a_spatial_gate_ranks_no_channels() -> None:
    model = network()
    found = channel_order.orders(fold(model), channel_weights(model), torch.Generator())
    bn = model.layer1[0].attention.channel.bn
    w = 16 * bn.weight.abs() / bn.weight.abs().sum()
    torch.testing.assert_close(
        found["layer1.0"]["slope"], (w * bn.weight / (bn.running_var + bn.eps).sqrt()).abs().data
    )
    spatial = network("nam-spatial")
    assert channel_order.orders(fold(spatial), channel_weights(spatial), torch.Generator()) == {}


@pytest.mark.parametrize(("method", "package"), [("gradcam", GradCAM), ("hirescam", HiResCAM)])
def test_gradient_maps_are_those_of_pytorch_grad_cam(method: str, package: type) -> None:
    """Which clips them at 0, reads them at the input's size, and before and after stretches each from 0 to 1."""
    model, pixels = network(), noise(3).float()
    ours = gradient_maps(model, pixels)
    for name, block in model.blocks():
        with package(model=model, target_layers=[block]) as theirs:
            expected = torch.from_numpy(theirs(pixels.clone(), None))
        clipped = stretched(ours[method, name].clamp_min(0))
        read = F.interpolate(clipped[:, None], (16, 16), mode="bilinear", align_corners=False)[:, 0]
        torch.testing.assert_close(stretched(read), expected, rtol=0, atol=1e-4)


def stretched(maps: Tensor) -> Tensor:
    low = maps - maps.amin((1, 2), keepdim=True)
    return low / (low.amax((1, 2), keepdim=True) + 1e-7)


def test_at_the_last_block_gradient_maps_are_the_class_map() -> None:
    model = network()
    found = every_map(fold(model), channel_weights(model), noise(4))
    for method in ("gradcam", "hirescam"):
        torch.testing.assert_close(found[method, "layer3.2"] * 16, found["class", "layer3.2"], rtol=1e-4, atol=1e-4)


def test_every_method_of_the_service_is_measured() -> None:
    model = network()
    result = faithfulness(model, split_of(model, 6), images=4, progress=False)
    assert result["images"] == 4
    assert {"map", *METHODS, "gradcam", "hirescam", "random", "centre"} == {row["method"] for row in result["maps"]}
    assert {row["fill"] for row in result["maps"]} == {"blur", "colour"}
    assert len(result["channels"]) == 9 * 3
    assert {(row["method"], row["block"]) for row in result["sanity"]} == set(
        every_map(model, channel_weights(model), noise(1))
    )
    assert faithfulness(model, split_of(model, 6), images=4, progress=False) == result


def test_images_are_drawn_and_no_more_than_there_are() -> None:
    model = network()
    assert faithfulness(model, split_of(model, 3), images=500, progress=False)["images"] == 3


def test_a_network_without_nam_is_refused() -> None:
    model: Model = build(ModelConfig("resnet20", 4, 16, "none"))
    with pytest.raises(ValueError, match="the network has no NAM"):
        faithfulness(model, Split(noise(2), torch.zeros(2).long(), ["a"] * 4), progress=False)


def test_the_score_of_what_says_nothing_is_nothing() -> None:
    """A map that is the same everywhere ranks pixels from the top left: the patch is there no more than elsewhere."""
    model, (pixels, _) = fold(SeesRed(torch.ones(CHANNELS))), patches(200)
    with torch.no_grad():
        curves = dict(map_curves(model, {("map", "only"): torch.zeros(200, 4, 4)}, pixels, "colour"))["map", "only"]
    found = scores(curves)
    assert abs(found.mean()) < 3 * found.std() / 200**0.5
