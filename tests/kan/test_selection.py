"""The layers that choose: the mixture, its counts, contribution, folding, what pruning leaves, states and errors."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.kan.bases import Basis, GaussianBasis
from paperworks.kan.conv import KANConv2d, SKANConv2d
from paperworks.kan.s_kan import FAMILIES, PrunedSKANLinear, SelectionError, SKANLinear

GENERATOR = torch.Generator()


def linear(d=6, o=5, **kw):
    GENERATOR.manual_seed(3)
    module = SKANLinear(d, o, generator=GENERATOR, **kw)
    module.logits.data.normal_(generator=GENERATOR)
    return module


def conv(c=4, o=6, k=3, **kw):
    GENERATOR.manual_seed(3)
    module = SKANConv2d(c, o, k, generator=GENERATOR, **kw)
    module.logits.data.normal_(generator=GENERATOR)
    return module


def edges(module, x):
    """alpha_dm phi^m_od(x_d), (N, M, O, D), from the equation."""
    u = torch.tanh(x)
    values = torch.stack([basis(u) for basis in module.bases], 1)
    return torch.einsum("nmdk,modk,dm->nmod", values, module.coef, module.weights())


def image_maps(module, x):
    """The convolution of each family, from the equation, group by group: (M, N, O, H, W)."""
    g, found = module.geometry, []
    per_in, per_out = module.in_channels // g.groups, module.out_channels // g.groups
    for m, basis in enumerate(module.bases):
        maps = basis(torch.tanh(x)) * module.weights()[:, m].view(1, -1, 1, 1, 1)
        outs = []
        for group in range(g.groups):
            part = maps[:, group * per_in : (group + 1) * per_in]
            weight = module.coef[m, group * per_out : (group + 1) * per_out]
            outs.append(
                sum(
                    torch.nn.functional.conv2d(part[..., k], weight[:, :, k], None, g.stride, g.padding, g.dilation)
                    for k in range(module.num_functions)
                )
            )
        found.append(torch.cat(outs, 1))
    return torch.stack(found)


def test_equation():
    module, x = linear(dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    wanted = edges(module, x).sum((1, 3)) + torch.nn.functional.silu(x) @ module.base_weight.t()
    assert torch.allclose(module(x), wanted, atol=1e-12)
    assert torch.allclose(module.float()(x.float()), wanted.float(), atol=1e-5)


def test_gradients_reach_coefficients_logits_and_input():
    module = linear(2, 2, dtype=torch.float64, num_functions=4, families=("bspline", "chebyshev", "fourier"))
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *module.parameters()))


def test_float32_gradients_are_those_of_float64():
    module = linear(7, 4)
    x = torch.randn(30, 7, requires_grad=True)
    found = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])
    exact, at = copy.deepcopy(module).double(), x.detach().double().requires_grad_()
    wanted = torch.autograd.grad(exact(at).square().sum(), [at, *exact.parameters()])
    for f, w in zip(found, wanted, strict=True):
        assert torch.allclose(f.double(), w, atol=1e-4, rtol=1e-4)


def test_counts():
    module = linear(2, 5)
    assert sum(p.numel() for p in module.parameters()) == 2 * 5 * (1 + 5 * 8) + 2 * 5
    module.select()
    assert sum(p.numel() for p in module.compact().parameters()) == 2 * 5 * 9


def test_weights_are_equal_at_the_start_and_one_hot_when_cold():
    module = SKANLinear(3, 2)
    assert torch.allclose(module.weights(), torch.full((3, 5), 0.2))
    module = linear()
    module.tau = 1e-3
    assert torch.equal(module.weights().round(), torch.nn.functional.one_hot(module.logits.argmax(1), 5))
    assert torch.allclose(module.weights().sum(1), torch.ones(6))


def test_entropy_is_between_certainty_and_all_equal():
    module = SKANLinear(3, 2)
    assert module.entropy().item() == pytest.approx(3 * torch.tensor(5.0).log().item())
    module.logits.data[:, 1] = 1e4
    assert module.entropy().item() == 0


def test_contribution():
    module, x = linear(), torch.randn(50, 6)
    wanted = edges(module, x).square().sum(2).mean(0).sqrt().t()
    assert torch.allclose(module.contribution(x), wanted, atol=1e-6)
    assert torch.allclose(module.contribution(x.view(5, 10, 6)), wanted, atol=1e-6)


def test_contribution_does_not_change_when_scale_moves_between_alpha_and_c():
    module, x = linear(2, 3, families=("rbf", "fourier")), torch.randn(40, 2)
    before, weights = module.contribution(x), module.weights().detach()
    module.logits.data.zero_()  # alpha = 1/2: move what it lost or gained into c
    module.coef.data.mul_((2 * weights).t()[:, None, :, None])
    assert torch.allclose(module.contribution(x), before, atol=1e-6)
    assert torch.equal(module.weights().argmax(1), torch.zeros(2, dtype=torch.int64))  # the weights tell nothing now


def test_selection_keeps_the_chosen_family_with_alpha_folded_in():
    module, x = linear(), torch.randn(9, 6)
    choice = torch.tensor([4, 0, 2, 2, 1, 3])
    wanted = edges(module, x)[:, choice, :, torch.arange(6)].sum(0) + torch.nn.functional.silu(x) @ (
        module.base_weight.t()
    )
    assert torch.equal(module.select(choice), choice)
    assert torch.equal(module.choice, choice)
    assert torch.allclose(module(x), wanted, atol=1e-5)
    module.tau = 7.0  # folded: the temperature has no say any more
    assert torch.allclose(module(x), wanted, atol=1e-5)
    assert not module.logits.requires_grad


def test_default_choices():
    module, x = linear(), torch.randn(30, 6)
    assert torch.equal(copy.deepcopy(module).select(x=x), module.contribution(x).argmax(1))
    assert torch.equal(copy.deepcopy(module).select(), module.weights().argmax(1))


def test_folding_changes_nothing_where_the_weights_are_one_hot():
    module, x = linear(), torch.randn(9, 6)
    module.tau = 1e-3
    before = module(x)
    module.select(x=x)
    assert torch.allclose(module(x), before, atol=1e-6)


def test_only_what_is_chosen_is_trained_after_selection():
    module, x = linear(), torch.randn(9, 6)
    choice = module.select()
    module(x).square().sum().backward()
    live = module.coef.grad.abs().sum((1, 3)) > 0
    assert torch.equal(live.t(), torch.nn.functional.one_hot(choice, 5).bool())


@given(st.lists(st.integers(0, 4), min_size=6, max_size=6), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=20, deadline=None)
def test_compact_is_the_same_function(choice, dtype):
    module = linear(dtype=dtype)
    module.select(torch.tensor(choice))
    pruned, x = module.compact(), torch.randn(2, 9, 6).to(dtype)
    assert isinstance(pruned, PrunedSKANLinear)
    assert (pruned(x) - module(x)).abs().max() < 1e-6
    assert pruned.choice.tolist() == choice


def test_compact_does_not_share_memory():
    module = linear()
    module.select()
    pruned = module.compact()
    pruned.coef.data.zero_()
    assert module.coef.abs().sum() > 0


@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("make", [linear, conv])
def test_state_round_trip(make, selected):
    module = make()
    if selected:
        module.select()
    x = torch.randn(2, 6) if make is linear else torch.randn(2, 4, 7, 7)
    fresh = SKANLinear(6, 5) if make is linear else SKANConv2d(4, 6, 3)
    fresh.load_state_dict(module.state_dict())
    assert torch.allclose(fresh(x), module(x), atol=1e-6)
    assert (fresh.choice is not None) == selected
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))


def test_state_of_a_pruned_layer_brings_its_choice():
    first, second = linear(), linear()
    first.select(torch.tensor([0, 1, 2, 3, 4, 0]))
    second.select(torch.tensor([4, 4, 4, 1, 1, 2]))
    a, b, x = first.compact(), second.compact(), torch.randn(5, 6)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x), b(x))


def test_families_of_the_user():
    class Sinc(Basis):
        def forward(self, u):
            return torch.sinc(u[..., None] * torch.arange(1, 1 + self.num_functions))

    module = linear(families=("rbf", Sinc(8), "chebyshev"))
    x = torch.randn(9, 6)
    wanted = edges(module, x).sum((1, 3)) + torch.nn.functional.silu(x) @ module.base_weight.t()
    assert torch.allclose(module(x), wanted, atol=1e-5)
    module.select(torch.tensor([1, 0, 1, 2, 2, 1]))
    assert torch.allclose(module.compact()(x), module(x), atol=1e-6)
    assert module.families == ("rbf", "Sinc", "chebyshev")


GEOMETRIES = [
    {},
    {"padding": 1},
    {"padding": "same"},
    {"padding": "valid", "stride": 2},
    {"stride": (2, 1), "groups": 2, "padding": (1, 0)},
    {"dilation": 2, "padding": "same"},
]


@pytest.mark.parametrize("options", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolution_is_the_equation(options, dtype):
    module, x = conv(**options, dtype=dtype), torch.randn(2, 4, 9, 8, dtype=dtype)
    plain = torch.nn.functional.conv2d(torch.nn.functional.silu(x), module.base_weight, None, *module.geometry)
    assert torch.allclose(module(x), image_maps(module, x).sum(0) + plain, atol=1e-5)
    assert torch.allclose(module(x[0]), module(x)[0], atol=1e-5)


@pytest.mark.parametrize("options", GEOMETRIES)
def test_convolution_gradients(options):
    module, x = conv(**options), torch.randn(2, 4, 9, 8, requires_grad=True)
    found = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])
    exact, at = copy.deepcopy(module).double(), x.detach().double().requires_grad_()
    wanted = torch.autograd.grad(exact(at).square().sum(), [at, *exact.parameters()])
    for f, w in zip(found, wanted, strict=True):
        assert (f - w).abs().max() <= 1e-4 * max(1, w.abs().max().item())


@pytest.mark.parametrize("options", GEOMETRIES)
def test_convolution_selects_and_prunes(options):
    module, x = conv(**options), torch.randn(3, 4, 9, 8)
    choice = module.select(x=x)
    assert choice.shape == (4,)
    assert torch.allclose(module.compact()(x), module(x), atol=1e-6)
    assert torch.allclose(module.double()(x.double()).float(), module.compact().float()(x), atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_even_kernels_keep_the_size_too():
    assert conv(k=2, padding="same")(torch.randn(1, 4, 5, 6)).shape == (1, 6, 5, 6)


def test_a_border_tap_says_nothing():
    module = KANConv2d(1, 1, 3, "chebyshev", padding=1)
    module.coef.data.zero_()[:, :, 0] = 1  # T_0 = 1 at every tap: the output counts the taps inside the image
    module.base_weight.data.zero_()
    assert module(torch.zeros(1, 1, 3, 3))[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_convolution_of_one_tap_is_the_linear_layer():
    module, x = conv(k=1), torch.randn(2, 4, 3, 3)
    flat = SKANLinear(4, 6)
    flat.coef.data.copy_(module.coef[..., 0, 0])
    flat.base_weight.data.copy_(module.base_weight[..., 0, 0])
    flat.logits.data.copy_(module.logits)
    rows = x.permute(0, 2, 3, 1)
    assert torch.allclose(module(x).permute(0, 2, 3, 1), flat(rows), atol=1e-5)
    assert torch.allclose(module.contribution(x), flat.contribution(rows), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: linear(families=("rbf", "spline")), ValueError, "spline"),
        (lambda: linear(families=("rbf", "rbf")), ValueError, "once"),
        (lambda: linear(families=()), ValueError, "families"),
        (lambda: linear(families="rbf"), ValueError, "families"),
        (lambda: linear(families=("rbf", GaussianBasis(6))), ValueError, "num_functions"),
        (lambda: linear(num_functions=7), ValueError, "even"),
        (lambda: linear(num_functions=2), ValueError, "at least 4"),
        (lambda: linear(tau=0.0), ValueError, "tau"),
        (lambda: linear(0), ValueError, "in_features"),
        (lambda: linear()(torch.zeros(2, 7)), ValueError, "wanted 6"),
        (lambda: linear().contribution(torch.zeros(0, 6)), ValueError, "no rows"),
        (lambda: linear().select(torch.tensor([0, 1, 2, 3, 4, 5])), ValueError, "choice"),
        (lambda: linear().select(torch.tensor([0, 1, 2, 3, 4, -1])), ValueError, "choice"),
        (lambda: linear().select(torch.tensor([0, 1])), ValueError, "shape"),
        (lambda: linear().select(torch.zeros(6)), TypeError, "integer"),
        (lambda: linear().compact(), SelectionError, "not selected"),
        (lambda: conv().compact(), SelectionError, "not selected"),
        (lambda: conv(groups=3), ValueError, "groups"),
        (lambda: conv(k=0), ValueError, "kernel_size"),
        (lambda: conv(padding="full"), ValueError, "padding"),
        (lambda: conv(padding="same", stride=2), ValueError, "stride"),
        (lambda: conv()(torch.zeros(2, 3, 5, 5)), ValueError, "4, H, W"),
        (lambda: conv()(torch.zeros(2, 4, 5, 5, dtype=torch.int32)), TypeError, "floating"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("make", [linear, conv])
def test_selecting_twice(make):
    module = make()
    module.select()
    with pytest.raises(SelectionError, match="already"):
        module.select()
    assert issubclass(SelectionError, ValueError)


def test_the_order_of_families_is_the_order_of_coefficients():
    assert FAMILIES == ("bspline", "chebyshev", "fourier", "rbf", "wavelet")
    assert [type(b).__name__[:3].lower() for b in linear().bases] == ["bsp", "che", "fou", "gau", "wav"]
