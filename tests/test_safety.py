"""Nothing that serves can be made to run what it reads: no pickle, no eval, whatever it is called."""

import ast
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nam import weights
from nam.files import WeightsError
from tests.fakes import picture, service

ROOT = Path(__file__).parent.parent
# What trains or converts, and never serves: torch.load with weights_only=True is allowed to these alone.
OFFLINE = {"convert.py", "data.py", "train.py"}
FILES = sorted((*(ROOT / "app").glob("*.py"), *(ROOT / "nam").glob("*.py")))

# They run what they read, or share objects by pickling them.
MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing", "code"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"load": {"torch", "np", "numpy", "yaml"}, "load_all": {"yaml"}, "unsafe_load": {"yaml"}}


def guilty(tree: ast.AST, *, offline: bool = False) -> Iterator[str]:
    """What of it runs or unpickles what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from [node.module] if node.module.partition(".")[0] in MODULES else []
            taken = [alias.name for alias in node.names if node.module in METHODS.get(alias.name, ())]
            yield from (f"{node.module}.{name}" for name in taken)
        elif isinstance(node, ast.Call):
            yield from calls(node, offline)


def calls(node: ast.Call, offline: bool) -> Iterator[str]:
    told = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
    if isinstance(node.func, ast.Name) and node.func.id in CALLS:
        yield node.func.id
    if told.get("allow_pickle") or told.get("shell"):
        yield "allow_pickle or shell"
    if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        name = f"{node.func.value.id}.{node.func.attr}"
        safe = offline and (told.get("weights_only") is True or told.get("allow_pickle") is False)
        if node.func.value.id in METHODS.get(node.func.attr, ()) and not safe:
            yield name


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_file_unpickles_or_runs_what_it_reads(path: Path) -> None:
    offline = path.parent.name == "nam" and path.name in OFFLINE
    assert list(guilty(ast.parse(path.read_text(encoding="utf-8")), offline=offline)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    import multiprocessing.pool",
        "from marshal import loads",
        "from torch import load",
        "torch.load(f)",
        "torch.load(f, weights_only=True)",
        "np.load(f)",
        "numpy.load(f, allow_pickle=True)",
        "x(f, allow_pickle=True)",
        "yaml.load(f)",
        "eval(f)",
        "subprocess.run(f, shell=True)",
    ],
)
def test_the_search_finds_it(text: str) -> None:
    assert list(guilty(ast.parse(text)))


def test_what_is_written_for_people_to_load_is_no_pickle() -> None:
    with service() as serving:
        answer = serving.client.post("/attention?format=npz&maps=all", content=picture())
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
        assert arrays.files
        assert all(arrays[name].dtype != object for name in arrays.files)


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.sprung),)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that acts; the test fails where it did."""
    yield pickle.dumps(Trap(tmp_path / "sprung"))
    assert not (tmp_path / "sprung").exists()


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))  # noqa: S301 - ours
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pkl"])
def test_a_pickle_as_weights_is_refused(trap: bytes, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(trap)
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        weights.load(tmp_path / name)


def test_a_pickle_as_an_image_or_as_a_tensor_is_refused(trap: bytes) -> None:
    head = b'{"inputs": [{"name": "%s", "shape": %s, "datatype": "%s", "parameters": {"binary_data_size": %d}}]}'
    image = len(trap).to_bytes(4, "little") + trap
    with service() as serving:

        def tensor(name: bytes, shape: bytes, kind: bytes, body: bytes) -> int:
            told = head % (name, shape, kind, len(body))
            length = {"inference-header-content-length": str(len(told))}
            return serving.client.post("/v2/models/fake/infer", content=told + body, headers=length).status_code

        told = [serving.client.post(path, content=trap).status_code for path in ("/predict", "/attention")]
        told += [tensor(b"image", b"[1]", b"BYTES", image), tensor(b"pixels", b"[1, 8, 8, 3]", b"UINT8", trap)]
        as_pickle = {"content-type": "application/python-pickle"}
        told.append(serving.client.post("/predict", content=trap, headers=as_pickle).status_code)
    assert all(400 <= status < 500 for status in told), told
