"""The work of the function fitting protocol."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor, nn

from paperworks.kan.bases import KANLinear, get_basis
from paperworks.kan.fitting import History, fit_skan, held_then_cosine
from paperworks.kan.selectable import SelectionSchedule, compacted, selecting_layers
from paperworks.kan.selection import FAMILIES, Choosing
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols.function_fitting import FUNCTIONS

HELD = 0.6
"""Part of the steps before the rate falls: where S-KAN's third stage begins by default."""


def target(name: str, x: Tensor) -> Tensor:
    """The function of that name at x (N, variables): (N, 1), not yet standardised. See `FUNCTIONS`."""
    first, last = x[:, :1], x[:, -1:]
    if name == "bessel":
        return torch.special.bessel_j0(20 * first)
    if name == "exp_sine":
        return torch.exp(torch.sin(math.pi * first) + last**2)
    if name == "product":
        return first * last
    if name == "four_variables":
        squares = x.square()
        return torch.exp(0.5 * torch.sin(math.pi * squares.view(-1, 2, 2).sum(2)).sum(1, keepdim=True))
    if name == "discontinuous":
        return torch.sign(first) * (last.abs() > 0.5)
    if name == "oscillation":
        return torch.sin(6 * math.pi * first) * torch.exp(-4 * first**2)
    if name == "kink":
        return torch.exp(-40 * (first - 0.2) ** 2) + last.abs()
    raise ValueError(f"name: got {name!r}, wanted one of {', '.join(FUNCTIONS)}")


def sample(trial: Trial, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y to fit and to test; y is standardised by the mean and deviation of the part to fit."""
    points = trial.settings["points"]
    x = 2 * torch.rand(2 * points, FUNCTIONS[name], generator=trial.generator(f"points of {name}")) - 1
    y = target(name, x)
    y = (y - y[:points].mean()) / y[:points].std()
    return x[:points], y[:points], x[points:], y[points:]


def fit_functions(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.function_fitting.function_fitting`."""
    settings, found = trial.settings, dict[str, float]()
    options = dict(arm.options)
    lr = options.pop("lr", 2e-2)
    builder = Arm(arm.name, arm.target, options)
    picks: dict[str, list[str]] = {}
    decided, jumps = [], []
    for at, (name, variables) in enumerate(FUNCTIONS.items()):
        x, y, x_test, y_test = (t.to(trial.device) for t in sample(trial, name))
        generator = trial.generator(f"weights for {name}")
        model: nn.Module = builder.build(variables, settings["hidden"], settings["num_functions"], generator)
        model.to(trial.device)
        if selecting_layers(model):
            history = _fit_selecting(trial, model, x, y, lr)
            model = compacted(model)
            decided.append(history.decided)
            jumps.append(history.jump)
        else:
            _fit(model, x, y, settings["steps"], lr)
        with torch.no_grad():
            error = (model(x_test) - y_test).square().mean().sqrt().item()
        found[f"log_rmse_{name}"] = math.log10(error)
        if variables == 2:
            found["parameters"] = float(count_parameters(model, trainable=True))
        picks[name] = chosen_families(model)
        trial.progress((at + 1) / len(FUNCTIONS), name)
    for family in FAMILIES:
        trial.curve(f"picks {family}", [_share(picks, (name,), {family}) for name in FUNCTIONS])
    return found | {
        "log_rmse": statistics.fmean(found[f"log_rmse_{name}"] for name in FUNCTIONS),
        "waves_on_waves": _share(picks, ("bessel", "oscillation"), {"fourier", "wavelet"}),
        "splines_on_smooth": _share(picks, ("product", "four_variables"), {"bspline"}),
        "decided": statistics.fmean(decided) if decided else 1.0,
        "jump": statistics.fmean(jumps) if jumps else 0.0,
    }


def _fit_selecting(trial: Trial, model: nn.Module, x: Tensor, y: Tensor, lr: float) -> History:
    settings = trial.settings
    schedule = SelectionSchedule(model, settings["steps"], tau_end=settings["tau_end"], score=settings["score"])
    return fit_skan(model, x, y, lr=lr, schedule=schedule)


def _fit(model: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float) -> None:
    optimizer, start = torch.optim.Adam(model.parameters(), lr, fused=True), round(HELD * steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * held_then_cosine(step, start, steps)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def chosen_families(model: nn.Module) -> list[str]:
    """The family of each input of the network's first Kolmogorov-Arnold layer; empty for another network."""
    for layer in model.modules():
        if isinstance(layer, KANLinear):
            family = next((name for name in FAMILIES if type(layer.basis) is type(get_basis(name))), "another")
            return [family] * layer.in_features
        if isinstance(layer, Choosing) and layer.choice is not None:
            return [layer.families[i] for i in layer.choice.tolist()]
    return []


def _share(picks: dict[str, list[str]], functions: tuple[str, ...], families: set[str]) -> float:
    chosen = [family for name in functions for family in picks[name]]
    return sum(family in families for family in chosen) / len(chosen) if chosen else 0.0
