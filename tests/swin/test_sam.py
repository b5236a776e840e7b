"""Sharpness-aware minimisation: the climb, the way back, and the base optimiser's contract."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from paperworks.swin.swin_se_fer import SAM
from paperworks.swin.swin_se_fer.sam import MissingClosure

SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def data(n: int = 20, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer, batch=None):
    x, y = batch or data()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


# --- the climb ---


@settings(max_examples=25, deadline=None)
@given(rho=st.floats(0.001, 5), groups=st.integers(1, 3), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_climb_has_length_rho_along_the_gradient_of_all_groups_together(rho, groups, dtype) -> None:
    model = net().to(dtype)
    parameters = list(model.parameters())
    optimizer = SAM([{"params": parameters[i::groups]} for i in range(groups)], SGD, rho, lr=0.1)
    x, y = data()
    F.cross_entropy(model(x.to(dtype)), y).backward()
    before, gradient = flat(model), torch.cat([p.grad.flatten() for p in parameters])
    optimizer.first_step()
    move = flat(model) - before
    tolerance = 1e-3 if dtype == torch.float32 else 1e-6
    assert float(move.norm()) == pytest.approx(rho, rel=tolerance)
    assert float(F.cosine_similarity(move, gradient, 0)) == pytest.approx(1, abs=tolerance)


def test_the_adaptive_climb() -> None:
    model = net().double()
    optimizer = SAM(model.parameters(), SGD, 0.5, adaptive=True, lr=0.1)
    x, y = data()
    F.cross_entropy(model(x.double()), y).backward()
    w, g = flat(model), torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.first_step()
    torch.testing.assert_close(flat(model) - w, 0.5 * w * w * g / ((w.abs() * g).norm() + 1e-12))


def test_the_adaptive_climb_does_not_depend_on_the_scale_of_the_weights() -> None:
    moves = []
    for scale in (1.0, 10.0):
        w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64) * scale)
        ((w / scale) * torch.tensor([3.0, 1.0])).pow(2).sum().backward()
        before = w.detach().clone()
        SAM([w], SGD, 0.1, adaptive=True, lr=0.1).first_step()
        moves.append((w.detach() - before) / scale)
    torch.testing.assert_close(*moves)


def test_closed_form_on_a_quadratic() -> None:
    a = torch.tensor([4.0, 1.0], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    w0 = w.detach().clone()
    optimizer = SAM([w], SGD, 0.3, lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (a * w * w).sum() / 2
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    g = a * w0
    torch.testing.assert_close(w.detach(), w0 - 0.1 * a * (w0 + 0.3 * g / g.norm()))
    assert loss.item() == (a * w0 * w0).sum().item() / 2, "the loss at w, not at w + e"


def test_groups_with_their_own_radius_and_form() -> None:
    a, b, c = (nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (1.0, 2.0, 3.0))
    optimizer = SAM([{"params": [a]}, {"params": [b], "rho": 0.2}, {"params": [c], "adaptive": True}], SGD, 0.1, lr=1.0)
    (2 * a + b - 2 * c).sum().backward()
    optimizer.first_step()
    norm = math.sqrt(2**2 + 1**2 + (3 * 2) ** 2)
    moved = torch.cat([a, b, c]).detach() - torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(moved, torch.tensor([0.1 * 2, 0.2 * 1, -0.1 * 9 * 2], dtype=torch.float64) / norm)


def test_the_norm_of_halves_does_not_overflow() -> None:
    w = nn.Parameter(torch.ones(4096, dtype=torch.float16))
    w.grad = torch.full((4096,), 60.0, dtype=torch.float16)  # the squares add up to 1.5e7
    SAM([w], SGD, 6.4, lr=0.1).first_step()
    torch.testing.assert_close(w.detach().float(), torch.full((4096,), 1 + 6.4 / 64), rtol=1e-3, atol=1e-3)


def test_no_gradient_no_move() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = SAM([w], SGD, lr=0.1)
    optimizer.first_step()
    optimizer.second_step()
    w.grad = torch.zeros(3)
    optimizer.first_step()
    assert torch.equal(w.detach(), torch.ones(3))
    optimizer.second_step()
    none = nn.Parameter(torch.ones(0))
    none.grad = torch.zeros(0)
    SAM([none], SGD, lr=0.1).first_step()


# --- the way back ---


def test_weights_are_restored_bit_by_bit_in_the_same_storage() -> None:
    model = net()
    optimizer = SAM(model.parameters(), SGD, 3.0, lr=0.0)
    before, places = flat(model), [p.data_ptr() for p in model.parameters()]
    for _ in range(20):
        optimizer.step(closure_of(model, optimizer))
    assert torch.equal(flat(model), before)
    assert [p.data_ptr() for p in model.parameters()] == places


def test_what_the_second_pass_does_not_reach_is_restored_too() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SAM([a, b], SGD, 0.5, lr=0.1)
    calls = itertools.count()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = a.sum() + (b.sum() if next(calls) == 0 else 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(b.detach(), torch.ones(2))
    torch.testing.assert_close(a.detach(), torch.full((2,), 0.9))


def test_an_error_in_the_second_pass_leaves_the_weights() -> None:
    model = net()
    optimizer = SAM(model.parameters(), SGD, lr=0.1)
    closure, before, calls = closure_of(model, optimizer), flat(model), itertools.count()

    def failing() -> torch.Tensor:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert torch.equal(flat(model), before)
    assert not optimizer.climbed
    optimizer.step(closure)


# --- the contract of an optimiser ---


@pytest.mark.parametrize(("base", "options"), [(SGD, {"momentum": 0.9, "weight_decay": 0.1}), (ADAMW, {})])
def test_radius_zero_is_the_base_optimiser(base, options) -> None:
    ours, theirs = net(), net()
    optimizer, plain = SAM(ours.parameters(), base, 0.0, lr=0.1, **options), base(theirs.parameters(), 0.1, **options)
    for _ in range(4):
        optimizer.step(closure_of(ours, optimizer))
        plain.step(closure_of(theirs, plain))
    assert torch.equal(flat(ours), flat(theirs))


def test_by_hand_is_by_closure_and_takes_two_passes() -> None:
    one, two = net(), net()
    first, second = (SAM(m.parameters(), ADAMW, lr=0.01) for m in (one, two))
    x, y = data()
    passes = []
    one.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(3):
        first.step(closure_of(one, first))
        F.cross_entropy(two(x), y).backward()
        first_loss = F.cross_entropy(two(x), y)
        assert first_loss.requires_grad
        second.first_step(zero_grad=True)
        assert all(p.grad is None for p in two.parameters())
        F.cross_entropy(two(x), y).backward()
        second.second_step(zero_grad=True)
    assert torch.equal(flat(one), flat(two))
    assert len(passes) == 6


def test_accumulated_gradients_climb_once() -> None:
    one, two = net(), net()
    whole, parts = (SAM(m.parameters(), SGD, lr=0.1) for m in (one, two))
    x, y = data()
    whole.step(closure_of(one, whole))
    for climbs in (True, False):
        for i in range(2):
            (F.cross_entropy(two(x[10 * i : 10 * i + 10]), y[10 * i : 10 * i + 10]) / 2).backward()
        if climbs:
            parts.first_step(zero_grad=True)
        else:
            parts.second_step(zero_grad=True)
    torch.testing.assert_close(flat(one), flat(two))


def test_state_dict_continues_where_it_was() -> None:
    model = net()
    optimizer = SAM(model.parameters(), ADAMW, 0.1, every=2, lr=0.01)
    for _ in range(3):
        optimizer.step(closure_of(model, optimizer))
    twin = copy.deepcopy(model)
    other = SAM(twin.parameters(), ADAMW, 0.05, every=2, lr=0.5)
    groups = other.param_groups
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups is groups
    assert other.base_optimizer.param_groups is groups
    assert other.base_optimizer.state is other.state
    assert (groups[0]["lr"], groups[0]["rho"]) == (0.01, 0.1)
    for _ in range(3):
        optimizer.step(closure_of(model, optimizer))
        other.step(closure_of(twin, other))
    assert torch.equal(flat(model), flat(twin))


def test_takes_the_state_of_a_plain_base_optimiser() -> None:
    model = net()
    plain = ADAMW(model.parameters(), lr=0.01)
    plain.step(closure_of(model, plain))
    optimizer = SAM(model.parameters(), ADAMW, 0.07, lr=0.5)
    optimizer.load_state_dict(plain.state_dict())
    assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["lr"]) == (0.07, 0.01)
    optimizer.step(closure_of(model, optimizer))


def test_schedules_act_on_the_base_optimiser_without_a_warning() -> None:
    model = net()
    optimizer = SAM(model.parameters(), SGD, lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        closure_of(model, optimizer)()
        optimizer.first_step()
        optimizer.second_step()
        schedule.step()
        optimizer.step(closure_of(model, optimizer))
        schedule.step()
    assert optimizer.base_optimizer.param_groups[0]["lr"] == 0.25


def test_groups_are_added_to_both_and_names_are_kept() -> None:
    model = net()
    optimizer = SAM(model[0].named_parameters(), ADAMW, 0.2, lr=0.1)
    optimizer.add_param_group({"params": list(model[2].named_parameters()), "lr": 0.3})
    assert optimizer.base_optimizer.param_groups is optimizer.param_groups
    assert [g["rho"] for g in optimizer.param_groups] == [0.2, 0.2]
    assert optimizer.param_groups[1]["param_names"] == ["weight", "bias"]
    optimizer.step(closure_of(model, optimizer))
    assert len(optimizer.state) == 4


@pytest.mark.parametrize("through", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_copies(through) -> None:
    model = net()
    optimizer = SAM(model.parameters(), ADAMW, every=2, lr=0.1)
    optimizer.step(closure_of(model, optimizer))
    twin, other = through((model, optimizer))
    assert other.base_optimizer.param_groups is other.param_groups
    for _ in range(2):
        optimizer.step(closure_of(model, optimizer))
        other.step(closure_of(twin, other))
    assert torch.equal(flat(model), flat(twin))


def test_every_second_step_climbs() -> None:
    model, mixed = net(), net()
    optimizer = SAM(model.parameters(), SGD, every=2, lr=0.1)
    plain, sam = SGD(mixed.parameters(), lr=0.1), SAM(mixed.parameters(), SGD, lr=0.1)
    for i in range(4):
        assert optimizer.climbs_next is (i % 2 == 1)
        optimizer.step(closure_of(model, optimizer))
        turn = sam if i % 2 else plain
        turn.step(closure_of(mixed, turn))
    assert torch.equal(flat(model), flat(mixed))


@pytest.mark.parametrize("same", [True, False])
def test_the_same_masks_in_both_passes(same: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    optimizer, masks = SAM(model.parameters(), SGD, same_rng=same, lr=0.1), []
    model[1].register_forward_hook(lambda _, __, out: masks.append(out == 0))
    for _ in range(2):
        optimizer.step(closure_of(model, optimizer))
    assert torch.equal(masks[0], masks[1]) is same
    assert not torch.equal(masks[1], masks[2]), "and new ones in the next step"


def test_with_a_gradient_scaler() -> None:
    ours, scaled = net(), net()
    optimizer, other = (SAM(m.parameters(), SGD, lr=0.1) for m in (ours, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = data()
    optimizer.step(closure_of(ours, optimizer))
    scaler.scale(F.cross_entropy(scaled(x), y)).backward()
    other.first_step(zero_grad=True)
    scaler.scale(F.cross_entropy(scaled(x), y)).backward()
    other.restore()
    scaler.step(other.base_optimizer)
    scaler.update()
    torch.testing.assert_close(flat(ours), flat(scaled))


def test_bad_input() -> None:
    w = [nn.Parameter(torch.ones(2))]
    for rho in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="rho"):
            SAM(w, SGD, rho, lr=0.1)
    with pytest.raises(TypeError, match="rho: got str"):
        SAM(w, SGD, "big", lr=0.1)
    with pytest.raises(ValueError, match="rho"):
        SAM([{"params": w, "rho": -1.0}], SGD, lr=0.1)
    with pytest.raises(TypeError, match="base_optimizer: got SGD, wanted a class"):
        SAM(w, SGD(w, lr=0.1))
    with pytest.raises(TypeError, match="base_optimizer: got Linear"):
        SAM(w, nn.Linear)
    with pytest.raises(ValueError, match="every"):
        SAM(w, SGD, every=0, lr=0.1)
    optimizer = SAM(w, SGD, lr=0.1)
    for error in (MissingClosure, TypeError, ValueError, RuntimeError):
        with pytest.raises(error, match="closure: got None"):
            optimizer.step()
    with pytest.raises(RuntimeError, match="first_step"):
        optimizer.second_step()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="climbed already"):
        optimizer.first_step()
    for what in (optimizer.state_dict, lambda: copy.deepcopy(optimizer)):
        with pytest.raises(RuntimeError, match="have climbed"):
            what()
    table = nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        SAM(table.parameters(), SGD, lr=0.1).first_step()
