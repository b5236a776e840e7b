"""EAFO as a search: walk an activation a few steps down the output entropy and keep it as a table on a grid.

f_{j+1} = f_j + s_j c_j ("A Method on Searching Better Activation Functions", arXiv 2405.12954, in the forward form of
`eafo_entropy`). The activation stays the given f, exact, plus a correction held as a cubic table, so kinks of f are
kept and the tails of f are its own. H has no lower bound, so this is a method of few steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from paperworks.activations.eafo_densities import Density, as_density
from paperworks.activations.eafo_derivatives import Function, slope
from paperworks.activations.eafo_entropy import Quadrature, direction, entropy, in_double, softened_direction
from paperworks.activations.eafo_table import TableActivation

POINTS = 401
_REACH = 6.0  # standard deviations on either side of the mean
_ARMIJO = 1e-4
_LEAST_SLOPE = 1e-3  # of the starting slope; a step that leaves less is not taken
_LARGEST_CHANGE = 0.5  # relative change of f' at any node that the first trial of a step makes
_HALVINGS = 40
_STATIONARY = 1e-9  # of p'; a smaller c is rounding
_SOFT = 0.3  # of the root mean square slope; what a soft search softens by
_BLUR = 0.01  # of the table; where f has a kink the direction jumps, and a step along it would tear f
_QUADRATURE_POINTS = 4001


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        function: the last activation, callable on tensors.
        entropies: output entropy in nats at the start and after each step taken.
        step_sizes: s of each step taken.
    """

    function: TableActivation
    entropies: list[float]
    step_sizes: list[float]


def eafo_search(
    f: Function,
    density: Any,
    *,
    steps: int = 1,
    step_size: float | None = None,
    range: tuple[float, float] | None = None,
) -> SearchResult:
    """Lower the output entropy of an increasing activation by up to `steps` EAFO steps.

    The table has 401 nodes on mean +- 6 standard deviations (cut at the support). The search ends early where the
    entropy would not fall or where less than a thousandth of f' would be left at some node.

    Args:
        f: an elementwise differentiable callable, increasing on the grid (sigmoid, softplus, leaky ReLU).
        density: density of z.
        steps: most steps to take.
        step_size: s of every step, used as it is; None finds each by backtracking (Armijo, 1e-4).
        range: (low, high) keeps the output there: the values at the two ends of the grid are mapped onto it before the
            search and after each step. Without it a bounded f keeps its range but an unbounded one may shrink.

    Returns:
        A `SearchResult`; no step is taken at a stationary f, such as `WorstActivation(density)`.

    Raises:
        ValueError: steps < 1, a step size that is not above 0, a range that is not low < high, or an f that does not
            increase on the grid (ReLU: its entropy is -inf already; use a leaky one, or `EAFOActivation("relu")`).
        TypeError: `density` lacks a method.
    """
    if range is not None and not (math.isfinite(range[0]) and math.isfinite(range[1]) and range[0] < range[1]):
        raise ValueError(f"range: got {range}, wanted finite (low, high) with low < high")
    quadrature = Quadrature(as_density(density), _QUADRATURE_POINTS)
    start = table_on_grid(in_double(f), quadrature)
    first = slope(start, start.nodes()).detach()
    if not bool((first > 0).all()):
        at = first.nan_to_num(-math.inf).argmin()
        raise ValueError(f"f: got slope {first[at]:g} at z = {start.nodes()[at]:g}, wanted a function that increases")
    found = descend(_within(start, range), quadrature, steps=steps, step_size=step_size, limits=range)
    # The search worked on a float64 copy of a module; the caller gets the module.
    return SearchResult(found.function.changed(base=f), found.entropies, found.step_sizes)


def soft_search(
    f: Function, density: Density, *, steps: int = 1, step_size: float | None = None, points: int = POINTS
) -> SearchResult:
    """The same for any f, flat or falling in places: directions and entropies are softened (see `eafo_entropy`).

    Slopes below 0.3 times the root mean square slope count less and less, those of a flat stretch not at all.
    """
    quadrature = Quadrature(density, _QUADRATURE_POINTS)
    f = in_double(f)
    square = quadrature(lambda z: (density.pdf(z) * slope(f, z).detach() ** 2)[None]).item()
    start = table_on_grid(f, quadrature, points)
    return descend(start, quadrature, steps=steps, step_size=step_size, delta=_SOFT * math.sqrt(square))


