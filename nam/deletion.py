"""What is left of an answer as parts of its evidence go, in the order in which something ranks them.

Two curves over the share of the parts, as Petsiuk et al. 2018 have them (RISE, arXiv 1806.07421): *deletion*, the
first parts of an order go; *insertion*, all have gone and the first come back. An order that knows what the answer
rests on makes the one fall and the other rise at once. Its *score* is the area between them, insertion less deletion:
0 on average for a random order, negative for one that puts first what does not matter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Curves have points at 0, 1/6, 2/6 ... 1 of the parts.
STEPS = 6


@dataclass(frozen=True)
class Evidence:
    """``whole`` and ``gone``: (B, ...), with all of its parts and with none; ``answer``: (n * B, ...), the B images n
    times in turn, -> (n * B,), what is left of each one's answer."""

    whole: Tensor
    gone: Tensor
    answer: Callable[[Tensor], Tensor]

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The answer to all and to none, (1, B) each: any order's curves end there."""
        full, empty = self.answer(torch.cat([self.whole, self.gone])).view(2, 1, -1)
        return full, empty

    def curves(self, place: Tensor) -> Tensor:
        """Deletion and insertion, fp32 (2, STEPS + 1, B). ``place``: int64, broadcast over ``whole``, where each part
        stands in the order, 0 the first; what shares a place goes together."""
        count = int(place.amax()) + 1
        first = [place < round(count * k / STEPS) for k in range(1, STEPS)]
        deleted = [torch.where(mask, self.gone, self.whole) for mask in first]
        inserted = [torch.where(mask, self.whole, self.gone) for mask in first]
        down, up = self.answer(torch.cat(deleted + inserted)).view(2, STEPS - 1, -1)
        full, empty = self.ends
        return torch.stack([torch.cat([full, down, empty]), torch.cat([empty, up, full])])


def scores(curves: Tensor) -> Tensor:
    """Curves (2, STEPS + 1, n) -> the area under insertion less that under deletion, by trapezoids: (n,)."""
    under: Tensor = torch.trapezoid(curves, dx=1 / STEPS, dim=1)
    return under[1] - under[0]


def places(values: Tensor) -> Tensor:
    """Values (..., n) -> where each stands by falling value, ties by index: int64 (..., n)."""
    return torch.argsort(values, dim=-1, descending=True, stable=True).argsort(-1)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Of (n,): the mean, and its standard error; 0 for one value alone."""
    error = float(values.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return round(float(values.mean()), 4), round(error, 4)


def mean_curves(curves: Tensor) -> tuple[list[float], list[float]]:
    """Deletion and insertion, the mean over images of (2, STEPS + 1, n)."""
    deletion, insertion = curves.mean(2).tolist()
    return [round(p, 4) for p in deletion], [round(p, 4) for p in insertion]
