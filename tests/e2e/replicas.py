"""What the tests of Ray Serve stand on: two raylets on this machine, replicas whose answers name them, and callers."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

from app.engine import Answer, Ask, DeviceLost
from app.forward import Forward, Run
from app.settings import Settings
from tests.fakes import CARD, FakeEngine, free_port, picture

FORWARD_S = 0.05
# A replica that is not ready answers at once, so it gets most of what is sent again, until Ray sees it.
TRIES = 20
PNG = {"content-type": "image/png"}


class Named(FakeEngine):
    """Takes its time; its model is called weights/machine/process. A white image costs it its device."""

    def __init__(self, weights: str) -> None:
        import ray

        super().__init__()
        self.card = replace(CARD, name=f"{weights}/{ray.get_runtime_context().get_node_id()}/{os.getpid()}")

    def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
        time.sleep(FORWARD_S)
        if any(ask.pixels.mean() > 250 for ask in asks):
            raise DeviceLost
        return super().__call__(asks)


def open_named(settings: Settings, on_forward: Callable[[float], None]) -> Run:
    return Forward(Named(settings.weights), settings.max_pixels, on_forward)


@dataclass
class Cluster:
    """Where Ray's proxy listens. ``deploy`` replaces what is served and waits until all replicas are the new ones."""

    url: str

    def deploy(
        self, settings: dict[str, Any], arguments: dict[str, Any], options: dict[str, Any] | None = None
    ) -> None:
        """Replicas with the fake engine; ``options``: of Ray, above ours."""
        from ray import serve

        from app import ray_serve

        given, ours = ray_serve.Arguments(**arguments), Settings(**settings)
        made = ray_serve.deployment(given, ours).options(**options or {})
        serve.run(made.bind(ours, open_named))

    def clear(self) -> None:
        """Nothing is served: what comes next need not take its place replica by replica."""
        from ray import serve

        serve.delete("default")

    def running(self) -> int:
        """Replicas that take requests."""
        from ray import serve

        return serve.status().applications["default"].deployments["nam"].replica_states.get("RUNNING", 0)

    def post(self, path: str = "/predict", **options: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, **{"content": picture(), "headers": PNG, "timeout": 60} | options)


@contextmanager
def two_machines(temporary: str) -> Iterator[Cluster]:
    """Two raylets of one core each, all on the loopback, telling nobody; a proxy on the first."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster as Raylets

    raylets = Raylets(True, head_node_args={"include_dashboard": False, "temp_dir": temporary})
    try:
        raylets.add_node()
        ray.init(address=raylets.address, log_to_driver=False)
        port = free_port()
        serve.start("HeadOnly", {"host": "127.0.0.1", "port": port})
        yield Cluster(f"http://127.0.0.1:{port}")
        serve.shutdown()
    finally:
        ray.shutdown()
        raylets.shutdown()


@dataclass
class Callers:
    """So many, each sending one picture after the other; what fails by the server or the connection is sent again."""

    url: str
    count: int = 6
    models: list[str] = field(default_factory=list)  # who answered, in order
    again: list[str] = field(default_factory=list)  # why a request was sent again
    lost: list[str] = field(default_factory=list)  # what was answered otherwise, or never

    def __enter__(self) -> "Callers":
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        with httpx2.Client(base_url=self.url, headers=PNG, timeout=30) as client:
            while not self._over.is_set():
                self._send(client)

    def _send(self, client: httpx2.Client) -> None:
        for _ in range(TRIES):
            try:
                answer = client.post("/predict", content=picture())
            except httpx2.TransportError as error:
                self.again.append(type(error).__name__)
                continue
            if answer.status_code == 200:
                self.models.append(answer.json()["model"])
                return
            self.again.append(f"{answer.status_code} {answer.text[:80]}")
            if answer.status_code < 500:
                break
            time.sleep(float(answer.headers.get("retry-after", 0.2)))
        self.lost.append(self.again[-1])
