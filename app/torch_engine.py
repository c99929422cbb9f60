"""The torch engine: the folded network on its device, one copy in, one copy out. CUDA's engine; on a CPU the reference.

Knows tensors and nothing of requests. On CUDA each lane has a stream of its own, so that the copies of one batch pass
under the computing of the other, and for every bucket of batch sizes a CUDA graph: one call of the driver instead of
one a kernel. The gate's argument, its sigmoid and the statistics are fp32 whatever the network computes in.
"""

import threading
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from app.array_engine import KINDS, ArrayEngine, Indices, Kind, Pixels
from app.cores import usable_cores
from app.engine import Card, DeviceLost, EngineError, Floats, OutOfMemory
from nam import weights
from nam.build import place
from nam.describe import describe
from nam.files import WeightsError
from nam.fold import fold
from nam.outputs import Outputs

T = TypeVar("T")
Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16", "int8"]

# The CPU's was measured (tests/bench/RESULTS.md).
_MAX_BATCH = {"cpu": 16, "cuda": 64}
# Two batches in flight: what one copies passes under what the other computes.
_CUDA_LANES = 2
# On CUDA every batch size of a graph keeps its outputs, in pinned memory too: a ResNet-50's gates are 22 MB an image.
_MOST_LOOKS = 8


class TorchEngine(ArrayEngine["_Lane"]):
    """Loads, folds and warms up in the constructor, so that a failure stops the start. Raises EngineError."""

    def __init__(
        self,
        path: str,
        *,
        sha256: str = "",
        device: Device = "cpu",
        dtype: Dtype = "float32",
        reason: str = "asked for",
        threads: int = 0,
        max_batch: int = 0,
        lanes: int = 0,
    ) -> None:
        if dtype == "int8":
            raise EngineError("NAM_DTYPE=int8 is OpenVINO's, on the CPU")
        self._device = on = _device(device)
        cores = usable_cores()
        lanes = lanes or (cores if device == "cpu" else _CUDA_LANES)
        if device == "cpu":
            torch.set_num_threads(threads or max(1, cores // lanes))
        try:
            model, card = weights.load(path, sha256)
        except WeightsError as error:
            raise EngineError(str(error)) from error
        told = Card.of(
            describe(model, card),
            max_batch=max_batch or _MAX_BATCH[device],
            lanes=lanes,
            device=device,
            dtype=dtype,
            engine=f"torch {torch.__version__}",
            reason=reason,
        )
        outputs = Outputs(model, getattr(torch, dtype)).eval().to(on).to(memory_format=torch.channels_last)
        kind = _Lane if device == "cpu" else _CudaLane
        most_looks = told.max_batch if device == "cpu" else min(_MOST_LOOKS, told.max_batch)
        super().__init__(told, [kind(outputs, told) for _ in range(lanes)], most_looks)
        # Effects are small differences of logits: bf16's steps would swallow them.
        self._exact = outputs.network if dtype == "float32" else place(fold(model), on)
        self._lock_exact = threading.Lock()
        # All of them: on CUDA a graph must not be captured while another lane computes.
        self.warm_up(_buckets(told.max_batch), KINDS if told.blocks else KINDS[:1])

    def infer(self, lane: "_Lane", images: list[Pixels], kind: Kind, *, alone: bool) -> dict[str, Floats]:
        return self._on_device(lambda: lane.infer(images, kind))

    def memory(self) -> dict[str, int]:
        if self._device.type != "cuda":
            return {}
        free, _ = torch.cuda.mem_get_info(self._device)
        told = {"allocated": torch.cuda.memory_allocated(self._device), "free": free}
        return told | {"reserved": torch.cuda.memory_reserved(self._device)}

    def held(self, pixels: Pixels, blocks: Indices, channels: Indices) -> Floats:
        return self._on_device(lambda: self._held(pixels, blocks, channels))

    @torch.inference_mode()
    def _held(self, pixels: Pixels, blocks: Indices, channels: Indices) -> Floats:
        """In the device's default stream, one caller at a time."""
        with self._lock_exact:
            image, hold, hold_channel = (torch.tensor(one, device=self._device) for one in (pixels, blocks, channels))
            seen = self._exact.look(image.expand(len(hold), -1, -1, -1), hold, hold_channel)
            logits: Floats = seen.logits.float().cpu().numpy()
            return logits

    def _on_device(self, call: Callable[[], T]) -> T:
        """Raises OutOfMemory, what torch keeps for later calls given back, and DeviceLost."""
        try:
            return call()
        except torch.OutOfMemoryError as error:
            told = str(error)
        except RuntimeError as error:
            if self._lives():
                raise
            raise DeviceLost("the device answers no call any more") from error
        torch.cuda.empty_cache()  # the error, and with it what its frames held, is gone by now
        raise OutOfMemory(told)

    def _lives(self) -> bool:
        """An error that a device does not recover from, every later call reports again."""
        try:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except RuntimeError:
            return False
        return True


class _Lane:
    """Runs the network as it is."""

    def __init__(self, outputs: Outputs, card: Card) -> None:
        self._outputs = outputs

    @torch.inference_mode()
    def infer(self, images: list[Pixels], kind: Kind) -> dict[str, Floats]:
        pixels = torch.from_numpy(np.stack(images)).contiguous(memory_format=torch.channels_last)
        return {name: output.numpy() for name, output in _wanted(self._outputs, pixels, kind).items()}


class _CudaLane(_Lane):
    """A stream, and a graph for every kind of call, captured when it is first made: in the warm-up."""

    def __init__(self, outputs: Outputs, card: Card) -> None:
        super().__init__(outputs, card)
        self._size, self._buckets = card.size, _buckets(card.max_batch)
        self._stream = torch.cuda.Stream()
        self._graphs: dict[tuple[int, Kind], _Graph] = {}

    @torch.inference_mode()
    def infer(self, images: list[Pixels], kind: Kind) -> dict[str, Floats]:
        bucket = min(size for size in self._buckets if size >= len(images))
        if (bucket, kind) not in self._graphs:
            self._graphs[bucket, kind] = _Graph(self._outputs, self._stream, bucket, self._size, kind)
        return {name: output[: len(images)] for name, output in self._graphs[bucket, kind](images).items()}


class _Graph:
    """One batch size's forward as one launch, between pixels in pinned memory and numbers in pinned memory."""

    def __init__(self, outputs: Outputs, stream: torch.cuda.Stream, batch: int, size: int, kind: Kind) -> None:
        self._stream = stream
        self._sent = torch.zeros(batch, 3, size, size, dtype=torch.uint8, pin_memory=True)
        self._pixels = self._sent.cuda().contiguous(memory_format=torch.channels_last)
        for _ in range(3):  # cuDNN chooses its kernels, which a capture must not see
            self._shapes = {name: output.shape for name, output in self._forward(outputs, kind).items()}
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            flat = torch.cat([output.flatten() for output in _wanted(outputs, self._pixels, kind).values()])
        self._flat, self._received = flat, torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)

    def _forward(self, outputs: Outputs, kind: Kind) -> dict[str, Tensor]:
        with torch.cuda.stream(self._stream):
            return _wanted(outputs, self._pixels, kind)

    def __call__(self, images: list[Pixels]) -> dict[str, Floats]:
        """The outputs for the whole batch size; rows beyond the images are left over. Views of pinned memory."""
        np.stack(images, out=self._sent.numpy()[: len(images)])
        with torch.cuda.stream(self._stream):
            self._pixels.copy_(self._sent, non_blocking=True)
            self._graph.replay()
            self._received.copy_(self._flat, non_blocking=True)
        self._stream.synchronize()  # releases the GIL
        ends = np.cumsum([shape.numel() for shape in self._shapes.values()])
        parts = np.split(self._received.numpy(), ends[:-1])
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)}


def _wanted(outputs: Outputs, pixels: Tensor, kind: Kind) -> dict[str, Tensor]:
    """What a call of this kind computes; the logits stay."""
    said = outputs.plain(pixels) if kind == "labels" else outputs.look(pixels, methods=kind == "methods")
    return {name: output for name, output in said.items() if name != "logits"}


def _buckets(most: int) -> list[int]:
    """The batch sizes that are run: powers of two, and the largest."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def _device(asked: Device) -> torch.device:
    """Raises EngineError where CUDA is asked for and torch finds none: its build may lack what the driver has."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise EngineError("a CUDA device was asked for or found, and this build of torch finds none")
    return torch.device(asked)
