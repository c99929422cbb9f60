"""What only the torch engine has: devices, threads, copies. What every engine answers is in test_engines.py."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from app.engine import Ask, EngineError
from app.torch_engine import TorchEngine, _to_host
from tests.app.test_engines import CONFIG, images, look, weights_file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def torch_keeps_its_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("options", "expected"), [({}, 1), ({"lanes": 2}, 4), ({"lanes": 16}, 1), ({"threads": 3}, 3)])
def test_the_lanes_share_the_cores(file: str, monkeypatch: pytest.MonkeyPatch, options: dict, expected: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    engine = TorchEngine(file, **options)
    assert torch.get_num_threads() == expected
    assert engine.card.lanes == options.get("lanes", 8)


def test_the_largest_batch_is_the_one_measured_for_a_cpu(file: str) -> None:
    assert TorchEngine(file, threads=1).card.max_batch == 16


def test_a_device_that_this_build_of_torch_does_not_find_is_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="build of torch finds none"):
        TorchEngine(file, device="cuda")


def test_gates_are_computed_only_where_someone_wants_them(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(file, threads=1)
    asked: list[int] = []
    forward = engine._model.forward_with_gates
    monkeypatch.setattr(engine._model, "forward_with_gates", lambda x: asked.append(len(x)) or forward(x))
    engine([Ask(p) for p in images(2)])
    assert asked == []
    engine([Ask(p, 5, look(engine) if i else None) for i, p in enumerate(images(2))])
    assert asked == [2]


def test_what_goes_to_the_host_in_one_copy_comes_out_as_it_was() -> None:
    tensors = [torch.arange(6.0).view(2, 3), torch.zeros(2, 0, 4), torch.tensor([[2**24 - 1, CONFIG.classes]])]
    for tensor, array in zip(tensors, _to_host(tensors), strict=True):
        assert array.dtype == np.float32
        assert array.tolist() == tensor.tolist()
