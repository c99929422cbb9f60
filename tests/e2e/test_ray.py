"""Ray Serve as it is: two raylets on one machine, a proxy, two replicas. Most have the fake engine, which names them in
its answers: what is looked at is who answers, and what becomes of requests."""

import os
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import start
from tests.e2e.replicas import Callers, Cluster, two_machines
from tests.fakes import picture, until

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning"),  # there is no other way yet
]

SETTINGS = {"weights": "old", "max_requests": 8, "body_idle_ms": 3000, "max_body_bytes": 2**20, "drain_ms": 5000}
TWO = {"replicas": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One for the module. Ray's sockets want a short path."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-") as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING", "0")
        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)  # as Ray says: stay on the loopback
        with two_machines(folder) as running:
            running.deploy(SETTINGS, TWO)
            yield running


def parts(models: list[str], place: int) -> Counter[str]:
    """How often each weights file, machine or process is named."""
    return Counter(model.split("/")[place] for model in models)


def test_the_load_spreads_over_both_machines(cluster: Cluster) -> None:
    with Callers(cluster.url) as callers:
        until(lambda: len(callers.models) >= 60)
    assert not callers.again
    machines, processes = parts(callers.models, 1), parts(callers.models, 2)
    assert len(machines) == len(processes) == 2
    assert min(machines.values()) > len(callers.models) / 5


def test_the_id_is_the_callers_or_rays_and_there_once(cluster: Cluster) -> None:
    for headers in ({}, {"x-request-id": "mine"}):
        answer = cluster.post(headers={"content-type": "image/png"} | headers)
        (told,) = answer.headers.get_list("x-request-id")
        assert told == headers.get("x-request-id", told)
        assert {"server-timing", "x-batch-size", "x-content-type-options"} <= set(answer.headers)
    failed = cluster.post(content=b"", headers={"x-request-id": "mine"})
    assert failed.json()["request_id"] == "mine"


@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("/nowhere", {}, 404, "not_found"),
        ("/healthz", {}, 405, "method_not_allowed"),
        ("/predict", {"content": b"no image"}, 415, "unsupported_media_type"),
        ("/predict", {"content": picture()[:45]}, 422, "bad_image"),
        ("/predict", {"content": bytes(2**20 + 1)}, 413, "body_too_large"),
        ("/predict", {"headers": {"content-type": "image/png", "x-timeout-ms": "10"}}, 504, "deadline_exceeded"),
    ],
)
def test_errors_keep_their_shape(cluster: Cluster, path: str, options: dict, status: int, code: str) -> None:
    answer = cluster.post(path, **options)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


def test_what_is_too_much_is_told_when_to_come_back(cluster: Cluster) -> None:
    """Bodies that do not come hold their places for as long as they may, whoever is slow."""
    with ExitStack() as crowd:
        held = [crowd.enter_context(begun(cluster)) for _ in range(40)]
        heads = [one.recv(4096).lower().partition(b"\r\n\r\n")[0].split(b"\r\n") for one in held]
    assert {head[0][:12] for head in heads} == {b"http/1.1 408", b"http/1.1 503"}
    assert all((b"retry-after: 1" in head) == (b" 503" in head[0]) for head in heads)
    assert cluster.post().status_code == 200


def begun(cluster: Cluster) -> socket.socket:
    """A request whose body stops after its first bytes."""
    url = httpx2.URL(cluster.url)
    slow = socket.create_connection((url.host, url.port), 60)
    slow.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nbegun")
    return slow


def test_a_body_arrives_as_it_is_sent_and_not_too_slowly(cluster: Cluster) -> None:
    image = picture()
    halves = iter([image[:50], image[50:]])
    assert cluster.post(content=halves).status_code == 200
    with begun(cluster) as slow:
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_caller_that_leaves_is_counted_as_gone(cluster: Cluster) -> None:
    """As often as it takes: who leaves before Ray's proxy has passed the request on is no replica's caller."""

    def left() -> bool:
        with pytest.raises(httpx2.ReadTimeout):
            cluster.post(timeout=0.03)
        return (
            'nam_requests_total{route="/predict",status="499"}' in httpx2.get(cluster.url + "/metrics", timeout=60).text
        )

    until(left)


