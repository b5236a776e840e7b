"""Tables: continuity, tails, published and optimal errors, the module's gradient."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from paperworks.efficiency.xamba import PiecewiseLinear, PiecewiseLinearActivation

REFERENCE = {"silu": functional.silu, "softplus": functional.softplus, "sigmoid": torch.sigmoid}
# largest error of an interpolation at equal distances on [-8, 8], which a fit has to beat
UNIFORM = {
    "silu": {16: 0.0544, 32: 0.0151, 64: 0.0039},
    "softplus": {16: 0.0291, 32: 0.0077, 64: 0.0019},
    "sigmoid": {8: 0.041, 16: 0.0117},
}


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("segments", [2, 3, 8, 32])
def test_it_is_continuous_with_outer_knots_on_the_tails(name, segments):
    table = PiecewiseLinear.fit(name, segments, bound=6.0)
    assert table.knots.shape == (segments + 1,)
    assert table.slopes.shape == table.intercepts.shape == (segments + 2,)
    assert (table.knots[0], table.knots[-1]) == (-6.0, 6.0)
    left = table.slopes[:-1] * table.knots + table.intercepts[:-1]
    right = table.slopes[1:] * table.knots + table.intercepts[1:]
    np.testing.assert_allclose(left, right, atol=1e-12)


@pytest.mark.parametrize(("name", "segments"), [(n, s) for n, errors in UNIFORM.items() for s in errors])
def test_the_fit_beats_uniform_interpolation(name, segments):
    assert PiecewiseLinear.fit(name, segments).max_error(name) < 0.7 * UNIFORM[name][segments]


def test_error_falls_with_the_square_of_the_segments():
    errors = [PiecewiseLinear.fit("sigmoid", n).max_error("sigmoid") for n in (8, 16, 32)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.15)


def test_values_on_both_sides_of_the_function_halve_the_error():
    """For x^2 on [-1, 1] the chords of n segments err 1/n^2 above it; balanced values err half as much."""
    table = PiecewiseLinear.fit(lambda x: x * x, 8, 1.0, tails=((-2.0, -1.0), (2.0, -1.0)))
    x = np.linspace(-1, 1, 5001)
    error = table(x) - x * x
    assert error.max() < 0.7 / 8**2
    assert error.min() < -0.3 / 8**2


def test_no_table_beats_its_tails():
    """At the bound SiLU is 8 sigmoid(-8) away from its asymptote; inside, more segments still help."""
    floor = 8 / (1 + np.exp(8))
    x = np.linspace(-5, 5, 4001)
    inside = []
    for segments in (32, 64):
        table = PiecewiseLinear.fit("silu", segments)
        assert floor <= table.max_error("silu") < 1.001 * floor
        inside.append(np.abs(table(x) - x / (1 + np.exp(-x))).max())
    assert inside[0] > 3 * inside[1]


@pytest.mark.parametrize("name", REFERENCE)
def test_tails_are_the_asymptotes(name):
    table = PiecewiseLinear.fit(name)
    x = torch.tensor([-torch.inf, -1e4, 1e4, torch.inf], dtype=torch.float64)
    wanted = REFERENCE[name](x)
    wanted[0] = 0.0  # silu(-inf) is NaN in torch
    assert torch.equal(table(x), wanted)
    assert table(torch.tensor([torch.nan])).isnan().all()


@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    name=st.sampled_from(sorted(REFERENCE)),
)
def test_tensor_array_and_module_agree(shape, dtype, name):
    table = _TABLES[name]
    x = (5 * torch.randn([*shape, 2], generator=torch.Generator().manual_seed(0))).to(dtype).transpose(0, -1)
    y = PiecewiseLinearActivation(table)(x)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert torch.equal(table(x), y)
    rounding = 4 * torch.finfo(dtype).eps
    exact = table(x.double().numpy())
    assert isinstance(exact, np.ndarray)
    np.testing.assert_allclose(y.double().numpy(), exact, rtol=rounding, atol=max(rounding, 3e-6))


_TABLES = {name: PiecewiseLinear.fit(name, 8) for name in REFERENCE}


def test_gradient_is_the_slope_of_the_segment():
    table = _TABLES["silu"]
    middles = torch.from_numpy((table.knots[1:] + table.knots[:-1]) / 2)
    x = torch.cat([torch.tensor([-20.0]), middles, torch.tensor([20.0])]).double().requires_grad_()
    [slopes] = torch.autograd.grad(PiecewiseLinearActivation(table)(x).sum(), x)
    np.testing.assert_array_equal(slopes.numpy(), table.slopes)


def test_module_survives_state_dict_copy_pickle_and_vmap():
    module = PiecewiseLinearActivation(PiecewiseLinear.fit("softplus", 12, 5.0))
    x = torch.linspace(-9, 9, 101)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))
    fresh = PiecewiseLinearActivation(PiecewiseLinear.fit("silu", 12, 5.0))
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x), module(x))
    assert torch.equal(torch.func.vmap(module)(x[:, None])[:, 0], module(x))
    np.testing.assert_array_equal(module.table.slopes, module.slopes.numpy())


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize(("segments", "bound"), [(2, 8.0), (33, 7.3), (200, 8.0)])
def test_cells_hold_the_same_function(name, segments, bound):
    table = PiecewiseLinear.fit(name, segments, bound)
    slopes, intercepts = table.by_cell()
    cells = len(slopes) - 2
    x = np.linspace(-1.2 * bound, 1.2 * bound, 3001)
    cell = np.clip(np.floor((x + bound) * cells / (2 * bound)), -1, cells).astype(int) + 1
    np.testing.assert_allclose(slopes[cell] * x + intercepts[cell], table(x), atol=1e-12)


def test_a_knot_inside_a_cell_is_refused():
    with pytest.raises(ValueError, match="knots"):
        PiecewiseLinear(np.array([-1.0, 0.12345, 1.0]), np.zeros(4), np.zeros(4)).by_cell()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"f": "exp"}, "straight tail"),
        ({"f": "tanh"}, "f: got"),
        ({"f": np.tanh}, "tails"),
        ({"f": "silu", "segments": 1}, "segments"),
        ({"f": "silu", "segments": 2.5}, "segments"),
        ({"f": "silu", "bound": 0.0}, "bound"),
        ({"f": "silu", "bound": np.inf}, "bound"),
        ({"f": lambda x: np.log(x), "tails": ((0, 0), (0, 0))}, "finite"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_input(arguments, name):
    with pytest.raises(ValueError, match=name):
        PiecewiseLinear.fit(**arguments)


def test_wrong_types():
    table = _TABLES["silu"]
    with pytest.raises(TypeError, match="f: got"):
        PiecewiseLinear.fit(3)
    with pytest.raises(TypeError, match="floating"):
        table(torch.arange(3))
    with pytest.raises(TypeError, match="floating"):
        table(np.arange(3))
    with pytest.raises(TypeError, match="table"):
        PiecewiseLinearActivation("silu")
    with pytest.raises(ValueError, match="f: got"):
        table.max_error("tanh")
