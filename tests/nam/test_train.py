"""The training program on a small made data set: it learns, resumes to the same numbers, and writes its card."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from nam import train as training
from nam import weights
from nam.build import ModelConfig
from nam.data import class_count, load_split, statistics
from nam.evaluate import evaluate
from nam.penalty import scales
from nam.processes import Place
from nam.recipes import RECIPES, TrainConfig
from nam.transforms import (
    cutmix,
    erase,
    load_square,
    mixup,
    padded_crop,
    random_resized_crop,
    trivial_augment,
)

ALONE = Place(torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes, red and blue noise, 24 px; the working directory is a fresh one, for the cache."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for channel, name in ((0, "red"), (2, "blue")):
            place = tmp_path / "data" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 90, (24, 30, 3), dtype=np.uint8)
                image[..., channel] += 120
                Image.fromarray(image).save(place / f"{i}.png")
    return tmp_path / "data"


def config(folder: Path, **changes: object) -> TrainConfig:
    model = ModelConfig("resnet20", 2, 16, weighting="unit-mean")
    base = TrainConfig(
        str(folder), folder.parent / "run", "colours", model, stages=((12, 1), (16, 2)), batch=16, ema=0.5
    )
    return dataclasses.replace(base, **changes)


def test_a_run_learns_and_writes_its_card(folder: Path) -> None:
    result = training.train(config(folder, holdout=8, cutmix=0.0, mixup=0.2))
    assert result["top1"] == 100.0
    _, card = weights.load(result["weights"])
    assert [label.id for label in card.labels] == ["blue", "red"]
    assert card.metrics["val"] == {"top1": 100.0, "top5": 100.0, "ece": result["ece"], "images": 16}
    assert card.recipe["epochs"] == 3
    assert card.recipe["images"] == 40
    log = [json.loads(line) for line in (folder.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["side"] for line in log] == [12, 16, 16]
    assert log[-1]["held_out"]["images"] == 8


def test_an_interrupted_run_goes_on_to_the_same_weights(folder: Path) -> None:
    whole = config(folder, out=folder.parent / "whole", cutmix=1.0)
    training.train(whole)
    parts = config(folder, out=folder.parent / "parts", cutmix=1.0)
    first = training.Run(parts, ALONE)
    first.epoch(0)
    training.train(parts)
    one, other = (weights.load(c.out / "model.safetensors")[0].state_dict() for c in (whole, parts))
    for name, tensor in one.items():
        assert torch.equal(other[name], tensor), name


def test_another_runs_checkpoint_is_not_taken(folder: Path) -> None:
    training.Run(config(folder), ALONE).epoch(0)
    with pytest.raises(ValueError, match="other settings"):
        training.train(config(folder, seed=1))


def test_the_card_tells_what_evaluating_the_file_gives(folder: Path) -> None:
    """Not perfect on purpose: half of what is red in val lies among the blue."""
    for i in range(4):
        (folder / "val" / "red" / f"{i}.png").rename(folder / "val" / "blue" / f"other-{i}.png")
    result = training.train(config(folder))
    model, card = weights.load(result["weights"])
    again = evaluate(model, load_split(str(folder), "val", 16))
    assert card.metrics["val"] == again
    assert again["top1"] < 100


def test_classes_that_are_not_the_networks_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "blue")
    with pytest.raises(ValueError, match="1 classes that are not the 2"):
        training.train(config(folder))


def test_fewer_images_than_a_batch_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="48 images to train on are less than a batch of 64"):
        training.train(config(folder, batch=64))


def test_a_moved_image_is_decoded_again(folder: Path) -> None:
    load_split(str(folder), "val", 16)
    (folder / "val" / "red" / "0.png").rename(folder / "val" / "blue" / "9.png")
    (folder / "val" / "blue" / "0.png").rename(folder / "val" / "red" / "9.png")
    split = load_split(str(folder), "val", 16)
    red_is_red = split.pixels[split.labels == 1][:, 0].float().mean((1, 2)) > 100
    assert red_is_red.sum() == 7


def test_nothing_with_one_dimension_decays(folder: Path) -> None:
    run = training.Run(config(folder), ALONE)
    kernels, rest, attention = run.optimizer.param_groups
    assert [group["weight_decay"] for group in (kernels, rest, attention)] == [5e-4, 0, 0]
    assert {p.ndim for p in rest["params"] + attention["params"]} == {1}
    gammas = {id(block.attention.channel.bn.weight) for _, block in run.model.blocks()}
    assert gammas == {id(p) for p in attention["params"]}
    assert sum(len(group["params"]) for group in (kernels, rest, attention)) == len(list(run.model.parameters()))


def test_the_rate_warms_up_and_falls_to_zero(folder: Path) -> None:
    c = config(folder)
    rates = [training._rate(c, epoch) for epoch in (0.5, 1.0, 2.0, 3.0)]
    assert rates == pytest.approx([0.05, 0.1, 0.05, 0], abs=1e-3)


def test_a_split_is_decoded_once_and_then_read(folder: Path) -> None:
    first = load_split(str(folder), "val", 16)
    for image in folder.rglob("val/*/*.png"):
        image.write_bytes(b"")
    again = load_split(str(folder), "val", 16)
    assert torch.equal(first.pixels, again.pixels)
    assert first.classes == ["blue", "red"]
    assert first.pixels.shape == (16, 3, 16, 16)
    assert class_count(str(folder)) == 2


def test_a_torchvision_dataset_is_taken_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with CIFAR100's signature and attributes: the real one would be downloaded."""

    class Stand:
        classes: ClassVar = ["dark", "light"]
        targets: ClassVar = [0, 1, 1]

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert (root, download) == (str(tmp_path), True)
            self.base = 0 if train else 10

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (32, 32), (self.base + 100 * i,) * 3), self.targets[i]

    monkeypatch.setattr("torchvision.datasets.STAND", Stand, raising=False)
    for split, base in (("train", 0), ("val", 10)):
        loaded = load_split("STAND", split, 16, cache=tmp_path)
        assert loaded.pixels[:, 0, 0, 0].tolist() == [base, base + 100, base + 200]
        assert loaded.labels.tolist() == [0, 1, 1]
    assert class_count("STAND", tmp_path) == 2


