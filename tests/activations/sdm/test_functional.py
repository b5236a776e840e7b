import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.activations.sdm import SOFTMAX_Q, log_sdm, sdm, sdm_loss


def test_softmax_is_q_e_minus_2_and_d_1():
    z = 5 * torch.randn(10_000, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(sdm(z, SOFTMAX_Q), z.softmax(-1), rtol=0, atol=1e-12)
    assert torch.allclose(log_sdm(z, SOFTMAX_Q), z.log_softmax(-1), rtol=0, atol=1e-12)


def test_argmax_is_kept_and_d_0_is_uniform():
    g = torch.Generator().manual_seed(1)
    z = 3 * torch.randn(10_000, 5, dtype=torch.float64, generator=g)
    q = torch.randint(0, 500, (10_000,), generator=g).double()
    d = torch.rand(10_000, dtype=torch.float64, generator=g).clamp(min=1e-3)
    assert torch.equal(sdm(z, q, d).argmax(-1), z.argmax(-1))
    assert torch.allclose(sdm(z, q, 0.0), torch.full_like(z, 0.2), rtol=0, atol=1e-12)


def test_powers_of_two_plus_q():
    z = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64)
    powers = (2 + 3.0) ** (0.4 * z)
    assert torch.allclose(sdm(z, 3.0, 0.4), powers / powers.sum(), atol=1e-15)


def test_log_probability_is_not_clipped():
    z = torch.tensor([[0.0, 200.0]], requires_grad=True)
    log_p = log_sdm(z, 98.0)
    assert log_p[0, 0].item() == pytest.approx(-200.0)
    (gradient,) = torch.autograd.grad(log_p[0, 0], z)
    assert gradient[0, 0].item() == pytest.approx(1.0)


def test_loss_is_cross_entropy_in_the_base_2_plus_q():
    g = torch.Generator().manual_seed(2)
    z = torch.randn(6, 4, dtype=torch.float64, generator=g)
    y, q = torch.randint(0, 4, (6,), generator=g), torch.arange(6, dtype=torch.float64)
    d = torch.linspace(0, 1, 6, dtype=torch.float64)
    expected = [-math.log(float(sdm(z[i], float(q[i]), float(d[i]))[y[i]])) / math.log(2 + i) for i in range(6)]
    assert torch.allclose(sdm_loss(z, y, q, d, reduction="none"), torch.tensor(expected, dtype=torch.float64))
    assert sdm_loss(z, y, q, d).item() == pytest.approx(np.mean(expected))
    assert sdm_loss(z, y, q, d, reduction="sum").item() == pytest.approx(np.sum(expected))


def test_gradient_is_d_p_minus_onehot_over_n_and_the_base_cancels():
    g = torch.Generator().manual_seed(3)
    z = torch.randn(5, 3, dtype=torch.float64, generator=g, requires_grad=True)
    y = torch.randint(0, 3, (5,), generator=g)
    q = torch.randint(0, 50, (5,), generator=g).double().requires_grad_()
    d = torch.rand(5, dtype=torch.float64, generator=g).requires_grad_()
    sdm_loss(z, y, q, d).backward()
    p = sdm(z, q, d).detach()
    onehot = torch.nn.functional.one_hot(y, 3)
    assert torch.allclose(z.grad, d.detach()[:, None] * (p - onehot) / 5, atol=1e-14)
    assert q.grad is None
    assert d.grad is None


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    data=st.data(),
)
def test_any_shape_dtype_and_axis(shape, dtype, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    z = torch.randn(*reversed(shape)).permute(*reversed(range(len(shape)))).to(dtype)  # not contiguous
    if z.shape[dim] == 0:
        return
    rest = list(z.shape)
    del rest[dim]
    q, d = torch.randint(0, 9, rest), torch.rand(rest)
    p = sdm(z, q, d, dim=dim)
    assert p.shape == z.shape
    assert p.dtype == dtype
    assert torch.allclose(p.float().sum(dim), torch.ones(rest), atol=2e-2)
    moved = sdm(z.movedim(dim, -1), q, d).movedim(-1, dim)
    assert torch.allclose(p.float(), moved.float(), atol=1e-6)
    base = (q + 2.0).unsqueeze(dim)
    assert torch.allclose(base ** log_sdm(z, q, d, dim=dim).float(), p.float(), atol=2e-2)


def test_compiles_in_one_graph_and_maps_over_samples():
    z, q, d = torch.randn(4, 3), torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.rand(4)
    compiled = torch.compile(sdm, backend="eager", fullgraph=True)
    assert torch.equal(compiled(z, q, d), sdm(z, q, d))
    assert torch.allclose(torch.func.vmap(sdm)(z, q, d), sdm(z, q, d))


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((torch.zeros(2, 3), -1.0), ValueError, "q"),
        ((torch.zeros(2, 3), 1.0, 1.5), ValueError, "d"),
        ((torch.zeros(2, 3), torch.zeros(3)), ValueError, "q"),
        ((torch.zeros(2, 3), 1.0, torch.zeros(2, 3)), ValueError, "d"),
        ((torch.zeros(2, 3, dtype=torch.int64), 1.0), TypeError, "z"),
        ((torch.tensor(1.0), 1.0), ValueError, "dim"),
    ],
)
def test_bad_input_is_named(arguments, error, name):
    with pytest.raises(error, match=name):
        sdm(*arguments)


def test_bad_targets_are_named():
    with pytest.raises(ValueError, match="target"):
        sdm_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), 1.0)
    with pytest.raises(TypeError, match="target"):
        sdm_loss(torch.zeros(2, 3), torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="reduction"):
        sdm_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 1.0, reduction="median")
