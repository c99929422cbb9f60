"""A weights file -> ONNX, for whatever runs that. Needs the extra ``onnx``.

As for OpenVINO (:mod:`nam.export`) the graph is the folded network in fp32, but no gate of it can be held: ``pixels``,
uint8 (B, 3, S, S), go in, and out comes, under its name, all that :class:`nam.outputs.Outputs` says. What
:mod:`nam.describe` says of the network, labels and crop among it, travels inside as JSON, the metadata ``nam``, with
the operations of one forward (``flops``).
"""

import json
import warnings
from pathlib import Path
from typing import cast

import onnxscript  # noqa: F401 - torch's exporter needs it, and says so less clearly
import torch

from nam import weights
from nam.build import Model
from nam.describe import describe
from nam.evaluate import cost
from nam.export import DESCRIPTION
from nam.outputs import Outputs


@torch.no_grad()
def to_onnx(model: Model, card: weights.Card) -> torch.onnx.ONNXProgram:
    """The graph of a network in eval mode, any batch."""
    outputs, size = Outputs(model).eval(), card.config.size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    names = list(outputs.look(example, methods=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        exported = torch.onnx.export(
            outputs,
            (example,),
            input_names=["pixels"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    program = cast(torch.onnx.ONNXProgram, exported)
    told = describe(model, card) | {"flops": cost(model, size)["flops"]}
    program.model.metadata_props[DESCRIPTION] = json.dumps(told, ensure_ascii=False)
    return program


def export(source: str | Path, target: Path) -> None:
    """Write ``target``, one file (.onnx). Raises WeightsError for what is no weights file."""
    to_onnx(*weights.load(source)).save(target, external_data=False)
