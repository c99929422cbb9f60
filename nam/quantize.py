"""An exported network with its convolutions in int8, calibrated on images: post-training quantization by NNCF.

The scales are chosen from the activations that the images cause; no weight is trained. What reads a gate stays as it
is, so that its argument, its sigmoid and its statistics are fp32 here too.
"""

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from nam.export import DESCRIPTION

# Element by element, and cheap: what a gate and its sums are made of.
_KEPT = ["Sigmoid", "Multiply", "Divide", "Select", "ReduceMean", "ReduceMin", "ReduceMax", "ReduceSum", "Subtract"]


def quantize(graph: Path, pixels: NDArray[np.uint8], target: Path) -> None:
    """Write ``target`` (.xml, .bin beside it). ``pixels``: (N, 3, S, S), RGB; some hundreds of training images.

    Raises ImportError where NNCF is missing.
    """
    import nncf

    network = openvino.Core().read_model(graph)
    told = network.get_rt_info(DESCRIPTION).value
    names = {node.get_any_name() for node in network.inputs}

    def feed(image: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
        none = np.array([-1])
        given: dict[str, NDArray[np.generic]] = {"pixels": image[None], "hold": none, "hold_channel": none}
        return {name: value for name, value in given.items() if name in names}

    made = nncf.quantize(
        network,
        nncf.Dataset(list(pixels), feed),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(pixels),
        ignored_scope=nncf.IgnoredScope(types=_KEPT, validate=False),
    )
    made.set_rt_info(told, DESCRIPTION)
    openvino.save_model(made, target, compress_to_fp16=False)
