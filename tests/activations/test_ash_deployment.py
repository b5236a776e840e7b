"""Percentiles of a network read and set from data, frozen statistics, and statistics that run along time."""

import copy
import pickle

import pytest
import torch
from torch import nn

from paperworks.activations.ash import (
    ASH,
    CausalASH,
    FoldedASH,
    HardASH,
    ash,
    calibrate_percent,
    causal_ash,
    fold,
    inverted_layers,
    percent_by_layer,
    z_from_percent,
)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def convolutions(activation=ASH):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), activation(), nn.Conv2d(8, 8, 3), activation(), nn.Flatten(), nn.Linear(8, 4)
    )
    for seed, layer in enumerate(model):
        if isinstance(layer, nn.Conv2d):
            with torch.no_grad():
                layer.weight.copy_(0.4 * randn(*layer.weight.shape, seed=seed))
                layer.bias.copy_(randn(8, seed=seed + 10))
    return model


def shares(model, x):
    """The percentage of its inputs that each ASH layer lets through more than half of."""
    found, hooks = {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, ASH):

            def look(layer, inputs, name=name):
                m = layer.statistics(inputs[0])
                found[name] = 100 * (m.centred > layer.gate_parameters(inputs[0])[1] * m.sigma).double().mean().item()

            hooks.append(layer.register_forward_pre_hook(look))
    with torch.no_grad():
        model[:4](x)
    for hook in hooks:
        hook.remove()
    return found


# ---- percentiles -----------------------------------------------------------------------------------------------------


def test_percent_by_layer_goes_down_the_network():
    model = nn.Sequential(ASH(z_k=z_from_percent(20)), nn.Sequential(HardASH(z_k=z_from_percent(5))), nn.ReLU())
    assert {name: round(p.item(), 3) for name, p in percent_by_layer(model).items()} == {"0": 20.0, "1.0": 5.0}


def test_inverted_layers_are_reported():
    model = nn.Sequential(ASH(), ASH(num_parameters=3))
    assert inverted_layers(model) == []
    with torch.no_grad():
        model[1].alpha[2] = -0.1
    assert inverted_layers(model) == ["1"]


def test_calibration_gives_each_layer_its_share_of_what_it_really_sees():
    model, batches = convolutions(), [randn(16, 3, 12, 12, seed=s).exp() for s in range(4)]  # far from normal
    z_k = calibrate_percent(model[:4], batches, 10.0)
    assert list(z_k) == ["1", "3"]
    assert torch.equal(z_k["1"], model[1].z_k)
    assert abs(model[1].z_k.item() - z_from_percent(10)) > 0.02
    assert shares(model, torch.cat(batches)) == {"1": pytest.approx(10, abs=0.3), "3": pytest.approx(10, abs=0.3)}


def test_calibration_of_named_layers_leaves_the_others():
    model = convolutions()
    calibrate_percent(model[:4], [randn(8, 3, 12, 12)], {"3": 25.0})
    assert model[1].z_k.item() == pytest.approx(1e-3)
    assert shares(model, randn(8, 3, 12, 12))["3"] == pytest.approx(25, abs=0.3)


def test_calibration_keeps_the_nominal_percentile_by_default():
    layer = ASH(z_k=z_from_percent(5))
    calibrate_percent(layer, [randn(8, 3, 30, 30).exp()])
    assert layer.percent.item() != pytest.approx(5, abs=0.1)
    assert shares(nn.Sequential(layer), randn(8, 3, 30, 30).exp())[("0")] == pytest.approx(5, abs=0.3)


def test_calibration_of_normal_inputs_finds_the_normal_percentile():
    layer = HardASH()
    calibrate_percent(layer, [randn(4, 100_000)], 2.5)
    assert layer.z_k.item() == pytest.approx(1.96, abs=0.01)


def test_calibration_by_channel():
    layer = ASH(num_parameters=2)
    x = torch.stack([randn(4, 40, 40), 1 + randn(4, 40, 40, seed=1)], dim=1)
    calibrate_percent(layer, [x], 10.0)
    m = layer.statistics(x)
    through = m.centred > layer.gate_parameters(x)[1] * m.sigma
    torch.testing.assert_close(
        through.double().mean((0, 2, 3)), torch.full((2,), 0.1, dtype=torch.float64), rtol=0.02, atol=0
    )


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x, torch.zeros(1)), lambda x: [x], lambda x: {"input": x}])
def test_batches_of_every_usual_form(form):
    layer = ASH()

    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, input):
            return self.layer(input)

    calibrate_percent(Takes(), [form(randn(4, 10_000))], 10.0)
    assert layer.percent.item() == pytest.approx(10, abs=0.5)


