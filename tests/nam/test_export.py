"""The graph for OpenVINO, run there in fp32: the network's numbers by their names, for any batch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from nam import maps, weights
from nam.build import Model, ModelConfig, build
from nam.describe import describe
from nam.evaluate import cost
from nam.export import DESCRIPTION, export, to_openvino
from nam.files import WeightsError
from tests.nam.test_mobilenet import lively

CONFIG = ModelConfig("resnet20", 7, 32, weighting="unit-mean")
Exported = tuple[Model, weights.Card, openvino.Model]


def exported(config: ModelConfig) -> Exported:
    torch.manual_seed(0)
    labels = [weights.Label(f"n{i}", f"thing {i}", f"东西{i}") for i in range(config.classes)]
    model, card = lively(build(config)), weights.Card("small", config, labels, sha256="5" * 64)
    return model, card, to_openvino(model, card)


@pytest.fixture(scope="module")
def small() -> Exported:
    return exported(CONFIG)


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def run(
    graph: openvino.Model, images: np.ndarray, hold: list[int] | None = None, channel: list[int] | None = None
) -> dict[str, np.ndarray]:
    compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    none = [-1] * len(images)
    inputs = [images, np.array(hold or none), np.array(channel or none)][: len(graph.inputs)]
    return {output.any_name: array for output, array in compiled(inputs).items()}


def expected(model: Model, images: np.ndarray) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        seen, weights = model.look(torch.from_numpy(images)), maps.channel_weights(model)
        found = {"probabilities": seen.logits.softmax(1), "logits": seen.logits}
        for (name, w), gate in zip(weights.items(), seen.gates, strict=True):
            said = maps.summarize(gate, w)
            found |= {f"spread.{name}": said.spread, f"channel_mean.{name}": said.channel_mean}
            found |= {f"map.{name}": said.map, f"gates.{name}": gate}
        for method, drawn in maps.METHODS.items():
            found |= {f"map_{method}.{list(weights)[i]}": map_ for i, map_ in drawn(model, seen).items()}
    return found


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_every_output_is_the_networks_under_its_name(small: Exported, batch: int) -> None:
    model, _, graph = small
    got, wanted = run(graph, pixels(batch)), expected(model, pixels(batch))
    assert list(got) == list(wanted)
    for name, array in got.items():
        # Fp32's roundings add up: torch's folded gates are as far. Features are no shares of one.
        atol = 2e-5 if name.startswith("gates") else 1e-5
        rtol = 1e-5 if name.startswith("map_") else 0
        np.testing.assert_allclose(array, wanted[name], rtol=rtol, atol=atol, err_msg=name, strict=True)


def test_inputs_and_outputs_take_any_batch_and_nothing_else_is_open(small: Exported) -> None:
    *_, graph = small
    shapes = {port.any_name: str(port.partial_shape) for port in (*graph.inputs, *graph.outputs)}
    assert (shapes["pixels"], shapes["hold"], shapes["hold_channel"]) == ("[?,3,32,32]", "[?]", "[?]")
    assert (shapes["probabilities"], shapes["logits"]) == ("[?,7]", "[?,7]")
    assert [shapes[f"{part}.layer2.0"] for part in ("spread", "channel_mean", "map", "gates")] == [
        *("[?,4]", "[?,32]", "[?,16,16]", "[?,32,16,16]")
    ]


def test_holding_a_gate_gives_the_effects(small: Exported) -> None:
    model, _, graph = small
    (image,) = pixels(1)
    with torch.inference_mode():
        top = model(torch.from_numpy(image[None]))[0].argmax()
        effects = maps.effects(model, torch.from_numpy(image), top)
    logits = run(graph, np.repeat(image[None], 10, 0), [-1, *range(9)])["logits"][:, top]
    np.testing.assert_allclose(logits[0] - logits[1:], effects, rtol=0, atol=1e-5)
    assert effects.abs().min() > 5e-4


def test_holding_one_channel_gives_its_effect(small: Exported) -> None:
    model, _, graph = small
    (image,) = pixels(1)
    hold, channel = [-1, 2, 2, 7, 7], [-1, 0, 15, 3, -1]
    with torch.inference_mode():
        tensor = torch.from_numpy(image)
        top = model(tensor[None])[0].argmax()
        effects = maps.effects(model, tensor, top, torch.tensor(hold[1:]), torch.tensor(channel[1:]))
    logits = run(graph, np.repeat(image[None], 5, 0), hold, channel)["logits"][:, top]
    np.testing.assert_allclose(logits[0] - logits[1:], effects, rtol=0, atol=1e-5)
    assert effects.abs().min() > 1e-4


def test_a_held_gate_is_of_its_own_image_alone(small: Exported) -> None:
    *_, graph = small
    free, held = (run(graph, pixels(3), hold)["logits"] for hold in ([-1, -1, -1], [-1, 4, -1]))
    assert np.abs(free[1] - held[1]).max() > 1e-3
    np.testing.assert_allclose(held[[0, 2]], free[[0, 2]], rtol=0, atol=1e-5)


def test_the_description_travels_inside_with_the_operations(small: Exported) -> None:
    model, card, graph = small
    told = json.loads(graph.get_rt_info(DESCRIPTION).value)
    assert told.pop("flops") == cost(model, 32)["flops"]
    assert told == json.loads(json.dumps(describe(model, card)))


@pytest.mark.parametrize("attention", ["none", "cbam"])
def test_a_network_without_nam_has_its_labels_alone(attention: str) -> None:
    model, _, graph = exported(ModelConfig("resnet20", 5, 32, attention))
    got = run(graph, pixels(3))
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels(3)))
    assert list(got) == ["probabilities", "logits"]
    np.testing.assert_allclose(got["probabilities"], logits.softmax(1), rtol=0, atol=1e-5, strict=True)


def test_a_mobilenet_is_exported_with_all_its_gates() -> None:
    model, _, graph = exported(ModelConfig("mobilenetv2", 5, 32, stem="cifar", weighting="unit-mean"))
    got, wanted = run(graph, pixels(2)), expected(model, pixels(2))
    np.testing.assert_allclose(got["probabilities"], wanted["probabilities"], rtol=0, atol=1e-5, strict=True)
    assert list(got) == list(wanted)
    np.testing.assert_allclose(got["gates.features.1"], wanted["gates.features.1"], rtol=0, atol=1e-5, strict=True)


def test_the_file_keeps_fp32_and_the_description(small: Exported, tmp_path: Path) -> None:
    model, card, _ = small
    weights.save(tmp_path / "w.safetensors", model, card)
    export(tmp_path / "w.safetensors", tmp_path / "graph.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.bin", "graph.xml", "w.safetensors"]
    graph, (stored, loaded) = (
        openvino.Core().read_model(tmp_path / "graph.xml"),
        weights.load(tmp_path / "w.safetensors"),
    )
    assert json.loads(graph.get_rt_info(DESCRIPTION).value)["sha256"] == loaded.sha256
    constants = {str(node.get_element_type()) for node in graph.get_ops() if node.get_type_name() == "Constant"}
    assert "<Type: 'float16'>" not in constants
    wanted = expected(stored, pixels(1))["probabilities"]
    np.testing.assert_allclose(run(graph, pixels(1))["probabilities"], wanted, rtol=0, atol=1e-5)


def test_what_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither a weights file"):
        export(tmp_path / "nowhere", tmp_path / "graph.xml")
    assert list(tmp_path.iterdir()) == []


def test_nobody_is_told_that_a_network_was_exported() -> None:
    code = "import nam.export, openvino.tools.ovc.telemetry_utils as t; print(t.tm.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "openvino.tools.ovc.telemetry_stub\n"
