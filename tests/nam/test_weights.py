"""Weights files: what is written is read, in its dtype; what is not ours is refused."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nam import weights
from nam.build import ModelConfig, build
from nam.files import SHIPPED, WeightsError
from tests.nam.test_attention import scrambled

CONFIG = ModelConfig("resnet20", 3, 32, "nam-both", weighting="unit-mean")
CARD = weights.Card(
    "tiny", CONFIG, [weights.Label("a", "cat", "猫"), weights.Label("b", "dog"), weights.Label("c", "cup")]
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    weights.save(tmp_path / "tiny.safetensors", scrambled(build(CONFIG)), CARD)
    return tmp_path / "tiny.safetensors"


def test_a_network_survives_the_round_trip(file: Path) -> None:
    torch.manual_seed(0)
    model = scrambled(build(CONFIG))
    weights.save(file, model, CARD)
    loaded, card = weights.load(file)
    assert card.config == CONFIG
    assert card.labels == CARD.labels
    assert len(card.sha256) == 64
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        exact = tensor.half().float() if tensor.ndim > 1 else tensor
        assert torch.equal(loaded.state_dict()[name], exact), name


def test_kernels_are_fp16_and_every_batch_norm_number_fp32(file: Path) -> None:
    for name, tensor in load_file(file).items():
        if tensor.is_floating_point():
            assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else torch.float32), name


def test_the_hash_is_of_the_file(file: Path) -> None:
    import hashlib

    assert weights.load(file)[1].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_labels_must_fit_the_classes(tmp_path: Path) -> None:
    card = weights.Card("tiny", CONFIG, CARD.labels[:2])
    with pytest.raises(ValueError, match="2 labels for 3 classes"):
        weights.save(tmp_path / "x.safetensors", build(CONFIG), card)


def damaged(file: Path, how: str) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "pickle":
        file.write_bytes(pickle.dumps({"state_dict": 1}))
    elif how == "missing tensor":
        save_file({k: v for k, v in tensors.items() if k != "fc.bias"}, file, header)
    elif how == "further tensor":
        save_file({**tensors, "more": torch.zeros(1)}, file, header)
    elif how == "another shape":
        save_file({**tensors, "fc.bias": torch.zeros(4)}, file, header)
    elif how == "no card":
        save_file(tensors, file)
    elif how == "an architecture that is none":
        save_file(tensors, file, {"card": header["card"].replace("resnet20", "resnet21")})
    elif how == "a label too few":
        save_file(
            tensors,
            file,
            {"card": header["card"].replace('{"id": "c", "en": "cup", "zh": ""}', "").replace("}, ]", "}]")},
        )
    elif how == "a card of another version":
        save_file(tensors, file, {"card": header["card"].replace('"arch"', '"architecture"')})


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "pickle",
        "missing tensor",
        "further tensor",
        "another shape",
        "no card",
        "an architecture that is none",
        "a label too few",
        "a card of another version",
    ],
)
def test_what_is_not_ours_is_refused(file: Path, how: str) -> None:
    damaged(file, how)
    with pytest.raises(WeightsError, match=r"tiny\.safetensors"):
        weights.load(file)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(WeightsError, match="neither a weights file nor the name"):
        weights.load("nowhere")


def test_the_label_table_is_whole() -> None:
    table = weights.read_labels(SHIPPED / "labels" / "tiny-imagenet-200.tsv")
    assert len(table) == 200
    assert table["n01443537"] == weights.Label("n01443537", "goldfish", "金鱼")
    for column in ("en", "zh"):
        names = [getattr(label, column) for label in table.values()]
        assert all(names)
        assert len(set(names)) == 200
