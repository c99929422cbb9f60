"""mosec: ``python -m tests.bench.peers.mosec_server inline|stages|tutorial --port N``; mosec reads its flags."""

import sys

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray

from tests.bench.peers.work import CORES, MAX_BATCH, Content, Decoder, Ours, Pixels, Transform, Tutorial, to_json


class Inline(Worker):
    """Decodes and computes in one process: no image travels between processes."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = Ours()

    def deserialize(self, data: bytes) -> Pixels:
        return self.ours.decode(data)

    def forward(self, data: list[Pixels]) -> list[Content]:
        return self.ours.classify(data)

    def serialize(self, data: Content) -> bytes:
        return to_json(data)


class Decode(Worker):
    """The first of two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Pixels:
        return self.decoder(data)


class Infer(Worker):
    """The second: pickled images of several callers in one call of the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = Ours()

    def forward(self, data: list[Pixels]) -> list[Content]:
        return self.ours.classify(data)

    def serialize(self, data: Content) -> bytes:
        return to_json(data)


class Preprocess(Worker):
    """The example's first of three stages; PIL and torchvision for its OpenCV, the raw body for its base64."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = Transform()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> NDArray[np.uint8]:
        return self.transform(data).numpy()


class Inference(Worker):
    """The example's second."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Tutorial()

    def forward(self, data: list[NDArray[np.uint8]]) -> list[Content]:
        import torch

        return self.classifier.classify([torch.from_numpy(pixels) for pixels in data])


class Postprocess(Worker):
    """The example's third, where it looks up the label: ours are there already."""

    def forward(self, data: Content) -> Content:
        return data


def main(variant: str) -> None:
    server = Server()
    if variant == "inline":
        server.append_worker(Inline, num=CORES, max_batch_size=MAX_BATCH, max_wait_time=1)
    elif variant == "stages":
        server.append_worker(Decode, num=max(1, CORES // 2))
        server.append_worker(Infer, num=CORES, max_batch_size=MAX_BATCH, max_wait_time=1)
    else:
        server.append_worker(Preprocess, num=4)
        server.append_worker(Inference, num=2, max_batch_size=16)
        server.append_worker(Postprocess, num=1)
    server.run()


if __name__ == "__main__":
    main(sys.argv[1])
