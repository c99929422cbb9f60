"""The command line: its flags against the configs, which it says again so that help need not import torch."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image

from app import cli
from app.model_commands import train_config
from nam import evaluate as measure
from nam import files
from nam.alive import liveness
from nam.build import Arch, Attention, ModelConfig, build, place
from nam.data import load_split
from nam.diff import compared, diff, draw, table
from nam.faithful import faithfulness
from nam.gated import Stem
from nam.recipes import TrainConfig
from nam.weights import Card, Label, load, save

SHORT = ["train", "--data", "d", "--out", "o", "--name", "n", "--size", "64"]
REQUIRED = [*SHORT, "--stages", "32:4,64:8"]


def test_the_flags_defaults_are_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parsed(monkeypatch)
    model = ModelConfig("resnet18", 10, 64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert config == TrainConfig("d", Path("o"), "n", model, ((32, 4), (64, 8)))


def parsed(monkeypatch: pytest.MonkeyPatch, *flags: str) -> TrainConfig:
    """What the flags become, for data of ten classes and a mean and deviation of its own."""
    monkeypatch.setattr("nam.data.class_count", lambda source: 10)
    monkeypatch.setattr("nam.data.statistics", lambda source, size: ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    return train_config(cli._parser().parse_args([*REQUIRED, *flags]))


def test_flags_stand_above_the_recipe_and_the_recipe_above_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parsed(monkeypatch, "--recipe", "paper", "--penalty", "0", "--no-decay-scales", "--stages", "32:7")
    assert (config.schedule, config.ema, config.model.stem) == ("steps", 0.0, "cifar")
    assert (config.penalty, config.decay_scales, config.stages) == (0.0, False, ((32, 7),))


def test_a_recipe_brings_its_length_and_base_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed(monkeypatch)
    short = ["train", "--data", "d", "--out", "o", "--name", "n", "--size", "32"]
    assert train_config(cli._parser().parse_args([*short, "--recipe", "paper"])).stages == ((32, 200),)
    assert train_config(cli._parser().parse_args([*short, "--epochs", "9"])).stages == ((32, 9),)
    for attention in ("none", "se"):
        flags = [*short, "--recipe", "paper", "--attention", attention]
        assert train_config(cli._parser().parse_args(flags)).penalty == 0
    with pytest.raises(ValueError, match="say --epochs or --stages"):
        train_config(cli._parser().parse_args(short))


def test_weights_to_start_from_say_what_the_network_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = ModelConfig("resnet20", 1, 16, "nam", "cifar", "unit-mean", True, (0.3, 0.2, 0.1), (0.3, 0.3, 0.3))
    save(tmp_path / "w.safetensors", build(given), Card("tiny", given, [Label("a", "a")]))
    init = ["--init", str(tmp_path / "w.safetensors")]
    assert parsed(monkeypatch, *init).model == dataclasses.replace(given, classes=10, size=64)
    other = parsed(monkeypatch, *init, "--weighting", "sum-one", "--no-live-gradient").model
    assert (other.weighting, other.live_gradient, other.mean) == ("sum-one", False, given.mean)


def test_every_field_of_the_configs_has_its_flag() -> None:
    given = set(vars(cli._parser().parse_args(REQUIRED)))
    fields = {field.name for config in (ModelConfig, TrainConfig) for field in dataclasses.fields(config)}
    assert fields - given == {"classes", "model"}


@pytest.mark.parametrize(("flag", "kind"), [("--arch", Arch), ("--attention", Attention), ("--stem", Stem)])
def test_every_choice_is_offered(flag: str, kind: object) -> None:
    for choice in get_args(kind):
        assert vars(cli._parser().parse_args([*REQUIRED, flag, choice]))[flag.removeprefix("--")] == choice


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ImageFolder of two classes and six images; the working directory is a fresh one, for the cache."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("blue", 4), ("red", 2)):
        (tmp_path / "data" / "held" / name).mkdir(parents=True)
        for i in range(count):
            colour = (40 * i, 0, 200) if name == "blue" else (200, 40 * i, 0)
            Image.new("RGB", (20, 16), colour).save(tmp_path / "data" / "held" / name / f"{i}.png")
    return tmp_path / "data"


def written(folder: Path, attention: str, ids: tuple[str, ...] = ("blue", "red")) -> str:
    config = ModelConfig("resnet20", len(ids), 16, attention)
    path = folder.parent / f"{'-'.join(ids)}.safetensors"
    save(path, build(config), Card("tiny", config, [Label(i, i) for i in ids]))
    return str(path)


def evaluate(capsys: pytest.CaptureFixture[str], weights: str, folder: Path, *flags: str) -> tuple[int, str, str]:
    code = cli.main(["evaluate", "--weights", weights, "--data", str(folder), "--split", "held", *flags])
    return code, *capsys.readouterr()


def test_evaluate_says_it_all_in_one_line(colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = written(colours, "nam")
    code, out, _ = evaluate(capsys, weights, colours)
    assert (code, out.count("\n")) == (0, 1)
    model, card = load(weights)
    split = load_split(str(colours), "held", 16)
    assert json.loads(out) == {
        "weights": "tiny",
        "sha256": card.sha256,
        "data": str(colours),
        "split": "held",
        "notes": [],
        "classes_by": "id",
        **measure.evaluate(model, split),
        **measure.cost(model, 16),
        "attention": liveness(model, split),
    }


@pytest.mark.parametrize(("attention", "flags"), [("none", []), ("half", []), ("bam", []), ("nam", ["--no-attention"])])
def test_evaluate_without_nam_or_without_its_measures(
    attention: str, flags: list[str], colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = evaluate(capsys, written(colours, attention), colours, *flags)
    assert code == 0
    assert json.loads(out).get("attention") == (None if flags else [])


def test_evaluate_asks_for_faithfulness_of_as_many_images(colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = written(colours, "nam")
    flags = ["--no-attention", "--faithfulness", "--images", "3"]
    said = json.loads(evaluate(capsys, weights, colours, *flags)[1])["faithfulness"]
    model = place(load(weights)[0], torch.device("cpu"))
    assert said["images"] == 3
    assert said == json.loads(json.dumps(faithfulness(model, load_split(str(colours), "held", 16), images=3)))
    assert evaluate(capsys, written(colours, "se"), colours, "--faithfulness")[0] == 2


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Weights of ResNet-20 with NAM, and the same with other scales in the first block."""
    config = ModelConfig("resnet20", 1, 16, "nam")
    model = build(config)
    for name in ("a", "b"):
        save(tmp_path / f"{name}.safetensors", model, Card(name, config, [Label("x", "x")]))
        model.layer1[0].attention.channel.bn.weight.data[3] = 4
    return str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")


