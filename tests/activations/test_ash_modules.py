"""ASH layers as torch modules: what they compute, their state, and the transformations that torch puts them through."""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from paperworks.activations.ash import (
    ASH,
    CentredUnitRows,
    HardASH,
    TopPercent,
    ash,
    hard_ash,
    no_weight_decay,
    z_from_percent,
)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


LAYERS = {
    "ASH": ASH,
    "leaky": lambda **kw: ASH(1.5, 0.4, leak=0.01, **kw),
    "channels": lambda **kw: ASH(num_parameters=3, **kw),
    "HardASH": HardASH,
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


# ---- what they compute -----------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_published_code():
    layer = ASH()
    assert {name: (p.shape, p.item()) for name, p in layer.named_parameters()} == {
        "alpha": ((1,), 1.0),
        "z_k": ((1,), pytest.approx(1e-3)),
    }


def test_layers_are_their_functions():
    x = randn(2, 3, 4, 5)
    assert torch.equal(ASH(0.7, 0.2, leak=0.1, eps=0.5)(x), ash(x, 0.7, 0.2, leak=0.1, eps=0.5))
    assert torch.equal(HardASH(0.7, 0.2, max_value=1.5)(x), hard_ash(x, 0.7, 0.2, max_value=1.5))


@pytest.mark.parametrize(("channel_dim", "shape"), [(1, (3, 1, 1)), (-2, (4, 1)), (3, (5,))])
def test_a_pair_a_channel(channel_dim, shape):
    x = randn(2, 3, 4, 5)
    layer = ASH(num_parameters=max(shape), channel_dim=channel_dim)
    with torch.no_grad():
        layer.alpha.copy_(torch.rand(max(shape), generator=torch.Generator().manual_seed(1)) + 0.5)
        layer.z_k.copy_(randn(max(shape), seed=2))
    torch.testing.assert_close(layer(x), ash(x, layer.alpha.view(shape), layer.z_k.view(shape)))
    tokens = ASH(num_parameters=4, channel_dim=1)
    assert tokens(randn(2, 4, 6)).shape == (2, 4, 6)  # a pair a place, statistics a token


def test_training_and_evaluation_are_one_function():
    x, layer = randn(4, 3, 5, 5), ASH()
    assert torch.equal(layer.train()(x), layer.eval()(x))
    assert list(layer.buffers()) == []


def test_two_scalars_a_layer():
    def net(activation):
        return nn.Sequential(*[m for _ in range(49) for m in (nn.Conv2d(2, 2, 1), activation())])

    count = [sum(p.numel() for p in net(a).parameters()) for a in (nn.ReLU, ASH)]
    assert count[1] - count[0] == 98


def test_both_parameters_learn():
    layer, x = ASH(), randn(8, 3, 6, 6)
    before = copy.deepcopy(layer.state_dict())
    target = ash(x, 2.0, 0.8)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimiser.step()
    assert before["alpha"].item() == 1
    assert layer.alpha.item() == pytest.approx(2.0, rel=0.05)
    assert layer.z_k.item() == pytest.approx(0.8, rel=0.05)


def test_fixed_percentile_has_one_trained_scalar():
    layer = ASH(z_k=z_from_percent(10), learn_z=False)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["alpha"]
    assert [p for p in HardASH().parameters() if p.requires_grad] == []
    layer(randn(2, 9)).sum().backward()
    assert layer.z_k.grad is None


def test_percent_is_the_normal_share_above_z():
    assert ASH(z_k=1.959964).percent.item() == pytest.approx(2.5, abs=1e-5)
    layer = ASH(num_parameters=3)
    with torch.no_grad():
        layer.z_k.copy_(torch.tensor([0.0, z_from_percent(10), z_from_percent(99)]))
    torch.testing.assert_close(layer.percent, torch.tensor([50.0, 10.0, 99.0]))
    assert not layer.percent.requires_grad


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": 0.0}, "alpha must be positive.*0"),
        ({"alpha": math.nan}, "alpha must be positive"),
        ({"z_k": math.inf}, "z_k must be finite"),
        ({"num_parameters": 0}, "num_parameters"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"dims": (0, 2)}, r"dims.*batch.*\(0, 2\)"),
        ({"dims": "all"}, "dims.*'all'"),
        ({"leak": 1.0}, r"leak must be in \[0, 1\)"),
    ],
)
def test_bad_construction_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        ASH(**arguments)
    if "leak" not in arguments:
        with pytest.raises(ValueError, match=words):
            HardASH(**arguments)


def test_max_value_must_be_positive():
    with pytest.raises(ValueError, match="max_value must be positive, got 0"):
        HardASH(max_value=0)
    with pytest.raises(ValueError, match="max_value must be positive, got 0"):
        hard_ash(randn(2, 3), 1.0, 0.0, max_value=0)


