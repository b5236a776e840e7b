"""Facts of the bases: partitions, recurrences, closed forms, what happens at the ends, and their fused gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from paperworks.kan.bases import (
    BASES,
    Basis,
    BSplineBasis,
    ChebyshevBasis,
    FourierBasis,
    GaussianBasis,
    KANLinear,
    PairBasis,
    ReLUPowerBasis,
    WaveletBasis,
    get_basis,
)
from paperworks.kan.pairs import ACTIVATIONS, COMBINATIONS, phases

FAMILIES = ("bspline", "chebyshev", "fourier", "rbf", "wavelet")
U = torch.linspace(-1, 1, 201, dtype=torch.float64)


@pytest.mark.parametrize("k", [4, 5, 8, 13])
def test_splines_are_those_of_the_recursion_and_sum_to_one(k):
    h = 2 / (k - 3)
    knots = -1 + h * (np.arange(k + 4) - 3)
    wanted = np.stack([BSpline.basis_element(knots[i : i + 5], extrapolate=False)(U.numpy()) for i in range(k)], 1)
    found = BSplineBasis(k)(U)
    assert np.allclose(found.numpy(), np.nan_to_num(wanted), atol=1e-12)
    assert torch.allclose(found.sum(-1), torch.ones_like(U))


def test_a_spline_has_no_hole_at_the_end():
    assert BSplineBasis(8)(torch.ones(1)).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_chebyshev_is_the_cosine_of_multiples(k):
    wanted = torch.cos(torch.arange(k) * torch.arccos(U)[:, None])
    assert torch.allclose(ChebyshevBasis(k)(U), wanted, atol=1e-12)


def test_chebyshev_slope_at_one_is_the_square_of_the_degree():
    u = torch.ones(1, dtype=torch.float64, requires_grad=True)
    values = ChebyshevBasis(6)(u)[0]
    slopes = [torch.autograd.grad(v, u, retain_graph=True)[0].item() if n else 0.0 for n, v in enumerate(values)]
    assert slopes == pytest.approx([n * n for n in range(6)])


def test_fourier_functions_are_orthonormal_and_without_a_mean():
    gram = FourierBasis(8)(U[:-1]).t() @ FourierBasis(8)(U[:-1]) / 100
    assert torch.allclose(gram, torch.eye(8, dtype=torch.float64), atol=1e-12)
    assert FourierBasis(8)(U[:-1]).mean(0).abs().max() < 1e-12


def test_bumps_peak_at_their_centres():
    centres = torch.linspace(-1, 1, 8, dtype=torch.float64)
    assert torch.allclose(GaussianBasis(8)(centres).diagonal(), torch.ones(8, dtype=torch.float64))
    peak = 2 / (math.sqrt(3) * math.pi**0.25)
    assert torch.allclose(WaveletBasis(8)(centres).diagonal(), torch.full((8,), peak, dtype=torch.float64))
    assert WaveletBasis(8)(centres)[0, 1].abs() < 1e-12  # zero one width away from the centre


def test_wavelet_has_unit_norm_and_no_mean():
    t = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    values = WaveletBasis(2)(t / 0.5 - 1)[:, 0]  # h = 2: t steps of one width around the first centre
    u = (t / 0.5 - 1 + 1) / 2
    assert torch.trapezoid(values, u).abs() < 1e-8
    assert torch.trapezoid(values**2, u).item() == pytest.approx(1, abs=1e-8)


def test_relu_powers_peak_at_one_inside_their_phases():
    u = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    values = ReLUPowerBasis(8)(u)
    assert values.max(0).values.tolist() == pytest.approx([1.0] * 8, abs=1e-6)
    low, high = phases(5, 3, dtype=torch.float64)
    inside = ((u[:, None] + 1) / 2 > low) & ((u[:, None] + 1) / 2 < high)
    assert (values[~inside] == 0).all()


@pytest.mark.parametrize("function", COMBINATIONS)
def test_combinations_are_symmetric_in_their_two_sides(function):
    p, q = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(COMBINATIONS[function](p, q), COMBINATIONS[function](q, p))


def test_phases_are_those_of_grid_three_and_order_three():
    low, high = phases(3, 3)
    assert low.tolist() == pytest.approx([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3])
    assert high.tolist() == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


@given(st.sampled_from(sorted(BASES)), st.lists(st.integers(0, 4), max_size=3), st.sampled_from([4, 6, 8]))
@settings(max_examples=40, deadline=None)
def test_any_shape_gets_one_more_dimension(name, shape, k):
    basis = get_basis(name, k)
    u = torch.rand(shape, dtype=torch.float64) * 2 - 1
    found = basis(u)
    assert found.shape == (*shape, k)
    assert found.dtype == torch.float64
    assert found.isfinite().all()


@pytest.mark.parametrize("name", [*FAMILIES, "relu_power", "silu_quad1", "gelu_sum"])
def test_gradients_of_every_order(name):
    u = torch.tensor([-0.9, -0.31, 0.02, 0.77], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(get_basis(name, 8), u)
    assert torch.autograd.gradgradcheck(get_basis(name, 8), u)


def test_names():
    assert isinstance(get_basis("rbf", 6), GaussianBasis)
    assert get_basis("silu_quad1", 7).num_functions == 7
    assert len(BASES) == 6 + len(ACTIVATIONS) * len(COMBINATIONS)
    mine = PairBasis(5, activation="tanh", function="sum", order=2)
    assert get_basis(mine) is mine


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: get_basis("spline"), ValueError, "bspline, chebyshev"),
        (lambda: get_basis(3), TypeError, "basis"),
        (lambda: get_basis("fourier", 7), ValueError, "even"),
        (lambda: get_basis("bspline", 3), ValueError, "at least 4"),
        (lambda: get_basis("rbf", 1), ValueError, "at least 2"),
        (lambda: get_basis("chebyshev", 0), ValueError, "num_functions"),
        (lambda: PairBasis(3, order=3), ValueError, "order"),
        (lambda: PairBasis(8, activation="sine"), ValueError, "silu"),
        (lambda: PairBasis(8, function="cubic"), ValueError, "quad1"),
        (lambda: phases(0, 3), ValueError, "grid_size"),
        (lambda: phases(3, -1), ValueError, "order"),
        (lambda: KANLinear(0, 3, "rbf"), ValueError, "in_features"),
        (lambda: KANLinear(3, 3, "rbf", squash="sin"), ValueError, "tanh, clamp"),
        (lambda: KANLinear(3, 3, "rbf", base="relu"), ValueError, "silu"),
        (lambda: KANLinear(3, 3, "rbf")(torch.zeros(2, 4)), ValueError, "wanted 3"),
        (lambda: KANLinear(3, 3, "rbf")(torch.zeros(2, 3, dtype=torch.int64)), TypeError, "floating"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_basis_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Basis has no forward"):
        Basis(3)(torch.zeros(1))
