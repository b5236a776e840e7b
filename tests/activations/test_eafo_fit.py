"""Measured densities, the leaderboard, and models fitted layer by layer."""

import copy
import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn.modules import activation as torch_activation

from paperworks.activations.crrelu import (
    EmpiricalDensity,
    NormalDensity,
    TableActivation,
    entropy_leaderboard,
    fit_activation,
    measure_density,
)
from paperworks.activations.eafo_fit import TORCH_ACTIVATIONS, _Reservoir

NORMAL = NormalDensity()
H_NORMAL = 0.5 * math.log(2 * math.pi * math.e)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 32), nn.ReLU(inplace=True), nn.Linear(32, 3))


def batches(n=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 6, generator=generator) for _ in range(n)]


def test_the_leaderboard_has_every_elementwise_activation_of_torch():
    not_elementwise = {"GLU", "Softmin", "Softmax", "Softmax2d", "LogSoftmax", "MultiheadAttention"}
    need_settings = {"Threshold"}
    names = {kind.__name__ for kind in TORCH_ACTIVATIONS}
    assert names == set(torch_activation.__all__) - not_elementwise - need_settings
    assert all(inspect.isclass(kind) for kind in TORCH_ACTIVATIONS)


def test_leaderboard_numbers():
    some = {kind.__name__: kind() for kind in (nn.Sigmoid, nn.ReLU, nn.ReLU6, nn.GELU, nn.LeakyReLU)}
    rows = {row.name: row for row in entropy_leaderboard(NORMAL, {**some, "twice": lambda z: 2 * z}, points=4001)}
    assert next(iter(rows)) == "ReLU"
    assert list(rows)[-1] == "twice"
    twice = rows["twice"]
    assert twice.entropy == pytest.approx(H_NORMAL + math.log(2), abs=1e-5)
    assert twice.scale_free_entropy == pytest.approx(H_NORMAL, abs=1e-5)
    assert twice.branch_entropy == pytest.approx(H_NORMAL, abs=1e-5)
    relu = rows["ReLU"]
    assert relu.entropy == relu.scale_free_entropy == -math.inf
    assert relu.flat_mass == pytest.approx(0.5, abs=1e-6)
    half_normal = 0.5 * math.log(math.pi * math.e / 2) - 0.5 * math.log(1 - 2 / math.pi)
    assert relu.branch_entropy == pytest.approx(half_normal, abs=1e-5)
    assert rows["LeakyReLU"].flat_mass == 0
    assert {name for name, row in rows.items() if not row.monotone} == {"GELU"}
    assert all(row.next_step.entropies[-1] < row.next_step.entropies[0] for row in rows.values())


def test_the_scale_free_entropy_does_not_depend_on_the_scale():
    rows = entropy_leaderboard(NORMAL, {"a": torch.tanh, "b": lambda z: 100 * torch.tanh(z)}, points=2001)
    assert rows[0].scale_free_entropy == pytest.approx(rows[1].scale_free_entropy, abs=1e-5)
    assert rows[1].entropy != rows[0].entropy


def test_measured_density_is_that_of_the_layers_input():
    model = network().train()
    model[0].eval()
    data = batches(20)
    density = measure_density(model, "1", data)
    with torch.no_grad():
        seen = model[0](torch.cat(data))
    z = torch.linspace(-2, 2, 41, dtype=torch.float64)
    torch.testing.assert_close(density.pdf(z), EmpiricalDensity(seen).pdf(z), rtol=0, atol=0.02)
    assert model.training
    assert not model[0].training
    assert not model[1]._forward_pre_hooks


def test_the_sample_is_uniform_over_batches_of_any_size_and_repeatable():
    def drawn(order):
        reservoir = _Reservoir(2000, torch.Generator().manual_seed(0))
        for i in order:
            reservoir.show(torch.full((sizes[i],), float(i)))
        return reservoir.values

    sizes = [100, 50000, 3000, 20000]
    for order in (range(4), reversed(range(4))):
        values = drawn(order)
        assert len(values) == 2000
        shares = torch.bincount(values.long(), minlength=4) / 2000
        torch.testing.assert_close(shares, torch.tensor(sizes) / sum(sizes), rtol=0, atol=0.04)
    assert torch.equal(drawn(range(4)), drawn(range(4)))


def test_fitted_model_has_a_table_a_layer_and_the_model_is_unchanged():
    model, data = network(), batches()
    before = copy.deepcopy(model)
    fitted = fit_activation(model, data)
    assert [type(m).__name__ for m in model] == [type(m).__name__ for m in before]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    tables = [m for m in fitted.modules() if isinstance(m, TableActivation)]
    assert [type(t.base) for t in tables] == [nn.GELU, nn.ReLU]
    assert all(t.values.any() and t.values.dtype == torch.float32 for t in tables)
    assert not any(True for t in tables for _ in t.parameters())
    x = data[0].requires_grad_()
    y = fitted(x)
    assert 0 < (y - model(x)).abs().max() < 1
    y.sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(torch.export.export(fitted, (x.detach(),)).module()(x), y)
    again = fit_activation(model, data)
    assert all(torch.equal(a, b) for a, b in zip(fitted.buffers(), again.buffers(), strict=True))


def test_shared_activations_stay_shared_and_unreached_ones_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Tanh()
            self.block = nn.Sequential(nn.Linear(6, 6), self.act)
            self.unused = nn.Sigmoid()

        def forward(self, x, scale):
            return self.block(self.act(x)) * scale

    loader = [{"x": batch, "scale": 2} for batch in batches(2)]
    fitted = fit_activation(Net().eval(), loader, step_size=1e-3, learnable=True)
    assert isinstance(fitted.act, TableActivation)
    assert fitted.block[1] is fitted.act
    assert isinstance(fitted.unused, nn.Sigmoid)
    assert not fitted.training
    assert {"act.values", "act.rates"} <= dict(fitted.named_parameters()).keys()
    pairs = [(batch, torch.zeros(64)) for batch in batches(2)]
    own = fit_activation(Net(), pairs, forward=lambda model, batch: model(batch[0], 2), steps=2)
    assert isinstance(own.act, TableActivation)


def test_sequences_give_their_first_item_to_the_model():
    pairs = [(batch, torch.zeros(64)) for batch in batches(2)]
    a, b = fit_activation(network(), pairs), fit_activation(network(), batches(2))
    assert torch.equal(a[1].values, b[1].values)


def test_errors_name_the_argument():
    model = network()
    with pytest.raises(ValueError, match="layer: got 'nowhere'"):
        measure_density(model, "nowhere", batches(1))
    with pytest.raises(ValueError, match="layer '3': it was not called"):
        measure_density(model, "3", [])
    with pytest.raises(ValueError, match=r"layer '1': samples: got 64 times the value 0"):
        measure_density(nn.Sequential(nn.Identity(), nn.Tanh()), "1", [torch.zeros(64)])
    with pytest.raises(ValueError, match="samples: got 1"):
        measure_density(model, "1", batches(1), samples=1)
    with pytest.raises(ValueError, match="none of its 2 activation"):
        fit_activation(model, [])
    with pytest.raises(ValueError, match="points: got 8"):
        fit_activation(model, batches(1), points=8)
    with pytest.raises(ValueError, match="steps: got 0"):
        fit_activation(model, batches(1), steps=0)
