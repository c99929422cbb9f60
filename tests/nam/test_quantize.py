"""int8: the convolutions are quantized, the gates are not, and the labels stay near the network's."""

import json
import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from PIL import Image

from app.cli import main
from app.engine import Ask, EngineError
from app.graphs import int8_graph_of, seal
from app.openvino_engine import INT8_NOTE, OpenVINOEngine
from nam import weights
from nam.build import ModelConfig, build
from nam.export import DESCRIPTION, to_openvino
from nam.files import file_sha256
from nam.quantize import quantize
from tests.nam.test_attention import scrambled

CONFIG = ModelConfig("resnet20", 7, 32, weighting="unit-mean")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    card = weights.Card("small", CONFIG, [weights.Label(f"n{i}", f"thing {i}") for i in range(7)])
    openvino.save_model(to_openvino(scrambled(build(CONFIG)), card), folder / "whole.xml", compress_to_fp16=False)
    quantize(folder / "whole.xml", pixels(40), folder / "int8.xml")
    return folder / "whole.xml", folder / "int8.xml"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    labels = [weights.Label(f"n{i}", f"thing {i}") for i in range(7)]
    weights.save(path, scrambled(build(CONFIG)), weights.Card("small", CONFIG, labels), kernels=torch.float32)
    return path


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def outputs(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    none = np.full(len(images), -1)
    found = compiled([images, none, none])
    return {output.get_any_name(): found[output] for output in compiled.outputs}


def test_it_says_the_same_of_itself_and_has_the_same_outputs(graphs: tuple[Path, Path]) -> None:
    whole, int8 = (openvino.Core().read_model(path) for path in graphs)
    assert int8.get_rt_info(DESCRIPTION).value == whole.get_rt_info(DESCRIPTION).value
    assert [o.get_any_name() for o in int8.outputs] == [o.get_any_name() for o in whole.outputs]


def test_convolutions_are_quantized_and_gates_are_not(graphs: tuple[Path, Path]) -> None:
    nodes = openvino.Core().read_model(graphs[1]).get_ops()
    fed = [node.input_value(0).get_node().get_type_name() for node in nodes if node.get_type_name() == "Convolution"]
    assert set(fed) == {"FakeQuantize"}
    gates = [node for node in nodes if node.get_type_name() == "Sigmoid"]
    assert gates
    assert all(node.input_value(0).get_node().get_type_name() == "Add" for node in gates)


def test_labels_and_gates_stay_near(graphs: tuple[Path, Path]) -> None:
    whole, int8 = (outputs(path, pixels(16)) for path in graphs)
    assert np.abs(whole["probabilities"] - int8["probabilities"]).max() < 0.1
    for name in (name for name in whole if name.startswith("spread.")):
        assert np.allclose(whole[name][:, 3], int8[name][:, 3], rtol=0.1)
    assert not np.array_equal(whole["logits"], int8["logits"])


def test_the_engine_serves_it_and_says_what_it_does_to_the_gates(
    graphs: tuple[Path, Path], file: Path, tmp_path: Path
) -> None:
    target = int8_graph_of(file_sha256(file), tmp_path)
    with pytest.raises(EngineError, match="nam quantize"):
        OpenVINOEngine(str(file), cache=tmp_path, dtype="int8", lanes=1, threads=1)
    for suffix in (".xml", ".bin"):
        shutil.copy(graphs[1].with_suffix(suffix), target.with_suffix(suffix))
    with pytest.raises(EngineError, match="make it again"):
        OpenVINOEngine(str(file), cache=tmp_path, dtype="int8", lanes=1, threads=1)
    seal(target)
    engine = OpenVINOEngine(str(file), cache=tmp_path, dtype="int8", lanes=1, threads=1)
    (answer,) = engine([Ask(pixels(1)[0], 7)])
    assert np.allclose(answer.probabilities.sum(), 1, atol=1e-5)
    assert engine.card.notes[-1] == INT8_NOTE
    assert engine.card.facts["dtype"] == "int8"
    exact = OpenVINOEngine(str(file), cache=tmp_path, dtype="float32", lanes=1, threads=1)
    holds = np.arange(-1, 2), np.full(3, -1)
    assert np.array_equal(engine.held(pixels(1)[0], *holds), exact.held(pixels(1)[0], *holds))  # effects are fp32


def test_the_command_makes_what_the_engine_looks_for(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, image in enumerate(pixels(6)):
        folder = tmp_path / "data" / "train" / f"n{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    monkeypatch.setenv("NAM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    asked = ["quantize", "--weights", str(file), "--data", str(tmp_path / "data"), "--images", "4"]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 4
    assert int8_graph_of(file_sha256(file), tmp_path / "cache").is_file()


def test_who_has_no_home_is_told_to_name_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("NAM_CACHE_DIR", "~no-such-user/cache")
    assert main(["quantize", "--weights", str(file), "--data", str(tmp_path)]) == 2
    assert "name another folder" in capsys.readouterr().err