def test_weights_diff_as_a_table_as_json_and_as_a_picture(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "diff.png"
    assert cli.main(["weights", "diff", *two, "-o", str(picture)]) == 0
    (first, before), (second, after) = map(load, two)
    both = compared(first, second)
    assert capsys.readouterr().out == table(diff(both)) + "\n"
    assert picture.read_bytes() == draw(both, (f"a {before.sha256[:8]}", f"b {after.sha256[:8]}"))
    assert cli.main(["weights", "diff", *two, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["blocks"] == diff(both)
    assert said["before"] == {"weights": "a", "sha256": before.sha256}
    assert said["blocks"][0]["moved"] == 3


def test_weights_diff_refuses_other_blocks_in_one_line(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "diff", two[0], files.DEFAULT]) == 2
    line = "nam: the networks' blocks differ: layer1.0 has 16 channels in the first and 64 channels in the second\n"
    assert capsys.readouterr().err == line


def test_evaluate_refuses_in_one_line(colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickled = colours.parent / "pickled.pt"
    torch.save({"arch": "resnet18"}, pickled)
    for weights, folder, said in (
        (str(colours / "missing"), colours, "neither a weights file nor the name of shipped weights"),
        (str(pickled), colours, "cannot be read as safetensors"),
        (written(colours, "none", ("a", "b")), colours, "2 of the data's 2 classes are not among the 2 of the network"),
        (written(colours, "none"), colours / "nowhere", "is not a folder"),
    ):
        code, out, err = evaluate(capsys, weights, folder)
        assert (code, out) == (2, "")
        line = err.splitlines()[-1]  # above it, the progress of decoding
        assert line.startswith("nam: ")
        assert said in line


def test_a_package_that_is_not_installed_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nam.convert", None)
    assert cli.main(["convert", "resnet.pth", "-o", "out.safetensors"]) == 2
    assert capsys.readouterr().err == "nam: this needs nam.convert, which is not installed here\n"
