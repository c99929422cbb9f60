"""How faithful what is shown of a network is to what it computes, as figures: of maps, and of the ranking of channels.

Maps: pixels go in a map's order, and the probability of the label that the whole image had says what they bore
(:mod:`nam.deletion`). A map ranks all S x S pixels: what lies between its values is read from them (bilinear). Two
things take the place of a pixel that goes, since either leaves a trace of its own: the *blurred* image, of a deviation
of an eighth of the side, keeps colour and light, and so prefers maps of edges; the network's mean *colour* makes new
edges, and so prefers maps in one piece. What holds with both holds of the map.

Controls: a random map of the same size, read in the same way, since large areas bear more than single pixels; and a
centred blob, since photographers centre what they photograph. A map that is worth its name beats both.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur
from tqdm import tqdm

from nam import channel_order
from nam.build import Model
from nam.channel_order import ChannelScore
from nam.data import Split
from nam.deletion import STEPS, Evidence, mean_and_error, mean_curves, places, scores
from nam.explain import Key, every_map
from nam.fold import fold
from nam.maps import channel_weights
from nam.sanity import Sanity, sanity

Fill = Literal["blur", "colour"]

# So many images show what is left of a map when the network forgets.
SANITY_IMAGES = 100
# Images a step; each becomes 2 * (STEPS - 1) in one forward.
BATCH = 20


class MapScore(TypedDict):
    """One map. ``block``: of ``random`` the map's size, as 8x8; of ``centre`` nothing. ``deletion``, ``insertion``: the
    mean curves. ``over_...``: the score less that of a control on the same images: a random map of the same size, the
    centred blob, and Grad-CAM at ``gradcam_block``, where it scores best on these very images. ``..._error``: standard
    errors, over images."""

    fill: Fill
    method: str
    block: str
    deletion: list[float]
    insertion: list[float]
    score: float
    score_error: float
    over_random: float
    over_random_error: float
    over_centre: float
    over_centre_error: float
    over_gradcam: float
    over_gradcam_error: float
    gradcam_block: str


class Faithfulness(TypedDict):
    """``images``: how many of the split, drawn with ``seed``; ``steps``: of the curves."""

    images: int
    seed: int
    steps: int
    maps: list[MapScore]
    channels: list[ChannelScore]
    sanity: list[Sanity]


@torch.no_grad()
def faithfulness(
    model: Model, split: Split, *, images: int = 500, seed: int = 0, progress: bool = True
) -> Faithfulness:
    """Of a network with NAM in eval mode, on its device. ``images``: at most so many of the split. Raises ValueError
    for a network without NAM."""
    weights = channel_weights(model)
    if not weights:
        raise ValueError("the network has no NAM: there is nothing that could be faithful")
    folded, generator = fold(model), torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(split), generator=generator)[:images]
    batches = [split.pixels[part].to(folded.mean.device) for part in chosen.split(BATCH)]
    orders, means = channel_order.orders(folded, weights, generator), channel_order.means_passed(folded, batches)
    of_maps: dict[Fill, list[dict[Key, Tensor]]] = {"blur": [], "colour": []}
    of_channels, sides = [], {}
    for pixels in tqdm(batches, desc="measuring faithfulness", unit="batch", disable=not progress):
        maps = every_map(folded, weights, pixels)
        maps |= controls({len(map_[0]) for map_ in maps.values()}, pixels, generator)
        sides = {key: len(map_[0]) for key, map_ in maps.items()}
        for fill, parts in of_maps.items():
            parts.append(dict(map_curves(folded, maps, pixels, fill)))
        of_channels.append(dict(channel_order.channel_curves(folded, orders, means, pixels)))
    return {
        "images": len(chosen),
        "seed": seed,
        "steps": STEPS,
        "maps": [row for fill, parts in of_maps.items() for row in map_scores(joined(parts), sides, fill)],
        "channels": channel_order.channel_scores(joined(of_channels)),
        "sanity": sanity(model, split.pixels[chosen[:SANITY_IMAGES]], seed=seed),
    }


def joined(parts: list[dict[Key, Tensor]]) -> dict[Key, Tensor]:
    """Curves (2, STEPS + 1, B) of batches -> (2, STEPS + 1, N) of all images, on the CPU."""
    return {key: torch.cat([part[key].cpu() for part in parts], 2) for key in parts[0]}


def controls(sides: set[int], pixels: Tensor, generator: torch.Generator) -> dict[Key, Tensor]:
    """A random map an image, of each of these sizes and of the image's own; and the centred blob, which ranks pixels as
    any round Gaussian there does."""
    count, side = len(pixels), pixels.shape[-1]
    found = {
        ("random", f"{s}x{s}"): torch.rand(count, s, s, generator=generator).to(pixels.device)
        for s in sorted({*sides, side})
    }
    square = torch.linspace(-1, 1, side, device=pixels.device).square()
    return {**found, ("centre", ""): -(square[:, None] + square).expand(count, side, side)}


def map_curves(model: Model, maps: dict[Key, Tensor], pixels: Tensor, fill: Fill) -> Iterator[tuple[Key, Tensor]]:
    """Of each map, as :meth:`nam.deletion.Evidence.curves` has them: (2, STEPS + 1, B). pixels: (B, 3, S, S)."""
    whole, side = pixels.float(), pixels.shape[-1]
    evidence = Evidence(whole, _filled(whole, model.mean, fill), partial(_probability, model, model(whole).argmax(1)))
    for key, map_ in maps.items():
        read = F.interpolate(map_[:, None], (side, side), mode="bilinear", align_corners=False)
        yield key, evidence.curves(places(read.flatten(1)).view(read.shape))


def _filled(whole: Tensor, mean: Tensor, fill: Fill) -> Tensor:
    if fill == "colour":
        return mean.expand_as(whole).contiguous()
    side = whole.shape[-1]
    # Three deviations to each side, and odd.
    width = 6 * side // 16 * 2 + 1
    blurred: Tensor = gaussian_blur(whole, [width, width], [side / 8, side / 8])
    return blurred


def _probability(model: Model, top: Tensor, pixels: Tensor) -> Tensor:
    """Of the labels ``top``, (B,), in pixels (n * B, 3, S, S): (n * B,)."""
    logits = model(pixels.contiguous(memory_format=torch.channels_last))
    probabilities: Tensor = logits.float().softmax(1)
    return probabilities.gather(1, top.repeat(len(pixels) // len(top))[:, None])[:, 0]


def map_scores(curves: dict[Key, Tensor], sides: dict[Key, int], fill: Fill) -> list[MapScore]:
    """Of curves over all images, (2, STEPS + 1, N), by method and block. ``sides``: of the maps."""
    scored = {key: scores(curve) for key, curve in curves.items()}
    best = max((key for key in scored if key[0] == "gradcam"), key=lambda key: float(scored[key].mean()))
    return [
        _score(fill, key, curve, scored, (("random", f"{sides[key]}x{sides[key]}"), ("centre", ""), best))
        for key, curve in curves.items()
    ]


def _score(fill: Fill, key: Key, curve: Tensor, scored: dict[Key, Tensor], over: tuple[Key, Key, Key]) -> MapScore:
    deletion, insertion = mean_curves(curve)
    score, score_error = mean_and_error(scored[key])
    random, centre, gradcam = (mean_and_error(scored[key] - scored[other]) for other in over)
    return {
        "fill": fill,
        "method": key[0],
        "block": key[1],
        "deletion": deletion,
        "insertion": insertion,
        "score": score,
        "score_error": score_error,
        "over_random": random[0],
        "over_random_error": random[1],
        "over_centre": centre[0],
        "over_centre_error": centre[1],
        "over_gradcam": gradcam[0],
        "over_gradcam_error": gradcam[1],
        "gradcam_block": over[2][1],
    }
