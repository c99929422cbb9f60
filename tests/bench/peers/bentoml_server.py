"""BentoML: ``bentoml serve tests.bench.peers.bentoml_server:Engine``, or ``:TwoServices``, or ``:Classifier``.

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

from tests.bench.peers.work import CORES, MAX_BATCH, Content, Decoder, Ours, Tutorial

Jpeg = Annotated[bytes, ContentType("image/jpeg")]
QUIET = {"access": {"enabled": False}}
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


@bentoml.service(workers=CORES, threads=1, logging=QUIET)
class Batches:
    """The inner service: decoded images of several callers in one call of the engine."""

    def __init__(self) -> None:
        end_with_parent()
        self.ours = Ours()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=10_000)
    def classify(self, images: NDArray[np.uint8]) -> list[Content]:
        return self.ours.classify(images)


@bentoml.service(workers=max(1, CORES // 2), logging=QUIET)
class TwoServices:
    """The outer service, BentoML's way to batch single requests: it decodes in threads and asks the inner one."""

    batches = bentoml.depends(Batches)

    def __init__(self) -> None:
        end_with_parent()
        self.decode = Decoder()

    @bentoml.api
    async def classify(self, jpeg: Jpeg, /) -> Content:
        pixels = await asyncio.to_thread(self.decode, jpeg)
        (content,) = await self.batches.to_async.classify(pixels[None])
        return content


@bentoml.service
class Classifier:
    """As the quick start has it: one worker, no batching."""

    def __init__(self) -> None:
        end_with_parent()
        self.classifier = Tutorial()

    @bentoml.api
    def classify(self, jpeg: Jpeg, /) -> Content:
        (content,) = self.classifier.classify([self.classifier.transform(jpeg)])
        return content
