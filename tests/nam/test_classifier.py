"""``nam.load``: pictures in Python, the same numbers as everywhere."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nam
from nam import weights
from nam.build import ModelConfig, build
from nam.classifier import Classifier
from nam.transforms import load_square
from tests.nam.test_mobilenet import lively


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    torch.manual_seed(0)
    file, config = tmp_path_factory.mktemp("weights") / "w.safetensors", ModelConfig("resnet20", 7, 32)
    labels = [weights.Label(f"n{i}", f"thing {i}") for i in range(7)]
    weights.save(file, lively(build(config)), weights.Card("small", config, labels, crop=0.875))
    return nam.load(file)


@pytest.fixture
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_labels_come_best_first_with_the_networks_probabilities(classifier: Classifier, photo: Image.Image) -> None:
    pixels = torch.from_numpy(load_square(photo, 32, 0.875))
    with torch.inference_mode():
        probabilities = classifier.network.look(pixels[None])["probabilities"][0]
    got = classifier.predict(photo, top_k=7)
    assert [label.id for label, _ in got] == [f"n{i}" for i in probabilities.argsort(descending=True).tolist()]
    assert [p for _, p in got] == pytest.approx(sorted(probabilities.tolist(), reverse=True), abs=1e-6)


def test_there_are_no_more_labels_than_classes(classifier: Classifier, photo: Image.Image) -> None:
    assert [len(classifier.predict(photo, top_k)) for top_k in (1, 5, 100)] == [1, 5, 7]


def test_a_file_an_image_and_a_tensor_are_the_same_picture(
    classifier: Classifier, photo: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "photo.png")
    forms = (tmp_path / "photo.png", str(tmp_path / "photo.png"), torch.from_numpy(load_square(photo, 32, 0.875)))
    wanted = classifier.pixels(photo)
    assert (wanted.shape, wanted.dtype) == ((1, 3, 32, 32), torch.uint8)
    assert all(torch.equal(classifier.pixels(form), wanted) for form in forms)


def test_a_picture_is_turned_as_its_exif_says(classifier: Classifier, photo: Image.Image) -> None:
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be shown turned clockwise
    assert torch.equal(classifier.pixels(turned), classifier.pixels(photo))


def test_the_attention_has_every_gate_and_map_by_name(classifier: Classifier, photo: Image.Image) -> None:
    said = classifier.attention(photo)
    assert said["gates.layer2.0"].shape == (32, 16, 16)
    assert said["map_product.layer1.0"].shape == (32, 32)
    shares = classifier.network.shares[3]
    torch.testing.assert_close(said["map.layer2.0"], (said["gates.layer2.0"] * shares[:, None, None]).sum(0))


def test_the_name_alone_imports_no_torch() -> None:
    code = "import sys, nam; nam.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
