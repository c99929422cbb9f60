"""Two networks' channel weights beside each other, where the difference is known."""

import io
from collections.abc import Callable

import pytest
import torch
from PIL import Image
from torch import Tensor

from nam.build import Model, ModelConfig, build
from nam.diff import compared, diff, draw, table

Scales = Callable[[int], Tensor]


def network(scales: Scales, arch: str = "resnet20", attention: str = "nam") -> Model:
    """With these scales, of the number of channels, in every block's NAM."""
    model = build(ModelConfig(arch, 3, 16, attention))
    for _, block in model.blocks():
        if attention == "nam":
            block.attention.channel.bn.weight.data = scales(block.channels)
    return model


def rising(count: int) -> Tensor:
    return torch.arange(1.0, count + 1)


def exchanged(count: int) -> Tensor:
    """The heaviest and the lightest in each other's place, and all twice as large: shares do not see that."""
    scales = 2 * rising(count)
    scales[[0, -1]] = scales[[-1, 0]]
    return scales


def test_nothing_differs_from_itself() -> None:
    for line in diff(compared(network(rising), network(rising))):
        assert (line["spearman"], line["total_variation"]) == (1.0, 0.0)
        assert (line["before"], line["peak_before"]) == (line["after"], line["peak_after"])


def test_two_channels_that_change_places() -> None:
    """Of 16 channels with scales 1 to 16, sum 136: each of the two moves by 15/136; of the ranks' squared differences,
    2 * 15^2, Spearman's is 1 - 6 * 450 / (16 * 255)."""
    line = diff(compared(network(rising), network(exchanged)))[0]
    assert (line["block"], line["channels"], line["moved"]) == ("layer1.0", 16, 0)
    assert line["total_variation"] == pytest.approx(15 / 136, abs=1e-5)
    assert line["spearman"] == pytest.approx(1 - 6 * 450 / (16 * 255), abs=1e-4)
    assert (line["before"], line["after"]) == (round(16 / 136, 4), round(16 * 16 / 136, 4))
    assert line["peak_before"] == line["peak_after"] == round(16 * 16 / 136, 4)


def test_uniform_weights_rank_nothing() -> None:
    lines = diff(compared(network(torch.ones), network(rising)))
    assert {line["spearman"] for line in lines} == {None}
    assert table(lines).splitlines()[1].split()[2] == "-"


def test_the_table_has_a_line_a_block() -> None:
    told = table(diff(compared(network(rising), network(exchanged)))).splitlines()
    assert [line.split()[0] for line in told[1:]] == [f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3)]
    assert told[1].endswith("channel 0: 0.118 -> 1.882")
    assert table(diff(compared(network(rising), network(rising)))).splitlines()[1].endswith("none")


def test_networks_of_other_blocks_are_refused() -> None:
    for other, said in (
        (network(rising, "resnet18"), "layer1.0 has 16 channels in the first and 64 channels in the second"),
        (network(rising, attention="se"), "the second network has no NAM"),
    ):
        with pytest.raises(ValueError, match=said):
            compared(network(rising), other)
    shorter = network(rising)
    del shorter.layer3[2]
    with pytest.raises(ValueError, match=r"layer3\.2 has no such block in the first and 64 channels in the second"):
        compared(shorter, network(rising))


def test_the_picture_is_the_same_again_and_its_dots_are_the_weights() -> None:
    """Channel 0 of the first panel, w * C from 0.118 to 1.882: left and high, as far off as the scale says."""
    weights = compared(network(rising), network(exchanged))
    picture = draw(weights, ("before", "after"))
    assert picture == draw(weights, ("before", "after"))
    image, end = Image.open(io.BytesIO(picture)).convert("RGB"), 256 / 136 * 1.05
    across, up = (round(200 * w / end) for w in (16 / 136, 256 / 136))
    left, bottom = 44, 34 + 44 + 200
    assert image.getpixel((left + across, bottom - up)) == (158, 40, 100)
    assert image.getpixel((left + up, bottom - up)) != (158, 40, 100)
