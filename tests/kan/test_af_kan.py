"""Facts of AF-KAN's layer: its equations, counts, limits and gradients."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from paperworks.kan.af_kan import AFKAN, AFKANLayer, ReLUKANLayer, flop_count, parameter_count, replace_linear
from paperworks.kan.af_kan.functional import REDUCTIONS, min_max, pair_terms
from paperworks.kan.pairs import ACTIVATIONS, COMBINATIONS


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def drawn(layer, seed=0):
    """The layer with every parameter moved from where it starts."""
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p += 0.2 * randn(*p.shape, seed=seed + i).to(p)
    return layer


# --- the equations ---


def test_phases_and_temperature_start_as_published():
    layer = AFKANLayer(16, 4, dtype=torch.float64)
    torch.testing.assert_close(
        layer.phase_low, torch.tensor([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3], dtype=torch.float64)
    )
    torch.testing.assert_close(layer.phase_high - layer.phase_low, torch.full((6,), 4 / 3, dtype=torch.float64))
    assert layer.temperature.item() == 4.0
    assert layer.weight.abs().max() <= 1 / math.sqrt(16)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_layer_is_its_equations(reduction):
    layer = drawn(AFKANLayer(5, 3, grid_size=2, spline_order=1, reduction=reduction, dtype=torch.float64))
    x = randn(4, 5)
    expected = torch.empty(4, 3, dtype=torch.float64)
    silu, low, high = functional.silu, layer.phase_low, layer.phase_high
    for b in range(4):
        f = torch.stack([(silu(x[b, d] - low) * silu(high - x[b, d])) ** 2 for d in range(5)])
        f = (f - f.min()) / (f.max() - f.min())
        weight, bias = layer.reduce.weight, layer.reduce.bias
        if reduction == "multistep":
            s = torch.stack([sum(weight[0, j] * f[d, j] for j in range(3)) + bias[0] for d in range(5)])
        elif reduction == "global_attn":
            e = torch.stack([torch.exp((weight[0] @ f[d] + bias[0]) / max(layer.temperature, 1)) for d in range(5)])
            s = torch.stack([f[d].sum() * e[d] / e.sum() for d in range(5)])
        else:
            padded = torch.cat([torch.zeros(1, 3), f, torch.zeros(1, 3)])
            scores = sum(weight[:, 0, tap] * padded[tap : tap + 5] for tap in range(3)) + bias
            e = torch.exp(scores / max(layer.temperature, 1))
            s = (f * e / e.sum(1, keepdim=True)).sum(1)
        n = (s - s.mean()) / torch.sqrt(((s - s.mean()) ** 2).mean() + layer.norm.eps)
        expected[b] = layer.weight @ silu(n * layer.norm.weight + layer.norm.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("function", COMBINATIONS)
def test_function_types(function):
    u, v = 0.5 - 0.2, 0.9 - 0.5
    value = {
        "sum": u + v, "prod": u * v, "sum_prod": u + v + u * v, "quad1": (u * v) ** 2, "quad2": u * v + u * u + v * v,
        "cubic1": (u + v) * (u * u + v * v), "cubic2": (u * v) ** 3,
    }[function]  # fmt: skip
    x, low, high = (torch.tensor([t], dtype=torch.float64) for t in (0.5, 0.2, 0.9))
    assert pair_terms(x, low, high, "relu", function).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_features_span_the_unit_interval(norm):
    layer = AFKANLayer(6, 2, feature_norm=norm)
    f = layer.features(randn(3, 4, 6, dtype=torch.float32))
    assert f.shape == (3, 4, 6, 6)
    over = (2, 3) if norm == "sample" else (0, 1, 2, 3)
    assert f.amin(over).eq(0).all()
    assert f.amax(over).eq(1).all()


def test_equal_features_give_zero_and_no_nan():
    layer = AFKANLayer(3, 2, grid_size=1, spline_order=0)
    x = torch.full((2, 3), 0.4, requires_grad=True)
    assert layer.features(x).eq(0).all()
    y = layer(x)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


def test_the_gradient_of_an_extreme_is_shared_by_ties():
    x = torch.tensor([[-1.0, -1.0, 0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    f = min_max((x**2)[..., None], "sample")
    [gradient] = torch.autograd.grad(f[0, 2, 0], x)
    assert gradient[0, 0] == gradient[0, 1] == 0  # 0.25 is the least here, and 4 the largest
    f = min_max(x[..., None], "sample")
    [gradient] = torch.autograd.grad(f[0, 2, 0], x)
    assert gradient[0, 0] == gradient[0, 1] != 0


def test_the_output_depends_on_batch_mates_only_as_published():
    x = randn(8, 10)
    x[0] /= 3
    for norm, depends in (("batch", True), ("sample", False), (None, False)):
        layer = AFKANLayer(10, 3, feature_norm=norm, dtype=torch.float64)
        change = (layer(x)[0] - layer(x[:1])[0]).abs().max().item()
        assert (change > 1e-5) if depends else (change < 1e-12)


def test_a_token_is_normalised_by_itself():
    layer = AFKANLayer(6, 4, dtype=torch.float64)
    x = randn(2, 5, 6)
    torch.testing.assert_close(layer(x)[1, 3], layer(x[1, 3]))


def test_global_attention_is_blind_to_its_bias():
    layer, x = AFKANLayer(7, 3), randn(4, 7, dtype=torch.float32)
    before = layer(x)
    before.sum().backward()
    assert layer.reduce.bias.grad.item() == 0
    with torch.no_grad():
        layer.reduce.bias += 5
    torch.testing.assert_close(layer(x), before)


def test_the_temperature_is_bounded_below():
    layer = drawn(AFKANLayer(9, 3, temperature_min=2.0, dtype=torch.float64))
    x = randn(4, 9)
    with torch.no_grad():
        layer.temperature.fill_(0.5)
    cold = layer(x)
    cold.sum().backward()
    assert layer.temperature.grad.item() == 0
    with torch.no_grad():
        layer.temperature.fill_(2.0)
    torch.testing.assert_close(layer(x), cold)


# --- counts ---


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("grid", [(3, 3), (1, 0), (5, 2)])
def test_the_formula_counts_the_layer(reduction, layer_norm, grid):
    options = {"grid_size": grid[0], "spline_order": grid[1], "reduction": reduction, "layer_norm": layer_norm}
    layer = AFKANLayer(7, 4, **options)
    assert sum(p.numel() for p in layer.parameters()) == parameter_count(7, 4, **options)
    layer(torch.randn(2, 7)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters()), "nothing is created that is not used"


def test_published_counts():
    with torch.device("meta"):
        ours = AFKAN([784, 64, 10])
        relu = nn.Sequential(ReLUKANLayer(784, 64), ReLUKANLayer(64, 10))
    assert sum(p.numel() for p in ours.parameters()) == 52_552
    assert sum(p.numel() for p in relu.parameters()) == 316_842


def test_operations():
    found = flop_count(784, 64, batch=2)
    assert found["linear"] == 2 * 2 * 784 * 64
    assert found["features"] == 2 * 784 * 6 * (2 + 2 + 2)
    assert found["total"] == sum(v for k, v in found.items() if k != "total")
    assert flop_count(5, 2, batch=3)["total"] == 3 * flop_count(5, 2)["total"]
    assert flop_count(5, 2, layer_norm=False)["layer_norm"] == 0


# --- ReLU-KAN ---


def test_relu_kan_terms_peak_at_one():
    layer = ReLUKANLayer(2, 3, layer_norm=False, dtype=torch.float64)
    middle = (layer.phase_low[0] + layer.phase_high[0]) / 2
    f = layer.features(middle[:, None].expand(-1, 2))
    torch.testing.assert_close(f[:, 0].diagonal(), torch.ones(6, dtype=torch.float64))
    assert f.max() <= 1 + 1e-12
    assert layer.features(torch.full((1, 2), -9.0)).eq(0).all()


def test_relu_kan_takes_the_weights_of_a_convolution_over_the_reshaped_terms():
    layer = ReLUKANLayer(4, 3, grid_size=2, spline_order=1, dtype=torch.float64)
    conv = nn.Conv2d(1, 3, (3, 4), dtype=torch.float64)
    layer.load_state_dict(layer.state_dict() | {"weight": conv.weight.reshape(3, -1), "bias": conv.bias})
    x = randn(5, 4)
    torch.testing.assert_close(layer(x), conv(layer.features(x).reshape(5, 1, 3, 4)).reshape(5, 3))


# --- at home in torch ---


@settings(max_examples=25)
@given(
    lead=st.lists(st.integers(0, 3), max_size=3),
    features=st.integers(1, 5),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    reduction=st.sampled_from(REDUCTIONS),
    norm=st.sampled_from(["sample", None]),
)
def test_shapes_and_dtypes(lead, features, dtype, reduction, norm):
    layer = AFKANLayer(features, 2, reduction=reduction, feature_norm=norm, grid_size=2, spline_order=1, dtype=dtype)
    x = torch.zeros(features, *lead, dtype=dtype).movedim(0, -1)  # not contiguous
    y = layer(x)
    assert y.shape == (*lead, 2)
    assert y.dtype == dtype


def test_an_empty_batch_under_the_published_norm():
    assert AFKANLayer(3, 2, feature_norm="batch")(torch.zeros(0, 3)).shape == (0, 2)


def test_autocast_computes_the_terms_in_float32():
    layer = AFKANLayer(8, 4, activation="leaky_relu", function="cubic2", feature_norm=None)
    x = 20 * randn(3, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, f = layer(x), layer.features(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(f, layer.features(x))
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_copies_and_state(reduction):
    layer = drawn(AFKANLayer(6, 3, reduction=reduction))
    x = randn(4, 6, dtype=torch.float32)
    fresh = AFKANLayer(6, 3, reduction=reduction)
    fresh.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert torch.equal(other(x), layer(x))


def test_double_backward_and_transforms():
    layer = drawn(AFKANLayer(4, 2, dtype=torch.float64))
    x = randn(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    single = copy.deepcopy(layer).float()
    jacobian = torch.func.vmap(torch.func.jacrev(single))(x.float())
    torch.testing.assert_close(jacobian.double(), torch.func.vmap(torch.func.jacrev(layer))(x), rtol=1e-4, atol=1e-5)


def test_compiled_as_eager():
    layer = drawn(AFKANLayer(6, 3))
    x = randn(4, 6, dtype=torch.float32)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_frozen_phases_stay():
    layer = AFKANLayer(6, 3, train_phases=False)
    layer(randn(4, 6, dtype=torch.float32)).sum().backward()
    assert layer.phase_low.grad is None
    assert layer.phase_high.grad is None


def test_what_weight_decay_leaves_alone():
    assert AFKANLayer(3, 2).no_weight_decay() == {"phase_low", "phase_high", "temperature"}
    assert AFKANLayer(3, 2, reduction="multistep").no_weight_decay() == {"phase_low", "phase_high"}


def test_it_takes_the_place_of_linear_layers():
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.ModuleDict({"head": nn.Linear(8, 2)})["head"])
    report = replace_linear(model, AFKANLayer, exclude="2")
    assert report.replaced == ["0"]
    assert isinstance(model[0], AFKANLayer)
    assert model(torch.randn(3, 5)).shape == (3, 2)


def test_it_learns_what_a_linear_layer_cannot():
    x = 2 * torch.rand(128, 2) - 1
    label = (x.abs().sum(1) > 1).long()
    network = AFKAN([2, 8, 2], feature_norm=None, reduction="multistep", layer_norm=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-2)
    for _ in range(100):
        optimizer.zero_grad()
        functional.cross_entropy(network(x), label).backward()
        optimizer.step()
    assert (network(x).argmax(1) == label).float().mean() > 0.9


def test_layer_norm_over_two_inputs_leaves_a_sign():
    # s - mean is +-(s_0 - s_1) / 2: after LayerNorm only which of the two is larger is left
    layer = AFKANLayer(2, 1, feature_norm=None, dtype=torch.float64)
    layer.norm.eps = 0.0
    assert len(torch.unique(layer(randn(50, 2)).round(decimals=6))) <= 2


# --- bad input ---


def test_errors_name_the_argument_and_what_is_allowed():
    with pytest.raises(ValueError, match=r"activation: got 'swish', wanted one of 'silu', 'relu'"):
        AFKANLayer(3, 2, activation="swish")
    with pytest.raises(ValueError, match="function: got 'quad3'"):
        AFKANLayer(3, 2, function="quad3")
    with pytest.raises(ValueError, match="reduction: got 'self_attn', wanted one of 'global_attn'"):
        AFKANLayer(3, 2, reduction="self_attn")
    with pytest.raises(ValueError, match="feature_norm: got 'layer', wanted one of 'sample', 'batch', None"):
        AFKANLayer(3, 2, feature_norm="layer")
    with pytest.raises(ValueError, match="grid_size: got 0"):
        AFKANLayer(3, 2, grid_size=0)
    with pytest.raises(ValueError, match="spline_order: got -1"):
        ReLUKANLayer(3, 2, spline_order=-1)
    with pytest.raises(ValueError, match="temperature_min: got 0"):
        AFKANLayer(3, 2, temperature_min=0)
    with pytest.raises(ValueError, match="widths: got \\[3\\]"):
        AFKAN([3])
    with pytest.raises(ValueError, match="reduction: got 'local_attn'"):
        parameter_count(3, 2, reduction="local_attn")
    with pytest.raises(ValueError, match="batch: got 0"):
        flop_count(3, 2, batch=0)


def test_errors_of_a_call():
    layer = AFKANLayer(3, 2)
    with pytest.raises(ValueError, match=r"x: got shape \(4, 2\)"):
        layer(torch.zeros(4, 2))
    with pytest.raises(TypeError, match=r"x: got torch\.int64"):
        layer(torch.zeros(4, 3, dtype=torch.long))
    alone = AFKANLayer(1, 2, grid_size=1, spline_order=0, feature_norm="batch")
    with pytest.raises(ValueError, match="feature_norm='batch': got one feature value"):
        alone(torch.zeros(1, 1))
    assert ACTIVATIONS.keys() >= {"silu", "tanh"}