def test_data_that_is_nowhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="torchvision has no dataset"):
        load_split(str(tmp_path / "nowhere"), "train", 8)


def test_training_and_serving_see_the_same_pixels() -> None:
    from app.images import decode

    photo = Path(__file__).parent.parent / "golden" / "photo.jpg"
    for size, crop in ((64, 1.0), (80, 0.875)):
        served = decode(photo.read_bytes(), size=size, crop=crop, max_pixels=10**6).pixels
        assert np.array_equal(load_square(photo, size, crop), served)


def test_random_crops_stay_within_the_image_and_repeat_with_their_generator() -> None:
    pixels = torch.randint(50, 200, (4, 3, 20, 20), dtype=torch.uint8)
    one, again = (random_resized_crop(pixels, 12, (0.3, 1), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, again)
    assert one.shape == (4, 3, 12, 12)
    assert one.min() >= 50
    assert one.max() <= 199


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_padded_crop_is_a_shifted_and_perhaps_flipped_image_on_black() -> None:
    image = torch.arange(1, 1 + 3 * 16 * 16).reshape(1, 3, 16, 16) % 255 + 1
    out = padded_crop(image.to(torch.uint8).expand(400, -1, -1, -1), seeded(0))
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2)).float()
    possible = [
        torch.flip(part, [3]) if flip else part
        for y in range(5)
        for x in range(5)
        for flip in (False, True)
        for part in [padded[:, :, y : y + 16, x : x + 16]]
    ]
    counts = [int((out == one).all((1, 2, 3)).sum()) for one in possible]
    assert sum(counts) == 400
    assert min(counts) > 0


