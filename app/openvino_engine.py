"""The CPU's engine: the folded network as a graph in OpenVINO. Serving with it never imports torch.

Knows tensors and nothing of requests. A batch runs in pieces of 16, 4 and 1 images, the largest first: a shape known
beforehand is faster, nothing is padded, and each further shape would take as much memory as the weights. A single image
that finds the engine idle takes all cores; calls side by side take a core each. Asks for the attention run with the
gates as further outputs, the others without. The gate's argument, its sigmoid and the statistics are fp32 whatever the
convolutions compute in.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino
from numpy.typing import NDArray

from app.engine import Answer, Ask, BlockAttention, Card, EngineError, Floats
from app.graphs import graph_of
from nam.files import WeightsError, file_sha256, locate

Dtype = Literal["float32", "bfloat16"]

_HINT = "INFERENCE_PRECISION_HINT"
_PRECISION = {"float32": "f32", "bfloat16": "bf16"}

# Measured (tests/bench/RESULTS.md): beyond either a batch gains nothing, and whoever comes next waits for it.
_MOST_IMAGES = 16
_MOST_FLOPS = 8e9


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a graph is compiled for: ``looks``: the gates too; ``batch``: so many images, -1 for any number;
    ``wide``: all cores for one call."""

    looks: bool
    batch: int
    wide: bool


