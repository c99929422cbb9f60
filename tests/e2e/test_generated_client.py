"""A client that a generator makes of our OpenAPI document, talking to a real process."""

import io
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tests.e2e.conftest import Process
from tests.e2e.test_serve import ESPRESSO

# The generator knows no ranges of media types, such as image/*.
CONFIG = {"content_type_overrides": {"image/*": "application/octet-stream"}, "post_hooks": []}


@pytest.fixture(scope="module")
def generated(serving: Process, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package that openapi-python-client makes without a warning."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--url", f"{serving.url}/openapi.json"]
    flags = ["--meta", "none", "--fail-on-warning", "--config", "config.json", "--output-path", "nam_client"]
    done = subprocess.run([*command, *flags], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return import_module("nam_client")


def operation(name: str) -> ModuleType:
    return import_module(f"nam_client.api.default.{name}")


def test_it_labels_a_photo(generated: ModuleType, serving: Process, photos: dict[str, Path]) -> None:
    models, types = import_module("nam_client.models"), import_module("nam_client.types")
    image = photos["espresso"].read_bytes()
    bodies = [types.File(io.BytesIO(image)), models.PredictFilesBody(types.File(io.BytesIO(image), "photo.jpg"))]
    with generated.Client(serving.url) as client:
        answers = [operation("predict").sync(client=client, body=body, top_k=3) for body in bodies]
    assert answers[0] == answers[1]
    assert [answer.predictions[0].class_id for answer in answers] == [ESPRESSO] * 2
    assert [prediction.rank for prediction in answers[0].predictions] == [1, 2, 3]


def test_it_reads_the_attention(generated: ModuleType, serving: Process, photos: dict[str, Path]) -> None:
    body = import_module("nam_client.types").File(io.BytesIO(photos["cat"].read_bytes()))
    with generated.Client(serving.url) as client:
        answer = operation("attention").sync(client=client, body=body, block=["layer4.1"], top_channels=2)
    (block,) = answer.blocks
    assert 0 < block.gates.min_ < block.gates.mean < block.gates.max_ < 1
    assert len(block.top_channels) == 2


def test_it_reads_the_model_card(generated: ModuleType, serving: Process) -> None:
    with generated.Client(serving.url) as client:
        card = operation("model").sync(client=client)
    assert (card.name, card.classes, len(card.labels)) == ("resnet18-nam-tiny-imagenet", 200, 200)


def test_a_refusal_is_a_problem_with_its_code(generated: ModuleType, serving: Process) -> None:
    body = import_module("nam_client.types").File(io.BytesIO(b"no photo"))
    with generated.Client(serving.url) as client:
        problem = operation("predict").sync(client=client, body=body)
    assert isinstance(problem, import_module("nam_client.models").Problem)
    assert (problem.status, problem.code) == (415, "unsupported_media_type")
