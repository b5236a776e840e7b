"""The entropy functional and its steepest descent: the paper's exact statements, in numbers."""

import math

import pytest
import scipy.integrate
import torch
import torch.nn.functional as F
from torch import nn

from paperworks.activations.crrelu import (
    EAFOActivation,
    EmpiricalDensity,
    LogisticDensity,
    NormalDensity,
    WorstActivation,
    activation_entropy,
    crrelu,
    eafo_correction,
    eafo_direction,
)

NORMAL = NormalDensity()
H_NORMAL = 0.5 * math.log(2 * math.pi * math.e)


class Uniform:
    """A density of a user's own, with a bounded support."""

    support = (0.0, 1.0)

    def pdf(self, z):
        return ((z >= 0) & (z <= 1)).to(z.dtype)

    def dpdf(self, z):
        return torch.zeros_like(z)

    def cdf(self, z):
        return z.clamp(0, 1)


class Cauchy:
    """One with tails too heavy for a variance."""

    support = (-math.inf, math.inf)

    def pdf(self, z):
        return 1 / (math.pi * (1 + z * z))

    def dpdf(self, z):
        return -2 * z / (math.pi * (1 + z * z) ** 2)

    def cdf(self, z):
        return 0.5 + torch.atan(z) / math.pi


@pytest.mark.parametrize(
    ("f", "density", "exact"),
    [
        (lambda z: z, NORMAL, H_NORMAL),
        (lambda z: 3 * z, NormalDensity(2, 5), H_NORMAL + math.log(15)),
        (lambda z: z, LogisticDensity(1, 2), 2 + math.log(2)),
        (lambda z: z, Cauchy(), math.log(4 * math.pi)),
        (torch.exp, NormalDensity(0.5, 1), H_NORMAL + 0.5),
        (lambda z: z * z, Uniform(), math.log(2) - 1),
        (lambda z: z**3, NORMAL, H_NORMAL + math.log(3) - 0.5772156649015329 - math.log(2)),
        (torch.sigmoid, LogisticDensity(), 0.0),
        (torch.tanh, NormalDensity(0, 10), None),
    ],
)
def test_entropy_of_smooth_functions(f, density, exact):
    if exact is None:  # log tanh' = log 4 - 2 |z| - 2 log(1 + exp(-2 |z|)); it underflows in a derivative of tanh
        tail = scipy.integrate.quad(
            lambda z: 2 * math.exp(-z * z / 200) / math.sqrt(200 * math.pi) * -2 * math.log1p(math.exp(-2 * z)), 0, 90
        )
        exact = H_NORMAL + math.log(10) + math.log(4) - 20 * math.sqrt(2 / math.pi) + tail[0]
    assert activation_entropy(f, density) == pytest.approx(exact, abs=1e-5)


def test_entropy_at_a_turning_point_and_at_kinks():
    def gelu_log_slope(z):
        bell = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return bell * math.log(abs(0.5 * math.erfc(-z / math.sqrt(2)) + z * bell))

    turning = -0.7517915247
    parts = [scipy.integrate.quad(gelu_log_slope, *ends, limit=500)[0] for ends in ((-12, turning), (turning, 12))]
    assert activation_entropy(F.gelu, NORMAL) == pytest.approx(H_NORMAL + sum(parts), abs=1e-5)
    assert activation_entropy(F.leaky_relu, NORMAL) == pytest.approx(H_NORMAL + 0.5 * math.log(0.01), abs=1e-5)
    share = NORMAL.cdf(torch.tensor(0.3, dtype=torch.float64)).item()
    shifted = activation_entropy(lambda z: F.leaky_relu(z - 0.3), NORMAL)
    assert shifted == pytest.approx(H_NORMAL + share * math.log(0.01), abs=1e-5)
    for points in (10, 500):
        assert activation_entropy(F.leaky_relu, NORMAL, points=points) == pytest.approx(
            H_NORMAL + 0.5 * math.log(0.01), abs=5e-4
        )


def test_relu_has_no_entropy_but_its_positive_branch_has_half():
    assert activation_entropy(torch.relu, NORMAL) == -math.inf
    assert activation_entropy(nn.ReLU6(), NORMAL) == -math.inf
    assert activation_entropy(torch.relu, NORMAL, branch="positive") == pytest.approx(H_NORMAL / 2, abs=1e-6)


def test_scaling_shifts_the_entropy_by_the_log_of_the_scale():
    h = activation_entropy(F.softplus, NORMAL)
    assert activation_entropy(lambda z: 7 * F.softplus(z), NORMAL) == pytest.approx(h + math.log(7), abs=1e-6)


def test_modules_are_taken_in_their_own_dtype_and_left_alone():
    prelu = nn.PReLU()
    want = H_NORMAL + 0.5 * math.log(0.25)
    assert activation_entropy(prelu, torch.distributions.Normal(0.0, 1.0)) == pytest.approx(want, abs=1e-5)
    assert prelu.weight.dtype == torch.float32
    tracked = EAFOActivation("softplus")
    activation_entropy(tracked, NORMAL)
    assert tracked.num_batches_tracked == 0


@pytest.mark.parametrize(
    "density", [NormalDensity(1, 3), LogisticDensity(-1, 0.5), EmpiricalDensity(torch.randn(500) ** 3), Uniform()]
)
def test_worst_activation_reaches_the_largest_entropy_of_its_range(density):
    worst = WorstActivation(density, -2.0, 5.0)
    assert activation_entropy(worst, density) == pytest.approx(math.log(7), abs=1e-6)
    plain = activation_entropy(lambda z: -2 + 7 * density.cdf(z), density)
    assert plain == pytest.approx(math.log(7), abs=1e-6)


