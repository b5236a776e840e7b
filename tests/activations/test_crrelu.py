"""CRReLU: its equation, limits, gradients, and the fused kernel against plain tensor operations."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks.activations import crrelu as module
from paperworks.activations.crrelu import CRReLU, EAFOActivation, crrelu, no_weight_decay


def formula(x, eps):
    return torch.relu(x) + eps * x * torch.exp(-(x**2) / 2)


def test_is_the_equation():
    x = torch.linspace(-6, 6, 4001)
    for eps in (-1.0, 0.01, 2.2):
        torch.testing.assert_close(crrelu(x, eps), formula(x, eps), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(crrelu(x.double(), 0.3), formula(x.double(), 0.3), rtol=1e-14, atol=1e-15)


def test_derivatives_are_the_equations_and_the_slope_at_zero_is_eps():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], requires_grad=True)
    eps = torch.tensor([0.3], requires_grad=True)
    g = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    dx, d_eps = torch.autograd.grad(crrelu(x, eps), (x, eps), g)
    bell = torch.exp(-(x.detach() ** 2) / 2)
    torch.testing.assert_close(dx, g * ((x > 0) + 0.3 * (1 - x.detach() ** 2) * bell))
    torch.testing.assert_close(d_eps, (g * x.detach() * bell).sum()[None])
    assert dx[2] / g[2] == pytest.approx(0.3)


def test_is_increasing_for_positive_x_exactly_while_eps_is_in_its_range():
    x = torch.linspace(1e-6, 6, 60001, dtype=torch.float64)
    top = math.exp(1.5) / 2
    for eps, increasing in ((-1.0, True), (top, True), (-1.001, False), (top + 0.001, False)):
        assert bool((crrelu(x, eps).diff() > 0).all()) is increasing


def test_bound_and_minimum():
    x = torch.linspace(-8, 8, 160001, dtype=torch.float64)
    for eps in (0.5, -0.7):
        gap = (crrelu(x, eps) - torch.relu(x)).abs()
        assert gap.max() == pytest.approx(abs(eps) * math.exp(-0.5), rel=1e-9)
        assert gap[x.abs() > 4].max() < abs(eps) * 4 * math.exp(-8) * (1 + 1e-9)
    y = crrelu(x, 0.5)
    assert x[y.argmin()] == pytest.approx(-1, abs=1e-4)
    assert y.min() == pytest.approx(-0.5 * math.exp(-0.5))


def test_eps_zero_is_relu():
    x = torch.randn(100)
    assert torch.equal(crrelu(x, 0.0), torch.relu(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_extremes_stay_clean(dtype):
    x = torch.tensor([300.0, -300.0, math.inf, -math.inf, 0.0], dtype=dtype, requires_grad=True)
    eps = torch.tensor([0.5], requires_grad=True)
    y = crrelu(x, eps)
    dx, d_eps = torch.autograd.grad(y.sum(), (x, eps))
    assert y.tolist() == [300, 0, math.inf, 0, 0]
    assert dx.tolist() == [1, 0, 1, 0, 0.5]
    assert d_eps == 0
    assert crrelu(torch.tensor([math.nan], dtype=dtype), eps).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_once(dtype):
    x = torch.linspace(-5, 5, 1001).to(dtype)
    assert torch.equal(crrelu(x, 0.37), formula(x.float(), 0.37).to(dtype))


layouts = st.sampled_from(["plain", "channels_last", "permuted", "strided", "expanded gradient"])


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    layout=layouts,
    per_channel=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_fused_pass_is_the_composite_for_any_layout(shape, layout, per_channel, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "permuted":
        x = x.permute(2, 0, 3, 1)
    elif layout == "strided":
        x = x[::2, :, 1:]
    eps = torch.randn(x.shape[1] if per_channel else 1, generator=generator).view(1, -1, 1, 1)
    g = torch.randn(x.shape, generator=generator).to(dtype)
    if layout == "expanded gradient":
        g = g.sum().expand(x.shape)
    results = []
    for function in (crrelu, module._composite):
        leaves = x.detach().requires_grad_(), eps.clone().requires_grad_()
        y = function(*leaves)
        results.append((y.detach(), *torch.autograd.grad(y, leaves, g)))
    assert results[0][0].stride() == F.gelu(x).stride() or layout == "strided" or min(x.shape) < 2
    for got, want in zip(*results, strict=True):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2e-2 if got.dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "channel_dim"), [((3, 70000), None), ((300, 150), 1), ((4, 6, 9000), 1)])
def test_d_eps_does_not_depend_on_the_threads(shape, channel_dim):
    if module._kernels("cpu", torch.float32) is None:
        pytest.skip("no C compiler: torch's own sums may depend on the threads")
    x, g = torch.randn(shape), torch.randn(shape)
    m = CRReLU(num_parameters=shape[channel_dim] if channel_dim else 1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.autograd.grad(m(x), m.eps, g)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    exact = g.double() * x.double() * torch.exp(-(x.double() ** 2) / 2)
    exact = exact.sum([d for d in range(x.dim()) if d != channel_dim])
    torch.testing.assert_close(found[0].double(), exact.reshape(-1), rtol=1e-5, atol=2e-4)


def test_only_x_is_kept_for_the_backward_pass():
    kept = []
    x, eps = torch.randn(50, 60, requires_grad=True), torch.tensor([0.2], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        crrelu(x, eps)
    if module._kernels("cpu", torch.float32) is None:
        pytest.skip("no C compiler: plain tensor operations keep more")
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), eps.data_ptr()}


def test_without_a_compiler_the_results_are_the_same(monkeypatch):
    x, eps = torch.randn(40, 50, requires_grad=True), torch.tensor([0.2], requires_grad=True)
    fused = torch.autograd.grad(crrelu(x, eps).pow(2).sum(), (x, eps))
    monkeypatch.setenv("PAPERWORKS_NATIVE", "0")
    module._kernels.cache_clear()
    try:
        assert module._kernels("cpu", torch.float32) is None
        plain = torch.autograd.grad(crrelu(x, eps).pow(2).sum(), (x, eps))
    finally:
        module._kernels.cache_clear()
    torch.testing.assert_close(fused, plain)


def test_gradcheck_and_gradgradcheck():
    x = torch.tensor([-2.0, -0.5, 0.3, 1.7], dtype=torch.float64, requires_grad=True)
    for eps in (torch.tensor([0.4]), torch.tensor([0.1, 0.2, -0.3, 0.4])):
        eps = eps.double().requires_grad_()
        assert torch.autograd.gradcheck(crrelu, (x, eps))
        assert torch.autograd.gradgradcheck(crrelu, (x, eps))


def test_second_derivatives_through_the_fused_pass():
    x, eps = torch.randn(5, 6, requires_grad=True), torch.randn(6, requires_grad=True)

    def second(function):
        first = torch.autograd.grad(function(x, eps).pow(3).sum(), (x, eps), create_graph=True)
        return torch.autograd.grad(first[0].sum() + first[1].pow(2).sum(), (x, eps))

    torch.testing.assert_close(second(crrelu), second(module._composite), rtol=1e-4, atol=1e-4)


def test_torch_func_forward_mode_and_batched_gradients():
    x, eps = torch.randn(3, 4), torch.tensor([0.3])
    one = torch.func.grad(lambda t, e: crrelu(t, e).sum(), argnums=1)
    torch.testing.assert_close(
        torch.func.vmap(one, in_dims=(0, None))(x, eps).squeeze(), (x * torch.exp(-(x**2) / 2)).sum(1)
    )
    _, tangent = torch.func.jvp(lambda t: crrelu(t, eps), (x,), (torch.ones_like(x),))
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(tangent, torch.autograd.grad(crrelu(leaf, eps).sum(), leaf)[0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(crrelu(dual, 0.3)).tangent, tangent)
    row = x[0]
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(lambda t: crrelu(t, eps), row, vectorize=True), torch.diag(tangent[0])
    )


def test_compiles_in_one_graph_with_a_module_and_with_a_number_that_varies():
    x = torch.randn(4, 6, requires_grad=True)
    m = CRReLU(0.2)
    y = torch.compile(m, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, m(x))
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), (x, m.eps)), torch.autograd.grad(m(x).sum(), (x, m.eps)), rtol=1e-5, atol=1e-6
    )
    compiled = torch.compile(crrelu, backend="aot_eager", fullgraph=True)
    for eps in (0.1, 0.2, -0.3):
        torch.testing.assert_close(compiled(x, eps), crrelu(x, eps))


def test_export_and_fake_tensors_see_tensor_operations():
    m, x = CRReLU(0.2), torch.randn(3, 5)
    torch.testing.assert_close(torch.export.export(m, (x,)).module()(x), m(x))
    assert m.to("meta")(x.to("meta")).shape == x.shape


def test_channels():
    m = CRReLU(num_parameters=3)
    m.eps.data = torch.tensor([0.0, 0.5, -0.5])
    x = torch.randn(2, 3, 4, 5)
    y = m(x)
    for c in range(3):
        torch.testing.assert_close(y[:, c], formula(x[:, c], m.eps[c]))
    last = CRReLU(num_parameters=3, channel_dim=-1)
    last.eps.data = m.eps.data
    torch.testing.assert_close(last(x.movedim(1, -1)), y.movedim(1, -1))


def test_state_dict_deepcopy_pickle_and_options():
    m = CRReLU(0.3, num_parameters=4, channel_dim=-1, dtype=torch.float64)
    assert m.eps.dtype == torch.float64
    assert {name: tuple(p.shape) for name, p in m.state_dict().items()} == {"eps": (4,)}
    other = CRReLU(num_parameters=4, channel_dim=-1)
    buffer = io.BytesIO()
    torch.save(m.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(2, 4)
    for copied in (other, copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        torch.testing.assert_close(copied(x), m(x))
    assert m(x).dtype == torch.float32
    assert CRReLU(device="meta").eps.is_meta
    assert CRReLU().eps.tolist() == [pytest.approx(0.01)]
    fixed = CRReLU(learnable=False)
    assert not fixed.eps.requires_grad
    assert "eps" in fixed.state_dict()


def test_autocast_keeps_the_type_of_the_input():
    net = nn.Sequential(nn.Linear(6, 5), CRReLU())
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(3, 6))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert net[1].eps.grad.dtype == torch.float32


def test_one_number_an_activation_is_all_it_adds():
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.GELU())
    before = sum(p.numel() for p in net.parameters())
    net[1], net[3] = CRReLU(), CRReLU()
    assert sum(p.numel() for p in net.parameters()) == before + 2


def test_names_without_weight_decay():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos = nn.Parameter(torch.zeros(1))
            self.block = nn.Sequential(nn.Linear(2, 2), CRReLU())
            self.act = EAFOActivation("gelu")

        def no_weight_decay(self):
            return {"pos"}

    assert CRReLU().no_weight_decay() == {"eps"}
    assert no_weight_decay(Root()) == {"pos", "block.1.eps", "act.eps"}
    assert no_weight_decay(CRReLU()) == {"eps"}


def test_default_dtype_and_device_do_not_reach_the_kernels():
    x, m = torch.randn(30, 40, requires_grad=True), CRReLU(0.2)
    want = torch.autograd.grad(m(x).sum(), (x, m.eps))
    torch.set_default_dtype(torch.float64)
    try:
        got = torch.autograd.grad(m(x).sum(), (x, m.eps))
        torch.testing.assert_close(crrelu(x, 0.2), m(x))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("eps", [math.nan, math.inf, -math.inf])
def test_eps_that_is_not_finite(eps):
    with pytest.raises(ValueError, match=r"eps.*finite"):
        CRReLU(eps)
    with pytest.raises(ValueError, match=r"eps.*finite"):
        crrelu(torch.ones(2), eps)


def test_other_errors_name_the_argument():
    with pytest.raises(TypeError, match=r"x.*int64.*floating"):
        crrelu(torch.arange(3), 0.1)
    with pytest.raises(TypeError, match=r"eps.*int64"):
        crrelu(torch.ones(3), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"eps.*\(2, 3\).*\(3,\)"):
        crrelu(torch.ones(3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="num_parameters: got 0"):
        CRReLU(num_parameters=0)
    with pytest.raises(ValueError, match=r"num_parameters: got 3 for 4 channels"):
        CRReLU(num_parameters=3)(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"channel_dim: got 1"):
        CRReLU(num_parameters=3)(torch.ones(3))
