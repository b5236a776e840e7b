"""The C kernels give what tensor operations give, ties, NaN and far inputs included."""

import pytest
import torch

from paperworks import native
from paperworks.kan.af_kan import AFKANLayer
from paperworks.kan.af_kan.functional import Options, Parameters, hidden_composite
from paperworks.kan.af_kan.fused import _kernels, hidden
from paperworks.kan.pairs import ACTIVATIONS, COMBINATIONS
from paperworks.measure.stored_activations import stored_activations

pytestmark = pytest.mark.skipif(_kernels("cpu", torch.float32) is None, reason="no C compiler here")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(features, terms=6, attention=True, layer_norm=True, spread=0.05):
    low = (torch.arange(terms, dtype=torch.float64) - 3) / 3 + spread * random(terms, seed=1)
    found = [low, low + 4 / 3 + spread * random(terms, seed=2), random(terms, seed=3), random(1, seed=4)]
    found.append(torch.tensor(2.5, dtype=torch.float64) if attention else None)
    found += [1 + 0.1 * random(features, seed=5), 0.1 * random(features, seed=6)] if layer_norm else [None, None]
    return found


def both(x, given, options, dtype=torch.float32):
    """(output, gradients) fused in float32 and by composite in float64."""
    g = random(*x.shape, seed=9)
    found = []
    for function, kind in ((hidden, dtype), (hidden_composite, torch.float64)):
        leaves = [None if t is None else t.to(kind).clone().requires_grad_() for t in (x, *given)]
        z = function(leaves[0], Parameters(*leaves[1:]), options)
        if function is hidden:
            assert type(z.grad_fn).__name__ == "_FinishBackward"
        wanted = [t for t in leaves if t is not None]
        found.append([z.detach().double(), *(t.double() for t in torch.autograd.grad(z, wanted, g.to(kind)))])
    return found


def assert_alike(found, tolerance=3e-4):
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max().clamp(min=0.1)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("function", COMBINATIONS)
def test_every_pair_of_activation_and_function(activation, function):
    x = random(5, 37)
    x[:, :7] = -1  # ties
    assert_alike(both(x, parameters(37), Options(activation, function)))


@pytest.mark.parametrize("reduction", ["global_attn", "multistep"])
@pytest.mark.parametrize("norm", ["sample", "batch", None])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_every_reduction_and_norm(reduction, norm, layer_norm, activation):
    x = random(70, 33)
    x[:, :9] = -1
    given = parameters(33, attention=reduction == "global_attn", layer_norm=layer_norm)
    assert_alike(both(x, given, Options(activation, "quad1", reduction, norm)))


@pytest.mark.parametrize("features", [1, 15, 16, 17, 1024, 1025, 2500])
@pytest.mark.parametrize("terms", [1, 2, 7])
def test_rows_of_every_length(features, terms):
    assert_alike(both(random(3, features), parameters(features, terms), Options()), 1e-3)


def test_far_inputs_and_phases_leave_the_factored_form():
    x = random(4, 20)
    x[0, 0], x[1, 1], x[2, 2] = 300.0, -1e6, 25.0
    assert_alike(both(x, parameters(20), Options()))
    given = parameters(20)
    given[0][0] -= 40
    assert_alike(both(x[3:], given, Options()))


def test_a_nan_stays_in_its_row():
    layer = AFKANLayer(12, 3)
    x = random(3, 12).float()
    x[1, 4] = float("nan")
    y = layer(x)
    assert torch.isnan(y[1]).all()
    assert torch.isfinite(y[[0, 2]]).all()
    assert torch.isnan(AFKANLayer(12, 3, feature_norm="batch")(x)).all()


def test_ties_share_the_gradient_of_an_extreme():
    options = Options(feature_norm="batch", reduction="multistep")
    x = random(6, 10)
    x[:, ::2] = -3.0  # where the terms are least, in every row
    fused, composite = both(x, parameters(10, attention=False, layer_norm=False), options)
    torch.testing.assert_close(fused[1], composite[1], rtol=1e-3, atol=1e-6)
    assert composite[1][:, ::2].abs().max() > 0


def test_sums_do_not_depend_on_threads():
    before = torch.get_num_threads()
    layer, x = AFKANLayer(300, 8), random(90, 300).float()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            z = hidden(x, layer.parameters_as(torch.float32), layer.options())
            found.append([z, *torch.autograd.grad(z.square().sum(), [layer.phase_low, layer.norm.weight])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_second_derivatives_go_through_the_composite():
    layer = AFKANLayer(5, 3)
    exact = AFKANLayer(5, 3, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    found = []
    for one, dtype in ((layer, torch.float32), (exact, torch.float64)):
        x = random(4, 5).to(dtype).requires_grad_()
        [slope] = torch.autograd.grad(one(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [x, *one.parameters()], allow_unused=True))
    for a, b in zip(*found, strict=True):
        if b is not None:
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-5)


def test_it_keeps_little_for_the_backward_pass(monkeypatch):
    layer, x = AFKANLayer(128, 8), random(64, 128).float()
    fused = stored_activations(layer, x).bytes
    monkeypatch.setattr("paperworks.kan.af_kan.layer.hidden", hidden_composite)
    assert stored_activations(layer, x).bytes > 5 * fused


def test_without_a_compiler_the_composite_runs(monkeypatch):
    layer, x = AFKANLayer(9, 3), random(4, 9).float()
    fused = layer(x)
    monkeypatch.setenv("PAPERWORKS_NATIVE", "0")
    assert native.load.__name__ == "load"
    _kernels.cache_clear()
    try:
        assert _kernels("cpu", torch.float32) is None
        torch.testing.assert_close(layer(x), fused)
    finally:
        _kernels.cache_clear()
