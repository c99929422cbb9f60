"""Spearman's rank correlation, with ties."""

import torch
from torch import Tensor


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Of (..., n) and (..., n): fp64 (...). Ties share their mean rank; NaN where one side is all ties."""
    x, y = _centred_ranks(a), _centred_ranks(b)
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def _centred_ranks(values: Tensor) -> Tensor:
    values = values.contiguous()
    ordered = values.sort(-1).values
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + upto).double() / 2 - values.shape[-1] / 2
