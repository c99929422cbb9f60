"""The CPU's engine: the folded network as a graph in OpenVINO. Serving with it never imports torch.

Knows tensors and nothing of requests. A single image that finds the engine idle takes all cores; calls side by side
take a lane's threads each, with as many images as they have: nothing is padded. Asks for the attention run with the
gates as further outputs, the others without. The gate's argument, its sigmoid and the statistics are fp32 whatever the
convolutions compute in.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino

from app.array_engine import ArrayEngine, Indices, Kind, Pixels
from app.cores import usable_cores
from app.engine import Card, EngineError, Floats
from app.graphs import checked, graph_of, int8_graph_of
from nam.files import WeightsError, verified

Dtype = Literal["float32", "bfloat16", "int8"]

INT8_NOTE = "computed in int8: the gates are those of rounded features, and vary by up to a third less"

_HINT = "INFERENCE_PRECISION_HINT"
# Of what is not int8 in an int8 graph: the activations between.
_PRECISION = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}

# Measured (tests/bench/RESULTS.md): beyond either a batch gains nothing, and whoever comes next waits for it.
_MOST_IMAGES = 16
_MOST_FLOPS = 16e9


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a graph is compiled for. ``held``: logits with gates held, in fp32, any number of images on all cores; else
    ``wide`` says: one image on all cores, or any number on a lane's."""

    kind: Kind | Literal["held"]
    wide: bool


_HELD = _Shape("held", wide=True)


