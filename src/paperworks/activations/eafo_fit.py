"""EAFO on a model of one's own: measured densities, a leaderboard of activations for them, and activations fitted.

The paper ("A Method on Searching Better Activation Functions", arXiv 2405.12954) derives its correction for N(0, 1).
Here the density of a layer's pre-activation is measured. What this module does beyond the paper is ours: ranking by
an entropy that does not depend on scale, and one table a layer. An f that is flat or falls somewhere (ReLU, GELU) is
walked along its rising part only, with f'' / f' softened as in `EAFOActivation`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.activations.eafo_densities import EmpiricalDensity, as_density
from paperworks.activations.eafo_derivatives import Function, slope
from paperworks.activations.eafo_entropy import FLAT_MASS, Quadrature, in_double
from paperworks.activations.eafo_search import POINTS, SearchResult, soft_search
from paperworks.surgery.activations import replace_activations
from paperworks.surgery.recording import watching

# Every elementwise activation module of torch that has default settings.
TORCH_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.RReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)


@dataclass(frozen=True)
class LeaderboardRow:
    """One activation under one density.

    Attributes:
        name: of the activation.
        entropy: H of the output in nats; -inf where the activation is flat on a set of positive mass.
        scale_free_entropy: H - log std f(z), which does not change when f is scaled.
        branch_entropy: the same for the z where f is not flat, as a density of their own. Equal to
            `scale_free_entropy` for an f that is nowhere flat; what tells ReLU from ReLU6.
        flat_mass: probability of the z where f is flat.
        monotone: whether f never falls. If it does, the entropies are upper bounds (see `activation_entropy`).
        next_step: EAFO's next step from it, softened; `next_step.function` is the activation after the step, and
            `next_step.entropies` the softened entropy before and after.
    """

    name: str
    entropy: float
    scale_free_entropy: float
    branch_entropy: float
    flat_mass: float
    monotone: bool
    next_step: SearchResult


def entropy_leaderboard(
    density: Any, activations: Mapping[str, Function] | None = None, *, points: int = 20001
) -> list[LeaderboardRow]:
    """Rank activations by the scale-free entropy of their output, lowest (what EAFO moves towards) first.

    Ranking by H itself would rank scales. Flat activations have H = -inf and come first, among themselves by
    `branch_entropy`.

    Args:
        density: density of the pre-activation, for instance from `measure_density`.
        activations: name -> elementwise callable; None takes all of torch's, in their default settings.
        points: as in `activation_entropy`.

    Raises:
        TypeError: `density` lacks a method.
    """
    p = as_density(density)
    if activations is None:
        activations = {kind.__name__: kind() for kind in TORCH_ACTIVATIONS}
    quadrature = Quadrature(p, points)
    rows = [_row(name, in_double(f), quadrature) for name, f in activations.items()]
    return sorted(rows, key=lambda row: (row.scale_free_entropy, row.branch_entropy, row.name))


@torch.no_grad()
def _row(name: str, f: Function, quadrature: Quadrature) -> LeaderboardRow:
    density, falls = quadrature.density, False

    def integrand(z: Tensor) -> Tensor:
        nonlocal falls
        p, first, value = density.pdf(z), slope(f, z), f(z)
        falls = falls or bool(((first < 0) & (p > 0)).any())
        rising = (first != 0) & (p > 0)
        logs = torch.where(rising, first, 1.0).abs().log() - torch.where(rising, p, 1.0).log()
        on_branch = torch.where(rising, p, 0.0)
        return torch.stack(
            [p, p * value, p * value**2, on_branch, on_branch * value, on_branch * value**2, on_branch * logs]
        )

    mass, mean, square, branch, branch_mean, branch_square, h = quadrature(integrand).tolist()
    flat = max(mass - branch, 0.0) / mass
    branch_entropy = -math.inf
    if branch > FLAT_MASS:
        spread = branch_square / branch - (branch_mean / branch) ** 2
        branch_entropy = h / branch + math.log(branch) - 0.5 * math.log(spread)
    entropy = -math.inf if flat > FLAT_MASS else h
    scale_free = entropy if math.isinf(entropy) else h - 0.5 * math.log(square / mass - (mean / mass) ** 2)
    next_step = soft_search(f, density)
    return LeaderboardRow(
        name, entropy, scale_free, branch_entropy, flat if flat > FLAT_MASS else 0.0, not falls, next_step
    )


class _Reservoir:
    """A uniform random sample of all elements of the tensors it is shown."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        if size < 2:
            raise ValueError(f"samples: got {size}, wanted at least 2")
        self.size, self.generator = size, generator
        self.values, self.keys = torch.empty(0, dtype=torch.float32), torch.empty(0, dtype=torch.float64)

    def show(self, z: Tensor) -> None:
        if z.numel() == 0:
            return
        flat, n = z.detach().reshape(-1), z.numel()
        drawn = min(n, self.size)
        if drawn < n:
            flat = flat[torch.randint(n, (drawn,), generator=self.generator).to(flat.device)]
        # Were every element given an exponential key, those with the smallest keys of all tensors would be a uniform
        # sample. The smallest keys of n can be drawn without the others: their gaps are exponential (Renyi).
        gaps = -torch.log1p(-torch.rand(drawn, generator=self.generator, dtype=torch.float64))
        keys = torch.cat([self.keys, (gaps / torch.arange(n, n - drawn, -1, dtype=torch.float64)).cumsum(0)])
        values = torch.cat([self.values, flat.float().cpu()])
        self.keys, kept = keys.topk(min(self.size, len(keys)), largest=False)
        self.values = values[kept]


