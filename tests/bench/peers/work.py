"""The work that every peer does for a request: our decode and engine, or what an image-classification tutorial does.

What is heavy is imported where it is needed: the supervising process of a server stays small.
"""

import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Content = dict[str, Any]

CORES = os.cpu_count() or 1
TOP = 5

# The largest batch that pays: what the engine says of itself for the default weights (its card's max_batch). It is
# wanted before there is an engine, so that other weights need to be told.
MAX_BATCH = int(os.environ.get("PEER_MAX_BATCH", "16"))


def weights() -> str:
    """The weights file: the processes that a framework spawns inherit it."""
    return os.environ["PEER_WEIGHTS"]


def to_json(content: Content) -> bytes:
    return orjson.dumps(content)


def _square() -> tuple[int, float]:
    """Size and crop of the input, from the card in the weights' header."""
    from safetensors import safe_open

    with safe_open(weights(), framework="np") as file:
        card = json.loads(file.metadata()["card"])
    return card["config"]["size"], card["crop"]


def _content(names: Sequence[str], probabilities: Sequence[float]) -> Content:
    return {"predictions": [{"label": n, "probability": p} for n, p in zip(names, probabilities, strict=True)]}


class Decoder:
    """Our decode, for a process without a network: no torch is imported here."""

    def __init__(self) -> None:
        from app.images import decode
        from app.settings import Settings

        size, crop = _square()
        self._wanted = {"size": size, "crop": crop, "max_pixels": Settings().max_pixels}
        self._decode = decode

    def __call__(self, jpeg: bytes) -> Pixels:
        """Bytes -> uint8 (3, S, S)."""
        return self._decode(jpeg, **self._wanted).pixels


class Ours:
    """Our decode and our engine on one thread, for one process that calls `classify` once at a time."""

    def __init__(self) -> None:
        from app.cli import load_engine
        from app.engine import Ask
        from app.settings import Settings

        self.decode = Decoder()
        self._engine = load_engine(Settings(weights=weights(), threads=1, lanes=1))
        self._ask = Ask
        self._names = [label.en for label in self._engine.card.labels]

    def classify(self, images: Sequence[Pixels]) -> list[Content]:
        """The five best labels of each image, from one call of the engine."""
        answers = self._engine([self._ask(pixels, TOP) for pixels in images])
        return [_content([self._names[i] for i in a.indices], a.probabilities.tolist()) for a in answers]


class Transform:
    """PIL and torchvision's transforms, as tutorials have it."""

    def __init__(self) -> None:
        from torchvision import transforms

        size, crop = _square()
        # The network normalises inside, from 0..255: no ToTensor, no Normalize.
        self._steps = transforms.Compose(
            [transforms.Resize(round(size / crop)), transforms.CenterCrop(size), transforms.PILToTensor()]
        )

    def __call__(self, jpeg: bytes) -> Any:
        """Bytes -> a uint8 tensor (3, S, S)."""
        from PIL import Image

        return self._steps(Image.open(io.BytesIO(jpeg)).convert("RGB"))


class Tutorial:
    """The same, and eager fp32 torch with its own number of threads."""

    def __init__(self) -> None:
        from nam.weights import load

        self.transform = Transform()
        self._model, card = load(weights())
        self._names = [label.en for label in card.labels]

    def classify(self, images: Sequence[Any]) -> list[Content]:
        """The five best labels of each tensor (3, S, S), from one forward."""
        import torch

        with torch.no_grad():
            best = torch.softmax(self._model(torch.stack(list(images)).float()), 1).topk(TOP)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [_content([self._names[i] for i in indices], probabilities) for indices, probabilities in rows]