def test_new_weights_lose_no_request(cluster: Cluster) -> None:
    with Callers(cluster.url) as callers:
        until(lambda: len(callers.models) > 10)
        cluster.deploy(SETTINGS | {"weights": "new"}, TWO)
        done = len(callers.models) + callers.count  # those on their way count with the old
        until(lambda: len(callers.models) > done + 40)
    print(f"an update: {len(callers.models)} answered, {len(callers.again)} sent again, {len(callers.lost)} lost")
    assert not callers.again
    assert set(parts(callers.models, 0)) == {"old", "new"}
    assert set(parts(callers.models[done:], 0)) == {"new"}
    assert len(parts(callers.models[done:], 2)) == 2


def test_a_replica_that_is_killed_loses_nothing_where_callers_ask_again(cluster: Cluster) -> None:
    with Callers(cluster.url) as callers:
        until(lambda: len(parts(callers.models, 2)) == 2)
        victim = callers.models[-1].split("/")[2]
        os.kill(int(victim), signal.SIGKILL)
        until(lambda: cluster.running() == 2 and len(parts(callers.models, 2)) == 3, 180)
    print(f"a kill: {len(callers.models)} answered, {len(callers.again)} sent again, {len(callers.lost)} lost")
    assert callers.again
    assert not callers.lost
    assert victim not in parts(callers.models[-6:], 2)


def test_a_replica_that_is_no_longer_ready_is_replaced(cluster: Cluster) -> None:
    with Callers(cluster.url) as callers:
        until(lambda: len(parts(callers.models, 2)) == 2)
        assert cluster.post(content=picture(255)).json()["code"] == "internal_error"
        until(lambda: cluster.running() == 2 and len(parts(callers.models, 2)) == 3, 180)
    assert {reason[:3] for reason in callers.again} <= {"500", "503"}
    assert not callers.lost


def test_replicas_come_and_go_with_the_requests_under_way(cluster: Cluster) -> None:
    from ray.serve.config import AutoscalingConfig

    quick = {"upscale_delay_s": 0.5, "downscale_delay_s": 0.5, "look_back_period_s": 1.0, "metrics_interval_s": 0.2}
    scaling = AutoscalingConfig(min_replicas=1, max_replicas=2, target_ongoing_requests=2, **quick)
    cluster.clear()
    cluster.deploy(SETTINGS, {"max_replicas": 2}, {"autoscaling_config": scaling})
    assert cluster.running() == 1
    with Callers(cluster.url) as callers:
        until(lambda: cluster.running() == 2 and len(parts(callers.models[-20:], 2)) == 2, 180)
    until(lambda: cluster.running() == 1, 180)
    assert not callers.lost


def test_answers_are_those_of_the_single_process(
    cluster: Cluster, photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32: bf16 rounds by the batch that an image is in."""
    from ray import serve

    from app.ray_serve import Arguments, build

    monkeypatch.setenv("NAM_DTYPE", "float32")
    cluster.clear()
    serve.run(build(Arguments(replicas=2)))
    single = start(tmp_path, NAM_DTYPE="float32")
    jpeg = {"content-type": "image/jpeg"}
    try:
        for photo in photos.values():
            asked = {"content": photo.read_bytes(), "headers": jpeg, "timeout": 60}
            alone = httpx2.post(single.url + "/predict", **asked).json()
            with ThreadPoolExecutor(4) as pool:
                for answer in pool.map(lambda _, asked=asked: cluster.post(**asked).json(), range(8)):
                    assert labels(answer) == labels(alone)
                    assert probabilities(answer) == pytest.approx(probabilities(alone), abs=1e-5)
                    assert answer["image"] == alone["image"]
    finally:
        single.process.terminate()
        assert single.process.wait(60) == 0


def labels(answer: dict) -> list[str]:
    return [answer["model"], *(one["class_id"] for one in answer["predictions"])]


def probabilities(answer: dict) -> list[float]:
    return [one["probability"] for one in answer["predictions"]]
