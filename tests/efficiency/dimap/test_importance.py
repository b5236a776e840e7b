"""Eq. 10 is a relative distortion, Eq. 7 a bound: both against their definitions in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from paperworks.efficiency.dimap import Masks, distortion_bound, importance

matrices = arrays("float64", array_shapes(max_dims=3, max_side=6), elements=st.integers(-50, 50).map(float))


def by_definition(weight: torch.Tensor) -> torch.Tensor:
    """w_j^2 / the sum over all that are larger, or equal and not before it."""
    flat = weight.double().abs().flatten()
    place = torch.arange(len(flat))
    larger = (flat[None] > flat[:, None]) | ((flat[None] == flat[:, None]) & (place[None] >= place[:, None]))
    sums = (larger * flat[None].square()).sum(1)
    return torch.where(sums > 0, flat.square() / sums, torch.zeros(())).view(weight.shape)


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_eq_10(values):
    weight = torch.from_numpy(values)
    torch.testing.assert_close(importance(weight), by_definition(weight), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_is_scored_in_float64(dtype):
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores = importance(weight)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, by_definition(weight), rtol=1e-12, atol=0)


def test_it_is_the_relative_distortion_of_the_next_removal():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left = weight.clone()
    for index in weight.abs().flatten().argsort():
        distortion = left.flatten()[index] ** 2 / left.square().sum()
        torch.testing.assert_close(importance(weight).flatten()[index], distortion)
        left.view(-1)[index] = 0


def test_the_largest_weight_has_importance_one_and_the_ranking_is_that_of_magnitude():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    scores = importance(weight).flatten()
    order = weight.abs().flatten().argsort()
    assert scores[order[-1]] == 1
    assert (scores[order].diff() > 0).all()


@pytest.mark.parametrize("scale", [2.0**-1030, 1e-300, 3.7, 2.0**900])
def test_it_is_free_of_scale(scale):
    weight = torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(importance(weight * scale), importance(weight), rtol=1e-6, atol=0)


def test_the_tail_of_a_large_layer_is_not_lost():
    # float32 sums stop growing at 2^24 equal squares of 1; a difference of ascending sums cancels for the large ones
    weight = torch.ones(2**21)
    weight[0] = 2.0**20
    scores = importance(weight)
    assert scores[0] == 1
    torch.testing.assert_close(scores[-1].item(), 1 / (1 + 2.0**40), rtol=1e-12, atol=0)
    torch.testing.assert_close(scores[1].item(), 1 / (2.0**40 + 2**21 - 1), rtol=1e-12, atol=0)


def test_equal_weights_count_down_in_memory_order():
    torch.testing.assert_close(importance(torch.ones(4)), torch.tensor([1 / 4, 1 / 3, 1 / 2, 1]).double())


def test_strides_zeros_and_empty_layers():
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(importance(weight.T), by_definition(weight.T))
    torch.testing.assert_close(importance(weight[::2, 1:]), by_definition(weight[::2, 1:]))
    assert importance(torch.zeros(3, 2)).eq(0).all()
    assert importance(torch.empty(0, 4)).shape == (0, 4)


def test_the_weights_are_not_touched():
    weight = torch.randn(5, 5, dtype=torch.float64)
    before = weight.clone()
    importance(weight)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("bad", [torch.ones(2, dtype=torch.int8), torch.ones(2, device="meta"), [1.0]])
def test_other_tensors_are_a_type_error(bad):
    with pytest.raises(TypeError, match="weight"):
        importance(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="finite"):
        importance(torch.tensor([1.0, bad]))


# --- Eq. 7 ---


def stack(widths: list[int], generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(o, i, generator=generator, dtype=torch.float64) for i, o in itertools.pairwise(widths)]


def outputs(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for weight in weights[:-1]:
        x = torch.relu(x @ weight.T)
    return x @ weights[-1].T


@pytest.mark.parametrize("pruned", [(0,), (2,), (0, 1, 2)])
def test_the_bound_holds_for_inputs_of_norm_one(pruned):
    generator = torch.Generator().manual_seed(5)
    weights = stack([6, 9, 7, 4], generator)
    masks = [torch.rand(w.shape, generator=generator) < 0.6 if i in pruned else None for i, w in enumerate(weights)]
    after = [w if m is None else w * m for w, m in zip(weights, masks, strict=True)]
    x = nn.functional.normalize(torch.randn(1000, 6, generator=generator, dtype=torch.float64))
    change = (outputs(weights, x) - outputs(after, x)).norm(dim=1).max()
    assert 0 < change <= distortion_bound(weights, masks)


def test_the_bound_of_one_linear_layer_is_tight():
    # rank 1: there is an input of norm 1 whose output moves by the whole Frobenius norm
    weight = torch.zeros(3, 3, dtype=torch.float64)
    weight[1, 2] = 5
    assert distortion_bound([weight], [torch.zeros(3, 3, dtype=torch.bool)]) == pytest.approx(5)


def test_a_layer_changes_the_bound_by_its_relative_distortion():
    weights = stack([3, 5, 2], torch.Generator().manual_seed(6))
    mask = torch.ones(5, 3, dtype=torch.bool)
    mask[0] = False
    relative = weights[0][0].norm() / weights[0].norm()
    both = weights[0].norm() * weights[1].norm()
    assert distortion_bound(weights, [mask, None]) == pytest.approx(float(relative * both))
    assert distortion_bound(weights, [None, None]) == 0


def test_a_model_and_its_masks_give_what_its_matrices_give():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    mask = torch.rand(2, 6) < 0.5
    by_lists = distortion_bound([model[0].weight, model[2].weight], [None, mask])
    masks = Masks({"2.weight": mask})
    assert distortion_bound(model, masks) == by_lists > 0
    masks.attach(model)
    assert distortion_bound(model, masks) == by_lists, "of the dense weights"


@pytest.mark.parametrize(
    ("model", "masks", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), Masks(), "without bias"),
        (nn.Sequential(nn.Linear(2, 2, bias=False), nn.GELU()), Masks(), "GELU"),
        (nn.Linear(2, 2, bias=False), Masks(), "Sequential"),
        (nn.Sequential(nn.Linear(2, 2, bias=False)), Masks({"1.weight": torch.ones(2, 2).bool()}), "1.weight"),
        ([torch.ones(2, 2)], [], "one a weight"),
        ([torch.ones(2, 2)], [torch.ones(3, 2).bool()], "shape"),
    ],
)
def test_a_bound_needs_a_plain_stack(model, masks, message):
    with pytest.raises(ValueError, match=message):
        distortion_bound(model, masks)


def test_a_bound_needs_both_in_the_same_form():
    with pytest.raises(TypeError, match="masks"):
        distortion_bound([torch.ones(2, 2)], Masks())
