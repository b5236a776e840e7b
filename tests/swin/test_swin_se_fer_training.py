"""Running statistics, sharpness as a measurement, and the training loop."""

from __future__ import annotations

import copy
import itertools
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from paperworks.swin.swin_se_fer import SAM, fit_sam, frozen_norm_stats, loss_along_climb, sharpness

SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def data(n: int = 20, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- running statistics ---


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_stand_still_and_outputs_do_not_change(momentum: float | None) -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(4, momentum=momentum), nn.Conv1d(4, 4, 1), nn.InstanceNorm1d(4, track_running_stats=True)
    )
    x = torch.randn(5, 4, 7)
    model(x)
    for mode in (True, False):
        model.train(mode)
        kept, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
        with frozen_norm_stats(model):
            assert torch.equal(model(x + 1), twin(x + 1))
            assert model.training is mode
        for name, value in model.state_dict().items():
            assert torch.equal(value, kept[name]), name
    model.train()
    model(x + 1)
    assert not torch.equal(model[0].running_mean, kept["0.running_mean"])
    assert not torch.equal(model[2].running_mean, kept["2.running_mean"])


# --- sharpness ---


def test_sharpness_of_a_quadratic() -> None:
    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return (a * self.w * self.w).sum() / 2

    model, a = Quadratic(), torch.tensor([4.0, 1.0], dtype=torch.float64)
    g = a * model.w.detach()
    expected = 0.1 * float(g.norm()) + 0.005 * float(g @ (a * g)) / float(g.norm()) ** 2
    batch = (a, torch.zeros(()))
    assert sharpness(model, lambda out, _: out, batch, 0.1) == pytest.approx(expected)
    w = model.w.detach()
    move = 0.1 * w * w * g / (w.abs() * g).norm()
    expected = float((a * (w + move) ** 2).sum() - (a * w * w).sum()) / 2
    assert sharpness(model, lambda out, _: out, batch, 0.1, adaptive=True) == pytest.approx(expected)
    assert sharpness(model, lambda out, _: out, batch, 0.0) == 0
    down, here, up = loss_along_climb(model, lambda out, _: out, batch, (-0.1, 0.0, 0.1))
    assert down < here < up
    with pytest.raises(ValueError, match="rho"):
        sharpness(model, lambda out, _: out, batch, -0.1)


def test_sharpness_leaves_everything_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3), nn.Linear(3, 3))
    model[4].requires_grad_(False)
    unused = nn.Parameter(torch.ones(2))
    model.register_parameter("unused", unused)
    x, y = data()
    F.cross_entropy(model(x), y).backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    first = sharpness(model, F.cross_entropy, (x, y), 0.05)
    assert first == sharpness(model, F.cross_entropy, (x, y), 0.05)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for p, kept in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None) if kept is None else torch.equal(p.grad, kept)

    def fails_later(out: torch.Tensor, target: torch.Tensor, calls=itertools.count()) -> torch.Tensor:  # noqa: B008
        if next(calls) == 1:
            raise RuntimeError("stop")
        return F.cross_entropy(out, target)

    with pytest.raises(RuntimeError, match="stop"):
        sharpness(model, fails_later, (x, y))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


# --- the loop ---


def loader(seed: int = 0, batch_size: int = 5) -> DataLoader:
    return DataLoader(TensorDataset(*data(20)), batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sam", [True, False])
def test_the_loop_learns_with_sam_and_without(sam: bool) -> None:
    model = net()
    optimizer = SAM(model.parameters(), ADAMW, lr=0.05) if sam else ADAMW(model.parameters(), lr=0.05)
    seen: list[tuple[int, float]] = []
    losses = fit_sam(model, loader(), optimizer, F.cross_entropy, 8, callback=lambda *at: seen.append(at))
    assert seen == list(enumerate(losses))
    assert losses[-1] < 0.5 * losses[0]


def test_the_loop_stops_when_it_is_told_to_and_resumes_as_if_it_had_not(tmp_path) -> None:
    def parts():
        model = nn.Sequential(net(), nn.Dropout(0.2))
        optimizer = SAM(model.parameters(), ADAMW, every=2, lr=0.05)
        return model, loader(), optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    torch.manual_seed(3)
    model, batches, optimizer, schedule = parts()
    torch.manual_seed(4)
    whole = fit_sam(model, batches, optimizer, F.cross_entropy, 5, schedule=schedule)
    file = tmp_path / "run.pt"
    torch.manual_seed(3)
    other, batches, optimizer, schedule = parts()
    torch.manual_seed(4)
    fit_sam(other, batches, optimizer, F.cross_entropy, 5, schedule=schedule, resume=file, callback=lambda e, _: e == 1)
    third, batches, optimizer, schedule = parts()
    torch.manual_seed(99)
    resumed = fit_sam(third, batches, optimizer, F.cross_entropy, 5, schedule=schedule, resume=file)
    assert resumed == whole
    assert torch.equal(flat(third), flat(model))
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(ValueError, match="resume"):
        fit_sam(third, batches, optimizer, F.cross_entropy, 5, resume=file)


def test_accumulation_is_a_larger_batch() -> None:
    one, two = net(), net()
    x, y = data()
    whole = [(x[i : i + 10], y[i : i + 10]) for i in (0, 10)]
    parts = [(x[i : i + 5], y[i : i + 5]) for i in (0, 5, 10, 15)]
    for model, batches, n in ((one, whole, 1), (two, parts, 2)):
        fit_sam(model, batches, SAM(model.parameters(), SGD, lr=0.1), F.cross_entropy, 2, accumulate=n)
    torch.testing.assert_close(flat(one), flat(two))


def test_statistics_move_in_the_first_pass_alone_and_local_gradients_climb() -> None:
    class Shared(nn.Module):
        """With the context that a data-parallel module has."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.local, self.passes = nn.Sequential(nn.BatchNorm1d(6), net()), False, []

        @contextmanager
        def no_sync(self):
            self.local = True
            yield
            self.local = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.passes.append(self.local)
            return self.net(x)

    model = Shared()
    fit_sam(model, [data()] * 4, SAM(model.parameters(), SGD, every=2, lr=0.1), F.cross_entropy, 1)
    assert model.passes == [False, True, False, False, True, False], "steps that do not climb share their gradient"
    assert int(model.net[0].num_batches_tracked) == 4


def test_loaders_without_batches_and_numbers_that_make_no_sense() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="loader"):
        fit_sam(model, [], optimizer, F.cross_entropy, 1)
    with pytest.raises(ValueError, match="epochs"):
        fit_sam(model, [data()], optimizer, F.cross_entropy, -1)
    assert fit_sam(model, [], optimizer, F.cross_entropy, 0) == []