def table_on_grid(f: Function, quadrature: Quadrature, points: int = POINTS) -> TableActivation:
    """f with an empty table over mean +- 6 standard deviations of the density, cut at its support."""
    density = quadrature.density
    mass, mean, square = quadrature(lambda z: density.pdf(z) * torch.stack([torch.ones_like(z), z, z * z])).tolist()
    mean, square = mean / mass, square / mass
    reach = _REACH * math.sqrt(square - mean * mean)
    low, high = max(mean - reach, float(density.support[0])), min(mean + reach, float(density.support[1]))
    empty = torch.zeros(points, dtype=torch.float64)
    return TableActivation(f, low, high, empty, empty)


@torch.no_grad()
def descend(
    start: TableActivation,
    quadrature: Quadrature,
    *,
    steps: int,
    step_size: float | None,
    limits: tuple[float, float] | None = None,
    delta: float = 0.0,
) -> SearchResult:
    """The search on a float64 table; delta > 0 softens its directions and entropies."""
    if steps < 1:
        raise ValueError(f"steps: got {steps}, wanted at least 1")
    if step_size is not None and not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size: got {step_size}, wanted a finite number above 0")
    nodes = start.nodes()
    p, least = quadrature.density.pdf(nodes), _LEAST_SLOPE * slope(start, nodes)

    def objective(g: TableActivation) -> float:
        """The part of H that depends on g, by the trapezoid rule at the nodes: quick, and the same for every trial."""
        first = slope(g, nodes)
        if delta == 0 and bool((first < least).any()):
            return math.inf  # turned around: its branches overlap, and H is no longer the entropy of its output
        return torch.trapezoid(p * _steepness(first, delta).log(), nodes).item()

    g, entropies, taken = start, [entropy(start, quadrature, delta=delta)], list[float]()
    for _ in range(steps):
        c = _direction(g, quadrature.density, delta)
        trial = None if c is None else _trial(g, c, objective, p, step_size, limits, delta)
        if trial is None:
            break
        stepped, s = trial
        value = entropy(stepped, quadrature, delta=delta)
        if not value < entropies[-1]:
            break
        g = stepped
        entropies.append(value)
        taken.append(s)
    return SearchResult(g, entropies, taken)


def _steepness(first: Tensor, delta: float) -> Tensor:
    return torch.hypot(first, torch.full_like(first, delta))


def _direction(g: TableActivation, density: Density, delta: float) -> CubicSpline | None:
    """c as a spline over the nodes; None where it vanishes."""
    nodes = g.nodes()
    if delta:
        sharp = softened_direction(g, density, nodes, delta).numpy()
        values = torch.from_numpy(gaussian_filter1d(sharp, _BLUR * (len(nodes) - 1), mode="nearest"))
    else:
        values = direction(g, density, nodes)
    if values.abs().max() <= _STATIONARY * density.dpdf(nodes).abs().max():
        return None  # at a maximum of H any rounding error would be a way down
    return CubicSpline(nodes.numpy(), values.numpy(), bc_type="clamped")


def _trial(
    g: TableActivation,
    c: CubicSpline,
    objective: Callable[[TableActivation], float],
    p: Tensor,
    step_size: float | None,
    limits: tuple[float, float] | None,
    delta: float,
) -> tuple[TableActivation, float] | None:
    """g + s c with the first s that lowers the objective enough; None where none does."""
    nodes = g.nodes()
    first, rate = slope(g, nodes), torch.from_numpy(c(nodes.numpy(), 1))
    steepness = _steepness(first, delta)
    fall = -torch.trapezoid(p * first * rate / steepness**2, nodes).item()  # -d objective / ds
    largest = _LARGEST_CHANGE / (rate.abs() / steepness).max().item()
    now = objective(g)
    for s in [largest * 0.5**k for k in range(_HALVINGS)] if step_size is None else [step_size]:
        stepped = _within(_plus(g, s, c), limits)
        enough = _ARMIJO * s * max(fall, 0.0) if step_size is None else 0.0
        if objective(stepped) < now - enough:
            return stepped, s
    return None


def _plus(g: TableActivation, s: float, c: CubicSpline) -> TableActivation:
    """g + s c, c a spline over the nodes of g's table."""
    nodes, s = g.nodes().numpy(), s / g.scale
    values, rates = torch.from_numpy(c(nodes)), torch.from_numpy(c(nodes, 1))
    return g.changed(values=g.values + s * values, rates=g.rates + s * rates)


def _within(g: TableActivation, limits: tuple[float, float] | None) -> TableActivation:
    """The same shape with g(low), g(high) at the limits."""
    if limits is None:
        return g
    first, last = (g.base(g.nodes()[[0, -1]]).detach() + g.values[[0, -1]]).tolist()
    scale = (limits[1] - limits[0]) / (last - first)
    return g.changed(scale=scale, shift=limits[0] - scale * first)
