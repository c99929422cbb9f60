"""Graphs that OpenVINO runs, kept on disk: made once from a weights file, by another process, which needs torch."""

import logging
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from app.engine import EngineError
from nam.files import WeightsError

logger = logging.getLogger("nam.graphs")

# Changes whenever nam/export.py writes something else: older graphs are then made anew.
FORM = 4


def graph_of(weights: Path, sha256: str, folder: Path) -> Path:
    """The graph of a weights file, in ``folder`` under the hash of the weights; made where it is missing.

    Raises EngineError for weights that do not load, where there is no torch to make it with, for a folder that cannot
    be written to.
    """
    graph = folder / f"{sha256}-{FORM}.xml"
    if graph.is_file():
        return graph
    if find_spec("torch") is None:
        raise EngineError(f"no graph of {weights} in {folder}, and torch, which exports it, is not installed here")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{graph}.lock"):  # the workers of one machine start together
            if not graph.is_file():
                logger.info("exporting %s to %s, once", weights, graph)
                _export(weights, graph)
    except OSError as error:
        raise EngineError(f"NAM_CACHE_DIR={folder} cannot be written to: {error.strerror}") from error
    return graph


def int8_graph_of(sha256: str, folder: Path) -> Path:
    """Where the int8 graph of a weights file is, which ``nam quantize`` makes; whether or not it is there."""
    return folder / f"{sha256}-{FORM}-int8.xml"


def _export(weights: Path, graph: Path) -> None:
    """In a process of its own: torch takes 0.5 GB that serving then never holds."""
    with tempfile.TemporaryDirectory(dir=graph.parent) as folder:
        made = Path(folder) / "graph.xml"
        command = [sys.executable, "-m", "nam.export", str(weights), str(made)]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own module, our own paths
        if done.returncode:
            raise EngineError(_last_words(done.stderr, graph.parent))
        os.replace(made.with_suffix(".bin"), graph.with_suffix(".bin"))
        os.replace(made, graph)  # last: where it is, all is there


def _last_words(stderr: str, folder: Path) -> str:
    """What the export says of the weights, or that it failed: most likely the disk is full."""
    lines = stderr.strip().splitlines() or ["no word of why"]
    of_weights = f"{WeightsError.__module__}.{WeightsError.__name__}: "
    if lines[-1].startswith(of_weights):
        return lines[-1].removeprefix(of_weights)
    return f"no graph could be written to NAM_CACHE_DIR={folder}: {lines[-1]}"
