"""The ONNX graph, run by onnxruntime in fp32: the folded network's numbers by their names, for any batch."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from nam import files, weights
from nam.build import Model, ModelConfig, build
from nam.describe import describe
from nam.evaluate import cost
from nam.onnx_export import export
from nam.outputs import Outputs
from tests.nam.test_mobilenet import lively

Exported = tuple[Model, weights.Card, onnxruntime.InferenceSession]
SMALL = ModelConfig("resnet20", 7, 32, weighting="unit-mean")


def opened(source: str | Path, folder: Path) -> Exported:
    """Weights as they are loaded, and their graph as it was written."""
    export(source, folder / "graph.onnx")
    session = onnxruntime.InferenceSession(folder / "graph.onnx", providers=["CPUExecutionProvider"])
    return *weights.load(source), session


def made(config: ModelConfig, folder: Path) -> Exported:
    torch.manual_seed(0)
    labels = [weights.Label(f"n{i}", f"thing {i}", f"东西{i}") for i in range(config.classes)]
    weights.save(folder / "w.safetensors", lively(build(config)), weights.Card("small", config, labels))
    return opened(folder / "w.safetensors", folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return made(SMALL, tmp_path_factory.mktemp("small"))


def both(exported: Exported, batch: int) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """What the graph answers and what the folded network does, by name."""
    model, card, session = exported
    side = card.config.size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, side, side), dtype=np.uint8)
    names = [output.name for output in session.get_outputs()]
    with torch.inference_mode():
        wanted = Outputs(model).eval().look(torch.from_numpy(pixels), methods=True)
    return dict(zip(names, session.run(None, {"pixels": pixels}), strict=True)), wanted


def close(got: dict[str, np.ndarray], wanted: dict[str, torch.Tensor], gates: float = 1e-5) -> None:
    assert list(got) == list(wanted)
    for name, array in got.items():
        atol = gates if name.startswith("gates") else 1e-5
        rtol = 1e-5 if name.startswith("map_") else 0  # features are no shares of one
        np.testing.assert_allclose(array, wanted[name], rtol=rtol, atol=atol, err_msg=name, strict=True)


def test_the_default_weights_answer_as_they_do_in_torch(tmp_path: Path) -> None:
    close(*both(opened(files.DEFAULT, tmp_path), 2))


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_every_output_is_the_networks_under_its_name(small: Exported, batch: int) -> None:
    got, wanted = both(small, batch)
    # Scrambled gates are steep: from fp64's the folded network's are 1.5e-5 away, the graph's 1.3e-5.
    close(got, wanted, gates=2e-5)
    assert got["gates.layer2.0"].shape == (batch, 32, 16, 16)
    assert got["gates.layer2.0"].std() > 0.01


def test_the_batch_is_open_and_nothing_else_is(small: Exported) -> None:
    *_, session = small
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(uint8)", ["batch", 3, 32, 32])
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes["map_product.layer1.0"] == ["batch", 32, 32]
    assert all(shape[0] == "batch" and all(isinstance(n, int) for n in shape[1:]) for shape in shapes.values())


def test_the_description_travels_inside_with_the_operations(small: Exported) -> None:
    model, card, session = small
    told = json.loads(session.get_modelmeta().custom_metadata_map["nam"])
    assert told.pop("flops") == cost(model, 32)["flops"]
    assert told == json.loads(json.dumps(describe(model, card)))


def test_a_network_without_nam_has_its_labels_alone(tmp_path: Path) -> None:
    got, wanted = both(made(ModelConfig("resnet20", 5, 32, "cbam"), tmp_path), 3)
    close(got, wanted)
    assert list(got) == ["probabilities", "logits"]


def test_a_mobilenet_is_exported_with_all_its_gates(tmp_path: Path) -> None:
    got, wanted = both(made(ModelConfig("mobilenetv2", 5, 32, stem="cifar", weighting="unit-mean"), tmp_path), 2)
    assert list(got) == list(wanted)
    for name in ("probabilities", "gates.features.1"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=1e-5, strict=True)


def test_it_is_one_file(tmp_path: Path) -> None:
    made(SMALL, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.onnx", "w.safetensors"]


def test_what_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(files.WeightsError, match="neither a weights file"):
        export(tmp_path / "nowhere", tmp_path / "graph.onnx")
    assert list(tmp_path.iterdir()) == []
