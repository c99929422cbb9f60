"""What only the torch engine has: devices, threads, copies. What every engine answers is in test_engines.py."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from app import torch_engine
from app.engine import Ask, DeviceLost, EngineError, OutOfMemory
from app.forward import Decoded, Forward, Job
from app.images import Picture
from app.torch_engine import TorchEngine, _buckets
from tests.app.test_engines import CONFIG, images, look, weights_file  # noqa: F401 - CONFIG: for tests/gpu


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
    monkeypatch.setattr(torch_engine, "usable_cores", lambda: 8)
    engine = TorchEngine(file, **options)
    assert torch.get_num_threads() == expected
    assert engine.card.lanes == options.get("lanes", 8)


def test_the_largest_batch_is_the_one_measured_for_a_cpu(file: str) -> None:
    assert TorchEngine(file, threads=1).card.max_batch == 16


def test_a_device_that_this_build_of_torch_does_not_find_is_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="build of torch finds none"):
        TorchEngine(file, device="cuda")


def test_gates_are_computed_for_those_alone_who_want_them(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(file, threads=1, lanes=1)
    asked: list[int] = []
    network = engine._lanes[0]._outputs.network
    forward = network.look
    monkeypatch.setattr(network, "look", lambda x, *hold: asked.append(len(x)) or forward(x, *hold))
    engine([Ask(p) for p in images(3)])
    assert asked == []
    engine([Ask(p, 5, look(engine) if i else None) for i, p in enumerate(images(3))])
    assert asked == [2]


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (3, [1, 2, 3]), (16, [1, 2, 4, 8, 16]), (64, [*2 ** np.arange(7)])]
)
def test_batches_are_of_powers_of_two_and_of_the_most(most: int, sizes: list[int]) -> None:
    assert _buckets(most) == sizes


def refuse(error: RuntimeError) -> Callable[..., None]:
    """In place of what fails with it."""

    def call(*_: object) -> None:
        raise error

    return call


def test_a_batch_that_does_not_fit_is_our_word_and_holds_nothing(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(file, threads=1, lanes=1)
    given_back: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    monkeypatch.setattr(engine._lanes[0], "infer", refuse(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(OutOfMemory, match="CUDA out of memory") as caught:
        engine([Ask(p) for p in images(2)])
    assert given_back == [True]
    assert caught.value.__context__ is None  # whose traceback would hold the tensors


def test_a_batch_that_does_not_fit_is_split_until_it_does(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(file, threads=1, lanes=1)
    some = images(5)
    alone = [engine([Ask(p)])[0].indices[0] for p in some]
    lane, sizes = engine._lanes[0], list[int]()
    plain = lane.infer

    def infer(images: list, kind: str) -> dict:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(images, kind)

    monkeypatch.setattr(lane, "infer", infer)
    jobs = [Job(Decoded(Picture(p, "PNG", 8, 8), 0.0), 5) for p in some]
    done = Forward(engine, 10**6, lambda _: None)(jobs)
    assert [one.answer.indices[0] for one in done] == alone
    assert sizes == [5, 2, 3, 1, 2]


@pytest.mark.parametrize("lives", [True, False])
def test_a_device_is_lost_where_it_answers_nothing_more(
    file: str, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    engine = TorchEngine(file, threads=1, lanes=1)
    sticky = torch.AcceleratorError("CUDA error: unspecified launch failure")
    monkeypatch.setattr(engine, "_device", torch.device("cuda"))
    monkeypatch.setattr(engine._lanes[0], "infer", refuse(sticky))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None if lives else refuse(sticky)())
    with pytest.raises(torch.AcceleratorError if lives else DeviceLost):
        engine([Ask(p) for p in images(1)])
