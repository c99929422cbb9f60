"""The curves of deletion and insertion, where they are known."""

import pytest
import torch
from torch import Tensor

from nam.deletion import STEPS, Evidence, mean_and_error, mean_curves, places, scores


def weighed(values: Tensor) -> Evidence:
    """Twelve parts an image, (B, 12), and an answer that is their weighted sum."""
    weights = torch.arange(12.0).flip(0)
    return Evidence(values, torch.zeros_like(values), lambda x: x @ weights)


def test_the_curves_by_hand() -> None:
    """Parts 11, 10 ... 0, two a step, the heaviest first. By trapezoids, insertion is 268 / 6 and deletion 128 / 6."""
    curves = weighed(torch.ones(1, 12)).curves(torch.arange(12))
    assert curves[0, :, 0].tolist() == [66, 45, 28, 15, 6, 1, 0]
    assert curves[1, :, 0].tolist() == [0, 21, 38, 51, 60, 65, 66]
    assert scores(curves).item() == pytest.approx((268 - 128) / 6)


def test_every_image_has_an_order_of_its_own() -> None:
    values = torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    order = places(torch.rand(3, 12, generator=torch.Generator().manual_seed(1)))
    together = weighed(values).curves(order)
    for i in range(3):
        torch.testing.assert_close(together[:, :, i], weighed(values[i : i + 1]).curves(order[i])[:, :, 0])


def test_the_reversed_order_has_the_negated_score() -> None:
    values, place = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)), torch.randperm(12)
    forth, back = (scores(weighed(values).curves(order)) for order in (place, 11 - place))
    torch.testing.assert_close(forth, -back)


def test_random_orders_score_nothing_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    found = scores(weighed(torch.ones(4000, 12)).curves(places(torch.rand(4000, 12, generator=generator))))
    mean, error = mean_and_error(found)
    assert abs(mean) < 3 * error < 1


def test_the_ends_are_asked_for_once() -> None:
    asked = []
    evidence = Evidence(torch.ones(2, 12), torch.zeros(2, 12), lambda x: asked.append(len(x)) or x.sum(1))
    for _ in range(3):
        evidence.curves(torch.arange(12))
    assert asked == [20, 4, 20, 20]


def test_places_fall_and_ties_keep_their_order() -> None:
    assert places(torch.tensor([[0.1, 0.5, 0.5], [3.0, 1.0, 2.0]])).tolist() == [[2, 0, 1], [0, 2, 1]]


def test_means_and_their_errors() -> None:
    assert mean_and_error(torch.tensor([1.0, 2.0, 3.0])) == (2.0, round(1 / 3**0.5, 4))
    assert mean_and_error(torch.tensor([1.0])) == (1.0, 0.0)
    curves = torch.arange(2.0 * (STEPS + 1) * 2).view(2, STEPS + 1, 2)
    assert mean_curves(curves) == ([2 * k + 0.5 for k in range(7)], [2 * k + 14.5 for k in range(7)])