def test_no_function_of_the_same_range_has_more():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        weights = torch.rand(4, generator=generator, dtype=torch.float64)
        weights /= weights.sum()
        means = 2 * torch.randn(4, generator=generator, dtype=torch.float64)
        stds = 0.3 + torch.rand(4, generator=generator, dtype=torch.float64)

        def f(z, weights=weights, means=means, stds=stds):
            u = (z[..., None] - means) / stds
            return -2 + 7 * (weights * 0.5 * torch.erfc(-u / math.sqrt(2))).sum(-1)

        assert activation_entropy(f, NORMAL, points=2001) < math.log(7)


def test_the_worst_activation_has_no_direction():
    z = torch.linspace(-4, 4, 201, dtype=torch.float64)
    for density in (NormalDensity(0.3, 2), LogisticDensity(), EmpiricalDensity(torch.randn(500))):
        assert eafo_direction(WorstActivation(density, -1, 3), density, z).abs().max() < 1e-12


def test_sigmoid_is_the_worst_for_logistic_inputs():
    x = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    assert eafo_correction(torch.logit, LogisticDensity(), x).abs().max() < 1e-10
    z = torch.linspace(-20, 20, 401, dtype=torch.float64)
    assert eafo_direction(torch.sigmoid, LogisticDensity(), z).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("f", "slope"),
    [(torch.sigmoid, -0.26123), (torch.tanh, -0.08144), (F.softplus, -0.27166), (lambda z: z, -0.14105)],
)
def test_the_direction_lowers_the_entropy_at_the_stated_rate(f, slope):
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(f(z).sum(), z)
    c = eafo_direction(f, NORMAL, z)
    rate = -torch.trapezoid(c**2 / first, z).item()
    assert rate == pytest.approx(slope, abs=5e-6)

    def moved(s):
        return activation_entropy(lambda z: f(z) + s * eafo_direction(f, NORMAL, z), NORMAL)

    assert (moved(1e-3) - moved(-1e-3)) / 2e-3 == pytest.approx(rate, rel=1e-3)
    assert moved(0.05) < moved(0.0)


def test_correction_of_relu_is_x_phi_of_x_and_the_two_forms_agree():
    x = torch.linspace(0.01, 5, 300, dtype=torch.float64)
    torch.testing.assert_close(eafo_correction(lambda t: t, NORMAL, x), x * NORMAL.pdf(x), rtol=1e-12, atol=1e-15)
    z = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for f, inverse, rate in (
        (torch.tanh, torch.atanh, lambda z: 1 - torch.tanh(z) ** 2),
        (F.softplus, lambda x: torch.log(torch.expm1(x)), torch.sigmoid),
    ):
        c = -rate(z) * eafo_correction(inverse, NORMAL, f(z))
        torch.testing.assert_close(eafo_direction(f, NORMAL, z), c, rtol=1e-8, atol=1e-10)


def test_positive_eps_raises_the_entropy_of_the_positive_branch():
    def h(eps):
        return activation_entropy(lambda z: crrelu(z, eps), NORMAL, branch="positive")

    assert (h(1e-3) - h(-1e-3)) / 2e-3 == pytest.approx(1 / (4 * math.sqrt(2)), rel=1e-5)
    assert h(0.01) > h(0.0) > h(-0.01)


def test_direction_is_differentiable_twice_and_finite_where_f_is_flat():
    z = torch.tensor([-1.3, -0.2, 0.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    for f in (torch.tanh, torch.exp, lambda t: t + 0.1 * t**3):
        assert torch.autograd.gradcheck(lambda t, f=f: eafo_direction(f, NORMAL, t), (z,))
        assert torch.autograd.gradgradcheck(lambda t, f=f: eafo_direction(f, NORMAL, t), (z,))
    torch.testing.assert_close(eafo_direction(torch.relu, NORMAL, z), NORMAL.dpdf(z))
    x = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: eafo_correction(torch.logit, NORMAL, t), (x,))
    assert torch.autograd.gradgradcheck(lambda t: eafo_correction(torch.logit, NORMAL, t), (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_come_in_the_dtype_and_shape_of_the_points(dtype):
    z = torch.rand(3, 0, 2).to(dtype) if dtype == torch.float16 else torch.rand(3, 4).to(dtype)
    assert eafo_direction(torch.sigmoid, NORMAL, z).dtype == dtype
    assert eafo_direction(torch.sigmoid, NORMAL, z).shape == z.shape
    assert eafo_correction(torch.logit, NORMAL, z.clamp(0.1, 0.9)).dtype == dtype


def test_errors_name_the_argument():
    x = torch.tensor([0.5, 1.0])
    with pytest.raises(ValueError, match="inverse: got slope -1"):
        eafo_correction(lambda t: -t, NORMAL, x)
    with pytest.raises(ValueError, match="inverse"):
        eafo_correction(torch.atanh, NORMAL, torch.tensor([2.0]))
    with pytest.raises(TypeError, match=r"x: got torch.int64"):
        eafo_correction(torch.logit, NORMAL, torch.arange(3))
    with pytest.raises(TypeError, match=r"z: got torch.int64"):
        eafo_direction(torch.tanh, NORMAL, torch.arange(3))
    with pytest.raises(TypeError, match="density: got str without pdf, dpdf, cdf, support"):
        activation_entropy(torch.tanh, "normal")
    with pytest.raises(ValueError, match="branch: got 'negative'"):
        activation_entropy(torch.tanh, NORMAL, branch="negative")
    with pytest.raises(ValueError, match="points: got 0"):
        activation_entropy(torch.tanh, NORMAL, points=0)
    with pytest.raises(ValueError, match=r"derivative at .* not finite"):
        activation_entropy(torch.sqrt, NORMAL)
