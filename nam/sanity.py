"""Whether maps are about the network at all: what is left of them when its parts, last first, are as before training.

The cascading randomisation of Adebayo et al. 2018, arXiv 1810.03292. A map that stays the same shows the image, not
what was learned; one that stays the same without the classifier shows nothing of the answer.
"""

import copy
from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor, nn

from nam.build import Model
from nam.deletion import mean_and_error
from nam.explain import Key, every_map
from nam.maps import channel_weights
from nam.ranks import spearman


class Sanity(TypedDict):
    """One map, against what it becomes: Spearman's rank correlation over its pixels, the mean over images.

    ``classifier``: where the classifier has not learned; ``own_block``: nor any block from the last to the map's own;
    ``all``: nor anything else; ``other_image``: against the trained network's map of another image, which is what maps
    have in common whatever they show; ``error``: the largest standard error of these. None where a map ranks nothing.
    """

    method: str
    block: str
    classifier: float | None
    own_block: float | None
    all: float | None
    other_image: float | None
    error: float | None


def sanity(model: Model, pixels: Tensor, *, seed: int = 0) -> list[Sanity]:
    """Of every map of :func:`nam.explain.every_map`. ``model``: not folded, in eval mode; pixels: (B, 3, S, S). On the
    CPU, so that every machine draws the same parameters."""
    model, pixels = copy.deepcopy(model).cpu(), pixels.cpu()
    before = every_map(model, channel_weights(model), pixels)
    alike: dict[str, dict[Key, Tensor]] = {"other image": _alike(before, {k: m.roll(1, 0) for k, m in before.items()})}
    for name, changed in _cascade(model, pixels, seed):
        alike[name] = _alike(before, every_map(changed, channel_weights(changed), pixels))
    return [_row(key, alike) for key in before]


def _row(key: Key, alike: dict[str, dict[Key, Tensor]]) -> Sanity:
    method, block = key
    told = [_mean(alike[name][key]) for name in ("classifier", block, "stem", "other image")]
    classifier, own, every, other = (mean for mean, _ in told)
    errors = [error for _, error in told if error is not None]
    return {
        "method": method,
        "block": block,
        "classifier": classifier,
        "own_block": own,
        "all": every,
        "other_image": other,
        "error": max(errors, default=None),
    }


def _mean(correlations: Tensor) -> tuple[float | None, float | None]:
    ranked = correlations[~correlations.isnan()]
    return mean_and_error(ranked) if len(ranked) else (None, None)


def _alike(before: dict[Key, Tensor], after: dict[Key, Tensor]) -> dict[Key, Tensor]:
    return {key: spearman(before[key].flatten(1), after[key].flatten(1)) for key in before}


def _cascade(model: Model, pixels: Tensor, seed: int) -> Iterator[tuple[str, Model]]:
    """The network without what its last parts have learned, one part more each time: the ``classifier``, the blocks by
    name, and last what comes before them, the ``stem``."""
    changed = copy.deepcopy(model)
    blocks: list[tuple[str, list[nn.Module]]] = [(name, list(block.modules())) for name, block in changed.blocks()]
    inside = {id(module) for _, modules in blocks for module in modules} | {id(changed.linear)}
    rest = [module for module in changed.modules() if id(module) not in inside]
    parts: list[tuple[str, list[nn.Module]]] = [("classifier", [changed.linear]), *reversed(blocks), ("stem", rest)]
    for i, (name, modules) in enumerate(parts):
        _forget(changed, modules, pixels, seed + i)
        yield name, changed


@torch.no_grad()
def _forget(model: Model, modules: list[nn.Module], pixels: Tensor, seed: int) -> None:
    """Fresh parameters; batch norms then take their statistics from these images, since no training gives them any."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in modules:
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d):
                module.reset_parameters()
    norms = [m for m in modules if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(pixels)
    for norm in norms:
        norm.eval()