def test_calibration_is_without_trace():
    model = convolutions()
    calibrate_percent(model[:4], [randn(4, 3, 12, 12)], 10.0)
    assert all(not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError):
        calibrate_percent(model[:4], [randn(4, 5, 12, 12)], 10.0)  # the model refuses the batch
    assert all(not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("model", "loader", "percent", "words"),
    [
        (nn.ReLU(), [], 10.0, "model must have PercentileGate layers, ReLU has none"),
        (ASH(), [], 10.0, "loader must give at least one batch"),
        (ASH(), [randn(2, 9)], 100.0, r"percent must be inside \(0, 100\), got 100"),
        (nn.Sequential(ASH()), [randn(2, 9)], {"1": 10.0}, r"\['1'\].*\['0'\]"),
    ],
)
def test_bad_calibration_is_named(model, loader, percent, words):
    with pytest.raises(ValueError, match=words):
        calibrate_percent(model, loader, percent)


# ---- frozen statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [{}, {"leak": 0.1}, {"num_parameters": 3}, {"num_parameters": 8, "channel_dim": -1}]
)
def test_folding_with_a_samples_own_statistics_changes_nothing(arguments):
    layer, x = ASH(0.8, 0.4, **arguments), randn(1, 3, 8, 8) + 2
    folded = fold(layer, [x])
    assert isinstance(folded, FoldedASH)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-5, atol=1e-6)


def test_folded_layer_is_a_swish_with_constant_slope_and_offset():
    x = randn(64, 3, 8, 8) * 2 + 1
    layer = ASH(0.8, 0.4)
    mean, sigma = x.mean((1, 2, 3)).mean(), (x.var((1, 2, 3), correction=0) + 1e-6).sqrt().mean()
    folded = fold(layer, x.split(10))
    y = randn(5, 3, 8, 8, seed=1)
    a, b = 1.6, -1.6 * (mean + 0.4 * sigma)
    torch.testing.assert_close(folded(y), y * torch.sigmoid(a * y + b), rtol=1e-5, atol=1e-6)
    assert torch.equal(folded(y)[:2], folded(y[:2]))  # no statistics: not even a sample's own


