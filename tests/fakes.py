"""The fake engine: the words of app/engine.py answered without a network, and a service around it."""

import asyncio
import io
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from app.board import Load
from app.engine import Answer, Ask, Block, BlockAttention, Card, Label
from app.errors import DeadlineExceeded
from app.forward import Decoded, Forward, timed_decode
from app.main import create_app
from app.services import lanes_here
from app.settings import Settings

CLASSES = 10
CARD = Card(
    name="fake",
    labels=tuple(Label(f"n{i:08}", f"thing {i}", f"东西{i}") for i in range(CLASSES)),
    size=8,
    crop=1.0,
    blocks=(
        Block("layer1.0", 4, 4, np.array([0.1, 0.4, 0.2, 0.3], np.float32)),
        Block("layer2.0", 2, 2, np.full(4, 0.25, np.float32)),
    ),
    sha256="5" * 64,
    max_batch=8,
    lanes=1,
    methods=("activation", "class"),
    notes=("uniform channel weights in layer2.0",),
    facts={"metrics": {}, "device": "none", "dtype": "float32", "engine": "fake", "reason": "a test"},
)


class FakeEngine:
    """Label ``i`` for an image whose mean is nearest to ``25 * i``. ``gate``: held shut, it keeps the engine busy;
    ``error``: raised instead of answering, once."""

    def __init__(self) -> None:
        self.card, self.crowded = CARD, False
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.batches: list[int] = []

    def memory(self) -> dict[str, int]:
        return {}

    def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
        self.batches.append(len(asks))
        self.gate.wait(60)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [self._answer(ask) for ask in asks]

    def _answer(self, ask: Ask) -> Answer:
        distance = np.abs(ask.pixels.mean() / 25 - np.arange(CLASSES))
        order = distance.argsort(kind="stable")[: ask.top_k]
        probabilities = (np.exp(-distance) / np.exp(-distance).sum()).astype(np.float32)
        return Answer(order, probabilities[order], self._blocks(ask))

    def _blocks(self, ask: Ask) -> tuple[BlockAttention, ...]:
        if ask.attention is None:
            return ()
        return tuple(_look(block, ask) for block in self.card.blocks if block.name in ask.attention.blocks)


def _look(block: Block, ask: Ask) -> BlockAttention:
    want, shape = ask.attention, (block.channels, block.height, block.width)
    gates = np.linspace(0.4, 0.6, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    top = (-block.weights).argsort(kind="stable")[: want.top_channels].tolist()
    return BlockAttention(
        block.name,
        *(float(value) for value in (gates.min(), gates.max(), gates.mean(), gates.std())),
        gates.mean((1, 2)),
        top,
        map=None if want.maps == "none" else np.tensordot(block.weights, gates, 1),
        top_maps=None if want.maps == "none" else gates[top],
        channel_maps=gates if want.maps == "all" else None,
        effect=0.5 if want.effects else None,
        top_effects=np.linspace(0.25, -0.25, len(top), dtype=np.float32) if want.channel_effects else None,
        methods={method: gates[0] for method in want.methods if method != "class" or block is CARD.blocks[-1]},
    )


class FakeDecoders:
    """Decodes in threads, at once: a process takes longer to start than most tests take."""

    def __init__(self, settings: Settings, card: Card, on_loss: Callable[[], None] = lambda: None) -> None:
        self.options = {"crop": card.crop, "max_pixels": settings.max_pixels}

    async def decode(self, image: bytes, size: int, deadline: float) -> Decoded:
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.to_thread(timed_decode, image, size=size, **self.options)
        except TimeoutError:
            raise DeadlineExceeded from None

    async def close(self) -> None:
        """Threads end by themselves."""


def free_port() -> int:
    """For another process to listen on. The kernel gives those above to whoever asks for any, before it does."""
    while True:
        port = random.SystemRandom().randint(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what must come; AssertionError where it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.001)


class Service:
    """A running service: its client, its engine, its load."""

    def __init__(self, client: TestClient, engine: FakeEngine, load: Load) -> None:
        self.client, self.engine, self.load = client, engine, load

    def metric(self, name: str, **labels: str) -> float:
        text = self.client.get("/metrics", headers={"Authorization": "Bearer one"}).text
        inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
        wanted = name + (f"{{{inner}}}" if inner else "")
        return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(wanted + " ")), 0.0)


@contextmanager
def service(**settings: Any) -> Iterator[Service]:
    """The whole application around a fake engine, in this process."""
    engine, load = FakeEngine(), Load()
    app = create_app(
        Settings(**settings),
        lanes_here(lambda settings, on_forward: Forward(engine, settings.max_pixels, on_forward)),
        load,
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Service(client, engine, load)


def picture(level: int = 100, form: str = "PNG", size: tuple[int, int] = (12, 8), mode: str = "RGB") -> bytes:
    """An encoded image of one grey level."""
    out = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).convert(mode).save(out, form)
    return out.getvalue()
