"""The arenas: every arm builds, and the arms of the Swin room differ in what they say they differ in."""

import pytest
import torch
from torch import Tensor

from paperworks.lab.nouns import Arm
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols.arenas import ARENAS, SWIN
from paperworks.papers.protocols.swin_networks import MIXERS, MapClassifier


@pytest.mark.parametrize("arm", SWIN, ids=lambda arm: arm.name)
def test_an_arm_of_the_swin_arena_trains(arm: Arm) -> None:
    network = arm.build(10, 1, 8)
    network(torch.rand(3, 1, 8, 8)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def reached(mixer: str) -> Tensor:
    """Which tokens of the first stage the top left pixel changes: (8, 8) of bool."""
    torch.manual_seed(0)
    network = MapClassifier(10, 1, 8, mixer=mixer).eval()
    image = torch.rand(1, 1, 8, 8)
    other = image.clone()
    other[0, 0, 0, 0] += 0.5
    with torch.no_grad():
        first, second = (network.first(network.embed(2 * x - 1)) for x in (image, other))
    return (first != second).any(-1)[0]


def test_what_a_pixel_reaches_in_the_first_stage() -> None:
    assert reached("none").sum() == 1
    assert reached("window, not shifted").nonzero().amax(0).tolist() == [3, 3]
    assert reached("global").all()
    shifted = reached("window")
    assert 16 < int(shifted.sum()) < 64, "two windows of 4 x 4, the second shifted by two"


def test_arms_are_of_about_one_size() -> None:
    sizes = {arm.name: count_parameters(arm.build(10, 1, 8)) for arm in SWIN if arm.options["mixer"] != "none"}
    assert max(sizes.values()) < 2 * min(sizes.values()), sizes


def test_larger_images_get_larger_patches() -> None:
    assert MapClassifier(3, 3, 32)(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_a_mixer_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"mixer: got 'nope', wanted one of window"):
        MapClassifier(10, 1, 8, mixer="nope")


def test_names_of_arms_are_unique() -> None:
    assert set(ARENAS) == {"activations", "kan", "swin"}
    for arena in ARENAS.values():
        assert len({arm.name for arm in arena.arms}) == len(arena.arms)
    assert {arm.options["mixer"] for arm in SWIN} == set(MIXERS)
