"""BentoML: ``bentoml serve tests.bench.peers.bentoml_server:Engine``, or another of its services.

A positional-only ``bytes`` argument is a "root input": the body itself.
"""

import asyncio
import ctypes
import signal
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import ContentType
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from tests.bench.peers.work import CORES, MAX_BATCH, Content, Decoder, Ours, Tutorial, to_json

Jpeg = Annotated[bytes, ContentType("image/jpeg")]
QUIET = {"access": {"enabled": False}}
BATCHING = {"max_batch_size": MAX_BATCH, "max_latency_ms": 10_000}
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this worker when its parent dies: it has a process group of its own and would stay."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@bentoml.service(workers=CORES, threads=1, logging=QUIET)
class Engine:
    """A process a core, each with one thread for the synchronous endpoint."""

    def __init__(self) -> None:
        end_with_parent()
        self.ours = Ours()

    @bentoml.api
    def classify(self, jpeg: Jpeg, /) -> Content:
        (content,) = self.ours.classify([self.ours.decode(jpeg)])
        return content


class Body(bentoml.IODescriptor):
    """One caller's part of a batch: without a spec of its own the body of a batchable endpoint is a JSON list."""

    jpegs: list[bytes]

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> "Body":
        return cls(jpegs=[await request.body()])


class OneAnswer(bentoml.IODescriptor):
    """One caller's part of the answers."""

    @classmethod
    async def to_http_response(cls, obj: list[Content], serde: object) -> Response:
        return Response(to_json(obj[0]), media_type="application/json")


@bentoml.service(workers=CORES, threads=1, logging=QUIET)
class Batches:
    """The same with adaptive batching within each process."""

    def __init__(self) -> None:
        end_with_parent()
        self.ours = Ours()

    @bentoml.api(batchable=True, input_spec=Body, output_spec=OneAnswer, **BATCHING)
    def classify(self, jpegs: list[bytes]) -> list[Content]:
        return self.ours.classify([self.ours.decode(jpeg) for jpeg in jpegs])


# By default the outer one renews its client after 100 requests, and breaks off those under way: up to 16 % were errors.
@bentoml.service(workers=CORES, threads=1, logging=QUIET, runner_connection={"max_requests": 10**9, "max_age": 1e6})
class Inner:
    """Decoded images of several callers in one call of the engine."""

    def __init__(self) -> None:
        end_with_parent()
        self.ours = Ours()

    @bentoml.api(batchable=True, **BATCHING)
    def classify(self, images: NDArray[np.uint8]) -> list[Content]:
        return self.ours.classify(images)


@bentoml.service(workers=max(1, CORES // 2), logging=QUIET)
class TwoServices:
    """The documents' way to batch what single callers send: this one decodes, in threads, and asks the inner one."""

    inner = bentoml.depends(Inner)

    def __init__(self) -> None:
        end_with_parent()
        self.decode = Decoder()

    @bentoml.api
    async def classify(self, jpeg: Jpeg, /) -> Content:
        pixels = await asyncio.to_thread(self.decode, jpeg)
        (content,) = await self.inner.to_async.classify(pixels[None])
        return content


@bentoml.service(traffic={"timeout": 300, "concurrency": 256})
class Classifier:
    """As BentoML's ResNet example has it: one worker, adaptive batching with the default limits, on the event loop."""

    def __init__(self) -> None:
        end_with_parent()
        self.classifier = Tutorial()

    @bentoml.api(batchable=True, input_spec=Body, output_spec=OneAnswer)
    async def classify(self, jpegs: list[bytes]) -> list[Content]:
        return self.classifier.classify([self.classifier.transform(jpeg) for jpeg in jpegs])
