"""The layer of one basis: its sum, its fused kernels against tensor operations, and the ways torch calls it."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.kan import cpu_kernels as kernels_module
from paperworks.kan.bases import Basis, KANLinear
from paperworks.kan.cpu_kernels import cpu_kernels
from paperworks.kan.fused import Run, Tile, composite

FAMILIES = ("bspline", "chebyshev", "fourier", "rbf", "wavelet")
needs_compiler = pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler: only tensor operations run")


class Rational(Basis):
    """A family of a user, with a parameter."""

    def __init__(self, num_functions):
        super().__init__(num_functions)
        self.pole = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, u):
        return torch.stack([u**k / (self.pole**2 + u * u) for k in range(self.num_functions)], -1)


def layer(*sizes, basis="rbf", **kw):
    return KANLinear(*sizes, basis, generator=torch.Generator().manual_seed(1), **kw)


def reference(module, x):
    """The equation, summand by summand."""
    u = torch.tanh(x) if module.squash == "tanh" else x.clamp(-1, 1)
    y = torch.einsum("...dk,odk->...o", module.basis(u), module.coef)
    return y if module.base_weight is None else y + torch.nn.functional.silu(x) @ module.base_weight.t()


@pytest.mark.parametrize("basis", [*FAMILIES, "relu_power", "silu_quad1"])
@pytest.mark.parametrize("squash", ["tanh", "clamp"])
@pytest.mark.parametrize("base", ["silu", None])
def test_equation(basis, squash, base):
    module = layer(5, 3, basis=basis, squash=squash, base=base, dtype=torch.float64)
    x = 2 * torch.randn(7, 5, dtype=torch.float64)
    assert torch.allclose(module(x), reference(module, x), atol=1e-12)


# The last sizes are beyond what the loops do as a whole, and need several blocks of rows.
SIZES = [(1, 1, 1), (70, 3, 5), (33, 6, 16), (40, 9, 40), (1500, 97, 20)]


@needs_compiler
@pytest.mark.parametrize("basis", FAMILIES)
@pytest.mark.parametrize("squash", ["tanh", "clamp"])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_are_the_composite(basis, squash, size):
    n, d, o = size
    module = layer(d, o, basis=basis, squash=squash)
    generator = torch.Generator().manual_seed(2)
    x = (2 * torch.randn(n, d, generator=generator)).requires_grad_()
    g = torch.randn(n, o, generator=generator)
    y = module(x)
    found = torch.autograd.grad(y, [x, *module.parameters()], g)
    exact = copy.deepcopy(module).double()
    at = x.detach().double().requires_grad_()
    wanted_y = reference(exact, at)
    wanted = torch.autograd.grad(wanted_y, [at, *exact.parameters()], g.double())
    assert (y - wanted_y).abs().max() <= 2e-6 * max(1, wanted_y.abs().max().item())
    for f, w in zip(found, wanted, strict=True):
        assert (f - w).abs().max() <= 2e-5 * max(1, w.abs().max().item())


@needs_compiler
@pytest.mark.parametrize("k", [4, 6, 10, 20])
def test_kernels_for_other_numbers_of_functions(k):
    for basis in FAMILIES:
        module = layer(20, 30, basis=basis, num_functions=k)
        x = torch.randn(50, 20, requires_grad=True)
        [found] = torch.autograd.grad(module(x).square().sum(), x)
        [wanted] = torch.autograd.grad(reference(module, x).square().sum(), x)
        assert torch.allclose(found, wanted, atol=2e-4, rtol=1e-4)


@needs_compiler
def test_not_a_number_stays_one_and_infinity_is_squashed():
    for basis in FAMILIES:
        for size in ((4, 3), (4, 40)):
            module = layer(*size, basis=basis, base=None)
            x = torch.zeros(3, 4)
            x[1, 2], x[2, 0] = float("nan"), float("inf")
            y = module(x)
            assert y[1].isnan().all()
            assert torch.allclose(y[2], reference(module, x)[2], atol=1e-5)


@needs_compiler
def test_only_one_block_of_the_basis_matrix_is_held(monkeypatch):
    module, made = layer(300, 40), []
    original = torch.Tensor.new_empty

    def noted(self, *size, **kw):
        tensor = original(self, *size, **kw)
        made.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", noted)
    x = torch.randn(4000, 300, requires_grad=True)
    module(x).sum().backward()
    assert max(made) <= kernels_module._TILE < 4000 * 300 * 8


@given(
    st.lists(st.integers(0, 5), min_size=0, max_size=3), st.sampled_from(FAMILIES),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_shapes_and_dtypes(leading, basis, dtype):
    module = layer(4, 3, basis=basis, dtype=dtype)
    x = torch.randn(*leading, 4).to(dtype).requires_grad_()
    y = module(x)
    assert y.shape == (*leading, 3)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_input_that_is_not_contiguous():
    module = layer(6, 3)
    x = torch.randn(6, 50).t()
    assert torch.allclose(module(x), module(x.contiguous()))
    wide = torch.randn(50, 12)[:, ::2]
    assert torch.allclose(module(wide), module(wide.contiguous()))


def test_gradient_of_a_sum_that_has_no_memory():
    module, x = layer(6, 3), torch.randn(9, 6, requires_grad=True)
    [found] = torch.autograd.grad(module(x).sum(), x)
    [wanted] = torch.autograd.grad(reference(module, x).sum(), x)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_second_derivatives():
    module, x = layer(3, 2, dtype=torch.float32), torch.randn(5, 3, requires_grad=True)

    def curvature(y):
        [slope] = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, module.coef])

    for f, w in zip(curvature(module(x)), curvature(reference(module, x)), strict=True):
        assert torch.allclose(f, w, atol=1e-4, rtol=1e-4)


def test_functional_transforms():
    module, x = layer(3, 2), torch.randn(5, 3)
    jacobian = torch.func.vmap(torch.func.jacrev(module))(x)
    assert jacobian.shape == (5, 2, 3)
    forward = torch.func.vmap(torch.func.jacfwd(module))(x)
    assert torch.allclose(jacobian, forward, atol=1e-5)


def test_autocast_and_compile_trace_the_same_sum():
    module, x = layer(3, 2), torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), module(x), atol=2e-2)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), module(x), atol=1e-5)


def test_copies_and_states():
    module, x = layer(3, 2), torch.randn(5, 3)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))
    fresh = KANLinear(3, 2, "rbf")
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x), module(x))
    assert set(module.state_dict()) == {"coef", "base_weight"}
    assert KANLinear(3, 2, "rbf", device="meta")(x.to("meta")).shape == (5, 2)


def test_a_generator_decides_the_weights_and_the_global_one_is_left_alone():
    state = torch.get_rng_state()
    first, second = layer(3, 2), layer(3, 2)
    assert torch.equal(first.coef, second.coef)
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_deviations():
    module = layer(100, 200)
    assert module.coef.std().item() == pytest.approx(0.1 / 10, rel=0.02)
    assert module.base_weight.abs().max().item() <= 1 / 10


def test_a_family_of_the_user_is_trained_with_the_layer():
    module = layer(4, 3, basis=Rational(5))
    x = torch.randn(6, 4)
    assert torch.allclose(module(x), reference(module, x), atol=1e-6)
    module(x).square().sum().backward()
    assert module.basis.pole.grad.abs() > 0


def test_composite_sorts_columns_of_several_runs():
    module = layer(4, 3)
    other = layer(4, 3, basis="fourier")
    x = torch.randn(6, 4)
    runs = (
        Run(module.basis, torch.tensor([3, 1], dtype=torch.int32)),
        Run(other.basis, torch.tensor([0, 2], dtype=torch.int32)),
    )
    u = torch.tanh(x)
    matrix = module.basis(u)
    matrix[:, [0, 2]] = other.basis(u)[:, [0, 2]]
    wanted = torch.einsum("ndk,odk->no", matrix, module.coef)
    assert torch.allclose(composite(x, None, [Tile(runs, module.coef)], "tanh"), wanted, atol=1e-5)


def test_without_a_compiler_tensor_operations_run(monkeypatch):
    module, x = layer(4, 3), torch.randn(6, 4)
    with_kernels = module(x)
    monkeypatch.setattr("paperworks.kan.fused._kernels", lambda device, dtype: None)
    assert torch.allclose(module(x), with_kernels, atol=1e-5)