def test_erasing_fills_one_box_with_the_mean_and_leaves_the_rest() -> None:
    pixels = torch.rand(300, 3, 32, 32, generator=seeded(1)) * 255
    erased = erase(pixels, 0.4, seeded(2))
    changed = (erased != pixels).any(1)
    touched = changed.flatten(1).any(1)
    assert 90 < touched.sum() < 150
    for mask, image in zip(changed[touched], erased[touched], strict=True):
        ys, xs = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = image[:, ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
        assert mask.sum() == box[0].numel()
        torch.testing.assert_close(box, pixels.mean((0, 2, 3))[:, None, None].expand_as(box))
    shares = changed[touched].float().mean((1, 2))
    assert shares.min() < 0.06
    assert 0.2 < shares.max() < 0.4


def test_trivial_augment_repeats_with_its_generator_and_leaves_the_global_one() -> None:
    pixels = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=seeded(3))
    before = torch.get_rng_state()
    one, again, other = (trivial_augment(pixels, seeded(seed)) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == pixels.shape
    assert one.dtype == torch.uint8


def test_the_paper_recipe_is_the_papers() -> None:
    """Figures from the paper's script, as its readers report them: x0.2 at epochs 60, 120 and 160 of 200."""
    paper = {k: v for k, v in RECIPES["paper"].items() if k not in ("epochs", "stem")}
    model = ModelConfig("resnet50", 100, 32, stem="cifar")
    c = TrainConfig("CIFAR100", Path("run"), "paper", model, stages=((32, 200),), **paper)
    rates = [training._rate(c, epoch) for epoch in (0, 59.9, 60, 119.9, 120, 159.9, 160, 199.9)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])
    assert (c.batch, c.weight_decay, c.penalty, c.nesterov, c.decay_scales) == (128, 5e-4, 1e-4, False, True)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_trains(folder: Path, recipe: str) -> None:
    changes = {k: v for k, v in RECIPES[recipe].items() if k not in ("epochs", "stem")}
    run = training.Run(config(folder, stages=((16, 2),), **{**changes, "warmup_epochs": 1.0}), ALONE)
    run.epoch(0)
    run.epoch(1)
    losses = [json.loads(line)["loss"] for line in (run.config.out / "log.jsonl").read_text().splitlines()]
    assert all(0 < loss < 3 for loss in losses)


def test_the_scales_have_a_learning_rate_of_their_own(folder: Path) -> None:
    moved = []
    for share in (0.0, 1.0, 10.0):
        run = training.Run(config(folder, out=folder.parent / str(share), scale_lr=share), ALONE)
        run.epoch(0)
        moved.append(max(float((s.detach() - 1).abs().max()) for s in scales(run.model)))
    assert moved[0] == 0
    assert 0 < moved[1] < moved[2]


def test_training_goes_on_from_given_weights_with_a_head_for_other_classes(folder: Path) -> None:
    training.train(config(folder))
    init = folder.parent / "run" / "model.safetensors"
    start = training._start(config(folder, init=init), ["blue", "red"])
    given, _ = weights.load(init)
    assert all(torch.equal(start.state_dict()[name], t) for name, t in given.state_dict().items())
    other = training._start(config(folder, init=init, model=ModelConfig("resnet20", 7, 16)), list("abcdefg"))
    assert other.fc.out_features == 7
    assert torch.equal(other.layer1[0].conv1.weight, given.layer1[0].conv1.weight)
    renamed = training._start(config(folder, init=init), ["green", "red"])
    assert not torch.equal(renamed.fc.weight, given.fc.weight)
    with pytest.raises(ValueError, match="has attention nam, not none"):
        training._start(config(folder, init=init, model=ModelConfig("resnet20", 2, 16, attention="none")), ["a", "b"])


def test_the_average_of_a_short_run_is_not_what_it_started_from(folder: Path) -> None:
    result = training.train(config(folder, ema=0.9998, stages=((16, 8),)))
    assert result["top1"] == 100.0


