"""Spearman's correlation, against SciPy's."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from nam.ranks import spearman


@pytest.mark.parametrize("values", [50, 4])
def test_the_correlation_is_scipys_with_ties_too(values: int) -> None:
    generator = torch.Generator().manual_seed(values)
    a, b = torch.randint(0, values, (2, 5, 30), generator=generator).float()
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(expected)


def test_what_ranks_nothing_correlates_with_nothing() -> None:
    assert math.isnan(spearman(torch.ones(4), torch.arange(4.0)))
