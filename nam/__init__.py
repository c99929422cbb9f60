"""Tensors. See the README's tree for what is where."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nam.files import DEFAULT

if TYPE_CHECKING:
    from nam.classifier import Classifier

# OpenVINO's converter and NNCF tell their makers of each use, unless this package is missing. Here it is.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def load(weights: str | Path = DEFAULT) -> "Classifier":
    """A network in eval mode on the CPU that takes pictures; its two methods are ``predict`` and ``attention``.

    ``weights``: a file, or the name of shipped weights; WeightsError where it is neither. Torch is imported here, not
    with this package: whoever wants something else of it does not pay for that.
    """
    from nam import classifier

    return classifier.load(weights)
