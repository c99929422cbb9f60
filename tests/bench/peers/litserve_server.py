"""LitServe: ``python -m tests.bench.peers.litserve_server engine|batches|tutorial PORT``.

A ``decode_request`` whose argument is annotated takes whatever FastAPI takes there, so a raw body too.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import litserve as ls
from fastapi import Body, Response

from tests.bench.peers.work import CORES, MAX_BATCH, Content, Ours, Pixels, Tutorial, to_json

Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]


class Engine(ls.LitAPI):
    """One image at a time: a worker sleeps until the queue has one."""

    def setup(self, device: str) -> None:
        self.ours = Ours()

    def decode_request(self, request: Jpeg) -> Pixels:
        return self.ours.decode(request)

    def predict(self, x: Pixels) -> Content:
        return self.ours.classify([x])[0]

    def encode_response(self, output: Content) -> Response:
        return Response(to_json(output), media_type="application/json")


class Batches(Engine):
    """What is queued within the batch's timeout, in one call of the engine."""

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        return inputs

    def predict(self, x: Sequence[Pixels]) -> list[Content]:
        return self.ours.classify(x)

    def unbatch(self, output: list[Content]) -> list[Content]:
        return output


class Classifier(ls.LitAPI):
    """As the examples have it, with the raw body in place of base64 in JSON."""

    def setup(self, device: str) -> None:
        self.classifier = Tutorial()

    def decode_request(self, request: Jpeg) -> object:
        return self.classifier.transform(request)

    def predict(self, x: object) -> Content:
        return self.classifier.classify([x])[0]

    def encode_response(self, output: Content) -> Content:
        return output


def tuned(api: ls.LitAPI, port: int) -> None:
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=CORES, fast_queue=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


def main(variant: str, port: int) -> None:
    if variant == "engine":
        tuned(Engine(), port)
    elif variant == "batches":
        tuned(Batches(max_batch_size=MAX_BATCH, batch_timeout=0.001), port)
    else:
        ls.LitServer(Classifier()).run(host="127.0.0.1", port=port, generate_client_file=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