def test_channel_count_mismatch_says_got_and_wanted():
    with pytest.raises(ValueError, match=r"num_parameters=4 channels along dim 1.*\(2, 3, 5, 5\)"):
        ASH(num_parameters=4)(randn(2, 3, 5, 5))
    with pytest.raises(ValueError, match="along dim 4"):
        ASH(num_parameters=4, channel_dim=4)(randn(2, 4))


# ---- state -----------------------------------------------------------------------------------------------------------


@each_layer
def test_state_round_trips(make):
    layer, other = make(), make()
    with torch.no_grad():
        layer.alpha.add_(0.5)
        layer.z_k.sub_(0.3)
    assert list(layer.state_dict()) == ["alpha", "z_k"]
    other.load_state_dict(layer.state_dict())
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    third = make()
    third.load_state_dict(torch.load(saved, weights_only=True))
    x = randn(2, 3, 4, 4)
    for again in (other, third, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x), layer(x))
        assert repr(again) == repr(layer)


def test_repr_shows_what_matters():
    assert repr(ASH(leak=0.1)) == "ASH(alpha=1, z_k=0.001, dims='auto', leak=0.1)"
    assert repr(HardASH(num_parameters=3)) == "HardASH(num_parameters=3, channel_dim=1, dims='auto', max_value=2.0)"
    assert repr(TopPercent(2.5)) == "TopPercent(percent=2.5, dims='auto')"


@each_layer
def test_device_and_dtype(make):
    layer = make(device="meta", dtype=torch.float64)
    assert layer.alpha.device.type == "meta"
    assert layer.z_k.dtype == torch.float64
    y = layer(torch.empty(2, 3, 4, 4, device="meta", dtype=torch.float64))
    assert (y.shape, y.device.type) == ((2, 3, 4, 4), "meta")


@each_layer
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_output_has_the_dtype_of_the_input(make, x_dtype, dtype):
    layer, x = make(dtype=dtype), randn(2, 3, 4, 4, dtype=x_dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == x_dtype
    y.sum().backward()
    assert x.grad.dtype == x_dtype
    assert all(p.grad.dtype == dtype for p in layer.parameters() if p.requires_grad)


def test_weight_decay_is_spared():
    model = nn.Sequential(nn.Linear(3, 3), ASH(), nn.Sequential(HardASH()))
    assert ASH().no_weight_decay() == {"alpha", "z_k"}
    assert no_weight_decay(model) == {"1.alpha", "1.z_k", "2.0.alpha", "2.0.z_k"}
    assert no_weight_decay(ASH()) == {"alpha", "z_k"}


# ---- torch's transformations -----------------------------------------------------------------------------------------


@each_layer
def test_compiles_without_a_break_and_trains(make):
    torch._dynamo.reset()
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, g = randn(2, 3, 5, 5), randn(2, 3, 5, 5, seed=1)
    results = []
    for run in (layer, compiled):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        leaves = [leaf, *(p for p in layer.parameters() if p.requires_grad)]
        results.append((y, *torch.autograd.grad(y, leaves, g)))
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(eager, graph)


def test_compiles_for_any_batch_size():
    torch._dynamo.reset()
    compiled = torch.compile(ASH(), fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5, 7):
        x = randn(batch, 3, 4, 4)
        torch.testing.assert_close(compiled(x), ash(x, 1.0, 1e-3))


def test_operators_are_registered_as_torch_wants_them():
    x, one = randn(2, 3, 4, 4), torch.ones(1)
    ops = torch.ops.paperworks
    checks = ("test_schema", "test_faketensor")
    arguments = (x, one, one, 1, 1, 0.1, 1e-6)
    torch.library.opcheck(ops.ash_forward.default, arguments, test_utils=checks)
    y, statistics = ops.ash_forward(*arguments)
    torch.library.opcheck(ops.ash_backward.default, (y, x, one, one, statistics, 1, 1, 0.1, 1e-6), test_utils=checks)
    torch.library.opcheck(ops.ash_frozen.default, (x, one, one, 1, 0.1), test_utils=checks)


@each_layer
def test_export_needs_no_operator_of_our_own(make):
    x = randn(2, 3, 4, 4)
    program = torch.export.export(make(), (x,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called
    assert all(name.startswith("aten.") for name in called)
    torch.testing.assert_close(program.module()(x), make()(x))
    torch.testing.assert_close(torch.jit.trace(make(), x)(x), make()(x))


def test_onnx(tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx writes through onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="runs the exported file")
    x, layer = randn(2, 3, 4, 4), ASH(leak=0.1)
    torch.onnx.export(layer.eval(), (x,), tmp_path / "ash.onnx", dynamo=True)
    session = runtime.InferenceSession(tmp_path / "ash.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), layer(x))


@each_layer
def test_torch_func(make):
    layer = make(dtype=torch.float64)
    state = dict(layer.named_parameters())
    x = randn(4, 2, 3, 5, 5, dtype=torch.float64)

    def loss(state, x):
        return torch.func.functional_call(layer, state, (x,)).square().sum()

    mapped = torch.func.vmap(lambda x: torch.func.functional_call(layer, state, (x,)))(x)
    torch.testing.assert_close(mapped, torch.stack([layer(one) for one in x]))
    gradient = torch.func.grad(loss, argnums=1)(state, x[0])
    leaf = x[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(state, leaf), leaf)
    torch.testing.assert_close(gradient, wanted)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, x)
    assert per_sample["alpha"].shape == (4, *layer.alpha.shape)
    _, tangent = torch.func.jvp(lambda x: loss(state, x), (x[0],), (x[1],))
    torch.testing.assert_close(tangent, (wanted * x[1]).sum())


def test_forward_mode_derivative():
    x, v, layer = randn(2, 3, 4), randn(2, 3, 4, seed=1), ASH()
    with torch.autograd.forward_ad.dual_level():
        y = layer(torch.autograd.forward_ad.make_dual(x, v))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(leaf), leaf, v)
    g = v  # v^T (J v) = (J^T v)^T v
    torch.testing.assert_close((g * tangent).sum(), (gradient * v).sum())


@each_layer
def test_autocast(make):
    layer, conv = make(), nn.Conv2d(3, 3, 1)
    x = randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = conv(x)
        y = layer(hidden)
        y.float().sum().backward()
    assert hidden.dtype == y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(hidden.detach().float()), rtol=0.01, atol=0.01)
    assert conv.weight.grad.isfinite().all()


def test_checkpointing_and_data_parallel_hooks_see_a_plain_module():
    layer, x = ASH(), randn(2, 3, 4, 4).requires_grad_()
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    (again,) = torch.autograd.grad(y.sum(), x)
    (once,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(again, once)


# ---- the exact reference ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    percent=st.decimals("0.1", "99.9", places=1),
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
def test_top_percent_keeps_the_largest(percent, shape, seed):
    x = 1 + randn(*shape, seed=seed).abs()
    y = TopPercent(float(percent), dims="sample")(x)
    n = math.prod(shape[1:])
    keep = math.ceil(percent * n / 100)
    for before, after in zip(x.flatten(1), y.flatten(1), strict=True):
        largest = before.sort(descending=True).values[:keep]
        assert torch.equal(after[after != 0].sort(descending=True).values, largest)
        assert torch.equal(after[after != 0], before[after != 0])


def test_top_percent_counts_in_decimals_and_breaks_ties():
    y = TopPercent(2.5)(torch.ones(1, 1000))
    assert y.sum() == 25
    assert TopPercent(7.0)(torch.ones(2, 100)).sum(1).tolist() == [7, 7]


def test_top_percent_over_chosen_dimensions():
    x = randn(2, 3, 4, 5)
    y = TopPercent(25, dims=(2,))(x)
    assert torch.equal(y != 0, x == x.amax(2, keepdim=True))


def test_top_percent_passes_gradient_to_what_it_keeps():
    x = randn(2, 10).requires_grad_()
    y = TopPercent(30)(x)
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0).float())


