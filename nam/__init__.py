"""Tensors. See the README's tree for what is where."""

import sys

# OpenVINO's converter and NNCF tell their makers of each use, unless this package is missing. Here it is.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
