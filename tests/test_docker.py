"""The images' files against the code: no engine is asked. That they build and serve is docker/smoke's to prove."""

import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
COMPOSE = {"cpu": "compose.yaml", "gpu": "compose.gpu.yaml"}
BOTH = pytest.mark.parametrize("target", COMPOSE)


def env(stage: str) -> dict[str, str]:
    """What ``ENV`` says in a stage of the Dockerfile."""
    (body,) = re.findall(rf"^FROM \S+ AS {stage}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    said = re.findall(r"^ENV ((?:.*\\\n)*.*)", body, re.M)
    return dict(pair.split("=", 1) for line in said for pair in line.replace("\\\n", " ").split())


def compose(target: str) -> dict[str, Any]:
    """The one service of a compose file."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker" / COMPOSE[target]).read_text(encoding="utf-8"))[
        "services"
    ]
    (service,) = services.values()
    assert isinstance(service, dict)
    return service


def test_the_dockerfile_is_as_hadolint_wants_it() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_images_version_is_the_projects() -> None:
    assert re.findall(r"^ARG VERSION=(.*)", DOCKERFILE, re.M) == [PROJECT["version"]]


@BOTH
def test_the_images_variables_are_settings(target: str) -> None:
    told = {name: value for name, value in (env("runtime") | env(target)).items() if name.startswith("NAM_")}
    told["NAM_WEIGHTS"] = re.findall(r"^ARG WEIGHTS=(.*)", DOCKERFILE, re.M)[-1]
    settings = Settings(**{name.removeprefix("NAM_").lower(): value for name, value in told.items()})
    assert settings.weights == Settings.model_fields["weights"].default
    assert (settings.host, settings.port) == ("0.0.0.0", Settings.model_fields["port"].default)  # noqa: S104
    assert settings.engine == {"cpu": "openvino", "gpu": "torch"}[target]


def test_the_last_stage_is_what_a_build_without_a_target_gives() -> None:
    assert re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.M)[-1] == "gpu"
    assert env("gpu")["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


@BOTH
def test_a_compose_file_hardens_its_container(target: str) -> None:
    service = compose(target)
    assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"])  # noqa: S108
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "healthcheck" not in service  # the image's own


@BOTH
def test_a_compose_file_builds_its_target_and_publishes_its_port_here_alone(target: str) -> None:
    service = compose(target)
    assert service["build"] == {"context": "..", "target": target}
    port = env("runtime")["NAM_PORT"]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"EXPOSE {port}" in DOCKERFILE


@BOTH
def test_a_compose_file_waits_longer_than_the_service_drains(target: str) -> None:
    service = compose(target)
    told = {name.removeprefix("NAM_").lower(): value for name, value in service["environment"].items()}
    drain_s = Settings(**told | {"api_keys": ""}).drain_ms / 1000
    assert drain_s < int(service["stop_grace_period"].removesuffix("s")) <= drain_s + 10
    assert f"--stop-timeout {service['stop_grace_period'].removesuffix('s')}" in README


def test_the_gpus_compose_file_asks_for_a_device_and_refuses_to_do_without() -> None:
    service = compose("gpu")
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"], device["device_ids"]) == ("nvidia", ["gpu"], ["0"])
    assert service["environment"]["NAM_DEVICE"] == "cuda"


def test_the_context_is_what_it_names_and_nothing_else() -> None:
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    allowed = [line.removeprefix("!") for line in rest if line.startswith("!")]
    assert first == "*"
    assert all(list(ROOT.glob(pattern)) for pattern in allowed), allowed
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.M) for name in line.split()[:-1]}
    assert copied - {"--chmod=644", "."} <= set(allowed)


def requirements(*arguments: str) -> list[str]:
    """What docker/requirements.py prints."""
    command = [sys.executable, ROOT / "docker" / "requirements.py", ROOT / "pyproject.toml", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_an_image_installs_the_projects_dependencies_but_for_those_named_and_extras() -> None:
    installed = requirements("--extra", "otel", "--without", "torch", "torchvision")
    assert set(PROJECT["dependencies"]) - set(installed) == {"torch>=2.11", "torchvision>=0.26"}
    assert set(installed) - set(PROJECT["dependencies"]) == set(PROJECT["optional-dependencies"]["otel"])


def test_what_is_to_be_left_out_must_be_a_dependency() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        requirements("--without", "torsh")
    assert "not among the dependencies: torsh" in caught.value.stderr


@contextmanager
def answering(status: int) -> Iterator[int]:
    """The port of a server that answers so on /readyz, and 404 elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def health(port: int) -> int:
    environment = os.environ | {"NAM_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, ROOT / "docker" / "healthcheck.py"], env=environment).returncode


def test_the_health_check_passes_where_the_service_is_ready_whatever_the_proxy() -> None:
    with answering(200) as port:
        assert health(port) == 0


def test_the_health_check_fails_where_the_service_is_not_ready_or_not_there() -> None:
    with answering(503) as port:
        assert health(port) == 1
    assert health(port) == 1