def test_folding_a_network():
    model = convolutions(lambda: ASH(0.8, 0.4))[:4]
    shared = nn.Sequential(model, model[1], model[1])
    before = copy.deepcopy(shared.state_dict())
    x = randn(32, 3, 12, 12)
    folded = fold(shared, [{"input": x[:16]}, {"input": x[16:]}])
    assert [name for name, m in folded.named_modules(remove_duplicate=False) if isinstance(m, FoldedASH)] == [
        "0.1",
        "0.3",
        "1",
        "2",
    ]
    assert folded[1] is folded[0][1] is folded[2]
    assert not any(isinstance(m, ASH) for m in folded.modules())
    assert all(torch.equal(t, before[name]) for name, t in shared.state_dict().items())
    torch.testing.assert_close(fold(model, [x[:1]])(x[:1]), model(x[:1]), rtol=1e-5, atol=1e-5)
    again = pickle.loads(pickle.dumps(folded))
    assert torch.equal(again(x), folded(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_folded_kernel_agrees_with_torch(dtype, many, memory_format, monkeypatch):
    x = (randn(4, 3, 50, 60) * 5).to(dtype).contiguous(memory_format=memory_format)
    count = 3 if many else 1
    folded = FoldedASH(randn(count).abs(), randn(count, seed=1), leak=0.1)
    y = folded(x)
    monkeypatch.setenv("PAPERWORKS_NATIVE", "0")
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, folded(x), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(folded(x.clone().requires_grad_()), y, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_folded_layer_trains_what_is_before_it():
    folded, x = FoldedASH(torch.tensor([0.8]), torch.tensor([0.3])), randn(2, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(folded.double(), (x,))


def test_bad_folding_is_named():
    with pytest.raises(ValueError, match="model must have ASH layers, HardASH has none"):
        fold(HardASH(), [randn(2, 3)])

    class Skips(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    with pytest.raises(ValueError, match="'1' was never reached"):
        fold(Skips(ASH(), ASH()), [randn(2, 3)])


# ---- time ------------------------------------------------------------------------------------------------------------


def running(x, alpha, z_k, decay):
    """Step by step from the definition: weighted mean and deviation of all steps so far. x: (batch, time, channels)."""
    y = []
    for t in range(x.shape[1]):
        past = x[:, : t + 1]
        weight = decay ** torch.arange(t, -1, -1, dtype=x.dtype).view(1, -1, 1) / x.shape[2]
        weight = weight / (weight.sum() * x.shape[2])
        mean = (weight * past).sum((1, 2), keepdim=True)
        sigma = ((weight * (past - mean).square()).sum((1, 2), keepdim=True) + 1e-6).sqrt()
        y.append(x[:, t : t + 1] * torch.sigmoid(2 * alpha * (x[:, t : t + 1] - mean - z_k * sigma)))
    return torch.cat(y, 1)


@pytest.mark.parametrize("decay", [1.0, 0.8])
@pytest.mark.parametrize("steps", [1, 2, 7, 33])
def test_statistics_run_along_time(decay, steps):
    x = randn(3, steps, 5, dtype=torch.float64) + 2
    y, state = causal_ash(x, 0.9, 0.3, decay=decay)
    torch.testing.assert_close(y, running(x, 0.9, 0.3, decay), rtol=1e-11, atol=1e-11)
    assert state.weight[0].item() == pytest.approx(sum(decay**t for t in range(steps)))
    audio, _ = causal_ash(x.mT.contiguous(), 0.9, 0.3, time_dim=-1, decay=decay)
    torch.testing.assert_close(audio.mT, y)


def test_last_step_without_decay_has_the_statistics_of_the_whole():
    x = randn(3, 20, 5, dtype=torch.float64)
    y, _ = causal_ash(x, 0.9, 0.3)
    torch.testing.assert_close(y[:, -1], ash(x, 0.9, 0.3, dims="sample")[:, -1])


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_a_stream_in_pieces_is_the_whole(decay):
    x = randn(2, 30, 4)
    layer = CausalASH(0.9, 0.3, decay=decay, leak=0.05)
    state, pieces = None, []
    for piece in x.split([1, 4, 9, 16], dim=1):
        y, state = layer.step(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x))


def test_no_step_sees_a_later_one():
    x = randn(2, 20, 4)
    later = x.clone()
    later[:, 12:] = 50.0
    assert torch.equal(CausalASH()(x)[:, :12], CausalASH()(later)[:, :12])


def test_running_statistics_are_stable_where_the_mean_is_large():
    x = randn(2, 500, 8, dtype=torch.float64) + 1e4
    y, _ = causal_ash(x.float(), 1.0, 0.3)
    torch.testing.assert_close(y.double(), causal_ash(x.float().double(), 1.0, 0.3)[0], rtol=1e-5, atol=0)


def test_gradients_along_time():
    x = randn(2, 5, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(CausalASH(decay=0.9, dtype=torch.float64), (x,))


def test_causal_layer_is_an_ash_layer():
    layer = CausalASH(num_parameters=4, time_dim=1, channel_dim=2)
    x = randn(3, 40, 4)
    assert list(layer.state_dict()) == ["alpha", "z_k"]
    calibrate_percent(layer, [x], 20.0)
    m = layer.statistics(x)
    through = (m.centred > layer.gate_parameters(x)[1] * m.sigma).double().mean((0, 1))
    torch.testing.assert_close(through, torch.full((4,), 0.2, dtype=torch.float64), rtol=0, atol=0.02)
    assert repr(layer).endswith("time_dim=1, decay=1.0)")
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"decay": 0.0}, ValueError, r"decay must be in \(0, 1\], got 0"),
        ({"time_dim": 0}, ValueError, "time_dim must be.*0"),
        ({"time_dim": 3}, ValueError, "time_dim must be.*3-D"),
        ({"x": torch.zeros(2, 0, 3)}, ValueError, r"elements in every sample.*\(2, 0, 3\)"),
        ({"x": torch.zeros(2, 3, 3, dtype=torch.int32)}, TypeError, "floating"),
    ],
)
def test_bad_streams_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        causal_ash(**{"x": randn(2, 4, 3), "alpha": 1.0, "z_k": 0.0, **arguments})
    for name in ("decay", "time_dim"):
        if arguments.get(name) == 0:
            with pytest.raises(error, match=name):
                CausalASH(**arguments)
