"""What is left of maps when the network forgets."""

import pytest
import torch

from nam.maps import METHODS
from nam.sanity import sanity
from tests.nam.test_alive import network, noise


def test_what_forgets_what() -> None:
    """No map of a forward but the class map's kin sees the classifier; each sees its own block."""
    rows = {(row["method"], row["block"]): row for row in sanity(network(), noise(20))}
    for (method, block), row in rows.items():
        if method in ("map", "activation"):
            assert row["classifier"] == 1
        elif (method, block) == ("class", "layer3.2"):
            assert row["classifier"] < 0.9
        assert row["own_block"] < 0.95, (method, block)
        assert row["error"] < 0.3


def test_gradient_maps_see_the_classifier() -> None:
    rows = [row for row in sanity(network(), noise(20)) if row["method"] == "gradcam"]
    assert all(row["classifier"] < 0.9 for row in rows)


def test_the_network_is_left_as_it_was_and_the_same_seed_says_the_same() -> None:
    model = network()
    before, state = {k: t.clone() for k, t in model.state_dict().items()}, torch.random.get_rng_state()
    first, again, other = (sanity(model, noise(4), seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_map_that_ranks_nothing_is_said_so() -> None:
    """A spatial gate whose scales are 0 is one half at every pixel."""
    model = network("nam-spatial")
    model.layer1[0].attention.spatial.bn.weight.data.zero_()
    (row,) = (r for r in sanity(model, noise(4)) if (r["method"], r["block"]) == ("map", "layer1.0"))
    assert (row["classifier"], row["own_block"], row["all"], row["other_image"], row["error"]) == (None,) * 5


@pytest.mark.parametrize("attention", ["nam-spatial", "nam-both"])
def test_every_kind_of_nam_forgets(attention: str) -> None:
    rows = sanity(network(attention), noise(4))
    assert {row["method"] for row in rows} == {"map", *METHODS, "gradcam", "hirescam"}