class OpenVINOEngine(ArrayEngine["_Lane"]):
    """Compiles and warms up in the constructor, so that a failure stops the start. Raises EngineError.

    ``threads``: of a lane; ``lone_threads``: of an image that finds the engine idle, all cores unless it is said; no
    more than a lane has: such an image runs as any other.
    """

    def __init__(
        self,
        path: str,
        *,
        cache: Path,
        sha256: str = "",
        dtype: Dtype = "float32",
        reason: str = "asked for",
        threads: int = 0,
        max_batch: int = 0,
        lanes: int = 0,
        lone_threads: int = 0,
    ) -> None:
        cores = usable_cores()
        lanes = lanes or cores
        try:
            weights, sha256 = verified(path, sha256)
            int8 = _int8_graph(weights, sha256, cache) if dtype == "int8" else None
            self._exact = graph_of(weights, sha256, cache)  # effects are small differences of logits
            self._file = int8 or self._exact
        except (WeightsError, OSError) as error:
            raise EngineError(str(error)) from error
        self._core = openvino.Core()
        told = self._read()
        card = Card.of(
            told,
            max_batch=max_batch or int(min(_MOST_IMAGES, max(1, _MOST_FLOPS // told["flops"]))),
            lanes=lanes,
            device="cpu",
            dtype=dtype,
            engine=f"openvino {openvino.__version__.partition('-')[0]}",
            reason=reason,
        )
        if dtype == "int8":
            card = replace(card, notes=(*card.notes, INT8_NOTE))
        self._precision = _PRECISION[dtype]
        threads, lone_threads = threads or max(1, cores // lanes), lone_threads or threads or cores
        self._narrow, self._wide = _on(lanes, threads), _on(1, lone_threads)
        self._widens = lone_threads > threads
        self._compiled: dict[_Shape, openvino.CompiledModel] = {}
        self._lock_compiled, self._lock_held = threading.Lock(), threading.Lock()
        super().__init__(card, [_Lane(self._network, card) for _ in range(lanes)])
        # What few ask for is compiled when it is first asked for: each takes as much memory as the weights.
        self.warm_up(_sizes(card.max_batch), ("labels", "gates") if card.blocks else ("labels",))

    def _read(self) -> dict[str, Any]:
        """What the graph says of its network. Raises EngineError for a graph that is no longer whole."""
        file = checked(self._file)
        try:
            told: dict[str, Any] = json.loads(self._core.read_model(file).get_rt_info("nam").value)
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{self._file} is damaged: remove it, and it is made again") from error
        return told

    def infer(self, lane: "_Lane", images: list[Pixels], kind: Kind, *, alone: bool) -> dict[str, Floats]:
        wide = self._widens and alone and len(images) == 1
        return lane.infer(_Shape(kind, wide), images)

    def held(self, pixels: Pixels, blocks: Indices, channels: Indices) -> Floats:
        images = np.broadcast_to(pixels, (len(blocks), *pixels.shape))
        with self._lock_held:
            logits: Floats = self._network(_HELD)([images, blocks, channels])[0]
        return logits

    def _network(self, shape: _Shape) -> openvino.CompiledModel:
        with self._lock_compiled:
            if shape not in self._compiled:
                self._compiled[shape] = self._compile(shape)
            return self._compiled[shape]

    def _compile(self, shape: _Shape) -> openvino.CompiledModel:
        network = _part(self._core.read_model(checked(self._exact if shape == _HELD else self._file)), shape.kind)
        threads = self._wide if shape.wide else self._narrow
        if shape == _HELD:
            return self._core.compile_model(network, "CPU", {**threads, _HINT: "f32"})
        network.reshape(openvino.PartialShape([1 if shape.wide else -1, 3, self.card.size, self.card.size]))
        return self._core.compile_model(network, "CPU", {**threads, _HINT: self._precision})


def _int8_graph(weights: Path, sha256: str, cache: Path) -> Path:
    if not (graph := int8_graph_of(sha256, cache)).is_file():
        raise EngineError(f"int8 wants images to calibrate on: nam quantize --weights {weights} --data FOLDER, once")
    return graph


class _Lane:
    """What one call at a time uses: room for the pixels, and a request for every shape, reading them."""

    def __init__(self, network: Callable[[_Shape], openvino.CompiledModel], card: Card) -> None:
        self._pixels = np.zeros((card.max_batch, 3, card.size, card.size), np.uint8)
        self._tensors = [openvino.Tensor(self._pixels[:n], shared_memory=True) for n in range(1, card.max_batch + 1)]
        self._network = network
        self._requests: dict[_Shape, tuple[openvino.InferRequest, list[str]]] = {}

    def infer(self, shape: _Shape, images: list[Pixels]) -> dict[str, Floats]:
        """The outputs, views of memory that the lane's next call overwrites."""
        for i, pixels in enumerate(images):
            self._pixels[i] = pixels
        request, names = self._request(shape)
        request.set_input_tensor(self._tensors[len(images) - 1])
        request.infer(share_outputs=True)
        return {name: output.data for name, output in zip(names, request.output_tensors, strict=True)}

    def _request(self, shape: _Shape) -> tuple[openvino.InferRequest, list[str]]:
        if shape not in self._requests:
            network = self._network(shape)
            self._requests[shape] = network.create_infer_request(), [port.any_name for port in network.outputs]
        return self._requests[shape]


def _sizes(most: int) -> list[int]:
    """The batches of the warm-up, the largest first: all that are usual, and of the others each half of the one before.
    All of them would be a million images where a thousand may be in one."""
    large = [most >> halved for halved in range(most.bit_length()) if most >> halved > _MOST_IMAGES]
    return [*large, *range(min(most, _MOST_IMAGES), 0, -1)]


def _on(streams: int, threads_each: int) -> dict[str, Any]:
    """OpenVINO's words for so many calls side by side; no pinning: decoding and the event loop share the cores."""
    return {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads_each,
        "ENABLE_CPU_PINNING": False,
    }


def _part(graph: openvino.Model, kind: str) -> openvino.Model:
    """The graph with what a call of this kind computes alone, and without the choice of held gates where none is."""
    inputs = [port for port in graph.inputs if kind == "held" or port.any_name == "pixels"]
    if kind != "held":
        for choice in [node for node in graph.get_ops() if node.get_type_name() == "Select"]:
            choice.output(0).replace(choice.input_value(2))
    outputs = [port for port in graph.outputs if _is_of(kind, port.any_name)]
    return openvino.Model([port.get_node() for port in outputs], [port.get_node() for port in inputs])


def _is_of(kind: str, output: str) -> bool:
    if kind == "held" or output == "logits":
        return kind == "held" and output == "logits"
    further = output.startswith("map_")
    return output == "probabilities" or kind == "methods" or (kind == "gates" and not further)