@pytest.mark.parametrize("arch", ["resnet20", "mobilenetv2"])
def test_a_run_goes_on_with_the_same_random_numbers(folder: Path, arch: str) -> None:
    """Those of dropout too, which the network draws itself."""
    ends = []
    for name, pause in (("whole", False), ("parts", True)):
        model = ModelConfig(arch, 2, 16, stem="cifar")
        c = config(folder, out=folder.parent / name, model=model, trivial_augment=True)
        run = training.Run(c, ALONE)
        for epoch in range(3):
            if pause and epoch == 1:
                torch.rand(7)
                run = training.Run(c, ALONE)
            run.epoch(epoch)
        ends.append(run.model.state_dict())
    assert all(torch.equal(t, ends[1][name]) for name, t in ends[0].items())


def test_a_run_begun_again_has_a_log_of_its_own(folder: Path) -> None:
    training.Run(config(folder), ALONE).epoch(0)
    (folder.parent / "run" / "last.pt").unlink()
    run = training.Run(config(folder, seed=1), ALONE)
    run.epoch(0)
    run.epoch(1)
    lines = (folder.parent / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalty": 1e-4, "model": ModelConfig("resnet20", 2, 16, "none")}, "needs NAM: none"),
        ({"stages": ((16, 0),)}, "at least one epoch"),
        ({"batch": 0}, "at least one image"),
        ({"warmup_epochs": 3.0}, "leave nothing of 3"),
        ({"crop": "padded"}, "one stage only"),
    ],
)
def test_what_could_only_fail_later_is_refused_at_once(folder: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(folder, **changes)


def test_a_missing_table_of_labels_is_found_before_the_first_epoch(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        training.Run(config(folder, labels=folder / "none.tsv"), ALONE)


def test_a_split_takes_the_networks_labels_by_id_by_name_or_by_order(folder: Path) -> None:
    split = load_split(str(folder), "val", 16)
    blue, red = split.labels == 0, split.labels == 1
    for ids, names, places, how in (
        (["red", "green", "blue"], ["x", "y", "z"], (2, 0), "id"),
        (["n3", "n1", "n2"], ["green", "red", "blue"], (2, 1), "name"),
        (["0", "1"], ["0", "1"], (0, 1), "order"),
    ):
        labelled, found = split.labelled(ids, names)
        assert found == how
        assert labelled.classes == ids
        assert (labelled.labels[blue].unique().item(), labelled.labels[red].unique().item()) == places
    with pytest.raises(ValueError, match="1 of the data's 2 classes are not among the 3 of the network: red"):
        split.labelled(["blue", "green", "0"], ["x", "y", "z"])


@pytest.mark.parametrize("name", ["SVHN", "VisionDataset", "utils", "nowhere"])
def test_a_dataset_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="torchvision has no dataset"):
        load_split(name, "train", 16, cache=tmp_path)


def test_a_run_leaves_one_record_of_all_of_it(folder: Path) -> None:
    training.train(config(folder))
    record = json.loads((folder.parent / "run" / "record.json").read_text())
    _, card = weights.load(folder.parent / "run" / "model.safetensors")
    assert record["metrics"] == card.metrics
    assert [line["epoch"] for line in record["log"]] == [1, 2, 3]
    assert set(record["log"][0]["attention"]) == {f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)}
    assert record["config"]["model"]["arch"] == "resnet20"
    assert record["params"] > 200_000


def test_mean_and_deviation_are_the_training_images_own(folder: Path) -> None:
    split = load_split(str(folder), "train", 16)
    mean, std = statistics(str(folder), 16)
    pixels = split.pixels.double().numpy() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-4)
    assert std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-3)


def test_a_channel_that_never_varies_divides_by_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "train" / "red").mkdir(parents=True)
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "data" / "train" / "red" / "0.png")
    assert statistics("data", 16) == ((0.7843, 0.0, 0.0), (0.0039, 0.0039, 0.0039))


def test_mixes_keep_the_share_they_say() -> None:
    black_and_white = torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), 255.0)])
    for seed in range(8):
        for kind in (cutmix, mixup):
            mixed, partner, share = kind(black_and_white, 1.0, torch.Generator().manual_seed(seed))
            expected = 255 * (share * torch.tensor([0, 1.0]) + (1 - share) * partner)
            torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, rtol=0, atol=0.5)
