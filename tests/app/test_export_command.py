"""``nam export``: a graph in the form that is asked for, under a name that fits it, or one line that says why not."""

import json
from pathlib import Path

import onnxruntime
import openvino
import pytest

from app import cli
from nam.build import ModelConfig, build
from nam.weights import Card, Label, save


@pytest.fixture
def written(tmp_path: Path) -> str:
    config = ModelConfig("resnet20", 2, 16)
    save(tmp_path / "w.safetensors", build(config), Card("tiny", config, [Label("a", "a"), Label("b", "b")]))
    return str(tmp_path / "w.safetensors")


def test_onnx_is_what_is_written(written: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--weights", written, "-o", str(tmp_path / "out.onnx")]) == 0
    said, noise = capfd.readouterr()
    assert json.loads(said) == {"weights": written, "format": "onnx", "graph": str(tmp_path / "out.onnx")}
    assert noise == ""
    assert onnxruntime.InferenceSession(tmp_path / "out.onnx").get_inputs()[0].name == "pixels"


def test_openvinos_graph_where_it_is_asked_for(written: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--weights", written, "--format", "openvino", "-o", str(tmp_path / "out.xml")]) == 0
    assert capfd.readouterr().err == ""
    assert len(openvino.Core().read_model(tmp_path / "out.xml").inputs) == 3


@pytest.mark.parametrize(("form", "name"), [("onnx", "out.xml"), ("openvino", "out.onnx"), ("onnx", "out")])
def test_a_name_that_does_not_fit_is_refused(
    form: str, name: str, written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ending = {"onnx": ".onnx", "openvino": ".xml"}[form]
    assert cli.main(["export", "--weights", written, "--format", form, "-o", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err == f"nam: {tmp_path / name}: the name of --format {form} ends in {ending}\n"
    assert not (tmp_path / name).exists()
