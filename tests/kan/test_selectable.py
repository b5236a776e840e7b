"""Networks and the three stages: temperatures, the moment of choice, the loss around it, fits, replacement."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from paperworks.kan.bases import KANLinear
from paperworks.kan.fitting import held_then_cosine
from paperworks.kan.replace import replace_linear
from paperworks.kan.s_kan import (
    SKAN,
    PrunedSKANLinear,
    SConvKAN,
    SelectionError,
    SelectionSchedule,
    SKANLinear,
    compacted,
    fit_skan,
)
from paperworks.kan.selectable import layer_inputs


def skan(*widths, **kw):
    return SKAN(widths or (2, 5, 1), generator=torch.Generator().manual_seed(0), **kw)


def points(n=100):
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return x, (x[:, :1] * x[:, 1:]) * 3


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_published_sizes_before_and_after():
    for widths, full, pruned in (((2, 5, 1), 650, 135), ((784, 64, 10), 2_087_696, 457_344)):
        model = skan(*widths)
        assert count(model) == full
        model.select()
        assert count(model.compact()) == pruned


def test_first_layer_clamps_and_later_ones_squash():
    model = skan()
    assert [layer.squash for layer in model.layers] == ["clamp", "tanh"]
    assert [layer.squash for layer in skan(squash="tanh").layers] == ["tanh", "tanh"]


def test_every_layer_selects_on_what_it_gets():
    model, (x, _) = skan(), points()
    hidden = model.layers[0](x)
    wanted = [model.layers[0].contribution(x).argmax(1), model.layers[1].contribution(hidden).argmax(1)]
    for choice, w in zip(model.select(x), wanted, strict=True):
        assert torch.equal(choice, w)
    pruned = model.compact()
    assert all(isinstance(layer, PrunedSKANLinear) for layer in pruned.layers)
    assert torch.allclose(pruned(x), model(x), atol=1e-6)
    with pytest.raises(SelectionError):
        model.select(x)


def test_convolutional_network():
    model = SConvKAN(3, 10, (4, 6), num_functions=4, families=("rbf", "fourier"))
    x = torch.randn(5, 3, 8, 8)
    assert model.train()(x).shape == (5, 10)
    running = model.norms[1].running_mean.clone()
    choices = model.select(x)
    assert [len(c) for c in choices] == [3, 4]
    assert torch.equal(model.norms[1].running_mean, running)  # looking at the inputs leaves the statistics alone
    assert model.training
    pruned = model.compact().eval()
    assert torch.allclose(pruned(x), model.eval()(x), atol=1e-5)
    assert count(pruned) == count(model) - sum(m.coef.numel() // 2 + m.logits.numel() for m in model.layers)


def test_a_model_of_the_user_is_selected_and_compacted():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    report = replace_linear(model, lambda i, o: SKANLinear(i, o, num_functions=4), include="2")
    assert report.replaced == ["2"]
    x = torch.randn(7, 4)
    assert torch.equal(layer_inputs(model, x)[model[2]], nn.functional.gelu(model[0](x)))
    SelectionSchedule(model, 1, full=0, selective=0).step(x)
    pruned = compacted(model)
    assert isinstance(pruned[2], PrunedSKANLinear)
    assert torch.allclose(pruned(x), model(x), atol=1e-6)


def test_a_shared_layer_sees_both_of_its_inputs():
    layer = SKANLinear(3, 3)
    model, x = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(4, 3)
    wanted = torch.cat([x, torch.tanh(layer(x))])
    assert torch.allclose(layer_inputs(model, x)[layer], wanted)
    layer.select()
    pruned = compacted(model)
    assert pruned[0] is pruned[2]


def test_stages_and_temperatures():
    model, (x, _) = skan(), points()
    schedule = SelectionSchedule(model, 20, full=0.35, selective=0.25, tau_end=0.02)
    stages, taus = [schedule.stage], [model.layers[0].tau]
    for _ in range(19):
        stages.append(schedule.step(x))
        taus.append(model.layers[1].tau)
    assert stages == ["full"] * 7 + ["selective"] * 5 + ["prune"] * 8
    assert taus[:7] == [1] * 7
    falling = [b / a for a, b in pairwise(taus[6:12])]
    assert falling == pytest.approx([0.02 ** (1 / 5)] * 5)
    assert taus[11] == pytest.approx(0.02)
    assert [c.shape for c in schedule.choices] == [(2,), (5,)]


def test_choice_is_made_once_by_contribution_or_by_weight():
    x, _ = points()
    for score in ("contribution", "weight"):
        model = skan()
        for layer in model.layers:
            layer.logits.data.normal_(generator=torch.Generator().manual_seed(5))
        schedule = SelectionSchedule(model, 2, full=0.5, selective=0, tau_end=0.5, score=score)
        layer = model.layers[0]
        wanted = layer.contribution(x) if score == "contribution" else layer.weights()
        schedule.step(x)
        assert torch.equal(schedule.choices[0], wanted.argmax(1))
        assert schedule.step(x) == "prune"


def test_fit_goes_through_the_stages_and_reports_the_jump():
    model, (x, y) = skan(), points(200)
    seen = []
    history = fit_skan(model, x, y, steps=120, callback=lambda step, stage, loss: seen.append((step, stage, loss)))
    assert history.stages == ["full"] * 42 + ["selective"] * 30 + ["prune"] * 48
    assert [s[0] for s in seen] == list(range(120))
    assert [s[2] for s in seen] == history.losses
    assert history.losses[-1] < 0.05 * history.losses[0]
    assert history.jump == history.loss_after - history.loss_before
    assert history.losses[72] == pytest.approx(history.loss_after, rel=1e-4)
    assert 0.2 <= history.decided <= 1
    assert [c.tolist() for c in history.choices] == [layer.choice.tolist() for layer in model.layers]
    assert torch.allclose(model.compact()(x), model(x), atol=1e-6)


def test_the_same_generator_gives_the_same_fit():
    x, y = points()

    def fitted():
        model = skan()
        return fit_skan(model, x, y, steps=10, batch_size=16, generator=torch.Generator().manual_seed(3)).losses

    assert fitted() == fitted()


def test_entropy_penalty_makes_nodes_decide():
    x, y = points()
    undecided, decided = (
        fit_skan(skan(), x, y, schedule=None, steps=30, entropy_weight=weight).decided for weight in (0.0, 1.0)
    )
    assert decided > undecided


def test_rate_is_held_and_then_falls_to_a_hundredth():
    rates = [held_then_cosine(step, 60, 100) for step in range(100)]
    assert rates[:61] == [1.0] * 61
    assert rates[-1] == pytest.approx(0.01)
    assert all(b < a for a, b in pairwise(rates[60:]))


def test_replacing_linear_layers():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Sequential(nn.Linear(4, 2)), "d": nn.Bilinear(2, 2, 2)})
    model.eval()
    before = count(model)
    report = replace_linear(model, lambda i, o: KANLinear(i, o, "rbf"), exclude="c")
    assert report.replaced == ["a", "b"]
    assert report.left == ["c.0"]
    assert model["a"] is model["b"]
    assert not model["a"].training
    assert (report.parameters_before, report.parameters_after) == (before, count(model))
    assert replace_linear(model, lambda i, o: KANLinear(i, o, "rbf"), include=lambda n, m: n == "c.0").replaced == [
        "c.0"
    ]
    alone = replace_linear(nn.Linear(3, 2, dtype=torch.float64), lambda i, o: KANLinear(i, o, "rbf"))
    assert isinstance(alone.model, KANLinear)
    assert alone.model.coef.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SKAN([3]), ValueError, "widths"),
        (lambda: SConvKAN(1, 10, ()), ValueError, "widths"),
        (lambda: SelectionSchedule(skan(), 0), ValueError, "total_steps"),
        (lambda: SelectionSchedule(skan(), 10, full=0.8, selective=0.4), ValueError, "full, selective"),
        (lambda: SelectionSchedule(skan(), 10, tau_end=0), ValueError, "tau_end"),
        (lambda: SelectionSchedule(skan(), 10, score="size"), ValueError, "contribution"),
        (lambda: SelectionSchedule(nn.Linear(2, 2), 10), ValueError, "no S-KAN layer"),
        (lambda: compacted(skan()), SelectionError, "not selected"),
        (lambda: fit_skan(skan(), torch.zeros(3, 2), torch.zeros(2, 1)), ValueError, "rows"),
        (
            lambda: fit_skan(skan(), torch.zeros(3, 2), torch.zeros(3, 1), schedule=SelectionSchedule(skan(), 9)),
            ValueError,
            "another model",
        ),
        (lambda: replace_linear(nn.Linear(2, 2), nn.Linear(2, 2)), TypeError, "factory"),
        (lambda: replace_linear("model", KANLinear), TypeError, "model"),
        (lambda: replace_linear(nn.Linear(2, 2), lambda i, o: None), TypeError, "returned NoneType"),
        (lambda: replace_linear(nn.Sequential(nn.Linear(2, 2)), KANLinear, include="head"), ValueError, "head"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_history_without_pruning_has_no_numbers_for_it():
    x, y = points()
    model = skan()
    history = fit_skan(model, x, y, schedule=SelectionSchedule(model, 4, full=1, selective=0))
    assert history.stages == ["full"] * 4
    assert model.layers[0].choice is not None  # what follows the last step is the third stage
    assert math.isfinite(history.jump)