class OpenVINOEngine:
    """Compiles and warms up in the constructor, so that a failure stops the start. Raises EngineError."""

    def __init__(
        self,
        path: str,
        *,
        cache: Path,
        dtype: Dtype = "float32",
        reason: str = "asked for",
        threads: int = 0,
        max_batch: int = 0,
        lanes: int = 0,
    ) -> None:
        cores = os.cpu_count() or 1
        lanes = lanes or cores
        try:
            weights = locate(path)
            self._file = graph_of(weights, file_sha256(weights), cache)
        except (WeightsError, OSError) as error:
            raise EngineError(str(error)) from error
        self._core = openvino.Core()
        told = json.loads(self._core.read_model(self._file).get_rt_info("nam").value)
        self.card = Card.of(
            told,
            max_batch=max_batch or int(min(_MOST_IMAGES, max(1, _MOST_FLOPS // told["flops"]))),
            lanes=lanes,
            lanes_decode=True,
            device="cpu",
            dtype=dtype,
            engine=f"openvino {openvino.__version__.partition('-')[0]}",
            reason=reason,
        )
        self._precision = _PRECISION[dtype]
        self._narrow = _on(lanes, threads or max(1, cores // lanes))
        self._wide = _on(1, threads or cores)
        self._order = [(-block.weights).argsort(kind="stable").tolist() for block in self.card.blocks]
        compiled = {shape: self._compile(shape) for shape in self._shapes()}
        self._idle = [_Lane(compiled, self.card) for _ in range(lanes)]
        self._running, self._lock = 0, threading.Lock()
        self._held: openvino.CompiledModel | None = None
        self._lock_effects = threading.Lock()
        self._warm_up()

    def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        with self._lane() as (lane, alone):
            for shape, places in self._pieces(asks, alone):
                some = [asks[i] for i in places]
                outputs = lane.infer(shape, [ask.pixels for ask in some])
                answers |= zip(places, self._answers(some, outputs), strict=True)
        return [answers[i] for i in range(len(asks))]

    def _pieces(self, asks: Sequence[Ask], alone: bool) -> Iterator[tuple[_Shape, list[int]]]:
        looks = [bool(ask.attention and self.card.blocks) for ask in asks]
        if alone and len(asks) == 1:
            yield _Shape(looks[0], 1, wide=True), [0]
            return
        if any(looks):
            yield _Shape(True, -1, wide=False), [i for i, look in enumerate(looks) if look]
        for places in _chunks([i for i, look in enumerate(looks) if not look], self.card.max_batch):
            yield _Shape(False, len(places), wide=False), places

    @contextmanager
    def _lane(self) -> Iterator[tuple["_Lane", bool]]:
        """A lane for one call, and whether no other call is under way."""
        with self._lock:
            lane, alone = self._idle.pop(), self._running == 0
            self._running += 1
        try:
            yield lane, alone
        finally:
            with self._lock:
                self._running -= 1
                self._idle.append(lane)

    def _answers(self, asks: list[Ask], outputs: list[Floats]) -> Iterator[Answer]:
        probabilities, *blocks = outputs
        best = _best(probabilities, max(ask.top_k for ask in asks))
        for i, ask in enumerate(asks):
            indices = best[i, : ask.top_k]
            looks = tuple(self._blocks(ask, [output[i] for output in blocks])) if blocks else ()
            yield Answer(indices, probabilities[i, indices], looks)

    def _blocks(self, ask: Ask, outputs: list[Floats]) -> Iterator[BlockAttention]:
        """What one image's outputs, four a block, say to its ask. Copies: the next call overwrites them."""
        if (wanted := ask.attention) is None:
            return
        effects = self._effects(ask.pixels) if wanted.effects else [None] * len(self.card.blocks)
        for j, block in enumerate(self.card.blocks):
            if block.name in wanted.blocks:
                spread, channel_mean, map_, gates = outputs[4 * j : 4 * j + 4]
                seen = (spread, channel_mean.copy(), map_.copy())
                yield BlockAttention.of(block.name, wanted, seen, self._order[j], gates.__getitem__, effects[j])

    def _effects(self, pixels: NDArray[np.uint8]) -> list[float]:
        """What each block's gate does for the answer, as :func:`nam.maps.effects` has it, in fp32.

        Compiled when it is first asked for: where it never is, it takes no memory.
        """
        hold = np.arange(-1, len(self.card.blocks))
        with self._lock_effects:
            if self._held is None:
                network = _part(self._core.read_model(self._file), ["logits"], held=True)
                self._held = self._core.compile_model(network, "CPU", {**self._wide, _HINT: "f32"})
            logits = self._held([np.broadcast_to(pixels, (len(hold), *pixels.shape)), hold])[0]
        of_top = logits[:, logits[0].argmax()]
        effects: list[float] = (of_top[0] - of_top[1:]).tolist()
        return effects

    def _shapes(self) -> list[_Shape]:
        plain = [_Shape(False, 1, True), *(_Shape(False, batch, False) for batch in _chunk_sizes(self.card.max_batch))]
        return [*plain, _Shape(True, 1, True), _Shape(True, -1, False)] if self.card.blocks else plain

    def _compile(self, shape: _Shape) -> openvino.CompiledModel:
        blocks = self.card.blocks if shape.looks else ()
        names = [f"{part}.{block.name}" for block in blocks for part in ("spread", "channel_mean", "map", "gates")]
        network = _part(self._core.read_model(self._file), ["probabilities", *names])
        network.reshape(openvino.PartialShape([shape.batch, 3, self.card.size, self.card.size]))
        threads = self._wide if shape.wide else self._narrow
        return self._core.compile_model(network, "CPU", {**threads, _HINT: self._precision})

    def _warm_up(self) -> None:
        """Every shape once in every lane. Raises EngineError where an answer is not finite."""
        blank = np.zeros((3, self.card.size, self.card.size), np.uint8)
        for lane in self._idle:
            for shape in self._shapes():
                if not all(np.isfinite(output).all() for output in lane.infer(shape, [blank] * abs(shape.batch))):
                    raise EngineError("the warm-up gave numbers that are not finite")


class _Lane:
    """What one call at a time uses: room for the pixels, and a request for every shape, reading them."""

    def __init__(self, compiled: Mapping[_Shape, openvino.CompiledModel], card: Card) -> None:
        self._pixels = np.zeros((card.max_batch, 3, card.size, card.size), np.uint8)
        self._tensors = [openvino.Tensor(self._pixels[:n], shared_memory=True) for n in range(1, card.max_batch + 1)]
        self._requests = {shape: model.create_infer_request() for shape, model in compiled.items()}

    def infer(self, shape: _Shape, images: list[NDArray[np.uint8]]) -> list[Floats]:
        """The outputs, views of memory that the lane's next call overwrites."""
        for i, pixels in enumerate(images):
            self._pixels[i] = pixels
        request = self._requests[shape]
        request.set_input_tensor(self._tensors[len(images) - 1])
        request.infer(share_outputs=True)
        return [output.data for output in request.output_tensors]


def _on(streams: int, threads_each: int) -> dict[str, Any]:
    """OpenVINO's words for so many calls side by side; no pinning: decoding and the event loop share the cores."""
    return {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads_each,
        "ENABLE_CPU_PINNING": False,
    }


def _part(graph: openvino.Model, outputs: list[str], *, held: bool = False) -> openvino.Model:
    """The graph with these outputs alone, and without the choice of a held gate unless it is wanted."""
    inputs = [graph.input("pixels")]
    if held:
        inputs.append(graph.input("hold"))
    else:
        for choice in [node for node in graph.get_ops() if node.get_type_name() == "Select"]:
            choice.output(0).replace(choice.input_value(2))
    return openvino.Model(
        [graph.output(name).get_node() for name in outputs], [parameter.get_node() for parameter in inputs]
    )


def _chunk_sizes(most: int) -> list[int]:
    """The powers of four up to ``most``, falling."""
    return [4**power for power in range((most.bit_length() - 1) // 2, -1, -1)]


def _chunks(places: list[int], most: int) -> Iterator[list[int]]:
    start = 0
    for size in _chunk_sizes(most):
        while len(places) - start >= size:
            yield places[start : start + size]
            start += size


def _best(probabilities: Floats, k: int) -> NDArray[np.int64]:
    """The indices of the k largest in each row, best first, ties by index: (B, k)."""
    k = min(k, probabilities.shape[1])
    some = np.sort(np.argpartition(-probabilities, k - 1, axis=1)[:, :k], axis=1)
    order = (-np.take_along_axis(probabilities, some, 1)).argsort(axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)
