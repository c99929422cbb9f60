"""What a network tells of itself: plain JSON, exact, with what limits its attention."""

import json

import pytest
import torch

from nam import maps, weights
from nam.build import ModelConfig, build
from nam.describe import describe
from tests.nam.test_attention import scrambled

CONFIG = ModelConfig("resnet20", 2, 32, weighting="unit-mean")
LABELS = [weights.Label("a", "cat", "猫"), weights.Label("b", "dog")]


def card(config: ModelConfig = CONFIG, **fields: object) -> weights.Card:
    return weights.Card("small", config, LABELS, **fields)


def test_what_is_told_survives_json_to_the_last_bit() -> None:
    model = scrambled(build(CONFIG))
    told = json.loads(json.dumps(describe(model, card())))
    for (name, height, width, shares), (expected, w) in zip(
        told["blocks"], maps.channel_weights(model).items(), strict=True
    ):
        assert (name, height, width) == (expected, *{"1": (32, 32), "2": (16, 16), "3": (8, 8)}[name[5]])
        assert torch.equal(torch.tensor(shares), w)
        assert sum(shares) == pytest.approx(1)


def test_a_label_without_a_chinese_name_has_its_english_one() -> None:
    assert describe(build(CONFIG), card())["labels"] == [["a", "cat", "猫"], ["b", "dog", "dog"]]


def test_the_card_is_told_whole() -> None:
    metrics, recipe = {"val": {"top1": 48.96}}, {"epochs": 3}
    full = card(crop=0.875, metrics=metrics, recipe=recipe, source="here", sha256="5" * 64)
    told = describe(build(CONFIG), full)
    assert (told["name"], told["size"], told["crop"], told["sha256"]) == ("small", 32, 0.875, "5" * 64)
    assert told["facts"] == {"config": CONFIG.to_dict(), "metrics": metrics, "recipe": recipe, "source": "here"}


def test_the_cards_notes_come_before_those_of_the_weights() -> None:
    first, second = describe(build(CONFIG), card(notes=["converted"]))["notes"]
    assert first == "converted"
    assert "uniform channel weights in layer1.0" in second
    assert describe(scrambled(build(CONFIG)), card())["notes"] == []


@pytest.mark.parametrize("attention", ["none", "half", "se", "bam", "cbam"])
def test_a_network_without_nam_has_no_blocks_and_says_so(attention: str) -> None:
    config = ModelConfig("resnet20", 2, 32, attention)
    told = describe(build(config), card(config))
    assert told["blocks"] == []
    assert told["notes"] == ["the network has no NAM: there are no gates to show"]


@pytest.mark.parametrize(("kind", "warm"), [("plain", True), ("torchvision", True), ("official", False), (None, False)])
def test_a_warm_start_is_told_from_trained_weights(kind: str | None, warm: bool) -> None:
    recipe = {"converted": {"kind": kind}} if kind else {"epochs": 3}
    assert describe(build(CONFIG), card(recipe=recipe))["warm_start"] is warm
