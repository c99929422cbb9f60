"""The command ``nam`` as its users run it, in processes of their own."""

import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.conftest import NAM
from tests.e2e.test_serve import CATS, ESPRESSO


def nam(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([NAM, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def test_predict_labels_photos_and_goes_on_after_a_bad_one(photos: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xffnot a photo")
    done = nam("predict", "--json", "--top-k", 5, photos["cat"], bad, photos["espresso"], code=1)
    cat, espresso = (json.loads(line)["predictions"] for line in done.stdout.splitlines())
    assert CATS & {prediction["class_id"] for prediction in cat}
    assert espresso[0]["class_id"] == ESPRESSO
    assert f"{bad}: The image begins as JPEG but is damaged" in done.stderr


def test_predict_prints_a_table_in_chinese(photos: dict[str, Path]) -> None:
    table = nam("predict", "--lang", "zh", photos["espresso"]).stdout.splitlines()
    assert len(table) == 6
    assert "浓缩咖啡" in table[1]


def test_attention_writes_a_picture_and_the_same_numbers(photos: dict[str, Path], tmp_path: Path) -> None:
    nam("attention", photos["cat"], "-o", tmp_path / "a.png", "--effects")
    nam("attention", photos["cat"], "-o", tmp_path / "a.json")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 800
    assert len(json.loads((tmp_path / "a.json").read_bytes())["blocks"]) == 8


def test_attention_writes_the_form_that_is_asked_for_to_whatever_reads_it(photos: dict[str, Path]) -> None:
    for flags, begins in (
        ([], b"\x89PNG"),
        (["--format", "npz"], b"PK"),
        (["-o", "-", "--format", "json"], b'{"model"'),
    ):
        done = subprocess.run([NAM, "attention", photos["cat"], *flags], capture_output=True, timeout=300, check=True)
        assert done.stdout.startswith(begins)
        assert done.stderr == b""


def test_attention_says_what_channels_do_and_draws_further_maps(photos: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--channel-effects", "--method", "class", "--method", "activation"]
    nam("attention", photos["cat"], "-o", tmp_path / "a.json", *flags)
    last = json.loads((tmp_path / "a.json").read_bytes())["blocks"][-1]
    assert all(isinstance(channel["effect"], float) for channel in last["top_channels"])
    assert {key for key in last if key.startswith("map_")} == {"map_class", "map_activation"}
    assert "is one of activation, class" in nam("attention", photos["cat"], "--method", "magic", code=2).stderr


def test_attention_refuses_a_name_it_cannot_write(photos: dict[str, Path]) -> None:
    assert "ends in .json, .png, .npz" in nam("attention", photos["cat"], "-o", "a.gif", code=2).stderr


def test_check_says_that_all_is_well_or_not(tmp_path: Path) -> None:
    assert json.loads(nam("check").stdout)["ok"] is True
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    done = nam("check", "--weights", tmp_path / "bad.safetensors", code=2)
    assert done.stderr.startswith("nam: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["serve", "predict", "attention", "check", "settings", "train", "evaluate", "export"]
)
def test_every_command_explains_itself(command: str) -> None:
    assert f"usage: nam {command}" in nam(command, "--help").stdout


def test_train_and_evaluate_from_the_command_line(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (16, 16), colour).save(folder / f"{i}.png")
    options = "--arch resnet20 --weighting unit-mean --stages 16:2 --size 16 --batch 8 --ema 0.1 --name colours"
    arguments = ["train", "--data", tmp_path / "data", "--out", tmp_path / "run", *options.split()]
    result = json.loads(nam(*arguments).stdout)
    assert json.loads(nam(*arguments).stdout) == result  # done already: the same command only evaluates again
    evaluated = json.loads(nam("evaluate", "--weights", result["weights"], "--data", tmp_path / "data").stdout)
    assert evaluated["images"] == 16
    assert evaluated["top1"] == result["top1"]
