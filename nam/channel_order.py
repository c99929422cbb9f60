"""Whether a block's channel weights rank its channels: what is left of an answer as channels go by falling weight.

A channel goes when what NAM passes on of it, the branch times the gate, is replaced by its mean over images and
pixels: it then says the same of every image. To hold its gate alone at its mean, as :func:`nam.maps.effects` does,
would leave what the branch says, and hardly moves the last blocks' answer, so that no order could show; its own mean
over the image would leave all that the head's average reads of the last block; and zero is not what a silent channel
passes on.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from nam.attention import NAM
from nam.build import Model
from nam.deletion import Evidence, mean_and_error, mean_curves, places, scores
from nam.explain import Key
from nam.fold import FoldedGate

DRAWS = 8


class ChannelScore(TypedDict):
    """One order of one block's channels.

    ``weight``: by |gamma| / sum |gamma|, and so by |gamma| |gamma| / sum |gamma| too; ``slope``: by |w gamma| /
    sqrt(var + eps), how far the sigmoid's argument moves by what comes in; ``energy``: by the mean square of what NAM
    passes on of this very image, which is no ranking of the network's, but shows what the curves can tell.
    ``deletion``, ``insertion``: the mean curves. ``over_random``: the score less the mean of random orders', and its
    error, over images and as one random order varies among others (``random_spread``, their deviation)."""

    block: str
    order: str
    deletion: list[float]
    insertion: list[float]
    score: float
    score_error: float
    over_random: float
    over_random_error: float
    random_spread: float


def orders(model: Model, weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """What ranks the channels of every block, the same for all images: fp32 (C,), by block and order. ``model``:
    folded. None for a block whose gate is spatial alone: it weighs all channels alike."""
    found = {}
    for name, block in model.blocks():
        gate = block.attention.channel if isinstance(block.attention, NAM) else None
        if isinstance(gate, FoldedGate):
            found[name] = {"weight": weights[name], "slope": gate.a.flatten().abs().cpu()}
            found[name] |= {f"random {i}": torch.rand(block.channels, generator=generator) for i in range(DRAWS)}
    return found


def means_passed(model: Model, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """What NAM passes on of each channel, the mean over images and pixels: fp32 (1, C, 1, 1) by block."""
    names, sums, count = [name for name, _ in model.blocks()], dict[str, Tensor](), 0
    for pixels in batches:
        count += len(pixels)
        for name, passed in zip(names, model.look(pixels).passed, strict=True):
            sums[name] = passed.mean((2, 3)).sum(0) + sums.get(name, 0)
    return {name: total[None, :, None, None] / count for name, total in sums.items()}


def channel_curves(
    model: Model, orders: dict[str, dict[str, Tensor]], means: dict[str, Tensor], pixels: Tensor
) -> Iterator[tuple[Key, Tensor]]:
    """Curves of the first label's probability, as :meth:`nam.deletion.Evidence.curves` has them, by order and block."""
    top, x = model(pixels).argmax(1), model.stem(model.normalize(pixels))
    for i, (name, block) in enumerate(model.blocks()):
        out, _, passed = block.look(x)
        if name in orders:
            evidence = Evidence(passed, means[name].expand_as(passed), partial(_rest, model, i, x, top))
            energy = passed.square().mean((2, 3))
            for order, values in {**orders[name], "energy": energy}.items():
                place = places(values.to(x.device)).view(-1, block.channels, 1, 1)
                yield (order, name), evidence.curves(place)
        x = out


def _rest(model: Model, i: int, x: Tensor, top: Tensor, passed: Tensor) -> Tensor:
    """Of the labels ``top``, (B,), the probability by what the i-th block's NAM passes on, (n * B, C, H, W): (n * B,).
    x: the block's input, (B, ...)."""
    repeats = len(passed) // len(x)
    blocks = [block for _, block in model.blocks()]
    y = blocks[i].join(x.repeat(repeats, 1, 1, 1), passed)
    for block in blocks[i + 1 :]:
        y = block(y)
    return model.head(y).float().softmax(1).gather(1, top.repeat(repeats)[:, None])[:, 0]


def channel_scores(curves: dict[Key, Tensor]) -> list[ChannelScore]:
    """Of :func:`channel_curves` over all images, (2, STEPS + 1, N) by order and block."""
    found: list[ChannelScore] = []
    for (order, block), curve in curves.items():
        if not order.startswith("random"):
            draws = torch.stack([scores(curves[f"random {i}", block]) for i in range(DRAWS)])
            found.append(_score(order, block, curve, draws))
    return found


def _score(order: str, block: str, curve: Tensor, draws: Tensor) -> ChannelScore:
    deletion, insertion = mean_curves(curve)
    score, score_error = mean_and_error(scores(curve))
    over, of_images = mean_and_error(scores(curve) - draws.mean(0))
    spread = float(draws.mean(1).std(correction=1))
    return {
        "block": block,
        "order": order,
        "deletion": deletion,
        "insertion": insertion,
        "score": score,
        "score_error": score_error,
        "over_random": over,
        "over_random_error": round(math.hypot(of_images, spread * math.sqrt(1 + 1 / DRAWS)), 4),
        "random_spread": round(spread, 4),
    }
