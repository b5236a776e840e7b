"""The static search and the table it returns."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paperworks.activations.crrelu import (
    EmpiricalDensity,
    LogisticDensity,
    NormalDensity,
    TableActivation,
    WorstActivation,
    activation_entropy,
    eafo_direction,
    eafo_search,
)
from paperworks.activations.eafo_search import soft_search

NORMAL = NormalDensity()


def identity(z):
    return z


@pytest.mark.parametrize("f", [torch.sigmoid, torch.tanh, F.softplus, F.leaky_relu, F.elu, identity])
def test_every_step_lowers_the_entropy_of_what_is_returned(f):
    found = eafo_search(f, NORMAL, steps=2)
    assert len(found.entropies) == len(found.step_sizes) + 1 >= 2
    assert all(a > b for a, b in zip(found.entropies[:-1], found.entropies[1:], strict=True))
    assert all(s > 0 for s in found.step_sizes)
    assert found.entropies[0] == pytest.approx(activation_entropy(f, NORMAL), abs=1e-5)
    assert found.entropies[-1] == pytest.approx(activation_entropy(found.function, NORMAL), abs=1e-5)


def test_one_step_is_f_plus_s_c():
    z = torch.linspace(-5.9, 5.9, 333, dtype=torch.float64)
    found = eafo_search(torch.sigmoid, torch.distributions.Normal(0.0, 1.0), step_size=0.2)
    assert found.step_sizes == [0.2]
    want = torch.sigmoid(z) + 0.2 * eafo_direction(torch.sigmoid, NORMAL, z)
    torch.testing.assert_close(found.function(z), want, rtol=0, atol=1e-6)


def test_the_fall_of_a_small_step_is_the_stated_rate():
    found = eafo_search(torch.tanh, NORMAL, step_size=1e-3)
    assert (found.entropies[1] - found.entropies[0]) / 1e-3 == pytest.approx(-0.08144, rel=2e-2)


def test_many_small_steps_stay_increasing():
    found = eafo_search(torch.sigmoid, NORMAL, steps=4, step_size=0.1)
    assert found.step_sizes == [0.1] * 4
    assert len(found.entropies) == 5
    z = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    assert (found.function(z).diff() > 0).all()


def test_a_step_too_large_is_not_taken():
    found = eafo_search(identity, NORMAL, step_size=5.0)
    assert found.step_sizes == []
    assert len(found.entropies) == 1
    z = torch.randn(10)
    assert torch.equal(found.function(z), z)


@pytest.mark.parametrize("density", [NORMAL, LogisticDensity(1, 2), EmpiricalDensity(torch.randn(400))])
def test_no_step_from_the_worst_activation(density):
    assert eafo_search(WorstActivation(density), density, steps=3).step_sizes == []


def test_a_range_is_kept():
    found = eafo_search(identity, NORMAL, steps=2, range=(-1.0, 3.0))
    ends = found.function(torch.tensor([-6.0, 6.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([-1, 3])
    assert found.entropies[0] == pytest.approx(activation_entropy(identity, NORMAL) + math.log(4 / 12), abs=1e-5)
    assert found.entropies[2] < found.entropies[1] < found.entropies[0] < math.log(4)


def test_the_function_takes_what_an_activation_takes():
    found = eafo_search(nn.PReLU(), NormalDensity(0.5, 2.0)).function
    for dtype in (torch.float32, torch.float16):
        z = torch.randn(3, 4, 5).to(dtype)
        assert found.to(dtype)(z).dtype == dtype
        assert found(z).shape == z.shape
    smooth = eafo_search(F.softplus, NORMAL).function
    z = torch.tensor([-7.0, -1.3, 0.4, 2.2, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(smooth, (z,))
    assert torch.autograd.gradgradcheck(smooth, (z,))
    torch.testing.assert_close(
        smooth.first_two_derivatives(z)[0], torch.autograd.grad(smooth(z).sum(), z)[0], rtol=1e-10, atol=1e-12
    )
    x = torch.randn(20)
    for copied in (copy.deepcopy(smooth), pickle.loads(pickle.dumps(smooth))):
        assert torch.equal(copied(x), smooth(x))
    torch.testing.assert_close(torch.compile(smooth, backend="aot_eager", fullgraph=True)(x), smooth(x))


def test_lookup_is_the_activation():
    table = eafo_search(torch.tanh, NORMAL).function
    z, y = table.lookup(2001)
    assert z.dtype == y.dtype == torch.float32
    torch.testing.assert_close(y, table(z))
    x = torch.linspace(-5.99, 5.99, 4001)
    at = (x - z[0]) / (z[1] - z[0])
    left = at.long()
    linear = y[left] + (at - left) * (y[left + 1] - y[left])
    torch.testing.assert_close(linear, table(x), rtol=0, atol=1e-4)


def test_a_table_that_learns():
    values, rates = torch.zeros(5), torch.zeros(5)
    table = TableActivation(torch.relu, -1.0, 1.0, values, rates, learnable=True)
    x = torch.tensor([-0.5, 0.25, 9.0])
    table(x).sum().backward()
    assert table.values.grad.tolist() == pytest.approx([0, 1, 0.5, 0.5, 1])
    assert {name for name, _ in table.named_parameters()} == {"values", "rates"}


@pytest.mark.parametrize("f", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Hardtanh(), nn.Softshrink(), nn.Hardsigmoid()])
def test_the_soft_search_lowers_the_softened_entropy_of_any_function(f):
    found = soft_search(f, NORMAL)
    assert len(found.step_sizes) == 1
    assert found.entropies[1] < found.entropies[0]


def test_the_soft_search_leaves_the_flat_side_of_relu_alone():
    found = soft_search(nn.ReLU(), NORMAL).function
    z = torch.tensor([-4.0, -2.0, -1.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    change = found(z) - torch.relu(z)
    assert change[:3].abs().max() < 1e-4
    s = (change / eafo_direction(torch.relu, NORMAL, z))[3:]
    assert s.max() / s.min() < 1.05


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="f: got slope 0 at z = -6"):
        eafo_search(torch.relu, NORMAL)
    with pytest.raises(ValueError, match=r"f: got slope -0\.12"):
        eafo_search(F.gelu, NORMAL)
    with pytest.raises(ValueError, match="steps: got 0"):
        eafo_search(torch.tanh, NORMAL, steps=0)
    for size in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="step_size: got"):
            eafo_search(torch.tanh, NORMAL, step_size=size)
    with pytest.raises(ValueError, match=r"range: got \(1, 0\)"):
        eafo_search(torch.tanh, NORMAL, range=(1, 0))
    with pytest.raises(TypeError, match="density: got object without pdf"):
        eafo_search(torch.tanh, object())
    flat = torch.zeros(4)
    with pytest.raises(ValueError, match="low, high: got 1"):
        TableActivation(torch.relu, 1.0, 0.0, flat, flat)
    with pytest.raises(ValueError, match=r"values, rates: got shapes \(4,\) and \(3,\)"):
        TableActivation(torch.relu, 0.0, 1.0, flat, flat[:3])
    with pytest.raises(ValueError, match="points: got 1"):
        TableActivation(torch.relu, 0.0, 1.0, flat, flat).lookup(1)
