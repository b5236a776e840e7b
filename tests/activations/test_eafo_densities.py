"""Densities: pdf, dpdf and cdf agree with one another and with scipy; the worst activation is uniform."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.activations.crrelu import EmpiricalDensity, LogisticDensity, NormalDensity, WorstActivation
from paperworks.activations.eafo_densities import as_density

Z = torch.linspace(-4, 4, 81, dtype=torch.float64)


def samples(n=3000, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("density", "reference"),
    [
        (NormalDensity(0.5, 2.0), scipy.stats.norm(0.5, 2.0)),
        (LogisticDensity(-0.3, 0.7), scipy.stats.logistic(-0.3, 0.7)),
    ],
)
def test_closed_forms(density, reference):
    np.testing.assert_allclose(density.pdf(Z), reference.pdf(Z), rtol=1e-12)
    np.testing.assert_allclose(density.cdf(Z), reference.cdf(Z), rtol=1e-12)
    far = torch.tensor([-25.0], dtype=torch.float64)
    np.testing.assert_allclose(density.cdf(far), reference.cdf(-25.0), rtol=1e-10)
    assert density.support == (-math.inf, math.inf)


@pytest.mark.parametrize("density", [NormalDensity(0.5, 2.0), LogisticDensity(1.0, 0.5), EmpiricalDensity(samples())])
def test_each_is_the_derivative_of_the_next_and_differentiable_twice(density):
    z = (Z[::4] + 0.01234).requires_grad_()
    (pdf,) = torch.autograd.grad(density.cdf(z).sum(), z, create_graph=True)
    (dpdf,) = torch.autograd.grad(pdf.sum(), z)
    torch.testing.assert_close(pdf, density.pdf(z), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(dpdf, density.dpdf(z), rtol=1e-8, atol=1e-12)
    for function in (density.pdf, density.dpdf, density.cdf):
        assert torch.autograd.gradcheck(function, (z,))
        assert torch.autograd.gradgradcheck(function, (z,))


def test_the_kernel_estimate_is_the_sum_of_kernels():
    x = samples(500).double()
    density = EmpiricalDensity(x)
    h = density.bandwidth
    iqr = np.subtract(*np.quantile(x, [0.75, 0.25]))
    assert h == pytest.approx(0.9 * min(x.std().item(), iqr / 1.34) * 500**-0.2)
    u = (Z[:, None] - x) / h
    kernels = torch.exp(-u * u / 2) / (h * math.sqrt(2 * math.pi))
    torch.testing.assert_close(density.pdf(Z), kernels.mean(1), rtol=0, atol=1e-4)
    torch.testing.assert_close(density.dpdf(Z), (-u / h * kernels).mean(1), rtol=0, atol=1e-3)


@settings(max_examples=15)
@given(
    kind=st.sampled_from(["normal", "cubed", "two heaps", "half at zero", "two values"]),
    scale=st.floats(1e-3, 1e3),
    points=st.integers(64, 300),
)
def test_any_samples_give_a_density(kind, scale, points):
    x = samples(400, seed=1).double()
    x = {
        "normal": x,
        "cubed": x**3,
        "two heaps": torch.cat([x - 20, x + 20]),
        "half at zero": x.relu(),
        "two values": torch.tensor([0.0, 1.0], dtype=torch.float64),
    }[kind]
    density = EmpiricalDensity(x * scale, points=points)
    low, high = density.support
    z = torch.linspace(low, high, 5001, dtype=torch.float64)
    assert (density.pdf(z) >= 0).all()
    assert density.cdf(z).diff().min() > -1e-12
    assert density.cdf(z)[[0, -1]].tolist() == pytest.approx([0, 1], abs=1e-12)
    assert torch.trapezoid(density.pdf(z), z) == pytest.approx(1, abs=1e-4)
    outside = torch.tensor([low - 1, high + 1], dtype=torch.float64)
    assert density.pdf(outside).tolist() == [0, 0]
    assert density.dpdf(outside).tolist() == [0, 0]
    assert density.cdf(outside).tolist() == pytest.approx([0, 1], abs=1e-12)


@settings(max_examples=15)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3), dtype=st.sampled_from([torch.float16, torch.float32, torch.float64])
)
def test_shape_and_dtype_are_kept(shape, dtype):
    z = torch.randn(shape).to(dtype)
    for density in (NormalDensity(), LogisticDensity(), EMPIRICAL):
        for function in (density.pdf, density.dpdf, density.cdf, WorstActivation(density, -1, 2)):
            assert function(z).shape == z.shape
            assert function(z).dtype == dtype


EMPIRICAL = EmpiricalDensity(samples())


def test_worst_activation_makes_its_input_uniform():
    for density, draw in ((NormalDensity(1, 3), samples(20000) * 3 + 1), (EMPIRICAL, samples(20000, seed=5))):
        y = WorstActivation(density, -2.0, 5.0)(draw.double())
        assert scipy.stats.kstest(y, scipy.stats.uniform(-2, 7).cdf).statistic < 0.02
    torch.testing.assert_close(WorstActivation(LogisticDensity())(Z), torch.sigmoid(Z))


def test_worst_activation_knows_its_derivatives():
    worst, z = WorstActivation(EMPIRICAL, -2.0, 5.0), (Z + 0.01).requires_grad_()
    (first,) = torch.autograd.grad(worst(z).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    torch.testing.assert_close(worst.first_two_derivatives(z), (first, second))


def test_copies_and_pickles():
    for density in (NormalDensity(1, 2), LogisticDensity(1, 2), EMPIRICAL, WorstActivation(EMPIRICAL)):
        for copied in (copy.deepcopy(density), pickle.loads(pickle.dumps(density))):
            function = copied if isinstance(copied, WorstActivation) else copied.cdf
            original = density if isinstance(density, WorstActivation) else density.cdf
            assert torch.equal(function(Z), original(Z))


def test_normal_of_torch_and_foreign_densities():
    normal = as_density(torch.distributions.Normal(torch.tensor([1.0]), 2.0))
    torch.testing.assert_close(normal.pdf(Z), NormalDensity(1, 2).pdf(Z))
    assert as_density(EMPIRICAL) is EMPIRICAL
    with pytest.raises(ValueError, match="batch of 2"):
        as_density(torch.distributions.Normal(torch.zeros(2), 1.0))
    with pytest.raises(TypeError, match="Laplace without pdf, dpdf"):
        as_density(torch.distributions.Laplace(0.0, 1.0))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="std: got 0"):
        NormalDensity(0, 0)
    with pytest.raises(ValueError, match="mean: got nan"):
        NormalDensity(math.nan)
    with pytest.raises(ValueError, match="scale: got -1"):
        LogisticDensity(0, -1)
    with pytest.raises(ValueError, match="low, high: got 1, 1"):
        WorstActivation(NormalDensity(), 1, 1)
    with pytest.raises(ValueError, match="points: got 63"):
        EmpiricalDensity(samples(), points=63)
    with pytest.raises(ValueError, match="samples: got 1, wanted at least 2"):
        EmpiricalDensity(torch.ones(1))
    with pytest.raises(ValueError, match="samples: got 5 times the value 1"):
        EmpiricalDensity(torch.ones(5))
    with pytest.raises(ValueError, match="samples: got 1 non-finite"):
        EmpiricalDensity(torch.tensor([0.0, 1.0, math.nan]))
    with pytest.raises(TypeError, match=r"samples: got torch\.int64"):
        EmpiricalDensity(torch.arange(5))
    with pytest.raises(TypeError, match=r"z: got torch.int64"):
        NormalDensity().pdf(torch.arange(3))
