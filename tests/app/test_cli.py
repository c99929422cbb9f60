"""The command line says again what the configs say, so that help need not import torch; here the two are compared."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from app import cli
from nam.build import Arch, Attention, ModelConfig
from nam.resnet import Stem
from nam.train import TrainConfig

REQUIRED = ["train", "--data", "d", "--out", "o", "--name", "n", "--size", "64", "--stages", "32:4,64:8"]


def test_the_flags_defaults_are_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nam.data.class_count", lambda source: 10)
    config = cli._train_config(cli._parser().parse_args(REQUIRED))
    model = ModelConfig("resnet18", 10, 64)
    assert config == TrainConfig("d", Path("o"), "n", model, ((32, 4), (64, 8)))


def test_every_field_of_the_configs_has_its_flag() -> None:
    given = set(vars(cli._parser().parse_args(REQUIRED)))
    fields = {field.name for config in (ModelConfig, TrainConfig) for field in dataclasses.fields(config)}
    assert fields - given == {"classes", "model"}


@pytest.mark.parametrize(("flag", "kind"), [("--arch", Arch), ("--attention", Attention), ("--stem", Stem)])
def test_every_choice_is_offered(flag: str, kind: object) -> None:
    for choice in get_args(kind):
        assert vars(cli._parser().parse_args([*REQUIRED, flag, choice]))[flag.removeprefix("--")] == choice
