"""The engine on a CUDA device: the CPU's tests again, plus what only a GPU can show. ``make gpu`` runs these alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from app.engine import Ask, OutOfMemory
from app.torch_engine import TorchEngine
from tests.app.test_torch_engine import CONFIG, images, look, weights_file

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no CUDA device here; the same engine code is tested on the CPU in tests/app/test_torch_engine.py",
)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchEngine, TorchEngine]:
    file = weights_file(tmp_path_factory.mktemp("weights"))
    return TorchEngine(file, device="cpu"), TorchEngine(file, device="cuda")


def test_everything_lives_on_the_device(engines: tuple[TorchEngine, TorchEngine]) -> None:
    _, cuda = engines
    assert cuda.card.facts["device"] == "cuda"
    assert cuda.card.max_batch == 64
    assert all(t.is_cuda for t in (*cuda._exact.parameters(), *cuda._exact.buffers()))


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_cuda_answers_as_the_cpu_does(engines: tuple[TorchEngine, TorchEngine], batch: int) -> None:
    cpu, cuda = engines
    asks = [Ask(p, CONFIG.classes, look(cpu, maps="all", effects=i == 0)) for i, p in enumerate(images(batch))]
    for one, other in zip(cpu(asks), cuda(asks), strict=True):
        assert one.indices[0] == other.indices[0]
        assert np.allclose(np.sort(one.probabilities), np.sort(other.probabilities), atol=2e-3)  # TF32 convolutions
        for a, b in zip(one.blocks, other.blocks, strict=True):
            assert np.allclose(a.channel_maps, b.channel_maps, atol=2e-2)
            assert a.std == pytest.approx(b.std, rel=0.01)


def test_one_copy_in_and_one_copy_out(engines: tuple[TorchEngine, TorchEngine]) -> None:
    _, cuda = engines
    asks = [Ask(p, 5, look(cuda)) for p in images(8)]
    cuda(asks)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        cuda(asks)
    copies = [event.key for event in profile.key_averages() for _ in range(event.count) if "Memcpy" in event.key]
    assert sum("HtoD" in copy for copy in copies) == 1
    assert sum("DtoH" in copy for copy in copies) == 1


def test_memory_stays_flat_over_many_batches(engines: tuple[TorchEngine, TorchEngine]) -> None:
    _, cuda = engines
    asks = [Ask(p, 5, look(cuda, effects=True)) for p in images(16)]
    cuda(asks)
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        cuda(asks)
    assert torch.cuda.memory_allocated() == before


def test_the_devices_memory_is_told(engines: tuple[TorchEngine, TorchEngine]) -> None:
    cpu, cuda = engines
    told = cuda.memory()
    assert cpu.memory() == {}
    assert 0 < told["allocated"] <= told["reserved"]
    assert told["reserved"] + told["free"] <= torch.cuda.get_device_properties(0).total_memory


def test_bf16_gates_are_exact_on_cuda(tmp_path: Path, engines: tuple[TorchEngine, TorchEngine]) -> None:
    rough = TorchEngine(weights_file(tmp_path), device="cuda", dtype="bfloat16")
    (pixels,) = images(1)
    (exact,), (near,) = (engine([Ask(pixels, 5, look(rough))]) for engine in (engines[0], rough))
    assert near.blocks[0].std == pytest.approx(exact.blocks[0].std, rel=0.01)


def test_a_device_without_memory_is_told_in_our_word_and_recovers(engines: tuple[TorchEngine, TorchEngine]) -> None:
    _, cuda = engines
    asks = [Ask(p, 5, look(cuda, effects=True)) for p in images(4)]
    cuda(asks)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)
    try:
        with pytest.raises(OutOfMemory):
            cuda(asks)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(cuda(asks)) == 4
