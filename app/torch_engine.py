"""The torch engine: folded network, weights and normalisation on the device, one copy in and one copy out.

Knows tensors and nothing of requests. The gates for an attention come from the same forward as the labels; the gate's
argument, its sigmoid and the statistics are fp32 whatever the network computes in.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from app.engine import Answer, Ask, AttentionAsk, BlockAttention, Card, EngineError, Floats
from nam import maps, weights
from nam.build import place
from nam.describe import describe
from nam.files import WeightsError
from nam.fold import fold

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]

# Measured on two cores with the default weights (tests/bench/RESULTS.md); larger networks want less, a GPU more.
_MAX_BATCH = {"cpu": 16, "cuda": 64}


class TorchEngine:
    """Loads, folds and warms up in the constructor, so that a failure stops the start. Raises EngineError."""

    def __init__(
        self,
        path: str,
        *,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        reason: str = "asked for",
        threads: int = 0,
        max_batch: int = 0,
        lanes: int = 0,
    ) -> None:
        self._device = _device(device)
        cores = os.cpu_count() or 1
        lanes = lanes or (cores if self._device.type == "cpu" else 1)
        if self._device.type == "cpu":
            torch.set_num_threads(threads or max(1, cores // lanes))
        try:
            model, card = weights.load(path)
        except WeightsError as error:
            raise EngineError(str(error)) from error
        channel_weights = maps.channel_weights(model)
        self._model = place(fold(model, getattr(torch, dtype)), self._device)
        # Effects are small differences of logits: bf16's steps would swallow them.
        self._exact = self._model if dtype == "float32" else place(fold(model), self._device)
        self._names = list(channel_weights)
        self._weights = [w.to(self._device) for w in channel_weights.values()]
        self._order = [maps.strongest(w) for w in self._weights]
        self._top = [order.tolist() for order in self._order]
        self.card = Card.of(
            describe(model, card),
            max_batch=max_batch or _MAX_BATCH[device],
            lanes=lanes,
            lanes_decode=device == "cpu",
            device=str(self._device),
            dtype=dtype,
            engine=f"torch {torch.__version__}",
            reason=reason,
        )
        self._warm_up()

    @torch.inference_mode()
    def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
        # Those who want the gates come first: their rows are then a slice, where an index would be a copy of its own.
        places = sorted(range(len(asks)), key=lambda i: asks[i].attention is None)
        answers = self._answer([asks[i] for i in places])
        back = sorted(range(len(asks)), key=places.__getitem__)
        return [answers[i] for i in back]

    def _answer(self, asks: list[Ask]) -> list[Answer]:
        wanted = [ask.attention for ask in asks if ask.attention is not None]
        pixels = self._to_device([ask.pixels for ask in asks])
        if wanted and self._names:
            logits, gates = self._model.forward_with_gates(pixels)
        else:
            logits, gates = self._model(pixels), []
        top = logits.float().softmax(1).topk(min(max(ask.top_k for ask in asks), logits.shape[1]))
        probabilities, indices, *rest = _to_host(
            [top.values, top.indices, *self._attention(gates, wanted, pixels, logits)]
        )
        blocks = self._split(wanted, iter(rest)) + [()] * (len(asks) - len(wanted))
        return [
            Answer(indices[i, : ask.top_k].astype(np.int64), probabilities[i, : ask.top_k], blocks[i])
            for i, ask in enumerate(asks)
        ]

    def _to_device(self, images: list[np.ndarray]) -> Tensor:
        batch = torch.from_numpy(np.stack(images))
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return batch.contiguous(memory_format=torch.channels_last)

    def _attention(
        self, gates: list[Tensor], wanted: list[AttentionAsk], pixels: Tensor, logits: Tensor
    ) -> Iterator[Tensor]:
        """What `_split` reads back, in its order: per block five tensors, then each image's effects."""
        most = max((ask.top_channels for ask in wanted if ask.maps != "none"), default=0)
        every = any(ask.maps == "all" for ask in wanted)
        for gate, w, order in zip(gates, self._weights, self._order, strict=bool(gates)):
            seen = gate[: len(wanted)]
            summary = maps.summarize(seen, w)
            yield from (summary.spread, summary.channel_mean, summary.map)
            yield seen[:, order[:most]]
            yield seen if every else seen[:, :0]
        for i, ask in enumerate(wanted):
            if ask.effects and gates:
                yield maps.effects(self._exact, pixels[i], logits[i].argmax())

    def _split(self, wanted: list[AttentionAsk], arrays: Iterator[Floats]) -> list[tuple[BlockAttention, ...]]:
        """The host's arrays, image by image: the inverse of `_attention`."""
        if not (wanted and self._names):
            return [() for _ in wanted]
        per_block = [[next(arrays) for _ in range(5)] for _ in self._names]
        answers = []
        for i, ask in enumerate(wanted):
            effects = next(arrays).tolist() if ask.effects else [None] * len(self._names)
            answers.append(
                tuple(
                    self._look(j, ask, [array[i] for array in per_block[j]], effects[j])
                    for j, name in enumerate(self._names)
                    if name in ask.blocks
                )
            )
        return answers

    def _look(self, j: int, ask: AttentionAsk, parts: list[Floats], effect: float | None) -> BlockAttention:
        spread, channel_mean, map_, strongest, every = parts
        gates = every.__getitem__ if len(every) else lambda channels: strongest[: len(channels)]
        return BlockAttention.of(self._names[j], ask, (spread, channel_mean, map_), self._top[j], gates, effect)

    def _warm_up(self) -> None:
        blank = np.zeros((3, self.card.size, self.card.size), np.uint8)
        look = AttentionAsk(frozenset(self._names), effects=True)
        for batch in (1, self.card.max_batch):
            answers = self([Ask(blank, attention=look)] + [Ask(blank)] * (batch - 1))
            if not all(np.isfinite(answer.probabilities).all() for answer in answers):
                raise EngineError("the warm-up gave probabilities that are not finite")


def _device(asked: Device) -> torch.device:
    """Raises EngineError where CUDA is asked for and torch finds none: its build may lack what the driver has."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise EngineError("a CUDA device was asked for or found, and this build of torch finds none")
    return torch.device(asked)


def _to_host(tensors: list[Tensor]) -> list[Floats]:
    """All tensors in one copy, as fp32: class indices are exact below 2**24."""
    flat = torch.cat([tensor.float().flatten() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    return [part.reshape(t.shape) for part, t in zip(np.split(flat, ends[:-1]), tensors, strict=True)]