def test_steep_ash_is_close_to_the_exact_reference_on_normal_maps():
    x = randn(2, 100_000, dtype=torch.float64)
    soft, exact = ash(x, 1e6, z_from_percent(10)), TopPercent(10)(x)
    assert ((soft != 0) != (exact != 0)).double().mean() < 0.003


@pytest.mark.parametrize("percent", [0, 100, -3])
def test_top_percent_has_bounds(percent):
    with pytest.raises(ValueError, match="percent must be inside"):
        TopPercent(percent)


# ---- weights of Hard ASH's hidden rows -------------------------------------------------------------------------------


def test_rows_are_centred_and_of_unit_norm():
    layer = nn.Linear(20, 7)
    parametrize.register_parametrization(layer, "weight", CentredUnitRows())
    torch.testing.assert_close(layer.weight.mean(1), torch.zeros(7), rtol=0, atol=1e-7)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(7))
    layer(randn(3, 20)).sum().backward()
    free = layer.parametrizations.weight.original
    radial = (free.grad * (free - free.mean(1, keepdim=True))).sum(
        1
    )  # neither length nor shift of a row can be learned
    torch.testing.assert_close(radial, torch.zeros(7), rtol=0, atol=1e-5)
    torch.testing.assert_close(free.grad.sum(1), torch.zeros(7), rtol=0, atol=1e-5)


def test_a_weight_that_is_normalised_already_stays():
    rows = CentredUnitRows()(randn(4, 3, 2, 2))
    torch.testing.assert_close(CentredUnitRows()(rows), rows)
    layer = nn.Conv2d(3, 4, 2)
    parametrize.register_parametrization(layer, "weight", CentredUnitRows())
    layer.weight = rows
    torch.testing.assert_close(layer.weight, rows)


def test_rows_of_one_entry_are_refused():
    with pytest.raises(ValueError, match=r"at least two entries.*\(4, 1\)"):
        CentredUnitRows()(randn(4, 1))
