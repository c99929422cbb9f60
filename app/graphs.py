"""Graphs that OpenVINO runs, kept on disk: made once from a weights file, by another process, which needs torch.

Beside each lies what its files' sha256 were when it was made: weights that are verified would be worth little where a
graph of theirs could be changed. Whoever can write to the folder at all can replace both, so it is the service's own.
"""

import logging
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from app.engine import EngineError
from nam.files import WeightsError, file_sha256

logger = logging.getLogger("nam.graphs")

# Changes whenever nam/export.py writes something else: older graphs are then made anew.
FORM = 5


def cache_folder(told: Path) -> Path:
    """``NAM_CACHE_DIR`` with its home in full. Raises EngineError where nobody's home is meant."""
    try:
        return told.expanduser()
    except RuntimeError:  # whoever is no user and has no HOME, as in some containers
        raise EngineError(f"NAM_CACHE_DIR={told}, and there is no such home: name another folder") from None


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
                _export(weights, sha256, graph)
    except OSError as error:
        raise EngineError(f"NAM_CACHE_DIR={folder} cannot be written to: {error.strerror}") from error
    return graph


def int8_graph_of(sha256: str, folder: Path) -> Path:
    """Where the int8 graph of a weights file is, which ``nam quantize`` makes; whether or not it is there."""
    return folder / f"{sha256}-{FORM}-int8.xml"


def seal(graph: Path) -> None:
    """Write beside a graph what its files' sha256 are."""
    _record(graph).write_text(_digests(graph), encoding="utf-8")


def checked(graph: Path) -> Path:
    """The same path, where its files are as they were made; to be asked before each use. Raises EngineError."""
    try:
        if _record(graph).read_text(encoding="utf-8") == _digests(graph):
            return graph
    except (OSError, ValueError):
        pass
    raise EngineError(f"{graph} is not as it was made: remove it, and make it again")


def _record(graph: Path) -> Path:
    return graph.with_suffix(".sha256")


def _digests(graph: Path) -> str:
    """A line for the graph, one for its constants; without their names, which change when they are put in place."""
    return "".join(f"{file_sha256(file)}  {file.suffix}\n" for file in (graph, graph.with_suffix(".bin")))


def _export(weights: Path, sha256: str, graph: Path) -> None:
    """In a process of its own: torch takes 0.5 GB that serving then never holds."""
    with tempfile.TemporaryDirectory(dir=graph.parent) as folder:
        made = Path(folder) / "graph.xml"
        command = [sys.executable, "-m", "nam.export", str(weights), str(made), "--sha256", sha256]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own module, our own paths
        if done.returncode:
            raise EngineError(_last_words(done.stderr, graph.parent))
        seal(made)
        for part in (".bin", ".sha256"):
            os.replace(made.with_suffix(part), graph.with_suffix(part))
        os.replace(made, graph)  # last: where it is, all is there


def _last_words(stderr: str, folder: Path) -> str:
    """What the export says of the weights, or that it failed: most likely the disk is full."""
    lines = stderr.strip().splitlines() or ["no word of why"]
    of_weights = f"{WeightsError.__module__}.{WeightsError.__name__}: "
    if lines[-1].startswith(of_weights):
        return lines[-1].removeprefix(of_weights)
    return f"no graph could be written to NAM_CACHE_DIR={folder}: {lines[-1]}"
