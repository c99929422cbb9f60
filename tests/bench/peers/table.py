"""The other frameworks, each with the command that starts it. Imports none of them."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Variant = Literal["engine", "tutorial"]

ROOT = Path(__file__).resolve().parents[3]
CORES = os.cpu_count() or 1
SCRATCH = Path(tempfile.gettempdir()) / "nam-peers"

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
BENTOML = {"BENTOML_HOME": f"{SCRATCH}/bentoml", "BENTOML_DO_NOT_TRACK": "True"}
# Ray runs its workers at niceness 15, below a load generator on the same cores, which no deployment has beside it.
RAY = {"RAY_TMPDIR": f"{SCRATCH}/ray", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
RAY_FAST = {**RAY, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
RAY_HAPROXY = {
    **RAY_FAST,
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": str(CORES),
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{SCRATCH}/haproxy/haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{SCRATCH}/haproxy/admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"{SCRATCH}/haproxy",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{SCRATCH}/haproxy/server-state",
}


@dataclass(frozen=True)
class Peer:
    """A framework, tuned around our engine or as its tutorial has it: POST a JPEG as the body to ``path``.

    ``arguments``: what follows ``python -m``, with {port}, {cores} and {root}; ``environment``: what only it needs.
    """

    name: str
    variant: Variant
    path: str
    content_type: str
    arguments: str
    environment: tuple[tuple[str, str], ...] = ()

    def command(self, port: int, weights: str) -> list[str]:
        """The argv that starts it on 127.0.0.1:``port``. ``weights``: a file, or the name of shipped weights."""
        threads = ONE_THREAD if self.variant == "engine" else {}
        environment = {
            **{"PYTHONPATH": str(ROOT), "PEER_WEIGHTS": str(_file(weights))},
            **threads,
            **dict(self.environment),
        }
        arguments = [part.format(port=port, cores=CORES, root=ROOT) for part in self.arguments.split()]
        return ["env", *(f"{k}={v}" for k, v in environment.items()), str(python()), "-m", *arguments]


def python() -> Path:
    """The Python of the peers' environment: tests/bench/peers/install made it."""
    return Path(os.environ.get("PEERS_VENV", ROOT / ".venv-peers")) / "bin" / "python"


def _file(weights: str) -> Path:
    file = Path(weights)
    return file.resolve() if file.is_file() else ROOT / "weights" / f"{weights}.safetensors"


def _peer(name: str, path: str, arguments: str, environment: dict[str, str] | None = None) -> Peer:
    variant: Variant = "tutorial" if name.endswith("tutorial") else "engine"
    return Peer(name, variant, path, "image/jpeg", arguments, tuple((environment or {}).items()))


HERE = "tests.bench.peers"
UVICORN = f"uvicorn --host 127.0.0.1 --port {{port}} --factory {HERE}.fastapi_server:"
BENTO = f"bentoml serve --working-dir {{root}} --host 127.0.0.1 --port {{port}} {HERE}.bentoml_server:"
MOSEC = "--address 127.0.0.1 --port {port}"
QUIET = f"{MOSEC} --log-level warning --timeout 30000"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        _peer("fastapi", "/predict", f"{UVICORN}threads --workers {{cores}} --no-access-log"),
        _peer("fastapi, async", "/predict", f"{UVICORN}inline --workers {{cores}} --no-access-log"),
        _peer("fastapi tutorial", "/predict", f"{UVICORN}tutorial"),
        _peer("litserve", "/predict", f"{HERE}.litserve_server engine {{port}}"),
        _peer("litserve, batches", "/predict", f"{HERE}.litserve_server batches {{port}}"),
        _peer("litserve tutorial", "/predict", f"{HERE}.litserve_server tutorial {{port}}"),
        _peer("bentoml", "/classify", f"{BENTO}Engine", BENTOML),
        _peer("bentoml, batches", "/classify", f"{BENTO}Batches", BENTOML),
        _peer("bentoml, two services", "/classify", f"{BENTO}TwoServices", BENTOML),
        _peer("bentoml tutorial", "/classify", f"{BENTO}Classifier", BENTOML),
        _peer("ray serve", "/", f"{HERE}.ray_server engine {{port}}", RAY_FAST),
        _peer("ray serve, haproxy", "/", f"{HERE}.ray_server engine {{port}}", RAY_HAPROXY),
        _peer("ray serve tutorial", "/", f"{HERE}.ray_server tutorial {{port}}", RAY),
        _peer("mosec", "/inference", f"{HERE}.mosec_server inline {QUIET}"),
        _peer("mosec, two stages", "/inference", f"{HERE}.mosec_server stages {QUIET}"),
        _peer("mosec tutorial", "/inference", f"{HERE}.mosec_server tutorial {MOSEC}"),
    )
}
