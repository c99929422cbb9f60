"""A weights file -> a graph that OpenVINO runs without torch. ``python -m nam.export WEIGHTS OUT.xml``

The graph is the folded network in fp32 (:mod:`nam.fold`): pixels uint8 (B, 3, S, S) go in, and int64 (B,) both,
``hold``, the block whose gate is held at its mean (-1: none), and ``hold_channel``, which of its channels (-1: all).
What comes out is named by :class:`nam.outputs.Outputs`. Whoever serves takes the outputs that it wants: the rest of the
graph is then not computed. What :mod:`nam.describe` says of the network travels inside, as JSON, with the operations of
one forward (``flops``).
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

import openvino
import torch

from nam import weights
from nam.build import Model
from nam.describe import describe
from nam.evaluate import cost
from nam.outputs import Outputs

DESCRIPTION = "nam"
_INPUTS = ("pixels", "hold", "hold_channel")


@torch.inference_mode()
def to_openvino(model: Model, card: weights.Card) -> openvino.Model:
    """The graph of a network in eval mode, any batch."""
    outputs, size = Outputs(model).eval(), card.config.size
    none, any_batch = torch.full((2,), -1), openvino.PartialShape([-1])
    wanted = len(_INPUTS) if outputs.names else 1
    example = (torch.zeros(2, 3, size, size, dtype=torch.uint8), none, none)[:wanted]
    shapes = [openvino.PartialShape([-1, 3, size, size]), any_batch, any_batch][:wanted]
    names = outputs.look(*example, methods=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about Python numbers that are constants here
        graph = openvino.convert_model(outputs, example_input=example, input=shapes)
    for port, name in zip([*graph.inputs, *graph.outputs], [*_INPUTS[:wanted], *names], strict=True):
        port.get_tensor().set_names({name})
    told = describe(model, card) | {"flops": cost(model, size)["flops"]}
    graph.set_rt_info(json.dumps(told, ensure_ascii=False), DESCRIPTION)
    return graph


def export(source: str | Path, target: Path, sha256: str = "") -> None:
    """Write ``target`` (.xml) and its constants beside it (.bin). Raises WeightsError for what is no weights file, or
    not the one of ``sha256``, where it is given."""
    openvino.save_model(to_openvino(*weights.load(source, sha256)), target, compress_to_fp16=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a weights file, or the name of shipped weights")
    parser.add_argument("out", type=Path, help="the graph's file; ends in .xml")
    parser.add_argument("--sha256", default="", help="what the weights file must have")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    export(arguments.weights, arguments.out, arguments.sha256)


if __name__ == "__main__":
    main()