class _Recorder(nn.Module):
    """An activation that shows its inputs to a reservoir."""

    def __init__(self, activation: nn.Module, reservoir: _Reservoir) -> None:
        super().__init__()
        self.activation, self.reservoir = activation, reservoir

    def forward(self, z: Tensor) -> Tensor:
        self.reservoir.show(z)
        return self.activation(z)


def measure_density(
    model: nn.Module,
    layer: str,
    loader: Iterable[Any],
    *,
    samples: int = 32768,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> EmpiricalDensity:
    """The density of what goes into one layer, from a uniform sample of its inputs over a loader.

    Args:
        model: run in eval mode without gradients; left as it was.
        layer: qualified name of the layer, one whose first argument is the pre-activation.
        loader: batches: a tensor, a sequence whose first item is the input, or a mapping of keyword arguments.
        samples: elements kept.
        seed: of the random sample.
        forward: `(model, batch)` runs one batch, for loaders that give something else.

    Raises:
        ValueError: no such layer, it was not called, or its inputs are constant or not finite.
    """
    layers = dict(model.named_modules())
    if layer not in layers:
        raise ValueError(f"layer: got {layer!r}, wanted the name of a module of the model")
    reservoir = _Reservoir(samples, torch.Generator().manual_seed(seed))
    with watching({layer: layers[layer]}, lambda name, module, x: reservoir.show(x)):
        _feed(model, loader, forward)
    return _density(layer, reservoir)


def fit_activation(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    steps: int = 1,
    step_size: float | None = None,
    types: tuple[type[nn.Module], ...] = TORCH_ACTIVATIONS,
    samples: int = 32768,
    points: int = POINTS,
    learnable: bool = False,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> nn.Module:
    """A copy of `model` whose activations have each taken EAFO steps for their own measured input.

    Every activation module becomes a `TableActivation` (its `lookup()` is the activation as a plain table), fitted to
    the density of its inputs over the loader; a module used at several sites stays one, fitted to all of them.
    Activations that the loader never reaches stay as they are.

    Args:
        model: any model with activation modules; not changed.
        loader: batches: a tensor, a sequence whose first item is the input, or a mapping of keyword arguments.
        steps: most EAFO steps a layer.
        step_size: s of every step; None finds each by backtracking, which may change f' by half.
        types: activation classes to fit (those of transformers are fitted whatever it says).
        samples: inputs kept a layer.
        points: nodes of a table, at least 16.
        learnable: make the tables parameters.
        seed: of the random samples.
        forward: `(model, batch)` runs one batch, for loaders that give something else.

    Raises:
        ValueError: no activation was reached, one whose inputs are constant or not finite (named), points < 16, or
            steps and step_size as in `eafo_search`.
    """
    if points < 16:
        raise ValueError(f"points: got {points}, wanted at least 16")
    generator = torch.Generator().manual_seed(seed)
    recording = replace_activations(
        model, lambda old: _Recorder(old, _Reservoir(samples, generator)), types=types, inplace_model=False
    ).model
    _feed(recording, loader, forward)
    names = {module: name for name, module in recording.named_modules() if isinstance(module, _Recorder)}
    if not any(len(recorder.reservoir.values) for recorder in names):
        raise ValueError(f"model: the loader reached none of its {len(names)} activation modules, wanted at least one")

    def fitted(recorder: _Recorder) -> nn.Module:
        if not len(recorder.reservoir.values):
            return recorder.activation
        density = _density(names[recorder], recorder.reservoir)
        table = soft_search(recorder.activation, density, steps=steps, step_size=step_size, points=points).function
        return table.changed(base=recorder.activation, learnable=learnable)

    return replace_activations(recording, fitted, types=(_Recorder,)).model


def _density(layer: str, reservoir: _Reservoir) -> EmpiricalDensity:
    if not len(reservoir.values):
        raise ValueError(f"layer {layer!r}: it was not called, wanted a loader that reaches it")
    try:
        return EmpiricalDensity(reservoir.values)
    except ValueError as error:
        raise ValueError(f"layer {layer!r}: {error}") from error


@torch.no_grad()
def _feed(model: nn.Module, loader: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None) -> None:
    with _evaluating(model):
        for batch in loader:
            (forward or _run)(model, batch)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _run(model: nn.Module, batch: Any) -> None:
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    if isinstance(batch, Mapping):
        model(**{key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()})
        return
    first = batch if isinstance(batch, Tensor) else batch[0]
    model(first.to(device))
