"""What Ray is told of a replica, and what a replica tells Ray; tests/e2e/test_ray.py has Ray itself."""

import hashlib
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from app.errors import Draining, NotReady
from app.forward import Forward
from app.settings import Settings
from nam.files import WeightsError
from tests.fakes import FakeEngine, picture

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # Ray's


@pytest.fixture
def ray_serve() -> ModuleType:
    """Imported here, where Ray's warning is expected."""
    from app import ray_serve

    return ray_serve


def open_fake(settings: Settings, on_forward) -> Forward:
    return Forward(FakeEngine(), settings.max_pixels, on_forward)


def test_arguments_are_words_of_a_command_line(ray_serve: ModuleType) -> None:
    told = ray_serve.Arguments.model_validate({"replicas": "2", "gpus": "0.5"})
    assert (told.replicas, told.gpus) == (2, 0.5)
    with pytest.raises(ValidationError, match="gpu\n"):
        ray_serve.Arguments.model_validate({"gpu": "1"})


def test_a_replica_stays_within_its_share(ray_serve: ModuleType) -> None:
    ours = ray_serve.within(ray_serve.Arguments(cpus=3), Settings())
    assert (ours.device, ours.lanes, ours.threads, ours.decoders) == ("cpu", 3, 1, 3)
    with_gpu = ray_serve.within(ray_serve.Arguments(gpus=0.5), Settings())
    assert (with_gpu.device, with_gpu.lanes) == ("cuda", 0)


def test_what_was_set_wins_over_the_share(ray_serve: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAM_LANES", "5")
    assert ray_serve.within(ray_serve.Arguments(cpus=3), Settings()).lanes == 5


def test_weights_that_are_not_there_are_refused_before_anything_changes(ray_serve: ModuleType) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        ray_serve.build(ray_serve.Arguments(weights="nowhere"))


def test_every_replica_has_the_very_file_or_none(
    ray_serve: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("new.safetensors").write_bytes(b"anything")
    ours = ray_serve.pinned(Settings(weights="new.safetensors"))
    assert ours.weights == str(tmp_path / "new.safetensors")
    assert ours.weights_sha256 == hashlib.sha256(b"anything").hexdigest()


def test_ray_sends_what_a_replica_admits_and_lets_it_drain(ray_serve: ModuleType) -> None:
    made = ray_serve.deployment(ray_serve.Arguments(gpus=0.5), Settings(max_requests=7, drain_ms=20_000))
    assert made.max_ongoing_requests == made.max_queued_requests == 7
    assert made.ray_actor_options["num_gpus"] == 0.5
    assert made._deployment_config.graceful_shutdown_timeout_s > 20


def test_between_two_numbers_of_replicas_the_requests_under_way_decide(ray_serve: ModuleType) -> None:
    made = ray_serve.deployment(ray_serve.Arguments(replicas=2, max_replicas=5, target_ongoing_requests=9), Settings())
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 9)


def test_a_replica_is_healthy_while_it_is_ready(ray_serve: ModuleType) -> None:
    replica = ray_serve.Replica(Settings(), open_fake)
    app = replica.__serve_build_asgi_app__()
    with TestClient(app) as client:
        assert client.post("/predict", content=picture()).status_code == 200
        replica.check_health()
        app.state["services"].batcher.fail("the device is lost")
        with pytest.raises(NotReady):
            replica.check_health()
    with pytest.raises(Draining):
        replica.check_health()
